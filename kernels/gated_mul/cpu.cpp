// SiLU(gate) * up, and GELU(gate) * up in its form with tanh.

namespace {

inline Vector silu(Vector x) { return x / (exponential(-x) + 1.0f); }

// (1 + tanh(u)) / 2 is 1 / (1 + exp(-2u)); 2 * sqrt(2 / pi) = 1.59576912.
inline Vector gelu(Vector x) {
    return x / (exponential(-1.59576912f * (x + 0.044715f * x * x * x)) + 1.0f);
}

template <Vector (*GATE)(Vector)>
inline void gated_mul_row(const float* gate, const float* up, float* out, int features) {
    int i = 0;
    for (; i + LANES <= features; i += LANES) store(out + i, GATE(load(gate + i)) * load(up + i));
    if (const int rest = features - i; rest > 0) {
        const Vector last = GATE(load_some(gate + i, rest, 0)) * load_some(up + i, rest, 0);
        store_some(out + i, last, rest);
    }
}

template <Vector (*GATE)(Vector)>
void gated_mul(const float* gate_up, float* out, int rows, int features) {
    for (int64_t row = 0; row < rows; ++row) {
        const float* gate = gate_up + row * 2 * features;
        gated_mul_row<GATE>(gate, gate + features, out + row * features, features);
    }
}

}  // namespace

extern "C" int silu_mul_f32(const float* gate_up, float* out, int rows, int features) {
    gated_mul<silu>(gate_up, out, rows, features);
    return OK;
}

extern "C" int gelu_mul_f32(const float* gate_up, float* out, int rows, int features) {
    gated_mul<gelu>(gate_up, out, rows, features);
    return OK;
}

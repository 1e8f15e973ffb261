// SiLU(gate) * up.

namespace {

inline Vector silu(Vector x) { return x / (exponential(-x) + 1.0f); }

inline void silu_mul_row(const float* gate, const float* up, float* out, int features) {
    int i = 0;
    for (; i + LANES <= features; i += LANES) store(out + i, silu(load(gate + i)) * load(up + i));
    if (const int rest = features - i; rest > 0) {
        const Vector last = silu(load_some(gate + i, rest, 0)) * load_some(up + i, rest, 0);
        store_some(out + i, last, rest);
    }
}

}  // namespace

extern "C" int silu_mul_f32(const float* gate_up, float* out, int rows, int features) {
    for (int64_t row = 0; row < rows; ++row) {
        const float* gate = gate_up + row * 2 * features;
        silu_mul_row(gate, gate + features, out + row * features, features);
    }
    return OK;
}

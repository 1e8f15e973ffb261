// SiLU(gate) * up.

namespace {

inline Vector silu(Vector x) { return x / (exponential(-x) + 1.0f); }

}  // namespace

extern "C" int silu_mul_f32(const float* gate_up, float* out, int rows, int features) {
    for (int64_t row = 0; row < rows; ++row) {
        const float* gate = gate_up + row * 2 * features;
        const float* up = gate + features;
        float* to = out + row * features;
        int i = 0;
        for (; i + LANES <= features; i += LANES) {
            store(to + i, silu(load(gate + i)) * load(up + i));
        }
        const int rest = features - i;
        store_some(to + i, silu(load_some(gate + i, rest, 0)) * load_some(up + i, rest, 0), rest);
    }
    return OK;
}

// fp32 weights times fp32 rows: 32 channels side by side, so that no sum runs across lanes and each
// adds up its inputs in their order, with any number of rows.

namespace {

// A weight as `packed_linear.pack` lays it out: [blocks, inputs, 32], zeros past the last channel.
struct FloatWeight {
    const float* packed;
    const float* bias;  // or null
    int channels, inputs;

    int blocks() const { return (channels + PACKED_CHANNELS - 1) / PACKED_CHANNELS; }
};

template <int ROWS>
void multiply_floats(const float* x, const FloatWeight& w, int block, float* out) {
    Vector totals[ROWS][PACKED_VECTORS] = {};
    const float* weight = w.packed + int64_t{block} * w.inputs * PACKED_CHANNELS;
    for (int64_t k = 0; k < w.inputs; ++k, weight += PACKED_CHANNELS) {
        Vector weights[PACKED_VECTORS];
        for (int v = 0; v < PACKED_VECTORS; ++v) weights[v] = load(weight + v * LANES);
        for (int64_t row = 0; row < ROWS; ++row) {
            const float value = x[row * w.inputs + k];
            for (int v = 0; v < PACKED_VECTORS; ++v) totals[row][v] += value * weights[v];
        }
    }
    for (int v = 0; v < PACKED_VECTORS; ++v) {
        const int channel = block * PACKED_CHANNELS + v * LANES;
        const int count = std::min(LANES, w.channels - channel);
        if (count <= 0) return;
        const Vector bias = w.bias ? load_some(w.bias + channel, count, 0.0f) : Vector{};
        for (int64_t row = 0; row < ROWS; ++row) {
            float* to = out + row * w.channels + channel;
            if (count == LANES) {
                store(to, totals[row][v] + bias);
            } else {
                store_some(to, totals[row][v] + bias, count);
            }
        }
    }
}

// The whole product, shared out among a team: x [rows, inputs] -> out [rows, channels].
void multiply(Team& team, const float* x, int rows, const FloatWeight& w, float* out) {
    constexpr int TOGETHER = LANES == 16 ? 8 : 2;  // as there are registers for their sums
    const int panels = (rows + PANEL_ROWS - 1) / PANEL_ROWS, blocks = w.blocks();
    team.each(panels * blocks, [&](int task) {
        const int block = task % blocks;
        int row = task / blocks * PANEL_ROWS;
        const int end = std::min(row + PANEL_ROWS, rows);
        const auto run = [&](auto together) {
            constexpr int ROWS = decltype(together)::value;
            for (; row + ROWS <= end; row += ROWS)
                multiply_floats<ROWS>(x + int64_t{row} * w.inputs, w, block,
                                      out + int64_t{row} * w.channels);
        };
        run(std::integral_constant<int, TOGETHER>{});
        if (LANES == 16) run(std::integral_constant<int, 4>{});
        run(std::integral_constant<int, 2>{});
        run(std::integral_constant<int, 1>{});
    });
}

}  // namespace

extern "C" int packed_linear_f32(const float* x, const float* packed, const float* bias, float* out,
                                 int rows, int channels, int inputs, int threads) {
    const FloatWeight weight{packed, bias, channels, inputs};
    pool().run(threads, 1, [&](Team& team) { multiply(team, x, rows, weight, out); });
    return OK;
}

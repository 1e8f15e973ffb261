// Float weights times fp32 rows: 32 channels side by side, so that no sum runs across lanes and each
// adds up its inputs in their order, with any number of rows. A weight of 16 bits is widened as it
// is read: the same numbers as in fp32, in half of the memory.

namespace {

// A weight as `packed_linear.pack` lays it out: [blocks, inputs, 32], zeros past the last channel.
struct FloatWeight {
    const void* packed;
    const float* bias;  // or null
    int channels, inputs, kind;  // of CacheKind: FP32, FP16 or BF16

    int blocks() const { return (channels + PACKED_CHANNELS - 1) / PACKED_CHANNELS; }
};

// `weight` from `at` on: the block's own.
template <int ROWS, int KIND>
void multiply_floats(const float* x, const FloatWeight& w, const void* weight, int64_t at,
                     int block, float* out) {
    Vector totals[ROWS][PACKED_VECTORS] = {};
    for (int64_t k = 0; k < w.inputs; ++k, at += PACKED_CHANNELS) {
        Vector weights[PACKED_VECTORS];
        for (int v = 0; v < PACKED_VECTORS; ++v)
            weights[v] = load_as<KIND>(weight, at + v * LANES);
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

// Rows [row, end) times one block of channels.
template <int KIND>
void multiply_block_of(const float* x, int row, int end, const FloatWeight& w, const void* weight,
                       int64_t at, int block, float* out) {
    constexpr int TOGETHER = LANES == 16 ? 8 : 2;  // as there are registers for their sums
    const auto run = [&](auto together) {
        constexpr int ROWS = decltype(together)::value;
        for (; row + ROWS <= end; row += ROWS)
            multiply_floats<ROWS, KIND>(x + int64_t{row} * w.inputs, w, weight, at, block,
                                        out + int64_t{row} * w.channels);
    };
    run(std::integral_constant<int, TOGETHER>{});
    if (LANES == 16) run(std::integral_constant<int, 4>{});
    run(std::integral_constant<int, 2>{});
    run(std::integral_constant<int, 1>{});
}

template <int KIND>
void multiply_kind(Team& team, const float* x, int rows, const FloatWeight& w, float* out) {
    constexpr int WORTH_WIDENING = 24;  // rows that would each widen a block again
    const int panels = (rows + PANEL_ROWS - 1) / PANEL_ROWS, blocks = w.blocks();
    const int64_t size = int64_t{w.inputs} * PACKED_CHANNELS;
    team.each(panels * blocks, [&](int task) {
        const int block = task % blocks, row = task / blocks * PANEL_ROWS;
        const int end = std::min(row + PANEL_ROWS, rows);
        if (KIND == FP32 || end - row < WORTH_WIDENING) {
            multiply_block_of<KIND>(x, row, end, w, w.packed, block * size, block, out);
            return;
        }
        static thread_local std::vector<float> wide;
        make_room(wide, size);
        for (int64_t i = 0; i < size; i += LANES)
            store(wide.data() + i, load_as<KIND>(w.packed, block * size + i));
        multiply_block_of<FP32>(x, row, end, w, wide.data(), 0, block, out);
    });
}

// The whole product, shared out among a team: x [rows, inputs] -> out [rows, channels].
void multiply(Team& team, const float* x, int rows, const FloatWeight& w, float* out) {
    const auto run = w.kind == FP16 ? multiply_kind<FP16>
                   : w.kind == BF16 ? multiply_kind<BF16> : multiply_kind<FP32>;
    run(team, x, rows, w, out);
}

}  // namespace

extern "C" int packed_linear_f32(const float* x, const void* packed, const float* bias, float* out,
                                 int rows, int channels, int inputs, int kind, int threads) {
    const FloatWeight weight{packed, bias, channels, inputs, kind};
    pool().run(threads, 1, [&](Team& team) { multiply(team, x, rows, weight, out); });
    return OK;
}

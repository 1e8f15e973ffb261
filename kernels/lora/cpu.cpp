// Low-rank adapters row by row: a row's result does not depend on the rows beside it.

namespace {

// a [L, rank, inputs], b [L, channels, rank], scales [L].
struct Adapters {
    const float* a;
    const float* b;
    const float* scales;
    int rank, inputs, channels;
};

inline float dot(const float* x, const float* y, int count) {
    Vector total = {};
    int i = 0;
    for (; i + LANES <= count; i += LANES) total += load(x + i) * load(y + i);
    if (i < count) total += load_some(x + i, count - i, 0.0f) * load_some(y + i, count - i, 0.0f);
    return sum(total);
}

void adapt_row(const Adapters& all, int adapter, const float* x, float* out) {
    static thread_local std::vector<float> low;
    make_room(low, all.rank);
    const float* a = all.a + int64_t{adapter} * all.rank * all.inputs;
    const float* b = all.b + int64_t{adapter} * all.channels * all.rank;
    for (int r = 0; r < all.rank; ++r) low[r] = dot(x, a + int64_t{r} * all.inputs, all.inputs);
    for (int n = 0; n < all.channels; ++n)
        out[n] += dot(low.data(), b + int64_t{n} * all.rank, all.rank) * all.scales[adapter];
}

}  // namespace

extern "C" int lora_add_f32(float* out, const float* x, const Adapters* all,
                            const int32_t* query_start_lens, const int32_t* adapters,
                            int sequences, int count, int64_t out_stride, int64_t x_stride,
                            int threads) {
    for (int sequence = 0; sequence < sequences; ++sequence)
        if (adapters[sequence] >= count) return OUT_OF_RANGE;
    pool().run(threads, sequences, [&](Team& team) {
        for (int sequence = 0; sequence < sequences; ++sequence) {
            const int first = query_start_lens[sequence], adapter = adapters[sequence];
            const int rows = adapter < 0 ? 0 : query_start_lens[sequence + 1] - first;
            team.each((rows + ROWS_OF_TASK - 1) / ROWS_OF_TASK, [&](int task) {
                const int end = std::min(rows, (task + 1) * ROWS_OF_TASK);
                for (int64_t row = first + task * ROWS_OF_TASK; row < first + end; ++row)
                    adapt_row(*all, adapter, x + row * x_stride, out + row * out_stride);
            });
        }
    });
    return OK;
}

// Paged attention for short queries: one task per sequence and key head.

namespace {

// The rows of one task: every query of the sequence, times every query head of the key head.
struct Rows {
    int count;
    std::vector<float> queries;  // [count, D], scaled
    std::vector<float> scores;   // [count, context], then weights
    std::vector<float> totals;   // [count, D]
};

// DIM is the head size where it is a common one, so that loops over it unroll; else 0.
template <int DIM>
void score(Rows& rows, const float* keys, int slots, int64_t slot_stride, int first, int context,
           int dim_at_run_time) {
    const int dim = DIM ? DIM : dim_at_run_time;
    for (int slot = 0; slot < slots; ++slot) {
        const float* key = keys + slot * slot_stride;
        for (int row = 0; row < rows.count; ++row) {
            const float* query = rows.queries.data() + row * dim;
            Vector total = {};
            for (int d = 0; d < dim; d += LANES) total += load(query + d) * load(key + d);
            rows.scores[static_cast<int64_t>(row) * context + first + slot] = sum(total);
        }
    }
}

template <int DIM>
void weigh(Rows& rows, const float* values, int slots, int64_t slot_stride, int first, int context,
           int dim_at_run_time) {
    const int dim = DIM ? DIM : dim_at_run_time;
    for (int row = 0; row < rows.count; ++row) {
        const float* weights = rows.scores.data() + static_cast<int64_t>(row) * context + first;
        float* total = rows.totals.data() + row * dim;
        for (int d = 0; d < dim; d += LANES) {
            Vector sum_of_slots = load(total + d);
            for (int slot = 0; slot < slots; ++slot) {
                sum_of_slots += weights[slot] * load(values + slot * slot_stride + d);
            }
            store(total + d, sum_of_slots);
        }
    }
}

// Softmax over the first `visible` scores; the others weigh nothing.
void softmax(float* scores, int visible, int context) {
    float maximum = -INFINITY;
#pragma omp simd reduction(max : maximum)
    for (int i = 0; i < visible; ++i) maximum = std::max(maximum, scores[i]);
    Vector totals = {};
    int i = 0;
    for (; i + LANES <= visible; i += LANES) {
        const Vector weights = exponential(load(scores + i) - maximum);
        store(scores + i, weights);
        totals += weights;
    }
    float total = sum(totals);
    if (i < visible) {
        const int rest = visible - i;
        store_some(scores + i, exponential(load_some(scores + i, rest, maximum) - maximum), rest);
        for (; i < visible; ++i) total += scores[i];
    }
    const float inverse = 1.0f / total;
#pragma omp simd
    for (int j = 0; j < visible; ++j) scores[j] *= inverse;
    std::fill(scores + std::min(visible, context), scores + context, 0.0f);
}

struct Cache {
    const float* keys;
    const float* values;
    int64_t num_blocks;
    int block_size, heads, dim;
};

template <int DIM>
int attend(Rows& rows, const Cache& cache, int head, const int32_t* table, int queries,
           int context) {
    const int64_t slot_stride = static_cast<int64_t>(cache.heads) * cache.dim;
    const int64_t block_stride = cache.block_size * slot_stride;
    const int64_t head_offset = static_cast<int64_t>(head) * cache.dim;
    const int group = rows.count / queries;
    for (int first = 0, index = 0; first < context; first += cache.block_size, ++index) {
        const int64_t block = table[index];
        if (block < 0 || block >= cache.num_blocks) return OUT_OF_RANGE;
        score<DIM>(rows, cache.keys + block * block_stride + head_offset,
                   std::min(cache.block_size, context - first), slot_stride, first, context,
                   cache.dim);
    }
    for (int row = 0; row < rows.count; ++row) {
        const int visible = std::max(0, context - queries + row / group + 1);
        softmax(rows.scores.data() + static_cast<int64_t>(row) * context, visible, context);
    }
    for (int first = 0, index = 0; first < context; first += cache.block_size, ++index) {
        weigh<DIM>(rows, cache.values + table[index] * block_stride + head_offset,
                   std::min(cache.block_size, context - first), slot_stride, first, context,
                   cache.dim);
    }
    return OK;
}

}  // namespace

// Sequences with more than max_queries queries are left for the caller; others' rows are written.
extern "C" int paged_attention_f32(
    const float* q, const float* k_cache, const float* v_cache, float* out,
    const int32_t* block_tables, const int32_t* query_start_lens, const int32_t* context_lens,
    int64_t num_blocks, int sequences, int table_len, int64_t q_token_stride, int64_t q_head_stride,
    int query_heads, int kv_heads, int dim, int block_size, float scale, int max_queries,
    int threads) {
    const int group = query_heads / kv_heads;
    const Cache cache{k_cache, v_cache, num_blocks, block_size, kv_heads, dim};
    int outcome = OK;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (int task = 0; task < sequences * kv_heads; ++task) {
        const int sequence = task / kv_heads, head = task % kv_heads;
        const int start = query_start_lens[sequence];
        const int queries = query_start_lens[sequence + 1] - start;
        const int context = context_lens[sequence];
        if (queries <= 0 || queries > max_queries) continue;
        if (context < 0 || context > static_cast<int64_t>(table_len) * block_size) {
            outcome = OUT_OF_RANGE;
            continue;
        }
        static thread_local Rows rows;
        rows.count = queries * group;
        rows.queries.resize(static_cast<size_t>(rows.count) * dim);
        rows.scores.resize(static_cast<size_t>(rows.count) * context);
        rows.totals.assign(static_cast<size_t>(rows.count) * dim, 0.0f);
        for (int row = 0; row < rows.count; ++row) {
            const float* from = q + (start + row / group) * q_token_stride +
                                (head * group + row % group) * q_head_stride;
            for (int d = 0; d < dim; ++d) rows.queries[row * dim + d] = from[d] * scale;
        }
        const int32_t* table = block_tables + static_cast<int64_t>(sequence) * table_len;
        const auto run = dim == 32 ? attend<32> : dim == 64 ? attend<64>
                       : dim == 128 ? attend<128> : attend<0>;
        if (run(rows, cache, head, table, queries, context) != OK) outcome = OUT_OF_RANGE;
        for (int row = 0; row < rows.count; ++row) {
            const int64_t token = start + row / group, query_head = head * group + row % group;
            std::copy_n(rows.totals.data() + static_cast<int64_t>(row) * dim, dim,
                        out + (token * query_heads + query_head) * dim);
        }
    }
    return outcome;
}

// Paged attention: one task per key head and few consecutive queries of a sequence.
//
// A query's sums run in one order however many queries stand beside it: a prompt computed whole,
// in parts or token by token gives the same bits.

namespace {

constexpr int QUERIES_OF_TASK = 16;
// A block is asked for so long before it is read; one and four were slower.
constexpr int BLOCKS_AHEAD = 2;

// Memory that begins with a line of the cache, so that no vector in it lies across two.
template <class T>
struct InLines {
    using value_type = T;
    static constexpr std::align_val_t LINE{64};

    T* allocate(size_t size) { return static_cast<T*>(::operator new(size * sizeof(T), LINE)); }
    void deallocate(T* memory, size_t) { ::operator delete(memory, LINE); }
    bool operator==(const InLines&) const { return true; }
    bool operator!=(const InLines&) const { return false; }
};
using Floats = std::vector<float, InLines<float>>;

// The rows of one task: every query, times every query head of the key head.
struct Rows {
    int count;       // per key head
    Floats queries;  // [count, D], scaled
    Floats scores;   // [count, context], then weights
    Floats totals;   // [count, D]
    Floats inverse;  // [count], of the weights' sums
    Floats block;    // [slots, D]: a block of another dtype, widened
};

// Grows only: a vector would clear what it grows by again and again.
template <class Memory>
inline void make_room(Memory& memory, int64_t size) {
    if (static_cast<int64_t>(memory.size()) < size) memory.resize(size);
}

// Lane by lane, not yet added up: the products of ROWS rows with four keys, each read once.
// DIM is the head size where it is a common one, so that loops over it unroll; else 0.
template <int DIM, int ROWS, int KIND>
inline void multiply(const float* queries, const char* const* keys, int dim_at_run_time,
                     Vector (&products)[ROWS][4]) {
    constexpr int BYTES = Slots<KIND>::BYTES;
    const int dim = DIM ? DIM : dim_at_run_time;
    int d = 0;
#pragma GCC unroll 4
    for (; d + 2 * LANES <= dim; d += 2 * LANES)
        for (int i = 0; i < 4; ++i) {
            const Pair key = load_pair<KIND>(keys[i] + d * BYTES);
            for (int row = 0; row < ROWS; ++row) {
                const float* query = queries + row * dim + d;
                products[row][i] += load(query) * key.low;
                products[row][i] += load(query + LANES) * key.high;
            }
        }
    if (d < dim)
        for (int i = 0; i < 4; ++i) {
            const Vector key = load_as<KIND>(keys[i], d);
            for (int row = 0; row < ROWS; ++row)
                products[row][i] += load(queries + row * dim + d) * key;
        }
}

// The scores of ROWS rows and up to LANES slots. A missing one reads the last slot again, in a lane
// that is not kept, so that a score is added up alike in any tile.
template <int DIM, int ROWS, int KIND>
inline IN_PLACE void score_rows(const float* queries, const Slots<KIND>& keys, bool fetches,
                                int count, int dim, float* to, int64_t context) {
    LaneSums sums[ROWS];
    const auto add_up = [&](int four, const auto& slot_of) {
        const char* at[4];
        for (int i = 0; i < 4; ++i) {
            at[i] = keys.row(slot_of(4 * four + i));
            if (fetches) keys.fetch(at[i], DIM ? DIM : dim);
        }
        Vector products[ROWS][4] = {};
        multiply<DIM, ROWS, KIND>(queries, at, dim, products);
        for (int row = 0; row < ROWS; ++row) sums[row].take(four, products[row]);
    };
    if (count == LANES) {
#pragma GCC unroll 1
        for (int four = 0; four < LANES / 4; ++four) add_up(four, [](int slot) { return slot; });
        for (int row = 0; row < ROWS; ++row) store(to + row * context, sums[row].all());
    } else {
#pragma GCC unroll 1
        for (int four = 0; four < LANES / 4; ++four)
            add_up(four, [&](int slot) { return std::min(slot, count - 1); });
        for (int row = 0; row < ROWS; ++row)
            store_some(to + row * context, sums[row].all(), count);
    }
}

// Of a head's rows the first ones ask for what is read soon.
template <int DIM, int KIND>
inline IN_PLACE void score(Rows& rows, int head, const Slots<KIND>& keys, int slots, int first,
                           int context, int dim_at_run_time) {
    const int dim = DIM ? DIM : dim_at_run_time;
    const int begin = head * rows.count, end = begin + rows.count;
    for (int tile = 0; tile < slots; tile += LANES) {
        const int count = std::min(LANES, slots - tile);
        const Slots<KIND> read = keys.from(tile);
        const float* queries = rows.queries.data() + begin * dim;
        float* to = rows.scores.data() + static_cast<int64_t>(begin) * context + first + tile;
        int row = begin;
        if constexpr (LANES == 16) {
            if (end - row == 3) {
                score_rows<DIM, 3>(queries, read, true, count, dim, to, context);
                continue;
            }
            for (; row + 2 <= end; row += 2, queries += 2 * dim, to += 2 * context)
                score_rows<DIM, 2>(queries, read, row == begin, count, dim, to, context);
        }
        for (; row < end; ++row, queries += dim, to += context)
            score_rows<DIM, 1>(queries, read, row == begin, count, dim, to, context);
    }
}

// ROWS rows share each value read; their totals stay in registers.
template <int DIM, int ROWS, int KIND>
inline IN_PLACE void weigh_rows(Rows& rows, int row, const Slots<KIND>& values, bool fetches,
                                int slots, int64_t place, int context) {
    constexpr int PARTS = DIM / LANES;
    Vector totals[ROWS][PARTS];
    float* to = rows.totals.data() + static_cast<int64_t>(row) * DIM;
    const float* weights = rows.scores.data() + static_cast<int64_t>(row) * context + place;
    for (int r = 0; r < ROWS; ++r) {
        for (int part = 0; part < PARTS; ++part) {
            totals[r][part] = load(to + r * DIM + part * LANES);
        }
    }
    for (int slot = 0; slot < slots; ++slot) {
        const char* value = values.row(slot);
        if (fetches) values.fetch(value, DIM);
        for (int part = 0; part < PARTS; part += 2) {
            const Pair read = load_apart<KIND>(value + part * LANES * values.BYTES);
            for (int r = 0; r < ROWS; ++r) {
                const float weight = weights[static_cast<int64_t>(r) * context + slot];
                totals[r][part] += weight * read.low;
                totals[r][part + 1] += weight * read.high;
            }
        }
    }
    for (int r = 0; r < ROWS; ++r) {
        for (int part = 0; part < PARTS; ++part) {
            store(to + r * DIM + part * LANES, totals[r][part]);
        }
    }
}

template <int DIM, int KIND>
inline IN_PLACE void weigh(Rows& rows, int head, const Slots<KIND>& values, int slots, int first,
                           int context, int dim_at_run_time) {
    const int begin = head * rows.count, end = begin + rows.count;
    int row = begin;
    if constexpr (DIM != 0) {
        constexpr int MOST = DIM <= 64 ? 4 : 2;
        for (; row + MOST <= end; row += MOST)
            weigh_rows<DIM, MOST>(rows, row, values, row == begin, slots, first, context);
        if (MOST == 4 && row + 3 == end) {
            weigh_rows<DIM, MOST - 1>(rows, row, values, row == begin, slots, first, context);
        } else {
            for (; row + 2 <= end; row += 2)
                weigh_rows<DIM, 2>(rows, row, values, row == begin, slots, first, context);
            if (row < end)
                weigh_rows<DIM, 1>(rows, row, values, row == begin, slots, first, context);
        }
        return;
    }
    for (; row < end; ++row) {
        const float* weights = rows.scores.data() + static_cast<int64_t>(row) * context + first;
        float* total = rows.totals.data() + static_cast<int64_t>(row) * dim_at_run_time;
        for (int d = 0; d < dim_at_run_time; d += LANES) {
            Vector sum_of_slots = load(total + d);
            for (int slot = 0; slot < slots; ++slot)
                sum_of_slots += weights[slot] * values.at(slot, d);
            store(total + d, sum_of_slots);
        }
    }
}

constexpr int LINE = 64;

// Asks for one head of slots that are read soon: blocks lie anywhere in memory.
inline void fetch(const Place& at, const CacheShape& shape, int slots, int head) {
    const int bytes = shape.dim * shape.bytes_of_number();
    const char* from = reinterpret_cast<const char*>(at.address(shape)) + int64_t{head} * bytes;
    for (int row = 0; row < slots; ++row, from += int64_t{shape.heads} * bytes)
        for (int line = 0; line < bytes; line += LINE) __builtin_prefetch(from + line, 0, 2);
}

inline void fetch_scales(const Place& at, const CacheShape& shape, int slots) {
    const char* from = reinterpret_cast<const char*>(at.scales(shape, 0));
    if (!from) return;
    const int bytes = slots * shape.heads * 4;
    for (int line = 0; line < bytes; line += LINE) __builtin_prefetch(from + line, 0, 2);
}

// Few rows widen numbers as they read them, many would each do so again. Where several instructions
// widen one, nobody does: compilers take long over it.
inline bool read_as_they_lie(const Rows& rows, const CacheShape& shape) {
#if defined(__AVX2__)
    constexpr int MOST_ROWS_WIDENING = 4;
    return shape.kind == FP32 || rows.count <= MOST_ROWS_WIDENING;
#else
    return shape.kind == FP32;
#endif
}

// The blocks and heads of a sequence that a task reads.
struct Walk {
    const int32_t* table;
    int blocks, begin, context;  // of positions [begin, context)
    int first_head, heads;
};

// Calls body(slots, where they begin, count, first position, head) for each head of each block; codes
// have no scale yet. What lies at next(block) is asked for while the block is read.
template <class Next, class Body>
inline IN_PLACE void each_head(const Walk& walk, const CacheHalf& half, const CacheShape& shape,
                               Rows& rows, const Next& next, const Body& body) {
    const auto run = [&, shape = CacheShape(shape)](auto kind, const auto& read) {
        const int size = shape.block_size;
        for (int block = 0, first = walk.begin; block < walk.blocks; ++block, first += size) {
            const int count = std::min(size, walk.context - first);
            const Place at{&half, int64_t{walk.table[block]} * size}, then = next(block);
            if (half.scales) fetch_scales(then, shape, count);
            for (int head = 0; head < walk.heads; ++head) {
                const auto slots = slots_of<decltype(kind)::value>(at, then, shape,
                                                                   walk.first_head + head);
                body(read(slots, at, then, count, walk.first_head + head), at, count, first, head);
            }
        }
    };
    if (!read_as_they_lie(rows, shape))
        return run(std::integral_constant<int, FP32>{},
                   [&](const auto&, const Place& at, const Place& then, int count, int head) IN_PLACE {
            fetch(then, shape, count, head);
            return widened(at, shape, head, count, rows.block.data());
        });
    const auto as_it_lies = [](const auto& slots, const Place&, const Place&, int, int) IN_PLACE {
        return slots;
    };
    switch (shape.kind) {
        case FP32: return run(std::integral_constant<int, FP32>{}, as_it_lies);
#if defined(__AVX2__)
        case FP16: return run(std::integral_constant<int, FP16>{}, as_it_lies);
        case BF16: return run(std::integral_constant<int, BF16>{}, as_it_lies);
        case INT8: return run(std::integral_constant<int, INT8>{}, as_it_lies);
        case FP8: return run(std::integral_constant<int, FP8>{}, as_it_lies);
#endif
    }
}

// Scales what a head's rows have of each slot, where the slots are codes: scores of keys, which were
// multiplied without it, and weights of values, which will be.
void scale_slots(Rows& rows, int head, const float* scales, int stride, int slots, int first,
                 int context) {
    if (!scales) return;
    for (int tile = 0; tile < slots; tile += LANES) {
        const int count = std::min(LANES, slots - tile);
        Vector scale = {};
        for (int slot = 0; slot < count; ++slot)
            scale[slot] = scales[(tile + slot) * int64_t{stride}];
        float* to = rows.scores.data() + int64_t{head} * rows.count * context + first + tile;
        for (int row = 0; row < rows.count; ++row, to += context)
            store_some(to, load_some(to, count, 0.0f) * scale, count);
    }
}

// What a row sees: positions [from, to), of which those from `tree_from` on only where `tree` is set.
struct Visible {
    int from, to;
    const uint8_t* tree;  // or null
    int tree_from;

    bool hides(int position) const {
        return tree && position >= tree_from && !tree[position - tree_from];
    }
};

// cap * tanh(score / cap).
void cap_scores(float* scores, int from, int to, float cap) {
    const auto capped = [&](Vector score) {
        return cap - 2.0f * cap / (exponential(score * (2.0f / cap)) + 1.0f);
    };
    int i = from;
    for (; i + LANES <= to; i += LANES) store(scores + i, capped(load(scores + i)));
    if (i < to) store_some(scores + i, capped(load_some(scores + i, to - i, 0.0f)), to - i);
}

// Weights of what is visible, not yet divided by their sum, whose inverse is returned; what is not
// weighs nothing. A sink is one more score, which takes weight and brings no value.
float softmax(float* scores, const Visible& visible, int context, const float* sink) {
    const int from = std::min(visible.from, visible.to), to = visible.to;
    std::fill(scores, scores + from, 0.0f);
    std::fill(scores + to, scores + context, 0.0f);
    constexpr float LOWEST = -3e38f;
    for (int i = visible.tree ? std::max(from, visible.tree_from) : to; i < to; ++i)
        if (visible.hides(i)) scores[i] = LOWEST;
    Vector most = Vector{} + LOWEST;
    int i = from;
    for (; i + LANES <= to; i += LANES) most = larger(load(scores + i), most);
    if (i < to) most = larger(load_some(scores + i, to - i, LOWEST), most);
    float maximum = largest_lane(most);
    if (sink) maximum = std::max(maximum, *sink);
    if (maximum == LOWEST) {  // Sees nothing.
        std::fill(scores + from, scores + to, 0.0f);
        return 0.0f;
    }
    Vector totals = {};
    for (i = from; i + LANES <= to; i += LANES) {
        const Vector weights = exponential(load(scores + i) - maximum);
        store(scores + i, weights);
        totals += weights;
    }
    float total = sum(totals);
    if (i < to) {
        const int rest = to - i;
        store_some(scores + i, exponential(load_some(scores + i, rest, maximum) - maximum), rest);
        for (; i < to; ++i) total += scores[i];
    }
    // What is hidden has weighed next to nothing, but its value must not be read as a number.
    for (i = visible.tree ? std::max(from, visible.tree_from) : to; i < to; ++i)
        if (visible.hides(i)) scores[i] = 0.0f;
    if (sink) total += exponential(Vector{} + (*sink - maximum))[0];
    return 1.0f / total;
}

// The queries and place of one task.
struct Task {
    int sequence;
    int first_row;  // of the packed queries
    int queries;
    int position;   // of the first query in its sequence; below 0: a padding row
    int context;    // up to and with the last position that a query may see
    int tree_from;  // position of the sequence's first query
};

// What one call attends: queries [tokens, heads, dim] whose tokens and heads may lie apart.
struct Attention {
    const float* q;
    int64_t token_stride, head_stride;
    float* out;  // [tokens, heads, dim], packed
    const int32_t* block_tables;
    int table_len, query_heads;
    float scale;
    int window;      // 0: none
    float soft_cap;  // 0: none
    const float* sinks;          // [query heads], or null
    const uint8_t* tree_mask;    // [tokens, tree_width], or null
    int64_t tree_width;

    // The first position of the first block that a task reads.
    int first_block(const Task& task, int size) const {
        return visible(task, 0).from / size * size;
    }
    // The blocks that a task reads, and how many they are.
    const int32_t* table(const Task& task, int size) const {
        return block_tables + int64_t{task.sequence} * table_len + first_block(task, size) / size;
    }
    int blocks(const Task& task, int size) const {
        return (task.context - first_block(task, size) + size - 1) / size;
    }
    Visible visible(const Task& task, int query) const {
        const int own = task.position + query;
        Visible seen{0, std::max(0, own + 1), nullptr, 0};
        if (window) seen.from = std::max(0, own - window + 1);
        if (tree_mask) {
            seen.to = task.context;
            seen.tree = tree_mask + (task.first_row + query) * tree_width;
            seen.tree_from = task.tree_from;
        }
        return seen;
    }
};

struct LayerCache {
    CacheHalf keys, values;
};

// Calls body(row, query, query head) for every row of a task, in their order: by key head, query and
// member of the key head's group.
template <class Body>
inline void each_query_row(const Task& task, int first_head, int heads, int group,
                           const Body& body) {
    int row = 0;
    for (int head = first_head; head < first_head + heads; ++head)
        for (int query = 0; query < task.queries; ++query)
            for (int member = 0; member < group; ++member)
                body(row++, query, head * group + member);
}

// Key heads [first_head, first_head + heads) of one sequence. Blocks are walked once for all of
// them, because memory is read fastest in its order. `following` is probably the next task.
template <int DIM>
int attend(Rows& rows, const Attention& call, const LayerCache& cache, const CacheShape& shape,
           const Task& task, int first_head, int heads, const Task& following) {
    const int context = task.context, size = shape.block_size;
    const int group = call.query_heads / shape.heads;
    const int begin = call.first_block(task, size);
    const int32_t* table = call.table(task, size);
    const int32_t* following_table = call.table(following, size);
    const int blocks = call.blocks(task, size);
    const int last_following = std::max(0, call.blocks(following, size) - 1);
    for (int block = 0; block < blocks; ++block)
        if (table[block] < 0 || table[block] >= shape.num_blocks) return OUT_OF_RANGE;
    make_room(rows.block, int64_t{size} * shape.dim);
    const Walk walk{table, blocks, begin, context, first_head, heads};
    const auto place = [&](const CacheHalf& half, int block) {
        return Place{&half, int64_t{table[block]} * size};
    };
    const auto after_keys = [&](int block) IN_PLACE {
        const int then = block + BLOCKS_AHEAD;
        return then < blocks ? place(cache.keys, then)
                             : place(cache.values, std::min(then, 2 * blocks - 1) - blocks);
    };
    each_head(walk, cache.keys, shape, rows, after_keys,
              [&](const auto& keys, const Place& at, int slots, int first, int head) IN_PLACE {
        score<DIM>(rows, head, keys, slots, first, context, shape.dim);
        scale_slots(rows, head, at.scales(shape, first_head + head), shape.heads, slots, first,
                    context);
    });
    each_query_row(task, first_head, heads, group, [&](int row, int query, int query_head) {
        float* scores = rows.scores.data() + static_cast<int64_t>(row) * context;
        const Visible seen = call.visible(task, query);
        if (call.soft_cap > 0) cap_scores(scores, std::min(seen.from, seen.to), seen.to,
                                          call.soft_cap);
        rows.inverse[row] =
            softmax(scores, seen, context, call.sinks ? call.sinks + query_head : nullptr);
    });
    const auto after_values = [&](int block) IN_PLACE {
        const int then = block + BLOCKS_AHEAD;
        const int beyond = std::min(then - blocks, last_following);
        return then < blocks ? place(cache.values, then)
                             : Place{&cache.keys, int64_t{following_table[beyond]} * size};
    };
    each_head(walk, cache.values, shape, rows, after_values,
              [&](const auto& values, const Place& at, int slots, int first, int head) IN_PLACE {
        scale_slots(rows, head, at.scales(shape, first_head + head), shape.heads, slots, first,
                    context);
        weigh<DIM>(rows, head, values, slots, first, context, shape.dim);
    });
    if (DIM && shape.kind == BF16 && read_as_they_lie(rows, shape))
        for (int i = 0; i < heads * rows.count * DIM; i += 2 * LANES)
            put_together(rows.totals.data() + i);
    return OK;
}

// Cuts a batch into tasks; false if a context is longer than its table.
bool list_tasks(const int32_t* query_start_lens, const int32_t* context_lens, int sequences,
                int64_t table_slots, bool tree, std::vector<Task>& tasks) {
    tasks.clear();
    for (int sequence = 0; sequence < sequences; ++sequence) {
        const int start = query_start_lens[sequence];
        const int queries = query_start_lens[sequence + 1] - start;
        const int context = context_lens[sequence];
        if (context < 0 || context > table_slots) return false;
        for (int first = 0; first < queries; first += QUERIES_OF_TASK) {
            const int count = std::min(QUERIES_OF_TASK, queries - first);
            const int position = context - queries + first;
            // In a tree a query may see later ones.
            const int seen = tree ? context : std::max(0, position + count);
            tasks.push_back({sequence, start + first, count, position, seen, context - queries});
        }
    }
    return true;
}

// One task for key heads [first_head, first_head + heads).
int attend_task(const Attention& call, const LayerCache& cache, const CacheShape& shape,
                const Task& task, int first_head, int heads, const Task& following) {
    static thread_local Rows rows;
    const int group = call.query_heads / shape.heads, dim = shape.dim;
    rows.count = task.queries * group;
    const int all = rows.count * heads;
    make_room(rows.queries, int64_t{all} * dim);
    make_room(rows.scores, int64_t{all} * task.context);
    make_room(rows.inverse, all);
    rows.totals.assign(static_cast<size_t>(all) * dim, 0.0f);
    each_query_row(task, first_head, heads, group, [&](int row, int query, int query_head) {
        const float* from = call.q + (int64_t{task.first_row} + query) * call.token_stride +
                            query_head * call.head_stride;
        float* to = rows.queries.data() + int64_t{row} * dim;
        for (int d = 0; d < dim; d += LANES) store(to + d, load(from + d) * call.scale);
    });
    const auto run = dim == 32 ? attend<32> : dim == 64 ? attend<64>
                   : dim == 128 ? attend<128> : attend<0>;
    const int outcome = run(rows, call, cache, shape, task, first_head, heads, following);
    each_query_row(task, first_head, heads, group, [&](int row, int query, int query_head) {
        const int64_t token = int64_t{task.first_row} + query;
        const float* total = rows.totals.data() + int64_t{row} * dim;
        float* to = call.out + (token * call.query_heads + query_head) * dim;
        for (int d = 0; d < dim; d += LANES) store(to + d, load(total + d) * rows.inverse[row]);
    });
    return outcome;
}

// All tasks, shared out among a team. Where decode steps are plenty, one walks the blocks for all
// heads; the scores of long queries would not stay in the cache.
void attend_all(Team& team, const Attention& call, const LayerCache& cache, const CacheShape& shape,
                const std::vector<Task>& tasks, std::atomic<int>& outcome) {
    const int count = static_cast<int>(tasks.size());
    const bool decode = std::all_of(tasks.begin(), tasks.end(),
                                    [](const Task& task) { return task.queries <= 2; });
    const int heads = decode && count >= 2 * team.size() ? shape.heads : 1;
    const int parts = shape.heads / heads;
    team.each(count * parts, [&](int task) {
        // The last queries of a prompt see the most: begin with them.
        const Task& own = tasks[count - 1 - task / parts];
        const Task& following = tasks[std::max(0, count - 2 - task / parts)];
        if (attend_task(call, cache, shape, own, task % parts * heads, heads, following) != OK)
            outcome.store(OUT_OF_RANGE, std::memory_order_relaxed);
    });
}

}  // namespace

extern "C" int paged_attention_f32(const Attention* call, const LayerCache* cache,
                                   const CacheShape* shape, const int32_t* query_start_lens,
                                   const int32_t* context_lens, int sequences, int threads) {
    std::vector<Task> tasks;
    if (!list_tasks(query_start_lens, context_lens, sequences,
                    int64_t{call->table_len} * shape->block_size, call->tree_mask != nullptr,
                    tasks))
        return OUT_OF_RANGE;
    std::atomic<int> outcome{OK};
    pool().run(threads, 1, [&](Team& team) {
        attend_all(team, *call, *cache, *shape, tasks, outcome);
    });
    return outcome;
}

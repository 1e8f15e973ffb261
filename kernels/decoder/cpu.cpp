// All layers of a decoder in one call: the ops' own functions, in the order of the model.
//
// A team of threads computes each part together and meets after it.

namespace {

constexpr int ROWS_OF_TASK = 8;  // at most, of work that goes row by row
constexpr int PARTS_OF_LAYER = 10;

// Codes in groups where it has some, an int8 weight where it has scales, else floats.
struct Weight {
    const void* packed;
    const float* scale;
    const float* bias;
    int channels, inputs;
    int group;  // inputs of a group; 0: it has none
    int kind;   // of CacheKind, where it is a float
    int float_zeros, wide;  // of codes in groups

    bool coded() const { return scale || group; }
    int groups() const { return group ? inputs / group : 0; }
};

struct DecoderLayer {
    const float* input_norm;
    Weight qkv, output;
    const float* post_norm;
    Weight gate_up, down;
    const float* query_norm;  // [dim], or null, as is the next
    const float* key_norm;
    const float* sinks;  // [heads], or null
    const float* output_norm;  // [hidden], or null, as is the next
    const float* down_norm;
    const float* cos_sin;  // [positions, dim]
    int window;            // 0: none
    LayerCache cache;
};

struct Decoder {
    const DecoderLayer* layers;
    const float* embedding;
    int64_t positions;
    int num_layers, vocabulary, hidden, middle, heads;
    int gelu;  // not SiLU
    float eps, scale, soft_cap;
    const float* norm;
    Weight head;
    Weight sketch;  // of the head in int8, whose products are nearly the head's; or nothing
    const float* sketch_errors;  // [vocabulary]: how nearly, by the length of a row
    CacheShape cache;

    int dim() const { return cache.dim; }
};

// One step's tokens and sequences, as `ForwardBatch` has them.
struct Batch {
    const int64_t* token_ids;
    const int64_t* token_positions;
    const int64_t* slots;
    const int32_t* block_tables;
    const int32_t* query_start_lens;
    const int32_t* context_lens;
    int tokens, sequences, table_len;
};

// The rows of a step that somebody asks for: those named, or the first so many.
struct Asked {
    const int64_t* rows;  // or null
    int count;

    int row(int index) const { return rows ? static_cast<int>(rows[index]) : index; }
    // In their order and each once, as the last layer leaves out the others.
    bool ascending(int tokens) const {
        for (int index = 0; index < count; ++index)
            if (row(index) >= tokens || row(index) <= (index ? row(index - 1) : -1)) return false;
        return true;
    }
};

// The same attention for some of the rows, each a task of its own: their sums do not change by it.
void pick_tasks(const std::vector<Task>& tasks, const Asked& asked, std::vector<Task>& picked) {
    picked.clear();
    size_t at = 0;
    for (int index = 0; index < asked.count; ++index) {
        const int row = asked.row(index);
        while (at < tasks.size() && row >= tasks[at].first_row + tasks[at].queries) ++at;
        if (at == tasks.size()) return;
        Task task = tasks[at];
        task.position += row - task.first_row;
        task.context = std::max(0, task.position + 1);
        task.first_row = row;
        task.queries = 1;
        picked.push_back(task);
    }
}

// What a step writes between its parts.
struct Scratch {
    float* product;   // [tokens, the widest layer]
    float* mixed;     // [tokens, heads * dim]: queries, then what they attended to
    FloatRows inputs; // of float weights
    float* row_sums;  // [tokens, the most groups] of weights in groups
    uint8_t* codes;   // [tokens, the widest input] of weights that are codes

    static int widest(const Decoder& d) {
        return std::max({(d.heads + 2 * d.cache.heads) * d.dim(), 2 * d.middle, d.hidden});
    }
    static int most_inputs(const Decoder& d) {
        return std::max({d.hidden, d.middle, d.heads * d.dim()});
    }
    static int most_groups(const Decoder& d) {
        int most = d.head.groups();
        for (int index = 0; index < d.num_layers; ++index) {
            const DecoderLayer& layer = d.layers[index];
            most = std::max({most, layer.qkv.groups(), layer.output.groups(),
                             layer.gate_up.groups(), layer.down.groups()});
        }
        return most;
    }
    static int64_t row_floats(const Decoder& d) {
        return widest(d) + d.heads * d.dim() + most_groups(d);
    }
    static int64_t code_bytes(const Decoder& d, int tokens) {
        return (Codes::bytes(tokens, most_inputs(d)) + 63) / 64 * 64;
    }
    static int64_t bytes(const Decoder& d, int tokens) {
        return 4 * tokens * row_floats(d) + code_bytes(d, tokens) +
               FloatRows::bytes(tokens, most_inputs(d)) + 128;
    }
    static Scratch in(uint8_t* memory, const Decoder& d, int tokens) {
        uint8_t* codes = aligned(memory);
        uint8_t* rows = codes + code_bytes(d, tokens);
        const int64_t row_bytes = FloatRows::bytes(tokens, most_inputs(d));
        float* product = reinterpret_cast<float*>(aligned(rows + row_bytes));
        float* mixed = product + int64_t{tokens} * widest(d);
        float* row_sums = mixed + int64_t{tokens} * d.heads * d.dim();
        return {product, mixed, FloatRows::in(rows, tokens, most_inputs(d)), row_sums, codes};
    }

    static FloatWeight floats_of(const Weight& w) {
        return {w.packed, w.bias, w.channels, w.inputs, w.kind};
    }
    // Takes a row as the input of the next product.
    void take(const Weight& weight, const float* row, int index, int tokens) const {
        if (!weight.coded()) {
            inputs.take(row, index, floats_of(weight));
            return;
        }
        const Codes rows = Codes::in(codes, tokens, weight.inputs);
        encode_row(row, weight.inputs, rows, index);
        if (weight.group)
            sum_groups(rows, index, weight.inputs, weight.group,
                       row_sums + int64_t{index} * weight.groups());
    }
    // Multiplies the rows taken.
    void multiply_by(const Weight& w, Team& team, int tokens, float* out) const {
        const Codes rows = Codes::in(codes, tokens, w.inputs);
        if (w.group) {
            const GroupWeight weight{static_cast<const uint8_t*>(w.packed), w.bias, w.channels,
                                     w.inputs, w.group, w.float_zeros != 0, w.wide != 0};
            multiply(team, rows, row_sums, tokens, weight, out);
        } else if (w.scale) {
            const Int8Weight weight{static_cast<const int8_t*>(w.packed), w.scale, w.bias,
                                    w.channels, w.inputs};
            multiply(team, rows, tokens, weight, out);
        } else {
            multiply(team, inputs, tokens, floats_of(w), out);
        }
    }
};

bool within_tables(const Decoder& d, const Batch& batch) {
    for (int token = 0; token < batch.tokens; ++token) {
        const int64_t position = batch.token_positions[token], id = batch.token_ids[token];
        if (position < 0 || position >= d.positions || id < 0 || id >= d.vocabulary ||
            batch.slots[token] >= d.cache.slots())
            return false;
    }
    return true;
}

// Few rows are shared out, too: at 8 they take a tenth of a step.
template <class Body>
void each_row(Team& team, int rows, const Body& body) {
    const int together = std::clamp(rows / team.size(), 1, ROWS_OF_TASK);
    team.each((rows + together - 1) / together, [&](int task) {
        const int end = std::min(rows, (task + 1) * together);
        for (int row = task * together; row < end; ++row) body(row);
    });
}

void norm_heads(float* rows, const float* weight, float eps, int heads, int dim) {
    for (int head = 0; head < heads; ++head, rows += dim) norm_row(rows, weight, rows, eps, dim);
}

// Rotates a token's queries into `mixed` and its key into the cache, beside its value. `room` holds
// a row of keys.
void rotate_and_store(const Decoder& d, const DecoderLayer& layer, const Batch& batch, int token,
                      float* qkv, float* queries, float* room) {
    const int dim = d.dim(), width = d.heads * dim;
    const float* cos = layer.cos_sin + batch.token_positions[token] * dim;
    const float* sin = cos + dim / 2;
    if (layer.query_norm) norm_heads(qkv, layer.query_norm, d.eps, d.heads, dim);
    rotate(qkv, dim, queries, cos, sin, d.heads, dim / 2);
    const int64_t slot = batch.slots[token];
    if (slot < 0) return;
    float* key = qkv + width;
    if (layer.key_norm) norm_heads(key, layer.key_norm, d.eps, d.cache.heads, dim);
    rotate(key, dim, room, cos, sin, d.cache.heads, dim / 2);
    write_slot(layer.cache.keys, d.cache, slot, room);
    write_slot(layer.cache.values, d.cache, slot, key + d.cache.heads * dim);
}

void run_layers(Team& team, const Decoder& d, const Batch& batch, const Asked& asked,
                const std::vector<Task>& tasks, const std::vector<Task>& asked_tasks,
                const Scratch& scratch, float* residual, std::atomic<int>& outcome) {
    const int tokens = batch.tokens, width = d.heads * d.dim();
    const int qkv_width = width + 2 * d.cache.heads * d.dim();
    const auto row_of = [](float* rows, int row, int size) { return rows + int64_t{row} * size; };
    static thread_local std::vector<float> row_memory;
    row_memory.resize(std::max({d.hidden, d.middle, width}));
    const auto norm = [&](const float* stream, const float* weight, const Weight& next, int row,
                          int rows) {
        norm_row(stream, weight, row_memory.data(), d.eps, d.hidden);
        scratch.take(next, row_memory.data(), row, rows);
    };
    const auto add = [&](float* product, const float* product_norm, float* stream) {
        if (product_norm) norm_row(product, product_norm, product, d.eps, d.hidden);
        add_row(product, stream, stream, d.hidden);
    };
    // Adds the last product to the stream, perhaps normed, and norms the sum.
    const auto add_and_norm = [&](const Asked& rows, const float* product_norm, const float* weight,
                                  const Weight& next) {
        each_row(team, rows.count, [&](int index) {
            float* stream = row_of(residual, rows.row(index), d.hidden);
            add(row_of(scratch.product, index, d.hidden), product_norm, stream);
            norm(stream, weight, next, index, rows.count);
        });
    };
    const Asked all{nullptr, tokens};
    const float* last_norm = nullptr;
    for (int index = 0; index < d.num_layers; ++index) {
        const DecoderLayer& layer = d.layers[index];
        if (index == 0) {
            each_row(team, tokens, [&](int row) {
                float* stream = row_of(residual, row, d.hidden);
                std::copy_n(d.embedding + batch.token_ids[row] * d.hidden, d.hidden, stream);
                norm(stream, layer.input_norm, layer.qkv, row, tokens);
            });
        } else {
            add_and_norm(all, last_norm, layer.input_norm, layer.qkv);
        }
        last_norm = layer.down_norm;
        scratch.multiply_by(layer.qkv, team, tokens, scratch.product);
        each_row(team, tokens, [&](int row) {
            rotate_and_store(d, layer, batch, row, row_of(scratch.product, row, qkv_width),
                             row_of(scratch.mixed, row, width), row_memory.data());
        });
        // Of the last layer nobody reads more than keys and values, the rows asked for aside.
        const bool last = index + 1 == d.num_layers;
        const Asked& rows = last ? asked : all;
        // A task reads its queries before it writes in their place.
        const Attention call{scratch.mixed, width, d.dim(), scratch.mixed, batch.block_tables,
                             batch.table_len, d.heads, d.scale, layer.window, d.soft_cap,
                             layer.sinks, nullptr, 0};
        attend_all(team, call, layer.cache, d.cache, last ? asked_tasks : tasks, outcome);
        each_row(team, rows.count, [&](int index) {
            scratch.take(layer.output, row_of(scratch.mixed, rows.row(index), width), index,
                         rows.count);
        });
        scratch.multiply_by(layer.output, team, rows.count, scratch.product);
        add_and_norm(rows, layer.output_norm, layer.post_norm, layer.gate_up);
        scratch.multiply_by(layer.gate_up, team, rows.count, scratch.product);
        each_row(team, rows.count, [&](int row) {
            const float* gate = row_of(scratch.product, row, 2 * d.middle);
            const auto gated = d.gelu ? gated_mul_row<gelu> : gated_mul_row<silu>;
            gated(gate, gate + d.middle, row_memory.data(), d.middle);
            scratch.take(layer.down, row_memory.data(), row, rows.count);
        });
        scratch.multiply_by(layer.down, team, rows.count, scratch.product);
    }
    each_row(team, asked.count, [&](int index) {
        add(row_of(scratch.product, index, d.hidden), last_norm,
            row_of(residual, asked.row(index), d.hidden));
    });
}

// The final norm over some rows of the stream, each where `row_at` says: the head's input.
template <class RowAt>
void norm_for_head(Team& team, const Decoder& d, const Scratch& scratch, int rows,
                   const RowAt& row_at, bool by_sketch = false) {
    static thread_local std::vector<float> row_memory;
    row_memory.resize(d.hidden);
    each_row(team, rows, [&](int row) {
        norm_row(row_at(row), d.norm, row_memory.data(), d.eps, d.hidden);
        scratch.take(d.head, row_memory.data(), row, rows);
        if (by_sketch) scratch.take(d.sketch, row_memory.data(), row, rows);
    });
}

// The place of a row's largest value, the first of equals.
int64_t likeliest_of(const float* values, int count) {
    Vector most = Vector{} - __builtin_inff();
    int i = 0;
    for (; i + LANES <= count; i += LANES) {
        const Vector some = load(values + i);
        most = some > most ? some : most;
    }
    float largest = largest_lane(most);
    for (; i < count; ++i) largest = std::max(largest, values[i]);
    constexpr int FAR = 16 * LANES;  // Looked through without asking each time.
    int from = 0;
    for (; from + FAR <= count; from += FAR) {
        Ints found = {};
        for (int at = from; at < from + FAR; at += LANES) found |= load(values + at) == largest;
        if (any(found)) break;
    }
    return std::min<int64_t>(std::find(values + from, values + count, largest) - values, count - 1);
}

// Given a row's products by the sketch: puts the head's own in each block of channels that may have the
// largest of these, and returns its place. What stays is less, as is what is no number nowhere left.
int64_t likeliest_near(const Decoder& d, const float* x, float* products) {
    const FloatWeight head = Scratch::floats_of(d.head);
    Vector squares = {}, least = Vector{} - __builtin_inff();
    for (int i = 0; i < d.hidden; i += LANES) {
        const Vector some = load_some(x + i, std::min(LANES, d.hidden - i), 0.0f);
        squares += some * some;
    }
    const float length = std::sqrt(sum(squares));
    for (int at = 0; at < head.channels; at += LANES) {
        const int count = std::min(LANES, head.channels - at);
        const Vector lower = load_some(products + at, count, -__builtin_inff()) -
                             load_some(d.sketch_errors + at, count, 0.0f) * length;
        least = lower > least ? lower : least;
    }
    const float bar = largest_lane(least);
    const auto multiply = head.kind == FP16 ? multiply_floats<1, FP16>
                        : head.kind == BF16 ? multiply_floats<1, BF16> : multiply_floats<1, FP32>;
    for (int block = 0; block < head.blocks(); ++block) {
        Ints may = {};
        const int last = std::min((block + 1) * PACKED_CHANNELS, head.channels);
        for (int at = block * PACKED_CHANNELS; at < last; at += LANES) {
            const int count = std::min(LANES, last - at);
            const Vector upper = load_some(products + at, count, -__builtin_inff()) +
                                 load_some(d.sketch_errors + at, count, 0.0f) * length;
            may |= ~(upper < bar);
        }
        if (any(may)) multiply(x, head, head.packed, block * head.block_size(), block, products);
    }
    return likeliest_of(products, head.channels);
}

}  // namespace

// Whether int8 products of a few rows take so much less than those by float weights that it pays to
// look for the largest with them first. Tiles of bf16 do well without.
extern "C" int measure_sketch() {
    constexpr int CHANNELS = 512, INPUTS = 1024, ROWS = 8;
    if (bf16_by_tiles) return 0;
    const std::vector<uint16_t> floats(CHANNELS * INPUTS);
    const std::vector<int8_t> coded(CHANNELS * (INPUTS + 4));
    const std::vector<float> scale(CHANNELS), x(ROWS * INPUTS);
    std::vector<float> out(ROWS * CHANNELS);
    std::vector<uint8_t> memory(Codes::bytes(ROWS, INPUTS));
    const Codes codes = Codes::in(memory.data(), ROWS, INPUTS);
    const FloatRows rows{const_cast<float*>(x.data()), nullptr};
    const FloatWeight head{floats.data(), nullptr, CHANNELS, INPUTS, BF16};
    const Int8Weight sketch{coded.data(), scale.data(), nullptr, CHANNELS, INPUTS};
    Team alone(1, nullptr);
    const double exact = best_of(8, [&] { multiply(alone, rows, ROWS, head, out.data()); });
    const double nearly = best_of(8, [&] {
        for (int row = 0; row < ROWS; ++row)
            encode_row(x.data() + row * INPUTS, INPUTS, codes, row);
        multiply(alone, codes, ROWS, sketch, out.data());
    });
    return nearly < 0.75 * exact;
}

extern "C" int64_t decoder_scratch_bytes(const Decoder* decoder, int tokens) {
    return Scratch::bytes(*decoder, tokens);
}

// One step. residual: [tokens, hidden], where the rows named (null: the first so many) become the
// stream after the last layer. logits: [num_rows, vocabulary] of these rows; null: none are wanted.
// likeliest: [num_rows], or null.
extern "C" int decoder_step(const Decoder* decoder, const Batch* batch, float* residual,
                            const int64_t* rows, int num_rows, float* logits, int64_t* likeliest,
                            uint8_t* memory, int threads) {
    const Decoder& d = *decoder;
    static thread_local std::vector<Task> tasks, picked;
    if (!within_tables(d, *batch) ||
        !list_tasks(batch->query_start_lens, batch->context_lens, batch->sequences,
                    int64_t{batch->table_len} * d.cache.block_size, false, tasks))
        return OUT_OF_RANGE;
    const Scratch scratch = Scratch::in(memory, d, batch->tokens);
    std::atomic<int> outcome{OK};
    // The caller's, not each helper's own.
    const std::vector<Task>&listed = tasks, &asked_for = picked;
    Asked asked{rows, num_rows};
    if (asked.count == batch->tokens || !asked.ascending(batch->tokens)) {
        asked = {nullptr, batch->tokens};
        picked = tasks;
    } else {
        pick_tasks(tasks, asked, picked);
    }
#if defined(BF16_TILES)
    static thread_local std::vector<Largest> largest;
    std::vector<Largest>& found = largest;
    found.resize(int64_t{num_rows} * Team(threads, nullptr).shares_of(INT_MAX));
#endif
    pool().run(threads, PARTS_OF_LAYER * d.num_layers + 4, [&](Team& team) {
        run_layers(team, d, *batch, asked, listed, asked_for, scratch, residual, outcome);
        if (!logits) return;
        const auto row_at = [&](int row) {
            return residual + (rows ? rows[row] : row) * int64_t{d.hidden};
        };
        const bool by_sketch = likeliest && d.sketch.packed;
        norm_for_head(team, d, scratch, num_rows, row_at, by_sketch);
        if (by_sketch) {
            scratch.multiply_by(d.sketch, team, num_rows, logits);
            team.each(num_rows, [&](int row) {
                likeliest[row] = likeliest_near(d, scratch.inputs.floats + int64_t{row} * d.hidden,
                                                logits + int64_t{row} * d.head.channels);
            });
            return;
        }
#if defined(BF16_TILES)
        const FloatWeight head = Scratch::floats_of(d.head);
        if (likeliest && !d.head.coded() && !head.bias && FloatRows::tiled(head)) {
            likeliest_tiled(team, scratch.inputs.planes, num_rows, head, found, likeliest);
            return;
        }
#endif
        scratch.multiply_by(d.head, team, num_rows, logits);
        if (!likeliest) return;
        team.each(num_rows, [&](int row) {
            likeliest[row] = likeliest_of(logits + int64_t{row} * d.head.channels, d.head.channels);
        });
    });
    return outcome;
}

// The final norm and the head: hidden [rows, hidden] -> out [rows, channels of the head].
extern "C" int decoder_logits(const Decoder* decoder, const float* hidden, int rows, float* out,
                              uint8_t* memory, int threads) {
    const Decoder& d = *decoder;
    const Scratch scratch = Scratch::in(memory, d, rows);
    pool().run(threads, 2, [&](Team& team) {
        norm_for_head(team, d, scratch, rows,
                      [&](int row) { return hidden + int64_t{row} * d.hidden; });
        scratch.multiply_by(d.head, team, rows, out);
    });
    return OK;
}

// All layers of a decoder in one call: the ops' own functions, in the order of the model.
//
// A team of threads computes each part together and meets after it.

namespace {

constexpr int ROWS_OF_TASK = 8;  // of work that goes row by row
constexpr int PARTS_OF_LAYER = 10;

// An int8 weight, or an fp32 one where there is no scale.
struct Weight {
    const void* packed;
    const float* scale;
    const float* bias;
    int channels, inputs;
};

struct DecoderLayer {
    const float* input_norm;
    Weight qkv, output;
    const float* post_norm;
    Weight gate_up, down;
    float* keys;
    float* values;
};

struct Decoder {
    const DecoderLayer* layers;
    const float* embedding;
    const float* cos_sin;  // [positions, dim]
    int64_t positions, num_blocks;
    int num_layers, vocabulary, hidden, middle, heads, kv_heads, dim, block_size;
    float eps, scale;
    const float* norm;
    Weight head;
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

// What a step writes between its parts.
struct Scratch {
    float* product;  // [tokens, the widest layer]
    float* mixed;    // [tokens, heads * dim]: queries, then what they attended to
    float* inputs;   // [tokens, the widest input] of fp32 weights
    uint8_t* codes;  // the same of int8 weights

    static int widest(const Decoder& d) {
        return std::max({(d.heads + 2 * d.kv_heads) * d.dim, 2 * d.middle, d.hidden});
    }
    static int most_inputs(const Decoder& d) {
        return std::max({d.hidden, d.middle, d.heads * d.dim});
    }
    static int64_t bytes(const Decoder& d, int tokens) {
        return 4 * int64_t{tokens} * (widest(d) + d.heads * d.dim + most_inputs(d)) +
               Codes::bytes(tokens, most_inputs(d)) + 64;
    }
    static Scratch in(uint8_t* memory, const Decoder& d, int tokens) {
        uint8_t* codes = memory + (64 - reinterpret_cast<uintptr_t>(memory) % 64);
        float* product = reinterpret_cast<float*>(codes + Codes::bytes(tokens, most_inputs(d)));
        float* mixed = product + int64_t{tokens} * widest(d);
        return {product, mixed, mixed + int64_t{tokens} * d.heads * d.dim, codes};
    }

    // Takes a row as the input of the next product.
    void take(const Weight& weight, const float* row, int index, int tokens) const {
        if (weight.scale) {
            encode_row(row, weight.inputs, Codes::in(codes, tokens, weight.inputs), index);
        } else {
            std::copy_n(row, weight.inputs, inputs + int64_t{index} * weight.inputs);
        }
    }
    // Multiplies the rows taken, into `product`.
    void multiply_by(const Weight& w, Team& team, int tokens) const {
        if (w.scale) {
            multiply(team, Codes::in(codes, tokens, w.inputs), tokens,
                     Int8Weight{static_cast<const int8_t*>(w.packed), w.scale, w.bias, w.channels,
                                w.inputs}, product);
        } else {
            multiply(team, inputs, tokens,
                     FloatWeight{static_cast<const float*>(w.packed), w.bias, w.channels, w.inputs},
                     product);
        }
    }
};

bool within_tables(const Decoder& d, const Batch& batch) {
    for (int token = 0; token < batch.tokens; ++token) {
        const int64_t position = batch.token_positions[token], id = batch.token_ids[token];
        if (position < 0 || position >= d.positions || id < 0 || id >= d.vocabulary ||
            batch.slots[token] >= d.num_blocks * d.block_size)
            return false;
    }
    return true;
}

template <class Body>
void each_row(Team& team, int rows, const Body& body) {
    team.each((rows + ROWS_OF_TASK - 1) / ROWS_OF_TASK, [&](int task) {
        const int end = std::min(rows, (task + 1) * ROWS_OF_TASK);
        for (int row = task * ROWS_OF_TASK; row < end; ++row) body(row);
    });
}

// Rotates a token's queries into `mixed` and its key into the cache, beside its value.
void rotate_and_store(const Decoder& d, const DecoderLayer& layer, const Batch& batch, int token,
                      const float* qkv, float* queries) {
    const float* cos = d.cos_sin + batch.token_positions[token] * d.dim;
    const float* sin = cos + d.dim / 2;
    const int keys = d.kv_heads * d.dim;
    rotate(qkv, d.dim, queries, cos, sin, d.heads, d.dim / 2);
    const int64_t slot = batch.slots[token];
    if (slot < 0) return;
    const float* key = qkv + d.heads * d.dim;
    rotate(key, d.dim, layer.keys + slot * keys, cos, sin, d.kv_heads, d.dim / 2);
    std::copy_n(key + keys, keys, layer.values + slot * keys);
}

void run_layers(Team& team, const Decoder& d, const Batch& batch, const std::vector<Task>& tasks,
                const Scratch& scratch, float* residual, std::atomic<int>& outcome) {
    const int tokens = batch.tokens, width = d.heads * d.dim;
    const int qkv_width = width + 2 * d.kv_heads * d.dim;
    const auto row_of = [](float* rows, int row, int size) { return rows + int64_t{row} * size; };
    static thread_local std::vector<float> row_memory;
    row_memory.resize(std::max(d.hidden, d.middle));
    // Adds the last product to the stream, which begins with the embedding, and norms the sum.
    const auto add_and_norm = [&](const float* weight, const Weight& next, bool first) {
        each_row(team, tokens, [&](int row) {
            float* stream = row_of(residual, row, d.hidden);
            if (!first) {
                add_row(row_of(scratch.product, row, d.hidden), stream, stream, d.hidden);
            } else {
                const float* from = d.embedding + batch.token_ids[row] * d.hidden;
                std::copy_n(from, d.hidden, stream);
            }
            norm_row(stream, weight, row_memory.data(), d.eps, d.hidden);
            scratch.take(next, row_memory.data(), row, tokens);
        });
    };
    for (int index = 0; index < d.num_layers; ++index) {
        const DecoderLayer& layer = d.layers[index];
        add_and_norm(layer.input_norm, layer.qkv, index == 0);
        scratch.multiply_by(layer.qkv, team, tokens);
        each_row(team, tokens, [&](int row) {
            rotate_and_store(d, layer, batch, row, row_of(scratch.product, row, qkv_width),
                             row_of(scratch.mixed, row, width));
        });
        // A task reads its queries before it writes in their place.
        const Attention call{scratch.mixed, width, d.dim, scratch.mixed, batch.block_tables,
                             batch.table_len, d.heads, d.scale};
        const Cache cache{layer.keys, layer.values, d.num_blocks, d.block_size, d.kv_heads, d.dim};
        attend_all(team, call, cache, tasks, outcome);
        each_row(team, tokens, [&](int row) {
            scratch.take(layer.output, row_of(scratch.mixed, row, width), row, tokens);
        });
        scratch.multiply_by(layer.output, team, tokens);
        add_and_norm(layer.post_norm, layer.gate_up, false);
        scratch.multiply_by(layer.gate_up, team, tokens);
        each_row(team, tokens, [&](int row) {
            const float* gate = row_of(scratch.product, row, 2 * d.middle);
            silu_mul_row(gate, gate + d.middle, row_memory.data(), d.middle);
            scratch.take(layer.down, row_memory.data(), row, tokens);
        });
        scratch.multiply_by(layer.down, team, tokens);
    }
    each_row(team, tokens, [&](int row) {
        float* stream = row_of(residual, row, d.hidden);
        add_row(row_of(scratch.product, row, d.hidden), stream, stream, d.hidden);
    });
}

}  // namespace

extern "C" int64_t decoder_scratch_bytes(const Decoder* decoder, int tokens) {
    return Scratch::bytes(*decoder, tokens);
}

// residual: [tokens, hidden], the stream after the last layer.
extern "C" int decoder_forward(const Decoder* decoder, const Batch* batch, float* residual,
                               uint8_t* memory, int threads) {
    const Decoder& d = *decoder;
    static thread_local std::vector<Task> tasks;
    if (!within_tables(d, *batch) ||
        !list_tasks(batch->query_start_lens, batch->context_lens, batch->sequences,
                    int64_t{batch->table_len} * d.block_size, tasks))
        return OUT_OF_RANGE;
    const Scratch scratch = Scratch::in(memory, d, batch->tokens);
    std::atomic<int> outcome{OK};
    const std::vector<Task>& listed = tasks;  // The caller's, not each helper's own.
    pool().run(threads, PARTS_OF_LAYER * d.num_layers + 1, [&](Team& team) {
        run_layers(team, d, *batch, listed, scratch, residual, outcome);
    });
    return outcome;
}

// The final norm and the head: hidden [rows, hidden] -> out [rows, channels of the head].
extern "C" int decoder_logits(const Decoder* decoder, const float* hidden, int rows, float* out,
                              uint8_t* memory, int threads) {
    const Decoder& d = *decoder;
    Scratch scratch = Scratch::in(memory, d, rows);
    scratch.product = out;
    pool().run(threads, 2, [&](Team& team) {
        static thread_local std::vector<float> row_memory;
        row_memory.resize(d.hidden);
        each_row(team, rows, [&](int row) {
            norm_row(hidden + int64_t{row} * d.hidden, d.norm, row_memory.data(), d.eps, d.hidden);
            scratch.take(d.head, row_memory.data(), row, rows);
        });
        scratch.multiply_by(d.head, team, rows);
    });
    return OK;
}

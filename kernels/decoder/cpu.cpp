// All layers of a decoder in one call: the ops' own functions, in the order of the model.
//
// A team of threads computes each part together and meets after it. Rows go from one product to the
// next as codes, so that nothing but the residual stream and a product's result is written out.

namespace {

constexpr int ROWS_OF_TASK = 8;  // of work that goes row by row

struct DecoderLayer {
    const float* input_norm;
    Int8Weight qkv, output;
    const float* post_norm;
    Int8Weight gate_up, down;
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
    uint8_t* codes;

    static int widest(const Decoder& d) {
        return std::max({(d.heads + 2 * d.kv_heads) * d.dim, 2 * d.middle, d.hidden});
    }
    static int most_inputs(const Decoder& d) {
        return std::max({d.hidden, d.middle, d.heads * d.dim});
    }
    static int64_t bytes(const Decoder& d, int tokens) {
        return 4 * int64_t{tokens} * (widest(d) + d.heads * d.dim) +
               Codes::bytes(tokens, most_inputs(d)) + 64;
    }
    static Scratch in(uint8_t* memory, const Decoder& d, int tokens) {
        uint8_t* codes = memory + (64 - reinterpret_cast<uintptr_t>(memory) % 64);
        float* product = reinterpret_cast<float*>(codes + Codes::bytes(tokens, most_inputs(d)));
        return {product, product + int64_t{tokens} * widest(d), codes};
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
    const auto codes_of = [&](int inputs) { return Codes::in(scratch.codes, tokens, inputs); };
    const auto row_of = [](float* rows, int row, int size) { return rows + int64_t{row} * size; };
    static thread_local std::vector<float> row_memory;
    row_memory.resize(std::max(d.hidden, d.middle));
    // Adds the last product to the stream, unless it is the first, and encodes the normed sum.
    const auto add_norm_encode = [&](const float* weight, bool first) {
        each_row(team, tokens, [&](int row) {
            float* stream = row_of(residual, row, d.hidden);
            if (!first) {
                add_row(row_of(scratch.product, row, d.hidden), stream, stream, d.hidden);
            } else {
                const float* from = d.embedding + batch.token_ids[row] * d.hidden;
                std::copy_n(from, d.hidden, stream);
            }
            norm_row(stream, weight, row_memory.data(), d.eps, d.hidden);
            encode_row(row_memory.data(), d.hidden, codes_of(d.hidden), row);
        });
    };
    for (int index = 0; index < d.num_layers; ++index) {
        const DecoderLayer& layer = d.layers[index];
        add_norm_encode(layer.input_norm, index == 0);
        multiply(team, codes_of(d.hidden), tokens, layer.qkv, scratch.product);
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
            encode_row(row_of(scratch.mixed, row, width), width, codes_of(width), row);
        });
        multiply(team, codes_of(width), tokens, layer.output, scratch.product);
        add_norm_encode(layer.post_norm, false);
        multiply(team, codes_of(d.hidden), tokens, layer.gate_up, scratch.product);
        each_row(team, tokens, [&](int row) {
            const float* gate = row_of(scratch.product, row, 2 * d.middle);
            silu_mul_row(gate, gate + d.middle, row_memory.data(), d.middle);
            encode_row(row_memory.data(), d.middle, codes_of(d.middle), row);
        });
        multiply(team, codes_of(d.middle), tokens, layer.down, scratch.product);
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
    pool().run(threads, [&](Team& team) {
        run_layers(team, d, *batch, listed, scratch, residual, outcome);
    });
    return outcome;
}

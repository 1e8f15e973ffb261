// Int4 weights in groups times rows of 16-bit integers: exact sums within a group, and one fixed
// order of the groups, so that a row's result does not depend on the rows beside it.

namespace {

// A weight as `int4_linear.pack` lays it out: for each block of 32 channels and each group the codes
// [group / 8, 32, 4] (inputs 8i..8i+3 in the low four bits, 8i+4..8i+7 in the high ones), 32 scales,
// and 32 integers: 256 times the sum of the codes, plus the zero point.
struct Int4Weight {
    const uint8_t* packed;
    const float* bias;  // or null
    int channels, inputs, group;

    int blocks() const { return (channels + PACKED_CHANNELS - 1) / PACKED_CHANNELS; }
    int64_t group_bytes() const { return PACKED_CHANNELS * (group / 2 + 8); }
    const uint8_t* block(int index) const {
        return packed + index * (inputs / group) * group_bytes();
    }
};

// The sum of a row's codes in each group, as numbers around zero.
inline void sum_groups(const Codes& codes, int row, int inputs, int group, float* sums) {
    const uint8_t* from = codes.row(row, inputs);
    for (int first = 0; first < inputs; first += group) {
        int64_t total = 0;
        for (int k = first; k < first + group; ++k) {
            const uint8_t* code = from + k / TILE_INPUTS * 2 * TILE_BYTES + k % TILE_INPUTS;
            total += 256 * code[0] + code[TILE_BYTES] - 32768;
        }
        *sums++ = static_cast<float>(total);
    }
}

template <int ROWS>
void multiply_nibbles(const Codes& codes, const float* row_sums, int row, const Int4Weight& w,
                      int block, float* out) {
    const int groups = w.inputs / w.group;
    const uint8_t* weight = w.block(block);
    const uint8_t* from = codes.row(row, w.inputs);
    Vector totals[ROWS][PACKED_VECTORS] = {};
    for (int group = 0; group < groups; ++group) {
        Ints high[ROWS][PACKED_VECTORS] = {}, low[ROWS][PACKED_VECTORS] = {};
        const int end = (group + 1) * w.group;
        for (int k = group * w.group; k < end; k += 8, weight += 4 * PACKED_CHANNELS) {
            const uint8_t* tile = from + k / TILE_INPUTS * 2 * TILE_BYTES + k % TILE_INPUTS;
            for (int v = 0; v < PACKED_VECTORS; ++v) {
                const Ints both = load_ints(weight + v * LANES * 4);
                const Ints first = both & 0x0F0F0F0F, second = both >> 4 & 0x0F0F0F0F;
                for (int r = 0; r < ROWS; ++r) {
                    const uint8_t* four = tile + r * TILE_INPUTS;
                    high[r][v] = add_products(high[r][v], repeat_four_bytes(four), first);
                    high[r][v] = add_products(high[r][v], repeat_four_bytes(four + 4), second);
                    four += TILE_BYTES;
                    low[r][v] = add_products(low[r][v], repeat_four_bytes(four), first);
                    low[r][v] = add_products(low[r][v], repeat_four_bytes(four + 4), second);
                }
            }
        }
        for (int v = 0; v < PACKED_VECTORS; ++v) {
            Vector scale;
            std::memcpy(&scale, weight + v * LANES * 4, sizeof scale);
            const Ints sum_and_zero = load_ints(weight + (PACKED_CHANNELS + v * LANES) * 4);
            const Vector zero = __builtin_convertvector(sum_and_zero & 255, Vector);
            for (int r = 0; r < ROWS; ++r) {
                // High bytes are 128 too large.
                const Ints signed_high = high[r][v] - (sum_and_zero >> 8 << 7);
                const Vector product = __builtin_convertvector(signed_high, Vector) * 256.0f +
                                       __builtin_convertvector(low[r][v], Vector);
                totals[r][v] += scale * (product - zero * row_sums[(row + r) * groups + group]);
            }
        }
        weight += 8 * PACKED_CHANNELS;
    }
    for (int v = 0; v < PACKED_VECTORS; ++v) {
        const int channel = block * PACKED_CHANNELS + v * LANES;
        const int count = std::min(LANES, w.channels - channel);
        if (count <= 0) return;
        const Vector bias = w.bias ? load_some(w.bias + channel, count, 0.0f) : Vector{};
        for (int r = 0; r < ROWS; ++r) {
            store_some(out + static_cast<int64_t>(row + r) * w.channels + channel,
                       totals[r][v] * codes.steps[row + r] + bias, count);
        }
    }
}

// The whole product, shared out among a team: out [rows, channels].
void multiply(Team& team, const Codes& codes, const float* row_sums, int rows, const Int4Weight& w,
              float* out) {
    const int panels = (rows + PANEL_ROWS - 1) / PANEL_ROWS, blocks = w.blocks();
    team.each(panels * blocks, [&](int task) {
        const int block = task % blocks, first = task / blocks * PANEL_ROWS;
        const int last = std::min(first + PANEL_ROWS, rows);
        for (int row = first; row < last;) {  // Rows of one tile, as many as registers hold.
            const int end = std::min(last, (row / TILE_ROWS + 1) * TILE_ROWS);
            if (LANES == 16)
                for (; row + 4 <= end; row += 4)
                    multiply_nibbles<4>(codes, row_sums, row, w, block, out);
            for (; row < end; ++row) multiply_nibbles<1>(codes, row_sums, row, w, block, out);
        }
    });
}

}  // namespace

extern "C" int int4_linear_f32(const float* x, const uint8_t* packed, const float* bias, float* out,
                               uint8_t* scratch, int rows, int channels, int inputs, int group,
                               int threads) {
    const Int4Weight weight{packed, bias, channels, inputs, group};
    const Codes codes = Codes::in(scratch, rows, inputs);
    const int groups = inputs / group;
    float* row_sums = reinterpret_cast<float*>(scratch + Codes::bytes(rows, inputs));
    pool().run(threads, 2, [&](Team& team) {
        team.each(rows, [&](int row) {
            encode_row(x + static_cast<int64_t>(row) * inputs, inputs, codes, row);
            sum_groups(codes, row, inputs, group, row_sums + int64_t{row} * groups);
        });
        multiply(team, codes, row_sums, rows, weight, out);
    });
    return OK;
}

// Weights of 4 or 8 bits in groups times rows of 16-bit integers: exact sums within a group, and
// one fixed order of the groups, so that a row's result does not depend on the rows beside it.

namespace {

// A weight as `group_quant_linear.pack` lays it out: for each block of 32 channels and each group the
// codes, 32 scales, and 32 integers: 256 times the sum of the codes, plus the zero point. Zero points
// that are no integers come after them, as 32 floats. Codes of 8 bits are [group / 4, 32, 4]; of 4
// bits [group / 8, 32, 4]: inputs 8i..8i+3 in the low four bits, 8i+4..8i+7 in the high ones.
struct GroupWeight {
    const uint8_t* packed;
    const float* bias;  // or null
    int channels, inputs, group;
    bool float_zeros;
    bool wide;  // codes of 8 bits, not 4

    int tail_bytes() const { return PACKED_CHANNELS * (float_zeros ? 12 : 8); }
    int blocks() const { return (channels + PACKED_CHANNELS - 1) / PACKED_CHANNELS; }
    int code_bytes() const { return PACKED_CHANNELS * (wide ? group : group / 2); }
    int64_t group_bytes() const { return code_bytes() + tail_bytes(); }
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

// What belongs to one group of a vector of channels.
struct ChannelGroup {
    Vector scale, zero;
    Ints weight_sums;

    ChannelGroup(const uint8_t* tail, int v, bool float_zeros) {
        std::memcpy(&scale, tail + v * LANES * 4, sizeof scale);
        const Ints sum_and_zero = load_ints(tail + (PACKED_CHANNELS + v * LANES) * 4);
        zero = __builtin_convertvector(sum_and_zero & 255, Vector);
        weight_sums = sum_and_zero >> 8;
        if (float_zeros)
            std::memcpy(&zero, tail + (2 * PACKED_CHANNELS + v * LANES) * 4, sizeof zero);
    }
    // Exact sums of both planes' products, as numbers. High bytes are 128 too large.
    Vector add_to(Vector total, Ints high, Ints low, float row_sum) const {
        const Vector product = __builtin_convertvector(high - (weight_sums << 7), Vector) * 256.0f +
                               __builtin_convertvector(low, Vector);
        return total + scale * (product - zero * row_sum);
    }
};

inline void finish_group_row(const Vector* totals, const GroupWeight& w, int block, float step,
                             float* out) {
    for (int v = 0; v < PACKED_VECTORS; ++v) {
        const int channel = block * PACKED_CHANNELS + v * LANES;
        const int count = std::min(LANES, w.channels - channel);
        if (count <= 0) return;
        const Vector bias = w.bias ? load_some(w.bias + channel, count, 0.0f) : Vector{};
        const Vector result = totals[v] * step + bias;
        if (count == LANES) {
            store(out + channel, result);
        } else {
            store_some(out + channel, result, count);
        }
    }
}

// The codes of eight inputs of LANES channels, four of an input beside each other.
struct Eight {
    Ints first, second;
};

template <bool WIDE>
inline Eight load_eight(const uint8_t* weight, int v) {
    const Ints codes = load_ints(weight + v * LANES * 4);
    if constexpr (WIDE) return {codes, load_ints(weight + (PACKED_CHANNELS + v * LANES) * 4)};
    return {codes & 0x0F0F0F0F, codes >> 4 & 0x0F0F0F0F};
}

template <int ROWS, bool WIDE>
void multiply_groups(const Codes& codes, const float* row_sums, int row, const GroupWeight& w,
                     int block, float* out) {
    constexpr int BYTES_OF_EIGHT = (WIDE ? 8 : 4) * PACKED_CHANNELS;
    const int groups = w.inputs / w.group;
    const uint8_t* weight = w.block(block);
    const uint8_t* from = codes.row(row, w.inputs);
    Vector totals[ROWS][PACKED_VECTORS] = {};
    for (int group = 0; group < groups; ++group) {
        Ints high[ROWS][PACKED_VECTORS] = {}, low[ROWS][PACKED_VECTORS] = {};
        const int end = (group + 1) * w.group;
        for (int k = group * w.group; k < end; k += 8, weight += BYTES_OF_EIGHT) {
            const uint8_t* tile = from + k / TILE_INPUTS * 2 * TILE_BYTES + k % TILE_INPUTS;
            for (int v = 0; v < PACKED_VECTORS; ++v) {
                const auto [first, second] = load_eight<WIDE>(weight, v);
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
            const ChannelGroup own(weight, v, w.float_zeros);
            for (int r = 0; r < ROWS; ++r)
                totals[r][v] = own.add_to(totals[r][v], high[r][v], low[r][v],
                                          row_sums[(row + r) * groups + group]);
        }
        weight += w.tail_bytes();
    }
    for (int r = 0; r < ROWS; ++r)
        finish_group_row(totals[r], w, block, codes.steps[row + r],
                        out + static_cast<int64_t>(row + r) * w.channels);
}

#if defined(TILES)

// One block's codes as bytes, in the order of int8 weights: [inputs / 4, 32, 4].
void gather_codes(const GroupWeight& w, int block, int8_t* to) {
    const uint8_t* from = w.block(block);
    for (int group = 0; group < w.inputs / w.group; ++group, from += w.tail_bytes()) {
        if (w.wide) {
            std::memcpy(to, from, w.code_bytes());
            from += w.code_bytes();
            to += w.code_bytes();
            continue;
        }
        for (int k = 0; k < w.group; k += 8) {
            for (int i = 0; i < 4 * PACKED_CHANNELS; ++i) {
                to[i] = static_cast<int8_t>(from[i] & 15);
                to[4 * PACKED_CHANNELS + i] = static_cast<int8_t>(from[i] >> 4);
            }
            from += 4 * PACKED_CHANNELS;
            to += 8 * PACKED_CHANNELS;
        }
    }
}

// A whole tile of rows times one block of channels, group by group.
void multiply_group_tiles(const Codes& codes, const float* row_sums, int row, int end,
                          const GroupWeight& w, int block, const int8_t* weight, float* out) {
    const int groups = w.inputs / w.group, tiles = w.group / TILE_INPUTS;
    const uint8_t* from = codes.row(row, w.inputs);
    Vector totals[TILE_ROWS][PACKED_VECTORS] = {};
    for (int group = 0; group < groups; ++group) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int tile = 0; tile < tiles; ++tile) {
            _tile_loadd(4, from, TILE_INPUTS);
            _tile_loadd(5, from + TILE_BYTES, TILE_INPUTS);
            _tile_loadd(6, weight, 4 * PACKED_CHANNELS);
            _tile_loadd(7, weight + 64, 4 * PACKED_CHANNELS);
            _tile_dpbusd(0, 4, 6);
            _tile_dpbusd(1, 4, 7);
            _tile_dpbusd(2, 5, 6);
            _tile_dpbusd(3, 5, 7);
            from += 2 * TILE_BYTES;
            weight += TILE_INPUTS * PACKED_CHANNELS;
        }
        alignas(64) int32_t sums[4][TILE_ROWS][16];
        _tile_stored(0, sums[0], 64);
        _tile_stored(1, sums[1], 64);
        _tile_stored(2, sums[2], 64);
        _tile_stored(3, sums[3], 64);
        const uint8_t* tail = w.block(block) + (group + 1) * w.group_bytes() - w.tail_bytes();
        for (int v = 0; v < PACKED_VECTORS; ++v) {
            const ChannelGroup own(tail, v, w.float_zeros);
            for (int r = 0; row + r < end; ++r)
                totals[r][v] = own.add_to(totals[r][v], load_ints(sums[v][r]),
                                          load_ints(sums[2 + v][r]),
                                          row_sums[(row + r) * groups + group]);
        }
    }
    for (int r = 0; row + r < end; ++r)
        finish_group_row(totals[r], w, block, codes.steps[row + r],
                        out + static_cast<int64_t>(row + r) * w.channels);
}

#endif

// Rows [row, last), which begin a tile, times one block of channels.
void multiply_group_panel(const Codes& codes, const float* row_sums, int row, int last,
                          const GroupWeight& w, int block, float* out) {
#if defined(TILES)
    if (w.group % TILE_INPUTS == 0 && std::min(last - row, TILE_ROWS) >= amx_from_rows) {
        static thread_local std::vector<int8_t> wide;
        wide.resize(int64_t{w.inputs} * PACKED_CHANNELS);
        gather_codes(w, block, wide.data());
        static const TileShapes shapes;
        _tile_loadconfig(&shapes);
        for (; last - row >= amx_from_rows; row = std::min(row + TILE_ROWS, last))
            multiply_group_tiles(codes, row_sums, row, std::min(row + TILE_ROWS, last), w, block,
                                 wide.data(), out);
        _tile_release();
    }
#endif
    while (row < last) {  // Rows of one tile, as many as registers hold.
        const int end = std::min(last, (row / TILE_ROWS + 1) * TILE_ROWS);
        each_few<LANES == 16 ? 4 : 1>(row, end, [&](int first, auto count) {
            constexpr int ROWS = decltype(count)::value;
            if (w.wide) {
                multiply_groups<ROWS, true>(codes, row_sums, first, w, block, out);
            } else {
                multiply_groups<ROWS, false>(codes, row_sums, first, w, block, out);
            }
        });
        row = end;
    }
}

// The whole product, shared out among a team: out [rows, channels].
void multiply(Team& team, const Codes& codes, const float* row_sums, int rows, const GroupWeight& w,
              float* out) {
    const int panels = (rows + PANEL_ROWS - 1) / PANEL_ROWS, blocks = w.blocks();
    team.each(panels * blocks, [&](int task) {
        const int block = task % blocks, first = task / blocks * PANEL_ROWS;
        multiply_group_panel(codes, row_sums, first, std::min(first + PANEL_ROWS, rows), w, block,
                             out);
    });
}

}  // namespace

extern "C" int group_quant_linear_f32(const float* x, const uint8_t* packed, const float* bias,
                                      float* out, uint8_t* scratch, int rows, int channels,
                                      int inputs, int group, int float_zeros, int wide,
                                      int threads) {
    const GroupWeight weight{packed, bias, channels, inputs, group, float_zeros != 0, wide != 0};
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

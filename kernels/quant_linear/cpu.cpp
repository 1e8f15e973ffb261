// Int8 weights times rows of 16-bit integers: exact sums, so the same bits from every instruction
// set, with any number of rows and threads.
//
// A row of fp32 is rounded to integers of at most 32767 steps and split into two planes of bytes,
// 256 * high + low. Products of bytes add up without error in 32 bits; only the end is floating.

namespace {

constexpr int TILE_ROWS = 16;         // of a tile of codes, which is what AMX multiplies
constexpr int TILE_INPUTS = 64;
constexpr int TILE_BYTES = TILE_ROWS * TILE_INPUTS;
constexpr int PACKED_CHANNELS = 32;   // side by side in a packed weight
constexpr int PACKED_VECTORS = PACKED_CHANNELS / LANES;
constexpr int MOST_INPUTS = 1 << 16;  // beyond, a sum of bytes' products might pass 32 bits
constexpr int PANEL_ROWS = 128;       // of codes, to stay in a core's own cache

inline int tiles_of(int inputs) { return (inputs + TILE_INPUTS - 1) / TILE_INPUTS; }

// A weight as `quant_linear.copies` packs it: blocks of 32 channels, each [inputs / 4, 32, 4] codes
// (inputs padded to 64 with zeros), then the 32 sums of the channels' codes.
struct Int8Weight {
    const int8_t* packed;
    const float* scale;
    const float* bias;  // or null
    int channels, inputs;

    int blocks() const { return (channels + PACKED_CHANNELS - 1) / PACKED_CHANNELS; }
    const int8_t* block(int index) const {
        const int64_t bytes = PACKED_CHANNELS * (int64_t{tiles_of(inputs)} * TILE_INPUTS + 4);
        return packed + index * bytes;
    }
};

// Rows as codes: tiles [rows / 16, inputs / 64, plane, 16, 64], and the size of each row's step.
struct Codes {
    uint8_t* tiles;
    float* steps;

    static int64_t bytes(int rows, int inputs) {
        const int64_t blocks = (rows + TILE_ROWS - 1) / TILE_ROWS;
        return blocks * tiles_of(inputs) * 2 * TILE_BYTES + blocks * TILE_ROWS * 4;
    }
    // In memory of so many bytes.
    static Codes in(uint8_t* memory, int rows, int inputs) {
        const int64_t blocks = (rows + TILE_ROWS - 1) / TILE_ROWS;
        const int64_t tiles = blocks * tiles_of(inputs) * 2 * TILE_BYTES;
        return {memory, reinterpret_cast<float*>(memory + tiles)};
    }
    uint8_t* row(int index, int inputs) const {
        const int64_t block = index / TILE_ROWS;
        return tiles + block * tiles_of(inputs) * 2 * TILE_BYTES + index % TILE_ROWS * TILE_INPUTS;
    }
};

inline void store_bytes(uint8_t* to, Ints values) {
#if defined(__AVX512F__)
    const __m128i bytes = _mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(values));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
#else
    for (int lane = 0; lane < LANES; ++lane) to[lane] = static_cast<uint8_t>(values[lane]);
#endif
}

// To the nearest integer, halves to even.
inline Ints round_to_ints(Vector x) {
#if defined(__AVX512F__)
    return reinterpret_cast<Ints>(_mm512_cvtps_epi32(reinterpret_cast<__m512>(x)));
#elif defined(__AVX__)
    return reinterpret_cast<Ints>(_mm256_cvtps_epi32(reinterpret_cast<__m256>(x)));
#else
    Ints rounded;
    for (int lane = 0; lane < LANES; ++lane) rounded[lane] = static_cast<int>(std::rint(x[lane]));
    return rounded;
#endif
}

// Rounds a row of fp32 to codes; a row that holds a NaN or an infinity gets a step of NaN.
void encode_row(const float* x, int inputs, const Codes& codes, int row) {
    Vector largest = {}, poison = {};
    const auto look = [&](Vector v) {
        const Vector size = v < 0.0f ? -v : v;
        largest = size > largest ? size : largest;
        poison += v * 0.0f;
    };
    int i = 0;
    for (; i + LANES <= inputs; i += LANES) look(load(x + i));
    if (i < inputs) look(load_some(x + i, inputs - i, 0.0f));
    const float most = largest_lane(largest);
    codes.steps[row] = most / 32767.0f + sum(poison);
    const float steps_per_unit = most > 0.0f ? 32767.0f / most : 0.0f;
    uint8_t* to = codes.row(row, inputs);
    for (int first = 0; first < inputs; first += TILE_INPUTS, to += 2 * TILE_BYTES) {
        for (int k = 0; k < TILE_INPUTS; k += LANES) {
            const int count = std::min(LANES, inputs - first - k);
            const Vector v = count == LANES ? load(x + first + k)
                           : count > 0      ? load_some(x + first + k, count, 0.0f) : Vector{};
            const Ints code = round_to_ints(v * steps_per_unit) + 32768;
            store_bytes(to + k, code >> 8);
            store_bytes(to + TILE_BYTES + k, code & 255);
        }
    }
}

// total + the products of four unsigned and four signed bytes in each lane.
inline Ints add_products(Ints total, Ints unsigned_bytes, Ints signed_bytes) {
#if defined(__AVX512VNNI__)
    return reinterpret_cast<Ints>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(total),
                                                      reinterpret_cast<__m512i>(unsigned_bytes),
                                                      reinterpret_cast<__m512i>(signed_bytes)));
#elif defined(__AVXVNNI__) && !defined(__AVX512F__)
    return reinterpret_cast<Ints>(_mm256_dpbusd_avx_epi32(
        reinterpret_cast<__m256i>(total), reinterpret_cast<__m256i>(unsigned_bytes),
        reinterpret_cast<__m256i>(signed_bytes)));
#elif defined(__AVX2__) && !defined(__AVX512F__)
    // Even and odd bytes as 16-bit numbers: the one-byte product would saturate.
    const __m256i a = reinterpret_cast<__m256i>(unsigned_bytes);
    const __m256i b = reinterpret_cast<__m256i>(signed_bytes);
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(a, _mm256_set1_epi16(255)),
                                           _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(a, 8), _mm256_srai_epi16(b, 8));
    return total + reinterpret_cast<Ints>(_mm256_add_epi32(even, odd));
#else
    for (int byte = 0; byte < 4; ++byte)
        total += (unsigned_bytes >> 8 * byte & 255) * (signed_bytes << (24 - 8 * byte) >> 24);
    return total;
#endif
}

inline Ints load_ints(const void* from) {
    Ints v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

inline Ints repeat_four_bytes(const uint8_t* from) {
    int32_t bytes;
    std::memcpy(&bytes, from, 4);
    return Ints{} + bytes;
}

// What LANES channels of a block need to become numbers.
struct Channels {
    Ints weight_sums;
    Vector scale, bias;
    int first, count;  // of them; none past the last channel

    Channels(const Int8Weight& w, int block, const int8_t* sums, int v)
        : first(block * PACKED_CHANNELS + v * LANES), count(std::min(LANES, w.channels - first)) {
        if (count <= 0) return;
        weight_sums = load_ints(sums + v * LANES * 4);
        scale = load_some(w.scale + first, count, 0.0f);
        bias = w.bias ? load_some(w.bias + first, count, 0.0f) : Vector{};
    }

    // The one place where exact sums become numbers, of the row `out` with codes of such steps.
    void finish(Ints high, Ints low, float step, float* out) const {
        // The codes were shifted to be unsigned: their high bytes are 128 too large.
        const Vector total = __builtin_convertvector(high - (weight_sums << 7), Vector) * 256.0f +
                             __builtin_convertvector(low, Vector);
        const Vector numbers = total * step * scale + bias;
        if (count == LANES) {
            store(out + first, numbers);
        } else {
            store_some(out + first, numbers, count);
        }
    }
};

// ROWS rows of codes times one block of channels, in vectors.
template <int ROWS>
void multiply_rows(const Codes& codes, int row, const Int8Weight& w, int block, float* out) {
    // Sums are exact, so that they may be kept apart to have enough of them under way at once.
    constexpr int APART = ROWS == 1 ? 2 : 1;
    const int tiles = tiles_of(w.inputs);
    const int8_t* weight = w.block(block);
    const uint8_t* from = codes.row(row, w.inputs);
    Ints high[APART][ROWS][PACKED_VECTORS] = {}, low[APART][ROWS][PACKED_VECTORS] = {};
    for (int tile = 0; tile < tiles; ++tile, from += 2 * TILE_BYTES) {
        for (int k = 0; k < TILE_INPUTS; k += 4 * APART) {
            for (int apart = 0; apart < APART; ++apart, weight += 4 * PACKED_CHANNELS) {
                Ints weights[PACKED_VECTORS];
                for (int v = 0; v < PACKED_VECTORS; ++v)
                    weights[v] = load_ints(weight + v * LANES * 4);
                for (int r = 0; r < ROWS; ++r) {
                    const uint8_t* four = from + r * TILE_INPUTS + k + 4 * apart;
                    const Ints highs = repeat_four_bytes(four);
                    const Ints lows = repeat_four_bytes(four + TILE_BYTES);
                    for (int v = 0; v < PACKED_VECTORS; ++v) {
                        high[apart][r][v] = add_products(high[apart][r][v], highs, weights[v]);
                        low[apart][r][v] = add_products(low[apart][r][v], lows, weights[v]);
                    }
                }
            }
        }
    }
    if (APART == 2) {
        for (int v = 0; v < PACKED_VECTORS; ++v) {
            high[0][0][v] += high[APART - 1][0][v];
            low[0][0][v] += low[APART - 1][0][v];
        }
    }
    for (int v = 0; v < PACKED_VECTORS; ++v) {
        const Channels channels(w, block, weight, v);
        if (channels.count <= 0) return;
        for (int r = 0; r < ROWS; ++r)
            channels.finish(high[0][r][v], low[0][r][v], codes.steps[row + r],
                            out + static_cast<int64_t>(row + r) * w.channels);
    }
}

// Calls body with `count`, which is 1 to MOST, as a constant.
template <int MOST, class Body>
inline void call_with(int count, const Body& body) {
    if (count == MOST) return body(std::integral_constant<int, MOST>{});
    if constexpr (MOST > 1) call_with<MOST - 1>(count, body);
}

// Calls body(row, how many) for rows [row, end), at most MOST at a time and about as many each time:
// a last row or two alone would wait for the weights as long as many do. How many is a constant.
template <int MOST, class Body>
inline void each_few(int row, int end, const Body& body) {
    for (int passes = (end - row + MOST - 1) / MOST; passes > 0; --passes) {
        const int count = (end - row + passes - 1) / passes;
        call_with<MOST>(count, [&](auto constant) { body(row, constant); });
        row += count;
    }
}

// Rows [row, end) lie in one tile: as many at a time as there are registers for their sums.
inline void multiply_few(const Codes& codes, int row, int end, const Int8Weight& w, int block,
                         float* out) {
    each_few<LANES == 16 ? 6 : 1>(row, end, [&](int first, auto count) {
        multiply_rows<decltype(count)::value>(codes, first, w, block, out);
    });
}

#if defined(__AMX_INT8__) && !defined(NO_TILES)
#define TILES
#endif

#if defined(TILES)

struct alignas(64) TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Asks for weights that are multiplied two tiles later: loading a tile waits for its last line.
inline void fetch_ahead(const void* weight) {
    constexpr int LINE = 64, TILES_BYTES = TILE_INPUTS * PACKED_CHANNELS;
    const char* from = static_cast<const char*>(weight) + 2 * TILES_BYTES;
    for (int at = 0; at < TILES_BYTES; at += LINE) __builtin_prefetch(from + at);
}

// A whole tile of rows times one block of channels: both planes times two halves of the channels.
// `fetch`: the weights were not read just now.
inline void multiply_tiles(const Codes& codes, int row, int end, const Int8Weight& w, int block,
                           bool fetch, float* out) {
    const int tiles = tiles_of(w.inputs);
    const int8_t* weight = w.block(block);
    const uint8_t* from = codes.row(row, w.inputs);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int tile = 0; tile < tiles; ++tile) {
        _tile_loadd(4, from, TILE_INPUTS);
        _tile_loadd(5, from + TILE_BYTES, TILE_INPUTS);
        if (fetch) fetch_ahead(weight);
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
    for (int v = 0; v < PACKED_VECTORS; ++v) {
        const Channels channels(w, block, weight, v);
        if (channels.count <= 0) return;
        for (int r = 0; row + r < end; ++r)
            channels.finish(load_ints(sums[v][r]), load_ints(sums[2 + v][r]), codes.steps[row + r],
                            out + static_cast<int64_t>(row + r) * w.channels);
    }
}

#endif

// From so many rows of a tile on, tiles are faster than vectors; more than a tile has: never.
int amx_from_rows = TILE_ROWS + 1;

// Blocks [block, last) of channels for rows [first, end), which begin a tile.
void multiply_panel(const Codes& codes, int first, int end, const Int8Weight& w, int block,
                    int last, float* out) {
#if defined(TILES)
    const bool tiled = std::min(end - first, TILE_ROWS) >= amx_from_rows;
    if (tiled) {
        static const TileShapes shapes;
        _tile_loadconfig(&shapes);
    }
#endif
    for (; block < last; ++block) {
        for (int row = first; row < end; row += TILE_ROWS) {
            const int stop = std::min(row + TILE_ROWS, end);
#if defined(TILES)
            if (stop - row >= amx_from_rows) {
                multiply_tiles(codes, row, stop, w, block, row == first, out);
                continue;
            }
#endif
            multiply_few(codes, row, stop, w, block, out);
        }
    }
#if defined(TILES)
    if (tiled) _tile_release();
#endif
}

// The whole product, shared out among a team: out [rows, channels].
void multiply(Team& team, const Codes& codes, int rows, const Int8Weight& w, float* out) {
    const int panels = (rows + PANEL_ROWS - 1) / PANEL_ROWS;
    const int blocks = w.blocks();
    const int shares = team.shares_of(blocks);
    team.each(panels * shares, [&](int task) {
        const int first = task / shares * PANEL_ROWS, share = task % shares;
        multiply_panel(codes, first, std::min(first + PANEL_ROWS, rows), w,
                       static_cast<int>(int64_t{blocks} * share / shares),
                       static_cast<int>(int64_t{blocks} * (share + 1) / shares), out);
    });
}

}  // namespace

extern "C" int quant_linear_packed_f32(const float* x, const int8_t* packed, const float* scale,
                                       const float* bias, float* out, uint8_t* scratch, int rows,
                                       int channels, int inputs, int threads) {
    const Int8Weight weight{packed, scale, bias, channels, inputs};
    const Codes codes = Codes::in(scratch, rows, inputs);
    pool().run(threads, 2, [&](Team& team) {
        team.each(rows, [&](int row) {
            encode_row(x + static_cast<int64_t>(row) * inputs, inputs, codes, row);
        });
        multiply(team, codes, rows, weight, out);
    });
    return OK;
}

extern "C" int64_t quant_linear_scratch_bytes(int rows, int inputs) {
    return Codes::bytes(rows, inputs);
}

// Measures from how many rows on tiles beat vectors, and keeps to it; 0: there are no tiles here.
extern "C" int measure_tiles() {
#if defined(TILES)
    constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // The system must allow tiles.
    if (syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) != 0) return 0;
    constexpr int CHANNELS = 256, INPUTS = 512, REPEATS = 8;
    constexpr int64_t WEIGHT_BYTES = CHANNELS * (INPUTS + 4);
    const std::vector<int8_t> packed(WEIGHT_BYTES);
    const std::vector<float> scale(CHANNELS);
    std::vector<float> out(TILE_ROWS * CHANNELS);
    std::vector<uint8_t> memory(Codes::bytes(TILE_ROWS, INPUTS));
    const Codes codes = Codes::in(memory.data(), TILE_ROWS, INPUTS);
    const Int8Weight weight{packed.data(), scale.data(), nullptr, CHANNELS, INPUTS};
    const auto took = [&](int rows, int tiles_from) {
        amx_from_rows = tiles_from;
        return best_of(REPEATS, [&] {
            multiply_panel(codes, 0, rows, weight, 0, weight.blocks(), out.data());
        });
    };
    int faster = TILE_ROWS + 1;
    for (int rows = TILE_ROWS; rows >= 1 && took(rows, 1) < took(rows, TILE_ROWS + 1); --rows)
        faster = rows;
    return amx_from_rows = faster;
#else
    return 0;
#endif
}

namespace {

template <int ROWS, int CHANNELS>
void multiply_block(const float* x, const int8_t* weight, const float* scale,
                    const float* bias, float* out, int out_stride, int inputs) {
    Vector totals[ROWS][CHANNELS] = {};
    int k = 0;
    for (; k + LANES <= inputs; k += LANES) {
        Vector values[ROWS];
        for (int64_t row = 0; row < ROWS; ++row) values[row] = load(x + row * inputs + k);
        for (int channel = 0; channel < CHANNELS; ++channel) {
            const Vector weights = load_bytes(weight + static_cast<int64_t>(channel) * inputs + k);
            for (int64_t row = 0; row < ROWS; ++row) totals[row][channel] += values[row] * weights;
        }
    }
    for (int64_t row = 0; row < ROWS; ++row) {
        for (int channel = 0; channel < CHANNELS; ++channel) {
            float total = sum(totals[row][channel]);
            for (int rest = k; rest < inputs; ++rest) {
                total += x[row * inputs + rest] *
                         weight[static_cast<int64_t>(channel) * inputs + rest];
            }
            out[row * out_stride + channel] =
                total * scale[channel] + (bias ? bias[channel] : 0.0f);
        }
    }
}

template <int CHANNELS>
void multiply_unpacked(const float* x, const int8_t* weight, const float* scale,
                       const float* bias, float* out, int out_stride, int rows, int inputs) {
    int64_t row = 0;
    for (; row + 4 <= rows; row += 4) {
        multiply_block<4, CHANNELS>(x + row * inputs, weight, scale, bias,
                                    out + row * out_stride, out_stride, inputs);
    }
    for (; row < rows; ++row) {
        multiply_block<1, CHANNELS>(x + row * inputs, weight, scale, bias,
                                    out + row * out_stride, out_stride, inputs);
    }
}

}  // namespace

// The stored weight, without any other form of it: fp32 activations as they are.
extern "C" int quant_linear_f32(const float* x, const int8_t* weight, const float* scale,
                                const float* bias, float* out, int rows, int channels,
                                int inputs, int threads) {
    constexpr int BLOCK = 4;
    const int blocks = (channels + BLOCK - 1) / BLOCK;
    const int shares = std::min(blocks, 8 * threads);
    const auto run = [&](int block) {
        const int channel = block * BLOCK;
        const int8_t* first = weight + static_cast<int64_t>(channel) * inputs;
        if (channel + BLOCK <= channels) {
            multiply_unpacked<BLOCK>(x, first, scale + channel, bias ? bias + channel : bias,
                                     out + channel, channels, rows, inputs);
            return;
        }
        for (int c = channel; c < channels; ++c) {
            multiply_unpacked<1>(x, weight + static_cast<int64_t>(c) * inputs, scale + c,
                                 bias ? bias + c : bias, out + c, channels, rows, inputs);
        }
    };
    pool().run(threads, 1, [&](Team& team) {
        team.each(shares, [&](int share) {
            for (int block = static_cast<int>(int64_t{blocks} * share / shares);
                 block < int64_t{blocks} * (share + 1) / shares; ++block)
                run(block);
        });
    });
    return OK;
}

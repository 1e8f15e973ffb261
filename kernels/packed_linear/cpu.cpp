// Float weights times fp32 rows: 32 channels side by side, so that no sum runs across lanes and each
// adds up its inputs in one order, with any number of rows. A weight of 16 bits is widened as it is
// read: the same numbers as in fp32, in half of the memory. Where tiles multiply bf16 (AMX) and are
// faster, a row is split into three bf16 numbers that add up to it: products stay exact.

namespace {

constexpr int PAIRED_INPUTS = 32;  // of a tile of bf16: a packed weight's inputs are padded to it

// A weight as `packed_linear.pack` lays it out: [blocks, inputs, 32], zeros past the last channel;
// bf16 in pairs of inputs: [blocks, padded inputs / 2, 32, 2].
struct FloatWeight {
    const void* packed;
    const float* bias;  // or null
    int channels, inputs, kind;  // of CacheKind: FP32, FP16 or BF16

    int blocks() const { return (channels + PACKED_CHANNELS - 1) / PACKED_CHANNELS; }
    int pair_tiles() const { return (inputs + PAIRED_INPUTS - 1) / PAIRED_INPUTS; }
    // Numbers of one block.
    int64_t block_size() const {
        const int64_t padded = kind == BF16 ? pair_tiles() * PAIRED_INPUTS : inputs;
        return padded * PACKED_CHANNELS;
    }
};

// The weights of input k of a vector of channels; `at` is where its block begins.
template <int KIND>
inline Vector weights_of(const void* weight, int64_t at, int64_t k, int v) {
    if (KIND != BF16) return load_as<KIND>(weight, at + k * PACKED_CHANNELS + v * LANES);
    const int64_t pairs = at / 2 + k / 2 * PACKED_CHANNELS + v * LANES;
    const Ints both = load_ints(static_cast<const int32_t*>(weight) + pairs);
    return as_floats(k % 2 ? both & ~0xFFFF : both << 16);
}

inline void finish_floats(Vector total, const FloatWeight& w, int channel, float* to) {
    const int count = std::min(LANES, w.channels - channel);
    if (count <= 0) return;
    const Vector bias = w.bias ? load_some(w.bias + channel, count, 0.0f) : Vector{};
    if (count == LANES) {
        store(to + channel, total + bias);
    } else {
        store_some(to + channel, total + bias, count);
    }
}

// `weight` from `at` on: the block's own.
template <int ROWS, int KIND>
void multiply_floats(const float* x, const FloatWeight& w, const void* weight, int64_t at,
                     int block, float* out) {
    Vector totals[ROWS][PACKED_VECTORS] = {};
    const auto add = [&](int64_t k) {
        Vector weights[PACKED_VECTORS];
        for (int v = 0; v < PACKED_VECTORS; ++v) weights[v] = weights_of<KIND>(weight, at, k, v);
        for (int64_t row = 0; row < ROWS; ++row) {
            const float value = x[row * w.inputs + k];
            for (int v = 0; v < PACKED_VECTORS; ++v) totals[row][v] += value * weights[v];
        }
    };
    int64_t k = 0;
    for (; k + 2 <= w.inputs; k += 2) {
        add(k);
        add(k + 1);
    }
    if (k < w.inputs) add(k);
    for (int v = 0; v < PACKED_VECTORS; ++v)
        for (int64_t row = 0; row < ROWS; ++row)
            finish_floats(totals[row][v], w, block * PACKED_CHANNELS + v * LANES,
                          out + row * w.channels);
}

// Rows [row, end) times one block of channels.
template <int KIND>
void multiply_block_of(const float* x, int row, int end, const FloatWeight& w, const void* weight,
                       int64_t at, int block, float* out) {
    constexpr int TOGETHER = LANES == 16 ? 8 : 2;  // as there are registers for their sums
    each_few<TOGETHER>(row, end, [&](int first, auto count) {
        multiply_floats<decltype(count)::value, KIND>(x + int64_t{first} * w.inputs, w, weight, at,
                                                      block, out + int64_t{first} * w.channels);
    });
}

template <int KIND>
void multiply_kind(Team& team, const float* x, int rows, const FloatWeight& w, float* out) {
    constexpr int WORTH_WIDENING = 24;  // rows that would each widen a block again
    const int panels = (rows + PANEL_ROWS - 1) / PANEL_ROWS, blocks = w.blocks();
    team.each(panels * blocks, [&](int task) {
        const int block = task % blocks, row = task / blocks * PANEL_ROWS;
        const int end = std::min(row + PANEL_ROWS, rows);
        const int64_t at = block * w.block_size();
        if (KIND == FP32 || end - row < WORTH_WIDENING) {
            multiply_block_of<KIND>(x, row, end, w, w.packed, at, block, out);
            return;
        }
        static thread_local std::vector<float> wide;
        make_room(wide, int64_t{w.inputs} * PACKED_CHANNELS);
        for (int64_t k = 0; k < w.inputs; ++k)
            for (int v = 0; v < PACKED_VECTORS; ++v)
                store(wide.data() + k * PACKED_CHANNELS + v * LANES,
                      weights_of<KIND>(w.packed, at, k, v));
        multiply_block_of<FP32>(x, row, end, w, wide.data(), 0, block, out);
    });
}

#if defined(TILES) && defined(__AMX_BF16__)
#define BF16_TILES

constexpr int PLANES = 3;  // of 8 bits each: the 24 of an fp32 number
constexpr int PLANE_TILE = TILE_ROWS * PAIRED_INPUTS;
constexpr int TILED_ROWS = 2 * TILE_ROWS;  // that share the weights read

// Rows as tiles [rows / 16, inputs / 32, plane, 16, 32] of bf16 numbers.
inline uint16_t* plane_row(uint16_t* planes, const FloatWeight& w, int row) {
    const int64_t block = row / TILE_ROWS;
    return planes + block * w.pair_tiles() * PLANES * PLANE_TILE + row % TILE_ROWS * PAIRED_INPUTS;
}

inline int64_t plane_numbers(int rows, int inputs) {
    const int64_t tiles = (inputs + PAIRED_INPUTS - 1) / PAIRED_INPUTS;
    return (rows + TILE_ROWS - 1) / TILE_ROWS * tiles * PLANES * PLANE_TILE;
}

// Cuts each number into its upper 8 bits of precision, the next and the last: x = their sum.
void split_row(const float* x, const FloatWeight& w, uint16_t* planes, int row) {
    uint16_t* to = plane_row(planes, w, row);
    for (int first = 0; first < w.inputs; first += PAIRED_INPUTS, to += PLANES * PLANE_TILE) {
        for (int k = 0; k < PAIRED_INPUTS; k += LANES) {
            const int count = std::min(LANES, w.inputs - first - k);
            Vector rest = count == LANES ? load(x + first + k)
                        : count > 0      ? load_some(x + first + k, count, 0.0f) : Vector{};
            for (int plane = 0; plane < PLANES; ++plane) {
                const Ints nan = (rest != rest) & 0x400000;  // whose bits may all be lower ones
                const Ints upper = (as_ints(rest) | nan) & ~0xFFFF;
                const __m256i bits = _mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(upper >> 16));
                std::memcpy(to + plane * PLANE_TILE + k, &bits, sizeof bits);
                rest -= as_floats(upper);
                rest = rest == rest ? rest : Vector{};  // Of infinity nothing is left.
            }
        }
    }
}

// Up to two tiles of rows times one block of channels, left in tiles 0 to 3.
inline void add_up_planes(uint16_t* planes, int row, int end, const FloatWeight& w, int block) {
    const bool second = end - row > TILE_ROWS;
    const uint16_t* weight = static_cast<const uint16_t*>(w.packed) + block * w.block_size();
    const uint16_t* upper = plane_row(planes, w, row);
    const uint16_t* lower = upper + int64_t{w.pair_tiles()} * PLANES * PLANE_TILE;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int tile = 0; tile < w.pair_tiles(); ++tile, weight += PAIRED_INPUTS * PACKED_CHANNELS) {
        fetch_ahead(weight);
        _tile_loadd(4, weight, 4 * PACKED_CHANNELS);
        _tile_loadd(5, weight + 2 * LANES, 4 * PACKED_CHANNELS);
        for (int plane = 0; plane < PLANES; ++plane) {
            _tile_loadd(6, upper, 2 * PAIRED_INPUTS);
            upper += PLANE_TILE;
            _tile_dpbf16ps(0, 6, 4);
            _tile_dpbf16ps(1, 6, 5);
            if (second) {
                _tile_loadd(7, lower, 2 * PAIRED_INPUTS);
                lower += PLANE_TILE;
                _tile_dpbf16ps(2, 7, 4);
                _tile_dpbf16ps(3, 7, 5);
            }
        }
    }
}

// What they add up to: [half of the rows, half of the channels, rows, channels].
struct alignas(64) PlaneSums {
    float numbers[2][PACKED_VECTORS][TILE_ROWS][LANES];

    explicit PlaneSums(bool second) {
        _tile_stored(0, numbers[0][0], 64);
        _tile_stored(1, numbers[0][1], 64);
        if (!second) return;
        _tile_stored(2, numbers[1][0], 64);
        _tile_stored(3, numbers[1][1], 64);
    }
    Vector of(int row, int v) const { return load(numbers[row / TILE_ROWS][v][row % TILE_ROWS]); }
};

void multiply_planes(uint16_t* planes, int row, int end, const FloatWeight& w, int block,
                     float* out) {
    const bool second = end - row > TILE_ROWS;
    add_up_planes(planes, row, end, w, block);
    if (!w.bias && (block + 1) * PACKED_CHANNELS <= w.channels) {
        float* to = out + int64_t{row} * w.channels + block * PACKED_CHANNELS;
        const int64_t apart = 4 * int64_t{w.channels};
        _tile_stored(0, to, apart);
        _tile_stored(1, to + LANES, apart);
        if (second) {
            _tile_stored(2, to + TILE_ROWS * int64_t{w.channels}, apart);
            _tile_stored(3, to + TILE_ROWS * int64_t{w.channels} + LANES, apart);
        }
        return;
    }
    const PlaneSums sums(second);
    for (int r = 0; row + r < end; ++r)
        for (int v = 0; v < PACKED_VECTORS; ++v)
            finish_floats(sums.of(r, v), w, block * PACKED_CHANNELS + v * LANES,
                          out + int64_t{row + r} * w.channels);
}

// So many rows of A and C are read and written; a second tile of them may have none.
inline void load_shapes(int rows) {
    TileShapes shapes;
    const int first = std::min(rows, TILE_ROWS), second = std::max(rows - TILE_ROWS, 1);
    for (const int tile : {0, 1, 6}) shapes.rows[tile] = static_cast<uint8_t>(first);
    for (const int tile : {2, 3, 7}) shapes.rows[tile] = static_cast<uint8_t>(second);
    _tile_loadconfig(&shapes);
}

// Hands body(rows from, to, blocks from, to, share) what `split_row` has cut, two tiles of rows at a
// time.
template <class Body>
void each_tiled(Team& team, int rows, int blocks, const Body& body) {
    const int panels = (rows + PANEL_ROWS - 1) / PANEL_ROWS, shares = team.shares_of(blocks);
    team.each(panels * shares, [&](int task) {
        const int share = task % shares, first = task / shares * PANEL_ROWS;
        const int block = static_cast<int>(int64_t{blocks} * share / shares);
        const int last = static_cast<int>(int64_t{blocks} * (share + 1) / shares);
        for (int row = first; row < std::min(first + PANEL_ROWS, rows); row += TILED_ROWS) {
            const int end = std::min(row + TILED_ROWS, rows);
            load_shapes(end - row);
            body(row, end, block, last, share);
        }
        _tile_release();
    });
}

void multiply_tiled(Team& team, uint16_t* planes, int rows, const FloatWeight& w, float* out) {
    each_tiled(team, rows, w.blocks(), [&](int row, int end, int block, int last, int) {
        for (; block < last; ++block) multiply_planes(planes, row, end, w, block, out);
    });
}

// A row's largest product in some of the channels, and the first channel that has it.
struct Largest {
    float value;
    int channel;
};

// Of rows [row, end) in blocks [block, last): into found [end - row].
void find_largest(uint16_t* planes, int row, int end, const FloatWeight& w, int block, int last,
                  Largest* found) {
    const int rows = end - row;
    constexpr float LOWEST = -__builtin_inff();
    Vector most[TILED_ROWS];
    Ints from[TILED_ROWS];  // the vector of channels that each lane's is in
    std::fill_n(most, rows, Vector{} + LOWEST);
    std::fill_n(from, rows, Ints{} + block * PACKED_CHANNELS);
    for (; block < last; ++block) {
        add_up_planes(planes, row, end, w, block);
        const PlaneSums sums(rows > TILE_ROWS);
        for (int v = 0; v < PACKED_VECTORS; ++v) {
            const int channel = block * PACKED_CHANNELS + v * LANES;
            const int count = w.channels - channel;
            if (count <= 0) break;
            for (int r = 0; r < rows; ++r) {
                Vector some = sums.of(r, v);
                if (count < LANES)
                    some = load_some(reinterpret_cast<const float*>(&some), count, LOWEST);
                const auto more = some > most[r];
                most[r] = more ? some : most[r];
                from[r] = more ? Ints{} + channel : from[r];
            }
        }
    }
    for (int r = 0; r < rows; ++r) {
        found[r] = {largest_lane(most[r]), w.channels};
        for (int lane = 0; lane < LANES; ++lane)
            if (most[r][lane] == found[r].value)
                found[r].channel = std::min(found[r].channel, from[r][lane] + lane);
    }
}

// The first of each row's largest products, which are not kept.
void likeliest_tiled(Team& team, uint16_t* planes, int rows, const FloatWeight& w,
                     std::vector<Largest>& found, int64_t* likeliest) {
    each_tiled(team, rows, w.blocks(), [&](int row, int end, int block, int last, int share) {
        find_largest(planes, row, end, w, block, last, found.data() + int64_t{share} * rows + row);
    });
    const int shares = team.shares_of(w.blocks());
    team.each(1, [&](int) {
        for (int row = 0; row < rows; ++row) {
            Largest best = found[row];
            for (int share = 1; share < shares; ++share) {
                const Largest& other = found[int64_t{share} * rows + row];
                if (other.value > best.value) best = other;
            }
            likeliest[row] = best.channel;
        }
    });
}

#endif

// Whether tiles multiply bf16 weights, for every number of rows: measured when the library is loaded.
bool bf16_by_tiles = false;

// Room for the rows of one product, in the form in which they are multiplied.
struct FloatRows {
    float* floats;
    uint16_t* planes;

    static int64_t bytes(int rows, int inputs) {
        int64_t numbers = 0;
#if defined(BF16_TILES)
        numbers = plane_numbers(rows, inputs);
#endif
        return (4 * int64_t{rows} * inputs + 63) / 64 * 64 + 2 * numbers;
    }
    static FloatRows in(uint8_t* memory, int rows, int inputs) {
        const int64_t floats = (4 * int64_t{rows} * inputs + 63) / 64 * 64;
        return {reinterpret_cast<float*>(memory), reinterpret_cast<uint16_t*>(memory + floats)};
    }
    static bool tiled(const FloatWeight& w) { return w.kind == BF16 && bf16_by_tiles; }

    void take(const float* x, int row, const FloatWeight& w) const {
#if defined(BF16_TILES)
        if (tiled(w)) return split_row(x, w, planes, row);
#endif
        std::copy_n(x, w.inputs, floats + int64_t{row} * w.inputs);
    }
};

// The whole product of rows taken, shared out among a team: out [rows, channels].
void multiply(Team& team, const FloatRows& taken, int rows, const FloatWeight& w, float* out) {
#if defined(BF16_TILES)
    if (FloatRows::tiled(w)) return multiply_tiled(team, taken.planes, rows, w, out);
#endif
    const auto run = w.kind == FP16 ? multiply_kind<FP16>
                   : w.kind == BF16 ? multiply_kind<BF16> : multiply_kind<FP32>;
    run(team, taken.floats, rows, w, out);
}

}  // namespace

extern "C" int64_t packed_linear_scratch_bytes(int rows, int inputs) {
    return FloatRows::bytes(rows, inputs) + 64;
}

extern "C" int packed_linear_f32(const float* x, const void* packed, const float* bias, float* out,
                                 uint8_t* scratch, int rows, int channels, int inputs, int kind,
                                 int threads) {
    const FloatWeight weight{packed, bias, channels, inputs, kind};
    FloatRows taken = FloatRows::in(aligned(scratch), rows, inputs);
    pool().run(threads, 2, [&](Team& team) {
        if (FloatRows::tiled(weight)) {
            team.each(rows, [&](int row) { taken.take(x + int64_t{row} * inputs, row, weight); });
            multiply(team, taken, rows, weight, out);
        } else {  // Rows that lie as they are multiplied need no copy.
            const FloatRows as_they_lie{const_cast<float*>(x), nullptr};
            multiply(team, as_they_lie, rows, weight, out);
        }
    });
    return OK;
}

// Measures whether tiles multiply bf16 weights faster, for one row as for many, and keeps to it.
extern "C" int measure_bf16_tiles() {
#if defined(BF16_TILES)
    if (amx_from_rows > TILE_ROWS) return 0;  // Not allowed here, or slow.
    constexpr int CHANNELS = 512, INPUTS = 1024, ROWS = 2 * TILED_ROWS;
    const std::vector<uint16_t> packed(CHANNELS * INPUTS);
    std::vector<float> x(ROWS * INPUTS, 1.0f), out(ROWS * CHANNELS);
    std::vector<uint8_t> memory(FloatRows::bytes(ROWS, INPUTS) + 64);
    const FloatWeight weight{packed.data(), nullptr, CHANNELS, INPUTS, BF16};
    const FloatRows taken = FloatRows::in(aligned(memory.data()), ROWS, INPUTS);
    Team alone(1, nullptr);
    const auto took = [&](int rows, bool tiled) {
        bf16_by_tiles = tiled;
        return best_of(4, [&] {
            for (int row = 0; row < rows; ++row) taken.take(x.data() + row * INPUTS, row, weight);
            multiply(alone, taken, rows, weight, out.data());
        });
    };
    const bool faster = took(ROWS, true) < took(ROWS, false);
    return bf16_by_tiles = faster && took(1, true) < 1.1 * took(1, false);
#else
    return 0;
#endif
}

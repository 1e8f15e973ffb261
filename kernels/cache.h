// Keys and values in every dtype that a cache may have: widened to fp32 where they are read, rounded
// as torch rounds where they are written.
#pragma once

namespace {

// As `kernels.native.CACHE_KINDS` numbers them.
enum CacheKind { FP32, FP16, BF16, INT8, FP8 };

inline int32_t bits_of(float x) {
    int32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}

inline float float_of(int32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

inline Vector as_floats(Ints v) { return reinterpret_cast<Vector>(v); }
inline Ints as_ints(Vector v) { return reinterpret_cast<Ints>(v); }

// Written out where compilers widen halves of a vector one by one.
template <class Element>
inline Ints load_wide(const Element* from) {
#if defined(__AVX512F__)
    if constexpr (sizeof(Element) == 2)
        return reinterpret_cast<Ints>(
            _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
    else
        return reinterpret_cast<Ints>(
            _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#endif
    typedef Element Few __attribute__((vector_size(LANES * sizeof(Element))));
    Few few;
    std::memcpy(&few, from, sizeof few);
    return __builtin_convertvector(few, Ints);
}

inline Vector widen_bf16(const void* from, int64_t at) {
    return as_floats(load_wide(static_cast<const uint16_t*>(from) + at) << 16);
}

// Small floats are shifted into an fp32's place and scaled by the difference of the exponents'
// biases, which is right for subnormal numbers too; the largest exponent stands for no number.
inline Vector widen_fp16(const void* from, int64_t at) {
#if defined(__AVX512F__)
    const void* bits = static_cast<const uint16_t*>(from) + at;
    return reinterpret_cast<Vector>(
        _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(bits))));
#elif defined(__F16C__)
    const void* bits = static_cast<const uint16_t*>(from) + at;
    return reinterpret_cast<Vector>(
        _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(bits))));
#else
    const Ints half = load_wide(static_cast<const uint16_t*>(from) + at);
    const Ints size = half & 0x7FFF;
    const Vector finite = as_floats(size << 13) * 0x1p112f;
    const Vector other = as_floats(size << 13 | 0x7F800000);
    return as_floats(as_ints(size >= 0x7C00 ? other : finite) | (half & 0x8000) << 16);
#endif
}

inline Vector widen_fp8(const void* from, int64_t at) {
    const Ints code = load_wide(static_cast<const uint8_t*>(from) + at);
    const Ints size = code & 0x7F;
    const Vector finite = as_floats(size << 20) * 0x1p120f;
    const Vector other = as_floats(Ints{} + 0x7FC00000);
    return as_floats(as_ints(size == 0x7F ? other : finite) | (code & 0x80) << 24);
}

inline uint16_t to_bf16(float x) {
    const int32_t bits = bits_of(x);
    if (x != x) return 0x7FC0;
    return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

inline uint16_t to_fp16(float x) {
    const int32_t sign = bits_of(x) >> 16 & 0x8000, size = bits_of(x) & 0x7FFFFFFF;
    int32_t half;
    if (x != x) {
        half = 0x7E00;
    } else if (size >= 0x477FF000) {  // Rounds to more than the largest half.
        half = 0x7C00;
    } else if (size < 0x38800000) {  // Subnormal: added to a number whose last bit is a half's.
        half = bits_of(float_of(size) + 0.5f) - bits_of(0.5f);
    } else {
        half = (size - 0x38000000 + 0xFFF + (size >> 13 & 1)) >> 13;
    }
    return static_cast<uint16_t>(sign | half);
}

// LANES numbers, each rounded as above.
inline void narrow_fp16(const float* from, uint16_t* to) {
#if defined(__AVX512F__)
    const __m256i bits = _mm512_cvtps_ph(_mm512_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bits);
#elif defined(__F16C__)
    const __m128i bits = _mm256_cvtps_ph(_mm256_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bits);
#else
    for (int lane = 0; lane < LANES; ++lane) to[lane] = to_fp16(from[lane]);
#endif
}

inline void narrow_bf16(const float* from, uint16_t* to) {
#if defined(__AVX512F__)
    const Vector x = load(from);
    const Ints rounded = (as_ints(x) + 0x7FFF + (as_ints(x) >> 16 & 1)) >> 16;
    const Ints bits = x == x ? rounded : Ints{} + 0x7FC0;
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                        _mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(bits)));
#else
    for (int lane = 0; lane < LANES; ++lane) to[lane] = to_bf16(from[lane]);
#endif
}

// Of values up to 448.
inline uint8_t to_fp8(float x) {
    const int32_t sign = bits_of(x) >> 24 & 0x80, size = bits_of(x) & 0x7FFFFFFF;
    int32_t code;
    if (x != x) {
        code = 0x7F;
    } else if (size < 0x3C800000) {
        code = bits_of(float_of(size) + 0x1p14f) - bits_of(0x1p14f);
    } else {
        code = (size - (120 << 23) + 0x7FFFF + (size >> 20 & 1)) >> 20;
    }
    return static_cast<uint8_t>(sign | code);
}

constexpr int bytes_of(int kind) {
    return kind == FP32 ? 4 : kind == FP16 || kind == BF16 ? 2 : 1;
}

// One layer's keys, or its values: [num_blocks, block_size, heads, dim] of one kind.
struct CacheHalf {
    void* data;
    float* scales;  // [num_blocks, block_size, heads], of codes only
};

struct CacheShape {
    int64_t num_blocks;
    int block_size, heads, dim, kind;

    int64_t slots() const { return num_blocks * block_size; }
    int bytes_of_number() const { return bytes_of(kind); }
};

// Numbers of one kind, widened where they are loaded; codes without their scale.
template <int KIND>
inline Vector load_as(const void* from, int64_t at) {
    if (KIND == FP16) return widen_fp16(from, at);
    if (KIND == BF16) return widen_bf16(from, at);
    if (KIND == INT8) return load_bytes(static_cast<const int8_t*>(from) + at);
    if (KIND == FP8) return widen_fp8(from, at);
    return load(static_cast<const float*>(from) + at);
}

// Two vectors of numbers that follow each other.
struct Pair {
    Vector low, high;
};

// The upper 16 bits of every fp8 number as an fp32, whose others are zero; without the sign.
struct Fp8Halves {
    alignas(64) uint8_t low[128], high[128];

    constexpr Fp8Halves() : low(), high() {
        for (int code = 0; code < 128; ++code) {
            int exponent = (code >> 3) + 120, mantissa = (code & 7) << 4;
            if (code == 127) exponent = 255, mantissa = 64;  // no number
            if (code < 8) {  // subnormal: of three bits, the first set one is left out
                exponent = code ? 121 : 0;
                for (int bits = code; bits && bits < 8; bits *= 2) --exponent, mantissa *= 2;
                mantissa &= 127;
            }
            low[code] = static_cast<uint8_t>((exponent & 1) << 7 | mantissa);
            high[code] = static_cast<uint8_t>(exponent >> 1);
        }
    }
};

template <int KIND>
inline Pair load_pair(const void* from) {
#if defined(__AVX512VBMI__)
    constexpr uint64_t UPPER_HALVES = 0xCCCCCCCCCCCCCCCC;
    if constexpr (KIND == BF16) {  // Bytes go straight to where an fp32 has them.
        const __m512i both = _mm512_loadu_si512(from);
        const __m512i low = _mm512_set_epi32(
            0x1F1E0000, 0x1D1C0000, 0x1B1A0000, 0x19180000, 0x17160000, 0x15140000, 0x13120000,
            0x11100000, 0x0F0E0000, 0x0D0C0000, 0x0B0A0000, 0x09080000, 0x07060000, 0x05040000,
            0x03020000, 0x01000000);
        const __m512i high = _mm512_add_epi8(low, _mm512_set1_epi8(32));
        return {reinterpret_cast<Vector>(_mm512_maskz_permutexvar_epi8(UPPER_HALVES, low, both)),
                reinterpret_cast<Vector>(_mm512_maskz_permutexvar_epi8(UPPER_HALVES, high, both))};
    }
    if constexpr (KIND == FP8) {  // Two bytes of a table for each.
        static constexpr Fp8Halves HALVES;
        const auto looked_up = [](const uint8_t (&table)[128], __m512i codes) {
            return _mm512_permutex2var_epi8(_mm512_load_si512(table), codes,
                                            _mm512_load_si512(table + 64));
        };
        const __m512i codes = _mm512_castsi256_si512(
            _mm256_loadu_si256(static_cast<const __m256i*>(from)));
        const __m512i sign = _mm512_and_si512(codes, _mm512_set1_epi8(-128));
        const __m512i lower = looked_up(HALVES.low, codes);
        const __m512i upper = _mm512_or_si512(looked_up(HALVES.high, codes), sign);
        const __m512i first = _mm512_set_epi32(
            0x4F0F0000, 0x4E0E0000, 0x4D0D0000, 0x4C0C0000, 0x4B0B0000, 0x4A0A0000, 0x49090000,
            0x48080000, 0x47070000, 0x46060000, 0x45050000, 0x44040000, 0x43030000, 0x42020000,
            0x41010000, 0x40000000);
        const __m512i second = _mm512_add_epi8(first, _mm512_set1_epi8(16));
        return {reinterpret_cast<Vector>(_mm512_maskz_permutex2var_epi8(UPPER_HALVES, lower, first,
                                                                        upper)),
                reinterpret_cast<Vector>(_mm512_maskz_permutex2var_epi8(UPPER_HALVES, lower, second,
                                                                        upper))};
    }
#endif
    return {load_as<KIND>(from, 0), load_as<KIND>(from, LANES)};
}

// The same, but of bf16 numbers the even ones and the odd ones, which takes less: for sums of each
// number alone, which `put_together` brings into their order at the end.
template <int KIND>
inline Pair load_apart(const void* from) {
    if constexpr (KIND == BF16) {
#if defined(__AVX512F__)  // else compilers load it twice
        const __m512i both = _mm512_loadu_si512(from);
        return {reinterpret_cast<Vector>(_mm512_slli_epi32(both, 16)),
                reinterpret_cast<Vector>(_mm512_and_si512(both, _mm512_set1_epi32(~0xFFFF)))};
#else
        Ints both;
        std::memcpy(&both, from, sizeof both);
        return {as_floats(both << 16), as_floats(both & ~0xFFFF)};
#endif
    }
    return load_pair<KIND>(from);
}

inline void put_together(float* sums) {
    float even[LANES], odd[LANES];
    std::memcpy(even, sums, sizeof even);
    std::memcpy(odd, sums + LANES, sizeof odd);
    for (int i = 0; i < LANES; ++i) {
        sums[2 * i] = even[i];
        sums[2 * i + 1] = odd[i];
    }
}

// One head of slots that follow each other, each `stride` from the one before.
template <int KIND>
struct Slots {
    static constexpr int BYTES = bytes_of(KIND);  // of a number
    const void* data;
    int64_t first, stride;
    int64_t ahead = 0;  // bytes from a slot to one that is read soon; 0: none is asked for

    Slots from(int slot) const { return {data, first + slot * stride, stride, ahead}; }
    const char* row(int slot) const {
        return static_cast<const char*>(data) + (first + slot * stride) * BYTES;
    }
    Vector at(int slot, int d) const { return load_as<KIND>(data, first + slot * stride + d); }
    // Asks for what is read soon, a slot for each that is read: memory gives it meanwhile, where it
    // would hold up a burst. Into the second cache: more may be on its way there than to the first.
    void fetch(const char* slot, int dim) const {
        constexpr int LINE = 64;
        if (ahead == 0) return;
        for (int at = 0; at < dim * BYTES; at += LINE) __builtin_prefetch(slot + ahead + at, 0, 2);
    }
};

// Where slots begin that follow each other.
struct Place {
    const CacheHalf* half;
    int64_t slot;

    // Of the codes of one head, the next slot's behind `shape.heads`; null where there are floats.
    const float* scales(const CacheShape& shape, int head) const {
        return half->scales ? half->scales + slot * shape.heads + head : nullptr;
    }
    uintptr_t address(const CacheShape& shape) const {
        const int64_t number = slot * shape.heads * shape.dim;
        return reinterpret_cast<uintptr_t>(half->data) + number * shape.bytes_of_number();
    }
};

// One head of slots, as they lie; those at `next` are asked for meanwhile.
template <int KIND>
inline IN_PLACE Slots<KIND> slots_of(const Place& at, const Place& next, const CacheShape& shape,
                                     int head) {
    const int64_t stride = int64_t{shape.heads} * shape.dim;
    return {at.half->data, at.slot * stride + int64_t{head} * shape.dim, stride,
            static_cast<int64_t>(next.address(shape) - at.address(shape))};
}

// Slots of any kind, widened into `room` [count, dim].
inline Slots<FP32> widened(const Place& at, const CacheShape& shape, int head, int count,
                           float* room) {
    const auto widen = [&](auto kind) {
        const auto slots = slots_of<decltype(kind)::value>(at, at, shape, head);
        for (int slot = 0; slot < count; ++slot)
            for (int d = 0; d < shape.dim; d += LANES)
                store(room + int64_t{slot} * shape.dim + d, slots.at(slot, d));
    };
    if (shape.kind == FP16) widen(std::integral_constant<int, FP16>{});
    if (shape.kind == BF16) widen(std::integral_constant<int, BF16>{});
    if (shape.kind == INT8) widen(std::integral_constant<int, INT8>{});
    if (shape.kind == FP8) widen(std::integral_constant<int, FP8>{});
    return {room, 0, shape.dim};
}

// Writes one token's row [heads, dim]; codes get a scale per head, of its largest value.
inline void write_slot(const CacheHalf& half, const CacheShape& shape, int64_t slot,
                       const float* row) {
    const int size = shape.heads * shape.dim;
    const int64_t first = slot * size;
    if (shape.kind == FP32) {
        std::copy_n(row, size, static_cast<float*>(half.data) + first);
    } else if (shape.kind == FP16 || shape.kind == BF16) {
        uint16_t* to = static_cast<uint16_t*>(half.data) + first;
        const bool fp16 = shape.kind == FP16;
        const auto narrow = fp16 ? narrow_fp16 : narrow_bf16;
        int i = 0;
        for (; i + LANES <= size; i += LANES) narrow(row + i, to + i);
        for (; i < size; ++i) to[i] = fp16 ? to_fp16(row[i]) : to_bf16(row[i]);  // no neighbour's
    } else {
        const float limit = shape.kind == INT8 ? 127.0f : 448.0f;
        for (int head = 0; head < shape.heads; ++head) {
            const float* values = row + int64_t{head} * shape.dim;
            float largest = 0.0f;
            for (int d = 0; d < shape.dim; ++d) largest = std::max(largest, std::fabs(values[d]));
            const float scale = largest > 0.0f ? largest / limit : 1.0f;
            half.scales[slot * shape.heads + head] = scale;
            uint8_t* to = static_cast<uint8_t*>(half.data) + first + int64_t{head} * shape.dim;
            for (int d = 0; d < shape.dim; ++d) {
                const float code = values[d] / scale;
                to[d] = shape.kind == INT8 ? static_cast<uint8_t>(static_cast<int8_t>(
                                                 std::nearbyint(code)))
                                           : to_fp8(code);
            }
        }
    }
}

}  // namespace

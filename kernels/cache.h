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

// One layer's keys, or its values: [num_blocks, block_size, heads, dim] of one kind.
struct CacheHalf {
    void* data;
    float* scales;  // [num_blocks, block_size, heads], of codes only
};

struct CacheShape {
    int64_t num_blocks;
    int block_size, heads, dim, kind;

    int64_t slots() const { return num_blocks * block_size; }
    int bytes_of_number() const { return kind == FP32 ? 4 : kind == FP16 || kind == BF16 ? 2 : 1; }
};

// Floats of one kind, widened where they are loaded.
template <int KIND>
inline Vector load_as(const void* from, int64_t at) {
    if (KIND == FP16) return widen_fp16(from, at);
    if (KIND == BF16) return widen_bf16(from, at);
    return load(static_cast<const float*>(from) + at);
}

// Two vectors of numbers that follow each other.
struct Pair {
    Vector low, high;
};

template <int KIND>
inline Pair load_pair(const void* from) {
#if defined(__AVX512VBMI__)
    if constexpr (KIND == BF16) {  // Bytes go straight to where an fp32 has them.
        constexpr uint64_t UPPER_HALVES = 0xCCCCCCCCCCCCCCCC;
        const __m512i both = _mm512_loadu_si512(from);
        const __m512i low = _mm512_set_epi32(
            0x1F1E0000, 0x1D1C0000, 0x1B1A0000, 0x19180000, 0x17160000, 0x15140000, 0x13120000,
            0x11100000, 0x0F0E0000, 0x0D0C0000, 0x0B0A0000, 0x09080000, 0x07060000, 0x05040000,
            0x03020000, 0x01000000);
        const __m512i high = _mm512_add_epi8(low, _mm512_set1_epi8(32));
        return {reinterpret_cast<Vector>(_mm512_maskz_permutexvar_epi8(UPPER_HALVES, low, both)),
                reinterpret_cast<Vector>(_mm512_maskz_permutexvar_epi8(UPPER_HALVES, high, both))};
    }
#endif
    return {load_as<KIND>(from, 0), load_as<KIND>(from, LANES)};
}

// One head of slots that follow each other, each `stride` from the one before.
template <int KIND>
struct Slots {
    static constexpr int BYTES = KIND == FP32 ? 4 : 2;  // of a number
    const void* data;
    int64_t first, stride;
    int64_t ahead = 0;  // bytes from a slot to one that is read soon; 0: none is asked for

    Slots from(int slot) const { return {data, first + slot * stride, stride, ahead}; }
    Slots alone() const { return {data, first, stride}; }
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

    uintptr_t address(const CacheShape& shape) const {
        const int64_t number = slot * shape.heads * shape.dim;
        return reinterpret_cast<uintptr_t>(half->data) + number * shape.bytes_of_number();
    }
};

// One head of slots, as they lie; those at `next` are asked for meanwhile.
template <int KIND>
inline Slots<KIND> slots_of(const Place& at, const Place& next, const CacheShape& shape, int head) {
    const int64_t stride = int64_t{shape.heads} * shape.dim;
    return {at.half->data, at.slot * stride + int64_t{head} * shape.dim, stride,
            static_cast<int64_t>(next.address(shape) - at.address(shape))};
}

// The same, widened into `room` [count, dim].
inline Slots<FP32> widen_slots(const CacheHalf& half, const CacheShape& shape, int64_t slot, int count,
                         int head, float* room) {
    const int64_t stride = int64_t{shape.heads} * shape.dim;
    const int64_t first = slot * stride + int64_t{head} * shape.dim;
    const auto widen_all = [&](auto widen) {
        for (int row = 0; row < count; ++row) {
            const float scale =
                half.scales ? half.scales[(slot + row) * shape.heads + head] : 1.0f;
            for (int d = 0; d < shape.dim; d += LANES)
                store(room + int64_t{row} * shape.dim + d,
                      widen(half.data, first + row * stride + d) * scale);
        }
    };
    switch (shape.kind) {
        case FP16: widen_all(widen_fp16); break;
        case BF16: widen_all(widen_bf16); break;
        case FP8: widen_all(widen_fp8); break;
        default: widen_all([](const void* from, int64_t at) {
            return load_bytes(static_cast<const int8_t*>(from) + at);
        });
    }
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

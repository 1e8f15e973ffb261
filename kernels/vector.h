// Vectors of the widest size that the target has, and what every op does with them.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace {

// Compiled once, whoever calls it: where it was inlined its sums might be ordered, or its products
// fused, in another way, and the last bit differ.
#define SAME_BITS __attribute__((noinline))
// Written out where it is called, lambdas too: what a loop walks through stays in registers.
#define IN_PLACE __attribute__((always_inline))

#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif

typedef float Vector __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));

inline Vector load(const float* from) {
    Vector v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

inline void store(float* to, Vector v) { std::memcpy(to, &v, sizeof v); }

// Written out where compilers turn the plain conversion into scalar code.
inline Vector load_bytes(const int8_t* from) {
#if defined(__AVX512F__)
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return reinterpret_cast<Vector>(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)));
#elif defined(__AVX2__)
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    return reinterpret_cast<Vector>(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)));
#else
    typedef int8_t Bytes __attribute__((vector_size(LANES)));
    Bytes bytes;
    std::memcpy(&bytes, from, sizeof bytes);
    return __builtin_convertvector(bytes, Vector);
#endif
}

inline float sum(Vector v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps(reinterpret_cast<__m512>(v));
#elif defined(__AVX__)
    const __m256 whole = reinterpret_cast<__m256>(v);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(whole), _mm256_extractf128_ps(whole, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
#else
    float total = 0;
    for (int lane = 0; lane < LANES; ++lane) total += v[lane];
    return total;
#endif
}

// Lane by lane; `b` where either is no number.
inline Vector larger(Vector a, Vector b) {
#if defined(__AVX512F__)
    return reinterpret_cast<Vector>(
        _mm512_max_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#else
    return a > b ? a : b;
#endif
}

inline Vector smaller(Vector a, Vector b) {
#if defined(__AVX512F__)
    return reinterpret_cast<Vector>(
        _mm512_min_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#else
    return a < b ? a : b;
#endif
}

// e^x to fp32's last bits, for all lanes at once; libm's takes one at a time.
inline Vector exponential(Vector x) {
    x = smaller(Vector{} + 88.0f, larger(Vector{} - 87.0f, x));
    const Vector doublings = x * 1.44269504f;
#if defined(__AVX512F__)
    const Vector n = reinterpret_cast<Vector>(_mm512_roundscale_ps(
        reinterpret_cast<__m512>(doublings), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
    const Ints power = __builtin_convertvector(
        doublings + (doublings < 0.0f ? Vector{} - 0.5f : Vector{} + 0.5f), Ints);
    const Vector n = __builtin_convertvector(power, Vector);
#endif
    const Vector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Vector p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
#if defined(__AVX512F__)
    return reinterpret_cast<Vector>(
        _mm512_scalef_ps(reinterpret_cast<__m512>(p), reinterpret_cast<__m512>(n)));
#else
    return p * reinterpret_cast<Vector>((power + 127) << 23);
#endif
}

inline float largest_lane(Vector v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps(reinterpret_cast<__m512>(v));
#else
    float most = v[0];
    for (int lane = 1; lane < LANES; ++lane) most = v[lane] > most ? v[lane] : most;
    return most;
#endif
}

// Whether a comparison holds for any lane.
inline bool any(Ints v) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask(reinterpret_cast<__m512i>(v), reinterpret_cast<__m512i>(v)) != 0;
#else
    int32_t together = 0;
    for (int lane = 0; lane < LANES; ++lane) together |= v[lane];
    return together != 0;
#endif
}

// For the end of a row that is no whole vector: missing lanes read `rest` and are not written.
inline Vector load_some(const float* from, int count, float rest) {
    Vector v = Vector{} + rest;
#if defined(__AVX512F__)
    const __mmask16 there = static_cast<__mmask16>((1 << count) - 1);
    v = reinterpret_cast<Vector>(
        _mm512_mask_loadu_ps(reinterpret_cast<__m512>(v), there, from));
#else
    for (int lane = 0; lane < count; ++lane) v[lane] = from[lane];
#endif
    return v;
}

inline void store_some(float* to, Vector v, int count) {
#if defined(__AVX512F__)
    const __mmask16 there = static_cast<__mmask16>((1 << count) - 1);
    _mm512_mask_storeu_ps(to, there, reinterpret_cast<__m512>(v));
#else
    for (int lane = 0; lane < count; ++lane) to[lane] = v[lane];
#endif
}

// The sums of LANES vectors' lanes, as one vector: a tree of shuffles for all instead of one each,
// begun as soon as four of them are there, so that they stay in registers. Blends, where they do,
// run beside multiplications; shuffles wait for them.
struct LaneSums {
#if defined(__AVX512F__)
    __m512 fours[LANES / 4];

    void take(int four, const Vector* v) {
        const auto pair = [](Vector a, Vector b) {
            const __m512d x = reinterpret_cast<__m512d>(a), y = reinterpret_cast<__m512d>(b);
            return _mm512_add_ps(_mm512_castpd_ps(_mm512_mask_blend_pd(0xAA, x, y)),
                                 _mm512_castpd_ps(_mm512_shuffle_pd(x, y, 0x55)));
        };
        const __m512 first = pair(v[0], v[1]), second = pair(v[2], v[3]);
        fours[four] = _mm512_add_ps(_mm512_shuffle_ps(first, second, 0x88),
                                    _mm512_shuffle_ps(first, second, 0xDD));
    }
    Vector all() const {
        const auto halves = [](__m512 a, __m512 b) {
            return _mm512_add_ps(_mm512_mask_blend_ps(0xFF00, a, b),
                                 _mm512_shuffle_f32x4(a, b, 0x4E));
        };
        const __m512 low = halves(fours[0], fours[1]), high = halves(fours[2], fours[3]);
        return reinterpret_cast<Vector>(_mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x88),
                                                      _mm512_shuffle_f32x4(low, high, 0xDD)));
    }
#else
    Vector sums;

    void take(int four, const Vector* v) {
        for (int i = 0; i < 4; ++i) sums[4 * four + i] = sum(v[i]);
    }
    Vector all() const { return sums; }
#endif
};

}  // namespace

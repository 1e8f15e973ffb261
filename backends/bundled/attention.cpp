// Causal attention over packed documents, forward and backward, for training on a CPU.
//
// Tensors are bf16 outside and fp32 inside. One call does what takes torch a dozen passes over
// score matrices that are mostly masked: each document is attended to by itself, with rotation.
// Letters: L tokens of a document, D head size, H query heads, K key-value heads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

using Vec = float __attribute__((vector_size(64), aligned(64)));
using LooseVec = float __attribute__((vector_size(64), aligned(4)));
using Ints = int32_t __attribute__((vector_size(64)));
using Halves = uint16_t __attribute__((vector_size(32), aligned(2)));
constexpr int W = 16;  // fp32 lanes of a vector
constexpr int R = 8;   // queries that go through a document's keys together
constexpr float NEVER = -1e30f;

struct Shape {
    int64_t rows, length;
    int heads, kv_heads;
    int64_t stride() const { return heads + 2 * kv_heads; }  // heads of a token in qkv
};

inline Vec load(const float* p) { return *reinterpret_cast<const LooseVec*>(p); }
inline void store(float* p, Vec x) { *reinterpret_cast<LooseVec*>(p) = x; }

inline Vec widen(const uint16_t* p) {
    auto halves = *reinterpret_cast<const Halves*>(p);
    Ints bits = __builtin_convertvector(halves, Ints) << 16;
    return reinterpret_cast<Vec>(bits);
}

inline void narrow(uint16_t* p, Vec x) {  // round to nearest, ties to even
    auto bits = reinterpret_cast<Ints>(x);
    bits += 0x7FFF + ((bits >> 16) & 1);
    *reinterpret_cast<Halves*>(p) = __builtin_convertvector((bits >> 16) & 0xFFFF, Halves);
}

// e^x for x <= 0, relative error below 1e-6: a power of two times a polynomial.
inline Vec exp_negative(Vec x) {
    x = x < -87.0f ? Vec{} - 87.0f : x;
    const Vec t = x * 1.44269504f;
    const Ints whole = __builtin_convertvector(t - 0.5f, Ints);  // truncation, t <= 0: nearest
    const Vec f = (t - __builtin_convertvector(whole, Vec)) * 0.69314718f;
    Vec y = f * (1.0f / 5040) + 1.0f / 720;
    y = y * f + 1.0f / 120;
    y = y * f + 1.0f / 24;
    y = y * f + 1.0f / 6;
    y = y * f + 0.5f;
    y = y * f + 1.0f;
    y = y * f + 1.0f;
    return y * reinterpret_cast<Vec>((whole + 127) << 23);
}

inline float sum(Vec x) {
    float total = 0;
    for (int i = 0; i < W; i++) total += x[i];
    return total;
}

inline float largest(Vec x) {
    float top = x[0];
    for (int i = 1; i < W; i++) top = std::max(top, x[i]);
    return top;
}

// One head of a document, [L, D], read from or written to interleaved bf16.
template <int D>
void read_head(const uint16_t* from, int64_t stride, int length, float* to) {
    for (int t = 0; t < length; t++)
        for (int d = 0; d < D; d += W) store(to + t * D + d, widen(from + t * stride + d));
}

template <int D>
void write_head(const float* from, int64_t stride, int length, uint16_t* to) {
    for (int t = 0; t < length; t++)
        for (int d = 0; d < D; d += W) narrow(to + t * stride + d, load(from + t * D + d));
}

// Rotate [L, D] by position in place, half against half; `way` is 1, or -1 to turn back.
template <int D>
void rotate(float* x, int length, const float* cos, const float* sin, float way) {
    for (int t = 0; t < length; t++)
        for (int d = 0; d < D / 2; d++) {
            const float low = x[t * D + d], high = x[t * D + d + D / 2];
            const float c = cos[t * D + d], s = way * sin[t * D + d];
            x[t * D + d] = low * c - high * s;
            x[t * D + d + D / 2] = high * c + low * s;
        }
}

template <int D>
void transpose(const float* from, int length, int padded, float* to) {
    for (int d = 0; d < D; d++) {
        for (int t = 0; t < length; t++) to[d * padded + t] = from[t * D + d];
        for (int t = length; t < padded; t++) to[d * padded + t] = 0;
    }
}

// out[R, padded] = x[R, D] times columns[D, padded], for the first `width` columns.
template <int D>
void times_columns(const float* x, const float* columns, int padded, int width, float* out) {
    for (int j = 0; j < width; j += W) {
        Vec acc[R] = {};
        for (int d = 0; d < D; d++) {
            const Vec column = load(columns + d * padded + j);
            for (int r = 0; r < R; r++) acc[r] += x[r * D + d] * column;
        }
        for (int r = 0; r < R; r++) store(out + r * padded + j, acc[r]);
    }
}

// out[R, D] = shares[R, padded] times rows[width, D].
template <int D>
void times_rows(const float* shares, int padded, const float* rows, int width, float* out) {
    constexpr int HALF = R / 2;
    for (int first = 0; first < R; first += HALF) {
        Vec acc[HALF][D / W] = {};
        for (int j = 0; j < width; j++)
            for (int d = 0; d < D / W; d++) {
                const Vec row = load(rows + j * D + d * W);
                for (int r = 0; r < HALF; r++) acc[r][d] += shares[(first + r) * padded + j] * row;
            }
        for (int r = 0; r < HALF; r++)
            for (int d = 0; d < D / W; d++) store(out + (first + r) * D + d * W, acc[r][d]);
    }
}

// sums[width, D] += shares[R, padded] transposed times x[R, D]; width is a multiple of W.
template <int D>
void add_outer(const float* shares, int padded, const float* x, int width, float* sums) {
    constexpr int KEYS = 4;
    for (int j = 0; j < width; j += KEYS) {
        Vec acc[KEYS][D / W];
        for (int k = 0; k < KEYS; k++)
            for (int d = 0; d < D / W; d++) acc[k][d] = load(sums + (j + k) * D + d * W);
        for (int r = 0; r < R; r++)
            for (int d = 0; d < D / W; d++) {
                const Vec row = load(x + r * D + d * W);
                for (int k = 0; k < KEYS; k++) acc[k][d] += shares[r * padded + j + k] * row;
            }
        for (int k = 0; k < KEYS; k++)
            for (int d = 0; d < D / W; d++) store(sums + (j + k) * D + d * W, acc[k][d]);
    }
}

// Scratch of one document: everything fp32, rows padded so that whole blocks can be computed.
struct Scratch {
    std::vector<float> memory;
    float* next = nullptr;
    void reset(int64_t floats) {
        if (int64_t(memory.size()) < floats) memory.resize(floats);
        next = memory.data();
    }
    float* take(int64_t floats, bool zero = false) {
        float* taken = next;
        next += floats;
        if (zero) std::memset(taken, 0, floats * sizeof(float));
        return taken;
    }
};

inline int round_up(int x, int unit) { return (x + unit - 1) / unit * unit; }

template <int D>
void attend(const uint16_t* qkv, const Shape& s, const float* cos, const float* sin, int length,
            uint16_t* out, float* lse, Scratch& scratch) {
    const int64_t stride = s.stride() * D, out_stride = int64_t(s.heads) * D;
    const int padded = round_up(length, W), groups = s.heads / s.kv_heads;
    const float scale = 1.0f / std::sqrt(float(D));
    scratch.reset(int64_t(5 * D + R) * (padded + W));
    float *q = scratch.take(int64_t(padded) * D), *k = scratch.take(int64_t(padded) * D),
          *v = scratch.take(int64_t(padded) * D), *columns = scratch.take(int64_t(padded) * D),
          *scores = scratch.take(int64_t(R) * padded), *mixed = scratch.take(R * D);
    for (int kv = 0; kv < s.kv_heads; kv++) {
        read_head<D>(qkv + (s.heads + kv) * D, stride, length, k);
        read_head<D>(qkv + (s.heads + s.kv_heads + kv) * D, stride, length, v);
        std::memset(v + length * D, 0, (padded - length) * D * sizeof(float));
        rotate<D>(k, length, cos, sin, 1);
        transpose<D>(k, length, padded, columns);
        for (int h = kv * groups; h < (kv + 1) * groups; h++) {
            read_head<D>(qkv + h * D, stride, length, q);
            rotate<D>(q, length, cos, sin, 1);
            std::memset(q + length * D, 0, (padded - length) * D * sizeof(float));
            for (int i = 0; i < length; i += R) {
                const int rows = std::min(R, length - i), width = round_up(i + rows, W);
                times_columns<D>(q + i * D, columns, padded, width, scores);
                float totals[R];
                for (int r = 0; r < R; r++) {
                    float* row = scores + r * padded;
                    Vec top = Vec{} + NEVER, total = {};
                    for (int j = i + r + 1; j < width; j++) row[j] = NEVER;
                    for (int j = 0; j < width; j += W) {
                        const Vec x = load(row + j);
                        top = x > top ? x : top;
                    }
                    const float most = largest(top);
                    for (int j = 0; j < width; j += W) {
                        const Vec share = exp_negative((load(row + j) - most) * scale);
                        total += share;
                        store(row + j, share);
                    }
                    totals[r] = sum(total);
                    if (r < rows) lse[(i + r) * s.heads + h] = most * scale + std::log(totals[r]);
                }
                times_rows<D>(scores, padded, v, width, mixed);
                for (int r = 0; r < rows; r++)
                    for (int d = 0; d < D; d += W)
                        narrow(out + (i + r) * out_stride + h * D + d,
                               load(mixed + r * D + d) * (1.0f / totals[r]));
            }
        }
    }
}

template <int D>
void attend_back(const uint16_t* qkv, const uint16_t* d_out, const float* lse, const Shape& s,
                 const float* cos, const float* sin, int length, uint16_t* d_qkv,
                 Scratch& scratch) {
    const int64_t stride = s.stride() * D, out_stride = int64_t(s.heads) * D;
    const int padded = round_up(length, W), groups = s.heads / s.kv_heads;
    const int64_t head = int64_t(padded) * D;
    const float scale = 1.0f / std::sqrt(float(D));
    scratch.reset(int64_t(9 * D + 2 * R) * (padded + W));
    float *q = scratch.take(head), *k = scratch.take(head), *v = scratch.take(head),
          *keys = scratch.take(head), *values = scratch.take(head), *d_mixed = scratch.take(head),
          *d_q = scratch.take(head), *d_k = scratch.take(head), *d_v = scratch.take(head),
          *shares = scratch.take(int64_t(R) * padded), *d_scores = scratch.take(int64_t(R) * padded);
    for (int kv = 0; kv < s.kv_heads; kv++) {
        read_head<D>(qkv + (s.heads + kv) * D, stride, length, k);
        read_head<D>(qkv + (s.heads + s.kv_heads + kv) * D, stride, length, v);
        rotate<D>(k, length, cos, sin, 1);
        std::memset(k + length * D, 0, (padded - length) * D * sizeof(float));
        transpose<D>(k, length, padded, keys);
        transpose<D>(v, length, padded, values);
        std::memset(d_k, 0, head * sizeof(float));
        std::memset(d_v, 0, head * sizeof(float));
        for (int h = kv * groups; h < (kv + 1) * groups; h++) {
            read_head<D>(qkv + h * D, stride, length, q);
            read_head<D>(d_out + h * D, out_stride, length, d_mixed);
            rotate<D>(q, length, cos, sin, 1);
            std::memset(q + length * D, 0, (padded - length) * D * sizeof(float));
            std::memset(d_mixed + length * D, 0, (padded - length) * D * sizeof(float));
            for (int i = 0; i < length; i += R) {
                const int rows = std::min(R, length - i), width = round_up(i + rows, W);
                times_columns<D>(q + i * D, keys, padded, width, shares);
                times_columns<D>(d_mixed + i * D, values, padded, width, d_scores);
                for (int r = 0; r < R; r++) {
                    float *share = shares + r * padded, *d_score = d_scores + r * padded;
                    const float total = r < rows ? lse[(i + r) * s.heads + h] : 0.0f;
                    for (int j = i + r + 1; j < width; j++) share[j] = NEVER;
                    Vec delta = {};
                    for (int j = 0; j < width; j += W) {
                        const Vec p = exp_negative(load(share + j) * scale - total);
                        delta += p * load(d_score + j);
                        store(share + j, p);
                    }
                    const float mean = sum(delta);
                    for (int j = 0; j < width; j += W)
                        store(d_score + j, load(share + j) * (load(d_score + j) - mean) * scale);
                }
                times_rows<D>(d_scores, padded, k, width, d_q + i * D);
                add_outer<D>(d_scores, padded, q + i * D, width, d_k);
                add_outer<D>(shares, padded, d_mixed + i * D, width, d_v);
            }
            rotate<D>(d_q, length, cos, sin, -1);
            write_head<D>(d_q, stride, length, d_qkv + h * D);
        }
        rotate<D>(d_k, length, cos, sin, -1);
        write_head<D>(d_k, stride, length, d_qkv + (s.heads + kv) * D);
        write_head<D>(d_v, stride, length, d_qkv + (s.heads + s.kv_heads + kv) * D);
    }
}

// Call `work(first token, tokens, position, scratch)` for every document of every row.
template <typename Work>
void for_documents(const int64_t* documents, const Shape& s, int threads, Work work) {
    auto part = [&](int64_t first, int64_t last) {
        Scratch scratch;
        for (int64_t row = first; row < last; row++)
            for (int64_t begin = 0, end; begin < s.length; begin = end) {
                const int64_t* here = documents + row * s.length;
                for (end = begin + 1; end < s.length && here[end] == here[begin];) end++;
                work(row * s.length + begin, int(end - begin), begin, scratch);
            }
    };
    std::vector<std::thread> others;
    const int64_t each = (s.rows + threads - 1) / threads;
    for (int64_t first = each; first < s.rows; first += each)
        others.emplace_back(part, first, std::min(s.rows, first + each));
    part(0, std::min(s.rows, each));
    for (auto& other : others) other.join();
}

template <int D>
void forward(const uint16_t* qkv, const float* cos, const float* sin, const int64_t* documents,
             const Shape& s, int threads, uint16_t* out, float* lse) {
    for_documents(documents, s, threads, [=](int64_t token, int length, int64_t at, Scratch& x) {
        attend<D>(qkv + token * s.stride() * D, s, cos + at * D, sin + at * D, length,
                  out + token * s.heads * D, lse + token * s.heads, x);
    });
}

template <int D>
void backward(const uint16_t* qkv, const uint16_t* d_out, const float* lse, const float* cos,
              const float* sin, const int64_t* documents, const Shape& s, int threads,
              uint16_t* d_qkv) {
    for_documents(documents, s, threads, [=](int64_t token, int length, int64_t at, Scratch& x) {
        attend_back<D>(qkv + token * s.stride() * D, d_out + token * s.heads * D,
                       lse + token * s.heads, s, cos + at * D, sin + at * D, length,
                       d_qkv + token * s.stride() * D, x);
    });
}

}  // namespace

extern "C" void attention_forward(const uint16_t* qkv, const float* cos, const float* sin,
                                  const int64_t* documents, uint16_t* out, float* lse,
                                  int64_t rows, int64_t length, int heads, int kv_heads, int size,
                                  int threads) {
    const Shape s{rows, length, heads, kv_heads};
    auto run = size == 64 ? forward<64> : size == 32 ? forward<32> : forward<16>;
    run(qkv, cos, sin, documents, s, threads, out, lse);
}

extern "C" void attention_backward(const uint16_t* qkv, const uint16_t* d_out, const float* lse,
                                   const float* cos, const float* sin, const int64_t* documents,
                                   uint16_t* d_qkv, int64_t rows, int64_t length, int heads,
                                   int kv_heads, int size, int threads) {
    const Shape s{rows, length, heads, kv_heads};
    auto run = size == 64 ? backward<64> : size == 32 ? backward<32> : backward<16>;
    run(qkv, d_out, lse, cos, sin, documents, s, threads, d_qkv);
}

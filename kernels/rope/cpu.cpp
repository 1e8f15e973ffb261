// Rotary embedding of pairs half a head apart.

namespace {

SAME_BITS void rotate(const float* x, int64_t head_stride, float* out, const float* cos,
                      const float* sin, int heads, int half) {
    for (int64_t head = 0; head < heads; ++head) {
        const float* first = x + head * head_stride;
        const float* second = first + half;
        float* to = out + head * 2 * half;
#pragma omp simd
        for (int i = 0; i < half; ++i) {
            to[i] = first[i] * cos[i] - second[i] * sin[i];
            to[half + i] = second[i] * cos[i] + first[i] * sin[i];
        }
    }
}

}  // namespace

extern "C" int rope_f32(const float* q, const float* k, float* q_out, float* k_out,
                        const float* cos_sin_cache, const int64_t* positions, int64_t num_positions,
                        int tokens, int query_heads, int kv_heads, int dim, int64_t q_token_stride,
                        int64_t q_head_stride, int64_t k_token_stride, int64_t k_head_stride) {
    for (int64_t token = 0; token < tokens; ++token) {
        const int64_t position = positions[token];
        if (position < 0 || position >= num_positions) return OUT_OF_RANGE;
        const float* cos = cos_sin_cache + position * dim;
        const float* sin = cos + dim / 2;
        rotate(q + token * q_token_stride, q_head_stride, q_out + token * query_heads * dim, cos,
               sin, query_heads, dim / 2);
        rotate(k + token * k_token_stride, k_head_stride, k_out + token * kv_heads * dim, cos, sin,
               kv_heads, dim / 2);
    }
    return OK;
}

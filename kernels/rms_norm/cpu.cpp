// RMS norm; with a residual, the sum of both is written to new_residual and normed.

namespace {

inline void add_row(const float* a, const float* b, float* out, int count) {
#pragma omp simd
    for (int i = 0; i < count; ++i) out[i] = a[i] + b[i];
}

SAME_BITS void norm_row(const float* values, const float* weight, float* out, float eps,
                        int hidden) {
    float square_sum = 0;
#pragma omp simd reduction(+ : square_sum)
    for (int i = 0; i < hidden; ++i) square_sum += values[i] * values[i];
    const float inverse = 1.0f / std::sqrt(square_sum / hidden + eps);
#pragma omp simd
    for (int i = 0; i < hidden; ++i) out[i] = values[i] * inverse * weight[i];
}

}  // namespace

extern "C" int rms_norm_f32(const float* x, const float* residual, const float* weight, float* out,
                            float* new_residual, float eps, int rows, int hidden) {
    for (int64_t row = 0; row < rows; ++row) {
        const float* values = x + row * hidden;
        if (residual) {
            float* sums = new_residual + row * hidden;
            add_row(values, residual + row * hidden, sums, hidden);
            values = sums;
        }
        norm_row(values, weight, out + row * hidden, eps, hidden);
    }
    return OK;
}

// RMS norm; with a residual, the sum of both is written to new_residual and normed.

extern "C" int rms_norm_f32(const float* x, const float* residual, const float* weight, float* out,
                            float* new_residual, float eps, int rows, int hidden) {
    for (int64_t row = 0; row < rows; ++row) {
        const float* values = x + row * hidden;
        if (residual) {
            const float* added = residual + row * hidden;
            float* sums = new_residual + row * hidden;
#pragma omp simd
            for (int i = 0; i < hidden; ++i) sums[i] = values[i] + added[i];
            values = sums;
        }
        float square_sum = 0;
#pragma omp simd reduction(+ : square_sum)
        for (int i = 0; i < hidden; ++i) square_sum += values[i] * values[i];
        const float inverse = 1.0f / std::sqrt(square_sum / hidden + eps);
        float* normed = out + row * hidden;
#pragma omp simd
        for (int i = 0; i < hidden; ++i) normed[i] = values[i] * inverse * weight[i];
    }
    return OK;
}

// Int8 weights times fp32 activations: bytes become floats in registers, ROWS by CHANNELS at a time.

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
void multiply_rows(const float* x, const int8_t* weight, const float* scale,
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

extern "C" int quant_linear_f32(const float* x, const int8_t* weight, const float* scale,
                                const float* bias, float* out, int rows, int channels,
                                int inputs, int threads) {
    constexpr int BLOCK = 4;
    const int blocks = (channels + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int block = 0; block < blocks; ++block) {
        const int channel = block * BLOCK;
        const int8_t* first = weight + static_cast<int64_t>(channel) * inputs;
        if (channel + BLOCK <= channels) {
            multiply_rows<BLOCK>(x, first, scale + channel, bias ? bias + channel : bias,
                                 out + channel, channels, rows, inputs);
            continue;
        }
        for (int c = channel; c < channels; ++c) {
            multiply_rows<1>(x, weight + static_cast<int64_t>(c) * inputs, scale + c,
                             bias ? bias + c : bias, out + c, channels, rows, inputs);
        }
    }
    return OK;
}

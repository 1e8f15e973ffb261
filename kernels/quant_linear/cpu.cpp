// Int8 weights times fp32 activations: bytes become floats in registers, a block at a time.

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

namespace {

// Channels that lie side by side in a packed weight: whole vectors, without sums across lanes.
constexpr int PACKED_CHANNELS = 32;
constexpr int PACKED_VECTORS = PACKED_CHANNELS / LANES;

template <int ROWS>
void multiply_packed(const float* x, const int8_t* weight, const float* scale, const float* bias,
                     float* out, int channels, int out_stride, int inputs) {
    Vector totals[ROWS][PACKED_VECTORS] = {};
    for (int64_t k = 0; k < inputs; ++k) {
        Vector weights[PACKED_VECTORS];
        for (int v = 0; v < PACKED_VECTORS; ++v) {
            weights[v] = load_bytes(weight + k * PACKED_CHANNELS + v * LANES);
        }
        for (int64_t row = 0; row < ROWS; ++row) {
            const float value = x[row * inputs + k];
            for (int v = 0; v < PACKED_VECTORS; ++v) totals[row][v] += value * weights[v];
        }
    }
    for (int64_t row = 0; row < ROWS; ++row) {
        for (int v = 0; v < PACKED_VECTORS; ++v) {
            const int first = v * LANES, count = std::min(LANES, channels - first);
            float* to = out + row * out_stride + first;
            if (count == LANES) {
                const Vector offset = bias ? load(bias + first) : Vector{};
                store(to, totals[row][v] * load(scale + first) + offset);
            } else if (count > 0) {
                const Vector offset = bias ? load_some(bias + first, count, 0.0f) : Vector{};
                const Vector scales = load_some(scale + first, count, 0.0f);
                store_some(to, totals[row][v] * scales + offset, count);
            }
        }
    }
}

}  // namespace

// weight: [ceil(channels / 32), inputs, 32], zeros past the last channel.
extern "C" int quant_linear_packed_f32(const float* x, const int8_t* weight, const float* scale,
                                       const float* bias, float* out, int rows, int channels,
                                       int inputs, int threads) {
    const int blocks = (channels + PACKED_CHANNELS - 1) / PACKED_CHANNELS;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int block = 0; block < blocks; ++block) {
        const int first = block * PACKED_CHANNELS;
        const int count = std::min(PACKED_CHANNELS, channels - first);
        const int8_t* from = weight + static_cast<int64_t>(first) * inputs;
        int64_t row = 0;
        const auto run = [&](auto multiply, int together) {
            for (; row + together <= rows; row += together) {
                multiply(x + row * inputs, from, scale + first, bias ? bias + first : bias,
                         out + row * channels + first, count, channels, inputs);
            }
        };
        // As many rows at a time as there are registers for their totals.
        if (LANES == 16) run(multiply_packed<8>, 8);
        if (LANES == 16) run(multiply_packed<4>, 4);
        run(multiply_packed<2>, 2);
        run(multiply_packed<1>, 1);
    }
    return OK;
}

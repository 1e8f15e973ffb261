// A mixture of experts: each expert's weights are read once for all the rows that chose it.
//
// A slot is one of a token's choices. A number is one dot product in one order, whatever other rows
// its expert has.

namespace {

constexpr int EXPERT_CHANNELS = 32;  // of a task
constexpr int DOT_CHANNELS = 4;      // that share the rows read
constexpr int DOT_ROWS = LANES == 16 ? 4 : 2;

// Slots in the order of their experts: those of expert e are order[starts[e], starts[e + 1]).
struct ByExpert {
    std::vector<int> starts, order, used;
};

bool sort_slots(const int32_t* experts, int slots, int count, ByExpert& sorted) {
    sorted.starts.assign(count + 1, 0);
    sorted.used.clear();
    for (int slot = 0; slot < slots; ++slot) {
        if (experts[slot] < 0 || experts[slot] >= count) return false;
        ++sorted.starts[experts[slot] + 1];
    }
    for (int expert = 0; expert < count; ++expert) {
        if (sorted.starts[expert + 1]) sorted.used.push_back(expert);
        sorted.starts[expert + 1] += sorted.starts[expert];
    }
    std::vector<int> next(sorted.starts.begin(), sorted.starts.end() - 1);
    sorted.order.resize(slots);
    for (int slot = 0; slot < slots; ++slot) sorted.order[next[experts[slot]]++] = slot;
    return true;
}

// ROWS rows times CHANNELS channels of a weight [.., inputs].
template <int ROWS, int CHANNELS>
inline void dot_block(const float* const* rows, const float* weight, int inputs,
                      float (&to)[ROWS][CHANNELS]) {
    Vector totals[ROWS][CHANNELS] = {};
    const auto add = [&](auto read, int i) {
        Vector values[ROWS];
        for (int row = 0; row < ROWS; ++row) values[row] = read(rows[row] + i);
        for (int channel = 0; channel < CHANNELS; ++channel) {
            const Vector weights = read(weight + int64_t{channel} * inputs + i);
            for (int row = 0; row < ROWS; ++row) totals[row][channel] += values[row] * weights;
        }
    };
    int i = 0;
    for (; i + LANES <= inputs; i += LANES) add(load, i);
    const int rest = inputs - i;
    if (rest) add([&](const float* from) { return load_some(from, rest, 0.0f); }, i);
    for (int row = 0; row < ROWS; ++row)
        for (int channel = 0; channel < CHANNELS; ++channel)
            to[row][channel] = sum(totals[row][channel]);
}

// Channels [channel, last) for all rows of one expert: row_of(slot) is multiplied, write(slot,
// channel, number) takes the result.
template <class RowOf, class Write>
void multiply_expert(const int* slots, int count, const float* weight, int inputs, int channel,
                     int last, const RowOf& row_of, const Write& write) {
    const auto run = [&](auto channels) {
        constexpr int CHANNELS = decltype(channels)::value;
        const float* from = weight + int64_t{channel} * inputs;
        const auto run_rows = [&](int first, auto together) {
            constexpr int ROWS = decltype(together)::value;
            const float* rows[ROWS];
            float numbers[ROWS][CHANNELS];
            for (int row = 0; row < ROWS; ++row) rows[row] = row_of(slots[first + row]);
            dot_block(rows, from, inputs, numbers);
            for (int row = 0; row < ROWS; ++row)
                for (int c = 0; c < CHANNELS; ++c)
                    write(slots[first + row], channel + c, numbers[row][c]);
        };
        int first = 0;
        for (; first + DOT_ROWS <= count; first += DOT_ROWS)
            run_rows(first, std::integral_constant<int, DOT_ROWS>{});
        for (; first < count; ++first) run_rows(first, std::integral_constant<int, 1>{});
        channel += CHANNELS;
    };
    while (channel + DOT_CHANNELS <= last) run(std::integral_constant<int, DOT_CHANNELS>{});
    while (channel < last) run(std::integral_constant<int, 1>{});
}

// A product of every slot with its expert's weight [experts, channels, inputs].
template <class RowOf, class Write>
void multiply_experts(Team& team, const ByExpert& sorted, const float* weights, int channels,
                      int inputs, const RowOf& row_of, const Write& write) {
    const int shares = (channels + EXPERT_CHANNELS - 1) / EXPERT_CHANNELS;
    team.each(static_cast<int>(sorted.used.size()) * shares, [&](int task) {
        const int expert = sorted.used[task / shares];
        const int first = task % shares * EXPERT_CHANNELS, start = sorted.starts[expert];
        multiply_expert(sorted.order.data() + start, sorted.starts[expert + 1] - start,
                        weights + int64_t{expert} * channels * inputs, inputs, first,
                        std::min(first + EXPERT_CHANNELS, channels), row_of, write);
    });
}

}  // namespace

// x [tokens, hidden] of rows that may lie apart; gate_up [count, 2 * features, hidden]; down [count,
// hidden, features]; weights, experts [tokens, chosen] -> out [tokens, hidden].
extern "C" int expert_mlp_f32(const float* x, const float* gate_up, const float* down,
                              const float* weights, const int32_t* experts, float* out,
                              int64_t x_stride, int tokens, int chosen, int count, int hidden,
                              int features, int threads) {
    static thread_local ByExpert by_expert;
    static thread_local std::vector<float> memory;
    const int slots = tokens * chosen;
    if (!sort_slots(experts, slots, count, by_expert)) return OUT_OF_RANGE;
    make_room(memory, int64_t{slots} * (3 * features + hidden));
    const ByExpert& sorted = by_expert;  // The caller's, not each helper's own.
    float* both = memory.data();
    float* middle = both + int64_t{slots} * 2 * features;
    float* parts = middle + int64_t{slots} * features;
    pool().run(threads, 4, [&](Team& team) {
        multiply_experts(
            team, sorted, gate_up, 2 * features, hidden,
            [&](int slot) { return x + slot / chosen * x_stride; },
            [&](int slot, int channel, float number) {
                both[int64_t{slot} * 2 * features + channel] = number;
            });
        each_row(team, slots, [&](int slot) {
            const float* gate = both + int64_t{slot} * 2 * features;
            gated_mul_row<silu>(gate, gate + features, middle + int64_t{slot} * features, features);
        });
        multiply_experts(
            team, sorted, down, hidden, features,
            [&](int slot) { return middle + int64_t{slot} * features; },
            [&](int slot, int channel, float number) {
                parts[int64_t{slot} * hidden + channel] = number * weights[slot];
            });
        each_row(team, tokens, [&](int token) {
            float* to = out + int64_t{token} * hidden;
            const float* part = parts + int64_t{token} * chosen * hidden;
            std::copy_n(part, hidden, to);
            for (int place = 1; place < chosen; ++place)
                add_row(part + int64_t{place} * hidden, to, to, hidden);
        });
    });
    return OK;
}

// logits [tokens, count] -> weights, experts [tokens, chosen]: the likeliest, the first of equals.
extern "C" int route_experts_f32(const float* logits, float* weights, int32_t* experts, int tokens,
                                 int count, int chosen, int renormalise) {
    std::vector<float> likelihood(count);
    for (int64_t token = 0; token < tokens; ++token) {
        const float* row = logits + token * count;
        const float most = *std::max_element(row, row + count);
        float total = 0.0f, kept = 0.0f;
        for (int expert = 0; expert < count; ++expert)
            total += likelihood[expert] = std::exp(row[expert] - most);
        for (int place = 0; place < chosen; ++place) {
            int best = -1;  // Taken ones are below zero; of NaNs the first counts.
            for (int expert = 0; expert < count; ++expert)
                if (!(likelihood[expert] < 0.0f) &&
                    (best < 0 || likelihood[expert] > likelihood[best]))
                    best = expert;
            experts[token * chosen + place] = best;
            kept += weights[token * chosen + place] = likelihood[best];
            likelihood[best] = -1.0f;
        }
        for (int place = 0; place < chosen; ++place)
            weights[token * chosen + place] /= renormalise ? kept : total;
    }
    return OK;
}

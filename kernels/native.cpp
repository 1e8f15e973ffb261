// The C++ paths of the ops, as one translation unit; native.py builds and loads it.
//
// Everything is fp32. Each result depends on its own row only, in one fixed order of additions:
// a sequence answers the same, bit for bit, alone and in any batch, with any number of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <new>
#include <vector>

#include "threads.h"
#include "vector.h"

namespace {

// Outcomes that Python turns into errors.
constexpr int OK = 0;
constexpr int OUT_OF_RANGE = 1;

// Seconds of the fastest of several calls: the thread's own, which a busy machine does not lengthen.
template <class Body>
double best_of(int repeats, const Body& body) {
    const auto now = [] {
        timespec time;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
        return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
    };
    double best = 1e9;
    for (int repeat = 0; repeat < repeats; ++repeat) {
        const double began = now();
        body();
        best = std::min(best, now() - began);
    }
    return best;
}

inline uint8_t* aligned(uint8_t* memory) {
    return memory + (64 - reinterpret_cast<uintptr_t>(memory) % 64) % 64;
}

}  // namespace

#include "cache.h"
#include "paged_attention/cpu.cpp"
#include "quant_linear/cpu.cpp"
#include "group_quant_linear/cpu.cpp"
#include "packed_linear/cpu.cpp"
#include "rms_norm/cpu.cpp"
#include "rope/cpu.cpp"
#include "gated_mul/cpu.cpp"
#include "store_kv/cpu.cpp"

// After the ops that it is made of.
#include "decoder/cpu.cpp"
#include "lora/cpu.cpp"
#include "moe/cpu.cpp"

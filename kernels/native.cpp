// The C++ paths of the ops, as one translation unit; native.py builds and loads it.
//
// Everything is fp32. Each result depends on its own row only, in one fixed order of additions:
// a sequence answers the same, bit for bit, alone and in any batch, with any number of threads.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "threads.h"
#include "vector.h"

namespace {

// Outcomes that Python turns into errors.
constexpr int OK = 0;
constexpr int OUT_OF_RANGE = 1;

}  // namespace

#include "cache.h"
#include "paged_attention/cpu.cpp"
#include "quant_linear/cpu.cpp"
#include "int4_linear/cpu.cpp"
#include "packed_linear/cpu.cpp"
#include "rms_norm/cpu.cpp"
#include "rope/cpu.cpp"
#include "silu_mul/cpu.cpp"
#include "store_kv/cpu.cpp"

// After the ops that it is made of.
#include "decoder/cpu.cpp"

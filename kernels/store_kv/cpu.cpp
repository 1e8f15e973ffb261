// Copies of rows into cache slots; slot -1 is skipped.

extern "C" int store_kv_f32(const float* k, const float* v, float* k_cache, float* v_cache,
                            const int64_t* slots, int64_t num_slots, int tokens, int row,
                            int64_t k_stride, int64_t v_stride) {
    for (int64_t token = 0; token < tokens; ++token) {
        const int64_t slot = slots[token];
        if (slot >= num_slots) return OUT_OF_RANGE;
        if (slot < 0) continue;
        std::copy_n(k + token * k_stride, row, k_cache + slot * row);
        std::copy_n(v + token * v_stride, row, v_cache + slot * row);
    }
    return OK;
}

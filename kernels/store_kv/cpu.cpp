// Keys and values into cache slots, in the cache's dtype; slot -1 is skipped.

extern "C" int store_kv_f32(const float* k, const float* v, const CacheHalf* keys,
                            const CacheHalf* values, const CacheShape* shape, const int64_t* slots,
                            int tokens, int64_t k_stride, int64_t v_stride) {
    for (int64_t token = 0; token < tokens; ++token) {
        const int64_t slot = slots[token];
        if (slot >= shape->slots()) return OUT_OF_RANGE;
        if (slot < 0) continue;
        write_slot(*keys, *shape, slot, k + token * k_stride);
        write_slot(*values, *shape, slot, v + token * v_stride);
    }
    return OK;
}

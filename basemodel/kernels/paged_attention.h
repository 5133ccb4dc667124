// Attention of each token over its request's keys and values, which lie scattered over the slots of a cache.
//
// Letters: T tokens, A heads, G key-value heads, D head size (a multiple of 32), S slots of the cache.
#pragma once
#include <cstdint>

namespace loraplex {

constexpr int64_t HEAD_STEP = 32;      // head sizes are multiples of this
constexpr int64_t MOST_SHARING = 8;    // heads of one key-value head that are computed together

struct AttentionInput {
    const uint16_t *query;   // [T, A, D] bf16
    const uint16_t *keys;    // [S, G, D] bf16
    const uint16_t *values;  // [S, G, D] bf16
    const int64_t *slots;    // the slots of all positions of all requests, one request after the other
    const int64_t *starts;   // [T] where the token's request begins in `slots`
    const int64_t *lengths;  // [T] positions that the token sees: its own is the last
    int64_t heads, key_value_heads, head_size;
    float scaling;
    int64_t window;          // positions that are seen at most; 0: all
    float softcap;           // scores are capped smoothly at +- this; 0: not
};

// Output [T, A, D] bf16 of one token and one key-value head. `scratch` has MOST_SHARING * lengths[token] floats.
void attend(const AttentionInput &input, int64_t token, int64_t key_value_head, float *scratch, uint16_t *output);

} // namespace loraplex

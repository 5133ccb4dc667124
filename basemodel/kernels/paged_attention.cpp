// Compiled for processors with AVX512-BF16; called only where `is_supported` (tiles.h) says so.
//
// Scores, their exponentials and the weighted sum run over the positions in their order, in float: a token's result
// depends on nothing but its own request, however the batch and the chunks of its prompt were cut.
#include "paged_attention.h"
#include "vector_math.h"

#include <algorithm>
#include <cmath>
#include <immintrin.h>

namespace loraplex {
namespace {

inline __m512bh load_pairs(const uint16_t *values) {
    return (__m512bh)_mm512_loadu_si512(reinterpret_cast<const void *>(values));
}

// scores[h][position - first] for `count` heads.
template <int count>
void score(const AttentionInput &in, const uint16_t *query, int64_t key_value_head, const int64_t *slots,
           int64_t first, int64_t length, float *scores) {
    for (int64_t position = first; position < length; position++) {
        const uint16_t *key = in.keys + (slots[position] * in.key_value_heads + key_value_head) * in.head_size;
        __m512 sums[count];
        for (int head = 0; head < count; head++)
            sums[head] = _mm512_setzero_ps();
        for (int64_t d = 0; d < in.head_size; d += HEAD_STEP) {
            const __m512bh pairs = load_pairs(key + d);
            for (int head = 0; head < count; head++)
                sums[head] = _mm512_dpbf16_ps(sums[head], load_pairs(query + head * in.head_size + d), pairs);
        }
        for (int head = 0; head < count; head++)
            scores[head * (length - first) + position - first] = _mm512_reduce_add_ps(sums[head]);
    }
}

// Scores to weights e^(score - largest), in place; returns their sum.
float to_weights(float *scores, int64_t size, float scaling, float softcap) {
    float largest = -INFINITY;
    for (int64_t i = 0; i < size; i++) {
        scores[i] *= scaling;
        if (softcap > 0)
            scores[i] = softcap * std::tanh(scores[i] / softcap);
        largest = std::max(largest, scores[i]);
    }
    __m512 sums = _mm512_setzero_ps();
    for (int64_t i = 0; i < size; i += 16) {
        const __mmask16 mask = size - i < 16 ? static_cast<__mmask16>((1u << (size - i)) - 1) : 0xffff;
        const __m512 weight =
            exponential(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, scores + i), _mm512_set1_ps(largest)));
        _mm512_mask_storeu_ps(scores + i, mask, weight);
        sums = _mm512_mask_add_ps(sums, mask, sums, weight);
    }
    return _mm512_reduce_add_ps(sums);
}

// output [count heads, D] = sum over positions of weight * value / sum of weights.
template <int count>
void weigh(const AttentionInput &in, int64_t key_value_head, const int64_t *slots, int64_t first, int64_t length,
           const float *weights, const float *sums, uint16_t *output) {
    for (int64_t d = 0; d < in.head_size; d += HEAD_STEP) {
        __m512 low[count], high[count];
        for (int head = 0; head < count; head++)
            low[head] = high[head] = _mm512_setzero_ps();
        for (int64_t position = first; position < length; position++) {
            const uint16_t *value =
                in.values + (slots[position] * in.key_value_heads + key_value_head) * in.head_size + d;
            const __m512 v0 = widen(value), v1 = widen(value + 16);
            for (int head = 0; head < count; head++) {
                const __m512 weight = _mm512_set1_ps(weights[head * (length - first) + position - first]);
                low[head] = _mm512_fmadd_ps(weight, v0, low[head]);
                high[head] = _mm512_fmadd_ps(weight, v1, high[head]);
            }
        }
        for (int head = 0; head < count; head++) {
            const __m512 scale = _mm512_set1_ps(1.0f / sums[head]);
            uint16_t *target = output + head * in.head_size + d;
            _mm256_storeu_si256(reinterpret_cast<__m256i *>(target),
                                (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(low[head], scale)));
            _mm256_storeu_si256(reinterpret_cast<__m256i *>(target + 16),
                                (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(high[head], scale)));
        }
    }
}

template <int count>
void attend_heads(const AttentionInput &in, int64_t token, int64_t key_value_head, int64_t head, float *scratch,
                  uint16_t *output) {
    const int64_t length = in.lengths[token];
    const int64_t first = in.window > 0 ? std::max<int64_t>(0, length - in.window) : 0;
    const int64_t *slots = in.slots + in.starts[token];
    const int64_t at = (token * in.heads + head) * in.head_size;
    score<count>(in, in.query + at, key_value_head, slots, first, length, scratch);
    float sums[count];
    for (int index = 0; index < count; index++)
        sums[index] = to_weights(scratch + index * (length - first), length - first, in.scaling, in.softcap);
    weigh<count>(in, key_value_head, slots, first, length, scratch, sums, output + at);
}

} // namespace

void attend(const AttentionInput &in, int64_t token, int64_t key_value_head, float *scratch, uint16_t *output) {
    const int64_t sharing = in.heads / in.key_value_heads;
    int64_t head = key_value_head * sharing;
    for (int64_t left = sharing; left > 0;) {
        const int64_t count = std::min(left, MOST_SHARING);
        switch (count) {
        case 1: attend_heads<1>(in, token, key_value_head, head, scratch, output); break;
        case 2: attend_heads<2>(in, token, key_value_head, head, scratch, output); break;
        case 3: attend_heads<3>(in, token, key_value_head, head, scratch, output); break;
        case 4: attend_heads<4>(in, token, key_value_head, head, scratch, output); break;
        case 5: attend_heads<5>(in, token, key_value_head, head, scratch, output); break;
        case 6: attend_heads<6>(in, token, key_value_head, head, scratch, output); break;
        case 7: attend_heads<7>(in, token, key_value_head, head, scratch, output); break;
        default: attend_heads<8>(in, token, key_value_head, head, scratch, output);
        }
        head += count;
        left -= count;
    }
}

} // namespace loraplex

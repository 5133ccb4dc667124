// Compiled for processors with AVX512-BF16; called only where `is_supported` (tiles.h) says so.
#include "row_math.h"
#include "vector_math.h"

#include <cmath>

namespace loraplex {
namespace {

inline __m512 load(const uint16_t *values, __mmask16 mask) { return widen(_mm256_maskz_loadu_epi16(mask, values)); }

inline void store(uint16_t *values, __mmask16 mask, __m512 value) {
    _mm256_mask_storeu_epi16(values, mask, narrow(value));
}

// x / (1 + e^-u): SiLU with u = x; GELU by its tanh approximation with u = 2 sqrt(2 / pi) (x + 0.044715 x^3), because
// (1 + tanh(u / 2)) / 2 = 1 / (1 + e^-u).
inline __m512 activate(__m512 x, Activation activation) {
    __m512 u = x;
    if (activation == Activation::gelu_tanh) {
        const __m512 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
        u = _mm512_mul_ps(_mm512_fmadd_ps(cube, _mm512_set1_ps(0.044715f), x), _mm512_set1_ps(1.5957691216057308f));
    }
    const __m512 one = _mm512_set1_ps(1.0f);
    return _mm512_div_ps(x, _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), u))));
}

} // namespace

void rms_norm(const uint16_t *x, const uint16_t *weight, int64_t size, float epsilon, Scaling scaling, uint16_t *y) {
    __m512 sums[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int64_t i = 0; i < size; i += 64) {
#pragma GCC unroll 4
        for (int lane = 0; lane < 4; lane++) {
            const __m512 value = load(x + i + 16 * lane, first_lanes(size - i - 16 * lane));
            sums[lane] = _mm512_fmadd_ps(value, value, sums[lane]);
        }
    }
    const __m512 pairs = _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
    const float mean = _mm512_reduce_add_ps(pairs) / static_cast<float>(size);
    const __m512 factor = _mm512_set1_ps(1.0f / std::sqrt(mean + epsilon));
    for (int64_t i = 0; i < size; i += 16) {
        const __mmask16 mask = first_lanes(size - i);
        const __m512 normal = _mm512_mul_ps(load(x + i, mask), factor), scale = load(weight + i, mask);
        store(y + i, mask,
              scaling == Scaling::rounded ? _mm512_mul_ps(rounded(normal), scale)
                                          : _mm512_mul_ps(normal, _mm512_add_ps(_mm512_set1_ps(1.0f), scale)));
    }
}

void rotate(const uint16_t *x, const uint16_t *cosines, const uint16_t *sines, int64_t size, uint16_t *y) {
    const int64_t half = size / 2;
    for (int64_t i = 0; i < half; i += 16) {
        const __mmask16 mask = first_lanes(half - i);
        const __m512 low = load(x + i, mask), high = load(x + half + i, mask);
        const __m512 low_straight = rounded(_mm512_mul_ps(low, load(cosines + i, mask)));
        const __m512 low_crossed = rounded(_mm512_mul_ps(high, load(sines + i, mask)));
        const __m512 high_straight = rounded(_mm512_mul_ps(high, load(cosines + half + i, mask)));
        const __m512 high_crossed = rounded(_mm512_mul_ps(low, load(sines + half + i, mask)));
        store(y + i, mask, _mm512_sub_ps(low_straight, low_crossed));
        store(y + half + i, mask, _mm512_add_ps(high_straight, high_crossed));
    }
}

void gate(const uint16_t *gate, const uint16_t *up, int64_t size, Activation activation, uint16_t *y) {
    for (int64_t i = 0; i < size; i += 16) {
        const __mmask16 mask = first_lanes(size - i);
        const __m512 active = rounded(activate(load(gate + i, mask), activation));
        store(y + i, mask, _mm512_mul_ps(active, load(up + i, mask)));
    }
}

void add(const uint16_t *a, const uint16_t *b, int64_t size, uint16_t *y) {
    for (int64_t i = 0; i < size; i += 16) {
        const __mmask16 mask = first_lanes(size - i);
        store(y + i, mask, _mm512_add_ps(load(a + i, mask), load(b + i, mask)));
    }
}

int64_t largest(const uint16_t *values, int64_t size) {
    const __m512 infinity = _mm512_set1_ps(INFINITY);
    __m512 best = _mm512_sub_ps(_mm512_setzero_ps(), infinity);
    __m512i place = _mm512_setzero_si512();
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (int64_t i = 0; i < size; i += 16) {
        const __mmask16 mask = first_lanes(size - i);
        const __m512 value = load(values + i, mask);
        const __mmask16 finite = _mm512_cmp_ps_mask(_mm512_abs_ps(value), infinity, _CMP_LT_OQ);
        if ((finite & mask) != mask)
            return -1;
        const __mmask16 better = _mm512_mask_cmp_ps_mask(mask, value, best, _CMP_GT_OQ);
        best = _mm512_mask_mov_ps(best, better, value);
        place = _mm512_mask_add_epi32(place, better, lanes, _mm512_set1_epi32(static_cast<int>(i)));
    }
    const __mmask16 winners = _mm512_cmp_ps_mask(best, _mm512_set1_ps(_mm512_reduce_max_ps(best)), _CMP_EQ_OQ);
    return _mm512_mask_reduce_min_epi32(winners, place);
}

} // namespace loraplex

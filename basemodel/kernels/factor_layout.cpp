// Compiled for processors with AVX512-BF16; called only where `is_supported` (tiles.h) says so.
#include "factor_layout.h"
#include "vector_math.h"

#include <algorithm>

namespace loraplex {
namespace {

constexpr int64_t LANES = 16;

inline __m512 load(const float *values, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, values); }
inline __m512 load(const uint16_t *values, __mmask16 mask) { return widen(_mm256_maskz_loadu_epi16(mask, values)); }

inline __mmask16 not_finite(__m512i bits) {
    const __m512i exponent = _mm512_set1_epi32(0x7f800000);
    return _mm512_cmpeq_epi32_mask(_mm512_and_si512(bits, exponent), exponent);
}

// To bf16, the nearest and of two the even one, as torch rounds; `narrow` would make zeros of what is tiny. `bad`
// becomes true where a value is not finite, or is not once it is rounded.
inline __m256i round_to_even(__m512 values, __mmask16 &bad) {
    const __m512i bits = _mm512_castps_si512(values);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    bad |= not_finite(bits) | not_finite(sum);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(sum, 16));
}

template <typename Value> bool round_values(const Value *values, int64_t size, uint16_t *y) {
    __mmask16 bad = 0;
    for (int64_t i = 0; i < size; i += LANES) {
        const __mmask16 mask = first_lanes(size - i);
        _mm256_mask_storeu_epi16(y + i, mask, round_to_even(load(values + i, mask), bad));
    }
    return bad == 0;
}

template <typename Value>
bool transpose_strips(const Value *b, int64_t outputs, int64_t rank, float scale, uint16_t *y) {
    __mmask16 bad = 0;
    const __m512 factor = _mm512_set1_ps(scale);
    for (int64_t first = 0; first < outputs; first += LANES, y += rank * LANES) {
        const int64_t here = std::min(LANES, outputs - first);
        for (int64_t k = 0; k < rank; k += LANES) {
            const __mmask16 mask = first_lanes(rank - k);
            __m512i rows[LANES];
            for (int64_t j = 0; j < LANES; j++)
                rows[j] = j < here ? _mm512_castps_si512(_mm512_mul_ps(load(b + (first + j) * rank + k, mask), factor))
                                   : _mm512_setzero_si512();
            transpose(rows);
            const int64_t ranks = std::min(LANES, rank - k);
            for (int64_t j = 0; j < ranks; j++) {
                const __m256i rounded = round_to_even(_mm512_castsi512_ps(rows[j]), bad);
                _mm256_storeu_si256(reinterpret_cast<__m256i *>(y + (k + j) * LANES), rounded);
            }
        }
    }
    return bad == 0;
}

} // namespace

bool round_factor(const float *values, int64_t size, uint16_t *y) { return round_values(values, size, y); }
bool round_factor(const uint16_t *values, int64_t size, uint16_t *y) { return round_values(values, size, y); }

bool lay_out_strips(const float *b, int64_t outputs, int64_t rank, float scale, uint16_t *y) {
    return transpose_strips(b, outputs, rank, scale, y);
}
bool lay_out_strips(const uint16_t *b, int64_t outputs, int64_t rank, float scale, uint16_t *y) {
    return transpose_strips(b, outputs, rank, scale, y);
}

} // namespace loraplex

// Compiled for processors with AVX512-BF16; called only where `is_supported` (tiles.h) says so.
#include "factor_layout.h"
#include "vector_math.h"

#include <algorithm>
#include <cmath>

namespace loraplex {
namespace {

constexpr int64_t LANES = 16;
constexpr __mmask16 ALL = 0xffff;
constexpr int EXACT_BITS = 6;           // the largest value of a rank is 64 to 127 steps
constexpr int32_t LEAST_EXPONENT = -50; // eight_bits.py
constexpr int32_t BITS_OFF_GRID = 0x1ffff; // of a float's 24: 7 make 127 steps

inline __m512 load(const float *values, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, values); }
inline __m512 load(const uint16_t *values, __mmask16 mask) { return widen(_mm256_maskz_loadu_epi16(mask, values)); }

// What `visitor` makes of the values, in the type that they have.
template <typename Visitor> auto visit(const FileValues &values, const Visitor &visitor) {
    return values.is_bf16 ? visitor(static_cast<const uint16_t *>(values.data))
                          : visitor(static_cast<const float *>(values.data));
}

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

// Strips of b, 16 ranks at a time: `change` is given 16 lanes of ranks from k on, `store` 16 outputs of one rank.
template <typename Value, typename Change, typename Store>
void transpose_strips(const Value *b, int64_t outputs, int64_t rank, const Change &change, const Store &store) {
    for (int64_t first = 0, strip = 0; first < outputs; first += LANES, strip++) {
        const int64_t here = std::min(LANES, outputs - first);
        for (int64_t k = 0; k < rank; k += LANES) {
            const __mmask16 mask = first_lanes(rank - k);
            __m512i rows[LANES];
            for (int64_t j = 0; j < LANES; j++)
                rows[j] = j < here ? change(load(b + (first + j) * rank + k, mask), k) : _mm512_setzero_si512();
            transpose(rows);
            const int64_t ranks = std::min(LANES, rank - k);
            for (int64_t j = 0; j < ranks; j++)
                store((strip * rank + k + j) * LANES, rows[j]);
        }
    }
}

// The power of two of a rank's steps, by the largest of its values: 2^6 steps, or up to 127, make that one.
inline bool exponent_of(float largest, int32_t &exponent) {
    exponent = 0;
    if (largest == 0)
        return true;
    exponent = std::isfinite(largest) ? std::ilogb(largest) - EXACT_BITS : LEAST_EXPONENT - 1;
    return exponent >= LEAST_EXPONENT;
}

// How many steps the values are; not whole numbers where they are not on the grid.
inline __m512 in_steps(__m512 values, __m512i exponents) {
    return _mm512_scalef_ps(values, _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_setzero_si512(), exponents)));
}

inline void store_bytes(int8_t *target, __m512i values) {
    _mm_storeu_si128(reinterpret_cast<__m128i *>(target), _mm512_cvtepi32_epi8(values));
}

inline bool are_whole(__m512 values) {
    return _mm512_cmp_ps_mask(values, _mm512_roundscale_ps(values, 0), _CMP_NEQ_UQ) == 0;
}

template <typename Value> bool find_steps_of_row(const Value *row, int64_t size, int32_t &exponent) {
    if (_mm512_test_epi32_mask(_mm512_castps_si512(load(row, first_lanes(size))), _mm512_set1_epi32(BITS_OFF_GRID)))
        return false; // as nearly every row of most adapters
    __m512 largest = _mm512_setzero_ps();
    for (int64_t i = 0; i < size; i += LANES)
        largest = _mm512_max_ps(largest, _mm512_abs_ps(load(row + i, first_lanes(size - i))));
    if (!exponent_of(_mm512_reduce_max_ps(largest), exponent))
        return false;
    for (int64_t i = 0; i < size; i += LANES)
        if (!are_whole(in_steps(load(row + i, first_lanes(size - i)), _mm512_set1_epi32(exponent))))
            return false;
    return true;
}

// The same for up to 16 columns from k on.
template <typename Value>
bool find_steps_of_columns(const Value *b, int64_t outputs, int64_t rank, int64_t k, int32_t *exponents) {
    const __mmask16 mask = first_lanes(rank - k);
    __m512 most = _mm512_setzero_ps();
    for (int64_t output = 0; output < outputs; output++)
        most = _mm512_max_ps(most, _mm512_abs_ps(load(b + output * rank + k, mask)));
    alignas(64) float largest[LANES];
    _mm512_store_ps(largest, most);
    alignas(64) int32_t found[LANES] = {};
    for (int64_t lane = 0; lane < std::min(LANES, rank - k); lane++)
        if (!exponent_of(largest[lane], found[lane]))
            return false;
    const __m512i steps = _mm512_load_si512(found);
    for (int64_t output = 0; output < outputs; output++)
        if (!are_whole(in_steps(load(b + output * rank + k, mask), steps)))
            return false;
    _mm512_mask_storeu_epi32(exponents + k, mask, steps);
    return true;
}

} // namespace

bool find_grid(const FilePair &pair, int32_t *exponents, float *steps) {
    if (pair.inputs % (2 * LANES) != 0)
        return false;
    int32_t *const of_b = exponents + pair.rank;
    const bool is_a_on_grid = visit(pair.a, [&](const auto *a) {
        for (int64_t rank = 0; rank < pair.rank; rank++)
            if (!find_steps_of_row(a + rank * pair.inputs, pair.inputs, exponents[rank]))
                return false;
        return true;
    });
    const bool is_b_on_grid = is_a_on_grid && visit(pair.b, [&](const auto *b) {
        for (int64_t k = 0; k < pair.rank; k += LANES)
            if (!find_steps_of_columns(b, pair.outputs, pair.rank, k, of_b))
                return false;
        return true;
    });
    for (int64_t rank = 0; rank < pair.rank && is_b_on_grid; rank++) {
        steps[rank] = std::ldexp(pair.scale, exponents[rank] + of_b[rank]);
        const float largest = std::ldexp(pair.scale, of_b[rank] + EXACT_BITS + 2); // of scale * b, which bf16 refuses
        if (!std::isnormal(steps[rank]) || !std::isfinite(largest))
            return false;
    }
    return is_b_on_grid;
}

void lay_out_steps(const FilePair &pair, const int32_t *exponents, int8_t *a, int8_t *b) {
    const auto whole = [](__m512 values, __m512i of) { return _mm512_cvtps_epi32(in_steps(values, of)); };
    const __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odds = _mm512_add_epi32(evens, _mm512_set1_epi32(1));
    visit(pair.a, [&](const auto *from) {
        for (int64_t i = 0; i < pair.rank * pair.inputs; i += 2 * LANES) {
            const __m512i exponent = _mm512_set1_epi32(exponents[i / pair.inputs]);
            const __m512i low = whole(load(from + i, ALL), exponent);
            const __m512i high = whole(load(from + i + LANES, ALL), exponent);
            store_bytes(a + i, _mm512_permutex2var_epi32(low, evens, high));
            store_bytes(a + i + LANES, _mm512_permutex2var_epi32(low, odds, high));
        }
    });
    const int32_t *of_b = exponents + pair.rank;
    visit(pair.b, [&](const auto *from) {
        transpose_strips(
            from, pair.outputs, pair.rank,
            [&](__m512 values, int64_t k) {
                return whole(values, _mm512_maskz_loadu_epi32(first_lanes(pair.rank - k), of_b + k));
            },
            [&](int64_t at, __m512i values) { store_bytes(b + at, values); });
    });
}

bool lay_out_rounded(const FilePair &pair, uint16_t *a, uint16_t *b) {
    const __m512 scale = _mm512_set1_ps(pair.scale);
    const bool is_b_finite = visit(pair.b, [&](const auto *from) {
        __mmask16 bad = 0;
        transpose_strips(
            from, pair.outputs, pair.rank,
            [scale](__m512 values, int64_t) { return _mm512_castps_si512(_mm512_mul_ps(values, scale)); },
            [b, &bad](int64_t at, __m512i values) {
                const __m256i rounded = round_to_even(_mm512_castsi512_ps(values), bad);
                _mm256_storeu_si256(reinterpret_cast<__m256i *>(b + at), rounded);
            });
        return bad == 0;
    });
    return visit(pair.a, [&](const auto *from) { return round_values(from, pair.rank * pair.inputs, a); }) &&
           is_b_finite;
}

} // namespace loraplex

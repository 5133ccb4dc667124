// Compiled for processors with AVX512-BF16 and AMX-BF16; called only where `is_supported` (tiles.h) says so.
#include "strip_sums.h"
#include "tile_unit.h"
#include "vector_math.h"

#include <algorithm>
#include <immintrin.h>

namespace loraplex {
namespace {

template <int groups>
void sums_of_groups(const uint16_t *tiles, int64_t tile_step, int64_t row_bytes, const uint16_t *packed,
                    int64_t group_stride, int64_t blocks, float *sums) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t tile = 0; tile < 2 * blocks; tile++) {
        const uint16_t *x = packed + tile * TILE_VALUES;
        load_tile<4>(tiles + tile * tile_step, row_bytes);
        load_tile<6>(x, 64);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (groups > 1) {
            load_tile<7>(x + group_stride, 64);
            _tile_dpbf16ps(1, 4, 7);
        }
        if constexpr (groups > 2) {
            load_tile<6>(x + 2 * group_stride, 64);
            _tile_dpbf16ps(2, 4, 6);
        }
        if constexpr (groups > 3) {
            load_tile<7>(x + 3 * group_stride, 64);
            _tile_dpbf16ps(3, 4, 7);
        }
    }
    _tile_stored(0, sums, 64);
    if constexpr (groups > 1)
        _tile_stored(1, sums + SUMS, 64);
    if constexpr (groups > 2)
        _tile_stored(2, sums + 2 * SUMS, 64);
    if constexpr (groups > 3)
        _tile_stored(3, sums + 3 * SUMS, 64);
}

// Sums [16 outputs][16 rows] become [16 rows][16 outputs].
void turn(float *sums) {
    __m512i rows[16];
    for (int row = 0; row < 16; row++)
        rows[row] = _mm512_load_si512(sums + row * 16);
    transpose(rows);
    for (int row = 0; row < 16; row++)
        _mm512_store_si512(sums + row * 16, rows[row]);
}

// A row's adapters are added to 16 outputs: value += sum over its uses of weight * delta, in its own order.
inline __m512 add_uses(const Adapters &adapters, int64_t row, const float *deltas, __m512 value) {
    for (int64_t use = adapters.first_use[row]; use < adapters.first_use[row + 1]; use++)
        value = _mm512_fmadd_ps(_mm512_set1_ps(adapters.weights[use]),
                                _mm512_load_ps(deltas + adapters.uses[use] * STRIP), value);
    return value;
}

// scale * y + shift for 16 outputs of a row that asks for it.
inline __m512 change(const Changes &changes, int64_t row, int64_t strip, __m512 value) {
    if (changes.rows[row] < 0)
        return value;
    const int64_t at = changes.rows[row] * changes.width + strip * STRIP;
    return _mm512_fmadd_ps(value, _mm512_loadu_ps(changes.scale + at), _mm512_loadu_ps(changes.shift + at));
}

// Up to 16 rows.
void finish(float *sums, int64_t first_row, int64_t row_count, const Strip &strip, const float *deltas) {
    const __mmask16 mask = first_lanes(strip.outputs);
    const bool has_adapters = strip.adapters;
    const Adapters adapters = has_adapters ? *strip.adapters : Adapters{}; // a copy: what is stored below cannot be it
    const __m512 bias = strip.bias ? widen(_mm256_maskz_loadu_epi16(mask, strip.bias)) : _mm512_setzero_ps();
    turn(sums);
    for (int64_t index = 0; index < row_count; index++) {
        __m512 value = _mm512_load_ps(sums + index * 16);
        if (strip.bias)
            value = _mm512_add_ps(value, bias);
        if (has_adapters)
            value = add_uses(adapters, first_row + index, deltas, value);
        if (strip.changes)
            value = change(*strip.changes, first_row + index, strip.index, value);
        _mm256_mask_storeu_epi16(strip.y + (first_row + index) * strip.y_stride, mask, narrow(value));
    }
}

} // namespace

void chunk_sums(const uint16_t *tiles, int64_t tile_step, int64_t row_bytes, const uint16_t *packed,
                int64_t group_stride, int64_t groups, int64_t blocks, float *sums) {
    constexpr decltype(&sums_of_groups<1>) BY_GROUPS[] = {sums_of_groups<1>, sums_of_groups<2>, sums_of_groups<3>,
                                                         sums_of_groups<4>};
    BY_GROUPS[groups - 1](tiles, tile_step, row_bytes, packed, group_stride, blocks, sums);
}

void finish_chunk(float *sums, int64_t first_row, int64_t rows, const Strip &strip, const float *deltas) {
    for (int64_t row = 0; row < rows; row += TILE_ROWS, sums += SUMS)
        finish(sums, first_row + row, std::min(TILE_ROWS, rows - row), strip, deltas);
}

} // namespace loraplex

// Compiled for processors with AVX512-BF16 and AMX-BF16; called only where `is_supported` (tiles.h) says so.
#include "strip_sums.h"
#include "tile_unit.h"

#include <algorithm>
#include <immintrin.h>

namespace loraplex {
namespace {

// Memory is asked for one block of 16 rows of a matrix [O, K], as they lie one after the other.
inline void prefetch_rows(const uint16_t *rows, int64_t block) {
    for (int64_t value = 0; value < BLOCK * STRIP; value += 32)
        _mm_prefetch(reinterpret_cast<const char *>(rows + block * BLOCK * STRIP + value), _MM_HINT_T1);
}

// Sums of a strip for up to 16 rows. Meanwhile the 16 rows of weights behind it are asked for.
void sums_of_few(const uint16_t *weight, int64_t in_features, const uint16_t *packed, int64_t width, float *sums) {
    _tile_zero(0);
    for (int64_t k = 0; k < in_features; k += BLOCK) {
        prefetch_rows(weight + STRIP * in_features, k / BLOCK);
        const uint16_t *x = packed + k * width;
        load_tile<4>(weight + k, in_features * 2);
        load_tile<6>(x, 4 * width);
        _tile_dpbf16ps(0, 4, 6);
        load_tile<5>(weight + k + 32, in_features * 2);
        load_tile<7>(x + 32 * width, 4 * width);
        _tile_dpbf16ps(0, 5, 7);
    }
    _tile_stored(0, sums, 64);
}

} // namespace

void prefetch_dense(const uint16_t *rows, int64_t block) { prefetch_rows(rows, block); }

void multiply_dense(const uint16_t *weight, const uint16_t *packed, const uint16_t *bias, const Adapters *adapters,
                    const Changes *changes, int64_t rows, int64_t in_features, int64_t out_features,
                    int64_t first_strip, int64_t last_strip, uint16_t *y, const Scratch &scratch) {
    const int64_t blocks = in_features / BLOCK;
    alignas(64) float sums[CHUNK_SUMS];
    configure_tiles(tile_width(rows));
    for (int64_t index = first_strip; index < last_strip; index++) {
        const uint16_t *own = weight + index * STRIP * in_features;
        const Strip strip{nullptr, bias ? bias + index * STRIP : nullptr, adapters, changes, index, STRIP,
                          y + index * STRIP, out_features};
        if (adapters)
            expand(*adapters, index, scratch.deltas);
        for (int64_t row = 0; row < rows; row += CHUNK_ROWS) {
            const int64_t present = std::min(CHUNK_ROWS, rows - row);
            const int64_t groups = row_groups(present);
            const uint16_t *x = packed + row * in_features;
            if (groups == 1)
                sums_of_few(own, in_features, x, tile_width(rows), sums);
            else
                chunk_sums(own, 32, in_features * 2, x, TILE_ROWS * in_features, groups, blocks, sums);
            finish_chunk(sums, row, present, strip, scratch.deltas);
        }
    }
    _tile_release();
}

} // namespace loraplex

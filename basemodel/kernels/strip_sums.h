// From the sums of a strip to its outputs, and its products with weights that are bf16 already. Compiled for processors
// with AMX; the caller has configured the tiles (tiles.h).
//
// Letters: K input features. Sums lie as the tile unit stores them: [16 outputs][16 rows] for each group of 16 rows.
#pragma once
#include "nf4_linear.h"

#include <cstdint>

namespace loraplex {

constexpr int64_t SUMS = 16 * 16;                              // of one group of rows
constexpr int64_t CHUNK_SUMS = CHUNK_ROWS / TILE_ROWS * SUMS; // of as many rows as are multiplied together

// Sums of a strip for up to four groups of rows. Tile t of the weights begins at tiles + t * tile_step, its rows lie
// row_bytes apart; x of the first group begins at `packed`, and that of the next group_stride values further on.
void chunk_sums(const uint16_t *tiles, int64_t tile_step, int64_t row_bytes, const uint16_t *packed,
                int64_t group_stride, int64_t groups, int64_t blocks, float *sums);

// Write rows [first_row, first_row + rows) of a strip: sums (which are overwritten), bias, what adapters add (`deltas`,
// see Scratch), changes, rounded to bfloat16.
void finish_chunk(float *sums, int64_t first_row, int64_t rows, const Strip &strip, const float *deltas);

} // namespace loraplex

// Rows of x as the tile unit (AMX) multiplies them: its registers, and the form into which x is packed for them.
//
// Letters: T rows of x, K input features; N, the rows that a tile has room for.
#pragma once
#include <cstdint>

namespace loraplex {

constexpr int64_t STRIP = 16;                 // output features that are computed together: the rows of a tile
constexpr int64_t BLOCK = 64;                 // input features that share a scale (NF4's block)
constexpr int64_t TILE_ROWS = 16;             // rows of x that fit one tile
constexpr int64_t CHUNK_ROWS = 4 * TILE_ROWS; // rows of x that are multiplied with a dequantized tile at once
constexpr int64_t TILE_VALUES = 16 * 32;      // bf16 values of one tile of weights

// Strips of so many output features, and groups of TILE_ROWS rows of x; the last one may be a part.
inline int64_t strip_count(int64_t outputs) { return (outputs + STRIP - 1) / STRIP; }
inline int64_t row_groups(int64_t rows) { return (rows + TILE_ROWS - 1) / TILE_ROWS; }

// True where this processor can run the functions below; asks the system for the tile registers at the first call.
bool is_supported();

// N for T rows in all: as few as there are, so that a long row's tiles stay in the first-level cache.
int64_t tile_width(int64_t rows);

// Tiles 0 to 3: sums [16 outputs, N rows of x]; 4 and 5: weights [16 outputs, 32 k]; 6 and 7: x [16 k pairs, N rows].
void configure_tiles(int64_t width);

// Number of bf16 values in the packed form of x.
int64_t packed_size(int64_t rows, int64_t in_features);

// Blocks of all groups of 16 rows together: what `pack` can share out.
int64_t pack_blocks(int64_t rows, int64_t in_features);

// Pack blocks [first, last) of x [T, K] bf16, one group of 16 rows after the other; rows beyond T become zero.
void pack(const uint16_t *x, int64_t rows, int64_t in_features, int64_t first, int64_t last, uint16_t *packed);

} // namespace loraplex

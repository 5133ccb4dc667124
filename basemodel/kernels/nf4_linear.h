// The CPU kernel of the 4-bit linear layer with its adapters: y = x W^T + bias + sum over a row's adapters (x A) B.
//
// Letters: T rows of x, K input features, O output features, strips of 16 output features, blocks of 64 input features.
#pragma once
#include <cstdint>

namespace loraplex {

constexpr int64_t STRIP = 16;                          // output features that are computed together: the rows of a tile
constexpr int64_t BLOCK = 64;                          // input features that share a scale (NF4's block)
constexpr int64_t UNIT_BYTES = STRIP * 4 + STRIP * 32; // of one strip and one block: 16 float scales, 16 x 64 codes
constexpr int64_t TILE_ROWS = 16;                      // rows of x that fit one tile
constexpr int64_t CHUNK_ROWS = 4 * TILE_ROWS;          // rows of x that are multiplied with a dequantized tile at once

// Where one adapter's factors of one layer lie, in its own memory; `a` is null where it has none here. As Python writes
// them (factor_table.py).
struct Factors {
    const uint16_t *a; // [rank, K] bf16
    const uint16_t *b; // [strips, rank, 16] bf16: strip after strip
    int64_t rank;      // of this layer: at most that of the group
};

// The rows of x that use one adapter, wherever they stand: its part of A is read once for all of them. Their numbers are
// members [first_member, first_member + members); x A of member m begins at hidden + m * (rank of this layer) in the
// scratch.
struct Group {
    int64_t start; // its row of the layer's table
    int64_t rank;  // the largest of its layers
    int64_t first_member;
    int64_t members;
    int64_t hidden;
};

// Which rows of x use which adapters, and how strongly. Row t has the uses [first_use[t], first_use[t + 1]), in an order
// of its own that no other row changes: what is added to a row, and in which order, does not depend on its neighbours.
// A use is the number of the member that computes it.
struct Adapters {
    const int64_t *table; // of this layer: a row of three for each adapter
    int64_t table_stride; // from one row to the next
    const int64_t *first_use; // [T + 1]
    const int64_t *uses;  // [U]
    const float *weights; // [U]
    const Group *groups;
    int64_t group_count;
    const int64_t *members; // [U]
    int64_t member_count;   // U
    float *hidden;

    const Factors &factors_of(const Group &group) const {
        return *reinterpret_cast<const Factors *>(table + group.start * table_stride);
    }
};

// Rows of x whose outputs, with bias and adapters, become scale * y + shift before they are rounded: DoRA and trained
// biases. Row t takes row rows[t] of scale and shift; -1 leaves it as it is.
struct Changes {
    const int32_t *rows;
    const float *scale; // [N, width]
    const float *shift;
    int64_t width; // strips * 16
};

// True where this processor can run the functions below; asks the system for the tile registers at the first call.
bool is_supported();

// Number of bf16 values in the packed form of x.
int64_t packed_size(int64_t rows, int64_t in_features);

// Blocks of all groups of 16 rows together: what `pack` can share out.
int64_t pack_blocks(int64_t rows, int64_t in_features);

// Pack blocks [first, last) of x [T, K] bf16, one group of 16 rows after the other; rows beyond T become zero.
void pack(const uint16_t *x, int64_t rows, int64_t in_features, int64_t first, int64_t last, uint16_t *packed);

// Rank rows of all groups together: what `shrink` can share out.
int64_t shrink_columns(const Adapters &adapters);

// hidden = x A for rank rows [first, last) of all groups, one group after the other.
void shrink(const uint16_t *x, int64_t in_features, const Adapters &adapters, int64_t first, int64_t last);

// Ask memory for one rank row of A, counted as for `shrink`.
void prefetch_rank_row(const Adapters &adapters, int64_t in_features, int64_t column);

// One strip of one layer: what it is computed from, and where it goes.
struct Strip {
    const uint8_t *codes;     // its units
    const uint16_t *bias;     // of its outputs; may be null
    const Adapters *adapters; // of its layer; may be null
    const Changes *changes;   // of its layer; may be null
    int64_t index;            // its number in its layer
    int64_t outputs;          // how many of its 16 outputs the layer has
    uint16_t *y;              // where its first output of row 0 goes
    int64_t y_stride;         // from one row of y to the next
};

// Ask memory for one block of a strip's codes, or for as many values of bf16 rows.
void prefetch_codes(const uint8_t *codes, int64_t block);
void prefetch_dense(const uint16_t *rows, int64_t block);

// Room of one thread, at multiples of 64 bytes.
struct Scratch {
    uint16_t *tiles; // [16 * K] where there are more than TILE_ROWS rows
    float *deltas;   // [U, 16]: what each member adds to a strip
};

// `count` strips that read the same x, two at a time: best given so that every second one follows in memory.
void multiply_strips(const Strip *strips, int64_t count, const uint16_t *packed, int64_t rows, int64_t in_features,
                     const Scratch &scratch);

// Strips [first, last) of a layer whose weights [O, K] are bf16 already; O is a multiple of STRIP. `bias`, `adapters`
// and `changes` may be null.
void multiply_dense(const uint16_t *weight, const uint16_t *packed, const uint16_t *bias, const Adapters *adapters,
                    const Changes *changes, int64_t rows, int64_t in_features, int64_t out_features,
                    int64_t first_strip, int64_t last_strip, uint16_t *y, const Scratch &scratch);

// The sum of squares of each row of strips [first, last) of a 4-bit weight, as it is dequantized: squares [strips * 16].
void row_squares(const uint8_t *weight, int64_t in_features, int64_t first_strip, int64_t last_strip, float *squares);

} // namespace loraplex

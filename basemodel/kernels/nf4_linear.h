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

// One use of an adapter by the tokens of a group: rank rows [start, start + rank) of the arena, scaled by weight.
struct Use {
    int64_t start;
    int64_t rank;
    float weight;
};

// Consecutive rows of x that use the same adapters. `hidden` is where the group's x A begins in the scratch:
// [rows][sum of ranks].
struct Group {
    int64_t first_row;
    int64_t rows;
    int64_t first_use;
    int64_t uses;
    int64_t hidden;
    int64_t hidden_width;
};

struct Adapters {
    const uint16_t *a; // [R, K] bf16
    const uint16_t *b; // [strips, R, 16] bf16: what a strip needs of an adapter lies together
    int64_t rank_rows; // R
    const Use *uses;
    const Group *groups;
    int64_t group_count;
    float *hidden;
};

// True where this processor can run the functions below; asks the system for the tile registers at the first call.
bool is_supported();

// Number of bf16 values in the packed form of x.
int64_t packed_size(int64_t rows, int64_t in_features);

// Pack rows [first, last) of 16-row groups of x [T, K] bf16 into tiles; rows beyond T become zero.
void pack_rows(const uint16_t *x, int64_t rows, int64_t in_features, int64_t first_group, int64_t last_group,
               uint16_t *packed);

// hidden = x A for columns [first, last) of every group's hidden values.
void shrink(const uint16_t *x, int64_t in_features, const Adapters &adapters, int64_t group, int64_t first_column,
            int64_t last_column);

// Strips [first, last) of y [T, O] bf16. `bias` and `adapters` may be null. `scratch` has 16 * K bf16 values.
void multiply_strips(const uint8_t *weight, const uint16_t *packed, const uint16_t *bias, const Adapters *adapters,
                     int64_t rows, int64_t in_features, int64_t out_features, int64_t first_strip, int64_t last_strip,
                     uint16_t *scratch, uint16_t *y);

// The same without adapters for weights [O, K] that are bf16 already; O must be a multiple of STRIP.
void multiply_dense(const uint16_t *weight, const uint16_t *packed, const uint16_t *bias, int64_t rows,
                    int64_t in_features, int64_t out_features, int64_t first_strip, int64_t last_strip, uint16_t *y);

} // namespace loraplex

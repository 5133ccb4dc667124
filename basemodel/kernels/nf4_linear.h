// The CPU kernel of the 4-bit linear layer with its adapters: y = x W^T + bias + sum over a row's adapters (x A) B.
//
// Letters: T rows of x, K input features, O output features, strips of 16 output features, blocks of 64 input features.
#pragma once
#include "adapters.h"
#include "tiles.h"

#include <cstdint>

namespace loraplex {

constexpr int64_t UNIT_BYTES = STRIP * 4 + STRIP * 32; // of one strip and one block: 16 float scales, 16 x 64 codes

// Rows of x whose outputs, with bias and adapters, become scale * y + shift before they are rounded: DoRA and trained
// biases. Row t takes row rows[t] of scale and shift; -1 leaves it as it is.
struct Changes {
    const int32_t *rows;
    const float *scale; // [N, width]
    const float *shift;
    int64_t width; // strips * 16
};

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
    float *deltas;   // [2, U, 16]: what each member adds to each of two strips
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

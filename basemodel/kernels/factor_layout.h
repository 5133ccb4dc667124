// An adapter's factors as the arena of a layer holds them (factor_layout.py). All of it runs on the caller's thread.
#pragma once
#include <cstdint>

namespace loraplex {

// y = values, rounded to bf16. Returns whether all of y is finite.
bool round_factor(const float *values, int64_t size, uint16_t *y);
bool round_factor(const uint16_t *values, int64_t size, uint16_t *y);

// b [O, r] -> y [strips, r, 16] = scale * b, rounded once; outputs behind O are zeros. Returns whether all of y is finite.
bool lay_out_strips(const float *b, int64_t outputs, int64_t rank, float scale, uint16_t *y);
bool lay_out_strips(const uint16_t *b, int64_t outputs, int64_t rank, float scale, uint16_t *y);

} // namespace loraplex

// An adapter's factors as the kernels read them (factor_layout.py). All of it runs on the caller's thread.
#pragma once
#include <cstdint>

namespace loraplex {

struct FileValues {
    const void *data;
    bool is_bf16; // else float
};

// A pair as its file holds it: a [r, K], b [O, r].
struct FilePair {
    FileValues a;
    FileValues b;
    int64_t inputs;
    int64_t outputs;
    int64_t rank;
    float scale; // of b
};

// Whether the values of every rank of a and of b are whole steps of a grid (eight_bits.py), and 32 divides K. If so,
// exponents [2, r] are the steps' powers of two, a's and then b's, and steps [r] their products with the scale.
bool find_grid(const FilePair &pair, int32_t *exponents, float *steps);

// The numbers of steps: a [r, K], of each 32 values those of even places before those of odd ones, and
// b [strips, r, 16]; outputs behind O are zeros.
void lay_out_steps(const FilePair &pair, const int32_t *exponents, int8_t *a, int8_t *b);

// In bf16, each value rounded once: a [r, K] and b [strips, r, 16], which is scale * b. Returns whether all are finite.
bool lay_out_rounded(const FilePair &pair, uint16_t *a, uint16_t *b);

} // namespace loraplex

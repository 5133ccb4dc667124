// What adapters add to a linear layer: hidden = x A once for all layers that read x, and B strip by strip.
//
// Letters: T rows of x, U uses of adapters by rows, K input features, strips of 16 output features.
#pragma once
#include "tiles.h"

#include <cstdint>

namespace loraplex {

// Where one adapter's factors of one layer lie, in its own memory; `a` is null where it has none here. As Python writes
// them (factor_table.py). They are bf16; or, where there are `steps`, whole numbers of 8 bits, and steps[r] is what a
// product of both, of rank r, is multiplied with: as both are exact, so are their products either way.
struct Factors {
    const void *a;      // [rank, K], whole numbers in the order of factors_of_product (vector_math.h)
    const void *b;      // [strips, rank, 16]: strip after strip
    int64_t rank;       // of this layer: at most that of the group
    const float *steps; // [rank], or null

    int64_t value_bytes() const { return steps ? 1 : 2; }
    const char *rank_row(int64_t row, int64_t in_features) const {
        return static_cast<const char *>(a) + row * in_features * value_bytes();
    }
    int64_t strip_bytes() const { return rank * STRIP * value_bytes(); }
    const char *strip(int64_t index) const { return static_cast<const char *>(b) + index * strip_bytes(); }
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
    const int64_t *table; // of this layer: a row of four for each adapter
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

constexpr int64_t RANKS_TOGETHER = 4; // rank rows that are computed at once

// Rank rows of all groups together: what `shrink` can share out.
int64_t shrink_columns(const Adapters &adapters);

// hidden = x A for rank rows [first, last) of all groups, one group after the other.
void shrink(const uint16_t *x, int64_t in_features, const Adapters &adapters, int64_t first, int64_t last);

// Ask memory for one rank row of A, counted as for `shrink`.
void prefetch_rank_row(const Adapters &adapters, int64_t in_features, int64_t column);

// What all members of all groups add to one strip: deltas [U, 16], at a multiple of 64 bytes.
void expand(const Adapters &adapters, int64_t strip, float *deltas);

// The same for the members of one group. Memory is asked for what its adapter adds to strip `next`.
void expand_group(const Adapters &adapters, int64_t group, int64_t strip, int64_t next, float *deltas);

} // namespace loraplex

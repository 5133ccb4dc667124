// What adapters add to two strips that are multiplied together, computed between their products. For files compiled for
// AVX512-BF16.
#pragma once
#include "nf4_linear.h"

namespace loraplex {

// Its pieces are the adapters of one strip and then those of the other. They are spread evenly over the blocks of the
// products, so that memory brings weights and B at the same time, and neither waits for the other.
class Expansion {
  public:
    // A strip, the strip of its layer that comes after it (itself where there is none), whose B is asked for meanwhile,
    // and where its deltas [U, 16] go.
    void add(const Strip &strip, int64_t next, float *deltas) {
        strips_[count_++] = {strip.adapters, strip.index, next, deltas, pieces_};
        pieces_ += strip.adapters ? strip.adapters->group_count : 0;
    }

    // One of `parts` equal parts of it all.
    void advance(int64_t parts) {
        for (due_ += pieces_; due_ >= parts; due_ -= parts, done_++) {
            const Place &place = strips_[count_ > 1 && done_ >= strips_[1].first_piece];
            expand_group(*place.adapters, done_ - place.first_piece, place.strip, place.next, place.deltas);
        }
    }

  private:
    struct Place {
        const Adapters *adapters;
        int64_t strip, next;
        float *deltas;
        int64_t first_piece;
    };
    Place strips_[2];
    int64_t count_ = 0, pieces_ = 0, done_ = 0, due_ = 0;
};

} // namespace loraplex

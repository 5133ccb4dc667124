// 4-bit layers that read the same x, with their adapters, as stages of a job (team.h). Compiled for any processor.
#pragma once
#include "nf4_linear.h"
#include "team.h"

#include <ATen/core/Tensor.h>
#include <optional>
#include <vector>

namespace loraplex {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Threads that a job may have, and how much of them one of `values` multiply-adds or moved values is worth.
int64_t thread_count();
Effort effort_of(int64_t values);

// Items of a stage that a thread takes at a time, so that each thread comes several times; a multiple of `step`.
int64_t share_of(int64_t items, int64_t step = 1);

// Blocks of weights that a thread asks for at most ahead of a stage: a fraction of its second-level cache.
constexpr int64_t FORESIGHT = 512;

// This thread's room for strips of a layer that `rows` rows go through, to which `members` add; until its next call.
Scratch strip_scratch(int64_t rows, int64_t in_features, int64_t members);

// The plan of a step as Python's LoraRuns holds it: first_use, uses, weights, groups, members (none of them: no adapter).
// The tensors must outlive it.
struct Runs {
    Runs(at::TensorList parts, int64_t hidden_size, int64_t rows);
    Adapters over(const Tensor &table) const; // of one layer; where its x A goes is not said yet
    // Whether an adapter of the step has factors in the layer of this table.
    bool touch(const Tensor &table) const;

    at::TensorList parts;
    int64_t hidden_size;
};

// One layer as an operator was given it: weight [strips * blocks * UNIT_BYTES] uint8 (or [O, K] bf16: then it has no
// codes), bias [O] bf16, table [R, 4] int64: `Factors` of the adapter in each row (none: it has no adapters).
struct Layer {
    Layer(const OptionalTensor &weight, const OptionalTensor &bias, const OptionalTensor &table, int64_t in_features,
          int64_t out_features, const Runs &runs, float *hidden = nullptr);
    Strip strip(int64_t index, uint16_t *y, int64_t y_stride) const;
    int64_t members() const; // that add to each of its strips
    // Outputs that change: rows [T] int32, scale and shift [N, strips * 16] float (see Changes).
    void change(const Tensor &rows, const Tensor &scale, const Tensor &shift, int64_t row_count);

    const uint8_t *codes;
    const uint16_t *bias;
    int64_t in_features, out_features, strips;
    std::optional<Adapters> adapters;
    std::optional<Changes> changes;
    Tensor own_hidden; // x A of all groups, where nobody gave room for it
};

// All of it must outlive the job; nothing may be added once a stage was taken.
class LinearJob {
  public:
    // `packed`: room of packed_size values at a multiple of 64 bytes; null: it has its own.
    LinearJob(const uint16_t *x, int64_t rows, int64_t in_features, uint16_t *packed = nullptr);
    void add(const Layer &layer, uint16_t *y) { layers_.push_back(&layer), outputs_.push_back(y); }

    Stage prepare();  // packs x, and computes x A
    Stage multiply(); // the strips of all layers, each layer to its y [T, O]
    int64_t values() const; // multiply-adds and moved values, about
    const uint16_t *packed() const { return packed_; }

  private:
    void prepare_items(int64_t first, int64_t last);
    void multiply_items(int64_t first, int64_t last);
    void ask_codes(int64_t first, int64_t piece) const; // for a block of the strips from `first` on
    void ask_factors(int64_t item) const;                // for what one item of `prepare` reads of A

    const uint16_t *x_;
    int64_t rows_, in_features_;
    std::vector<const Layer *> layers_;
    std::vector<uint16_t *> outputs_;
    Tensor room_;
    uint16_t *packed_;
};

} // namespace loraplex

// The blocks of a decoder layer as stages of a job (team.h): what the operators and the decoder share. Compiled for any
// processor.
//
// Letters: T tokens, H hidden features, I inner ones, A attention heads, G key-value heads, D head size.
#pragma once
#include "linear_job.h"
#include "paged_attention.h"
#include "row_math.h"

#include <array>
#include <functional>
#include <vector>

namespace loraplex {

using Stages = std::vector<Stage>;

inline const uint16_t *read(const Tensor &tensor) { return static_cast<const uint16_t *>(tensor.data_ptr()); }
inline uint16_t *write(const Tensor &tensor) { return static_cast<uint16_t *>(tensor.data_ptr()); }

// A stage whose items are rows.
Stage row_stage(int64_t rows, std::function<void(int64_t)> work);

// Norms that share epsilon and scaling, over rows of `size` values.
struct Norms {
    float epsilon;
    Scaling scaling;
    int64_t size;

    const uint16_t *weight(const OptionalTensor &norm) const; // null where there is none
    void apply(const uint16_t *x, const uint16_t *weight, uint16_t *y) const {
        rms_norm(x, weight, size, epsilon, scaling, y);
    }
};

// Cosines and sines by which heads are rotated: token t has row positions[t] of [P, D], or row t where there are none.
struct Turn {
    Turn(const Tensor &cosines, const Tensor &sines, const OptionalTensor &positions, int64_t tokens);
    int64_t row(int64_t token) const { return (positions ? positions[token] : token) * size; }

    const uint16_t *cosines, *sines;
    const int64_t *positions;
    int64_t size; // D
};

// Heads of some tokens: normed where there is a norm, then rotated. Items are (token, head) of q, then of k.
struct HeadJob {
    uint16_t *q, *k; // [T, A D], [T, G D]
    int64_t tokens, q_heads, k_heads;
    Turn turn;
    Norms norms;
    const uint16_t *q_norm, *k_norm; // [D] or null

    Stage stage() const;
    void items(int64_t first, int64_t last) const;
};

// What precedes attention: x [T, H] -> q, k and v, after a norm where there is one. It must outlive its stages, like
// all that follow here.
class AttentionInputs {
  public:
    // `normed` [T, H] where there is a norm. `packed` as for LinearJob.
    AttentionInputs(std::array<Layer, 3> layers, const uint16_t *x, const Norms &norms, const uint16_t *norm,
                    const HeadJob &heads, uint16_t *v, uint16_t *normed, uint16_t *packed = nullptr);
    AttentionInputs(const AttentionInputs &) = delete;
    void add_stages(Stages &stages);
    int64_t values() const { return job_.values(); }

  private:
    const std::array<Layer, 3> layers_;
    const uint16_t *x_;
    Norms norms_;
    const uint16_t *norm_;
    HeadJob heads_;
    uint16_t *normed_;
    LinearJob job_;
};

// Keys and values [T, G, D] of some tokens, and the slots [T] of the cache [S, G, D] that they go to.
struct NewKeys {
    const uint16_t *key, *value;
    const int64_t *slots;
};

// Attention of some tokens over the cache, to output [T, A, D].
class AttentionJob {
  public:
    AttentionJob(const AttentionInput &input, int64_t tokens, uint16_t *output);
    AttentionJob(const AttentionJob &) = delete;
    void add_stages(Stages &stages, const NewKeys *stored); // null: nothing is stored before
    int64_t values() const { return seen_ * input_.heads * input_.head_size; }

  private:
    void items(int64_t first, int64_t last) const;

    AttentionInput input_;
    int64_t tokens_;
    uint16_t *output_;
    int64_t longest_ = 0, seen_ = 0; // positions
};

// Raises where a slot is outside of a cache of so many.
void check_slots(const Tensor &write_slots, int64_t tokens, int64_t slots);

// x [T, K] -> y [T, K']: gate and up [I, K], their gate, and the layer down [K', I].
class GatedMLP {
  public:
    // `inner` [T, I]. `packed` as for LinearJob, for both of its inputs.
    GatedMLP(std::array<Layer, 3> layers, const uint16_t *x, int64_t rows, Activation activation, uint16_t *y,
             uint16_t *inner, uint16_t *packed = nullptr);
    GatedMLP(const GatedMLP &) = delete;
    void add_stages(Stages &stages);
    int64_t values() const { return both_.values() + last_.values(); }

  private:
    Stage gated() const;
    void strips(int64_t first, int64_t last) const;

    const std::array<Layer, 3> layers_;
    int64_t rows_;
    Activation activation_;
    uint16_t *inner_;
    LinearJob both_, last_;
};

// The norms of a layer behind attention; the first and the last may be null.
struct LaterNorms {
    const uint16_t *after_attention, *before_mlp, *after_mlp;
};

// What follows attention: x [T, H] and attended [T, A D] -> y [T, H], which may be x.
//   h = x + after_attention(o(attended));  y = h + after_mlp(down(activation(gate(n)) * up(n))), n = before_mlp(h)
class AfterAttention {
  public:
    // `middle` [3, T, H] and `inner` [T, I]. `packed` as for LinearJob, for all of its inputs.
    AfterAttention(Layer out, std::array<Layer, 3> mlp, const uint16_t *x, const uint16_t *attended, int64_t rows,
                   const Norms &norms, const LaterNorms &weights, Activation activation, uint16_t *y, uint16_t *middle,
                   uint16_t *inner, uint16_t *packed = nullptr);
    AfterAttention(const AfterAttention &) = delete;
    void add_stages(Stages &stages);
    int64_t values() const { return first_.values() + mlp_.values(); }

  private:
    void join(int64_t row) const;
    void conclude(int64_t row) const;

    const Layer out_;
    const uint16_t *x_;
    int64_t rows_;
    Norms norms_;
    LaterNorms weights_;
    uint16_t *y_;
    uint16_t *given_, *h_, *n_; // [T, H]: what a layer gave, and h and n as above
    LinearJob first_;
    GatedMLP mlp_;
};

} // namespace loraplex

#include "block_jobs.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace loraplex {
namespace {

constexpr int64_t GATED_SHARE = 8; // strips of gate, and of up, that are computed together at most

} // namespace

Stage row_stage(int64_t rows, std::function<void(int64_t)> work) {
    return {rows, share_of(rows), [work = std::move(work)](int64_t first, int64_t last) {
                for (int64_t row = first; row < last; row++)
                    work(row);
            }};
}

const uint16_t *Norms::weight(const OptionalTensor &norm) const {
    TORCH_CHECK(!norm || (norm->scalar_type() == at::kBFloat16 && norm->numel() == size), "a norm is bfloat16 [",
                size, "]");
    return norm ? read(*norm) : nullptr;
}

Turn::Turn(const Tensor &cosine_rows, const Tensor &sine_rows, const OptionalTensor &rows, int64_t tokens)
    : cosines(read(cosine_rows)), sines(read(sine_rows)), positions(rows ? rows->const_data_ptr<int64_t>() : nullptr),
      size(cosine_rows.size(-1)) {
    const int64_t count = cosine_rows.numel() / size;
    for (const Tensor *table : {&cosine_rows, &sine_rows})
        TORCH_CHECK(table->is_contiguous() && table->scalar_type() == at::kBFloat16 && table->numel() == count * size,
                    "cosines and sines: contiguous bfloat16, D wide");
    TORCH_CHECK(size % 2 == 0 && (rows ? rows->numel() : count) == tokens, "cosines and sines, even, for each token");
    for (int64_t token = 0; positions && token < tokens; token++)
        TORCH_CHECK(positions[token] >= 0 && positions[token] < count, "a position is beyond the cosines");
}

Stage HeadJob::stage() const {
    const int64_t count = tokens * (q_heads + k_heads);
    return {count, share_of(count), [this](int64_t first, int64_t last) { items(first, last); }};
}

void HeadJob::items(int64_t first, int64_t last) const {
    const int64_t size = turn.size;
    for (int64_t item = first; item < last; item++) {
        const bool is_key = item >= tokens * q_heads;
        const int64_t at = is_key ? item - tokens * q_heads : item, token = at / (is_key ? k_heads : q_heads);
        uint16_t *head = (is_key ? k : q) + at * size;
        if (const uint16_t *norm = is_key ? k_norm : q_norm)
            norms.apply(head, norm, head);
        rotate(head, turn.cosines + turn.row(token), turn.sines + turn.row(token), size, head);
    }
}

AttentionInputs::AttentionInputs(std::array<Layer, 3> layers, const uint16_t *x, const Norms &norms,
                                 const uint16_t *norm, const HeadJob &heads, uint16_t *v, uint16_t *normed,
                                 uint16_t *packed)
    : layers_(std::move(layers)), x_(x), norms_(norms), norm_(norm), heads_(heads), normed_(normed),
      job_(norm ? normed : x, heads.tokens, layers_[0].in_features, packed) {
    uint16_t *const outputs[] = {heads.q, heads.k, v};
    for (int index = 0; index < 3; index++)
        job_.add(layers_[index], outputs[index]);
}

void AttentionInputs::add_stages(Stages &stages) {
    if (norm_)
        stages.push_back(row_stage(heads_.tokens, [this](int64_t row) {
            norms_.apply(x_ + row * norms_.size, norm_, normed_ + row * norms_.size);
        }));
    stages.push_back(job_.prepare());
    stages.push_back(job_.multiply());
    stages.push_back(heads_.stage());
}

AttentionJob::AttentionJob(const AttentionInput &input, int64_t tokens, uint16_t *output)
    : input_(input), tokens_(tokens), output_(output) {
    for (int64_t token = 0; token < tokens; token++) {
        longest_ = std::max(longest_, input.lengths[token]);
        seen_ += input.lengths[token];
    }
}

void AttentionJob::add_stages(Stages &stages, const NewKeys *stored) {
    const int64_t size = input_.key_value_heads * input_.head_size, groups = input_.key_value_heads;
    if (stored)
        stages.push_back(row_stage(tokens_, [=, from = *stored, keys = const_cast<uint16_t *>(input_.keys),
                                             values = const_cast<uint16_t *>(input_.values)](int64_t token) {
            std::memcpy(keys + from.slots[token] * size, from.key + token * size, size * sizeof(uint16_t));
            std::memcpy(values + from.slots[token] * size, from.value + token * size, size * sizeof(uint16_t));
        }));
    stages.push_back({tokens_ * groups, share_of(tokens_ * groups),
                      [this](int64_t first, int64_t last) { items(first, last); }});
}

void AttentionJob::items(int64_t first, int64_t last) const {
    thread_local std::vector<float> scores;
    if (scores.size() < static_cast<size_t>(MOST_SHARING * longest_))
        scores.resize(MOST_SHARING * longest_);
    for (int64_t item = first; item < last; item++)
        attend(input_, item / input_.key_value_heads, item % input_.key_value_heads, scores.data(), output_);
}

void check_slots(const Tensor &write_slots, int64_t tokens, int64_t slots) {
    TORCH_CHECK(write_slots.numel() == tokens, "one slot for each token");
    const auto *places = write_slots.const_data_ptr<int64_t>();
    for (int64_t token = 0; token < tokens; token++)
        TORCH_CHECK(places[token] >= 0 && places[token] < slots, "a token leaves the cache");
}

GatedMLP::GatedMLP(std::array<Layer, 3> layers, const uint16_t *x, int64_t rows, Activation activation, uint16_t *y,
                   uint16_t *inner, uint16_t *packed)
    : layers_(std::move(layers)), rows_(rows), activation_(activation), inner_(inner),
      both_(x, rows, layers_[0].in_features, packed), last_(inner, rows, layers_[2].in_features, packed) {
    both_.add(layers_[0], nullptr), both_.add(layers_[1], nullptr), last_.add(layers_[2], y);
}

void GatedMLP::add_stages(Stages &stages) {
    stages.push_back(both_.prepare());
    stages.push_back(gated());
    stages.push_back(last_.prepare());
    stages.push_back(last_.multiply());
}

// All strips of gate and up. Each thread asks for both layers' blocks ahead of it.
Stage GatedMLP::gated() const {
    return {layers_[0].strips, std::min(share_of(layers_[0].strips), GATED_SHARE),
            [this](int64_t first, int64_t last) {
                for (; first < last; first += GATED_SHARE)
                    strips(first, std::min(first + GATED_SHARE, last));
            },
            [this](int64_t first, int64_t piece) {
                const Layer &layer = layers_[piece % 2];
                const int64_t blocks = layer.in_features / BLOCK, item = first + piece / 2 / blocks;
                if (item < layer.strips)
                    prefetch_codes(layer.codes + item * blocks * UNIT_BYTES, piece / 2 % blocks);
            },
            FORESIGHT};
}

// Strips [first, last) of inner [T, I] = activation(gate) * up, each from a strip of both layers: at most GATED_SHARE.
void GatedMLP::strips(int64_t first, int64_t last) const {
    const Layer &gates = layers_[0], &ups = layers_[1];
    const int64_t tile = rows_ * STRIP; // of one layer's strip
    thread_local std::vector<uint16_t> room;
    room.resize(2 * (last - first) * tile);
    const auto scratch = strip_scratch(rows_, gates.in_features, std::max(gates.members(), ups.members()));
    std::array<Strip, 2 * GATED_SHARE> pairs;
    for (int64_t index = first; index < last; index++) {
        uint16_t *pair = room.data() + 2 * (index - first) * tile;
        pairs[2 * (index - first)] = gates.strip(index, pair, STRIP);
        pairs[2 * (index - first) + 1] = ups.strip(index, pair + tile, STRIP);
    }
    multiply_strips(pairs.data(), 2 * (last - first), both_.packed(), rows_, gates.in_features, scratch);
    for (int64_t index = first; index < last; index++) {
        const Strip &strip = pairs[2 * (index - first)];
        for (int64_t row = 0; row < rows_; row++)
            gate(strip.y + row * STRIP, strip.y + tile + row * STRIP, strip.outputs, activation_,
                 inner_ + row * gates.out_features + index * STRIP);
    }
}

AfterAttention::AfterAttention(Layer out, std::array<Layer, 3> mlp, const uint16_t *x, const uint16_t *attended,
                               int64_t rows, const Norms &norms, const LaterNorms &weights, Activation activation,
                               uint16_t *y, uint16_t *middle, uint16_t *inner, uint16_t *packed)
    : out_(std::move(out)), x_(x), rows_(rows), norms_(norms), weights_(weights), y_(y), given_(middle),
      h_(middle + rows * norms.size), n_(h_ + rows * norms.size), first_(attended, rows, out_.in_features, packed),
      mlp_(std::move(mlp), n_, rows, activation, given_, inner, packed) {
    TORCH_CHECK(weights.before_mlp, "the norm before the MLP is missing");
    first_.add(out_, given_);
}

void AfterAttention::add_stages(Stages &stages) {
    stages.push_back(first_.prepare());
    stages.push_back(first_.multiply());
    stages.push_back(row_stage(rows_, [this](int64_t row) { join(row); }));
    mlp_.add_stages(stages);
    stages.push_back(row_stage(rows_, [this](int64_t row) { conclude(row); }));
}

void AfterAttention::join(int64_t row) const {
    const int64_t at = row * norms_.size;
    if (weights_.after_attention)
        norms_.apply(given_ + at, weights_.after_attention, given_ + at);
    add(x_ + at, given_ + at, norms_.size, h_ + at);
    norms_.apply(h_ + at, weights_.before_mlp, n_ + at);
}

void AfterAttention::conclude(int64_t row) const {
    const int64_t at = row * norms_.size;
    if (weights_.after_mlp)
        norms_.apply(given_ + at, weights_.after_mlp, given_ + at);
    add(h_ + at, given_ + at, norms_.size, y_ + at);
}

} // namespace loraplex

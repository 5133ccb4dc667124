// Fused blocks of a decoder layer as torch operators. Compiled for any processor.
//
// Each equals its parts by the bit: `attention_inputs` is a norm, three `nf4_linear` and `rotate_heads`, `gated_mlp` is
// three `nf4_linear` and `gate`, and `after_attention` is made of them, norms and sums. So a step that must compute the
// parts (attach.py) gives a row the same bits.
#include "linear_job.h"
#include "row_math.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <array>
#include <functional>
#include <iterator>
#include <tuple>

namespace {

using loraplex::Activation, loraplex::Layer, loraplex::LinearJob, loraplex::OptionalTensor, loraplex::Runs,
    loraplex::Scaling, loraplex::Stage, loraplex::STRIP, at::Tensor;

constexpr int64_t GATED_SHARE = 8; // strips of gate, and of up, that are computed together at most

const uint16_t *read(const Tensor &tensor) { return static_cast<const uint16_t *>(tensor.data_ptr()); }
uint16_t *write(const Tensor &tensor) { return static_cast<uint16_t *>(tensor.data_ptr()); }

void check_rows(const Tensor &x) {
    TORCH_CHECK(x.is_contiguous() && x.scalar_type() == at::kBFloat16 && x.dim() == 2, "rows: contiguous bfloat16");
}

// Three tensors for each layer, see Layer: weight, bias, table.
Layer layer_of(const c10::List<OptionalTensor> &parts, size_t number, int64_t in_features, int64_t out_features,
               const Runs &runs) {
    TORCH_CHECK(parts.size() >= 3 * number + 3, "three tensors for each layer");
    const auto part = [&](size_t index) -> OptionalTensor { return parts.get(3 * number + index); };
    return Layer(part(0), part(1), part(2), in_features, out_features, runs);
}

// Heads of some tokens: normed where there is a norm, then rotated. Items are (token, head) of q, then of k.
struct HeadJob {
    uint16_t *q, *k;
    int64_t tokens, q_heads, k_heads, size;
    const uint16_t *cosines, *sines; // [T, D]
    const uint16_t *q_norm, *k_norm; // [D] or null
    float epsilon;
    Scaling scaling;

    void items(int64_t first, int64_t last) const {
        for (int64_t item = first; item < last; item++) {
            const bool is_key = item >= tokens * q_heads;
            const int64_t at = is_key ? item - tokens * q_heads : item, token = at / (is_key ? k_heads : q_heads);
            uint16_t *head = (is_key ? k : q) + at * size;
            if (const uint16_t *norm = is_key ? k_norm : q_norm)
                loraplex::rms_norm(head, norm, size, epsilon, scaling, head);
            loraplex::rotate(head, cosines + token * size, sines + token * size, size, head);
        }
    }
};

HeadJob head_job(const Tensor &q, const Tensor &k, const Tensor &cosines, const Tensor &sines,
                 const OptionalTensor &q_norm, const OptionalTensor &k_norm, double epsilon, int64_t scaling) {
    const int64_t size = cosines.size(-1), tokens = q.size(0);
    for (const Tensor *table : {&cosines, &sines})
        TORCH_CHECK(table->is_contiguous() && table->scalar_type() == at::kBFloat16 && table->numel() == tokens * size,
                    "cosines and sines: contiguous bfloat16 [T, D]");
    for (const OptionalTensor *norm : {&q_norm, &k_norm})
        TORCH_CHECK(!*norm || ((*norm)->scalar_type() == at::kBFloat16 && (*norm)->numel() == size), "norm: bf16 [D]");
    TORCH_CHECK(size % 2 == 0 && q.size(1) % size == 0 && k.size(1) % size == 0, "whole heads of an even size");
    return {write(q), write(k), tokens, q.size(1) / size, k.size(1) / size, size, read(cosines), read(sines),
            q_norm ? read(*q_norm) : nullptr, k_norm ? read(*k_norm) : nullptr, static_cast<float>(epsilon),
            static_cast<Scaling>(scaling)};
}

Stage head_stage(const HeadJob &heads) {
    const int64_t items = heads.tokens * (heads.q_heads + heads.k_heads);
    return {items, loraplex::share_of(items), [&heads](int64_t first, int64_t last) { heads.items(first, last); }};
}

// q [T, A D] and k [T, G D] bf16 are normed and rotated in place; cosines and sines [T, D], norms [D].
void rotate_heads(const Tensor &q, const Tensor &k, const Tensor &cosines, const Tensor &sines,
                  const OptionalTensor &q_norm, const OptionalTensor &k_norm, double epsilon, int64_t scaling) {
    check_rows(q), check_rows(k);
    const HeadJob heads = head_job(q, k, cosines, sines, q_norm, k_norm, epsilon, scaling);
    const Stage stage = head_stage(heads);
    loraplex::run_stages(&stage, 1, loraplex::thread_count(), loraplex::effort_of(4 * (q.numel() + k.numel())));
}

// The norms of a block, which share epsilon and scaling.
struct Norms {
    float epsilon;
    Scaling scaling;
    int64_t size;

    // Null where there is none.
    const uint16_t *weight(const OptionalTensor &norm) const {
        TORCH_CHECK(!norm || (norm->scalar_type() == at::kBFloat16 && norm->numel() == size), "a norm is bfloat16 [H]");
        return norm ? read(*norm) : nullptr;
    }
    void apply(const uint16_t *x, const uint16_t *weight, uint16_t *y) const {
        loraplex::rms_norm(x, weight, size, epsilon, scaling, y);
    }
};

Stage row_stage(int64_t rows, std::function<void(int64_t)> work) {
    return {rows, loraplex::share_of(rows), [work = std::move(work)](int64_t first, int64_t last) {
                for (int64_t row = first; row < last; row++)
                    work(row);
            }};
}

// x [T, K] bf16 -> q [T, A, D], k and v [T, G, D]: a norm where there is one, three layers, and `rotate_heads`.
std::tuple<Tensor, Tensor, Tensor> attention_inputs(
    const Tensor &x, const c10::List<OptionalTensor> &layers, at::IntArrayRef out_features, const Tensor &cosines,
    const Tensor &sines, const OptionalTensor &norm, const OptionalTensor &q_norm, const OptionalTensor &k_norm,
    double epsilon, int64_t scaling, at::TensorList plan, int64_t hidden_size) {
    check_rows(x);
    TORCH_CHECK(out_features.size() == 3, "three layers");
    const int64_t rows = x.size(0), in_features = x.size(1), size = cosines.size(-1);
    const Runs runs(plan, hidden_size, rows);
    const std::array<Layer, 3> own{layer_of(layers, 0, in_features, out_features[0], runs),
                                   layer_of(layers, 1, in_features, out_features[1], runs),
                                   layer_of(layers, 2, in_features, out_features[2], runs)};
    const Norms norms{static_cast<float>(epsilon), static_cast<Scaling>(scaling), in_features};
    const uint16_t *weight = norms.weight(norm);
    const Tensor normed = weight ? at::empty(x.sizes(), x.options()) : x;
    LinearJob job(read(normed), rows, in_features);
    std::array<Tensor, 3> y;
    for (int index = 0; index < 3; index++) {
        y[index] = at::empty({rows, out_features[index]}, x.options());
        job.add(own[index], write(y[index]));
    }
    const HeadJob heads = head_job(y[0], y[1], cosines, sines, q_norm, k_norm, epsilon, scaling);
    const auto norm_row = [&](int64_t row) {
        norms.apply(read(x) + row * in_features, weight, write(normed) + row * in_features);
    };
    const Stage stages[] = {row_stage(weight ? rows : 0, norm_row), job.prepare(), job.multiply(), head_stage(heads)};
    if (rows > 0)
        loraplex::run_stages(stages, 4, loraplex::thread_count(), loraplex::effort_of(job.values()));
    return {y[0].view({rows, -1, size}), y[1].view({rows, -1, size}), y[2].view({rows, -1, size})};
}

// gates and ups [T, I] bf16 -> activation(gates) * ups.
Tensor gate(const Tensor &gates, const Tensor &ups, int64_t activation) {
    check_rows(gates), check_rows(ups);
    TORCH_CHECK(gates.sizes() == ups.sizes(), "gates and ups: the same shape");
    Tensor y = at::empty(gates.sizes(), gates.options());
    const int64_t pieces = (gates.numel() + STRIP - 1) / STRIP;
    const Stage stage{pieces, loraplex::share_of(pieces), [&](int64_t first, int64_t last) {
                          const int64_t begin = first * STRIP, end = std::min(last * STRIP, gates.numel());
                          loraplex::gate(read(gates) + begin, read(ups) + begin, end - begin,
                                         static_cast<Activation>(activation), write(y) + begin);
                      }};
    loraplex::run_stages(&stage, 1, loraplex::thread_count(), loraplex::effort_of(8 * gates.numel()));
    return y;
}

// Strips [first, last) of y [T, I] = activation(gate) * up, each from a strip of both layers: at most GATED_SHARE.
void gated_strips(const Layer &gates, const Layer &ups, const LinearJob &job, int64_t rows, Activation activation,
                  int64_t first, int64_t last, uint16_t *y) {
    thread_local std::vector<uint16_t> room;
    const int64_t tile = rows * STRIP; // of one layer's strip
    room.resize(2 * (last - first) * tile);
    const auto scratch =
        loraplex::strip_scratch(rows, gates.in_features, std::max(gates.members(), ups.members()));
    std::array<loraplex::Strip, 2 * GATED_SHARE> strips;
    for (int64_t index = first; index < last; index++) {
        uint16_t *pair = room.data() + 2 * (index - first) * tile;
        strips[2 * (index - first)] = gates.strip(index, pair, STRIP);
        strips[2 * (index - first) + 1] = ups.strip(index, pair + tile, STRIP);
    }
    loraplex::multiply_strips(strips.data(), 2 * (last - first), job.packed(), rows, gates.in_features, scratch);
    for (int64_t index = first; index < last; index++) {
        const loraplex::Strip &strip = strips[2 * (index - first)];
        for (int64_t row = 0; row < rows; row++)
            loraplex::gate(strip.y + row * STRIP, strip.y + tile + row * STRIP, strip.outputs, activation,
                           y + row * gates.out_features + index * STRIP);
    }
}

// The stage of all these strips. Each thread asks for both layers' blocks ahead of it.
Stage gated_stage(const Layer &gates, const Layer &ups, const LinearJob &job, int64_t rows, Activation activation,
                  uint16_t *y) {
    const int64_t blocks = gates.in_features / loraplex::BLOCK;
    return {gates.strips, std::min(loraplex::share_of(gates.strips), GATED_SHARE),
            [=, &gates, &ups, &job](int64_t first, int64_t last) {
                for (; first < last; first += GATED_SHARE)
                    gated_strips(gates, ups, job, rows, activation, first, std::min(first + GATED_SHARE, last), y);
            },
            [=, &gates, &ups](int64_t first, int64_t piece) {
                const Layer &layer = piece % 2 ? ups : gates;
                const int64_t item = first + piece / 2 / blocks;
                if (item < layer.strips)
                    loraplex::prefetch_codes(layer.codes + item * blocks * loraplex::UNIT_BYTES, piece / 2 % blocks);
            },
            loraplex::FORESIGHT};
}

// x [T, K] bf16 -> [T, K']: gate and up, their gate, and the layer down. Three layers: gate and up [I, K], down [K', I].
Tensor gated_mlp(const Tensor &x, const c10::List<OptionalTensor> &layers, at::IntArrayRef out_features,
                 int64_t activation, at::TensorList plan, int64_t hidden_size) {
    check_rows(x);
    TORCH_CHECK(out_features.size() == 3 && out_features[0] == out_features[1], "three layers, gate like up");
    const int64_t rows = x.size(0), in_features = x.size(1), inner_features = out_features[0];
    const Runs runs(plan, hidden_size, rows);
    const Layer gates = layer_of(layers, 0, in_features, inner_features, runs);
    const Layer ups = layer_of(layers, 1, in_features, inner_features, runs);
    const Layer down = layer_of(layers, 2, inner_features, out_features[2], runs);
    Tensor inner = at::empty({rows, inner_features}, x.options()), y = at::empty({rows, out_features[2]}, x.options());
    if (rows == 0)
        return y;
    LinearJob both(read(x), rows, in_features), last(read(inner), rows, inner_features);
    both.add(gates, nullptr), both.add(ups, nullptr), last.add(down, write(y));
    const Stage gated = gated_stage(gates, ups, both, rows, static_cast<Activation>(activation), write(inner));
    const Stage stages[] = {both.prepare(), gated, last.prepare(), last.multiply()};
    loraplex::run_stages(stages, 4, loraplex::thread_count(), loraplex::effort_of(both.values() + last.values()));
    return y;
}

// What follows attention in a decoder layer: x [T, H] and attended [T, A D] bf16 -> [T, H].
//   h = x + after_attention(o(attended));  y = h + after_mlp(down(activation(gate(n)) * up(n))), n = before_mlp(h)
// Four layers: o, gate, up, down. The norms after attention and after the MLP may be missing.
Tensor after_attention(const Tensor &x, const Tensor &attended, const c10::List<OptionalTensor> &layers,
                       at::IntArrayRef out_features, const OptionalTensor &norm_after_attention,
                       const OptionalTensor &norm_before_mlp, const OptionalTensor &norm_after_mlp, double epsilon,
                       int64_t scaling, int64_t activation, at::TensorList plan, int64_t hidden_size) {
    check_rows(x), check_rows(attended);
    const int64_t rows = x.size(0), size = x.size(1);
    TORCH_CHECK(out_features.size() == 4 && out_features[1] == out_features[2] && out_features[0] == size &&
                    out_features[3] == size && attended.size(0) == rows,
                "four layers: o to x, gate like up, down to x");
    const int64_t inner_features = out_features[1];
    const Runs runs(plan, hidden_size, rows);
    const Layer out = layer_of(layers, 0, attended.size(1), size, runs);
    const Layer gates = layer_of(layers, 1, size, inner_features, runs);
    const Layer ups = layer_of(layers, 2, size, inner_features, runs);
    const Layer down = layer_of(layers, 3, inner_features, size, runs);
    const Norms norms{static_cast<float>(epsilon), static_cast<Scaling>(scaling), size};
    const uint16_t *first_norm = norms.weight(norm_after_attention), *second_norm = norms.weight(norm_before_mlp),
                   *last_norm = norms.weight(norm_after_mlp);
    TORCH_CHECK(second_norm, "the norm before the MLP is missing");
    Tensor y = at::empty(x.sizes(), x.options());
    if (rows == 0)
        return y;
    const Tensor middle = at::empty({3, rows, size}, x.options()); // what a layer gave; h; n
    uint16_t *given = write(middle), *h = given + rows * size, *n = h + rows * size;
    const Tensor inner = at::empty({rows, inner_features}, x.options());
    LinearJob first(read(attended), rows, attended.size(1)), both(n, rows, size), last(read(inner), rows, inner_features);
    first.add(out, given), both.add(gates, nullptr), both.add(ups, nullptr), last.add(down, given);
    const auto join = [&](int64_t row) {
        const int64_t at = row * size;
        if (first_norm)
            norms.apply(given + at, first_norm, given + at);
        loraplex::add(read(x) + at, given + at, size, h + at);
        norms.apply(h + at, second_norm, n + at);
    };
    const auto conclude = [&](int64_t row) {
        const int64_t at = row * size;
        if (last_norm)
            norms.apply(given + at, last_norm, given + at);
        loraplex::add(h + at, given + at, size, write(y) + at);
    };
    const Stage gated = gated_stage(gates, ups, both, rows, static_cast<Activation>(activation), write(inner));
    const Stage stages[] = {first.prepare(), first.multiply(), row_stage(rows, join), both.prepare(), gated,
                            last.prepare(),  last.multiply(),  row_stage(rows, conclude)};
    static_assert(std::size(stages) <= loraplex::MOST_STAGES);
    loraplex::run_stages(stages, std::size(stages), loraplex::thread_count(),
                         loraplex::effort_of(first.values() + both.values() + last.values()));
    return y;
}

// logits [S, V] bf16 -> [S] int64: the place of each row's largest value, -1 where one is not finite.
Tensor largest(const Tensor &logits) {
    check_rows(logits);
    Tensor places = at::empty({logits.size(0)}, logits.options().dtype(at::kLong));
    auto *target = places.mutable_data_ptr<int64_t>();
    const Stage stage = row_stage(logits.size(0), [&](int64_t row) {
        target[row] = loraplex::largest(read(logits) + row * logits.size(1), logits.size(1));
    });
    loraplex::run_stages(&stage, 1, loraplex::thread_count(), loraplex::effort_of(logits.numel()));
    return places;
}

// x [T, K] bf16, weight [K] bf16 -> [T, K].
Tensor rms_norm(const Tensor &x, const Tensor &weight, double epsilon, int64_t scaling) {
    check_rows(x);
    TORCH_CHECK(weight.scalar_type() == at::kBFloat16 && weight.numel() == x.size(1), "weight: bfloat16 [K]");
    Tensor y = at::empty(x.sizes(), x.options());
    const int64_t size = x.size(1);
    const Stage stage{x.size(0), loraplex::share_of(x.size(0)), [&](int64_t first, int64_t last) {
                          for (int64_t row = first; row < last; row++)
                              loraplex::rms_norm(read(x) + row * size, read(weight), size, static_cast<float>(epsilon),
                                                 static_cast<Scaling>(scaling), write(y) + row * size);
                      }};
    loraplex::run_stages(&stage, 1, loraplex::thread_count(), loraplex::effort_of(x.numel()));
    return y;
}

} // namespace

TORCH_LIBRARY_FRAGMENT(loraplex, library) {
    library.def("rms_norm(Tensor x, Tensor weight, float epsilon, int scaling) -> Tensor");
    library.def("rotate_heads(Tensor(a!) q, Tensor(b!) k, Tensor cosines, Tensor sines, Tensor? q_norm, "
                "Tensor? k_norm, float epsilon, int scaling) -> ()");
    library.def("attention_inputs(Tensor x, Tensor?[] layers, int[] out_features, Tensor cosines, Tensor sines, "
                "Tensor? norm, Tensor? q_norm, Tensor? k_norm, float epsilon, int scaling, Tensor[] plan, "
                "int hidden_size) -> (Tensor, Tensor, Tensor)");
    library.def("after_attention(Tensor x, Tensor attended, Tensor?[] layers, int[] out_features, "
                "Tensor? norm_after_attention, Tensor? norm_before_mlp, Tensor? norm_after_mlp, float epsilon, "
                "int scaling, int activation, Tensor[] plan, int hidden_size) -> Tensor");
    library.def("largest(Tensor logits) -> Tensor");
    library.def("gate(Tensor gates, Tensor ups, int activation) -> Tensor");
    library.def("gated_mlp(Tensor x, Tensor?[] layers, int[] out_features, int activation, Tensor[] plan, "
                "int hidden_size) -> Tensor");
}

TORCH_LIBRARY_IMPL(loraplex, CPU, library) {
    library.impl("rms_norm", &rms_norm);
    library.impl("rotate_heads", &rotate_heads);
    library.impl("attention_inputs", &attention_inputs);
    library.impl("after_attention", &after_attention);
    library.impl("largest", &largest);
    library.impl("gate", &gate);
    library.impl("gated_mlp", &gated_mlp);
}

// Fused blocks of a decoder layer as torch operators. Compiled for any processor.
//
// Each equals its parts by the bit: `attention_inputs` is three `nf4_linear` and `rotate_heads`, `gated_linear` is two
// `nf4_linear` and `gate`. So a step that must compute the parts (attach.py) gives a row the same bits.
#include "linear_job.h"
#include "row_math.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <array>
#include <tuple>

namespace {

using loraplex::Activation, loraplex::Layer, loraplex::LinearJob, loraplex::OptionalTensor, loraplex::Runs,
    loraplex::Scaling, loraplex::Stage, loraplex::STRIP, at::Tensor;

const uint16_t *read(const Tensor &tensor) { return static_cast<const uint16_t *>(tensor.data_ptr()); }
uint16_t *write(const Tensor &tensor) { return static_cast<uint16_t *>(tensor.data_ptr()); }

void check_rows(const Tensor &x) {
    TORCH_CHECK(x.is_contiguous() && x.scalar_type() == at::kBFloat16 && x.dim() == 2, "rows: contiguous bfloat16");
}

// Four tensors for each layer, see Layer: weight, bias, a, b.
Layer layer_of(const c10::List<OptionalTensor> &parts, size_t number, int64_t in_features, int64_t out_features,
               const Runs &runs) {
    TORCH_CHECK(parts.size() >= 4 * number + 4, "four tensors for each layer");
    const auto part = [&](size_t index) -> OptionalTensor { return parts.get(4 * number + index); };
    return Layer(part(0), part(1), part(2), part(3), in_features, out_features, runs);
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

// x [T, K] bf16 -> q [T, A D], k and v [T, G D]: three layers and what `rotate_heads` does.
std::tuple<Tensor, Tensor, Tensor> attention_inputs(
    const Tensor &x, const c10::List<OptionalTensor> &layers, at::IntArrayRef out_features, const Tensor &cosines,
    const Tensor &sines, const OptionalTensor &q_norm, const OptionalTensor &k_norm, double epsilon, int64_t scaling,
    at::TensorList plan, int64_t hidden_size) {
    check_rows(x);
    TORCH_CHECK(out_features.size() == 3, "three layers");
    const int64_t rows = x.size(0), in_features = x.size(1);
    const Runs runs(plan, hidden_size, rows);
    const std::array<Layer, 3> own{layer_of(layers, 0, in_features, out_features[0], runs),
                                   layer_of(layers, 1, in_features, out_features[1], runs),
                                   layer_of(layers, 2, in_features, out_features[2], runs)};
    std::array<Tensor, 3> y;
    LinearJob job(read(x), rows, in_features);
    for (int index = 0; index < 3; index++) {
        y[index] = at::empty({rows, out_features[index]}, x.options());
        job.add(own[index], write(y[index]));
    }
    if (rows == 0)
        return {y[0], y[1], y[2]};
    const HeadJob heads = head_job(y[0], y[1], cosines, sines, q_norm, k_norm, epsilon, scaling);
    const Stage stages[] = {job.prepare(), job.multiply(), head_stage(heads)};
    loraplex::run_stages(stages, 3, loraplex::thread_count(), loraplex::effort_of(job.values()));
    return {y[0], y[1], y[2]};
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

// Strips [first, last) of y [T, I] = activation(gate) * up, each from a strip of both layers.
void gated_strips(const Layer &gates, const Layer &ups, const LinearJob &job, int64_t rows, Activation activation,
                  int64_t first, int64_t last, uint16_t *y) {
    thread_local std::vector<uint16_t> room;
    room.resize(2 * rows * STRIP);
    uint16_t *gate_rows = room.data(), *up_rows = gate_rows + rows * STRIP;
    uint16_t *scratch = rows > loraplex::TILE_ROWS ? loraplex::strip_scratch(gates.in_features) : nullptr;
    for (int64_t index = first; index < last; index++) {
        const loraplex::Strip pair[] = {gates.strip(index, gate_rows, STRIP), ups.strip(index, up_rows, STRIP)};
        loraplex::multiply_strips(pair, 2, job.packed(), rows, gates.in_features, scratch);
        for (int64_t row = 0; row < rows; row++)
            loraplex::gate(gate_rows + row * STRIP, up_rows + row * STRIP, pair[0].outputs, activation,
                           y + row * gates.out_features + index * STRIP);
    }
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
    const Stage gated{gates.strips, std::min<int64_t>(loraplex::share_of(gates.strips), 8),
                      [&](int64_t begin, int64_t end) {
                          gated_strips(gates, ups, both, rows, static_cast<Activation>(activation), begin, end,
                                       write(inner));
                      }};
    const Stage stages[] = {both.prepare(), gated, last.prepare(), last.multiply()};
    loraplex::run_stages(stages, 4, loraplex::thread_count(), loraplex::effort_of(both.values() + last.values()));
    return y;
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
                "Tensor? q_norm, Tensor? k_norm, float epsilon, int scaling, Tensor[] plan, int hidden_size) "
                "-> (Tensor, Tensor, Tensor)");
    library.def("gate(Tensor gates, Tensor ups, int activation) -> Tensor");
    library.def("gated_mlp(Tensor x, Tensor?[] layers, int[] out_features, int activation, Tensor[] plan, "
                "int hidden_size) -> Tensor");
}

TORCH_LIBRARY_IMPL(loraplex, CPU, library) {
    library.impl("rms_norm", &rms_norm);
    library.impl("rotate_heads", &rotate_heads);
    library.impl("attention_inputs", &attention_inputs);
    library.impl("gate", &gate);
    library.impl("gated_mlp", &gated_mlp);
}

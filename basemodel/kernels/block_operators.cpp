// Fused blocks of a decoder layer as torch operators. Compiled for any processor.
//
// Each equals its parts by the bit: `attention_inputs` is a norm, three `nf4_linear` and `rotate_heads`, `gated_mlp` is
// three `nf4_linear` and `gate`, and `after_attention` is made of them, norms and sums. So a step that must compute the
// parts (attach.py) gives a row the same bits.
#include "block_jobs.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <array>
#include <tuple>

namespace {

using loraplex::Activation, loraplex::HeadJob, loraplex::Layer, loraplex::Norms, loraplex::OptionalTensor,
    loraplex::Runs, loraplex::Scaling, loraplex::Stage, loraplex::Stages, loraplex::STRIP, loraplex::Turn, at::Tensor;
using loraplex::read, loraplex::row_stage, loraplex::write;

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

HeadJob head_job(const Tensor &q, const Tensor &k, const Tensor &cosines, const Tensor &sines,
                 const OptionalTensor &q_norm, const OptionalTensor &k_norm, double epsilon, int64_t scaling) {
    const Turn turn(cosines, sines, std::nullopt, q.size(0));
    const Norms norms{static_cast<float>(epsilon), static_cast<Scaling>(scaling), turn.size};
    TORCH_CHECK(q.size(1) % turn.size == 0 && k.size(1) % turn.size == 0, "q and k: whole heads");
    return {write(q), write(k), q.size(0), q.size(1) / turn.size, k.size(1) / turn.size, turn, norms,
            norms.weight(q_norm), norms.weight(k_norm)};
}

void run(const Stages &stages, int64_t values) {
    loraplex::run_stages(stages.data(), stages.size(), loraplex::thread_count(), loraplex::effort_of(values));
}

// q [T, A D] and k [T, G D] bf16 are normed and rotated in place; cosines and sines [T, D], norms [D].
void rotate_heads(const Tensor &q, const Tensor &k, const Tensor &cosines, const Tensor &sines,
                  const OptionalTensor &q_norm, const OptionalTensor &k_norm, double epsilon, int64_t scaling) {
    check_rows(q), check_rows(k);
    const HeadJob heads = head_job(q, k, cosines, sines, q_norm, k_norm, epsilon, scaling);
    run({heads.stage()}, 4 * (q.numel() + k.numel()));
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
    const Norms norms{static_cast<float>(epsilon), static_cast<Scaling>(scaling), in_features};
    const uint16_t *weight = norms.weight(norm);
    const Tensor normed = weight ? at::empty(x.sizes(), x.options()) : x;
    std::array<Tensor, 3> y;
    for (int index = 0; index < 3; index++)
        y[index] = at::empty({rows, out_features[index]}, x.options());
    loraplex::AttentionInputs job({layer_of(layers, 0, in_features, out_features[0], runs),
                                   layer_of(layers, 1, in_features, out_features[1], runs),
                                   layer_of(layers, 2, in_features, out_features[2], runs)},
                                  read(x), norms, weight,
                                  head_job(y[0], y[1], cosines, sines, q_norm, k_norm, epsilon, scaling), write(y[2]),
                                  write(normed));
    Stages stages;
    job.add_stages(stages);
    if (rows > 0)
        run(stages, job.values());
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
    run({stage}, 8 * gates.numel());
    return y;
}

// x [T, K] bf16 -> [T, K']: gate and up, their gate, and the layer down. Three layers: gate and up [I, K], down [K', I].
Tensor gated_mlp(const Tensor &x, const c10::List<OptionalTensor> &layers, at::IntArrayRef out_features,
                 int64_t activation, at::TensorList plan, int64_t hidden_size) {
    check_rows(x);
    TORCH_CHECK(out_features.size() == 3 && out_features[0] == out_features[1], "three layers, gate like up");
    const int64_t rows = x.size(0), in_features = x.size(1), inner_features = out_features[0];
    const Runs runs(plan, hidden_size, rows);
    Tensor inner = at::empty({rows, inner_features}, x.options()), y = at::empty({rows, out_features[2]}, x.options());
    loraplex::GatedMLP job({layer_of(layers, 0, in_features, inner_features, runs),
                            layer_of(layers, 1, in_features, inner_features, runs),
                            layer_of(layers, 2, inner_features, out_features[2], runs)},
                           read(x), rows, static_cast<Activation>(activation), write(y), write(inner));
    Stages stages;
    job.add_stages(stages);
    if (rows > 0)
        run(stages, job.values());
    return y;
}

// What follows attention in a decoder layer, see AfterAttention: x [T, H] and attended [T, A D] bf16 -> [T, H].
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
    const Norms norms{static_cast<float>(epsilon), static_cast<Scaling>(scaling), size};
    Tensor y = at::empty(x.sizes(), x.options());
    const Tensor middle = at::empty({3, rows, size}, x.options());
    const Tensor inner = at::empty({rows, inner_features}, x.options());
    loraplex::AfterAttention job(
        layer_of(layers, 0, attended.size(1), size, runs),
        {layer_of(layers, 1, size, inner_features, runs), layer_of(layers, 2, size, inner_features, runs),
         layer_of(layers, 3, inner_features, size, runs)},
        read(x), read(attended), rows, norms,
        {norms.weight(norm_after_attention), norms.weight(norm_before_mlp), norms.weight(norm_after_mlp)},
        static_cast<Activation>(activation), write(y), write(middle), write(inner));
    Stages stages;
    job.add_stages(stages);
    if (rows > 0)
        run(stages, job.values());
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

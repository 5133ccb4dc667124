// The kernels as torch operators, one layer each, over their own threads (team.h). Compiled for any processor.
#include "block_jobs.h"
#include "factor_layout.h"
#include "kept_memory.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

namespace {

using loraplex::OptionalTensor, loraplex::read, loraplex::Stage, loraplex::write, at::Tensor;

// x [T, K] bf16, weight [strips * blocks * UNIT_BYTES] uint8, bias [O] bf16 -> [T, O] bf16.
// table [R, 4] int64: `Factors`; first_use [T + 1], uses [U], groups [G, 5], members [U] int64 and weights [U] float as
// `Adapters` and `Group` describe them; changed [T] int32, scale and shift [N, strips * 16] as `Changes`.
Tensor nf4_linear(const Tensor &x, const Tensor &weight, const OptionalTensor &bias, int64_t out_features,
                  const OptionalTensor &table, const OptionalTensor &first_use, const OptionalTensor &uses,
                  const OptionalTensor &weights, const OptionalTensor &groups,
                  const OptionalTensor &members, int64_t hidden_size, const OptionalTensor &changed,
                  const OptionalTensor &scale, const OptionalTensor &shift) {
    TORCH_CHECK(x.is_contiguous() && x.scalar_type() == at::kBFloat16, "x must be contiguous bfloat16 [T, K]");
    const int64_t rows = x.size(0), in_features = x.size(1);
    std::vector<Tensor> plan;
    if (groups)
        plan = {*first_use, *uses, *weights, *groups, *members};
    const loraplex::Runs runs(plan, hidden_size, rows);
    loraplex::Layer layer(weight, bias, table, in_features, out_features, runs);
    if (changed)
        layer.change(*changed, *scale, *shift, rows);
    Tensor y = at::empty({rows, out_features}, x.options());
    if (rows == 0)
        return y;
    loraplex::LinearJob job(read(x), rows, in_features);
    job.add(layer, write(y));
    const Stage stages[] = {job.prepare(), job.multiply()};
    loraplex::run_stages(stages, 2, loraplex::thread_count(), loraplex::effort_of(job.values()));
    return y;
}

// x [T, K] bf16, weight [O, K] bf16, bias [O] bf16 -> [T, O] bf16: the output head. The rest as for nf4_linear.
Tensor bf16_linear(const Tensor &x, const Tensor &weight, const OptionalTensor &bias,
                   const OptionalTensor &table, const OptionalTensor &first_use, const OptionalTensor &uses,
                   const OptionalTensor &weights, const OptionalTensor &groups, const OptionalTensor &members,
                   int64_t hidden_size, const OptionalTensor &changed, const OptionalTensor &scale,
                   const OptionalTensor &shift) {
    const int64_t rows = x.size(0), in_features = x.size(1), out_features = weight.size(0);
    const int64_t strips = out_features / loraplex::STRIP;
    TORCH_CHECK(x.is_contiguous() && x.scalar_type() == at::kBFloat16, "x must be contiguous bfloat16 [T, K]");
    TORCH_CHECK(in_features % loraplex::BLOCK == 0, "in_features must be a multiple of 64");
    TORCH_CHECK(weight.is_contiguous() && weight.size(1) == in_features && out_features % loraplex::STRIP == 0,
                "weight must be contiguous [O, K], and O a multiple of 16");
    Tensor y = at::empty({rows, out_features}, x.options());
    if (rows == 0)
        return y;
    std::vector<Tensor> plan;
    if (groups)
        plan = {*first_use, *uses, *weights, *groups, *members};
    const loraplex::Runs runs(plan, hidden_size, rows);
    loraplex::Layer layer(weight, bias, table, in_features, out_features, runs);
    if (changed)
        layer.change(*changed, *scale, *shift, rows);
    loraplex::LinearJob job(read(x), rows, in_features); // it packs x and computes x A; the strips are multiplied here
    job.add(layer, write(y));
    const auto work = [&](int64_t first, int64_t last) {
        loraplex::multiply_dense(read(weight), job.packed(), layer.bias, layer.adapters ? &*layer.adapters : nullptr,
                                 layer.changes ? &*layer.changes : nullptr, rows, in_features, out_features, first,
                                 last, write(y), loraplex::strip_scratch(rows, 0, layer.members()));
    };
    const auto ask = [&](int64_t first, int64_t piece) {
        const int64_t blocks = in_features / loraplex::BLOCK, strip = first + piece / blocks;
        if (strip < strips)
            loraplex::prefetch_dense(read(weight) + strip * loraplex::STRIP * in_features, piece % blocks);
    };
    const Stage multiply{strips, loraplex::share_of(strips), work, ask, loraplex::FORESIGHT / 4};
    const Stage stages[] = {job.prepare(), multiply};
    loraplex::run_stages(stages, 2, loraplex::thread_count(),
                         loraplex::effort_of(weight.numel() * (rows + 63) / 64));
    return y;
}

// query [T, A, D], keys and values [S, G, D] bf16; slots, starts [T], lengths [T] int64 (see AttentionInput)
// -> [T, A, D]. With key and value [T, G, D], these are first written to their `write_slots` [T].
Tensor paged_attention(const Tensor &query, const Tensor &keys, const Tensor &values, const Tensor &slots,
                       const Tensor &starts, const Tensor &lengths, double scaling, int64_t window, double softcap,
                       const OptionalTensor &key, const OptionalTensor &value, const OptionalTensor &write_slots) {
    TORCH_CHECK(query.dim() == 3 && keys.dim() == 3 && values.sizes() == keys.sizes(), "query, keys, values: 3 axes");
    TORCH_CHECK(query.scalar_type() == at::kBFloat16 && keys.scalar_type() == at::kBFloat16, "bfloat16 is needed");
    TORCH_CHECK(query.size(2) == keys.size(2) && query.size(2) % loraplex::HEAD_STEP == 0, "head size: 32 divides it");
    TORCH_CHECK(query.size(1) % keys.size(1) == 0, "heads must be a multiple of key-value heads");
    TORCH_CHECK(keys.is_contiguous() && values.is_contiguous(), "the cache must be contiguous");
    const Tensor q = query.contiguous();
    Tensor output = at::empty(q.sizes(), q.options());
    const int64_t tokens = q.size(0);
    loraplex::AttentionJob job({read(q), read(keys), read(values), slots.const_data_ptr<int64_t>(),
                                starts.const_data_ptr<int64_t>(), lengths.const_data_ptr<int64_t>(), q.size(1),
                                keys.size(1), q.size(2), static_cast<float>(scaling), window,
                                static_cast<float>(softcap)},
                               tokens, write(output));
    loraplex::Stages stages;
    if (key) {
        TORCH_CHECK(key->is_contiguous() && value->is_contiguous() && key->scalar_type() == at::kBFloat16 &&
                        key->size(0) == tokens && key->size(1) == keys.size(1) && key->size(2) == keys.size(2) &&
                        value->sizes() == key->sizes(),
                    "key and value must be contiguous and like the cache");
        loraplex::check_slots(*write_slots, tokens, keys.size(0));
        const loraplex::NewKeys stored{read(*key), read(*value), write_slots->const_data_ptr<int64_t>()};
        job.add_stages(stages, &stored);
    } else {
        job.add_stages(stages, nullptr);
    }
    loraplex::run_stages(stages.data(), stages.size(), loraplex::thread_count(), loraplex::effort_of(job.values()));
    return output;
}

// weight as for nf4_linear -> [strips * 16] float: the sum of squares of each row.
Tensor nf4_row_squares(const Tensor &weight, int64_t out_features, int64_t in_features) {
    const int64_t strips = loraplex::strip_count(out_features);
    TORCH_CHECK(in_features % loraplex::BLOCK == 0, "in_features must be a multiple of 64");
    TORCH_CHECK(weight.numel() >= strips * (in_features / loraplex::BLOCK) * loraplex::UNIT_BYTES, "weight too small");
    Tensor squares = at::empty({strips * loraplex::STRIP}, weight.options().dtype(at::kFloat));
    loraplex::row_squares(static_cast<const uint8_t *>(weight.data_ptr()), in_features, 0, strips,
                          squares.mutable_data_ptr<float>());
    return squares;
}

loraplex::FilePair file_pair(const Tensor &a, const Tensor &b, double scale) {
    const auto values = [](const Tensor &given) {
        TORCH_CHECK(given.is_contiguous() && given.dim() == 2 &&
                        (given.scalar_type() == at::kFloat || given.scalar_type() == at::kBFloat16),
                    "a [r, K], b [O, r]: contiguous float or bfloat16");
        return loraplex::FileValues{given.data_ptr(), given.scalar_type() == at::kBFloat16};
    };
    TORCH_CHECK(a.size(0) == b.size(1), "a [r, K], b [O, r]: of one rank");
    return {values(a), values(b), a.size(1), b.size(0), a.size(0), static_cast<float>(scale)};
}

// A pair on its way into the memory: its grid where it has one, and where it is to lie, in bytes.
struct Move {
    loraplex::FilePair pair;
    std::vector<int32_t> exponents;
    std::vector<float> steps;
    bool has_steps;
    int64_t a = 0, b = 0, steps_at = 0;

    explicit Move(const loraplex::FilePair &given)
        : pair(given), exponents(2 * given.rank), steps(given.rank),
          has_steps(loraplex::find_grid(given, exponents.data(), steps.data())) {}
    int64_t value_bytes() const { return has_steps ? 1 : 2; }
    int64_t strips() const { return loraplex::strip_count(pair.outputs); }
};

// Each a [r, K] and b [O, r], float or bf16 -> a and scale * b as a layer keeps them: a [r, K] and b [strips, r, 16], bf16;
// or, where a grid holds them, int8 beside steps [r] float, which are empty otherwise. All of them are parts of one piece
// of memory (kept_memory.h). And the number of the first pair that is not finite, -1 if all are. All of an adapter in one
// call: Python's lock is let go once, not once for each of hundreds of layers.
std::tuple<std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>, int64_t>
lay_out_factors(at::TensorList a, at::TensorList b, at::ArrayRef<double> scales) {
    TORCH_CHECK(a.size() == b.size() && a.size() == scales.size(), "a, b and scales: one of each for each pair");
    std::vector<Move> moves;
    moves.reserve(a.size());
    int64_t room = 0;
    const auto take = [&room](int64_t bytes) {
        const int64_t begin = room;
        room += (bytes + loraplex::FACTOR_ALIGNMENT - 1) / loraplex::FACTOR_ALIGNMENT * loraplex::FACTOR_ALIGNMENT;
        return begin;
    };
    for (size_t index = 0; index < a.size(); index++) {
        Move &move = moves.emplace_back(file_pair(a[index], b[index], scales[index]));
        move.a = take(move.value_bytes() * move.pair.rank * move.pair.inputs);
        move.b = take(move.value_bytes() * move.pair.rank * move.strips() * loraplex::STRIP);
        move.steps_at = move.has_steps ? take(sizeof(float) * move.pair.rank) : 0;
    }
    const Tensor memory = loraplex::factor_memory(room);
    auto *const data = memory.mutable_data_ptr<uint8_t>();
    const Tensor rounded = memory.view(at::kBFloat16), whole = memory.view(at::kChar), floats = memory.view(at::kFloat);
    const Tensor none = at::empty({0}, floats.options());
    std::vector<Tensor> kept_a, kept_b, kept_steps;
    int64_t first_bad = -1;
    for (size_t index = 0; index < moves.size(); index++) {
        const Move &move = moves[index];
        const Tensor &of_type = move.has_steps ? whole : rounded;
        const int64_t size = move.value_bytes(), rank = move.pair.rank, inputs = move.pair.inputs;
        kept_a.push_back(of_type.as_strided({rank, inputs}, {inputs, 1}, move.a / size));
        kept_b.push_back(of_type.as_strided({move.strips(), rank, loraplex::STRIP},
                                            {rank * loraplex::STRIP, loraplex::STRIP, 1}, move.b / size));
        kept_steps.push_back(move.has_steps ? floats.as_strided({rank}, {1}, move.steps_at / sizeof(float)) : none);
        if (move.has_steps) {
            loraplex::lay_out_steps(move.pair, move.exponents.data(), reinterpret_cast<int8_t *>(data + move.a),
                                    reinterpret_cast<int8_t *>(data + move.b));
            std::copy(move.steps.begin(), move.steps.end(), reinterpret_cast<float *>(data + move.steps_at));
        } else if (!loraplex::lay_out_rounded(move.pair, reinterpret_cast<uint16_t *>(data + move.a),
                                              reinterpret_cast<uint16_t *>(data + move.b)) &&
                   first_bad < 0) {
            first_bad = static_cast<int64_t>(index);
        }
    }
    return {kept_a, kept_b, kept_steps, first_bad};
}

int64_t kept_factor_bytes() { return loraplex::kept_bytes(); }
bool is_supported() { return loraplex::is_supported(); }

} // namespace

TORCH_LIBRARY(loraplex, library) {
    library.def("nf4_linear(Tensor x, Tensor weight, Tensor? bias, int out_features, "
                "Tensor? table=None, Tensor? first_use=None, "
                "Tensor? uses=None, Tensor? weights=None, Tensor? groups=None, Tensor? members=None, "
                "int hidden_size=0, Tensor? changed=None, Tensor? scale=None, Tensor? shift=None) -> Tensor");
    library.def("bf16_linear(Tensor x, Tensor weight, Tensor? bias, "
                "Tensor? table=None, Tensor? first_use=None, "
                "Tensor? uses=None, Tensor? weights=None, Tensor? groups=None, Tensor? members=None, "
                "int hidden_size=0, Tensor? changed=None, Tensor? scale=None, Tensor? shift=None) -> Tensor");
    library.def("nf4_row_squares(Tensor weight, int out_features, int in_features) -> Tensor");
    library.def("paged_attention(Tensor query, Tensor(a!) keys, Tensor(b!) values, Tensor slots, Tensor starts, "
                "Tensor lengths, float scaling, int window, float softcap, Tensor? key=None, Tensor? value=None, "
                "Tensor? write_slots=None) -> Tensor");
    library.def("lay_out_factors(Tensor[] a, Tensor[] b, float[] scales) -> (Tensor[], Tensor[], Tensor[], int)");
    library.def("kept_factor_bytes() -> int", &kept_factor_bytes);
    library.def("is_supported() -> bool", &is_supported);
}

TORCH_LIBRARY_IMPL(loraplex, CPU, library) {
    library.impl("nf4_linear", &nf4_linear);
    library.impl("bf16_linear", &bf16_linear);
    library.impl("nf4_row_squares", &nf4_row_squares);
    library.impl("paged_attention", &paged_attention);
    library.impl("lay_out_factors", &lay_out_factors);
}

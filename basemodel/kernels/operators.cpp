// The kernel as a torch operator, over torch's own threads. Compiled for any processor.
#include "nf4_linear.h"
#include "paged_attention.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <vector>

namespace {

using at::Tensor;

constexpr int64_t SMALL_WORK = 1 << 16; // values below which a second thread costs more than it brings

template <typename Function> void in_threads(int64_t count, bool is_small, const Function &function) {
    if (is_small)
        function(0, count);
    else
        at::parallel_for(0, count, 1, function);
}

// The plan of a step (basemodel/lora_ops.py, LoraRuns) over one layer's arena. Everything but `hidden` is only read.
loraplex::Adapters adapters_of(const Tensor &a, const Tensor &b, const Tensor &first_use, const Tensor &uses,
                               const Tensor &weights, const Tensor &groups, const Tensor &members,
                               const Tensor &hidden, int64_t rows) {
    static_assert(sizeof(loraplex::Use) == 3 * sizeof(int64_t), "Use is three integers");
    static_assert(sizeof(loraplex::Group) == 5 * sizeof(int64_t), "Group is five integers");
    TORCH_CHECK(first_use.numel() == rows + 1, "the plan is for ", first_use.numel() - 1, " rows, and x has ", rows);
    TORCH_CHECK(uses.size(0) == members.size(0) && uses.size(0) == weights.size(0), "a use has no weight or member");
    return {static_cast<const uint16_t *>(a.data_ptr()),
            static_cast<const uint16_t *>(b.data_ptr()),
            a.size(0),
            first_use.const_data_ptr<int64_t>(),
            reinterpret_cast<const loraplex::Use *>(uses.const_data_ptr<int64_t>()),
            weights.const_data_ptr<float>(),
            reinterpret_cast<const loraplex::Group *>(groups.const_data_ptr<int64_t>()),
            groups.size(0),
            members.const_data_ptr<int64_t>(),
            hidden.mutable_data_ptr<float>()};
}

// x [T, K] bf16, weight [strips * blocks * UNIT_BYTES] uint8, bias [O] bf16 -> [T, O] bf16.
// a [R, K] and b [strips, R, 16] bf16; first_use [T + 1], uses [U, 3], groups [G, 5], members [U] int64 and weights [U]
// float as `Adapters`, `Use` and `Group` describe them.
Tensor nf4_linear(const Tensor &x, const Tensor &weight, const std::optional<Tensor> &bias, int64_t out_features,
                  const std::optional<Tensor> &a, const std::optional<Tensor> &b,
                  const std::optional<Tensor> &first_use, const std::optional<Tensor> &uses,
                  const std::optional<Tensor> &weights, const std::optional<Tensor> &groups,
                  const std::optional<Tensor> &members, int64_t hidden_size) {
    const int64_t rows = x.size(0), in_features = x.size(1);
    const int64_t strips = (out_features + loraplex::STRIP - 1) / loraplex::STRIP;
    TORCH_CHECK(x.is_contiguous() && x.scalar_type() == at::kBFloat16, "x must be contiguous bfloat16 [T, K]");
    TORCH_CHECK(in_features % loraplex::BLOCK == 0, "in_features must be a multiple of 64");
    TORCH_CHECK(weight.numel() >= strips * (in_features / loraplex::BLOCK) * loraplex::UNIT_BYTES, "weight too small");
    Tensor y = at::empty({rows, out_features}, x.options());
    if (rows == 0)
        return y;
    const auto *source = static_cast<const uint16_t *>(x.data_ptr());
    const auto *codes = static_cast<const uint8_t *>(weight.data_ptr());
    const auto *offsets = bias ? static_cast<const uint16_t *>(bias->data_ptr()) : nullptr;
    auto *target = static_cast<uint16_t *>(y.data_ptr());

    Tensor packed = at::empty({loraplex::packed_size(rows, in_features)}, x.options());
    auto *tiles = static_cast<uint16_t *>(packed.data_ptr());
    const int64_t row_groups = (rows + loraplex::TILE_ROWS - 1) / loraplex::TILE_ROWS;
    in_threads(row_groups, rows * in_features < 4 * SMALL_WORK, [&](int64_t first, int64_t last) {
        loraplex::pack_rows(source, rows, in_features, first, last, tiles);
    });

    Tensor hidden;
    loraplex::Adapters adapters{};
    if (groups) {
        hidden = at::empty({hidden_size}, x.options().dtype(at::kFloat));
        TORCH_CHECK(a->scalar_type() == at::kBFloat16 && b->scalar_type() == at::kBFloat16 && a->is_contiguous() &&
                        b->is_contiguous() && a->size(1) == in_features && b->size(0) == strips &&
                        b->size(1) == a->size(0),
                    "a must be bfloat16 [R, K] and b [strips, R, 16]");
        adapters = adapters_of(*a, *b, *first_use, *uses, *weights, *groups, *members, hidden, rows);
        std::vector<int64_t> ranks{0}; // of all groups, one after the other: what the threads share out
        for (int64_t index = 0; index < adapters.group_count; index++)
            ranks.push_back(ranks.back() + adapters.groups[index].rank);
        in_threads(ranks.back(), hidden_size * in_features < 2 * SMALL_WORK, [&](int64_t first, int64_t last) {
            for (int64_t index = 0; index < adapters.group_count; index++)
                loraplex::shrink(source, in_features, adapters, index, first - ranks[index], last - ranks[index]);
        });
    }

    const bool is_small = strips * in_features < SMALL_WORK / 4;
    in_threads(strips, is_small, [&](int64_t first, int64_t last) {
        std::vector<uint16_t> room(rows > loraplex::TILE_ROWS ? loraplex::STRIP * in_features + 32 : 0);
        auto *scratch = reinterpret_cast<uint16_t *>((reinterpret_cast<uintptr_t>(room.data()) + 63) & ~uintptr_t{63});
        loraplex::multiply_strips(codes, tiles, offsets, groups ? &adapters : nullptr, rows, in_features, out_features,
                                  first, last, scratch, target);
    });
    return y;
}

// query [T, A, D], keys and values [S, G, D] bf16; slots, starts [T], lengths [T] int64 (see AttentionInput) -> [T, A, D].
Tensor paged_attention(const Tensor &query, const Tensor &keys, const Tensor &values, const Tensor &slots,
                       const Tensor &starts, const Tensor &lengths, double scaling, int64_t window, double softcap) {
    TORCH_CHECK(query.dim() == 3 && keys.dim() == 3 && values.sizes() == keys.sizes(), "query, keys, values: 3 axes");
    TORCH_CHECK(query.scalar_type() == at::kBFloat16 && keys.scalar_type() == at::kBFloat16, "bfloat16 is needed");
    TORCH_CHECK(query.size(2) == keys.size(2) && query.size(2) % loraplex::HEAD_STEP == 0, "head size: 32 divides it");
    TORCH_CHECK(query.size(1) % keys.size(1) == 0, "heads must be a multiple of key-value heads");
    TORCH_CHECK(keys.is_contiguous() && values.is_contiguous(), "the cache must be contiguous");
    const Tensor q = query.contiguous();
    Tensor output = at::empty(q.sizes(), q.options());
    const loraplex::AttentionInput input{
        static_cast<const uint16_t *>(q.data_ptr()), static_cast<const uint16_t *>(keys.data_ptr()),
        static_cast<const uint16_t *>(values.data_ptr()), slots.const_data_ptr<int64_t>(),
        starts.const_data_ptr<int64_t>(), lengths.const_data_ptr<int64_t>(), q.size(1), keys.size(1), q.size(2),
        static_cast<float>(scaling), window, static_cast<float>(softcap)};
    const int64_t tokens = q.size(0), groups = keys.size(1);
    int64_t longest = 0, work = 0;
    for (int64_t token = 0; token < tokens; token++) {
        longest = std::max(longest, input.lengths[token]);
        work += input.lengths[token];
    }
    auto *target = static_cast<uint16_t *>(output.data_ptr());
    const bool is_small = work * q.size(1) * q.size(2) < SMALL_WORK;
    const int64_t shares = is_small ? 1 : at::get_num_threads();
    // Later tokens of a prompt see more positions: dealt out in turns, so that every thread gets early and late ones.
    in_threads(shares, is_small, [&](int64_t first, int64_t last) {
        std::vector<float> scratch(loraplex::MOST_SHARING * longest);
        for (int64_t share = first; share < last; share++)
            for (int64_t item = share; item < tokens * groups; item += shares)
                loraplex::attend(input, item / groups, item % groups, scratch.data(), target);
    });
    return output;
}

// x [T, K] bf16, weight [O, K] bf16, bias [O] bf16 -> [T, O] bf16: the output head.
Tensor bf16_linear(const Tensor &x, const Tensor &weight, const std::optional<Tensor> &bias) {
    const int64_t rows = x.size(0), in_features = x.size(1), out_features = weight.size(0);
    const int64_t strips = out_features / loraplex::STRIP;
    TORCH_CHECK(x.is_contiguous() && x.scalar_type() == at::kBFloat16, "x must be contiguous bfloat16 [T, K]");
    TORCH_CHECK(in_features % loraplex::BLOCK == 0, "in_features must be a multiple of 64");
    TORCH_CHECK(weight.is_contiguous() && weight.size(1) == in_features && out_features % loraplex::STRIP == 0,
                "weight must be contiguous [O, K], and O a multiple of 16");
    Tensor y = at::empty({rows, out_features}, x.options());
    if (rows == 0)
        return y;
    Tensor packed = at::empty({loraplex::packed_size(rows, in_features)}, x.options());
    auto *tiles = static_cast<uint16_t *>(packed.data_ptr());
    loraplex::pack_rows(static_cast<const uint16_t *>(x.data_ptr()), rows, in_features, 0,
                        (rows + loraplex::TILE_ROWS - 1) / loraplex::TILE_ROWS, tiles);
    const auto *offsets = bias ? static_cast<const uint16_t *>(bias->data_ptr()) : nullptr;
    in_threads(strips, strips * in_features < SMALL_WORK / 4, [&](int64_t first, int64_t last) {
        loraplex::multiply_dense(static_cast<const uint16_t *>(weight.data_ptr()), tiles, offsets, rows, in_features,
                                 out_features, first, last, static_cast<uint16_t *>(y.data_ptr()));
    });
    return y;
}

bool is_supported() { return loraplex::is_supported(); }

} // namespace

TORCH_LIBRARY(loraplex, library) {
    library.def("nf4_linear(Tensor x, Tensor weight, Tensor? bias, int out_features, Tensor? a, Tensor? b, "
                "Tensor? first_use, Tensor? uses, Tensor? weights, Tensor? groups, Tensor? members, "
                "int hidden_size) -> Tensor");
    library.def("bf16_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
    library.def("paged_attention(Tensor query, Tensor keys, Tensor values, Tensor slots, Tensor starts, "
                "Tensor lengths, float scaling, int window, float softcap) -> Tensor");
    library.def("is_supported() -> bool", &is_supported);
}

TORCH_LIBRARY_IMPL(loraplex, CPU, library) {
    library.impl("nf4_linear", &nf4_linear);
    library.impl("bf16_linear", &bf16_linear);
    library.impl("paged_attention", &paged_attention);
}

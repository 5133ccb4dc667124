#include "linear_job.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>

namespace loraplex {
namespace {

constexpr int64_t FEW_VALUES = 1 << 16;     // about a microsecond's work: below that a second thread costs more than it brings
constexpr int64_t MANY_VALUES = 1 << 19;    // worth waking a thread that sleeps
constexpr int64_t SHARES_PER_THREAD = 32;
constexpr int64_t MOST_STRIPS_AT_ONCE = 16;
constexpr int64_t FORESEEN_COLUMNS = 64; // rank rows of A that a thread asks for at most ahead of a stage

Tensor bytes(int64_t count) { return at::empty({count}, at::TensorOptions().dtype(at::kByte)); }

template <typename Value> Value *aligned(void *room) {
    return reinterpret_cast<Value *>((reinterpret_cast<uintptr_t>(room) + 63) & ~uintptr_t{63});
}

} // namespace

int64_t thread_count() { return at::get_num_threads(); }

Effort effort_of(int64_t values) {
    return values < FEW_VALUES ? Effort::alone : values < MANY_VALUES ? Effort::whoever_is_awake : Effort::everybody;
}

int64_t share_of(int64_t items, int64_t step) {
    const int64_t even = items / (thread_count() * SHARES_PER_THREAD);
    return std::max<int64_t>(even / step, 1) * step;
}

Scratch strip_scratch(int64_t rows, int64_t in_features, int64_t members) {
    thread_local std::vector<uint16_t> tiles;
    thread_local std::vector<float> deltas;
    constexpr size_t ALIGNMENT = 64;
    const size_t tile_values = rows > TILE_ROWS ? STRIP * in_features + ALIGNMENT / sizeof(uint16_t) : 0;
    const size_t delta_values = members > 0 ? 2 * members * STRIP + ALIGNMENT / sizeof(float) : 0;
    if (tiles.size() < tile_values)
        tiles.resize(tile_values);
    if (deltas.size() < delta_values)
        deltas.resize(delta_values);
    return {aligned<uint16_t>(tiles.data()), aligned<float>(deltas.data())};
}

Runs::Runs(at::TensorList given, int64_t hidden_values, int64_t rows) : parts(given), hidden_size(hidden_values) {
    static_assert(sizeof(Group) == 5 * sizeof(int64_t), "Group is five integers");
    if (parts.empty())
        return;
    TORCH_CHECK(parts.size() == 5, "a plan has five tensors");
    TORCH_CHECK(parts[0].numel() == rows + 1, "the plan is for ", parts[0].numel() - 1, " rows, and x has ", rows);
    TORCH_CHECK(parts[1].size(0) == parts[4].size(0) && parts[1].size(0) == parts[2].size(0),
                "a use has no weight or member");
}

Adapters Runs::over(const Tensor &table) const {
    static_assert(sizeof(Factors) == 4 * sizeof(int64_t), "Factors is four integers");
    TORCH_CHECK(table.scalar_type() == at::kLong && table.dim() == 2 && table.size(1) == 4 && table.stride(1) == 1,
                "a layer's table of factors must be int64 [R, 4]");
    return {table.const_data_ptr<int64_t>(),
            table.stride(0),
            parts[0].const_data_ptr<int64_t>(),
            parts[1].const_data_ptr<int64_t>(),
            parts[2].const_data_ptr<float>(),
            reinterpret_cast<const Group *>(parts[3].const_data_ptr<int64_t>()),
            parts[3].size(0),
            parts[4].const_data_ptr<int64_t>(),
            parts[4].size(0),
            nullptr};
}

bool Runs::touch(const Tensor &table) const {
    if (parts.empty())
        return false;
    const Adapters adapters = over(table);
    return std::any_of(adapters.groups, adapters.groups + adapters.group_count,
                       [&](const Group &group) { return adapters.factors_of(group).a != nullptr; });
}

Layer::Layer(const OptionalTensor &weight, const OptionalTensor &offsets, const OptionalTensor &table, int64_t in,
             int64_t out, const Runs &runs, float *hidden)
    : in_features(in), out_features(out), strips(strip_count(out)) {
    TORCH_CHECK(in_features % BLOCK == 0, "in_features must be a multiple of 64");
    const bool is_dense = weight && weight->scalar_type() == at::kBFloat16;
    TORCH_CHECK(weight && (is_dense || weight->numel() >= strips * (in_features / BLOCK) * UNIT_BYTES),
                "weight too small");
    TORCH_CHECK(!offsets || (offsets->scalar_type() == at::kBFloat16 && offsets->numel() == out), "bias: bfloat16 [O]");
    codes = is_dense ? nullptr : static_cast<const uint8_t *>(weight->data_ptr());
    bias = offsets ? static_cast<const uint16_t *>(offsets->data_ptr()) : nullptr;
    if (!table || !runs.touch(*table))
        return;
    if (!hidden) {
        own_hidden = bytes(runs.hidden_size * sizeof(float));
        hidden = static_cast<float *>(own_hidden.data_ptr());
    }
    adapters = runs.over(*table);
    adapters->hidden = hidden;
}

void Layer::change(const Tensor &rows, const Tensor &scale, const Tensor &shift, int64_t row_count) {
    TORCH_CHECK(rows.numel() == row_count, "changes are for ", rows.numel(), " rows, and x has ", row_count);
    for (const Tensor &each : {scale, shift})
        TORCH_CHECK(each.is_contiguous() && each.dim() == 2 && each.size(1) == strips * STRIP,
                    "scale and shift must be float [N, strips * 16]");
    changes = Changes{rows.const_data_ptr<int32_t>(), scale.const_data_ptr<float>(), shift.const_data_ptr<float>(),
                      strips * STRIP};
}

int64_t Layer::members() const { return adapters ? adapters->member_count : 0; }

Strip Layer::strip(int64_t index, uint16_t *y, int64_t y_stride) const {
    const int64_t output = index * STRIP;
    return {codes + index * (in_features / BLOCK) * UNIT_BYTES,
            bias ? bias + output : nullptr,
            adapters ? &*adapters : nullptr,
            changes ? &*changes : nullptr,
            index,
            std::min(STRIP, out_features - output),
            y,
            y_stride};
}

LinearJob::LinearJob(const uint16_t *x, int64_t rows, int64_t in_features, uint16_t *packed)
    : x_(x), rows_(rows), in_features_(in_features), packed_(packed) {
    if (!packed_) {
        room_ = bytes(packed_size(rows, in_features) * 2 + 64);
        packed_ = aligned<uint16_t>(room_.data_ptr());
    }
}

// The columns of x A first, so that shares begin where blocks of rank rows do.
Stage LinearJob::prepare() {
    int64_t items = pack_blocks(rows_, in_features_);
    for (const Layer *layer : layers_)
        items += layer->adapters ? shrink_columns(*layer->adapters) : 0;
    return {items, share_of(items, RANKS_TOGETHER), [this](int64_t first, int64_t last) { prepare_items(first, last); },
            [this](int64_t first, int64_t piece) { ask_factors(first + piece); }, std::min(items, FORESEEN_COLUMNS)};
}

void LinearJob::ask_factors(int64_t item) const {
    int64_t column = item;
    for (const Layer *layer : layers_) {
        if (!layer->adapters)
            continue;
        const int64_t columns = shrink_columns(*layer->adapters);
        if (column < columns)
            return prefetch_rank_row(*layer->adapters, in_features_, column);
        column -= columns;
    }
}

void LinearJob::prepare_items(int64_t first, int64_t last) {
    int64_t begin = 0; // of a layer's columns
    for (const Layer *layer : layers_) {
        if (!layer->adapters)
            continue;
        const int64_t end = begin + shrink_columns(*layer->adapters);
        if (first < end && last > begin)
            shrink(x_, in_features_, *layer->adapters, std::max(first, begin) - begin, std::min(last, end) - begin);
        begin = end;
    }
    if (last > begin)
        pack(x_, rows_, in_features_, std::max(first, begin) - begin, last - begin, packed_);
}

Stage LinearJob::multiply() {
    int64_t items = 0;
    for (const Layer *layer : layers_)
        items += layer->strips;
    const int64_t share = std::min(share_of(items, 2), MOST_STRIPS_AT_ONCE);
    return {items, share, [this](int64_t first, int64_t last) { multiply_items(first, last); },
            [this](int64_t first, int64_t piece) { ask_codes(first, piece); }, FORESIGHT};
}

void LinearJob::ask_codes(int64_t first, int64_t piece) const {
    const int64_t blocks = in_features_ / BLOCK;
    int64_t item = first + piece / blocks;
    for (const Layer *layer : layers_) {
        if (item < layer->strips)
            return prefetch_codes(layer->codes + item * blocks * UNIT_BYTES, piece % blocks);
        item -= layer->strips;
    }
}

void LinearJob::multiply_items(int64_t first, int64_t last) {
    int64_t members = 0;
    for (const Layer *layer : layers_)
        members = std::max(members, layer->members());
    const Scratch scratch = strip_scratch(rows_, in_features_, members);
    while (first < last) {
        Strip strips[MOST_STRIPS_AT_ONCE];
        int64_t count = 0, begin = 0; // `begin`: of a layer's strips
        const int64_t end = std::min(last, first + MOST_STRIPS_AT_ONCE);
        for (size_t index = 0; index < layers_.size(); index++) {
            const Layer &layer = *layers_[index];
            for (int64_t item = std::max(first, begin); item < std::min(end, begin + layer.strips); item++)
                strips[count++] =
                    layer.strip(item - begin, outputs_[index] + (item - begin) * STRIP, layer.out_features);
            begin += layer.strips;
        }
        multiply_strips(strips, count, packed_, rows_, in_features_, scratch);
        first = end;
    }
}

int64_t LinearJob::values() const {
    int64_t weights = 0;
    for (const Layer *layer : layers_)
        weights += layer->strips * STRIP * in_features_;
    return weights * (rows_ + 63) / 64 + rows_ * in_features_;
}

} // namespace loraplex

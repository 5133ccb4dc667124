// All decoder layers of a model in one operator: what of them stays from step to step, and their jobs for one step.
// Compiled for any processor.
//
// A layer is computed by the same jobs (block_jobs.h) as by `attention_inputs`, `paged_attention` and `after_attention`
// one after the other, so its rows have the same bits. What lies between jobs lies in room that is kept between steps.
#include "block_jobs.h"

#include <ATen/ops/empty.h>
#include <torch/custom_class.h>
#include <torch/library.h>

#include <algorithm>
#include <deque>

namespace {

using loraplex::Layer, loraplex::Norms, loraplex::OptionalTensor, loraplex::read, loraplex::Runs, loraplex::Stages,
    loraplex::Turn, loraplex::write, at::Tensor;
using Parts = c10::List<OptionalTensor>;

enum Linear { Q, K, V, O, GATE, UP, DOWN, LINEARS };
enum Norm { INPUT, Q_NORM, K_NORM, AFTER_ATTENTION, BEFORE_MLP, AFTER_MLP, NORMS };

// Values of one type at a multiple of 64 bytes, kept between steps: it only grows.
template <typename Value> class Room {
  public:
    Value *of(int64_t count) {
        const int64_t size = count * sizeof(Value) + 64;
        if (!bytes_.defined() || bytes_.numel() < size)
            bytes_ = at::empty({size}, at::TensorOptions().dtype(at::kByte));
        return reinterpret_cast<Value *>((reinterpret_cast<uintptr_t>(bytes_.data_ptr()) + 63) & ~uintptr_t{63});
    }

  private:
    Tensor bytes_;
};

// One step: rows, where their tokens are in cosines and sines and in the cache (see AttentionInput), whom they use.
struct Step {
    int64_t rows;
    Turn turn;
    const int64_t *slots, *starts, *lengths;
    Tensor write_slots;
    Runs runs;
};

// Where the layers of a step, one after the other, leave what the next job reads.
struct StepRooms {
    uint16_t *normed, *packed, *q, *k, *v, *attended, *middle, *inner;
    float *hidden; // for three layers that read the same x
};

// What one layer is made of. Its cache is given later; adapters come and go in its tables.
struct DecoderLayer {
    std::array<OptionalTensor, LINEARS> weights, biases, tables;
    std::array<int64_t, LINEARS> in_features, out_features;
    std::array<OptionalTensor, NORMS> norms;
    Norms row_norms;
    loraplex::Activation activation;
    float attention_scaling, softcap;
    int64_t window;
    Tensor keys, values; // [S, G, D]

    int64_t head_size() const { return keys.size(2); }
    const uint16_t *norm(Norm which) const { return row_norms.weight(norms[which]); }

    // `place`: 0 to 2 among those that read the same x, and that compute x A at the same time.
    Layer linear(Linear which, int64_t place, const Step &step, const StepRooms &rooms) const {
        return Layer(weights[which], biases[which], tables[which], in_features[which], out_features[which], step.runs,
                     rooms.hidden + place * step.runs.hidden_size);
    }
    loraplex::HeadJob heads(const Step &step, const StepRooms &rooms) const {
        const Norms head_norms{row_norms.epsilon, row_norms.scaling, head_size()};
        return {rooms.q,
                rooms.k,
                step.rows,
                out_features[Q] / head_size(),
                out_features[K] / head_size(),
                step.turn,
                head_norms,
                head_norms.weight(norms[Q_NORM]),
                head_norms.weight(norms[K_NORM])};
    }
    loraplex::AttentionInput seen(const Step &step, const StepRooms &rooms) const {
        return {rooms.q,      read(keys),   read(values), step.slots,        step.starts, step.lengths,
                out_features[Q] / head_size(), keys.size(1), head_size(), attention_scaling, window, softcap};
    }
    void check(const Step &step) const {
        TORCH_CHECK(keys.defined(), "the decoder has no cache yet");
        TORCH_CHECK(step.turn.size == head_size() && out_features[Q] % (head_size() * keys.size(1)) == 0,
                    "cosines as wide as a head, and as many heads for each key-value head");
        loraplex::check_slots(step.write_slots, step.rows, keys.size(0));
    }
};

// One layer's jobs in one step, x [T, H] -> y [T, H], which may be x.
class LayerJobs {
  public:
    LayerJobs(const DecoderLayer &layer, const uint16_t *x, uint16_t *y, const Step &step, const StepRooms &rooms)
        : inputs_({layer.linear(Q, 0, step, rooms), layer.linear(K, 1, step, rooms), layer.linear(V, 2, step, rooms)},
                  x, layer.row_norms, layer.norm(INPUT), layer.heads(step, rooms), rooms.v, rooms.normed, rooms.packed),
          attention_(layer.seen(step, rooms), step.rows, rooms.attended),
          stored_{rooms.k, rooms.v, step.write_slots.const_data_ptr<int64_t>()},
          after_(layer.linear(O, 0, step, rooms),
                 {layer.linear(GATE, 0, step, rooms), layer.linear(UP, 1, step, rooms),
                  layer.linear(DOWN, 2, step, rooms)},
                 x, rooms.attended, step.rows, layer.row_norms,
                 {layer.norm(AFTER_ATTENTION), layer.norm(BEFORE_MLP), layer.norm(AFTER_MLP)}, layer.activation, y,
                 rooms.middle, rooms.inner, rooms.packed) {}

    // The stages up to attention, and those from there on.
    void add_inputs(Stages &stages) { inputs_.add_stages(stages); }
    void add_rest(Stages &stages) { attention_.add_stages(stages, &stored_), after_.add_stages(stages); }
    int64_t values() const { return inputs_.values() + attention_.values() + after_.values(); }

  private:
    loraplex::AttentionInputs inputs_;
    loraplex::AttentionJob attention_;
    loraplex::NewKeys stored_;
    loraplex::AfterAttention after_;
};

// Only one thread may use it at a time.
class Decoder : public torch::CustomClassHolder {
  public:
    // A further layer: weight, bias and table of each of Linear, their outputs, and each of Norm (null where there is none);
    // then how it attends, as `paged_attention` takes it.
    void add_layer(const Parts &linears, const std::vector<int64_t> &out_features, const Parts &norms, double epsilon,
                   int64_t scaling, int64_t activation, double attention_scaling, int64_t window, double softcap);
    // Keys and values [S, G, D] of each layer.
    void set_caches(const std::vector<Tensor> &keys, const std::vector<Tensor> &values);
    Tensor run(const Tensor &x, const Step &step);

  private:
    StepRooms rooms(int64_t rows, int64_t hidden_size);

    std::vector<DecoderLayer> layers_;
    int64_t widest_x_ = 0, widest_query_ = 0, widest_key_ = 0, widest_inner_ = 0;
    Room<uint16_t> normed_, packed_, q_, k_, v_, attended_, middle_, inner_;
    Room<float> hidden_;
};

void Decoder::add_layer(const Parts &linears, const std::vector<int64_t> &out_features, const Parts &norms,
                        double epsilon, int64_t scaling, int64_t activation, double attention_scaling, int64_t window,
                        double softcap) {
    TORCH_CHECK(linears.size() == 3 * LINEARS && out_features.size() == LINEARS && norms.size() == NORMS,
                "seven linear layers and six norms");
    DecoderLayer layer{};
    for (size_t place = 0; place < LINEARS; place++) {
        layer.weights[place] = linears.get(3 * place), layer.biases[place] = linears.get(3 * place + 1);
        layer.tables[place] = linears.get(3 * place + 2);
        layer.out_features[place] = out_features[place];
    }
    for (size_t place = 0; place < NORMS; place++)
        layer.norms[place] = norms.get(place);
    const int64_t size = out_features[DOWN], query = out_features[Q], key = out_features[K], inner = out_features[GATE];
    TORCH_CHECK(out_features[O] == size && out_features[UP] == inner && out_features[V] == key,
                "o like down, gate like up, k like v");
    layer.in_features = {size, size, size, query, size, size, inner};
    layer.row_norms = {static_cast<float>(epsilon), static_cast<loraplex::Scaling>(scaling), size};
    layer.activation = static_cast<loraplex::Activation>(activation);
    layer.attention_scaling = static_cast<float>(attention_scaling), layer.softcap = static_cast<float>(softcap);
    layer.window = window;
    TORCH_CHECK(layers_.empty() || layers_[0].in_features[Q] == size, "all layers have the same hidden features");
    widest_x_ = std::max(widest_x_, size), widest_query_ = std::max(widest_query_, query);
    widest_key_ = std::max(widest_key_, key), widest_inner_ = std::max(widest_inner_, inner);
    layers_.push_back(std::move(layer));
}

void Decoder::set_caches(const std::vector<Tensor> &keys, const std::vector<Tensor> &values) {
    TORCH_CHECK(keys.size() == layers_.size() && values.size() == layers_.size(), "keys and values for each layer");
    for (size_t number = 0; number < layers_.size(); number++) {
        for (const Tensor *cache : {&keys[number], &values[number]})
            TORCH_CHECK(cache->scalar_type() == at::kBFloat16 && cache->is_contiguous() && cache->dim() == 3 &&
                            cache->sizes() == keys[number].sizes() && cache->size(2) % loraplex::HEAD_STEP == 0 &&
                            cache->size(1) * cache->size(2) == layers_[number].out_features[K],
                        "a cache: contiguous bfloat16 [S, G, D], 32 divides D, as wide as its layer's keys");
        layers_[number].keys = keys[number], layers_[number].values = values[number];
    }
}

StepRooms Decoder::rooms(int64_t rows, int64_t hidden_size) {
    const int64_t widest = std::max({widest_x_, widest_query_, widest_inner_});
    return {.normed = normed_.of(rows * widest_x_),
            .packed = packed_.of(loraplex::packed_size(rows, widest)),
            .q = q_.of(rows * widest_query_),
            .k = k_.of(rows * widest_key_),
            .v = v_.of(rows * widest_key_),
            .attended = attended_.of(rows * widest_query_),
            .middle = middle_.of(3 * rows * widest_x_),
            .inner = inner_.of(rows * widest_inner_),
            .hidden = hidden_.of(3 * hidden_size)};
}

// A job for the threads reaches from the attention of a layer to that of the next one.
Tensor Decoder::run(const Tensor &x, const Step &step) {
    TORCH_CHECK(x.is_contiguous() && x.scalar_type() == at::kBFloat16 && x.dim() == 2 && !layers_.empty() &&
                    x.size(1) == widest_x_,
                "rows: contiguous bfloat16 [T, H]");
    Tensor y = at::empty(x.sizes(), x.options());
    if (step.rows == 0)
        return y;
    const StepRooms kept = rooms(step.rows, step.runs.hidden_size);
    for (const DecoderLayer &layer : layers_)
        layer.check(step);
    std::deque<LayerJobs> jobs; // of this layer and the next
    Stages stages;
    jobs.emplace_back(layers_[0], read(x), write(y), step, kept);
    jobs.back().add_inputs(stages);
    for (size_t number = 0; number < layers_.size(); number++) {
        jobs.front().add_rest(stages);
        if (number + 1 < layers_.size()) {
            jobs.emplace_back(layers_[number + 1], read(y), write(y), step, kept);
            jobs.back().add_inputs(stages);
        }
        TORCH_CHECK(stages.size() <= loraplex::MOST_STAGES, "a job has more stages than the threads have room for");
        loraplex::run_stages(stages.data(), stages.size(), loraplex::thread_count(),
                             loraplex::effort_of(jobs.front().values()));
        stages.clear();
        jobs.pop_front();
    }
    return y;
}

// x [T, H] bf16 -> the rows [T, H] behind the last layer. cosines, sines and positions as for Turn; slots, starts
// and lengths as for paged_attention, write_slots [T] int64: where the tokens' own keys and values go first.
Tensor decode(const Tensor &x, const c10::intrusive_ptr<Decoder> &decoder, const Tensor &cosines, const Tensor &sines,
              const OptionalTensor &positions, const Tensor &slots, const Tensor &starts, const Tensor &lengths,
              const Tensor &write_slots, at::TensorList plan, int64_t hidden_size) {
    const int64_t rows = x.size(0);
    TORCH_CHECK(starts.numel() == rows && lengths.numel() == rows, "starts and lengths for each row");
    return decoder->run(x, {rows, Turn(cosines, sines, positions, rows), slots.const_data_ptr<int64_t>(),
                            starts.const_data_ptr<int64_t>(), lengths.const_data_ptr<int64_t>(), write_slots,
                            Runs(plan, hidden_size, rows)});
}

} // namespace

TORCH_LIBRARY_FRAGMENT(loraplex, library) {
    library.class_<Decoder>("Decoder")
        .def(torch::init<>())
        .def("add_layer", [](const c10::intrusive_ptr<Decoder> &self, const Parts &linears,
                             const std::vector<int64_t> &out_features, const Parts &norms, double epsilon,
                             int64_t scaling, int64_t activation, double attention_scaling, int64_t window,
                             double softcap) {
            self->add_layer(linears, out_features, norms, epsilon, scaling, activation, attention_scaling, window,
                            softcap);
        })
        .def("set_caches", [](const c10::intrusive_ptr<Decoder> &self, const std::vector<Tensor> &keys,
                              const std::vector<Tensor> &values) { self->set_caches(keys, values); });
    library.def("decode(Tensor x, __torch__.torch.classes.loraplex.Decoder decoder, Tensor cosines, Tensor sines, "
                "Tensor? positions, Tensor slots, Tensor starts, Tensor lengths, Tensor write_slots, Tensor[] plan, "
                "int hidden_size) -> Tensor");
}

TORCH_LIBRARY_IMPL(loraplex, CPU, library) { library.impl("decode", &decode); }

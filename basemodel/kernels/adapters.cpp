// Compiled for processors with AVX512-BF16; called only where `is_supported` (tiles.h) says so.
//
// A row's sums run in one fixed order, whichever rows share its adapter.
#include "adapters.h"
#include "tiles.h"
#include "vector_math.h"

#include <algorithm>

namespace loraplex {
namespace {

// What `count` members of a group add to 16 outputs: deltas[member] = sum over r of hidden[member][r] * B[r, 16 outputs].
// A row of B is read and widened once for all of them; even and odd ranks have sums of their own, whatever `count` is.
template <int count, typename Value>
void expand_members(const Value *b, int64_t rank, const float *hidden, float *deltas) {
    __m512 even[count], odd[count];
    for (int member = 0; member < count; member++)
        even[member] = odd[member] = _mm512_setzero_ps();
    int64_t at = 0;
    for (; at + 2 <= rank; at += 2) {
        const __m512 first = widen(b + at * STRIP), second = widen(b + (at + 1) * STRIP);
        for (int member = 0; member < count; member++) {
            const float *values = hidden + member * rank + at;
            even[member] = _mm512_fmadd_ps(_mm512_set1_ps(values[0]), first, even[member]);
            odd[member] = _mm512_fmadd_ps(_mm512_set1_ps(values[1]), second, odd[member]);
        }
    }
    if (at < rank)
        for (int member = 0; member < count; member++)
            even[member] =
                _mm512_fmadd_ps(_mm512_set1_ps(hidden[member * rank + at]), widen(b + at * STRIP), even[member]);
    for (int member = 0; member < count; member++)
        _mm512_store_ps(deltas + member * STRIP, _mm512_add_ps(even[member], odd[member]));
}

// The deltas of an adapter that has no factors here: -0, which changes no value that it is added to, not even a -0.
void add_nothing(float *deltas, int64_t members) {
    for (int64_t member = 0; member < members; member++)
        _mm512_store_ps(deltas + member * STRIP, _mm512_set1_ps(-0.0f));
}

// hidden values of `count` rows and one rank row of A: the row of A is read once for all of them. A row's sum runs over
// k in one order, whatever `count` is; it is multiplied with `step`.
template <int count, typename Value>
void dot_rows(const uint16_t *x, int64_t in_features, const int64_t *rows, const Value *a, float step, float *hidden,
              int64_t hidden_stride) {
    const uint16_t *source[count];
    __m512 sums[count];
    for (int row = 0; row < count; row++) {
        source[row] = x + rows[row] * in_features;
        sums[row] = _mm512_setzero_ps();
    }
    for (int64_t k = 0; k < in_features; k += 32) {
        const __m512bh factor = factors_of_product(a + k);
        for (int row = 0; row < count; row++)
            sums[row] = _mm512_dpbf16_ps(sums[row], (__m512bh)_mm512_loadu_si512(source[row] + k), factor);
    }
    for (int row = 0; row < count; row++)
        hidden[row * hidden_stride] = step * _mm512_reduce_add_ps(sums[row]);
}

// The same for one row and `count` rank rows, which do not wait for each other's sums. Each sum runs as above. As many
// rank rows at `ahead`, which come next, are asked for meanwhile.
template <int count, typename Value>
void dot_ranks(const uint16_t *x, int64_t in_features, const Value *a, const float *steps, const char *ahead,
               float *hidden) {
    constexpr int64_t LINE = 64 / sizeof(Value);
    __m512 sums[count];
    for (int rank = 0; rank < count; rank++)
        sums[rank] = _mm512_setzero_ps();
    for (int64_t line = 0; line < in_features; line += LINE) {
        for (int rank = 0; rank < count; rank++)
            _mm_prefetch(ahead + (rank * in_features + line) * sizeof(Value), _MM_HINT_T1);
        for (int64_t k = line; k < line + LINE; k += 32) {
            const __m512bh value = (__m512bh)_mm512_loadu_si512(x + k);
            for (int rank = 0; rank < count; rank++)
                sums[rank] = _mm512_dpbf16_ps(sums[rank], value, factors_of_product(a + rank * in_features + k));
        }
    }
    for (int rank = 0; rank < count; rank++)
        hidden[rank] = (steps ? steps[rank] : 1.0f) * _mm512_reduce_add_ps(sums[rank]);
}

// The same for rank rows [first, last) of one group, whose factors are there. `behind` is what comes after the group's
// rows of A (may be null).
template <typename Value>
void shrink_group(const uint16_t *x, int64_t in_features, const Adapters &adapters, const Group &group, int64_t first,
                  int64_t last, const char *behind) {
    const int64_t *rows = adapters.members + group.first_member;
    const Factors &factors = adapters.factors_of(group);
    const auto *own = static_cast<const Value *>(factors.a);
    const int64_t stride = factors.rank, end = std::min(last, factors.rank);
    int64_t rank = std::max<int64_t>(first, 0);
    if (group.members == 1)
        for (; rank + 4 <= end; rank += 4) {
            const char *ahead = rank + 8 <= stride || !behind ? factors.rank_row(rank + 4, in_features) : behind;
            dot_ranks<4>(x + rows[0] * in_features, in_features, own + rank * in_features,
                         factors.steps ? factors.steps + rank : nullptr, ahead, adapters.hidden + group.hidden + rank);
        }
    for (; rank < end; rank++) {
        const Value *a = own + rank * in_features;
        const float step = factors.steps ? factors.steps[rank] : 1.0f;
        float *hidden = adapters.hidden + group.hidden + rank;
        int64_t done = 0;
        for (; done + 8 <= group.members; done += 8)
            dot_rows<8>(x, in_features, rows + done, a, step, hidden + done * stride, stride);
        for (; done + 4 <= group.members; done += 4)
            dot_rows<4>(x, in_features, rows + done, a, step, hidden + done * stride, stride);
        for (; done + 2 <= group.members; done += 2)
            dot_rows<2>(x, in_features, rows + done, a, step, hidden + done * stride, stride);
        if (done < group.members)
            dot_rows<1>(x, in_features, rows + done, a, step, hidden + done * stride, stride);
    }
}

// What the members of one group add to a strip.
template <typename Value>
void expand_group(const Factors &factors, int64_t strip, const float *hidden, int64_t members, float *deltas) {
    const int64_t rank = factors.rank;
    const Value *b = static_cast<const Value *>(factors.b) + strip * rank * STRIP;
    int64_t done = 0;
    for (; done + 8 <= members; done += 8)
        expand_members<8>(b, rank, hidden + done * rank, deltas + done * STRIP);
    for (; done + 4 <= members; done += 4)
        expand_members<4>(b, rank, hidden + done * rank, deltas + done * STRIP);
    for (; done + 2 <= members; done += 2)
        expand_members<2>(b, rank, hidden + done * rank, deltas + done * STRIP);
    if (done < members)
        expand_members<1>(b, rank, hidden + done * rank, deltas + done * STRIP);
}

} // namespace

void expand(const Adapters &adapters, int64_t strip, float *deltas) {
    for (int64_t index = 0; index < adapters.group_count; index++) {
        const Group &group = adapters.groups[index];
        const Factors &factors = adapters.factors_of(group);
        const float *hidden = adapters.hidden + group.hidden;
        float *own = deltas + group.first_member * STRIP;
        if (!factors.a)
            add_nothing(own, group.members);
        else if (factors.steps)
            expand_group<int8_t>(factors, strip, hidden, group.members, own);
        else
            expand_group<uint16_t>(factors, strip, hidden, group.members, own);
    }
}

int64_t shrink_columns(const Adapters &adapters) {
    int64_t columns = 0;
    for (int64_t index = 0; index < adapters.group_count; index++)
        columns += adapters.groups[index].rank;
    return columns;
}

void prefetch_rank_row(const Adapters &adapters, int64_t in_features, int64_t column) {
    for (int64_t index = 0; index < adapters.group_count; index++) {
        const Group &group = adapters.groups[index];
        const Factors &factors = adapters.factors_of(group);
        if (column < group.rank) {
            if (factors.a && column < factors.rank)
                for (int64_t byte = 0; byte < in_features * factors.value_bytes(); byte += 64)
                    _mm_prefetch(factors.rank_row(column, in_features) + byte, _MM_HINT_T1);
            return;
        }
        column -= group.rank;
    }
}

void shrink(const uint16_t *x, int64_t in_features, const Adapters &adapters, int64_t first, int64_t last) {
    for (int64_t index = 0; index < adapters.group_count && last > 0; index++) {
        const Group &group = adapters.groups[index];
        const Factors &factors = adapters.factors_of(group);
        const bool is_last = index + 1 == adapters.group_count;
        const char *behind =
            is_last ? nullptr : adapters.factors_of(adapters.groups[index + 1]).rank_row(0, in_features);
        if (factors.a && factors.steps)
            shrink_group<int8_t>(x, in_features, adapters, group, first, last, behind);
        else if (factors.a)
            shrink_group<uint16_t>(x, in_features, adapters, group, first, last, behind);
        first -= group.rank;
        last -= group.rank;
    }
}

} // namespace loraplex

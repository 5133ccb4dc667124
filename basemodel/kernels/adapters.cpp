// Compiled for processors with AVX512-BF16; called only where `is_supported` (tiles.h) says so.
//
// A row's sums run in one fixed order, whichever rows share its adapter.
#include "adapters.h"
#include "tiles.h"
#include "vector_math.h"

#include <algorithm>

namespace loraplex {
namespace {

constexpr int64_t MOST_TOGETHER = 8; // members for which A and B are read once

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

// hidden values of `count` rows and `ranks` rank rows of A: each value of x and of A is loaded once for all of them, and
// their sums do not wait for each other. A sum runs over k in one order, whatever `count` and `ranks` are, and is then
// multiplied with the rank's step (1 where there are no steps). As many rank rows at `ahead`, which come next, are asked
// for meanwhile.
template <int count, int ranks, typename Value>
void dot_block(const uint16_t *x, int64_t in_features, const int64_t *rows, const Value *a, const float *steps,
               const char *ahead, float *hidden, int64_t hidden_stride) {
    constexpr int64_t LINE = 64 / sizeof(Value);
    const uint16_t *source[count];
    __m512 sums[count][ranks];
    for (int row = 0; row < count; row++) {
        source[row] = x + rows[row] * in_features;
        for (int rank = 0; rank < ranks; rank++)
            sums[row][rank] = _mm512_setzero_ps();
    }
    for (int64_t line = 0; line < in_features; line += LINE) {
        for (int rank = 0; rank < ranks; rank++)
            _mm_prefetch(ahead + (rank * in_features + line) * sizeof(Value), _MM_HINT_T1);
        for (int64_t k = line; k < line + LINE; k += 32) {
            __m512bh factors[ranks];
            for (int rank = 0; rank < ranks; rank++)
                factors[rank] = factors_of_product(a + rank * in_features + k);
            for (int row = 0; row < count; row++) {
                const __m512bh value = (__m512bh)_mm512_loadu_si512(source[row] + k);
                for (int rank = 0; rank < ranks; rank++)
                    sums[row][rank] = _mm512_dpbf16_ps(sums[row][rank], value, factors[rank]);
            }
        }
    }
    for (int row = 0; row < count; row++)
        for (int rank = 0; rank < ranks; rank++)
            hidden[row * hidden_stride + rank] = (steps ? steps[rank] : 1.0f) * _mm512_reduce_add_ps(sums[row][rank]);
}

// Rank rows [rank, end) for `count` rows. `behind` as below.
template <int count, typename Value>
void dot_rows(const uint16_t *x, int64_t in_features, const int64_t *rows, const Factors &factors, int64_t rank,
              int64_t end, const char *behind, float *hidden) {
    constexpr int RANKS = count > 4 ? RANKS_TOGETHER / 2 : RANKS_TOGETHER; // as many sums as there are registers for
    const auto multiply = [&]<int ranks>() {
        const bool is_last = rank + 2 * ranks > factors.rank && behind;
        dot_block<count, ranks>(x, in_features, rows,
                                reinterpret_cast<const Value *>(factors.rank_row(rank, in_features)),
                                factors.steps ? factors.steps + rank : nullptr,
                                is_last ? behind : factors.rank_row(rank + ranks, in_features), hidden + rank,
                                factors.rank);
        rank += ranks;
    };
    while (rank + RANKS <= end)
        multiply.template operator()<RANKS>();
    while (rank < end)
        multiply.template operator()<1>();
}

// Rank rows [first, last) of one group, whose factors are there. `behind` is what is read after the group's rows of A (may
// be null).
template <typename Value>
void shrink_group(const uint16_t *x, int64_t in_features, const Adapters &adapters, const Group &group, int64_t first,
                  int64_t last, const char *behind) {
    constexpr decltype(&dot_rows<1, Value>) BY_COUNT[] = {dot_rows<1, Value>, dot_rows<2, Value>, dot_rows<3, Value>,
                                                         dot_rows<4, Value>, dot_rows<5, Value>, dot_rows<6, Value>,
                                                         dot_rows<7, Value>, dot_rows<8, Value>};
    const int64_t *rows = adapters.members + group.first_member;
    const Factors &factors = adapters.factors_of(group);
    for (int64_t done = 0; done < group.members; done += MOST_TOGETHER) {
        const int64_t count = std::min(MOST_TOGETHER, group.members - done);
        BY_COUNT[count - 1](x, in_features, rows + done, factors, std::max<int64_t>(first, 0),
                            std::min(last, factors.rank), behind, adapters.hidden + group.hidden + done * factors.rank);
    }
}

template <typename Value>
void expand_values(const Factors &factors, int64_t strip, const float *hidden, int64_t members, float *deltas) {
    constexpr decltype(&expand_members<1, Value>) BY_COUNT[] = {
        expand_members<1, Value>, expand_members<2, Value>, expand_members<3, Value>, expand_members<4, Value>,
        expand_members<5, Value>, expand_members<6, Value>, expand_members<7, Value>, expand_members<8, Value>};
    const int64_t rank = factors.rank;
    const auto *b = reinterpret_cast<const Value *>(factors.strip(strip));
    for (int64_t done = 0; done < members; done += MOST_TOGETHER)
        BY_COUNT[std::min(MOST_TOGETHER, members - done) - 1](b, rank, hidden + done * rank, deltas + done * STRIP);
}

} // namespace

void expand_group(const Adapters &adapters, int64_t index, int64_t strip, int64_t next, float *deltas) {
    const Group &group = adapters.groups[index];
    const Factors &factors = adapters.factors_of(group);
    const float *hidden = adapters.hidden + group.hidden;
    float *own = deltas + group.first_member * STRIP;
    if (!factors.a)
        return add_nothing(own, group.members);
    for (int64_t byte = 0; byte < factors.strip_bytes(); byte += 64)
        _mm_prefetch(factors.strip(next) + byte, _MM_HINT_T1);
    if (factors.steps)
        expand_values<int8_t>(factors, strip, hidden, group.members, own);
    else
        expand_values<uint16_t>(factors, strip, hidden, group.members, own);
}

void expand(const Adapters &adapters, int64_t strip, float *deltas) {
    for (int64_t index = 0; index < adapters.group_count; index++)
        expand_group(adapters, index, strip, strip, deltas);
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

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
template <int count> void expand_members(const uint16_t *b, int64_t rank, const float *hidden, float *deltas) {
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
// k in one order, whatever `count` is.
template <int count>
void dot_rows(const uint16_t *x, int64_t in_features, const int64_t *rows, const uint16_t *a, float *hidden,
              int64_t hidden_stride) {
    const uint16_t *source[count];
    __m512 sums[count];
    for (int row = 0; row < count; row++) {
        source[row] = x + rows[row] * in_features;
        sums[row] = _mm512_setzero_ps();
    }
    for (int64_t k = 0; k < in_features; k += 32) {
        const __m512bh factor = (__m512bh)_mm512_loadu_si512(a + k);
        for (int row = 0; row < count; row++)
            sums[row] = _mm512_dpbf16_ps(sums[row], (__m512bh)_mm512_loadu_si512(source[row] + k), factor);
    }
    for (int row = 0; row < count; row++)
        hidden[row * hidden_stride] = _mm512_reduce_add_ps(sums[row]);
}

// The same for one row and `count` rank rows, which do not wait for each other's sums. Each sum runs as above. As many
// rank rows at `ahead`, which come next, are asked for meanwhile.
template <int count>
void dot_ranks(const uint16_t *x, int64_t in_features, const uint16_t *a, const uint16_t *ahead, float *hidden) {
    __m512 sums[count];
    for (int rank = 0; rank < count; rank++)
        sums[rank] = _mm512_setzero_ps();
    for (int64_t k = 0; k < in_features; k += 32) {
        const __m512bh value = (__m512bh)_mm512_loadu_si512(x + k);
        for (int rank = 0; rank < count; rank++) {
            const int64_t at = rank * in_features + k;
            _mm_prefetch(reinterpret_cast<const char *>(ahead + at), _MM_HINT_T1);
            sums[rank] = _mm512_dpbf16_ps(sums[rank], value, (__m512bh)_mm512_loadu_si512(a + at));
        }
    }
    for (int rank = 0; rank < count; rank++)
        hidden[rank] = _mm512_reduce_add_ps(sums[rank]);
}

// The same for rank rows [first, last) of one group. `behind` are the rows of A that come after the group's (may be null).
void shrink_group(const uint16_t *x, int64_t in_features, const Adapters &adapters, const Group &group, int64_t first,
                  int64_t last, const uint16_t *behind) {
    const int64_t *rows = adapters.members + group.first_member;
    const Factors &factors = adapters.factors_of(group);
    if (!factors.a)
        return;
    const int64_t stride = factors.rank, end = std::min(last, factors.rank);
    int64_t rank = std::max<int64_t>(first, 0);
    if (group.members == 1)
        for (; rank + 4 <= end; rank += 4) {
            const uint16_t *a = factors.a + rank * in_features, *next = a + 4 * in_features;
            dot_ranks<4>(x + rows[0] * in_features, in_features, a, rank + 8 <= stride || !behind ? next : behind,
                         adapters.hidden + group.hidden + rank);
        }
    for (; rank < end; rank++) {
        const uint16_t *a = factors.a + rank * in_features;
        float *hidden = adapters.hidden + group.hidden + rank;
        int64_t done = 0;
        for (; done + 8 <= group.members; done += 8)
            dot_rows<8>(x, in_features, rows + done, a, hidden + done * stride, stride);
        for (; done + 4 <= group.members; done += 4)
            dot_rows<4>(x, in_features, rows + done, a, hidden + done * stride, stride);
        for (; done + 2 <= group.members; done += 2)
            dot_rows<2>(x, in_features, rows + done, a, hidden + done * stride, stride);
        if (done < group.members)
            dot_rows<1>(x, in_features, rows + done, a, hidden + done * stride, stride);
    }
}

} // namespace

void expand(const Adapters &adapters, int64_t strip, float *deltas) {
    for (int64_t index = 0; index < adapters.group_count; index++) {
        const Group &group = adapters.groups[index];
        const Factors &factors = adapters.factors_of(group);
        const int64_t rank = factors.rank;
        const float *hidden = adapters.hidden + group.hidden;
        float *own = deltas + group.first_member * STRIP;
        if (!factors.a) {
            add_nothing(own, group.members);
            continue;
        }
        const uint16_t *b = factors.b + strip * rank * STRIP;
        int64_t done = 0;
        for (; done + 8 <= group.members; done += 8)
            expand_members<8>(b, rank, hidden + done * rank, own + done * STRIP);
        for (; done + 4 <= group.members; done += 4)
            expand_members<4>(b, rank, hidden + done * rank, own + done * STRIP);
        for (; done + 2 <= group.members; done += 2)
            expand_members<2>(b, rank, hidden + done * rank, own + done * STRIP);
        if (done < group.members)
            expand_members<1>(b, rank, hidden + done * rank, own + done * STRIP);
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
            for (int64_t k = 0; k < in_features && factors.a && column < factors.rank; k += 32)
                _mm_prefetch(reinterpret_cast<const char *>(factors.a + column * in_features + k), _MM_HINT_T1);
            return;
        }
        column -= group.rank;
    }
}

void shrink(const uint16_t *x, int64_t in_features, const Adapters &adapters, int64_t first, int64_t last) {
    for (int64_t index = 0; index < adapters.group_count && last > 0; index++) {
        const Group &group = adapters.groups[index];
        const bool is_last = index + 1 == adapters.group_count;
        shrink_group(x, in_features, adapters, group, first, last,
                     is_last ? nullptr : adapters.factors_of(adapters.groups[index + 1]).a);
        first -= group.rank;
        last -= group.rank;
    }
}

} // namespace loraplex

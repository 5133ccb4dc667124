// Compiled for processors with AVX512-BF16, AVX512-VBMI, AVX512-VBMI2 and AMX-BF16; called only where `is_supported`
// (tiles.h) says so.
//
// A strip of 16 output features is dequantized once (code x scale in float, rounded to bfloat16: the very bits that
// bitsandbytes' dequantization gives) and multiplied with all rows of x by the tile unit, which adds up in float. Each
// row's sums run over k in one fixed order, so a row's result does not depend on how many rows there are beside it.
#include "expansion.h"
#include "strip_sums.h"
#include "tile_unit.h"
#include "vector_math.h"

#include <algorithm>
#include <immintrin.h>

namespace loraplex {
namespace {

alignas(64) const float CODES[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f,
    -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f,
    0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};
constexpr int PREFETCH_UNITS = 16; // how far ahead of its use a unit of weights is asked for

// Rows [first, last) of one strip and one block: 64 codes each, to two tiles of [16 outputs, 32 k]. Two rows share a
// table of 32 values, the second row's behind the first's. An index is a byte: which half of a value (bit 0), its code
// (bits 1 to 4), whose table (bit 5); so each byte of codes stands twice, and a turn by 4 bits brings up its other code.
template <int first, int last> inline void dequantize_rows(const uint8_t *unit, uint16_t *tiles) {
    const __m512 codes = _mm512_load_ps(CODES);
    const __m512i code_bits = _mm512_set1_epi8(0x1E);
    const __m512i halves = _mm512_set1_epi16(0x0100), second_halves = _mm512_set1_epi16(0x2120);
    const float *scales = reinterpret_cast<const float *>(unit);
    const uint8_t *packed = unit + STRIP * 4;
#pragma GCC unroll 8
    for (int row = first; row < last; row += 2) {
        const __m512i table = (__m512i)_mm512_cvtne2ps_pbh(_mm512_mul_ps(codes, _mm512_set1_ps(scales[row + 1])),
                                                           _mm512_mul_ps(codes, _mm512_set1_ps(scales[row])));
        const __m512i both = _mm512_loadu_si512(packed + 32 * row);
        const __m512i own = _mm512_unpacklo_epi8(both, both), next = _mm512_unpackhi_epi8(both, both);
        const auto lookup = [&](__m512i bytes, __m512i constant) { // (bytes & code_bits) | constant
            return _mm512_permutexvar_epi8(_mm512_ternarylogic_epi64(bytes, code_bits, constant, 0xEA), table);
        };
        uint16_t *tile_row = tiles + row * 32;
        _mm512_store_si512(tile_row, lookup(own, halves));
        _mm512_store_si512(tile_row + TILE_VALUES, lookup(_mm512_shldi_epi16(own, own, 4), halves));
        _mm512_store_si512(tile_row + 32, lookup(next, second_halves));
        _mm512_store_si512(tile_row + 32 + TILE_VALUES, lookup(_mm512_shldi_epi16(next, next, 4), second_halves));
    }
}

inline void prefetch_unit(const uint8_t *unit) {
    for (int64_t byte = 0; byte < UNIT_BYTES; byte += 64)
        _mm_prefetch(reinterpret_cast<const char *>(unit + byte), _MM_HINT_T1);
}

void dequantize_strip(const uint8_t *strip, int64_t blocks, uint16_t *tiles) {
    for (int64_t block = 0; block < blocks; block++) {
        prefetch_unit(strip + (block + PREFETCH_UNITS) * UNIT_BYTES);
        dequantize_rows<0, 16>(strip + block * UNIT_BYTES, tiles + block * 2 * TILE_VALUES);
    }
}

// One strip's part of a block: its products, and between them its next block is dequantized, so that both units have work.
// A product waits for the load of its tile, and what comes behind it waits too: rows of the next block come in between.
template <int strip>
inline void multiply_block(const uint8_t *ahead, const uint8_t *next, const uint16_t *now, uint16_t *then) {
    prefetch_unit(ahead);
    load_tile<4>(now, 64);
    dequantize_rows<0, 4>(next, then);
    if constexpr (strip == 0)
        _tile_dpbf16ps(0, 4, 6);
    else
        _tile_dpbf16ps(1, 4, 6);
    dequantize_rows<4, 8>(next, then);
    load_tile<5>(now + TILE_VALUES, 64);
    dequantize_rows<8, 12>(next, then);
    if constexpr (strip == 0)
        _tile_dpbf16ps(0, 5, 7);
    else
        _tile_dpbf16ps(1, 5, 7);
    dequantize_rows<12, 16>(next, then);
}

// Two strips that are multiplied together: their codes, those of the strips that come next (the same ones where there are
// none), and where memory is asked for them.
struct Pair {
    const uint8_t *codes[2];
    const uint8_t *next[2];
    const uint8_t *following[2];

    // The unit that is dequantized while block `block` of `blocks` is multiplied, and the one that memory is asked for.
    const uint8_t *behind(int strip, int64_t block, int64_t blocks) const {
        return block + 1 == blocks ? next[strip] : codes[strip] + (block + 1) * UNIT_BYTES;
    }
    const uint8_t *ahead(int strip, int64_t block, int64_t blocks) const {
        const int64_t at = block + PREFETCH_UNITS;
        return at < blocks ? codes[strip] + at * UNIT_BYTES : following[strip] + (at - blocks) * UNIT_BYTES;
    }
};

// Sums of one strip or two for up to 16 rows, straight from the codes: sums [count][16 outputs][16 rows], of which
// `width` are there. Tiles [2 turns][2 strips]: block 0 lies in those of `turn` already, and when it returns, block 0 of
// the next strips in those of the turn that it returns. Between blocks it goes on with what adapters add.
template <int count>
int64_t multiply_few(const Pair &pair, const uint16_t *packed, int64_t width, int64_t blocks,
                     uint16_t (*tiles)[2][2 * TILE_VALUES], int64_t turn, float *sums, Expansion &expansion) {
    _tile_zero(0);
    _tile_zero(1);
    for (int64_t block = 0; block < blocks; block++, turn ^= 1) {
        load_tile<6>(packed + block * BLOCK * width, 4 * width);
        load_tile<7>(packed + (block * BLOCK + 32) * width, 4 * width);
        multiply_block<0>(pair.ahead(0, block, blocks), pair.behind(0, block, blocks), tiles[turn][0],
                          tiles[turn ^ 1][0]);
        if constexpr (count == 2)
            multiply_block<1>(pair.ahead(1, block, blocks), pair.behind(1, block, blocks), tiles[turn][1],
                              tiles[turn ^ 1][1]);
        expansion.advance(blocks);
    }
    _tile_stored(0, sums, 64);
    if constexpr (count == 2)
        _tile_stored(1, sums + SUMS, 64);
    return turn;
}

// Half a block for two groups of 16 rows: products of both strips, and meanwhile the next block of the strip of the same
// number is dequantized.
template <int half, int count>
inline void multiply_half(const uint16_t *x, int64_t group_stride, const uint8_t *ahead, const uint8_t *next,
                          uint16_t (*now)[2 * TILE_VALUES], uint16_t *then) {
    constexpr bool dequantizes = half < count;
    const auto rows = [&]<int first, int last>() {
        if constexpr (dequantizes)
            dequantize_rows<first, last>(next, then);
    };
    if constexpr (dequantizes)
        prefetch_unit(ahead);
    load_tile<6>(x + half * TILE_VALUES, 64);
    load_tile<7>(x + group_stride + half * TILE_VALUES, 64);
    load_tile<4>(now[0] + half * TILE_VALUES, 64);
    rows.template operator()<0, 4>();
    _tile_dpbf16ps(0, 4, 6);
    rows.template operator()<4, 6>();
    _tile_dpbf16ps(1, 4, 7);
    rows.template operator()<6, 8>();
    if constexpr (count == 2)
        load_tile<5>(now[1] + half * TILE_VALUES, 64);
    rows.template operator()<8, 12>();
    if constexpr (count == 2)
        _tile_dpbf16ps(2, 5, 6);
    rows.template operator()<12, 14>();
    if constexpr (count == 2)
        _tile_dpbf16ps(3, 5, 7);
    rows.template operator()<14, 16>();
}

// As multiply_few for 17 to 32 rows: sums [count][2 groups][16 outputs][16 rows].
template <int count>
int64_t multiply_two_groups(const Pair &pair, const uint16_t *packed, int64_t group_stride, int64_t blocks,
                            uint16_t (*tiles)[2][2 * TILE_VALUES], int64_t turn, float *sums, Expansion &expansion) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t block = 0; block < blocks; block++, turn ^= 1) {
        const uint16_t *x = packed + block * 2 * TILE_VALUES;
        multiply_half<0, count>(x, group_stride, pair.ahead(0, block, blocks), pair.behind(0, block, blocks),
                                tiles[turn], tiles[turn ^ 1][0]);
        multiply_half<1, count>(x, group_stride, pair.ahead(1, block, blocks), pair.behind(1, block, blocks),
                                tiles[turn], tiles[turn ^ 1][1]);
        expansion.advance(blocks);
    }
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + SUMS, 64);
    if constexpr (count == 2) {
        _tile_stored(2, sums + 2 * SUMS, 64);
        _tile_stored(3, sums + 3 * SUMS, 64);
    }
    return turn;
}

} // namespace

void prefetch_codes(const uint8_t *codes, int64_t block) { prefetch_unit(codes + block * UNIT_BYTES); }

// Up to 32 rows: strips two at a time, and while one pair is multiplied the next one is dequantized.
void multiply_pairs(const Strip *strips, int64_t count, const uint16_t *packed, int64_t rows, int64_t blocks,
                    float *deltas) {
    alignas(64) float sums[CHUNK_SUMS];
    alignas(64) uint16_t tiles[2][2][2 * TILE_VALUES];
    // The strip two further on, or where it would lie if the strips went on as they do.
    const auto following = [&](int64_t at) {
        return at + 2 < count ? strips[at + 2].codes
                              : strips[at].codes + (at >= 2 ? strips[at].codes - strips[at - 2].codes
                                                            : 2 * blocks * UNIT_BYTES);
    };
    for (int64_t at = 0; at < std::min<int64_t>(count, 2); at++)
        dequantize_rows<0, 16>(strips[at].codes, tiles[0][at]);
    const int64_t width = tile_width(rows), groups = row_groups(rows), group_stride = TILE_ROWS * BLOCK * blocks;
    int64_t turn = 0;
    for (int64_t at = 0; at < count; at += 2) {
        const int64_t other = std::min(at + 1, count - 1);
        const auto next = [&](int64_t index) { return strips[index + 2 < count ? index + 2 : index].codes; };
        const Pair pair{{strips[at].codes, strips[other].codes}, {next(at), next(other)}, {following(at), following(other)}};
        Expansion expansion;
        float *const own_deltas[] = {deltas, deltas + (strips[at].adapters ? strips[at].adapters->member_count * STRIP : 0)};
        for (int64_t index = at; index <= other; index++) {
            const bool goes_on = index + 2 < count && strips[index + 2].adapters == strips[index].adapters;
            expansion.add(strips[index], strips[goes_on ? index + 2 : index].index, own_deltas[index - at]);
        }
        if (groups == 2)
            turn = other > at ? multiply_two_groups<2>(pair, packed, group_stride, blocks, tiles, turn, sums, expansion)
                              : multiply_two_groups<1>(pair, packed, group_stride, blocks, tiles, turn, sums, expansion);
        else
            turn = other > at ? multiply_few<2>(pair, packed, width, blocks, tiles, turn, sums, expansion)
                              : multiply_few<1>(pair, packed, width, blocks, tiles, turn, sums, expansion);
        for (int64_t index = at; index <= other; index++)
            finish_chunk(sums + (index - at) * groups * SUMS, 0, rows, strips[index], own_deltas[index - at]);
    }
}

void multiply_strips(const Strip *strips, int64_t count, const uint16_t *packed, int64_t rows, int64_t in_features,
                     const Scratch &scratch) {
    const int64_t blocks = in_features / BLOCK;
    alignas(64) float sums[CHUNK_SUMS];
    configure_tiles(tile_width(rows));
    if (rows <= 2 * TILE_ROWS) {
        multiply_pairs(strips, count, packed, rows, blocks, scratch.deltas);
        _tile_release();
        return;
    }
    for (int64_t at = 0; at < count; at++) {
        const Strip &strip = strips[at];
        if (strip.adapters)
            expand(*strip.adapters, strip.index, scratch.deltas);
        dequantize_strip(strip.codes, blocks, scratch.tiles);
        for (int64_t row = 0; row < rows; row += CHUNK_ROWS) {
            const int64_t present = std::min(CHUNK_ROWS, rows - row);
            chunk_sums(scratch.tiles, TILE_VALUES, 64, packed + row * in_features, TILE_ROWS * in_features,
                       row_groups(present), blocks, sums);
            finish_chunk(sums, row, present, strip, scratch.deltas);
        }
    }
    _tile_release();
}

void row_squares(const uint8_t *weight, int64_t in_features, int64_t first_strip, int64_t last_strip, float *squares) {
    alignas(64) uint16_t tiles[2 * TILE_VALUES];
    const int64_t blocks = in_features / BLOCK;
    for (int64_t strip = first_strip; strip < last_strip; strip++) {
        __m512 sums[STRIP];
        for (int64_t row = 0; row < STRIP; row++)
            sums[row] = _mm512_setzero_ps();
        for (int64_t block = 0; block < blocks; block++) {
            dequantize_rows<0, 16>(weight + (strip * blocks + block) * UNIT_BYTES, tiles);
            for (int64_t row = 0; row < STRIP; row++)
                for (int64_t half = 0; half < 2; half++)
                    for (int64_t part = 0; part < 32; part += 16) {
                        const __m512 values = widen(tiles + half * TILE_VALUES + row * 32 + part);
                        sums[row] = _mm512_fmadd_ps(values, values, sums[row]);
                    }
        }
        for (int64_t row = 0; row < STRIP; row++)
            squares[strip * STRIP + row] = _mm512_reduce_add_ps(sums[row]);
    }
}

} // namespace loraplex

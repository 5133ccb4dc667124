// Compiled for processors with AVX512-BF16, AVX512-VBMI and AMX-BF16; called only where `is_supported` says so.
//
// A strip of 16 output features is dequantized once (code x scale in float, rounded to bfloat16: the very bits that
// bitsandbytes' dequantization gives) and multiplied with all rows of x by the tile unit, which adds up in float. Each
// row's sums run over k in one fixed order, so a row's result does not depend on how many rows there are beside it.
#include "nf4_linear.h"

#include <algorithm>
#include <cstring>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace loraplex {
namespace {

alignas(64) const float CODES[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f,
    -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f,
    0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};
constexpr int64_t TILE_VALUES = 16 * 32; // bf16 values of one tile
constexpr int PREFETCH_UNITS = 8;        // how far ahead of its use a unit of weights is asked for
constexpr long ARCH_REQ_XCOMP_PERM = 0x1023;
constexpr long XFEATURE_XTILEDATA = 18;

struct alignas(64) TileConfig {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

// Tiles 0 to 3: sums [16 outputs, 16 rows of x]; 4 and 5: weights [16 outputs, 32 k]; 6 and 7: x [16 k pairs, 16 rows].
void configure_tiles() {
    TileConfig config;
    for (int tile = 0; tile < 8; tile++) {
        config.rows[tile] = 16;
        config.row_bytes[tile] = 64;
    }
    _tile_loadconfig(&config);
}

// One strip and one block: 16 x 64 codes to two tiles of [16 outputs, 32 k].
inline void dequantize_unit(const uint8_t *unit, uint16_t *tiles) {
    const __m512 codes = _mm512_load_ps(CODES);
    const float *scales = reinterpret_cast<const float *>(unit);
    const uint8_t *packed = unit + STRIP * 4;
#pragma GCC unroll 16
    for (int row = 0; row < STRIP; row++) {
        const __m256i values = (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(codes, _mm512_set1_ps(scales[row])));
        const __m512i table = _mm512_broadcast_i64x4(values); // twice, so that bit 4 of an index does not matter
        const __m512i bytes =
            _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(packed + 32 * row)));
        _mm512_store_si512(tiles + row * 32, _mm512_permutexvar_epi16(bytes, table));
        _mm512_store_si512(tiles + TILE_VALUES + row * 32,
                           _mm512_permutexvar_epi16(_mm512_srli_epi16(bytes, 4), table));
    }
}

inline void prefetch_unit(const uint8_t *unit) {
    for (int64_t byte = 0; byte < UNIT_BYTES; byte += 64)
        _mm_prefetch(reinterpret_cast<const char *>(unit + byte), _MM_HINT_T0);
}

void dequantize_strip(const uint8_t *strip, int64_t blocks, uint16_t *tiles) {
    for (int64_t block = 0; block < blocks; block++) {
        prefetch_unit(strip + (block + PREFETCH_UNITS) * UNIT_BYTES);
        dequantize_unit(strip + block * UNIT_BYTES, tiles + block * 2 * TILE_VALUES);
    }
}

// Sums of one strip for up to 16 rows, straight from the codes: each block is dequantized while the tile unit is busy
// with the one before. sums [16 outputs][16 rows].
void multiply_few(const uint8_t *strip, const uint16_t *packed, int64_t blocks, float *sums) {
    alignas(64) uint16_t ring[4][2 * TILE_VALUES];
    _tile_zero(0);
    dequantize_unit(strip, ring[0]);
    for (int64_t block = 0; block < blocks; block++) {
        if (block + 1 < blocks) {
            prefetch_unit(strip + (block + 1 + PREFETCH_UNITS) * UNIT_BYTES);
            dequantize_unit(strip + (block + 1) * UNIT_BYTES, ring[(block + 1) & 3]);
        }
        const uint16_t *tiles = ring[block & 3];
        const uint16_t *x = packed + block * 2 * TILE_VALUES;
        _tile_loadd(4, tiles, 64);
        _tile_loadd(6, x, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, tiles + TILE_VALUES, 64);
        _tile_loadd(7, x + TILE_VALUES, 64);
        _tile_dpbf16ps(0, 5, 7);
    }
    _tile_stored(0, sums, 64);
}

// The same for 16 rows of bf16 weights as they lie in a matrix [O, K].
void multiply_few_dense(const uint16_t *weight, int64_t in_features, const uint16_t *packed, float *sums) {
    _tile_zero(0);
    for (int64_t k = 0; k < in_features; k += BLOCK) {
        for (int64_t row = 0; row < STRIP; row++)
            for (int64_t half = 0; half < BLOCK; half += 32)
                _mm_prefetch(reinterpret_cast<const char *>(weight + row * in_features + k + 4 * BLOCK + half),
                             _MM_HINT_T0);
        const uint16_t *x = packed + k / 32 * TILE_VALUES;
        _tile_loadd(4, weight + k, in_features * 2);
        _tile_loadd(6, x, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, weight + k + 32, in_features * 2);
        _tile_loadd(7, x + TILE_VALUES, 64);
        _tile_dpbf16ps(0, 5, 7);
    }
    _tile_stored(0, sums, 64);
}

// The same for up to 64 rows from a strip that is dequantized already: sums [4][16 outputs][16 rows].
// Tile t of the weights begins at tiles + t * tile_step, its rows lie row_bytes apart.
void multiply_chunk(const uint16_t *tiles, int64_t tile_step, int64_t row_bytes, const uint16_t *packed,
                    int64_t group_stride, int64_t groups, int64_t blocks, float *sums) {
    const uint16_t *x[4];
    for (int64_t group = 0; group < 4; group++)
        x[group] = packed + std::min(group, groups - 1) * group_stride;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t tile = 0; tile < 2 * blocks; tile++) {
        const int64_t at = tile * TILE_VALUES;
        _tile_loadd(4, tiles + tile * tile_step, row_bytes);
        _tile_loadd(6, x[0] + at, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, x[1] + at, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(6, x[2] + at, 64);
        _tile_dpbf16ps(2, 4, 6);
        _tile_loadd(7, x[3] + at, 64);
        _tile_dpbf16ps(3, 4, 7);
    }
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + 256, 64);
    _tile_stored(2, sums + 512, 64);
    _tile_stored(3, sums + 768, 64);
}

inline __m512 widen(const uint16_t *values) {
    const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(values));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}

// The 16 outputs of one row: sums [16 outputs][16 rows], column `column`.
inline __m512 column_of(const float *sums, int64_t column) {
    const __m512i index = _mm512_slli_epi32(
        _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), 4);
    return _mm512_i32gather_ps(index, sums + column, 4);
}

// Add a row's adapters to 16 outputs: value += sum over its uses of weight * (sum over r of hidden[r] * B[r, 16 outputs]).
inline __m512 expand(const Adapters &adapters, int64_t row, int64_t strip, __m512 value) {
    for (int64_t index = adapters.first_use[row]; index < adapters.first_use[row + 1]; index++) {
        const Use &use = adapters.uses[index];
        const float *hidden = adapters.hidden + use.hidden;
        const uint16_t *b = adapters.b + (strip * adapters.rank_rows + use.start) * STRIP;
        __m512 delta = _mm512_setzero_ps();
        for (int64_t rank = 0; rank < use.rank; rank++)
            delta = _mm512_fmadd_ps(_mm512_set1_ps(hidden[rank]), widen(b + rank * STRIP), delta);
        value = _mm512_fmadd_ps(_mm512_set1_ps(adapters.weights[index]), delta, value);
    }
    return value;
}

// Write one strip of up to 16 rows: sums, bias, adapters, rounded to bfloat16.
void finish(const float *sums, int64_t first_row, int64_t row_count, const uint16_t *bias, const Adapters *adapters,
            int64_t out_features, int64_t strip, uint16_t *y) {
    const int64_t output = strip * STRIP;
    const int64_t outputs = std::min(STRIP, out_features - output);
    const __mmask16 mask = static_cast<__mmask16>((1u << outputs) - 1);
    alignas(64) uint16_t padded[16] = {};
    if (bias)
        std::memcpy(padded, bias + output, outputs * 2);
    for (int64_t index = 0; index < row_count; index++) {
        __m512 value = column_of(sums, index);
        if (bias)
            value = _mm512_add_ps(value, widen(padded));
        if (adapters)
            value = expand(*adapters, first_row + index, strip, value);
        _mm256_mask_storeu_epi16(y + (first_row + index) * out_features + output, mask,
                                 (__m256i)_mm512_cvtneps_pbh(value));
    }
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

} // namespace

bool is_supported() {
    static const bool supported = [] {
        __builtin_cpu_init();
        if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vbmi") ||
            !__builtin_cpu_supports("amx-bf16"))
            return false;
        return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
    }();
    return supported;
}

int64_t packed_size(int64_t rows, int64_t in_features) {
    return (rows + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS * in_features;
}

void pack_rows(const uint16_t *x, int64_t rows, int64_t in_features, int64_t first_group, int64_t last_group,
               uint16_t *packed) {
    // A tile's row is a pair of k: [16 rows of x][2 k]. Pairs of bf16 move as one 32-bit value.
    const int64_t pairs = in_features / 2;
    for (int64_t group = first_group; group < last_group; group++) {
        uint32_t *target = reinterpret_cast<uint32_t *>(packed + group * TILE_ROWS * in_features);
        const int64_t present = std::min(TILE_ROWS, rows - group * TILE_ROWS);
        if (present < TILE_ROWS)
            std::memset(target, 0, TILE_ROWS * in_features * 2);
        for (int64_t row = 0; row < present; row++) {
            const uint32_t *source = reinterpret_cast<const uint32_t *>(x + (group * TILE_ROWS + row) * in_features);
            for (int64_t pair = 0; pair < pairs; pair++)
                target[pair * TILE_ROWS + row] = source[pair];
        }
    }
}

void shrink(const uint16_t *x, int64_t in_features, const Adapters &adapters, int64_t group_index, int64_t first,
            int64_t last) {
    const Group &group = adapters.groups[group_index];
    const int64_t *rows = adapters.members + group.first_member;
    for (int64_t rank = std::max<int64_t>(first, 0); rank < std::min(last, group.rank); rank++) {
        const uint16_t *a = adapters.a + (group.start + rank) * in_features;
        float *hidden = adapters.hidden + group.hidden + rank;
        int64_t done = 0;
        for (; done + 8 <= group.members; done += 8)
            dot_rows<8>(x, in_features, rows + done, a, hidden + done * group.rank, group.rank);
        for (; done + 4 <= group.members; done += 4)
            dot_rows<4>(x, in_features, rows + done, a, hidden + done * group.rank, group.rank);
        for (; done + 2 <= group.members; done += 2)
            dot_rows<2>(x, in_features, rows + done, a, hidden + done * group.rank, group.rank);
        if (done < group.members)
            dot_rows<1>(x, in_features, rows + done, a, hidden + done * group.rank, group.rank);
    }
}

void multiply_strips(const uint8_t *weight, const uint16_t *packed, const uint16_t *bias, const Adapters *adapters,
                     int64_t rows, int64_t in_features, int64_t out_features, int64_t first_strip, int64_t last_strip,
                     uint16_t *scratch, uint16_t *y) {
    const int64_t blocks = in_features / BLOCK;
    const int64_t group_stride = TILE_ROWS * in_features;
    alignas(64) float sums[4 * 256];
    configure_tiles();
    for (int64_t strip = first_strip; strip < last_strip; strip++) {
        const uint8_t *codes = weight + strip * blocks * UNIT_BYTES;
        if (rows <= TILE_ROWS) {
            multiply_few(codes, packed, blocks, sums);
            finish(sums, 0, rows, bias, adapters, out_features, strip, y);
            continue;
        }
        dequantize_strip(codes, blocks, scratch);
        for (int64_t row = 0; row < rows; row += CHUNK_ROWS) {
            const int64_t present = std::min(CHUNK_ROWS, rows - row);
            const int64_t groups = (present + TILE_ROWS - 1) / TILE_ROWS;
            multiply_chunk(scratch, TILE_VALUES, 64, packed + row * in_features, group_stride, groups, blocks, sums);
            for (int64_t group = 0; group < groups; group++)
                finish(sums + group * 256, row + group * TILE_ROWS,
                       std::min(TILE_ROWS, present - group * TILE_ROWS), bias, adapters, out_features, strip, y);
        }
    }
    _tile_release();
}

void multiply_dense(const uint16_t *weight, const uint16_t *packed, const uint16_t *bias, int64_t rows,
                    int64_t in_features, int64_t out_features, int64_t first_strip, int64_t last_strip, uint16_t *y) {
    const int64_t blocks = in_features / BLOCK;
    alignas(64) float sums[4 * 256];
    configure_tiles();
    for (int64_t strip = first_strip; strip < last_strip; strip++) {
        const uint16_t *own = weight + strip * STRIP * in_features;
        for (int64_t row = 0; row < rows; row += CHUNK_ROWS) {
            const int64_t present = std::min(CHUNK_ROWS, rows - row);
            const int64_t groups = (present + TILE_ROWS - 1) / TILE_ROWS;
            const uint16_t *x = packed + row * in_features;
            if (groups == 1)
                multiply_few_dense(own, in_features, x, sums);
            else
                multiply_chunk(own, 32, in_features * 2, x, TILE_ROWS * in_features, groups, blocks, sums);
            for (int64_t group = 0; group < groups; group++)
                finish(sums + group * 256, row + group * TILE_ROWS,
                       std::min(TILE_ROWS, present - group * TILE_ROWS), bias, nullptr, out_features, strip, y);
        }
    }
    _tile_release();
}

} // namespace loraplex

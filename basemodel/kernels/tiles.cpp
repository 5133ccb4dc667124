// Compiled for processors with AVX512-BF16 and AMX-BF16; called only where `is_supported` says so.
#include "tiles.h"
#include "vector_math.h"

#include <algorithm>
#include <cstring>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace loraplex {
namespace {

constexpr long ARCH_REQ_XCOMP_PERM = 0x1023;
constexpr long XFEATURE_XTILEDATA = 18;

struct alignas(64) TileConfig {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    constexpr explicit TileConfig(int64_t width) {
        for (int tile = 0; tile < 8; tile++) {
            rows[tile] = 16;
            row_bytes[tile] = tile == 4 || tile == 5 ? 64 : 4 * width;
        }
    }
};

// Constants, because the compiler's own header says of `_tile_loadconfig` that it reads 8 bytes: what a function writes
// behind them it may leave out.
constexpr TileConfig CONFIGS[] = {TileConfig(1), TileConfig(2), TileConfig(4), TileConfig(8), TileConfig(16)};

} // namespace

bool is_supported() {
    static const bool supported = [] {
        __builtin_cpu_init();
        if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vbmi") ||
            !__builtin_cpu_supports("avx512vbmi2") || !__builtin_cpu_supports("amx-bf16"))
            return false;
        return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
    }();
    return supported;
}

int64_t tile_width(int64_t rows) { return rows > 8 ? TILE_ROWS : rows > 4 ? 8 : rows > 2 ? 4 : rows; }

void configure_tiles(int64_t width) { _tile_loadconfig(&CONFIGS[__builtin_ctzll(width)]); }

int64_t packed_size(int64_t rows, int64_t in_features) {
    return (rows > TILE_ROWS ? row_groups(rows) * TILE_ROWS : tile_width(rows)) * in_features;
}

int64_t pack_blocks(int64_t rows, int64_t in_features) {
    return row_groups(rows) * (in_features / BLOCK);
}

void pack(const uint16_t *x, int64_t rows, int64_t in_features, int64_t first, int64_t last, uint16_t *packed) {
    // A tile's row is a pair of k: [N rows of x][2 k]. Pairs of bf16 move as one 32-bit value, 16 x 16 at a time.
    const int64_t blocks = in_features / BLOCK, width = tile_width(rows);
    if (width == 1) {
        std::memcpy(packed + first * BLOCK, x + first * BLOCK, (last - first) * BLOCK * sizeof(uint16_t));
        return;
    }
    const __mmask16 mask = first_lanes(width);
    for (int64_t item = first; item < last; item++) {
        const int64_t row = item / blocks * TILE_ROWS, present = std::min(TILE_ROWS, rows - row);
        const uint16_t *source = x + row * in_features + item % blocks * BLOCK;
        uint16_t *target = packed + item * BLOCK * width;
        for (int64_t half = 0; half < BLOCK; half += 32) {
            __m512i values[16];
            for (int64_t index = 0; index < TILE_ROWS; index++)
                values[index] = index < present ? _mm512_loadu_si512(source + index * in_features + half)
                                                : _mm512_setzero_si512();
            transpose(values);
            for (int64_t index = 0; index < TILE_ROWS; index++)
                _mm512_mask_storeu_epi32(target + (half + 2 * index) * width, mask, values[index]);
        }
    }
}

} // namespace loraplex

// Loads of the tile unit's registers. For files compiled for AMX.
#pragma once
#include <cstdint>

namespace loraplex {

// The compiler's own `_tile_loadd` does not say that it reads memory, so what was written there may be left out or moved.
template <int tile> inline void load_tile(const uint16_t *from, int64_t row_bytes) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(row_bytes), "i"(tile) : "memory");
}

} // namespace loraplex

// Memory for adapters' factors. What was let go last is kept for the next adapter: memory that is fresh from the system
// takes longer to be touched for the first time than factors take to be laid out in it.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

namespace loraplex {

// So many pieces that nobody has any more stay, as many as adapters are read at once.
constexpr int64_t KEPT_PIECES = 2;
// Smaller ones malloc keeps by itself.
constexpr int64_t LEAST_KEPT_BYTES = 1 << 20;
// Of factors in it.
constexpr int64_t FACTOR_ALIGNMENT = 64;

// [bytes] uint8, not initialised, a multiple of FACTOR_ALIGNMENT from such a one on. It goes back when the last tensor
// that looks into it is gone, on any thread.
at::Tensor factor_memory(int64_t bytes);

// Bytes of the pieces that stay.
int64_t kept_bytes();

} // namespace loraplex

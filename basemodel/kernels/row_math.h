// What happens to rows between the linear layers: norms, rotary embedding, gates. All bf16, rounded where torch rounds.
#pragma once
#include <cstdint>

namespace loraplex {

enum class Activation : int64_t { silu = 0, gelu_tanh = 1 };

// How a norm scales: `rounded` rounds the normalized row and multiplies by the weight (Llama, Qwen, Mistral),
// `one_plus` multiplies by 1 + weight in float and rounds once (Gemma).
enum class Scaling : int64_t { rounded = 0, one_plus = 1 };

// y = x / sqrt(mean(x^2) + epsilon), scaled. x may be y.
void rms_norm(const uint16_t *x, const uint16_t *weight, int64_t size, float epsilon, Scaling scaling, uint16_t *y);

// y = x * cos + (-second half of x, first half of x) * sin. x may be y. `size` is even.
void rotate(const uint16_t *x, const uint16_t *cosines, const uint16_t *sines, int64_t size, uint16_t *y);

// y = activation(gate) * up. y may be either.
void gate(const uint16_t *gate, const uint16_t *up, int64_t size, Activation activation, uint16_t *y);

// y = a + b. y may be either.
void add(const uint16_t *a, const uint16_t *b, int64_t size, uint16_t *y);

// The place of the largest value, the first of equals; -1 where a value is not finite. `size` is at least 1.
int64_t largest(const uint16_t *values, int64_t size);

} // namespace loraplex

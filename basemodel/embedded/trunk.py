"""The embedded base as it is trained: a Llama forward pass written for torch.compile on a CPU with AMX.

Float32 weights, bfloat16 products, attention within documents only. Its weights carry the names of transformers'
LlamaForCausalLM, so a state dict moves over unchanged; tests compare the two. Not used for serving.

Letters: B rows, T tokens in a row, H hidden, N heads, K kv heads, G = N / K, D head size, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basemodel.embedded.shape import Shape


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        wide, narrow = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": _linear(shape.hidden, wide),
                "k_proj": _linear(shape.hidden, narrow),
                "v_proj": _linear(shape.hidden, narrow),
                "o_proj": _linear(wide, shape.hidden, zero=True),
            }
        )
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": _linear(shape.hidden, shape.intermediate),
                "up_proj": _linear(shape.hidden, shape.intermediate),
                "down_proj": _linear(shape.intermediate, shape.hidden, zero=True),
            }
        )
        self.input_layernorm = Scale(shape)
        self.post_attention_layernorm = Scale(shape)

    def forward(self, x: Tensor, bias: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """x [B, T, H] bfloat16, bias [B, 1, T, T], cosine and sine [T, 1, D/2] -> [B, T, H]."""
        x = x + self.attend(self.input_layernorm(x), bias, cosine, sine)
        y = self.post_attention_layernorm(x)
        gate, up = _project(y, self.mlp, "gate_proj", "up_proj").chunk(2, -1)
        return x + _project(F.silu(gate) * up, self.mlp, "down_proj")

    def attend(self, y: Tensor, bias: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """y [B, T, H] -> [B, T, H], grouped-query attention with rotary positions."""
        rows, tokens, _ = y.shape
        heads, kv, size = self.shape.heads, self.shape.kv_heads, self.shape.head_size
        group = heads // kv
        qkv = _project(y, self.self_attn, "q_proj", "k_proj", "v_proj").view(rows, tokens, heads + 2 * kv, size)
        left, right = qkv[:, :, : heads + kv].float().chunk(2, -1)
        turned = torch.cat([left * cosine - right * sine, right * cosine + left * sine], -1).bfloat16()
        q = turned[:, :, :heads].reshape(rows, tokens, kv, group, size).permute(0, 2, 3, 1, 4)
        k = turned[:, :, heads:].permute(0, 2, 3, 1).reshape(rows * kv, size, tokens)
        v = qkv[:, :, heads + kv :].permute(0, 2, 1, 3).reshape(rows * kv, tokens, size)
        scores = torch.bmm(q.reshape(rows * kv, group * tokens, size), k).view(rows, heads, tokens, tokens).float()
        share = torch.softmax(scores * size**-0.5 + bias, -1).bfloat16().view(rows * kv, group * tokens, tokens)
        mixed = torch.bmm(share, v).view(rows, kv, group, tokens, size).permute(0, 3, 1, 2, 4)
        return _project(mixed.reshape(rows, tokens, heads * size), self.self_attn, "o_proj")


class Scale(nn.Module):
    """Root mean square normalization."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape.hidden))
        self.epsilon = shape.norm_epsilon

    def forward(self, x: Tensor) -> Tensor:
        """x [..., H] -> [..., H] bfloat16."""
        y = x.float()
        return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.epsilon) * self.weight).bfloat16()


class Decoder(nn.Module):
    """Embedding, layers and the last normalization, under transformers' names."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = Scale(shape)


class Trunk(nn.Module):
    """The whole model with its loss."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Decoder(shape)

    def compile_layers(self) -> None:
        """Compile each layer and the loss; one compilation serves all layers of a row length."""
        for layer in self.model.layers:
            layer.compile(dynamic=False)
        self.token_losses = torch.compile(self.token_losses, dynamic=False)  # type: ignore[method-assign]

    def forward(self, ids: Tensor, document: Tensor, labels: Tensor) -> Tensor:
        """ids, document, labels [B, T] -> cross-entropy of each label [B, T] in nats, each document for itself."""
        cosine, sine = self.rotation(ids.shape[1])
        bias = attention_bias(document)
        x = F.embedding(ids, self.model.embed_tokens.weight).bfloat16()
        for layer in self.model.layers:
            x = layer(x, bias, cosine, sine)
        return self.token_losses(x, labels)

    def token_losses(self, x: Tensor, labels: Tensor) -> Tensor:
        """x [B, T, H], labels [B, T] -> [B, T]."""
        logits = F.linear(self.model.norm(x), self.model.embed_tokens.weight.bfloat16()).float()
        flat = logits.view(-1, self.shape.vocabulary)
        return F.cross_entropy(flat, labels.reshape(-1), reduction="none").view(labels.shape)

    def rotation(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the rotary positions, [T, 1, D/2] each."""
        half = self.shape.head_size // 2
        frequency = self.shape.rope_theta ** (-torch.arange(half) / half)
        angle = torch.arange(tokens)[:, None, None] * frequency
        return angle.cos(), angle.sin()


def attention_bias(document: Tensor) -> Tensor:
    """document [B, T] -> [B, 1, T, T]: 0 where a token may look, a large negative number elsewhere."""
    tokens = document.shape[1]
    allowed = (document[:, :, None] == document[:, None, :]) & torch.ones(tokens, tokens, dtype=torch.bool).tril()
    return torch.where(allowed, 0.0, -1e9)[:, None]


def _linear(inputs: int, outputs: int, zero: bool = False) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=False)
    if zero:
        nn.init.zeros_(layer.weight)
    else:
        nn.init.normal_(layer.weight, std=inputs**-0.5 / 2)
    return layer


def _project(x: Tensor, layers: nn.ModuleDict, *names: str) -> Tensor:
    weights: list[Tensor] = [layers.get_parameter(f"{name}.weight") for name in names]
    weight = torch.cat(weights) if len(weights) > 1 else weights[0]
    return F.linear(x, weight.bfloat16())

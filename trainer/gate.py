"""The gate of a mixture while it trains: which experts each token of a forward uses, and with which weights.

It does: watch the token ids on their way into the decoder and hold the weights that every LoRA layer of that forward
reads (`mixture_product`). In eval mode they come from `basemodel.mixture_gate`, the router of the server; in training
from the same scores, with gradients.
It does not: apply experts, or step.

In training the forward is the served one: the best k experts, their shares scaled to sum to 1. The gradient passes
straight through that choice into the shares of all experts, so that an expert that was not chosen can become so. With
the kept ones alone, a domain that begins with the wrong experts comes to its own late (docs/log.md).

Letters: B rows, T tokens, E experts, k experts per token, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from basemodel.mixture_gate import Mixture, normalized, token_scores
from basemodel.score_table import RouterState, ScoreTable
from trainer.job_sections import MixtureSection

START_SPREAD = 0.5  # standard deviation of a token's scores before the first step: nearly even, and no ties


class Gate(nn.Module):
    """weight [E, H] and bias [E], float32, and the weights of the forward that runs. Only forwards change the latter.

    `embedding` [V, H] is the base's, read and never changed; `center` [H] is the mean input of the training's tokens
    (None: zero). What is learned is about the difference to it: most of an input is common to all texts, and a step
    along that would move every domain at once. The bias that is served has the center in it.
    """

    def __init__(
        self, experts: int, embedding: Tensor, section: MixtureSection, *, center: Tensor | None = None
    ) -> None:
        super().__init__()
        hidden = embedding.shape[1]
        self.weight = nn.Parameter(torch.randn(experts, hidden) * START_SPREAD / hidden**0.5)
        self.bias = nn.Parameter(torch.zeros(experts))
        self._alone: int | None = None
        self._center = [embedding.new_zeros(hidden, dtype=torch.float32) if center is None else center]
        self._embedding = [embedding]  # in a list, so that torch does not look for parameters in it
        self._section = section
        self._weights: Tensor | None = None
        self._shares: Tensor | None = None
        self._kept: Tensor | None = None
        self._table: ScoreTable | None = None
        self._states: list[RouterState] = []

    @property
    def experts(self) -> int:
        """How many it chooses among."""
        return len(self.bias)

    @property
    def weights(self) -> Tensor:
        """The weights [B*T, E] of the forward that runs; 0 where an expert is not chosen."""
        assert self._weights is not None, "no forward has begun"
        return self._weights

    def watch(self, decoder: nn.Module) -> None:
        """Route the tokens of every forward of `decoder`, before its first layer."""
        decoder.register_forward_pre_hook(self._route, with_kwargs=True)

    def train(self, mode: bool = True) -> Gate:
        """Switch modes; the table of the served router is made anew from what the gate is then."""
        self._table = None
        super().train(mode)
        return self

    @contextmanager
    def only(self, expert: int) -> Iterator[None]:
        """Inside, every token uses this one expert, whole."""
        self._alone = expert
        try:
            yield
        finally:
            self._alone = None

    def mixture(self, base_fingerprint: str, experts: tuple[str, ...]) -> Mixture:
        """The gate as it is now, as it is exported. `experts` are digests."""
        return Mixture(
            base_fingerprint=base_fingerprint,
            top_k=self._section.top_k,
            experts=experts,
            context=self._section.gate_context,
            decay=self._section.gate_decay,
            weight=self.weight.detach().cpu().clone(),
            bias=self._served_bias().detach().cpu(),
        )

    def inputs(self, token_ids: Tensor) -> Tensor:
        """What the scores of a row's tokens [T] are linear in: [T, H], float32, with the context and the center."""
        own = normalized(self._embedding[0][token_ids]) - self._center[0].double()
        if self._section.gate_context == "running_mean":
            own = running_mean(own[None], self._section.gate_decay)[0]
        return own.float()

    def begin_even(self) -> None:
        """Forget everything: all experts have the same score for every token."""
        self._table = None
        with torch.no_grad():
            self.weight.zero_()
            self.bias.zero_()

    def take(self, mixture: Mixture) -> None:
        """Become the gate of a mixture that was exported from one over the same experts."""
        self._table = None
        with torch.no_grad():
            self.weight.copy_(mixture.weight)
            self.bias.copy_(mixture.bias.to(self.bias.device) + self.weight @ self._center[0])

    def balance(self, row_tokens: tuple[int, ...]) -> Tensor:
        """The term that spreads tokens, for the forward just done: 1 where they are spread evenly, at most E.

        E times the sum over experts of the share of choices times the mean share, over the rows' real tokens. Source:
        Switch Transformer (arXiv 2101.03961), equation 4, with k choices a token.
        """
        assert self._shares is not None, "the forward before was no training"
        assert self._kept is not None
        experts = self._shares.shape[-1]
        longest = self._shares.shape[1]
        real = torch.tensor([[place < tokens for place in range(longest)] for tokens in row_tokens])
        real = real.to(self._shares.device)
        chosen = self._kept[real].double().mean(dim=0) / self._section.top_k
        return (experts * (chosen * self._shares[real].mean(dim=0)).sum()).float()

    def table(self) -> ScoreTable:
        """The served router of the gate as it is now."""
        names = tuple(str(number) for number in range(len(self.bias)))
        return ScoreTable(self.mixture("", names), self._embedding[0])

    def _route(self, _decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        token_ids: Tensor = args[0] if args else kwargs["input_ids"]
        if self._alone is not None:
            one = nn.functional.one_hot(torch.tensor(self._alone), len(self.bias)).float().to(token_ids.device)
            self._weights = one.expand(token_ids.numel(), -1)
        elif self.training:
            self._weights = self._learned(token_ids)
        else:
            self._weights = self._served(token_ids, kwargs.get("attention_mask"), kwargs.get("past_key_values"))

    def _learned(self, token_ids: Tensor) -> Tensor:
        """Weights [B*T, E] with their gradient, of rows that begin at their first token."""
        unique, where = torch.unique(token_ids, return_inverse=True)
        scores = token_scores(self._embedding[0][unique], self.weight, self._served_bias())[where]
        if self._section.gate_context == "running_mean":
            scores = running_mean(scores.double(), self._section.gate_decay)
        shares = torch.softmax(scores.double(), dim=-1)
        best = torch.sort(scores, dim=-1, descending=True, stable=True).indices[..., : self._section.top_k]
        kept = torch.zeros_like(shares, dtype=torch.bool).scatter(-1, best, value=True)
        chosen = shares.masked_fill(~kept, 0)
        chosen = chosen / chosen.sum(dim=-1, keepdim=True)
        self._shares, self._kept = shares, kept
        return (shares + (chosen - shares).detach()).flatten(0, 1).float()

    def _served_bias(self) -> Tensor:
        return (self.bias.double() - self.weight.double() @ self._center[0].double()).float()

    def _served(self, token_ids: Tensor, mask: Any, cache: Any) -> Tensor:
        """Weights [B*T, E] as the server gives them; rows go on where `cache` says that they had begun."""
        if self._table is None:
            self._table = self.table()
        if cache is None or cache.get_seq_length() == 0:
            self._states = [RouterState()] * len(token_ids)
        ids = token_ids.cpu().numpy()
        real = np.ones(ids.shape, dtype=np.bool_)
        if mask is not None:
            assert mask.dim() == 2, "the padding is read from a mask of rows and tokens"
            real = mask[:, -ids.shape[1] :].bool().cpu().numpy()
        weights = np.zeros((*ids.shape, len(self.bias)), dtype=np.float32)
        for row in range(len(ids)):
            experts, shares, self._states[row] = self._table.route(ids[row][real[row]], self._states[row])
            routed = np.zeros((len(experts), len(self.bias)), dtype=np.float32)
            np.put_along_axis(routed, experts, shares, axis=1)
            weights[row, real[row]] = routed
        return torch.from_numpy(weights).flatten(0, 1).to(token_ids.device)


def running_mean(scores: Tensor, decay: float | None) -> Tensor:
    """The mean of scores [B, T, E] up to each token, with gradients; `decay` as in `basemodel.mixture_gate`."""
    if decay is None:
        counts = torch.arange(1, scores.shape[1] + 1, device=scores.device, dtype=scores.dtype)
        return scores.cumsum(dim=1) / counts[:, None]
    sums, mass, means = torch.zeros_like(scores[:, 0]), 0.0, []
    for place in range(scores.shape[1]):
        sums, mass = sums * decay + scores[:, place], mass * decay + 1
        means.append(sums / mass)
    return torch.stack(means, dim=1)

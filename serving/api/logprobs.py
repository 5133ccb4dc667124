"""Log-probabilities in OpenAI's two shapes. Nothing is below -9999: JSON has no infinity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serving.tokenization import Tokenization
from serving.transcript import ShownToken

LOWEST = -9999.0


def chat_logprobs(tokens: Sequence[ShownToken], tokenization: Tokenization) -> dict[str, Any]:
    """The shape of /v1/chat/completions."""
    content = [
        {
            **_chat_token(token.logprob.token_id, token.logprob.logprob, tokenization),
            "top_logprobs": [_chat_token(token_id, value, tokenization) for token_id, value in token.logprob.top],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(tokens: Sequence[ShownToken], tokenization: Tokenization) -> dict[str, Any]:
    """The shape of /v1/completions."""
    top = []
    for token in tokens:
        # The chosen token is always among them, as OpenAI does it.
        alternatives = [*token.logprob.top, (token.logprob.token_id, token.logprob.logprob)]
        top.append({tokenization.token_text(token_id): _bounded(value) for token_id, value in alternatives})
    return {
        "tokens": [tokenization.token_text(token.logprob.token_id) for token in tokens],
        "token_logprobs": [_bounded(token.logprob.logprob) for token in tokens],
        "top_logprobs": top,
        "text_offset": [token.offset for token in tokens],
    }


def _chat_token(token_id: int, value: float, tokenization: Tokenization) -> dict[str, Any]:
    return {
        "token": tokenization.token_text(token_id),
        "logprob": _bounded(value),
        "bytes": list(tokenization.token_bytes(token_id)),
    }


def _bounded(value: float) -> float:
    return max(value, LOWEST)

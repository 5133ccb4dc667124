"""From the fields of a request to the engine's `Sampling`, with every check that needs the base.

It does: apply defaults, check token ids against the vocabulary.
It does not: check ranges (`schemas`) or lengths (`limits`).
"""

from __future__ import annotations

from collections.abc import Iterable

from serving.api.schemas import SamplingFields
from serving.errors import InvalidFieldError
from serving.messages import Sampling
from serving.served_base import ServedBase


def sampling_of(fields: SamplingFields, base: ServedBase, *, max_tokens: int, logprobs: int | None) -> Sampling:
    """The engine's view of the request. Raises InvalidFieldError."""
    logit_bias = fields.logit_bias or {}
    stop_token_ids = tuple(fields.stop_token_ids or ())
    check_token_ids(logit_bias, base, param="logit_bias")
    check_token_ids(stop_token_ids, base, param="stop_token_ids")
    return Sampling(
        max_tokens=max_tokens,
        temperature=_or_default(fields.temperature, 1.0),
        top_p=_or_default(fields.top_p, 1.0),
        # vLLM's clients write "no limit" as -1 or 0.
        top_k=fields.top_k if fields.top_k is not None and fields.top_k > 0 else None,
        min_p=_or_default(fields.min_p, 0.0),
        seed=fields.seed,
        stop_token_ids=stop_token_ids,
        ignore_eos=bool(fields.ignore_eos),
        presence_penalty=_or_default(fields.presence_penalty, 0.0),
        frequency_penalty=_or_default(fields.frequency_penalty, 0.0),
        repetition_penalty=_or_default(fields.repetition_penalty, 1.0),
        logit_bias=logit_bias,
        logprobs=logprobs,
    )


def stop_strings_of(fields: SamplingFields) -> tuple[str, ...]:
    """The stop strings, however they were written."""
    if fields.stop is None:
        return ()
    return (fields.stop,) if isinstance(fields.stop, str) else tuple(fields.stop)


def includes_usage(fields: SamplingFields) -> bool:
    """Whether the stream ends with a usage chunk. Raises InvalidFieldError for stream options without a stream."""
    if fields.stream_options is None:
        return False
    if not fields.stream:
        raise InvalidFieldError("`stream_options` needs `stream` to be true.", param="stream_options")
    return bool(fields.stream_options.include_usage)


def check_token_ids(token_ids: Iterable[int], base: ServedBase, *, param: str) -> None:
    """Raises InvalidFieldError at the first id outside the base's vocabulary."""
    for token_id in token_ids:
        if token_id >= base.vocabulary_tokens:
            raise InvalidFieldError(
                f"`{param}`: there is no token {token_id}; this base has {base.vocabulary_tokens} tokens.", param=param
            )


def _or_default(value: float | None, default: float) -> float:
    return default if value is None else value

"""From a request's `model` and `adapters` to what will serve it, each name resolved once.

It does: tell a plain request from a weighted ensemble, and name the entry at fault.
It does not: resolve a name (`serving.adapter_loader`), or fetch anything.
"""

from __future__ import annotations

from registry.principal import Principal
from serving.adapter_loader import AdapterLoader
from serving.api.schemas import LARGEST_WEIGHT, SamplingFields, WeightedModel
from serving.errors import InvalidFieldError, ModelNotFoundError
from serving.served_base import ServedBase
from serving.target import Part, Selection


async def select(
    loader: AdapterLoader, fields: SamplingFields, principal: Principal, base: ServedBase, *, request_key: str | None
) -> Selection:
    """What the request names. With `adapters`, `model` is the base's name, because that is what they are added to.

    Equal request keys get the same side of a canary, of each entry by itself. Raises InvalidFieldError, and what
    `AdapterLoader.resolve` raises, with the entry as param.
    """
    if fields.adapters is None:
        target = await loader.resolve(fields.model, principal, base, request_key=request_key)
        return Selection(base, () if target.version is None else (Part(fields.model, target, target.version),))
    if not base.is_named(fields.model):
        detail = f"With `adapters`, `model` is the base that they are added to: `{base.name}`, or `base`."
        raise InvalidFieldError(detail, param="model")
    parts = []
    for place, entry in enumerate(fields.adapters):
        parts.append(await _part(loader, entry, f"adapters[{place}]", principal, base, request_key, fields.adapters))
    return Selection(base, tuple(parts))


async def _part(
    loader: AdapterLoader,
    entry: WeightedModel,
    where: str,
    principal: Principal,
    base: ServedBase,
    request_key: str | None,
    entries: list[WeightedModel],
) -> Part:
    if not -LARGEST_WEIGHT <= entry.weight <= LARGEST_WEIGHT:
        detail = f"`{where}.weight` is {entry.weight}; it is between -{LARGEST_WEIGHT:g} and {LARGEST_WEIGHT:g}."
        raise InvalidFieldError(detail, param=f"{where}.weight")
    try:
        target = await loader.resolve(entry.model, principal, base, request_key=request_key)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(error.model, param=f"{where}.model") from None
    if target.version is None:
        detail = f"`{where}.model` is the base itself, which every answer stands on: leave the entry out."
        raise InvalidFieldError(detail, param=f"{where}.model")
    if target.version.experts and (len(entries) > 1 or entry.weight != 1.0):
        detail = f"`{where}.model` is a mixture, which brings its own weights: name it as `model`, alone."
        raise InvalidFieldError(detail, param=f"{where}.model")
    return Part(entry.model, target, target.version, entry.weight)

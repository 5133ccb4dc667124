"""From a request's `model` and `adapters` to what will serve it, each name resolved once.

It does: tell a plain request from a weighted ensemble, and name the entry at fault.
It does not: resolve a name (`serving.adapter_loader`), or fetch anything.
"""

from __future__ import annotations

from registry.principal import Principal
from serving.adapter_loader import AdapterLoader
from serving.api.schemas import SamplingFields, WeightedModel
from serving.errors import InvalidFieldError, ModelNotFoundError
from serving.served_base import ServedBase
from serving.target import Part, Selection, Target


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
        where = f"adapters[{place}].model"
        try:
            target = await loader.resolve(entry.model, principal, base, request_key=request_key)
        except ModelNotFoundError as error:
            raise ModelNotFoundError(error.model, param=where) from None
        parts.append(_part(entry, target, where))
    return Selection(base, tuple(parts))


def _part(entry: WeightedModel, target: Target, where: str) -> Part:
    if target.version is None:
        detail = f"`{where}` is the base itself, which every answer stands on: leave the entry out."
        raise InvalidFieldError(detail, param=where)
    if target.version.experts:
        detail = f"`{where}` is a mixture, which brings its own weights: name it as `model`, without `adapters`."
        raise InvalidFieldError(detail, param=where)
    return Part(entry.model, target, target.version, 1.0 if entry.weight is None else entry.weight)

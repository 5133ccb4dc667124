"""A version's model card: Markdown with YAML front matter, as the Hub shows it, made from what the registry knows.

Whatever an adapter, its manifest or a person wrote stands in code spans, clipped and without control characters: there
Markdown has no links, images or HTML. It is made anew at each request and is no file of the version.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from registry.attestation import Attestation, AttestationKind
from registry.base import BaseRecord
from registry.printable import printable
from registry.version import Version

TEXT_CHARACTERS = 300
ROWS_LIMIT = 64
MODULES_SHOWN = 32
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?", re.ASCII)
_BACKTICKS = re.compile(r"`+")


def render_card(
    version: Version, base: BaseRecord, *, aliases: Mapping[str, int], attestations: Sequence[Attestation]
) -> str:
    """The whole card."""
    parts = [
        _front_matter(version, base),
        f"# {_code(version.adapter)}",
        f"Version {version.number}, {_kind(version)} for {_code(base.name)}. "
        "Loraplex made this card from what it knows of the version.",
        _facts(version, base, aliases),
        _metrics(version),
        _evaluations(attestations),
        _servers(version),
        _experts(version),
        _lineage(version),
        _use(version, base),
        _files(version),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def card_metadata(version: Version, base: BaseRecord) -> dict[str, Any]:
    """The card's front matter as values."""
    metadata: dict[str, Any] = {}
    if _HUB_ID.fullmatch(base.name):
        metadata["base_model"] = _plain(base.name)
    metadata |= {"library_name": "loraplex" if version.experts else "peft", "pipeline_tag": "text-generation"}
    kind = ["lora-switch", "mixture"] if version.experts else ["lora"]
    metadata["tags"] = [*kind, "loraplex", *([] if version.base_verified else ["base-unverified"])]
    if names := sorted(_side(version, "adapter"))[:ROWS_LIMIT]:
        metadata["metrics"] = [_plain(name) for name in names]
    return metadata


def _front_matter(version: Version, base: BaseRecord) -> str:
    lines = ["---"]
    for name, value in card_metadata(version, base).items():
        lines += [f"{name}:", *(f"- {_yaml(item)}" for item in value)] if isinstance(value, list) else []
        lines += [f"{name}: {_yaml(value)}"] if isinstance(value, str) else []
    return "\n".join([*lines, "---"])


def _facts(version: Version, base: BaseRecord, aliases: Mapping[str, int]) -> str:
    pointing = sorted(alias for alias, number in aliases.items() if number == version.number)
    verified = "recorded by the trainer" if version.base_verified else "not verified"
    modules = [
        *version.target_modules[:MODULES_SHOWN],
        *(["..."] if len(version.target_modules) > MODULES_SHOWN else []),
    ]
    rows = [
        ("digest", version.digest),
        ("base", f"{base.name} {base.quantization.mode}"),
        ("base revision", base.revision),
        ("base fingerprint", f"{base.fingerprint} ({verified})"),
        ("rank", str(version.rank)),
        ("modules", ", ".join(modules)),
        ("bytes", f"{version.adapter_bytes:,}"),
        ("published", f"{version.created_at:%Y-%m-%d %H:%M UTC}"),
        ("aliases", ", ".join(pointing) or "none"),
        ("message", version.message or None),
    ]
    return _table(("fact", "value"), [(name, value) for name, value in rows if value is not None])


def _metrics(version: Version) -> str:
    base, adapter = _side(version, "base"), _side(version, "adapter")
    names = sorted(base.keys() | adapter.keys())
    if not names:
        return ""
    rows = [(name, _figure(base.get(name)), _figure(adapter.get(name))) for name in names]
    return "## Metrics\n\nMeasured by the trainer, on the same rows.\n\n" + _table(("metric", "base", "adapter"), rows)


def _evaluations(attestations: Sequence[Attestation]) -> str:
    rows = [
        (attested.subject, name, _figure(value), attested.actor, f"{attested.created_at:%Y-%m-%d}")
        for attested in attestations
        if attested.kind is AttestationKind.EVALUATION
        for name, value in sorted(attested.document.get("metrics", {}).items())
    ]
    if not rows:
        return ""
    return "## Evaluations\n\n" + _table(("evaluation", "metric", "value", "by", "on"), rows[-ROWS_LIMIT:])


def _servers(version: Version) -> str:
    if version.serving is None:
        return ""
    return "## Served by\n\n" + _table(("server", "answer"), list(version.serving.sentences().items()))


def _kind(version: Version) -> str:
    if version.experts:
        return f"a LoRA-Switch mixture of {len(version.experts)} adapters, chosen for each token,"
    return f"a LoRA adapter of rank {version.rank}"


def _experts(version: Version) -> str:
    if not version.experts:
        return ""
    rows = [(str(place), digest) for place, digest in enumerate(version.experts)]
    return "## Experts\n\nIn the order of the gate.\n\n" + _table(("place", "digest"), rows)


def _lineage(version: Version) -> str:
    training = (version.manifest or {}).get("training") or {}
    versions = training.get("versions")
    code = (
        ", ".join(f"{name} {text}" for name, text in sorted(versions.items())) if isinstance(versions, dict) else None
    )
    data = training.get("data") or {}
    facts = {
        "parent": version.parent_digest,
        "data": version.data_digest,
        "rows for training": data.get("train_rows"),
        "method": training.get("method"),
        "steps": training.get("steps"),
        "seed": training.get("seed"),
        "hardware": training.get("hardware"),
        "code": code,
    }
    rows = [(name, str(value)) for name, value in facts.items() if value is not None]
    return "## Lineage\n\n" + _table(("fact", "value"), rows) if rows else ""


def _use(version: Version, base: BaseRecord) -> str:
    model = f"{version.adapter}@{version.number}"
    lines = [
        f"    loraplex serve --base BASE    # a server of {_plain(base.name)}",
        f'    curl http://127.0.0.1:8000/v1/completions -d \'{{"model": "{model}", "prompt": "..."}}\'',
        f"    loraplex pull {model} ./adapter    # "
        + ("the gate; pull its experts by their digests" if version.experts else "a folder that peft loads"),
    ]
    return "## Use\n\n" + "\n".join(lines)


def _files(version: Version) -> str:
    rows = [(file.path, f"{file.size:,}", file.sha256) for file in version.files]
    return "## Files\n\n" + _table(("file", "bytes", "sha256"), rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Headers are ours and plain; every cell is a code span."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += [
        "| " + " | ".join(_code(cell).replace("|", "\\|") for cell in row) + " |" for row in list(rows)[:ROWS_LIMIT]
    ]
    return "\n".join(lines)


def _code(text: str) -> str:
    """Text in which nothing is markup: a code span with a fence longer than any run of backticks within."""
    plain = _plain(text) or "-"
    longest = max((len(run) for run in _BACKTICKS.findall(plain)), default=0)
    fence = "`" * (longest + 1)
    padding = " " if longest else ""
    return f"{fence}{padding}{plain}{padding}{fence}"


def _plain(text: str) -> str:
    """One line without control characters, clipped. A backslash before a bar would take the bar's escape away."""
    line = " ".join(printable(text[: 4 * TEXT_CHARACTERS]).split()).replace("\\", "\N{SET MINUS}")
    return line if len(line) <= TEXT_CHARACTERS else line[:TEXT_CHARACTERS] + "..."


def _yaml(text: str) -> str:
    """A YAML string: a JSON string is one, once nothing unprintable is left in it."""
    return json.dumps(_plain(text), ensure_ascii=False)


def _figure(value: Any) -> str:
    return "-" if value is None else f"{value:.6g}"


def _side(version: Version, side: str) -> dict[str, float | None]:
    return ((version.manifest or {}).get("metrics") or {}).get(side) or {}

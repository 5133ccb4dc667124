"""Writes the table of tested clients in docs/hub.md, from the clients and features that the matrix runs.

python -m tests.hub_clients.documented
"""

from __future__ import annotations

from tests.hub_clients import hf_command
from tests.hub_clients.clients import CLIENTS, ROOT
from tests.hub_clients.drive import FEATURES
from tests.hub_clients.matrix import WITH_COMMAND

PAGE = ROOT / "docs" / "hub.md"
BEGIN, END = "<!-- tested clients -->\n", "<!-- end of tested clients -->"


def render(page: str) -> str:
    """The page with the tables made anew."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + "\n".join([*_clients(), "", *_features()]) + "\n" + END + rest.split(END)[1]


def _clients() -> list[str]:
    rows = ["| `huggingface_hub` | `hf_xet` | large files travel by | the `hf` command too |", "|---|---|---|---|"]
    for client in CLIENTS:
        way = "LFS" if client.xet is None else "Xet"
        rows.append(f"| {client.hub} | {client.xet or 'none'} | {way} | {'yes' if client in WITH_COMMAND else ''} |")
    return rows


def _features() -> list[str]:
    return [*(f"- {feature.name}" for feature in FEATURES), f"- {hf_command.FEATURE}", f"- {hf_command.THOROUGH}"]


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text()))

"""Regenerates golden_digest.json: the digest of a fixed listing of files, computed without the registry.

    python tests/registry/golden_digest.py

The digest of a version must never change its meaning: registries, caches and logs are full of them.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

GOLDEN = Path(__file__).with_suffix(".json")
CONTENTS = {"adapter_model.safetensors": b"\x00\x01\x02", "adapter_config.json": b"{}", "README.md": b"# notes\n"}


def main() -> None:
    """Write the golden file."""
    files = [
        {"path": path, "size": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
        for path, raw in sorted(CONTENTS.items())
    ]
    canonical = json.dumps(files, sort_keys=True, separators=(",", ":"))
    digest = "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()
    GOLDEN.write_text(json.dumps({"files": files, "canonical": canonical, "digest": digest}, indent=2) + "\n")


if __name__ == "__main__":
    main()

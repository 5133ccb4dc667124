"""Regenerates golden_signature.json: a signature that OpenSSF's own tool made, with the key and the files' digests.

    python tests/registry/golden_signature.py        after deploy/model_signing.sh

What that tool signs must be verified here for ever.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

GOLDEN = Path(__file__).with_suffix(".json")
TOOL = Path(__file__).parents[2] / ".venv-model-signing" / "bin" / "model_signing"
CONTENTS = {"adapter_model.safetensors": b"\x00\x01\x02", "adapter_config.json": b"{}", "README.md": b"# notes\n"}


def main() -> None:
    """Write the golden file."""
    key = ec.generate_private_key(ec.SECP256R1())
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = key.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)
    with tempfile.TemporaryDirectory() as folder:
        model, key_file, bundle = (Path(folder) / name for name in ("model", "key.pem", "model.sig"))
        model.mkdir()
        key_file.write_bytes(private)
        for name, content in CONTENTS.items():
            (model / name).write_bytes(content)
        command = [TOOL, "sign", "key", model, "--private_key", key_file, "--signature", bundle]
        subprocess.run(command, check=True)
        files = [[name, len(raw), hashlib.sha256(raw).hexdigest()] for name, raw in CONTENTS.items()]
        document = {"files": files, "public_pem": public.decode(), "bundle": bundle.read_text()}
    GOLDEN.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Google Cloud Storage for the tests of the blob store, as far as its XML API is used here.

    python -m tests.registry.google_server PORT BUCKET EMAIL PUBLIC_KEY_FILE

No emulator in the package registries speaks that API with preconditions and multipart uploads. But Google made it the
same as S3's where it could: ranges, ETags, listings, multipart uploads and the documents of errors. So moto's S3 server
answers here too, and what stands in this file is what differs, as Google's reference has it:

- Who asks has signed: a bearer token that is a JWT of the service account (RS256), or the address itself
  (GOOG4-RSA-SHA256). Both are verified with the account's key. What belongs to S3 is refused.
- `x-goog-copy-source`, `x-goog-if-generation-match: 0` (nothing may be there), and that multipart uploads take none of
  these conditions.

It cannot show what only Google's own servers do: their consistency, limits, ETags and times.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from obstore.store import GCSStore

START_SECONDS = 60
BUCKET = "adapters"
EMAIL = "registry@tests.iam.gserviceaccount.com"
SIGNED_HOST = "storage.googleapis.com"
"""The Host of Google's server, for which obstore signs addresses, whatever the endpoint."""
SCOPES = ("https://www.googleapis.com/auth/devstorage.full_control", "https://www.googleapis.com/auth/cloud-platform")
ETAG_OF_PARTS = re.compile(rb'(<ETag>"[0-9a-f]{32})-(\d+"</ETag>)')
"""Google's reference says of an object of parts only that it has an ETag: here it is announced with another one."""
S3_AUTHORIZATION = "AWS4-HMAC-SHA256 Credential=tests/20260101/us-east-1/s3/aws4_request, SignedHeaders=, Signature="
Environ = dict[str, Any]


@dataclass
class GoogleServer:
    """A running server with one bucket, and the service account's file that opens it."""

    endpoint: str
    account: Path

    def url(self, prefix: str, **options: str) -> str:
        """The address of the blobs below a prefix."""
        rest = "".join(f"&{name}={value}" for name, value in options.items())
        return f"gs://{BUCKET}/{prefix}?endpoint={self.endpoint}{rest}"

    def bucket(self) -> GCSStore:
        """The whole bucket, for tests that look at or damage what is in it."""
        config: Any = {"service_account": str(self.account), "base_url": self.endpoint}
        return GCSStore(BUCKET, config=config, client_options={"allow_http": True})


@contextmanager
def google_server(folder: Path) -> Iterator[GoogleServer]:
    """Start it in a process of its own, with an account and a key of its own."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "public.pem").write_bytes(public)
    account = {"type": "service_account", "client_email": EMAIL, "private_key_id": "1", "private_key": private.decode()}
    (folder / "account.json").write_text(json.dumps(account))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    setpriv = shutil.which("setpriv")
    prefix = [setpriv, "--pdeathsig", "KILL"] if setpriv else []
    module = [sys.executable, "-m", "tests.registry.google_server"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*prefix, *module, str(port), BUCKET, EMAIL, str(folder / "public.pem")],
            cwd=Path(__file__).parents[2],
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(port):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield GoogleServer(f"http://127.0.0.1:{port}", folder / "account.json")
    finally:
        process.kill()
        process.wait(timeout=START_SECONDS)


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


class GoogleStorage:
    """The WSGI application: verifies who asks, says the same to an S3 server, and passes its answer on."""

    def __init__(self, s3: Callable[..., Iterable[bytes]], email: str, key: rsa.RSAPublicKey) -> None:
        self._s3 = s3
        self._email = email
        self._key = key
        self._one_at_a_time = Lock()

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        refused = self._refusal(environ)
        if refused is not None:
            status, code = refused
            start_response(status, [("Content-Type", "application/xml")])
            return [f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code></Error>".encode()]
        _translate(environ)
        with self._one_at_a_time:  # the condition and the write are one
            answer = b"".join(self._s3(environ, start_response))
        return [ETAG_OF_PARTS.sub(rb"\1_\2", answer)]

    def _refusal(self, environ: Environ) -> tuple[str, str] | None:
        query = dict(parse_qsl(environ["QUERY_STRING"], keep_blank_values=True))
        if any(name.startswith("HTTP_X_AMZ") for name in environ):
            return "400 Bad Request", "InvalidArgument"
        if not (self._is_token_sound(environ) or self._is_address_sound(environ, query)):
            return "403 Forbidden", "SignatureDoesNotMatch"
        generation = environ.get("HTTP_X_GOOG_IF_GENERATION_MATCH")
        if generation not in {None, "0"} or (generation is not None and {"uploads", "uploadId"} & set(query)):
            return "400 Bad Request", "NotImplemented"
        return None

    def _is_token_sound(self, environ: Environ) -> bool:
        """A JWT that the service account has signed itself, for a scope of this service."""
        scheme, _, token = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        try:
            header, claims, signature = token.split(".")
            self._verify(_decoded(signature), f"{header}.{claims}".encode())
            algorithm, said = json.loads(_decoded(header))["alg"], json.loads(_decoded(claims))
        except (ValueError, InvalidSignature):
            return False
        is_in_time = said["iat"] - 60 < time.time() < said["exp"] <= said["iat"] + 3600
        is_meant = said["iss"] == self._email and said["scope"] in SCOPES
        return scheme == "Bearer" and algorithm == "RS256" and is_in_time and is_meant

    def _is_address_sound(self, environ: Environ, query: dict[str, str]) -> bool:
        """A signed address, version 4: https://cloud.google.com/storage/docs/authentication/signatures."""
        signature = query.pop("X-Goog-Signature", "")
        try:
            asked_at = datetime.strptime(query["X-Goog-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
            scope = f"{asked_at:%Y%m%d}/auto/storage/goog4_request"
            listed = "&".join(f"{quote(name)}={quote(value, safe='~')}" for name, value in sorted(query.items()))
            what = (environ["REQUEST_METHOD"], urlsplit(environ["RAW_URI"]).path, listed)
            request = "\n".join((*what, f"host:{SIGNED_HOST}\n", "host", "UNSIGNED-PAYLOAD"))
            digest = hashlib.sha256(request.encode()).hexdigest()
            signed = "\n".join(("GOOG4-RSA-SHA256", query["X-Goog-Date"], scope, digest))
            self._verify(binascii.unhexlify(signature), signed.encode())
            is_in_time = datetime.now(UTC) < asked_at + timedelta(seconds=int(query["X-Goog-Expires"]))
        except (KeyError, ValueError, InvalidSignature):
            return False
        is_meant = query["X-Goog-Credential"] == f"{self._email}/{scope}" and query["X-Goog-SignedHeaders"] == "host"
        return is_in_time and is_meant and query["X-Goog-Algorithm"] == "GOOG4-RSA-SHA256"

    def _verify(self, signature: bytes, signed: bytes) -> None:
        self._key.verify(signature, signed, padding.PKCS1v15(), hashes.SHA256())


def _translate(environ: Environ) -> None:
    """The same request, as S3 writes it."""
    environ["HTTP_AUTHORIZATION"] = S3_AUTHORIZATION
    source = environ.pop("HTTP_X_GOOG_COPY_SOURCE", None)
    if source is not None:
        environ["HTTP_X_AMZ_COPY_SOURCE"] = source
    if environ.pop("HTTP_X_GOOG_IF_GENERATION_MATCH", None) is not None:
        environ["HTTP_IF_NONE_MATCH"] = "*"
    if "X-Goog-Signature" in environ["QUERY_STRING"]:
        environ["QUERY_STRING"] = ""
        environ["REQUEST_URI"] = environ["RAW_URI"] = environ["RAW_URI"].partition("?")[0]


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def main(port: str, bucket: str, email: str, public_key: str) -> None:
    """Serve until the process is ended."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import run_simple
    from werkzeug.test import Client

    key = serialization.load_pem_public_key(Path(public_key).read_bytes())
    assert isinstance(key, rsa.RSAPublicKey)
    s3 = DomainDispatcherApplication(create_backend_app)
    made = Client(s3).put(f"/{bucket}", headers={"Authorization": S3_AUTHORIZATION})
    assert made.status_code == 200, made.data
    run_simple("127.0.0.1", int(port), GoogleStorage(s3, email, key), threaded=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

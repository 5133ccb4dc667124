"""Signatures over a version's files, in the layout of OpenSSF Model Signing 1.0.

bundle      a Sigstore bundle (v0.3) as JSON: which key (the hash of its PEM form), and a DSSE envelope
envelope    the statement and the signature over DSSE's pre-authentication encoding (PAE) of it
statement   in-toto v1 with the predicate https://model_signing/signature/v1.0: every file with its SHA-256, and as
            subject the SHA-256 over all these digests in the order of the files' names

Keys are Ed25519, or ECDSA on P-256, P-384 or P-521. `model_signing sign key` and `model_signing verify key` (1.1) know
the ECDSA keys only; what is made here with these they verify, and what they make is verified here. A signature says
who vouches for these bytes. It does not say that they are harmless.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable
from typing import Any

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from registry.decoding import decode
from registry.errors import InvalidValueError
from registry.file_entry import FileEntry

BUNDLE_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
IGNORED_PATHS = (".git", ".gitattributes", ".github", ".gitignore")
"""What `model_signing verify` leaves out of a folder by itself."""
BUNDLE_CHARACTERS = 1 << 20
PEM_CHARACTERS = 10_000
ALGORITHMS = ("ed25519", "ecdsa-p256", "ecdsa-p384", "ecdsa-p521")
_CURVES: dict[str, ec.EllipticCurve] = {
    "ecdsa-p256": ec.SECP256R1(),
    "ecdsa-p384": ec.SECP384R1(),
    "ecdsa-p521": ec.SECP521R1(),
}
_HASHES: dict[int, hashes.HashAlgorithm] = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}

PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey
PublicKey = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey


class _Hint(msgspec.Struct, frozen=True):
    hint: str | None = None


class _Material(msgspec.Struct, frozen=True, rename="camel"):
    public_key: _Hint


class _Signature(msgspec.Struct, frozen=True):
    sig: str


class _Envelope(msgspec.Struct, frozen=True, rename="camel"):
    payload: str
    payload_type: str
    signatures: list[_Signature]


class _Bundle(msgspec.Struct, frozen=True, rename="camel"):
    media_type: str
    verification_material: _Material
    dsse_envelope: _Envelope


class _Resource(msgspec.Struct, frozen=True):
    name: str
    algorithm: str
    digest: str


class _Predicate(msgspec.Struct, frozen=True):
    resources: list[_Resource]


class _Subject(msgspec.Struct, frozen=True):
    name: str
    digest: dict[str, str]


class _Statement(msgspec.Struct, frozen=True):
    type: str = msgspec.field(name="_type")
    predicate_type: str = msgspec.field(name="predicateType")
    subject: list[_Subject]
    predicate: _Predicate


def generate_key(algorithm: str) -> PrivateKey:
    """A new private key. Raises InvalidValueError."""
    if algorithm == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    if algorithm not in _CURVES:
        raise InvalidValueError("algorithm", f"it is one of {', '.join(ALGORITHMS)}")
    return ec.generate_private_key(_CURVES[algorithm])


def read_private_key(pem: bytes, password: bytes | None = None) -> PrivateKey:
    """A private key from its PEM form. Raises InvalidValueError; TypeError where a password is needed."""
    try:
        key = serialization.load_pem_private_key(pem, password)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidValueError("key", "it is not a private key in PEM form, or its password is another") from error
    if not isinstance(key, PrivateKey):
        raise InvalidValueError("key", f"it is none of {', '.join(ALGORITHMS)}")
    _check(key.public_key())
    return key


def read_public_key(pem: str) -> PublicKey:
    """A public key from its PEM form. Raises InvalidValueError."""
    if len(pem) > PEM_CHARACTERS or "PRIVATE" in pem:
        raise InvalidValueError("public_key", "it is not a public key; a private key stays with whoever signs")
    try:
        key = serialization.load_pem_public_key(pem.encode("utf-8", "replace"))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidValueError("public_key", "it is not a public key in PEM form") from error
    if not isinstance(key, PublicKey):
        raise InvalidValueError("public_key", f"it is none of {', '.join(ALGORITHMS)}")
    _check(key)
    return key


def pem_of(key: PublicKey) -> str:
    """The public key's PEM form, written in the one way."""
    encoding, layout = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(encoding, layout).decode("ascii")


def private_pem_of(key: PrivateKey) -> bytes:
    """The private key's PEM form, not encrypted."""
    layout = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, layout, serialization.NoEncryption())


def id_of(key: PublicKey) -> str:
    """The key's identity: SHA-256 of its DER form."""
    layout = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_bytes(serialization.Encoding.DER, layout)).hexdigest()


def algorithm_of(key: PublicKey) -> str:
    """What kind of key it is."""
    return "ed25519" if isinstance(key, ed25519.Ed25519PublicKey) else f"ecdsa-p{key.curve.key_size}"


def hint_of(key: PublicKey) -> str:
    """How a bundle names the key: SHA-256 of its PEM form."""
    return hashlib.sha256(pem_of(key).encode("ascii")).hexdigest()


def sign(files: Iterable[FileEntry], name: str, key: PrivateKey) -> str:
    """A bundle over these files; `name` is what the statement calls the model. The key leaves no trace elsewhere."""
    payload = json.dumps(_statement(files, name), sort_keys=True, separators=(",", ":")).encode("ascii")
    message = _pae(payload)
    if isinstance(key, ed25519.Ed25519PrivateKey):
        signature = key.sign(message)
    else:
        signature = key.sign(message, ec.ECDSA(_HASHES[key.curve.key_size]))
    bundle = {
        "mediaType": BUNDLE_MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": hint_of(key.public_key())}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode("ascii"),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(signature).decode("ascii"), "keyid": ""}],
        },
    }
    return json.dumps(bundle, separators=(",", ":"))


def verify(bundle: str, files: Iterable[FileEntry], key: PublicKey) -> str | None:
    """None where the bundle is this key's signature over exactly these files; else why it is not."""
    try:
        parsed = _parse(bundle)
        payload = base64.b64decode(parsed.dsse_envelope.payload, validate=True)
        signature = base64.b64decode(parsed.dsse_envelope.signatures[0].sig, validate=True)
    except (msgspec.DecodeError, binascii.Error, ValueError, IndexError, RecursionError):
        return "it is no bundle of OpenSSF Model Signing"
    hint = parsed.verification_material.public_key.hint
    if hint and hint != hint_of(key):
        return "it is by another key"
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, _pae(payload))
        else:
            key.verify(signature, _pae(payload), ec.ECDSA(_HASHES[key.curve.key_size]))
    except InvalidSignature:
        return "the signature is not by this key, or the statement was changed"
    return _disagreement(payload, files)


def hint_in(bundle: str) -> str | None:
    """The key that a bundle names. Raises InvalidValueError where it is none."""
    try:
        return _parse(bundle).verification_material.public_key.hint
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InvalidValueError("bundle", "it is no bundle of OpenSSF Model Signing") from error


def _parse(bundle: str) -> _Bundle:
    if len(bundle) > BUNDLE_CHARACTERS:
        raise ValueError("too long")
    parsed = decode(bundle, _Bundle)
    if parsed.media_type != BUNDLE_MEDIA_TYPE or parsed.dsse_envelope.payload_type != PAYLOAD_TYPE:
        raise ValueError("another kind of bundle")
    return parsed


def _statement(files: Iterable[FileEntry], name: str) -> dict[str, Any]:
    listed = sorted(files)
    root = hashlib.sha256(b"".join(bytes.fromhex(file.sha256) for file in listed)).hexdigest()
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": root}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": list(IGNORED_PATHS),
            },
            "resources": [{"name": file.path, "algorithm": "sha256", "digest": file.sha256} for file in listed],
        },
    }


def _disagreement(payload: bytes, files: Iterable[FileEntry]) -> str | None:
    try:
        statement = decode(payload, _Statement)
        digests = [bytes.fromhex(resource.digest) for resource in statement.predicate.resources]
        root = statement.subject[0].digest["sha256"]
    except (msgspec.DecodeError, ValueError, LookupError, RecursionError):
        return "its statement is none of OpenSSF Model Signing"
    if (statement.type, statement.predicate_type, len(statement.subject)) != (STATEMENT_TYPE, PREDICATE_TYPE, 1):
        return "its statement is none of OpenSSF Model Signing 1.0"
    if hashlib.sha256(b"".join(digests)).hexdigest() != root:
        return "its statement contradicts itself"
    signed = sorted((item.name, item.algorithm, item.digest) for item in statement.predicate.resources)
    if signed != sorted((file.path, "sha256", file.sha256) for file in files):
        return "it is over other files"
    return None


def _pae(payload: bytes) -> bytes:
    """DSSE v1: what is signed is the payload with its type and both lengths."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode("ascii"), len(payload), payload)


def _check(key: PublicKey) -> None:
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name not in {"secp256r1", "secp384r1", "secp521r1"}:
        raise InvalidValueError("key", f"its curve is {key.curve.name}; it is none of {', '.join(ALGORITHMS)}")

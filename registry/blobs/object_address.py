"""The address of an object store: `s3://bucket/prefix?endpoint=...`, `gs://bucket/prefix`, `az://account/container/prefix`.

Credentials are never part of it: they come from where the provider's own tools take them, such as AWS_ACCESS_KEY_ID and
AWS_SECRET_ACCESS_KEY, a role of the machine, or GOOGLE_APPLICATION_CREDENTIALS.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from registry.errors import InvalidValueError

SCHEMES = ("s3", "gs", "az")
OPTIONS = ("endpoint", "region", "direct")


@dataclass(frozen=True)
class ObjectAddress:
    """Where blobs are. `bucket` is Azure's container where `account` is given; `prefix` ends with `/` or is empty.

    `direct` lets clients read and write blobs in the store itself, through presigned addresses.
    """

    scheme: str
    account: str | None
    bucket: str
    prefix: str
    endpoint: str | None
    region: str | None
    direct: bool

    @classmethod
    def parse(cls, text: str) -> ObjectAddress:
        """Parse an address. Raises InvalidValueError."""
        try:
            parts = urlsplit(text)
            options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        except ValueError as error:
            raise _refused(text, "it is not an address") from error
        if parts.scheme not in SCHEMES or not parts.netloc or parts.fragment:
            raise _refused(text, "write s3://bucket/prefix, gs://bucket/prefix or az://account/container/prefix")
        if "@" in parts.netloc:
            raise _refused(parts.scheme + "://...", "credentials come from the environment, not from the address")
        unknown = sorted(set(options) - set(OPTIONS))
        if unknown:
            raise _refused(text, f"{unknown[0]!r} is not among its options ({', '.join(OPTIONS)})")
        if options.get("direct", "false") not in {"true", "false"}:
            raise _refused(text, "direct is true or false")
        if "region" in options and parts.scheme != "s3":
            raise _refused(text, "only s3:// has regions")
        steps = [step for step in parts.path.split("/") if step]
        if parts.scheme == "az" and not steps:
            raise _refused(text, "write az://account/container/prefix")
        account, bucket = (parts.netloc, steps.pop(0)) if parts.scheme == "az" else (None, parts.netloc)
        return cls(
            scheme=parts.scheme,
            account=account,
            bucket=bucket,
            prefix="".join(f"{step}/" for step in steps),
            endpoint=options.get("endpoint"),
            region=options.get("region"),
            direct=options.get("direct") == "true",
        )

    @property
    def root(self) -> str:
        """The bucket, or the container of the account, as an address."""
        return f"{self.scheme}://{self.bucket if self.account is None else f'{self.account}/{self.bucket}'}"

    def __str__(self) -> str:
        return f"{self.root}/{self.prefix}".rstrip("/")


def _refused(text: str, why: str) -> InvalidValueError:
    return InvalidValueError("blobs", f"{text[:200]}: {why}")

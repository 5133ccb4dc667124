"""Tenants and their tokens. One method is one transaction.

A token's secret is shown once, when it is made. The database has only its SHA-256 (the secret is 256 random bits, so a
slow hash would add nothing), and comparing is done in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime

from sqlalchemy import select

from registry import audit
from registry.bounded_text import check_text
from registry.database import Database
from registry.errors import AuthenticationError, ConflictError, InvalidValueError, NotFoundError
from registry.models import TenantRow, TokenRow
from registry.names import parse_tenant
from registry.principal import OPERATOR_ACTOR, Principal, Role

SECRET_PREFIX = "lpx_"  # noqa: S105 - the public mark by which secret scanners know a token
SECRET_BYTES = 32
SECRET_CHARACTERS_LIMIT = 256
LABEL_CHARACTERS = 200


@dataclass(frozen=True)
class Tenant:
    """A namespace with its own adapters and tokens."""

    name: str
    created_at: datetime


@dataclass(frozen=True)
class Token:
    """What is kept of a token: everything but its secret."""

    token_id: str
    tenant: str
    role: Role
    label: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True)
class IssuedToken(Token):
    """A token just made. Its secret is nowhere else, and not in its repr."""

    secret: str = field(repr=False)


class Tenants:
    """Tenants and tokens. Holds no state but the database, so threads may share it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, name: str) -> Tenant:
        """Make a tenant. Raises InvalidNameError, ConflictError."""
        parse_tenant(name)
        now = datetime.now(UTC)
        with self._database.writing() as session:
            if session.scalar(select(TenantRow).where(TenantRow.name == name)) is not None:
                raise ConflictError(
                    f"Tenant {name!r} exists already. "
                    f"Make a token for it with `loraplex token create --tenant {name} --role ROLE`."
                )
            session.add(TenantRow(name=name, created_at=now))
            audit.record(session, at=now, actor=OPERATOR_ACTOR, action="create_tenant", subject=name)
        return Tenant(name, now)

    def all(self) -> list[Tenant]:
        """Every tenant, by name."""
        with self._database.reading() as session:
            return [
                Tenant(row.name, row.created_at) for row in session.scalars(select(TenantRow).order_by(TenantRow.name))
            ]

    def create_token(self, tenant: str, role: Role, *, label: str, expires_at: datetime | None) -> IssuedToken:
        """Make a token for an existing tenant. Raises NotFoundError, InvalidValueError."""
        now = datetime.now(UTC)
        check_text("label", label, limit_characters=LABEL_CHARACTERS)
        if expires_at is not None and (expires_at.tzinfo is None or expires_at <= now):
            raise InvalidValueError("expires_at", "it is not a moment in the future with its time zone")
        secret = SECRET_PREFIX + secrets.token_urlsafe(SECRET_BYTES)
        token_id = "tok_" + secrets.token_hex(8)
        with self._database.writing() as session:
            tenant_row = session.scalar(select(TenantRow).where(TenantRow.name == tenant))
            if tenant_row is None:
                raise _missing_tenant(tenant)
            row = TokenRow(
                id=token_id,
                tenant_id=tenant_row.id,
                role=role.value,
                label=label,
                secret_sha256=_hash(secret),
                created_at=now,
                expires_at=expires_at,
                revoked_at=None,
            )
            session.add(row)
            audit.record(
                session, at=now, actor=OPERATOR_ACTOR, action="create_token", subject=token_id, tenant=tenant, role=role
            )
        return IssuedToken(token_id, tenant, role, label, now, expires_at, None, secret=secret)

    def revoke_token(self, token_id: str) -> Token:
        """End a token's life; doing it again changes nothing. Raises NotFoundError."""
        now = datetime.now(UTC)
        with self._database.writing() as session:
            row = session.get(TokenRow, token_id, with_for_update=True)
            if row is None:
                raise NotFoundError("token", token_id, "List a tenant's tokens with `loraplex token ls`.")
            if row.revoked_at is None:
                row.revoked_at = now
                audit.record(session, at=now, actor=OPERATOR_ACTOR, action="revoke_token", subject=token_id)
            tenant = session.get_one(TenantRow, row.tenant_id)
            return _to_token(row, tenant.name)

    def tokens(self, tenant: str) -> list[Token]:
        """A tenant's tokens, revoked and expired ones too, oldest first. Raises NotFoundError."""
        with self._database.reading() as session:
            tenant_row = session.scalar(select(TenantRow).where(TenantRow.name == tenant))
            if tenant_row is None:
                raise _missing_tenant(tenant)
            query = select(TokenRow).where(TokenRow.tenant_id == tenant_row.id).order_by(TokenRow.created_at)
            return [_to_token(row, tenant) for row in session.scalars(query)]

    def has_tokens(self) -> bool:
        """Whether a token was ever made; a registry whose last token was revoked does not become an open one."""
        with self._database.reading() as session:
            return session.scalar(select(TokenRow.id).limit(1)) is not None

    def authenticate(self, secret: str) -> Principal:
        """The principal whose secret this is. Raises AuthenticationError, which never says why."""
        if not secret.startswith(SECRET_PREFIX) or len(secret) > SECRET_CHARACTERS_LIMIT:
            raise AuthenticationError
        secret_sha256 = _hash(secret)
        with self._database.reading() as session:
            query = select(TokenRow, TenantRow.name).join(TenantRow, TenantRow.id == TokenRow.tenant_id)
            found = session.execute(query.where(TokenRow.secret_sha256 == secret_sha256)).first()
            if found is None:
                raise AuthenticationError
            row, tenant = found
            is_equal = hmac.compare_digest(row.secret_sha256, secret_sha256)
            is_over = row.expires_at is not None and row.expires_at <= datetime.now(UTC)
            if not is_equal or is_over or row.revoked_at is not None:
                raise AuthenticationError
            return Principal(tenant=tenant, role=Role(row.role), token_id=row.id)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _to_token(row: TokenRow, tenant: str) -> Token:
    return Token(row.id, tenant, Role(row.role), row.label, row.created_at, row.expires_at, row.revoked_at)


def _missing_tenant(name: str) -> NotFoundError:
    return NotFoundError(
        "tenant", name, "List them with `loraplex tenant ls`, or make it with `loraplex tenant create`."
    )

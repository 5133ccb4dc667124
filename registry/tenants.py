"""Tenants and their tokens. One method is one transaction.

A token's secret is shown once, when it is made. The database has only its SHA-256 (the secret is 256 random bits, so a
slow hash would add nothing), and comparing is done in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from datetime import UTC, datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry import audit
from registry.bounded_text import check_text
from registry.database import Database
from registry.errors import AuthenticationError, ConflictError, InvalidValueError, NotFoundError
from registry.models import TenantRow, TokenRow
from registry.names import parse_tenant
from registry.principal import OPERATOR, Principal, Role
from registry.scope import Scope
from registry.tenant import IssuedToken, Tenant, Token
from registry.tenant_rows import find_tenant

SECRET_PREFIX = "lpx_"  # noqa: S105 - the public mark by which secret scanners know a token
SECRET_BYTES = 32
SECRET_CHARACTERS_LIMIT = 256
LABEL_CHARACTERS = 200
OVERLAP_LIMIT = timedelta(days=30)


class Tenants:
    """Tenants and tokens. Holds no state but the database, so threads may share it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, name: str, *, principal: Principal = OPERATOR) -> Tenant:
        """Make a tenant. Raises InvalidNameError, ConflictError, PermissionDeniedError."""
        parse_tenant(name)
        principal.require_operator(action="create the tenant", subject=name)
        now = datetime.now(UTC)
        with self._database.writing() as session:
            if session.scalar(select(TenantRow).where(TenantRow.name == name)) is not None:
                raise ConflictError(
                    f"Tenant {name!r} exists already. "
                    f"Make a token for it with `loraplex token create --tenant {name} --role ROLE`."
                )
            session.add(TenantRow(name=name, created_at=now))
            audit.record(session, at=now, actor=principal.actor, action="create_tenant", subject=name, tenant=name)
        return Tenant(name, now)

    def all(self, *, principal: Principal = OPERATOR) -> list[Tenant]:
        """Every tenant, by name; whoever has a token is shown its own."""
        query = select(TenantRow).order_by(TenantRow.name)
        if not principal.is_operator:
            query = query.where(TenantRow.name == principal.tenant)
        with self._database.reading() as session:
            return [Tenant(row.name, row.created_at) for row in session.scalars(query)]

    def create_token(
        self,
        tenant: str,
        role: Role,
        *,
        label: str,
        expires_at: datetime | None,
        scope: Scope | None = None,
        principal: Principal = OPERATOR,
    ) -> IssuedToken:
        """Make a token for an existing tenant. Raises NotFoundError, InvalidValueError, PermissionDeniedError."""
        principal.require_tenant(Role.ADMIN, tenant, action="make tokens of")
        now = datetime.now(UTC)
        check_text("label", label, limit_characters=LABEL_CHARACTERS)
        if expires_at is not None and (expires_at.tzinfo is None or expires_at <= now):
            raise InvalidValueError("expires_at", "it is not a moment in the future with its time zone")
        with self._database.writing() as session:
            tenant_row = find_tenant(session, tenant)
            issued, row = _issue(tenant_row, role, label, now, expires_at, scope)
            session.add(row)
            audit.record(
                session,
                at=now,
                actor=principal.actor,
                action="create_token",
                subject=issued.token_id,
                tenant=tenant,
                role=role,
                scope=row.scope,
            )
        return issued

    def rotate_token(self, token_id: str, *, overlap: timedelta, principal: Principal = OPERATOR) -> IssuedToken:
        """Make a token that takes this one's place, with the same rights and end; the old one ends after the overlap.

        A token may rotate itself. Raises NotFoundError, PermissionDeniedError, and ConflictError where the token is not
        valid any more or was rotated before.
        """
        if not timedelta(0) <= overlap <= OVERLAP_LIMIT:
            raise InvalidValueError("overlap", f"it is not between 0 and {OVERLAP_LIMIT.days} days")
        now = datetime.now(UTC)
        with self._database.writing() as session:
            row, tenant = _locked_token(session, token_id, principal)
            if principal.token_id != token_id:
                principal.require_tenant(Role.ADMIN, tenant.name, action="rotate tokens of")
            if row.replaced_by is not None:
                raise ConflictError(
                    f"Token {token_id} was rotated already: rotate {row.replaced_by}, which replaced it."
                )
            if row.revoked_at is not None or (row.expires_at is not None and row.expires_at <= now):
                raise ConflictError(f"Token {token_id} is revoked or expired. Make one with `loraplex token create`.")
            scope = Scope.from_json(row.scope)
            issued, successor = _issue(tenant, Role(row.role), row.label, now, row.expires_at, scope)
            session.add(successor)
            row.replaced_by = issued.token_id
            row.expires_at = min(now + overlap, row.expires_at or now + overlap)
            audit.record(
                session,
                at=now,
                actor=principal.actor,
                action="rotate_token",
                subject=token_id,
                tenant=tenant.name,
                replaced_by=issued.token_id,
                overlap_seconds=int(overlap.total_seconds()),
            )
        return issued

    def revoke_token(self, token_id: str, *, principal: Principal = OPERATOR) -> Token:
        """End a token's life; doing it again changes nothing. Raises NotFoundError, PermissionDeniedError."""
        now = datetime.now(UTC)
        with self._database.writing() as session:
            row, tenant = _locked_token(session, token_id, principal)
            principal.require_tenant(Role.ADMIN, tenant.name, action="revoke tokens of")
            if row.revoked_at is None:
                row.revoked_at = now
                audit.record(
                    session,
                    at=now,
                    actor=principal.actor,
                    action="revoke_token",
                    subject=token_id,
                    tenant=tenant.name,
                )
            return _to_token(row, tenant.name)

    def tokens(self, tenant: str, *, principal: Principal = OPERATOR) -> list[Token]:
        """A tenant's tokens, revoked and expired ones too, oldest first.

        Raises NotFoundError, PermissionDeniedError.
        """
        principal.require_tenant(Role.ADMIN, tenant, action="list tokens of")
        with self._database.reading() as session:
            tenant_row = find_tenant(session, tenant)
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
            return Principal(tenant=tenant, role=Role(row.role), token_id=row.id, scope=Scope.from_json(row.scope))


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _issue(
    tenant: TenantRow, role: Role, label: str, now: datetime, expires_at: datetime | None, scope: Scope | None
) -> tuple[IssuedToken, TokenRow]:
    """A new token with its secret, and its row."""
    secret = SECRET_PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    row = TokenRow(
        id="tok_" + secrets.token_hex(8),
        tenant_id=tenant.id,
        role=role.value,
        label=label,
        secret_sha256=_hash(secret),
        created_at=now,
        expires_at=expires_at,
        revoked_at=None,
        scope=None if scope is None else scope.to_json(),
        replaced_by=None,
    )
    patterns = None if scope is None else scope.patterns
    return IssuedToken(row.id, tenant.name, role, label, now, expires_at, None, patterns, secret=secret), row


def _locked_token(session: Session, token_id: str, principal: Principal) -> tuple[TokenRow, TenantRow]:
    """A token of the caller's tenant, which another one's is not told apart from a missing one."""
    row = session.get(TokenRow, token_id, with_for_update=True)
    tenant = None if row is None else session.get_one(TenantRow, row.tenant_id)
    if row is None or tenant is None or principal.tenant not in (None, tenant.name):
        raise NotFoundError("token", token_id, "List a tenant's tokens with `loraplex token ls`.")
    return row, tenant


def _to_token(row: TokenRow, tenant: str) -> Token:
    scope = Scope.from_json(row.scope)
    moments = (row.created_at, row.expires_at, row.revoked_at)
    patterns = None if scope is None else scope.patterns
    return Token(row.id, tenant, Role(row.role), row.label, *moments, patterns, row.replaced_by)

"""Requests to a registry's REST API: tokens, bounded retries of reads, and errors raised again as what they were.

Reads (GET) are tried again, a few times, where the network or the server failed; changes never are, because nobody
knows whether they happened. Whoever calls with a principal that this registry authenticated asks with that principal's
own token; the operator's calls are made with the client's token.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import httpx
import msgspec

from registry.decoding import decode
from registry.error_documents import error_from
from registry.errors import InvalidValueError, PermissionDeniedError, RegistryError, UnreachableError
from registry.loopback import is_loopback_host
from registry.principal import Principal
from registry.remote.download import Body, needs_proxy, opened

T = TypeVar("T")

ROOT = "/registry/v1"
TRIES = 3
FIRST_PAUSE_SECONDS = 0.2
PAUSE_FACTOR = 4
PASSING_STATUSES = frozenset({502, 503, 504})
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 60.0
JUDGE_SECONDS = 900.0
"""How long an upload's answer may take: every value of eight gigabytes is read first."""
CONNECTIONS = 32
ERROR_BYTES = 1 << 20


class Transport:
    """One registry's address, and a pool of connections. Threads may share it. `close` may be followed by more use."""

    def __init__(self, url: str, token: str | None, *, is_patient: bool = True) -> None:
        self.url = _check_url(url)
        self._is_patient = is_patient
        self._token = token
        self._client: httpx.Client | None = None

    def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def get(
        self, path: str, kind: type[T], *, principal: Principal | None, params: Mapping[str, Any] | None = None
    ) -> T:
        """Read something. Raises errors of the registry."""
        return self.ask("GET", path, kind, principal=principal, params=params)

    def ask(
        self,
        method: str,
        path: str,
        kind: type[T],
        *,
        principal: Principal | None,
        params: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> T:
        """Send a request, and decode its answer. Raises errors of the registry."""
        content = None if body is None else msgspec.json.encode(body)
        sent = self.headers(principal) | dict(headers or {})
        if content is not None:
            sent["content-type"] = "application/json"
        given = {name: value for name, value in (params or {}).items() if value is not None}
        for pause_seconds in _pauses(TRIES if method == "GET" and self._is_patient else 1):
            try:
                response = self._open().request(method, ROOT + path, params=given, content=content, headers=sent)
                if response.status_code not in PASSING_STATUSES or pause_seconds is None:
                    break
            except httpx.TransportError as error:
                if pause_seconds is None:
                    raise self.unreachable(error) from error
            time.sleep(pause_seconds)
        return self.decode(response, kind)

    def upload(self, path: str, kind: type[T], *, principal: Principal, data: Mapping[str, str], files: Any) -> T:
        """Send a form with files, streamed. Raises errors of the registry."""
        timeout = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS, read=JUDGE_SECONDS)
        try:
            response = self._open().post(
                ROOT + path, data=dict(data), files=files, headers=self.headers(principal), timeout=timeout
            )
        except httpx.TransportError as error:
            raise self.unreachable(error) from error
        return self.decode(response, kind)

    @contextmanager
    def stream(self, path: str, *, principal: Principal, headers: Mapping[str, str]) -> Iterator[httpx.Response | Body]:
        """Read bytes as they arrive; once. Raises errors of the registry, and httpx.TransportError."""
        sent = self.headers(principal) | dict(headers)
        if not is_loopback_host(urlsplit(self.url).hostname or "") and needs_proxy(self.url):
            with self._open().stream("GET", ROOT + path, headers=sent) as response:
                if response.status_code >= 400:
                    response.read()
                    raise self._error(response)
                yield response
            return
        seconds = {"connect_seconds": CONNECT_SECONDS, "answer_seconds": ANSWER_SECONDS}
        with opened(self.url + ROOT + path, sent, **seconds) as plain:
            if plain.status >= 300:
                raise self._error(httpx.Response(plain.status, content=plain.read(ERROR_BYTES)))
            yield Body(plain)

    def decode(self, response: httpx.Response, kind: type[T]) -> T:
        """The value of an answer. Raises errors of the registry."""
        if response.status_code >= 300:
            raise self._error(response)
        try:
            return decode(response.content, kind)
        except msgspec.DecodeError as error:
            raise UnreachableError(self.url, f"its answer is not what this release expects: {error}") from error

    def headers(self, principal: Principal | None) -> dict[str, str]:
        """The token that a call is made with; None is a call without one."""
        if principal is None:
            return {}
        if principal.secret is not None:
            return {"authorization": f"Bearer {principal.secret}"}
        if not principal.is_operator:
            why = "this registry did not authenticate it, so there is no token to ask with"
            raise PermissionDeniedError("ask on behalf of", principal.actor, why)
        return {} if self._token is None else {"authorization": f"Bearer {self._token}"}

    def unreachable(self, error: Exception) -> UnreachableError:
        """What a failure of the network is for the caller."""
        return UnreachableError(self.url, str(error) or type(error).__name__)

    def _open(self) -> httpx.Client:
        if self._client is None:
            host = urlsplit(self.url).hostname or ""
            answer_seconds, connect_seconds = (ANSWER_SECONDS, CONNECT_SECONDS) if self._is_patient else (5.0, 2.0)
            self._client = httpx.Client(
                base_url=self.url,
                timeout=httpx.Timeout(answer_seconds, connect=connect_seconds),
                limits=httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS),
                follow_redirects=False,
                trust_env=not is_loopback_host(host),
            )
        return self._client

    def _error(self, response: httpx.Response) -> RegistryError:
        try:
            document = msgspec.json.decode(response.content[:ERROR_BYTES])["error"]
            error = error_from(document)
        except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
            error = None
        if error is not None:
            return error
        return UnreachableError(self.url, f"it answered with status {response.status_code}")


def part(text: str) -> str:
    """A piece of a path, quoted, so that no name changes the route."""
    quoted = quote(text, safe="@:")
    return quoted.replace(".", "%2E") if set(text) <= {"."} else quoted


def _pauses(tries: int) -> Iterator[float | None]:
    """How long to wait after each try; None: there is no other."""
    for attempt in range(tries - 1):
        yield FIRST_PAUSE_SECONDS * PAUSE_FACTOR**attempt
    yield None


def _check_url(url: str) -> str:
    parts = urlsplit(url)
    try:
        is_whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_whole = False
    if not is_whole or parts.query or parts.fragment or parts.username is not None:
        raise InvalidValueError("registry", "an address is http://HOST:PORT or https://HOST, with nothing else in it")
    return url.rstrip("/")

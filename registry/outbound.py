"""One HTTP request to an address that somebody else wrote: a webhook's, or a mirror's upstream.

The host is resolved once. Every address that it has must be public, unless the operator has allowed it; the connection
is made to the address that was checked, not to the name, so that a name which changes its mind (DNS rebinding) gains
nothing. TLS is verified against the name. No redirect is followed, no proxy is used, no credentials are added, and an
exchange has a time limit as a whole, however slowly the other side drips.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from registry.errors import ForbiddenAddressError, UpstreamError

URL_CHARACTERS = 2_000
CONNECT_SECONDS = 10.0
USER_AGENT = "loraplex"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolver = Callable[..., list[Any]]

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True)
class OutboundPolicy:
    """What the operator allows beyond public addresses over https: http, host names, networks."""

    allows_http: bool = False
    hosts: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for network in self.networks:
            _parse_network(network)

    def to_json(self) -> dict[str, Any]:
        """As it is stored."""
        return {"allows_http": self.allows_http, "hosts": list(self.hosts), "networks": list(self.networks)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> OutboundPolicy:
        """The reverse of `to_json`."""
        return cls(document["allows_http"], tuple(document["hosts"]), tuple(document["networks"]))

    def allows(self, host: str, address: Address) -> bool:
        """Whether a connection may be made to this address of this host."""
        if host in self.hosts or is_public(address):
            return True
        return any(address in _parse_network(network) for network in self.networks)


@dataclass(frozen=True)
class Target:
    """A URL taken apart, by a grammar narrower than the RFC's."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, url: str, policy: OutboundPolicy) -> Target:
        """Raises ForbiddenAddressError; an address that is written in the URL is checked already here."""
        if len(url) > URL_CHARACTERS or not url.isascii() or not url.isprintable() or " " in url:
            raise ForbiddenAddressError(url, f"it is not at most {URL_CHARACTERS} printable ASCII characters")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ForbiddenAddressError(url, "it is no URL") from error
        if parts.scheme != "https" and not (parts.scheme == "http" and policy.allows_http):
            raise ForbiddenAddressError(url, "it must begin with https://")
        host = (parts.hostname or "").rstrip(".")
        if not host or "@" in parts.netloc or parts.fragment or "\\" in url:
            raise ForbiddenAddressError(url, "it needs a host, and neither a user, a fragment nor a backslash")
        default_port = 443 if parts.scheme == "https" else 80
        target = cls(
            parts.scheme, host, port or default_port, (parts.path or "/") + ("?" + parts.query) * bool(parts.query)
        )
        with suppress(ValueError):
            _require_allowed(target, ipaddress.ip_address(host), policy)
        if host == "localhost" or host.endswith(".localhost"):
            _require_allowed(target, ipaddress.ip_address("127.0.0.1"), policy)
        return target


def is_public(address: Address) -> bool:
    """Whether the address belongs to the public internet, looking into IPv6 forms that carry an IPv4 address."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address.sixtofour is not None:
            return is_public(address.sixtofour)
        if address in _NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address.is_site_local:
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


class Answer:
    """What came back. Its body is read in pieces, inside the block of `exchange`."""

    def __init__(self, response: http.client.HTTPResponse, clock: _Clock) -> None:
        self._response = response
        self._clock = clock
        self.status = response.status

    def header(self, name: str) -> str | None:
        """A header's value, whatever the case of its name."""
        return self._response.getheader(name)

    def read(self, limit_bytes: int) -> bytes:
        """The next bytes, none at the end. Raises UpstreamError, also where the body ends too early."""
        with self._clock.explained():
            piece = self._response.read(limit_bytes)
            if not piece and limit_bytes and self._response.length:
                raise http.client.IncompleteRead(piece, self._response.length)
            return piece


@contextmanager
def exchange(
    method: str,
    url: str,
    *,
    policy: OutboundPolicy,
    seconds: float,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    resolve: Resolver = socket.getaddrinfo,
) -> Iterator[Answer]:
    """Send a request and give the answer, whose body is read inside the block, all within `seconds`.

    Raises ForbiddenAddressError, UpstreamError (whose text says no more than the kind of fault).
    """
    target = Target.parse(url, policy)
    addresses = _addresses(target, policy, resolve)
    clock = _Clock(target, seconds)
    connection = http.client.HTTPConnection(target.host, target.port)
    if target.scheme == "https":
        connection = http.client.HTTPSConnection(target.host, target.port)
    try:
        with clock.explained():
            connection.sock = _connect(target, addresses, clock)
            connection.request(method, target.path, body, {"User-Agent": USER_AGENT, **(headers or {})})
            response = connection.getresponse()
        with response:
            yield Answer(response, clock)
    finally:
        clock.stop()
        connection.close()


class _Clock:
    """Ends an exchange when its time is over. `_socket` is set by its one exchange, and read by the timer."""

    def __init__(self, target: Target, seconds: float) -> None:
        self._target = target
        self._seconds = seconds
        self._socket: socket.socket | None = None
        self._is_over = threading.Event()
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True
        self._timer.start()

    def watch(self, opened: socket.socket) -> None:
        """This is the socket to end."""
        self._socket = opened
        if self._is_over.is_set():
            self._expire()

    def stop(self) -> None:
        """The exchange has ended by itself."""
        self._timer.cancel()

    def _expire(self) -> None:
        self._is_over.set()
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Errors of the network in our words. What the other side sent, and its address, stay out of the text."""
        host = self._target.host
        try:
            yield
            if self._is_over.is_set():
                raise TimeoutError
        except (OSError, http.client.HTTPException, ValueError) as error:
            if self._is_over.is_set() or isinstance(error, TimeoutError):
                raise UpstreamError(host, f"it did not answer within {self._seconds:g} s") from error
            if isinstance(error, ssl.SSLCertVerificationError):
                raise UpstreamError(host, f"its certificate is not valid ({error.verify_message})") from error
            if isinstance(error, http.client.IncompleteRead):
                raise UpstreamError(host, "it closed the connection too early") from error
            if isinstance(error, (http.client.HTTPException, ssl.SSLError, ValueError)):
                raise UpstreamError(host, "it broke the protocol") from error
            raise UpstreamError(host, f"the connection failed ({error.strerror or 'closed'})") from error


def _addresses(target: Target, policy: OutboundPolicy, resolve: Resolver) -> list[Address]:
    """Every address of the host; one that is forbidden forbids all of them."""
    try:
        found = resolve(target.host, target.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UpstreamError(target.host, "its name cannot be resolved") from error
    addresses = list(dict.fromkeys(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found))
    for address in addresses:
        _require_allowed(target, address, policy)
    return addresses


def _connect(target: Target, addresses: list[Address], clock: _Clock) -> socket.socket:
    """Connect to the first address that answers: to the address, whatever the name means by now."""
    failure: OSError | None = None
    for address in addresses:
        try:
            opened = socket.create_connection((str(address), target.port), timeout=CONNECT_SECONDS)
        except OSError as error:
            failure = error
            continue
        opened.settimeout(None)  # the clock bounds the exchange as a whole
        if target.scheme == "https":
            context = ssl.create_default_context()
            opened = context.wrap_socket(opened, server_hostname=target.host, do_handshake_on_connect=False)
        clock.watch(opened)
        try:
            if isinstance(opened, ssl.SSLSocket):
                opened.do_handshake()
        except BaseException:
            opened.close()
            raise
        return opened
    raise failure or OSError("the name has no address")


def _require_allowed(target: Target, address: Address, policy: OutboundPolicy) -> None:
    if not policy.allows(target.host, address):
        raise ForbiddenAddressError(
            target.host, "it is not on the public internet, and the operator has not allowed it"
        )


def _parse_network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise ForbiddenAddressError(text, "it is no network such as 10.1.0.0/16") from error

"""Requests to addresses of others: public ones only, the one that was checked, and never for longer than allowed."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from registry.errors import ForbiddenAddressError, UpstreamError
from registry.outbound import OutboundPolicy, Target, exchange, is_public
from tests.registry.web_peer import Reply, WebPeer

STRICT = OutboundPolicy()
LOOPBACK = OutboundPolicy(allows_http=True, networks=("127.0.0.0/8",))


@pytest.fixture
def peer() -> Iterator[WebPeer]:
    with WebPeer().running() as running:
        yield running


def fetch(url: str, policy: OutboundPolicy = LOOPBACK, *, seconds: float = 10, **options: Any) -> tuple[int, bytes]:
    with exchange("GET", url, policy=policy, seconds=seconds, **options) as answer:
        return answer.status, answer.read(1_000_000)


@pytest.mark.parametrize(
    "address",
    """127.0.0.1 127.9.9.9 10.0.0.1 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1 239.1.1.1
    240.0.0.1 255.255.255.255 192.0.2.1 198.18.0.1 ::1 :: fe80::1 fc00::1 fd12:3456::1 fec0::1 ff02::1
    2001:db8::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 64:ff9b::7f00:1 64:ff9b::a00:1 2002:7f00:1:: 2002:a00:1::
    2001::1 100::1""".split(),
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/",
        "ftp://example.org/",
        "file:///etc/passwd",
        "https://",
        "https:///path",
        "https://user@example.org/",
        "https://user:secret@example.org/",
        "https://example.org/#fragment",
        "https://example.org:99999/",
        "https://example.org/\r\nX: 1",
        "https://example.org/a b",
        "https://example.org\\@127.0.0.1/",
        "https://ex\u00e4mple.org/",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://169.254.169.254/latest/meta-data",
        "https://localhost/",
        "https://LOCALHOST./",
        "https://a.localhost/",
        "https://" + "a" * 2_000,
    ],
)
def test_urls_that_are_refused_before_anything_is_resolved(url: str) -> None:
    with pytest.raises(ForbiddenAddressError):
        Target.parse(url, STRICT)


@pytest.mark.parametrize("written", ["2130706433", "0x7f000001", "127.1", "0177.0.0.1"])
def test_other_spellings_of_loopback_are_refused_when_resolved(written: str) -> None:
    with pytest.raises((ForbiddenAddressError, UpstreamError)) as refused:
        fetch(f"https://{written}/", STRICT)
    assert "connection" not in str(refused.value)


def test_what_the_operator_allows(peer: WebPeer) -> None:
    peer.answer = lambda request: Reply(201, b"hello")
    assert fetch(f"{peer.url}/a?b=c") == (201, b"hello")
    assert peer.received[0].path == "/a?b=c"
    assert peer.received[0].headers["host"] == f"127.0.0.1:{peer.port}"
    named = OutboundPolicy(allows_http=True, hosts=("127.0.0.1",))
    assert fetch(peer.url, named)[0] == 201
    with pytest.raises(ForbiddenAddressError):
        fetch(peer.url, OutboundPolicy(networks=("127.0.0.0/8",)))
    with pytest.raises(ForbiddenAddressError):
        fetch(peer.url, OutboundPolicy(allows_http=True, networks=("10.0.0.0/8",)))


def test_a_policy_with_a_broken_network_is_refused() -> None:
    with pytest.raises(ForbiddenAddressError):
        OutboundPolicy(networks=("10.0.0.1/8",))


def test_one_private_address_among_public_ones_forbids_the_name() -> None:
    answers = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443)) for address in ("1.1.1.1", "10.0.0.1")]
    with pytest.raises(ForbiddenAddressError):
        fetch("https://mixed.example/", STRICT, resolve=lambda *a, **k: answers)


def test_rebinding_gains_nothing(peer: WebPeer) -> None:
    """The name is asked once. What it means afterwards (here: another port's server) is not connected to."""
    asked: list[str] = []

    def rebinding(host: str, port: int, **options: Any) -> list[Any]:
        asked.append(host)
        address = "127.0.0.1" if len(asked) == 1 else "169.254.169.254"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    peer.answer = lambda request: Reply(200, request.headers["host"].encode())
    status, host = fetch(f"http://rebind.example:{peer.port}/", resolve=rebinding)
    assert (status, host) == (200, f"rebind.example:{peer.port}".encode())
    assert asked == ["rebind.example"]
    with pytest.raises(ForbiddenAddressError):
        fetch(f"http://rebind.example:{peer.port}/", resolve=rebinding)
    assert len(peer.received) == 1


def test_redirects_are_not_followed(peer: WebPeer) -> None:
    peer.answer = lambda request: Reply(302, b"", {"Location": f"{peer.url}/elsewhere"})
    assert fetch(peer.url)[0] == 302
    assert len(peer.received) == 1


def test_proxies_of_the_environment_are_not_used(peer: WebPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("all_proxy", "http://127.0.0.1:1")
    assert fetch(peer.url)[0] == 200


def test_a_body_that_ends_too_early_is_an_error(peer: WebPeer) -> None:
    peer.answer = lambda request: Reply(200, b"half", {"Content-Length": "8"})
    with exchange("GET", peer.url, policy=LOOPBACK, seconds=10) as got:
        assert got.read(100) == b"half"
        with pytest.raises(UpstreamError, match="too early"):
            got.read(100)


@pytest.mark.parametrize("phase", ["head", "body"])
def test_a_server_that_drips_is_cut_off(phase: str) -> None:
    """Each byte comes in time; the exchange as a whole does not."""
    listener = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def drip() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            if phase == "body":
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            try:
                while not done.wait(0.05):
                    connection.sendall(b"X")
            except OSError:
                pass

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    begun = time.monotonic()
    with pytest.raises(UpstreamError, match=r"within 0\.5 s"):
        fetch(f"http://127.0.0.1:{listener.getsockname()[1]}/", seconds=0.5)
    assert time.monotonic() - begun < 10
    done.set()
    thread.join()
    listener.close()


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(UpstreamError, match="connection failed"):
        fetch(f"http://127.0.0.1:{port}/")


def test_no_http_at_all(peer: WebPeer) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"SSH-2.0-OpenSSH\r\n")

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    with pytest.raises(UpstreamError, match="protocol"):
        fetch(f"http://127.0.0.1:{listener.getsockname()[1]}/")
    thread.join()
    listener.close()


def test_tls_is_verified_against_the_name_and_not_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = write_certificate(tmp_path, "hooks.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    names: list[str | None] = []
    context.sni_callback = lambda sock, name, ctx: names.append(name)
    peer = WebPeer()
    peer.wrap(lambda plain: context.wrap_socket(plain, server_side=True))

    def resolve(host: str, port: int, **options: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    with peer.running():
        with pytest.raises(UpstreamError, match="certificate"):
            fetch(f"https://hooks.example:{peer.port}/", resolve=resolve)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert fetch(f"https://hooks.example:{peer.port}/", resolve=resolve)[0] == 200
        assert names[-1] == "hooks.example"
        with pytest.raises(UpstreamError, match="certificate"):
            fetch(f"https://other.example:{peer.port}/", resolve=resolve)


def write_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths

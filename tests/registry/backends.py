"""Real servers for the tests: PostgreSQL from the system's package, and moto's S3; and registries upon them.

Both servers are children that end with the test session. PostgreSQL does not run as root: its process becomes another
user. Where it is not installed (`deploy/setup.sh` installs it where it may), its tests are skipped with the reason.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import obstore
import psutil
import psycopg
import pytest
from obstore.store import S3Store, from_url

import registry
from tests.registry.adapter_folders import base_document

START_SECONDS = 60
BUCKET = "blobs"
TEMPLATE = "template_registry"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "tests",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
UNPRIVILEGED = ("postgres", "nobody")


def postgres_binaries() -> Path:
    """The folder of initdb and postgres, or a skip."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    if on_path is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    return Path(on_path).resolve().parent


def as_other_user() -> list[str]:
    """The beginning of a command line that runs as somebody else than root, and ends with this process."""
    setpriv = shutil.which("setpriv")
    prefix = [setpriv, "--pdeathsig", "INT"] if setpriv else []
    if os.geteuid() != 0:
        return prefix
    if setpriv is None:
        pytest.skip("PostgreSQL does not run as root, and there is no setpriv to become somebody else")
    user = _unprivileged_user()
    return [*prefix, f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]


def _unprivileged_user() -> pwd.struct_passwd:
    for name in UNPRIVILEGED:
        with suppress(KeyError):
            return pwd.getpwnam(name)
    pytest.skip(f"PostgreSQL does not run as root, and there is no user {' or '.join(UNPRIVILEGED)}")


@dataclass
class PostgresServer:
    """A running server that listens on a socket in its folder only. `fsync` off: for tests that pull no plug."""

    folder: Path
    command: list[str | Path]
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self) -> None:
        """Start the server and wait until it answers."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(self.command, cwd=self.folder, env=_environment(), stdout=log, stderr=log)
        _await(lambda: self.execute("SELECT 1"), self.process, psycopg.OperationalError)

    def kill(self) -> None:
        """End every process of the server at once, as a power cut would."""
        for pid in _descendants(self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(timeout=START_SECONDS)

    def restart(self) -> None:
        """Start it again after `kill`."""
        (self.folder / "data" / "postmaster.pid").unlink(missing_ok=True)
        self.start()

    def url(self, database: str) -> str:
        return f"postgresql://loraplex@/{database}?host={self.folder}"

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement in the server's own database."""
        with psycopg.connect(f"host={self.folder} user=loraplex dbname=postgres", autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def database(self, template: str = "template0") -> Iterator[str]:
        """The address of a new database, which is removed afterwards."""
        name = f"registry_{secrets.token_hex(6)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template} ENCODING 'UTF8'")
        try:
            yield self.url(name)
        finally:
            self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@contextmanager
def postgres_server(*, fsync: bool = False) -> Iterator[PostgresServer]:
    """Start PostgreSQL in a temporary folder; it is stopped and removed afterwards."""
    binaries, prefix = postgres_binaries(), as_other_user()
    folder = Path(tempfile.mkdtemp(prefix="loraplex-pg-"))
    try:
        if os.geteuid() == 0:
            user = _unprivileged_user()
            os.chown(folder, user.pw_uid, user.pw_gid)
        initdb = [binaries / "initdb", "-D", folder / "data", "-A", "trust", "-U", "loraplex", "--no-sync"]
        made = subprocess.run(
            [*prefix, *initdb, "-E", "UTF8"],
            cwd=folder,
            env=_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode == 0, made.stderr
        options = {"listen_addresses": "", "unix_socket_directories": str(folder), "max_connections": "200"}
        if not fsync:
            options |= {"fsync": "off", "full_page_writes": "off"}
        arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        server = PostgresServer(folder, [*prefix, binaries / "postgres", "-D", folder / "data", *arguments])
        try:
            server.start()
            yield server
        finally:
            server.process.send_signal(signal.SIGQUIT)
            server.process.wait(timeout=START_SECONDS)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}


def _descendants(pid: int) -> list[int]:
    """The process and its children: PostgreSQL's do not have any of their own."""
    children = psutil.Process(pid).children(recursive=True)
    return [pid, *(child.pid for child in children)]


@dataclass
class S3Server:
    """A running S3 server with one bucket."""

    endpoint: str

    def url(self, prefix: str, **options: str) -> str:
        """The address of the blobs below a prefix."""
        rest = "".join(f"&{name}={value}" for name, value in options.items())
        return f"s3://{BUCKET}/{prefix}?endpoint={self.endpoint}{rest}"

    def bucket(self) -> S3Store:
        """The whole bucket, for tests that look at or damage what is in it."""
        store = from_url(f"s3://{BUCKET}", config={"endpoint": self.endpoint}, client_options={"allow_http": True})
        assert isinstance(store, S3Store)
        return store


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Start moto's S3 server in a process of its own, and make a bucket."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    setpriv = shutil.which("setpriv")
    prefix = [setpriv, "--pdeathsig", "KILL"] if setpriv else []
    process = subprocess.Popen(
        [*prefix, sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        server = S3Server(f"http://127.0.0.1:{port}")
        _await(lambda: socket.create_connection(("127.0.0.1", port), timeout=1).close(), process, OSError)
        make_bucket(server.endpoint)
        yield server
    finally:
        process.kill()
        process.wait(timeout=START_SECONDS)


def make_bucket(endpoint: str) -> None:
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name=CREDENTIALS["AWS_REGION"],
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
    )
    client.create_bucket(Bucket=BUCKET)
    client.close()


def _await(ask: Any, process: subprocess.Popen[bytes], refused: type[Exception]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            ask()
        except refused:
            assert process.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.05)
        else:
            return


class RegistryPlace(Protocol):
    """A registry of a test's own on one of the backends. Tests open it, and do to its blobs what must be found."""

    name: str

    @property
    def where(self) -> Path | str:
        """The folder, or the database."""

    @property
    def blobs(self) -> str | None:
        """The object store's address; None where blobs lie in the folder."""

    def arguments(self) -> dict[str, str]:
        """How to open it: `registry.open(**arguments)`, in this process or another."""

    def open(self) -> registry.Registry:
        """Open it, as another process would."""

    def execute(self, statement: str, *, triggers: bool = True) -> list[tuple[Any, ...]]:
        """Run a statement past the registry; without triggers, as somebody can who owns the database.

        What the database refuses is an error of its driver; both are named IntegrityError.
        """

    def blob_names(self) -> list[str]:
        """The digests of all blobs, sorted."""

    def read_blob(self, sha256: str) -> bytes:
        """The bytes as they lie there."""

    def write_blob(self, sha256: str, raw: bytes) -> None:
        """Put other bytes in their place."""

    def remove_blob(self, sha256: str) -> None:
        """Lose a blob."""


@dataclass
class FolderPlace:
    """SQLite and files in one folder."""

    where: Path
    name: str = "sqlite"
    blobs: None = None

    def arguments(self) -> dict[str, str]:
        return {"where": str(self.where)}

    def open(self) -> registry.Registry:
        return registry.open(**self.arguments())

    def execute(self, statement: str, *, triggers: bool = True) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.where / "catalog.sqlite")) as connection:
            if not triggers:
                for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
                    connection.execute(f"DROP TRIGGER {name}")
            found = connection.execute(statement).fetchall()
            connection.commit()
            return found

    def blob_names(self) -> list[str]:
        return sorted(path.name for path in (self.where / "blobs").glob("[0-9a-f][0-9a-f]/*"))

    def read_blob(self, sha256: str) -> bytes:
        return self._path(sha256).read_bytes()

    def write_blob(self, sha256: str, raw: bytes) -> None:
        self._path(sha256).write_bytes(raw)

    def remove_blob(self, sha256: str) -> None:
        self._path(sha256).unlink()

    def _path(self, sha256: str) -> Path:
        return self.where / "blobs" / sha256[:2] / sha256


@dataclass
class ServerPlace:
    """PostgreSQL and S3."""

    where: str
    s3: S3Server
    prefix: str
    scratch: Path
    name: str = "postgres"

    @property
    def blobs(self) -> str:
        return self.s3.url(self.prefix)

    def arguments(self) -> dict[str, str]:
        return {"where": self.where, "blobs": self.blobs, "scratch": str(self.scratch)}

    def open(self) -> registry.Registry:
        return registry.open(**self.arguments())

    def execute(self, statement: str, *, triggers: bool = True) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.where) as connection:
            if not triggers:
                connection.execute("SET session_replication_role = replica")
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def blob_names(self) -> list[str]:
        found = obstore.list(self.s3.bucket(), prefix=f"{self.prefix}/blobs/").collect()
        return sorted(meta["path"].rpartition("/")[2] for meta in found)

    def read_blob(self, sha256: str) -> bytes:
        return bytes(obstore.get(self.s3.bucket(), self._key(sha256)).bytes())

    def write_blob(self, sha256: str, raw: bytes) -> None:
        obstore.put(self.s3.bucket(), self._key(sha256), raw)

    def remove_blob(self, sha256: str) -> None:
        obstore.delete(self.s3.bucket(), self._key(sha256))

    def _key(self, sha256: str) -> str:
        return f"{self.prefix}/blobs/{sha256[:2]}/{sha256}"


def make_template(server: PostgresServer, s3: S3Server, scratch: Path) -> None:
    """Make the database that tests copy: migrated, with the tiny base."""
    server.execute(f"CREATE DATABASE {TEMPLATE} TEMPLATE template0 ENCODING 'UTF8'")
    with registry.open(server.url(TEMPLATE), blobs=s3.url("template"), scratch=scratch) as opened:
        opened.register_base(base_document())


__all__ = [
    "CREDENTIALS",
    "TEMPLATE",
    "FolderPlace",
    "PostgresServer",
    "RegistryPlace",
    "S3Server",
    "ServerPlace",
    "make_template",
    "postgres_server",
    "s3_server",
]

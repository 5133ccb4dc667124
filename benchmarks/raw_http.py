"""The least that an HTTP server can do for a transfer: PUT writes the body to a file and syncs it, GET sends it back.

A PUT to `/discard` is read and forgotten: what is left of the time is the client's own.

Run by `benchmarks.registry_transfer` as `python -m benchmarks.raw_http PORT FOLDER`. It hashes nothing and judges
nothing: what a registry is compared with.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

CHUNK_BYTES = 1 << 20
DISCARD = "/discard"


async def serve(port: int, folder: Path) -> None:
    """Answer until the process is ended."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
        except asyncio.IncompleteReadError:  # somebody only looked whether the port is open
            writer.close()
            return
        method, target, _ = head.split(" ", 2)
        path = folder / target.lstrip("/")
        if method == "PUT":
            lengths = [line for line in head.split("\r\n") if line.lower().startswith("content-length:")]
            size = int(lengths[0].partition(":")[2])
            await (_discard(reader, size) if target == DISCARD else _receive(reader, path, size))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        else:
            size = path.stat().st_size
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n".encode())
            with path.open("rb") as stream:
                while chunk := stream.read(CHUNK_BYTES):
                    writer.write(chunk)
                    await writer.drain()
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", port, limit=CHUNK_BYTES)
    async with server:
        await server.serve_forever()


async def _receive(reader: asyncio.StreamReader, path: Path, size: int) -> None:
    with path.open("wb") as stream:
        while size and (chunk := await reader.read(min(size, CHUNK_BYTES))):
            stream.write(chunk)
            size -= len(chunk)
        stream.flush()
        os.fsync(stream.fileno())


async def _discard(reader: asyncio.StreamReader, size: int) -> None:
    while size and (chunk := await reader.read(min(size, CHUNK_BYTES))):
        size -= len(chunk)


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), Path(sys.argv[2])))

"""Large files: the LFS batch, uploads in one piece and in parts, and their confirmation.

    batch    the client names digests and sizes; those that the tenant has get no action, for the others room is
             reserved, and an address is given that needs no token (`signed_links.py`)
    PUT      the bytes, streamed to the disk, hashed on the way; what is not what was announced is not kept
    verify   asked with a token, after the upload

Where the blob store signs addresses itself, the bytes go straight there and are read back and verified at `verify`.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import replace
from typing import Annotated, Any, Literal

import msgspec

from registry.errors import InvalidValueError
from registry.failpoints import reach
from registry.file_entry import Blob
from registry.hub.context import Hub
from registry.hub.errors import HubError
from registry.hub.parts import PartsPlan, PartsSession
from registry.hub.repo import Repo
from registry.hub.request import Request
from registry.hub.response import LFS_TYPE, Response, json_response
from registry.hub.routing import Access, Route
from registry.hub.signed_links import UPLOAD_PATH, UploadGrant, check_grant

OBJECTS_LIMIT = 1_000
PARTS_LIMIT = 10_000

_Oid = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]


class LfsObject(msgspec.Struct, frozen=True):
    """A blob as LFS names it."""

    oid: _Oid
    size: _Size


class Batch(msgspec.Struct, frozen=True):
    """Body of the batch."""

    operation: str
    objects: Annotated[tuple[LfsObject, ...], msgspec.Meta(max_length=OBJECTS_LIMIT)]
    transfers: tuple[str, ...] = ("basic",)
    hash_algo: Literal["sha256"] = "sha256"


class Part(msgspec.Struct, frozen=True, rename="camel"):
    """One part of a finished upload."""

    part_number: Annotated[int, msgspec.Meta(ge=1, le=PARTS_LIMIT)]
    etag: Annotated[str, msgspec.Meta(max_length=200)]


class Completion(msgspec.Struct, frozen=True):
    """Body that ends an upload in parts."""

    oid: _Oid
    parts: Annotated[tuple[Part, ...], msgspec.Meta(max_length=PARTS_LIMIT)]


async def batch(hub: Hub, request: Request) -> Response:
    """POST /{id}.git/info/lfs/objects/batch."""
    repo = Repo.of(request.values)
    repo.require_whole("upload to")
    body = await request.json(Batch)
    if body.operation != "upload":
        raise HubError(501, "Only uploads go by LFS here; download from /resolve/.")
    sizes = {item.oid: item.size for item in body.objects}
    if any(size > hub.settings.upload_bytes_limit for size in sizes.values()):
        raise HubError(413, f"A file may have {hub.settings.upload_bytes_limit:,} bytes at most.")
    present = await hub.run(_reserve, hub, repo, sizes, request)
    secret = await hub.run(hub.registry.signing_secret.value)
    transfer = "xet" if "xet" in body.transfers else "basic"  # before 1.0, clients ask here how to upload
    objects = []
    for oid, size in sizes.items():
        document: dict[str, Any] = {"oid": oid, "size": size}
        if oid not in present and transfer != "xet":
            document["actions"] = await _actions(hub, request, repo, Blob(oid, size), body.transfers, secret)
        objects.append(document)
    return json_response({"transfer": transfer, "objects": objects, "hash_algo": "sha256"}, media_type=LFS_TYPE)


async def upload(hub: Hub, request: Request) -> Response:
    """PUT to a signed address: a whole blob, or a part of one."""
    grant = check_grant(request, await hub.run(hub.registry.signing_secret.value))
    if grant.session:
        return await _upload_part(hub, request, grant)
    with hub.registry.blobs.receive(limit_bytes=grant.blob.size) as writer:
        await hub.threads.write_all(request.pieces(limit_bytes=grant.blob.size), writer.write)
        await hub.run(writer.finish, grant.blob)
    reach("upload.after_store")
    await hub.run(hub.registry.quotas.mark_stored, grant.tenant, [(grant.blob.sha256, grant.blob.size)])
    reach("upload.after_mark")
    return json_response({}, headers={"etag": f'"{grant.blob.sha256}"'})


async def complete(hub: Hub, request: Request) -> Response:
    """POST to a signed address: all parts were sent."""
    grant = check_grant(request, await hub.run(hub.registry.signing_secret.value))
    body = await request.json(Completion)
    if not grant.session or grant.part or body.oid != grant.blob.sha256:
        raise InvalidValueError("oid", "this address is not for completing this upload")
    sizes = [(grant.blob.sha256, grant.blob.size)]
    if not await hub.run(hub.registry.quotas.present, grant.tenant, [grant.blob.sha256]):
        session = PartsSession(hub.registry.blobs, grant.session, _plan(hub, grant.blob))
        await hub.run(session.complete, {part.part_number: part.etag for part in body.parts})
        reach("upload.after_store")
        await hub.run(hub.registry.quotas.mark_stored, grant.tenant, sizes)
        reach("upload.after_mark")
    return json_response({})


async def verify(hub: Hub, request: Request) -> Response:
    """POST /{id}.git/info/lfs/verify: whether the blob is there, with its size."""
    repo = Repo.of(request.values)
    repo.require_whole("upload to")
    body = await request.json(LfsObject)
    await hub.run(hub.registry.commits.check_writable, repo.name, request.principal)
    blob = Blob(body.oid, body.size)
    tenant, quotas = repo.name.tenant, hub.registry.quotas
    if not await hub.run(quotas.present, tenant, [blob.sha256]):
        if not await hub.run(hub.registry.blobs.adopt, blob, scope=tenant):
            raise HubError(404, "This file was not uploaded.")
        await hub.run(quotas.mark_stored, tenant, [(blob.sha256, blob.size)])
    return json_response({}, media_type=LFS_TYPE)


def _reserve(hub: Hub, repo: Repo, sizes: dict[str, int], request: Request) -> frozenset[str]:
    """Room for what the tenant does not have yet; returns what it has. Only its own blobs count, nobody else's."""
    hub.registry.commits.check_writable(repo.name, request.principal)
    present = hub.registry.quotas.present(repo.name.tenant, sizes)
    missing = [(oid, size) for oid, size in sizes.items() if oid not in present]
    hub.registry.quotas.reserve(repo.name.tenant, missing, principal=request.principal)
    return present


async def _actions(
    hub: Hub, request: Request, repo: Repo, blob: Blob, transfers: tuple[str, ...], secret: bytes
) -> dict[str, Any]:
    seconds = hub.settings.upload_seconds
    verification = {"href": f"{request.base_url}/{repo.id}.git/info/lfs/verify"}
    direct = await hub.run(hub.registry.blobs.upload_url, blob, scope=repo.name.tenant, seconds=seconds)
    if direct is not None:
        return {"upload": {"href": direct}, "verify": verification}
    grant = UploadGrant(repo.name.tenant, blob, int(time.time()) + seconds)
    if "multipart" not in transfers or blob.size <= hub.settings.part_bytes:
        return {"upload": {"href": grant.link(request.base_url, secret)}, "verify": verification}
    plan = _plan(hub, blob)
    in_parts = replace(grant, session=secrets.token_hex(16))
    header = {"chunk_size": str(plan.part_bytes)}
    where = hub.gathering_url(request.base_url)
    for part in range(1, plan.count + 1):
        header[f"{part:05d}"] = replace(in_parts, part=part).link(where, secret)
    return {"upload": {"href": in_parts.link(where, secret), "header": header}, "verify": verification}


async def _upload_part(hub: Hub, request: Request, grant: UploadGrant) -> Response:
    plan = _plan(hub, grant.blob)
    if not 1 <= grant.part <= plan.count:
        raise InvalidValueError("part", f"it is not between 1 and {plan.count}")
    session = PartsSession(hub.registry.blobs, grant.session, plan)
    part = await hub.run(session.open_part, grant.part)
    try:
        await hub.threads.write_all(request.pieces(limit_bytes=plan.size_of(grant.part)), part.write)
        etag = await hub.run(part.finish)
    finally:
        part.close()
    return json_response({}, headers={"etag": etag})


def _plan(hub: Hub, blob: Blob) -> PartsPlan:
    return PartsPlan(blob, max(hub.settings.part_bytes, -(-blob.size // PARTS_LIMIT)))


ROUTES = (
    Route("POST", "/{tenant}/{name}.git/info/lfs/objects/batch", batch),
    Route("POST", "/{tenant}/{name}.git/info/lfs/verify", verify),
    Route("PUT", UPLOAD_PATH, upload, Access.SIGNED),
    Route("POST", UPLOAD_PATH, complete, Access.SIGNED),
)

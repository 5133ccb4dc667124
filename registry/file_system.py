"""Asks Linux which kind of file system a folder lies on. Elsewhere nothing is known, and nothing is refused."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

NETWORK_TYPES = {
    0x6969: "NFS",
    0x517B: "SMB",
    0xFF534D42: "CIFS",
    0xFE534D42: "SMB 2",
    0x5346414F: "AFS",
    0x6B414653: "AFS",
    0x73757245: "Coda",
    0x564C: "NCP",
    0x00C36400: "Ceph",
    0x0BD00BD0: "Lustre",
    0x0BD00BD3: "Lustre",
    0x47504653: "GPFS",
    0x19830326: "BeeGFS",
    0x7461636F: "OCFS2",
    0x01161970: "GFS2",
}
"""`f_type` of statfs(2) by name. 9P is not among them: it is how some virtual machines show their own local disk."""
FUSE_TYPE = 0x65735546
NETWORK_FUSE = (
    "sshfs",
    "s3fs",
    "rclone",
    "glusterfs",
    "gcsfuse",
    "goofys",
    "curlftpfs",
    "cephfs",
    "blobfuse",
    "mount-s3",
)
STATFS_BYTES = 256
MOUNTS = Path("/proc/self/mountinfo")


def network_file_system(folder: Path) -> str | None:
    """The name of the network file system that the folder lies on; None where it is local, or not known."""
    kind = file_system_type(folder)
    if kind == FUSE_TYPE:
        return _network_fuse(folder)
    return None if kind is None else NETWORK_TYPES.get(kind)


def file_system_type(folder: Path) -> int | None:
    """`f_type` of statfs(2); None on systems other than Linux."""
    if not sys.platform.startswith("linux"):
        return None
    buffer = ctypes.create_string_buffer(STATFS_BYTES)
    if ctypes.CDLL(None, use_errno=True).statfs(os.fsencode(folder), buffer) != 0:
        return None
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF


def _network_fuse(folder: Path) -> str | None:
    """Look the mount up by its device: `fuse` itself does not say what stands behind it."""
    status = folder.stat()
    device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    for line in MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines():
        fields, _, source = line.partition(" - ")
        name = source.split(" ", 1)[0]
        if fields.split(" ")[2] == device and name.removeprefix("fuse.").startswith(NETWORK_FUSE):
            return name
    return None

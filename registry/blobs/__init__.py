"""Content-addressed files: a blob's name is the SHA-256 of its bytes.

`BlobStore` is what the registry needs of a store; `LocalBlobs` keeps blobs in a folder, `ObjectBlobs` (in
`registry.blobs.object_blobs`) in an object store.
"""

from registry.blobs.blob_store import BlobReader, BlobStore, BlobWriter, Staging, StoredBlob
from registry.blobs.local_blobs import LocalBlobs
from registry.blobs.staging_area import STALE_STAGING_SECONDS, hash_file

__all__ = [
    "STALE_STAGING_SECONDS",
    "BlobReader",
    "BlobStore",
    "BlobWriter",
    "LocalBlobs",
    "Staging",
    "StoredBlob",
    "hash_file",
]

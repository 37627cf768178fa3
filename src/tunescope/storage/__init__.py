"""Files at rest: the cache folder, atomic writes, and outputs that never overwrite a user's own files.

Everything tunescope downloads or derives lies in one cache folder: the platform's own (``~/.cache/tunescope`` on
Linux), or the one that the environment variable ``TUNESCOPE_CACHE`` names. It can be deleted at any time.

What a user names with ``--out`` may be anything. Markers (`markers`) record what tunescope wrote itself; only that is
deleted or replaced (`outputs`).
"""

from tunescope.storage.files import (
    atomic_file,
    atomic_write,
    cache_folder,
    disk_errors,
    full_disk,
    read_state,
    resolved,
    sha256_file,
)
from tunescope.storage.markers import MARKER, Kind, broken, intact, is_marked
from tunescope.storage.outputs import (
    atomic_folder,
    check_output,
    check_place,
    check_replaceable,
    claim_folder,
    remove_folder,
    rewrite,
    write_output,
)

__all__ = [
    "MARKER",
    "Kind",
    "atomic_file",
    "atomic_folder",
    "atomic_write",
    "broken",
    "cache_folder",
    "check_output",
    "check_place",
    "check_replaceable",
    "claim_folder",
    "disk_errors",
    "full_disk",
    "intact",
    "is_marked",
    "read_state",
    "remove_folder",
    "resolved",
    "rewrite",
    "sha256_file",
    "write_output",
]

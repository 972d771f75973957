"""Threads that are moved: from other savers, between stores, into archives and back."""

from forkpoint.transfer.moving import (
    aarchive_threads,
    aimport_threads,
    archive_threads,
    arestore_threads,
    import_threads,
    restore_threads,
)
from forkpoint.transfer.reports import Difference, TransferProgress, TransferReport
from forkpoint.transfer.sources import KINDS

__all__ = [
    "KINDS",
    "Difference",
    "TransferProgress",
    "TransferReport",
    "aarchive_threads",
    "aimport_threads",
    "archive_threads",
    "arestore_threads",
    "import_threads",
    "restore_threads",
]

"""The catalog: threads as people see them."""

from forkpoint.catalog.arguments import UNCHANGED
from forkpoint.catalog.catalog import ThreadCatalog
from forkpoint.catalog.leases import Lease
from forkpoint.catalog.retention import RetentionPolicy, RetentionResult
from forkpoint.catalog.sweeper import Sweeper
from forkpoint.catalog.threads import (
    LeaseHolder,
    Page,
    StoreStats,
    Thread,
    ThreadFilter,
    ThreadStats,
)

__all__ = [
    "UNCHANGED",
    "Lease",
    "LeaseHolder",
    "Page",
    "RetentionPolicy",
    "RetentionResult",
    "StoreStats",
    "Sweeper",
    "Thread",
    "ThreadCatalog",
    "ThreadFilter",
    "ThreadStats",
]

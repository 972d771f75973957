"""Threads as people see them."""

from forkpoint.catalog.catalog import UNCHANGED, ThreadCatalog
from forkpoint.catalog.leases import Lease
from forkpoint.catalog.retention import RetentionPolicy, RetentionResult, Sweeper
from forkpoint.catalog.threads import LeaseHolder, Page, Thread, ThreadFilter, ThreadStats

__all__ = [
    "UNCHANGED",
    "Lease",
    "LeaseHolder",
    "Page",
    "RetentionPolicy",
    "RetentionResult",
    "Sweeper",
    "Thread",
    "ThreadCatalog",
    "ThreadFilter",
    "ThreadStats",
]

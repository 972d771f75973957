"""The whole contract of a backend, to be run by pytest."""

from __future__ import annotations

from forkpoint.testing.catalog import CatalogContract
from forkpoint.testing.checkpoints import CheckpointContract
from forkpoint.testing.chunks import ChunkContract
from forkpoint.testing.deletions import DeletionContract
from forkpoint.testing.deltas import DeltaContract
from forkpoint.testing.forks import ForkContract
from forkpoint.testing.graphs import GraphContract
from forkpoint.testing.leases import LeaseContract
from forkpoint.testing.listing import ListingContract
from forkpoint.testing.owners import OwnerContract
from forkpoint.testing.removals import RemovalContract
from forkpoint.testing.retention import RetentionContract


class SaverContract(
    CheckpointContract,
    ListingContract,
    DeltaContract,
    RemovalContract,
    ForkContract,
    DeletionContract,
    ChunkContract,
    CatalogContract,
    RetentionContract,
    LeaseContract,
    OwnerContract,
    GraphContract,
):
    """All that a saver must do, whatever its backend.

    A test module of a backend needs no more than this:

        class TestMySaver(SaverContract):
            make_saver = MySaver  # returns a saver for a new, empty store
    """

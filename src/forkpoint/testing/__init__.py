"""The contract that every backend must pass, as a suite for pytest that anybody can run."""

from pytest import register_assert_rewrite  # noqa: PT013 - no folder imports a module

register_assert_rewrite(
    "forkpoint.testing.catalog",
    "forkpoint.testing.checkpoints",
    "forkpoint.testing.chunks",
    "forkpoint.testing.damage",
    "forkpoint.testing.deletions",
    "forkpoint.testing.deltas",
    "forkpoint.testing.encryption",
    "forkpoint.testing.forks",
    "forkpoint.testing.graphs",
    "forkpoint.testing.leases",
    "forkpoint.testing.listing",
    "forkpoint.testing.owners",
    "forkpoint.testing.removals",
    "forkpoint.testing.retention",
    "forkpoint.testing.shared_store",
)

from forkpoint.testing.base import Contract  # noqa: E402 - after asserts are rewritten
from forkpoint.testing.catalog import CatalogContract  # noqa: E402
from forkpoint.testing.checkpoints import CheckpointContract  # noqa: E402
from forkpoint.testing.chunks import ChunkContract  # noqa: E402
from forkpoint.testing.contract import SaverContract  # noqa: E402
from forkpoint.testing.damage import DamageContract  # noqa: E402
from forkpoint.testing.deletions import DeletionContract  # noqa: E402
from forkpoint.testing.deltas import DeltaContract  # noqa: E402
from forkpoint.testing.encryption import EncryptionContract, encrypting  # noqa: E402
from forkpoint.testing.forks import ForkContract  # noqa: E402
from forkpoint.testing.graphs import GraphContract  # noqa: E402
from forkpoint.testing.invariants import problems  # noqa: E402
from forkpoint.testing.leases import LeaseContract  # noqa: E402
from forkpoint.testing.listing import ListingContract  # noqa: E402
from forkpoint.testing.owners import OwnerContract  # noqa: E402
from forkpoint.testing.removals import RemovalContract  # noqa: E402
from forkpoint.testing.retention import RetentionContract  # noqa: E402
from forkpoint.testing.shared_store import SharedStoreContract  # noqa: E402

__all__ = [
    "CatalogContract",
    "CheckpointContract",
    "ChunkContract",
    "Contract",
    "DamageContract",
    "DeletionContract",
    "DeltaContract",
    "EncryptionContract",
    "ForkContract",
    "GraphContract",
    "LeaseContract",
    "ListingContract",
    "OwnerContract",
    "RemovalContract",
    "RetentionContract",
    "SaverContract",
    "SharedStoreContract",
    "encrypting",
    "problems",
]

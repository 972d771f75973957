"""The contract that every backend must pass, as a suite for pytest that anybody can run."""

from pytest import register_assert_rewrite  # noqa: PT013 - no folder imports a module

register_assert_rewrite(
    "forkpoint.testing.catalog",
    "forkpoint.testing.checkpoints",
    "forkpoint.testing.chunks",
    "forkpoint.testing.deletions",
    "forkpoint.testing.deltas",
    "forkpoint.testing.forks",
    "forkpoint.testing.graphs",
    "forkpoint.testing.leases",
    "forkpoint.testing.listing",
    "forkpoint.testing.owners",
    "forkpoint.testing.removals",
)

from forkpoint.testing.base import Contract  # noqa: E402 - after asserts are rewritten
from forkpoint.testing.contract import SaverContract  # noqa: E402
from forkpoint.testing.invariants import problems  # noqa: E402

__all__ = ["Contract", "SaverContract", "problems"]

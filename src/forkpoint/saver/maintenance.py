"""Check, repair and rekey of a whole store: each method checks its input and runs one operation."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver

from forkpoint.operations.check import check
from forkpoint.operations.context import Context
from forkpoint.operations.rekey import rekey
from forkpoint.operations.repair import repair
from forkpoint.results import CheckReport, RekeyReport, RepairReport
from forkpoint.runtime.runner import Runner
from forkpoint.saver import arguments


class Maintenance(BaseCheckpointSaver[Any]):
    """What is done to a store as a whole, while others use it."""

    _runner: Runner
    _context: Context

    def check(self, *, on_progress: Callable[[CheckReport], object] | None = None) -> CheckReport:
        """Check that all that is stored is as it was written, while others go on writing.

        Every record of a thread, every row and every chunk is compared with its checksum; every
        row with its receipt and with the chunks that it leads to; each record with its rows and
        with the index of searches. Nothing is restored, so no class of the application is needed.
        Memory is bounded by what one family of threads has. A saver of one owner checks theirs.

        Args:
            on_progress: Is called now and then with what was found so far.

        Raises:
            InvalidInput: `on_progress` cannot be called.
            EncryptionMismatch: The store is encrypted, and not with the saver's key.
        """
        report = arguments.progress(on_progress)
        return self._runner.run(check, self._context, report)

    async def acheck(
        self, *, on_progress: Callable[[CheckReport], object] | None = None
    ) -> CheckReport:
        """Do what `check` does."""
        report = arguments.progress(on_progress)
        return await self._runner.arun(check, self._context, report)

    def repair(
        self,
        *,
        quarantine: str | os.PathLike[str] | None = None,
        dry_run: bool = False,
        on_progress: Callable[[CheckReport], object] | None = None,
    ) -> RepairReport:
        """Check the store as `check` does, and repair what can be proved.

        Counts, statuses and the index of searches are made anew from the rows. A checkpoint that
        cannot be read is removed, so that the newest readable one is the head, if there is a file
        for what is stored of it. All that could be read before is as it was, and nothing is made
        that was not put. A record whose owner, lineage or description was changed stays.

        Args:
            quarantine: The file; lines of JSON are added to it. Without it, checkpoints that
                cannot be read stay.
            dry_run: Whether to change nothing.
            on_progress: Is called now and then with what was found so far.

        Raises:
            InvalidInput: An argument is of the wrong type, or the file is a database, or another
                one that is not made of lines of JSON.
            EncryptionMismatch: The store is encrypted, and not with the saver's key.
            StorageError: The file cannot be written. Nothing of the thread was changed.
        """
        checked = arguments.repair(quarantine, dry_run, on_progress)
        return self._runner.run(repair, self._context, *checked)

    async def arepair(
        self,
        *,
        quarantine: str | os.PathLike[str] | None = None,
        dry_run: bool = False,
        on_progress: Callable[[CheckReport], object] | None = None,
    ) -> RepairReport:
        """Do what `repair` does."""
        checked = arguments.repair(quarantine, dry_run, on_progress)
        return await self._runner.arun(repair, self._context, *checked)

    def rekey(self, *, on_progress: Callable[[RekeyReport], object] | None = None) -> RekeyReport:
        """Encrypt all that is stored with the current key of the saver's key ring.

        The serializer of the saver is a `key_ring`. Others go on reading and writing meanwhile, if
        they have the key ring too. Afterwards the store has nothing that an older key of the ring
        decrypts, and needs no more than the current key. If it is stopped, call it again.

        If one serializer of the ring does not encrypt, the store is encrypted for the first time
        (it is an older one), or stored without encryption (it is the current one).

        Args:
            on_progress: Is called now and then with what was done so far.

        Raises:
            InvalidInput: The serializer is no key ring, or the saver is of one owner: all of them
                have the same key. Or `on_progress` cannot be called.
            EncryptionMismatch: No key of the ring is that of the store.
            StorageBusy: Others go on writing with an older key.
        """
        report = arguments.progress(on_progress)
        return self._runner.run(rekey, self._context, report)

    async def arekey(
        self, *, on_progress: Callable[[RekeyReport], object] | None = None
    ) -> RekeyReport:
        """Do what `rekey` does."""
        report = arguments.progress(on_progress)
        return await self._runner.arun(rekey, self._context, report)

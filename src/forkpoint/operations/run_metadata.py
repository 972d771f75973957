"""The metadata of a thread that come from its runs: the scalar keys of their configs.

A key that somebody set, with `create`, `update`, `clone` or `fork`, stays as they set it.
"""

from __future__ import annotations

import json

from forkpoint.encoding.hashing import Hashing
from forkpoint.inputs import as_json
from forkpoint.storage.interface import Storage
from forkpoint.storage.record_checksums import check_record, checksums_with_description
from forkpoint.storage.rows import Description, ThreadRef


def with_run(described: Description, run_metadata: str) -> Description:
    """Return the description of a thread after a run with these metadata, a JSON object."""
    run = json.loads(run_metadata)
    before = json.loads(described.metadata)
    new = {key: run[key] for key in run.keys() - set(described.fixed_keys)}
    after = as_json(before | new, "metadata")
    if after == as_json(before, "metadata"):  # as JSON, for `1` is not `True`
        return described
    return described._replace(metadata=after)


def has_run(metadata: str, run_metadata: str) -> bool:
    """Return whether the metadata of a thread contain those of a run already."""
    if metadata == run_metadata:
        return True
    return with_run(Description(metadata=metadata), run_metadata).metadata == metadata


def merge_run(storage: Storage, hashing: Hashing, thread: ThreadRef, run_metadata: str) -> str:
    """Merge the metadata of a run into those of its thread, and return the result.

    Nothing is written where nothing is new.

    Args:
        storage: The store.
        hashing: What the record's checksums are computed with.
        thread: The thread.
        run_metadata: The metadata of the run, as JSON.
    """
    with storage.reading() as session:
        row = session.records.get(thread.thread_id)
    while True:
        if row is None or row.thread.key != thread.key:
            return run_metadata  # the thread was deleted meanwhile
        check_record(hashing, row)
        described = with_run(row.described, run_metadata)
        if described == row.described:
            return described.metadata
        with storage.writing() as session:
            row = session.records.get(thread.thread_id)
            if row is not None and row.thread.key == thread.key:
                check_record(hashing, row)
                described = with_run(row.described, run_metadata)
                checksums = checksums_with_description(hashing, row, described)
                if session.records.describe(row, described, checksums):
                    row = session.records.get(thread.thread_id)

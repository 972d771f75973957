"""What the runs of a thread say of it: the scalar keys of their configs are in its metadata.

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
    """Return what the record of a thread says after a run with these metadata, a JSON object."""
    said = json.loads(run_metadata)
    before = json.loads(described.metadata)
    new = {key: said[key] for key in said.keys() - set(described.fixed_keys)}
    after = as_json(before | new, "metadata")
    if after == as_json(before, "metadata"):  # as JSON, for `1` is not `True`
        return described
    return described._replace(metadata=after)


def has_run(metadata: str, run_metadata: str) -> bool:
    """Return whether the metadata of a thread have all keys that a run adds."""
    if metadata == run_metadata:
        return True
    return with_run(Description(metadata=metadata), run_metadata).metadata == metadata


def merge_run(storage: Storage, hashing: Hashing, thread: ThreadRef, run_metadata: str) -> str:
    """Let the record of a thread say what a run says, if it does not yet, and return what it says.

    Nothing is written where nothing is new.
    """
    with storage.reading() as session:
        row = session.records.get(thread.thread_id)
    while True:
        if row is None or row.thread.key != thread.key:
            return run_metadata  # it was deleted meanwhile
        check_record(hashing, row)
        described = with_run(row.described, run_metadata)
        if described == row.described:
            return described.metadata
        with storage.writing() as session:
            row = session.records.get(thread.thread_id)
            if row is not None and row.thread.key == thread.key:
                check_record(hashing, row)
                described = with_run(row.described, run_metadata)
                if session.records.describe(
                    row, described, checksums_with_description(hashing, row, described)
                ):
                    row = session.records.get(thread.thread_id)

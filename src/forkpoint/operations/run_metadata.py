"""The metadata of a thread that come from its runs: the scalar keys of their configs.

A key that somebody set, with `create`, `update`, `clone` or `fork`, stays as they set it. What does
not fit into the metadata of a thread is left out: it is in those of the run's checkpoints, and no
run fails for what earlier ones have said.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from forkpoint.encoding.hashing import Hashing
from forkpoint.inputs import DESCRIPTION_BYTES, as_json, checkpoint_metadata
from forkpoint.storage.interface import Storage
from forkpoint.storage.record_checksums import check_record, checksums_with_description
from forkpoint.storage.rows import Description, ThreadRef


def of_config(config: Mapping[str, Any]) -> str:
    """Return what a config says of its thread, as JSON: its scalar keys, as far as they fit.

    The id of the run is none of them: it is in the metadata of the run's checkpoints.
    """
    said = {key: value for key, value in checkpoint_metadata(config, {}).items() if key != "run_id"}
    return merged({}, said) if said else "{}"


def merged(before: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Return the metadata of a thread, with new keys as far as they fit, as JSON.

    What does not fit takes the value away that its key had before: it is not true any more.
    """
    size = len(as_json({key: before[key] for key in before if key not in new}, "metadata"))
    fitting = {}
    for key, value in new.items():
        size_with = size + len(as_json({key: value}, "metadata")) - len("{}") + len(",")
        if size_with <= DESCRIPTION_BYTES:
            fitting[key], size = value, size_with
    left_out = new.keys() - fitting.keys()
    after = {key: value for key, value in {**before, **fitting}.items() if key not in left_out}
    return as_json(after, "metadata")


def with_run(described: Description, run_metadata: str) -> Description:
    """Return the description of a thread after a run with these metadata, a JSON object."""
    run = json.loads(run_metadata)
    before = json.loads(described.metadata)
    fixed = set(described.fixed_keys)
    after = merged(before, {key: value for key, value in run.items() if key not in fixed})
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

"""SQLite: the tables and indexes. `format.md` of `forkpoint.storage` says what is in them."""

from __future__ import annotations

from forkpoint.filters import ALL_TERM

LIVING = "deleted_at IS NULL AND NOT provisional"
"""Matches the threads that are visible."""

UNLISTED = (
    f"{LIVING} AND (listed_at IS NOT updated_at OR listed_status IS NOT"
    " CASE WHEN lease_until IS NULL THEN status ELSE 'busy' END)"
)
"""Matches the threads whose rows in the search index are not up to date."""

EXPIRES = "ttl IS NOT NULL AND swept_at IS NOT updated_at"
"""Matches the threads that expire unless they are used: those not trimmed since the last use."""

IS_IRREGULAR = "(hidden OR parent_checkpoint_id >= checkpoint_id)"
"""Matches the checkpoints that are hidden, or not newer than their parents. There are few."""

OF_ALL = f"term = {ALL_TERM}"
"""Matches exactly one row of the search index per thread."""

SCHEMA = f"""
CREATE TABLE IF NOT EXISTS forkpoint_settings (
    name TEXT PRIMARY KEY,
    value BLOB NOT NULL
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS forkpoint_threads (
    key INTEGER PRIMARY KEY AUTOINCREMENT,
    thread_id TEXT NOT NULL,
    family INTEGER NOT NULL,
    epoch INTEGER NOT NULL DEFAULT 0,
    edge TEXT,
    parent INTEGER,
    parent_checkpoint_id TEXT,
    owner TEXT,
    salt BLOB NOT NULL DEFAULT x'',
    checksums BLOB NOT NULL DEFAULT x'',
    label TEXT,
    folded_label TEXT,
    tags TEXT NOT NULL DEFAULT '[]',
    metadata TEXT NOT NULL DEFAULT '{{}}',
    fixed_keys TEXT NOT NULL DEFAULT '[]',
    status TEXT NOT NULL DEFAULT 'idle',
    checkpoint_count INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    state_updated_at INTEGER NOT NULL DEFAULT 0,
    ttl INTEGER,
    on_expiry TEXT NOT NULL DEFAULT 'delete',
    swept_at INTEGER,
    lease_holder TEXT,
    lease_since INTEGER,
    lease_until INTEGER,
    fence INTEGER NOT NULL DEFAULT 0,
    rollback_from INTEGER,
    lease_queue TEXT NOT NULL DEFAULT '[]',
    provisional INTEGER NOT NULL DEFAULT 0,
    deleted_at INTEGER,
    watermark TEXT,
    removals INTEGER NOT NULL DEFAULT 0,
    removed_at INTEGER,
    uncollected INTEGER NOT NULL DEFAULT 0,
    copy_deadline INTEGER,
    terms BLOB,
    value_terms BLOB,
    listed_at INTEGER,
    listed_status TEXT
);
CREATE UNIQUE INDEX IF NOT EXISTS forkpoint_threads_live
    ON forkpoint_threads (thread_id) WHERE deleted_at IS NULL;
CREATE INDEX IF NOT EXISTS forkpoint_threads_deleted
    ON forkpoint_threads (thread_id) WHERE deleted_at IS NOT NULL;
CREATE INDEX IF NOT EXISTS forkpoint_threads_family ON forkpoint_threads (family, epoch);
CREATE INDEX IF NOT EXISTS forkpoint_threads_removed
    ON forkpoint_threads (family, removed_at) WHERE removed_at IS NOT NULL;

CREATE INDEX IF NOT EXISTS forkpoint_threads_created
    ON forkpoint_threads (created_at, thread_id) WHERE {LIVING};
CREATE INDEX IF NOT EXISTS forkpoint_threads_expiry
    ON forkpoint_threads (updated_at + ttl) WHERE {EXPIRES};
CREATE INDEX IF NOT EXISTS forkpoint_threads_lease
    ON forkpoint_threads (lease_until) WHERE lease_until IS NOT NULL;
CREATE INDEX IF NOT EXISTS forkpoint_threads_unlisted
    ON forkpoint_threads (key) WHERE {UNLISTED};

CREATE TABLE IF NOT EXISTS forkpoint_tombstones (
    key INTEGER PRIMARY KEY AUTOINCREMENT,
    id_mark BLOB NOT NULL,
    owner_mark BLOB NOT NULL,
    thread INTEGER,
    watermark TEXT,
    made_at INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS forkpoint_tombstones_made ON forkpoint_tombstones (made_at);
CREATE UNIQUE INDEX IF NOT EXISTS forkpoint_tombstones_mark
    ON forkpoint_tombstones (id_mark, owner_mark);

CREATE TABLE IF NOT EXISTS forkpoint_listing (
    term INTEGER NOT NULL,
    status TEXT NOT NULL,
    listed_at INTEGER NOT NULL,
    thread_id TEXT NOT NULL,
    valid_from INTEGER NOT NULL,
    valid_to INTEGER,
    state_updated_at INTEGER,
    PRIMARY KEY (term, status, listed_at, thread_id, valid_from)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS forkpoint_listing_status
    ON forkpoint_listing (status, thread_id) WHERE {OF_ALL};
CREATE INDEX IF NOT EXISTS forkpoint_listing_past
    ON forkpoint_listing (thread_id, valid_to) WHERE valid_to IS NOT NULL;

CREATE TABLE IF NOT EXISTS forkpoint_snapshots (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    began_at INTEGER NOT NULL
);

CREATE TABLE IF NOT EXISTS forkpoint_checkpoints (
    id INTEGER PRIMARY KEY,
    thread INTEGER NOT NULL,
    checkpoint_ns TEXT NOT NULL,
    checkpoint_id TEXT NOT NULL,
    parent_checkpoint_id TEXT,
    run_id TEXT,
    metadata TEXT NOT NULL,
    refs BLOB NOT NULL,
    content BLOB NOT NULL,
    checksum BLOB NOT NULL,
    hidden INTEGER NOT NULL DEFAULT 0,
    restarts INTEGER NOT NULL DEFAULT 0,
    binding INTEGER NOT NULL,
    fence INTEGER
);
CREATE UNIQUE INDEX IF NOT EXISTS forkpoint_checkpoints_place
    ON forkpoint_checkpoints (thread, checkpoint_ns, checkpoint_id);
CREATE INDEX IF NOT EXISTS forkpoint_checkpoints_order
    ON forkpoint_checkpoints (checkpoint_id, thread, checkpoint_ns);
CREATE INDEX IF NOT EXISTS forkpoint_checkpoints_nested
    ON forkpoint_checkpoints (thread, checkpoint_id, checkpoint_ns) WHERE checkpoint_ns > '';
CREATE INDEX IF NOT EXISTS forkpoint_checkpoints_run
    ON forkpoint_checkpoints (run_id) WHERE run_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS forkpoint_checkpoints_irregular
    ON forkpoint_checkpoints (thread) WHERE {IS_IRREGULAR};

CREATE TABLE IF NOT EXISTS forkpoint_dictionaries (
    thread INTEGER PRIMARY KEY,
    dictionary TEXT NOT NULL
);

CREATE TABLE IF NOT EXISTS forkpoint_writes (
    id INTEGER PRIMARY KEY,
    thread INTEGER NOT NULL,
    checkpoint_ns TEXT NOT NULL,
    checkpoint_id TEXT NOT NULL,
    task_id TEXT NOT NULL,
    idx INTEGER NOT NULL,
    task_path TEXT NOT NULL,
    channel TEXT NOT NULL,
    refs BLOB NOT NULL,
    content BLOB NOT NULL,
    checksum BLOB NOT NULL,
    binding INTEGER NOT NULL,
    fence INTEGER,
    before BLOB,
    before_refs BLOB
);
CREATE UNIQUE INDEX IF NOT EXISTS forkpoint_writes_place
    ON forkpoint_writes (thread, checkpoint_ns, checkpoint_id, task_id, idx);

CREATE TABLE IF NOT EXISTS forkpoint_chunks (
    id INTEGER PRIMARY KEY,
    family INTEGER NOT NULL,
    digest BLOB NOT NULL,
    refs BLOB NOT NULL,
    content BLOB NOT NULL,
    epoch INTEGER NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS forkpoint_chunks_digest
    ON forkpoint_chunks (family, digest);
"""

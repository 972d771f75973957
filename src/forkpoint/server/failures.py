"""Which status each error is answered with, and what is said of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from forkpoint.errors import (
    CheckpointNotFound,
    ForkpointError,
    InvalidInput,
    NoWorkerThread,
    StaleLease,
    StorageBusy,
    StorageUnavailable,
    ThreadBusy,
    ThreadDeleted,
    ThreadExists,
    ThreadNotFound,
)

STATUS_OF: list[tuple[type[ForkpointError], int]] = [
    (ThreadNotFound, 404),
    (CheckpointNotFound, 404),
    (ThreadDeleted, 404),
    (ThreadExists, 409),
    (ThreadBusy, 409),
    (StaleLease, 409),
    (InvalidInput, 422),
    (StorageBusy, 503),
    (StorageUnavailable, 503),
    (NoWorkerThread, 503),
]
ANSWERED = (ForkpointError, RequestValidationError, HTTPException)
"""The errors that are answered with a status and a reason."""


_ADVICE = {
    "model_attributes_type": "it must be a JSON object, sent as content-type: application/json",
    "extra_forbidden": "there is no such field",
}
"""What is said instead of what Pydantic says, by its type of error."""


class Failure(NamedTuple):
    """Why a request is not done."""

    status: int
    detail: str
    headers: Mapping[str, str] | None = None


def failure_of(error: Exception) -> Failure:
    """Return what an error of `ANSWERED` is answered with."""
    if isinstance(error, HTTPException):
        return Failure(error.status_code, _shown(str(error.detail)), error.headers)
    if isinstance(error, RequestValidationError):
        reasons = [
            f"{'.'.join(str(part) for part in reason['loc'])}: "
            f"{_ADVICE.get(reason['type'], reason['msg'].removeprefix('Value error, '))}"
            for reason in error.errors()
        ]
        return Failure(422, _shown("; ".join(reasons[:5])))
    status = next((status for kind, status in STATUS_OF if isinstance(error, kind)), 500)
    return Failure(status, _shown(str(error)))


def message_of(error: BaseException) -> str:
    """Return what an error says that may be of any kind, and raise itself when it is asked."""
    try:
        return _shown(str(error))
    except Exception:  # noqa: BLE001
        return "?"


def _shown(detail: str) -> str:
    return detail.encode("utf-8", "replace").decode()

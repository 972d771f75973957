"""A real Postgres server: started where a test needs one, and gone when the tests are."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psycopg

from servers import HOST, PATIENCE_SECONDS, _end_with_the_parent, bound_socket, wait_until

_DEBIAN = "/usr/lib/postgresql/*/bin"  # which is not on the PATH
_USER = "postgres"


def executables() -> Path:
    """Return where `initdb` and `postgres` are."""
    on_path = shutil.which("initdb")
    places = [Path(on_path).resolve().parent] if on_path else sorted(Path("/").glob(_DEBIAN[1:]))
    if not places:
        raise FileNotFoundError(
            "the tests of Postgres need a server: install Debian's package postgresql, or put "
            "initdb and postgres on the PATH"
        )
    return places[-1]


class Postgres:
    """A server of its own, in which nothing is kept. The server does not run as root."""

    def __init__(self) -> None:
        self._executables = executables()
        self._directory = Path(tempfile.mkdtemp(prefix="forkpoint-postgres-"))
        self._reserved = bound_socket()
        self.port: int = self._reserved.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Postgres:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def uri(self, database: str = "postgres") -> str:
        return f"postgresql://{_USER}@{HOST}:{self.port}/{database}"

    def _start(self) -> None:
        user: dict[str, Any] = {}
        if os.geteuid() == 0:
            shutil.chown(self._directory, _USER)
            user = {"user": _USER, "cwd": self._directory}
        data = str(self._directory / "data")
        initdb = [self._executables / "initdb", "-D", data, "-U", _USER, "-A", "trust", "-N"]
        subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, **user)
        options = {"port": self.port, "listen_addresses": HOST, "fsync": "off"}
        options["unix_socket_directories"] = str(self._directory)
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        with (self._directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [self._executables / "postgres", "-D", data, *settings],
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_end_with_the_parent if sys.platform == "linux" else None,
                **user,
            )
        wait_until(self._answers, "Postgres to take connections")

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"Postgres ended at once:\n{(self._directory / 'log').read_text()}")
        try:
            psycopg.connect(self.uri(), connect_timeout=10).close()
        except psycopg.OperationalError:
            return False
        return True

    def close(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(PATIENCE_SECONDS)
        self._reserved.close()
        shutil.rmtree(self._directory, ignore_errors=True)

"""`python -m forkpoint.server`: serves the store that `FORKPOINT_STORE` names."""

from __future__ import annotations

import argparse
import sys

from forkpoint.errors import ForkpointError
from forkpoint.opening import store_of_environment
from forkpoint.server.serving import PORT, serve


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: a number from 0 to 65535")
    return int(text)


def main() -> None:
    """Serve a store until the process is told to end."""
    parser = argparse.ArgumentParser(prog="python -m forkpoint.server", description=__doc__)
    parser.add_argument("--store", help="the store, instead of FORKPOINT_STORE")
    parser.add_argument("--graph", action="append", default=[], metavar="NAME=MODULE:GRAPH")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=_port, default=PORT)
    parser.add_argument("--keys", metavar="FILE", help='a JSON file: {"API key": "identity"}')
    parser.add_argument("--origin", action="append", default=[], metavar="ORIGIN")
    given = parser.parse_args()
    try:
        with store_of_environment(given.store) as saver:
            serve(
                saver,
                graphs=given.graph,
                host=given.host,
                port=given.port,
                keys=given.keys,
                origins=given.origin,
            )
    except ForkpointError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()

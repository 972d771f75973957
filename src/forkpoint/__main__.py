"""`python -m forkpoint`, and what the command `forkpoint` runs."""

from __future__ import annotations

import sys

try:
    from forkpoint.cli.app import main
except ModuleNotFoundError as error:
    if error.name not in ("typer", "rich", "tomli"):
        raise
    sys.exit(f"the command needs {error.name}: pip install 'forkpoint[cli]'")
except KeyboardInterrupt:
    print("Error: interrupted", file=sys.stderr)
    sys.exit(130)

if __name__ == "__main__":
    main()

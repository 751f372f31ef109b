"""``python -m zonemgr.launcher --root DIR``: be the launcher of an instance.  Not for people; systemd may."""

from __future__ import annotations

import sys


def main() -> None:
    """Serve until nobody has come for a while."""
    from zonemgr.launcher import server

    sys.exit(server.main(sys.argv[1:]))


if __name__ == "__main__":
    main()

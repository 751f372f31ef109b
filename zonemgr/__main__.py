"""``python -m zonemgr``: the same program as ``zonemgr``."""

from __future__ import annotations

from zonemgr.cli.main import main

if __name__ == "__main__":
    main()

"""``python -m zonemgr``: the same program as ``zonemgr``."""

from __future__ import annotations

from zonemgr.launcher.client import zonemgr

if __name__ == "__main__":
    zonemgr()

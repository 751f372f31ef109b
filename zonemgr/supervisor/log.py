"""What nobody waits for goes here: to syslog, and to ``supervisor.log`` beside the console's log (hosts without
syslogd exist).
"""

from __future__ import annotations

import os
import syslog
import time
from pathlib import Path

from zonemgr.store.paths import Layout

LIMIT_BYTES = 256 * 1024

_place: Path | None = None
_prefix = ""


def begin(layout: Layout, zonename: str) -> None:
    """Log for this zone from now on (one zone a process, so this is the process's and not shared)."""
    global _place, _prefix
    syslog.openlog("zonemgr", syslog.LOG_PID, syslog.LOG_DAEMON)
    _place, _prefix = layout.zone_log(zonename) / "supervisor.log", f"[zone '{zonename}'] "


def error(text: str) -> None:
    """One event; every line of it gets the zone's name."""
    for line in text.splitlines():
        syslog.syslog(syslog.LOG_ERR, _prefix + line)
    if _place is not None:
        _append(
            _place,
            "".join(f"{time.strftime('%F %T')} [{os.getpid()}] {line}\n" for line in text.splitlines()),
        )


def _append(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > LIMIT_BYTES:
            path.rename(path.with_name("supervisor.log.1"))
        with path.open("a") as file:
            file.write(text)
    except OSError:
        return  # a full disk must not end the zone's supervisor

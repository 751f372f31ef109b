"""Where everything is (design, section 11).

``--root DIR`` or ``ZONEMGR_ROOT`` relocates all folders: an instance of its own, whose kernel objects
(cgroups, links, tables) carry a hash suffix, so that it runs beside a live installation.  ``-R DIR`` is something
else: the zones of another system, whose root is DIR; nothing is recorded there, and nothing of it is obeyed.
"""

from __future__ import annotations

import functools
import os
import zlib  # hashlib would load OpenSSL: 4 ms and 4 MB, for a name
from dataclasses import dataclass
from pathlib import Path

ROOT_VARIABLE = "ZONEMGR_ROOT"


@dataclass(frozen=True, slots=True)
class Layout:
    """All paths of one instance.  ``root`` is ``/`` for the host's own; ``alternate``: of another system's root."""

    root: Path
    alternate: bool = False

    @classmethod
    def at(cls, root: str | os.PathLike[str] | None = None) -> Layout:
        """The instance named by ``root``, else by the environment, else the host's own; resolved and absolute."""
        return cls(Path(os.path.realpath(root or os.environ.get(ROOT_VARIABLE) or "/")))

    @property
    def suffix(self) -> str:
        """Empty for the host's own instance, else ``-`` and eight hex digits that tell this root from others."""
        return _suffix(self)

    @property
    def words(self) -> tuple[str, ...]:
        """What tells our programs of this instance."""
        return ("--root", str(self.root), *(("--alternate",) if self.alternate else ()))

    @property
    def host(self) -> Layout:
        """The instance whose settings and brands hold: this one, or the running system's for an alternate root."""
        return Layout(Path("/")) if self.alternate else self

    @property
    def etc(self) -> Path:
        return self.root / "etc/zonemgr"

    @property
    def lib(self) -> Path:
        return self.root / "var/lib/zonemgr"

    @property
    def run(self) -> Path:
        return _run(self)

    @property
    def log(self) -> Path:
        if self.alternate:
            return self.run / "log"
        return self.root / "var/log/zonemgr"

    @property
    def settings(self) -> Path:
        return self.host.etc / "zonemgr.toml"

    def config(self, zonename: str) -> Path:
        """The zone's configuration file."""
        return self.etc / "zones" / f"{zonename}.toml"

    def zonepath(self, zonename: str) -> Path:
        """The default zonepath (a zone may name another)."""
        return self.lib / "zones" / zonename

    def state(self, zonename: str) -> Path:
        """The zone's index entry: on-disk state, uuid, id range."""
        return self.lib / "state" / f"{zonename}.json"

    def intent(self, zonename: str) -> Path:
        """What the zone's supervisor is about to do, for the one that comes after it."""
        return self.zone_run(zonename) / "transition.json"

    def zone_run(self, zonename: str) -> Path:
        """The folder of the zone's run-time files: door, console, lock, snapshot, ledger."""
        return self.run / "zones" / zonename

    def instance(self, zonename: str) -> Path:
        """The world-readable record of the living zone."""
        return self.run / "instances" / f"{zonename}.json"

    def zone_log(self, zonename: str) -> Path:
        return self.log / zonename


# A boot asks for these hundreds of times.


@functools.cache
def _suffix(layout: Layout) -> str:
    if layout.root == Path("/"):
        return ""
    return f"-{zlib.crc32(os.fsencode(layout.root), int(layout.alternate)):08x}"


@functools.cache
def _run(layout: Layout) -> Path:
    if layout.alternate:
        return layout.host.run / "alternate" / layout.suffix[1:]
    return layout.root / "run/zonemgr"

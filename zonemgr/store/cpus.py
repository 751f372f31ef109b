"""Which CPUs of the host belong to which zone alone (``dedicated-cpu``), and which a zone shares with its ``pool``.

One file for the whole host whatever the instance, because CPUs are the host's.  An entry lives as long as its zone has
control groups, or gives it back: a reboot keeps the same CPUs, a halt frees them, and what a killed program left behind
counts no more once its zone is gone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from zonemgr.errors import PlatformError, message
from zonemgr.linux.cgroup import Hierarchy, cpus
from zonemgr.linux.procfs import boot_id
from zonemgr.store import files
from zonemgr.store.locks import FileLock

REGISTRY: Final = Path("/run/zonemgr/cpus.json")

Pick = Callable[[cpus.CPUS], cpus.CPUS]


@dataclass(frozen=True, slots=True)
class Share:
    """One zone's CPUs; ``base`` is the folder of its instance in each hierarchy.  ``pool``: not for itself alone."""

    base: str
    zonename: str
    ids: str
    pool: bool = False

    @property
    def zone(self) -> tuple[str, str]:
        return self.base, self.zonename

    @property
    def numbers(self) -> cpus.CPUS:
        return cpus.parse(self.ids)


@dataclass(frozen=True, slots=True)
class Registry:
    """The shares of all zones, as they were when the lock was taken; see ``locked``."""

    hierarchy: Hierarchy
    path: Path = REGISTRY

    def shares(self) -> list[Share]:
        """Those whose zone is still there.  PlatformError when the file is damaged."""
        record = files.read_json(self.path) or {}
        if record.get("boot_id") != boot_id():
            return []
        try:
            found = [Share(**item) for item in record["shares"]]
        except (KeyError, TypeError) as error:
            raise PlatformError("{path} is damaged: {why!r}", path=self.path, why=error) from error
        return [share for share in found if (self.hierarchy.unified() / share.base / share.zonename).exists()]

    def dedicated(self, but: tuple[str, str] | None = None) -> cpus.CPUS:
        """All CPUs that some zone has for itself, one zone (base, name) left out."""
        every = (share.numbers for share in self.shares() if not share.pool and share.zone != but)
        return frozenset().union(*every)

    def allocate(self, base: str, zonename: str, pick: Pick) -> cpus.CPUS:
        """The zone's CPUs, as ``picked``; they are its own from now on."""
        with self.lock():
            chosen = self.picked(base, zonename, pick)
            others = [share for share in self.shares() if share.zone != (base, zonename)]
            self._write([*others, Share(base, zonename, cpus.spell(chosen))])
        return chosen

    def picked(self, base: str, zonename: str, pick: Pick) -> cpus.CPUS:
        """``pick`` gets the CPUs that the zone may have, what it has already included.  ValueError is pick's.

        One CPU is left to everybody else.
        """
        free = cpus.online() - self.dedicated(but=(base, zonename))
        chosen = pick(free)
        if not free - chosen:
            raise ValueError(message("no CPU would be left for the host and its other zones"))
        return chosen

    def choice(self, base: str, zonename: str, unit: str, wanted: str) -> Pick:
        """What a ``dedicated-cpu`` resource picks for the zone."""
        held, where = self.of(base, zonename), cpus.places()
        return lambda free: cpus.choose_again(unit, wanted, free, held, where)

    def join(self, base: str, zonename: str, ids: cpus.CPUS) -> None:
        """The zone shares these CPUs with others, and has none for itself."""
        with self.lock():
            others = [share for share in self.shares() if share.zone != (base, zonename)]
            self._write([*others, Share(base, zonename, cpus.spell(ids), pool=True)])

    def release(self, base: str, zonename: str) -> bool:
        """Give the zone's CPUs back.  False when it had none."""
        if not self.path.exists():
            return False
        with self.lock():
            shares = self.shares()
            kept = [share for share in shares if share.zone != (base, zonename)]
            if kept:
                self._write(kept)
            else:
                self.path.unlink(missing_ok=True)
        return len(kept) != len(shares)

    def of(self, base: str, zonename: str) -> cpus.CPUS:
        """The CPUs that the zone has; empty when it has none for itself."""
        return self._of(base, zonename, pool=False)

    def pool_of(self, base: str, zonename: str) -> cpus.CPUS:
        """The CPUs of the zone's pool; empty when it is in none."""
        return self._of(base, zonename, pool=True)

    def _of(self, base: str, zonename: str, *, pool: bool) -> cpus.CPUS:
        found = (share for share in self.shares() if share.zone == (base, zonename) and share.pool is pool)
        return frozenset().union(*(share.numbers for share in found))

    def lock(self) -> FileLock:
        """For whoever acts on what the registry says: what another one changes meanwhile must not be undone."""
        return FileLock(self.path.with_suffix(".lock"))

    def _write(self, shares: list[Share]) -> None:
        files.write_json(
            self.path, {"version": 1, "boot_id": boot_id(), "shares": [asdict(share) for share in shares]}
        )

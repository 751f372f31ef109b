"""What ``detach`` leaves in a zonepath, so that ``attach`` knows, here or on another host, what lies there.

A JSON object: version, the zone's name, brand and uuid, its configuration as the text of its file, the name of the
default bridge there, and by how much the ids of its root are shifted on disk (0: not at all).
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from zonemgr.errors import ConfigError, PlatformError
from zonemgr.store import files, settings, zones
from zonemgr.store.paths import Layout
from zonemgr.store.verify import DETACHED_MARKER

ATTACHED_MARKER: Final = "SUNWattached.json"  # what attach -F makes of it
VERSION: Final = 1
LIMIT_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Manifest:
    """See the module."""

    zonename: str
    brand: str
    uuid: str
    configuration: str
    bridge: str
    shifted_by: int = 0

    @classmethod
    def of(cls, layout: Layout, name: str) -> Manifest:
        """The manifest of a zone as it is now.  Raises ZoneError."""
        content = files.read_bytes(layout.config(name))
        entry = zones.read_entry(layout, name)
        shifted_by = (entry.uid_base or 0) if entry.idmap_marker else 0
        return cls(name, entry.brand, entry.uuid, (content or b"").decode(), settings.load(layout).bridge, shifted_by)

    @classmethod
    def parse(cls, content: bytes, filename: str) -> Manifest:
        """Raises ConfigError for anything but a manifest."""
        try:
            table: dict[str, Any] = json.loads(content)
            version = table.pop("version")
            found = {field.name: table[field.name] for field in fields(cls)}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigError(
                "{filename} is no manifest of a zone: {why}", filename=filename, why=_reason(error)
            ) from None
        if version != VERSION:
            raise ConfigError(
                "{filename} is of version {version}, this zonemgr reads {known}",
                filename=filename, version=version, known=VERSION,
            )  # fmt: skip
        shifted_by = found.pop("shifted_by")
        if not all(isinstance(value, str) for value in found.values()) or not _is_base(shifted_by):
            raise ConfigError("{filename} is damaged", filename=filename)
        return cls(**found, shifted_by=shifted_by)

    def text(self) -> str:
        """As it is written."""
        return json.dumps({"version": VERSION, **asdict(self)}, indent=2, ensure_ascii=False) + "\n"


def _reason(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _is_base(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31 and value % 65536 == 0


def marker(zonepath: str) -> Path:
    """Where the manifest of a detached zone is."""
    return Path(zonepath) / DETACHED_MARKER


def read(zonepath: str) -> Manifest | None:
    """The manifest in a zonepath, or None.  Raises ConfigError, PlatformError."""
    path = marker(zonepath)
    if path.is_symlink():
        raise PlatformError("{path} is a symlink", path=path)
    content = files.read_bytes(path, LIMIT_BYTES)
    return None if content is None else Manifest.parse(content, str(path))


def write(zonepath: str, manifest: Manifest) -> None:
    """Leave the manifest.  Raises PlatformError."""
    files.write_atomic(marker(zonepath), manifest.text(), 0o600)


def tidy(zonepath: str) -> None:
    """Take away what a killed ``write`` has left."""
    for path in Path(zonepath).glob(f".{DETACHED_MARKER}.*.tmp"):
        path.unlink(missing_ok=True)


def forget(zonepath: str, *, keep: bool = False) -> None:
    """The zone is attached: the manifest goes, or (``keep``) stays under another name."""
    path = marker(zonepath)
    try:
        if keep:
            os.rename(path, path.with_name(ATTACHED_MARKER))
        else:
            path.unlink()
    except FileNotFoundError:
        return

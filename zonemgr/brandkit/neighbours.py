"""What a brand's module imports from its own folder, at any depth, is root's alone before any of it runs.

Asked when it is imported, which may be in a hook, and of nothing else: a brand may bring a whole tree of data along
that nobody wants to walk through at each boot.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import machinery
from pathlib import Path
from types import ModuleType

from zonemgr.brandkit import trust


def watch(folder: Path, root: Path) -> None:
    """From now on imports from the folder are checked; ``root`` is the instance's.  Idempotent."""
    sys.path_importer_cache[str(folder)] = _Finder(str(folder), root)


class _Finder(machinery.FileFinder):
    """Python's own, which is asked for what is in one folder."""

    def __init__(self, folder: str, root: Path) -> None:
        super().__init__(
            folder,
            (machinery.ExtensionFileLoader, machinery.EXTENSION_SUFFIXES),
            (machinery.SourceFileLoader, machinery.SOURCE_SUFFIXES),
            (machinery.SourcelessFileLoader, machinery.BYTECODE_SUFFIXES),
        )
        self._root = root

    def find_spec(self, fullname: str, target: ModuleType | None = None) -> machinery.ModuleSpec | None:
        """Raises BrandError for what others than root may write."""
        spec = super().find_spec(fullname, target)
        if spec is not None:
            for place in _places(spec):
                trust.check_found(Path(place), self._root)  # perhaps nothing is compiled yet
            for folder in spec.submodule_search_locations or ():
                watch(Path(folder), self._root)
        return spec


def _places(spec: machinery.ModuleSpec) -> Iterator[str]:
    yield from spec.submodule_search_locations or ()
    if spec.has_location:
        yield from filter(None, (spec.origin, spec.cached))

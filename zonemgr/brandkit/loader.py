"""Finding brands, loading them by path, and refusing broken ones with one line that names the file.

A brand is a folder with a ``brand.py``.  The administrator's folder comes first, then the distribution's, then the
shipped brands, and only what is in none of them is looked for among the entry points of installed packages (scanning
those is slow). A module gets a private name in ``sys.modules``, so that a brand cannot shadow anything, and may
import its own neighbours relatively.  What a brand declares is checked before any hook of it runs; whether its mounts
and privileges work on this host is not asked here.
"""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Final

import zonemgr
from zonemgr.brandkit import contract
from zonemgr.brandkit.base import Brand
from zonemgr.errors import BrandError
from zonemgr.model import checks
from zonemgr.model.checks import Refused
from zonemgr.store.paths import Layout

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ENTRY_POINTS: Final = "zonemgr.brands"
DISTRIBUTION_FOLDER: Final = Path("/usr/lib/zonemgr/brands")
FILE: Final = "brand.py"

SHIPPED: Final = "shipped"
DROP_IN: Final = "drop-in"
ENTRY_POINT: Final = "entry point"


@dataclass(frozen=True, slots=True)
class Found:
    """One brand as it is listed.  ``state`` is ``ok``, ``broken`` or ``hidden`` (by one found before it)."""

    name: str
    source: str
    version: str
    state: str
    error: str
    path: str
    summary: str = ""


@dataclass(frozen=True, slots=True)
class _Place:
    """A folder of brand folders."""

    folder: Path
    source: str


def load(name: str, layout: Layout) -> Brand:
    """The brand of this name, checked.  Raises BrandError with one line."""
    try:
        checks.brand_name(name)
    except Refused as refused:
        raise BrandError("brand {why}", why=refused) from None
    for place in _places(layout):
        if (place.folder / name / FILE).is_file():
            return _load_folder(place.folder / name, place.source)
    for entry_point in _entry_points():
        if entry_point.name == name:
            return _load_entry_point(entry_point)
    raise BrandError("brand '{name}' is not known{hint}", name=name, hint=_nearest(name, layout))


def discover(layout: Layout) -> list[Found]:
    """Every brand on this host, broken ones with their error, by name and in the order in which they are looked for."""
    seen: set[str] = set()
    result = []
    for found in _all(layout):
        result.append(_hidden(found) if found.name in seen else found)
        seen.add(found.name)
    return sorted(result, key=lambda found: found.name)


def shipped_folder() -> Path:
    """The brands that come with zonemgr: inside the installed package, or beside it in a checkout."""
    package = Path(zonemgr.__file__).resolve().parent
    inside = package / "brands"
    return inside if inside.is_dir() else package.parent / "brands"


def _places(layout: Layout) -> tuple[_Place, ...]:
    return (
        _Place(layout.etc / "brands", DROP_IN),
        _Place(DISTRIBUTION_FOLDER, DROP_IN),
        _Place(shipped_folder(), SHIPPED),
    )


def _entry_points() -> tuple[EntryPoint, ...]:
    # Here, since it reads the metadata of every installed package: 20 ms and more.
    from importlib.metadata import entry_points

    return tuple(entry_points(group=ENTRY_POINTS))


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if (folder / name / FILE).is_file())
    except OSError:
        return []


def _nearest(name: str, layout: Layout) -> str:
    known = {found for place in _places(layout) for found in _names_in(place.folder)}
    return contract.did_you_mean(name, known)


def _all(layout: Layout) -> Iterator[Found]:
    for place in _places(layout):
        for name in _names_in(place.folder):
            path = place.folder / name / FILE
            try:
                brand = _load_folder(path.parent, place.source)
            except BrandError as error:
                yield Found(name, place.source, "", "broken", error.text, str(path))
            else:
                yield _found(brand, place.source, str(path))
    for entry_point in _entry_points():
        try:
            brand = _load_entry_point(entry_point)
        except BrandError as error:
            yield Found(entry_point.name, ENTRY_POINT, "", "broken", error.text, entry_point.value)
        else:
            yield _found(brand, ENTRY_POINT, entry_point.value)


def _found(brand: Brand, source: str, path: str) -> Found:
    version = brand.version or (zonemgr.__version__ if source == SHIPPED else "")
    return Found(brand.name, source, version, "ok", "", path, brand.summary)


def _hidden(found: Found) -> Found:
    return Found(found.name, found.source, found.version, "hidden", found.error, found.path, found.summary)


# -- loading ----------------------------------------------------------------------------------------------------


def _load_folder(folder: Path, source: str) -> Brand:
    path = folder / FILE
    try:
        checks.brand_name(folder.name)
    except Refused as refused:
        raise BrandError(
            "{path}: the folder's name is the brand's: brand {why}", path=path, why=refused
        ) from None
    if source == DROP_IN:
        _check_owner(path)
    module = _execute(path)
    return _make(_only_brand(module, path), folder, path)


def _check_owner(path: Path) -> None:
    """Hooks run as root, so nobody else may be able to write them."""
    for place in (path, path.parent):
        status = place.stat()
        if status.st_mode & 0o022 or status.st_uid not in (0, os.geteuid()):
            raise BrandError("{path}: refused, since others than root may write it", path=place)


def _execute(path: Path) -> ModuleType:
    """Run ``brand.py`` under a private module name.  Loaded once per content of the path."""
    name = f"_zonemgr_brand_{path.parent.name.replace('-', '_')}_{zlib.crc32(os.fsencode(path)):08x}"
    loader = SourceFileLoader(name, str(path))
    spec = ModuleSpec(name, loader, origin=str(path), is_package=True)
    spec.submodule_search_locations = [str(path.parent)]
    module = ModuleType(name)
    module.__spec__, module.__loader__, module.__package__ = spec, loader, name
    module.__file__, module.__path__ = str(path), [str(path.parent)]
    sys.modules[name] = module  # relative imports and dataclasses look it up there
    try:
        loader.exec_module(module)
    except (Exception, SystemExit, GeneratorExit) as error:
        del sys.modules[name]
        raise BrandError("{place}: {error}", place=_place(path, error), error=one_line(error)) from error
    return module


def _place(path: Path, error: BaseException) -> str:
    """``brand.py:LINE``: the last line of the brand's own that was running, or that does not parse."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    line = last_line(error.__traceback__, str(path))
    return f"{path}:{line}" if line else str(path)


def last_line(trace: TracebackType | None, filename: str) -> int | None:
    """The line in ``filename`` that an exception passed last."""
    line = None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == filename:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def one_line(error: BaseException) -> str:
    """An exception of foreign code as one short line."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    text = " ".join(text.split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _only_brand(module: ModuleType, path: Path) -> type[Brand]:
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Brand) and value.__module__ == module.__name__
    ]
    if not own:
        raise BrandError("{path}: defines no class derived from zonemgr.brandkit.Brand", path=path)
    # A brand may have a base class of its own in the file: the one that nothing else derives from is meant.
    last = [cls for cls in own if not any(other is not cls and issubclass(other, cls) for other in own)]
    if len(last) > 1:
        names = ", ".join(cls.__name__ for cls in last)
        raise BrandError("{path}: defines more than one brand: {names}", path=path, names=names)
    return last[0]


def _load_entry_point(entry_point: EntryPoint) -> Brand:
    place = f"entry point {entry_point.name} = {entry_point.value}"
    try:
        cls: Any = entry_point.load()
    except (Exception, SystemExit) as error:
        raise BrandError("{place}: {error}", place=place, error=one_line(error)) from error
    if not (isinstance(cls, type) and issubclass(cls, Brand)):
        raise BrandError("{place}: is not a class derived from zonemgr.brandkit.Brand", place=place)
    module = sys.modules.get(cls.__module__)
    folder = Path(getattr(module, "__file__", None) or "/").parent
    return _make(cls, folder, place, name=entry_point.name)


def _make(cls: type[Brand], folder: Path, place: Path | str, name: str | None = None) -> Brand:
    for fault in contract.faults(cls, name or folder.name):
        raise BrandError("{place}: {fault}", place=place, fault=fault)
    try:
        return cls(folder)
    except Exception as error:
        raise BrandError("{place}: {error}", place=place, error=one_line(error)) from error


def as_json(found: Found) -> Mapping[str, str]:
    """The listing's record in ``zonemgr --json brands``."""
    return {field: getattr(found, field) for field in Found.__dataclass_fields__}

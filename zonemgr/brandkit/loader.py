"""Finding brands, loading them by path, and refusing broken ones with one line that names the file.

A brand is a folder with a ``brand.py`` (or, without Python, a ``brand.toml``: see ``manifest``).  A brand with a
``base`` becomes a class that derives from both: its own first, then the base's.
The administrator's folder comes first, then the distribution's, then the
shipped brands, and only what is in none of them is looked for among the entry points of installed packages (scanning
those is slow). A module gets a private name in ``sys.modules``, so that a brand cannot shadow anything, and may
import its own neighbours relatively.  What a brand declares is checked before any hook of it runs; whether its mounts
and privileges work on this host is not asked here.
"""

from __future__ import annotations

import contextlib
import os
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Final

import zonemgr
from zonemgr.brandkit import contract, neighbours, trust
from zonemgr.brandkit.base import Brand
from zonemgr.errors import BrandError
from zonemgr.model import checks
from zonemgr.model.brandspec import PlatformMount
from zonemgr.model.checks import Refused
from zonemgr.store.paths import Layout

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ENTRY_POINTS: Final = "zonemgr.brands"
DISTRIBUTION_FOLDER: Final = Path("/usr/lib/zonemgr/brands")
FILE: Final = "brand.py"
MANIFEST: Final = "brand.toml"
FILES: Final = (FILE, MANIFEST)
_CODE: Final = (".py", ".pyc", ".so")
MODULE_PREFIX: Final = "_zonemgr_brand_"
_STAMP: Final = "__stamp__"  # of the file as it was loaded
BASES_MAX: Final = 8  # brands derived from one another

OK: Final = "ok"
BROKEN: Final = "broken"
HIDDEN: Final = "hidden"

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
    return _load(name, layout, ())


def load_folder(folder: Path, layout: Layout) -> Brand:
    """The brand in this very folder, wherever that is, checked.  Raises BrandError with one line."""
    return _load_folder(folder, DROP_IN, layout, ())


def _load(name: str, layout: Layout, below: tuple[str, ...]) -> Brand:
    """``below`` are the places of the brands that derive from the one we look for, which is none of them."""
    try:
        checks.brand_name(name)
    except Refused as refused:
        raise BrandError("brand {why}", why=refused) from None
    for place in _places(layout):
        folder = place.folder / name
        if _file_of(folder) and str(folder) not in below:
            return _load_folder(folder, place.source, layout, below)
    for entry_point in _entry_points():
        if entry_point.name == name and entry_point.value not in below:
            return _load_entry_point(entry_point, layout, below)
    raise BrandError("brand '{name}' is not known{hint}", name=name, hint=_nearest(name, layout))


def _file_of(folder: Path) -> Path | None:
    """The file that makes the folder a brand, if it is one."""
    return next((folder / name for name in FILES if (folder / name).is_file()), None)


def discover(layout: Layout) -> list[Found]:
    """Every brand on this host, broken ones with their error, by name and in the order in which they are looked for."""
    seen: set[str] = set()
    result = []
    for found in _all(layout):
        result.append(_hidden(found) if found.name in seen else found)
        seen.add(found.name)
    return sorted(result, key=lambda found: found.name)


def preload() -> None:
    """Load the code of the shipped brands, which is ours: forks of this process need not."""
    for name in _names_in(shipped_folder()):
        path = _file_of(shipped_folder() / name)
        if path is not None and path.name == FILE:
            with contextlib.suppress(BrandError):
                _execute(path)


def shipped_folder() -> Path:
    """The brands that come with zonemgr: inside the installed package, or beside it in a checkout."""
    package = Path(zonemgr.__file__).resolve().parent
    inside = package / "brands"
    return inside if inside.is_dir() else package.parent / "brands"


def _places(layout: Layout) -> tuple[_Place, ...]:
    return (
        _Place(layout.host.etc / "brands", DROP_IN),
        _Place(DISTRIBUTION_FOLDER, DROP_IN),
        _Place(shipped_folder(), SHIPPED),
    )


def _entry_points() -> tuple[EntryPoint, ...]:
    # Here, since it reads the metadata of every installed package: 20 ms and more.
    from importlib.metadata import entry_points

    return tuple(entry_points(group=ENTRY_POINTS))


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if _file_of(folder / name))
    except OSError:
        return []


def _nearest(name: str, layout: Layout) -> str:
    known = {found for place in _places(layout) for found in _names_in(place.folder)}
    return contract.did_you_mean(name, known)


def _all(layout: Layout) -> Iterator[Found]:
    for place in _places(layout):
        for name in _names_in(place.folder):
            path = _file_of(place.folder / name) or place.folder / name
            try:
                brand = _load_folder(path.parent, place.source, layout, ())
            except BrandError as error:
                yield Found(name, place.source, "", BROKEN, error.text, str(path))
            else:
                yield _found(brand, place.source, str(path))
    for entry_point in _entry_points():
        try:
            brand = _load_entry_point(entry_point, layout, ())
        except BrandError as error:
            yield Found(entry_point.name, ENTRY_POINT, "", BROKEN, error.text, entry_point.value)
        else:
            yield _found(brand, ENTRY_POINT, entry_point.value)


def _found(brand: Brand, source: str, path: str) -> Found:
    version = brand.version or (zonemgr.__version__ if source == SHIPPED else "")
    return Found(brand.name, source, version, OK, "", path, brand.summary)


def _hidden(found: Found) -> Found:
    return Found(found.name, found.source, found.version, HIDDEN, found.error, found.path, found.summary)


# -- loading ----------------------------------------------------------------------------------------------------


def _load_folder(folder: Path, source: str, layout: Layout, below: tuple[str, ...]) -> Brand:
    path = _file_of(folder)
    if path is None:
        raise BrandError("{path}: holds neither {files}", path=folder, files=" nor ".join(FILES))
    if all((folder / name).is_file() for name in FILES):
        raise BrandError("{path}: holds both {files}", path=folder, files=" and ".join(FILES))
    try:
        checks.brand_name(folder.name)
    except Refused as refused:
        raise BrandError(
            "{path}: the folder's name is the brand's: brand {why}", path=path, why=refused
        ) from None
    root = layout.host.root if source == DROP_IN else None
    if root is not None:
        _check_owner(path, root)
    if path.name == MANIFEST:
        from zonemgr.brandkit import manifest  # not at the top: it loads the TOML parser

        return _make(manifest.read(path, root), folder, path, layout, (*below, str(folder)))
    module = _execute(path, root)
    return _make(_only_brand(module, path), folder, path, layout, (*below, str(folder)))


def _check_owner(path: Path, root: Path) -> None:
    """Hooks run as root, so nobody else may be able to write them, or what they import, or put others there."""
    for place in (path.parent, *_what_runs(path)):
        trust.check_found(place, root)  # an editor leaves links that lead nowhere


def _what_runs(path: Path) -> Iterator[Path]:
    """The file itself, a manifest's programs and what they share, a module's neighbours and what Python has compiled of
    them.  What the module imports from further below is looked at when it does (``neighbours``).
    """
    yield path
    if path.name == MANIFEST:
        for folder, folders, names in os.walk(path.parent / trust.HOOKS_FOLDER):
            yield from (Path(folder), *(Path(folder, name) for name in (*folders, *names)))
        return
    for place in path.parent.iterdir():
        if place.is_dir():
            yield place
            yield from (below for below in place.iterdir() if below.suffix in _CODE and below.is_file())
        elif place.suffix in _CODE and place.is_file():
            yield place


def _execute(path: Path, root: Path | None = None) -> ModuleType:
    """Run ``brand.py`` under a private module name.  Loaded once per content of the path.  ``root`` is that of the
    instance whose administrator put it there; None when it is ours.
    """
    name = f"{MODULE_PREFIX}{path.parent.name.replace('-', '_')}_{zlib.crc32(os.fsencode(path)):08x}"
    stamp = _stamp(path)
    loaded = sys.modules.get(name)
    if loaded is not None and stamp is not None and vars(loaded).get(_STAMP) == stamp:
        return loaded
    loader = SourceFileLoader(name, str(path))
    spec = ModuleSpec(name, loader, origin=str(path), is_package=True)
    spec.submodule_search_locations = [str(path.parent)]
    module = ModuleType(name)
    module.__spec__, module.__loader__, module.__package__ = spec, loader, name
    module.__file__, module.__path__ = str(path), [str(path.parent)]
    sys.modules[name] = module  # relative imports and dataclasses look it up there
    if root is not None:
        neighbours.watch(path.parent, root)
    try:
        loader.exec_module(module)
    except BrandError:
        del sys.modules[name]
        raise
    except (Exception, SystemExit, GeneratorExit) as error:
        del sys.modules[name]
        raise BrandError("{place}: {error}", place=_place(path, error), error=one_line(error)) from error
    vars(module)[_STAMP] = stamp
    return module


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


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


def _load_entry_point(entry_point: EntryPoint, layout: Layout, below: tuple[str, ...]) -> Brand:
    place = f"entry point {entry_point.name} = {entry_point.value}"
    try:
        cls: Any = entry_point.load()
    except (Exception, SystemExit) as error:
        raise BrandError("{place}: {error}", place=place, error=one_line(error)) from error
    if not (isinstance(cls, type) and issubclass(cls, Brand)):
        raise BrandError("{place}: is not a class derived from zonemgr.brandkit.Brand", place=place)
    module = sys.modules.get(cls.__module__)
    folder = Path(getattr(module, "__file__", None) or "/").parent
    return _make(cls, folder, place, layout, (*below, entry_point.value), name=entry_point.name)


def _make(
    cls: type[Brand],
    folder: Path,
    place: Path | str,
    layout: Layout,
    below: tuple[str, ...],
    name: str | None = None,
) -> Brand:
    own = (vars(above) for above in cls.__mro__ if above.__module__ == cls.__module__)
    base = next((names["base"] for names in own if "base" in names), "")
    if base and not contract.CHECKS["base"](base):
        cls = _derive(cls, _load_base(base, name or folder.name, place, layout, below))
    for fault in contract.faults(cls, name or folder.name):
        raise BrandError("{place}: {fault}", place=place, fault=fault)
    if cls.more_mounts or cls.more_zone_mounts or cls.more_devices or cls.more_links:
        cls = _with_more(cls)
    try:
        return cls(folder)
    except Exception as error:
        raise BrandError("{place}: {error}", place=place, error=one_line(error)) from error


# -- brands made from others --------------------------------------------------------------------------------------


def _load_base(base: str, name: str, place: Path | str, layout: Layout, below: tuple[str, ...]) -> Brand:
    if len(below) > BASES_MAX:
        raise BrandError("{place}: base '{base}': more than {most} brands deep", place=place, base=base, most=BASES_MAX)
    try:
        if base.startswith("/"):
            if base in below:
                raise BrandError("goes round in circles")
            return _load_folder(Path(base), DROP_IN, layout, below)
        if base != name and any(os.path.basename(folder) == base for folder in below):
            raise BrandError("goes round in circles")
        return _load(base, layout, below)
    except BrandError as error:
        raise BrandError("{place}: base '{base}': {why}", place=place, base=base, why=error.text) from error


def _derive(cls: type[Brand], base: Brand) -> type[Brand]:
    """A class with ``cls`` first and then the base, whose ``{data}`` stays its own folder."""
    own = {"__module__": cls.__module__}
    folder = str(base.folder).replace("{", "{{").replace("}", "}}")
    filled = {name: _fill_data(getattr(base, name), folder) for name in ("mounts", "zone_mounts")}
    above = type(type(base).__name__, (type(base),), {**own, **filled, "more_mounts": (), "more_zone_mounts": ()})
    try:
        return type(cls.__name__, (cls, above), own)
    except TypeError as error:  # cls itself derives from the class of its base
        raise BrandError("{name}: {why}", name=cls.__name__, why=one_line(error)) from error


def _fill_data(mounts: tuple[PlatformMount, ...], folder: str) -> tuple[PlatformMount, ...]:
    return tuple(replace(mount, special=mount.special.replace("{data}", folder)) for mount in mounts)


def _with_more(cls: type[Brand]) -> type[Brand]:
    """A class with what it adds to its base's folded in."""
    own: dict[str, Any] = {"__module__": cls.__module__}
    for name in ("mounts", "zone_mounts", "devices", "links"):
        own[name] = (*getattr(cls, name), *getattr(cls, f"more_{name}"))
        own[f"more_{name}"] = ()
    return type(cls.__name__, (cls,), own)


def as_json(found: Found) -> Mapping[str, str]:
    """The listing's record in ``zonemgr --json brands``."""
    return {field: getattr(found, field) for field in Found.__dataclass_fields__}

"""Brands are found where they should be, and what is wrong with one is one line that names its file."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from zonemgr.brandkit import base, contract, loader
from zonemgr.brandkit.base import Brand, ZoneInfo
from zonemgr.errors import BrandError
from zonemgr.model.brandspec import InitProgram
from zonemgr.model.zone import Zone
from zonemgr.store.paths import Layout

GOOD = """
from zonemgr.brandkit import Brand

class Tiny(Brand):
    name = "tiny"
    version = "3"
    summary = "small"
"""


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    monkeypatch.setattr(loader, "DISTRIBUTION_FOLDER", tmp_path / "usr/lib/zonemgr/brands")
    return Layout(tmp_path)


def _brand(layout: Layout, name: str, text: str, folder: Path | None = None) -> Path:
    place = (folder or layout.etc / "brands") / name
    place.mkdir(parents=True)
    (place / "brand.py").write_text(text)
    place.chmod(0o755)
    (place / "brand.py").chmod(0o644)
    return place / "brand.py"


def _refusal(layout: Layout, name: str, text: str) -> str:
    path = _brand(layout, name, text)
    with pytest.raises(BrandError) as caught:
        loader.load(name, layout)
    assert "\n" not in caught.value.text
    assert caught.value.text.startswith(str(path))
    return caught.value.text.removeprefix(str(path))


def _declaring(line: str) -> str:
    return f"from zonemgr.brandkit import *\nclass Tiny(Brand):\n    name = 'tiny'\n    {line}\n"


# -- finding ------------------------------------------------------------------------------------------------------


def test_a_drop_in_is_loaded_and_knows_its_folder(layout: Layout) -> None:
    path = _brand(layout, "tiny", GOOD)
    brand = loader.load("tiny", layout)
    assert (brand.name, brand.folder, brand.init) == ("tiny", path.parent, "/sbin/init")


def test_the_shipped_native_brand_is_found_and_sound(layout: Layout) -> None:
    native = loader.load("native", layout)
    assert native.scratch_mount and native.overrides("install") and not native.overrides("halt")


def test_the_administrators_brand_comes_before_the_distributions(layout: Layout) -> None:
    _brand(layout, "tiny", GOOD.replace('"3"', '"theirs"'), loader.DISTRIBUTION_FOLDER)
    mine = _brand(layout, "tiny", GOOD)
    assert loader.load("tiny", layout).folder == mine.parent
    states = [(found.version, found.state) for found in loader.discover(layout) if found.name == "tiny"]
    assert states == [("3", "ok"), ("theirs", "hidden")]


def test_an_unknown_brand_is_refused_with_the_nearest(layout: Layout) -> None:
    with pytest.raises(BrandError, match=r"^brand 'nativ' is not known \(did you mean 'native'\?\)$"):
        loader.load("nativ", layout)


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc", "a\0b", "x" * 300])
def test_impossible_names_are_refused(layout: Layout, name: str) -> None:
    with pytest.raises(BrandError):
        loader.load(name, layout)


def test_a_broken_brand_is_listed_beside_the_good_ones(layout: Layout) -> None:
    _brand(layout, "broken", "raise RuntimeError('no')")
    _brand(layout, "tiny", GOOD)
    found = {found.name: found for found in loader.discover(layout)}
    assert found["tiny"].state == found["native"].state == "ok"
    assert found["native"].source == "shipped"
    assert found["broken"].state == "broken"
    assert "RuntimeError: no" in found["broken"].error


def test_a_brand_may_have_modules_and_a_base_class_of_its_own(layout: Layout) -> None:
    text = "from . import helper\nfrom zonemgr.brandkit import Brand\nclass Base(Brand):\n    name = helper.NAME\n"
    path = _brand(layout, "tiny", text + "class Tiny(Base):\n    scratch_mount = True\n")
    (path.parent / "helper.py").write_text("NAME = 'tiny'\n")
    before = set(sys.modules)
    brand = loader.load("tiny", layout)
    assert brand.scratch_mount and brand.name == "tiny"
    assert all(name.startswith("_zonemgr_brand_tiny_") for name in set(sys.modules) - before)


def test_an_entry_point_is_looked_at_last(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    info = site / "somebrand-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somebrand\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[zonemgr.brands]\ntiny = somebrand:Tiny\nodd = somebrand:nothing\n"
    )
    (site / "somebrand.py").write_text(GOOD + "nothing = 3\n")
    monkeypatch.syspath_prepend(str(site))
    assert loader.load("tiny", layout).version == "3"
    with pytest.raises(BrandError, match="entry point odd = somebrand:nothing: is not a class derived from"):
        loader.load("odd", layout)
    mine = _brand(layout, "tiny", GOOD)
    assert loader.load("tiny", layout).folder == mine.parent


# -- broken brands --------------------------------------------------------------------------------------------------


def test_a_brand_that_raises_on_import(layout: Layout) -> None:
    assert _refusal(layout, "bad", "x = 1\nx / 0\n") == ":2: ZeroDivisionError: division by zero"


def test_a_brand_that_exits_on_import(layout: Layout) -> None:
    assert _refusal(layout, "bad", "import sys\nsys.exit(3)\n") == ":2: SystemExit: 3"


def test_a_syntax_error_names_its_line(layout: Layout) -> None:
    assert _refusal(layout, "bad", "x = 1\ny = (\n").startswith(":2: SyntaxError: ")


def test_a_missing_import(layout: Layout) -> None:
    assert _refusal(layout, "bad", "import nowhere_at_all\n").startswith(":1: ModuleNotFoundError: ")


def test_a_file_without_a_brand(layout: Layout) -> None:
    assert "defines no class derived from" in _refusal(layout, "bad", "from zonemgr.brandkit import Brand\n")


def test_a_file_with_two_brands(layout: Layout) -> None:
    text = "from zonemgr.brandkit import Brand\nclass A(Brand): name = 'bad'\nclass B(Brand): name = 'bad'\n"
    assert "more than one brand: A, B" in _refusal(layout, "bad", text)


def test_the_name_is_the_folders(layout: Layout) -> None:
    assert "name is 'tiny', but the brand is known as 'other'" in _refusal(layout, "other", GOOD)


@pytest.mark.parametrize("name", ["helper.py", "parts/__init__.py", "parts", "__pycache__/brand.cpython-311.pyc"])
@pytest.mark.attack("code and files of others used by the host")
def test_a_brand_whose_neighbours_others_may_write_is_refused(layout: Layout, name: str) -> None:
    """They are imported by it, or in its place."""
    path = _brand(layout, "tiny", GOOD)
    (path.parent / "parts").mkdir()
    (path.parent / "__pycache__").mkdir(exist_ok=True)
    place = path.parent / name
    if not place.exists():
        place.write_text("")
    place.chmod(0o777)
    with pytest.raises(BrandError, match=f"{place.name}: refused, since others than root may write it"):
        loader.load("tiny", layout)
    place.chmod(0o755)
    assert loader.load("tiny", layout).name == "tiny"


@pytest.mark.parametrize("name", ["code.py", "", "__pycache__", "__pycache__/code.cpython-311.pyc", "__init__.py"])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.attack("code and files of others used by the host")
def test_what_a_brand_imports_from_further_below_is_roots_alone(layout: Layout, name: str, late: bool) -> None:
    """Whether it does so at once or in a hook."""
    imports = "from .parts.more.inner import code"
    hook = f"    def halt(self, zone):\n        {imports}\n"
    path = _brand(layout, "tiny", f"{GOOD}\n{hook}{'' if late else imports}\n")
    inner = path.parent / "parts/more/inner"
    (inner / "__pycache__").mkdir(parents=True)
    (inner / "code.py").write_text("")
    place = inner / name
    if not place.exists():
        place.write_text("")
    place.chmod(0o777)
    with pytest.raises(BrandError, match=f"{place.name}.*: refused, since others than root may write"):
        loader.load("tiny", layout).halt(ZoneInfo.of(Zone("web", "/zones/web"), str(layout.root)))
    place.chmod(0o755)
    if place.suffix != ".pyc":
        assert loader.load("tiny", layout).halt(ZoneInfo.of(Zone("web", "/zones/web"), str(layout.root))) is None


def test_data_of_a_brand_may_be_of_any_mode(layout: Layout) -> None:
    """It is not walked through either."""
    path = _brand(layout, "tiny", GOOD)
    tree = path.parent / "data/root/tmp"
    tree.mkdir(parents=True)
    tree.chmod(0o1777)
    (tree / "x.py").write_text("")
    assert loader.load("tiny", layout).name == "tiny"


def test_a_brand_that_others_may_write_is_refused(layout: Layout) -> None:
    path = _brand(layout, "tiny", GOOD)
    path.chmod(0o666)
    with pytest.raises(BrandError, match="others than root may write it"):
        loader.load("tiny", layout)
    path.chmod(0o644)
    path.parent.chmod(0o777)
    with pytest.raises(BrandError, match="others than root may write it"):
        loader.load("tiny", layout)


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777])
def test_a_brand_below_a_folder_that_others_may_write_is_refused(layout: Layout, mode: int) -> None:
    """They can put another folder of its name there, were that sticky or not."""
    path = _brand(layout, "tiny", GOOD)
    for above in (path.parent.parent, layout.etc, layout.root):
        before = stat.S_IMODE(above.stat().st_mode)
        above.chmod(mode)
        refusal = f"{path.parent}: refused, since others than root may write {above}, which leads to it"
        with pytest.raises(BrandError, match=re.escape(refusal)):
            loader.load("tiny", layout)
        assert [found.state for found in loader.discover(layout) if found.name == "tiny"] == ["broken"]
        above.chmod(before)
    assert loader.load("tiny", layout).name == "tiny"


def test_where_links_of_a_brand_lead_counts(layout: Layout) -> None:
    path = _brand(layout, "tiny", GOOD)
    elsewhere = layout.root / "elsewhere"
    (elsewhere / "deep").mkdir(parents=True)
    kept = elsewhere / "deep/tiny"
    path.parent.rename(kept)
    (elsewhere / "second").symlink_to("deep/../deep/tiny")
    path.parent.symlink_to(elsewhere / "second")
    assert loader.load("tiny", layout).name == "tiny"
    (kept / "helper.py").symlink_to(elsewhere / "helper.py")
    (elsewhere / "helper.py").write_text("")
    for place, mode in ((elsewhere, 0o777), (elsewhere / "deep", 0o777), (elsewhere / "helper.py", 0o666)):
        before = stat.S_IMODE(place.stat().st_mode)
        place.chmod(mode)
        with pytest.raises(BrandError, match=re.escape(f"others than root may write {place}, which leads to it")):
            loader.load("tiny", layout)
        place.chmod(before)
    assert loader.load("tiny", layout).name == "tiny"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("initt = '/sbin/init'", "unknown attribute 'initt' (did you mean 'init'?)"),
        ("def pre_statechnage(self, zone, state, command): pass", "(did you mean 'pre_statechange'?)"),
        ("api = 99", "written for brand API 99, this zonemgr speaks 1"),
        ("init = 'sbin/init'", "init is not an absolute path without '..': 'sbin/init'"),
        ("init = 3", "init is not an absolute path"),
        ("init_arguments = ['-x']", "init_arguments is not a tuple of texts"),
        ("shutdown_command = ('poweroff',)", "shutdown_command is not an absolute path"),
        ("shutdown_signal = 'SIGRTMIN3!'", "shutdown_signal is not the name of a signal"),
        ("scratch_mount = 1", "scratch_mount is neither True nor False: 1"),
        ("ip_types = frozenset({'both'})", "ip_types is not a frozenset of"),
        ("install_deadline_s = -1", "install_deadline_s is not a number of seconds"),
        ("required_privileges = frozenset({'fly'})", 'required_privileges holds an unknown privilege "fly"'),
        ("required_privileges = {'kill'}", "required_privileges is not a frozenset"),
        ("mounts = [PlatformMount('/usr', '/usr')]", "mounts is not a tuple of PlatformMount"),
        ("mounts = (PlatformMount('/usr', 'usr'),)", "directory is not an absolute path"),
        ("mounts = (PlatformMount('usr', '/usr'),)", "special is not an absolute path"),
        ("mounts = (PlatformMount('{rot}/x', '/x'),)", "{rot} is not known (did you mean 'root'?)"),
        ("mounts = (PlatformMount('{root.x}', '/x'),)", "{root.x} is not known"),
        ("mounts = (PlatformMount('/{', '/x'),)", "cannot be filled in"),
        ("mounts = (PlatformMount('/x', '/x', kind='link'),)", "kind is neither 'dir' nor 'file'"),
        ("devices = (DeviceRule('/dev/null'),)", "match is not a path below /dev: '/dev/null'"),
        ("links = (DeviceLink('../x', 'y'),)", "path is not a path below /dev"),
        ("install = 3", "install is not a method"),
        ("def install(self, zone): pass", "install takes (self, zone, arguments)"),
        ("init_environment = {'A=B': 'x'}", "init_environment has an impossible name: 'A=B'"),
    ],
)
def test_what_a_brand_declares_is_checked(layout: Layout, line: str, why: str) -> None:
    assert why in _refusal(layout, "tiny", _declaring(line))


@pytest.mark.parametrize(
    "line",
    [
        "def install(self, zone, arguments, *more): pass",
        "def halt(self, *everything): return 0",
        "shutdown_command = (); shutdown_signal = 'SIGRTMIN+3'",
        "mounts = (PlatformMount('tmpfs', '/run', type='tmpfs'), PlatformMount('{data}/x', '/x', kind='file'))",
        "required_privileges = frozenset({'CAP_KILL'.lower(), 'proc_exec'})",
        "def _helper(self): pass",
    ],
)
def test_good_declarations_are_accepted(layout: Layout, line: str) -> None:
    _brand(layout, "tiny", _declaring(line))
    loader.load("tiny", layout)


def test_every_public_name_of_the_base_class_has_its_check() -> None:
    public = {name for name in vars(Brand) if not name.startswith("_")}
    assert public == {*contract.CHECKS, *base.HOOKS, "folder", "notifies", "only_looks", "overrides", "privileges"}


def test_the_base_class_itself_is_sound() -> None:
    for name, check in contract.CHECKS.items():
        assert check(getattr(Brand, name)) is None, name


def test_loading_brands_needs_no_heavy_module() -> None:
    home = Path(loader.__file__).parents[2]  # without site: an editable install has imports of its own
    script = f"import sys; sys.path.append({str(home)!r}); from zonemgr.brandkit import loader; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-S", "-c", script], capture_output=True, text=True, check=True)
    heavy = {"asyncio", "click", "importlib.metadata", "pyroute2", "subprocess", "tomlkit"}
    assert not heavy & set(found.stdout.split())


def test_what_a_brand_says_of_its_init_holds_for_no_other_init(tmp_path: Path) -> None:
    class Telling(Brand):
        name = "telling"
        init_notifies = True

    class Same(Telling):
        name = "same"

    class Other(Telling):
        name = "other"
        init = "/sbin/other"

    class Chosen(Telling):
        name = "chosen"

        def init_program(self, zone: ZoneInfo) -> InitProgram:
            return InitProgram("/x")

    class TellingToo(Other):
        name = "too"
        init_notifies = True

    brands = (Brand, Telling, Same, Other, Chosen, TellingToo)
    assert [cls(tmp_path).notifies for cls in brands] == [False, True, True, False, False, True]

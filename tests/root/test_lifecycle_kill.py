"""Life-cycle verbs killed in the middle: the zone is then incomplete or untouched, and there always is a way out."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.kit import strike
from tests.kit.instance import Instance
from zonemgr.brandkit import layers
from zonemgr.cli.lifecycle import INTERRUPTED
from zonemgr.store import detached, idranges, zones

pytestmark = [pytest.mark.requires("root"), pytest.mark.long]

# Every change is a point when this is set; otherwise a sample.
ALL: Final = "ZONEMGR_ALL_POINTS" in os.environ
MOST: Final = 10_000 if ALL else 4
MOST_INTERRUPTED: Final = 10_000 if ALL else 1

_BRAND: Final = '''
"""A root of a few files."""
import os
from zonemgr.brandkit import Brand


class Tiny(Brand):
    name = "tiny"

    def install(self, zone, arguments):
        os.makedirs(zone.root + "/etc/ssh", 0o755)
        os.chmod(zone.root, 0o755)
        for name, text in {"hostname": zone.zonename, "machine-id": "0" * 32, "ssh/ssh_host_rsa_key": "secret"}.items():
            with open(zone.root + "/etc/" + name, "w") as stream:
                stream.write(text + "\\n")
        os.link(zone.root + "/etc/hostname", zone.root + "/linked")
        os.symlink("/etc/passwd", zone.root + "/led")
'''


@dataclass(frozen=True)
class Case:
    """A verb: what comes before, its words, and what must be possible after it was killed anywhere."""

    before: tuple[tuple[str, ...], ...]
    words: tuple[str, ...]
    states: tuple[str, ...]  # of any zone there is afterwards
    then: Callable[[Instance], None] | None = None
    reads: bool = False  # the zone web, which has to be what it was afterwards
    mends: bool = False  # ... once the next verb has looked at it


def _digest(instance: Instance, name: str) -> str:
    """A digest of a zone's root, whatever layers it lies in."""
    with layers.opened_root(zones.read_entry(instance.layout, name)) as fd:
        return _tree(Path(f"/proc/self/fd/{fd}"))


def _tree(path: Path) -> str:
    """A digest of a root, names, owners and contents."""
    found = []
    for folder, _, names in sorted(os.walk(path)):
        for name in sorted(names):
            file = Path(folder, name)
            content = os.readlink(file) if file.is_symlink() else file.read_text()
            found.append((str(file.relative_to(path)), content, file.lstat().st_mode, file.lstat().st_uid))
    return hashlib.sha256(repr(found).encode()).hexdigest()


def _root_of(instance: Instance, name: str) -> Path:
    path = next(zone["zonepath"] for zone in instance.json("list", "-c") if zone["zonename"] == name)
    return Path(path) / "root"


def _can_be_moved_on(instance: Instance) -> None:
    """The next move mends what the killed one left, and the zone is whole."""
    instance.run("move", "web", str(instance.root / "third/web"))
    assert (instance.root / "third/web/root/etc/hostname").read_text() == "web\n"
    assert not (instance.root / "elsewhere/web").exists()
    assert not instance.layout.zonepath("web").exists()


def _is_whole_under_one_name(instance: Instance) -> None:
    for name in ("web", "www"):
        if instance.state(name):
            instance.run(
                "move", name, str(instance.root / "third"), check=False
            )  # whatever it says: it mends first
    names = list(instance.states())
    assert names in (["web"], ["www"])
    assert instance.state(names[0]) == "installed"
    assert (_root_of(instance, names[0]) / "led").is_symlink()


def _can_be_attached(instance: Instance) -> None:
    if instance.state("web") != "installed":
        instance.run("attach", "web")  # which finishes a detach that was killed
    assert instance.state("web") == "installed"
    assert (_root_of(instance, "web") / "etc/hostname").read_text() == "web\n"


def _can_be_shared_on(instance: Instance) -> None:
    """The next verb mends what the killed one left; what source and clone share is whole."""
    instance.run("clone", "-m", "overlay", "web", "other")
    assert _digest(instance, "other") != _digest(instance, "web")  # its identity is another
    if instance.state("new") == "installed":
        with layers.opened_root(zones.read_entry(instance.layout, "new")) as fd:
            assert Path(f"/proc/self/fd/{fd}/etc/hostname").read_text() == "new\n"


def _a_named_archive_is_whole(instance: Instance) -> None:
    if (instance.root / "web.tar").exists():
        instance.run("import", "new", "-f", str(instance.root / "web.tar"))


INSTALLED: Final = (("create", "web", "-b", "tiny", "--no-net"), ("install", "web"))
ANY: Final = ("configured", "incomplete", "installed")
CASES: Final = {
    "install": Case(INSTALLED[:1], ("install", "web"), ANY),
    "uninstall": Case(INSTALLED, ("uninstall", "-F", "web"), ANY),
    "clone": Case(INSTALLED, ("clone", "web", "new"), ANY, reads=True),
    "clone by overlay": Case(
        INSTALLED, ("clone", "-m", "overlay", "web", "new"), ANY, _can_be_shared_on, reads=True, mends=True
    ),
    "move": Case(
        INSTALLED, ("move", "web", "{root}/elsewhere/web"), ("incomplete", "installed"), _can_be_moved_on
    ),
    "rename": Case(
        INSTALLED, ("rename", "web", "www"), ("incomplete", "installed"), _is_whole_under_one_name
    ),
    "detach": Case(INSTALLED, ("detach", "web"), ANY, _can_be_attached),
    "attach": Case(
        (*INSTALLED, ("detach", "web")), ("attach", "web"), ("configured", "installed"), _can_be_attached
    ),
    "mark": Case(INSTALLED, ("mark", "web", "incomplete"), ("incomplete", "installed")),
    "export": Case(
        INSTALLED,
        ("export", "web", "-f", "{root}/web.tar"),
        ("installed",),
        _a_named_archive_is_whole,
        reads=True,
    ),
    "import": Case(
        (*INSTALLED, ("export", "web", "-f", "{root}/web.tar")),
        ("import", "new", "-f", "{root}/web.tar"),
        ANY,
        reads=True,
    ),
}


def test_a_set_that_is_interrupted_is_whole_zone_by_zone(instance: Instance) -> None:
    folder = instance.root / "declared"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / f"{name}.toml").write_text("max-lwps = 500\n")
    words = ("apply", "-f", str(folder), "-F")
    total = strike.count(instance, *words)
    interrupted = set()
    for number in strike.points(total, 10_000 if ALL else 5):
        for name in instance.states():
            instance.run("delete", "-F", name)
        answer = strike.interrupt(instance, number, *words)
        made = len(instance.states())
        if answer.code:
            assert (answer.code, answer.out.count("create ")) == (INTERRUPTED, 3), answer
            assert f"interrupted: {made} of 3 zones are as declared" in answer.err or not made, (number, answer)
            interrupted.add(made)
        plan = instance.json("apply", "-f", str(folder), "--dry-run")["zones"]
        assert sorted(zone["action"] for zone in plan) == sorted(["keep"] * made + ["create"] * (3 - made)), number
    assert interrupted & {1, 2}


@pytest.fixture
def tiny(instance: Instance) -> Instance:
    folder = instance.layout.etc / "brands/tiny"
    folder.mkdir(parents=True, mode=0o755)
    (folder / "brand.py").write_text(_BRAND)
    return instance


@pytest.mark.parametrize("verb", CASES)
def test_a_verb_killed_anywhere_leaves_a_way_out(tiny: Instance, verb: str) -> None:
    _sweep(tiny, CASES[verb], MOST, strike.strike)


@pytest.mark.parametrize("verb", CASES)
def test_a_verb_interrupted_anywhere_leaves_a_way_out(tiny: Instance, verb: str) -> None:
    _sweep(tiny, CASES[verb], MOST_INTERRUPTED, _interrupt)


def test_a_detach_killed_at_any_point_is_finished_or_taken_back(tiny: Instance) -> None:
    """By whatever verb comes next."""
    for words in INSTALLED:
        tiny.run(*words)
    marker = detached.marker(str(tiny.layout.zonepath("web")))
    total = strike.count(tiny, "detach", "web")
    tiny.run("attach", "web")
    seen = set()
    for number in range(total):
        strike.strike(tiny, number, "detach", "web")
        seen.add((tiny.state("web"), marker.exists()))
        tiny.run("move", "web", "/dev/null/web", check=1)
        state = tiny.state("web")
        assert (state, marker.exists()) in (("installed", False), ("configured", True)), (number, seen)
        assert not list((tiny.layout.lib / "state").glob("*.journal"))
        if state == "configured":
            tiny.run("attach", "web")
        assert tiny.state("web") == "installed"
        assert (_root_of(tiny, "web") / "etc/hostname").read_text() == "web\n"
    assert seen >= {("installed", False), ("installed", True), ("incomplete", True), ("configured", True)}
    _get_out(tiny)


def _interrupt(instance: Instance, number: int, *words: str) -> None:
    answer = strike.interrupt(instance, number, *words)
    assert "Traceback" not in answer.err, (number, answer.err)


def _sweep(tiny: Instance, case: Case, most: int, blow: Callable[..., object]) -> None:
    words = _filled(tiny, case.words)
    _prepare(tiny, case)
    total = strike.count(tiny, *words)
    _get_out(tiny)
    for number in strike.points(total, most):
        _prepare(tiny, case)
        source = _digest(tiny, "web") if case.reads else ""
        blow(tiny, number, *words)
        states = tiny.states()
        assert set(states.values()) <= set(case.states), (number, states)
        if source:
            assert states["web"] == "installed" or case.mends, number
        if case.then:
            case.then(tiny)
        if source:
            assert tiny.state("web") == "installed" and _digest(tiny, "web") == source, number
        _get_out(tiny)


def _filled(instance: Instance, words: tuple[str, ...]) -> list[str]:
    return [word.format(root=instance.root) for word in words]


def _prepare(instance: Instance, case: Case) -> None:
    for words in case.before:
        instance.run(*_filled(instance, words))


def _get_out(instance: Instance) -> None:
    """Uninstall and delete work, and then nothing is left of any zone."""
    for name, state in instance.states().items():
        if state != "configured":
            instance.run("uninstall", "-F", name, check=False)
    for name, state in instance.states().items():
        assert state == "configured", (name, state)
        if instance.layout.zonepath(name).exists():  # detached files are nobody's to remove
            instance.run("mark", "-F", name, "incomplete")
            instance.run("uninstall", "-F", name)
        instance.run("delete", "-F", name)
    for folder in (instance.layout.lib / "zones", instance.root / "elsewhere", instance.root / "third"):
        left = [path.name for path in folder.glob("*")] if folder.exists() else []
        assert left == [], (folder, left)
    shutil.rmtree(instance.root / "third", ignore_errors=True)
    assert not list((instance.layout.lib / "state").glob("*.journal"))
    assert not list((instance.layout.lib / "state").glob("*.json"))
    assert not [found for found in idranges._read(idranges.REGISTRY) if found.root == str(instance.root)]
    (instance.root / "web.tar").unlink(missing_ok=True)

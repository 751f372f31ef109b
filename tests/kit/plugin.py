"""The fixtures and marks of the kit, for tests/ and the tests of each brand."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.kit import leaks, probes
from tests.kit.debian import Debian
from tests.kit.debian import debian as make_debian
from tests.kit.instance import Instance
from tests.kit.isolation import Isolation
from tests.kit.nursery import Nursery, nursery
from zonemgr.store.paths import Layout
from zonemgr.wire import launch

CHECKED_FOLDERS: Final = frozenset(("root", "userns", "e2e", "brands"))
WARM_FOLDERS: Final = frozenset(("root",))
PLACE: Final = Path("/var/tmp")

NewInstance = Callable[[], Instance]


_ISOLATION: Final = pytest.StashKey[Isolation]()


def pytest_configure(config: pytest.Config) -> None:
    unknown = probes.unknown_musts()
    if unknown:
        raise pytest.UsageError(f"{probes.MUST_VARIABLE} names no probe: {' '.join(unknown)}")
    if _only_distributes(config):
        return
    os.environ[leaks.MARK_VARIABLE] = f"{os.getpid()}-{secrets.token_hex(4)}"
    # In the background of a script it is ignored, and so it would be by all that tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # below nohup(1): we survive it, what tests start hears it
        signal.signal(signal.SIGHUP, lambda _number, _frame: None)
    # No test finds itself helped, or a process left behind, by a launcher that an earlier command has started.
    os.environ.setdefault(launch.SWITCH, "no")
    if not any(probes.lacking(name) for name in ("root", "mount", "net")):
        config.stash[_ISOLATION] = Isolation()


def _only_distributes(config: pytest.Config) -> bool:
    """Whether the tests run in other processes (xdist's workers)."""
    return not hasattr(config, "workerinput") and bool(config.getoption("numprocesses", None))


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        for mark in item.iter_markers("requires"):
            for name in mark.args:
                if name not in probes.PROBES:
                    raise pytest.UsageError(f"{item.nodeid}: requires({name!r}) is no probe of tests/kit/probes.py")
    if hasattr(config, "workerinput"):
        _arrange(items)


def _arrange(items: list[pytest.Item]) -> None:
    """For parallel runs: what takes long begins first, and what shares something expensive stays together."""
    for item in items:
        group = _group(item)
        if group:
            item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def _group(item: pytest.Item) -> str:
    """The group of tests that one worker runs; empty for a test that may run anywhere."""
    if item.get_closest_marker("host"):
        return "host"  # two of them would see each other there
    if any("cpus" in mark.args for mark in item.iter_markers("requires")):
        return "cpus"  # each takes processors of the host for itself
    if item.get_closest_marker("long"):
        return ""
    definitions = getattr(item, "_fixtureinfo").name2fixturedefs.values()  # noqa: B009 - pytest has no other way
    shares = any(found[-1].scope in ("module", "package") for found in definitions)
    return str(item.path) if shares or not _is_of(item.config, item.path, CHECKED_FOLDERS) else ""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test marked ``host`` runs, with all its fixtures, in the host's namespaces."""
    isolation = item.config.stash.get(_ISOLATION, None)
    with isolation.host() if isolation and item.get_closest_marker("host") else contextlib.nullcontext():
        return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("requires"):
        for name in mark.args:
            why = probes.lacking(name)
            if why and probes.must(name):
                pytest.fail(f"this host must have {name}, but: {why}", pytrace=False)
            if why:
                pytest.skip(f"this host lacks {name}: {why}")


class Registry:
    """The instances of the test that runs."""

    def __init__(self, folders: tuple[Path, ...]) -> None:
        self.folders = folders
        self.instances: list[Instance] = []

    def add(self, instance: Instance) -> Instance:
        self.instances.append(instance)
        return instance

    def is_ours(self, suffix: str) -> bool:
        """Whether the suffix is of an instance of this test, one that it made by hand in its folder included."""
        roots = [instance.root for instance in self.instances]
        for folder in self.folders:
            roots += [folder, *(path for path in folder.glob("*") if path.is_dir())]
        return suffix in {Layout.at(root).suffix for root in roots}

    @property
    def places(self) -> tuple[Path, ...]:
        return (*self.folders, *(instance.root for instance in self.instances))


def _is_of(config: pytest.Config, path: Path, folders: frozenset[str]) -> bool:
    """Whether the file is below one of these folders of the project."""
    return path.is_relative_to(config.rootpath) and bool(folders & set(path.relative_to(config.rootpath).parts[:2]))


def _is_checked(request: pytest.FixtureRequest) -> bool:
    if not request.path.is_relative_to(request.config.rootpath):
        return False  # the conformance kit's suite, which looks after itself
    names = {"instance", "new_instance"} & set(request.fixturenames)
    return _is_of(request.config, request.path, CHECKED_FOLDERS) or bool(names)


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[Registry]:
    """Fails a test of tests/root, tests/userns, tests/e2e or a brand that leaves anything behind on the host."""
    if not _is_checked(request):
        yield Registry(())
        return
    if _is_warm(request):
        request.getfixturevalue("warm")  # it lives on after the test
    folders = (request.getfixturevalue("tmp_path"),) if "tmp_path" in request.fixturenames else ()
    registry = Registry(folders)
    host = request.node.get_closest_marker("host") is not None  # whose tables outlive this process
    before = leaks.look(registry.places, registry.is_ours, all_tables=host)
    yield registry
    problems = [f"cannot end: {line}" for instance in registry.instances for line in instance.close()]
    problems += leaks.left(before, registry.places, registry.is_ours, all_tables=host)
    for instance in registry.instances:
        instance.force()
    if problems:
        pytest.fail("left behind:\n  " + "\n  ".join(problems), pytrace=False)


def _is_warm(request: pytest.FixtureRequest) -> bool:
    """Whether commands are forks: they are in tests/root, which asks what happens and not how programs start."""
    cold = request.node.get_closest_marker("cold") is not None
    return not cold and _is_of(request.config, request.path, WARM_FOLDERS) and "new_instance" in request.fixturenames


@pytest.fixture
def new_instance(no_leaks: Registry, request: pytest.FixtureRequest) -> NewInstance:
    """Makes instances: ``one, other = new_instance(), new_instance()``.  All are ended after the test."""
    runner = request.getfixturevalue("warm") if _is_warm(request) else None

    def make() -> Instance:
        folder = Path(tempfile.mkdtemp(prefix="zonemgr-", dir=PLACE))
        folder.chmod(0o755)  # list works for everybody
        return no_leaks.add(Instance(folder, runner=runner))

    return make


@pytest.fixture
def instance(new_instance: NewInstance) -> Instance:
    """A fresh instance of zonemgr, ended after the test."""
    return new_instance()


@pytest.fixture(scope="session")
def debian() -> Iterator[Debian]:
    """A Debian zone that was installed once; for tests marked ``host``."""
    with make_debian(PLACE) as made:
        yield made


@pytest.fixture(scope="session")
def warm() -> Iterator[Nursery]:
    """A process whose forks are commands and supervisors: hundreds of them in one test are cheap."""
    with nursery() as new:
        yield new

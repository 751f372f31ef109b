"""The bench on which a brand is proved: an instance of zonemgr, a trace of the brand's hooks, a record of each step.

The brand is run under its own name, but as the base of a brand that notes each call and then passes it on, so nothing
of the brand has to be changed or to cooperate.  What is proved is in ``conformance_suite``.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import pytest

import zonemgr
from zonemgr.brandkit import contract, loader
from zonemgr.brandkit.base import BRAND_API, HOOKS, Brand
from zonemgr.errors import BrandError, ZoneError
from zonemgr.store import observe
from zonemgr.store.paths import ROOT_VARIABLE, Layout

PLACE: Final = Path("/var/tmp")  # a real file system, with room
DEMANDS_FILE: Final = "conformance.toml"
TIMEOUT_S: Final = 120.0
REPORT_VERSION: Final = 1
# Hooks whose absence means something (a built-in way), so they are traced only where the brand has them.
_OPTIONAL: Final = frozenset({"clone", "query", "presnap", "postsnap", "validatesnap"})
_UNTRACED: Final = frozenset({"init_program", "lacks"})


# -- what is proved -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Subject:
    """The brand.  ``base`` is how another brand names it; ``others`` are brands that it may be made from."""

    name: str
    brand: Brand
    folder: Path
    base: str
    given: bool  # its folder was given: it is copied, since it may be its author's to write
    others: tuple[Path, ...] = ()


def find(name: str, folder: Path | None) -> Subject:
    """The brand of this name, or in this folder.  Raises BrandError with one line."""
    host = Layout.at()
    drop_ins = host.etc / "brands"
    others = tuple(sorted(path for path in drop_ins.glob("*") if path.is_dir())) if drop_ins.is_dir() else ()
    if folder is not None:
        with tempfile.TemporaryDirectory(prefix="zonemgr-brand-", dir="/run") as place:
            brand = loader.load_folder(_copied(folder, Path(place)), host)
        if brand.name != name:
            raise BrandError("{folder} holds brand '{found}'", folder=folder, found=brand.name)
        return Subject(name, brand, folder, "", True, tuple(path for path in others if path.name != name))
    brand = loader.load(name, host)
    if brand.folder.parent == drop_ins:
        rest = tuple(path for path in others if path != brand.folder)
        return Subject(name, brand, brand.folder, str(brand.folder), False, rest)
    return Subject(name, brand, brand.folder, name, False, tuple(path for path in others if path.name != name))


def _copied(folder: Path, place: Path) -> Path:
    """A copy that is root's alone, as the loader wants it."""
    target = place / folder.name
    shutil.copytree(folder, target, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", ".git"))
    for path in (target, *target.rglob("*")):
        os.chown(path, 0, 0, follow_symlinks=False)
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & 0o7755)
    return target


@dataclass(frozen=True, slots=True)
class Demands:
    """What the brand needs to be proved."""

    prepare: tuple[str, ...] = ()
    install: tuple[str, ...] = ()
    config: tuple[str, ...] = ()
    timeout_s: float = TIMEOUT_S

    @classmethod
    def of(cls, folder: Path) -> Demands:
        """Those in the brand's folder.  Raises BrandError for a file that says something else."""
        path = folder / DEMANDS_FILE
        if not path.is_file():
            return cls()
        try:
            table = tomllib.loads(path.read_text())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise BrandError("{path}: {why}", path=path, why=error) from None
        known = cls.__dataclass_fields__
        for name, value in table.items():
            if name not in known:
                hint = contract.did_you_mean(name, known)
                raise BrandError("{path}: unknown key '{name}'{hint}", path=path, name=name, hint=hint)
            if name == "timeout_s" and isinstance(value, (int, float)):
                continue
            if not isinstance(value, list) or any(not isinstance(word, str) for word in value):
                raise BrandError("{path}: {name} is not a list of words", path=path, name=name)
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
        return cls(**values)

    def plus(self, install: Sequence[str], config: Sequence[str]) -> Demands:
        """With what the command line says: arguments replace those of the file, commands are added."""
        return replace(self, install=tuple(install) or self.install, config=(*self.config, *config))


# -- the trace --------------------------------------------------------------------------------------------------------

_TRACER: Final = '''"""Passes every hook on to the brand that is proved, and notes the call."""

import json
import os
from pathlib import Path

from zonemgr.brandkit import Brand

_ROOT = Path({root!r})


class Traced(Brand):
    base = {base!r}
    name = {name!r}

    def __init__(self, folder):
        super().__init__(Path({folder!r}))
{methods}
    def _note(self, hook, given, call):
        line = " ".join([hook, *(word for word in given if isinstance(word, str))])
        with open(_ROOT / "trace", "a") as trace:
            trace.write(line + "\\n")
        orders = json.loads((_ROOT / "orders").read_text())
        if orders.get(line) == "fail":
            print("the conformance kit lets " + line + " fail")
            return 1
        if orders.get(line) == "again":
            status = _in_child(call, given)
            if status:
                return status
        return call(*given)


def _in_child(call, given):
    """A hook may become a program: then only a process of its own comes back."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = call(*given) or 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
'''
_METHOD: Final = """
    def {hook}(self, {parameters}):
        return self._note("{hook}", ({parameters},), super().{hook})
"""


def _tracer(subject: Subject, root: Path, base: str, folder: Path) -> str:
    hooks = [hook for hook in HOOKS if hook not in _UNTRACED]
    hooks = [hook for hook in hooks if hook not in _OPTIONAL or subject.brand.overrides(hook)]
    methods = []
    for hook in hooks:
        code = getattr(Brand, hook).__code__
        methods.append(_METHOD.format(hook=hook, parameters=", ".join(code.co_varnames[1 : code.co_argcount])))
    return _TRACER.format(
        root=str(root), base=base, name=subject.name, folder=str(folder), methods="".join(methods)
    )


# -- the bench --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Step:
    """One thing that was to be proved."""

    name: str
    result: str = "not run"  # passed, failed, refused (the host cannot) or not run
    why: str = ""
    seconds: float = 0.0
    hooks: list[str] = field(default_factory=list)


class Bench:
    """The instance, and what became of each step."""

    def __init__(self, subject: Subject, demands: Demands, report: Path) -> None:
        self.subject = subject
        self.demands = demands
        self.report = report
        self.steps: list[Step] = []
        self.root = Path()
        self.layout = Layout.at()

    def open(self) -> None:
        """Make the instance and put the tracing brand into it."""
        self.root = Path(tempfile.mkdtemp(prefix="zonemgr-conformance-", dir=PLACE))
        self.root.chmod(0o755)
        self.layout = Layout.at(self.root)
        brands = self.layout.etc / "brands"
        brands.mkdir(parents=True)
        (self.root / "work").mkdir()
        (self.root / "trace").touch()
        self.order()
        subject, base, folder = self.subject, self.subject.base, self.subject.folder
        if subject.given:
            folder = _copied(subject.folder, self.root)
            base = str(folder)
        for other in subject.others:
            (brands / other.name).symlink_to(other)
        (brands / subject.name).mkdir()
        (brands / subject.name / loader.FILE).write_text(_tracer(subject, self.root, base, folder))
        if self.demands.prepare:
            subprocess.run(self.filled(self.demands.prepare), check=True, timeout=self.demands.timeout_s)

    def close(self) -> None:
        """End what still lives, and remove the instance."""
        for name, state in self.states().items():
            if state not in ("configured", "incomplete", "installed"):
                self.zonemgr("unmount" if state == "mounted" else "halt", name, check=False)
        self.remove_network()
        if not self.mounts():  # otherwise we would delete what is mounted
            shutil.rmtree(self.root, ignore_errors=True)

    def remove_network(self) -> None:
        """The instance's own tables and bridge, if it has made any: they are kept for a next zone, and none comes."""
        from zonemgr.linux import netlink, nft

        nft.delete_tables(f"zonemgr{self.layout.suffix}")
        bridge = f"zbr0{self.layout.suffix}"
        if Path("/sys/class/net", bridge).exists():
            netlink.delete_link(bridge)

    def filled(self, words: Sequence[str]) -> list[str]:
        """Demands with their placeholders filled in."""
        known = {"{data}": str(self.subject.folder), "{work}": str(self.root / "work")}
        return [word.replace("{data}", known["{data}"]).replace("{work}", known["{work}"]) for word in words]

    # -- commands and what they show --------------------------------------------------------------------------------

    def zonemgr(self, *words: str, check: bool = True, timeout_s: float = 0) -> subprocess.CompletedProcess[str]:
        """Run ``zonemgr WORDS`` in the instance; unless ``check`` is False it has to work."""
        home = str(Path(zonemgr.__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        done = subprocess.run(
            [sys.executable, "-m", "zonemgr", *words],
            env={**kept, ROOT_VARIABLE: str(self.root), "PYTHONPATH": path, "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=timeout_s or self.demands.timeout_s,
        )
        if check and done.returncode:
            pytest.fail(f"zonemgr {' '.join(words)}: status {done.returncode}: {_last(done)}", pytrace=False)
        return done

    def has_verb(self, verb: str) -> bool:
        """Whether this zonemgr has the verb."""
        return self.zonemgr(verb, "--help", check=False).returncode == 0

    def states(self) -> dict[str, str]:
        """Zone -> state, without the global zone."""
        return {seen.zonename: seen.state.label for seen in observe.all_zones(self.layout)}

    def state(self, name: str = "proof") -> str:
        """The zone's state; empty when it is not configured."""
        return self.states().get(name, "")

    def zonepath(self, name: str = "proof") -> Path:
        return self.layout.zonepath(name)

    def mounts(self) -> list[str]:
        """What is mounted below the instance."""
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        return [point for point in points if point.startswith(f"{self.root}/")]

    def cgroups(self) -> list[str]:
        """Control groups of the instance's that are still there."""
        from zonemgr.linux.cgroup import detect

        found = detect()
        roots = [*found.v1_mounts, *([found.cg2] if found.cg2 else [])]
        folders = [root / f"zonemgr{self.layout.suffix}" for root in roots]
        return [str(folder) for folder in folders if folder.exists()]

    # -- hooks ------------------------------------------------------------------------------------------------------

    def order(self, orders: Mapping[str, str] | None = None) -> None:
        """What hooks do from now on: ``{"boot": "fail"}``, ``{"post_statechange running halt": "again"}``."""
        (self.root / "orders").write_text(json.dumps(dict(orders or {})))

    def trace(self) -> list[str]:
        """The hooks that were called since the last time, the questions (verify and its kind) left out."""
        file = self.root / "trace"
        lines = file.read_text().splitlines()
        file.write_text("")
        if self.steps:
            self.steps[-1].hooks += lines
        return [line for line in lines if not line.startswith(("verify", "query"))]

    # -- steps ------------------------------------------------------------------------------------------------------

    @contextmanager
    def step(self, name: str, *needs: str) -> Iterator[Step]:
        """Record what becomes of a step.  It is not run unless all that it needs has passed."""
        step = Step(name)
        self.steps.append(step)
        begun = time.monotonic()
        try:
            self._check_needs(needs)
            self.trace()
            step.hooks.clear()
            yield step
            step.result = "passed"
        except pytest.skip.Exception as skipped:
            step.why = str(skipped.msg)
            if step.result != "refused":
                step.result = "not run"
            raise
        except BaseException as error:
            step.result, step.why = "failed", _first_line(error)
            raise
        finally:
            step.seconds = round(time.monotonic() - begun, 3)
            self.order()

    def _check_needs(self, needs: Sequence[str]) -> None:
        passed = {step.name for step in self.steps if step.result == "passed"}
        for need in needs:
            if need not in passed:
                pytest.skip(f"needs {need}, which has not passed")

    @property
    def result(self) -> str:
        """passed; failed; refused, when the host cannot run the brand; incomplete, when something was not run."""
        results = {step.result for step in self.steps}
        for name, result in (("failed", "failed"), ("refused", "refused"), ("not run", "incomplete")):
            if name in results:
                return result
        return "passed"

    def write_report(self) -> None:
        """The report, as JSON."""
        brand = self.subject.brand
        table: dict[str, Any] = {
            "report": REPORT_VERSION,
            "brand": self.subject.name,
            "version": brand.version,
            "api": BRAND_API,
            "folder": str(self.subject.folder),
            "zonemgr": zonemgr.__version__,
            "kernel": platform.release(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "result": self.result,
            "steps": [asdict(step) for step in self.steps],
        }
        self.report.write_text(json.dumps(table, indent=2) + "\n")


def _last(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr or done.stdout).strip().splitlines()
    return " / ".join(lines[-6:])


def _first_line(error: BaseException) -> str:
    text = error.text if isinstance(error, ZoneError) else str(getattr(error, "msg", None) or error)
    return (text.strip().splitlines() or [type(error).__name__])[0][:500]

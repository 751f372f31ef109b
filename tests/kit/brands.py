"""Drop-in brands for tests: native zones whose hooks write down that they were called and do what a script says.

The script is a file beside the brand, so that it changes between two calls of a living supervisor.  A call is named by
its words: ``pre installed boot``, ``post running halt``, ``boot``, ``halt``, ``install``.  What it may do:

* ``fail``             return exit status 1 (``exit N`` any other)
* ``say TEXT``         print the text, then go on
* ``raise TEXT``       raise an exception
* ``die N``            end by signal N
* ``wait PATH``        print ``waiting``, then wait until a writer opens and closes the fifo at PATH
* ``run WORDS``        run a shell command with the zonemgr of this instance as ``$ZONEMGR``; its status is the hook's
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Final

from tests.kit.instance import CHECKOUT, Instance
from zonemgr.brandkit.loader import shipped_folder

_BRAND: Final = '''
"""A native zone that tells what happens to it."""
import json, os, shlex, signal, subprocess, sys
from zonemgr.brandkit import loader
from zonemgr.store.paths import Layout

_Native = type(loader.load("native", Layout.at("/")))


class Traced(_Native):
    name = {name!r}
    {declarations}

    def install(self, zone, arguments):
        super().install(zone, arguments)
        return self._hook(zone, "install")

    def pre_statechange(self, zone, state, command):
        return self._hook(zone, "pre", state, command)

    def post_statechange(self, zone, state, command):
        return self._hook(zone, "post", state, command)

    def boot(self, zone):
        return self._hook(zone, "boot")

    def halt(self, zone):
        return self._hook(zone, "halt")

    def _hook(self, zone, *words):
        call = " ".join(words)
        with open(self.folder / "trace", "a") as file:
            file.write(call + "\\n")
        action, _, rest = json.loads((self.folder / "script").read_text()).get(call, "").partition(" ")
        if action == "fail":
            return 1
        if action == "exit":
            return int(rest)
        if action == "say":
            print(rest)
        if action == "raise":
            raise RuntimeError(rest)
        if action == "die":
            os.kill(os.getpid(), int(rest))
        if action == "wait":
            print("waiting")
            open(rest).read()
        if action == "run":
            words = [sys.executable, "-m", "zonemgr", "--root", zone.layout_root]
            env = dict(os.environ, ZONEMGR=shlex.join(words), PYTHONPATH={checkout!r})
            return subprocess.run(rest, shell=True, env=env).returncode
'''


class Traced:
    """A brand of an instance; ``trace`` reads what was called since the last time."""

    def __init__(self, instance: Instance, name: str = "traced", declarations: str = "") -> None:
        self.name = name
        self.folder = instance.layout.etc / "brands" / name
        self.folder.mkdir(mode=0o755, parents=True)
        shutil.copy(shipped_folder() / "native/init", self.folder / "init")
        text = _BRAND.format(name=name, declarations=declarations or "version = '1'", checkout=str(CHECKOUT))
        (self.folder / "brand.py").write_text(text)
        self.script()
        self._trace.touch()

    @property
    def _trace(self) -> Path:
        return self.folder / "trace"

    def script(self, actions: dict[str, str] | None = None) -> None:
        """What the calls do from now on."""
        (self.folder / "script").write_text(json.dumps(actions or {}))

    def trace(self) -> list[str]:
        """The calls since the last time."""
        calls = self._trace.read_text().splitlines()
        self._trace.write_text("")
        return calls

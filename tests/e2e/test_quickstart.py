"""README's first command, run with zonemgr from a wheel in a clean virtual environment."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.kit.instance import CHECKOUT, Instance
from tests.kit.processes import Started
from tests.kit.wheels import build, install

pytestmark = pytest.mark.requires("root", "userns", "mount", "net", "cgroup")

SCRIPT = CHECKOUT / "contrib/quickstart"
DEADLINE_S = 180


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``zonemgr`` of the clean environment."""
    folder = tmp_path_factory.mktemp("clean")
    return install(build(folder), folder / "venv") / "zonemgr"


@pytest.fixture
def env(instance: Instance, command: Path) -> dict[str, str]:
    """No checkout is in reach of the program."""
    instance.command = (str(command),)
    return {
        **{name: value for name, value in instance.env.items() if name != "PYTHONPATH"},
        "ZONEMGR_COMMAND": str(command),
    }


def quickstart(env: dict[str, str], *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [SCRIPT, *arguments],
        env=env,
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == status, f"{done.stdout}{done.stderr}"
    return done


def test_the_program_and_its_brands_come_from_the_wheel(env: dict[str, str], command: Path) -> None:
    words = [str(command.with_name("python")), "-I", "-c", "import zonemgr; print(zonemgr.__file__)"]
    place = subprocess.run(words, env=env, cwd="/", capture_output=True, text=True, check=True).stdout.strip()
    assert str(command.parent.parent) in place
    brands = subprocess.run([command, "brands"], env=env, cwd="/", capture_output=True, text=True, check=True)
    assert re.search(
        rf"^native .* shipped +ok +{Path(place).parent}/brands/native/", brands.stdout, re.MULTILINE
    )


def test_the_quick_start_shows_a_zone_that_lives_and_removes_it(
    env: dict[str, str], instance: Instance
) -> None:
    output = quickstart(env).stdout
    assert re.search(r"^ +\d+ demo +running ", output, re.MULTILINE)
    assert "# zonemgr login demo -- hostname\ndemo\n" in output
    assert "uid=0(root) gid=0(root)" in output
    assert "hello from zone demo, process 1 is" in output
    assert instance.states() == {}


def test_a_zone_kept_by_the_quick_start_is_replaced_by_its_next_run(
    env: dict[str, str], instance: Instance
) -> None:
    quickstart(env, "--keep")
    assert instance.states() == {"demo": "running"}
    assert "The zone of an earlier run goes first." in quickstart(env).stdout
    assert instance.states() == {}


def test_the_quick_start_leaves_a_zone_of_that_name_alone(env: dict[str, str], instance: Instance) -> None:
    instance.run("create", "demo", "bootargs=-m verbose")
    refusal = quickstart(env, status=1)
    assert "there is a zone 'demo' that is not of this script" in refusal.stderr
    assert "-m verbose" in instance.run("config", "demo", "info").stdout


def test_an_interrupted_quick_start_can_be_run_again(env: dict[str, str], instance: Instance) -> None:
    with Started(
        [SCRIPT],
        env=env,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    ) as script:
        assert script.stdout
        for line in script.stdout:
            if line.startswith("# zonemgr boot"):
                os.killpg(script.pid, signal.SIGKILL)
                break
    assert list(instance.states()) == ["demo"]
    quickstart(env)
    assert instance.states() == {}

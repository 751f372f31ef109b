"""Entering a zone whose guest has handed cgroup controllers down, as systemd does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kit.controllers import handing_down
from tests.kit.instance import Instance
from zonemgr.linux.cgroup import ZoneCgroup, detect

pytestmark = pytest.mark.requires("root", "userns", "net", "cgroup")

INSIDE = """
set -e
mkdir /sys/fs/cgroup/leaf
for pid in $(cat /sys/fs/cgroup/cgroup.procs); do echo $pid >/sys/fs/cgroup/leaf/cgroup.procs || true; done
echo +{controller} >/sys/fs/cgroup/cgroup.subtree_control
"""


def a_controller() -> str:
    """One that forbids processes in folders that hand it down."""
    have = (detect().unified() / "cgroup.controllers").read_text().split()
    for name in ("memory", "hugetlb", "io"):
        if name in have:
            return name
    pytest.fail("cgroup2 has no controller on this host")


@pytest.fixture
def handed_down(instance: Instance) -> Iterator[str]:
    """A running zone to which the host has handed a controller down; taken back from the host's root afterwards."""
    instance.running("web")
    controller = a_controller()
    cgroup = ZoneCgroup(detect(), "zonemgr" + instance.suffix, "web")
    with handing_down():
        assert cgroup.enable(controller)
        yield controller
        instance.run("halt", "web")


def test_login_is_born_in_a_leaf_once_controllers_are_handed_down(
    instance: Instance, handed_down: str
) -> None:
    instance.login("web", "sh", "-c", INSIDE.format(controller=handed_down))
    where = instance.login("web", "sh", "-c", "grep ^0:: /proc/self/cgroup").strip()
    assert where == "0::/zlogin"
    assert instance.login("web", "sh", "-c", "exit 3", check=3) == ""

"""The supervisor's loop."""

from __future__ import annotations

import os

import pytest

from zonemgr.supervisor.loop import Loop


@pytest.mark.parametrize("seconds", [30 * 86400, 1e14])
def test_a_deadline_may_be_far_away(seconds: float) -> None:
    loop = Loop(pytest.fail)
    read_fd, write_fd = os.pipe()
    try:
        loop.watch(read_fd, lambda _events: loop.stop())
        loop.after(seconds, pytest.fail)
        os.write(write_fd, b"x")
        loop.run()
    finally:
        os.close(read_fd)
        os.close(write_fd)

"""Waiting for what happens in another process: until it is so, with a deadline, never for a length of time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final, TypeVar

Value = TypeVar("Value")

# How many times longer than usual everything may take: an emulated machine (contrib/vm) is that slow.
PATIENCE: Final = float(os.environ.get("ZONEMGR_PATIENCE", "1"))
DEADLINE_S = 30.0
_PAUSE_S = 0.01


def until(condition: Callable[[], Value], what: str, *, deadline_s: float = DEADLINE_S) -> Value:
    """The first true value of ``condition``; AssertionError "``what`` did not happen" after ``deadline_s``.

    For what announces itself by no descriptor; where there is one, select on it instead.
    """
    end = time.monotonic() + deadline_s * PATIENCE
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not happen within {deadline_s:g} s (last seen: {value!r})")
        time.sleep(_PAUSE_S)

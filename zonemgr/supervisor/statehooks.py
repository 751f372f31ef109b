"""The brand's hooks around the steps of a transition (reference 2.1), each with the names of the state at the request's
arrival and of the command."""

from __future__ import annotations

from collections.abc import Callable

from zonemgr.brandkit import hooks
from zonemgr.brandkit.base import ZoneInfo
from zonemgr.errors import ZoneError
from zonemgr.model.states import Command, State
from zonemgr.supervisor.transition import Transition


class HookFailed(ZoneError):
    """A hook refused; its own words have already been passed on."""


def run(transition: Transition, name: str, call: Callable[[ZoneInfo], int | None]) -> None:
    """Run a brand method as a hook.  HookFailed unless it returns zero; its output goes to the requester."""
    if not transition.brand.overrides(name):
        return
    info = transition.info()
    full_name = f"brand '{transition.brand.name}' {name}"
    spoke = False

    def say(text: str) -> None:
        nonlocal spoke
        spoke = True
        transition.say(text)

    status = hooks.run_hook(
        lambda: call(info),
        name=full_name,
        zone=info,
        deadline_s=transition.settings.hook_s,
        say=say,
    )
    if status != 0 and spoke:
        raise HookFailed("{name} failed", name=full_name)
    if status != 0:
        raise ZoneError("{name} failed with exit status {status}", name=full_name, status=status)


def pre(transition: Transition, state: State, command: Command) -> None:
    """The hook before a step."""
    run(
        transition,
        "pre_statechange",
        lambda info: transition.brand.pre_statechange(info, state.label, command.value),
    )


def post(transition: Transition, state: State, command: Command) -> None:
    """The hook after a step."""
    run(
        transition,
        "post_statechange",
        lambda info: transition.brand.post_statechange(info, state.label, command.value),
    )


def post_ignored(transition: Transition, state: State, command: Command) -> None:
    """The hook after a failure: its own failure changes nothing."""
    try:
        post(transition, state, command)
    except ZoneError:
        return  # the first failure is what the caller hears of

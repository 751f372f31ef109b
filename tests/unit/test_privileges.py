"""limitpriv (reference, sections 3.1 and 7.5)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zonemgr.capnames import RIGHTS
from zonemgr.errors import ConfigError
from zonemgr.linux import seccomp
from zonemgr.model import privileges
from zonemgr.model.checks import Refused
from zonemgr.model.privileges import ALL_CAPABILITIES, DEFAULT_CAPABILITIES, REQUIRED_RIGHTS, SOLARIS

NONE: frozenset[str] = frozenset()


def evaluate(limitpriv: str, required: frozenset[str] = NONE, prohibited: frozenset[str] = NONE) -> frozenset[str]:
    return privileges.capabilities(
        limitpriv, default=DEFAULT_CAPABILITIES, required=required, prohibited=prohibited
    ).capabilities


def test_the_empty_text_is_the_default_set() -> None:
    assert evaluate("") == evaluate("default") == DEFAULT_CAPABILITIES


def test_the_default_set_reaches_neither_kernel_nor_clock_of_the_host() -> None:
    assert not DEFAULT_CAPABILITIES & {"sys_module", "sys_rawio", "sys_time", "bpf", "syslog", "mac_admin"}
    assert {"sys_boot", "sys_admin", "mknod", "net_admin"} <= DEFAULT_CAPABILITIES


@pytest.mark.parametrize("token", ["!net_raw", "-net_raw", "!NET_RAW", "!cap_net_raw", "!net_rawaccess"])
def test_a_privilege_is_removed_by_any_of_its_names(token: str) -> None:
    assert evaluate(f"default,{token}") == DEFAULT_CAPABILITIES - {"net_raw"}


def test_a_list_without_default_starts_from_nothing() -> None:
    assert evaluate("kill,proc_setid") == {"kill", "setuid", "setgid"}


def test_later_words_win() -> None:
    assert "net_raw" in evaluate("default,!net_raw,net_raw")


def test_names_without_a_linux_counterpart_are_reported() -> None:
    found = privileges.capabilities(
        "default,dtrace_user,!win_config", default=DEFAULT_CAPABILITIES, required=NONE, prohibited=NONE
    )
    assert found.ignored == ("dtrace_user", "!win_config")
    assert found.capabilities == DEFAULT_CAPABILITIES


def test_required_prohibited_and_unknown_privileges_are_refused_in_the_reference_s_words() -> None:
    with pytest.raises(ConfigError) as caught:
        evaluate("default,!kill", required=frozenset({"kill"}))
    assert caught.value.text == 'required privilege "kill" is missing from the zone\'s privilege set'
    with pytest.raises(ConfigError) as caught:
        evaluate("default,sys_module", prohibited=frozenset({"sys_module"}))
    assert caught.value.text == 'privilege "sys_module" is not permitted within the zone\'s privilege set'
    with pytest.raises(ConfigError) as caught:
        evaluate("default,fly")
    assert caught.value.text == 'unknown privilege "fly" specified in the zone\'s privilege set'


@pytest.mark.parametrize("text", ["net_raw,default", "!default", "default,zone", "zone", "default,,kill", "nett_raw"])
def test_bad_lists_are_refused_when_they_are_written(text: str) -> None:
    with pytest.raises(Refused):
        privileges.check_names(text)


def test_an_unknown_name_is_told_its_neighbour() -> None:
    with pytest.raises(Refused, match="did you mean 'net_raw'"):
        privileges.check_names("default,!net_rw")


def test_rights_of_every_process_are_had_until_they_are_taken_away() -> None:
    def denied(limitpriv: str) -> frozenset[str]:
        return privileges.capabilities(
            limitpriv, default=DEFAULT_CAPABILITIES, required=NONE, prohibited=NONE
        ).denied

    assert denied("") == denied("default,net_access") == denied("kill,proc_setid") == NONE
    assert denied("default,!net_access") == {"net_access"}
    assert denied("default,!net_observability,net_observability") == NONE
    with pytest.raises(ConfigError) as caught:
        denied("default,!basic")
    assert caught.value.text == 'required privilege "proc_exec" is missing from the zone\'s privilege set'


def test_the_filter_knows_every_right_and_capabilities_that_exist() -> None:
    assert set(seccomp.RIGHTS) == set(RIGHTS)
    assert set(RIGHTS) <= set(SOLARIS)
    assert set(seccomp._WITH_CAPABILITY) <= ALL_CAPABILITIES


def test_every_solaris_name_stands_for_known_capabilities() -> None:
    assert frozenset().union(*SOLARIS.values()) <= ALL_CAPABILITIES


@given(
    st.lists(st.sampled_from(sorted((ALL_CAPABILITIES | set(SOLARIS)) - REQUIRED_RIGHTS))), st.booleans()
)
def test_a_removed_privilege_is_never_granted(names: list[str], default: bool) -> None:
    text = ",".join((["default"] if default else ["basic"]) + [f"!{name}" for name in names])
    gone = privileges.expand(frozenset(names))
    assert not evaluate(text) & gone
    assert evaluate(text) <= ALL_CAPABILITIES

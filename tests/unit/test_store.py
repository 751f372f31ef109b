"""Files, locks, entries, id ranges, ids, settings and events, on a real file system."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from zonemgr.errors import BusyError, ConfigError, InternalError, NoSuchZoneError, PlatformError
from zonemgr.model.states import State
from zonemgr.store import events, files, idranges, settings, zoneids, zones
from zonemgr.store.locks import FileLock
from zonemgr.store.paths import Layout


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.at(tmp_path / "root")


def configure(layout: Layout, name: str, text: str = "") -> None:
    path = layout.config(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_file_is_replaced_whole_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.write_atomic(path, "one", 0o640)
    files.write_atomic(path, b"two", 0o600)
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o7777 == 0o600
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_keeps_the_old_content_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """In a mount namespace of its own, on a tmpfs of 64 KiB."""
    program = """
import os, sys
from pathlib import Path
from zonemgr.errors import PlatformError
from zonemgr.store import files
path = Path(sys.argv[1]) / "file"
files.write_atomic(path, "precious")
try:
    files.write_atomic(path, b"x" * (1 << 20))
except PlatformError as error:
    print(error.text)
print(path.read_text(), os.listdir(path.parent))
"""
    shell = f'mount -t tmpfs -o size=64k none "$0" && exec {sys.executable} -c "$1" "$0"'
    command = ["unshare", "-m", "sh", "-c", shell, str(tmp_path), program]
    if os.geteuid() != 0:
        pytest.skip("needs root")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, cwd=Path.cwd())
    expected = f"cannot write {tmp_path}/file: No space left on device (the old content is kept)"
    assert done.stdout.splitlines() == [expected, "precious ['file']"]


def test_damaged_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    assert files.read_json(path) is None
    for content in (b"{", b"[]", b"\xff"):
        path.write_bytes(content)
        with pytest.raises(PlatformError, match="state.json is damaged"):
            files.read_json(path)


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 11)
    with pytest.raises(PlatformError, match="larger than 10 bytes"):
        files.read_bytes(path, 10)


def test_a_lock_excludes_and_is_given_back(tmp_path: Path) -> None:
    one, two = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock", busy="somebody is at it", deadline_s=0)
    with one:
        assert not two.acquire(blocking=False)
        with pytest.raises(BusyError, match="somebody is at it"), two:
            pass
    assert two.acquire(blocking=False)
    two.release()
    assert not two.held


def test_a_lock_on_a_removed_file_is_not_taken_for_the_real_one(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder, waiter = FileLock(path), FileLock(path)
    holder.acquire()
    taken = threading.Event()

    def wait() -> None:
        waiter.acquire()
        taken.set()

    thread = threading.Thread(target=wait)
    thread.start()
    path.unlink()
    holder.release()
    assert taken.wait(10)
    thread.join()
    assert os.path.samestat(path.stat(), os.fstat(waiter.fileno()))
    waiter.release()


def test_the_lock_s_descriptor_is_not_inherited(tmp_path: Path) -> None:
    with FileLock(tmp_path / "lock") as lock:
        assert not os.get_inheritable(lock.fileno())


@pytest.mark.parametrize(
    "name", ["global", "SUNWx", "SYSx", "-web", ".web", "a" * 64, "we b", "a/b", "..", "", "a\n", "wéb"]
)
def test_bad_zone_names_are_refused(name: str, layout: Layout) -> None:
    with pytest.raises(ConfigError, match="Bogus zone name"):
        zones.check_name(name)
    with pytest.raises(NoSuchZoneError):
        zones.load(layout, name)


def test_good_zone_names_are_taken() -> None:
    for name in ("w", "0", "web-1.example_org", "a" * 63):
        zones.check_name(name)


def test_zones_are_listed_by_name_and_strange_files_are_passed_over(layout: Layout) -> None:
    assert zones.names(layout) == []
    for name in ("web", "db", "global", ".web.toml.7.tmp"):
        configure(layout, name)
    (layout.config("web").parent / "notes.txt").write_text("")
    assert zones.names(layout) == ["db", "web"]


def test_an_unknown_zone_is_named(layout: Layout) -> None:
    for action in (zones.load, zones.read_entry):
        with pytest.raises(NoSuchZoneError, match="web: No such zone configured"):
            action(layout, "web")


def test_the_default_zonepath_is_in_the_instance(layout: Layout) -> None:
    configure(layout, "web")
    assert zones.load(layout, "web").zonepath == str(layout.lib / "zones/web")


def test_uuids_follow_the_state(layout: Layout) -> None:
    configure(layout, "web", 'brand = "debian"\n')
    assert zones.read_entry(layout, "web").uuid == ""
    first = zones.set_state(layout, "web", State.INCOMPLETE).uuid
    assert len(first) == 36
    assert zones.set_state(layout, "web", State.INSTALLED).uuid == first
    second = zones.set_state(layout, "web", State.INCOMPLETE).uuid
    assert second not in ("", first)
    assert zones.set_state(layout, "web", State.CONFIGURED).uuid == ""
    attached = zones.set_state(layout, "web", State.INSTALLED)
    assert attached.uuid not in ("", second)
    assert zones.read_entry(layout, "web") == attached
    assert attached.brand == "debian"


def test_live_states_are_never_written(layout: Layout) -> None:
    configure(layout, "web")
    with pytest.raises(InternalError):
        zones.set_state(layout, "web", State.RUNNING)


def test_a_zone_whose_file_is_broken_or_gone_is_still_listed_while_it_is_installed(layout: Layout) -> None:
    configure(layout, "web", 'brand = "debian"\nzonepath = "/zones/web"\n')
    zones.set_state(layout, "web", State.INSTALLED)
    zones.update_entry(layout, "web", uid_base=524288)
    layout.config("web").write_text("nonsense")
    assert zones.read_entry(layout, "web").brand == "debian"
    layout.config("web").unlink()
    entry = zones.read_entry(layout, "web")
    assert zones.names(layout) == ["web"]
    assert (entry.state, entry.zonepath, entry.uid_base) == (State.INSTALLED, "/zones/web", 524288)
    zones.forget_entry(layout, "web")
    assert zones.names(layout) == []


def test_a_damaged_entry_is_named(layout: Layout) -> None:
    configure(layout, "web")
    zones.set_state(layout, "web", State.INSTALLED)
    for content in ('{"state": "flying"}', '{"state": 3}', "{}", '{"state": "installed", "uid_base": "x"}'):
        layout.state("web").write_text(content)
        with pytest.raises(PlatformError, match="web.json is damaged"):
            zones.read_entry(layout, "web")


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_what_lies_in_place_of_a_zones_file_is_refused_at_once(layout: Layout, kind: str) -> None:
    """Nobody waits for a writer that never comes; what the record says still counts."""
    configure(layout, "web", 'brand = "debian"\n')
    zones.set_state(layout, "web", State.INSTALLED)
    record = layout.state("web").read_bytes()
    for path in (layout.config("web"), layout.state("web")):
        before = path.read_bytes()
        path.unlink()
        if kind == "device":
            path.symlink_to("/dev/zero")
        else:
            {"fifo": os.mkfifo, "folder": os.mkdir}[kind](path)
        program = (
            "import sys; from pathlib import Path; from zonemgr.store import files; files.read_bytes(Path(sys.argv[1]))"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=20, cwd=Path.cwd()
        )
        assert f"{path} is not a regular file" in done.stderr
        (os.rmdir if kind == "folder" else os.unlink)(path)
        path.write_bytes(before)
    assert layout.state("web").read_bytes() == record


def test_id_ranges_are_multiples_kept_reused_and_unique_across_instances(tmp_path: Path) -> None:
    registry = tmp_path / "idranges.json"
    here, there = Layout.at(tmp_path / "here"), Layout.at(tmp_path / "there")
    for layout, name in ((here, "web"), (here, "db"), (there, "web")):
        configure(layout, name)
        zones.set_state(layout, name, State.INCOMPLETE)

    def allocate(layout: Layout, name: str) -> int:
        return idranges.allocate(layout, name, "uuid", registry=registry, subordinate_files=())

    assert [allocate(here, "web"), allocate(here, "db"), allocate(there, "web")] == [524288, 589824, 655360]
    assert allocate(here, "db") == 589824
    idranges.release(here, "web", registry=registry)
    idranges.release(here, "web", registry=registry)
    assert allocate(here, "web") == 524288
    zones.forget_entry(here, "db")
    zones.forget_entry(here, "web")
    assert allocate(there, "web") == 655360
    assert [item["zonename"] for item in json.loads(registry.read_text())["ranges"]] == ["web"]


def test_ranges_that_subuid_gives_away_are_passed_over(tmp_path: Path, layout: Layout) -> None:
    subuid = tmp_path / "subuid"
    subuid.write_text("joe:524000:1000\nnonsense\n# x\nann:700000:1\n")
    registry = tmp_path / "idranges.json"
    base = idranges.allocate(layout, "web", "", registry=registry, subordinate_files=[subuid, tmp_path / "none"])
    assert base == 589824


def test_zone_ids_grow_wrap_and_pass_over_those_in_use(layout: Layout) -> None:
    assert [zoneids.next_id(layout) for _ in range(3)] == [1, 2, 3]
    record = layout.run / "ids.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "last": 9998}))
    assert [zoneids.next_id(layout, {1, 2}), zoneids.next_id(layout, {1, 2})] == [9999, 3]
    record.write_text(json.dumps({"boot_id": "another boot", "last": 77}))
    assert zoneids.next_id(layout) == 1


def test_settings_have_defaults_and_a_relocated_instance_a_bridge_of_its_own(layout: Layout) -> None:
    host = settings.load(Layout(Path("/nonexistent")))
    assert settings.default_addresses(Layout(Path("/"))) == ("10.91.0.1/20", "fd91::1/64")
    assert (host.hook_s, host.kill_s, host.transition_s, host.shutdown_s) == (120, 30, 600, 60)
    found = settings.load(layout)
    assert found.bridge == "zbr0" + layout.suffix
    assert len(found.bridge) <= 15
    assert found.bridge_address != host.bridge_address


def test_wrong_settings_are_named_with_file_line_and_neighbour(layout: Layout) -> None:
    layout.settings.parent.mkdir(parents=True)
    layout.settings.write_text('bridge = "br0"\nhook-s = 5\nbridge-address = "10.9.0.1/16"\n')
    found = settings.load(layout)
    assert (found.bridge, found.hook_s, found.bridge_address) == ("br0", 5, ("10.9.0.1/16",))
    for text, expected in [
        ("bridg = 1", f"{layout.settings}: line 1: unknown setting 'bridg' (did you mean 'bridge'?)"),
        ("\nhook-s = 0", f"{layout.settings}: line 2: hook-s property is out of range."),
    ]:
        layout.settings.write_text(text)
        with pytest.raises(ConfigError) as caught:
            settings.load(layout)
        assert caught.value.text == expected


def test_events_are_followed_across_rotation_and_none_is_lost(layout: Layout) -> None:
    follower = events.Follower(layout)
    assert follower.poll() == []
    for number in range(50):
        events.publish(layout, {"type": "test", "number": number}, limit_bytes=1000)
        assert [event["number"] for event in follower.poll()] == [number]
    follower.close()
    numbers = [event["number"] for event in events.recorded(layout)]
    assert numbers[-1] == 49
    assert numbers == sorted(numbers)
    assert events.events_path(layout).stat().st_size <= 1000


def test_an_event_that_is_too_large_is_cut_to_its_name(layout: Layout) -> None:
    events.publish(layout, {"type": "state", "zonename": "web", "text": "x" * 20000})
    (event,) = events.recorded(layout)
    assert (event["type"], event["zonename"], event["truncated"]) == ("state", "web", True)


def test_a_late_follower_starts_at_the_end_unless_it_asks_for_all(layout: Layout) -> None:
    events.publish(layout, {"type": "old"})
    late, thorough = events.Follower(layout), events.Follower(layout, from_start=True)
    events.publish(layout, {"type": "new"})
    assert [event["type"] for event in late.poll()] == ["new"]
    assert [event["type"] for event in thorough.poll()] == ["old", "new"]
    late.close()
    thorough.close()


def test_followers_are_woken_by_what_is_published(layout: Layout) -> None:
    events.publish(layout, {"type": "old"})
    stream = events.follow(layout, from_start=True, timeout_s=30)
    assert next(stream)["type"] == "old"
    thread = threading.Thread(target=events.publish, args=(layout, {"type": "new"}))
    thread.start()
    assert next(stream)["type"] == "new"
    thread.join()
    assert list(events.follow(layout, timeout_s=0)) == []


def test_a_changed_state_on_disk_is_told_once(layout: Layout) -> None:
    configure(layout, "web")
    zones.set_state(layout, "web", State.INCOMPLETE)
    zones.set_state(layout, "web", State.INCOMPLETE)
    (event,) = events.recorded(layout)
    assert (event["zonename"], event["oldstate"], event["newstate"]) == ("web", "configured", "incomplete")

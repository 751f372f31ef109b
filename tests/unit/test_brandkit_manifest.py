"""Brands without Python, brands made from others, and the declarations that the reference's brand files have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from zonemgr.brandkit import PrivilegeSets, ZoneInfo, dropins, hooks, loader
from zonemgr.brandkit.base import Brand
from zonemgr.errors import BrandError
from zonemgr.linux import labels
from zonemgr.model.brandspec import RestartPolicy
from zonemgr.model.zone import Zone
from zonemgr.store.paths import Layout

Make = Callable[..., Path]
TINY = 'name = "tiny"\nshutdown_command = ["/bin/poweroff"]\n'
SHOW = '#!/bin/sh\necho "$0 $*"\nenv | grep ^ZONEMGR_ | sort\nwc -c < "$ZONEMGR_CONFIG"\n'


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    monkeypatch.setattr(loader, "DISTRIBUTION_FOLDER", tmp_path / "usr/lib/zonemgr/brands")
    return Layout(tmp_path)


@pytest.fixture
def make(layout: Layout) -> Make:
    """Makes the folder of a brand: its files by name."""

    def make(name: str, files: Mapping[str, str], place: Path | None = None) -> Path:
        folder = (place or layout.etc / "brands") / name
        for path, text in files.items():
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            file.chmod(0o755 if path.startswith("hooks/") else 0o644)
            file.parent.chmod(0o755)
        folder.chmod(0o755)
        return folder

    return make


def _zone(layout: Layout, brand: str) -> ZoneInfo:
    table = {"brand": brand}
    zone = Zone.from_table(table, filename="x.toml", zonename="web", default_zonepath="/zones/web")
    return ZoneInfo.of(zone, str(layout.root))


def _call(brand: Brand, hook: str, zone: ZoneInfo, *arguments: object) -> tuple[int, list[str]]:
    said: list[str] = []
    return hooks.run_brand_hook(brand, hook, zone, *arguments, deadline_s=20, say=said.append), said


def test_a_manifest_declares_what_a_class_would(layout: Layout, make: Make) -> None:
    text = TINY + (
        'ip_types = ["exclusive"]\nrequired_privileges = ["kill"]\ncgroup = "none"\n'
        'restart = { failed = "reboot", free = 1 }\n'
        'ip_type_privileges.exclusive = { required = ["net_raw"] }\n'
        '[[mounts]]\nspecial = "tmpfs"\ndirectory = "/run"\ntype = "tmpfs"\noptions = ["mode=755"]\n'
        '[[devices]]\nmatch = "fuse"\nname = "fuze"\noptional = true\n'
    )
    make("tiny", {"brand.toml": text})
    brand = loader.load("tiny", layout)
    assert brand.restart == RestartPolicy(failed="reboot", free=1)
    assert brand.mounts[0].options == ("mode=755",)
    assert brand.devices[0].name == "fuze" and brand.cgroup == "none"
    assert brand.privileges("exclusive").required == {"kill", "net_raw"}
    assert brand.privileges("shared").required == {"kill"}
    assert not brand.overrides("boot")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('shutdown_comand = ["/x"]', "unknown key 'shutdown_comand' (did you mean 'shutdown_command'?)"),
        ('init = "sbin/init"', "init is not an absolute path"),
        ('cgroup = "v3"', "cgroup is none of v2, v1, any, none: 'v3'"),
        ('restart = { ended = "rebot" }', "restart ended is none of halt, reboot: 'rebot' (did you mean 'reboot'?)"),
        ("restart = { endet = 1 }", "restart: unknown key 'endet' (did you mean 'ended'?)"),
        ('mounts = [{ special = "tmpfs" }]', "mounts: "),
        ('mounts = [{ spezial = "tmpfs" }]', "mounts: unknown key 'spezial' (did you mean 'special'?)"),
        ('ip_type_privileges.shaerd = { default = ["kill"] }', "ip_type_privileges key is none of exclusive, shared"),
        ('required_privileges = ["kil"]', 'required_privileges holds an unknown privilege "kil"'),
        ('prohibited_privileges = ["kill"]', "required_privileges and prohibited_privileges both hold 'kill'"),
        ('login_command = ["/bin/login", "{usr}"]', "{usr} is not known (did you mean 'user'?)"),
        ('hooks.instal = ["/x"]', "'instal' is no hook (did you mean 'install'?)"),
        ('hooks.boot = ["x"]', "hooks.boot: 'x' is not an absolute path"),
        ('hooks.boot = ["{date}/x"]', "{date} is not known (did you mean 'data'?)"),
        ("numbers = 1", "numbers is neither true nor false"),
        ("x = ", "brand.toml: "),
    ],
)
def test_what_is_wrong_is_one_line_with_the_file(layout: Layout, make: Make, line: str, said: str) -> None:
    make("tiny", {"brand.toml": TINY + line})
    with pytest.raises(BrandError) as error:
        loader.load("tiny", layout)
    assert said in error.value.text and "brand.toml" in error.value.text and "\n" not in error.value.text


def test_a_misspelt_or_plain_file_among_the_hooks_is_refused(layout: Layout, make: Make) -> None:
    make("tiny", {"brand.toml": TINY, "hooks/postinstal": SHOW})
    with pytest.raises(BrandError, match=r"'postinstal' is no hook \(did you mean 'postinstall'\?\)"):
        loader.load("tiny", layout)
    folder = make("small", {"brand.toml": TINY.replace("tiny", "small"), "hooks/boot": SHOW})
    (folder / "hooks/boot").chmod(0o644)
    with pytest.raises(BrandError, match=r"hooks/boot is not executable"):
        loader.load("small", layout)


def test_a_program_that_others_may_write_is_refused(layout: Layout, make: Make) -> None:
    folder = make("tiny", {"brand.toml": TINY, "hooks/boot": SHOW})
    (folder / "hooks/boot").chmod(0o777)
    with pytest.raises(BrandError, match="hooks/boot: refused, since others than root may write it"):
        loader.load("tiny", layout)


@pytest.mark.parametrize("name", ["hooks/lib/deep/common.sh", "bin/deep/boot", "bin/deep/ready.sh", "bin/deep"])
@pytest.mark.attack("code and files of others used by the host")
def test_what_programs_share_and_those_elsewhere_are_roots_alone(layout: Layout, make: Make, name: str) -> None:
    hooks = '[hooks]\nboot = ["{data}/bin/deep/boot"]\npre_statechange = ["/bin/sh", "{data}/bin/deep/ready.sh"]\n'
    files = ("hooks/lib/deep/common.sh", "bin/deep/boot", "bin/deep/ready.sh")
    folder = make("tiny", {"brand.toml": TINY + hooks, **dict.fromkeys(files, SHOW)})
    (folder / "hooks/.#boot").symlink_to("somebody@host.1234")  # an editor's
    assert loader.load("tiny", layout).name == "tiny"
    (folder / name).chmod(0o777)
    with pytest.raises(BrandError, match=f"{name}.*: refused, since others than root may write"):
        loader.load("tiny", layout)


def test_a_program_is_told_names_and_numbers(layout: Layout, make: Make) -> None:
    folder = make("tiny", {"brand.toml": TINY, "hooks/pre_statechange": SHOW})
    brand = loader.load("tiny", layout)
    status, said = _call(brand, "pre_statechange", _zone(layout, "tiny"), "running", "halt")
    assert status == 0
    assert said[0] == f"{folder}/hooks/pre_statechange running halt"
    told = dict(line.split("=", 1) for line in said[1:-1])
    assert (told["ZONEMGR_STATE"], told["ZONEMGR_COMMAND"]) == ("running", "halt")
    assert (told["ZONEMGR_STATE_NUMBER"], told["ZONEMGR_COMMAND_NUMBER"]) == ("4", "4")
    assert (told["ZONEMGR_ZONENAME"], told["ZONEMGR_ROOT"]) == ("web", str(layout.root))
    assert int(said[-1]) > 2


def test_a_ported_program_gets_numbers_as_words(layout: Layout, make: Make) -> None:
    table = TINY + 'numbers = true\nhooks.pre_statechange = ["/bin/echo", "{zonename}", "{data}"]\n'
    folder = make("tiny", {"brand.toml": table})
    status, said = _call(loader.load("tiny", layout), "pre_statechange", _zone(layout, "tiny"), "installed", "boot")
    assert (status, said) == (0, [f"web {folder} 2 1 "])


def test_the_exit_status_of_a_program_is_that_of_the_hook(layout: Layout, make: Make) -> None:
    make("tiny", {"brand.toml": TINY, "hooks/install": "#!/bin/sh\necho $1\nexit 254\n"})
    assert _call(loader.load("tiny", layout), "install", _zone(layout, "tiny"), ("-x",)) == (254, ["-x"])


# -- brands made from others ----------------------------------------------------------------------------------------

BASE = """
from zonemgr.brandkit import Brand, PlatformMount

class Ground(Brand):
    name = "ground"
    mounts = (PlatformMount("{data}/x", "/x"),)
    def boot(self, zone):
        print("ground")
    def halt(self, zone):
        print("ground")
"""
ABOVE = """
from zonemgr.brandkit import Brand, PlatformMount

class House(Brand):
    base = "ground"
    name = "house"
    more_mounts = (PlatformMount("{data}/y", "/y"),)
    def boot(self, zone):
        super().boot(zone)
        print("house")
"""


def test_a_brand_adds_to_its_base(layout: Layout, make: Make) -> None:
    ground = make("ground", {"brand.py": BASE})
    make("house", {"brand.py": ABOVE})
    brand = loader.load("house", layout)
    assert [mount.special for mount in brand.mounts] == [f"{ground}/x", "{data}/y"]
    zone = _zone(layout, "house")
    assert _call(brand, "boot", zone) == (0, ["ground", "house"])
    assert _call(brand, "halt", zone) == (0, ["ground"])
    assert not brand.overrides("install")


def test_programs_over_a_class_over_programs(layout: Layout, make: Make) -> None:
    make("ground", {"brand.toml": TINY.replace("tiny", "ground"), "hooks/boot": SHOW, "hooks/halt": SHOW})
    house = make("house", {"brand.py": ABOVE})
    roof = make("roof", {"brand.toml": 'name = "roof"\nbase = "house"\n', "hooks/halt": SHOW})
    brand = loader.load("roof", layout)
    zone = _zone(layout, "roof")
    assert _call(brand, "halt", zone)[1][0] == f"{roof}/hooks/halt "
    assert _call(brand, "boot", zone)[1][0] == f"{layout.etc}/brands/ground/hooks/boot "
    assert [mount.special for mount in brand.mounts] == [f"{house}/y"]


def test_ones_own_name_as_base_is_the_brand_that_is_hidden(layout: Layout, make: Make) -> None:
    make("native", {"brand.toml": 'name = "native"\nbase = "native"\nsummary = "ours"\n'})
    brand = loader.load("native", layout)
    assert brand.summary == "ours" and brand.overrides("install")
    assert loader.load("cluster", layout).overrides("install")


def test_a_base_may_be_a_folder(layout: Layout, make: Make, tmp_path: Path) -> None:
    ground = make("ground", {"brand.py": BASE}, place=tmp_path / "elsewhere")
    make("house", {"brand.py": ABOVE.replace('"ground"', repr(str(ground)))})
    assert loader.load("house", layout).overrides("halt")


def test_bases_that_go_round_in_circles_are_refused(layout: Layout, make: Make) -> None:
    make("one", {"brand.toml": 'name = "one"\nbase = "two"\n'})
    make("two", {"brand.toml": 'name = "two"\nbase = "one"\n'})
    with pytest.raises(BrandError, match="goes round in circles"):
        loader.load("one", layout)
    states = {found.name: found.state for found in loader.discover(layout)}
    assert states["one"] == states["two"] == "broken" and states["native"] == "ok"


def test_a_broken_base_is_named(layout: Layout, make: Make) -> None:
    make("house", {"brand.py": ABOVE})
    with pytest.raises(BrandError, match="base 'ground': brand 'ground' is not known"):
        loader.load("house", layout)


def test_a_folder_with_both_files_is_refused(layout: Layout, make: Make) -> None:
    make("tiny", {"brand.toml": TINY, "brand.py": "raise SystemExit(3)"})
    with pytest.raises(BrandError, match="holds both brand.py and brand.toml"):
        loader.load("tiny", layout)


# -- small things ---------------------------------------------------------------------------------------------------


def test_quick_reboots_wait_longer_and_longer() -> None:
    policy = RestartPolicy(free=2, delay_max_s=5)
    assert [policy.delay_s(quick) for quick in range(6)] == [0, 0, 0, 2, 4, 5]
    assert RestartPolicy().delay_s(10**9) == 60


def test_sets_of_privileges_add_up() -> None:
    one, other = PrivilegeSets(frozenset("a"), frozenset("b")), PrivilegeSets(frozenset("c"))
    assert one | other == PrivilegeSets(frozenset("ac"), frozenset("b"))


def test_how_a_label_is_asked_for() -> None:
    assert labels.order(labels.Module.APPARMOR, "zone-web") == b"exec zone-web"
    assert labels.order(labels.Module.SELINUX, "u:r:t:s0") == b"u:r:t:s0\0"


def test_a_folder_that_is_no_procfs_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "self/attr").mkdir(parents=True)
    (tmp_path / "self/attr/exec").touch()
    with pytest.raises(OSError, match="Invalid argument"):
        labels.set_for_exec(labels.Module.SELINUX, "u:r:t:s0", str(tmp_path))
    assert (tmp_path / "self/attr/exec").read_text() == ""


def test_programs_of_a_folder_run_in_order_until_one_fails(layout: Layout, make: Make, tmp_path: Path) -> None:
    folder = tmp_path / "d"
    for name, text in (("20-no", "exit 3"), ("10-yes", "echo yes $*"), ("30-never", "echo never"), ("note", "")):
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o644 if name == "note" else 0o755)
    folder.chmod(0o755)
    zone, said = _zone(layout, "tiny"), list[str]()
    status = hooks.run_hook(
        lambda: dropins.run_folder(folder, zone, "pre_statechange", "running", "halt"),
        name="x",
        deadline_s=20,
        say=said.append,
    )
    assert status == 3
    assert said == ["yes pre_statechange running halt web /zones/web", f"{folder}/20-no failed: status 3"]
    folder.chmod(0o777)
    with pytest.raises(BrandError, match="others than root may write it"):
        dropins.programs(folder, layout.root)

# SPDX-License-Identifier: Apache-2.0
"""Examining: symbols of a kernel on disk, fabric manager, room, and the list that a person reads."""

from __future__ import annotations

import gzip
import lzma
import struct
from typing import TYPE_CHECKING, Any

import pytest

from nvidiad.nouns import manifest as manifests
from nvidiad.nouns.errors import Code, Failure
from nvidiad.nouns.model import Gpu, Memory, Phase
from nvidiad.nouns.value import replace
from nvidiad.thought import examination, symbols
from nvidiad.thought.examination import Room
from nvidiad.thought.preflight import State, failed, passed, skipped, warned
from nvidiad.thought.symbols import Imports, Known
from nvidiad.verbs import examine
from nvidiad.world.kernels import BYTES_AT_MOST, MODULES_AT_MOST, Kernels
from tests.payload import elf
from tests.unit import facts as f
from tests.unit.trees import make_tree
from tests.unit.world import World, manifest_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from nvidiad.nouns.plan import Status

VERMAGIC = f"{f.KERNEL} SMP preempt mod_unload modversions"
LAYOUT, PRINTK, OPEN = ("module_layout", 0x11111111), ("_printk", 0x22222222), ("drm_open", 0x33333333)


def ko(crcs: Mapping[str, int] | None = None, vermagic: str = VERMAGIC) -> bytes:
    """A module of the kernel's own, with the CRCs of what it imports."""
    versions = b"".join(struct.pack("<Q56s", crc, name.encode()) for name, crc in (crcs or {}).items())
    sections = {"__versions": versions} if crcs is not None else {}
    return elf.module([("vermagic", vermagic), ("name", "own")], sections)


# -- what is said of symbols

MODULES = tuple(replace(module, vermagic=VERMAGIC) for module in f.MODULES)
NVIDIA = Imports("nvidia", "/t/nvidia.ko", dict([LAYOUT, PRINTK, OPEN]), frozenset({"nv_open"}))
UVM = Imports("nvidia_uvm", "/t/nvidia-uvm.ko", dict([LAYOUT, ("nv_open", 5)]))
PLAIN = Imports("nvidia", "/t/nvidia.ko", {})


def known(*crcs: tuple[str, int], **changes: Any) -> Known:
    return replace(Known(dict(crcs), "9 modules", vermagic=VERMAGIC), **changes)


SYMBOLS = {
    "the same CRCs": (
        (NVIDIA, UVM),
        known(LAYOUT, PRINTK, OPEN),
        State.PASSED,
        "",
        "4 imports have the CRCs",
    ),
    "as far as they are known": ((NVIDIA,), known(LAYOUT), State.PASSED, "", "1 imports have the CRCs"),
    "another build": (
        (NVIDIA,),
        known(("module_layout", 7), PRINTK, OPEN),
        State.FAILED,
        "symbol-mismatch",
        f"another build of kernel '{f.KERNEL}': 1 of its 3 imports have other CRCs here ('module_layout')",
    ),
    "another build, by the second module": (
        (replace(NVIDIA, versions=dict([PRINTK])), UVM),
        known(("module_layout", 7), PRINTK),
        State.FAILED,
        "symbol-mismatch",
        "'/t/nvidia-uvm.ko' was built for another build",
    ),
    "what one module of ours has for another is not the kernel's": (
        (NVIDIA, UVM),
        known(LAYOUT, PRINTK, OPEN, ("nv_open", 6)),
        State.PASSED,
        "",
        "4 imports",
    ),
    "a symbol that the whole kernel has not": (
        (NVIDIA, UVM),
        known(LAYOUT, PRINTK, whole=True),
        State.WARNING,
        "symbol-unknown",
        "'/t/nvidia.ko' imports 'drm_open', which kernel",
    ),
    "a symbol that the whole kernel has not, and another build": (
        (replace(NVIDIA, versions=dict([PRINTK, OPEN])), UVM),
        known(("module_layout", 7), PRINTK, whole=True),
        State.FAILED,
        "symbol-mismatch",
        "'/t/nvidia-uvm.ko' was built for another build",
    ),
    "no CRC for a symbol, on either side": (
        (replace(NVIDIA, versions=dict([LAYOUT, ("memcpy", 0)])),),
        known(LAYOUT, ("memcpy", 0), whole=True),
        State.PASSED,
        "",
        "2 imports",
    ),
    "the whole kernel has all": (
        (NVIDIA, UVM),
        known(LAYOUT, PRINTK, OPEN, whole=True),
        State.PASSED,
        "",
        "4 imports",
    ),
    "another configuration": (
        (NVIDIA,),
        known(LAYOUT, vermagic=f"{f.KERNEL} SMP preempt_rt mod_unload modversions"),
        State.FAILED,
        "vermagic-mismatch",
        f"was built for '{VERMAGIC}', the modules of kernel '{f.KERNEL}' for '{f.KERNEL} SMP preempt_rt",
    ),
    "no MODVERSIONS": ((PLAIN,), known(LAYOUT), State.SKIPPED, "", "without MODVERSIONS"),
    "nothing in common": ((NVIDIA,), known(("else", 1)), State.SKIPPED, "", "none of the symbols"),
    "nothing to compare with": ((NVIDIA,), Known({}, why="nobody knows"), State.SKIPPED, "", "nobody knows"),
}


@pytest.mark.parametrize("name", SYMBOLS)
def test_symbols(name: str) -> None:
    imports, of_kernel, state, code, words = SYMBOLS[name]
    check = examination.symbols(MODULES, imports, of_kernel, f.KERNEL)
    assert (check.state, check.code) == (state, code), check.sentence
    assert words in check.sentence
    assert bool(check.remedy) is bool(code)


def test_the_one_that_stands_for_the_whole_kernel_is_named_first() -> None:
    mine = {"a": 1, "b": 1, "module_layout": 1, "c": 1, "d": 1, "same": 1}
    theirs = {**dict.fromkeys(mine, 2), "same": 1}
    assert symbols.different(mine, theirs) == ("module_layout", "a", "b", "c", "d")


def test_long_names_have_crcs_too() -> None:
    """CONFIG_EXTENDED_MODVERSIONS of Linux 6.14."""
    sections = {
        "__version_ext_crcs": struct.pack("<II", 7, 8),
        "__version_ext_names": b"one\0" + b"x" * 80 + b"\0",
    }
    assert symbols.versions(lambda name: sections.get(name, b"")) == {"one": 7, "x" * 80: 8}


# -- where they come from

FOLDER = f"usr/lib/modules/{f.KERNEL}"
WANTED = frozenset({"module_layout", "_printk", "drm_open"})
DEP = "kernel/fs/a.ko:\nkernel/drivers/gpu/drm/b.ko:\nupdates/dkms/zfs.ko:\n"


def on_disk(tmp_path: Path, content: Mapping[str, str | bytes | None], folder: str = FOLDER) -> Known:
    make_tree(tmp_path, {f"{folder}/{name}": what for name, what in content.items()})
    return Kernels(tmp_path).symbols(f.KERNEL, WANTED)


@pytest.mark.parametrize("folder", [FOLDER, f"lib/modules/{f.KERNEL}"])
def test_what_the_kernels_own_modules_import(tmp_path: Path, folder: str) -> None:
    found = on_disk(
        tmp_path,
        {
            "modules.dep": DEP,
            "kernel/fs/a.ko": ko(dict([LAYOUT, PRINTK, ("unasked", 9)])),
            "kernel/drivers/gpu/drm/b.ko": ko(dict([LAYOUT, OPEN])),
            # Compiled by somebody, for whatever build.
            "updates/dkms/zfs.ko": ko({"_printk": 0xBAD}),
        },
        folder,
    )
    assert found.crcs == dict([LAYOUT, PRINTK, OPEN])
    assert (found.whole, found.vermagic, found.why) == (False, VERMAGIC, "")
    assert "2 modules in" in found.source


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [(".ko", bytes), (".ko.xz", lzma.compress), (".ko.gz", gzip.compress)],
    ids=["plain", "xz", "gz"],
)
def test_compressed_modules(tmp_path: Path, suffix: str, pack: Any) -> None:
    content = {"modules.dep": f"kernel/a{suffix}:\n", f"kernel/a{suffix}": pack(ko(dict([LAYOUT])))}
    assert on_disk(tmp_path, content).crcs == dict([LAYOUT])


def test_a_kernel_that_lists_all_its_symbols(tmp_path: Path) -> None:
    rows = (("0x11111111", "module_layout", "EXPORT_SYMBOL"), ("0x44444444", "other", "EXPORT_SYMBOL_GPL"))
    text = "".join(f"{crc}\t{name}\tvmlinux\t{kind}\t\n" for crc, name, kind in rows)
    found = on_disk(
        tmp_path,
        {
            "modules.dep": DEP,
            "symvers.xz": lzma.compress(text.encode()),
            "kernel/fs/a.ko": ko(dict([PRINTK])),
        },
    )
    assert (found.crcs, found.whole) == ({"module_layout": 0x11111111, "other": 0x44444444}, True)
    assert found.vermagic == VERMAGIC


@pytest.mark.parametrize(
    ("layout", "crcs"),
    [(0x11111111, {"module_layout": 0x11111111, "memcpy": 0}), (0, {})],
    ids=["one export has no CRC", "none has: no MODVERSIONS"],
)
def test_a_list_with_exports_that_have_no_crc(tmp_path: Path, layout: int, crcs: dict[str, int]) -> None:
    exports = {"module_layout": layout, "memcpy": 0}
    rows = "".join(f"0x{crc:08x}\t{name}\tvmlinux\tEXPORT_SYMBOL\t\n" for name, crc in exports.items())
    found = on_disk(tmp_path, {"modules.dep": DEP, "symvers": rows, "kernel/fs/a.ko": ko(dict([PRINTK]))})
    assert (found.crcs, found.whole) == (crcs, bool(crcs))


@pytest.mark.parametrize(
    ("suffix", "pack"), [(".ko", bytes), (".ko.gz", gzip.compress)], ids=["plain", "gz"]
)
def test_a_module_that_needs_more_memory_than_the_daemon_may_have_is_left_out(
    tmp_path: Path, suffix: str, pack: Any
) -> None:
    large = ko(dict([LAYOUT, OPEN]))
    large += bytes(BYTES_AT_MOST + 1 - len(large))
    found = on_disk(
        tmp_path,
        {
            "modules.dep": f"kernel/drm/amdgpu{suffix}:\nkernel/fs/a.ko:\n",
            f"kernel/drm/amdgpu{suffix}": pack(large),
            "kernel/fs/a.ko": ko(dict([LAYOUT])),
        },
    )
    assert found.crcs == dict([LAYOUT])
    assert "1 modules in" in found.source


def test_it_stops_reading_when_it_knows_enough(tmp_path: Path) -> None:
    names = [f"kernel/fs/m{number:04}.ko" for number in range(MODULES_AT_MOST + 50)]
    content: dict[str, str | bytes | None] = {name: ko(dict([LAYOUT])) for name in names}
    listing = "".join(f"{name}:\n" for name in names)
    content["modules.dep"] = listing
    content[names[-1]] = ko(dict([PRINTK]))
    found = on_disk(tmp_path, content)
    assert found.crcs == dict([LAYOUT])
    assert f"{MODULES_AT_MOST} modules" in found.source
    content["kernel/drivers/gpu/drm/z.ko"] = ko(dict([LAYOUT, PRINTK, OPEN]))
    content["modules.dep"] = f"{listing}kernel/drivers/gpu/drm/z.ko:\n"
    found = on_disk(tmp_path, content)
    assert "1 modules" in found.source and set(found.crcs) == WANTED


NOTHING: dict[str, tuple[dict[str, str | bytes | None], str]] = {
    "no directory of this kernel": ({}, f"no modules of kernel '{f.KERNEL}'"),
    "no module of its own": ({"modules.dep": "updates/x.ko:\n"}, "no modules of the OS's own"),
    "no module that can be read": (
        {"modules.dep": "kernel/a.ko.zst:\nkernel/b.ko:\n", "kernel/a.ko.zst": b"\x28\xb5\x2f\xfd"},
        "can be read here (.ko, .zst)",
    ),
    "files that are none": (
        {
            "modules.dep": "kernel/a.ko.xz:\nkernel/b.ko:\n",
            "kernel/a.ko.xz": b"x",
            "kernel/b.ko": b"\x7fELF",
        },
        "can be read here",
    ),
}


@pytest.mark.parametrize("name", NOTHING)
def test_where_nothing_can_be_compared_it_says_why(tmp_path: Path, name: str) -> None:
    content, words = NOTHING[name]
    found = on_disk(tmp_path, content)
    assert (found.crcs, found.whole) == ({}, False)
    assert words in found.why


def test_what_a_tree_imports(tmp_path: Path) -> None:
    make_tree(tmp_path, {"nvidia.ko": ko(dict([LAYOUT])), "plain.ko": ko(), "broken.ko": b"\x7fELF"})
    paths = tuple(str(tmp_path / name) for name in ("nvidia.ko", "plain.ko"))
    assert [(each.module, each.versions) for each in Kernels().imports(paths)] == [
        ("nvidia", dict([LAYOUT])),
        ("plain", {}),
    ]
    with pytest.raises(Failure, match=r"broken\.ko' cannot be read") as caught:
        Kernels().imports((str(tmp_path / "broken.ko"),))
    assert caught.value.code is Code.TREE_INVALID


def test_what_modprobe_is_told_not_to_load(tmp_path: Path) -> None:
    make_tree(
        tmp_path,
        {
            "etc/modprobe.d/a.conf": "# install drm /bin/false\ninstall drm-kms-helper /bin/false\n",
            "usr/lib/modprobe.d/b.conf": "install ttm /sbin/modprobe -i ttm\nblacklist video\n",
            "run/modprobe.d/c.conf": "install video /usr/bin/true\n",
        },
    )
    asked = ("drm", "drm_kms_helper", "ttm", "video")
    assert Kernels(tmp_path).forbidden(asked) == (
        ("drm_kms_helper", str(tmp_path / "etc/modprobe.d/a.conf")),
        ("video", str(tmp_path / "run/modprobe.d/c.conf")),
    )
    assert examination.host_modules(asked, (("drm", "/a.conf"),)).state is State.WARNING
    assert examination.host_modules(asked, ()).state is State.PASSED
    assert examination.host_modules((), ()).state is State.SKIPPED


# -- when a tree is installed


def look(world: World) -> Status:
    return world.reconciler().look(world.settings)


def refused(world: World, code: Code) -> str:
    """The image was refused by this code, and nothing of it is there; the sentence."""
    status = look(world)
    assert status.problem is not None and status.problem.code is code, status.summary
    assert status.phase is Phase.WAITING
    assert world.disk.trees == {} and world.disk.current is None and world.volatile.loaded == {}
    return status.problem.sentence


def test_a_module_of_another_build_is_refused_when_it_is_installed() -> None:
    world = World(f.settings())
    world.imports, world.known = dict([LAYOUT]), known(("module_layout", 7), vermagic=f"{f.KERNEL} SMP")
    world.push()
    assert "another build of kernel" in refused(world, Code.SYMBOL_MISMATCH)
    assert any(effect.startswith("remove ") for effect in world.effects)
    # The image is mended.
    world.known = known(LAYOUT, vermagic=f"{f.KERNEL} SMP")
    world.clock += 1000
    assert look(world).phase is Phase.READY


def test_a_symbol_that_nobody_knows_is_left_to_insmod() -> None:
    world = World(f.settings())
    world.imports, world.known = dict([LAYOUT, OPEN]), known(LAYOUT, vermagic=f"{f.KERNEL} SMP", whole=True)
    world.push()
    assert look(world).phase is Phase.READY


def test_a_module_that_is_not_to_be_loaded_refuses_no_tree() -> None:
    world = World(f.settings('[driver]\nversion = "535.309.01"\nmodules = ["nvidia", "nvidia-uvm"]\n'))
    world.imports, world.known = dict([LAYOUT]), known(LAYOUT, vermagic=f"{f.KERNEL} SMP")
    world.imports_of["nvidia-modeset.ko"] = {"module_layout": 7}
    world.push()
    assert look(world).phase is Phase.READY
    asked = World(f.settings())
    asked.imports, asked.known, asked.imports_of = world.imports, world.known, world.imports_of
    asked.push()
    assert "nvidia-modeset.ko' was built for another build" in refused(asked, Code.SYMBOL_MISMATCH)


NEXT, NEXT_KERNEL = "4081.2.0", "6.6.54-flatcar"
COMPARED = {
    "the OS that runs": (f.OS, f.KERNEL, True),
    "this kernel, where the OS is named by it": (f.KERNEL, f.KERNEL, True),
    "the next kernel, where the OS is named by it": (NEXT_KERNEL, NEXT_KERNEL, True),
    "the next OS, its kernel on disk": (NEXT, NEXT_KERNEL, True),
    "the next OS, with a kernel of the same name": (NEXT, f.KERNEL, False),
}


@pytest.mark.parametrize("name", COMPARED)
def test_a_tree_is_compared_with_the_kernel_that_it_is_for(name: str) -> None:
    release, kernel, compared = COMPARED[name]
    world = World(f.settings())
    world.imports, world.known = dict([LAYOUT]), known(("module_layout", 7), vermagic=f"{kernel} SMP")
    build = replace(world.wanted(), os_version=release, kernel=kernel)
    path = world.put_tree(build)
    if not compared:
        examine.refuse_tree(world.ports(), path, build)
        return
    with pytest.raises(Failure, match="another build of kernel"):
        examine.refuse_tree(world.ports(), path, build)


def test_an_image_that_serves_no_gpu_here_is_refused_before_its_installer_runs() -> None:
    world = World(f.settings())
    world.device = "10de:1db6"
    labels = manifests.labels(replace(manifest_of(world.wanted()), pci=("10de:2330",)), "0" * 64)
    image = world.push(labels=labels)
    assert "needs the proprietary modules" in refused(world, Code.FLAVOUR_WRONG)
    assert f"install {image.digest}" not in world.effects
    world.device = "10de:2330"
    world.clock += 1000
    assert look(world).phase is Phase.READY


def test_an_image_that_only_does_not_name_the_gpu_is_tried() -> None:
    world = World(f.settings())
    labels = manifests.labels(replace(manifest_of(world.wanted()), pci=("10de:2330",)), "0" * 64)
    world.pci = ("10de:2330",)
    world.push(labels=labels)
    status = look(world)
    assert (status.phase, status.warnings) == (Phase.READY, ()), "what drives a GPU serves it"


def test_a_driver_that_was_ready_here_is_taken_for_the_next_os_too() -> None:
    """A rule that is wrong of one GPU must not hold a host that proves it."""
    world = World(f.settings())
    world.device = "10de:1db6"
    world.disk.memory = Memory(last_good=f"/opt/nvidia/{f.DRIVER}/3900.0.0")
    world.push()
    assert look(world).phase is Phase.READY


def test_labels_without_devices_refuse_nothing_that_is_not_certain() -> None:
    world = World(f.settings())
    labels = manifests.labels(manifest_of(world.wanted()), "0" * 64)
    del labels[manifests.PCI]
    world.push(labels=labels)
    assert look(world).phase is Phase.READY
    volta = World(f.settings())
    volta.device = "10de:1db6"
    volta.push()
    assert "needs the proprietary modules" in refused(volta, Code.FLAVOUR_WRONG)


# -- fabric manager

SWITCHES = (Gpu("0000:07:00.0", "10de:1af1", None, switch=True),)
MANAGER = "/usr/bin/nv-fabricmanager"
FABRIC = {
    "no switch and no manager": ((), {}, State.SKIPPED, ""),
    "no switch, and one that is right": ((), {MANAGER: f.DRIVER}, State.SKIPPED, ""),
    "no switch, and one of another version": ((), {MANAGER: "535.1"}, State.FAILED, "fabric-mismatch"),
    "switches and no manager": (SWITCHES, {}, State.FAILED, "fabric-missing"),
    "switches and the right one": (SWITCHES, {MANAGER: f.DRIVER}, State.PASSED, ""),
    "switches and one that says nothing": (SWITCHES, {MANAGER: ""}, State.PASSED, ""),
    "switches and another version": (SWITCHES, {MANAGER: "550.1"}, State.FAILED, "fabric-mismatch"),
}


@pytest.mark.parametrize("name", FABRIC)
def test_fabric_manager(name: str) -> None:
    gpus, managers, state, code = FABRIC[name]
    check = examination.fabric(gpus, f.DRIVER, managers)
    assert (check.state, check.code) == (state, code)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("Fabric Manager version is : 535.309.01\n", "535.309.01"),
        ("nv-fabricmanager (550.163.01)", "550.163.01"),
        ("usage: nv-fabricmanager 1.2", ""),
        ("", ""),
    ],
)
def test_what_a_fabric_manager_says_of_itself(text: str, version: str) -> None:
    assert examination.told_version(text) == version


# -- room

GB = 1_000_000_000
ROOM = {
    "enough": (
        Room("/opt", 5 * GB, 100_000),
        300_000_000,
        State.PASSED,
        "has 5.0 GB and 100000 inodes free",
    ),
    "enough on btrfs": (Room("/opt", 5 * GB, None), 300_000_000, State.PASSED, "has 5.0 GB free"),
    "too few bytes": (Room("/opt", GB // 2, 100_000), 0, State.WARNING, "has 500 MB free, less than 1.1 GB"),
    "too few for another one as large": (
        Room("/opt", 2 * GB, 100_000),
        2 * GB,
        State.WARNING,
        "than 4.0 GB",
    ),
    "too few inodes": (Room("/opt", 5 * GB, 12), 0, State.WARNING, "has 12 free inodes, fewer than 2000"),
}


@pytest.mark.parametrize("name", ROOM)
def test_room(name: str) -> None:
    room, largest, state, words = ROOM[name]
    check = examination.space(room, largest, 60)
    assert (check.state, check.code) == (state, "disk-full" if state is State.WARNING else "")
    assert words in check.sentence


# -- the list

LIST = (
    passed("gpu", "10de:20b5 at 0000:01:00.0"),
    failed("served", Code.GPU_UNSUPPORTED, "it does not serve\x1b[31m this GPU", "Take another one."),
    warned("space", Code.DISK_FULL, "little is free", "Make room."),
    skipped("symbols", "nobody knows"),
)


def test_the_list_has_aligned_columns_and_what_to_do_below_what_is_wrong() -> None:
    assert examination.listing(LIST) == (
        "● gpu      ok               10de:20b5 at 0000:01:00.0\n"
        "✗ served   gpu-unsupported  it does not serve\\x1b[31m this GPU\n"
        "                            → Take another one.\n"
        "! space    disk-full        little is free\n"
        "                            → Make room.\n"
        "○ symbols  skipped          nobody knows\n"
        "4 checks: 1 in order, 1 failed, 1 warning, 1 skipped\n"
    )
    assert not examination.in_order(LIST)
    assert examination.in_order(LIST[2:])
    assert examination.summary(LIST[:1]) == "1 checks: 1 in order"


def test_long_sentences_are_wrapped_under_their_column_on_a_terminal() -> None:
    long = passed("gpu", "word " * 20)
    lines = examination.listing([long], width=62).splitlines()
    assert len(lines) == 3
    assert all(len(line) <= 62 for line in lines)
    assert all(line.startswith(" " * 11 + "word") for line in lines[1:-1])
    # Too narrow to be of use.
    assert len(examination.listing([long], width=20).splitlines()) == 2
    assert "\x1b[32m●" in examination.listing([long], colour=True)


def test_a_row_is_json_too() -> None:
    assert examination.row(LIST[1]) == {
        "check": "served",
        "code": "gpu-unsupported",
        "state": "failed",
        "text": "it does not serve\x1b[31m this GPU",
        "remedy": "Take another one.",
    }
    assert examination.row(LIST[0])["code"] == "ok"

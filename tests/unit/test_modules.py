# SPDX-License-Identifier: Apache-2.0
"""Modules: those of the kernel and of a tree, what insmod's failures mean, firmware, holders."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path

import pytest

from nvidiad.nouns.errors import Code, Failure
from nvidiad.nouns.model import Holder, LoadedModule, ModuleFile
from nvidiad.world import holders, kernel_log, process
from nvidiad.world.modules import Modules
from tests.unit.trees import calls, fake_program, make_tree, needs_root

KERNEL = "6.1.0-56-cloud-amd64"
VERMAGIC = f"{KERNEL} SMP preempt mod_unload modversions"
NVIDIA = ModuleFile("nvidia", "/t/nvidia.ko", "535.309.01", VERMAGIC, ("drm",))


def loaded_module(name: str, **files: str) -> dict[str, str | bytes | None]:
    """The directory of a live module in sysfs."""
    content = {"initstate": "live\n", "refcnt": "0\n", "version": "535.309.01\n"} | files
    return {f"sys/module/{name}/{key}": value for key, value in content.items()}


def ko(**fields: str) -> bytes:
    """A kernel module as far as its .modinfo section goes."""
    info = b"".join(f"{key}={value}".encode() + b"\0" for key, value in fields.items())
    names = b"\0.shstrtab\0.modinfo\0"
    at = 64 + len(names)
    table = at + len(info)
    sections = [(0, 0, 0, 0), (1, 3, 64, len(names)), (11, 1, at, len(info))]
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01" + bytes(9), 1, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 1
    )
    rows = b"".join(
        struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, offset, size, 0, 0, 1, 0)
        for name, kind, offset, size in sections
    )
    return header + names + info + rows


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for fake programs, looked at first."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setattr(process, "PATH", f"{directory}:{process.PATH}")
    return directory


# -- what is loaded


def test_loaded(tmp_path: Path) -> None:
    root = make_tree(
        tmp_path,
        loaded_module("nvidia", refcnt="3\n")
        | {"sys/module/nvidia/holders/nvidia_uvm": None, "sys/module/nvidia/holders/nvidia_modeset": None}
        | loaded_module("nvidia_uvm")
        | loaded_module("nvidia_drm", initstate="coming\n")
        | loaded_module("nvidia_wmi_ec_backlight")
        | loaded_module("nvidiafb")
        | {"sys/module/nvidia_builtin/parameters": None, "sys/module/drm/initstate": "live\n"},
    )
    assert Modules(root).loaded() == (
        LoadedModule("nvidia", "535.309.01", 3, ("nvidia_modeset", "nvidia_uvm")),
        LoadedModule("nvidia_uvm", "535.309.01", 0),
    )


DEP = "kernel/drivers/gpu/drm/drm.ko.xz: kernel/x/i2c-core.ko.xz\nkernel/drivers/acpi/video.ko.xz:\n"
UNAVAILABLE: dict[str, tuple[dict[str, str | bytes | None], tuple[str, ...], tuple[str, ...]]] = {
    "all are listed": ({"modules.dep": DEP}, ("drm", "i2c_core", "video"), ()),
    "one is not": ({"modules.dep": DEP}, ("drm", "drm_kms_helper"), ("drm_kms_helper",)),
    "a name that begins like another": ({"modules.dep": DEP}, ("dr", "rm", "vide"), ("dr", "rm", "vide")),
    "one is built in": (
        {"modules.dep": DEP, "modules.builtin": "kernel/lib/drm-kms-helper.ko\n"},
        ("drm_kms_helper",),
        (),
    ),
    "nobody has listed them": ({"modules.builtin": "kernel/lib/x.ko\n"}, ("drm",), ()),
    "nothing is there": ({}, ("drm",), ()),
    "nothing is needed": ({"modules.dep": DEP}, (), ()),
}


@pytest.mark.parametrize("folder", ["usr/lib/modules", "lib/modules"])
@pytest.mark.parametrize("name", UNAVAILABLE)
def test_modules_that_the_os_has_not(tmp_path: Path, name: str, folder: str) -> None:
    content, asked, absent = UNAVAILABLE[name]
    root = make_tree(tmp_path, {f"{folder}/{KERNEL}/{file}": text for file, text in content.items()})
    assert Modules(root).unavailable(asked, KERNEL) == absent


def test_what_is_in_the_kernel_is_there_whatever_is_listed(tmp_path: Path) -> None:
    root = make_tree(tmp_path, {"sys/module/drm": None, f"lib/modules/{KERNEL}/modules.dep": DEP})
    assert Modules(root).unavailable(("drm", "ttm"), KERNEL) == ("ttm",)
    assert Modules(root).present(("nouveau", "drm")) == ("drm",)


def test_kernel_that_does_not_count(tmp_path: Path) -> None:
    root = make_tree(tmp_path, {"sys/module/nvidia/initstate": "live\n"})
    assert Modules(root).loaded() == (LoadedModule("nvidia", None, 0),)


def test_nothing_at_all(tmp_path: Path) -> None:
    modules = Modules(tmp_path)
    assert modules.loaded() == ()
    assert modules.driver_version() is None
    assert modules.holders() == ()
    assert modules.firmware_path() == ""


def test_driver_version(tmp_path: Path) -> None:
    line = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.309.01  Wed Mar 25 15:26:15 UTC 2026\n"
    root = make_tree(tmp_path, {"proc/driver/nvidia/version": line + "GCC version:  gcc version 12\n"})
    assert Modules(root).driver_version() == "535.309.01"


# -- what a tree offers


def test_read(tmp_path: Path) -> None:
    directory = f"lib/modules/{KERNEL}"
    make_tree(
        tmp_path,
        {
            f"{directory}/nvidia.ko": ko(
                version="535.309.01", depends="drm,i2c-core", name="nvidia", vermagic=VERMAGIC
            ),
            f"{directory}/video/nvidia-uvm.ko": ko(vermagic=VERMAGIC, depends=""),
            f"{directory}/modules.dep": "",
            "lib/modules/6.1.0-55/nvidia.ko": ko(vermagic="6.1.0-55"),
        },
    )
    assert Modules().read(str(tmp_path), KERNEL) == (
        ModuleFile(
            "nvidia", f"{tmp_path}/{directory}/nvidia.ko", "535.309.01", VERMAGIC, ("drm", "i2c-core")
        ),
        ModuleFile("nvidia_uvm", f"{tmp_path}/{directory}/video/nvidia-uvm.ko", "", VERMAGIC, ()),
    )


def test_read_takes_no_more_than_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"lib/modules/{KERNEL}/nvidia.ko"
    make_tree(tmp_path, {f"lib/modules/{KERNEL}/nvidia.ko": ko(vermagic=VERMAGIC)})
    os.truncate(path, 90 << 20)
    asked: list[int] = []
    pread = os.pread

    def counted(descriptor: int, size: int, at: int) -> bytes:
        asked.append(size)
        return pread(descriptor, size, at)

    monkeypatch.setattr(os, "pread", counted)
    assert Modules().read(str(tmp_path), KERNEL)[0].vermagic == VERMAGIC
    assert sum(asked) < 4096


def test_tree_without_this_kernel(tmp_path: Path) -> None:
    assert Modules().read(str(tmp_path / "absent"), KERNEL) == ()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("nvidia.ko.xz", b"\xfd7zXZ", "is compressed"),
        ("nvidia.ko", b"", "cannot be read as a kernel module"),
        ("nvidia.ko", b"\x7fELF but not more", "cannot be read as a kernel module"),
        ("nvidia.ko", ko(license="GPL"), "it has no vermagic"),
    ],
)
def test_files_that_are_no_modules(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    make_tree(tmp_path, {f"lib/modules/{KERNEL}/{name}": content})
    with pytest.raises(Failure, match=words) as caught:
        Modules().read(str(tmp_path), KERNEL)
    assert caught.value.code is Code.TREE_INVALID


# -- loading


def test_load(programs: Path, tmp_path: Path) -> None:
    insmod = fake_program(programs, "insmod", "")
    Modules(tmp_path).load(NVIDIA, ("NVreg_ModifyDeviceFiles=0", "NVreg_X=a b"))
    assert calls(insmod) == ["/t/nvidia.ko NVreg_ModifyDeviceFiles=0 NVreg_X=a b"]


def test_module_that_is_there_already_is_fine(programs: Path, tmp_path: Path) -> None:
    fake_program(
        programs, "insmod", "echo 'insmod: ERROR: could not insert module x: File exists' >&2; exit 1"
    )
    Modules(tmp_path).load(NVIDIA, ())


@pytest.mark.parametrize(
    ("errno_text", "log", "code", "retry", "words"),
    [
        (
            "Invalid module format",
            f"nvidia: version magic '6.1.0-55 SMP' should be '{VERMAGIC}'",
            Code.VERMAGIC_MISMATCH,
            False,
            "version magic '6.1.0-55 SMP' should be",
        ),
        (
            "Invalid module format",
            "nvidia: disagrees about version of symbol module_layout",
            Code.MODULE_REFUSED,
            False,
            "disagrees about version of symbol",
        ),
        ("Exec format error", "", Code.MODULE_REFUSED, False, "insmod says: insmod: ERROR"),
        ("Unknown symbol in module", "nvidia: Unknown symbol drm_x", Code.SYMBOL_UNKNOWN, False, "drm_x"),
        ("Operation not permitted", "Lockdown: insmod: unsigned module", Code.LOCKDOWN, False, "Lockdown"),
        ("Key was rejected by service", "", Code.MODULE_REJECTED, False, "signed"),
        ("Required key not available", "", Code.MODULE_REJECTED, False, "signed"),
        ("No such device", "NVRM: No NVIDIA GPU found.", Code.GPU_REFUSED, True, "NVRM: No NVIDIA GPU"),
        ("No such file or directory", "", Code.TREE_INVALID, False, "'/t/nvidia.ko' is not there"),
        ("Invalid argument", "", Code.MODULE_REFUSED, True, "refused"),
    ],
)
def test_what_a_refusal_means(
    programs: Path,
    tmp_path: Path,
    errno_text: str,
    log: str,
    code: Code,
    retry: bool,  # noqa: FBT001
    words: str,
) -> None:
    root = make_tree(
        tmp_path, {"proc/sys/kernel/osrelease": KERNEL + "\n", "dev/kmsg": "4,1,1,-;NVRM: old\n"}
    )
    record = f"3,2,2,-;{log}\n SUBSYSTEM=pci" if log else "6,2,2,-;usb 1-1: new device"
    script = f'printf "%s\\n" "{record}" >>{root}/dev/kmsg\n'
    script += f"echo 'insmod: ERROR: could not insert module /t/nvidia.ko: {errno_text}' >&2; exit 1"
    fake_program(programs, "insmod", script)
    with pytest.raises(Failure) as caught:
        Modules(root).load(NVIDIA, ())
    assert caught.value.code is code
    assert caught.value.retry is retry
    assert caught.value.remedy
    assert words in caught.value.sentence
    assert "old" not in caught.value.sentence
    assert "usb" not in caught.value.sentence


def test_neighbouring_kernel_with_equal_vermagic_flags(programs: Path, tmp_path: Path) -> None:
    root = make_tree(tmp_path, {"proc/sys/kernel/osrelease": "6.1.0-50-amd64\n"})
    fake_program(programs, "insmod", "echo 'Invalid module format' >&2; exit 1")
    with pytest.raises(Failure, match=f"built for '{VERMAGIC}', this is '6.1.0-50-amd64'") as caught:
        Modules(root).load(NVIDIA, ())
    assert caught.value.code is Code.VERMAGIC_MISMATCH


def test_kernel_that_takes_no_more_modules(programs: Path, tmp_path: Path) -> None:
    root = make_tree(tmp_path, {"proc/sys/kernel/modules_disabled": "1\n"})
    fake_program(programs, "insmod", "echo 'Operation not permitted' >&2; exit 1")
    with pytest.raises(Failure, match="modules_disabled") as caught:
        Modules(root).load(NVIDIA, ())
    assert caught.value.code is Code.LOCKDOWN


@needs_root
@pytest.mark.skipif(shutil.which("insmod") is None, reason="kmod is not installed")
def test_real_insmod_of_a_missing_file(tmp_path: Path) -> None:
    absent = ModuleFile("nvidia", str(tmp_path / "absent.ko"), "", VERMAGIC, ())
    with pytest.raises(Failure) as caught:
        Modules().load(absent, ())
    assert caught.value.code in {Code.TREE_INVALID, Code.MODULE_REFUSED, Code.LOCKDOWN}


# -- the kernel's log


def test_news_are_new_relevant_and_few(tmp_path: Path) -> None:
    root = make_tree(tmp_path, {"dev/kmsg": "6,1,1,-;NVRM: before\n"})
    with kernel_log.since_now(root) as news, (root / "dev/kmsg").open("a") as log:
        log.writelines(f"6,{n},1,-;NVRM: line {n}\n KEY=value; nvidia\n" for n in range(8))
        log.write("6,9,1,-;nvidia: loading out-of-tree module taints kernel.\n6,10,1,-;eth0: link\n")
        log.flush()
        assert news.about("nvidia") == "; ".join(f"NVRM: line {n}" for n in range(4, 8))


def test_no_log_is_fine(tmp_path: Path) -> None:
    with kernel_log.since_now(tmp_path) as news:
        assert news.about("nvidia") == ""


@needs_root
@pytest.mark.skipif(not os.access("/dev/kmsg", os.W_OK), reason="no /dev/kmsg")
def test_real_kernel_log() -> None:
    with kernel_log.since_now(Path("/")) as news:
        assert news.about("nvidia") == ""
        Path("/dev/kmsg").write_text("<7>nvidiad's tests: a line about a module\n")
        assert news.about("nvidia") == "nvidiad's tests: a line about a module"


# -- modules of the host


def test_host_modules_in_one_process(programs: Path, tmp_path: Path) -> None:
    modprobe = fake_program(programs, "modprobe", "")
    root = make_tree(tmp_path, {"sys/module/i2c_core/parameters": None})
    assert Modules(root).load_from_host(("i2c-core", "drm", "ipmi_msghandler")) == ()
    assert calls(modprobe) == ["-a -- drm ipmi_msghandler"]


def test_no_process_where_all_are_there(programs: Path, tmp_path: Path) -> None:
    modprobe = fake_program(programs, "modprobe", "exit 1")
    root = make_tree(tmp_path, {"sys/module/i2c_core": None, "sys/module/drm": None})
    assert Modules(root).load_from_host(("i2c_core", "drm")) == ()
    assert calls(modprobe) == []


def test_host_modules_that_are_absent(programs: Path, tmp_path: Path) -> None:
    # drm comes, video is built in without parameters and shows nowhere, ipmi-devintf is not there
    script = f"mkdir -p {tmp_path}/sys/module/drm\n"
    script += (
        "echo 'modprobe: WARNING: Module ipmi-devintf not found in directory /lib/modules/6' >&2; exit 1"
    )
    fake_program(programs, "modprobe", script)
    assert Modules(tmp_path).load_from_host(("drm", "video", "ipmi-devintf")) == ("ipmi-devintf",)


def test_host_without_any_modules(programs: Path, tmp_path: Path) -> None:
    fake_program(programs, "modprobe", "echo 'modprobe: FATAL: no /lib/modules' >&2; exit 1")
    assert Modules(tmp_path).load_from_host(("drm", "video")) == ("drm", "video")


# -- unloading


def test_unload(programs: Path, tmp_path: Path) -> None:
    rmmod = fake_program(programs, "rmmod", f"rm -r {tmp_path}/sys/module/nvidia_uvm")
    modules = Modules(make_tree(tmp_path, loaded_module("nvidia_uvm")))
    modules.unload("nvidia_uvm")
    modules.unload("nvidia_uvm")
    assert calls(rmmod) == ["nvidia_uvm"]


def test_module_in_use_names_who_uses_it(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_program(
        programs, "rmmod", "echo 'rmmod: ERROR: Module nvidia is in use by: nvidia_uvm' >&2; exit 1"
    )
    root = make_tree(tmp_path, loaded_module("nvidia") | {"sys/module/nvidia/holders/nvidia_uvm": None})
    monkeypatch.setattr(
        holders, "scan", lambda _: (Holder(42, "cuda", "train.service"), Holder(43, "x", ""))
    )
    with pytest.raises(Failure) as caught:
        Modules(root).unload("nvidia")
    assert caught.value.code is Code.MODULE_IN_USE
    assert caught.value.sentence == (
        "module 'nvidia' is in use by module nvidia_uvm, process 42 (cuda) of train.service, process 43 (x)"
    )


def test_unload_that_fails_otherwise(programs: Path, tmp_path: Path) -> None:
    fake_program(
        programs, "rmmod", "echo 'rmmod: ERROR: could not remove: Operation not permitted' >&2; exit 1"
    )
    with pytest.raises(Failure, match="Operation not permitted") as caught:
        Modules(make_tree(tmp_path, loaded_module("nvidia"))).unload("nvidia")
    assert caught.value.code is Code.COMMAND_FAILED


# -- firmware


def test_firmware_path_is_written_without_newline(tmp_path: Path) -> None:
    path = "sys/module/firmware_class/parameters/path"
    modules = Modules(make_tree(tmp_path, {path: "\n"}))
    assert modules.firmware_path() == ""
    modules.set_firmware_path("/opt/nvidia/current/lib/firmware")
    assert (tmp_path / path).read_bytes() == b"/opt/nvidia/current/lib/firmware"
    assert modules.firmware_path() == "/opt/nvidia/current/lib/firmware"
    modules.set_firmware_path("")
    assert (tmp_path / path).read_bytes() == b"\0"
    assert modules.firmware_path() == ""


def test_kernel_without_firmware_path(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="cannot write '/x' to"):
        Modules(tmp_path).set_firmware_path("/x")


# -- holders

DEVICES = (
    "Character devices:\n  1 mem\n195 nvidia\n195 nvidiactl\n234 nvidia-uvm\n\nBlock devices:\n254 virtblk\n"
)
POD = "1b2c3d4e-0000-1111-2222-333344445555"
POD_SYSTEMD = POD.replace("-", "_")
CONTAINER = "ab" * 32


@pytest.mark.parametrize(
    ("cgroup", "owner"),
    [
        ("0::/system.slice/nvidia-persistenced.service\n", "nvidia-persistenced.service"),
        ("0::/system.slice/system-getty.slice/getty@tty1.service/sub\n", "getty@tty1.service"),
        ("0::/user.slice/user-1000.slice/session-3.scope\n", "session-3.scope"),
        (f"0::/system.slice/docker-{CONTAINER}.scope\n", f"container {CONTAINER[:12]}"),
        (
            f"0::/kubepods.slice/kubepods-burstable-pod{POD_SYSTEMD}.slice/cri-containerd-{CONTAINER}.scope",
            f"pod {POD}, container {CONTAINER[:12]}",
        ),
        (
            f"4:memory:/x\n1:name=systemd:/kubepods/besteffort/pod{POD}/{CONTAINER}\n",
            f"pod {POD}, container {CONTAINER[:12]}",
        ),
        (
            f"0::/kubepods.slice/kubepods-pod{'0f' * 16}.slice/crio-{CONTAINER}.scope",
            f"pod {'0f' * 16}, container abababababab",
        ),
        ("5:devices:/\n1:name=systemd:/system.slice/a.service\n0::/\n", "a.service"),
        ("0::/\n", ""),
        ("0::/init.scope\n", "init.scope"),
        ("", ""),
        ("nonsense", ""),
    ],
)
def test_owner(cgroup: str, owner: str) -> None:
    assert holders.owner(cgroup) == owner


@needs_root
def test_holders_are_those_with_a_device_open(tmp_path: Path) -> None:
    root = make_tree(
        tmp_path,
        {
            "proc/devices": DEVICES,
            "proc/self": None,
            "proc/1/comm": "systemd\n",
            "proc/1/fd/0": "-> /dev/null",
            "proc/1/fd/3": "-> socket:[1]",
            "proc/20/comm": "python train.py\n",
            "proc/20/cgroup": "0::/system.slice/train.service\n",
            "proc/20/fd/7": f"-> {tmp_path}/dev/nvidia-uvm",
            "proc/3/comm": "persistenced\n",
            "proc/3/fd/1": f"-> {tmp_path}/dev/nvidia0",
            "proc/3/fd/2": f"-> {tmp_path}/dev/nvidia0",
            "proc/4/comm": "gone\n",
            "proc/5/fd/1": f"-> {tmp_path}/dev/nvidia-regular-file",
            "dev/nvidia-regular-file": "",
        },
    )
    os.mknod(tmp_path / "dev/nvidia0", 0o020666, os.makedev(195, 0))
    os.mknod(tmp_path / "dev/nvidia-uvm", 0o020666, os.makedev(234, 0))
    assert Modules(root).holders() == (
        Holder(3, "persistenced", ""),
        Holder(20, "python train.py", "train.service"),
    )


@needs_root
def test_holders_among_real_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holders, "majors", lambda _: frozenset({1}))
    with Path("/dev/zero").open("rb"):
        assert os.getpid() in {holder.pid for holder in holders.scan(Path("/"))}

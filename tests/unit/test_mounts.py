# SPDX-License-Identifier: Apache-2.0
"""Mounts: facts from mount tables of real hosts, and real overlays in a mount namespace of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nvidiad.nouns.errors import Code, Failure
from nvidiad.world.mounts import Mounts
from tests.unit.trees import make_tree, needs_root

ROOT_MOUNT = "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
OURS = (
    "90 23 0:55 / /usr/lib64 ro,relatime shared:50 - overlay nvidia"
    " ro,lowerdir=/opt/nvidia/535.309.01/3975.2.0/lib64:/usr/lib64\n"
)
USR = "23 22 254:3 / /usr ro,relatime shared:2 - btrfs /dev/mapper/usr ro\n"
SYSEXT = "80 23 0:44 / /usr ro,nodev,relatime shared:40 - overlay sysext ro,lowerdir=/run/x:/usr\n"


def host(root: Path, table: str) -> Mounts:
    return Mounts(make_tree(root, {"proc/self/mountinfo": table, "usr/lib64": None, "usr/lib": None}))


def test_plain_host(tmp_path: Path) -> None:
    facts = host(tmp_path, ROOT_MOUNT + USR).facts()
    assert facts.overlay_lower is None
    assert not facts.usr_is_overlay
    assert not facts.lib64_is_lib
    assert facts.lib64_exists


def test_our_overlay(tmp_path: Path) -> None:
    facts = host(tmp_path, ROOT_MOUNT + USR + OURS).facts()
    assert facts.overlay_lower == ("/opt/nvidia/535.309.01/3975.2.0/lib64", "/usr/lib64")


@pytest.mark.parametrize(
    "line",
    [
        OURS.replace("overlay nvidia", "overlay other"),
        OURS.replace("overlay nvidia", "ext4 nvidia"),
        OURS.replace("/usr/lib64 ro", "/usr/lib ro"),
    ],
)
def test_overlays_of_others(tmp_path: Path, line: str) -> None:
    assert host(tmp_path, ROOT_MOUNT + USR + line).facts().overlay_lower is None


def test_overlay_hidden_by_a_merged_system_extension(tmp_path: Path) -> None:
    facts = host(tmp_path, ROOT_MOUNT + USR + OURS + SYSEXT).facts()
    assert facts.usr_is_overlay
    assert facts.overlay_lower is None


def test_one_directory_of_libraries(tmp_path: Path) -> None:
    make_tree(tmp_path, {"proc/self/mountinfo": ROOT_MOUNT, "usr/lib64": None, "usr/lib": "-> lib64"})
    assert Mounts(tmp_path).facts().lib64_is_lib


def test_target_behind_a_symlink(tmp_path: Path) -> None:
    table = ROOT_MOUNT + USR + OURS.replace("/usr/lib64 ro", "/usr/lib ro")
    make_tree(tmp_path, {"proc/self/mountinfo": table, "usr/lib": None, "usr/lib64": "-> lib"})
    facts = Mounts(tmp_path).facts()
    assert facts.overlay_lower is not None
    assert facts.lib64_is_lib


def test_no_lib64(tmp_path: Path) -> None:
    facts = Mounts(make_tree(tmp_path, {"proc/self/mountinfo": ROOT_MOUNT, "usr/lib": None})).facts()
    assert not facts.lib64_exists
    assert not facts.lib64_is_lib


def test_no_mount_table(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="cannot read"):
        Mounts(tmp_path).facts()


@pytest.mark.parametrize("lower", ["/opt/a:b", "/opt/a,upperdir=/tmp", "/opt/a\\", "relative/path"])
def test_paths_that_mean_something_to_mount_are_refused(tmp_path: Path, lower: str) -> None:
    with pytest.raises(Failure, match="cannot be part of an overlay") as caught:
        host(tmp_path, ROOT_MOUNT).overlay(lower, "/usr/lib64")
    assert caught.value.code is Code.EXPOSURE_FAILED


def in_namespace(script: str, directory: Path) -> str:
    """Run Python in a mount namespace of its own, with `work` a fresh tmpfs; what it printed."""
    prelude = (
        "from pathlib import Path; import os, subprocess\n"
        "from nvidiad.world.mounts import Mounts\n"
        "from nvidiad.nouns.errors import Failure\n"
        f"work = {str(directory)!r}\n"
        "subprocess.run(['mount', '-t', 'tmpfs', 'tmpfs', work], check=True)\n"
        "def put(path, text):\n"
        "    (Path(work) / path).parent.mkdir(parents=True, exist_ok=True)\n"
        "    (Path(work) / path).write_text(text)\n"
        "def names(path): return sorted(os.listdir(f'{work}/{path}'))\n"
        "put('one/libcuda.so.1', 'one'); put('two/libcuda.so.1', 'two'); put('lib64/libc.so.6', 'c')\n"
        "mounts, target = Mounts(), f'{work}/lib64'\n"
        "def ours(): return mounts._ours(mounts._table(), target)\n"
    )
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", sys.executable, "-c", prelude + script],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _can_overlay() -> bool:
    return "overlay" in Path("/proc/filesystems").read_text() or Path("/sys/module/overlay").exists()


needs_overlay = pytest.mark.skipif(not _can_overlay(), reason="this kernel has no overlayfs")


@needs_root
@needs_overlay
def test_overlay_and_back(tmp_path: Path) -> None:
    out = in_namespace(
        """
mounts.overlay(f"{work}/one", target)
print(ours() == (f"{work}/one", target), names("lib64"))
mounts.overlay(f"{work}/one", target)  # there already
print(sum(f" {target} " in line for line in open("/proc/self/mountinfo")))
try:
    put("lib64/new", "")
except OSError as error:
    print(error.strerror)
mounts.unmount(target)
mounts.unmount(target)  # gone already
print(ours(), names("lib64"))
""",
        tmp_path,
    )
    assert out.splitlines() == [
        "True ['libc.so.6', 'libcuda.so.1']",
        "1",
        "Read-only file system",
        "None ['libc.so.6']",
    ]


@needs_root
@needs_overlay
def test_another_driver_replaces_the_first_and_does_not_cover_it(tmp_path: Path) -> None:
    out = in_namespace(
        """
mounts.overlay(f"{work}/one", target)
mounts.overlay(f"{work}/two", target)
print(Path(target, "libcuda.so.1").read_text())
print(sum(f" {target} " in line for line in open("/proc/self/mountinfo")))
""",
        tmp_path,
    )
    assert out.split() == ["two", "1"]


@needs_root
@needs_overlay
def test_busy_overlay_goes_and_its_users_keep_their_files(tmp_path: Path) -> None:
    out = in_namespace(
        """
mounts.overlay(f"{work}/one", target)
held = open(f"{target}/libcuda.so.1")
mounts.unmount(target)
print(ours(), names("lib64"), held.read())
""",
        tmp_path,
    )
    assert out.strip() == "None ['libc.so.6'] one"


@needs_root
@needs_overlay
def test_mounts_of_others_stay(tmp_path: Path) -> None:
    out = in_namespace(
        """
options = f"ro,lowerdir={work}/one:{target}"
subprocess.run(["mount", "-t", "overlay", "sysext", "-o", options, target], check=True)
mounts.unmount(target)
print(names("lib64"))
""",
        tmp_path,
    )
    assert out.strip() == "['libc.so.6', 'libcuda.so.1']"


@needs_root
@needs_overlay
def test_mount_that_fails_says_what_mount_said(tmp_path: Path) -> None:
    out = in_namespace(
        """
try:
    mounts.overlay(f"{work}/absent", target)
except Failure as failure:
    print(failure.code, "|", failure.sentence)
""",
        tmp_path,
    )
    assert out.startswith("exposure-failed | 'mount -t overlay nvidia -o ro,lowerdir=")
    assert "exited with 32: mount: " in out


@needs_root
@needs_overlay
def test_overlay_too_deep_says_what_the_kernel_said(tmp_path: Path) -> None:
    out = in_namespace(
        """
for depth in range(3):
    options = f"ro,lowerdir={work}/one:{target}"
    subprocess.run(["mount", "-t", "overlay", "other", "-o", options, target], capture_output=True)
try:
    mounts.overlay(f"{work}/two", target)
except Failure as failure:
    print(failure.code, "|", failure.sentence)
""",
        tmp_path,
    )
    assert out.startswith("exposure-failed | 'mount -t overlay")
    if Path("/dev/kmsg").exists():
        assert "the kernel says: overlay" in out

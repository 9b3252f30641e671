# SPDX-License-Identifier: Apache-2.0
"""Nodes: which there should be (tables), and real device nodes in a directory that is not /dev."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from nvidiad.nouns.errors import Code, Failure
from nvidiad.world.nodes import Access, Node, Nodes, access_of, desired, minors
from tests.unit.trees import make_tree, needs_root

if TYPE_CHECKING:
    from pathlib import Path

DEVICES = "Character devices:\n  1 mem\n{}\nBlock devices:\n254 virtblk\n"
OPEN_550 = "195 nvidia\n195 nvidiactl\n195 nvidia-modeset\n511 nvidia-uvm\n508 nvidia-caps\n"
OLD_535 = "195 nvidia-frontend\n"
PARAMS = "ModifyDeviceFiles: 0\nDeviceFileUID: 0\nDeviceFileGID: 44\nDeviceFileMode: 432\n"
INFORMATION = "Model: \t\t NVIDIA\nDevice Minor: \t {}\nGPU Excluded:\t No\n"


@pytest.mark.parametrize(
    ("majors", "gpus", "options", "nodes"),
    [
        ({}, [0], {}, []),
        ({"mem": 1, "nvidia-uvm-old": 9}, [0], {"modeset": True}, []),
        ({"nvidia-frontend": 195}, [], {}, [("nvidiactl", 195, 255)]),
        (
            {"nvidia": 195, "nvidiactl": 195},
            [1, 0],
            {"modeset": True},
            [
                ("nvidiactl", 195, 255),
                ("nvidia0", 195, 0),
                ("nvidia1", 195, 1),
                ("nvidia-modeset", 195, 254),
            ],
        ),
        ({"nvidia-uvm": 511}, [], {}, [("nvidia-uvm", 511, 0), ("nvidia-uvm-tools", 511, 1)]),
        (
            {"nvidia-caps": 508},
            [],
            {"caps": {2: Access(0o444), 1: Access(0o400)}},
            [("nvidia-caps/nvidia-cap1", 508, 1), ("nvidia-caps/nvidia-cap2", 508, 2)],
        ),
        ({"nvidia-nvswitch": 500}, [], {"switches": 0}, []),
        (
            {"nvidia-nvswitch": 500, "nvidia-nvlink": 501},
            [],
            {"switches": 2},
            [
                ("nvidia-nvlink", 501, 0),
                ("nvidia-nvswitchctl", 500, 255),
                ("nvidia-nvswitch0", 500, 0),
                ("nvidia-nvswitch1", 500, 1),
            ],
        ),
    ],
)
def test_desired(
    majors: dict[str, int], gpus: list[int], options: dict[str, object], nodes: list[tuple[str, int, int]]
) -> None:
    found = desired(majors, gpus, **options)  # type: ignore[arg-type]
    assert [(node.name, node.major, node.minor) for node in found] == nodes


def test_access_of_nodes_with_parameters_and_without() -> None:
    access = Access(0o660, 0, 44)
    found = {
        node.name: node.access for node in desired({"nvidia": 195, "nvidia-uvm": 511}, [0], access=access)
    }
    assert found["nvidia0"] == found["nvidiactl"] == access
    assert found["nvidia-uvm"] == Access()


def test_minors() -> None:
    one, two = ("0000:03:00.0", INFORMATION.format(4)), ("0000:01:00.0", INFORMATION.format(0))
    assert minors([one, two]) == (0, 4)
    assert minors([("0000:03:00.0", ""), ("0000:01:00.0", ""), ("0001:00:00.0", "")]) == (0, 1, 2)


@pytest.mark.parametrize(
    ("text", "access"),
    [
        ("", Access()),
        (PARAMS, Access(0o660, 0, 44)),
        ("DeviceFileMinor: 1\nDeviceFileMode: 256\nDeviceFileModify: 1\n", Access(0o400)),
        ("DeviceFileMode: rubbish\nDeviceFileUID:\n", Access()),
        ("DeviceFileMode: 2541\n", Access(0o755)),
    ],
)
def test_access_of(text: str, access: Access) -> None:
    assert access_of(text, Access()) == access


def host(root: Path, devices: str, **more: str | None) -> Nodes:
    return Nodes(make_tree(root, {"proc/devices": DEVICES.format(devices), "dev/char": None} | more))


GPU = "proc/driver/nvidia/gpus/0000:01:00.0/information"


def full(root: Path, devices: str = OPEN_550) -> Nodes:
    return host(
        root,
        devices,
        **{
            GPU: INFORMATION.format(0),
            "proc/driver/nvidia/params": PARAMS,
            "proc/driver/nvidia/capabilities/mig/config": "DeviceFileMinor: 1\nDeviceFileMode: 256\n",
            "proc/driver/nvidia/capabilities/mig/monitor": "DeviceFileMinor: 2\nDeviceFileMode: 292\n",
            "sys/module/nvidia_modeset/initstate": "live\n",
        },
    )


def listing(root: Path) -> dict[str, str]:
    """Everything in /dev: `195:0 660 0:44` for a node, `-> target` for a link."""
    found = {}
    for path in sorted((root / "dev").rglob("*")):
        info = path.lstat()
        name = str(path.relative_to(root / "dev"))
        if stat.S_ISCHR(info.st_mode):
            device = f"{os.major(info.st_rdev)}:{os.minor(info.st_rdev)}"
            found[name] = f"{device} {stat.S_IMODE(info.st_mode):o} {info.st_uid}:{info.st_gid}"
        elif path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_dir():
            found[name] = f"directory {stat.S_IMODE(info.st_mode):o}"
        else:
            found[name] = "file"
    return found


EXPECTED = {
    "char": "directory 755",
    "char/195:0": "-> ../nvidia0",
    "char/195:254": "-> ../nvidia-modeset",
    "char/195:255": "-> ../nvidiactl",
    "char/508:1": "-> ../nvidia-caps/nvidia-cap1",
    "char/508:2": "-> ../nvidia-caps/nvidia-cap2",
    "char/511:0": "-> ../nvidia-uvm",
    "char/511:1": "-> ../nvidia-uvm-tools",
    "nvidia-caps": "directory 755",
    "nvidia-caps/nvidia-cap1": "508:1 400 0:0",
    "nvidia-caps/nvidia-cap2": "508:2 444 0:0",
    "nvidia-modeset": "195:254 660 0:44",
    "nvidia-uvm": "511:0 666 0:0",
    "nvidia-uvm-tools": "511:1 666 0:0",
    "nvidia0": "195:0 660 0:44",
    "nvidiactl": "195:255 660 0:44",
}


def test_no_driver(tmp_path: Path) -> None:
    assert host(tmp_path, "").missing() == ()
    assert Nodes(tmp_path / "absent").missing() == ()


def test_all_missing(tmp_path: Path) -> None:
    assert host(tmp_path, OLD_535, **{GPU: INFORMATION.format(0)}).missing() == (
        "/dev/nvidiactl",
        "/dev/char/195:255",
        "/dev/nvidia0",
        "/dev/char/195:0",
    )


@needs_root
def test_make_and_remove(tmp_path: Path) -> None:
    nodes = full(tmp_path)
    before = os.umask(0o077)
    try:
        nodes.make()
    finally:
        os.umask(before)
    assert listing(tmp_path) == EXPECTED
    assert nodes.missing() == ()
    nodes.make()
    assert listing(tmp_path) == EXPECTED
    nodes.remove()
    assert listing(tmp_path) == {"char": "directory 755"}
    nodes.remove()


@needs_root
def test_what_is_wrong_is_put_right(tmp_path: Path) -> None:
    nodes = full(tmp_path)
    make_tree(
        tmp_path, {"dev/nvidiactl": "a file", "dev/nvidia-modeset": "-> null", "dev/char/195:0": "-> ../x"}
    )
    os.mknod(tmp_path / "dev/nvidia-uvm", 0o020600, os.makedev(510, 0))  # the major before a reload
    (tmp_path / "dev/char/510:0").symlink_to("../nvidia-uvm")
    os.mknod(tmp_path / "dev/nvidia0", 0o020600, os.makedev(195, 0))  # right, but for its mode
    (tmp_path / "dev/.nvidiactl.nvidiad").touch()  # left by a make that was killed
    missing = nodes.missing()
    assert {"/dev/nvidiactl", "/dev/nvidia-modeset", "/dev/char/195:0", "/dev/nvidia-uvm"} <= set(missing)
    assert "/dev/nvidia0" not in missing
    nodes.make()
    assert listing(tmp_path) == EXPECTED


@needs_root
def test_what_is_not_the_drivers_stays(tmp_path: Path) -> None:
    nodes = full(tmp_path)
    make_tree(
        tmp_path, {"dev/nvidia7": "a file", "dev/char/1:3": "-> ../null", "dev/nvidia-caps/notes": "text"}
    )
    os.mknod(tmp_path / "dev/null", 0o020666, os.makedev(1, 3))
    os.mknod(tmp_path / "dev/nvidiafoo", 0o020666, os.makedev(1, 3))
    nodes.make()
    nodes.remove()
    assert listing(tmp_path) == {
        "char": "directory 755",
        "char/1:3": "-> ../null",
        "null": "1:3 644 0:0",
        "nvidia-caps": "directory 755",
        "nvidia-caps/notes": "file",
        "nvidia7": "file",
        "nvidiafoo": "1:3 644 0:0",
    }


@needs_root
def test_removal_without_the_driver(tmp_path: Path) -> None:
    nodes = full(tmp_path)
    nodes.make()
    (tmp_path / "proc/devices").write_text(DEVICES.format(""))
    assert nodes.missing() == ()
    nodes.remove()
    assert listing(tmp_path) == {"char": "directory 755"}


@needs_root
def test_directory_in_the_way(tmp_path: Path) -> None:
    nodes = host(tmp_path, OLD_535, **{"dev/nvidiactl": None})
    with pytest.raises(Failure, match="cannot make '/dev/nvidiactl': Is a directory") as caught:
        nodes.make()
    assert caught.value.code is Code.EXPOSURE_FAILED


def test_node_names_its_link() -> None:
    node = Node("nvidia-caps/nvidia-cap1", 508, 1)
    assert (node.path, node.link, node.link_target) == (
        "/dev/nvidia-caps/nvidia-cap1",
        "/dev/char/508:1",
        "../nvidia-caps/nvidia-cap1",
    )

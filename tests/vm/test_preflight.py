# SPDX-License-Identifier: Apache-2.0
"""Preflight on a real kernel with MODVERSIONS: a module of another build of it never comes to insmod."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING

import pytest

from tests.payload import builder
from tests.vm import modules, road
from tests.vm.disk import RELEASES

if TYPE_CHECKING:
    from pathlib import Path

    from tests.vm.kernels import Kernels
    from tests.vm.machine import Machine

pytestmark = pytest.mark.vm

SYMBOL = b"module_layout"
CURRENT = "/opt/nvidia/current"


def of_another_build(module: Path, folder: Path) -> Path:
    """The same module with another CRC of the symbol that stands for the whole kernel's layout.

    Debian keeps the release of a kernel over builds whose CRCs are the same, so a real one is not to be had.
    """
    data = module.read_bytes()
    at = data.index(SYMBOL + bytes(56 - len(SYMBOL)))
    (crc,) = struct.unpack_from("<Q", data, at - 8)
    made = folder / module.name
    made.write_bytes(data[: at - 8] + struct.pack("<Q", crc ^ 0x5A5A) + data[at:])
    return made


def check(vm: Machine) -> dict[str, tuple[str, str]]:
    """What `nvidiad check` says of each thing: code and sentence."""
    found = json.loads(vm.run(f"{road.NVIDIAD} check --json=short").out)
    return {row["check"]: (row["code"], row["text"]) for row in found}


def test_a_module_of_another_build_of_the_same_release_is_refused_before_insmod(
    vm: Machine, bed_kernels: Kernels, tmp_path: Path
) -> None:
    kernel = bed_kernels.a
    right = modules.build(kernel, road.DRIVER)
    (tmp_path / "wrong").mkdir()
    wrong = {**right, "nvidia": of_another_build(right["nvidia"], tmp_path / "wrong")}
    tree = builder.payload(
        tmp_path / "image",
        driver=road.DRIVER,
        release=("flatcar", RELEASES["A"]),
        kernel=kernel.release,
        modules=wrong,
    )
    road.configure(vm)
    road.publish(vm, [tree])
    heard = vm.output("dmesg | wc -l")
    vm.run("systemctl start nvidiad", check=True)
    document = road.wait_status(
        vm, lambda d: (d["problem"] or {}).get("code") == "symbol-mismatch", "symbol-mismatch"
    )
    sentence = document["problem"]["sentence"]
    assert f"nvidia.ko' was built for another build of kernel '{kernel.release}': 1 of its " in sentence
    assert "('module_layout')" in sentence
    assert "this very kernel" in document["problem"]["remedy"]
    # Nobody asked the kernel, and nothing of it is there.
    assert "nvidia" not in vm.output(f"dmesg | tail -n +{int(heard) + 1}").lower()
    assert vm.run(f"test -e /sys/module/nvidia || test -e {CURRENT} || ls /dev/nvidia*").rc != 0
    assert document["driver"]["installed"] == []

    # By hand it gets as far as insmod: that is what the kernel says to it. The daemon would be at it, too.
    vm.run("systemctl stop nvidiad.socket nvidiad", check=True)
    vm.wait_for('[ -z "$(docker ps -q)" ]', 180)
    road.install(vm, tree)
    code, text = check(vm)["symbols"]
    assert (code, "module_layout" in text) == ("symbol-mismatch", True)
    vm.run(f"insmod /opt/nvidia/{road.DRIVER}/{RELEASES['A']}/lib/modules/{kernel.release}/nvidia.ko")
    assert "disagrees about version of symbol module_layout" in vm.output("dmesg | tail -5")
    vm.run(f"rm -rf /opt/nvidia/{road.DRIVER}", check=True)

    # The same modules as they were built are compared, too, and taken.
    road.install(vm, road.payload(tmp_path / "right", "A", kernel))
    vm.run("systemctl start nvidia nvidia-cdi", check=True)
    found = check(vm)
    assert found["symbols"][0] == "ok"
    assert "imports have the CRCs that" in found["symbols"][1]
    assert {name for name, (code, _) in found.items() if code not in ("ok", "skipped")} == {"daemon"}
    assert found["driver"][0] == "ok"

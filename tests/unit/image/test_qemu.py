# SPDX-License-Identifier: Apache-2.0
"""The machine of a proof: its command line and its initrd."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvidiad.image.world import qemu
from nvidiad.image.world.qemu import Hardware
from nvidiad.nouns.errors import Code, Permanent
from tests.unit.image.test_cpio import listed


def words(hardware: Hardware, size: int = 1 << 20) -> list[str]:
    return qemu.command_line(hardware, "x86_64", Path("/k"), Path("/i"), Path("/c"), size)


def value(line: list[str], option: str) -> str:
    return line[line.index(option) + 1]


@pytest.mark.parametrize(
    ("hardware", "accelerator", "model"),
    [
        pytest.param(
            Hardware(), "tcg,thread=single,tb-size=256", "max,la57=off,-avx,-avx2", id="emulated-by-default"
        ),
        pytest.param(
            Hardware(accelerator="tcg,tb-size=64"), "tcg,tb-size=64", "max,la57=off,-avx,-avx2", id="tcg"
        ),
        pytest.param(Hardware(accelerator="kvm"), "kvm", "host", id="kvm"),
    ],
)
def test_the_accelerator_can_be_chosen(hardware: Hardware, accelerator: str, model: str) -> None:
    line = words(hardware)
    assert (value(line, "-accel"), value(line, "-cpu")) == (accelerator, model)


def test_the_machine_has_neither_disk_nor_network_and_ends_at_a_panic() -> None:
    line = words(Hardware(append="module.sig_enforce=1"))
    assert "-nodefaults" in line and "-no-reboot" in line and value(line, "-nic") == "none"
    assert not {"-drive", "-hda", "-netdev", "-device", "-virtfs"} & set(line)
    append = value(line, "-append").split()
    assert "panic=-1" in append and "rdinit=/nvidiad/init" in append and append[-1] == "module.sig_enforce=1"


@pytest.mark.parametrize(("size", "memory"), [(0, 512), (1, 516), (1 << 20, 516), (64 << 20, 768)])
def test_memory_grows_with_the_modules(size: int, memory: int) -> None:
    assert value(words(Hardware(), size), "-m") == str(memory)


def test_an_architecture_without_a_machine_is_refused() -> None:
    with pytest.raises(Permanent, match="'aarch64'") as caught:
        qemu.command_line(Hardware(), "aarch64", Path("/k"), Path("/i"), Path("/c"), 0)
    assert caught.value.code is Code.PROOF_FAILED


def test_the_initrd_holds_the_modules_in_their_order() -> None:
    data = qemu.initrd(b"busybox", b"init", [("video", b"1"), ("nvidia", b"22")])
    found = {name: (mode, content) for name, mode, content in listed(data)}
    assert found["nvidiad/list"][1] == b"video\nnvidia\n"
    assert found["nvidiad/modules/nvidia.ko"] == (0o100644, b"22")
    assert found["nvidiad/busybox"] == (0o100755, b"busybox")
    assert found["nvidiad/init"] == (0o100755, b"init")
    assert found["dev/console"][0] == 0o020600


def test_a_busybox_that_is_not_there_or_needs_libraries_is_refused() -> None:
    for program in ("no-such-busybox", "cat"):
        with pytest.raises(Permanent, match=f"no static '{program}'"):
            qemu.static_busybox(program)

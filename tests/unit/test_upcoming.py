# SPDX-License-Identifier: Apache-2.0
"""What comes next where nobody has slots: a file, a command, and the kernels in /boot."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from nvidiad.nouns.errors import Code, Failure
from nvidiad.nouns.upcoming import StagedSystem
from nvidiad.world.slots import Slots
from nvidiad.world.upcoming import NextSystems

RUNNING, NEXT = "6.1.0-56-amd64", "6.1.0-57-amd64"


def announced(root: Path, text: str | None, command: tuple[str, ...] = ()) -> StagedSystem | None:
    if text is not None:
        (root / "next").write_text(text)
    return NextSystems(root, Slots(root), PurePosixPath("/next"), command).announced()


def test_a_file_or_a_command_names_what_comes_next(tmp_path: Path) -> None:
    assert announced(tmp_path, None) is None
    assert announced(tmp_path, "") is None
    found = announced(tmp_path, 'VERSION_ID="12.9"\nKERNEL=6.1.0-56-amd64\n')
    assert found == StagedSystem("12.9", "6.1.0-56-amd64", f"'{tmp_path}/next'")
    told = announced(tmp_path, "", ("/bin/echo", "KERNEL=6.1.0-57-amd64"))
    assert told == StagedSystem("", "6.1.0-57-amd64", "'/bin/echo KERNEL=6.1.0-57-amd64'")


@pytest.mark.parametrize(
    "text", ["nonsense", "VERSION_ID=../../etc", "KERNEL='a b'", "KERNEL=6.1\n" + "#" * (1 << 16)]
)
def test_a_bad_announcement_names_its_file(tmp_path: Path, text: str) -> None:
    with pytest.raises(Failure, match="/next'") as caught:
        announced(tmp_path, text)
    assert caught.value.code is Code.NEXT_UNREADABLE


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        (("/bin/false",), "/bin/false"),
        (("/bin/echo", "nonsense"), "'/bin/echo nonsense': it has neither VERSION_ID= nor KERNEL="),
        (("sh", "-c", "yes KERNEL=6.1 | head -n 9999"), "it prints more than 65536 characters"),
    ],
)
def test_a_bad_command_is_named(tmp_path: Path, command: tuple[str, ...], fault: str) -> None:
    with pytest.raises(Failure, match=fault) as caught:
        announced(tmp_path, None, command)
    assert caught.value.code is Code.NEXT_UNREADABLE


def test_somebody_asks_for_a_reboot(tmp_path: Path) -> None:
    known = NextSystems(tmp_path, Slots(tmp_path), None, ())
    assert not known.reboot_required()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/reboot-required").touch()
    assert known.reboot_required()


# -- /boot -------------------------------------------------------------------------------------------


def debian(root: Path, *kernels: str, running: str = RUNNING, **more: str) -> Path:
    """A Debian host with these kernels; `more` are links, by name with `/` as `__`."""
    texts = {
        "proc/sys/kernel/osrelease": f"{running}\n",
        "proc/cmdline": f"BOOT_IMAGE=/boot/vmlinuz-{running} root=/dev/vda1\n",
        "usr/lib/os-release": "ID=debian\nVERSION_ID=12\n",
    }
    for kernel in kernels:
        texts[f"boot/vmlinuz-{kernel}"] = "x"
        texts[f"usr/lib/modules/{kernel}/modules.dep"] = ""
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "lib").symlink_to("usr/lib")
    (root / "etc").mkdir()
    (root / "etc/os-release").symlink_to("../usr/lib/os-release")
    for name, target in more.items():
        (root / name.replace("__", "/")).symlink_to(target)
    return root


def in_boot(root: Path) -> StagedSystem | None:
    return NextSystems(root, Slots(root), None, ()).announced()


def test_the_newest_kernel_in_boot_is_next(tmp_path: Path) -> None:
    debian(tmp_path, "6.1.0-9-amd64", RUNNING, NEXT)
    assert in_boot(tmp_path) == StagedSystem("12", NEXT, f"'{tmp_path}/boot/vmlinuz-{NEXT}'")


def test_the_link_wins_over_the_newest_kernel(tmp_path: Path) -> None:
    root = debian(tmp_path, RUNNING, NEXT, "6.12.9-amd64", vmlinuz=f"boot/vmlinuz-{NEXT}")
    assert in_boot(root) == StagedSystem("12", NEXT, f"'{root}/vmlinuz'")
    (root / "vmlinuz").unlink()
    (root / "boot/vmlinuz").symlink_to(f"vmlinuz-{NEXT}")
    assert in_boot(root) == StagedSystem("12", NEXT, f"'{root}/boot/vmlinuz'")
    # Back to the one that runs: nothing comes.
    (root / "vmlinuz").symlink_to(f"/boot/vmlinuz-{RUNNING}")
    assert in_boot(root) is None


@pytest.mark.parametrize("link", ["boot/vmlinuz-6.1.0-58-amd64", "boot/memtest", ".."])
def test_a_link_to_no_kernel_says_nothing(tmp_path: Path, link: str) -> None:
    root = debian(tmp_path, RUNNING, NEXT, vmlinuz=link)
    found = in_boot(root)
    assert found is not None
    assert found.source == f"'{root}/boot/vmlinuz-{NEXT}'"


def test_a_rescue_kernel_without_modules_is_not_next(tmp_path: Path) -> None:
    root = debian(tmp_path, RUNNING)
    (root / "boot/vmlinuz-9-rescue-0123456789abcdef").write_text("x")
    (root / "boot/vmlinuz-..").write_text("x")
    assert in_boot(root) is None
    # dpkg unpacks the modules before the package is configured.
    (root / "usr/lib/modules/9-rescue-0123456789abcdef").mkdir()
    assert in_boot(root) is not None


def test_a_host_that_does_not_boot_from_its_boot_has_no_next_kernel_there(tmp_path: Path) -> None:
    assert in_boot(debian(tmp_path, NEXT, running="6.18.44-fc")) is None


def test_a_host_without_boot_has_none(tmp_path: Path) -> None:
    assert in_boot(tmp_path) is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("usr/lib/systemd/system/update-engine.service", ""),
        ("etc/systemd/system/update-engine.service", ""),
        ("proc/cmdline", "BOOT_IMAGE=/flatcar/vmlinuz-a"),
        ("sys/class/block/vda3/uevent", "PARTNAME=USR-A\n"),
    ],
)
def test_boot_is_not_looked_at_where_something_else_updates_the_os(
    tmp_path: Path, name: str, text: str
) -> None:
    root = debian(tmp_path, RUNNING, NEXT)
    assert in_boot(root) is not None
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)
    assert in_boot(root) is None


def test_who_names_a_file_or_a_command_is_believed_when_it_says_nothing(tmp_path: Path) -> None:
    root = debian(tmp_path, RUNNING, NEXT)
    assert announced(root, None) is None
    assert NextSystems(root, Slots(root), None, ("/bin/true",)).announced() is None

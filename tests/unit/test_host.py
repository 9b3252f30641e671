# SPDX-License-Identifier: Apache-2.0
"""The host as files tell of it, and the files of the configuration."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from nvidiad.nouns.errors import Code, Failure
from nvidiad.nouns.model import ModuleRules, Release
from nvidiad.world.host import SECURE_BOOT, LinuxHost, config_fragments
from nvidiad.world.last_good import LastGood
from tests.unit.trees import make_tree

DATA = Path(__file__).parents[1] / "data"


def put(path: Path, text: str | bytes = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


# -------------------------------------------------------------------------------------------- host


def test_release_of_etc_goes_before_that_of_usr(tmp_path: Path) -> None:
    host = LinuxHost(tmp_path)
    assert host.release() == Release("linux", "")
    (tmp_path / "usr/lib").mkdir(parents=True)
    shutil.copy(DATA / "os-release/flatcar-4593.2.5", tmp_path / "usr/lib/os-release")
    assert host.release().version == "4593.2.5"
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").symlink_to("../usr/lib/nothing")
    assert host.release().version == "4593.2.5"
    (tmp_path / "etc/os-release").unlink()
    put(tmp_path / "etc/os-release", "ID=x\nVERSION_ID=1\n")
    assert host.release() == Release("x", "1")


def test_kernel_and_boot(tmp_path: Path) -> None:
    host = LinuxHost(tmp_path)
    put(tmp_path / "proc/sys/kernel/osrelease", "6.12.102-flatcar\n")
    put(tmp_path / "proc/sys/kernel/random/boot_id", "5d4c9b2e-1f0a-4d52-9d7e-0a8f6f3f1c11\n")
    assert host.kernel() == "6.12.102-flatcar"
    assert host.boot_id() == "5d4c9b2e-1f0a-4d52-9d7e-0a8f6f3f1c11"


def test_kernel_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"proc/sys/kernel/osrelease.* does not say which kernel runs"):
        LinuxHost(tmp_path).kernel()


def test_this_host() -> None:
    host = LinuxHost(Path("/"))
    assert host.kernel() == os.uname().release
    assert host.release().id
    assert host.lockdown() in ("none", "integrity", "confidentiality")
    assert len(host.boot_id()) == 36


RULES = {
    "a kernel that says nothing": ({}, ModuleRules()),
    "neither": (
        {"sys/module/module/parameters/sig_enforce": "N\n", "proc/sys/kernel/modules_disabled": "0\n"},
        ModuleRules(),
    ),
    "module.sig_enforce": (
        {"sys/module/module/parameters/sig_enforce": "Y\n"},
        ModuleRules(signed_only=True),
    ),
    "kernel.modules_disabled": ({"proc/sys/kernel/modules_disabled": "1\n"}, ModuleRules(closed=True)),
}


@pytest.mark.parametrize("name", RULES)
def test_what_the_kernel_demands_of_modules(tmp_path: Path, name: str) -> None:
    content, rules = RULES[name]
    assert LinuxHost(make_tree(tmp_path, content)).module_rules() == rules


@pytest.mark.parametrize(
    ("variable", "on"),
    [
        (b"\x06\0\0\0\x01", True),
        (b"\x06\0\0\0\0", False),
        (b"\x06\0\0\0", None),
        (b"", None),
        (b"\x06\0\0\0\x01\x01", None),
    ],
    ids=["on", "off", "short", "empty", "long"],
)
def test_secure_boot(tmp_path: Path, variable: bytes, on: bool | None) -> None:  # noqa: FBT001
    assert LinuxHost(tmp_path).secure_boot() is None
    assert LinuxHost(make_tree(tmp_path, {SECURE_BOOT: variable})).secure_boot() is on


def test_the_machine_is_this_one(tmp_path: Path) -> None:
    assert LinuxHost(tmp_path).machine() == os.uname().machine


def test_lockdown(tmp_path: Path) -> None:
    host = LinuxHost(tmp_path)
    assert host.lockdown() == "none"
    put(tmp_path / "sys/kernel/security/lockdown", "none [integrity] confidentiality\n")
    assert host.lockdown() == "integrity"


def test_extensions_that_are_merged(tmp_path: Path) -> None:
    host = LinuxHost(tmp_path)
    assert host.extensions() == ()
    # on disk, yet not merged
    put(tmp_path / "etc/extensions/flatcar-nvidia-drivers-535.raw")
    assert host.extensions() == ()
    put(tmp_path / "usr/.systemd-sysext/extensions", "docker-flatcar\nflatcar-nvidia-drivers-535\n")
    assert host.extensions() == ("flatcar-nvidia-drivers-535",)


def test_extensions_by_their_release_files(tmp_path: Path) -> None:
    directory = tmp_path / "usr/lib/extension-release.d"
    for name in (
        "docker-flatcar",
        "nvidia-drivers-570-open",
        "nvidia-runtime",
        "nvidia-driver",
        "kubernetes",
    ):
        put(directory / f"extension-release.{name}", "ID=flatcar\n")
    put(directory / "nvidia-drivers-570")
    put(tmp_path / "opt/.systemd-sysext/extensions", "nvidia-drivers-570-open\n\n")
    assert LinuxHost(tmp_path).extensions() == ("nvidia-drivers-570-open",)


# --------------------------------------------------------------------------------------- fragments


def test_fragments_in_order(tmp_path: Path) -> None:
    main = put(tmp_path / "nvidiad.toml", "a = 1\n")
    for name in ("20-b.toml", "10-a.toml", "Z.toml", ".hidden.toml", "10-a.toml~", "README"):
        put(tmp_path / "conf.d" / name, f"# {name}\n")
    assert config_fragments(main) == [
        (str(main), "a = 1\n"),
        (f"{tmp_path}/conf.d/10-a.toml", "# 10-a.toml\n"),
        (f"{tmp_path}/conf.d/20-b.toml", "# 20-b.toml\n"),
        (f"{tmp_path}/conf.d/Z.toml", "# Z.toml\n"),
    ]


def test_no_fragment_needs_to_exist(tmp_path: Path) -> None:
    assert config_fragments(tmp_path / "nvidiad.toml") == []
    assert config_fragments(tmp_path / "nowhere/nvidiad.toml") == []
    put(tmp_path / "conf.d/a.toml", "")
    assert config_fragments(tmp_path / "nvidiad.toml") == [(f"{tmp_path}/conf.d/a.toml", "")]


def test_link_to_dev_null_is_no_fragment(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d/a.toml").symlink_to("/dev/null")
    assert config_fragments(tmp_path / "nvidiad.toml") == []


def test_byte_order_mark_and_line_ends(tmp_path: Path) -> None:
    main = put(tmp_path / "nvidiad.toml", b"\xef\xbb\xbf[driver]\r\n")
    assert config_fragments(main) == [(str(main), "[driver]\r\n")]


def latin(path: Path) -> None:
    put(path, b"# fine\n# Stra\xdfe\n")


def huge(path: Path) -> None:
    put(path, b"#" * (1 << 20) + b"\n")


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        pytest.param(latin, "line 2 is not UTF-8", id="latin-1"),
        pytest.param(huge, "it is larger than 1 MiB", id="huge"),
        pytest.param(Path.mkdir, "it is not a regular file", id="directory"),
        pytest.param(os.mkfifo, "it is not a regular file", id="pipe"),
        pytest.param(dangling, "the link leads nowhere", id="dangling link"),
        pytest.param(loop, "", id="link to itself"),
    ],
)
@pytest.mark.parametrize("name", ["nvidiad.toml", "conf.d/a.toml"])
def test_fragment_that_cannot_be_read(tmp_path: Path, name: str, make: object, why: str) -> None:
    (tmp_path / "conf.d").mkdir()
    assert callable(make)
    make(tmp_path / name)
    with pytest.raises(Failure) as caught:
        config_fragments(tmp_path / "nvidiad.toml")
    assert caught.value.code is Code.CONFIG_INVALID
    assert caught.value.sentence.startswith(f"Cannot read the configuration '{tmp_path / name}': ")
    assert caught.value.sentence.endswith(why)


def test_conf_d_that_is_no_directory(tmp_path: Path) -> None:
    put(tmp_path / "conf.d")
    with pytest.raises(Failure, match=r"conf\.d': Not a directory"):
        config_fragments(tmp_path / "nvidiad.toml")


# -- the last good configuration ---------------------------------------------------------------------


def test_the_last_good_configuration_is_what_was_written_last(tmp_path: Path) -> None:
    kept = LastGood(tmp_path / "state/configuration.json")
    assert kept.read() == []
    kept.write([("a.toml", "x = 1\n"), ("b.toml", "\u00e9")])
    assert kept.read() == [("a.toml", "x = 1\n"), ("b.toml", "\u00e9")]
    file = tmp_path / "state/configuration.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    written = file.stat().st_ino
    kept.write([("a.toml", "x = 1\n"), ("b.toml", "\u00e9")])
    assert file.stat().st_ino == written, "it was written though it said the same"
    kept.write([])
    assert kept.read() == []


@pytest.mark.parametrize(
    "data", [b"", b"{}", b'["a"]', b'[["a"]]', b'[["a", 3]]', b"\xff", b"[" * 100_000, b'[["a", "b", "c"]]']
)
def test_a_last_good_configuration_that_cannot_be_understood_is_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "configuration.json").write_bytes(data)
    assert LastGood(tmp_path / "configuration.json").read() == []


def test_a_last_good_configuration_that_cannot_be_written_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Failure, match=r"configuration\.json"):
        LastGood(tmp_path / "file/configuration.json").write([("a", "b")])

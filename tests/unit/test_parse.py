# SPDX-License-Identifier: Apache-2.0
"""Everything that is read from the kernel, the OS and the bus: as hosts write it, and as nobody should."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvidiad.nouns import naming
from nvidiad.nouns.model import Flavour, ModuleFile, Release, UpdateStatus
from nvidiad.thought import parse

DATA = Path(__file__).parents[1] / "data"


def data(name: str) -> str:
    return (DATA / name).read_text()


# --------------------------------------------------------------------------------------- os-release


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("coreos-1632.2.0", ("coreos", "1632.2.0", "Container Linux by CoreOS 1632.2.0 (Ladybug)")),
        ("flatcar-3510.3.1", ("flatcar", "3510.3.1", "Flatcar Container Linux by Kinvolk 3510.3.1 (Oklo)")),
        ("flatcar-4593.2.5", ("flatcar", "4593.2.5", "Flatcar Container Linux by Kinvolk 4593.2.5 (Oklo)")),
        ("flatcar-4757.1.0", ("flatcar", "4757.1.0", "Flatcar Container Linux by Kinvolk 4757.1.0 (Oklo)")),
        ("debian-12", ("debian", "12", "Debian GNU/Linux 12 (bookworm)")),
        ("debian-13", ("debian", "13", "Debian GNU/Linux 13 (trixie)")),
        ("debian-sid", ("debian", "", "Debian GNU/Linux forky/sid")),
    ],
)
def test_os_release_of_a_host(file: str, expected: tuple[str, str, str]) -> None:
    assert parse.os_release(data(f"os-release/{file}")) == Release(*expected)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        pytest.param("A=plain", "plain", id="unquoted"),
        pytest.param("A='it is \"so\" $x \\n'", 'it is "so" $x \\n', id="single quotes keep everything"),
        pytest.param(r'A="a\"b\\c\$d\`e\n"', 'a"b\\c$d`e\\n', id="double quotes escape four characters"),
        pytest.param(r"A=a\ b\'c", "a b'c", id="backslash outside quotes"),
        pytest.param("A=\"x\"'y'z", "xyz", id="pieces are joined"),
        pytest.param("A=", "", id="empty"),
        pytest.param("  A=b  \r", "b", id="white space around"),
        pytest.param("A=1\nA=2", "2", id="the last one wins"),
        pytest.param("A=b c", None, id="two words"),
        pytest.param('A="open', None, id="quote left open"),
        pytest.param("A='x\nB=2'", None, id="value over two lines"),
        pytest.param("A=x\\", None, id="backslash at the end"),
        pytest.param('A="x\\', None, id="backslash at the end in quotes"),
        pytest.param("#A=b", None, id="comment"),
        pytest.param("A =b", None, id="space before the sign"),
        pytest.param("9A=b", None, id="not a name"),
        pytest.param("", None, id="nothing"),
    ],
)
def test_assignment(line: str, value: str | None) -> None:
    assert parse.assignments(line).get("A") == value


@pytest.mark.parametrize(
    ("text", "version"),
    [
        pytest.param(
            "VERSION=4593.0.0+nightly-20260101-2100\n", "4593.0.0+nightly-20260101-2100", id="dev build"
        ),
        pytest.param('VERSION="12 (bookworm)"\n', "12", id="VERSION with a code name"),
        pytest.param("VERSION_ID=../../etc\nVERSION=7\n", "7", id="a path is no version"),
        pytest.param("VERSION_ID=a..b\n", "", id="nor are two dots"),
        pytest.param("", "", id="empty file"),
    ],
)
def test_os_release_version(text: str, version: str) -> None:
    assert parse.os_release(text) == Release("linux", version)


@given(st.text())
def test_os_release_takes_anything(text: str) -> None:
    release = parse.os_release(text)
    assert release.id
    assert not release.version or naming.is_version(release.version)


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\n\r\0", categories=["L", "N", "P", "S", "Zs"]))
)
def test_a_quoted_value_comes_back(value: str) -> None:
    escaped = value
    for char in '\\"$`':
        escaped = escaped.replace(char, "\\" + char)
    assert parse.assignments(f'A="{escaped}"') == {"A": value}


# ----------------------------------------------------------------------------------------- lockdown


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("[none] integrity confidentiality\n", "none"),
        ("none [integrity] confidentiality\n", "integrity"),
        ("none integrity [confidentiality]\n", "confidentiality"),
        ("", "none"),
        ("none integrity confidentiality\n", "none"),
    ],
)
def test_lockdown(text: str, level: str) -> None:
    assert parse.lockdown(text) == level


@given(st.text())
def test_lockdown_takes_anything(text: str) -> None:
    assert parse.lockdown(text)


# ------------------------------------------------------------------------------------------- mounts


def test_overlay_on_coreos() -> None:
    mounts = parse.mountinfo(data("mountinfo/coreos-1632"))
    mount = parse.top(mounts, "/usr/lib64")
    assert mount == parse.Mount(
        point="/usr/lib64",
        root="/",
        type="overlay",
        source="nvidiad",
        options=("ro", "seclabel", "lowerdir=/opt/nvidia/384.111/1632.2.0/lib64:/usr/lib64"),
    )
    assert parse.lower_directories(mount) == ("/opt/nvidia/384.111/1632.2.0/lib64", "/usr/lib64")


def test_merged_extensions_are_seen_at_usr() -> None:
    mounts = parse.mountinfo(data("mountinfo/flatcar-4593-sysext"))
    usr = parse.top(mounts, "/usr")
    assert usr is not None
    assert (usr.type, usr.source) == ("overlay", "sysext")
    assert "/run/systemd/sysext/extensions/flatcar-nvidia-drivers-535/usr" in parse.lower_directories(usr)
    etc = parse.top(mounts, "/etc")
    assert etc is not None
    assert parse.lower_directories(etc) == ("/sysroot/usr/share/flatcar/etc",)
    assert parse.top(mounts, "/usr/lib64") is None


def test_mount_hidden_by_one_above_it_is_not_seen() -> None:
    mounts = parse.mountinfo(data("mountinfo/overlay-hidden-by-sysext"))
    assert [mount.point for mount in mounts] == ["/", "/usr", "/usr"]


def test_mount_made_after_the_one_above_it_is_seen() -> None:
    mounts = parse.mountinfo(data("mountinfo/overlay-on-sysext"))
    mount = parse.top(mounts, "/usr/lib64")
    assert mount is not None
    assert parse.lower_directories(mount)[0] == "/opt/nvidia/550.163.01/4593.2.5/lib64"


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ("/mnt/legacy", ("/mnt/a:b", "/mnt/c,d", "/mnt/e\\f")),
        ("/mnt/fsconfig", ("/mnt/a:b", "/mnt/c,d", "/mnt/e f", "/mnt/g\\h")),
        ("/mnt/linux-6.5", ("/mnt/a:b", "/mnt/e f", "/mnt/data")),
        ("/mnt/with space", ()),
    ],
)
def test_lower_directories_with_odd_names(point: str, expected: tuple[str, ...]) -> None:
    mount = parse.top(parse.mountinfo(data("mountinfo/overlay-odd-names")), point)
    assert mount is not None
    assert parse.lower_directories(mount) == expected


def test_stacked_mounts_in_any_order() -> None:
    # After a move the table is not in the order of the stack.
    upper = "9 5 0:9 / /a rw - tmpfs upper rw"
    lower = "5 1 0:5 / /a rw - tmpfs lower rw"
    root = "1 0 0:1 / / rw - tmpfs root rw"
    for lines in ([upper, lower, root], [root, lower, upper]):
        mount = parse.top(parse.mountinfo("\n".join(lines)), "/a")
        assert mount is not None
        assert mount.source == "upper"


def test_root_mounted_on_the_initial_root_file_system() -> None:
    lines = (
        "1 1 0:2 / / rw - rootfs rootfs rw",
        "20 1 8:1 / / rw - ext4 /dev/sda1 rw",
        "21 20 0:3 / /proc rw - proc proc rw",
    )
    mounts = parse.mountinfo("\n".join(lines))
    assert [mount.source for mount in mounts] == ["rootfs", "/dev/sda1", "proc"]
    assert parse.top(mounts, "/") == mounts[1]


def test_optional_fields_and_lines_that_are_none() -> None:
    line = "7 1 0:7 /sub /a\\040b\\011c rw shared:1 master:2 unbindable - tmpfs none rw,size=1k"
    assert parse.mountinfo(f"garbage\n\n{line}\n1 2 3") == (
        parse.Mount("/a b\tc", "/sub", "tmpfs", "none", ("rw", "size=1k")),
    )


NUMBERS = st.integers(0, 5).map(str)
LINES = st.builds(
    "{} {} 0:1 / {} rw - {} src {}".format,
    NUMBERS,
    NUMBERS,
    st.lists(st.sampled_from("abc"), max_size=3).map(lambda names: "/" + "/".join(names)),
    st.sampled_from(["overlay", "tmpfs"]),
    st.sampled_from(["rw", "rw,lowerdir=/a:/b", "lowerdir+=/a:b", "lowerdir=" + "\\134:" * 3]),
)


@given(st.one_of(st.text(), st.lists(st.one_of(LINES, st.text(max_size=40)), max_size=12).map("\n".join)))
def test_mountinfo_takes_anything(text: str) -> None:
    mounts = parse.mountinfo(text)
    assert len(mounts) <= text.count("\n") + 1
    for mount in mounts:
        assert all(parse.lower_directories(mount)) or mount.type != "overlay"
        assert parse.top(mounts, mount.point) is not None


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), min_size=1))
def test_lower_directories_come_back(names: list[str]) -> None:
    escaped = [name.replace("\\", "\\\\").replace(":", "\\:") for name in names]
    for options in ((f"lowerdir={':'.join(escaped)}",), tuple(f"lowerdir+={name}" for name in names)):
        mount = parse.Mount("/x", "/", "overlay", "overlay", options)
        assert parse.lower_directories(mount) == tuple(names)


# ------------------------------------------------------------------------------------------ modules

MODINFO = (
    b"version=535.309.01\0license=NVIDIA\0firmware=nvidia/535.309.01/gsp_tu10x.bin\0"
    b"firmware=nvidia/535.309.01/gsp_ga10x.bin\0\0\0depends=drm\0name=nvidia\0"
    b"vermagic=6.1.0-56-cloud-amd64 SMP preempt mod_unload modversions \0"
)


def test_modinfo() -> None:
    fields = parse.modinfo(MODINFO)
    assert fields["version"] == ("535.309.01",)
    assert fields["firmware"] == ("nvidia/535.309.01/gsp_tu10x.bin", "nvidia/535.309.01/gsp_ga10x.bin")
    assert fields["vermagic"] == ("6.1.0-56-cloud-amd64 SMP preempt mod_unload modversions ",)
    assert "alias" not in fields


@given(st.binary())
def test_modinfo_takes_anything(section: bytes) -> None:
    assert all(parse.modinfo(section).values())


def elf(*, wide: bool, sections: dict[str, bytes], many: bool = False) -> bytes:
    """A little-endian ELF file; `many` puts the counts into the first section header."""
    table = [("", b""), *sections.items(), (".shstrtab", b"")]
    names = b"".join(name.encode() + b"\0" for name, _ in table)
    start = 64 if wide else 52
    body, headers, at = b"", b"", 0
    form = struct.Struct("<IIQQQQIIQQ" if wide else "<IIIIIIIIII")
    last = len(table) - 1
    for index, (name, content) in enumerate(table):
        content = names if index == last else content
        kind = 0 if index == 0 else 1
        fields = [at, kind, 0, 0, start + len(body), len(content), 0, 0, 1, 0]
        if index == 0 and many:
            fields[5], fields[6] = len(table), last
        headers += form.pack(*fields)
        body += content
        at += len(name) + 1
    header = struct.pack(
        "<16sHHIQQQIHHHHHH" if wide else "<16sHHIIIIIHHHHHH",
        b"\x7fELF" + bytes([2 if wide else 1, 1, 1]),
        *(1, 62, 1, 0, 0, start + len(body), 0, start, 0, 0, form.size),
        *((0, 0xFFFF) if many else (len(table), last)),
    )
    return header + body + headers


class Reader:
    """A file as elf_section reads it; it remembers how much was asked for."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.asked: list[int] = []

    def __call__(self, offset: int, size: int) -> bytes:
        self.asked.append(size)
        return self.content[offset : offset + size]


@pytest.mark.parametrize("many", [False, True], ids=["few", "many"])
@pytest.mark.parametrize("wide", [True, False], ids=["elf64", "elf32"])
def test_elf_section(wide: bool, many: bool) -> None:  # noqa: FBT001
    content = elf(wide=wide, many=many, sections={".text": b"\x90" * 5, ".modinfo": MODINFO})
    assert parse.elf_section(Reader(content), ".modinfo") == MODINFO
    assert parse.elf_section(Reader(content), ".modinf") is None
    assert parse.elf_section(Reader(content), "modinfo") is None


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_elf_section_of_a_compiled_object(tmp_path: Path) -> None:
    source = tmp_path / "m.c"
    source.write_text(
        '#define INFO static const char __attribute__((section(".modinfo"), used, aligned(1)))\n'
        'INFO a[] = "version=1.2";\n'
        'INFO b[] = "depends=drm,video";\n'
    )
    target = tmp_path / "m.ko"
    subprocess.run(["gcc", "-c", "-o", target, source], check=True)
    section = parse.elf_section(Reader(target.read_bytes()), ".modinfo")
    assert section is not None
    assert parse.modinfo(section) == {"version": ("1.2",), "depends": ("drm,video",)}


def patched(offset: int, form: str, value: int) -> bytes:
    content = bytearray(elf(wide=True, sections={".modinfo": MODINFO}))
    struct.pack_into(form, content, offset, value)
    return bytes(content)


def test_elf_without_sections() -> None:
    assert parse.elf_section(Reader(patched(40, "<Q", 0)), ".modinfo") is None


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x7fELF", id="cut in the identification"),
        pytest.param(b"\xfd7zXZ\0" + bytes(100), id="compressed module"),
        pytest.param(patched(5, "B", 2), id="big-endian"),
        pytest.param(patched(4, "B", 3), id="unknown class"),
        pytest.param(patched(40, "<Q", 1 << 63), id="section table beyond the end"),
        pytest.param(patched(58, "<H", 40), id="section headers of another size"),
        pytest.param(patched(60, "<H", 0xFFFE), id="more sections than the file has"),
        pytest.param(patched(62, "<H", 77), id="name table out of bounds"),
        pytest.param(elf(wide=True, sections={".modinfo": MODINFO})[:-1], id="cut at the end"),
        pytest.param(elf(wide=True, sections={})[:60], id="cut in the header"),
    ],
)
def test_elf_that_is_none(content: bytes) -> None:
    with pytest.raises(ValueError, match="ELF"):
        parse.elf_section(Reader(content), ".modinfo")


@given(
    wide=st.booleans(),
    many=st.booleans(),
    changes=st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 255)), max_size=8),
    cut=st.integers(0, 1000),
)
def test_damaged_elf_raises_or_reads_within_bounds(
    wide: bool,  # noqa: FBT001
    many: bool,  # noqa: FBT001
    changes: list[tuple[int, int]],
    cut: int,
) -> None:
    content = bytearray(elf(wide=wide, many=many, sections={".modinfo": MODINFO}))
    for at, value in changes:
        content[at % len(content)] = value
    reader = Reader(bytes(content[: len(content) - cut % 50]))
    try:
        section = parse.elf_section(reader, ".modinfo")
    except ValueError:
        section = None
    assert section is None or len(section) <= len(content)
    assert max(reader.asked) <= 1 << 24
    assert len(reader.asked) <= 6


@given(st.binary(max_size=200))
def test_elf_section_of_garbage(content: bytes) -> None:
    for prefix in (b"", b"\x7fELF\x02\x01", b"\x7fELF\x01\x01"):
        try:
            parse.elf_section(Reader(prefix + content), ".modinfo")
        except ValueError:
            continue


def module(name: str, *depends: str) -> ModuleFile:
    return ModuleFile(name, f"/lib/{name}.ko", "1", "6.1 SMP", depends)


NVIDIA = (
    module("nvidia_drm", "drm", "drm_kms_helper", "nvidia-modeset"),
    module("nvidia_modeset", "nvidia", "video"),
    module("nvidia_uvm", "nvidia"),
    module("nvidia", "drm"),
    module("nvidia_peermem"),
)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (("nvidia", "nvidia-uvm", "nvidia-modeset"), ["nvidia", "nvidia_uvm", "nvidia_modeset"]),
        (("nvidia-drm",), ["nvidia", "nvidia_modeset", "nvidia_drm"]),
        (("nvidia_drm", "nvidia", "nvidia-uvm"), ["nvidia", "nvidia_modeset", "nvidia_drm", "nvidia_uvm"]),
        (("nvidia", "nvidia"), ["nvidia"]),
        (("nvidia", "nvidia-vgpu-vfio"), ["nvidia"]),
        ((), []),
    ],
)
def test_load_order(wanted: tuple[str, ...], expected: list[str]) -> None:
    assert [found.name for found in parse.load_order(NVIDIA, wanted)] == expected


def test_load_order_of_a_cycle() -> None:
    with pytest.raises(ValueError, match="a -> b -> a"):
        parse.load_order([module("a", "b"), module("b", "a")], ["a"])
    with pytest.raises(ValueError, match="a -> a"):
        parse.load_order([module("a", "a")], ["a"])


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdefg"), max_size=3)), max_size=8
    )
)
def test_dependencies_come_first(edges: list[tuple[str, list[str]]]) -> None:
    modules = [module(name, *depends) for name, depends in edges]
    try:
        order = [found.name for found in parse.load_order(modules, "abcdefg")]
    except ValueError:
        return
    last = {found.name: found for found in modules}
    assert sorted(order) == sorted(last)
    for name in order:
        for dependency in last[name].depends:
            assert dependency not in last or order.index(dependency) < order.index(name)


# --------------------------------------------------------------------------------- the loaded driver


def test_devices() -> None:
    majors = parse.devices(data("proc/devices"))
    assert majors["nvidia"] == 195
    assert majors["nvidia-uvm"] == 238
    assert majors["nvidia-caps"] == 236
    assert majors["nvidia-caps-imex-channels"] == 237
    assert "loop" not in majors
    assert "sd" not in majors


@given(st.text())
def test_devices_takes_anything(text: str) -> None:
    assert all(major >= 0 for major in parse.devices("Character devices:\n" + text).values())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            data("proc/version-proprietary"), ("535.309.01", Flavour.PROPRIETARY), id="proprietary"
        ),
        pytest.param(data("proc/version-open"), ("535.261.03", Flavour.OPEN), id="open"),
        pytest.param(
            "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  590.48  Release Build\n",
            ("590.48", Flavour.OPEN),
            id="two numbers, aarch64",
        ),
        pytest.param(
            "GCC version: 12.2.0\nNVRM version: NVIDIA UNIX x86_64 Kernel Module  384.111  Tue Dec 19 2017",
            ("384.111", Flavour.PROPRIETARY),
            id="of 2018, second line",
        ),
        pytest.param("NVRM version: NVIDIA UNIX x86_64 Kernel Module\n", None, id="no version"),
        pytest.param("GCC version:  gcc Kernel Module  12.2.0\n", None, id="not the driver's line"),
        pytest.param("", None, id="empty"),
    ],
)
def test_driver_version(text: str, expected: tuple[str, Flavour] | None) -> None:
    assert parse.driver_version(text) == expected


@given(st.text())
def test_driver_version_takes_anything(text: str) -> None:
    parse.driver_version(text)
    parse.driver_version("NVRM version: NVIDIA UNIX Open Kernel Module for " + text)


@pytest.mark.parametrize(
    ("text", "minor"),
    [
        (data("proc/information"), 3),
        ("Device Minor: \t 0\n", 0),
        ("Device Minor: \t N/A\n", None),
        ("Device Minor: -1\n", None),
        ("Model: Device Minor: 3\n", None),
        ("", None),
    ],
)
def test_gpu_minor(text: str, minor: int | None) -> None:
    assert parse.gpu_minor(text) == minor


@given(st.text())
def test_gpu_minor_takes_anything(text: str) -> None:
    minor = parse.gpu_minor("Device Minor:" + text)
    assert minor is None or minor >= 0


# ------------------------------------------------------------------------------------ update_engine

REBOOT = "UPDATE_STATUS_UPDATED_NEED_REBOOT"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param(
            (1700000000, 0.5, b"UPDATE_STATUS_DOWNLOADING", b"4593.2.5", 400),
            UpdateStatus("UPDATE_STATUS_DOWNLOADING", "4593.2.5", 0.5),
            id="bytes, as pystemd gives them",
        ),
        pytest.param((1, 0.0, REBOOT, "4593.2.5", 9), UpdateStatus(REBOOT, "4593.2.5", 0.0), id="strings"),
        pytest.param((0, 0.0, REBOOT, "0.0.0", 0), UpdateStatus(REBOOT, "", 0.0), id="after a restart"),
        pytest.param((0, 0.0, REBOOT, "0.0.0.0", 0), UpdateStatus(REBOOT, "", 0.0), id="old CoreOS"),
        pytest.param(
            (0, 0.0, REBOOT, "", 0), UpdateStatus(REBOOT, "", 0.0), id="locksmithctl's fake signal"
        ),
        pytest.param((0, 0.0, REBOOT, "10.0.0", 0), UpdateStatus(REBOOT, "10.0.0", 0.0), id="zeros in it"),
        pytest.param((0, 0.0, REBOOT, "../../etc", 0), UpdateStatus(REBOOT, "", 0.0), id="no path"),
        pytest.param((0, float("nan"), "X", "1", 0), UpdateStatus("X", "1", 0.0), id="not a number"),
        pytest.param((0, -1.0, "X", "1", 0), UpdateStatus("X", "1", 0.0), id="below 0"),
        pytest.param((0, 7, "X", "1", 0), UpdateStatus("X", "1", 1.0), id="above 1"),
        pytest.param((0, 0.0, b"\xff", b"\xff", 0), UpdateStatus("\ufffd", "", 0.0), id="not UTF-8"),
    ],
)
def test_update_status(fields: tuple[object, ...], expected: UpdateStatus) -> None:
    assert parse.update_status(fields) == expected


@pytest.mark.parametrize(
    "fields", [(), (1,), (0, 0.0, "X", "1", 0, 0), (0, "0", "X", "1", 0), (0, 0.0, 1, "1", 0)]
)
def test_update_status_of_another_type(fields: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match="update_engine"):
        parse.update_status(fields)


@given(
    st.lists(
        st.one_of(st.integers(), st.floats(), st.text(), st.binary(), st.none()), min_size=4, max_size=6
    )
)
def test_update_status_takes_anything(fields: list[object]) -> None:
    try:
        status = parse.update_status(fields)
    except ValueError:
        return
    assert 0.0 <= status.progress <= 1.0

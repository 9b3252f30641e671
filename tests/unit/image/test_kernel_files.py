# SPDX-License-Identifier: Apache-2.0
"""A kernel's files: found where each OS has them, links followed within, compressed modules read."""

from __future__ import annotations

import gzip
import lzma
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from nvidiad.image.world.kernel_files import KernelFiles, inside
from nvidiad.nouns.errors import Code, Permanent

if TYPE_CHECKING:
    from pathlib import Path

K = "6.1.0-50-amd64"


def put(path: Path, data: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "place", [f"usr/boot/vmlinuz-{K}", f"boot/vmlinuz-{K}", f"usr/lib/modules/{K}/vmlinuz"]
)
def test_the_kernel_is_found_where_an_os_has_it(tmp_path: Path, place: str) -> None:
    put(tmp_path / place, b"kernel")
    put(tmp_path / "boot/vmlinuz-6.1.0-56-amd64", b"another")
    assert KernelFiles(tmp_path, K).image() == tmp_path / place


def test_what_is_missing_is_named_with_its_kernel(tmp_path: Path) -> None:
    files = KernelFiles(tmp_path, K)
    for ask, what in (
        (files.image, f"'vmlinuz-{K}'"),
        (files.listing, f"'modules.dep' in 'lib/modules/{K}'"),
        (lambda: files.module("kernel/a.ko"), "'kernel/a.ko'"),
    ):
        with pytest.raises(Permanent, match=what) as caught:
            ask()
        assert caught.value.code is Code.SOURCE_INVALID and f"'{K}'" in caught.value.sentence
    assert (files.builtin(), files.symvers()) == ("", "")


def test_debians_headers_are_found_through_their_link(tmp_path: Path) -> None:
    headers = f"usr/src/linux-headers-{K}"
    put(tmp_path / headers / "Module.symvers", b"0x1\ta\tvmlinux\tEXPORT_SYMBOL\t\n")
    link = tmp_path / "usr/lib/modules" / K / "build"
    link.parent.mkdir(parents=True)
    link.symlink_to(f"/{headers}")
    (tmp_path / "lib").symlink_to("usr/lib")
    assert inside(tmp_path, f"lib/modules/{K}/build/Module.symvers") == tmp_path / headers / "Module.symvers"
    assert "vmlinux" in KernelFiles(tmp_path, K).symvers()


@pytest.mark.parametrize(
    ("target", "found"),
    [
        pytest.param("/etc/inner", True, id="absolute"),
        pytest.param("../../../../etc/inner", True, id="above-the-top"),
        pytest.param("/etc/hostname", False, id="only-outside"),
        pytest.param("link", False, id="circle"),
        pytest.param("/etc", False, id="directory"),
    ],
)
def test_links_never_lead_outside(tmp_path: Path, target: str, found: bool) -> None:  # noqa: FBT001
    put(tmp_path / "etc/inner", b"x")
    (tmp_path / "a").mkdir()
    (tmp_path / "a/link").symlink_to(target)
    assert inside(tmp_path, "a/link") == (tmp_path / "etc/inner" if found else None)


@pytest.mark.parametrize("suffix", ["", ".xz", ".gz", ".zst"])
def test_modules_are_given_decompressed(tmp_path: Path, suffix: str) -> None:
    content = b"\x7fELF and so on" * 100
    path = put(tmp_path / f"lib/modules/{K}/kernel/drm.ko{suffix}", content)
    match suffix:
        case ".xz":
            path.write_bytes(lzma.compress(content))
        case ".gz":
            path.write_bytes(gzip.compress(content))
        case ".zst":
            if shutil.which("zstd") is None:
                pytest.skip("there is no zstd")
            packed = subprocess.run(["zstd", "-qc"], input=content, capture_output=True, check=True).stdout
            path.write_bytes(packed)
    before = sorted(tmp_path.rglob("*"))
    assert KernelFiles(tmp_path, K).module(f"kernel/drm.ko{suffix}") == content
    assert sorted(tmp_path.rglob("*")) == before


def test_without_depmod_modules_are_found_as_modules_order_names_them(tmp_path: Path) -> None:
    folder = tmp_path / "lib/modules" / K
    put(folder / "modules.order", b"kernel/drm.ko\n")
    put(folder / "kernel/drm.ko.xz", lzma.compress(b"drm"))
    files = KernelFiles(tmp_path, K)
    assert files.listing() == "kernel/drm.ko\n"
    assert files.module("kernel/drm.ko") == b"drm"
    put(folder / "modules.dep", b"kernel/drm.ko.xz:\n")
    assert files.listing() == "kernel/drm.ko.xz:\n"


@pytest.mark.parametrize("suffix", [".xz", ".gz"])
def test_a_damaged_module_is_named(tmp_path: Path, suffix: str) -> None:
    put(tmp_path / f"lib/modules/{K}/drm.ko{suffix}", b"\xfd7zXZ\0 or not")
    with pytest.raises(Permanent, match=r"drm\.ko.* cannot be read") as caught:
        KernelFiles(tmp_path, K).module(f"drm.ko{suffix}")
    assert caught.value.code is Code.SOURCE_INVALID


def test_what_is_not_there_is_fetched_once(tmp_path: Path) -> None:
    asked: list[str] = []

    def fetch(path: str, dest: Path) -> bool:
        asked.append(path)
        if path != f"/usr/lib/modules/{K}/modules.dep":
            return False
        put(dest / "modules.dep", b"kernel/a.ko:\n")
        return True

    files = KernelFiles(tmp_path, K, fetch)
    assert files.listing() == files.listing() == "kernel/a.ko:\n"
    assert asked == [f"/usr/lib/modules/{K}/modules.dep"]
    with pytest.raises(Permanent, match="has no 'vmlinuz-"):
        files.image()
    assert f"/boot/vmlinuz-{K}" in asked


def test_nothing_is_fetched_to_a_place_outside(tmp_path: Path) -> None:
    asked: list[str] = []

    def fetch(path: str, dest: Path) -> bool:
        asked.append(path)
        return False

    with pytest.raises(Permanent, match=r"has no '\.\./\.\./escape\.ko'"):
        KernelFiles(tmp_path, K, fetch).module("../../escape.ko")
    assert asked == []

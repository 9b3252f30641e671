# SPDX-License-Identifier: Apache-2.0
"""The parsers of nvidiad-image: feeds, digests, ELF files, packages, recipes, archives, consoles."""

from __future__ import annotations

import io
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from nvidiad.image.nouns.model import Architecture, Family
from nvidiad.image.thought import boot, compiler, cpio, debian, digests, elf, feeds, package, recipe
from nvidiad.image.world import tar
from nvidiad.nouns import naming
from nvidiad.nouns.errors import Failure
from nvidiad.nouns.model import Flavour
from nvidiad.world import files
from tests.fuzz.target import plain, reader, targets, text
from tests.unit.image.test_cpio import listed

URL = "https://feed.test/file"
DRIVER = "535.261.03"


def feed(data: bytes) -> None:
    """A feed tells of releases that may stand in a path and in a URL, whatever else it says."""
    said = text(data)
    found: list[str] = []
    with suppress(Failure):
        found += [entry.version for entry in feeds.feed(said, URL)]
    with suppress(Failure):
        found += feeds.listing(said, URL)
    with suppress(Failure):
        found.append(feeds.version_txt(said, Family.FLATCAR, URL))
    with suppress(Failure):
        found.append(feeds.package_kernel(said, URL))
    for version in found:
        assert naming.is_version(version), version
        feeds.channel_of(version)
        feeds.OFFICIAL[Family.FLATCAR].file("lts-2024", Architecture.AMD64, version, "version.txt")
    with suppress(Failure):
        for series in feeds.lts_info(said, URL):
            int(series.major), int(series.year)


def digest(data: bytes) -> None:
    assert len(digests.sha512(text(data), "image.bin", URL)) == 128


def elf_module(data: bytes) -> None:
    found = elf.kernel_module(reader(data), "lib/modules/x/nvidia.ko")
    plain(found.name, *found.exports, *found.undefined)


def elf_library(data: bytes) -> None:
    found = elf.library(reader(data), "lib64/libcuda.so.1")
    plain(found.soname, *found.needed)


def archive_of_kernel(data: bytes) -> None:
    """What is packed is unpacked as the same."""
    names = [f"n{number}" for number in range(len(data) % 7)]
    items = [cpio.file(name, data[: number * 11], 0o644) for number, name in enumerate(names)]
    assert listed(cpio.archive(items)) == [(item.name, item.mode, item.data) for item in items]


def driver_package(data: bytes) -> None:
    said = text(data)
    for flavour in Flavour:
        with suppress(Failure):
            _inside(package.from_manifest(said, DRIVER, flavour, graphics=True, pci=said))
        with suppress(Failure):
            _inside(package.from_manifest(said, DRIVER, flavour, graphics=False))
        with suppress(Failure):
            package.supported(said, flavour)
        with suppress(Failure):
            names = dict.fromkeys(said.split("\n"), "")
            _inside(package.from_names(names, DRIVER, flavour, graphics=True))
        package.device_ids(said, flavour)


def _inside(layout: package.Layout) -> None:
    for item in layout.items:
        assert not item.path.startswith("/") and ".." not in item.path.split("/"), item
    for link in layout.links:
        assert "/" not in link.target and ".." not in link.path.split("/"), link


def a_recipe(data: bytes) -> None:
    found, faults = recipe.read("recipe.toml", text(data))
    assert (found is None) == bool(faults)
    plain(*map(str, faults))


def debian_archive(data: bytes) -> None:
    said = text(data)
    debian.releases(said, Architecture.AMD64)
    debian.headers(said.split(), Architecture.AMD64)
    debian.suites(said)
    debian.toolchain(said, "6.1.0-50-amd64")
    debian.choose(debian.offers(said), DRIVER, Flavour.OPEN, graphics=True)


def console(data: bytes) -> None:
    found = boot.read_console(text(data))
    check = boot.boot_check(found, boot.Console("", ended=True, seconds=1.0), "6.1.0")
    plain(check.sentence)


def compiler_output(data: bytes) -> None:
    said = compiler.first_error(text(data).split("\n"))
    assert len(said) <= 300
    compiler.is_refusal(said)


def tar_archive(data: bytes) -> None:
    """Nothing of an archive comes to lie outside, and inside only plain files, directories and links."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None) as made:
        place = Path(made)
        inner = place / "in" / "side"
        try:
            tar.unpack(io.BytesIO(data), inner, "archive.tar")
        finally:
            assert [path.name for path in place.iterdir()] in ([], ["in"])
            assert [path.name for path in (place / "in").iterdir()] in ([], ["side"])
            for name, found in files.walk(inner):
                kind, mode = stat.S_IFMT(found.st_mode), stat.S_IMODE(found.st_mode)
                assert kind in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK), name
                assert kind == stat.S_IFLNK or not mode & 0o7022, name


TARGETS = targets(
    (feed, ()),
    (digest, (Failure,)),
    (elf_module, (ValueError,)),
    (elf_library, (ValueError,)),
    (archive_of_kernel, ()),
    (driver_package, ()),
    (a_recipe, ()),
    (debian_archive, (Failure,)),
    (console, ()),
    (compiler_output, ()),
    (tar_archive, (Failure,)),
)

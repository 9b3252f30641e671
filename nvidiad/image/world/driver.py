# SPDX-License-Identifier: Apache-2.0
"""Drivers as they come: NVIDIA's `.run` package, its redistributable archive, Debian's packages."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nvidiad.image.thought import package as packages
from nvidiad.image.world import tar
from nvidiad.nouns.errors import Code, Permanent
from nvidiad.nouns.model import Progress
from nvidiad.world import files, process

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nvidiad.image.nouns.model import DriverSource
    from nvidiad.image.thought.package import Layout

_EXTRACT = 900.0
_HEAD = 1 << 20
_SKIP = re.compile(rb'^skip="?(\d+)"?$', re.MULTILINE)
_MAGIC = (b"\xfd7zXZ", b"\x1f\x8b", b"BZh")
"""xz, gzip, bzip2: what Python reads."""
_DEBIAN_SOURCES = {"nvidia-open-kernel": "kernel-open", "nvidia-kernel": "kernel"}
_DEVICES = "usr/share/nvidia/nvidia.ids"


def check(driver: DriverSource, package: Path, tell: Callable[[Progress], None]) -> None:
    """Compare a package with the digest that its recipe gives; digest-mismatch where it differs."""
    total, done = package.stat().st_size, 0

    def advanced(size: int) -> None:
        nonlocal done
        done += size
        tell(Progress("check-driver", package.name, done, total))

    found = files.sha256(package, advanced)
    if driver.sha256 and found != driver.sha256.lower():
        raise Permanent(
            Code.DIGEST_MISMATCH,
            f"'{package}' has sha256 {found} instead of {driver.sha256}",
            "Fetch it again; if it stays so, do not use it: it is not the package that the recipe means.",
        )


def unpack_run(driver: DriverSource, package: Path, dest: Path) -> Layout:
    """Unpack a `.run` package into a directory that is not there yet, without executing it where possible.

    It is a shell script with a compressed tar behind it, whose first line the script names (`skip=`). The
    script itself would run a decompressor of its own, which need not be for this machine. What is compressed
    with something that Python does not read is left to the script: `sh PACKAGE -x --target DEST`.
    Raises source-invalid where it is no such package, or that of another version.
    """
    offset = _payload(package)
    if offset is None:
        command = ["sh", str(package), "-x", "--target", str(dest)]
        process.check(command, timeout=_EXTRACT, code=Code.SOURCE_INVALID)
    else:
        with package.open("rb") as file:
            file.seek(offset)
            tar.unpack(file, dest, package.name)
    return _by_manifest(driver, dest)


def unpack_archive(driver: DriverSource, package: Path, dest: Path) -> Layout:
    """Unpack a redistributable archive (`nvidia_driver-linux-x86_64-VERSION-archive.tar.xz`)."""
    _unpack_redist(package, dest, driver, driver.location)
    if (dest / ".manifest").is_file():
        return _by_manifest(driver, dest)
    gpus = next(iter(sorted(dest.rglob("supported-gpus.json"))), None)
    pci = packages.supported(gpus.read_text(), driver.flavour) if gpus else ()
    return packages.from_names(
        _names(dest), driver.version, driver.flavour, graphics=driver.graphics, pci=pci
    )


def add_archive(driver: DriverSource, layout: Layout, package: Path, dest: Path) -> Layout:
    """Unpack another redistributable archive beside the driver: `fabricmanager-…`, `libnvidia_nscq-…`.

    They are of exactly the driver's version, and refuse to work with another.
    """
    beside = package.name.partition("-")[0]
    _unpack_redist(package, dest / beside, driver, "")
    names = {f"{beside}/{name}": target for name, target in _names(dest / beside).items()}
    return packages.extended(layout, names, driver.version)


def _unpack_redist(package: Path, dest: Path, driver: DriverSource, location: str) -> None:
    def below(name: str) -> str | None:
        """Without the directory that the archive has everything in."""
        return name.partition("/")[2] or None

    with package.open("rb") as file:
        tar.unpack(file, dest, package.name, wanted=below)
    if driver.version not in package.name and driver.version not in location:
        raise Permanent(
            Code.SOURCE_INVALID,
            f"'{package.name}' does not name version '{driver.version}'",
            "Check version and location of the driver in the recipe.",
        )


def arrange_debian(driver: DriverSource, dest: Path) -> Layout:
    """The layout of unpacked Debian packages, where the modules' sources are put in order."""
    for name, kernel in _DEBIAN_SOURCES.items():
        archive = dest / f"usr/src/{name}.tar.xz"
        if archive.is_file():
            prefix = f"modules/{name}/"

            def below(path: str, prefix: str = prefix) -> str | None:
                return path.removeprefix(prefix) if path.startswith(prefix) else None

            with archive.open("rb") as file:
                tar.unpack(file, dest / kernel, archive.name, wanted=below)
            archive.unlink()
    devices = dest / _DEVICES
    pci = packages.device_ids(devices.read_text(), driver.flavour) if devices.is_file() else ()
    names = {name: target for name, target in _names(dest).items() if not name.startswith("kernel")}
    return packages.from_names(names, driver.version, driver.flavour, graphics=driver.graphics, pci=pci)


def _by_manifest(driver: DriverSource, dest: Path) -> Layout:
    try:
        text = (dest / ".manifest").read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Permanent(
            Code.SOURCE_INVALID,
            f"the package of driver '{driver.version}' has no '.manifest' that can be read: {error}",
            "Check the location of the driver in the recipe.",
        ) from None
    gpus = dest / "supported-gpus/supported-gpus.json"
    pci = gpus.read_text() if gpus.is_file() else ""
    return packages.from_manifest(text, driver.version, driver.flavour, graphics=driver.graphics, pci=pci)


def _names(top: Path) -> dict[str, str]:
    """Every file and link below a directory, with what a link leads to."""
    found: dict[str, str] = {}
    for name, _ in files.walk(top):
        path = top / name
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.is_file():
            found[name] = ""
    return found


def _payload(package: Path) -> int | None:
    """Where the archive of a self-extracting package begins; None where Python cannot read what is there."""
    with package.open("rb") as file:
        head = file.read(_HEAD)
    named = _SKIP.search(head)
    if not head.startswith(b"#!") or named is None:
        raise Permanent(
            Code.SOURCE_INVALID,
            f"'{package}' is not a self-extracting package",
            "Check the location of the driver in the recipe.",
        )
    # NVIDIA's makeself counts from the first line of the archive, others from the last of the script.
    offset = 0
    skip = int(named[1])
    for line in range(1, skip + 1):
        if line == skip and head.startswith(_MAGIC, offset):
            return offset
        offset = head.find(b"\n", offset) + 1
        if offset == 0:
            return None
    return offset if head.startswith(_MAGIC, offset) else None

# SPDX-License-Identifier: Apache-2.0
"""Debian: which kernels its archive can build modules for, and which of its packages make a driver."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nvidiad.image.nouns.model import Architecture, Family, OsRelease
from nvidiad.nouns.errors import Code, Permanent
from nvidiad.nouns.model import Flavour
from nvidiad.nouns.value import Value

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

HEADERS = "linux-headers-"
_IMAGE = "linux-image-"
# `6.1.0-50-cloud-amd64`, `6.12.95+deb13-amd64`: a version, and flavours that end in the architecture.
_RELEASE = re.compile(r"\d+\.\d+\.\d+[0-9a-z.+~-]*-(?P<architecture>[a-z0-9]+)")

OPEN_SOURCE = "nvidia-open-kernel-source"
PROPRIETARY_SOURCE = "nvidia-kernel-source"
_COMPUTE = (
    *("libcuda1", "libnvidia-ml1", "libnvidia-cfg1", "libnvidia-ptxjitcompiler1", "libnvidia-nvvm4"),
    *("nvidia-opencl-icd", "libcudadebugger1", "libnvidia-allocator1", "libnvidia-pkcs11-openssl3"),
    *("nvidia-smi", "nvidia-cuda-mps", "firmware-nvidia-gsp", "nvidia-driver-bin", "nvidia-detect"),
)
_NEEDED = frozenset(
    {"libcuda1", "libnvidia-ml1", "libnvidia-ptxjitcompiler1", "nvidia-smi", "firmware-nvidia-gsp"}
)
_GRAPHICS = (
    *("libnvcuvid1", "libnvidia-encode1", "libnvidia-fbc1", "libnvidia-ngx1", "libnvoptix1"),
    *("libnvidia-eglcore", "libnvidia-glcore", "libnvidia-glvkspirv", "libnvidia-rtcore"),
    *("libgles-nvidia1", "libgles-nvidia2", "libegl-nvidia0", "libglx-nvidia0"),
)
_TOOLS = ("nvidia-persistenced", "nvidia-modprobe")
"""Debian has these at a version of their own: the newest that is not newer than the driver serves it."""
LINKED = (
    *("libtirpc3", "libgssapi-krb5-2", "libkrb5-3", "libk5crypto3", "libkrb5support0", "libcom-err2"),
    "libkeyutils1",
)
"""What Debian's nvidia-persistenced is linked to, and no other host need have."""


class Offer(Value):
    """A version of a package that the archive has."""

    package: str
    version: str

    def __str__(self) -> str:
        return f"{self.package}={self.version}"


class Chosen(Value):
    """The packages that make a driver."""

    source: Offer
    """Of the kernel modules."""
    programs: tuple[Offer, ...]
    """Libraries, tools and firmware."""
    absent: tuple[str, ...]
    """What the archive does not have at this version, and a driver can do without."""


def suites(location: str) -> tuple[str, ...]:
    """The suites that a location means: `bookworm` with its updates and security, or a list with commas."""
    listed = tuple(name.strip() for name in location.split(",") if name.strip())
    if len(listed) != 1 or "-" in listed[0] or listed[0] in ("sid", "unstable", "experimental"):
        return listed
    return (listed[0], f"{listed[0]}-updates", f"{listed[0]}-security")


def headers(names: Iterable[str], architecture: Architecture) -> tuple[str, ...]:
    """The packages of headers among these names whose kernel has an image, too; sorted.

    An image stays in the archive after its headers are gone, so both are asked for.
    """
    known = frozenset(names)
    found: list[str] = []
    for name in known:
        kernel = name.removeprefix(HEADERS)
        matched = _RELEASE.fullmatch(kernel)
        if kernel == name or matched is None or matched["architecture"] != architecture:
            continue
        if f"{_IMAGE}{kernel}" in known:
            found.append(name)
    return tuple(sorted(found))


def releases(listed: str, architecture: Architecture) -> tuple[OsRelease, ...]:
    """The kernels that modules can be built for, oldest first, each with the first suite that has it.

    From what `apt-cache madison` lists of their headers: `package | version | URL SUITE/COMPONENT …`.
    """
    found: dict[str, OsRelease] = {}
    for row in (line.split("|") for line in listed.splitlines()):
        words = row[2].split() if len(row) >= 3 else []
        if len(words) < 2 or HEADERS not in row[0]:
            continue
        kernel, suite = row[0].strip().removeprefix(HEADERS), words[1].partition("/")[0]
        release = OsRelease(Family.DEBIAN, kernel, suite, architecture, kernel, "", words[0])
        found.setdefault(kernel, release)
    return tuple(sorted(found.values(), key=lambda release: (_numbers(release.kernel), release.kernel)))


def offers(listed: str) -> tuple[Offer, ...]:
    """What `apt-cache madison` lists: `package | version | where`, newest first."""
    rows = (line.split("|") for line in listed.splitlines())
    found = [Offer(row[0].strip(), row[1].strip()) for row in rows if len(row) >= 3]
    return tuple(dict.fromkeys(found))


def upstream(version: str) -> str:
    """NVIDIA's version in one of Debian's: `535.261.03` of `535.261.03-1~deb12u1`."""
    return re.sub(r"^\d+:", "", version).rpartition("-")[0] or version


def wanted(flavour: Flavour, *, graphics: bool) -> tuple[str, ...]:
    """The packages to ask the archive about."""
    source = OPEN_SOURCE if flavour is Flavour.OPEN else PROPRIETARY_SOURCE
    return (source, *_COMPUTE, *_TOOLS, *(_GRAPHICS if graphics else ()))


def choose(available: Sequence[Offer], driver: str, flavour: Flavour, *, graphics: bool) -> Chosen:
    """The packages of exactly this driver version; source-invalid where those that it needs are missing."""
    source, *others = wanted(flavour, graphics=graphics)
    by_name = {name: _offer(available, name, driver) for name in (source, *others)}
    missing = sorted(name for name in {source, *_NEEDED} if by_name[name] is None)
    if missing:
        has = sorted(
            {upstream(offer.version) for offer in available if offer.package == source}, key=_numbers
        )
        raise Permanent(
            Code.SOURCE_INVALID,
            f"Debian's archive has no '{missing[0]}' of driver '{driver}'"
            + (f"; of '{source}' it has {', '.join(has)}" if has else ""),
            "Choose a version that it has, or add the suite that has this one.",
        )
    found = by_name[source]
    assert found is not None  # noqa: S101 - it would be in `missing`
    programs = tuple(offer for name in others if (offer := by_name[name]) is not None)
    return Chosen(found, programs, tuple(name for name in others if by_name[name] is None))


def _offer(available: Sequence[Offer], name: str, driver: str) -> Offer | None:
    of_name = [offer for offer in available if offer.package == name]
    for offer in of_name:
        if upstream(offer.version) == driver:
            return offer
    if name in _TOOLS:
        older = [offer for offer in of_name if _numbers(upstream(offer.version)) <= _numbers(driver)]
        return max(older, key=lambda offer: _numbers(offer.version), default=None)
    return None


def toolchain(depends: str, kernel: str) -> tuple[str, ...]:
    """What the developer tree of a kernel consists of, from the dependencies of its headers.

    `linux-compiler-gcc-12-x86` names the compiler that built the kernel; newer headers name `gcc-14` itself.
    """
    compilers = re.findall(r"\bgcc-\d+", depends)
    packages = (*compilers[:1], "make", "binutils", "libelf1", "kmod", "mawk", "dash", "coreutils")
    more = ("sed", "grep", "findutils", "diffutils", "bash", f"{HEADERS}{kernel}", f"{_IMAGE}{kernel}")
    return (*packages, *more)


def _numbers(text: str) -> tuple[int, ...]:
    """Order versions by their numbers: 6.12.107 comes after 6.12.99."""
    # Of thousands of digits Python makes no number.
    return tuple(int(number) for number in re.findall(r"[0-9]{1,18}", text))

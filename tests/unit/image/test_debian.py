# SPDX-License-Identifier: Apache-2.0
"""Debian: which kernels can be built for, and which packages make a driver."""

from __future__ import annotations

import pytest

from nvidiad.image.nouns.model import Architecture, Family, OsRelease
from nvidiad.image.thought import debian
from nvidiad.image.thought.compiler import first_error, is_accident, is_refusal
from nvidiad.image.thought.debian import Offer
from nvidiad.nouns.errors import Code, Permanent
from nvidiad.nouns.model import Flavour

NAMES = [
    *("linux-headers-6.1.0-50-amd64", "linux-image-6.1.0-50-amd64"),
    *("linux-headers-6.1.0-50-cloud-amd64", "linux-image-6.1.0-50-cloud-amd64"),
    "linux-headers-6.1.0-50-common",
    *("linux-headers-6.12.94+deb13-amd64", "linux-image-6.12.94+deb13-amd64"),
    *("linux-headers-6.12-amd64", "linux-image-6.12-amd64"),
    *("linux-headers-amd64", "linux-image-amd64"),
    "linux-image-6.1.0-48-amd64",
    "linux-headers-6.1.0-51-amd64",
    *("linux-headers-6.1.0-50-arm64", "linux-image-6.1.0-50-arm64"),
]


def test_kernels_have_headers_and_an_image() -> None:
    assert debian.headers(NAMES, Architecture.AMD64) == (
        "linux-headers-6.1.0-50-amd64",
        "linux-headers-6.1.0-50-cloud-amd64",
        "linux-headers-6.12.94+deb13-amd64",
    )
    assert debian.headers(NAMES, Architecture.ARM64) == ("linux-headers-6.1.0-50-arm64",)


def test_kernels_are_in_order_and_in_their_suites() -> None:
    rows = [
        "6.12.107+deb12-amd64 | 6.12.107-1~deb12u1 | http://m/debian bookworm-security/main amd64 P",
        "6.12.95+deb12-amd64 | 6.12.95-1 | http://m/debian bookworm-backports/main amd64 Packages",
        "6.1.0-50-amd64 | 6.1.176-1 | http://m/debian bookworm/main amd64 Packages",
        "6.1.0-50-amd64 | 6.1.175-1 | http://m/debian-security bookworm-security/main amd64 Packages",
    ]
    listed = "".join(f"linux-headers-{row}\n" for row in rows)
    listed += "     linux | 6.1.176-1 | http://m/debian bookworm/main Sources\n"
    found = debian.releases(listed, Architecture.AMD64)
    assert found[0] == OsRelease(
        *(Family.DEBIAN, "6.1.0-50-amd64", "bookworm", Architecture.AMD64),
        *("6.1.0-50-amd64", "", "http://m/debian"),
    )
    assert [(release.kernel, release.channel) for release in found[1:]] == [
        ("6.12.95+deb12-amd64", "bookworm-backports"),
        ("6.12.107+deb12-amd64", "bookworm-security"),
    ]


@pytest.mark.parametrize(
    ("location", "suites"),
    [
        ("bookworm", ("bookworm", "bookworm-updates", "bookworm-security")),
        ("sid", ("sid",)),
        ("bookworm-backports", ("bookworm-backports",)),
        ("trixie, trixie-backports", ("trixie", "trixie-backports")),
        ("", ()),
    ],
)
def test_suites(location: str, suites: tuple[str, ...]) -> None:
    assert debian.suites(location) == suites


@pytest.mark.parametrize(
    ("version", "upstream"),
    [
        ("535.261.03-1", "535.261.03"),
        ("535.309.01-0+deb12u1", "535.309.01"),
        ("1:550.163.01-4~bpo13+1", "550.163.01"),
        ("535.171.04", "535.171.04"),
    ],
)
def test_upstream(version: str, upstream: str) -> None:
    assert debian.upstream(version) == upstream


DRIVER = "535.261.03"
EXACT = f"{DRIVER}-1"
NEWER = "535.309.01-0+deb12u1"


def offered(*absent: str, **versions: str) -> list[Offer]:
    """Everything at the driver's version and at a newer one, but for what is absent or named."""
    names = debian.wanted(Flavour.OPEN, graphics=False)
    found = [Offer(name, version) for name in names for version in (NEWER, EXACT)]
    return [offer for offer in found if offer.package not in absent and offer.package not in versions] + [
        Offer(name, version) for name, version in versions.items()
    ]


def test_all_packages_are_of_the_drivers_version() -> None:
    chosen = debian.choose(offered(), DRIVER, Flavour.OPEN, graphics=False)
    assert str(chosen.source) == f"nvidia-open-kernel-source={EXACT}"
    assert {offer.version for offer in chosen.programs} == {EXACT}
    assert {"libcuda1", "nvidia-persistenced", "firmware-nvidia-gsp"} <= {o.package for o in chosen.programs}
    assert chosen.absent == ()


def test_tools_may_lag_but_never_lead() -> None:
    lagging = [
        *offered("nvidia-persistenced", "nvidia-modprobe"),
        Offer("nvidia-persistenced", "535.171.04-1~deb12u1"),
    ]
    lagging += [Offer("nvidia-persistenced", "525.1-1"), Offer("nvidia-modprobe", NEWER)]
    chosen = debian.choose(lagging, DRIVER, Flavour.OPEN, graphics=False)
    assert Offer("nvidia-persistenced", "535.171.04-1~deb12u1") in chosen.programs
    assert chosen.absent == ("nvidia-modprobe",)


def test_what_a_driver_can_do_without() -> None:
    chosen = debian.choose(offered("libcudadebugger1"), DRIVER, Flavour.OPEN, graphics=False)
    assert chosen.absent == ("libcudadebugger1",)


@pytest.mark.parametrize("missing", ["libcuda1", "nvidia-open-kernel-source", "firmware-nvidia-gsp"])
def test_what_it_cannot_do_without(missing: str) -> None:
    with pytest.raises(Permanent, match=f"no '{missing}' of driver '{DRIVER}'") as failed:
        debian.choose(offered(missing), DRIVER, Flavour.OPEN, graphics=False)
    assert failed.value.code is Code.SOURCE_INVALID


def test_the_versions_that_there_are_are_said() -> None:
    with pytest.raises(Permanent, match=r"of 'nvidia-open-kernel-source' it has 535\.261\.03, 535\.309\.01"):
        debian.choose(offered(), "999.1", Flavour.OPEN, graphics=False)


@pytest.mark.parametrize(
    ("depends", "compiler"),
    [
        ("linux-headers-6.1.0-50-common (= 6.1.176-1), linux-compiler-gcc-12-x86", "gcc-12"),
        ("linux-headers-6.12.94+deb13-common, gcc-14-for-host, gcc-14", "gcc-14"),
    ],
)
def test_the_kernels_own_compiler(depends: str, compiler: str) -> None:
    packages = debian.toolchain(depends, "6.1.0-50-amd64")
    assert packages[0] == compiler
    assert {"linux-headers-6.1.0-50-amd64", "linux-image-6.1.0-50-amd64", "make"} <= set(packages)


ERRORS = [
    pytest.param(["CC a.o", "make: all fine"], "", id="none"),
    pytest.param(
        [
            "make[1]: Entering directory '/usr/src/linux'",
            "make[3]: *** [scripts/Makefile.build:250: /nvidia/nvidia/nv-acpi.o] Error 1",
            "/nvidia/nvidia/nv-pci.c: In function 'nv_resize_pcie_bars':",
            "/nvidia/nvidia/nv-pci.c:223:9: error: too few arguments to function 'pci_resize_resource'",
            "/nvidia/nvidia/nv-pci.c:230:9: error: another",
        ],
        "nvidia/nv-pci.c:223:9: error: too few arguments to function 'pci_resize_resource'",
        id="the compiler before make",
    ),
    pytest.param(
        ["/nvidia/x.c:1:10: fatal error: linux/gone.h: No such file or directory"],
        "nvidia/x.c:1:10: fatal error: linux/gone.h: No such file or directory",
        id="no header",
    ),
    pytest.param(
        [
            'ERROR: modpost: GPL-incompatible module nvidia.ko uses GPL-only symbol "x"',
            "make: *** [m] Error 2",
        ],
        'ERROR: modpost: GPL-incompatible module nvidia.ko uses GPL-only symbol "x"',
        id="modpost",
    ),
    pytest.param(
        ["make[1]: *** /lib/modules/6.1/build: No such file or directory.  Stop."],
        "make[1]: *** /lib/modules/6.1/build: No such file or directory.  Stop.",
        id="only make",
    ),
    pytest.param(
        ["compile: the developer image has no compiler"],
        "compile: the developer image has no compiler",
        id="our own script",
    ),
]


@pytest.mark.parametrize(("lines", "error"), ERRORS)
def test_the_first_error(lines: list[str], error: str) -> None:
    assert first_error(lines) == error


@pytest.mark.parametrize(
    ("line", "refusal", "accident"),
    [
        ("nvidia/nv-pci.c:223:17: error: too few arguments to function 'x'", True, False),
        ("ERROR: modpost: GPL-incompatible module nvidia.ko uses 'x'", True, False),
        ("make[3]: *** [a.o] Error 1", False, False),
        ("make[3]: *** [a.o] Error 137", False, True),
        ("gcc: fatal error: Killed signal terminated program cc1", False, True),
        ("cc1: out of memory allocating 65536 bytes", False, True),
        ("nv.c:1:1: internal compiler error: Segmentation fault", False, True),
        ("compile: the developer image has no compiler", False, False),
        ("", False, False),
    ],
)
def test_only_a_compilers_own_word_is_a_refusal(line: str, refusal: bool, accident: bool) -> None:  # noqa: FBT001
    assert (is_refusal(line), is_accident(line)) == (refusal, accident)

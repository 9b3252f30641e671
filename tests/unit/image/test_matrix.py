# SPDX-License-Identifier: Apache-2.0
"""The matrix: which images should be, under which names, and what the list keeps of them."""

from __future__ import annotations

from typing import Any

import pytest

from nvidiad.image.nouns.model import (
    Architecture,
    Cell,
    DriverSource,
    Family,
    OsRelease,
    SourceKind,
    Standing,
    State,
)
from nvidiad.image.nouns.recipe import KERNEL_TAG, TAG, DriverWish, OsWish, Recipe
from nvidiad.image.thought import matrix
from nvidiad.nouns.compatibility import Compatibility
from nvidiad.nouns.model import Flavour
from nvidiad.nouns.value import replace

AMD64, ARM64 = Architecture.AMD64, Architecture.ARM64
DIGEST, OTHER = "sha256:" + "1" * 64, "sha256:" + "2" * 64
RUN = DriverSource(
    "535.309.01", Flavour.PROPRIETARY, SourceKind.RUN, "", "https://x.invalid/a.run", "a" * 64
)
GRID = replace(RUN, product="grid")
OPEN = DriverSource("535.261.03", Flavour.OPEN, SourceKind.DEBIAN, location="bookworm")
FLATCAR = OsWish(Family.FLATCAR, ("stable",))
DEBIAN = OsWish(Family.DEBIAN, ("bookworm",), flavours=("amd64",), tag=KERNEL_TAG)


def flatcar(
    version: str, channel: str = "stable", architecture: Architecture = AMD64, kernel: str = ""
) -> OsRelease:
    return OsRelease(Family.FLATCAR, version, channel, architecture, kernel or "6.12.102-flatcar")


def debian(kernel: str, suite: str = "bookworm", architecture: Architecture = AMD64) -> OsRelease:
    return OsRelease(Family.DEBIAN, kernel, suite, architecture, kernel)


def recipe(*systems: OsWish, drivers: tuple[DriverSource, ...] = (RUN,), **more: Any) -> Recipe:
    wishes = tuple(DriverWish(driver, tuple(Family)) for driver in drivers)
    return Recipe("registry.example/nvidia-driver", systems, wishes, **more)


SERIES = (
    flatcar("4593.2.9"),
    flatcar("4593.2.10"),
    flatcar("4459.2.0"),
    flatcar("4081.3.10", "lts-2024"),
    flatcar("3510.3.1", "lts-2023"),
    flatcar("4593.2.10", architecture=ARM64),
    flatcar("4757.1.0", "beta"),
)
KERNELS = (
    debian("6.1.0-50-amd64"),
    debian("6.1.0-9-amd64"),
    debian("6.1.0-50-cloud-amd64"),
    debian("6.1.0-50-rt-amd64"),
    debian("6.1.0-56-amd64", "bookworm-security"),
    debian("6.12.95+deb13-amd64", "trixie"),
    debian("6.12.95+deb13-cloud-amd64", "trixie"),
    debian("6.12.95+deb13-arm64-16k", "trixie", ARM64),
)


@pytest.mark.parametrize(
    ("wish", "tags"),
    [
        pytest.param(FLATCAR, ["4593.2.10"], id="the newest by its numbers"),
        pytest.param(replace(FLATCAR, newest=2), ["4593.2.10", "4593.2.9"], id="the two newest"),
        pytest.param(
            replace(FLATCAR, architectures=(AMD64, ARM64)),
            ["4593.2.10", "4593.2.10"],
            id="two architectures",
        ),
        pytest.param(
            replace(FLATCAR, channels=("beta", "stable")), ["4757.1.0", "4593.2.10"], id="two channels"
        ),
        pytest.param(
            replace(FLATCAR, channels=("lts",)), ["4081.3.10", "3510.3.1"], id="every long-term series"
        ),
        pytest.param(replace(FLATCAR, channels=("lts-2024",)), ["4081.3.10"], id="one long-term series"),
        pytest.param(replace(FLATCAR, channels=("alpha",)), [], id="a channel without releases"),
        pytest.param(replace(FLATCAR, family=Family.COREOS), [], id="another OS"),
        pytest.param(replace(FLATCAR, tag="{kernel}-{driver}"), ["6.12.102-flatcar"], id="a template"),
        pytest.param(DEBIAN, ["6.1.0-50-amd64"], id="a flavour is not the end of another"),
        pytest.param(
            replace(DEBIAN, flavours=("amd64", "cloud-amd64"), newest=2),
            ["6.1.0-50-amd64", "6.1.0-9-amd64", "6.1.0-50-cloud-amd64"],
            id="the newest of each flavour",
        ),
        pytest.param(
            replace(DEBIAN, channels=("trixie",), flavours=("cloud-amd64",)),
            ["6.12.95-deb13-cloud-amd64"],
            id="the kernels of trixie",
        ),
        pytest.param(
            replace(DEBIAN, channels=("trixie",), flavours=("arm64-16k",), architectures=(ARM64,)),
            ["6.12.95-deb13-arm64-16k"],
            id="a flavour with a number",
        ),
        pytest.param(
            replace(DEBIAN, flavours=(), kernels=("6.1.0-9-amd64", "6.1.0-50-amd64")),
            ["6.1.0-50-amd64", "6.1.0-9-amd64"],
            id="these kernels",
        ),
        pytest.param(
            replace(DEBIAN, channels=("bookworm", "bookworm-security"), flavours=("amd64",)),
            ["6.1.0-50-amd64", "6.1.0-56-amd64"],
            id="two suites",
        ),
    ],
)
def test_what_should_be(wish: OsWish, tags: list[str]) -> None:
    found = matrix.cells(recipe(wish), SERIES + KERNELS)
    assert [cell.tag for cell in found] == [f"{tag}-535.309.01" for tag in tags]


def test_every_driver_for_every_release_of_its_families() -> None:
    made = recipe(FLATCAR, DEBIAN, drivers=(RUN, GRID, OPEN))
    made = replace(made, drivers=(*made.drivers[:2], DriverWish(OPEN, (Family.DEBIAN,))))
    assert [cell.tag for cell in matrix.cells(made, SERIES + KERNELS)] == [
        "4593.2.10-535.309.01",
        "4593.2.10-535.309.01-grid",
        "6.1.0-50-amd64-535.309.01",
        "6.1.0-50-amd64-535.309.01-grid",
        "6.1.0-50-amd64-535.261.03",
    ]


def test_what_two_sources_tell_of_is_one_release() -> None:
    twice = (flatcar("4593.2.10"), replace(flatcar("4593.2.10"), source="elsewhere"))
    (cell,) = matrix.cells(recipe(replace(FLATCAR, newest=2)), twice)
    assert cell.release == twice[0]


def test_what_is_wanted_and_unknown_is_told() -> None:
    wish = replace(FLATCAR, channels=("stable", "alpha"), architectures=(AMD64, ARM64))
    pinned = replace(DEBIAN, flavours=(), kernels=("6.1.0-50-amd64", "6.1.0-51-amd64"))
    assert matrix.unmet(recipe(wish, pinned), SERIES + KERNELS) == (
        "no release is known of flatcar 'alpha' (amd64)",
        "no release is known of flatcar 'alpha' (arm64)",
        "debian has no kernel '6.1.0-51-amd64' with headers",
    )
    assert matrix.unmet(recipe(FLATCAR, DEBIAN), SERIES + KERNELS) == ()


# -- names -------------------------------------------------------------------------------------------


def standings(
    cells: tuple[Cell, ...], state: State = State.PUBLISHED, **states: State
) -> dict[Cell, Standing]:
    found = {}
    for number, cell in enumerate(cells):
        each = states.get(str(cell.release.architecture), state)
        digest = f"sha256:{number:064}" if each is State.PUBLISHED else ""
        found[cell] = Standing(cell, each, digest)
    return found


def test_images_of_two_architectures_have_places_of_their_own() -> None:
    wish = replace(FLATCAR, architectures=(AMD64, ARM64), channels=("stable", "beta"))
    found = matrix.cells(recipe(wish), SERIES)
    assert list(matrix.places(found).values()) == [
        "4593.2.10-535.309.01-amd64",
        "4593.2.10-535.309.01-arm64",
        # Known for one architecture today, and perhaps for both tomorrow.
        "4757.1.0-535.309.01-amd64",
    ]
    assert [(p.tag, len(p.cells), p.waits) for p in matrix.pointers(found)] == [
        ("4593.2.10-535.309.01", 2, False),
        ("4757.1.0-535.309.01", 1, False),
        ("stable-535.309.01", 2, True),
        ("beta-535.309.01", 1, True),
    ]


def test_a_channel_names_its_newest_release_and_the_plain_kernel() -> None:
    wish = replace(FLATCAR, newest=3, channels=("stable", "lts"))
    both = replace(DEBIAN, flavours=("cloud-amd64", "amd64"), newest=2)
    found = matrix.cells(recipe(wish, both, drivers=(GRID,)), SERIES + KERNELS)
    assert {p.tag: [cell.release.version for cell in p.cells] for p in matrix.pointers(found)} == {
        "stable-535.309.01-grid": ["4593.2.10"],
        "lts-2024-535.309.01-grid": ["4081.3.10"],
        "lts-2023-535.309.01-grid": ["3510.3.1"],
        "bookworm-535.309.01-grid": ["6.1.0-50-amd64"],
    }


@pytest.mark.parametrize(
    ("states", "shared", "channel"),
    [
        pytest.param({}, 2, 2, id="both are there"),
        pytest.param({"arm64": State.MISSING}, 1, 0, id="one is missing"),
        pytest.param({"arm64": State.UNBUILDABLE}, 1, 1, id="one cannot be"),
        pytest.param({"arm64": State.UNKNOWN}, 0, 0, id="one is not known"),
        pytest.param({"arm64": State.MISSING, "amd64": State.MISSING}, 0, 0, id="none is there"),
    ],
)
def test_when_a_name_moves(states: dict[str, State], shared: int, channel: int) -> None:
    found = matrix.cells(recipe(replace(FLATCAR, architectures=(AMD64, ARM64))), SERIES)
    one, other = matrix.pointers(found)
    known = standings(found, **states)
    assert (len(matrix.targets(one, known)), len(matrix.targets(other, known))) == (shared, channel)


# -- the list ----------------------------------------------------------------------------------------

(CELL,) = matrix.cells(recipe(FLATCAR), SERIES)
BROKEN = Standing(CELL, State.UNBUILDABLE, reason="nv-pci.c:165: error: too few arguments")


def written(*known: Standing, before: Compatibility | None = None) -> Compatibility:
    return Compatibility("2026-11-27T00:00:00Z", matrix.entries(known, before or Compatibility()))


def test_what_cannot_be_built_is_known_until_its_inputs_change() -> None:
    listed = written(BROKEN)
    entry = matrix.known_unbuildable(CELL, listed)
    assert entry is not None
    assert entry.reason == BROKEN.reason
    assert listed.unbuildable("4593.2.10-535.309.01", "x86_64") == entry
    for driver, same in (
        (replace(RUN, location="https://mirror.invalid/a.run"), True),
        (replace(RUN, sha256="b" * 64), False),
        (replace(RUN, flavour=Flavour.OPEN), False),
        (replace(RUN, graphics=True), False),
    ):
        assert (matrix.known_unbuildable(replace(CELL, driver=driver), listed) is not None) is same, driver
    arm = replace(CELL, release=replace(CELL.release, architecture=ARM64))
    assert matrix.known_unbuildable(arm, listed) is None
    assert matrix.known_unbuildable(CELL, written(Standing(CELL, State.MISSING))) is None


def test_another_location_of_debian_is_another_input() -> None:
    cell = replace(CELL, driver=OPEN)
    moved = replace(cell, driver=replace(OPEN, location="bookworm-backports"))
    assert matrix.inputs(cell) != matrix.inputs(moved)


@pytest.mark.parametrize(
    ("before", "now", "states"),
    [
        pytest.param([], [State.MISSING], ["missing"], id="new"),
        pytest.param([State.MISSING], [State.PUBLISHED], ["published"], id="published"),
        pytest.param(
            [State.PUBLISHED], [State.UNKNOWN], ["published"], id="a registry that does not answer"
        ),
        pytest.param([], [State.UNKNOWN], [], id="never known"),
        pytest.param([State.PUBLISHED], [], ["published"], id="no longer wanted, but there"),
        pytest.param([State.UNBUILDABLE], [], ["unbuildable"], id="no longer wanted, and cannot be"),
        pytest.param([State.MISSING], [], [], id="no longer wanted"),
    ],
)
def test_what_the_list_keeps(before: list[State], now: list[State], states: list[str]) -> None:
    former = written(*(Standing(CELL, state, DIGEST) for state in before))
    after = matrix.entries([Standing(CELL, state, DIGEST) for state in now], former)
    assert [entry.state for entry in after] == states


def test_the_list_keeps_the_kernel_that_the_developer_image_had() -> None:
    exact = replace(CELL, release=replace(CELL.release, kernel="6.12.102-flatcar-r1"))
    listed = written(Standing(exact, State.PUBLISHED, DIGEST))
    assert matrix.entries([Standing(CELL, State.PUBLISHED, DIGEST)], listed) == listed.entries
    (moved,) = matrix.entries([Standing(CELL, State.PUBLISHED, OTHER)], listed)
    assert moved.kernel == "6.12.102-flatcar"


def test_the_list_has_one_order_and_no_overlong_reason() -> None:
    wish = replace(FLATCAR, newest=3, channels=("stable", "beta", "lts"))
    found = [Standing(cell, State.PUBLISHED, DIGEST) for cell in matrix.cells(recipe(wish), SERIES)]
    listed = written(*found)
    assert listed.entries == written(*reversed(found)).entries
    assert [entry.os_version for entry in listed.entries][:3] == ["4757.1.0", "4593.2.10", "4593.2.9"]
    (entry,) = matrix.entries([replace(BROKEN, reason="x\n" * 5000)], Compatibility())
    assert len(entry.reason) == 600
    assert "\n" not in entry.reason


# -- what is told ------------------------------------------------------------------------------------


def test_the_table() -> None:
    known = [
        Standing(CELL, State.PUBLISHED, DIGEST),
        replace(BROKEN, cell=Cell(debian("6.1.0-56-amd64"), OPEN, "6.1.0-56-amd64-535.261.03")),
    ]
    assert matrix.table(known) == (
        "OS                    CHANNEL  ARCH  KERNEL           TAG                       STATE\n"
        "flatcar 4593.2.10     stable   amd64 6.12.102-flatcar 4593.2.10-535.309.01      published\n"
        "debian 6.1.0-56-amd64 bookworm amd64 6.1.0-56-amd64   6.1.0-56-amd64-535.261.03 unbuildable\n"
        "\n"
        "6.1.0-56-amd64-535.261.03 is unbuildable: nv-pci.c:165: error: too few arguments\n"
        "\n1 published, 1 unbuildable\n"
    )
    assert matrix.table([]).endswith("nothing is wanted\n")


def test_the_document() -> None:
    found = matrix.document("registry.example/nvidia-driver", [BROKEN], ["a note"])
    assert found["counts"] == {"published": 0, "missing": 0, "unbuildable": 1, "unknown": 0}
    assert found["notes"] == ["a note"]
    assert found["cells"] == [
        {
            "os": {"id": "flatcar", "version": "4593.2.10", "date": ""},
            "channel": "stable",
            "architecture": "amd64",
            "kernel": "6.12.102-flatcar",
            "driver": "535.309.01",
            "flavour": "proprietary",
            "product": "",
            "tag": "4593.2.10-535.309.01",
            "state": "unbuildable",
            "digest": "",
            "reason": "nv-pci.c:165: error: too few arguments",
        }
    ]
    assert TAG == "{os}-{driver}{-product}"

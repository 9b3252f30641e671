# SPDX-License-Identifier: Apache-2.0
"""Labels: what the feature file says of which host, when it is written and when it goes."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import pytest

from nvidiad.nouns.errors import Failure
from nvidiad.nouns.model import Gpu, LoadedModule, Memory, Phase
from nvidiad.nouns.value import replace
from nvidiad.thought import labels, planner
from nvidiad.thought.config import load
from nvidiad.verbs.label import Labeller
from nvidiad.world.features import Features
from tests.kubernetes.apiserver import QUALIFIED
from tests.unit.facts import DRIVER, driver, host, settings

if TYPE_CHECKING:
    from nvidiad.nouns.facts import HostFacts
    from nvidiad.nouns.plan import Status

PLACE = PurePosixPath("/etc/kubernetes/node-feature-discovery/features.d/nvidiad")
OTHER = PurePosixPath("/etc/other/nvidiad")


def status(facts: HostFacts, more: str = "") -> Status:
    plan = planner.decide(facts, settings(more), Memory(), 0.0)
    return planner.assess(facts, settings(more), plan, now=0.0)


READY = status(host())
NOT_LOADED = status(host(driver=driver(loaded=())))


def read(text: str) -> dict[str, str]:
    """As NFD's local source reads it: comments and empty lines are nothing, all else is NAME=VALUE."""
    lines = [line.strip() for line in text.splitlines()]
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


# -- what it says ------------------------------------------------------------------------------------------


def test_a_host_whose_driver_is_in_force() -> None:
    text = labels.text(READY)
    assert text is not None
    assert read(text) == {labels.READY: "true", labels.DRIVER: DRIVER, labels.MAJOR: "535"}
    # No directive of NFD's ("# +expiry-time=..."), and names and values that a label may have.
    assert "# +" not in text
    for name, value in read(text).items():
        assert QUALIFIED.fullmatch(name)
        assert QUALIFIED.fullmatch(value)


def test_another_driver_that_is_in_force_until_the_wanted_one_comes() -> None:
    waiting = status(host(), '[driver]\nversion = "550.163.01"')
    assert waiting.usable
    text = labels.text(waiting)
    assert text is not None
    assert read(text)[labels.DRIVER] == DRIVER


NONE = {
    "nothing is loaded": NOT_LOADED,
    "no GPU": status(host(driver=driver(gpus=(), loaded=()))),
    "no GPU, and a module that is loaded all the same": status(host(driver=driver(gpus=()))),
    "another owner": status(host(driver=driver(extensions=("nvidia-drivers-570",)))),
    "all GPUs are a guest's": status(
        host(driver=driver(gpus=(Gpu("0000:01:00.0", "10de:20b5", "vfio-pci"),), loaded=()))
    ),
    "a module that names no version": status(host(driver=driver(loaded=(LoadedModule("nvidia", "", 0),)))),
    "not configured": planner.assess(
        host(), load([])[0], planner.decide(host(), load([])[0], Memory(), 0.0), now=0.0
    ),
}


@pytest.mark.parametrize("told", NONE.values(), ids=NONE.keys())
def test_who_has_none(told: Status) -> None:
    assert labels.text(told) is None


# -- when it is there --------------------------------------------------------------------------------------


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def warning(self, event: str, **fields: object) -> None:
        self.lines.append(f"{event} {fields}")

    debug = info = error = warning


def below(root: Path, place: PurePosixPath) -> Path:
    return root / place.relative_to("/")


def test_it_comes_and_goes_with_the_driver_and_is_not_touched_between(tmp_path: Path) -> None:
    log, path = Log(), below(tmp_path, PLACE)
    labeller = Labeller(Features(tmp_path), log)
    labeller.label(PLACE, NOT_LOADED)
    assert not path.parent.exists()
    labeller.label(PLACE, READY)
    assert path.read_text() == labels.text(READY)
    assert path.stat().st_mode & 0o777 == 0o644
    first = path.stat().st_ino
    labeller.label(PLACE, replace(READY, looked=1.0))
    # NFD asks for all features again at each change of the directory.
    assert path.stat().st_ino == first
    assert [entry.name for entry in path.parent.iterdir()] == ["nvidiad"]
    labeller.label(PLACE, NOT_LOADED)
    assert not path.exists()
    assert log.lines == []


def test_a_repair_beside_a_loaded_driver_takes_no_label_away(tmp_path: Path) -> None:
    path = below(tmp_path, PLACE)
    repair = status(host(driver=driver(nodes_missing=("/dev/nvidia0",))))
    assert (repair.phase, repair.usable) == (Phase.CONVERGING, False)
    labeller = Labeller(Features(tmp_path), Log())
    # What is left from before is another thing: nobody has seen yet that it is so.
    Features(tmp_path).put(PLACE, "io.nvidiad/ready=true\n")
    labeller.label(PLACE, repair)
    assert not path.exists()
    labeller.label(PLACE, READY)
    labeller.label(PLACE, repair)
    assert path.exists()
    # The driver is taken out of the kernel for another one; or the repair came to nothing.
    for end in (NOT_LOADED, replace(repair, phase=Phase.WAITING)):
        labeller.label(PLACE, READY)
        labeller.label(PLACE, end)
        assert not path.exists()


def test_what_somebody_else_made_of_it_is_put_right(tmp_path: Path) -> None:
    path = below(tmp_path, PLACE)
    labeller = Labeller(Features(tmp_path), Log())
    labeller.label(PLACE, READY)
    path.write_text("io.nvidiad/ready=maybe\n")
    labeller.label(PLACE, READY)
    assert path.read_text() == labels.text(READY)
    path.unlink()
    labeller.label(PLACE, READY)
    assert path.exists()


def test_one_that_was_left_by_a_boot_before_goes_at_the_first_look(tmp_path: Path) -> None:
    path = below(tmp_path, PLACE)
    Features(tmp_path).put(PLACE, "io.nvidiad/ready=true\n")
    Labeller(Features(tmp_path), Log()).label(PLACE, NOT_LOADED)
    assert not path.exists()


@pytest.mark.parametrize("now", [None, OTHER], ids=["no place", "another place"])
def test_a_place_that_is_not_configured_any_more_is_cleared(
    tmp_path: Path, now: PurePosixPath | None
) -> None:
    labeller = Labeller(Features(tmp_path), Log())
    labeller.label(PLACE, READY)
    labeller.label(now, READY)
    assert not below(tmp_path, PLACE).exists()
    assert below(tmp_path, OTHER).exists() == (now is OTHER)


def test_a_file_that_cannot_be_written_is_told_once_and_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "etc").write_text("no directory")
    log = Log()
    labeller = Labeller(Features(tmp_path), log)
    for _ in range(3):
        labeller.label(PLACE, READY)
    (line,) = log.lines
    assert str(below(tmp_path, PLACE)) in line
    with pytest.raises(Failure):
        Features(tmp_path).put(PLACE, "x")
    (tmp_path / "etc").unlink()
    labeller.label(PLACE, READY)
    assert below(tmp_path, PLACE).exists()


# -- where it may be ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["/nvidiad", "/etc/.nvidiad", "etc/nvidiad", "/"])
def test_places_that_nfd_does_not_read(place: str) -> None:
    _, faults = load([("f", f'[kubernetes]\nnfd-file = "{place}"')])
    assert [fault.key for fault in faults] == ["kubernetes.nfd-file"]


def test_none_is_the_default() -> None:
    assert load([("f", '[kubernetes]\nnfd-file = ""')]) == load([])
    assert load([])[0].kubernetes.nfd_file is None

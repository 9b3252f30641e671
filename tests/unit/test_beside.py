# SPDX-License-Identifier: Apache-2.0
"""The verbs of the units beside the driver's, over the files of a host with a driver in force."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from nvidiad import beside
from nvidiad.nouns.errors import Code
from nvidiad.world import process
from nvidiad.world.surroundings import FABRIC, HEALTH, LinuxSurroundings
from tests.payload import builder, cdi
from tests.unit import facts as f
from tests.unit.trees import make_tree
from tests.unit.world import Quiet

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CONFIGURATION = f'[driver]\nversion = "{f.DRIVER}"\n[image]\nrepository = "registry.example/nvidia-driver"\n'
SPECIFICATION = "run/cdi/nvidia.yaml"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host with the driver in force, whose tree brings a fabric manager."""
    made = (f.DRIVER, ("flatcar", f.OS), f.KERNEL)
    builder.payload(tmp_path, driver=made[0], release=made[1], kernel=made[2], fabric=f.DRIVER)
    return make_tree(
        tmp_path,
        {
            "etc/nvidiad/nvidiad.toml": CONFIGURATION,
            "opt/nvidia/current": f"-> {f.DRIVER}/{f.OS}",
            "sys/module/nvidia/version": f"{f.DRIVER}\n",
            "sys/module/nvidia/initstate": "live\n",
            "sys/module/nvidia/refcnt": "0\n",
            "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t A100\nDevice Minor: \t 2\n",
        },
    )


def configuration(root: Path) -> Path:
    return root / "etc/nvidiad/nvidiad.toml"


def test_the_gpus_are_described_and_not_any_more_when_the_driver_is_gone(root: Path) -> None:
    log = Quiet()
    assert beside.cdi(configuration(root), root, log) == 0
    document = json.loads((root / SPECIFICATION).read_text())
    cdi.validate(document)
    assert document["devices"][0]["containerEdits"]["deviceNodes"] == [{"path": "/dev/nvidia2"}]
    word = LinuxSurroundings(root).word("cdi")
    assert word.digest == LinuxSurroundings(root).specification() and word.problem is None
    (root / "sys/module/nvidia/version").write_text("550.1\n")
    assert beside.cdi(configuration(root), root, log) == 0
    assert not (root / SPECIFICATION).exists() and not (root / "run/nvidiad/cdi.json").exists()


def test_turned_off_it_leaves_what_somebody_wrote_in_its_place(root: Path) -> None:
    assert beside.cdi(configuration(root), root, Quiet()) == 0
    (root / SPECIFICATION).write_text("kind: nvidia.com/gpu\n")
    configuration(root).write_text(f"{CONFIGURATION}[cdi]\nenabled = false\n")
    assert beside.cdi(configuration(root), root, Quiet()) == 0
    assert (root / SPECIFICATION).read_text() == "kind: nvidia.com/gpu\n"


def test_where_it_cannot_be_written_the_unit_fails_and_says_why(root: Path) -> None:
    make_tree(root, {"run/cdi": "in the way\n"})
    log = Quiet()
    assert beside.cdi(configuration(root), root, log) == 1
    (told,) = log.events("error")
    problem = LinuxSurroundings(root).word("cdi").problem
    assert problem is not None and problem.code is Code.CDI_FAILED and problem.sentence == told


def test_what_nvml_says_is_left_for_the_daemon(root: Path) -> None:
    # The stand-in looks at this machine, which has no driver.
    make_tree(root, {"sys/class/infiniband/mlx5_0/device/vpd": "SW_MNG"})
    assert beside.health(configuration(root), root, Quiet()) == 1
    here = LinuxSurroundings(root)
    problem, fabric = here.word(HEALTH).problem, here.word(FABRIC).problem
    assert problem is not None and problem.code is Code.NVML_FAILED
    assert fabric is not None and fabric.code is Code.FABRIC_UNSUPPORTED
    (root / "opt/nvidia/current").unlink()
    assert beside.health(configuration(root), root, Quiet()) == 0
    assert here.word(HEALTH).of == ""


def test_the_fabric_manager_takes_the_place_of_this_process(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    became: list[Sequence[str]] = []
    monkeypatch.setattr(process, "become", became.append)
    tree = root / "opt/nvidia" / f.DRIVER / f.OS
    beside.fabric(configuration(root), root, Quiet())
    place = root / "run/nvidia-fabricmanager/fabricmanager.cfg"
    assert became == [[str(tree / "bin/nv-fabricmanager"), "-c", str(place)]]
    assert f"TOPOLOGY_FILE_PATH={tree}/share/nvidia/nvswitch" in place.read_text().splitlines()
    # A configuration of the host's own goes before the tree's.
    make_tree(root, {"etc/nvidiad/fabricmanager.cfg": "LOG_LEVEL=1\n"})
    beside.fabric(configuration(root), root, Quiet())
    assert place.read_text().startswith("LOG_LEVEL=1\n")


@pytest.mark.parametrize(
    ("version", "code", "where"),
    [
        ("550.1", Code.FABRIC_MISMATCH, "opt/nvidia"),
        ("", Code.FABRIC_MISSING, ""),
    ],
)
def test_one_that_the_driver_would_refuse_is_not_started(
    root: Path, monkeypatch: pytest.MonkeyPatch, version: str, code: Code, where: str
) -> None:
    monkeypatch.setattr(process, "become", lambda _: pytest.fail("it was started"))
    program = root / "opt/nvidia" / f.DRIVER / f.OS / "bin/nv-fabricmanager"
    if version:
        program.write_text(f"#!/bin/sh\necho 'Fabric Manager version is : {version}'\n")
    else:
        program.unlink()
    assert beside.fabric(configuration(root), root, Quiet()) == beside.GIVEN_UP
    problem = LinuxSurroundings(root).word(FABRIC).problem
    assert problem is not None and problem.code is code and where in problem.sentence
    # The host's own, of the right version, is as good as the tree's.
    host = root / "usr/bin/nv-fabricmanager"
    host.parent.mkdir(parents=True, exist_ok=True)
    host.write_text(f"#!/bin/sh\necho {f.DRIVER}\n")
    host.chmod(0o755)
    assert beside.managers(None, root) == (str(host),)

# SPDX-License-Identifier: Apache-2.0
"""Beside a driver in force: identities, words, what nvidia-smi says, and when which unit is due."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from nvidiad.nouns.errors import Code, Failure, Transient
from nvidiad.nouns.model import Attempt, Gpu, LoadedModule, Memory, Phase, Problem
from nvidiad.nouns.surroundings import GpuIdentity, GpuState, Inventory, Surroundings, Word
from nvidiad.nouns.value import replace
from nvidiad.thought import cdi, companions, fabric, health, planner, surroundings
from nvidiad.verbs.surroundings import ask, refuse_manager
from nvidiad.world.smi import NvidiaSmi
from nvidiad.world.surroundings import CDI, LinuxSurroundings
from tests.unit import facts as f

if TYPE_CHECKING:
    from pathlib import Path

ADDRESS, UUID = "0000:01:00.0", "GPU-5a1d0c3e-0000-4000-8000-000000000001"
INVENTORY = Inventory(
    f.DRIVER, f.TREE.path, "", "x86_64", (GpuIdentity(ADDRESS, 0),), ("/dev/nvidiactl",), ()
)
GPUS = (Gpu(ADDRESS, "10de:20b5", "nvidia"),)
PROBLEM = Problem(Code.CDI_FAILED, "it cannot be written", "Make room.")

# ---------------------------------------------------------------------------------------------------
# In the driver's words

INFORMATION = "Model: \t\t NVIDIA A100-SXM4-40GB\nIRQ:   \t\t 38\nGPU UUID: \t {}\nDevice Minor: \t 3\n"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (INFORMATION.format(UUID), GpuIdentity(ADDRESS, 3, UUID, "NVIDIA A100-SXM4-40GB")),
        (
            INFORMATION.format("GPU-????????-????-????-????-????????????"),
            GpuIdentity(ADDRESS, 3, "", "NVIDIA A100-SXM4-40GB"),
        ),
        ("", GpuIdentity(ADDRESS, 7)),
        ("Model: \t\nGPU UUID:\n", GpuIdentity(ADDRESS, 7)),
    ],
)
def test_a_gpu_in_the_drivers_words(text: str, found: GpuIdentity) -> None:
    assert surroundings.identity(ADDRESS, text, 7) == found


def test_what_is_beside_the_driver_is_found(tmp_path: Path) -> None:
    here = LinuxSurroundings(tmp_path)
    assert here.look(None) == Surroundings()
    assert here.look(f.TREE).inventory == replace(INVENTORY, gpus=(), nodes=(), architecture="")
    for address, uuid in (("0000:02:00.0", "x"), (ADDRESS, UUID)):
        place = tmp_path / "proc/driver/nvidia/gpus" / address / "information"
        place.parent.mkdir(parents=True)
        place.write_text(INFORMATION.format(uuid))
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidiactl").write_text("no device")
    (tmp_path / "run/nvidia-persistenced").mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "run/nvidia-persistenced/socket"))
    (tmp_path / "run/cdi").mkdir()
    (tmp_path / "run/cdi/nvidia.yaml").write_text("{}")
    (tmp_path / "run/cdi/x.json").write_text('{"kind": "nvidia.com/gpu"}')
    word = Word("of", PROBLEM, "digest", (GpuState(ADDRESS, UUID, "A100", PROBLEM), GpuState("x", "", "")))
    here.leave(CDI, word)
    found = here.look(f.TREE)
    assert found.inventory is not None
    assert [gpu.address for gpu in found.inventory.gpus] == [ADDRESS, "0000:02:00.0"]
    assert (found.inventory.nodes, found.inventory.sockets) == ((), ("/run/nvidia-persistenced/socket",))
    assert found.cdi == word and len(found.specification) == 64
    assert (found.rival, here.look(None).rival) == (str(tmp_path / "run/cdi/x.json"), "")
    assert (tmp_path / "run/nvidiad/cdi.json").stat().st_mode & 0o777 == 0o644
    (tmp_path / "run/nvidiad/cdi.json").write_text('{"of": 1}')
    assert here.look(f.TREE).cdi == Word()
    here.leave(CDI, None)
    here.leave(CDI, None)
    assert os.listdir(tmp_path / "run/nvidiad") == []  # noqa: PTH208


def test_switches_are_seen_where_the_driver_has_them_or_only_a_subnet_manager_reaches_them(
    tmp_path: Path,
) -> None:
    here = LinuxSurroundings(tmp_path)
    assert not here.switches() and not here.managed_switches() and not here.managed()
    (tmp_path / "proc/driver/nvidia-nvswitch/devices/0000:0a:00.0").mkdir(parents=True)
    card = tmp_path / "sys/class/infiniband/mlx5_0/device/vpd"
    card.parent.mkdir(parents=True)
    card.write_bytes(b"\x82\x10\x00ConnectX-7")
    assert here.switches() and not here.managed_switches()
    card.write_bytes(b"\x82\x10\x00ConnectX-7 SW_MNG")
    assert here.managed_switches()


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", "null", '{"of": "", "digest": "", "problem": null, "gpus": {}}', "[" * 100_000),
        '{"of": "", "digest": "", "problem": {"code": "no", "sentence": "", "remedy": ""}, "gpus": []}',
    ],
)
def test_a_word_that_nobody_said(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        surroundings.decode(text)


# ---------------------------------------------------------------------------------------------------
# nvidia-smi


def line(action: str = "None", *, version: str = f.DRIVER, model: str = "NVIDIA A100-SXM4-40GB") -> str:
    return f"{version}, 00000000:01:00.0, {UUID}, {action}, {model}\n"


SAID: dict[str, tuple[int, str, list[str]]] = {
    "all is well": (0, line(), []),
    "a card that knows no recovery": (0, line("[N/A]"), []),
    "a question that is not allowed": (0, line("[Insufficient Permissions]"), []),
    "a library that does not know it": (0, line("[Function Not Found]"), []),
    "it is lost, and no name is known": (0, line(model="[GPU is lost]"), ["gpu-lost"]),
    "a model is called so": (0, line(model="NVIDIA Lost, Reset Required"), []),
    "a reset is needed": (0, line("GPU Reset"), ["gpu-recovery-needed"]),
    "it must be drained": (0, line("Drain and Reset"), ["gpu-recovery-needed"]),
    "an action that is not known yet": (0, line("Recover IMEX Domain"), ["gpu-recovery-needed"]),
    "it is lost": (0, line("[GPU is lost]"), ["gpu-lost"]),
    "it requires a reset": (0, line("[GPU requires reset]"), ["gpu-recovery-needed"]),
    "another driver's version": (0, line(version="535.261.03"), ["version-mismatch"]),
    "no handle": (
        255,
        "Unable to determine the device handle for GPU0000:01:00.0: Unknown Error\n",
        ["nvml-failed"],
    ),
    "lost, without a row": (
        15,
        "Unable to determine the device handle for GPU0000:01:00.0: GPU is lost.",
        ["gpu-lost"],
    ),
    "reset, without a row": (16, "GPU 0000:01:00.0: GPU requires reset", ["gpu-recovery-needed"]),
    "it could not be started": (6, "No devices were found\n", ["gpu-lost"]),
    "a mismatch": (18, "Failed to initialize NVML: Driver/library version mismatch", ["version-mismatch"]),
    "no driver answers": (9, "NVIDIA-SMI has failed because ...", ["nvml-failed"]),
    "killed": (-11, "", ["nvml-failed"]),
    "nonsense": (0, "what, is, this, for, a\n\0\n" * 3, ["gpu-lost"]),
}


@pytest.mark.parametrize("name", SAID)
def test_what_nvidia_smi_says(name: str) -> None:
    status, text, codes = SAID[name]
    word = health.read(status, text, recovery=True, gpus=GPUS, loaded=f.DRIVER)
    problems = [word.problem, *(gpu.problem for gpu in word.gpus)]
    assert [str(problem.code) for problem in problems if problem] == codes
    for problem in filter(None, problems):
        assert problem.remedy and "ADDRESS" not in problem.remedy
    if not codes:
        (gpu,) = word.gpus
        assert (gpu.address, gpu.uuid) == (ADDRESS, UUID) and gpu.model in text


def test_a_guests_gpu_and_a_switch_are_not_missed() -> None:
    others = (Gpu(ADDRESS, "10de:20b5", "vfio-pci"), Gpu("0000:0a:00.0", "10de:1af1", "nvidia", switch=True))
    assert health.read(6, "No devices were found", recovery=True, gpus=others, loaded=f.DRIVER) == Word()


class Smi:
    """An nvidia-smi that does as it is told, by the arguments that it gets."""

    seconds = 60.0

    def __init__(self, *answers: tuple[int, str] | Failure | None) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, ...]] = []

    def ask(self, tree: str, arguments: tuple[str, ...]) -> tuple[int, str] | None:
        assert tree == f.TREE.path
        self.asked.append(arguments)
        answer = self.answers.pop(0)
        if isinstance(answer, Failure):
            raise answer
        return answer


def test_an_old_nvidia_smi_is_asked_without_what_it_does_not_know() -> None:
    smi = Smi(
        (2, 'Field "gpu_recovery_action" is not a valid field to query.'), (0, line().replace("None, ", ""))
    )
    word = ask(INVENTORY, GPUS, smi=smi)
    assert word == Word(of=health.key(INVENTORY), gpus=(GpuState(ADDRESS, UUID, "NVIDIA A100-SXM4-40GB"),))
    assert ["gpu_recovery_action" in arguments[0] for arguments in smi.asked] == [True, False]


def test_nobody_is_asked_where_there_is_nobody() -> None:
    assert ask(None, GPUS, smi=Smi()) is None
    assert ask(INVENTORY, GPUS, smi=Smi(None)) is None


def test_a_gpu_that_hangs_is_waited_for_no_longer_than_this(tmp_path: Path) -> None:
    program = tmp_path / "bin/nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nsleep 100\n")
    program.chmod(0o755)
    smi = NvidiaSmi()
    smi.seconds = 0.2
    word = ask(replace(INVENTORY, tree=str(tmp_path)), GPUS, smi=smi)
    assert word is not None and word.problem == health.hung(0.2)
    assert NvidiaSmi().ask(str(tmp_path / "absent"), ()) is None
    program.write_text("#!/bin/sh\necho $*; echo $LD_LIBRARY_PATH >&2; exit 6\n")
    assert NvidiaSmi().ask(str(tmp_path), ("--what",)) == (6, "--what\n\n\n")


def test_one_that_cannot_be_started_is_told() -> None:
    word = ask(INVENTORY, GPUS, smi=Smi(Transient(Code.COMMAND_FAILED, "cannot start it")))
    assert word is not None and word.problem is not None and word.problem.code is Code.NVML_FAILED


# ---------------------------------------------------------------------------------------------------
# The fabric


@pytest.mark.parametrize(
    ("path", "version", "code"),
    [
        ("", "", Code.FABRIC_MISSING),
        ("/usr/bin/nv-fabricmanager", "550.1", Code.FABRIC_MISMATCH),
        ("/usr/bin/nv-fabricmanager", "", None),
        ("/usr/bin/nv-fabricmanager", f.DRIVER, None),
    ],
)
def test_a_fabric_manager_of_another_version_is_refused(path: str, version: str, code: Code | None) -> None:
    try:
        refuse_manager(path, version, f.DRIVER)
        assert code is None
    except Failure as failure:
        assert failure.code is code and f.DRIVER in failure.sentence + failure.remedy  # noqa: PT017
        assert failure.remedy.endswith("; then: systemctl start nvidia-fabricmanager")  # noqa: PT017


def test_the_managers_configuration_names_the_trees_topologies_and_keeps_the_rest() -> None:
    said = "# note\nLOG_LEVEL=4\nDAEMONIZE = 0\nTOPOLOGY_FILE_PATH=/usr/share/nvidia/nvswitch\n"
    made = fabric.configuration(said, "/opt/x").splitlines()
    assert made[:2] == ["# note", "LOG_LEVEL=4"]
    assert made.count("TOPOLOGY_FILE_PATH=/opt/x") == made.count("DAEMONIZE=1") == 1
    assert not any("/usr/share" in each or "DAEMONIZE =" in each for each in made)
    assert fabric.configuration("\n".join(made), "/opt/x").splitlines() == made


# ---------------------------------------------------------------------------------------------------
# What is due

WRITTEN = Surroundings(INVENTORY, Word(cdi.digest(INVENTORY), digest="d"), "d")
OFF = "[cdi]\nenabled = false\n"
DESCRIBED: dict[str, tuple[Surroundings, str, bool]] = {
    "as it should be": (WRITTEN, "", True),
    "deleted": (replace(WRITTEN, specification=""), "", False),
    "changed": (replace(WRITTEN, specification="e"), "", False),
    "of another driver": (replace(WRITTEN, cdi=Word("other", digest="d")), "", False),
    "never written": (replace(WRITTEN, cdi=Word(), specification=""), "", False),
    "somebody else's": (replace(WRITTEN, cdi=Word()), "", False),
    "another file describes them, too": (replace(WRITTEN, rival="/run/cdi/x.yaml"), "", False),
    "turned off, and another file": (replace(WRITTEN, specification="", rival="/run/cdi/x.yaml"), OFF, True),
    "a GPU is new": (
        replace(WRITTEN, inventory=replace(INVENTORY, gpus=(*INVENTORY.gpus, GpuIdentity("x", 1)))),
        "",
        False,
    ),
    "turned off, and there": (WRITTEN, OFF, False),
    "turned off, and gone": (replace(WRITTEN, cdi=Word(), specification=""), OFF, True),
    "turned off, and somebody else's": (replace(WRITTEN, specification="e"), OFF, True),
    "no driver in force, and there": (replace(WRITTEN, inventory=None), "", False),
    "no driver in force": (Surroundings(), "", True),
}


@pytest.mark.parametrize("name", DESCRIBED)
def test_whether_the_specification_is_that_of_the_driver_in_force(name: str) -> None:
    found, more, right = DESCRIBED[name]
    settings = f.settings(more)
    assert surroundings.described(found, settings) is right
    # The unit puts it right, in whatever it is wrong.
    host = f.host(surroundings=found, units=(*f.UNITS, f.unit(companions.CDI_UNIT)))
    plan = planner.decide(host, settings, Memory(), 1000.0)
    assert [step.describe() for step in plan.steps] == ([] if right else ["reload nvidia-cdi.service"])
    assert planner.assess(host, settings, plan, now=1000.0).usable


BROKEN = replace(WRITTEN, specification="")
UNITS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "it failed": ({"active": "failed", "inactive_enter": 200}, ["start nvidia-cdi.service"]),
    "it was stopped": ({"active": "inactive", "inactive_enter": 200}, []),
    "it is at work": ({"active": "reloading"}, []),
    "it will be at work": ({"active": "active", "job": 7}, []),
    "it is masked": ({"active": "inactive", "load": "masked"}, []),
}


@pytest.mark.parametrize("name", UNITS)
def test_who_stopped_it_meant_it(name: str) -> None:
    changes, steps = UNITS[name]
    unit = replace(f.unit(companions.CDI_UNIT), **changes)
    host = f.host(surroundings=BROKEN, units=(*f.UNITS, unit))
    plan = planner.decide(host, f.settings(), Memory(), 1000.0)
    assert [step.describe() for step in plan.steps] == steps


def test_a_specification_that_is_tried_again_later_changes_no_phase_and_holds_up_no_cuda() -> None:
    tried = Memory((Attempt("reload nvidia-cdi.service", 1, 1000.0, PROBLEM),))
    old = tuple(LoadedModule(name, "470.1", 3) for name in ("nvidia", "nvidia_uvm", "nvidia_modeset"))
    other = f.driver(loaded=old, current="/opt/nvidia/470.1/3975.2.0")
    settings = f.settings('[cuda]\nversion = "12.4.1"\nrepository = "registry.example/cuda"\n')
    seen = []
    for around in (WRITTEN, BROKEN):
        host = f.host(other, surroundings=around, units=(*f.UNITS, f.unit(companions.CDI_UNIT)))
        plan = planner.decide(host, settings, tried, 1000.0)
        seen.append((planner.assess(host, settings, plan, now=1000.0).phase, plan.steps, plan.wait))
        assert (plan.look is not None) is (around is BROKEN)
    assert seen[0] == seen[1] and seen[0][0] is Phase.PENDING_REBOOT and seen[0][1]


def test_what_is_beside_the_driver_starts_in_its_order_and_the_question_to_nvml_last() -> None:
    names = (
        companions.PERSISTENCE_UNIT,
        companions.FABRIC_UNIT,
        companions.CDI_UNIT,
        companions.HEALTH_UNIT,
    )
    late = tuple(f.unit(name, "inactive") for name in (*names, "kubelet.service"))
    host = f.host(surroundings=WRITTEN, units=(f.unit("nvidia.service"), *late))
    plan = planner.decide(host, f.settings(), Memory(), 1000.0)
    assert [(step.describe(), getattr(step, "wait", None)) for step in plan.steps] == [
        *((f"start {name}", True) for name in names[:3]),
        ("start kubelet.service", False),
        ("start nvidia-health.service", False),
    ]


@pytest.mark.parametrize(
    ("name", "when", "due"),
    [
        (companions.FABRIC_UNIT, 150, True),
        (companions.PERSISTENCE_UNIT, 150, True),
        (companions.HEALTH_UNIT, 150, True),
        (companions.FABRIC_UNIT, 950, False),
        ("kubelet.service", 150, False),
    ],
)
def test_what_failed_with_another_driver_starts_with_this_one(name: str, when: int, due: bool) -> None:  # noqa: FBT001
    gpus = (*GPUS, Gpu("0000:0a:00.0", "10de:1af1", "nvidia", switch=True))
    failed = f.unit(name, "failed", inactive_enter=when, result="exit-code")
    units = (f.unit("nvidia.service", changed=900), f.unit("kubelet.service"), failed)
    host = f.host(
        f.driver(gpus=gpus), surroundings=WRITTEN, units=units if "kubelet" not in name else units[::2]
    )
    plan = planner.decide(host, f.settings(), Memory(), 1000.0)
    assert [step.describe() for step in plan.steps] == ([f"start {name}"] if due else [])


@pytest.mark.parametrize(
    ("gpus", "there"), [(None, True), (GPUS, False), ((replace(GPUS[0], switch=True),), True)]
)
def test_the_fabric_manager_is_looked_at_where_there_are_switches(gpus: Any, there: bool) -> None:  # noqa: FBT001
    watched = companions.watched(f.settings(), gpus)
    assert (companions.FABRIC_UNIT in watched) is there
    assert watched[:2] == ("nvidia.service", "nvidia-persistenced.service")
    assert watched[-1] == "kubelet.service"


def test_what_is_wrong_is_a_warning_with_its_code_and_the_host_is_ready() -> None:
    gpu = GpuState(ADDRESS, UUID, "A100", Problem(Code.GPU_LOST, "the GPU is lost", "Reboot."))
    around = replace(
        WRITTEN, cdi=replace(WRITTEN.cdi, problem=PROBLEM), health=Word(health.key(INVENTORY), gpus=(gpu,))
    )
    host = f.host(surroundings=around, units=(*f.UNITS, f.unit(companions.CDI_UNIT)))
    plan = planner.decide(host, f.settings(), Memory(), 1000.0)
    status = planner.assess(host, f.settings(), plan, now=1000.0)
    assert (status.phase, plan.steps) == ("ready", ())
    assert status.warnings == (
        "it cannot be written [cdi-failed]. Make room.",
        "the GPU is lost [gpu-lost]. Reboot.",
    )
    # What was said of another driver says nothing of this one.
    old = replace(around, health=replace(around.health, of=f"535.1 {ADDRESS}"))
    assert len(surroundings.warnings(replace(host, surroundings=old), f.settings())) == 1
    # Of a driver that is not in force nobody needs to know.
    assert (
        surroundings.warnings(replace(host, surroundings=replace(around, inventory=None)), f.settings())
        == ()
    )

# SPDX-License-Identifier: Apache-2.0
"""The units as files: no mount namespace of their own, one text for the gate, systemd-analyze's word."""

from __future__ import annotations

import configparser
import hashlib
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from nvidiad.nouns.errors import Code, Failure
from nvidiad.nouns.model import Problem
from nvidiad.nouns.surroundings import Word
from nvidiad.thought import surroundings
from nvidiad.world.units import DROP_IN, GATE, SystemdUnits, unit_path

if TYPE_CHECKING:
    from nvidiad.verbs.ports import Bus

UNITS = Path(__file__).parents[2] / "units/systemd/system"
OURS = ("nvidiad.service", "nvidia.service")
# Directives that give a service a mount namespace of its own (systemd: exec_needs_mount_namespace()): the
# overlay on /usr/lib64 would then exist for that service alone.
FORBIDDEN = frozenset(
    """
    bindpaths bindreadonlypaths dynamicuser execpaths extensiondirectories extensionimages inaccessiblepaths
    ipcnamespacepath loadcredential logsnamespace mountapivfs mountflags mountimages networknamespacepath
    noexecpaths privatedevices privateipc privatemounts privatenetwork privatepids privatetmp privateusers
    procsubset protectclock protectcontrolgroups protecthome protecthostname protectkernellogs
    protectkernelmodules protectkerneltunables protectproc protectsystem readonlypaths readwritepaths
    rootdirectory rootimage setcredential temporaryfilesystem
    """.split()  # noqa: SIM905 - forty words read better as words
)


# What every service says of what it may do; tests/host/test_hardening.py has the figures.
RESTRICTIONS = frozenset(
    """
    capabilityboundingset devicepolicy lockpersonality memorymax nonewprivileges restrictaddressfamilies
    restrictnamespaces restrictrealtime restrictsuidsgid systemcallarchitectures systemcallerrornumber
    systemcallfilter tasksmax
    """.split()  # noqa: SIM905 - as above
)


def read(text: str) -> dict[str, set[str]]:
    parser = configparser.ConfigParser(strict=False, interpolation=None, allow_no_value=True)
    parser.read_string(text)
    return {section: set(parser[section]) for section in parser.sections()}


def offences(text: str) -> set[str]:
    return {key for keys in read(text).values() for key in keys} & FORBIDDEN


@pytest.mark.parametrize("name", OURS)
def test_no_directive_gives_a_mount_namespace(name: str) -> None:
    assert offences((UNITS / name).read_text()) == set()


def test_the_rule_sees_such_a_directive() -> None:
    assert offences("[Service]\nPrivateTmp=yes\nProtectSystem=strict\n") == {"privatetmp", "protectsystem"}


@pytest.mark.parametrize("file", sorted(UNITS.glob("*.service")), ids=lambda file: file.name)
def test_every_service_says_what_it_may_do(file: Path) -> None:
    # The daemon lays down trees, with one program in them that has the set-user-ID bit.
    without = {"restrictsuidsgid"} if file.name == "nvidiad.service" else set()
    assert read(file.read_text())["Service"] >= RESTRICTIONS - without


@pytest.mark.parametrize(
    ("name", "start", "stop"),
    [("cdi", 60, 5), ("health", 180, 5), ("fabricmanager", 120, 20)],
)
def test_what_stands_beside_the_driver_holds_neither_boot_nor_shutdown_for_long(
    name: str, start: int, stop: int
) -> None:
    lines = (UNITS / f"nvidia-{name}.service").read_text().splitlines()
    assert {f"TimeoutStartSec={start}", f"TimeoutStopSec={stop}"} <= {*lines}


def command(file: Path, key: str) -> list[str]:
    """A command of a unit as systemd comes to run it (systemd.service(5), COMMAND LINES)."""
    lines = file.read_text().replace("\\\n", " ").splitlines()
    (line,) = (line.partition("=")[2] for line in lines if line.startswith(f"{key}="))
    words = shlex.split(line.lstrip("@-:+!"))
    return [word.replace("%%", "%").replace("$$", "$") for word in words]


OURS_TOO = hashlib.sha256(b"ours").hexdigest()


@pytest.mark.parametrize(
    ("text", "digest", "stays"),
    [
        ("ours", OURS_TOO, False),
        ("somebody else's", OURS_TOO, True),
        ("somebody else's", "", True),
        ("", "", True),
        ("ours", None, True),
        (None, OURS_TOO, False),
    ],
)
@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_the_specification_that_is_removed_is_the_one_that_was_written(
    tmp_path: Path,
    text: str | None,
    digest: str | None,
    stays: bool,  # noqa: FBT001
    shell: str,
) -> None:
    specification, word = tmp_path / "cdi/nvidia.yaml", tmp_path / "nvidiad/cdi.json"
    for file in (specification, word):
        file.parent.mkdir()
    if text is not None:
        specification.write_text(text)
    if digest is not None:
        word.write_text(surroundings.encode(Word("of", Problem(Code.CDI_FAILED, "x"), digest)))
    program, *arguments = command(UNITS / "nvidia-cdi.service", "ExecStop")
    assert program == "/bin/sh" and "%%%" not in arguments[-1] and "/run/cdi/nvidia.yaml" in arguments[-1]
    arguments[-1] = arguments[-1].replace("/run/", f"{tmp_path}/")
    done = subprocess.run([shell, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (specification.exists(), word.exists()) == (stays, False)


def test_what_another_persistence_daemon_left_is_out_of_the_way(tmp_path: Path) -> None:
    file = UNITS / "nvidia-persistenced.service"
    # The service itself may do nothing in a directory of another user's.
    assert "\nExecStartPre=+" in file.read_text()
    if os.geteuid() != 0:
        pytest.skip("only root may give a file away")
    folder = tmp_path / "nvidia-persistenced"
    folder.mkdir(0o755)
    for left in (folder / "nvidia-persistenced.pid", folder / "socket", folder):
        left.touch()
        os.chown(left, 65534, 65534)
    program, *arguments = command(file, "ExecStartPre")
    arguments[-1] = arguments[-1].replace("/run ", f"{tmp_path} ")
    for _ in range(2):
        subprocess.run([program, *arguments], check=True)
        assert (list(folder.iterdir()), folder.stat().st_uid, folder.stat().st_mode & 0o777) == (
            [],
            0,
            0o755,
        )
        folder.rmdir()


def test_the_shipped_gate_is_the_one_that_nvidiad_writes() -> None:
    assert (UNITS / "kubelet.service.d" / DROP_IN).read_text() == GATE


def test_restarting_nvidiad_touches_nothing_else() -> None:
    for file in UNITS.rglob("*"):
        if file.is_file() and file.name not in ("nvidiad.service", "nvidiad.socket"):
            keys = ("requires=nvidiad", "bindsto=nvidiad", "partof=nvidiad")
            assert not any(line.lower().startswith(keys) for line in file.read_text().splitlines())


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("kubelet.service", "kubelet_2eservice"),
        ("nvidia-persistenced.service", "nvidia_2dpersistenced_2eservice"),
        ("0a.service", "_30a_2eservice"),
        ("a@b.service", "a_40b_2eservice"),
    ],
)
def test_object_paths(name: str, path: str) -> None:
    assert unit_path(name) == f"/org/freedesktop/systemd1/unit/{path}"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """Nothing is installed here, so the programs are others; the host bed verifies them as installed."""
    for file in (*UNITS.glob("*.service"), *UNITS.glob("*.socket")):
        text = file.read_text().replace("/opt/nvidiad/bin/nvidiad", "/bin/true")
        text = text.replace("/opt/nvidia/current/bin/nvidia-persistenced", "/bin/true")
        (tmp_path / file.name).write_text(text)
    files = sorted(str(file) for file in tmp_path.iterdir())
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=yes", *files],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_drop_in_that_cannot_be_written_is_a_failure_with_its_place(tmp_path: Path) -> None:
    # An error of the operating system that is no Failure ends the look, and nothing of its plan is done.
    (tmp_path / "kubelet.service.d").write_text("in the way")
    units = SystemdUnits(cast("Bus", None), configuration=tmp_path)
    with pytest.raises(Failure) as caught:
        units.write_gates(("kubelet.service",))
    assert caught.value.code is Code.UNIT_FAILED
    assert str(tmp_path) in caught.value.sentence
    assert caught.value.remedy


class _Deaf:
    def call(self, *_: object) -> None: ...


def test_a_drop_in_of_an_earlier_version_is_none_and_is_replaced_or_taken_back(tmp_path: Path) -> None:
    former = GATE.replace(" nvidia-fabricmanager.service nvidia-cdi.service", "")
    assert former != GATE
    for unit in ("kubelet.service", "slurmd.service"):
        (tmp_path / f"{unit}.d").mkdir()
        (tmp_path / f"{unit}.d" / DROP_IN).write_text(former)
    units = SystemdUnits(cast("Bus", _Deaf()), configuration=tmp_path)
    assert units.gates() == ()
    units.write_gates(("kubelet.service",))
    assert units.gates() == ("kubelet.service",)
    assert [path.name for path in tmp_path.iterdir()] == ["kubelet.service.d"]


def test_a_drop_in_that_cannot_be_read_is_none_of_ours(tmp_path: Path) -> None:
    (tmp_path / "kubelet.service.d" / DROP_IN).mkdir(parents=True)
    assert SystemdUnits(cast("Bus", None), configuration=tmp_path).gates() == ()

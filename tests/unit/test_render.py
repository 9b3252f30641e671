# SPDX-License-Identifier: Apache-2.0
"""The document, its text and its metrics, for one host in several states."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvidiad.nouns.errors import Code
from nvidiad.nouns.facts import DriverFacts, HostFacts, LinkerFacts, MountFacts
from nvidiad.nouns.model import (
    Attempt,
    Build,
    Exposure,
    Flavour,
    Gpu,
    Holder,
    LoadedModule,
    Memory,
    Phase,
    Problem,
    Progress,
    Release,
    Tree,
    UnitState,
    UpdateStatus,
)
from nvidiad.nouns.plan import Plan, Report, Status, StepResult
from nvidiad.nouns.steps import InstallTree, PullImage, StartUnit, Step
from nvidiad.nouns.upcoming import NextFacts, NextSystem, Stage, StageState, Verdict
from nvidiad.nouns.value import replace
from nvidiad.thought import metrics, render, wire
from nvidiad.thought.document import document
from nvidiad.world import itself
from tests.unit.rest import at_rest

ROOT = Path(__file__).parents[2]
NOW = 1_795_442_531.0  # Mon 2026-11-23 14:02:11 UTC
KERNEL = "6.6.95-flatcar"
BUILD = Build("535.309.01", "3975.2.0", KERNEL)
NEXT = Build("535.309.01", "4081.2.0", "6.6.100-flatcar")
IMAGE = "registry.example/nvidia-driver:3975.2.0-535.309.01"


def unit(name: str, active: str = "active", sub: str = "running", result: str = "success") -> UnitState:
    entered = int((NOW - 185) * 1e6) if active == "active" else 0
    return UnitState(
        name,
        "loaded",
        active,
        sub,
        result,
        0,
        wanted=True,
        active_enter=entered,
        inactive_enter=0,
        active_since=entered,
    )


def tree(build: Build) -> Tree:
    return Tree(f"/opt/nvidia/{build.driver}/{build.os_version}", build, Flavour.OPEN)


HOST = DriverFacts(
    release=Release("flatcar", "3975.2.0", "Flatcar Container Linux"),
    kernel=KERNEL,
    boot_id="b" * 32,
    lockdown="none",
    extensions=(),
    gpus=(Gpu("0000:00:04.0", "10de:20b5", "nvidia"),),
    trees=(tree(BUILD), tree(NEXT)),
    current=tree(BUILD).path,
    wanted_modules=(),
    loaded=(LoadedModule("nvidia", "535.309.01", 2, ("nvidia_uvm",)), LoadedModule("nvidia_uvm", None, 0)),
    mounts=MountFacts(None, usr_is_overlay=False, lib64_is_lib=False),
    linker=LinkerFacts(None, ()),
    firmware_path="",
    nodes_missing=(),
)
FACTS = HostFacts(
    driver=HOST,
    units=(unit("nvidia.service", sub="exited"), unit("kubelet.service")),
    gates=("kubelet.service",),
    next=NextFacts(UpdateStatus("UPDATE_STATUS_UPDATED_NEED_REBOOT", "4081.2.0", 1.0)),
)
COMING = NextSystem("4081.2.0", NEXT.kernel, "the slot USR-B", staged=True)
GO = Verdict(go=True, reason="driver 535.309.01 for 4081.2.0 is on disk and fits its kernel")
STAGED = Stage(StageState.PROVEN, COMING, NEXT, IMAGE, tree(NEXT).path)
READY = Status(
    phase=Phase.READY,
    summary="driver 535.309.01 is in force on Flatcar Container Linux",
    since=NOW - 185,
    facts=FACTS,
    wanted=BUILD,
    reference=IMAGE,
    exposure=Exposure.LDCONFIG,
    exposure_reason="/usr/lib and /usr/lib64 are split",
    plan=Plan("it is as it should be", stages=(STAGED,), verdict=GO),
    looked=NOW - 5,
)
MISSING = Problem(
    Code.IMAGE_MISSING,
    f"the registry has no image '{IMAGE}'",
    "Push the image; nvidiad looks again by itself.",
    retry=True,
)
FETCH = Plan("it is wanted and not on disk", (PullImage(IMAGE, BUILD), InstallTree(IMAGE, BUILD)))
FRESH = replace(
    FACTS,
    driver=replace(HOST, trees=(), current=None, loaded=(), gpus=(Gpu("0000:00:04.0", "10de:20b5", None),)),
    units=(unit("nvidia.service", "inactive", "dead"), unit("kubelet.service", "inactive", "dead")),
    next=NextFacts(),
)
WAITING = replace(
    READY,
    phase=Phase.WAITING,
    summary=MISSING.sentence,
    since=None,
    facts=FRESH,
    problem=MISSING,
    plan=Plan("it is wanted and not on disk", problem=MISSING, wait=90),
    report=Report(FETCH, (StepResult(FETCH.steps[0], 1.5, MISSING),)),
    next_try=NOW + 90,
    warnings=("unknown key 'driver.colour' in '/etc/nvidiad/nvidiad.toml', ignoring",),
)
IN_USE = Problem(Code.MODULE_IN_USE, "driver 535.309.01 is loaded, 550.1 is wanted", "Reboot when it suits.")
PENDING = replace(
    READY,
    phase=Phase.PENDING_REBOOT,
    summary=IN_USE.sentence,
    since=None,
    wanted=replace(BUILD, driver="550.1"),
    facts=replace(FACTS, holders=(Holder(4711, "python3", "kubepods-pod12.slice"), Holder(12, "Xorg", ""))),
    problem=IN_USE,
    usable=True,
)
NO_GPU = replace(
    READY,
    phase=Phase.NO_GPU,
    summary="this host has no NVIDIA GPU",
    since=None,
    facts=replace(FRESH, driver=replace(FRESH.driver, gpus=())),
)
MEMORY = Memory((Attempt(IMAGE, 3, NOW - 30, MISSING),), last_good=tree(BUILD).path)
STATES = {"ready": READY, "waiting": WAITING, "pending": PENDING, "no-gpu": NO_GPU, "before": None}


def made(status: Status | None, progress: Progress | None = None) -> dict[str, object]:
    """The document as a client gets it: through JSON."""
    sent = wire.dump(document(status, progress, version="0.1.0", memory=MEMORY))
    value: dict[str, object] = json.loads(sent)
    return value


def shown(status: Status | None, progress: Progress | None = None) -> str:
    return render.text(made(status, progress), now=NOW, colour=False)


# ---------------------------------------------------------------------------------------------------
# The document


def test_the_document_of_a_ready_host() -> None:
    got = made(READY)
    assert got["schema"] == 1 and got["phase"] == "ready" and got["since"] == NOW - 185
    assert got["problem"] is None and got["progress"] is None
    driver = got["driver"]
    assert isinstance(driver, dict)
    assert (driver["wanted"], driver["loaded"], driver["image"]) == ("535.309.01", "535.309.01", IMAGE)
    marks = [{k for k, v in t.items() if v is True} for t in driver["installed"]]
    assert marks == [{"current", "wanted", "loaded"}, {"staged"}]
    assert driver["last_good"] == driver["current"] == "/opt/nvidia/535.309.01/3975.2.0"


def test_the_document_of_a_waiting_host() -> None:
    got = made(WAITING, Progress("pull-image", "layer 2 of 3", 100, 400))
    problem = {
        "code": "image-missing",
        "sentence": MISSING.sentence,
        "remedy": MISSING.remedy,
        "retry": True,
    }
    assert got["problem"] == problem
    assert got["report"] == {
        "reason": "it is wanted and not on disk",
        "steps": [
            {"step": "pull-image", "description": f"pull '{IMAGE}'", "seconds": 1.5, "problem": problem},
        ],
        "problem": problem,
    }
    assert got["progress"] == {"step": "pull-image", "detail": "layer 2 of 3", "done": 100, "total": 400}
    assert got["attempts"] == [{"what": IMAGE, "count": 3, "last": NOW - 30, "problem": problem}]


def test_every_state_has_the_same_keys() -> None:
    assert {tuple(sorted(made(status))) for status in STATES.values()} == {tuple(sorted(made(READY)))}


def keys(value: object) -> set[str]:
    if isinstance(value, dict):
        return set(value) | {key for inner in value.values() for key in keys(inner)}
    return {key for inner in value for key in keys(inner)} if isinstance(value, list) else set()


def test_every_field_phase_and_code_is_documented() -> None:
    page = (ROOT / "docs/status.md").read_text("utf-8")
    progress = Progress("pull-image", "", 1, 2)
    fields = set().union(*(keys(made(status, progress)) for status in STATES.values()))
    assert {field for field in fields if not re.search(rf"[`.]{field}(\[\])?`", page)} == set()
    assert {phase for phase in Phase if f"| `{phase}` |" not in page} == set()
    assert {code for code in Code if f"| `{code}` |" not in page} == set()
    steps = {re.sub("(?<!^)(?=[A-Z])", "-", step.__name__).lower() for step in get_args(Step)}
    assert {step for step in steps if f"`{step}`" not in page} == set()
    for name in ("io.nvidiad", "org.varlink.service"):
        idl = (ROOT / f"nvidiad/rim/{name}.varlink").read_text("utf-8")
        for method in re.findall(r"^(?:method|error) (\w+)", idl, re.MULTILINE):
            assert f"`{name}.{method}`" in page, method


# ---------------------------------------------------------------------------------------------------
# The text

READY_TEXT = """\
● ready - driver 535.309.01 is in force on Flatcar Container Linux
       Usable: yes, since Mon 2026-11-23 13:59:06 UTC; 3min 5s ago
          GPU: 0000:00:04.0 [10de:20b5], bound to nvidia
       Loaded: 535.309.01 (nvidia, nvidia_uvm)
    Installed: /opt/nvidia/535.309.01/3975.2.0 (current, loaded, wanted, open)
               /opt/nvidia/535.309.01/4081.2.0 (staged, open)
       Wanted: 535.309.01 for flatcar 3975.2.0, kernel 6.6.95-flatcar
        Image: registry.example/nvidia-driver:3975.2.0-535.309.01
     Exposure: ldconfig (/usr/lib and /usr/lib64 are split)
      Next OS: 4081.2.0 (updated need reboot), driver 535.309.01 proven: /opt/nvidia/535.309.01/4081.2.0
       Reboot: may go: driver 535.309.01 for 4081.2.0 is on disk and fits its kernel
        Units: nvidia.service active (exited) since Mon 2026-11-23 13:59:06 UTC; 3min 5s ago
               kubelet.service active (running) since Mon 2026-11-23 13:59:06 UTC; 3min 5s ago
"""
WAITING_TEXT = """\
● waiting - the registry has no image 'registry.example/nvidia-driver:3975.2.0-535.309.01'
       Usable: no
          GPU: 0000:00:04.0 [10de:20b5], not bound
       Loaded: none
    Installed: none
       Wanted: 535.309.01 for flatcar 3975.2.0, kernel 6.6.95-flatcar
        Image: registry.example/nvidia-driver:3975.2.0-535.309.01
     Exposure: ldconfig (/usr/lib and /usr/lib64 are split)
        Units: nvidia.service inactive
               kubelet.service inactive, waits for the driver
        Doing: pull-image: layer 2 of 3 (100 MB of 400 MB, 25%)
      Problem: image-missing
    Failed at: pull 'registry.example/nvidia-driver:3975.2.0-535.309.01', after 1s
     Next try: Mon 2026-11-23 14:03:41 UTC; in 1min 30s
        To do: Push the image; nvidiad looks again by itself.
      Warning: unknown key 'driver.colour' in '/etc/nvidiad/nvidiad.toml', ignoring
"""


def test_text_of_a_ready_host() -> None:
    assert shown(READY) == READY_TEXT


def test_text_of_a_waiting_host() -> None:
    assert shown(WAITING, Progress("pull-image", "layer 2 of 3", 10**8, 4 * 10**8)) == WAITING_TEXT


def test_the_next_try_is_told_with_why_there_is_one() -> None:
    trying = replace(WAITING, phase=Phase.CONVERGING, problem=None, summary="it is not on disk")
    (failed,) = (line for line in shown(trying).splitlines() if "Failed at" in line)
    assert "after 1s: the registry has no image" in failed and failed.endswith("[image-missing]")
    assert "Problem:" not in shown(trying)


def test_text_of_other_states() -> None:
    assert "Usable: with driver 535.309.01 until the reboot\n" in shown(PENDING)
    assert "In use by: python3 (pid 4711) of kubepods-pod12.slice\n" in shown(PENDING)
    assert shown(NO_GPU).startswith("○ no-gpu - this host has no NVIDIA GPU\n")
    assert "Usable: no, there is none\n" in shown(NO_GPU)
    assert shown(None).startswith("↻ converging - the first look")


def test_text_is_coloured_when_asked() -> None:
    text = render.text(made(READY), now=NOW, colour=True)
    assert text.startswith("\x1b[32m●\x1b[0m \x1b[32mready\x1b[0m - ")
    assert re.sub(r"\x1b\[\d+m", "", text) == READY_TEXT


def test_nothing_in_a_status_steers_the_terminal() -> None:
    evil = replace(
        READY,
        summary="a\x1b[2Jb\nc\r\x9bd",
        facts=replace(FACTS, holders=(Holder(1, "\x1b]0;x\x07\udcff", "u\u202e"),)),
    )
    text = shown(evil)
    assert text.replace("\n", "").isprintable()
    assert text.splitlines()[0] == "● ready - a\\x1b[2Jb c \\x9bd"
    text.encode("utf-8")


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(made(READY))), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(sorted(made(READY))), JSON))
def test_documents_of_other_versions_are_rendered(news: dict[str, object]) -> None:
    text = render.text(made(WAITING) | news, now=NOW, colour=False)
    assert text.endswith("\n")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-5, "0s"),
        (0.4, "0s"),
        (59.9, "59s"),
        (60, "1min"),
        (3600, "1h"),
        (3661, "1h 1min"),
        (7205, "2h"),
        (90000, "1d 1h"),
        (40 * 86400, "40d"),
        (800 * 86400, "2y"),
    ],
)
def test_spans(seconds: float, words: str) -> None:
    assert render.span(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (98_700_000, "99 MB"), (2_400_000_000, "2.4 GB")],
)
def test_sizes(count: int, words: str) -> None:
    assert render.size(count) == words


def test_moments() -> None:
    assert render.moment(NOW) == "Mon 2026-11-23 14:02:11 UTC"
    assert render.moment(1e300) == "at an unknown time"


def test_status_line_is_one_short_line() -> None:
    assert render.status_line(READY) == f"ready: {READY.summary}"
    line = render.status_line(replace(READY, summary="a\nWATCHDOG=trigger\n" + "x" * 999))
    assert "\n" not in line and len(line) <= 240 and line.endswith("…")


def test_table() -> None:
    assert render.table([("a", "bbb"), ("cccc", "")], ("ONE", "TWO")) == "ONE  TWO\na    bbb\ncccc -\n"
    assert render.table([("a", "b")]) == "a b\n"
    assert render.table([]) == ""


def test_render_imports_next_to_nothing() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); before = set(sys.modules);"
        "import nvidiad.thought.render; print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.split() == ["__future__", "nvidiad", "nvidiad.thought", "nvidiad.thought.render"]


# ---------------------------------------------------------------------------------------------------
# The metrics


def counted() -> metrics.Counters:
    done = Report(
        FETCH, (StepResult(FETCH.steps[0], 1.5), StepResult(StartUnit("a.service"), 0.25, MISSING))
    )
    counters = metrics.looked(metrics.pulled(metrics.Counters(), 500))
    return metrics.acted(metrics.acted(counters, done), done)


def test_counters() -> None:
    assert counted() == metrics.Counters(
        looks=1,
        pulled_bytes=500,
        steps=(("pull-image", metrics.StepCount(2, 0, 3.0)), ("start-unit", metrics.StepCount(2, 2, 0.5))),
    )


def test_metrics() -> None:
    page = metrics.exposition(made(WAITING), counted())
    lines = page.splitlines()
    for line in (
        'nvidiad_info{version="0.1.0",os="flatcar",os_version="3975.2.0",kernel="6.6.95-flatcar"} 1',
        "nvidiad_ready 0",
        'nvidiad_phase{phase="waiting"} 1',
        'nvidiad_phase{phase="ready"} 0',
        'nvidiad_problem{code="image-missing"} 1',
        'nvidiad_driver_info{wanted="535.309.01",loaded="",product="",exposure="ldconfig"} 1',
        'nvidiad_unit_active{unit="kubelet.service"} 0',
        "nvidiad_failed_attempts 3",
        "nvidiad_next_try_timestamp_seconds 1795442621",
        "nvidiad_pulled_bytes_total 500",
        'nvidiad_step_failures_total{step="start-unit"} 2',
    ):
        assert line in lines
    assert "nvidiad_phase_since" not in page


@pytest.mark.parametrize("state", STATES)
def test_promtool_accepts_the_metrics(state: str) -> None:
    promtool = shutil.which("promtool")
    if not promtool:
        pytest.skip("needs promtool")
    page = metrics.exposition(
        made(STATES[state], Progress("pull-image", "", 5, 10)), counted(), itself.process()
    )
    done = subprocess.run(
        [promtool, "check", "metrics"], input=page, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("state", STATES)
def test_metrics_are_well_formed(state: str) -> None:
    page = metrics.exposition(made(STATES[state]), counted(), itself.process())
    sample = re.compile(
        r'((?:nvidiad|process)_[a-z_]+)(\{[a-z_]+="([^"\\\n]|\\.)*"(,[a-z_]+="([^"\\\n]|\\.)*")*\})? (\S+)'
    )
    described, seen = set(), set()
    for line in page.splitlines():
        if line.startswith("#"):
            described.add(line.split()[2])
            continue
        match = sample.fullmatch(line)
        assert match, line
        float(match[6])
        assert match[1] in described
        assert line.rpartition(" ")[0] not in seen
        seen.add(line.rpartition(" ")[0])


def process() -> metrics.Process:
    found = itself.process()
    assert found is not None
    return found


def test_what_the_process_itself_holds() -> None:
    before = at_rest(process)
    reader, writer = os.pipe()
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    try:
        after = itself.process()
    finally:
        ended.set()
        thread.join()
        os.close(reader)
        os.close(writer)
    assert after is not None
    assert (after.descriptors, after.threads) == (before.descriptors + 2, before.threads + 1)
    assert 1 << 20 < after.resident < 1 << 34
    page = metrics.exposition({}, metrics.Counters(), after)
    assert f"process_open_fds {after.descriptors}\n" in page
    assert f"process_num_threads {after.threads}\n" in page
    assert f"process_resident_memory_bytes {after.resident}\n" in page
    assert "process_" not in metrics.exposition({}, metrics.Counters())


def test_labels_are_escaped() -> None:
    page = metrics.exposition({"version": 'a"b\\c\nd'}, metrics.Counters())
    assert 'version="a\\"b\\\\c\\nd"' in page

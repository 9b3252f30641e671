# SPDX-License-Identifier: Apache-2.0
"""CUDA as the second kind of bundle: planned after the driver, told, refused by name, put beside it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nvidiad.nouns import manifest as manifests
from nvidiad.nouns import naming
from nvidiad.nouns.errors import Code, Failure, Permanent
from nvidiad.nouns.facts import CudaFacts, HostFacts
from nvidiad.nouns.manifest import LinkEntry
from nvidiad.nouns.model import Attempt, Build, Kind, LoadedModule, Memory, Phase, Problem, Tree
from nvidiad.nouns.steps import InstallTree, PullImage, SelectTree
from nvidiad.nouns.value import replace
from nvidiad.thought import choice, config, cuda, metrics, planner
from nvidiad.thought.document import document
from nvidiad.thought.render import text
from nvidiad.world.trees import Trees
from tests.payload.builder import cuda_payload, image_labels, payload
from tests.payload.image import image_context
from tests.unit import facts as f
from tests.unit.test_installer import BAD_IMAGE, BUSY, CANNOT_WRITE, OK, Bench, bench, busybox, read

if TYPE_CHECKING:
    from nvidiad.nouns.plan import Plan, Status

__all__ = ["bench", "busybox"]

NOW = 1000.0
MORE = "[cuda]\nversion = '12.4.1'\nrepository = 'registry.example/cuda'\n"
IMAGE = "registry.example/cuda:12.4.1"
KEY = f"cuda {IMAGE}"
BUILD = Build("12.4.1", "", "", kind=Kind.CUDA)
TREE = Tree("/opt/cuda/12.4.1", BUILD, None)
OLD = Tree("/opt/cuda/12.3.2", replace(BUILD, driver="12.3.2"), None)
FETCH = [f"pull '{IMAGE}'", f"install 'CUDA 12.4.1' from '{IMAGE}' and verify it"]
SELECT = "point '/opt/cuda/current' to '/opt/cuda/12.4.1'"
MISSING = Problem(Code.IMAGE_MISSING, f"'{IMAGE}' is not in the registry", "push it", retry=True)
FAILED = Memory((Attempt(KEY, 1, NOW, MISSING),))
THERE = CudaFacts((OLD, TREE), TREE.path)


def decide(facts: HostFacts, memory: Memory | None = None, more: str = MORE) -> Plan:
    return planner.decide(facts, f.settings(more), memory or Memory(), NOW)


def assess(facts: HostFacts, memory: Memory | None = None, more: str = MORE) -> Status:
    return planner.assess(facts, f.settings(more), decide(facts, memory, more), now=NOW)


def steps(plan: Plan) -> list[str]:
    return [step.describe() for step in plan.steps]


# ---------------------------------------------------------------------------------------------------
# The plan

HOSTS = {
    "the driver is in force": (f.host(), [*FETCH, SELECT]),
    "it is on disk": (f.host(cuda=CudaFacts((TREE,))), [SELECT]),
    "another one is current": (f.host(cuda=CudaFacts((OLD, TREE), OLD.path)), [SELECT]),
    "it is current": (f.host(cuda=THERE), []),
    "there is no GPU": (f.host(f.bare(gpus=())), []),
    "another owner keeps the driver": (f.host(f.bare(extensions=("nvidia-drivers-570",))), []),
    "the driver's unit is starting": (
        f.host(f.installed(), units=(f.unit("nvidia.service", "activating", job=7), *f.DOWN[1:])),
        [],
    ),
    "the kubelet is to be started first": (
        f.host(units=(*f.UNITS[:2], f.DOWN[2])),
        ["start kubelet.service"],
    ),
    "a gate is to be written first": (f.host(gates=()), ["order kubelet.service after nvidia.service"]),
    "the driver waits for the reboot": (
        f.host(f.driver(loaded=(LoadedModule("nvidia", "470.1", 3),), current="/opt/nvidia/470.1/3975.2.0")),
        [*FETCH, SELECT],
    ),
    "the driver cannot be brought up": (f.host(f.installed(lockdown="integrity"), units=f.DOWN), []),
}


@pytest.mark.parametrize("name", HOSTS)
def test_hosts(name: str) -> None:
    facts, expected = HOSTS[name]
    plan = decide(facts)
    assert steps(plan) == expected
    without = assess(facts, more="")
    for told in (assess(facts), assess(facts, FAILED)):
        assert (told.phase, told.problem) == (without.phase, without.problem)


def test_the_driver_is_fetched_first_and_while_it_waits_nothing_else_is() -> None:
    facts = f.host(f.bare(), units=f.DOWN)
    assert [type(step) for step in decide(facts).steps] == [PullImage, InstallTree]
    assert {step.build.kind for step in decide(facts).steps if isinstance(step, PullImage)} == {Kind.DRIVER}
    waiting = decide(facts, Memory((Attempt(f.IMAGE, 1, NOW, MISSING),)))
    assert waiting.steps == ()


def test_a_failure_is_a_warning_and_waits_for_its_time() -> None:
    plan = decide(f.host(), FAILED)
    assert (plan.steps, plan.problem, plan.cuda_problem) == ((), None, MISSING)
    assert plan.wait is not None and 5 <= plan.wait <= 10
    status = assess(f.host(), FAILED)
    assert status.phase is Phase.READY
    assert status.problem is None
    assert status.warnings == (f"CUDA 12.4.1 is not in force: {MISSING.sentence}",)
    assert status.next_try == NOW + plan.wait
    assert steps(planner.decide(f.host(), f.settings(MORE), FAILED, NOW + 11)) == [*FETCH, SELECT]


def test_a_failure_that_is_over_is_not_told() -> None:
    assert assess(f.host(cuda=THERE), FAILED).warnings == ()
    assert assess(f.host(), FAILED, more="").warnings == ()


TOO_NEW = replace(TREE, minimum_driver="550.54.15")
NEEDS = "CUDA 12.4.1 needs driver 550.54.15 or a newer one, 535.309.01 is wanted"


@pytest.mark.parametrize(
    ("facts", "warning"),
    [
        pytest.param(
            CudaFacts((OLD, TOO_NEW), OLD.path),
            f"CUDA 12.4.1 is not in force: {NEEDS}",
            id="an older is current",
        ),
        pytest.param(CudaFacts((TOO_NEW,)), f"CUDA 12.4.1 is not in force: {NEEDS}", id="none is current"),
        pytest.param(CudaFacts((TOO_NEW,), TOO_NEW.path), NEEDS, id="the driver has been taken back"),
    ],
)
def test_a_driver_that_is_too_old(facts: CudaFacts, warning: str) -> None:
    status = assess(f.host(cuda=facts))
    assert (status.phase, status.problem, steps(decide(f.host(cuda=facts)))) == (Phase.READY, None, [])
    assert status.warnings == (warning,)
    assert status.cuda is not None and status.cuda.problem is not None
    assert status.cuda.problem.code is Code.DRIVER_TOO_OLD
    assert "driver-too-old" in text(made(f.host(cuda=facts)), now=NOW, colour=False)
    # The driver is rolled forward: nothing else has to happen.
    assert cuda.refusal(facts, BUILD, "550.54.15") is None


def test_after_a_fallback_it_is_compared_with_the_driver_that_is_back() -> None:
    newer = replace(f.TREE, path=f"/opt/nvidia/550.54.15/{f.OS}", build=replace(f.BUILD, driver="550.54.15"))
    more = "[driver]\nversion = '550.54.15'\n" + MORE
    for trials in ((), (Attempt(choice.trial_key(newer), 3, NOW, MISSING),)):
        driver = f.driver(trees=(f.TREE, newer), good=(f.TREE.path,), trials=trials)
        status = assess(f.host(driver, cuda=CudaFacts((TOO_NEW,))), more=more)
        assert status.cuda is not None
        assert (status.cuda.problem is not None) is bool(trials)


def test_the_driver_that_is_wanted_goes_with_the_installation() -> None:
    (_, install, _) = decide(f.host()).steps
    assert isinstance(install, InstallTree)
    assert install.driver == f.DRIVER


def test_every_step_counts_under_the_image() -> None:
    settings = f.settings(MORE)
    for step in decide(f.host()).steps:
        assert planner.retry_key(step, f.host(), settings) == KEY
    assert planner.retry_key(SelectTree("/x", "/y"), f.host(), f.settings()) is None


def test_a_tag_of_its_own() -> None:
    more = MORE + "tag = 'v{version}-x'\n"
    assert cuda.reference(BUILD, f.settings(more)) == "registry.example/cuda:v12.4.1-x"


def test_what_gc_takes() -> None:
    other = replace(OLD, path="/opt/cuda/11.8", build=replace(BUILD, driver="11.8"))
    assert cuda.expendable(CudaFacts((other, OLD, TREE), OLD.path), BUILD) == (other,)
    assert cuda.expendable(CudaFacts((other, OLD), OLD.path), None) == (other,)


# ---------------------------------------------------------------------------------------------------
# The configuration


@pytest.mark.parametrize(
    ("fragment", "fault"),
    [
        ("version = '12.4.1'", "f: cuda.repository: expected an image name, found nothing"),
        ("repository = 'r/cuda'", "f: cuda.version: expected a CUDA version, found nothing"),
        (
            "version = 12.4",
            (
                "f:2: cuda.version: expected a CUDA version such as '12.4.1', "
                "found the number 12.4 (put it in quotes)"
            ),
        ),
        (
            "version = 'current'",
            "f:2: cuda.version: expected a CUDA version such as '12.4.1', found 'current'",
        ),
        (
            "repository = 'r/cuda:1'",
            (
                "f:2: cuda.repository: expected an image name such as 'registry.example/cuda', "
                "found 'r/cuda:1' (without a tag: that is cuda.tag)"
            ),
        ),
        (
            "tag = '{driver}'",
            (
                "f:2: cuda.tag: expected a tag with a field such as '{version}', "
                "found '{driver}' (there are {version})"
            ),
        ),
    ],
)
def test_faults(fragment: str, fault: str) -> None:
    _, faults = config.load([("f", f"[cuda]\n{fragment}\n")])
    assert fault in [str(each) for each in faults]


def test_without_a_version_none_is_kept() -> None:
    assert cuda.wanted(f.settings()) is None
    assert cuda.wanted(f.settings("[cuda]\ntag = 'x{version}'\n")) is None
    assert cuda.wanted(f.settings(MORE)) == BUILD


# ---------------------------------------------------------------------------------------------------
# What is told


def made(facts: HostFacts, memory: Memory | None = None, more: str = MORE) -> dict[str, Any]:
    return document(assess(facts, memory, more), version="1")


def test_the_document() -> None:
    assert made(f.host(), more="")["cuda"] is None
    assert made(f.host(cuda=THERE))["cuda"] == {
        "wanted": "12.4.1",
        "image": IMAGE,
        "current": TREE.path,
        "installed": [
            {"path": OLD.path, "version": "12.3.2", "current": False, "wanted": False},
            {"path": TREE.path, "version": "12.4.1", "current": True, "wanted": True},
        ],
        "problem": None,
    }
    assert made(f.host(), FAILED)["cuda"]["problem"]["code"] == "image-missing"


@pytest.mark.parametrize(
    ("facts", "memory", "lines"),
    [
        (f.host(cuda=THERE), None, ["CUDA: 12.4.1 (current)"]),
        (f.host(), None, ["CUDA: 12.4.1 (wanted)"]),
        (f.host(), FAILED, ["CUDA: 12.4.1 (wanted, image-missing)"]),
        (
            f.host(cuda=CudaFacts((OLD,), OLD.path)),
            FAILED,
            ["CUDA: 12.3.2 (current)", "12.4.1 (wanted, image-missing)"],
        ),
    ],
)
def test_the_text(facts: HostFacts, memory: Memory | None, lines: list[str]) -> None:
    said = [line.strip() for line in text(made(facts, memory), now=NOW, colour=False).splitlines()]
    start = said.index(lines[0])
    assert said[start : start + len(lines)] == lines
    assert "CUDA" not in text(made(facts, memory, more=""), now=NOW, colour=False)


def test_the_metrics() -> None:
    def page(facts: HostFacts, more: str = MORE) -> list[str]:
        lines = metrics.exposition(made(facts, more=more), metrics.Counters()).splitlines()
        return [line for line in lines if line.startswith("nvidiad_cuda")]

    assert page(f.host(cuda=THERE)) == ['nvidiad_cuda_ready{wanted="12.4.1"} 1']
    assert page(f.host(cuda=CudaFacts((OLD, TREE), OLD.path))) == ['nvidiad_cuda_ready{wanted="12.4.1"} 0']
    assert page(f.host(), more="") == []


# ---------------------------------------------------------------------------------------------------
# The manifest

MANIFEST = manifests.cuda("12.4.1", "525.60.13", "x86_64", (LinkEntry("lib64", "targets/lib"),))
TEXT = """\
{"schema": 1, "kind": "cuda", "version": "12.4.1", "minimum-driver": "525.60.13", "architecture": "x86_64",
 "files": [
{"path": "lib64", "type": "link", "target": "targets/lib"}
]}
"""
REFUSED = [
    ('"cuda"', '"rocm"', "kind 'rocm' is unknown"),
    ('"cuda"', '"driver"', "kind 'driver' is unknown"),
    ('"12.4.1"', '"current"', "'current' is the name of the link"),
    ('"12.4.1"', '"../1"', "is no version"),
    ('"12.4.1"', '""', "is no version"),
    ('"525.60.13"', '"525"', "field 'minimum-driver' of the document is not a driver version: '525'"),
    ('"525.60.13"', '"525.60.13-grid"', "is not a driver version"),
    ('"525.60.13"', '""', "is not a driver version"),
    (', "minimum-driver": "525.60.13"', "", "field 'minimum-driver' of the document is missing"),
    ('"x86_64"', '"X"', "is not an architecture"),
    (', "architecture": "x86_64"', "", "field 'architecture' of the document is missing"),
    ('"version"', '"driver"', "field 'version' of the document is missing"),
    ("1, ", '1, "driver": "1", ', "field 'driver' of the document is unknown"),
]


def test_the_exact_form() -> None:
    assert manifests.parse(TEXT) == MANIFEST
    assert manifests.render(MANIFEST) == TEXT
    assert MANIFEST.build == BUILD


@pytest.mark.parametrize(("old", "new", "reason"), REFUSED)
def test_refused(bench: Bench, old: str, new: str, reason: str) -> None:
    wrong = TEXT.replace(old, new, 1)
    with pytest.raises(Permanent, match=reason) as caught:
        manifests.parse(wrong)
    assert caught.value.code is Code.MANIFEST_INVALID
    code, lines = read(bench, wrong)
    assert code != 0
    assert lines[-1].startswith("error\t")


def test_the_installer_reads_the_same(bench: Bench) -> None:
    assert read(bench, TEXT) == (0, ["cuda\t12.4.1", "link\tlib64\ttargets/lib", f"bytes\t{len(TEXT)}\t0"])
    for other in (TEXT.replace(' "files"', ' "os": {},\n "files"'), TEXT.replace("x86_64", "x86_64 ")):
        assert read(bench, other)[0] != 0


@pytest.mark.parametrize(
    ("driver", "minimum", "older"),
    [
        ("535.261.03", "525.60.13", False),
        ("525.60.13", "525.60.13", False),
        ("525.60.13", "525.105.17", True),  # as text it would be the newer one
        ("99.1", "525.60.13", True),
        ("1000.1", "525.60.13", False),
        ("535.54", "535.54.03", True),
        ("535.54.00", "535.54", False),
        ("535.261.03-grid", "535.261.03", False),
        ("535.261.03-grid", "535.261.04", True),
    ],
)
def test_drivers_are_compared_by_their_numbers(driver: str, minimum: str, *, older: bool) -> None:
    assert naming.is_older(driver, minimum) is older
    labels = manifests.labels(replace(MANIFEST, minimum_driver=minimum), "0" * 64)
    if not older:
        manifests.check_driver(labels, BUILD, driver)
        return
    with pytest.raises(Permanent) as caught:
        manifests.check_driver(labels, BUILD, driver)
    assert caught.value.code is Code.DRIVER_TOO_OLD
    assert caught.value.sentence == f"CUDA 12.4.1 needs driver {minimum} or a newer one, {driver} is wanted"


def test_what_names_no_minimum_driver_is_not_refused() -> None:
    labels = manifests.labels(replace(MANIFEST, minimum_driver="999.1"), "0" * 64)
    manifests.check_driver({}, BUILD, f.DRIVER)
    manifests.check_driver(labels, BUILD, "")  # installed by hand: nobody asks
    manifests.check_driver(labels, f.BUILD, f.DRIVER)


def test_labels() -> None:
    labels = manifests.labels(MANIFEST, "0" * 64)
    assert labels["io.nvidiad.minimum-driver"] == "525.60.13"
    manifests.check_labels(labels, BUILD)
    assert manifests.labelled(labels) == BUILD
    # The Dockerfile sets them all, and an older one knows no kind.
    manifests.check_labels(labels | {"io.nvidiad.driver": "", "io.nvidiad.kernel": ""}, BUILD)
    with pytest.raises(Permanent, match=r"version '12\.4\.1' instead of '12\.3\.2'"):
        manifests.check_labels(labels, OLD.build)
    with pytest.raises(Permanent, match="kind 'cuda' instead of 'driver'"):
        manifests.check_labels(labels, f.BUILD)
    with pytest.raises(Permanent, match="is not a cuda image"):
        manifests.check_labels({}, BUILD)


def test_a_driver_image_is_no_cuda(tmp_path: Path) -> None:
    tree = payload(tmp_path, driver=f.DRIVER, release=("flatcar", f.OS), kernel=f.KERNEL)
    labels = image_labels(tree)
    for given in (labels, labels | {"io.nvidiad.kind": "driver", "io.nvidiad.version": ""}):
        manifests.check_labels(given, f.BUILD)
        with pytest.raises(Permanent, match="kind 'driver' instead of 'cuda'") as caught:
            manifests.check_labels(given, BUILD)
        assert caught.value.code is Code.IMAGE_MISMATCH


# ---------------------------------------------------------------------------------------------------
# Trees


def test_both_kinds_below_one_root(tmp_path: Path) -> None:
    trees = Trees(tmp_path / "opt", lambda: True)
    of_driver = payload(tmp_path / "d", driver=f.DRIVER, release=("flatcar", f.OS), kernel=f.KERNEL)
    first = trees.install(cuda_payload(tmp_path / "c", "12.3.2"), lambda _: None)
    second = trees.install(cuda_payload(tmp_path / "c", "12.4.1"), lambda _: None)
    driver = trees.install(of_driver, lambda _: None)
    assert (second.path, second.build, second.flavour) == (f"{tmp_path}/opt/cuda/12.4.1", BUILD, None)
    assert trees.list(Kind.CUDA) == (first, second)
    assert trees.list() == (driver,)
    assert (trees.current(Kind.CUDA), trees.current()) == (None, None)
    for tree in (driver, first, second):
        trees.select(tree.path)
    assert (tmp_path / "opt/cuda/current").readlink() == Path("12.4.1")
    assert (trees.current(Kind.CUDA), trees.current()) == (second.path, driver.path)
    # `current` is beside the trees and none of them.
    assert trees.list(Kind.CUDA) == (first, second)
    trees.verify(second.path, BUILD)
    with pytest.raises(Permanent, match="is current"):
        trees.remove(second.path)
    trees.remove(first.path)
    assert sorted(os.listdir(tmp_path / "opt/cuda")) == [".lock", "12.4.1", "current"]  # noqa: PTH208


def test_an_installed_tree_is_verified_swept_and_replaced(tmp_path: Path) -> None:
    trees = Trees(tmp_path / "opt", lambda: True)
    source = cuda_payload(tmp_path / "c", "12.4.1")
    tree = trees.install(source, lambda _: None)
    trees.select(tree.path)
    (tmp_path / "opt/cuda/.9.9.partial").mkdir()
    (Path(tree.path) / "bin/nvcc").write_text("broken")
    with pytest.raises(Failure) as caught:
        trees.verify(tree.path, BUILD)
    assert caught.value.code is Code.TREE_INVALID
    # That the driver is loaded has nothing to do with CUDA.
    trees.install(source, lambda _: None)
    trees.verify(tree.path, BUILD)
    assert not (tmp_path / "opt/cuda/.9.9.partial").exists()
    assert trees.current(Kind.CUDA) == tree.path


def test_what_others_left_there_is_no_tree(tmp_path: Path) -> None:
    trees = Trees(tmp_path / "opt")
    tree = trees.install(cuda_payload(tmp_path / "c", "12.4.1"), lambda _: None)
    Path(tree.path).rename(tmp_path / "opt/cuda/12.5.0")
    assert trees.list(Kind.CUDA) == ()
    (tmp_path / "opt/cuda/12.4.1").symlink_to("12.5.0")
    assert trees.list(Kind.CUDA) == ()
    (tmp_path / "opt/cuda/current").mkdir()
    (tmp_path / "opt/cuda/12.4.1").unlink()
    (tmp_path / "opt/cuda/12.5.0").rename(tree.path)
    with pytest.raises(Permanent, match="is not a symbolic link") as caught:
        trees.select(tree.path)
    assert caught.value.code is Code.OTHER_OWNER


# ---------------------------------------------------------------------------------------------------
# The installer in the image


def test_the_installer(bench: Bench) -> None:
    (bench.image / "opt/nvidia").rename(bench.image / "nvidia")
    tree = cuda_payload(bench.image, "12.4.1")
    bench.run(OK, "copying CUDA 12.4.1: ", "verifying", "installed: '/opt/cuda/12.4.1'")
    bench.run(OK, "already installed: '/opt/cuda/12.4.1' (CUDA 12.4.1) is complete")
    trees = Trees(bench.host / "opt")
    (installed,) = trees.list(Kind.CUDA)
    trees.verify(installed.path, BUILD)
    assert bench.leftovers() == []
    # Another content for the same version, while a driver is loaded and this tree is current.
    trees.select(installed.path)
    (bench.host / "sys/module/nvidia").mkdir(parents=True)
    (tree / "manifest.json").write_text(
        manifests.render(replace(trees.manifest(installed.path), architecture="arm64"))
    )
    bench.run(OK, "replacing '/opt/cuda/12.4.1': it has another manifest")
    assert trees.manifest(installed.path).architecture == "arm64"
    assert trees.current(Kind.CUDA) == installed.path
    assert bench.leftovers() == []


def test_the_installer_refuses(bench: Bench) -> None:
    tree = cuda_payload(bench.image, "12.4.1")
    bench.run(BAD_IMAGE, "has 2 trees instead of one")
    (bench.image / "opt/nvidia").rename(bench.image / "nvidia")
    wrong = tree.rename(tree.with_name("12.5.0"))
    bench.run(BAD_IMAGE, "is for '/opt/cuda/12.4.1', but it is in '/opt/cuda/12.5.0'")
    wrong.rename(tree)
    (tree / "bin/nvcc").unlink()
    bench.run(BAD_IMAGE, "bin/nvcc is missing")
    cuda_payload(bench.image / "again", "12.4.1").joinpath("bin/nvcc").rename(tree / "bin/nvcc")
    (bench.host / "opt/cuda/12.4.1").mkdir(parents=True)
    bench.run(CANNOT_WRITE, "is not a tree of nvidiad")
    with Trees(bench.host / "opt")._locked(Kind.CUDA):
        bench.run(BUSY, "another installation holds '/opt/cuda/.lock'")


def test_the_image(tmp_path: Path) -> None:
    tree = cuda_payload(tmp_path / "p", "12.4.1")
    labels = image_labels(tree)
    digest = hashlib.sha256((tree / "manifest.json").read_bytes()).hexdigest()
    assert labels["io.nvidiad.manifest"] == digest
    context = image_context(tree, tmp_path / "context")
    Trees(context / "opt").verify(str(context / "opt/cuda/12.4.1"), BUILD)

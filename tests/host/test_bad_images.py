# SPDX-License-Identifier: Apache-2.0
"""Images that must not be taken: refused by name, nothing of them stays, what is in force stays in force."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.host import road
from tests.host.machine import RELEASE
from tests.payload import builder, image
from tests.payload.builder import Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.host.bed import Host

KUBELET = "kubelet.service"
NEW = road.OTHER_DRIVER
IMAGE = f"{road.REPOSITORY}:{road.tag(driver=NEW)}"
# While a refused image is tried again, a part of it is on disk, and its installer may be at work.
PATIENT = {"retry-initial": 600, "retry-maximum": 600}


@dataclass(frozen=True)
class Bad:
    """An image under the tag of driver NEW, and the code and the words by which it is refused."""

    code: str
    words: tuple[str, ...]
    spoil: Fault | None = None
    lies: bool = False
    """Its labels are those of a good image: the installer, and what verifies after it, must find out."""
    labels: Callable[[dict[str, str]], dict[str, str]] = lambda right: right
    stays_out: bool = False
    """Not even its installer runs."""


def without(word: str) -> Callable[[dict[str, str]], dict[str, str]]:
    return lambda right: {key: value for key, value in right.items() if word not in key}


def but(**changes: str) -> Callable[[dict[str, str]], dict[str, str]]:
    return lambda right: (
        right | {f"io.nvidiad.{key.replace('_', '.')}": value for key, value in changes.items()}
    )


LIBRARY = f"lib64/libcuda.so.{NEW}"
BAD = {
    # What the tree is, against what its manifest says.
    "wrong hash": Bad("manifest-invalid", (IMAGE, LIBRARY), Fault.WRONG_HASH),
    "missing file": Bad("manifest-invalid", (IMAGE, LIBRARY, "missing"), Fault.MISSING_FILE),
    "extra file": Bad("manifest-invalid", (IMAGE, "libextra.so.1", "not in the manifest"), Fault.EXTRA_FILE),
    # What the manifest is.
    "path that leaves the tree": Bad(
        "manifest-invalid", (IMAGE, "component", "evil.sh"), Fault.LEAVES_TREE, lies=True
    ),
    "link that leaves the tree": Bad(
        "manifest-invalid", (IMAGE, "libevil.so.1"), Fault.LINK_LEAVES_TREE, lies=True
    ),
    "half a manifest": Bad("manifest-invalid", (IMAGE,), Fault.BROKEN_MANIFEST, lies=True),
    "no manifest": Bad("manifest-invalid", (IMAGE, "no tree"), Fault.NO_MANIFEST, lies=True),
    "nothing in it": Bad("manifest-invalid", (IMAGE, "no tree"), Fault.NOT_A_DRIVER, lies=True),
    # What it is for, when it says so.
    "other OS": Bad("image-mismatch", ("'9999.9.9'", RELEASE[0]), Fault.WRONG_OS, stays_out=True),
    "other kernel": Bad("image-mismatch", ("'9.9.9-other'", RELEASE[1]), Fault.WRONG_KERNEL, stays_out=True),
    "other driver": Bad("image-mismatch", ("'999.99.99'", NEW), Fault.WRONG_DRIVER, stays_out=True),
    "not a driver": Bad("image-foreign", ("not a driver image",), labels=lambda _: {}, stays_out=True),
    "labels of a stranger": Bad(
        "image-foreign", ("not a driver image",), labels=without("schema"), stays_out=True
    ),
    "schema of tomorrow": Bad("manifest-invalid", ("'99'",), labels=but(schema="99"), stays_out=True),
    # What it is for, when it lies.
    "lies about its OS": Bad("manifest-invalid", (IMAGE, "9999.9.9"), Fault.WRONG_OS, lies=True),
    "lies about its kernel": Bad(
        "image-mismatch", ("'9.9.9-other'", RELEASE[1]), Fault.WRONG_KERNEL, lies=True
    ),
    "lies about its driver": Bad("manifest-invalid", (IMAGE, "999.99.99"), Fault.WRONG_DRIVER, lies=True),
    "modules of another kernel": Bad(
        "vermagic-mismatch",
        ("nvidia-modeset.ko", "9.9.9-other SMP preempt mod_unload", RELEASE[1]),
        Fault.WRONG_VERMAGIC,
    ),
    # What this host is.
    "for another machine": Bad("image-mismatch", ("'aarch64'", "'x86_64'"), Fault.OTHER_MACHINE),
    # What is in it, against itself.
    "a module of another driver": Bad(
        "tree-invalid", ("nvidia-uvm.ko' is of driver 535.261.03", NEW), Fault.MIXED_MODULES
    ),
    "a library of another driver": Bad(
        "tree-invalid", ("libnvidia-opencl.so.535.261.03", NEW), Fault.STRAY_LIBRARY
    ),
    "good, but says otherwise": Bad(
        "image-mismatch", ("'9.9.9-other'", RELEASE[1]), labels=but(kernel="9.9.9-other"), stays_out=True
    ),
}

# What its labels give away no engine fetches; what is in it nvidiad itself must find without the installer.
CASES = (
    *(pytest.param(name, "docker", id=name) for name in BAD),
    *(
        pytest.param(name, "registry", id=f"{name}-registry")
        for name, bad in BAD.items()
        if not bad.stays_out
    ),
)
SECOND, VOLTA = "0000:02:00.0", "1db6"
VAIN = {
    "serves no GPU of the host": Bad(
        "flavour-wrong", (f"{SECOND} (10de:{VOLTA}) needs the proprietary modules",), stays_out=True
    ),
    "serves none, and its labels do not say so": Bad(
        "flavour-wrong",
        (f"{SECOND} (10de:{VOLTA}) needs the proprietary modules",),
        labels=without("flavour"),
    ),
}


def publish(host: Host, bad: Bad, version: str = RELEASE[0], driver: str = NEW) -> None:
    with tempfile.TemporaryDirectory() as made:
        tree = road.payload(Path(made), version, RELEASE[1], driver=driver)
        right = builder.image_labels(tree)
        if bad.spoil is not None:
            builder.spoil(tree, bad.spoil)
        labels = bad.labels(right if bad.lies or bad.spoil is None else builder.image_labels(tree))
        packed = image.image(tree, labels=labels)
    tag = road.tag(version, driver)
    road.within(host, lambda: packed.push("http://127.0.0.1:5000", "nvidia-driver", tag))


@pytest.fixture(scope="module")
def shared() -> Iterator[Host]:
    """A host with driver 535.309.01 in force."""
    with road.in_force() as host:
        yield host


@pytest.fixture
def ready(shared: Host) -> Iterator[Host]:
    yield shared
    host = shared
    road.configure(host, road.configuration())
    host.run(f"rm -rf /opt/nvidia/{NEW}; docker system prune -af >&2", check=True)
    host.nvidiad("reconcile", check=True)
    road.wait_status(
        host, lambda d: d["phase"] == "ready" and len(d["driver"]["installed"]) == 1, "only the old one"
    )


def refused(document: dict[str, Any], bad: Bad) -> bool:
    return bool((document["problem"] or {}).get("code") == bad.code)


@pytest.mark.parametrize(("name", "engine"), CASES)
def test_a_bad_image_is_refused_by_name_and_the_driver_in_force_stays(
    ready: Host, name: str, engine: str
) -> None:
    host, bad = ready, BAD[name]
    # nvidiad itself runs nothing of an image.
    road.fetched_by(host, engine)
    before = road.end_state(host)
    shown = {unit: road.main_pid(host, unit) for unit in (KUBELET, "nvidia-persistenced.service")}
    calls, etc = len(host.kmod_log()), road.listing(host.path("/etc"), without=("nvidiad/", "systemd/"))
    since = road.clock(host)
    publish(host, bad)
    road.configure(host, road.configuration(NEW, daemon=PATIENT))
    document = road.wait_status(host, lambda d: refused(d, bad), f"{bad.code} for {name}")
    for word in bad.words:
        assert word in document["problem"]["sentence"]
    assert document["problem"]["remedy"]
    assert document["phase"] in ("waiting", "blocked")
    assert document["driver"]["loaded"] == road.DRIVER
    assert document["driver"]["wanted"] == NEW
    assert [tree["driver"] for tree in document["driver"]["installed"]] == [road.DRIVER]
    assert host.nvidiad("status").rc == 4

    after = road.end_state(host)
    assert after.pop("memory") != before.pop("memory"), "the failure is not remembered"
    # The directory of a driver may stay, with nothing in it.
    trees = after["trees"]
    assert isinstance(trees, dict)
    trees.pop(NEW, None)
    assert after == before
    assert road.listing(host.path("/etc"), without=("nvidiad/", "systemd/")) == etc
    assert {unit: road.main_pid(host, unit) for unit in shown} == shown
    assert len(host.kmod_log()) == calls
    ran = road.engine_events(host, "start", since)
    assert not ran if bad.stays_out or engine == "registry" else ran

    # A good image under the same tag: on disk now, in force with the next boot.
    host.kmod_busy("nvidia")
    road.configure(host, road.configuration(NEW))
    road.publish(host, driver=NEW)
    document = road.wait_phase(host, "pending-reboot", code="driver-mismatch")
    host.kmod_busy()
    assert {tree["driver"] for tree in document["driver"]["installed"]} == {road.DRIVER, NEW}
    assert {unit: road.main_pid(host, unit) for unit in shown} == shown


@pytest.mark.parametrize(
    "name", ["wrong hash", "not a driver", "lies about its kernel", "modules of another kernel"]
)
def test_without_any_driver_a_bad_image_holds_the_kubelet_until_there_is_a_good_one(
    shared: Host, name: str
) -> None:
    host, bad = shared, BAD[name]
    road.strip(host)
    publish(host, bad, driver=road.DRIVER)
    host.write("/etc/nvidiad/nvidiad.toml", road.configuration(daemon=PATIENT))
    host.systemctl("start", "nvidiad.service")
    host.systemctl("start", "--no-block", KUBELET)
    road.wait_status(host, lambda d: refused(d, bad), f"{bad.code} for {name}")
    assert host.state(KUBELET) != "active"
    assert road.witnessed(host) == []
    assert host.modules() == []
    assert host.nvidiad("list", "--json=short", check=True).json() == []
    left = road.listing(host.path("/opt/nvidia"))
    assert {path for path in left if path != ".lock"} <= {road.DRIVER}, "something is half installed"
    road.configure(host, road.configuration())
    road.publish(host)
    road.wait_ready(host)
    host.wait(lambda: road.witnessed(host), "the kubelet has looked around")
    road.assert_never_early(host, starts=1)


@pytest.mark.parametrize("name", VAIN)
def test_an_image_whose_driver_serves_no_gpu_of_the_host_is_refused(shared: Host, name: str) -> None:
    host, bad = shared, VAIN[name]
    road.strip(host)
    # Whatever the last case left.
    road.fetched_by(host, "docker")
    host.gpu_remove()
    host.gpu_add(SECOND, VOLTA)
    since = road.clock(host)
    publish(host, bad, driver=road.DRIVER)
    host.write("/etc/nvidiad/nvidiad.toml", road.configuration(daemon=PATIENT))
    host.systemctl("start", "nvidiad.service")
    document = road.wait_status(host, lambda d: refused(d, bad), f"{bad.code} for {name}")
    for word in bad.words:
        assert word in document["problem"]["sentence"]
    assert host.nvidiad("list", "--json=short", check=True).json() == []
    ran = road.engine_events(host, "start", since)
    assert not ran if bad.stays_out else ran
    # A card that it serves takes the place of the other.
    road.configure(host, road.configuration())
    host.gpu_remove(SECOND)
    host.gpu_add()
    road.wait_ready(host)


def test_an_image_that_only_does_not_name_the_gpu_is_tried(shared: Host) -> None:
    host = shared
    road.strip(host)
    road.publish(host, spoil=Fault.OTHER_GPUS)
    host.write("/etc/nvidiad/nvidiad.toml", road.configuration())
    host.systemctl("start", "nvidiad.service")
    # What drives a GPU serves it.
    assert road.wait_ready(host)["warnings"] == []

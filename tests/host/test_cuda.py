# SPDX-License-Identifier: Apache-2.0
"""CUDA on a host: it comes after the driver, holds nothing up, and a new one is switched to at once."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.host import road
from tests.host.machine import RELEASE
from tests.payload import builder, image

if TYPE_CHECKING:
    from tests.host.bed import Host

REPOSITORY = "127.0.0.1:5000/cuda"
FIRST, SECOND = "12.3.2", "12.4.1"
KUBELET = "kubelet.service"
NO_GPU = pytest.mark.parametrize("host", [{"gpu": False}], indirect=True)


def configuration(version: str) -> str:
    return road.configuration(cuda={"version": version, "repository": REPOSITORY})


def publish(host: Host, version: str, tag: str = "", *, minimum_driver: str = "525.60.13") -> str:
    """Build the image of a stand-in CUDA and push it to the host's plain registry; the digest."""
    with tempfile.TemporaryDirectory() as made:
        packed = image.image(builder.cuda_payload(Path(made), version, minimum_driver))
    return road.within(host, lambda: packed.push("http://127.0.0.1:5000", "cuda", tag or version))


def wait_current(host: Host, version: str) -> dict[str, Any]:
    """Wait until this CUDA is the current one; the document in which it is."""
    path = f"/opt/cuda/{version}"
    return road.wait_status(host, lambda d: d["cuda"] and d["cuda"]["current"] == path, f"{path} is current")


def wait_problem(host: Host) -> dict[str, Any]:
    return road.wait_status(host, lambda d: d["cuda"] and d["cuda"]["problem"], "CUDA has a problem")


def test_cuda_comes_after_the_driver_and_a_missing_image_holds_nothing_up(host: Host) -> None:
    road.install(host, configuration(FIRST))
    road.publish(host)
    host.systemctl("start", "nvidiad.service")
    road.wait_ready(host)
    road.assert_never_early(host, starts=1)
    wait_problem(host)
    # While a try is under way there is no next one.
    document = road.wait_status(host, lambda d: d["next_try"], "CUDA is tried again later")
    assert (document["phase"], document["problem"]) == ("ready", None)
    assert document["cuda"]["problem"]["code"] == "image-missing"
    missing = f"'{REPOSITORY}:{FIRST}' is not in the registry"
    (warning,) = document["warnings"]
    assert warning.startswith(f"CUDA {FIRST} is not in force: {missing}")
    assert road.metric(host, "nvidiad_cuda_ready", wanted=FIRST) == 0
    shown = host.nvidiad("status")
    assert shown.rc == 0
    assert f"CUDA: {FIRST} (wanted, image-missing)" in shown.out
    # It is counted, and so tried at the pace of the back-off.
    road.wait_status(host, lambda d: d["attempts"] and d["attempts"][0]["count"] >= 3, "three attempts")

    before = {unit: road.main_pid(host, unit) for unit in (KUBELET, "nvidia-persistenced.service")}
    publish(host, FIRST)
    document = wait_current(host, FIRST)
    assert document["warnings"] == []
    assert host.run("/opt/cuda/current/bin/nvcc", check=True).out.strip() == f"stand-in for nvcc {FIRST}"
    assert host.read("/opt/cuda/current/lib64/libcudart.so.12").startswith("\x7fELF")
    assert f"CUDA: {FIRST} (current)" in host.nvidiad("status").out
    assert road.metric(host, "nvidiad_cuda_ready", wanted=FIRST) == 1
    road.wait_status(host, lambda d: d["attempts"] == [], "nothing that failed is remembered")

    publish(host, SECOND)
    road.configure(host, configuration(SECOND))
    document = wait_current(host, SECOND)
    # The old one stays until somebody asks: a pod may have it mounted.
    assert [tree["version"] for tree in document["cuda"]["installed"]] == [FIRST, SECOND]
    listed = host.nvidiad("list", "--json=short", check=True).json()
    assert [(tree["kind"], tree["version"], tree["state"]) for tree in listed] == [
        ("driver", road.DRIVER, "current,loaded"),
        ("cuda", FIRST, ""),
        ("cuda", SECOND, "current"),
    ]
    assert host.nvidiad("gc", check=True).out == f"removed /opt/cuda/{FIRST}\n"
    assert not host.exists(f"/opt/cuda/{FIRST}")
    assert {unit: road.main_pid(host, unit) for unit in before} == before

    # A boot without registry and engine has both.
    host.systemctl("disable", "docker.service", "docker.socket", "registry@5000.service")
    host.reboot()
    road.wait_ready(host)
    assert wait_current(host, SECOND)["cuda"]["problem"] is None
    road.assert_never_early(host, starts=1)


def test_an_image_that_is_another_cuda_is_refused_and_one_comes_by_hand(host: Host) -> None:
    road.install(host, configuration(FIRST))
    road.publish(host)
    publish(host, SECOND, tag=FIRST)
    host.systemctl("start", "nvidiad.service")
    road.wait_ready(host)
    problem = wait_problem(host)["cuda"]["problem"]
    assert problem["code"] == "image-mismatch"
    assert f"version '{SECOND}' instead of '{FIRST}'" in problem["sentence"]
    assert host.state(KUBELET) == "active"
    assert not host.exists("/opt/cuda")

    with tempfile.TemporaryDirectory() as made:
        host.put(builder.cuda_payload(Path(made), FIRST), "/root/cuda")
    assert host.nvidiad("install", "/root/cuda", check=True).out == f"/opt/cuda/{FIRST}\n"
    assert wait_current(host, FIRST)["warnings"] == []
    publish(host, SECOND)
    given = host.nvidiad("install", f"{REPOSITORY}:{SECOND}", check=True)
    assert given.out == f"/opt/cuda/{SECOND}\n"
    # It is there, and the configured one stays current.
    document = road.wait_status(host, lambda d: len(d["cuda"]["installed"]) == 2, "both are seen")
    assert document["cuda"]["current"] == f"/opt/cuda/{FIRST}"
    assert document["driver"]["current"] == f"/opt/nvidia/{road.DRIVER}/{RELEASE[0]}"


def test_a_cuda_that_needs_a_newer_driver_is_refused_and_holds_nothing_up(host: Host) -> None:
    road.install(host, configuration(SECOND))
    road.publish(host)
    # As text it would be the older one.
    publish(host, SECOND, minimum_driver="1000.1")
    host.systemctl("start", "nvidiad.service")
    road.wait_ready(host)
    document = wait_problem(host)
    assert document["cuda"]["problem"]["code"] == "driver-too-old"
    needs = f"CUDA {SECOND} needs driver 1000.1 or a newer one, {road.DRIVER} is wanted"
    assert document["cuda"]["problem"]["sentence"] == needs
    assert (document["phase"], document["problem"], document["cuda"]["current"]) == ("ready", None, None)
    assert document["warnings"] == [f"CUDA {SECOND} is not in force: {needs}"]
    # Its label says it: the installer has not run.
    assert not host.exists("/opt/cuda")
    assert f"CUDA: {SECOND} (wanted, driver-too-old)" in host.nvidiad("status").out
    assert host.state(KUBELET) == "active"

    # By hand it can be laid down, and still does not become current.
    host.nvidiad("install", f"{REPOSITORY}:{SECOND}", check=True)
    road.wait_status(host, lambda d: d["cuda"]["installed"], "it is on disk")
    document = wait_problem(host)
    assert (document["cuda"]["problem"]["sentence"], document["cuda"]["current"]) == (needs, None)
    # One that is not too new goes its way.
    publish(host, FIRST, minimum_driver=road.DRIVER)
    road.configure(host, configuration(FIRST))
    assert wait_current(host, FIRST)["warnings"] == []


@NO_GPU
def test_without_a_gpu_no_cuda_is_fetched(host: Host) -> None:
    road.install(host, configuration(FIRST))
    road.publish(host)
    publish(host, FIRST)
    host.systemctl("start", "nvidiad.service")
    assert road.wait_phase(host, "no-gpu")["cuda"]["problem"] is None
    assert not host.exists("/opt/cuda")
    host.gpu_add()
    road.wait_ready(host)
    wait_current(host, FIRST)

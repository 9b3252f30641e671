# SPDX-License-Identifier: Apache-2.0
"""The units as installed: systemd has nothing against them, and stop undoes exactly what start did."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.beds.common import SUITES
from tests.host import road

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host.bed import Host

KUBELET, PERSISTENCED = "kubelet.service", "nvidia-persistenced.service"
UNIT, DRIVER_UNIT = "nvidiad.service", "nvidia.service"


@pytest.fixture(scope="module", params=SUITES)
def shared(request: pytest.FixtureRequest) -> Iterator[Host]:
    with road.in_force(request.param) as host:
        host.wait(lambda: road.witnessed(host), "the kubelet has looked around")
        yield host


@pytest.fixture
def ready(shared: Host) -> Host:
    road.wait_ready(shared)
    return shared


def test_systemd_has_nothing_to_say_against_the_units(ready: Host) -> None:
    # Where they are: their programs, users and drop-ins are there too.
    units = (UNIT, "nvidiad.socket", DRIVER_UNIT, PERSISTENCED, KUBELET)
    verified = ready.run("systemd-analyze", "verify", "--man=no", "--recursive-errors=yes", *units)
    assert (verified.rc, verified.out, verified.err) == (0, "", "")


def test_nvidiad_and_activation_live_in_the_mounts_of_the_host(ready: Host) -> None:
    def namespace(pid: int) -> str:
        return ready.run("readlink", f"/proc/{pid}/ns/mnt", check=True).out

    init = namespace(1)
    assert namespace(road.main_pid(ready, UNIT)) == init
    ready.write(
        f"/run/systemd/system/{DRIVER_UNIT}.d/look.conf",
        "[Service]\nExecReload=\nExecReload=/bin/sh /run/look\n",
    )
    ready.write("/run/look", "readlink /proc/self/ns/mnt >/run/looked\n")
    ready.systemctl("daemon-reload")
    try:
        ready.systemctl("reload", DRIVER_UNIT)
        assert ready.read("/run/looked") == init
    finally:
        ready.run("rm", "-r", f"/run/systemd/system/{DRIVER_UNIT}.d", check=True)
        ready.systemctl("daemon-reload")


def test_the_journal_has_fields_of_its_own(ready: Host) -> None:
    # The daemon's own steps and those of activation, which is another unit and another process.
    entries = ready.journal(UNIT)
    steps = {entry["NVIDIAD_STEP"]: entry for entry in entries if "NVIDIAD_STEP" in entry}
    assert {"pull-image", "install-tree", "start-unit"} <= steps.keys()
    pulled = steps["pull-image"]
    assert pulled["PRIORITY"] == "6"
    assert pulled["SYSLOG_IDENTIFIER"] == "nvidiad"
    assert float(pulled["NVIDIAD_SECONDS"]) >= 0
    assert pulled["MESSAGE"].startswith("done: pull '127.0.0.1:5000/")
    plans = [entry for entry in entries if entry["MESSAGE"].startswith("plan: ")]
    assert plans and all(int(plan["NVIDIAD_STEPS"]) > 0 for plan in plans)
    activation = {entry["NVIDIAD_STEP"] for entry in ready.journal(DRIVER_UNIT) if "NVIDIAD_STEP" in entry}
    assert {"select-tree", "load-module", "make-nodes", "check-driver"} <= activation
    found = ready.run("journalctl", "-b", "-q", "-o", "cat", "NVIDIAD_STEP=load-module", check=True).out
    assert "nvidia.ko" in found

    road.configure(ready, road.configuration("1.2.3"))
    road.wait_phase(ready, "waiting", code="image-missing")

    def told() -> list[dict[str, Any]]:
        return [entry for entry in ready.journal(UNIT) if entry.get("NVIDIAD_CODE") == "image-missing"]

    # What the plan waits for is logged a moment after it is published.
    ready.wait(
        lambda: {entry["PRIORITY"] for entry in told()} == {"3", "4"}, "the step's and the plan's word"
    )
    failed = told()
    assert any(entry.get("NVIDIAD_STEP") == "pull-image" for entry in failed)
    assert any(entry.get("NVIDIAD_REMEDY") for entry in failed)
    road.configure(ready, road.configuration())
    road.wait_ready(ready)


def marks(host: Host) -> dict[str, Any]:
    """Everything on the host that a driver in force may have left its mark on."""
    mounts = sorted(" ".join((m[4], *m[m.index("-") + 1 :])) for m in (x.split() for x in mountinfo(host)))
    return {
        "modules": host.modules(),
        "nodes": road.nodes(host),
        "proc": sorted(path.name for path in host.path("/proc/driver").iterdir()),
        "firmware": host.read("/sys/module/firmware_class/parameters/path").strip("\n\0"),
        "linker": road.linker(host),
        "etc": road.listing(host.path("/etc"), without=("ld.so.cache",)),
        "mounts": mounts,
        "usr": sorted(os.listdir(host.path("/usr/lib64"))),  # noqa: PTH208
        "bound": host.exists("/sys/bus/pci/devices/0000:01:00.0/driver"),
    }


def mountinfo(host: Host) -> list[str]:
    # Containers and credentials of other services come and go.
    passing = ("docker", "credentials", "netns", "/user/")
    lines = host.read("/proc/1/mountinfo").splitlines()
    return [line for line in lines if not any(word in line for word in passing)]


@pytest.mark.parametrize("exposure", ["ldconfig", "overlay"])
def test_stop_undoes_exactly_what_start_did_and_a_second_start_does_it_again(
    shared: Host, exposure: str
) -> None:
    host = shared
    road.strip(host)
    road.publish(host)
    host.write("/etc/nvidiad/nvidiad.toml", road.configuration(install={"exposure": exposure}))
    trees = road.put_tree(host)
    before = marks(host)
    assert before["modules"] == []

    host.systemctl("start", DRIVER_UNIT)
    host.systemctl("start", PERSISTENCED)
    during = marks(host)
    assert during["modules"] == ["nvidia", "nvidia_modeset", "nvidia_uvm"]
    changed = {name for name in before if before[name] != during[name]}
    expected = {"modules", "nodes", "proc", "firmware", "linker", "etc", "bound"}
    assert changed == expected | ({"mounts", "usr"} if exposure == "overlay" else set())

    # Persistenced goes with it, of itself.
    host.systemctl("stop", DRIVER_UNIT)
    assert host.state(PERSISTENCED) == "inactive"
    assert marks(host) == before
    assert host.show(DRIVER_UNIT, "Result") == "success"
    assert host.exists(trees)
    assert host.run("readlink", "-f", "/opt/nvidia/current", check=True).out.strip() == trees

    host.systemctl("start", DRIVER_UNIT, PERSISTENCED)
    assert marks(host) == during
    calls = host.kmod_log()
    host.systemctl("reload", DRIVER_UNIT)
    assert marks(host) == during
    assert host.kmod_log() == calls
    host.systemctl("stop", DRIVER_UNIT)
    assert marks(host) == before
    host.write("/etc/nvidiad/nvidiad.toml", road.configuration())
    host.systemctl("start", UNIT)
    host.systemctl("start", KUBELET)
    road.wait_ready(host)


def test_a_stop_while_the_driver_is_in_use_says_who_uses_it_and_leaves_it(ready: Host) -> None:
    host = ready
    host.systemctl("stop", UNIT, "nvidiad.socket")
    host.kmod_busy("nvidia_uvm")
    host.systemctl("stop", DRIVER_UNIT)
    assert host.show(DRIVER_UNIT, "Result") == "exit-code"
    (told,) = [e for e in host.journal(DRIVER_UNIT) if e.get("NVIDIAD_CODE") == "module-in-use"][-1:]
    assert "nvidia_uvm" in told["MESSAGE"]
    assert "nvidia_uvm" in host.modules()
    host.kmod_busy()
    host.systemctl("reset-failed")
    host.systemctl("start", UNIT, KUBELET)
    road.wait_ready(host)


def test_a_shutdown_of_the_host_does_not_unload_the_driver(ready: Host) -> None:
    host = ready
    calls = [call["argv"][0] for call in host.kmod_log()]
    assert "rmmod" not in calls[-1:]
    # The log is of this boot: it is kept where the next one finds it.
    keep = "cp /run/kmod.log /var/tmp/; systemctl is-system-running >/var/tmp/state"
    host.write(
        f"/etc/systemd/system/{DRIVER_UNIT}.d/keep.conf", f"[Service]\nExecStopPost=/bin/sh -c '{keep}'\n"
    )
    host.systemctl("daemon-reload")
    host.reboot()
    road.wait_ready(host)
    assert host.read("/var/tmp/state").strip() == "stopping"
    before = [line for line in host.read("/var/tmp/kmod.log").splitlines() if "nvidia" in line]
    assert len(before) >= len(calls)
    assert not [line for line in before[len(calls) :] if "rmmod" in line]
    said = [entry["MESSAGE"] for entry in host.journal(DRIVER_UNIT, boot="-1")]
    assert "the host is going down, the driver stays loaded" in said
    host.run("rm", "-r", f"/etc/systemd/system/{DRIVER_UNIT}.d", check=True)
    host.systemctl("daemon-reload")

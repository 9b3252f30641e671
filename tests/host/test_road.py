# SPDX-License-Identifier: Apache-2.0
"""The main job on a real systemd and dockerd: from an empty disk to a driver in force, and back to it."""

from __future__ import annotations

import json
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.beds.common import SUITES
from tests.host import ahead, road
from tests.host.machine import RELEASE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host.bed import Host

BOTH = pytest.mark.parametrize("suite", SUITES, indirect=True)
NO_GPU = pytest.mark.parametrize("host", [{"gpu": False}], indirect=True)
KUBELET = "kubelet.service"
PERSISTENCED = "nvidia-persistenced.service"


@pytest.fixture(scope="module")
def shared(request: pytest.FixtureRequest) -> Iterator[Host]:
    """One host with everything in force for all tests that leave it as they found it."""
    with road.in_force() as host:
        yield host


@pytest.fixture
def ready(shared: Host) -> Iterator[Host]:
    """The shared host, and afterwards ready again with the usual configuration."""
    road.wait_ready(shared)
    yield shared
    host = shared
    host.kmod_busy()
    host.write("/etc/nvidiad/nvidiad.toml", road.configuration())
    host.systemctl("reload-or-restart", "nvidiad.service")
    host.systemctl("start", KUBELET)
    road.wait_ready(host)


# -- from OS to OS ---------------------------------------------------------------------------------


@BOTH
def test_the_host_gets_its_driver_and_has_the_right_one_after_an_unattended_update_of_its_os(
    host: Host,
) -> None:
    road.install(host)
    road.publish(host)
    host.systemctl("start", "nvidiad.service")
    document = road.wait_ready(host)
    assert document["driver"]["loaded"] == road.DRIVER
    assert document["driver"]["current"] == f"/opt/nvidia/{road.DRIVER}/{RELEASE[0]}"
    assert document["kernel"]["release"] == RELEASE[1]
    assert [gpu["bound"] for gpu in document["gpus"]] == ["nvidia"]
    shown = host.nvidiad("status")
    assert shown.rc == 0
    assert f"ready - driver {road.DRIVER} is in force" in shown.out
    assert (
        host.run("/opt/nvidia/current/bin/nvidia-smi", "--query-gpu=driver_version").out.strip()
        == road.DRIVER
    )
    road.assert_never_early(host, starts=1)

    road.publish(host, *road.NEXT)
    host.update_engine("UPDATED_NEED_REBOOT", road.NEXT[0])
    host.update(*road.NEXT)
    host.reboot()
    document = road.wait_ready(host)
    assert document["driver"]["current"] == f"/opt/nvidia/{road.DRIVER}/{road.NEXT[0]}"
    assert document["kernel"]["release"] == road.NEXT[1]
    loaded = [call["argv"][1] for call in host.kmod_log() if call["argv"][0] == "insmod" and call["rc"] == 0]
    assert len(loaded) == 3
    assert all(f"/{road.NEXT[0]}/lib/modules/{road.NEXT[1]}/" in path for path in loaded)
    assert {tree["os"] for tree in document["driver"]["installed"]} == {RELEASE[0], road.NEXT[0]}
    road.assert_never_early(host, starts=1)

    host.systemctl("disable", "--now", "docker.service", "docker.socket", "registry@5000.service")
    host.reboot()
    assert host.state("docker.service") == "inactive"
    document = road.wait_ready(host)
    assert document["driver"]["current"] == f"/opt/nvidia/{road.DRIVER}/{road.NEXT[0]}"
    road.assert_never_early(host, starts=1)


def test_a_boot_with_the_tree_on_disk_needs_not_even_the_daemon(host: Host) -> None:
    road.install(host)
    road.put_tree(host)
    # Not `systemctl disable`: that would go on to the units that nvidiad.service names in Also=.
    host.run("rm /etc/systemd/system/*.wants/nvidiad.*", check=True)
    assert host.reboot() == "running"
    assert host.state("nvidiad.service") == "inactive"
    road.wait_units(host, "nvidia.service", PERSISTENCED, KUBELET)
    road.assert_never_early(host, starts=1)


def test_the_os_goes_back_to_its_former_version_without_a_pull(host: Host) -> None:
    road.install(host)
    road.publish(host)
    road.put_tree(host, *road.NEXT)
    host.systemctl("start", "nvidiad.service")
    road.wait_ready(host)
    for release in (road.NEXT, RELEASE):
        host.registry_stop("plain")
        host.update(*release)
        host.systemctl("disable", "registry@5000.service")
        host.reboot()
        assert road.wait_ready(host)["driver"]["current"] == f"/opt/nvidia/{road.DRIVER}/{release[0]}"
        road.assert_never_early(host, starts=1)


def test_another_driver_waits_for_the_reboot_and_names_who_holds_the_old_one(
    ready: Host,
) -> None:
    host = ready
    before = {name: road.main_pid(host, name) for name in (KUBELET, PERSISTENCED)}
    # Nothing can be opened where no real driver is; a path to the device is as good for who looks on.
    training = 'import os, time; os.open("/dev/nvidia0", os.O_PATH); time.sleep(1e6)'
    host.run("systemd-run", "-q", "--unit=training", "/usr/bin/python3", "-c", training, check=True)
    opened = "ls -l /proc/$(systemctl show -P MainPID training)/fd | grep nvidia0"
    host.wait(lambda: host.run(opened).rc == 0, "the training uses the GPU")
    # What the kernel would count for it.
    host.kmod_busy("nvidia")
    road.publish(host, driver=road.OTHER_DRIVER)
    road.configure(host, road.configuration(road.OTHER_DRIVER))
    document = road.wait_phase(host, "pending-reboot")
    assert document["problem"]["code"] == "driver-mismatch"
    assert [(h["command"], h["unit"]) for h in document["driver"]["holders"]] == [
        ("python3", "training.service")
    ]
    assert "python3" in document["problem"]["sentence"]
    assert "training.service" in host.nvidiad("status").out
    assert document["driver"]["loaded"] == road.DRIVER
    assert document["driver"]["current"] == f"/opt/nvidia/{road.DRIVER}/{RELEASE[0]}"
    assert host.nvidiad("status").rc == 4
    assert {name: road.main_pid(host, name) for name in before} == before
    # It is on disk already, so the reboot needs no network.
    assert f"/opt/nvidia/{road.OTHER_DRIVER}/{RELEASE[0]}" in [
        t["path"] for t in document["driver"]["installed"]
    ]
    host.reboot()
    document = road.wait_ready(host)
    assert document["driver"]["loaded"] == road.OTHER_DRIVER
    road.assert_never_early(host, starts=1)
    host.kmod_busy("nvidia")
    road.configure(host, road.configuration())
    road.wait_phase(host, "pending-reboot")
    host.reboot()
    assert road.wait_ready(host)["driver"]["loaded"] == road.DRIVER
    road.assert_never_early(host, starts=1)
    host.run("rm", "-r", f"/opt/nvidia/{road.OTHER_DRIVER}", check=True)


# -- what is missing -------------------------------------------------------------------------------


@BOTH
def test_without_an_image_the_kubelet_is_held_until_somebody_pushes_it(host: Host) -> None:
    road.install(host)
    host.reboot()
    document = road.wait_phase(host, "waiting", code="image-missing")
    assert document["problem"]["remedy"]
    assert document["next_try"] is not None
    assert host.state(KUBELET) == "inactive"
    assert road.witnessed(host) == []
    shown = host.nvidiad("status")
    assert shown.rc == 4
    assert "image-missing" in shown.out
    road.publish(host)
    road.wait_ready(host)
    road.assert_never_early(host, starts=1)


def test_when_missing_is_start_the_kubelet_runs_without_a_driver_and_the_driver_comes_later(
    host: Host,
) -> None:
    road.install(host, road.configuration(units={"when-missing": "start"}))
    host.reboot()
    road.wait_units(host, KUBELET)
    document = road.wait_phase(host, "waiting", code="image-missing")
    assert document["driver"]["loaded"] is None
    pid = road.main_pid(host, KUBELET)
    assert [entry["driver"] for entry in road.wait_witnessed(host, 1)] == [""]
    road.publish(host)
    road.wait_ready(host)
    assert road.main_pid(host, KUBELET) == pid


def test_when_missing_is_start_a_refused_module_is_tried_at_the_pace_of_the_back_off(
    host: Host,
) -> None:
    road.install(host, road.configuration(units={"when-missing": "start"}))
    road.put_tree(host)
    host.kmod_fail(("insmod", "nvidia", "Key was rejected by service"))
    host.systemctl("start", "nvidiad.service", KUBELET)
    document = road.wait_status(
        host, lambda d: (d["problem"] or {}).get("code") == "module-rejected", "refused"
    )
    assert document["next_try"] is not None
    assert [entry["driver"] for entry in road.wait_witnessed(host, 1)] == [""]
    road.wait_status(host, lambda d: d["attempts"] and d["attempts"][0]["count"] >= 3, "three attempts")
    tries = [call["t"] for call in host.kmod_log() if call["argv"][0] == "insmod"]
    # The first is systemd's, for the kubelet; nvidiad's waits are the upper half of 1 s and of 2 s.
    assert all(later - earlier > 0.5 for earlier, later in pairwise(tries[1:])), tries
    host.kmod_fail()
    road.wait_ready(host)


@NO_GPU
def test_without_a_gpu_the_kubelet_is_free_and_a_gpu_that_is_plugged_in_gets_its_driver(host: Host) -> None:
    road.install(host)
    road.publish(host)
    host.reboot()
    road.wait_phase(host, "no-gpu")
    road.wait_units(host, KUBELET, "nvidia.service")
    assert host.nvidiad("status").rc == 0
    assert host.modules() == []
    assert not host.exists("/opt/nvidia")
    host.gpu_add()
    document = road.wait_ready(host)
    assert len(document["gpus"]) == 1


def test_a_second_gpu_gets_its_nodes(ready: Host) -> None:
    host = ready
    slot = "0000:02:00.0"
    host.gpu_add(slot, "2330", announce=False)
    # What nvidia.ko does by itself when a card comes that it serves.
    host.write(f"/proc/driver/nvidia/gpus/{slot}/information", "Model: \t stand-in\nDevice Minor: \t 1\n")
    host.uevent("add", f"/devices/pci0000:00/{slot}")
    try:
        host.wait(lambda: host.exists("/dev/nvidia1"), "/dev/nvidia1")
        road.wait_status(host, lambda d: len(d["gpus"]) == 2 and d["phase"] == "ready", "two GPUs")
    finally:
        host.gpu_remove(slot)
        host.run("rm", "-f", "/dev/nvidia1", "/dev/char/195:1")
    road.wait_status(host, lambda d: len(d["gpus"]) == 1, "one GPU")


# -- what is taken away ----------------------------------------------------------------------------


def test_a_device_node_that_was_deleted_comes_back_when_asked(ready: Host) -> None:
    host = ready
    calls = len(host.kmod_log())
    host.run("rm", "/dev/nvidia0", "/dev/nvidia-uvm", check=True)
    assert host.nvidiad("reconcile").rc == 0
    host.wait(lambda: host.exists("/dev/nvidia0") and host.exists("/dev/nvidia-uvm"), "the nodes are back")
    road.wait_ready(host)
    assert len(host.kmod_log()) == calls
    assert len(road.witnessed(host)) >= 1


def test_a_tree_that_was_removed_is_pulled_again_and_the_kubelet_stays(ready: Host) -> None:
    host = ready
    pid = road.main_pid(host, KUBELET)
    before = road.listing(host.path("/opt/nvidia"))
    host.run("rm", "-rf", f"/opt/nvidia/{road.DRIVER}", check=True)
    host.nvidiad("reconcile", check=True)
    host.wait(lambda: road.listing(host.path("/opt/nvidia")) == before, "the tree is back")
    road.wait_ready(host)
    assert road.main_pid(host, KUBELET) == pid


def test_a_module_in_use_survives_a_restart_of_its_unit(ready: Host) -> None:
    host = ready
    before, nodes = road.modules(host), road.nodes(host)
    host.kmod_busy("nvidia_uvm", "nvidia_modeset")
    held = road.modules(host)
    host.systemctl("restart", "nvidia.service", check=False)
    road.wait_ready(host)
    assert road.modules(host) == held
    assert road.nodes(host) == nodes
    assert [
        call["argv"][1] for call in host.kmod_log() if call["argv"][0] == "rmmod" and call["rc"] == 0
    ] == []
    road.journal_time(host, "nvidia.service", "is in use by", last=True)
    host.kmod_busy()
    assert road.modules(host) == before
    host.wait(lambda: host.state(KUBELET) == "active", "the kubelet is back")


def test_the_linker_cache_is_put_right(ready: Host) -> None:
    host = ready
    before = road.linker(host)
    host.run("rm /etc/ld.so.conf.d/nvidiad.conf && ldconfig", check=True)
    assert road.linker(host) != before
    host.nvidiad("reconcile", check=True)
    host.wait(lambda: road.linker(host) == before, "the linker is as before")


def test_an_overlay_taken_away_under_us_is_put_back_without_help(host: Host) -> None:
    road.install(host, road.configuration(install={"exposure": "overlay"}))
    road.publish(host)
    host.systemctl("start", "nvidiad.service")
    document = road.wait_ready(host)
    assert document["exposure"]["way"] == "overlay"
    state = road.end_state(host)
    assert len(state["overlays"]) == 1  # type: ignore[arg-type]
    assert host.exists("/usr/lib64/libcuda.so.1")
    road.assert_never_early(host, starts=1)
    pid = road.main_pid(host, KUBELET)
    for command in ("umount /usr/lib64", "umount -l /usr/lib64"):
        host.run(command, check=True)
        host.wait(lambda: host.exists("/usr/lib64/libcuda.so.1"), "the overlay is back")
        host.wait(lambda: road.end_state(host) == state, "all is as before")
    assert road.main_pid(host, KUBELET) == pid
    # The other way round: what `overlay` left is taken away by `ldconfig`.
    road.configure(host, road.configuration(install={"exposure": "ldconfig"}))
    road.wait_status(
        host, lambda d: d["phase"] == "ready" and d["exposure"]["way"] == "ldconfig", "ldconfig"
    )
    assert road.end_state(host)["overlays"] == []
    assert not host.exists("/usr/lib64/libcuda.so.1")
    assert "/opt/nvidia/current/lib64/libcuda.so.1" in str(road.linker(host)["cache"])
    assert road.main_pid(host, KUBELET) == pid


# -- other owners ----------------------------------------------------------------------------------


def test_flatcars_own_nvidia_service_is_replaced_by_ours(host: Host) -> None:
    # /usr is read-only: a place of the same rank holds what Flatcar ships in /usr/lib/systemd/system.
    flatcar = (
        "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/touch /run/flatcar-was-here\n"
        "[Install]\nWantedBy=multi-user.target\n"
    )
    host.run("mount -t tmpfs tmpfs /usr/local", check=True)
    host.write("/usr/local/lib/systemd/system/nvidia.service", flatcar)
    host.systemctl("daemon-reload")
    assert host.show("nvidia.service", "FragmentPath") == "/usr/local/lib/systemd/system/nvidia.service"
    road.install(host)
    road.publish(host)
    assert host.show("nvidia.service", "FragmentPath") == "/etc/systemd/system/nvidia.service"
    host.systemctl("start", "nvidiad.service")
    road.wait_ready(host)
    assert not host.exists("/run/flatcar-was-here")


@BOTH
def test_an_active_nvidia_extension_is_respected(host: Host) -> None:
    road.install(host)
    road.publish(host)
    extension = "/run/extensions/nvidia-drivers-550"
    host.write(f"{extension}/usr/lib/extension-release.d/extension-release.nvidia-drivers-550", "ID=_any\n")
    host.run("systemd-sysext", "merge", check=True)
    host.systemctl("start", "nvidiad.service")
    document = road.wait_phase(host, "standing-back")
    assert "nvidia-drivers-550" in document["summary"]
    assert host.nvidiad("status").rc == 0
    road.wait_units(host, KUBELET)
    assert host.modules() == []
    assert not host.exists("/opt/nvidia")
    host.run("systemd-sysext", "unmerge", check=True)
    road.wait_ready(host)


def test_what_others_have_under_opt_nvidia_is_never_touched(host: Host) -> None:
    road.install(host)
    road.publish(host)
    for path, text in {
        "/opt/nvidia/cuda/README": "not a driver\n",
        "/opt/nvidia/470.57.02/bin/nvidia-smi": "Flatcar's own, without a manifest\n",
        f"/opt/nvidia/{road.DRIVER}/9999.0.0/lib64/libcuda.so.1": "somebody's\n",
        "/opt/nvidia/file": "a file\n",
    }.items():
        host.write(path, text)
    host.run("ln -s /nowhere /opt/nvidia/dangling", check=True)
    foreign = road.listing(host.path("/opt/nvidia"))
    host.systemctl("start", "nvidiad.service")
    road.wait_ready(host)
    assert "removed" not in host.nvidiad("gc", check=True).out
    now = road.listing(host.path("/opt/nvidia"))
    assert {name: now.get(name) for name in foreign} == foreign


def test_a_foreign_directory_called_current_stays_and_frees_nobody(host: Host) -> None:
    road.install(host)
    road.publish(host)
    host.write("/opt/nvidia/current/theirs", "1")
    host.systemctl("start", "nvidiad.service", KUBELET, check=False)
    document = road.wait_status(
        host, lambda d: (d["problem"] or {}).get("code") == "other-owner", "other-owner"
    )
    assert "/opt/nvidia/current" in document["problem"]["sentence"]
    assert host.read("/opt/nvidia/current/theirs") == "1"
    assert host.modules() == []
    assert road.witnessed(host) == []
    # It is tried again, at the pace of the back-off.
    host.run("rm", "-r", "/opt/nvidia/current", check=True)
    road.wait_ready(host)
    road.assert_never_early(host, starts=1)


# -- gated units -----------------------------------------------------------------------------------


def test_units_named_by_the_configuration_are_gated_and_let_go_again(ready: Host) -> None:
    host = ready
    road.witness(host, "slurmd.service", "my-pods.service")
    host.systemctl("enable", "slurmd.service", "my-pods.service")
    gated = (KUBELET, "slurmd.service", "my-pods.service")

    def gates() -> dict[str, bool]:
        """Which of the units systemd holds back, and whether a drop-in says so."""
        shown = {unit: "nvidia.service" in host.show(unit, "Requires") for unit in gated}
        written = {unit: host.exists(f"/etc/systemd/system/{unit}.d/10-nvidia.conf") for unit in gated}
        return shown if shown == written else {}

    road.configure(host, road.configuration(units={"gated": gated}))
    host.wait(lambda: gates() == dict.fromkeys(gated, True), "all are gated")

    def states(document: dict[str, Any]) -> dict[str, str]:
        return {unit["name"]: unit["active"] for unit in document["units"]}

    # Units that came with the configuration are listened to like those that were there from the start.
    host.systemctl("start", "slurmd.service")
    road.wait_status(host, lambda d: states(d).get("slurmd.service") == "active", "slurmd is seen to be up")
    host.systemctl("stop", "slurmd.service")
    road.wait_status(
        host, lambda d: states(d).get("slurmd.service") == "inactive", "slurmd is seen to be down"
    )
    document = road.wait_status(
        host, lambda d: sum(u["gated"] for u in d["units"]) == 3, "three gated units"
    )
    assert document["phase"] == "ready"
    host.reboot()
    road.wait_ready(host)
    for unit in gated:
        road.wait_units(host, unit)
        road.assert_never_early(host, unit, starts=1)
    pids = {unit: road.main_pid(host, unit) for unit in gated}
    road.configure(host, road.configuration())
    host.wait(lambda: gates() == {unit: unit == KUBELET for unit in gated}, "the others are free")
    assert host.exists("/etc/systemd/system/slurmd.service.d/50-witness.conf")
    assert {unit: road.main_pid(host, unit) for unit in gated} == pids
    host.systemctl("disable", "--now", "slurmd.service", "my-pods.service")
    host.run("rm -r /etc/systemd/system/slurmd.service* /etc/systemd/system/my-pods.service*", check=True)
    host.systemctl("daemon-reload")


def test_a_file_labels_the_node_while_its_gpu_can_be_used(ready: Host) -> None:
    host, place = ready, "/etc/kubernetes/node-feature-discovery/features.d/nvidiad"
    road.configure(host, road.configuration(kubernetes={"nfd-file": place}))
    host.wait(lambda: host.exists(place), "the file")
    lines = host.read(place).splitlines()
    assert lines[1:] == [
        "io.nvidiad/ready=true",
        f"io.nvidiad/driver={road.DRIVER}",
        f"io.nvidiad/driver-major={road.DRIVER.split('.')[0]}",
    ]
    # A node that loses its GPU is no place for pods that want one, whatever the kernel still has loaded.
    host.gpu_remove()
    host.wait(lambda: not host.exists(place), "the file is gone")
    host.gpu_add()
    host.wait(lambda: host.exists(place), "the file is back")
    road.configure(host, road.configuration())
    host.wait(lambda: not host.exists(place), "no file where none is configured")
    road.configure(host, road.configuration(kubernetes={"nfd-file": place}))
    host.wait(lambda: host.exists(place), "the file is back again")
    host.systemctl("stop", "nvidiad.socket", "nvidiad.service")
    assert host.exists(place)
    host.systemctl("stop", "nvidia.service")
    assert not host.exists(place)
    host.systemctl("start", "nvidiad.socket")


def test_a_kubelet_that_gave_up_before_the_driver_was_there_is_started_when_it_is(host: Host) -> None:
    road.install(host)
    host.write("/etc/systemd/system/kubelet.service.d/60-once.conf", "[Service]\nRestart=no\n")
    host.write("/run/fail/kubelet.service", "")
    # As before nvidiad was installed: nothing held it, it failed, and systemd has given up.
    host.run("mv /etc/systemd/system/kubelet.service.d/10-nvidia.conf /run/", check=True)
    host.systemctl("daemon-reload")
    host.systemctl("start", KUBELET, check=False)
    host.wait(lambda: host.state(KUBELET) == "failed", "the kubelet failed")
    host.run("rm /run/fail/kubelet.service", check=True)
    host.systemctl("start", "nvidiad.service")
    road.wait_phase(host, "waiting", code="image-missing")
    assert host.state(KUBELET) == "failed"
    road.publish(host)
    road.wait_ready(host)
    assert [bool(entry["driver"]) for entry in road.wait_witnessed(host, 2)] == [False, True]


def test_a_kubelet_that_used_up_its_starts_gets_another_one_and_only_one(host: Host) -> None:
    road.install(host)
    quick = "[Unit]\nStartLimitIntervalSec=1h\nStartLimitBurst=3\n[Service]\nRestartSec=50ms\n"
    host.write("/etc/systemd/system/kubelet.service.d/60-quick.conf", quick)
    host.write("/run/fail/kubelet.service", "")
    host.run("mv /etc/systemd/system/kubelet.service.d/10-nvidia.conf /run/", check=True)
    host.systemctl("daemon-reload")
    host.systemctl("start", KUBELET, check=False)
    host.wait(lambda: host.show(KUBELET, "NRestarts") == "3", "the kubelet is given up")
    host.wait(lambda: host.state(KUBELET) == "failed", "the kubelet is given up")
    road.journal_time(host, KUBELET, "Start request repeated too quickly")
    assert len(road.witnessed(host)) == 3
    # It fails with a driver, too: then that is its own affair, and its next three starts are systemd's.
    road.put_tree(host)
    host.systemctl("start", "nvidiad.service")
    road.wait_phase(host, "ready")
    host.wait(lambda: len(road.witnessed(host)) == 6, "three more starts")
    host.wait(lambda: host.state(KUBELET) == "failed", "the kubelet is given up again")
    document = ahead.look(host)
    assert len(road.witnessed(host)) == 6
    assert "kubelet.service is failed" in document["warnings"]


def test_a_kubelet_that_a_person_stopped_stays_stopped(ready: Host) -> None:
    host = ready
    host.systemctl("stop", KUBELET)
    starts = len(road.witnessed(host))
    looks = road.metric(host, "nvidiad_looks_total") or 0
    host.nvidiad("reconcile", check=True)
    host.wait(lambda: (road.metric(host, "nvidiad_looks_total") or 0) > looks, "another look")
    host.systemctl("restart", "nvidiad.service")
    road.wait_phase(host, "ready")
    host.systemctl("reload", "nvidia.service")
    host.nvidiad("reconcile", check=True)
    road.wait_status(host, lambda d: d["looked"] is not None and d["phase"] == "ready", "a look")
    assert host.state(KUBELET) == "inactive"
    assert len(road.witnessed(host)) == starts


def test_a_disabled_kubelet_is_not_started(host: Host) -> None:
    road.install(host)
    road.publish(host)
    host.systemctl("disable", KUBELET)
    host.systemctl("start", "nvidiad.service")
    road.wait_phase(host, "ready")
    road.wait_units(host, PERSISTENCED)
    assert host.state(KUBELET) == "inactive"
    assert road.witnessed(host) == []


# -- by hand ---------------------------------------------------------------------------------------


def snapshot(host: Host) -> dict[str, dict[str, str]]:
    """What `nvidiad plan` could have changed; sockets and pipes of others come and go."""
    skip: dict[str, tuple[str, ...]] = {
        "/run": ("docker", "containerd", "log", "systemd", "udev", "user", "kmod", "bed", "dbus"),
        "/var/lib": ("docker", "containerd", "registry", "systemd"),
    }
    tops = ("/opt/nvidia", "/etc", "/run", "/var/lib", "/dev")
    return {top: road.listing(host.path(top), without=skip.get(top, ())) for top in tops}


@pytest.mark.parametrize("state", ["empty", "ready"])
def test_plan_touches_nothing(state: str, request: pytest.FixtureRequest) -> None:
    host: Host = request.getfixturevalue("host" if state == "empty" else "ready")
    if state == "empty":
        road.install(host)
        road.publish(host)
    before, calls = snapshot(host), host.kmod_log()
    shown = host.nvidiad("plan", check=True)
    document = host.nvidiad("plan", "--json=short", check=True).json()
    assert snapshot(host) == before
    assert host.kmod_log() == calls
    steps = [step["step"] for step in document["plan"]["steps"]]
    if state == "empty":
        assert steps == ["pull-image", "install-tree"]
        assert "pull '127.0.0.1:5000/nvidia-driver:" in shown.out
        assert host.run("docker", "images", "-q").out == ""
    else:
        assert steps == []
        assert "nothing is to be done" in shown.out


def test_a_tree_is_installed_by_hand_from_an_image_and_from_a_directory(host: Host) -> None:
    road.install(host)
    road.publish(host)
    image = f"{road.REPOSITORY}:{road.tag()}"
    installed = host.nvidiad("install", image, check=True)
    path = f"/opt/nvidia/{road.DRIVER}/{RELEASE[0]}"
    assert installed.out == f"{path}\n"
    assert "systemctl start nvidia.service" in installed.err
    assert host.run("docker", "ps", "-aq").out == ""
    assert host.modules() == []
    trees = road.listing(host.path("/opt/nvidia"))
    assert host.nvidiad("install", image, check=True).out == f"{path}\n"
    assert road.listing(host.path("/opt/nvidia")) == trees

    # What a person types without nvidiad does the same, and says that there is nothing to do.
    typed = host.run("docker", "run", "--rm", "--privileged", "-v", "/:/rootfs", image, check=True)
    assert "already" in f"{typed.out}{typed.err}", typed
    assert road.listing(host.path("/opt/nvidia")) == trees

    with tempfile.TemporaryDirectory() as made:
        tree = road.payload(Path(made), *road.NEXT)
        host.put(tree, "/var/tmp/build")
    assert host.nvidiad("install", "/var/tmp/build", check=True).out.strip().endswith(f"/{road.NEXT[0]}")
    listed = host.nvidiad("list", "--json=short", check=True).json()
    assert {(tree["os"], tree["kernel"], tree["state"]) for tree in listed} == {
        (*RELEASE, ""),
        (*road.NEXT, ""),
    }

    host.systemctl("start", "nvidia.service", KUBELET)
    road.assert_never_early(host, starts=1)
    assert host.state("nvidiad.service") == "inactive"
    host.systemctl("start", "nvidiad.service")
    road.wait_ready(host)


def test_an_installation_by_hand_that_is_killed_leaves_nothing_that_counts(host: Host) -> None:
    road.install(host)
    with tempfile.TemporaryDirectory() as made:
        host.put(road.payload(Path(made), *RELEASE, bulk=96 << 20), "/var/tmp/build")
    place = host.path(f"/opt/nvidia/{road.DRIVER}")
    for _ in range(5):
        with host.popen("/opt/nvidiad/bin/nvidiad", "install", "/var/tmp/build") as killed:
            host.wait(lambda: list(place.glob("*")), "the tree is being laid down")
            host.end(killed)
            killed.communicate()
        left = [path.name for path in place.iterdir()]
        if left != [RELEASE[0]]:
            break
        # We were held up until the whole tree was there.
        host.run("rm", "-r", f"/opt/nvidia/{road.DRIVER}/{RELEASE[0]}", check=True)
    assert left == [f".{RELEASE[0]}.partial"]
    assert host.nvidiad("list", "--json=short", check=True).json() == []
    installed = host.nvidiad("install", "/var/tmp/build", check=True).out.strip()
    assert [path.name for path in place.iterdir()] == [RELEASE[0]]
    host.systemctl("start", "nvidiad.service")
    assert road.wait_ready(host)["driver"]["current"] == installed


def test_the_daemon_takes_up_what_was_installed_by_hand(host: Host) -> None:
    road.install(host)
    host.systemctl("start", "nvidiad.service")
    road.wait_phase(host, "waiting", code="image-missing")
    with tempfile.TemporaryDirectory() as made:
        host.put(road.payload(Path(made), *RELEASE), "/var/tmp/build")
    host.nvidiad("install", "/var/tmp/build", check=True)
    road.wait_ready(host)
    road.wait_status(host, lambda d: d["attempts"] == [], "the failures on the way are forgotten")


def test_list_check_and_gc(ready: Host) -> None:
    host = ready
    listed = host.nvidiad("list", check=True).out
    assert "current,loaded" in listed
    assert host.nvidiad("check").rc == 0
    for version, driver in (
        ("3000.0.0", road.DRIVER),
        (RELEASE[0], "470.57.02"),
        (road.NEXT[0], road.DRIVER),
    ):
        road.put_tree(host, version, "5.15.1-flatcar", driver=driver)
    old, older, staged = (
        f"/opt/nvidia/{road.DRIVER}/3000.0.0",
        f"/opt/nvidia/470.57.02/{RELEASE[0]}",
        f"/opt/nvidia/{road.DRIVER}/{road.NEXT[0]}",
    )
    host.update_engine("UPDATED_NEED_REBOOT", road.NEXT[0])
    road.wait_status(
        host, lambda d: (d["update"] or {}).get("version") == road.NEXT[0], "the update is known"
    )
    would = host.nvidiad("gc", "--dry-run", check=True).out
    assert sorted(would.split()) == sorted(f"would remove {old} would remove {older}".split())
    assert host.exists(old)
    assert sorted(host.nvidiad("gc", check=True).out.splitlines()) == [f"removed {older}", f"removed {old}"]
    assert not host.exists(old)
    assert not host.exists(older)
    assert host.exists(staged)
    host.update_engine("IDLE", "0.0.0")
    host.nvidiad("gc", check=True)
    road.wait_ready(host)

    library = f"/opt/nvidia/{road.DRIVER}/{RELEASE[0]}/lib64/libcuda.so.{road.DRIVER}"
    kept = host.path(library).read_bytes()
    host.path(library).write_bytes(kept[:-1] + b"!")
    found = host.nvidiad("check", "--json=short")
    assert found.rc == 1
    assert "tree-invalid" in [row["code"] for row in json.loads(found.out)]
    host.path(library).write_bytes(kept)
    assert host.nvidiad("check").rc == 0

# SPDX-License-Identifier: Apache-2.0
"""What stands beside a driver in force: its order, what containers are told, the fabric, and NVML's word."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.beds.common import run_checked
from tests.host import road
from tests.host.machine import BOOT, GPU
from tests.payload import cdi

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host.bed import Host

KUBELET, PERSISTENCED, DRIVER_UNIT = "kubelet.service", "nvidia-persistenced.service", "nvidia.service"
FABRIC, CDI, HEALTH = "nvidia-fabricmanager.service", "nvidia-cdi.service", "nvidia-health.service"
SPECIFICATION = "/run/cdi/nvidia.yaml"
TREE = f"/opt/nvidia/{road.DRIVER}/3975.2.0"
SWITCH = "0000:0a:00.0"
_SWITCHES = "/proc/driver/nvidia-nvswitch/devices"

# Stands in for NVIDIA's nvidia-ctk, which Debian does not have: it writes down how it was called.
_TOOLKIT = """\
#!/bin/sh
case "$*" in
    *--help) echo "--dev-root --driver-root --format --output" ;;
    *)
        echo "$*" >/run/ctk.called
        cat /run/ctk.says
        ;;
esac
"""
_THEIRS = {
    "cdiVersion": "0.5.0",
    "kind": "nvidia.com/gpu",
    "devices": [{"name": "all", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia0"}]}}],
    "containerEdits": {"env": ["NVIDIA_CTK_LIBCUDA_DIR=/usr/lib64"]},
}


# Debian 13's Docker knows CDI, where it is told to; Debian 12's does not.
_ENGINE = {"features": {"cdi": True}}
_DOCKERFILE = "FROM scratch\nCOPY busybox /bin/busybox\nCOPY busybox /bin/sh\n"
_LOOK = "for n in nvidiactl nvidia-uvm nvidia0; do test -c /dev/$n || echo no $n; done; env; sha256sum"


@pytest.fixture(scope="module")
def shared() -> Iterator[Host]:
    with road.booted("trixie", engine_settings=_ENGINE) as host:
        road.install(host)
        road.publish(host, fabric=road.DRIVER)
        host.systemctl("start", "nvidiad.service")
        road.wait_ready(host)
        yield host


@pytest.fixture
def host(shared: Host) -> Host:
    road.wait_ready(shared)
    return shared


def specification(host: Host) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(host.read(SPECIFICATION))
    cdi.validate(found)
    return found


def mounts(host: Host) -> dict[str, str]:
    edits = specification(host)["containerEdits"]
    return {mount["containerPath"]: mount["hostPath"] for mount in edits["mounts"]}


def times(host: Host, unit: str) -> tuple[float, float]:
    names = ("InactiveExitTimestampMonotonic", "ActiveEnterTimestampMonotonic")
    begun, up = (int(host.show(unit, name)) / 1e6 for name in names)
    return begun, up


def codes(document: dict[str, Any]) -> set[str]:
    around = document["surroundings"] or {}
    found = [around[name]["problem"] for name in around] + [gpu["problem"] for gpu in document["gpus"]]
    return {problem["code"] for problem in found if problem}


def test_the_units_come_in_their_order_and_the_kubelet_waits_for_no_word_of_nvml(host: Host) -> None:
    driver, persistence, described = (times(host, unit) for unit in (DRIVER_UNIT, PERSISTENCED, CDI))
    order = [driver[1], *persistence, *described, road.started_at(host, KUBELET)]
    assert order == sorted(order), order
    assert host.state(FABRIC) == "inactive"
    needs = host.run("systemctl", "show", "-p", "Requires,Wants,BindsTo,After", KUBELET, check=True).out
    after = next(line for line in needs.splitlines() if line.startswith("After="))
    assert CDI in after and FABRIC in after and HEALTH not in after
    assert not any(CDI in line for line in needs.splitlines() if line != after)
    whole = {
        "cdi": {"written": True, "problem": None},
        "fabric": {"problem": None},
        "health": {"asked": True, "problem": None},
    }
    document = road.wait_status(
        host, lambda found: found["surroundings"] == whole, "all is written and asked"
    )
    assert [unit["name"] for unit in document["units"]] == [DRIVER_UNIT, PERSISTENCED, CDI, HEALTH, KUBELET]
    (gpu,) = document["gpus"]
    assert (gpu["model"], gpu["problem"], document["warnings"]) == ("NVIDIA A100-SXM4-40GB", None, [])
    assert gpu["uuid"].startswith("GPU-5a1d0c3e-")
    assert f"bound to nvidia, NVIDIA A100-SXM4-40GB, {gpu['uuid']}" in road.fetch(host, "/status.txt")
    assert road.metric(host, "nvidiad_cdi_written") == 1
    assert road.metric(host, "nvidiad_gpu_in_order", address=GPU[0], uuid=gpu["uuid"]) == 1


def test_the_specification_names_what_is_there(host: Host) -> None:
    found = specification(host)
    assert (found["cdiVersion"], found["kind"]) == ("0.5.0", "nvidia.com/gpu")
    assert [device["name"] for device in found["devices"]] == ["0", "all"]
    nodes = [node["path"] for node in found["containerEdits"]["deviceNodes"]]
    nodes += [n["path"] for device in found["devices"] for n in device["containerEdits"]["deviceNodes"]]
    assert {"/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia0"} <= set(nodes)
    for node in nodes:
        host.run("test", "-c", node, check=True)
    for target, source in mounts(host).items():
        host.run("test", "-f", source, check=True)
        assert source.startswith(f"{TREE}/"), target
    for directory in ("/usr/lib64", "/usr/lib/x86_64-linux-gnu"):
        assert mounts(host)[f"{directory}/libcuda.so.1"] == f"{TREE}/lib64/libcuda.so.{road.DRIVER}"
    assert mounts(host)["/usr/bin/nvidia-smi"] == f"{TREE}/bin/nvidia-smi"
    assert "/usr/bin/nvidia-modprobe" not in mounts(host)
    assert host.run("stat", "-c", "%a %u", SPECIFICATION, check=True).out.strip() == "644 0"


def test_a_real_engine_gives_a_container_what_is_described(host: Host) -> None:
    host.image("127.0.0.1:5000/plain:1", {}, _DOCKERFILE, push=False)
    libraries = [f"{directory}/libcuda.so.1" for directory in ("/usr/lib64", "/usr/lib/x86_64-linux-gnu")]
    files = [*libraries, "/usr/bin/nvidia-smi", f"/lib/firmware/nvidia/{road.DRIVER}/gsp_ga10x.bin"]
    command = [
        "docker",
        "run",
        "--rm",
        "--network=none",
        "--device=nvidia.com/gpu=all",
        "127.0.0.1:5000/plain:1",
    ]
    said = host.run(*command, "sh", "-c", f"{_LOOK} {' '.join(files)}", check=True).out.splitlines()
    assert "NVIDIA_VISIBLE_DEVICES=void" in said and not [each for each in said if each.startswith("no ")]
    found = {line.split()[1]: line.split()[0] for line in said if line.endswith(tuple(files))}
    sources = [mounts(host)[file] for file in files]
    there = host.run("sha256sum", *sources, check=True).out.split()[::2]
    assert found == dict(zip(files, there, strict=True))
    # One that does not ask has none of it, and what is not described is not given.
    plain = host.run(*command[:4], command[5], "sh", "-c", "ls /dev/nvidia0 /usr/bin/nvidia-smi")
    assert plain.rc != 0 and "nvidia0" in plain.err and "nvidia-smi" in plain.err
    other = host.run(*command[:4], "--device=nvidia.com/gpu=7", command[5], "sh", "-c", "true")
    assert other.rc != 0 and "nvidia.com/gpu=7" in other.err


@pytest.mark.parametrize("spoil", ["rm", "truncate -s 10", "sed -i s/nvidia0/nvidia7/"])
def test_a_specification_that_was_spoiled_comes_back_and_nobody_notices(host: Host, spoil: str) -> None:
    before, pids = host.read(SPECIFICATION), {unit: road.main_pid(host, unit) for unit in road.UNITS}
    host.run(f"{spoil} {SPECIFICATION}", check=True)
    host.wait(lambda: host.exists(SPECIFICATION) and host.read(SPECIFICATION) == before, "it is back")
    assert {unit: road.main_pid(host, unit) for unit in road.UNITS} == pids
    assert len(road.witnessed(host)) == 1


def test_stopping_the_driver_takes_the_description_with_it(host: Host) -> None:
    host.systemctl("stop", "nvidiad.service", "nvidiad.socket", KUBELET)
    # What another program describes is not touched.
    host.write("/run/cdi/other.json", '{"kind": "vendor.example/thing"}')
    host.systemctl("stop", DRIVER_UNIT)
    left = host.run("ls", "/run/cdi", "/run/nvidiad", check=True).out.split()
    assert "other.json" in left and not {"nvidia.yaml", "cdi.json", "health.json"} & set(left)
    assert [host.state(unit) for unit in (CDI, HEALTH)] == ["inactive"] * 2
    host.systemctl("start", DRIVER_UNIT)
    host.wait(lambda: host.exists(SPECIFICATION), "it is described again, without the daemon")
    host.systemctl("start", "nvidiad.service", KUBELET)
    road.wait_ready(host)


def test_the_configuration_turns_it_off_and_on(host: Host) -> None:
    road.configure(host, road.configuration(cdi={"enabled": False}))
    host.wait(lambda: not host.exists(SPECIFICATION), "the specification is gone")
    # What is somebody else's stays then.
    host.write(SPECIFICATION, json.dumps(_THEIRS))
    host.systemctl("reload", CDI)
    assert json.loads(host.read(SPECIFICATION)) == _THEIRS
    road.configure(host, road.configuration())
    host.wait(lambda: "libcuda" in host.read(SPECIFICATION), "the specification is back")


def test_a_second_description_of_the_gpus_is_told_and_holds_nobody(host: Host) -> None:
    pid = road.main_pid(host, KUBELET)
    host.write("/run/cdi/another.yaml", "cdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices: []\n")
    host.run("rm", SPECIFICATION, check=True)
    document = road.wait_status(host, lambda found: "cdi-failed" in codes(found), "it is told")
    assert document["phase"] == "ready" and road.main_pid(host, KUBELET) == pid
    (warning,) = (each for each in document["warnings"] if "cdi-failed" in each)
    assert "'/run/cdi/another.yaml'" in warning and "cdi.enabled" in warning
    assert not host.exists(SPECIFICATION)
    host.run("rm", "/run/cdi/another.yaml", check=True)
    document = road.wait_status(host, lambda found: not codes(found), "it is tried again and mended")
    assert document["surroundings"]["cdi"]["written"] and host.exists(SPECIFICATION)


def test_nvidias_toolkit_is_asked_where_it_is_and_done_without_where_it_fails(host: Host) -> None:
    host.write("/run/ctk.says", json.dumps(_THEIRS))
    host.write("/opt/bin/nvidia-ctk", _TOOLKIT, 0o755)
    host.systemctl("reload", CDI)
    assert specification(host) == _THEIRS
    called = host.read("/run/ctk.called").split()
    assert called == ["cdi", "generate", "--format=json", f"--driver-root={TREE}", "--dev-root=/"]
    road.wait_status(host, lambda found: found["surroundings"]["cdi"]["written"], "it counts as ours")
    host.write("/run/ctk.says", '{"kind": "nvidia.com/gpu", "devices": []}')
    host.systemctl("reload", CDI)
    assert mounts(host)["/usr/bin/nvidia-smi"] == f"{TREE}/bin/nvidia-smi"
    document = road.wait_status(host, lambda found: "cdi-failed" in codes(found), "it is told")
    assert document["phase"] == "ready" and document["surroundings"]["cdi"]["written"]
    host.run("rm", "/opt/bin/nvidia-ctk", check=True)
    host.systemctl("reload", CDI)
    road.wait_status(host, lambda found: not codes(found), "without it all is well")


def test_a_gpu_that_is_not_in_order_is_told_and_the_kubelet_runs(host: Host) -> None:
    uuid = "GPU-5a1d0c3e-0000-4000-8000-000000000001"
    pid = road.main_pid(host, KUBELET)
    line = f"{road.DRIVER}, 00000000:01:00.0, {uuid}, Drain and Reset, NVIDIA A100-SXM4-40GB\n"
    host.write("/run/nvidia-smi.status", "0")
    host.write("/run/nvidia-smi.said", line)
    host.systemctl("reload", HEALTH)
    document = road.wait_status(host, lambda found: "gpu-recovery-needed" in codes(found), "it is told")
    assert document["phase"] == "ready" and document["gpus"][0]["uuid"] == uuid
    assert road.metric(host, "nvidiad_gpu_in_order", address=GPU[0], uuid=uuid) == 0
    said = host.nvidiad("check").out
    assert "gpu-recovery-needed" in said and f"--gpu-reset -i {GPU[0]}" in said
    host.write("/run/nvidia-smi.status", "15")
    host.write(
        "/run/nvidia-smi.said", "Unable to determine the device handle for GPU0000:01:00.0: GPU is lost."
    )
    # What is loaded anew is asked after anew.
    host.systemctl("reload", DRIVER_UNIT)
    document = road.wait_status(host, lambda found: "gpu-lost" in codes(found), "it is told")
    assert any("[gpu-lost]" in warning for warning in document["warnings"])
    host.run("rm /run/nvidia-smi.*", check=True)
    host.systemctl("reload", HEALTH)
    document = road.wait_status(host, lambda found: not codes(found), "it is in order again")
    assert road.main_pid(host, KUBELET) == pid and host.show(HEALTH, "Result") == "success"
    # The daemon itself has never opened the device.
    opened = host.run(f"ls -l /proc/{road.main_pid(host, 'nvidiad.service')}/fd", check=True).out
    assert "/dev/nvidia" not in opened


def test_a_persistence_daemon_of_somebody_else_is_left_alone(host: Host) -> None:
    run = "/run/nvidia-persistenced"
    host.systemctl("stop", PERSISTENCED)
    host.run("systemd-run", "-q", "-p", "Type=forking", f"{TREE}/bin/nvidia-persistenced", check=True)
    theirs = host.read(f"{run}/nvidia-persistenced.pid")
    host.systemctl("start", PERSISTENCED)
    assert (host.state(PERSISTENCED), host.show(PERSISTENCED, "Result")) == ("inactive", "exec-condition")
    assert host.read(f"{run}/nvidia-persistenced.pid") == theirs
    # Killed, it leaves its files, which are then in nobody's way.
    host.run(f"kill -9 {theirs}", check=True)
    host.wait(lambda: not host.exists(f"/proc/{theirs.strip()}"), "it is gone")
    host.systemctl("start", PERSISTENCED)
    assert int(host.read(f"{run}/nvidia-persistenced.pid")) == road.main_pid(host, PERSISTENCED)


def test_the_fabric_manager_runs_where_there_are_switches_and_is_of_the_drivers_version(host: Host) -> None:
    host.systemctl("start", FABRIC)
    assert host.show(FABRIC, "Result") == "exec-condition"
    run_checked([str(BOOT / "gpu.sh"), str(host.path("/")), "add", SWITCH, "1af1", "068000"], "gpu.sh")
    host.run(f"mkdir -p {_SWITCHES} && touch {_SWITCHES}/{SWITCH}", check=True)
    # nvidia.ko would have them from the moment on when it is loaded.
    host.systemctl("reload", DRIVER_UNIT)
    road.wait_units(host, FABRIC)
    document = road.wait_status(
        host, lambda found: FABRIC in [u["name"] for u in found["units"]], "it is shown"
    )
    names = [unit["name"] for unit in document["units"]]
    assert names.index(PERSISTENCED) < names.index(FABRIC) < names.index(CDI) < names.index(KUBELET)
    seen = host.read("/run/nvidia-fabricmanager/seen.cfg").splitlines()
    assert f"TOPOLOGY_FILE_PATH={TREE}/share/nvidia/nvswitch" in seen and "LOG_LEVEL=4" in seen
    assert "STATE_FILE_NAME=/tmp/fabricmanager.state" not in seen
    # At a boot it comes before the GPUs are described.
    host.systemctl("stop", "nvidiad.service", "nvidiad.socket", KUBELET, DRIVER_UNIT)
    assert host.state(FABRIC) == "inactive"
    host.run(f"mkdir -p {_SWITCHES} && touch {_SWITCHES}/{SWITCH}", check=True)
    host.systemctl("start", DRIVER_UNIT)
    road.wait_units(host, PERSISTENCED, FABRIC, CDI)
    order = [*times(host, PERSISTENCED), *times(host, FABRIC), *times(host, CDI)]
    assert order == sorted(order), order
    # One of another version, as an image may bring it that was made of two releases.
    program = f"{TREE}/bin/nv-fabricmanager"
    host.systemctl("stop", FABRIC)
    host.run(f'sed -i s/is.:.*/is\\ :\\ 550.1\\"/ {program}', check=True)
    assert host.systemctl("start", FABRIC, check=False).rc != 0
    host.systemctl("start", "nvidiad.service", KUBELET)
    document = road.wait_status(host, lambda found: "fabric-mismatch" in codes(found), "it is told")
    assert document["phase"] == "ready" and host.show(FABRIC, "NRestarts") == "0"
    host.run("rm", program, check=True)
    host.systemctl("start", FABRIC, check=False)
    document = road.wait_status(host, lambda found: "fabric-missing" in codes(found), "it is told")
    assert document["phase"] == "ready"

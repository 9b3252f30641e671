# SPDX-License-Identifier: Apache-2.0
"""The real driver on a real kernel: pulled, loaded, asked, mixed up, and kept from another kernel."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.payload import cdi
from tests.vm import demo, product, real, road, states
from tests.vm.machine import Frozen, Machine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.vm

OTHER = "/opt/another-installer/lib"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frozen]:
    """Slot A without a card: Docker and a registry with the real image are up, nvidiad never ran."""
    folder = tmp_path_factory.mktemp("real")
    base = states.with_docker(real.hardware(), real.machine_disk(), card=False)
    with Machine(folder / "work", real.hardware(), base, real.machine_disk()) as machine:
        machine.resume()
        product.install(machine)
        # Under emulation Docker takes 100 seconds longer to lay it down; in the demo it does.
        real.configure(machine, '[engine]\nkind = "registry"\n')
        real.publish(machine)
        frozen = machine.freeze(folder / "frozen")
    yield frozen
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def driven_real(bare: Frozen, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frozen]:
    """The same host with a card, and the driver in force."""
    folder = tmp_path_factory.mktemp("driven-real")
    with Machine(folder / "work", real.hardware(), bare, real.machine_disk()) as machine:
        machine.resume()
        come_into_force(machine)
        frozen = machine.freeze(folder / "frozen")
    yield frozen
    shutil.rmtree(folder)


@pytest.fixture
def vm(driven_real: Frozen, tmp_path: Path) -> Iterator[Machine]:
    """A clone of the host with the real driver in force, for one test."""
    with Machine(tmp_path / "vm", real.hardware(), driven_real, real.machine_disk()) as machine:
        yield machine.resume()
        print(machine.last_words())
    shutil.rmtree(tmp_path / "vm")


def come_into_force(vm: Machine) -> None:
    """Without a card nothing is brought up; with it the image is pulled and the real driver binds."""
    vm.run("systemctl enable -q kubelet nvidiad && systemctl start nvidiad", check=True)
    document = road.wait_phase(vm, "no-gpu")
    assert (document["gpus"], document["problem"]) == ([], None)
    assert vm.run("test -e /sys/module/nvidia || test -e /opt/nvidia").rc == 1
    vm.wait_unit("kubelet.service")
    vm.plug()
    document = road.wait_phase(vm, "ready", real.READY_SECONDS)
    (gpu,) = document["gpus"]
    assert (gpu["address"], gpu["device"], gpu["bound"]) == (real.CARD, "10de:20b5", "nvidia")
    assert document["driver"]["current"] == real.TREE
    vm.wait_unit("nvidia-persistenced.service")


def test_the_driver_says_its_version_everywhere(vm: Machine) -> None:
    document = road.status(vm)
    assert document["phase"] == "ready"
    assert document["driver"]["loaded"] == real.DRIVER
    assert {module["name"] for module in document["driver"]["modules"]} == {
        "nvidia",
        "nvidia_uvm",
        "nvidia_modeset",
    }
    (tree,) = document["driver"]["installed"]
    assert (tree["flavour"], tree["kernel"], tree["current"], tree["loaded"]) == (
        "open",
        real.KERNEL,
        True,
        True,
    )
    libraries = {found["name"]: found["version"] for found in document["exposure"]["first"]}
    assert libraries == {"libnvidia-ml.so.1": real.DRIVER, "libcuda.so.1": real.DRIVER}
    # The kernel itself, and its card.
    assert real.DRIVER in vm.output("cat /proc/driver/nvidia/version").splitlines()[0]
    assert vm.output("cat /sys/module/nvidia/version") == real.DRIVER
    assert "A100" in vm.output(f"cat /proc/driver/nvidia/gpus/{real.CARD}/information")
    assert vm.output("basename $(readlink /sys/bus/pci/devices/0000:01:00.0/driver)") == "nvidia"
    # NVML, through the linker cache; the emulated card computes nothing.
    assert real.ask_nvml(vm) == real.Nvml(0, real.DRIVER, 0)
    smi = vm.run(f"{real.CURRENT}/bin/nvidia-smi")
    assert (smi.rc, smi.out.strip()) == (6, "No devices were found")
    assert vm.output(f"{real.CURRENT}/bin/nvidia-smi -h").splitlines()[0].endswith(f"v{real.DRIVER}")
    # What nvidiad asked NVIDIA's own nvidia-smi of itself, and what the driver calls the card.
    document = road.wait_status(vm, lambda said: bool(said["gpus"][0]["problem"]), "NVML's word on the card")
    (gpu,) = document["gpus"]
    assert (gpu["problem"]["code"], "A100" in gpu["model"], gpu["uuid"]) == ("gpu-lost", True, None)
    assert document["phase"] == "ready" and "gpu-lost" in vm.run(f"{road.NVIDIAD} check").out
    assert vm.output("systemctl is-active nvidia-cdi") == "active"
    described = json.loads(vm.output("cat /run/cdi/nvidia.yaml"))
    cdi.validate(described)
    mounts = {m["containerPath"]: m["hostPath"] for m in described["containerEdits"]["mounts"]}
    assert mounts["/usr/lib64/libcuda.so.1"] == f"{real.TREE}/lib64/libcuda.so.{real.DRIVER}"
    vm.run(f"ls {' '.join(mounts.values())}", check=True)
    # A node that opens has a driver behind it; nvidia0 would have to start the GPU.
    vm.run("true </dev/nvidiactl && test -c /dev/nvidia0 && test -c /dev/nvidia-uvm", check=True)


def test_the_real_persistence_daemon_runs_from_the_tree(vm: Machine) -> None:
    (pid,) = road.main_pids(vm, "nvidia-persistenced")
    assert vm.output(f"readlink /proc/{pid}/exe") == f"{real.TREE}/bin/nvidia-persistenced"
    mapped = vm.output(f"grep -o '/.*' /proc/{pid}/maps | sort -u")
    assert f"{real.TREE}/lib64/libnvidia-cfg.so.{real.DRIVER}" in mapped.splitlines()
    # What it needs beside the C library is its own: a host without it runs it, too.
    (tirpc,) = (path for path in mapped.splitlines() if "/libtirpc.so" in path)
    assert tirpc.startswith(f"{real.TREE}/lib/")
    assert vm.run("test -S /run/nvidia-persistenced/socket").rc == 0
    # And its own alone: no other program finds that one.
    cached = vm.output("ldconfig -p | grep -o '/opt/nvidia/.*'").splitlines()
    assert f"{real.CURRENT}/lib64/libcuda.so.1" in cached
    assert [path for path in cached if not path.startswith(f"{real.CURRENT}/lib64/")] == []
    assert not any("libtirpc" in path for path in cached)
    # It keeps the driver open, and goes when its unit is stopped.
    vm.run("systemctl stop kubelet nvidia-persistenced", check=True)
    assert vm.run(f"test -e /proc/{pid}").rc == 1


def test_libraries_of_another_driver_are_told_before_nvml_is_asked(vm: Machine) -> None:
    kubelet = road.main_pids(vm, "kubelet")
    library = real.other_library()
    vm.run(f"mkdir -p {OTHER}", check=True)
    vm.put(library.read_bytes(), f"{OTHER}/{library.name}")
    vm.run(f"ln -s {library.name} {OTHER}/libnvidia-ml.so.1", check=True)
    vm.put(f"{OTHER}\n".encode(), "/etc/ld.so.conf.d/another-installer.conf")
    vm.run("ldconfig && systemctl reload nvidiad", check=True)
    other = library.name.partition(".so.")[2]
    document = road.wait_phase(vm, "blocked")
    assert document["problem"]["code"] == "version-mismatch"
    for words in (f"driver {other}", f"driver {real.DRIVER} is loaded", f"'{OTHER}/libnvidia-ml.so.1'"):
        assert words in document["problem"]["sentence"]
    assert OTHER in document["problem"]["remedy"]
    checked = vm.run(f"{road.NVIDIAD} check")
    assert checked.rc == 1 and "version-mismatch" in checked.out
    told = road.text(vm)
    assert told.exit_status == 4 and "Usable: no" in told.text
    # What NVIDIA's own tools say of it, in words that name neither the path nor both versions.
    smi = vm.run(f"{real.CURRENT}/bin/nvidia-smi")
    assert smi.rc == 18
    assert "Failed to initialize NVML: Driver/library version mismatch" in smi.out
    assert real.ask_nvml(vm).rc == 18
    # Who runs already has the right libraries open and goes on; who is started anew is held.
    assert road.main_pids(vm, "kubelet") == kubelet

    vm.reboot("A")
    vm.wait_for("systemctl is-failed nvidia", 120)
    document = road.wait_phase(vm, "blocked")
    assert document["problem"]["code"] == "version-mismatch"
    assert vm.output("systemctl is-active kubelet; true") != "active"
    vm.run("rm /etc/ld.so.conf.d/another-installer.conf && ldconfig && systemctl reload nvidiad", check=True)
    road.wait_phase(vm, "ready")
    vm.wait_unit("kubelet.service")
    assert real.ask_nvml(vm).driver == real.DRIVER


def test_the_image_for_another_kernel_is_refused_before_insmod(vm: Machine) -> None:
    vm.run("systemctl disable -q nvidiad", check=True)
    vm.set_next_slot("B")
    vm.reboot()
    assert vm.output("uname -r") == real.NEWER
    # The same files, said to be for this kernel.
    place = f"/opt/nvidia/{real.DRIVER}/{real.NEWER}"
    vm.run(
        f"cp -a {real.TREE} {place} && cd {place} && mv lib/modules/{real.KERNEL} lib/modules/{real.NEWER}"
        f' && sed -i -e \'1,3s/"{real.KERNEL}"/"{real.NEWER}"/g\''
        f" -e s,lib/modules/{real.KERNEL}/,lib/modules/{real.NEWER}/, manifest.json",
        check=True,
    )
    heard = vm.output("dmesg | wc -l")
    assert vm.run("systemctl start nvidia").rc != 0
    told = road.told(vm, "nvidia")
    assert f"has vermagic '{real.KERNEL} SMP" in told and f"this host runs kernel '{real.NEWER}'" in told
    assert '"vermagic-mismatch"' in road.told(vm, "nvidia", "json")
    assert "nvidia" not in vm.output(f"dmesg | tail -n +{int(heard) + 1}").lower()
    assert vm.run("test -e /sys/module/nvidia").rc == 1
    # The kernel would have refused it too, and said less.
    loaded = vm.run(f"modprobe drm; insmod {place}/lib/modules/{real.NEWER}/nvidia.ko")
    assert loaded.rc != 0 and "Invalid module format" in loaded.err


@pytest.mark.skipif(os.environ.get("NVIDIAD_FAULTS") != "all", reason="slow: the demo with the real driver")
def test_what_the_demo_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A driver for one kernel, an update to one for which it cannot be built, and the way back."""
    demo.show_real(demo.Timeline(), tmp_path)
    told = capsys.readouterr().out
    assert told.count("● ready - driver") == 2
    assert "image-unbuildable" in told

# SPDX-License-Identifier: Apache-2.0
"""The bed itself: what the tests of nvidiad take for granted about a host."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

import pytest

from tests.beds.common import SUITES
from tests.host.machine import RELEASE
from tests.host.standins import module_file

if TYPE_CHECKING:
    from tests.host.bed import Host

BOTH = pytest.mark.parametrize("suite", SUITES, indirect=True)


@BOTH
def test_a_host_boots_and_reboots_into_another_release(host: Host) -> None:
    assert host.run("uname", "-r").out.strip() == RELEASE[1]
    assert "VERSION_ID=3975.2.0" in host.read("/usr/lib/os-release")
    assert host.run("touch", "/usr/x").rc != 0
    assert host.state("kubelet.service") == "active"
    first = host.read("/proc/sys/kernel/random/boot_id")
    host.write("/opt/kept", "1")
    host.write("/etc/kept", "1")
    host.write("/run/lost", "1")
    host.update("4081.2.0", "6.6.54-flatcar")
    assert host.reboot() == "running"
    assert host.run("cat", "/opt/kept", "/etc/kept", check=True).out == "11"
    assert not host.exists("/run/lost")
    assert host.read("/proc/sys/kernel/osrelease").strip() == "6.6.54-flatcar"
    assert "VERSION_ID=4081.2.0" in host.read("/usr/lib/os-release")
    assert host.read("/proc/sys/kernel/random/boot_id") != first
    assert host.boots == 2


def test_the_stand_in_insmod_loads_what_fits_and_leaves_the_marks_of_a_module(host: Host) -> None:
    kernel = RELEASE[1]
    host.write("/opt/m/nvidia.ko", module_file("nvidia", kernel=kernel, version="535.309.01"))
    host.write(
        "/opt/m/nvidia-uvm.ko",
        module_file("nvidia_uvm", kernel=kernel, version="535.309.01", depends=["nvidia"]),
    )
    host.write(
        "/opt/m/modeset.ko", module_file("nvidia_modeset", kernel=kernel, depends=["nvidia", "video"])
    )
    host.run("insmod", "/opt/m/nvidia.ko", "NVreg_ModifyDeviceFiles=0", check=True)
    assert host.kmod_log()[0]["seconds"] < 1
    host.run("insmod /opt/m/nvidia-uvm.ko uvm_disable_hmm=1", check=True)
    assert host.modules() == ["nvidia", "nvidia_uvm"]
    assert host.read("/sys/module/nvidia/version") == "535.309.01\n"
    assert host.read("/sys/module/nvidia/initstate") == "live\n"
    assert host.read("/sys/module/nvidia/refcnt") == "1\n"
    assert host.exists("/sys/module/nvidia/holders/nvidia_uvm")
    assert host.read("/sys/module/nvidia_uvm/parameters/uvm_disable_hmm") == "1\n"
    assert "Open Kernel Module for x86_64  535.309.01" in host.read("/proc/driver/nvidia/version")
    assert "ModifyDeviceFiles: 0" in host.read("/proc/driver/nvidia/params")
    assert "Device Minor: \t 0" in host.read("/proc/driver/nvidia/gpus/0000:01:00.0/information")
    assert "195 nvidia\n" in host.read("/proc/devices")
    assert host.run("awk '$2 == \"nvidia-uvm\" {print $1}' /proc/devices").out.strip().isdigit()
    assert (
        host.run("readlink /sys/bus/pci/devices/0000:01:00.0/driver").out.strip().endswith("drivers/nvidia")
    )
    assert host.run("lspci -k -s 01:00.0 | grep -q 'in use: nvidia'").rc == 0

    used = host.run("rmmod", "nvidia")
    assert (used.rc, used.err) == (1, "rmmod: ERROR: Module nvidia is in use by: nvidia_uvm\n")
    host.kmod_busy("nvidia_uvm")
    used = host.run("rmmod", "nvidia-uvm")
    assert (used.rc, used.err) == (1, "rmmod: ERROR: Module nvidia_uvm is in use\n")
    host.kmod_busy()
    host.run("rmmod nvidia-uvm && rmmod nvidia", check=True)
    assert host.modules() == []
    assert "nvidia" not in host.read("/proc/devices")
    assert not host.exists("/proc/driver/nvidia")
    assert not host.exists("/sys/bus/pci/devices/0000:01:00.0/driver")
    calls = [(call["argv"], call["rc"]) for call in host.kmod_log()]
    assert calls[0] == (["insmod", "/opt/m/nvidia.ko", "NVreg_ModifyDeviceFiles=0"], 0)
    assert calls[-1] == (["rmmod", "nvidia"], 0)
    assert min(call["seconds"] for call in host.kmod_log()) < 0.05  # some milliseconds on an idle machine


@pytest.mark.parametrize("host", [{"gpu": False, "docker": False, "registries": ()}], indirect=True)
def test_the_stand_in_insmod_refuses_in_the_words_of_the_real_one(host: Host) -> None:
    kernel = RELEASE[1]
    files = {
        "other": module_file("nvidia", kernel="6.1.0-57-flatcar"),
        "nvidia": module_file("nvidia", kernel=kernel, version="535.309.01"),
        "uvm": module_file("nvidia_uvm", kernel=kernel, depends=["nvidia"]),
        "garbage": b"not a module",
    }
    for name, content in files.items():
        host.write(f"/opt/m/{name}.ko", content)

    def refused(name: str) -> str:
        result = host.run("insmod", f"/opt/m/{name}.ko")
        assert result.rc == 1
        return result.err.removeprefix("insmod: ERROR: could not ").strip()

    assert refused("other") == "insert module /opt/m/other.ko: Invalid module format"
    assert refused("garbage") == "insert module /opt/m/garbage.ko: Invalid module format"
    assert refused("uvm") == "insert module /opt/m/uvm.ko: Unknown symbol in module"
    assert refused("nvidia") == "insert module /opt/m/nvidia.ko: No such device"
    assert refused("absent") == "load module /opt/m/absent.ko: No such file or directory"
    host.gpu_add()
    host.run("insmod", "/opt/m/nvidia.ko", check=True)
    assert refused("nvidia") == "insert module /opt/m/nvidia.ko: File exists"
    host.kmod_fail(("insmod", "nvidia_uvm", "Key was rejected by service"))
    assert refused("uvm") == "insert module /opt/m/uvm.ko: Key was rejected by service"
    host.kmod_fail()
    host.kmod_delay(insmod=0.3)
    assert host.run("insmod", "/opt/m/uvm.ko", check=True).seconds > 0.3
    absent = host.run("modprobe", "no-such")
    assert (absent.rc, absent.err) == (
        1,
        f"modprobe: FATAL: Module no-such not found in directory /lib/modules/{kernel}\n",
    )
    host.run("modprobe", "-a", "i2c_core", "ipmi_msghandler", check=True)
    assert host.run("rmmod", "absent").err == "rmmod: ERROR: Module absent is not currently loaded\n"
    host.reboot()
    assert host.modules() == []
    assert host.exists("/sys/bus/pci/devices/0000:01:00.0")


WATCH = """
import pyudev, sys
monitor = pyudev.Monitor.from_netlink(pyudev.Context(), "udev")
monitor.filter_by("pci")
monitor.start()
print("listening", flush=True)
device = monitor.poll(60)
print(device.action, device.sys_name, device.properties.get("PCI_ID"), flush=True)
"""


@BOTH
@pytest.mark.parametrize("host", [{"gpu": False, "docker": False, "registries": ()}], indirect=True)
def test_the_event_of_a_gpu_reaches_pyudev(host: Host) -> None:
    with host.popen("/opt/nvidiad/bin/python3", "-W", "ignore", "-c", WATCH) as watch:
        assert watch.stdout is not None
        assert watch.stdout.readline() == "listening\n"
        host.gpu_add("0000:02:00.0", "2330")
        assert watch.stdout.readline() == "add 0000:02:00.0 10DE:2330\n"
        watch.communicate()
    found = "pyudev.Context().list_devices(subsystem='pci', PCI_ID='10DE:2330')"
    listed = f"import pyudev; print([d.sys_name for d in {found}])"
    assert host.run("/opt/nvidiad/bin/python3", "-c", listed, check=True).out == "['0000:02:00.0']\n"
    host.gpu_remove("0000:02:00.0")
    assert not host.exists("/sys/bus/pci/devices/0000:02:00.0")


@BOTH
@pytest.mark.parametrize("host", [{"registries": ("plain", "tls", "auth")}], indirect=True)
def test_an_image_goes_to_the_registries_and_installs_itself(host: Host) -> None:
    dockerfile = """FROM scratch
COPY busybox /bin/busybox
COPY payload /payload
CMD ["/bin/busybox", "cp", "/payload", "/rootfs/opt/installed"]
"""
    reference = "127.0.0.1:5000/nvidia-driver:1"
    digest = host.image(reference, {"payload": "hello"}, dockerfile, labels={"io.nvidiad.schema": "1"})
    assert digest.startswith("sha256:")
    host.run("docker", "image", "rm", "-f", reference, check=True)
    host.run("docker", "run", "--rm", "--privileged", "-v", "/:/rootfs", reference, timeout=60, check=True)
    assert host.read("/opt/installed") == "hello"

    for kind, rc in (("tls", 0), ("auth", 1)):
        address = {"tls": "reg.test:5443", "auth": "reg.test:5444"}[kind]
        assert host.run("docker", "pull", f"{address}/nvidia-driver:1").rc == rc
    host.run(
        "docker login -u user -p secret reg.test:5444 && docker pull reg.test:5444/nvidia-driver:1",
        check=True,
    )
    host.registry_kill("plain")
    assert host.run("docker", "pull", reference).rc == 1
    host.registry_start("plain")
    host.engine_restart()
    host.run("docker", "pull", reference, check=True)


def test_the_update_engine_answers_and_announces(host: Host) -> None:
    words = "busctl call com.coreos.update1 /com/coreos/update1 com.coreos.update1.Manager"
    assert host.run(f"{words} GetStatus", check=True).out == 'xdssx 0 0 "UPDATE_STATUS_IDLE" "0.0.0" 0\n'
    match = "busctl --json=short --match=\"type='signal',member='StatusUpdate'\" monitor com.coreos.update1"
    with host.popen(f"timeout 60 {match}") as monitor:
        assert monitor.stdout is not None
        # busctl does not say when it listens.
        while not select.select([monitor.stdout], [], [], 0.2)[0]:
            host.update_engine("UPDATED_NEED_REBOOT", "3602.2.0")
        line = monitor.stdout.readline()
        host.end(monitor)
        monitor.communicate()
    assert "UPDATE_STATUS_UPDATED_NEED_REBOOT" in line and "3602.2.0" in line
    assert "3602.2.0" in host.run(f"{words} GetStatus", check=True).out
    refused = host.run(f"setpriv --reuid 65534 --clear-groups {words} GetStatus")
    assert refused.rc != 0 and "denied" in refused.err.lower()
    host.run(f"{words} ResetStatus", check=True)
    assert "UPDATE_STATUS_IDLE" in host.run(f"{words} GetStatus").out


def test_the_power_can_be_cut(host: Host) -> None:
    host.write("/etc/kept", "1")
    assert host.power_cut() == "running"
    assert host.read("/etc/kept") == "1"
    assert host.show("docker.service", "NRestarts") == "0"
    assert any("Started" in str(entry.get("MESSAGE", "")) for entry in host.journal("kubelet.service"))


def test_a_command_that_hangs_is_killed_with_its_children(host: Host) -> None:
    with pytest.raises(AssertionError, match=r"still ran after 0\.2"):
        host.run("sleep 777 & sleep 777", timeout=0.2)
    host.wait(lambda: host.run("pgrep", "-f", "sleep 777").rc == 1, "no sleep is left")


@BOTH
def test_nvidiad_is_installed_as_on_a_host(host: Host) -> None:
    units = host.install_nvidiad()
    assert {"nvidiad.service", "nvidiad.socket", "nvidia.service"} <= set(units)
    assert host.nvidiad("--help").rc == 0
    assert host.exists("/etc/nvidiad/nvidiad.toml")
    assert host.exists("/etc/systemd/system/kubelet.service.d/10-nvidia.conf")
    programs_here = [unit for unit in units if unit.startswith(("nvidiad.", "nvidia.service"))]
    host.run("systemd-analyze", "verify", "--man=no", *programs_here, check=True)
    assert host.run("systemctl", "is-enabled", "nvidiad.service").out == "enabled\n"

# SPDX-License-Identifier: Apache-2.0
"""`make demo`: the main job in a virtual machine, told as a timeline; DRIVER=real takes NVIDIA's."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.beds.common import BedError
from tests.vm import product, real, road, updater
from tests.vm.channel import MachineError
from tests.vm.disk import RELEASES, disk
from tests.vm.kernels import kernels
from tests.vm.machine import Machine

UNITS = ("nvidiad", "nvidia", "nvidia-persistenced", "kubelet")


class Timeline:
    """Says what happens, when, counted from the start of the demo."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def say(self, what: str) -> None:
        print(f"[{time.monotonic() - self._began:6.1f} s] {what}", flush=True)

    def station(self, machine: Machine, title: str, phase: str = "ready") -> None:
        """A station of the road: the guest's own journal, and what `nvidiad status` says in that phase."""
        print(f"\n  {title}: what the host's journal says (seconds since its kernel started)")
        for seconds, who, message in road.journal(machine, UNITS):
            print(f"    {seconds:7.2f}  {who}: {message}")
        told = road.wait_text(machine, phase)
        print("\n  $ nvidiad status")
        for line in told.text.rstrip().splitlines():
            print(f"  {line}")
        print(f"  (exit status {told.exit_status})\n", flush=True)


def main() -> int:
    """Run the demo; 0 when every station was as it should be."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    wanted = os.environ.get("DRIVER") or "stand-in"
    parser.add_argument("--driver", choices=("stand-in", "real"), default=wanted)
    chosen = parser.parse_args().driver
    timeline = Timeline()
    try:
        with tempfile.TemporaryDirectory(prefix="nvidiad-demo-", dir="/var/tmp") as folder:
            if chosen == "real":
                show_real(timeline, Path(folder))
            else:
                show(timeline, Path(folder))
    except (AssertionError, BedError, MachineError) as error:
        timeline.say(f"demo: failed: {error}")
        return 1
    timeline.say("every station was as it should be")
    print("demo: ok")
    return 0


def show(timeline: Timeline, folder: Path) -> None:
    """OS A, an update to OS B whose driver is there before the reboot, and that reboot without network."""
    timeline.say("preparing the virtual machine (a few minutes the first time, then it is kept)")
    disk()
    slots = kernels().slots
    for slot, kernel in slots.items():
        timeline.say(f"slot {slot}: OS {RELEASES[slot]} with Debian's kernel {kernel.release}")
    with Machine(folder / "machine") as machine:
        machine.boot("A", card=True)
        timeline.say(f"the host runs OS A, {machine.seconds:.1f} s after power-on; no driver, no image")
        product.install(machine)
        road.configure(machine)
        machine.run("systemctl enable -q docker.socket docker-registry kubelet nvidiad", check=True)
        machine.run("systemctl start docker.socket docker-registry", 180, check=True)
        road.publish_both(machine, folder / "payload", kernels())
        timeline.say("the registry holds the images for OS A and OS B (stand-in drivers)")
        first_installation(timeline, machine)
        update(timeline, machine)
        reboot_offline(timeline, machine)


def first_installation(timeline: Timeline, machine: Machine) -> None:
    timeline.say("$ systemctl start nvidiad")
    machine.run("systemctl start nvidiad", check=True)
    road.wait_phase(machine, "ready")
    timeline.say("ready: pulled, verified, installed, loaded")
    check(machine, "A")
    timeline.station(machine, "first installation on OS A")


def update(timeline: Timeline, machine: Machine) -> None:
    updater.install(machine)
    machine.put(b"[stage]\nspread = 0\n", "/etc/nvidiad/conf.d/50-demo.toml")
    machine.run("systemctl reload nvidiad", check=True)
    timeline.say("update_engine (a stand-in) names the next OS, and writes it over slot B")
    updater.offer(machine)
    road.wait_stage(machine, "staged")
    timeline.say("the driver for OS B is on disk, beside the running one")
    updater.download(machine)
    updater.finalize(machine)
    road.wait_stage(machine, "proven")
    timeline.say("the slot is read: its kernel is the one that this driver was built for")
    timeline.station(machine, "before the reboot")


def reboot_offline(timeline: Timeline, machine: Machine) -> None:
    timeline.say("registry and container engine are taken away; the host reboots through logind, unattended")
    updater.go_offline(machine)
    machine.start(updater.REBOOT)
    assert machine.wait_end() == "guest-reset"
    machine.boot()
    timeline.say(f"the boot loader took slot {machine.slot}; multi-user after {machine.seconds:.1f} s")
    road.wait_phase(machine, "ready")
    timeline.say("ready with the driver for OS B, without a network, a registry or a container engine")
    check(machine, "B")
    for unit in ("docker", "docker-registry"):
        assert machine.run(f"systemctl is-active {unit}").out.strip() != "active", f"{unit} runs"
    timeline.station(machine, "after the update to OS B, offline")


def check(machine: Machine, slot: str) -> None:
    """The driver in force is the one for this slot, and the kubelet came after it."""
    machine.wait_unit("kubelet.service")
    document = road.status(machine)
    assert document["os"]["version"] == RELEASES[slot], document["os"]
    assert document["driver"]["current"].endswith(f"/{road.DRIVER}/{RELEASES[slot]}"), document["driver"]
    assert document["driver"]["loaded"] == road.DRIVER, document["driver"]
    assert document["gpus"][0]["bound"] == "nvidia", document["gpus"]
    vermagic = machine.output("modinfo -F vermagic /opt/nvidia/current/lib/modules/*/nvidia.ko").split()[0]
    assert vermagic == kernels().slots[slot].release == machine.output("uname -r").strip(), vermagic
    driver, persistence, kubelet = (
        machine.active_since(unit)
        for unit in ("nvidia.service", "nvidia-persistenced.service", "kubelet.service")
    )
    assert driver <= persistence <= kubelet, (driver, persistence, kubelet)


def show_real(timeline: Timeline, folder: Path) -> None:
    """The real driver, an update to a kernel that it cannot be built for, and the way back offline."""
    timeline.say(
        "preparing the virtual machine and the driver's image (the first time the driver is compiled)"
    )
    real.machine_disk()
    real.image()
    timeline.say(f"slot A: Debian 12 with kernel {real.KERNEL}; slot B: Debian 12 with kernel {real.NEWER}")
    with Machine(folder / "machine", real.hardware(), boot_disk=real.machine_disk()) as machine:
        machine.boot("A", card=True)
        timeline.say(
            f"the host runs kernel {real.KERNEL}, {machine.seconds:.1f} s after power-on; no driver"
        )
        product.install(machine)
        real.configure(machine)
        machine.run("systemctl enable -q docker.socket docker-registry kubelet nvidiad", check=True)
        machine.run("systemctl start docker.socket docker-registry", 180, check=True)
        real.publish(machine)
        timeline.say(
            f"the registry holds NVIDIA's open {real.DRIVER}, built for {real.KERNEL}, and the list"
        )
        first_real_installation(timeline, machine)
        real_update(timeline, machine)
        roll_back(timeline, machine)


def first_real_installation(timeline: Timeline, machine: Machine) -> None:
    timeline.say("$ systemctl start nvidiad")
    machine.run("systemctl start nvidiad", check=True)
    road.wait_phase(machine, "ready", real.READY_SECONDS)
    timeline.say("ready: pulled, verified, installed; the real nvidia.ko is bound to the card")
    check_real(machine)
    timeline.station(machine, f"first installation on kernel {real.KERNEL}")
    for command in ("head -1 /proc/driver/nvidia/version", f"{real.CURRENT}/bin/nvidia-smi -h | head -1"):
        print(f"  $ {command}")
        for line in machine.run(command).out.splitlines():
            print(f"  {line}")
    print(f"  NVML says: {real.ask_nvml(machine)}\n", flush=True)


def real_update(timeline: Timeline, machine: Machine) -> None:
    timeline.say("the OS updates itself: slot B gets the higher priority, and the host reboots unattended")
    machine.set_next_slot("B")
    machine.reboot()
    timeline.say(f"the boot loader took slot {machine.slot}; multi-user after {machine.seconds:.1f} s")
    # The registry comes up with the host: the first answer may be that it is not there.
    document = road.wait_status(
        machine, lambda said: (said["problem"] or {}).get("code") == "image-unbuildable", "unbuildable"
    )
    assert document["phase"] == "waiting", document["phase"]
    assert document["kernel"]["release"] == real.NEWER, document["kernel"]
    assert "pci_resize_resource" in document["problem"]["sentence"], document["problem"]
    assert machine.run("systemctl is-active kubelet").out.strip() != "active", "the kubelet runs"
    assert machine.run("test -e /sys/module/nvidia").rc == 1, "a driver was loaded"
    timeline.say("no driver can be built for this kernel: the kubelet is held, and the status says why")
    timeline.station(machine, f"after the update to kernel {real.NEWER}", "waiting")


def roll_back(timeline: Timeline, machine: Machine) -> None:
    timeline.say("back to slot A, without registry and container engine")
    machine.set_next_slot("A")
    machine.run("systemctl disable -q --now docker.socket docker docker-registry", 180, check=True)
    machine.reboot()
    road.wait_phase(machine, "ready")
    timeline.say("ready again: the tree was on disk all the while")
    check_real(machine)
    timeline.station(machine, f"back on kernel {real.KERNEL}, offline")


def check_real(machine: Machine) -> None:
    """The real driver is in force and answers, and the kubelet came after it."""
    machine.wait_unit("kubelet.service")
    document = road.status(machine)
    assert document["driver"]["current"] == real.TREE, document["driver"]
    assert document["driver"]["loaded"] == real.DRIVER, document["driver"]
    assert document["gpus"][0]["bound"] == "nvidia", document["gpus"]
    assert real.ask_nvml(machine) == real.Nvml(0, real.DRIVER, 0), real.ask_nvml(machine)
    driver, kubelet = (machine.active_since(unit) for unit in ("nvidia.service", "kubelet.service"))
    assert 0 < driver <= kubelet, (driver, kubelet)


if __name__ == "__main__":
    sys.exit(main())

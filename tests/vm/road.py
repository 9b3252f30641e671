# SPDX-License-Identifier: Apache-2.0
"""What tests and the demo do on the road in the VM: configure, publish, install, wait for a phase."""

from __future__ import annotations

import io
import json
import tarfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.payload import builder, image
from tests.vm import modules, registry
from tests.vm.disk import RELEASES
from tests.vm.modules import Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from tests.vm.kernels import Kernel, Kernels
    from tests.vm.machine import Machine

DRIVER = "535.309.01"
REPOSITORY = "nvidia-driver"
NVIDIAD = "/opt/nvidiad/bin/nvidiad"
CONFIGURATION = f"""\
[driver]
version = "{DRIVER}"
host-modules = []

[image]
repository = "{registry.ADDRESS}/{REPOSITORY}"

[daemon]
retry-initial = 2
retry-maximum = 8
"""
# Under emulation everything takes some fifteen times what it takes on a host.
READY_SECONDS = 240.0
# Asking takes a third of a second of the guest's only CPU: nvidiad itself needs it more.
POLL_SECONDS = 2.0


@dataclass(frozen=True)
class Told:
    """What `nvidiad status` said at some moment."""

    exit_status: int
    text: str


def configure(vm: Machine, more: str = "") -> None:
    """Write the configuration, with another fragment behind it."""
    vm.run("mkdir -p /etc/nvidiad/conf.d", check=True)
    vm.put(CONFIGURATION.encode(), "/etc/nvidiad/nvidiad.toml")
    if more:
        vm.put(more.encode(), "/etc/nvidiad/conf.d/50-test.toml")


def payload(
    folder: Path,
    slot: str,
    kernel: Kernel,
    *,
    driver: str = DRIVER,
    compiled_for: Kernel | None = None,
    fault: Fault = Fault.NONE,
    bulk: int = 0,
) -> Path:
    """A payload tree for a slot's OS release and a kernel; its modules may be compiled for another one."""
    release = RELEASES[slot]
    folder.mkdir(parents=True, exist_ok=True)
    return builder.payload(
        folder / f"{slot}-{kernel.release}-{driver}{fault}",
        driver=driver,
        release=("flatcar", release),
        kernel=kernel.release,
        modules=modules.build(compiled_for or kernel, driver, fault),
        bulk=bulk,
    )


def publish(vm: Machine, trees: Iterable[Path]) -> None:
    """Have the guest's registry serve the images of these trees."""
    packed = {f"{tree.name}-{tree.parent.name}": image.image(tree) for tree in trees}
    registry.stock(vm, REPOSITORY, packed)


def publish_both(vm: Machine, folder: Path, kernels: Kernels) -> None:
    """Images for both slots, as a build pipeline would have made them."""
    publish(vm, [payload(folder, slot, kernel) for slot, kernel in kernels.slots.items()])


def upload(vm: Machine, tree: Path, place: str) -> None:
    """Put a payload tree into the guest as the directory `place`."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=1) as tar:
        tar.add(tree, arcname=".")
    vm.put(out.getvalue(), "/tmp/payload.tar")
    unpack = f"tar -C {place} -xzf /tmp/payload.tar && rm /tmp/payload.tar"
    vm.run(f"rm -rf {place} && mkdir {place} && {unpack}", check=True)


def install(vm: Machine, tree: Path) -> None:
    """Put a payload tree into the guest and install it by hand, without an engine."""
    upload(vm, tree, "/tmp/tree")
    vm.run(f"{NVIDIAD} install /tmp/tree", check=True)


def bring_into_force(vm: Machine, tree: Path) -> None:
    """Install a tree by hand and let nvidiad bring it up, with the units enabled as on a real host."""
    configure(vm)
    install(vm, tree)
    vm.run("systemctl enable -q kubelet nvidiad && systemctl start nvidiad", check=True)
    wait_phase(vm, "ready")
    vm.wait_unit("nvidia-persistenced.service")
    vm.wait_unit("kubelet.service")


def status(vm: Machine) -> dict[str, Any]:
    """The status document; the daemon must be running."""
    found: dict[str, Any] = json.loads(vm.run(f"{NVIDIAD} status --json=short").out)
    return found


def text(vm: Machine) -> Told:
    """The status as a person reads it."""
    done = vm.run(f"{NVIDIAD} status")
    return Told(done.rc, done.out + done.err)


def wait_text(vm: Machine, phase: str, seconds: float = READY_SECONDS) -> Told:
    """The status as a person reads it in this phase: between two asks a host may go on to another try."""
    end = time.monotonic() + seconds
    while True:
        told = text(vm)
        if f" {phase} - " in told.text.partition("\n")[0]:
            return told
        assert time.monotonic() < end, f"not {phase} within {seconds:.0f} s; last: {told.text}"
        time.sleep(POLL_SECONDS)


def wait_phase(vm: Machine, phase: str, seconds: float = READY_SECONDS) -> dict[str, Any]:
    """Poll the status until it says this phase; fails with what it said last."""
    return wait_status(vm, lambda said: said["phase"] == phase, phase, seconds)


def wait_status(
    vm: Machine, condition: Callable[[dict[str, Any]], bool], what: str, seconds: float = READY_SECONDS
) -> dict[str, Any]:
    """Poll the status until its document meets a condition; fails with what it said last."""
    end = time.monotonic() + seconds
    told = ""
    while time.monotonic() < end:
        done = vm.run(f"{NVIDIAD} status --json=short")
        told = done.out or done.err
        if done.out:
            document: dict[str, Any] = json.loads(done.out)
            if condition(document):
                return document
        time.sleep(POLL_SECONDS)
    raise AssertionError(f"not {what} within {seconds:.0f} s; last: {told}\n{vm.last_words()}")


def stage(document: dict[str, Any]) -> dict[str, Any]:
    """How far the driver of the next OS is; empty where none comes."""
    found: dict[str, Any] = document["stages"][0] if document["stages"] else {}
    return found


def wait_stage(vm: Machine, state: str) -> dict[str, Any]:
    """Until the driver of the next OS is so far; its part of the status."""
    return stage(wait_status(vm, lambda said: stage(said).get("state") == state, f"the stage {state}"))


def main_pids(vm: Machine, units: str = "kubelet nvidia-persistenced") -> list[str]:
    """The main processes of units, which must run."""
    pids = vm.output(f"systemctl show -p MainPID --value {units}").split()
    assert "0" not in pids, pids
    return pids


def told(vm: Machine, unit: str, form: str = "cat") -> str:
    """A unit's messages of this boot, when journald has written down what it was told."""
    return vm.output(f"journalctl --sync && journalctl -b -u {unit} -o {form} --no-pager")


def journal(vm: Machine, units: Iterable[str]) -> list[tuple[float, str, str]]:
    """This boot's messages of units: seconds since the kernel started, who, what."""
    selected = " ".join(f"-u {unit}" for unit in units)
    lines = vm.output(f"journalctl -b -o json --no-pager {selected}").splitlines()
    found = []
    for line in lines:
        entry = json.loads(line)
        who = str(entry.get("SYSLOG_IDENTIFIER", ""))
        found.append((int(entry["__MONOTONIC_TIMESTAMP"]) / 1e6, who, str(entry.get("MESSAGE", ""))))
    return found

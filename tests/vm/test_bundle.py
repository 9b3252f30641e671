# SPDX-License-Identifier: Apache-2.0
"""A host without Python: from the bundle to a driver in force, to a later version, and back to nothing.

One guest boots once. What runs is asked for its process, its moment and its invocation before and after.
"""

from __future__ import annotations

import shutil
import tarfile
from typing import TYPE_CHECKING

import pytest

from nvidiad import __version__
from tests.beds import bundle
from tests.payload import builder
from tests.record import note
from tests.vm import plain, road
from tests.vm.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.vm.kernels import Kernels

PLACE = "/var/tmp/bundles"
ARCHIVE = f"nvidiad-{{}}-x86-64.{{}}"
# What somebody who provisions hosts writes, in Butane or otherwise: fetched files are there, a unit unpacks.
_UNIT = f"""\
[Unit]
Description=Install nvidiad
ConditionPathExists=!/opt/nvidiad/current/bin/nvidiad
[Service]
Type=oneshot
RemainAfterExit=yes
WorkingDirectory={PLACE}
ExecStart=/usr/bin/tar -xzf {ARCHIVE.format(__version__, "tar.gz")}
ExecStart=/bin/sh -c './nvidiad-{__version__}-x86-64/install && rm -rf nvidiad-{__version__}-x86-64'
[Install]
WantedBy=multi-user.target
"""
# What must not notice that nvidiad is another one.
_KEPT = (
    "systemctl show -p Id -p MainPID -p InvocationID -p ActiveEnterTimestampMonotonic "
    "kubelet nvidia-persistenced nvidia;"
    "grep '^nvidia' /proc/modules; stat -c '%n %Y %Z' /sys/module/nvidia; ls -l /dev/nvidia*; ls -d /proc/[0-9]*/exe"
    " | wc -l >/dev/null; cat /sys/module/firmware_class/parameters/path"
)
# Every path that could be nvidiad's; what runs, logs and counts comes and goes by itself.
_FILES = (
    "find /etc /opt /var /run /root /home /usr/lib/systemd -xdev "
    r"\( -path /var/log -o -path /var/lib/docker -o -path /var/lib/containerd -o -path '/run/systemd/units*' "
    r"-o -path /run/log -o -path /run/udev -o -path '/var/lib/docker-registry' -o -path '/run/docker*' "
    r"-o -path '/run/containerd*' -o -path /var/tmp -o -path /run/systemd/transient -o -path /run/systemd/propagate "
    r"-o -path /run/systemd/inhibit -o -path /run/credentials \) -prune -o -print | sort"
)


@pytest.fixture(scope="module")
def guest(bed_kernels: Kernels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Up, with an engine and a registry that has the driver's image; both bundles lie in PLACE."""
    folder = tmp_path_factory.mktemp("plain")
    one = bundle.tree(folder)
    for tree in (one, bundle.later(one, folder)):
        bundle.packed(tree, folder / "dist")
    payload = folder / "bundles.tar"
    with tarfile.open(payload, "w") as tar:
        for pattern in ("*.tar.gz", "*.raw"):
            for file in sorted((folder / "dist").glob(pattern)):
                tar.add(file, file.name)
    with Machine(folder / "vm", boot_disk=plain.build()) as machine:
        machine.boot("A")
        assert machine.run("command -v python3 python perl").out.split() in ([], ["/usr/bin/perl"])
        machine.run("systemctl start docker docker-registry", 180, check=True)
        road.publish(machine, [road.payload(folder / "payload", "A", bed_kernels.a)])
        machine.run(f"mkdir -p {PLACE} && tar -C {PLACE} -xf {machine.attach(payload)}", 120, check=True)
        machine.detach()
        yield machine
        print(machine.last_words())
    shutil.rmtree(folder)


def kept(vm: Machine) -> str:
    return vm.output(_KEPT)


def version(vm: Machine) -> str:
    """The version of the daemon that runs, in its own words."""
    return str(road.status(vm)["nvidiad"]["version"])


def test_the_bundle(guest: Machine) -> None:
    vm = guest
    road.configure(vm)
    before = set(vm.output(_FILES).splitlines())

    # The Butane way: files and a unit, nothing typed.
    vm.put(_UNIT.encode(), "/etc/systemd/system/nvidiad-install.service")
    vm.run(
        "systemctl daemon-reload && systemctl enable -q kubelet && systemctl start nvidiad-install",
        300,
        check=True,
    )
    vm.run("systemctl enable -q nvidiad && systemctl start nvidiad", check=True)
    document = road.wait_phase(vm, "ready")
    vm.wait_unit("kubelet.service")
    vm.wait_unit("nvidia-persistenced.service")
    assert document["driver"]
    daemon, running = road.main_pids(vm, "nvidiad"), kept(vm)
    assert vm.output(f"tr '\\0' ' ' </proc/{daemon[0]}/cmdline").startswith(
        f"/opt/nvidiad/{__version__}/libexec/nvidiad "
    )
    assert vm.output(f"cat /proc/{daemon[0]}/comm") == "nvidiad"
    assert vm.output("/opt/nvidiad/bin/nvidiad --version") == f"nvidiad {__version__}"

    # A later version, by one command, while the driver is loaded and the kubelet runs.
    archive = ARCHIVE.format(bundle.LATER, "tar.gz")
    install = f"cd {PLACE} && tar -xzf {archive} && ./nvidiad-{bundle.LATER}-x86-64/install"
    vm.run(install, 300, check=True)
    assert road.wait_phase(vm, "ready")["report"] is None
    assert road.main_pids(vm, "nvidiad") != daemon
    assert vm.output("/opt/nvidiad/bin/nvidiad --version") == f"nvidiad {bundle.LATER}"
    assert kept(vm) == running

    # Again, which restarts nothing; and back.
    daemon = road.main_pids(vm, "nvidiad")
    vm.run(f"{PLACE}/nvidiad-{bundle.LATER}-x86-64/install", 300, check=True)
    assert road.main_pids(vm, "nvidiad") == daemon
    vm.run("/opt/nvidiad/previous/install", 300, check=True)
    assert road.wait_phase(vm, "ready")
    assert vm.output("/opt/nvidiad/bin/nvidiad --version") == f"nvidiad {__version__}"
    assert kept(vm) == running

    # Away: the driver and what needs it stay as they are.
    vm.run("/opt/nvidiad/current/uninstall", 120, check=True)
    vm.run(
        "rm /etc/systemd/system/nvidiad-install.service /etc/systemd/system/multi-user.target.wants/kubelet.service"
    )
    assert vm.run("systemctl is-active nvidiad").out.strip() == "inactive"
    assert [line for line in kept(vm).splitlines() if "nvidia.service" not in line] == [
        line for line in running.splitlines() if "nvidia.service" not in line
    ]
    left = {
        path for path in set(vm.output(_FILES).splitlines()) - before if not path.startswith("/opt/nvidia/")
    }
    assert left == {"/opt/nvidia"}

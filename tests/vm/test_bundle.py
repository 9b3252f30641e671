# SPDX-License-Identifier: Apache-2.0
"""A host without Python: from the bundle to a driver in force, to a later version, and back to nothing.

One guest boots once. What runs is asked for its process, its moment and its invocation before and after.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from typing import TYPE_CHECKING

import pytest

from nvidiad import __version__
from tests.beds import bundle
from tests.vm import plain, road
from tests.vm.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.vm.kernels import Kernels

PLACE = "/var/tmp/bundles"
ARCHIVE = "nvidiad-{}-x86-64.{}"
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
    "systemctl show -p MainPID -p InvocationID -p ActiveEnterTimestampMonotonic kubelet nvidia-persistenced;"
    "grep '^nvidia' /proc/modules; stat -c '%n %Y %Z' /sys/module/nvidia; ls -l /dev/nvidia*;"
    "cat /sys/module/firmware_class/parameters/path"
)
_DRIVER = "systemctl show -p InvocationID -p ActiveEnterTimestampMonotonic nvidia"
# Every path that could be nvidiad's. What runs comes and goes by itself, and the linker has a cache.
_PLACES = "/etc /opt /var /run /root /home /usr"
_OTHERS = (
    *("/opt/nvidia/*", "/run/nvidia-persistenced", "/var/cache/ldconfig", "/var/log", "/var/tmp"),
    *(
        "/var/lib/docker*",
        "/var/lib/containerd",
        "/run/docker*",
        "/run/containerd*",
        "/run/log",
        "/run/udev",
    ),
    *("/run/systemd/*", "/run/credentials"),
)
_FILES = (
    f"find {_PLACES} -xdev \\( -path {' -o -path '.join(map(repr, _OTHERS))} \\) -prune -o -print | sort"
)


@pytest.fixture(scope="module")
def guest(
    bed_kernels: Kernels, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Machine]:
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
        failed = request.session.testsfailed
        yield machine
        if request.session.testsfailed > failed:
            print(machine.last_words())
    shutil.rmtree(folder)


def kept(vm: Machine) -> str:
    """What an upgrade and a removal leave alone."""
    return vm.output(_KEPT)


def wait_ready(vm: Machine) -> None:
    """Until the daemon of the extension says so."""
    vm.wait_for("/usr/bin/nvidiad status | grep -q '^● ready '", road.READY_SECONDS)


def test_the_bundle(guest: Machine) -> None:
    vm = guest
    road.configure(vm)
    before = set(vm.output(_FILES).splitlines())

    # The Butane way: files and a unit, nothing typed.
    vm.put(_UNIT.encode(), "/etc/systemd/system/nvidiad-install.service", "0644")
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
    daemon, running, driver = road.main_pids(vm, "nvidiad"), kept(vm), vm.output(_DRIVER)
    started = vm.output(f"tr '\\0' ' ' </proc/{daemon[0]}/cmdline; cat /proc/{daemon[0]}/comm")
    assert started.startswith(f"/opt/nvidiad/{__version__}/libexec/nvidiad ")
    assert started.endswith("nvidiad")
    assert vm.output(f"{road.NVIDIAD} --version") == f"nvidiad {__version__}"

    # A later version, by one command, while the driver is loaded and the kubelet runs. It is killed when the
    # link is switched and nothing is restarted yet: the next one finishes that.
    unpacked = f"{PLACE}/nvidiad-{bundle.LATER}-x86-64"
    vm.run(f"tar -C {PLACE} -xzf {unpacked}.tar.gz && mkdir /tmp/killer", 300, check=True)
    vm.put(b"#!/bin/sh\nkill -KILL $PPID\n", "/tmp/killer/systemd-sysusers", "0755")
    assert vm.run(f"PATH=/tmp/killer:$PATH {unpacked}/install", 300).rc == 137
    assert vm.output(f"{road.NVIDIAD} --version") == f"nvidiad {bundle.LATER}"
    assert road.main_pids(vm, "nvidiad") == daemon
    vm.run(f"{unpacked}/install", 300, check=True)
    assert road.wait_phase(vm, "ready")["report"] is None
    assert road.main_pids(vm, "nvidiad") != daemon
    assert (kept(vm), vm.output(_DRIVER)) == (running, driver)

    # Away, without what was downloaded: the driver and what needs it stay as they are.
    vm.run(f"rm -r {unpacked} /tmp/killer", check=True)
    vm.run("/opt/nvidiad/current/uninstall", 120, check=True)
    vm.run("systemctl disable -q kubelet && rm /etc/systemd/system/nvidiad-install.service", check=True)
    assert vm.run("systemctl is-active nvidiad").out.strip() == "inactive"
    assert kept(vm) == running
    # The GPUs are described, in memory, as long as their driver is in force: new containers need it.
    described = {"/run/cdi", "/run/cdi/nvidia.yaml"}
    assert set(vm.output(_FILES).splitlines()) - before == {"/opt/nvidia", *described}


def test_the_extension(guest: Machine) -> None:
    """The same as an image for systemd-sysext, and another one in its place while all runs."""
    vm = guest
    road.configure(vm)
    images = [f"{PLACE}/nvidiad-{version}-x86-64.raw" for version in (__version__, bundle.LATER)]
    vm.run(
        f"modprobe loop; mkdir -p /var/lib/extensions && ln -s {images[0]} /var/lib/extensions/nvidiad.raw",
        check=True,
    )
    vm.run("systemctl enable -q kubelet && systemd-sysext merge && systemctl daemon-reload", 120, check=True)
    # Nobody starts it: multi-user.target, which is there already, upholds it.
    vm.wait_unit("nvidiad.service")
    wait_ready(vm)
    vm.wait_unit("kubelet.service")
    vm.wait_unit("nvidia-persistenced.service")
    assert vm.output("/usr/bin/nvidiad --version") == f"nvidiad {__version__}"
    wanted = vm.output("systemctl show -p Wants -p Upholds --value multi-user.target sockets.target")
    assert {"nvidiad.service", "nvidia.service", "nvidiad.socket"} <= set(wanted.split())
    daemon, running, driver = road.main_pids(vm, "nvidiad"), kept(vm), vm.output(_DRIVER)

    vm.run(f"ln -sfn {images[1]} /var/lib/extensions/nvidiad.raw", check=True)
    vm.run("systemd-sysext refresh && systemctl daemon-reload && systemctl restart nvidiad", 120, check=True)
    wait_ready(vm)
    assert vm.output("/usr/bin/nvidiad --version") == f"nvidiad {bundle.LATER}"
    assert road.main_pids(vm, "nvidiad") != daemon
    assert (kept(vm), vm.output(_DRIVER)) == (running, driver)

    vm.run(
        "systemctl mask -q --runtime --now nvidiad.socket nvidiad.service && systemd-sysext unmerge"
        " && systemctl unmask -q --runtime nvidiad.socket nvidiad.service && systemctl daemon-reload",
        120,
        check=True,
    )
    assert vm.run("test -e /usr/bin/nvidiad").rc == 1
    # Upheld, it would be started again by whoever only stops it.
    assert vm.run("pgrep -f '[n]vidiad/libexec/'").rc == 1
    assert kept(vm) == running


@pytest.mark.skipif(os.environ.get("NVIDIAD_FAULTS") != "all", reason="slow: installs once more")
def test_the_bundle_after_the_extension_takes_the_driver_along(guest: Machine) -> None:
    """`uninstall --stop-driver`, on a host whose driver another installation has brought up."""
    vm = guest
    road.configure(vm)
    unpacked = f"{PLACE}/nvidiad-{bundle.LATER}-x86-64"
    vm.run(f"tar -C {PLACE} -xzf {unpacked}.tar.gz && {unpacked}/install --enable", 300, check=True)
    vm.run("systemctl start kubelet", check=True)
    road.wait_phase(vm, "ready")
    vm.wait_unit("nvidia-persistenced.service")
    kubelet = road.main_pids(vm, "kubelet")
    vm.run(f"{unpacked}/uninstall --stop-driver --purge", 120, check=True)
    assert vm.run("grep '^nvidia' /proc/modules").out == ""
    assert (
        vm.run("ldconfig -p | grep /opt/nvidia; ls /etc/ld.so.conf.d | grep nvidiad; ls -d /etc/nvidiad").out
        == ""
    )
    assert vm.run("systemctl is-active nvidia nvidia-persistenced nvidiad").out.split() == ["inactive"] * 3
    # What nvidiad made it wait for is gone, and it is not stopped with that.
    assert road.main_pids(vm, "kubelet") == kubelet

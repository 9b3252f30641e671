# SPDX-License-Identifier: Apache-2.0
"""The Debian package on Debian: installed, configured, upgraded under a loaded driver, removed, purged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nvidiad import __version__
from tests.beds.common import SUITES
from tests.host import bundles, road
from tests.host.bundles import NEXT
from tests.host.machine import RELEASE

if TYPE_CHECKING:
    from pathlib import Path

    from tests.host.bed import Host
    from tests.host.machine import Result

CONFIGURATION = "/etc/nvidiad/nvidiad.toml"
GATE = "/etc/systemd/system/kubelet.service.d/10-nvidia.conf"
UNTOUCHED = ("kubelet.service", "nvidia.service", "nvidia-persistenced.service")
OURS = ("nvidiad.service", *UNTOUCHED)
# What dpkg and systemd remember by themselves, and what belongs to a boot.
_OWN = (
    "/var/lib/dpkg",
    "/var/cache",
    "/var/tmp",
    "/var/log",
    "/var/lib/systemd",
    "/var/lib/docker",
    "/var/lib/containerd",
)
_SKIP = " -o ".join(f"-path {place}" for place in _OWN)
_LISTED = f"find /etc /usr /var /opt -xdev \\( {_SKIP} \\) -prune -o -print"


def listing(host: Host) -> set[str]:
    """Every file and directory but the tree of a driver."""
    found = host.run(_LISTED, check=True).out.splitlines()
    return {path for path in found if not path.startswith(("/opt/nvidia", "/var/registry", "/etc/docker"))}


def dpkg(host: Host, *arguments: str) -> Result:
    return host.run(
        "dpkg", "--force-unsafe-io", *arguments, timeout=120, env={"DEBIAN_FRONTEND": "noninteractive"}
    )


def invocations(host: Host, *units: str) -> dict[str, str]:
    return {unit: host.show(unit, "InvocationID") for unit in units}


def failed(host: Host) -> str:
    return host.run("systemctl --failed --plain --no-legend", check=True).out


def sound(host: Host) -> bool:
    """Whether dpkg finds nothing half done, and systemd nothing failed."""
    return host.run("dpkg", "--audit", check=True).out == "" and failed(host) == ""


@pytest.mark.parametrize("suite", SUITES)
def test_a_package_is_installed_upgraded_removed_and_purged(suite: str, tmp_path: Path) -> None:
    first, second = (bundles.package(tmp_path, version) for version in (__version__, NEXT))
    with road.booted(suite, venv=False, packages=True) as host:
        for package in (first, second):
            host.put(package, f"/var/tmp/{package.name}")
        before = listing(host)
        kubelet = invocations(host, "kubelet.service")

        _refused_beside_a_bundle(host, first.name)
        _installed(host, first.name)
        assert invocations(host, "kubelet.service") == kubelet
        _rebooted_before_anybody_configures(host)
        _configured(host)
        _upgraded(host, second.name)
        _removed(host)
        _purged(host, before)
        assert host.reboot() == "running"
        assert host.state("kubelet.service") == "active"


def _refused_beside_a_bundle(host: Host, package: str) -> None:
    unit = "/etc/systemd/system/nvidiad.service"
    host.write(unit, "[Service]\nExecStart=/opt/nvidiad/bin/nvidiad run\n")
    said = dpkg(host, "-i", f"/var/tmp/{package}")
    assert said.rc != 0
    assert f"'{unit}'" in said.err and "Uninstall" in said.err
    assert not host.exists("/usr/lib/nvidiad")
    host.path(unit).unlink()
    assert sound(host)


def _installed(host: Host, package: str) -> None:
    """On a host that nobody has configured nothing starts, nothing fails and nothing waits."""
    said = dpkg(host, "-i", f"/var/tmp/{package}").check()
    assert "systemctl enable nvidiad.service && systemctl restart nvidiad.service" in said.err
    assert host.run("nvidiad", "--version", check=True).out.split()[-1] == __version__
    assert host.state("nvidiad.service") == "inactive"
    assert host.run("systemctl is-enabled nvidiad.service nvidia.service").out.split() == [
        "enabled",
        "disabled",
    ]
    assert not host.exists(GATE)
    assert sound(host)


def _rebooted_before_anybody_configures(host: Host) -> None:
    assert host.reboot() == "running"
    assert host.state("kubelet.service") == "active"
    assert host.run("nvidiad", "status").rc == 4
    assert road.wait_phase(host, "blocked", code="not-configured")


def _configured(host: Host) -> None:
    road.publish(host)
    host.write(CONFIGURATION, road.configuration())
    # As the package said.
    host.run("systemctl enable nvidiad.service && systemctl restart nvidiad.service", check=True)
    road.wait_ready(host)
    assert host.exists(GATE)
    assert host.reboot() == "running"
    road.wait_ready(host)
    order = [
        int(host.show(unit, "ActiveEnterTimestampMonotonic"))
        for unit in ("nvidia.service", "kubelet.service")
    ]
    assert order == sorted(order)


def _upgraded(host: Host, package: str) -> None:
    """The daemon is another one; driver, persistence, kubelet and what a user wrote are what they were."""
    untouched, daemon = invocations(host, *UNTOUCHED), invocations(host, "nvidiad.service")
    asked = len(host.kmod_log())
    dpkg(host, "-i", f"/var/tmp/{package}").check()
    assert invocations(host, *UNTOUCHED) == untouched
    assert invocations(host, "nvidiad.service") != daemon
    road.wait_ready(host)
    assert host.run("dpkg-query -W -f '${Version}' nvidiad", check=True).out == NEXT
    assert len(host.kmod_log()) == asked
    assert host.read(CONFIGURATION) == road.configuration()
    assert not [path for path in listing(host) if ".dpkg-" in path]
    assert sound(host)


def _removed(host: Host) -> None:
    """The daemon is gone and holds nothing any more; the driver in force stays for those who use it."""
    before = invocations(host, "kubelet.service", "nvidia-persistenced.service")
    modules = host.modules()
    dpkg(host, "-r", "nvidiad").check()
    assert invocations(host, "kubelet.service", "nvidia-persistenced.service") == before
    assert modules and host.modules() == modules
    assert host.exists(f"/opt/nvidia/{road.DRIVER}/{RELEASE[0]}/manifest.json")
    assert host.read(CONFIGURATION) == road.configuration()
    assert not host.exists(GATE)
    host.systemctl("restart", "kubelet.service")
    assert host.state("kubelet.service") == "active"
    assert sound(host)


def _purged(host: Host, before: set[str]) -> None:
    said = dpkg(host, "-P", "nvidiad").check()
    assert "/opt/nvidia" in said.err
    assert host.exists(f"/opt/nvidia/{road.DRIVER}/{RELEASE[0]}/manifest.json")
    assert not host.exists("/run/nvidiad")
    # Of the driver that is loaded until the reboot.
    assert listing(host) - before == {"/etc/ld.so.conf.d/nvidiad.conf"}
    assert before - listing(host) == set()
    assert sound(host)

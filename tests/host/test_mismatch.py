# SPDX-License-Identifier: Apache-2.0
"""Libraries of another driver that come before ours: told with their path, and the kubelet waits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.host import road
from tests.payload import elf

if TYPE_CHECKING:
    from tests.host.bed import Host

OTHER = "535.261.03"
PLACE = "/opt/foreign/lib"
# Before nvidiad.conf, as ldconfig reads the directory.
LINKER = "/etc/ld.so.conf.d/00-foreign.conf"
KUBELET = "kubelet.service"


def intrude(host: Host) -> None:
    """What another installer does to a host, as far as the linker is concerned."""
    library = host.path(f"{PLACE}/libnvidia-ml.so.{OTHER}")
    library.parent.mkdir(parents=True, exist_ok=True)
    library.write_bytes(elf.library("libnvidia-ml.so.1", f"stand-in for libnvidia-ml {OTHER}"))
    link = library.with_name("libnvidia-ml.so.1")
    if not link.is_symlink():
        link.symlink_to(library.name)
    host.write(LINKER, f"{PLACE}\n")
    host.run("ldconfig", check=True)


def retreat(host: Host) -> None:
    """What the remedy asks for."""
    host.path(LINKER).unlink()
    host.run("ldconfig", check=True)


def test_libraries_of_another_driver_hold_the_kubelet_until_they_are_gone(host: Host) -> None:
    road.install(host)
    road.publish(host)
    intrude(host)
    host.systemctl("start", "nvidiad.service")
    document = road.wait_phase(host, "blocked")
    problem = document["problem"]
    assert (problem["code"], problem["retry"]) == ("version-mismatch", False)
    assert problem["sentence"] == (
        f"programs get 'libnvidia-ml.so.1' of driver {OTHER} from '{PLACE}/libnvidia-ml.so.1', "
        f"but driver {road.DRIVER} is loaded"
    )
    assert PLACE in problem["remedy"]
    first = {found["name"]: (found["path"], found["version"]) for found in document["exposure"]["first"]}
    assert first == {
        "libnvidia-ml.so.1": (f"{PLACE}/libnvidia-ml.so.1", OTHER),
        "libcuda.so.1": ("/opt/nvidia/current/lib64/libcuda.so.1", road.DRIVER),
    }
    # Activation has done all else, and its last step found it.
    assert document["driver"]["loaded"] == road.DRIVER
    assert host.state("nvidia.service") == "failed"
    # That step is nvidia.service's alone; of a process that is gone journald may not know the unit.
    checks = [e.get("NVIDIAD_CODE") for e in host.journal() if e.get("NVIDIAD_STEP") == "check-driver"]
    assert "version-mismatch" in checks
    assert road.witnessed(host) == []
    assert host.state(KUBELET) != "active"
    checked = host.nvidiad("check")
    assert checked.rc == 1
    assert "version-mismatch" in checked.out
    shown = host.nvidiad("status")
    assert shown.rc == 4
    assert "Usable: no" in shown.out
    assert f"To do: Remove what brings '{PLACE}/libnvidia-ml.so.1'" in shown.out

    retreat(host)
    host.systemctl("reload", "nvidiad.service")
    document = road.wait_ready(host)
    assert document["warnings"] == []
    road.assert_never_early(host, starts=1)

    # On a host that is up it is told, and nothing that runs is touched.
    before = {unit: road.main_pid(host, unit) for unit in (KUBELET, "nvidia-persistenced.service")}
    intrude(host)
    host.systemctl("reload", "nvidiad.service")
    document = road.wait_phase(host, "blocked")
    assert document["problem"]["code"] == "version-mismatch"
    assert host.state("nvidia.service") == "active"
    assert {unit: road.main_pid(host, unit) for unit in before} == before
    retreat(host)
    host.systemctl("reload", "nvidiad.service")
    road.wait_ready(host)
    road.assert_never_early(host, starts=1)

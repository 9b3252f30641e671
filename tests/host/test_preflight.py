# SPDX-License-Identifier: Apache-2.0
"""What does not fit is told before anything is exposed; `nvidiad check` tells all of it, to anybody."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.host import ahead, road
from tests.host.machine import GPU, RELEASE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host.bed import Host
    from tests.host.machine import Result

KUBELET = "kubelet.service"
CONFIG = "/etc/nvidiad/nvidiad.toml"
NVIDIAD = "/opt/nvidiad/bin/nvidiad"
TREE = f"/opt/nvidia/{road.DRIVER}/{RELEASE[0]}"
SECOND, VOLTA = "0000:02:00.0", "1db6"
DEVICE = f"/sys/devices/pci0000:00/{GPU[0]}"
ROWS = (
    *(
        "configuration",
        "daemon",
        "trust",
        "engine",
        "gpu",
        "rivals",
        "tree",
        "identity",
        "served",
        "modules",
        "vermagic",
    ),
    *("symbols", "versions", "dependencies", "modprobe", "signature", "fabric-manager", "cdi", "nvml"),
    *("space", "driver"),
)
# The bed has no kernel of its own: no modules on disk to compare with, none that it needs. Nobody signs.
SKIPPED = {"trust", "symbols", "modprobe", "fabric-manager"}


@pytest.fixture(scope="module")
def shared() -> Iterator[Host]:
    """A host with its driver in force."""
    with road.in_force() as host:
        yield host


@pytest.fixture
def ready(shared: Host) -> Iterator[Host]:
    yield shared
    host = shared
    host.run("systemctl start nvidiad.socket nvidiad.service; rm -rf /sys/module/nouveau", check=True)
    host.nvidiad("reconcile", check=True)
    road.wait_ready(host)


def rows(done: Result) -> dict[str, dict[str, Any]]:
    """What `check --json` said, by name."""
    assert done.err == "", done.err
    return {row["check"]: row for row in json.loads(done.out)}


def codes(done: Result) -> dict[str, str]:
    """The codes of what is neither in order nor skipped."""
    return {name: row["code"] for name, row in rows(done).items() if row["state"] in ("failed", "warning")}


def as_nobody(host: Host, *arguments: str) -> Result:
    return host.run(f"{ahead.UNPRIVILEGED} {NVIDIAD} {' '.join(arguments)}")


def test_check_tells_everything_with_the_daemon_or_without_to_root_and_to_others(ready: Host) -> None:
    host = ready
    for ask in (host.nvidiad, lambda *arguments: as_nobody(host, *arguments)):
        done = ask("check", "--json=short")
        found = rows(done)
        assert done.rc == 0
        assert tuple(found) == ROWS
        assert {name for name, row in found.items() if row["state"] == "skipped"} == SKIPPED
        assert codes(done) == {}
        assert found["tree"]["text"] == f"every file of '{TREE}' is as its manifest says"
        assert found["served"]["text"] == f"driver {road.DRIVER} (open) serves 10de:{GPU[1]}"
    told = host.nvidiad("check").out.splitlines()
    assert [line.split()[1] for line in told[:-1]] == list(ROWS)
    assert told[-1] == f"{len(ROWS)} checks: {len(ROWS) - len(SKIPPED)} in order, {len(SKIPPED)} skipped"
    # One column: every sentence begins at the same place.
    begins = {line.index(found[line.split()[1]]["text"][:12]) for line in told[:-1]}
    assert len(begins) == 1, told

    host.systemctl("stop", "nvidiad.socket", "nvidiad.service")
    for ask in (host.nvidiad, lambda *arguments: as_nobody(host, *arguments)):
        done = ask("check", "--json=short")
        assert done.rc == 0
        assert codes(done) == {"daemon": "not-running"}
        assert tuple(rows(done)) == ROWS
    # What an ordinary user may not read is skipped, and the rest is told.
    text = host.read(CONFIG)
    host.path(CONFIG).chmod(0o600)
    done = as_nobody(host, "check", "--json=short")
    host.write(CONFIG, text)
    found = rows(done)
    assert done.rc == 0
    assert found["configuration"]["state"] == "skipped"
    assert "Permission denied" in found["configuration"]["text"]
    assert found["gpu"]["state"] == "ok"


def test_what_can_be_lived_with_is_a_warning(ready: Host) -> None:
    host = ready
    host.gpu_add(SECOND, VOLTA)
    host.run("mkdir /sys/module/nouveau", check=True)
    host.nvidiad("reconcile", check=True)
    document = road.wait_status(host, lambda d: len(d["warnings"]) == 2, "two warnings")
    assert document["phase"] == "ready"
    assert any(f"the GPU at {SECOND} (10de:{VOLTA})" in warning for warning in document["warnings"])
    done = host.nvidiad("check", "--json=short")
    assert done.rc == 0
    assert codes(done) == {"rivals": "module-foreign", "served": "flavour-wrong"}
    assert "proprietary flavour" in rows(done)["served"]["remedy"]
    host.gpu_remove(SECOND)


def nothing_exposed(host: Host) -> bool:
    exposed = ("/opt/nvidia/current", "/etc/ld.so.conf.d/nvidiad.conf")
    return not any(host.path(path).is_symlink() or host.exists(path) for path in exposed)


def test_a_gpu_that_the_tree_does_not_serve_is_refused_before_anything_is_exposed(host: Host) -> None:
    road.install(host)
    road.put_tree(host)
    host.gpu_remove()
    host.gpu_add(SECOND, VOLTA)
    assert host.run("systemctl start nvidia.service").rc != 0
    assert nothing_exposed(host)
    assert host.kmod_log() == []
    assert [found for found in road.nodes(host) if "nvidia" in found] == []
    done = host.nvidiad("check", "--json=short")
    assert done.rc == 1
    assert codes(done) == {"daemon": "not-running", "served": "flavour-wrong", "driver": "flavour-wrong"}
    text = host.nvidiad("check").out
    assert (
        f"✗ served          flavour-wrong  the GPU at {SECOND} (10de:{VOLTA}) needs the proprietary" in text
    )
    assert f"→ Publish the image of driver {road.DRIVER} with the proprietary flavour." in text
    host.systemctl("start", "nvidiad.service")
    document = road.wait_phase(host, "blocked", code="flavour-wrong")
    assert "proprietary flavour" in document["problem"]["remedy"]
    assert host.state(KUBELET) != "active"
    # A card that it serves is plugged in; what is no use to it may be somebody else's.
    host.run(f"ln -s ../../../bus/pci/drivers/nouveau /sys/devices/pci0000:00/{SECOND}/driver", check=True)
    host.gpu_add()
    document = road.wait_ready(host)
    assert [f"(10de:{VOLTA})" in warning for warning in document["warnings"]] == [True]
    road.assert_never_early(host, starts=1)


def test_a_host_whose_gpus_are_for_guests_is_left_alone_and_its_kubelet_starts(host: Host) -> None:
    road.install(host)
    road.publish(host)
    host.run(f"ln -s ../../../bus/pci/drivers/vfio-pci {DEVICE}/driver", check=True)
    host.systemctl("start", "nvidiad.service")
    document = road.wait_phase(host, "standing-back", code="other-owner")
    assert document["summary"] == (
        "every GPU of this host is bound to 'vfio-pci', for guests; nvidiad stands back"
    )
    road.wait_units(host, KUBELET)
    assert host.nvidiad("status").rc == 0
    assert not host.exists("/opt/nvidia"), "an image was fetched for guests"
    done = host.nvidiad("check", "--json=short")
    assert (done.rc, codes(done)) == (0, {"driver": "other-owner"})
    # It comes back from its guest.
    host.path(f"{DEVICE}/driver").unlink()
    host.uevent("unbind", f"/devices/pci0000:00/{GPU[0]}")
    road.wait_ready(host)


def test_check_of_a_host_without_gpu_tree_or_configuration(host: Host) -> None:
    host.gpu_remove()
    road.install(host, "")
    done = host.nvidiad("check", "--json=short")
    assert done.rc == 1
    assert codes(done) == {"configuration": "not-configured", "daemon": "not-running"}
    found = rows(done)
    assert found["gpu"]["code"] == "no-gpu"
    assert found["tree"]["state"] == "skipped"
    host.write(CONFIG, road.configuration())
    done = as_nobody(host, "check", "--json=short")
    assert done.rc == 0
    assert codes(done) == {"daemon": "not-running"}
    assert rows(done)["driver"]["text"] == "this host has no NVIDIA GPU"

# SPDX-License-Identifier: Apache-2.0
"""Outside parties that misbehave, each told by its code: what is in force stays, and it heals by itself."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.host import liar, road
from tests.host.aftermath import HEALED, KUBELET, assert_healed, assert_held, begin, stage_tree
from tests.host.liar import Liar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.host.bed import Host
    from tests.host.liar import Answer

DRIVER_UNIT, PERSISTENCED = "nvidia.service", "nvidia-persistenced.service"
TREE = f"/opt/nvidia/{road.DRIVER}"


@pytest.fixture(scope="module")
def shared() -> Iterator[Host]:
    with road.booted(engine_settings={"max-download-attempts": 1}) as host:
        road.install(host)
        road.publish(host)
        yield host


@pytest.fixture
def cold(shared: Host) -> Host:
    """Nothing of nvidiad's is on the host, its image is in the registry."""
    road.rewind(shared, trees=False)
    return shared


@pytest.fixture
def staged(shared: Host) -> Host:
    """The tree is on disk and nothing is in force."""
    stage_tree(shared)
    return shared


@pytest.fixture
def ready(staged: Host) -> Host:
    """The driver is in force, and the kubelet has started once."""
    begin(staged)
    road.wait_ready(staged)
    road.wait_witnessed(staged, 1)
    return staged


def code(document: dict[str, Any]) -> str:
    return str((document["problem"] or {}).get("code", ""))


def wait_code(host: Host, wanted: str) -> dict[str, Any]:
    document = road.wait_status(host, lambda d: code(d) == wanted, f"status says {wanted}", HEALED)
    assert document["problem"]["remedy"], document["problem"]
    return document


# -- the registry ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lie:
    """What a registry does, the code by which that is told, and words of the sentence."""

    change: Callable[[Answer], Answer]
    code: str
    words: tuple[str, ...] = ()
    direct: str = ""
    """The code where nvidiad itself asks, if that is another one: an engine's words say less."""


ENGINES = (pytest.param("docker", id=pytest.HIDDEN_PARAM), "registry")
OCI = "application/vnd.oci.image.manifest.v1+json"
LIES = {
    "429 with Retry-After": Lie(
        liar.refuse(429, "TOOMANYREQUESTS", Retry_After="2"),
        "pull-failed",
        ("toomanyrequests",),
        "registry-unreachable",
    ),
    "500": Lie(liar.refuse(500, "UNKNOWN"), "registry-unreachable"),
    "503": Lie(liar.refuse(503, "UNAVAILABLE"), "registry-unreachable"),
    "403": Lie(liar.refuse(403, "DENIED"), "registry-auth"),
    "404": Lie(liar.refuse(404, "MANIFEST_UNKNOWN"), "image-missing"),
    "truncated layer": Lie(liar.truncated, "registry-unreachable"),
    "layer of another digest": Lie(liar.damaged, "image-corrupt"),
    "manifest that is no JSON": Lie(liar.manifest(b"<html>login</html>", OCI), "pull-failed"),
    "manifest of an unknown kind": Lie(liar.manifest(b"{}", "text/html"), "pull-failed"),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", LIES)
def test_a_registry_that_is_not_well_is_told_and_the_pull_is_made_when_it_is(
    cold: Host, name: str, engine: str
) -> None:
    host, lie = cold, LIES[name]
    since = road.clock(host)
    with Liar(host, lie.change) as registry:
        config = road.configuration(image={"repository": liar.REPOSITORY}, engine={"kind": engine})
        begin(host, config)
        document = wait_code(host, lie.direct if engine == "registry" and lie.direct else lie.code)
        # What answers a HEAD has no words.
        for word in (liar.REPOSITORY, *(lie.words if engine == "docker" else ())):
            assert word in document["problem"]["sentence"].lower(), document["problem"]
        assert_held(host)
        assert host.modules() == []
        # nvidiad itself makes room for what comes, under a hidden name, at each of its tries.
        laid = road.listing(host.path(TREE))
        assert not [name for name in laid if not name.startswith(".")], laid
        assert engine == "registry" or not host.exists(TREE)
        registry.heal()
        assert_healed(host)
    assert engine == "docker" or road.engine_events(host, "pull", since) == ""


@pytest.mark.parametrize("engine", ENGINES)
def test_a_slow_registry_is_waited_for_and_its_progress_shown(cold: Host, engine: str) -> None:
    host = cold
    # nvidiad itself unpacks what it fetches while it comes.
    fetching = "install-tree" if engine == "registry" else "pull-image"
    with Liar(host, liar.slow(64 << 10)) as registry:
        image = {"repository": liar.REPOSITORY, "stall-timeout": 5}
        begin(host, road.configuration(image=image, engine={"kind": engine}))
        under_way = lambda d: (d["progress"] or {}).get("step") == fetching and d["progress"]["done"]  # noqa: E731
        document = road.wait_status(host, under_way, "bytes come", HEALED)
        assert document["phase"] == "converging"
        # Longer than the silence that ends a pull.
        before = document["progress"]["done"]
        more = lambda d: (d["progress"] or {"done": 0})["done"] > before + (352 << 10)  # noqa: E731
        road.wait_status(host, more, "more comes", HEALED)
        document = road.status(host)
        assert document["attempts"] == [] and document["problem"] is None
        assert_held(host)
        registry.heal()
        assert_healed(host)


# -- the container engine --------------------------------------------------------------------------

OLD = """
import http.server, json, os, socketserver, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"ApiVersion": "1.24", "Version": "1.12.6"}).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def address_string(self): return "socket"
    def log_message(self, *_): pass
socketserver.ThreadingUnixStreamServer(sys.argv[1], Handler).serve_forever()
"""


def test_an_engine_that_is_too_old_is_told_until_there_is_another(cold: Host) -> None:
    host, socket = cold, "/run/engine.sock"
    process = host.popen("/usr/bin/python3", "-c", OLD, socket)
    try:
        host.wait(lambda: host.exists(socket), "the old engine listens")
        begin(host, road.configuration(engine={"socket": socket}))
        document = wait_code(host, "engine-too-old")
        assert "1.24" in document["problem"]["sentence"]
        assert_held(host)
    finally:
        host.end(process)
        process.communicate()
    host.run("ln", "-sf", "/run/docker.sock", socket, check=True)
    assert_healed(host)
    host.run("rm", socket, check=True)


# -- the bus and systemd ---------------------------------------------------------------------------


def untouched(host: Host) -> dict[str, object]:
    """What no fault of a party may change while the driver is in force."""
    return {
        "pids": {unit: road.main_pid(host, unit) for unit in (KUBELET, PERSISTENCED)},
        "modules": road.modules(host),
        "nodes": road.nodes(host),
        "trees": road.listing(host.path("/opt/nvidia")),
        "linker": road.linker(host),
    }


def hears(host: Host) -> None:
    """nvidiad hears what happens: a node that is gone is back after a look that an event asks for."""
    # Before the first look there is no time of one.
    before = road.status(host)["looked"] or 0.0
    host.uevent("change", "/devices/pci0000:00/0000:01:00.0")
    road.wait_status(host, lambda d: d["looked"] > before and d["phase"] == "ready", "it has looked", HEALED)


def thaw_bus(host: Host) -> None:
    host.run("pkill -CONT -x dbus-daemon", check=True)


BUS = {
    "killed": ("pkill -KILL -x dbus-daemon", "true"),
    "frozen": ("pkill -STOP -x dbus-daemon; sleep 8", "pkill -CONT -x dbus-daemon"),
    "socket removed": (
        "mv /run/dbus/system_bus_socket /run/dbus/gone; pkill -KILL -x dbus-daemon; sleep 3",
        "mv /run/dbus/gone /run/dbus/system_bus_socket",
    ),
}


@pytest.mark.parametrize("how", BUS)
def test_a_bus_that_is_lost_costs_nvidiad_a_restart_and_nothing_else(ready: Host, how: str) -> None:
    host, (cause, end) = ready, BUS[how]
    before, pid = untouched(host), road.main_pid(host, "nvidiad.service")
    try:
        host.run(cause, timeout=30)
    finally:
        host.run(end, check=True)
    if "KILL" in cause:
        road.wait_another(host, pid)
    road.wait_phase(host, "ready", HEALED)
    host.wait(
        lambda: (
            host.run(
                "busctl call org.freedesktop.systemd1 /org/freedesktop/systemd1 "
                "org.freedesktop.DBus.Peer Ping"
            ).rc
            == 0
        ),
        "systemd is on the bus",
        HEALED,
    )
    hears(host)
    assert untouched(host) == before
    road.assert_nothing_half(host)


@pytest.mark.parametrize("command", ["daemon-reload", "daemon-reexec"])
def test_systemd_is_made_anew_in_the_middle_of_an_activation(staged: Host, command: str) -> None:
    host = staged
    host.kmod_delay(insmod=0.5)
    try:
        begin(host)
        host.wait(lambda: "nvidia" in host.modules(), "the first module is loaded")
        host.systemctl(command)
        assert_healed(host)
    finally:
        host.kmod_delay()


def test_a_start_that_somebody_cancels_is_made_again(staged: Host) -> None:
    host = staged
    # The second module takes as long as this test has to cancel the start.
    host.kmod_delay(insmod=4)
    try:
        # Alone: the job is nvidiad's own, and not one that the kubelet's start has brought.
        begin(host, kubelet=False)
        host.wait(lambda: "nvidia" in host.modules(), "the first module is loaded")
        host.run(
            "systemctl cancel $(systemctl list-jobs --no-legend | awk '/nvidia.service/ {print $1}')",
            check=True,
        )
        told = lambda: "unit-failed" in host.run("journalctl -b -u nvidiad -o json").out  # noqa: E731
        host.wait(told, "the cancelled job is told", HEALED)
        assert_held(host)
    finally:
        host.kmod_delay()
    assert_healed(host)


def test_a_driver_unit_that_is_masked_holds_the_kubelet_until_it_is_not(staged: Host) -> None:
    host, unit = staged, f"/etc/systemd/system/{DRIVER_UNIT}"
    host.run(f"mv {unit} /run/kept.service && ln -s /dev/null {unit} && systemctl daemon-reload", check=True)
    try:
        begin(host)
        wait_code(host, "unit-masked")
        assert_held(host)
        assert host.modules() == []
    finally:
        host.run(f"rm {unit} && mv /run/kept.service {unit} && systemctl daemon-reload", check=True)
        host.systemctl("start", "--no-block", KUBELET)
    assert_healed(host)


def test_a_kubelet_that_is_masked_is_told_and_let_be(ready: Host) -> None:
    host, unit = ready, f"/etc/systemd/system/{KUBELET}"
    pid = road.main_pid(host, KUBELET)
    host.run(f"mv {unit} /run/kept.service && ln -s /dev/null {unit} && systemctl daemon-reload", check=True)
    try:
        host.nvidiad("reconcile", check=True)
        said = lambda d: any("kubelet.service is masked" in warning for warning in d["warnings"])  # noqa: E731
        assert road.wait_status(host, said, "the mask is told", HEALED)["phase"] == "ready"
        assert road.main_pid(host, KUBELET) == pid
    finally:
        host.run(f"rm {unit} && mv /run/kept.service {unit} && systemctl daemon-reload", check=True)
    host.nvidiad("reconcile", check=True)
    road.wait_status(host, lambda d: not d["warnings"], "nothing is told any more", HEALED)
    assert_healed(host)


def test_a_persistence_daemon_that_fails_keeps_nobody_from_the_gpu(staged: Host) -> None:
    host, drop_in = staged, f"/etc/systemd/system/{PERSISTENCED}.d/90-fail.conf"
    # Five starts in ten seconds are the limit otherwise, which it meets or not, as busy as the machine is.
    fails = "ExecStart=\nExecStart=/bin/false\nRestart=on-failure\nRestartSec=1\n"
    host.write(drop_in, f"[Unit]\nStartLimitIntervalSec=0\n[Service]\n{fails}")
    host.systemctl("daemon-reload")

    def down(document: dict[str, Any]) -> bool:
        states = [unit["active"] for unit in document["units"] if unit["name"] == PERSISTENCED]
        return document["phase"] == "ready" and states[:1] != ["active"]

    try:
        begin(host)
        document = road.wait_status(host, down, "it is told that it is down", HEALED)
        assert document["usable"]
        road.wait_witnessed(host, 1)
    finally:
        host.run("rm", drop_in, check=True)
        host.systemctl("daemon-reload")
    assert_healed(host)


# -- the kernel and its events ---------------------------------------------------------------------


# Events until the kernel has lost one more of them than before, at most 3000.
FLOOD = """
lost() { awk '$2 == 15 {lost += $9} END {print lost + 0}' /proc/net/netlink; }
before=$(lost)
for i in $(seq 60); do
    for j in $(seq 50); do /run/bed/uevent change /devices/pci0000:00/0000:01:00.0 pci; done
    [ "$(lost)" -gt "$before" ] && exit 0
done
exit 1
"""


def test_a_flood_of_device_events_is_survived_and_a_lost_one_is_made_up_for(ready: Host) -> None:
    host, place = ready, "/run/systemd/system/nvidiad.service.d/patient.conf"
    # So many events take a busy machine as long as the watchdog waits for a process that is stopped.
    host.write(place, "[Service]\nWatchdogSec=600\n")
    host.run("systemctl daemon-reload && systemctl restart nvidiad.service", check=True)
    road.wait_ready(host)
    before = untouched(host)
    pid = road.main_pid(host, "nvidiad.service")
    looks = road.metric(host, "nvidiad_looks_total") or 0
    # Nobody reads them: the kernel has no room for all and drops the rest.
    host.kill("nvidiad.service", signal.SIGSTOP, whom="main")
    try:
        flood = host.run(FLOOD, timeout=300)
        assert flood.rc == 0, "nothing was lost"
        # The one that matters is among the lost.
        host.run("rm /dev/nvidia0", check=True)
    finally:
        host.kill("nvidiad.service", signal.SIGCONT, whom="main")
    host.wait(lambda: host.exists("/dev/nvidia0"), "the node is back", HEALED)
    hears(host)
    assert (road.metric(host, "nvidiad_looks_total") or 0) - looks < 30
    assert road.main_pid(host, "nvidiad.service") == pid
    assert untouched(host) == before
    host.run(f"systemctl stop nvidiad.service; rm {place} && systemctl daemon-reload", check=True)


def test_a_module_of_somebody_else_has_the_gpu(staged: Host) -> None:
    host, bound = staged, "/sys/devices/pci0000:00/0000:01:00.0/driver"
    host.run(
        f"mkdir -p /sys/bus/pci/drivers/nouveau && ln -s ../../../bus/pci/drivers/nouveau {bound}",
        check=True,
    )
    try:
        begin(host)
        document = wait_code(host, "module-foreign")
        assert "nouveau" in document["problem"]["sentence"]
        assert_held(host)
        assert host.modules() == []
    finally:
        host.run("rm", bound, check=True)
        host.uevent("unbind", "/devices/pci0000:00/0000:01:00.0")
    host.systemctl("start", "--no-block", KUBELET)
    assert_healed(host)


# -- those who share the disk ----------------------------------------------------------------------


def look(host: Host) -> None:
    host.nvidiad("reconcile", check=True)


CURRENT = {
    "removed": "rm /opt/nvidia/current",
    "names nothing": "ln -sfn nothing /opt/nvidia/current",
    "names another tree": f"ln -sfn {road.DRIVER}/1000.0.0 /opt/nvidia/current",
}


@pytest.mark.parametrize("how", CURRENT)
def test_current_is_put_right_and_nothing_that_runs_is_touched(ready: Host, how: str) -> None:
    host = ready
    if "another" in how:
        road.put_tree(host, "1000.0.0", "5.0.0")
    before = untouched(host)
    host.run(CURRENT[how], check=True)
    look(host)
    host.wait(lambda: road.listing(host.path("/opt/nvidia")) == before["trees"], "current is right", HEALED)
    host.run(f"rm -rf {TREE}/1000.0.0", check=True)
    del before["trees"]
    after = untouched(host)
    del after["trees"]
    assert after == before
    assert_healed(host)


def assert_back(host: Host, before: dict[str, object]) -> None:
    """The tree is whole again, and nothing else has changed."""
    host.wait(lambda: road.listing(host.path("/opt/nvidia")) == before["trees"], "the tree is whole", HEALED)
    road.wait_ready(host, HEALED)
    assert untouched(host) == before
    assert_healed(host)


PARTS = {
    "a module": "nvidia.ko",
    "a library": f"libcuda.so.{road.DRIVER}",
    "the manifest": "manifest.json",
}


@pytest.mark.parametrize("what", PARTS)
def test_a_file_that_is_deleted_of_a_tree_in_force_is_told_by_check(ready: Host, what: str) -> None:
    """Nobody replaces the tree of a loaded driver in place; removed, as the remedy says, it is pulled."""
    host = ready
    before = untouched(host)
    removed = host.run(f"find {TREE} -name {PARTS[what]} -print -delete", check=True).out
    assert removed.count("\n") == 1, removed
    look(host)
    checked = host.nvidiad("check", "--json=short")
    assert checked.rc == 1
    assert "tree-invalid" in checked.out or "tree-missing" in checked.out
    assert host.modules() and host.state(KUBELET) == "active"
    host.run(f"rm -r {TREE}", check=True)
    look(host)
    assert_back(host, before)


def test_a_refresh_of_system_extensions_over_our_overlay(staged: Host) -> None:
    """The kernel stacks no overlay on that of extensions: told until they go, with all else in force."""
    host, extension = staged, "/var/lib/extensions/tools/usr"
    # What the bed has on /usr, an overlay on it hides.
    host.run("rm /etc/os-release && cp /run/bed/os-release /etc/os-release", check=True)
    host.run(f"mkdir -p {extension}/bin && cp /run/bed/kmod {extension}/bin/kmod", check=True)
    host.write(f"{extension}/lib/extension-release.d/extension-release.tools", "ID=_any\n")
    try:
        begin(host, road.configuration(install={"exposure": "overlay"}))
        assert_healed(host)
        before = untouched(host)
        host.run("systemd-sysext", "refresh", check=True)
        wait_code(host, "exposure-failed")
        assert untouched(host) == before
    finally:
        host.run("systemd-sysext unmerge; rm -rf /var/lib/extensions")
        host.run("ln -sf ../usr/lib/os-release /etc/os-release", check=True)
    assert_healed(host)
    assert untouched(host) == before
    assert host.exists("/usr/lib64/libcuda.so.1")
    road.configure(host, road.configuration())
    road.wait_ready(host, HEALED)

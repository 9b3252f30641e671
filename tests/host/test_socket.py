# SPDX-License-Identifier: Apache-2.0
"""The socket on a live host: spoken to by the programs that people have, and by those who cannot behave."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from contextlib import ExitStack
from statistics import median
from typing import TYPE_CHECKING, Any

import pytest

from nvidiad.rim.server import INTERFACES, description
from tests.beds.common import CHECKOUT, require
from tests.host import road
from tests.host.bed import NVIDIAD
from tests.host.machine import RELEASE, Result

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host.bed import Host

SOCKET = road.SOCKET
KUBELET = "kubelet.service"
UNIT = "nvidiad.service"
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534")
# Many clients at once, of whom each asks and counts as answered only with a whole answer.
CROWD = """
import asyncio, sys
async def ask(path):
    try:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"GET /status HTTP/1.1\\r\\n\\r\\n")
        await writer.drain()
        answer = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        return answer.startswith(b"HTTP/1.1 200 ") and answer.rstrip().endswith(b"}")
    except (OSError, asyncio.TimeoutError):
        return False
async def crowd(path, count):
    return sum(await asyncio.gather(*(ask(path) for _ in range(count))))
print(asyncio.run(crowd(sys.argv[1], int(sys.argv[2]))))
"""
# So many clients who connect and say nothing, until their standard input ends.
LOITER = """
import socket, sys
held = []
for _ in range(int(sys.argv[2])):
    client = socket.socket(socket.AF_UNIX)
    client.connect(sys.argv[1])
    held.append(client)
print("here", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def shared() -> Iterator[Host]:
    """A host of Debian 13, whose systemd has varlinkctl, with the driver in force."""
    with road.booted("trixie") as host:
        road.install(host)
        road.publish(host)
        host.systemctl("start", UNIT)
        road.wait_ready(host)
        yield host


@pytest.fixture
def ready(shared: Host) -> Iterator[Host]:
    """Whatever a client does: nvidiad is the same process afterwards, answers, and has said nothing."""
    host = shared
    pid, descriptors, cursor = road.main_pid(host, UNIT), open_files(host), road.clock(host)
    yield host
    assert road.main_pid(host, UNIT) == pid
    assert road.status(host)["phase"] == "ready"
    host.run("journalctl", "--sync", check=True)
    said = host.run("journalctl", "-b", "-q", "-u", UNIT, f"--since=@{cursor}", "-p", "warning", "-o", "cat")
    assert said.out == ""
    host.wait(lambda: open_files(host) <= descriptors, "nvidiad holds no more files than before")


def open_files(host: Host) -> int:
    return len(list(host.path(f"/proc/{road.main_pid(host, UNIT)}/fd").iterdir()))


def memory(host: Host) -> int:
    """Resident kilobytes of the daemon."""
    text = host.read(f"/proc/{road.main_pid(host, UNIT)}/status")
    matched = re.search(r"^VmRSS:\s+(\d+) kB$", text, re.MULTILINE)
    assert matched is not None
    return int(matched[1])


def connect(host: Host) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(10)
    client.connect(str(host.path(SOCKET)))
    return client


def say(host: Host, data: bytes) -> bytes:
    """All that comes back until nvidiad closes, or has no more to say after our end."""
    with connect(host) as client:
        try:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
        except BrokenPipeError:
            pass  # closed already: what it said is there to be read
        answer = b""
        try:
            while part := client.recv(65536):
                answer += part
        except ConnectionResetError:
            pass
        return answer


def varlink(host: Host, *arguments: str) -> Result:
    return host.run("varlinkctl", *arguments)


# -- varlinkctl -------------------------------------------------------------------------------------


def test_varlinkctl_learns_who_it_talks_to(ready: Host) -> None:
    shown = varlink(ready, "info", SOCKET).check().out
    assert re.search(r"Product: nvidiad$", shown, re.MULTILINE)
    for interface in INTERFACES:
        assert interface in shown
    assert varlink(ready, "list-interfaces", SOCKET).check().out.split() == sorted(INTERFACES)


@pytest.mark.parametrize("interface", INTERFACES)
def test_varlinkctl_introspects_what_the_package_describes(ready: Host, interface: str) -> None:
    shown = varlink(ready, "introspect", SOCKET, interface).check().out
    methods = re.findall(r"^method (\w+)", description(interface), re.MULTILINE)
    assert re.findall(r"^method (\w+)", shown, re.MULTILINE) == methods
    ready.write("/run/interface", description(interface))
    varlink(ready, "validate-idl", "/run/interface").check()


def test_varlinkctl_calls_every_method(ready: Host) -> None:
    def call(method: str, parameters: str = "{}") -> Any:
        return (
            varlink(ready, "call", "--json=short", SOCKET, f"io.nvidiad.{method}", parameters).check().json()
        )

    document = call("GetStatus")["status"]
    assert (document["phase"], document["driver"]["loaded"]) == ("ready", road.DRIVER)
    (tree,) = call("List")["trees"]
    assert (tree["path"], tree["current"]) == (f"/opt/nvidia/{road.DRIVER}/{RELEASE[0]}", True)
    assert "nvidiad_ready 1\n" in call("GetMetrics")["metrics"]
    looks = road.metric(ready, "nvidiad_looks_total") or 0
    assert call("Reconcile") == {}
    ready.wait(lambda: (road.metric(ready, "nvidiad_looks_total") or 0) > looks, "a look")


def test_varlinkctl_follows_the_status_with_more(ready: Host) -> None:
    command = ("varlinkctl", "call", "--more", "--json=short", SOCKET, "io.nvidiad.GetStatus", "{}")
    follower = ready.popen("stdbuf", "-oL", *command)
    assert follower.stdout is not None

    def following() -> dict[str, Any]:
        assert follower.stdout is not None
        document: dict[str, Any] = json.loads(follower.stdout.readline().strip("\x1e\n"))["status"]
        return document

    with follower:
        try:
            first = following()
            assert first["phase"] == "ready"
            ready.nvidiad("reconcile", check=True)
            later = following()
            assert later["looked"] > first["looked"]
        finally:
            ready.end(follower)


@pytest.mark.parametrize(
    ("method", "parameters", "error"),
    [
        ("io.nvidiad.Reboot", "{}", "MethodNotFound"),
        ("io.systemd.Manager.Describe", "{}", "InterfaceNotFound"),
        ("io.nvidiad.GetStatus", '{"pretty": true}', "InvalidParameter"),
        ("org.varlink.service.GetInterfaceDescription", '{"interface": "io.other"}', "InterfaceNotFound"),
    ],
)
def test_varlinkctl_is_refused_by_name(ready: Host, method: str, parameters: str, error: str) -> None:
    refused = varlink(ready, "call", SOCKET, method, parameters)
    assert refused.rc != 0
    assert error in refused.err


# -- curl and Prometheus ----------------------------------------------------------------------------


def curl(host: Host, resource: str, *options: str) -> Result:
    return host.run(
        "curl", "-sS", "--max-time", "10", *options, "--unix-socket", SOCKET, f"http://localhost{resource}"
    )


def test_curl_reads_the_status(ready: Host) -> None:
    document = curl(ready, "/status", "--fail").check().json()
    assert document["schema"] == 1
    assert document["phase"] == "ready"
    head = curl(ready, "/status", "--fail", "--head", "-X", "GET").check().out
    assert "content-type: application/json" in head.lower()
    assert "Nvidiad-Phase: ready" in head
    assert curl(ready, "/status?json=pretty", "--fail").check().out.startswith('{\n  "schema": 1')
    text = curl(ready, "/status.txt", "--fail").check().out
    assert text.startswith("● ready - driver 535.309.01 is in force")
    told = ready.nvidiad("status", check=True).out
    assert _timeless(text) == _timeless(told)


def _timeless(text: str) -> str:
    """A status without what goes on while it is read twice."""
    return re.sub(r";[^;\n]* ago", "", text)


@pytest.mark.parametrize(
    ("options", "resource", "code"),
    [
        ((), "/", "200"),
        ((), "/other", "404"),
        (("-X", "POST"), "/status", "405"),
        (("-H", f"Long: {'x' * 9000}"), "/status", "431"),
        (("--http1.0",), "/status", "200"),
    ],
)
def test_curl_is_answered_by_the_book(
    ready: Host, options: tuple[str, ...], resource: str, code: str
) -> None:
    assert curl(ready, resource, *options, "-o", "/dev/null", "-w", "%{http_code}").check().out == code


def test_promtool_accepts_the_metrics(ready: Host) -> None:
    require("prometheus")
    page = curl(ready, "/metrics", "--fail").check().out
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=page, capture_output=True, text=True, check=False, timeout=60
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    assert "nvidiad_ready 1\n" in page
    assert f'wanted="{road.DRIVER}"' in page


# Asks nvidiad to act, and prints what it answers.
ACT = """
import socket
with socket.create_connection(("127.0.0.1", 9416), 10) as client:
    client.sendall(b'{"method": "io.nvidiad.Reconcile"}\\0')
    print(client.recv(4096).decode())
"""


def test_prometheus_reads_the_metrics_from_a_port_and_nobody_acts_there(ready: Host) -> None:
    for name in ("nvidiad-metrics.socket", "nvidiad-metrics.service"):
        ready.put(CHECKOUT / "contrib/prometheus" / name, f"/etc/systemd/system/{name}")
    ready.systemctl("daemon-reload")
    ready.systemctl("start", "nvidiad-metrics.socket")
    page = (
        ready.run("curl", "-sS", "--fail", "--max-time", "30", "http://127.0.0.1:9416/metrics").check().out
    )
    assert "nvidiad_ready 1\n" in page
    refused = ready.run(ready.python, "-c", ACT).check().out
    assert "io.nvidiad.NotAuthorized" in refused
    ready.systemctl("stop", "nvidiad-metrics.socket", "nvidiad-metrics.service")


# -- who may what -----------------------------------------------------------------------------------


def test_an_ordinary_user_reads_and_is_refused_action(ready: Host) -> None:
    nobody = (*NOBODY, "--clear-groups")
    assert ready.run(*nobody, NVIDIAD, "status", check=True).out.startswith("● ready")
    assert ready.run(*nobody, NVIDIAD, "status", "--json=short", check=True).json()["phase"] == "ready"
    looks = road.metric(ready, "nvidiad_looks_total")
    refused = ready.run(*nobody, NVIDIAD, "reconcile")
    assert refused.rc == 1
    assert "not-authorized" in refused.err
    assert "65534" in refused.err
    assert "group 'nvidiad'" in refused.err
    refused = ready.run(*nobody, "varlinkctl", "call", SOCKET, "io.nvidiad.Reconcile", "{}")
    assert refused.rc != 0
    assert "io.nvidiad.NotAuthorized" in refused.err
    assert road.metric(ready, "nvidiad_looks_total") == looks


def test_a_member_of_the_group_may_act(ready: Host) -> None:
    looks = road.metric(ready, "nvidiad_looks_total") or 0
    assert ready.run(*NOBODY, "--groups=nvidiad", NVIDIAD, "reconcile").rc == 0
    ready.wait(lambda: (road.metric(ready, "nvidiad_looks_total") or 0) > looks, "a look")


# -- bad manners ------------------------------------------------------------------------------------

CALL = b'{"method":"io.nvidiad.GetStatus"}\0'


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b'{"method":"io.nvidiad.Nothing"}\0', b"org.varlink.service.MethodNotFound"),
        (b"{" + b"x" * 70_000, b"io.nvidiad.InvalidMessage"),
        (
            b'{"method":"io.nvidiad.GetStatus","parameters":{"x":"' + b"x" * (1 << 20) + b'"}}\0',
            b"InvalidMessage",
        ),
        (b"{}\0", b"InvalidParameter"),
        (b"{" + b"[" * 60_000 + b"\0", b"io.nvidiad.InvalidMessage"),
        (b'{"method":"io.nvid', b""),
        (b"GET /status", b"400"),
        (b"\0", b""),
        (b"\x16\x03\x01\x02\x00", b""),
        (b"", b""),
    ],
    ids=["unknown", "oversize", "huge", "empty", "deep", "half", "half http", "nul", "tls", "nothing"],
)
def test_what_is_no_request_is_answered_or_dropped(ready: Host, data: bytes, answer: bytes) -> None:
    answered = say(ready, data)
    assert answer in answered
    assert answer or not answered
    assert json.loads(say(ready, CALL).rstrip(b"\0"))["parameters"]["status"]["phase"] == "ready"


def test_half_a_message_and_those_who_never_read_hold_nobody_up(ready: Host) -> None:
    before = memory(ready)
    with ExitStack() as held:
        half = held.enter_context(connect(ready))
        half.sendall(b'{"method":"io.nvidiad.GetSt')
        for _ in range(5):
            greedy = held.enter_context(connect(ready))
            greedy.settimeout(0)
            asked = 0
            # What the kernel takes; after that nvidiad must not read on before its answers are taken.
            while asked < 1 << 23:
                try:
                    asked += greedy.send(CALL * 1000)
                except BlockingIOError:
                    break
            assert asked < 1 << 23, "it takes everything and keeps the answers"
        answers = [ready.nvidiad("status") for _ in range(20)]
        assert [answer.rc for answer in answers] == [0] * 20
        # What a busy machine holds up is not half of them.
        assert median(answer.seconds for answer in answers) < 5
        assert memory(ready) - before < 8 * 1024


def test_three_hundred_clients_at_once_are_answered_or_dropped(ready: Host) -> None:
    before = memory(ready)
    ready.write("/run/crowd.py", CROWD)
    answered = int(ready.run("python3", "/run/crowd.py", SOCKET, "300", timeout=60, check=True).out)
    assert 100 <= answered <= 300
    assert ready.nvidiad("status").rc == 0
    assert memory(ready) - before < 16 * 1024


def test_a_user_who_takes_all_connections_takes_only_his_own(ready: Host) -> None:
    ready.write("/run/loiter.py", LOITER)
    command = (*NOBODY, "--clear-groups", "python3", "/run/loiter.py", SOCKET, "300")
    with ready.popen(*command, stdin=subprocess.PIPE) as loiterer:
        try:
            assert loiterer.stdout is not None
            assert loiterer.stdout.readline() == "here\n"
            assert ready.nvidiad("status").rc == 0
            assert (
                ready.run("setpriv", "--reuid=1", "--regid=1", "--clear-groups", NVIDIAD, "status").rc == 0
            )
            assert ready.run(*NOBODY, "--clear-groups", NVIDIAD, "status").rc == 3
            assert open_files(ready) < 100
        finally:
            ready.end(loiterer)


# -- without the daemon -----------------------------------------------------------------------------


def test_the_exit_status_says_ready_not_ready_and_not_running(shared: Host) -> None:
    host = shared
    assert host.nvidiad("status").rc == 0
    assert host.nvidiad().rc == 0
    road.configure(host, road.configuration(road.OTHER_DRIVER))
    road.wait_phase(host, "waiting", code="image-missing")
    shown = host.nvidiad("status")
    assert (shown.rc, "image-missing" in shown.out) == (4, True)
    assert host.nvidiad("status", "--json=short").rc == 4
    road.configure(host, road.configuration())
    road.wait_phase(host, "ready")
    host.systemctl("stop", "nvidiad.socket", UNIT)
    try:
        gone = host.nvidiad("status")
        assert gone.rc == 3
        assert "not-running" in gone.err
        assert SOCKET in gone.err
        assert "systemctl start nvidiad" in gone.err
        assert host.nvidiad("reconcile").rc == 3
    finally:
        host.systemctl("start", "nvidiad.socket", UNIT)
    road.wait_phase(host, "ready")
    assert host.nvidiad("stauts").rc == 2


def test_asking_starts_a_daemon_that_was_stopped(shared: Host) -> None:
    host = shared
    kubelet, calls = road.main_pid(host, KUBELET), len(host.kmod_log())
    host.systemctl("stop", UNIT)
    assert host.state(UNIT) == "inactive"
    assert host.state("nvidiad.socket") == "active"
    # The first look may not have ended when it answers.
    assert host.nvidiad("status").rc in (0, 4)
    assert host.state(UNIT) in ("active", "activating")
    road.wait_ready(host)
    assert host.nvidiad("status").rc == 0
    assert road.main_pid(host, KUBELET) == kubelet
    assert len(host.kmod_log()) == calls


def test_a_socket_that_a_killed_daemon_left_serves_the_next_one(shared: Host) -> None:
    host = shared
    before = road.main_pid(host, UNIT)
    host.kill(UNIT)
    assert host.nvidiad("status", timeout=30).rc in (0, 4)
    road.wait_ready(host)
    assert road.main_pid(host, UNIT) != before

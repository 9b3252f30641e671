# SPDX-License-Identifier: Apache-2.0
"""What fails between a registry and a tree on disk: told by code and name, and healed without help."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.host import line, registry, road
from tests.host.line import Line, over_the_line
from tests.host.machine import RELEASE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.host.bed import Host

KUBELET = "kubelet.service"
TREE = f"/opt/nvidia/{road.DRIVER}/{RELEASE[0]}"
TLS, AUTH = registry.ADDRESSES["tls"], registry.ADDRESSES["auth"]
AUTHORITY = f"/etc/docker/certs.d/{TLS}/ca.crt"
AUTH_FILE = "/etc/nvidiad/auth.json"


@pytest.fixture(scope="module")
def shared() -> Iterator[Host]:
    # With more attempts dockerd hides for a minute that a line is cut.
    with road.booted(engine_settings={"max-download-attempts": 1}) as host:
        road.install(host)
        host.registry_start("tls", "auth")
        yield host


@pytest.fixture
def cold(shared: Host) -> Host:
    """The shared host as if nothing had ever been pulled, its image in the registry; nvidiad is down."""
    road.strip(shared)
    road.publish(shared)
    return shared


def begin(host: Host, config: str | None = None) -> None:
    """Start nvidiad and, as a boot does, the kubelet."""
    host.write("/etc/nvidiad/nvidiad.toml", road.configuration() if config is None else config)
    host.systemctl("start", "nvidiad.service")
    host.systemctl("start", "--no-block", KUBELET)


def wait_problem(host: Host, code: str, *words: str) -> dict[str, Any]:
    """Wait until nvidiad names this problem in these words, and see that nothing has moved for it."""
    document = road.wait_phase(host, "waiting", code=code)
    problem = document["problem"]
    for word in words:
        assert word in problem["sentence"]
    assert problem["remedy"]
    assert document["next_try"] is not None
    assert_held(host)

    def told() -> bool:
        shown = host.nvidiad("status")
        assert shown.rc == 4
        return code in shown.out

    # Not at every instant: a try under way is told as what it is.
    host.wait(told, f"the text names {code}", road.PATIENCE)
    return document


def assert_held(host: Host) -> None:
    assert road.witnessed(host) == []
    assert host.state(KUBELET) != "active"
    assert host.modules() == []
    assert host.nvidiad("list", "--json=short", check=True).json() == []


def assert_healed(host: Host) -> None:
    road.wait_ready(host)
    # systemd calls a simple service active before it has written anything.
    host.wait(lambda: road.witnessed(host), "the kubelet has looked around")
    road.assert_never_early(host, starts=1)
    document = road.status(host)
    assert document["driver"]["image"] not in [attempt["what"] for attempt in document["attempts"]]
    assert host.nvidiad("check").rc == 0
    assert host.run("docker", "ps", "-aq", check=True).out == ""


# -- what is wrong before the first byte, and what it takes to mend it ------------------------------


@dataclass(frozen=True)
class Cause:
    """Something that fails; `words` are in the sentence, `config` is on top of the usual configuration."""

    code: str
    words: tuple[str, ...]
    begin: Callable[[Host], object]
    end: Callable[[Host], object]
    image: dict[str, object] | None = None


IMAGE = f"{road.REPOSITORY}:{road.tag()}"
BY_NAME: dict[str, object] = {"repository": f"{TLS}/nvidia-driver"}
SMALL = "mkdir -p /opt/nvidia && mount -t tmpfs -o size=96k,mode=755 tmpfs /opt/nvidia"
READ_ONLY = "mkdir -p /opt/nvidia && mount -t tmpfs -o ro,mode=755 tmpfs /opt/nvidia"


def shell(command: str) -> Callable[[Host], object]:
    return lambda host: host.run(command, check=True)


CAUSES = {
    "image missing": Cause("image-missing", (IMAGE,), lambda host: host.run(road.FORGET), road.publish),
    "repository missing": Cause(
        "image-missing",
        ("127.0.0.1:5000/other:",),
        lambda _host: None,
        lambda host: road.configure(host, road.configuration()),
        {"repository": "127.0.0.1:5000/other"},
    ),
    "registry stopped": Cause(
        "registry-unreachable",
        ("'127.0.0.1:5000'", IMAGE),
        lambda host: host.registry_stop("plain"),
        lambda host: host.registry_start("plain"),
    ),
    "registry killed": Cause(
        "registry-unreachable",
        ("'127.0.0.1:5000'", IMAGE),
        lambda host: host.registry_kill("plain"),
        lambda host: host.registry_start("plain"),
    ),
    "registry frozen": Cause(
        "registry-stalled",
        ("'127.0.0.1:5000'", IMAGE, "2 s"),
        lambda host: host.registry_freeze("plain"),
        lambda host: host.registry_thaw("plain"),
        {"stall-timeout": 2},
    ),
    "registry without a name": Cause(
        "registry-unreachable",
        (f"'{TLS}'",),
        shell("sed -i /reg.test/d /etc/hosts"),
        shell("echo 10.99.0.1 reg.test >>/etc/hosts"),
        BY_NAME,
    ),
    "authority unknown": Cause(
        "registry-tls",
        (f"'{TLS}'", "x509"),
        shell(f"mv {AUTHORITY} /run/ca.crt"),
        shell(f"mv /run/ca.crt {AUTHORITY}"),
        BY_NAME,
    ),
    "engine stopped": Cause(
        "engine-unreachable",
        ("'/run/docker.sock'",),
        lambda host: host.engine_stop(),
        lambda host: host.engine_start(),
    ),
    "engine frozen": Cause(
        "engine-unreachable",
        ("'/run/docker.sock'", "no answer for 2 s"),
        lambda host: host.engine_freeze(),
        lambda host: host.engine_thaw(),
        {"stall-timeout": 2},
    ),
    "disk full": Cause("disk-full", (IMAGE, "not enough room"), shell(SMALL), shell("umount /opt/nvidia")),
    "disk read-only": Cause(
        "read-only", (IMAGE, "Read-only file system"), shell(READ_ONLY), shell("umount /opt/nvidia")
    ),
}


@pytest.mark.parametrize("name", CAUSES)
def test_a_failure_is_told_by_its_code_and_heals_when_its_cause_ends(cold: Host, name: str) -> None:
    host, cause = cold, CAUSES[name]
    cause.begin(host)
    try:
        begin(host, road.configuration(image=cause.image or {}))
        wait_problem(host, cause.code, *cause.words)
    finally:
        cause.end(host)
    assert_healed(host)


def test_access_is_refused_without_and_with_wrong_credentials_and_granted_with_the_right_ones(
    cold: Host,
) -> None:
    host = cold
    host.run("rm", "-f", AUTH_FILE, check=True)
    begin(host, road.configuration(image={"repository": f"{AUTH}/nvidia-driver", "auth-file": AUTH_FILE}))
    tries = wait_problem(host, "registry-auth", f"'{AUTH}'")["attempts"][0]["count"]

    def credentials(password: str) -> None:
        auth = base64.b64encode(f"{registry.USER}:{password}".encode()).decode()
        host.write(AUTH_FILE, json.dumps({"auths": {AUTH: {"auth": auth}}}), 0o600)

    credentials("wrong")
    again = lambda d: d["attempts"] and d["attempts"][0]["count"] > tries + 1  # noqa: E731
    road.wait_status(host, again, "another attempt with the wrong password")
    wait_problem(host, "registry-auth", f"'{AUTH}'")
    said = road.fetch(host, "/status") + host.run("journalctl", "-b", "-u", "nvidiad.service").out
    assert "wrong" not in said, "the password is told to everyone"

    host.write(AUTH_FILE, "not JSON", 0o600)
    problem = road.wait_status(
        host, lambda d: (d["problem"] or {}).get("code") == "config-invalid", "the auth file is named"
    )["problem"]
    assert AUTH_FILE in problem["sentence"]

    credentials(registry.PASSWORD)
    assert_healed(host)


# -- what breaks in the middle of a pull ------------------------------------------------------------


@pytest.fixture
def cut(cold: Host) -> Iterator[Line]:
    """The line to the registry, which fails in the middle of the first layer."""
    with Line(cold) as made:
        yield made


def test_a_registry_that_breaks_off_in_mid_pull_is_unreachable_until_it_is_back(
    cold: Host, cut: Line
) -> None:
    cut.fail(200_000)
    begin(cold, over_the_line())
    cut.wait_broken()
    wait_problem(cold, "registry-unreachable", f"'127.0.0.1:{line.PORT}'", line.REPOSITORY)
    cut.heal()
    assert_healed(cold)


def test_a_registry_that_falls_silent_in_mid_pull_has_stalled_until_it_goes_on(
    cold: Host, cut: Line
) -> None:
    cut.fail(200_000, hangs=True)
    # Progress is shown a second after it was made, and no longer than the pull lasts.
    begin(cold, over_the_line(stall=6))
    cut.wait_broken()
    shown = lambda d: d["progress"] and d["phase"] == "converging"  # noqa: E731
    document = road.wait_status(cold, shown, "the pull is shown")
    assert document["progress"]["step"] == "pull-image"
    wait_problem(cold, "registry-stalled", f"'127.0.0.1:{line.PORT}'", "6 s")
    cut.heal()
    assert_healed(cold)


def test_an_engine_that_is_restarted_in_mid_pull_was_lost_and_the_pull_begins_again(
    cold: Host, cut: Line
) -> None:
    cut.fail(200_000, hangs=True)
    # It is told until the next try, which hangs.
    begin(cold, over_the_line(stall=30, pause=10))
    cut.wait_broken()
    cold.engine_restart(wait=False)
    wait_problem(cold, "engine-lost", line.REPOSITORY)
    cut.heal()
    assert_healed(cold)


def test_an_engine_that_freezes_in_mid_pull_is_lost_until_it_goes_on(cold: Host, cut: Line) -> None:
    cut.fail(200_000, hangs=True)
    # While a registry that is only silent has not stalled; and the engine is lost but once.
    begin(cold, over_the_line(stall=5, pause=10))
    cut.wait_broken()
    cold.engine_freeze()
    try:
        wait_problem(cold, "engine-lost", line.REPOSITORY)
        cut.heal()
        wait_problem(cold, "engine-unreachable", "'/run/docker.sock'")
    finally:
        cold.engine_thaw()
    assert_healed(cold)


@pytest.mark.parametrize("hangs", [False, True], ids=["cut", "silent"])
def test_a_pull_that_fails_in_mid_stream_never_installs_an_older_image_of_the_same_tag(
    cold: Host, cut: Line, *, hangs: bool
) -> None:
    host, image = cold, f"{line.REPOSITORY}:{road.tag()}"
    host.run("docker", "pull", "-q", image, check=True)
    old = host.run("docker", "image", "inspect", "-f", "{{.Id}}", image, check=True).out
    road.publish(host, bulk=32 << 20)
    since = road.clock(host)
    # What is new is the last layer: the first one is here already.
    cut.fail(60_000, hangs=hangs)
    begin(host, over_the_line())
    cut.wait_broken()
    code = "registry-stalled" if hangs else "registry-unreachable"
    wait_problem(host, code, line.REPOSITORY)
    enough = lambda d: d["attempts"] and d["attempts"][0]["count"] >= 2  # noqa: E731
    road.wait_status(host, enough, "two attempts have failed")
    assert host.run("docker", "image", "inspect", "-f", "{{.Id}}", image, check=True).out == old
    assert_held(host)
    assert not host.exists("/opt/nvidia"), "something of the older image is on the disk"
    assert road.engine_events(host, "create", since) == ""
    cut.heal()
    assert_healed(host)
    assert host.path(f"{TREE}/lib/firmware/nvidia/{road.DRIVER}/gsp_ga10x.bin").stat().st_size == 32 << 20


def test_nvidiad_that_is_stopped_in_mid_pull_ends_at_once_and_goes_on_later(cold: Host, cut: Line) -> None:
    cut.fail(200_000, hangs=True)
    begin(cold, over_the_line(stall=60))
    cut.wait_broken()
    assert cold.systemctl("stop", "nvidiad.service").seconds < 20
    assert cold.show("nvidiad.service", "Result") == "success"
    assert_held(cold)
    cut.heal()
    cold.systemctl("start", "nvidiad.service")
    assert_healed(cold)


def test_a_failure_is_remembered_across_a_restart_of_the_daemon_and_forgotten_when_asked(cold: Host) -> None:
    host = cold
    host.registry_stop("plain")
    patient = {"retry-initial": 600, "retry-maximum": 600}
    begin(host, road.configuration(daemon=patient))
    before = wait_problem(host, "registry-unreachable")
    host.systemctl("restart", "nvidiad.service")
    after = wait_problem(host, "registry-unreachable")
    assert after["attempts"] == before["attempts"], "the restarted daemon knocked at once"
    host.registry_start("plain")
    assert host.nvidiad("reconcile").rc == 0
    assert_healed(host)

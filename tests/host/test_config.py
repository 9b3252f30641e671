# SPDX-License-Identifier: Apache-2.0
"""The configuration of a live host: faults by name and all at once, the last good one kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.host import road
from tests.host.machine import RELEASE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host.bed import Host

KUBELET = "kubelet.service"
UNIT = "nvidiad.service"
FILE = "/etc/nvidiad/nvidiad.toml"
DROP_IN = "/etc/nvidiad/conf.d/20-driver.toml"
FAULTY = (Path(__file__).parents[1] / "data/config/faults.toml").read_text()
# Where and of what; the whole sentences stand in docs/configuration.md and are tested with the parser.
FAULTS = (
    f"{FILE}:2: driver.version: ",
    f"{FILE}:3: driver.modules: ",
    f"{FILE}:6: image.repository: ",
    f"{FILE}:7: image.auth_file: unknown key (did you mean image.auth-file?)",
    f"{FILE}:8: image.tag: ",
    f"{FILE}:11: units.gated: ",
    f"{FILE}:14: daemon.poll: ",
)


@pytest.fixture(scope="module")
def shared() -> Iterator[Host]:
    with road.booted() as host:
        road.install(host)
        road.publish(host)
        yield host


@pytest.fixture
def cold(shared: Host) -> Host:
    """The shared host with nothing of nvidiad's on it, its image in the registry, and nvidiad down."""
    road.strip(shared)
    road.publish(shared)
    shared.run("rm", "-rf", "/etc/nvidiad/conf.d", check=True)
    return shared


@pytest.fixture
def ready(cold: Host) -> Host:
    start(cold, road.configuration())
    road.wait_ready(cold)
    cold.wait(lambda: road.witnessed(cold), "the kubelet has looked around")
    return cold


def start(host: Host, config: str) -> None:
    host.write(FILE, config)
    host.systemctl("start", UNIT)
    host.systemctl("start", "--no-block", KUBELET)


def reload(host: Host) -> None:
    host.systemctl("reload", UNIT)


def faulty(document: dict[str, Any]) -> bool:
    return any("driver.version" in warning for warning in document["warnings"])


def blocked(host: Host, code: str) -> dict[str, Any]:
    document = road.wait_phase(host, "blocked", code=code)
    assert host.nvidiad("status").rc == 4
    assert host.state(KUBELET) != "active"
    assert road.witnessed(host) == []
    assert not host.exists("/opt/nvidia")
    assert host.run("docker", "images", "-q", check=True).out == ""
    return document


# -- faults -----------------------------------------------------------------------------------------


def test_every_verb_that_reads_the_configuration_names_all_its_faults(cold: Host) -> None:
    host = cold
    host.write(FILE, FAULTY)
    for verb in ("plan", "list", "check", "gc", "activate"):
        said = host.nvidiad(verb)
        assert said.rc == 1, verb
        # `check` is about whatever can be wrong, and tells it in its list.
        told = said.out if verb == "check" else said.err
        for fault in FAULTS:
            assert fault in told, f"{verb} does not name {fault}"
        assert "535.309" in told
    assert host.modules() == []
    assert not host.exists("/opt/nvidia")


def test_a_daemon_that_starts_with_a_broken_configuration_changes_nothing_until_it_is_mended(
    cold: Host,
) -> None:
    host = cold
    start(host, FAULTY)
    document = blocked(host, "config-invalid")
    for fault in FAULTS:
        assert fault in document["problem"]["sentence"]
        assert fault in host.nvidiad("status").out
    assert "7" in document["problem"]["remedy"] or "8" in document["problem"]["remedy"]
    logged = [entry for entry in host.journal(UNIT) if entry.get("NVIDIAD_CODE") == "config-invalid"]
    assert logged and int(logged[0]["PRIORITY"]) == 3
    assert host.show(UNIT, "NRestarts") == "0"
    host.write(FILE, road.configuration())
    reload(host)
    assert road.wait_ready(host)["warnings"] == []
    host.wait(lambda: road.witnessed(host), "the kubelet has looked around")
    road.assert_never_early(host, starts=1)


def test_a_broken_file_at_a_reload_leaves_the_last_good_configuration_in_force(ready: Host) -> None:
    host = ready
    before = road.end_state(host)
    pids = {unit: road.main_pid(host, unit) for unit in (UNIT, KUBELET, "nvidia-persistenced.service")}
    host.write(FILE, FAULTY)
    reload(host)
    document = road.wait_status(host, faulty, "a warning that names the faults")
    assert document["phase"] == "ready"
    for fault in FAULTS:
        assert fault in "".join(document["warnings"])
    shown = host.nvidiad("status")
    assert shown.rc == 0
    assert "driver.version" in shown.out
    assert road.end_state(host) == before
    # It goes on working with the good one: what is missing is fetched again.
    host.run("rm", "-rf", f"/opt/nvidia/{road.DRIVER}", check=True)
    host.nvidiad("reconcile", check=True)
    host.wait(lambda: road.end_state(host) == before, "the tree is back")
    document = road.wait_phase(host, "ready")
    assert faulty(document), "the warning is gone while the file is still broken"
    host.write(FILE, road.configuration(daemon={"poll": 1800}))
    reload(host)
    document = road.wait_status(host, lambda d: not d["warnings"], "no warning any more")
    assert document["phase"] == "ready"
    assert {unit: road.main_pid(host, unit) for unit in pids} == pids


def test_a_broken_file_at_a_boot_takes_no_driver_from_the_host(ready: Host) -> None:
    """Nor does it without the daemon: nvidia.service reads the copy, too."""
    host = ready
    host.write(FILE, FAULTY)
    host.reboot()
    document = road.wait_ready(host)
    assert faulty(document)
    assert document["driver"]["loaded"] == road.DRIVER
    road.assert_never_early(host, starts=1)
    said = [e for e in host.journal("nvidia.service") if "last good configuration" in str(e.get("MESSAGE"))]
    assert "driver.version" in json.dumps(said)
    host.run("mkdir /root/wants; mv /etc/systemd/system/*.wants/nvidiad.* /root/wants", check=True)
    assert host.reboot() == "running"
    assert host.state(UNIT) == "inactive"
    road.assert_never_early(host, starts=1)
    # Taking it down knows what is to be undone.
    host.systemctl("stop", KUBELET, "nvidia-persistenced.service", "nvidia.service")
    assert host.modules() == []
    host.systemctl("enable", UNIT)
    host.write(FILE, road.configuration())
    host.systemctl("start", "nvidia.service", "nvidia-persistenced.service", UNIT, KUBELET)
    assert road.wait_ready(host)["warnings"] == []


def test_what_cannot_be_read_is_named_and_not_taken(ready: Host) -> None:
    host = ready
    contents: dict[str, str | bytes] = {
        f"{FILE}:1:8: not TOML": "[driver\n",
        "not UTF-8": b"[driver]\nversion = '\xff'\n",
        "larger than 1 MiB": "# " + "x" * (1 << 20),
        "image.repository: expected an image name, found nothing": "[driver]\nversion = '535.309.01'\n",
    }
    for word, content in contents.items():
        host.write(FILE, content)
        reload(host)
        named = lambda d, word=word: any(word in warning for warning in d["warnings"])  # noqa: E731
        document = road.wait_status(host, named, word)
        assert document["phase"] == "ready"
    host.write(FILE, road.configuration())
    reload(host)
    road.wait_status(host, lambda d: not d["warnings"] and d["phase"] == "ready", "no warning")


def test_a_host_that_nobody_has_configured_is_blocked_and_says_what_is_missing(cold: Host) -> None:
    host = cold
    start(host, "# nothing yet\n")
    document = blocked(host, "not-configured")
    for key in ("driver.version", "image.repository"):
        assert key in document["problem"]["sentence"]
    assert "systemctl reload nvidiad" in document["problem"]["remedy"]
    assert document["warnings"] == []
    # No file at all is the same.
    host.run("rm", FILE, check=True)
    reload(host)
    blocked(host, "not-configured")
    host.write(FILE, road.configuration())
    reload(host)
    road.wait_ready(host)


def test_a_host_with_the_driver_in_force_that_loses_its_configuration_keeps_the_driver(ready: Host) -> None:
    host = ready
    before = road.end_state(host)
    host.write(FILE, "")
    reload(host)
    document = road.wait_phase(host, "blocked", code="not-configured")
    assert document["driver"]["loaded"] == road.DRIVER
    assert road.end_state(host) == before
    host.write(FILE, road.configuration())
    reload(host)
    road.wait_ready(host)
    assert len(road.witnessed(host)) == 1


# -- what is taken ----------------------------------------------------------------------------------


def test_another_driver_is_fetched_at_the_reload_and_waits_for_the_reboot(ready: Host) -> None:
    host = ready
    host.kmod_busy("nvidia")
    road.publish(host, driver=road.OTHER_DRIVER)
    road.configure(host, road.configuration(road.OTHER_DRIVER))
    document = road.wait_phase(host, "pending-reboot", code="driver-mismatch")
    assert document["driver"]["wanted"] == road.OTHER_DRIVER
    assert document["driver"]["loaded"] == road.DRIVER
    assert {tree["driver"]: tree["wanted"] for tree in document["driver"]["installed"]} == {
        road.DRIVER: False,
        road.OTHER_DRIVER: True,
    }
    # Back before the reboot, as if nothing had been.
    road.configure(host, road.configuration())
    document = road.wait_ready(host)
    host.kmod_busy()
    assert document["driver"]["current"] == f"/opt/nvidia/{road.DRIVER}/{RELEASE[0]}"


def test_fragments_override_by_their_names_and_are_gone_when_removed(ready: Host) -> None:
    host = ready

    def image(document: dict[str, Any]) -> str:
        return str(document["driver"]["image"])

    host.write(DROP_IN, f'[driver]\nversion = "{road.OTHER_DRIVER}"\n')
    host.write(
        "/etc/nvidiad/conf.d/10-site.toml",
        '[driver]\nversion = "1.2.3"\n[image]\ntag = "{kernel}-{driver}"\n',
    )
    host.write("/etc/nvidiad/conf.d/.30-hidden.toml", "broken")
    host.write("/etc/nvidiad/conf.d/40-other.conf", "broken")
    reload(host)
    wanted = f"{road.REPOSITORY}:{RELEASE[1]}-{road.OTHER_DRIVER}"
    document = road.wait_status(host, lambda d: image(d) == wanted, wanted)
    assert document["warnings"] == []
    host.run("ln -sf /dev/null /etc/nvidiad/conf.d/10-site.toml", check=True)
    reload(host)
    wanted = f"{road.REPOSITORY}:{RELEASE[0]}-{road.OTHER_DRIVER}"
    road.wait_status(host, lambda d: image(d) == wanted, wanted)
    # A fault is named with the fragment that has it.
    host.write(DROP_IN, '[driver]\nversoin = "1"\n')
    reload(host)
    fault = f"{DROP_IN}:2: driver.versoin: unknown key (did you mean driver.version?)"
    document = road.wait_status(host, lambda d: fault in "".join(d["warnings"]), fault)
    assert image(document) == wanted, "the last good configuration is not in force"
    host.run("rm", "-r", "/etc/nvidiad/conf.d", check=True)
    reload(host)
    road.wait_ready(host)


def test_one_reload_after_the_other_is_taken(ready: Host) -> None:
    """Each reload is taken, however fast they follow each other."""
    host = ready
    for version in (road.OTHER_DRIVER, road.DRIVER) * 3:
        road.configure(host, road.configuration(version))
        road.wait_status(host, lambda d, version=version: d["driver"]["wanted"] == version, version)  # type: ignore[misc]
    assert host.show(UNIT, "NRestarts") == "0"
    road.wait_ready(host)

# SPDX-License-Identifier: Apache-2.0
"""What the services may not do: on a host with the driver in force, as the kernel and systemd tell it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.beds.common import CHECKOUT, SUITES
from tests.host import road

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host.bed import Host

UNITS = CHECKOUT / "units/systemd/system"
DAEMON, DRIVER, PERSISTENCED = "nvidiad.service", "nvidia.service", "nvidia-persistenced.service"
CDI, HEALTH, FABRIC = "nvidia-cdi.service", "nvidia-health.service", "nvidia-fabricmanager.service"
BESIDE = (PERSISTENCED, CDI, HEALTH, FABRIC)
BITS = {"dac_override": 1, "chown": 0, "fowner": 3, "sys_module": 16, "sys_ptrace": 19, "sys_admin": 21}
BITS |= {"mknod": 27, "syslog": 34}
RUNS = re.compile(
    r"type|exec|restart|success|timeout|watchdog|filedesc|environment|\w+directory|remain|pidfile", re.I
)


@pytest.fixture(scope="module", params=SUITES)
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    with road.in_force(request.param) as host:
        yield host


def restrictions(unit: str) -> list[tuple[str, str]]:
    """What a unit says of what it may do, line by line."""
    lines = (UNITS / unit).read_text().partition("[Service]")[2].partition("[Install]")[0].splitlines()
    pairs = [line.partition("=")[::2] for line in lines if "=" in line and not line.startswith("#")]
    return [(key, value) for key, value in pairs if not RUNS.match(key)]


def documented(version: str) -> dict[str, float]:
    """The figures in SECURITY.md for a release of systemd."""
    rows = re.findall(r"^\| (.*) \|$", (CHECKOUT / "SECURITY.md").read_text(), re.MULTILINE)
    cells = [[cell.strip("` ") for cell in row.split(" | ")] for row in rows]
    head = next(row for row in cells if f"systemd {version}" in row)
    column = head.index(f"systemd {version}")
    return {
        row[0]: float(row[column])
        for row in cells
        if re.fullmatch(r"\S+\.service", row[0]) and len(row) > column
    }


def test_no_unit_is_more_exposed_than_is_documented(host: Host) -> None:
    version = host.run("systemd-analyze", "--version", check=True).out.split()[1]
    figures = documented(version)
    assert figures.keys() == {path.name for path in UNITS.glob("*.service")}
    for unit, figure in figures.items():
        shown = host.run(
            "systemd-analyze", "security", "--offline=true", "--no-pager", f"/etc/systemd/system/{unit}"
        )
        measured = re.search(r"exposure level for \S+: ([0-9.]+)", shown.out)
        assert measured is not None, shown
        assert float(measured[1]) <= figure, shown.out


def kept(status: str) -> tuple[int, int, int]:
    """The bounding set, the "no new privileges" and the filter of a process."""
    fields = dict(re.findall(r"^(CapBnd|NoNewPrivs|Seccomp):\s*(\w+)$", status, re.MULTILINE))
    return int(fields["CapBnd"], 16), int(fields["NoNewPrivs"]), int(fields["Seccomp"])


def expected(unit: str) -> tuple[int, int, int]:
    words = " ".join(value for key, value in restrictions(unit) if key == "CapabilityBoundingSet").lower()
    return sum(1 << BITS[word.removeprefix("cap_")] for word in words.split()), 1, 2


def test_what_runs_is_restricted_and_lives_in_the_mounts_of_the_host(host: Host) -> None:
    init = host.run("readlink", "/proc/1/ns/mnt", check=True).out
    for unit in (DAEMON, PERSISTENCED):
        pid = road.main_pid(host, unit)
        assert kept(host.read(f"/proc/{pid}/status")) == expected(unit), unit
        mounts = host.run("readlink", f"/proc/{pid}/ns/mnt", check=True).out
        # The persistence daemon mounts nothing: it may have mounts of its own.
        assert (mounts == init) is (unit == DAEMON)
    # Activation is over before one can look: a shell takes its place.
    dropin = f"/run/systemd/system/{DRIVER}.d/look.conf"
    host.write(dropin, "[Service]\nExecReload=\nExecReload=/bin/sh /run/look\n")
    host.write("/run/look", "cat /proc/self/status >/run/status; readlink /proc/self/ns/mnt >/run/mounts\n")
    host.systemctl("daemon-reload")
    try:
        host.systemctl("reload", DRIVER)
    finally:
        host.run("rm", dropin, check=True)
        host.systemctl("daemon-reload")
    assert kept(host.read("/run/status")) == expected(DRIVER)
    assert host.read("/run/mounts") == init


def python(text: str) -> str:
    return f'/usr/bin/python3 -c "{text}"'


# What somebody may try who has taken over a service, and from which service it must fail.
ATTEMPTS = {
    "a packet socket": (python("import socket; socket.socket(17, 3, 0)"), (DAEMON, DRIVER, *BESIDE)),
    "the network": (python("import socket; socket.socket()"), (DRIVER, PERSISTENCED, CDI, HEALTH)),
    "a user namespace": ("unshare -U true", (DAEMON, DRIVER, *BESIDE)),
    "a network namespace": ("unshare -n true", (DAEMON, DRIVER, *BESIDE)),
    "a mount namespace": ("unshare -m true", (DRIVER, *BESIDE)),
    "tracing": ("strace -o /dev/null true", (DAEMON, DRIVER, *BESIDE)),
    "code in memory": (python("import mmap; mmap.mmap(-1, 4096, prot=7)"), (DAEMON, DRIVER)),
    # Not the daemon: without an engine it lays down trees, with nvidia-modprobe in them.
    "a set-user-ID file": ("touch /run/suid && chmod 4755 /run/suid", (DRIVER, *BESIDE)),
    "a device node": ("rm -f /dev/probe; mknod /dev/probe c 1 3", (DAEMON, *BESIDE)),
    "another's device": (": <>/dev/fuse", (DAEMON, *BESIDE)),
    "another's file": ("touch /run/mine && chown 1 /run/mine", (DAEMON, *BESIDE)),
    "another user": ("setpriv --reuid=1 --clear-groups true", (DAEMON, DRIVER, *BESIDE)),
    "another root": ("chroot / true", (DAEMON, DRIVER, *BESIDE)),
    # Not hostname(1), to which "not implemented" is no failure.
    "the name of the host": (
        python("import socket; socket.sethostname(socket.gethostname())"),
        (DAEMON, DRIVER, *BESIDE),
    ),
    "the OS": ("touch /etc/probe", BESIDE),
    "the kernel's settings": ("touch /sys/module/probe", (CDI, HEALTH, FABRIC)),
}


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_what_is_forbidden_fails(host: Host, attempt: str) -> None:
    command, units = ATTEMPTS[attempt]
    free = host.run("systemd-run", "-q", "--wait", "--pipe", "sh", "-c", command)
    assert free.rc == 0, free
    for unit in units:
        words = [word for key, value in restrictions(unit) for word in ("-p", f"{key}={value}")]
        tried = host.run("systemd-run", "-q", "--wait", "--pipe", *words, "sh", "-c", command)
        assert tried.rc != 0, (unit, attempt)
        # It is the attempt that fails, and nothing before it.
        ran = host.run("systemd-run", "-q", "--wait", "--pipe", *words, "sh", "-c", "python3 -c 'print(1)'")
        assert (ran.rc, ran.out) == (0, "1\n"), (unit, ran)

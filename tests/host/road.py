# SPDX-License-Identifier: Apache-2.0
"""The road as tests walk it: a configuration, images in the registry, and a host at the end of it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shutil
import socket
import stat
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.host import standins
from tests.host.bed import Host
from tests.host.machine import RELEASE, CommandError
from tests.payload import builder, image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.payload.builder import Fault

SUITE = os.environ.get("NVIDIAD_BED_SUITE", "bookworm")
DRIVER = "535.309.01"
OTHER_DRIVER = "550.144.03"
NEXT = ("4081.2.0", "6.6.54-flatcar")
REPOSITORY = "127.0.0.1:5000/nvidia-driver"
SOCKET = "/run/nvidiad/io.nvidiad"
UNITS = ("nvidiad.service", "nvidia.service", "nvidia-persistenced.service", "kubelet.service")
BESIDE = ("nvidia-cdi.service", "nvidia-health.service")
NODES = ("nvidiactl", "nvidia0", "nvidia-uvm")
# What a test waits for comes by an event, so it does not look at the clock before this is over.
PATIENCE = 60.0
_NEW_NET = 0x40000000  # CLONE_NEWNET of setns(2)

_WITNESS = """\
#!/bin/sh
# Writes down what a unit finds when systemd starts it.
nodes=
for node in /dev/nvidia*; do [ -c "$node" ] && nodes="$nodes ${node#/dev/}"; done
driver=$(cat /sys/module/nvidia/version 2>/dev/null)
libraries=$(ldconfig -p | sed -n 's/^\\tlibcuda.so.1 .*=> //p')
echo "$1|$driver|$(readlink /opt/nvidia/current)|$libraries|$nodes" >>/run/witness
[ ! -e "/run/fail/$1" ] || exit 1
exec sleep infinity
"""


@contextmanager
def booted(suite: str = SUITE, **arguments: Any) -> Iterator[Host]:
    """A host that is up, for as long as the block lasts."""
    # Not under pytest's temporary directories: those are kept, and a host's disk is large.
    base = Path(tempfile.mkdtemp(prefix=f"nvidiad-host-{os.getpid()}-", dir="/var/tmp"))
    number = base.name.rpartition("-")[2]
    host = Host(f"{os.getpid()}-{number}", suite, base / number)
    try:
        yield host.up(**arguments)
    finally:
        host.down()
        shutil.rmtree(base, ignore_errors=True)


@contextmanager
def in_force(suite: str = SUITE) -> Iterator[Host]:
    """A host with the driver pulled, installed and in force."""
    with booted(suite) as host:
        install(host)
        publish(host)
        host.systemctl("start", "nvidiad.service")
        wait_ready(host)
        yield host


# -- configuration ---------------------------------------------------------------------------------


def configuration(driver: str = DRIVER, **sections: Mapping[str, object]) -> str:
    """A whole configuration file; `units={"gated": [...]}` adds to a section or replaces its defaults.

    The poll is so long that whatever a test sees happen came by an event.
    """
    content: dict[str, dict[str, object]] = {
        "driver": {"version": driver},
        "image": {"repository": REPOSITORY, "stall-timeout": 5},
        "daemon": {"poll": 3600, "retry-initial": 1, "retry-maximum": 2},
    }
    for name, section in sections.items():
        content.setdefault(name, {}).update(section)
    # JSON writes strings, numbers, booleans and arrays as TOML does.
    tables = (
        [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in section.items())]
        for name, section in content.items()
    )
    return "".join(f"{line}\n" for table in tables for line in table)


def fetched_by(host: Host, engine: str) -> None:
    """From the next time on that the configuration is read, this is who fetches images."""
    host.write("/etc/nvidiad/conf.d/10-engine.toml", f'[engine]\nkind = "{engine}"\n')


def configure(host: Host, text: str) -> None:
    """Give a running nvidiad another configuration."""
    host.write("/etc/nvidiad/nvidiad.toml", text)
    host.systemctl("reload", "nvidiad.service")


def install(host: Host, config: str | None = None) -> None:
    """nvidiad on a host that has not started its kubelet yet, as an image of the OS would bring it."""
    host.systemctl("stop", "kubelet.service")
    host.install_nvidiad(configuration() if config is None else config)
    witness(host, "kubelet.service")


def killable(host: Host) -> None:
    """Let nvidiad be killed at its steps, by a killer in its environment that the product knows not."""
    site = f"/opt/nvidiad/lib/{host.python}/site-packages"
    host.put(standins.SOURCES / "nvidiad_killer.py", f"{site}/nvidiad_killer.py")
    host.write(f"{site}/nvidiad_killer.pth", "import nvidiad_killer; nvidiad_killer.arm()\n")
    # The two seconds of the unit would be most of such a test.
    host.write("/etc/systemd/system/nvidiad.service.d/bed.conf", "[Service]\nRestartSec=100ms\n")
    host.systemctl("daemon-reload")


def witness(host: Host, *units: str) -> None:
    """Let these units (made here where they are not there) write down what they find at every start."""
    host.write("/etc/bed/witness", _WITNESS, 0o755)
    for unit in units:
        place = f"/etc/systemd/system/{unit}"
        if not host.exists(place):
            host.write(
                place,
                f"[Unit]\nDescription={unit}\n[Service]\nRestart=no\n[Install]\nWantedBy=multi-user.target\n",
            )
        text = f"[Service]\nExecStart=\nExecStart=/etc/bed/witness {unit}\n"
        host.write(f"{place}.d/50-witness.conf", text)
    host.systemctl("daemon-reload")


def witnessed(host: Host, unit: str = "kubelet.service") -> list[dict[str, str]]:
    """What the unit found at each of its starts since the host booted."""
    text = host.read("/run/witness") if host.exists("/run/witness") else ""
    keys = ("unit", "driver", "current", "library", "nodes")
    found = [dict(zip(keys, line.split("|"), strict=True)) for line in text.splitlines()]
    return [entry for entry in found if entry["unit"] == unit]


def wait_witnessed(host: Host, starts: int, unit: str = "kubelet.service") -> list[dict[str, str]]:
    """Wait for this many starts: what a unit found it writes itself, a moment after systemd has it up."""
    host.wait(lambda: len(witnessed(host, unit)) >= starts, f"{unit} has started {starts} times")
    return witnessed(host, unit)


def assert_never_early(host: Host, unit: str = "kubelet.service", *, starts: int | None = None) -> None:
    """Whenever the unit started, module, nodes, current and library were there, of one driver."""
    found = wait_witnessed(host, starts or 0, unit)
    for entry in found:
        assert entry["driver"], f"{unit} started before the module: {found}"
        assert entry["current"].startswith(f"{entry['driver']}/"), found
        assert set(NODES) <= set(entry["nodes"].split()), f"{unit} started before the nodes: {found}"
        assert entry["library"], f"{unit} started before the library was in the linker cache: {found}"
    assert starts is None or len(found) == starts, found


# -- images ----------------------------------------------------------------------------------------


def tag(version: str = RELEASE[0], driver: str = DRIVER) -> str:
    return f"{version}-{driver}"


def publish(
    host: Host,
    version: str = RELEASE[0],
    kernel: str = RELEASE[1],
    *,
    driver: str = DRIVER,
    spoil: Fault | None = None,
    labels: Mapping[str, str] | None = None,
    bulk: int = 0,
    fabric: str = "",
) -> str:
    """Build the image of a stand-in driver and push it to the host's plain registry; the digest."""
    with tempfile.TemporaryDirectory() as made:
        tree = payload(Path(made), version, kernel, driver=driver, bulk=bulk, fabric=fabric)
        if spoil is not None:
            builder.spoil(tree, spoil)
        packed = image.image(tree, labels=labels)
    return within(host, lambda: packed.push("http://127.0.0.1:5000", "nvidia-driver", tag(version, driver)))


def payload(
    dest: Path, version: str, kernel: str, *, driver: str = DRIVER, bulk: int = 0, fabric: str = ""
) -> Path:
    """The tree of a stand-in driver in a directory of this machine."""
    release = ("flatcar", version)
    return builder.payload(dest, driver=driver, release=release, kernel=kernel, bulk=bulk, fabric=fabric)


def put_tree(
    host: Host,
    version: str = RELEASE[0],
    kernel: str = RELEASE[1],
    *,
    driver: str = DRIVER,
    place: str = "/opt",
) -> str:
    """Lay a tree down on the host as an earlier nvidiad would have left it; its path there."""
    with tempfile.TemporaryDirectory() as made:
        tree = payload(Path(made), version, kernel, driver=driver)
        inside = f"{place}/nvidia/{driver}/{version}"
        target = host.path(inside)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(tree, target, symlinks=True)
    return inside


def within(host: Host, do: Callable[[], str]) -> str:
    """Do something on this machine, but in the network of the host."""
    answers: list[str] = []
    errors: list[Exception] = []

    def work() -> None:
        with Path(f"/proc/{host._init()}/ns/net").open() as net:
            if ctypes.CDLL(None, use_errno=True).setns(net.fileno(), _NEW_NET):
                errors.append(OSError(ctypes.get_errno(), "setns"))
                return
        try:
            answers.append(do())
        except Exception as error:
            errors.append(error)

    # setns(2) moves one thread; it ends with the work.
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return answers[0]


# -- what nvidiad says -----------------------------------------------------------------------------


def fetch(host: Host, resource: str, seconds: float = 10) -> str:
    """A resource of nvidiad's socket over HTTP; connecting starts nvidiad where systemd holds its socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(seconds)
        connection.connect(str(host.path(SOCKET)))
        connection.sendall(
            f"GET {resource} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        )
        answer = b""
        while part := connection.recv(65536):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split(b" ", 2)[1] == b"200", answer.decode(errors="replace")
    return body.decode()


def status(host: Host) -> dict[str, Any]:
    """The status document."""
    document: dict[str, Any] = json.loads(fetch(host, "/status"))
    return document


def metric(host: Host, name: str, **labels: str) -> float | None:
    """A value of the metrics page, None where the page has none."""
    wanted = "{" + ",".join(f'{key}="{value}"' for key, value in labels.items()) + "}" if labels else ""
    for line in fetch(host, "/metrics").splitlines():
        if line.startswith(f"{name}{wanted} "):
            return float(line.rpartition(" ")[2])
    return None


def wait_status(
    host: Host, holds: Callable[[dict[str, Any]], object], what: str, seconds: float = PATIENCE
) -> dict[str, Any]:
    """Poll the status until it is as wanted; the document that was."""
    deadline = time.monotonic() + seconds
    last: object = "no answer"
    while time.monotonic() < deadline:
        try:
            document = last = status(host)
        except (OSError, IndexError) as error:
            # Between two lives of the daemon nobody answers.
            last = repr(error)
        else:
            # Before its first look nvidiad knows nothing of the host that anybody could wait for.
            if document["looked"] is not None and holds(document):
                return document
        time.sleep(0.05)
    shown = json.dumps(last, indent=1) if isinstance(last, dict) else last
    raise CommandError(f"waited {seconds} s in vain: {what}; nvidiad says {shown}\n{story(host)}")


def wait_phase(
    host: Host, phase: str, seconds: float = PATIENCE, *, code: str | None = None
) -> dict[str, Any]:
    """Wait until nvidiad says this phase (and names this problem); the document in which it does."""

    def holds(document: dict[str, Any]) -> bool:
        said = (document["problem"] or {}).get("code")
        return document["phase"] == phase and code in (None, said)

    return wait_status(host, holds, f"phase {phase}" + (f" with {code}" if code else ""), seconds)


def wait_ready(host: Host, seconds: float = PATIENCE) -> dict[str, Any]:
    """Wait until the driver is in force and everything after it runs."""
    document = wait_phase(host, "ready", seconds)
    wait_units(host, *UNITS, *BESIDE, seconds=seconds)
    return document


def wait_units(host: Host, *units: str, seconds: float = PATIENCE, active: str = "active") -> None:
    """Wait until the units are in this state."""
    for unit in units or UNITS:
        try:
            host.wait(lambda unit=unit: host.state(unit) == active, f"{unit} is {active}", seconds)  # type: ignore[misc]
        except CommandError as error:
            raise CommandError(f"{error}\n{story(host)}") from None


def story(host: Host, lines: int = 60) -> str:
    """What happened, for a person who must find out why a test failed."""
    units = [f"--unit={unit}" for unit in (*UNITS, "nvidiad.socket")]
    show = ("journalctl", "--no-pager", "-b", "-o", "short-monotonic", "-n", str(lines), *units)
    return host.run(*show).out + host.run("systemctl list-units --failed --plain --no-legend").out


def journal_time(
    host: Host, unit: str, text: str, *, last: bool = False, boot: str = "0", wall: bool = False
) -> float:
    """When a message of a unit (or about it) was sent, on the monotonic clock or on the wall, in seconds."""
    times = [
        _sent(entry, wall=wall)
        for entry in host.journal(unit, boot=boot)
        if text in str(entry.get("MESSAGE", ""))
    ]
    assert times, f"no message of {unit} has {text!r}:\n{story(host)}"
    return times[-1 if last else 0]


def _sent(entry: dict[str, Any], *, wall: bool) -> float:
    # The other two times are those at which journald came to the message, which on a busy machine is later.
    taken = int(entry["__REALTIME_TIMESTAMP"])
    sent = int(entry.get("_SOURCE_REALTIME_TIMESTAMP", taken))
    return (sent if wall else int(entry["__MONOTONIC_TIMESTAMP"]) - (taken - sent)) / 1e6


def started_at(host: Host, unit: str) -> float:
    """When the main process of a unit was last started, on the monotonic clock in seconds."""
    return int(host.show(unit, "ExecMainStartTimestampMonotonic")) / 1e6


def main_pid(host: Host, unit: str) -> int:
    return int(host.show(unit, "MainPID"))


def wait_another(host: Host, pid: int, unit: str = "nvidiad.service") -> None:
    """Wait until the main process of a unit is there and is not this one."""
    host.wait(
        lambda: main_pid(host, unit) not in (0, pid), f"{unit} is another process than {pid}", PATIENCE
    )


# -- what a host looks like ------------------------------------------------------------------------


def nodes(host: Host) -> dict[str, str]:
    """The driver's device nodes (type, device, mode) and the links to them in /dev/char."""
    dev = host.path("/dev")
    found: dict[str, str] = {}
    for path in (*dev.glob("nvidia*"), *dev.glob(".*nvidia*")):
        with contextlib.suppress(FileNotFoundError):
            entry = path.lstat()
            device = f"{os.major(entry.st_rdev)}:{os.minor(entry.st_rdev)}"
            found[path.name] = f"{stat.filemode(entry.st_mode)} {device} {entry.st_uid}:{entry.st_gid}"
    for path in (dev / "char").iterdir() if (dev / "char").is_dir() else ():
        with contextlib.suppress(FileNotFoundError):
            target = os.readlink(path)  # noqa: PTH115
            if "nvidia" in target or path.name.startswith("."):
                found[f"char/{path.name}"] = target
    return found


def listing(top: Path, *, without: tuple[str, ...] = ()) -> dict[str, str]:
    """What is below a directory: type, mode, size or target of each entry."""
    found: dict[str, str] = {}
    for directory, folders, files in os.walk(top):
        for path in (Path(directory) / name for name in (*folders, *files)):
            name = path.relative_to(top).as_posix()
            if name.startswith(without or ("\0",)):
                continue
            # What goes while it is looked at is not there.
            with contextlib.suppress(FileNotFoundError):
                found[name] = _described(path)
    return dict(sorted(found.items()))


def _described(path: Path) -> str:
    entry = path.lstat()
    kind = stat.filemode(entry.st_mode)
    if stat.S_ISLNK(entry.st_mode):
        return f"{kind} -> {os.readlink(path)}"  # noqa: PTH115
    return kind if stat.S_ISDIR(entry.st_mode) else f"{kind} {entry.st_size}"


def modules(host: Host) -> dict[str, dict[str, object]]:
    """The loaded modules of the driver, and who holds them."""
    found: dict[str, dict[str, object]] = {}
    for name in host.modules():
        top = host.path(f"/sys/module/{name}")
        found[name] = {
            "version": (top / "version").read_text().strip(),
            "state": (top / "initstate").read_text().strip(),
            "references": (top / "refcnt").read_text().strip(),
            "holders": sorted(path.name for path in (top / "holders").iterdir()),
        }
    return found


def linker(host: Host) -> dict[str, object]:
    """Our linker configuration, and where the linker finds the driver's libraries."""
    place = host.path("/etc/ld.so.conf.d")
    cache = host.run("ldconfig", "-p", check=True).out
    return {
        "configuration": {
            path.name: path.read_text() for path in sorted(place.iterdir()) if "nvidiad" in path.name
        },
        "cache": sorted(re.findall(r"^\t(?:libcuda|libnvidia)\S* .*=> (\S+)", cache, re.MULTILINE)),
    }


def _attempts(host: Host, path: str) -> object:
    if not host.exists(path):
        return "absent"
    memory = json.loads(host.read(path))
    return {"last-good": memory["last-good"], "attempts": memory["attempts"]}


def end_state(host: Host, *, engine: bool = True) -> dict[str, object]:
    """Everything that must come out the same, whatever happened on the way, as plain data."""
    shown = host.run("systemctl", "show", "-p", "Id,ActiveState,SubState,Job", *UNITS, check=True).out
    units: dict[str, str] = {}
    for block in shown.strip().split("\n\n"):
        fields = dict(line.split("=", 1) for line in block.splitlines())
        units[fields["Id"]] = (
            f"{fields['ActiveState']} {fields['SubState']}{' job' if fields.get('Job') else ''}"
        )
    mounts = [line.split() for line in host.read("/proc/1/mountinfo").splitlines()]
    return {
        "modules": modules(host),
        "told": host.read("/proc/driver/nvidia/version").splitlines()[0] if host.modules() else "",
        "trees": listing(host.path("/opt/nvidia"), without=(".lock",)),
        "nodes": nodes(host),
        "linker": linker(host),
        "firmware": host.read("/sys/module/firmware_class/parameters/path").strip("\n\0"),
        "overlays": sorted(" ".join(m[4:5] + m[-3:]) for m in mounts if "nvidia" in m),
        "units": units,
        "failed": host.run("systemctl list-units --failed --plain --no-legend").out,
        "memory": _attempts(host, "/var/lib/nvidiad/memory.json"),
        "activation": _attempts(host, "/run/nvidiad/activation.json"),
        "state": sorted(listing(host.path("/var/lib/nvidiad"))),
        "runtime": sorted(listing(host.path("/run/nvidiad"))),
        "gates": {
            name: kind
            for name, kind in listing(host.path("/etc/systemd/system")).items()
            if ".d/" in name and "nvidia.conf" in name
        },
        "containers": host.run("docker", "ps", "-aq", check=True).out if engine and has_engine(host) else "",
    }


def has_engine(host: Host) -> bool:
    """Whether a container engine is on the host."""
    return host.exists("/run/docker.sock")


# What is in the registry is gone, for it as for those who ask it.
FORGET = "rm -rf /var/registry/docker"


def strip(host: Host) -> None:
    """Take from a running host everything that nvidiad ever brought, and from its registry every image."""
    host.systemctl("stop", "nvidiad.service", "nvidiad.socket", "kubelet.service")
    host.systemctl("stop", "nvidia.service")
    host.engine_start()
    gone = "/opt/nvidia/* /opt/nvidia /var/lib/nvidiad/* /run/nvidiad/activation.json /run/witness /run/fail"
    host.run(f"{FORGET}; docker system prune -af >&2; rm -rf {gone}", check=True)
    host.systemctl("reset-failed")
    host.registry_start("plain")


def rewind(host: Host, *, trees: bool) -> None:
    """Back to where the road begins; with `trees`, to where activation begins."""
    units = "nvidiad.service nvidiad.socket kubelet.service nvidia-persistenced.service nvidia.service"
    host.run(
        f"""
        rm -f /run/kill-*
        systemctl stop {units}; systemctl reset-failed
        /opt/nvidiad/bin/nvidiad deactivate 2>/dev/null
        docker ps -aq | xargs -r docker rm -f
        rm -rf /run/witness /run/nvidiad/activation.json /var/lib/nvidiad/*
        rm -f /opt/nvidia/current /opt/nvidia/.current*
        """
    )
    if not trees:
        host.run(
            """
            docker images -q | xargs -r docker rmi -f
            rm -rf /opt/nvidia /etc/systemd/system/kubelet.service.d/*10-nvidia.conf*
            systemctl daemon-reload
            """
        )


# What lies in the place of a tree and is none, and what is left of work that was not finished.
_SURVEY = """
import json, os
from pathlib import Path
from nvidiad.nouns.errors import Failure
from nvidiad.world.trees import Trees
found = {"trees": [], "half": [], "partial": [], "current": None}
trees = Trees(Path("/opt"))
for place in sorted(Path("/opt/nvidia").glob("[0-9]*/*")) if Path("/opt/nvidia").is_dir() else ():
    if not place.is_dir() or not (place / "manifest.json").exists() and not any(place.iterdir()):
        continue
    try:
        trees.verify(str(place), trees.manifest(str(place)).build)
        found["trees"].append(str(place))
    except Failure as failure:
        found["half"].append(f"{place}: {failure}")
found["partial"] = [str(path) for path in Path("/opt/nvidia").glob("*/.*.partial")]
link = Path("/opt/nvidia/current")
if link.is_symlink():
    found["current"] = os.path.realpath(link)
print(json.dumps(found))
"""


def survey(host: Host) -> dict[str, Any]:
    """The trees on disk, verified file by file: those that are whole, those that are not, what is left."""
    found: dict[str, Any] = host.run("/opt/nvidiad/bin/python3", "-c", _SURVEY, check=True).json()
    return found


def assert_nothing_half(host: Host) -> None:
    """A tree is complete, or it is not there; the driver in the kernel has its own."""
    found = survey(host)
    assert found["half"] == [] and found["partial"] == [], found
    if host.modules():
        assert found["current"] in found["trees"], found


def clock(host: Host) -> str:
    """Now, as `docker events` takes it."""
    return host.run("date", "+%s.%N", check=True).out.strip()


def engine_events(host: Host, event: str, since: str) -> str:
    """What the engine did since then; a relative end leaves out what happened in this second."""
    command = ("docker", "events", f"--since={since}", f"--until={clock(host)}", f"--filter=event={event}")
    return host.run(*command, check=True).out

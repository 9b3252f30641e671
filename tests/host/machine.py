# SPDX-License-Identifier: Apache-2.0
"""A disposable machine: real systemd as PID 1 of its own namespaces, with a disk that survives reboots."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.beds.common import BedError, host_root, host_venv, run_checked
from tests.host import registry, standins
from tests.host.layout import ENVIRONMENT, KUBELET, MASKED, SYSTEMD, UPDATE_ENGINE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

BOOT = Path(__file__).parent / "boot"
RELEASE = ("3975.2.0", "6.1.0-56-flatcar")
GPU = ("0000:01:00.0", "20b5")


class CommandError(AssertionError):
    """A command inside the host did not end as the test needed."""


@dataclass(frozen=True)
class Result:
    """What came of one command inside the host."""

    argv: tuple[str, ...]
    rc: int
    out: str
    err: str
    seconds: float

    def check(self) -> Result:
        if self.rc != 0:
            said = f"{self.out[-2000:]}{self.err[-4000:]}"
            raise CommandError(
                f"{shlex.join(self.argv)} ended with {self.rc} after {self.seconds:.1f} s:\n{said}"
            )
        return self

    def json(self) -> Any:
        return json.loads(self.out)


class Machine:
    """One machine of a unique name; `workdir` is its disk and must not be on an overlay file system."""

    def __init__(self, name: str, suite: str, workdir: Path) -> None:
        self.name = name
        self.suite = suite
        self.dir = workdir
        self.disk = workdir / "upper"
        self._root = host_root(suite)
        self._supervisor: subprocess.Popen[bytes] | None = None
        top = subprocess.run(
            ["findmnt", "-nt", "cgroup2", "-o", "TARGET"], capture_output=True, text=True, check=False
        )
        if not top.stdout.strip():
            raise BedError("this machine has no cgroup2 mount, which systemd in the host needs")
        self._cgroup_top = Path(top.stdout.split()[0])
        self._cgroup = self._cgroup_top / f"bed-{name}"

    # -- life -------------------------------------------------------------------------------------------

    def up(
        self,
        release: tuple[str, str] = RELEASE,
        *,
        docker: bool = True,
        gpu: bool = True,
        registries: Sequence[str] = ("plain",),
        update_engine: bool = True,
        engine_settings: Mapping[str, object] | None = None,
        venv: bool = True,
        packages: bool = False,
        provision: Sequence[str] = (),
        states: Sequence[str] = ("running",),
    ) -> Self:
        """Boot for the first time, on a fresh disk; to one of these states, so as a rule nothing may fail.

        Without `venv` there is no /opt/nvidiad; with `packages` /usr is writable. `provision` is a command
        of this machine that runs before the first boot, in the directory that will be the host's root.
        """
        if self._supervisor is not None:
            raise BedError(f"{self.name} is up already")
        shutil.rmtree(self.dir, ignore_errors=True)
        for part in (
            "root",
            "upper",
            "work",
            "venv-upper",
            "venv-work",
            "disk/opt",
            "disk/docker",
            "disk/containerd",
        ):
            (self.dir / part).mkdir(parents=True)
        (self.dir / "boots").write_text("0\n")
        (self.dir / "pid").write_text("")
        (self.dir / "gpus").write_text(" ".join(GPU) + "\n" if gpu else "")
        self.update(*release)
        wanted = ["kubelet.service", *(f"registry@{registry.PORTS[kind]}.service" for kind in registries)]
        wanted += ["docker.service"] if docker else []
        wanted += ["update-engine.service"] if update_engine else []
        self._lay_out(wanted, engine_settings or {})
        if docker:
            self._link(
                "etc/systemd/system/sockets.target.wants/docker.socket", "/lib/systemd/system/docker.socket"
            )
        if provision:
            self._provision(provision)
        self._sweep_cgroup()
        settings = {
            "BED_DIR": str(self.dir),
            "BED_ROOT": str(self._root),
            "BED_VENV": str(host_venv(self.suite)) if venv else "",
            "BED_PACKAGES": "yes" if packages else "",
            "BED_STANDINS": str(standins.programs()),
            "BED_CGROUP": str(self._cgroup),
            "BED_CGROUP_TOP": str(self._cgroup_top),
        }
        # The host must not outlive the test run, however that ends.
        command = ["setpriv", "--pdeathsig", "KILL", str(BOOT / "supervise.sh")]
        with (self.dir / "console").open("ab") as console:
            self._supervisor = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **settings},
            )
        state = self.wait_up(after=0)
        if state not in states:
            failed = self.run(
                "systemctl --failed --plain --no-legend; journalctl -b -p warning --no-pager | tail -30"
            )
            raise BedError(f"{self.name} came up {state}:\n{failed.out}")
        return self

    def down(self) -> None:
        """Cut the power, and remove the disk."""
        if self._supervisor is not None:
            (self.dir / "again").unlink(missing_ok=True)
            self._signal_init(signal.SIGKILL)
            self._supervisor.wait(20)
            self._supervisor = None
        self._sweep_cgroup()
        shutil.rmtree(self.dir, ignore_errors=True)

    def update(self, version: str, kernel: str) -> None:
        """The OS version and kernel release that the next boot shows."""
        (self.dir / "os").write_text(f"{version} {kernel}\n")

    def reboot(self, timeout: float = 60) -> str:
        """A real `systemctl reboot`; the state (running, degraded) that the next boot comes to."""
        before = self.boots
        self.run("systemctl", "reboot", check=False)
        return self.wait_up(after=before, timeout=timeout)

    def power_cut(self, timeout: float = 60) -> str:
        """Kill PID 1 (and with it everything) without a word, and boot again from what the disk holds."""
        before = self.boots
        (self.dir / "again").touch()
        self._signal_init(signal.SIGKILL)
        return self.wait_up(after=before, timeout=timeout)

    def wait_up(self, *, after: int, timeout: float = 60) -> str:
        """Wait until a boot later than number `after` has finished; what is-system-running then says."""
        deadline = time.monotonic() + timeout
        while True:
            if (
                self.boots > after
                and self._pid
                and Path(f"/proc/{self._pid}/root/run/systemd/private").is_socket()
            ):
                break
            ended = self._supervisor is None or self._supervisor.poll() is not None
            if ended or time.monotonic() > deadline:
                console = (self.dir / "console").read_text(errors="replace")[-2000:]
                raise BedError(f"{self.name} {'ended' if ended else 'did not boot'}:\n{console}")
            time.sleep(0.02)
        left = max(1.0, deadline - time.monotonic())
        return self.run("systemctl", "is-system-running", "--wait", timeout=left).out.strip()

    @property
    def boots(self) -> int:
        return int((self.dir / "boots").read_text() or 0)

    @property
    def python(self) -> str:
        """The directory name of this host's Python, as in python3.11."""
        return next(path.name for path in (host_venv(self.suite) / "lib").glob("python3*"))

    # -- commands and files -----------------------------------------------------------------------------

    def run(
        self,
        *argv: str,
        timeout: float = 60,
        check: bool = False,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Result:
        """Run a program (several arguments) or a shell line (one); killed with its children when late."""
        begun = time.monotonic()
        feed = subprocess.DEVNULL if stdin is None else subprocess.PIPE
        with self.popen(*argv, stdin=feed, env=env) as process:
            try:
                out, err = process.communicate(stdin, timeout)
            except subprocess.TimeoutExpired:
                self.end(process)
                out, err = process.communicate()
                raise CommandError(
                    f"{shlex.join(argv)} still ran after {timeout} s:\n{out[-2000:]}{err[-2000:]}"
                ) from None
        result = Result(argv, process.returncode, out, err, time.monotonic() - begun)
        return result.check() if check else result

    def popen(
        self,
        *argv: str,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """Start a program inside; `end` stops it, with its children, and so does the end of the host."""
        command = list(argv) if len(argv) > 1 else ["bash", "-c", argv[0]]
        enter = ["nsenter", "-t", str(self._init()), "-m", "-u", "-i", "-n", "-p", "-C", "--", "env", "-i"]
        enter += [f"{key}={value}" for key, value in {**ENVIRONMENT, **(env or {})}.items()]
        # Into the host's cgroup first: a process of the host is in no unit of this machine.
        join = 'echo $$ >"$1" && shift && exec "$@"'
        return subprocess.Popen(
            ["sh", "-c", join, "sh", str(self.processes), *enter, *command],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            text=True,
            errors="replace",
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """The host's init, as this machine numbers it."""
        return self._init()

    @property
    def processes(self) -> Path:
        """The cgroup.procs file that makes a process one of the host's."""
        procs = self._cgroup / "exec/cgroup.procs"
        procs.parent.mkdir(exist_ok=True)
        return procs

    def end(self, process: subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
        """Stop what `popen` started, children included."""
        deadline = time.monotonic() + 60
        while True:
            ended = process.poll() is not None
            # Not nsenter: what it started would be left to this machine's PID 1, which may reap late, and
            # the host's PID namespace cannot end before that.  When that is gone, it ends by itself.
            for pid in self._children(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            if ended or number != signal.SIGKILL:
                return
            # It may not have started anything yet, and what is killed may just have had a child.
            if time.monotonic() > deadline:
                raise CommandError(f"{process.args!r} cannot be killed")
            time.sleep(0.02)

    def _children(self, first: int) -> set[int]:
        """What descends from a process, or is of the session that it leads."""
        parents, found = {}, set[int]()
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                pid, fields = int(stat.parent.name), stat.read_text().rpartition(")")[2].split()
                parents[pid] = int(fields[1])
                if int(fields[3]) == first:
                    found.add(pid)
        family = {first, *found}
        while grown := {pid for pid, parent in parents.items() if parent in family} - family:
            family |= grown
        return family - {first}

    def path(self, inside: str) -> Path:
        """Where this machine sees a path of the host in this boot; absolute symlinks lead astray."""
        return Path(f"/proc/{self._init()}/root") / inside.lstrip("/")

    def write(self, path: str, text: str | bytes, mode: int = 0o644) -> None:
        target = self.path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text.encode() if isinstance(text, str) else text)
        target.chmod(mode)

    def read(self, path: str) -> str:
        return self.path(path).read_text(errors="replace")

    def exists(self, path: str) -> bool:
        return os.path.lexists(self.path(path))

    def put(self, source: Path, path: str) -> None:
        """Copy a file or a directory of this machine into the host."""
        target = self.path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
        else:
            shutil.copy2(source, target)

    def wait(self, condition: Callable[[], object], what: str, timeout: float = 60) -> float:
        """Wait until the condition holds; the seconds that took."""
        begun = time.monotonic()
        while not condition():
            if time.monotonic() - begun > timeout:
                raise CommandError(f"waited {timeout} s for this in vain: {what}")
            time.sleep(0.03)
        return time.monotonic() - begun

    # -- systemd ----------------------------------------------------------------------------------------

    def journal(self, unit: str = "", *, boot: str = "0") -> list[dict[str, Any]]:
        """Journal entries as journald has them; __MONOTONIC_TIMESTAMP is in microseconds."""
        # journald may be behind what it was sent.
        self.run("journalctl", "--sync", check=True)
        command = ["journalctl", "--no-pager", "-o", "json", "--all", f"--boot={boot}"]
        shown = self.run(*command, *(["-u", unit] if unit else []), check=True)
        return [json.loads(line) for line in shown.out.splitlines()]

    def show(self, unit: str, name: str) -> str:
        return self.run("systemctl", "show", "--value", "-p", name, unit, check=True).out.strip()

    def state(self, unit: str) -> str:
        return self.show(unit, "ActiveState")

    def kill(self, unit: str, number: int = signal.SIGKILL, *, whom: str = "all") -> None:
        self.run("systemctl", "kill", f"--signal={int(number)}", f"--kill-whom={whom}", unit, check=True)

    def systemctl(self, *arguments: str, check: bool = True, timeout: float = 60) -> Result:
        return self.run("systemctl", *arguments, check=check, timeout=timeout)

    # -- what a host is made of -------------------------------------------------------------------------

    def _provision(self, command: Sequence[str]) -> None:
        layers = f"lowerdir={self._root},upperdir={self.disk},workdir={self.dir}/work"
        lines = [
            shlex.join(["mount", "-t", "overlay", "overlay", "-o", layers, f"{self.dir}/root"]),
            f"cd {shlex.quote(str(self.dir))}/root; mkdir -p opt; mount --bind ../disk/opt opt",
            shlex.join(["exec", *command]),
        ]
        private = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", "\n".join(lines)]
        run_checked(private, f"provisioning {self.name}")

    def _lay_out(self, wanted: Sequence[str], engine_settings: Mapping[str, object]) -> None:
        files = {
            # An empty one would mean a first boot, with presets.
            "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
            "etc/hostname": "nvhost\n",
            "etc/hosts": "127.0.0.1 localhost nvhost\n10.99.0.1 reg.test\n",
            "etc/bed/update_engine.py": (standins.SOURCES / "update_engine.py").read_text(),
            "etc/bed/oci-runtime": (standins.SOURCES / "oci-runtime.sh").read_text(),
            "etc/dbus-1/system.d/com.coreos.update1.conf": (
                standins.SOURCES / "com.coreos.update1.conf"
            ).read_text(),
            "etc/docker/daemon.json": json.dumps({**self._engine_defaults(), **engine_settings}),
            "etc/systemd/system/kubelet.service": KUBELET,
            "etc/systemd/system/update-engine.service": UPDATE_ENGINE,
            "etc/systemd/system.conf.d/bed.conf": SYSTEMD,
        }
        for path, text in files.items():
            target = self.disk / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        (self.disk / "etc/bed/oci-runtime").chmod(0o755)
        registry.lay_out(self.disk)
        for unit in MASKED:
            self._link(f"etc/systemd/system/{unit}", "/dev/null")
        for unit in wanted:
            template = unit.replace("@" + unit.rpartition("@")[2], "@.service") if "@" in unit else unit
            place = "/lib/systemd/system" if unit == "docker.service" else "/etc/systemd/system"
            self._link(f"etc/systemd/system/multi-user.target.wants/{unit}", f"{place}/{template}")

    def _engine_defaults(self) -> dict[str, object]:
        bounding = next(
            line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapBnd")
        )
        if int(bounding.split()[1], 16) >> 24 & 1:  # CAP_SYS_RESOURCE
            return {}
        return {"runtimes": {"bed": {"path": "/etc/bed/oci-runtime"}}, "default-runtime": "bed"}

    def _link(self, path: str, target: str) -> None:
        link = self.disk / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(target)

    @property
    def _pid(self) -> int:
        return int((self.dir / "pid").read_text() or 0)

    def _init(self) -> int:
        pid = self._pid if self._supervisor is not None else 0
        if not pid:
            raise BedError(f"{self.name} is not up")
        return pid

    def _signal_init(self, number: int) -> None:
        if self._pid:
            try:
                os.kill(self._pid, number)
            except ProcessLookupError:
                return

    def _sweep_cgroup(self) -> None:
        """Remove the host's cgroups, which its processes leave a moment after they die."""
        for _ in range(100):
            for directory, _, _ in os.walk(self._cgroup, topdown=False):
                try:
                    Path(directory).rmdir()
                except OSError:
                    break
            if not self._cgroup.exists():
                return
            time.sleep(0.02)

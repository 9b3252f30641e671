# SPDX-License-Identifier: Apache-2.0
"""A workshop on this machine: a real Docker engine and a real registry that nobody else uses."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from nvidiad.image.world.engine import Engine
from tests.beds.common import CHECKOUT, BedError, locked, require, run_checked
from tests.payload import image as payload

if TYPE_CHECKING:
    from collections.abc import Callable

BASE = "workshop/base:busybox"
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_ENGINE_SECONDS = 120
_TOP, _PREFIX = "/var/tmp", "nvidiad-workshop-"
_RUNTIME = CHECKOUT / "tests/host/standin/oci-runtime.sh"


class Workshop:
    """dockerd, containerd and docker-registry of its own, in a directory that goes with it.

    All of them die with the test process, however that ends.
    """

    def __init__(self) -> None:
        with locked("workshop"):
            _sweep()
            self.dir = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_TOP))
            # Held for as long as this process lives; where nobody does, a killed one has left its directory.
            self._lock = (self.dir / "lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.socket = self.dir / "docker.sock"
        self.registry = f"127.0.0.1:{_free_port()}"
        self.engine = Engine(str(self.socket))
        self._children: list[subprocess.Popen[bytes]] = []

    def open(self) -> Self:
        """Start everything, and make the BusyBox image `BASE`; there is no registry to pull one from."""
        if os.geteuid() != 0:
            raise BedError("a workshop needs root: it starts a Docker engine")
        require("docker.io", "runc", "docker-registry", "busybox-static")
        try:
            self._start_registry()
            self._start_engine()
            self._make_base()
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """End what was started, and leave nothing: no process, no mount, no file."""
        for child in reversed(self._children):
            child.terminate()
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
                child.wait(20)
        self._children.clear()
        _remove(self.dir)
        self._lock.close()

    def docker(self, *arguments: str) -> str:
        """Run the docker command line against this engine; what it printed."""
        return run_checked(
            ["/usr/bin/docker", "--host", f"unix://{self.socket}", *arguments],
            f"docker {' '.join(arguments)}",
            HOME=str(self.dir),
        )

    def log(self, name: str = "dockerd") -> str:
        """What a program of the workshop has said: dockerd or docker-registry."""
        return (self.dir / f"{name}.log").read_text(errors="replace")

    def _start_registry(self) -> None:
        configuration = self.dir / "registry.yml"
        storage = {"filesystem": {"rootdirectory": str(self.dir / "registry")}, "delete": {"enabled": True}}
        storage["maintenance"] = {"uploadpurging": {"enabled": False}}
        settings = {
            "version": 0.1,
            "log": {"level": "warn"},
            "storage": storage,
            "http": {"addr": self.registry},
        }
        configuration.write_text(json.dumps(settings))  # YAML holds JSON
        self._start("docker-registry", ["/usr/bin/docker-registry", "serve", str(configuration)])
        host, _, port = self.registry.partition(":")
        self._wait("docker-registry", lambda: _listens((host, int(port))))

    def _start_engine(self) -> None:
        settings: dict[str, object] = {
            "data-root": str(self.dir / "data"),
            "exec-root": str(self.dir / "exec"),
            "pidfile": str(self.dir / "docker.pid"),
            "hosts": [f"unix://{self.socket}"],
            "bridge": "none",
            "iptables": False,
            "ip6tables": False,
            "containerd-namespace": f"workshop-{os.getpid()}",
            "containerd-plugins-namespace": f"workshop-plugins-{os.getpid()}",
        }
        if not _may_raise_limits():
            settings |= {"runtimes": {"bed": {"path": str(_RUNTIME)}}, "default-runtime": "bed"}
        configuration = self.dir / "daemon.json"
        configuration.write_text(json.dumps(settings))
        # One of its own: the containerd at the usual place may be somebody else's.
        self._start("containerd", ["/usr/bin/containerd", "--config", str(self._containerd())])
        address = str(self.dir / "containerd.sock")
        self._wait("containerd", lambda: _listens(address))
        command = ["/usr/sbin/dockerd", f"--config-file={configuration}", f"--containerd={address}"]
        self._start("dockerd", command)
        self._wait("dockerd", lambda: _listens(str(self.socket)) and self._answers())

    def _containerd(self) -> Path:
        path = self.dir / "containerd.toml"
        path.write_text(
            f'version = 2\nroot = "{self.dir}/containerd"\nstate = "{self.dir}/containerd-state"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\naddress = "{self.dir}/containerd.sock"\n'
            f'[ttrpc]\naddress = "{self.dir}/containerd.sock.ttrpc"\n'
        )
        return path

    def _start(self, name: str, command: list[str]) -> None:
        with (self.dir / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={"PATH": _PATH, "HOME": str(self.dir), "TMPDIR": str(self.dir)},
            )
        self._children.append(child)

    def _wait(self, name: str, ready: Callable[[], bool]) -> None:
        """Until a program answers; its log is the reason where it does not."""
        deadline = time.monotonic() + _ENGINE_SECONDS
        while not ready():
            if self._children[-1].poll() is not None or time.monotonic() > deadline:
                raise BedError(f"{name} of the workshop did not come up:\n{self.log(name)[-3000:]}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        # Only a started engine answers this; before, its socket takes connections and holds them.
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(5)
            try:
                probe.connect(str(self.socket))
                probe.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
                return b"200 OK" in probe.recv(100)
            except OSError:
                return False

    def _make_base(self) -> None:
        archive = self.dir / "base.tar"
        archive.write_bytes(payload.base_tar())
        self.engine.import_tree(archive, BASE, {})
        archive.unlink()


def _may_raise_limits() -> bool:
    """Whether this machine may give containers CAP_SYS_RESOURCE, as --privileged wants."""
    status = Path("/proc/self/status").read_text().splitlines()
    bounding = next(line for line in status if line.startswith("CapBnd"))
    return bool(int(bounding.split()[1], 16) >> 24 & 1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(address: str | tuple[str, int]) -> bool:
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as probe:
        return probe.connect_ex(address) == 0


def _sweep() -> None:
    """Remove the directories of workshops whose process was killed."""
    for left in Path(_TOP).glob(f"{_PREFIX}*/lock"):
        with left.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            _remove(left.parent)


def _remove(top: Path) -> None:
    for point in _mounts_below(top):
        subprocess.run(["umount", "--lazy", point], check=False)
    shutil.rmtree(top, ignore_errors=True)


def _mounts_below(top: Path) -> list[str]:
    """Mount points below a directory, the deepest first."""
    listed = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return sorted((point for point in listed if point.startswith(f"{top}/")), reverse=True)

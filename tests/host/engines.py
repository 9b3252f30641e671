# SPDX-License-Identifier: Apache-2.0
"""Real engines (Debian 12's, Debian 13's, its containerd store) that nvidiad's own code is let loose on."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.beds.common import CHECKOUT
from tests.host.bed import Host

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, Mapping

# What an engine's words or its image store may make different is tried on all of them, the rest on one.
EVERYWHERE = pytest.mark.parametrize("shared", ["bookworm", "trixie", "trixie-containerd"], indirect=True)
ONCE = pytest.mark.parametrize("shared", ["trixie"], indirect=True)
PLAIN, TLS, AUTH = "127.0.0.1:5000", "reg.test:5443", "reg.test:5444"
NOWHERE = "sha256:" + "0" * 64
BLOBS = "/var/registry/docker/registry/v2/blobs/sha256"
# The real installer has tests of its own: this one only does what a test writes where trees are installed.
PLACE = "/opt/nvidia"
DOCKERFILE = """FROM scratch
COPY busybox /bin/sh
COPY first /
COPY second /
LABEL io.nvidiad.driver={label}
ENTRYPOINT ["/bin/sh", "-c", \\
  "cd /rootfs${{NVIDIAD_ROOT:-/opt}}/nvidia; echo . >>runs; echo r=$NVIDIAD_ROOT; . ./act; echo end"]
"""
# What waits until a test calls `go`, and what says before that it does.
WAITING = "while [ ! -e go ]; do sleep .1; done"
BEGUN = f"echo begun; {WAITING}"
# Of the image of 36 MiB; over the slow network there are seconds to come.
MIDDLE = 2 << 20
SCRIPT = """
import json, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from nvidiad.nouns.errors import Failure
from nvidiad.world.images import DockerImages, Timeouts

task = json.loads(sys.argv[1])
auth = Path(task["auth"]) if "auth" in task else None
more = {"root": Path(task["install"]), "bandwidth": task["bandwidth"]} if "bandwidth" in task else {}
images = DockerImages(task["socket"], auth, Timeouts(5, task["stall"], task["total"]), **more)
moments, told, out, begun = [], [], {"code": "", "sentence": "", "lines": []}, time.monotonic()


def tell(progress):
    told.append(progress.done)
    if progress.done > max([*told[:-1], 0]):
        moments.append((time.monotonic(), progress.done))
    out["last"] = progress.detail
    if "bandwidth limit" in progress.detail:
        out["unlimited"] = progress.detail
    if progress.step == "install-tree":
        out["lines"].append(progress.detail)
        print(progress.detail, file=sys.stderr, flush=True)


def listening():
    # The sockets at which this process can be reached.
    fields = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    waiting = {f"socket:[{each[9]}]" for each in fields if each[3] == "0A"}
    held = [fd.readlink() for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    return sum(str(one) in waiting for one in held)


def work():
    out["digest"] = digest = task["digest"] or images.resolve(task["reference"])
    if "pull" in task["verbs"]:
        images.pull(task["reference"], digest, tell, gentle=task["gentle"])
        out["pulled"], out["listening"] = time.monotonic() - begun, listening()
    if "labels" in task["verbs"]:
        out["labels"] = images.labels(task["reference"], digest)
    if "install" in task["verbs"]:
        trees = SimpleNamespace(root=Path(task["root"]))
        images.install(task["reference"], digest, trees, tell, gentle=task["gentle"])
    if "discard" in task["verbs"]:
        images.discard(task["reference"], digest)


try:
    # As the daemon does it: a worker that the interpreter waits for when it ends.
    with ThreadPoolExecutor(1) as worker:
        worker.submit(work).result()
except Failure as failure:
    out |= {"code": failure.code, "sentence": failure.sentence}
    out |= {"remedy": failure.remedy, "retry": failure.retry}
out |= {"seconds": time.monotonic() - begun, "told": len(told), "bytes": max([*told, 0])}
if len(moments) > 1:
    out["rate"] = (moments[-1][1] - moments[0][1]) / (moments[-1][0] - moments[0][0])
print(json.dumps(out))
"""


@dataclass
class Bed:
    """A host whose engine has no images, the image that its registry has, and nvidiad's side of it."""

    host: Host
    store: str
    digest: str
    layer: str
    """The digest of the image's largest layer."""
    timers: list[threading.Thread] = field(default_factory=list)

    def command(self, reference: str, *verbs: str, **task: Any) -> list[str]:
        given: dict[str, Any] = {"reference": reference, "verbs": verbs, "digest": "", "root": "/opt"}
        given |= {"socket": "/run/docker.sock", "stall": 10, "total": 60, "gentle": False, **task}
        return ["/opt/nvidiad/bin/python3", "/etc/bed/images.py", json.dumps(given)]

    def act(
        self, reference: str, *verbs: str, env: Mapping[str, str] | None = None, **task: Any
    ) -> dict[str, Any]:
        """Let nvidiad's code act inside the host; its interpreter must end soon after the work does."""
        command = self.command(reference, *verbs, **task)
        result = self.host.run(*command, timeout=120, check=True, env=env)
        return self._done(result.out, result.seconds)

    def install(self, then: Callable[[], object]) -> dict[str, Any]:
        """As `act`, with an installer that is BEGUN: as soon as nvidiad hears so, `then` is done."""
        since = time.monotonic()
        with self.host.popen(*self.command(f"{PLAIN}/nv:1", "install", digest=self.digest)) as process:
            try:
                # Of an installer that it adopts it hears what that has printed before.
                wait_begun(process)
                then()
                out, err = process.communicate(timeout=120)
            finally:
                self.host.end(process)
        assert process.returncode == 0, err
        return self._done(out, time.monotonic() - since)

    @staticmethod
    def _done(out: str, seconds: float) -> dict[str, Any]:
        done: dict[str, Any] = json.loads(out)
        # More than a busy machine takes for the start of an interpreter.
        assert seconds < done["seconds"] + 30
        return done

    def installer(self, text: str) -> None:
        for root in ("/opt", "/var/opt"):
            self.host.write(f"{root}/nvidia/act", text + "\n")
        for name in ("runs", "go"):
            self.host.path(f"{PLACE}/{name}").unlink(missing_ok=True)

    def go(self) -> None:
        """Let an installer that waits for it end."""
        self.host.write(f"{PLACE}/go", "")

    def runs(self) -> int:
        return len(self.host.read(f"{PLACE}/runs").splitlines())

    def containers(self) -> str:
        return self.host.run("docker ps -aq", check=True).out

    def images(self) -> list[str]:
        shown = self.host.run(
            "docker images -a --digests --format '{{.Repository}} {{.Digest}}'", check=True
        ).out
        return shown.splitlines()

    def clean(self) -> None:
        self.host.run(
            "docker rm -f $(docker ps -aq); docker rmi -f $(docker images -aq); docker system prune -af"
        )

    def fresh(self) -> Bed:
        """As before the first test."""
        self.clean()
        self.timers.clear()
        self.installer("")
        return self

    def later(self, seconds: float, action: Callable[[], object]) -> None:
        timer = threading.Timer(seconds, action)
        self.timers.append(timer)
        timer.start()

    def in_mid_pull(self, action: Callable[[], object]) -> None:
        """Do something, beside the test, when a part of the image has come over the slow network."""

        def come() -> bool:
            # The network's word, as each store tells in its own way what has come.
            shown = self.host.run("tc", "-s", "qdisc", "show", "dev", "lo", check=True).out
            sent = re.search(r"Sent (\d+) bytes", shown)
            return sent is not None and int(sent[1]) > MIDDLE

        def work() -> None:
            self.host.wait(come, "bytes come")
            action()

        thread = threading.Thread(target=work)
        self.timers.append(thread)
        thread.start()

    def forget(self) -> None:
        """The containerd store keeps blobs and snapshots for a while after their image is removed."""
        if self.store:
            self.host.engine_stop()
            self.host.systemctl("stop", "containerd.service")
            self.host.run("rm -rf /var/lib/containerd/* /var/lib/docker/*", check=True)
            self.host.engine_start()

    @contextmanager
    def slow_network(self) -> Iterator[None]:
        """5 MB/s from the registries, so that there is a middle of a pull."""
        self.forget()
        self.host.run("tc qdisc add dev lo root tbf rate 40mbit burst 512k limit 8m", check=True)
        try:
            yield
        finally:
            for timer in self.timers:
                timer.join()
            self.host.run("tc qdisc del dev lo root", check=True)


def wait_begun(process: subprocess.Popen[str]) -> None:
    """Wait until nvidiad, let loose with an installer that is BEGUN, tells what that says first."""
    assert process.stderr is not None
    while process.stderr.readline().strip() != "begun":
        assert process.poll() is None


@contextmanager
def running(kind: str) -> Iterator[Bed]:
    """A bed with one of the engines."""
    suite, _, store = kind.partition("-")
    directory = Path(tempfile.mkdtemp(prefix="nvidiad-images-", dir="/var/tmp"))
    host = Host(f"images-{os.getpid()}-{kind}", suite, directory / "host")
    # The engine's own five attempts take more than 80 seconds.
    settings: dict[str, object] = {"max-download-attempts": 2}
    if store:
        settings["features"] = {"containerd-snapshotter": True}
    try:
        host.up(
            gpu=False, update_engine=False, registries=("plain", "tls", "auth"), engine_settings=settings
        )
        host.put(CHECKOUT / "nvidiad", f"/opt/nvidiad/lib/{host.python}/site-packages/nvidiad")
        host.write("/etc/bed/images.py", SCRIPT)
        # These tests start and stop the engine more often than systemd takes for sane.
        for unit in ("docker.service", "docker.socket", "containerd.service"):
            often = f"/etc/systemd/system/{unit}.d/often.conf"
            host.write(often, "[Unit]\nStartLimitIntervalSec=0\n")
        host.systemctl("daemon-reload")
        files = {"first": os.urandom(4 << 20), "second": os.urandom(32 << 20)}
        digest = host.image(f"{PLAIN}/nv:1", files, DOCKERFILE.format(label="535.309.01"))
        manifest = json.loads(host.read(f"{BLOBS}/{digest[7:9]}/{digest[7:]}/data"))
        layer = max(manifest["layers"], key=lambda layer: layer["size"])["digest"]
        yield Bed(host, store, digest, layer)
    finally:
        host.down()
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def damaged(bed: Bed, digest: str, command: str) -> Iterator[None]:
    """A blob of the registry with a command done to it; $f is the file."""
    blob = f"{BLOBS}/{digest[7:9]}/{digest[7:]}/data"
    bed.host.run(f"f={blob}; cp $f /var/tmp/kept; {command}", check=True)
    try:
        yield
    finally:
        bed.host.run(f"cp /var/tmp/kept {blob}", check=True)

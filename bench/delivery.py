# SPDX-License-Identifier: Apache-2.0
"""(g) An image of 500 MB, from the registry to a verified tree: by nvidiad itself, and by Docker."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.host import PYTHON
from bench.report import Figure, Part
from nvidiad.nouns import manifest as manifests
from nvidiad.nouns.entries import FileEntry
from nvidiad.nouns.value import replace
from tests.beds.common import run_checked
from tests.host import road
from tests.payload import image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.host.bed import Host

TITLE = "an image of 500 MB becomes a tree, host bed, registry on the same machine"
MEGABYTES, FILES = 500, 50
MEMORY = 64.0
WRITTEN = 1.1
WAYS = ("registry", "docker", "docker pull + run")
_DISK = "/var/bench"
_IMAGE_SIZE = 8 << 30
# The tree, the memory of the process (VmHWM) and what it read and wrote, as the process itself sees it.
_INSTALL = """
import sys
from nvidiad.cli import main
status = main(["install", sys.argv[1]])
for line in open("/proc/self/status"):
    if line.startswith("VmHWM"):
        print(int(line.split()[1]), file=sys.stderr)
sys.exit(status)
"""


@dataclass(frozen=True)
class Delivery:
    """What one installation took."""

    seconds: float
    written: float
    """Megabytes that reached the disk: of the file system that has engine and trees."""
    memory: float
    """The most that nvidiad itself had, in megabytes; 0 where it was not there."""


def measure(rounds: int, say: Callable[[str], None]) -> Part:
    """Install the image in each way once a round, on a disk that is empty again each time."""
    taken: dict[str, list[Delivery]] = {way: [] for way in WAYS}
    settings = {"data-root": f"{_DISK}/docker"}
    with road.booted(engine_settings=settings) as host, _disk(host) as device:
        road.install(host)
        payload, fetched = publish(host)
        for number in range(rounds):
            for way in sorted(WAYS, reverse=number % 2 == 1):
                found = deliver(host, device, way)
                taken[way].append(found)
                say(f"(g) round {number + 1}/{rounds}: {way}: {found}")
    return Part(
        "g", TITLE, tuple(figures(taken, payload)), (f"MB: {payload:.0f} in files, {fetched:.0f} fetched",)
    )


def figures(taken: dict[str, list[Delivery]], payload: float) -> Iterator[Figure]:
    """Each way compared with `docker pull` and `docker run` of the same round."""
    base = taken[WAYS[2]]
    seconds = tuple(one.seconds for one in base)
    for way, all_of in taken.items():
        spent = tuple(one.seconds for one in all_of)
        allowed = seconds if way == WAYS[0] else ()
        yield Figure(way, "s", spent, () if all_of is base else seconds, allowed)
    for way, all_of in taken.items():
        written = tuple(one.written for one in all_of)
        limit = (WRITTEN * payload,) if way == WAYS[0] else ()
        yield Figure(f"{way}, written", "MB", written, (payload,), limit)
    for way in WAYS[:2]:
        memory = tuple(one.memory for one in taken[way])
        yield Figure(f"{way}, memory of nvidiad", "MB", memory, (), (MEMORY,) if way == WAYS[0] else ())


def publish(host: Host) -> tuple[float, float]:
    """An image of which half compresses well, half not at all; megabytes of its files, and to be fetched."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as made:
        tree = road.payload(Path(made), *_release())
        manifest = manifests.parse((tree / "manifest.json").read_text())
        words = [os.urandom(40) for _ in range(256)]
        entries = list(manifest.entries)
        size = MEGABYTES * 10**6 // FILES
        for number in range(FILES):
            data = os.urandom(size)
            if number % 2:
                data = b"".join(words[byte] for byte in data[: size // 40])
            name = f"share/bulk-{number}"
            (tree / name).write_bytes(data)
            (tree / name).chmod(0o644)
            entries.append(FileEntry(name, 0o644, len(data), hashlib.sha256(data).hexdigest()))
        text = manifests.render(replace(manifest, entries=tuple(entries)))
        (tree / "manifest.json").write_text(text)
        packed = image.image(tree)
        road.within(host, lambda: packed.push("http://127.0.0.1:5000", "nvidia-driver", road.tag()))
        payload = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file()) / 1e6
        return payload, sum(map(len, packed.layers)) / 1e6


def _release() -> tuple[str, str]:
    from tests.host.machine import RELEASE

    return RELEASE


@contextmanager
def _disk(host: Host) -> Iterator[str]:
    """A file system of its own for engine and trees, whose writes are counted; the name of its device."""
    place = host.dir / "bench.img"
    with place.open("wb") as file:
        file.truncate(_IMAGE_SIZE)
    run_checked(["mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=0", str(place)], "mkfs.ext4")
    made = run_checked(["losetup", "-f", "--show", "--direct-io=on", str(place)], "losetup")
    device = made.strip()
    number = Path(device).name.removeprefix("loop")
    try:
        host.engine_stop()
        host.run(f"mknod /dev/bench b 7 {number}; mkdir -p {_DISK}; mount /dev/bench {_DISK}", check=True)
        yield Path(device).name
    finally:
        host.engine_stop()
        host.run(f"umount -l {_DISK}; rm -f /dev/bench")
        run_checked(["losetup", "-d", device], "losetup")


def deliver(host: Host, device: str, way: str) -> Delivery:
    """One installation: before it the engine has no image and the disk no tree, after it all is written."""
    reference = f"{road.REPOSITORY}:{road.tag()}"
    host.engine_stop()
    host.run(f"rm -rf {_DISK}/docker {_DISK}/opt; mkdir -p {_DISK}/opt; sync", check=True)
    if way != "registry":
        # It has been started more often than systemd takes for sane.
        host.systemctl("reset-failed", "docker.service", "docker.socket", check=False)
        host.engine_start()
        host.run("docker images -q", check=True)
    kind = "registry" if way == "registry" else "docker"
    config = road.configuration(install={"root": f"{_DISK}/opt"}, engine={"kind": kind})
    host.write("/etc/nvidiad/nvidiad.toml", config)
    os.sync()
    counter = Path(f"/sys/block/{device}/stat")
    before, began = _sectors(counter), time.monotonic()
    memory = 0.0
    if way == WAYS[2]:
        run = f"docker run --rm --privileged -v /:/rootfs -e NVIDIAD_ROOT={_DISK}/opt {reference}"
        host.run(f"docker pull -q {reference} && {run}", timeout=300, check=True)
    else:
        done = host.run(PYTHON, "-c", _INSTALL, reference, timeout=300, check=True)
        memory = int(done.err.split()[-1]) * 1024 / 1e6
    seconds = time.monotonic() - began
    host.run("sync", check=True)
    return Delivery(seconds, (_sectors(counter) - before) * 512 / 1e6, memory)


def _sectors(counter: Path) -> int:
    """Written to a block device (Documentation/block/stat.rst)."""
    return int(counter.read_text().split()[6])

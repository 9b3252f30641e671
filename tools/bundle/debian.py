# SPDX-License-Identifier: Apache-2.0
"""The Debian root that the bundle is built in and cut from: unpacked, not configured, without a network."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import subprocess
import urllib.parse
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

SUITE = "trixie"
PYTHON = "3.13"
# What is shipped of, and what builds that; apt adds what they need.
SHIPPED = ("python3.13", "libc6", "libgcc-s1", "libsystemd0", "libudev1")
_BUILDING = (
    *("base-files", "dash", "gcc", "libc6-dev", "musl-tools", "pkgconf"),
    *("libpython3.13-dev", "libsystemd-dev"),
)


@dataclass(frozen=True)
class Package:
    """One package that was unpacked, as apt verified it."""

    name: str
    version: str
    sha256: str
    files: frozenset[str]
    """Absolute, as in the package."""


def make(root: Path, sources: Sequence[str] = ()) -> None:
    """Unpack all of it into `root`; apt checks each package against the lists that Debian signed.

    `sources` are lines of a sources.list, say of snapshots; without any it is Debian of today.
    """
    settings = ['APT::Install-Recommends "false"', 'Acquire::Languages "none"', *_network()]
    command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=extract", "--skip=cleanup/apt"]
    command += [f"--aptopt={one}" for one in settings]
    run([*command, f"--include={','.join((*SHIPPED, *_BUILDING))}", SUITE, str(root), *sources])


def packages(root: Path) -> Iterator[Package]:
    """Those that something may be shipped of."""
    for archive in sorted((root / "var/cache/apt/archives").glob("*.deb")):
        name, version, _ = archive.stem.split("_")
        if name.endswith("-dev") or not name.startswith(("lib", "python3", "zlib", "musl")):
            continue
        listed = run(["dpkg-deb", "--contents", str(archive)]).splitlines()
        files = frozenset(line.split(None, 5)[5].split(" -> ")[0].removeprefix(".") for line in listed)
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        yield Package(name, urllib.parse.unquote(version), digest, files)


def inside(root: Path, command: Sequence[str], **environment: str) -> str:
    """Run a command in the root, without a network and with this environment alone; its output."""
    kept = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/build",
        "LC_ALL": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        **environment,
    }
    isolated = ["unshare", "--net", "--mount", "--propagation=private", "sh", "-c"]
    script = 'mount -t proc proc "$1/proc"; shift; exec "$@"'
    return run([*isolated, script, "sh", str(root), "chroot", str(root), *command], kept)


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """Run a command to its end and give its output; what it says of a failure ends up on the terminal."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=None if environment is None else dict(environment),
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"failed with {done.returncode}: {' '.join(command)}\n{done.stdout[-3000:]}")
    return done.stdout


def architecture() -> tuple[str, str]:
    """What systemd calls this machine's architecture, and the directory of its libraries on Debian."""
    machine = os.uname().machine
    with contextlib.suppress(KeyError):
        return {"x86_64": "x86-64", "aarch64": "arm64"}[machine], f"{machine}-linux-gnu"
    raise SystemExit(f"there is no bundle for {machine}")


def _network() -> list[str]:
    """The network settings of this machine's apt, which mmdebstrap does not read by itself."""
    names = r"Acquire::(Check-Valid-Until|Check-Date|https?::Proxy|https::CaInfo|Retries)"
    lines = [line.rstrip(";") for line in run(["apt-config", "dump"]).splitlines()]
    return [line for line in lines if re.fullmatch(rf'{names} ".+"', line)]

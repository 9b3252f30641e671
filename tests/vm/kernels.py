# SPDX-License-Identifier: Apache-2.0
"""Which real Debian kernels the VM bed boots: asked of apt once, pinned for as long as the cache lives."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from tests.beds.common import BedError, cache_dir, cached, locked, require, run_checked

if TYPE_CHECKING:
    from pathlib import Path

# The cloud flavour: few modules, ext4 built in, no DRM; half the boot time of the full flavour under TCG.
_HEADERS = re.compile(r"linux-headers-(?P<release>(?P<series>\d+\.\d+)[.\d]*(-\d+)?(\+deb12)?-cloud-amd64)$")
_SUITES = {"Debian": "bookworm", "Debian-Security": "bookworm-security"}


@dataclass(frozen=True)
class Kernel:
    """One kernel release unpacked in the cache; a headers-only neighbour has no image."""

    release: str
    root: Path

    @property
    def headers(self) -> Path:
        return self.root / "usr/src" / f"linux-headers-{self.release}"

    @property
    def image(self) -> Path:
        return self.root / "boot" / f"vmlinuz-{self.release}"

    @property
    def modules(self) -> Path:
        return self.root / "lib/modules" / self.release


@dataclass(frozen=True)
class Kernels:
    """The kernel of slot A, the kernel of slot B, and a release beside A whose symbol CRCs equal A's."""

    a: Kernel
    b: Kernel
    neighbour: Kernel | None

    @property
    def slots(self) -> dict[str, Kernel]:
        return {"A": self.a, "B": self.b}


def version_key(text: str) -> tuple[int, ...]:
    """Order releases by their numbers, so that 6.12.107 comes after 6.12.99."""
    return tuple(int(number) for number in re.findall(r"\d+", text))


def choose(packages: set[str], series: str) -> list[str]:
    """The releases of a series that have both an image and headers, newest first.

    Old images stay in the archive after their headers are gone, so both must be asked for."""
    found = [match for name in packages if (match := _HEADERS.match(name)) and match["series"] == series]
    releases = [match["release"] for match in found if f"linux-image-{match['release']}" in packages]
    return sorted(releases, key=version_key, reverse=True)


@cache
def kernels() -> Kernels:
    """The pinned kernels, picked and downloaded on the first call of a cache's life."""
    where = cache_dir() / "vm-kernels"
    pin = where / "pinned.json"
    with locked("vm-kernels"):
        if not pin.exists():
            _pick(where, pin)
    names: dict[str, str | None] = json.loads(pin.read_text())
    a, b, neighbour = names["a"], names["b"], names["neighbour"]
    if a is None or b is None:
        raise BedError(f"{pin} names no kernel for a slot: remove it")
    return Kernels(
        a=Kernel(a, where / a),
        b=Kernel(b, where / b),
        neighbour=Kernel(neighbour, where / neighbour) if neighbour else None,
    )


@cache
def fetched(*releases: str) -> tuple[Kernel, ...]:
    """Kernels by name, without headers: the full flavour, whose DRM real drivers are built with."""

    def make(partial: Path) -> None:
        require("dpkg", "kmod", "debian-archive-keyring")
        apt = _private_apt(partial / "apt")
        debs = partial / "debs"
        debs.mkdir()
        wanted = [f"linux-image-{release}" for release in releases]
        run_checked(
            ["env", f"--chdir={debs}", "apt-get", *apt, "-qq", "download", *wanted], "apt-get download"
        )
        for release in releases:
            (deb,) = debs.glob(f"linux-image-{release}_*.deb")
            run_checked(["dpkg-deb", "-x", str(deb), str(partial / release)], f"unpacking {deb.name}")
            run_checked(["depmod", "-b", str(partial / release), release], "depmod")
        for used in (partial / "apt", debs):
            shutil.rmtree(used)

    root = cached("vm-kernel-images", releases, make)
    return tuple(Kernel(release, root / release) for release in releases)


def _pick(where: Path, pin: Path) -> None:
    require("dpkg", "kmod", "debian-archive-keyring")
    where.mkdir(parents=True, exist_ok=True)
    apt = _private_apt(where / "apt")
    names = set(run_checked(["apt-cache", *apt, "pkgnames", "linux-"], "apt-cache pkgnames").split())
    old, new = choose(names, "6.1"), choose(names, "6.12")
    if not old or not new:
        raise BedError("apt offers no bookworm cloud kernels with headers: is its security suite reachable?")
    picked = {"a": old[0], "b": new[0], "neighbour": old[1] if len(old) > 1 else None}
    for role, release in picked.items():
        if release:
            _unpack(where, apt, release, image=role != "neighbour")
    shutil.rmtree(where / "apt")  # 200 MB of package lists that nobody asks again
    partial = pin.with_suffix(".partial")
    partial.write_text(json.dumps(picked, indent=1) + "\n")
    partial.replace(pin)


def _private_apt(where: Path) -> list[str]:
    """Options for an apt that sees bookworm and its security suite on the mirrors of this machine.

    A private configuration: the machine may run another suite, and its sources are not ours to edit."""
    form = ["--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages"]
    listed = run_checked(["apt-get", "indextargets", *form], "apt-get indextargets")
    known = [line.split(" ", 1) for line in listed.splitlines()]
    mirrors = {words[0]: words[1] for words in known if words[0] in _SUITES}
    if "Debian" not in mirrors:
        raise BedError("this machine's apt has no Debian source with an index: run apt-get update")
    # A machine without a security source (a slim container) finds that suite beside its main mirror.
    mirrors.setdefault("Debian-Security", mirrors["Debian"].rstrip("/") + "-security/")
    key = "/usr/share/keyrings/debian-archive-keyring.gpg"
    kind = f"deb [arch=amd64 signed-by={key}]"
    lines = [f"{kind} {uri} {_SUITES[label]} main" for label, uri in mirrors.items()]
    for folder in ("lists/partial", "cache/archives/partial"):
        (where / folder).mkdir(parents=True, exist_ok=True)
    (where / "sources.list").write_text("\n".join(lines) + "\n")
    settings = {
        "Dir::Etc::SourceList": f"{where}/sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": f"{where}/lists",
        "Dir::Cache": f"{where}/cache",
        "APT::Sandbox::User": "root",  # the cache may lie where the user _apt cannot write
        "Acquire::Languages": "none",
    }
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    run_checked(["apt-get", *options, "-qq", "update"], "apt-get update of the bookworm suites")
    return options


def _unpack(where: Path, apt: list[str], release: str, *, image: bool) -> None:
    debs = where / "debs"
    shutil.rmtree(debs, ignore_errors=True)
    debs.mkdir(parents=True)
    wanted = [f"linux-headers-{release}", *_header_parts(apt, release)]
    if image:
        wanted.append(f"linux-image-{release}")
    download = ["env", f"--chdir={debs}", "apt-get", *apt, "-qq", "download", *wanted]
    run_checked(download, "apt-get download")
    root, partial = where / release, where / f"{release}.partial"
    for stale in (root, partial):
        shutil.rmtree(stale, ignore_errors=True)
    for deb in sorted(debs.iterdir()):
        run_checked(["dpkg-deb", "-x", str(deb), str(partial)], f"unpacking {deb.name}")
    # The headers' Makefile includes its common half by absolute path; ours lies elsewhere.
    makefile = partial / "usr/src" / f"linux-headers-{release}" / "Makefile"
    makefile.write_text(makefile.read_text().replace("/usr/src/", f"{root}/usr/src/"))
    if image:
        run_checked(["depmod", "-b", str(partial), release], "depmod")
    partial.rename(root)
    shutil.rmtree(debs)


def _header_parts(apt: list[str], release: str) -> list[str]:
    """The packages that the headers need to build with: their common half, and kbuild."""
    show = ["apt-cache", *apt, "show", "--no-all-versions", f"linux-headers-{release}"]
    shown = run_checked(show, "apt-cache show")
    depends = next(line for line in shown.splitlines() if line.startswith("Depends: "))
    return re.findall(r"linux-(?:headers-\S+-common|kbuild-[^\s,]+)", depends)


if __name__ == "__main__":
    for slot, kernel in kernels().slots.items():
        print(slot, kernel.release, kernel.image)
    print("neighbour", kernels().neighbour)

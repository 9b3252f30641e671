# SPDX-License-Identifier: Apache-2.0
"""The real driver in the VM bed: a Debian-shaped machine with full kernels, and a really built image."""

from __future__ import annotations

import json
import shlex
import shutil
import urllib.request
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from nvidiad.image.nouns.model import Architecture
from nvidiad.image.world.archive import Archive
from nvidiad.nouns import compatibility
from nvidiad.nouns.compatibility import Compatibility, Entry
from nvidiad.thought import distribution
from nvidiad.thought.distribution import Descriptor
from tests.beds.common import cached, require
from tests.images import realdriver
from tests.images.workshop import Workshop
from tests.vm import disk, registry, road, usr
from tests.vm.kernels import fetched
from tests.vm.qemu import Hardware

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.vm.disk import Disk
    from tests.vm.machine import Machine

DRIVER, KERNEL = realdriver.DRIVER, realdriver.KERNEL
NEWER = realdriver.BROKEN
"""The kernel of slot B, for which these modules cannot be compiled."""
TAG = f"{KERNEL}-{DRIVER}"
TREE = f"/opt/nvidia/{DRIVER}/{KERNEL}"
CURRENT = "/opt/nvidia/current"
CARD = "0000:01:00.0"
READY_SECONDS = 700.0  # from nothing: pulled, laid down and hashed under emulation
# On Debian the OS version does not name the kernel.
CONFIGURATION = road.CONFIGURATION.replace(road.DRIVER, DRIVER).replace(
    f'{road.REPOSITORY}"\n', f'{road.REPOSITORY}"\ntag = "{{kernel}}-{{driver}}"\n'
)
_MANIFESTS = (
    "application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json"
)
# What a program does that asks the driver for its version, in a process that ends at once.
_NVML = """
import ctypes
nvml = ctypes.CDLL("libnvidia-ml.so.1")
rc = nvml.nvmlInitWithFlags(1)
version, count = ctypes.create_string_buffer(80), ctypes.c_uint()
if rc == 0:
    nvml.nvmlSystemGetDriverVersion(version, 80)
    nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
print(rc, version.value.decode() or "-", count.value)
"""


@dataclass(frozen=True)
class Packed:
    """An image as a registry holds it."""

    manifest: bytes
    blobs: Mapping[str, bytes]


# What `nvidiad-image publish` records when the compiler has refused.
_REASON = "nvidia/nv-pci.c:223: error: too few arguments to function 'pci_resize_resource'"


@dataclass(frozen=True)
class Nvml:
    """What NVML says: its return code, the driver's version, and how many GPUs it could start."""

    rc: int
    driver: str
    gpus: int


def hardware() -> Hardware:
    """Room for a driver of real size."""
    return Hardware(memory=2048)


@cache
def machine_disk() -> Disk:
    """Debian 12 twice: slot A with the kernel that the driver is built for, slot B with a later one."""
    names = {"A": KERNEL, "B": NEWER}
    kernels = dict(zip(names, fetched(*names.values()), strict=True))
    return disk.build({name: usr.Slot(kernel, _os_release(name)) for name, kernel in kernels.items()})


def _os_release(slot: str) -> str:
    return (
        'NAME="Debian GNU/Linux"\nID=debian\nVERSION_ID="12"\nVERSION="12 (bookworm)"\n'
        f'PRETTY_NAME="Debian GNU/Linux 12 (bookworm), slot {slot} of the nvidiad bed"\n'
    )


@cache
def image() -> Packed:
    """The image that nvidiad-image builds from NVIDIA's open modules, as a real registry gives it."""
    workshop = Workshop()
    try:
        kept = realdriver.real_archive(workshop.open())

        def make(partial: Path) -> None:
            workshop.docker("load", "--quiet", "--input", str(kept / "image.tar"))
            name = f"{workshop.registry}/{road.REPOSITORY}:{TAG}"
            workshop.docker("tag", realdriver.REFERENCE, name)
            workshop.docker("push", "--quiet", name)
            _fetch(f"http://{workshop.registry}/v2/{road.REPOSITORY}", partial)

        folder = cached("vm-real-image", kept.name, make)
    finally:
        workshop.close()
    blobs = {f"sha256:{path.name}": path.read_bytes() for path in (folder / "blobs").iterdir()}
    return Packed((folder / "manifest").read_bytes(), blobs)


def _fetch(repository: str, folder: Path) -> None:
    """Write down an image as the registry gives it."""

    def get(path: str) -> bytes:
        request = urllib.request.Request(f"{repository}/{path}", headers={"Accept": _MANIFESTS})  # noqa: S310
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            body: bytes = answer.read()
            return body

    manifest = get(f"manifests/{TAG}")
    found = json.loads(manifest)
    (folder / "blobs").mkdir(parents=True)
    (folder / "manifest").write_bytes(manifest)
    for part in (found["config"], *found["layers"]):
        digest = part["digest"]
        (folder / "blobs" / digest.removeprefix("sha256:")).write_bytes(get(f"blobs/{digest}"))


def compatibility_list() -> Packed:
    """The list that says which image can never come."""
    release = ("debian", NEWER, "bookworm-security", "x86_64", NEWER)
    tag = f"{NEWER}-{DRIVER}"
    entry = Entry(*release, DRIVER, "open", "", tag, compatibility.UNBUILDABLE, reason=_REASON)
    data = compatibility.render(Compatibility("2026-11-27T00:00:00Z", (entry,))).encode()
    blobs = {distribution.digest_of(blob): blob for blob in (b"{}", data)}
    config, layer = (
        Descriptor(kind, digest, len(blob))
        for kind, (digest, blob) in zip(
            (distribution.EMPTY, compatibility.MEDIA_TYPE), blobs.items(), strict=True
        )
    )
    return Packed(distribution.artefact(compatibility.MEDIA_TYPE, layer, config, {}).body, blobs)


def other_library() -> Path:
    """NVIDIA's libnvidia-ml.so of another version, as Debian's security suite has it; never kept here."""

    def make(partial: Path) -> None:
        require("dpkg", "debian-archive-keyring")
        archive = Archive(partial / "apt", ("bookworm-security",), Architecture.AMD64)
        (package,) = archive.download(("libnvidia-ml1",), partial, lambda _: None)
        archive.unpack(package, partial / "files")
        package.unlink()
        shutil.rmtree(partial / "apt")

    folder = cached("vm-other-library", ["libnvidia-ml1", "bookworm-security"], make)
    (library,) = (path for path in folder.rglob("libnvidia-ml.so.*.*") if not path.is_symlink())
    return library


def configure(vm: Machine, more: str = "") -> None:
    """Write the configuration, with another fragment behind it."""
    road.configure(vm, more)
    vm.put(CONFIGURATION.encode(), "/etc/nvidiad/nvidiad.toml")


def publish(vm: Machine) -> None:
    """Have the guest's registry serve the image of the real driver, and the list beside it."""
    images = {TAG: image(), compatibility.TAG: compatibility_list()}
    registry.stock(vm, road.REPOSITORY, images)


def ask_nvml(vm: Machine) -> Nvml:
    """What a program gets from NVML that knows nothing but the name of the library."""
    rc, driver, gpus = vm.output(f"/opt/nvidiad/bin/python3 -c {shlex.quote(_NVML)}").split()
    return Nvml(int(rc), driver, int(gpus))

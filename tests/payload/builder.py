# SPDX-License-Identifier: Apache-2.0
"""Builds a stand-in driver's tree with its manifest, and spoils trees in every way that must be refused."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
from enum import StrEnum
from typing import TYPE_CHECKING

from nvidiad.nouns import manifest as manifests
from nvidiad.nouns.entries import parents
from nvidiad.nouns.errors import Failure
from nvidiad.nouns.manifest import Entry, FileEntry, LinkEntry, Manifest
from nvidiad.nouns.model import Flavour
from nvidiad.nouns.value import replace
from tests.payload import elf

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

LIBRARIES = ("libcuda", "libnvidia-cfg", "libnvidia-ml", "libnvidia-ptxjitcompiler")
MODULES: Mapping[str, str] = {"nvidia": "", "nvidia-uvm": "nvidia", "nvidia-modeset": "nvidia"}
"""The stand-in modules and what each depends on."""

_SMI = """\
#!/bin/sh
# Stands in for NVIDIA's nvidia-smi: says which driver is loaded, and fails as NVML does where none is.
version=$(cat /sys/module/nvidia/version 2>/dev/null) || {
    echo "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver." \\
        "Make sure that the latest NVIDIA driver is installed and running."
    exit 9
}
if [ "$version" != "@DRIVER@" ]; then
    echo "Failed to initialize NVML: Driver/library version mismatch"
    echo "NVML library version: @DRIVER@"
    exit 18
fi
if [ -e /run/nvidia-smi.said ]; then
    cat /run/nvidia-smi.said
    exit "$(cat /run/nvidia-smi.status)"
fi
case "$*" in
    *pci.bus_id*)
        for gpu in /sys/bus/pci/drivers/nvidia/*:*; do
            uuid=GPU-5a1d0c3e-0000-4000-8000-000000000001
            echo "$version, 0000${gpu##*/}, $uuid, None, NVIDIA A100-SXM4-40GB"
        done
        ;;
    *--query-gpu=driver_version*) echo "$version" ;;
    *) echo "NVIDIA-SMI @DRIVER@    Driver Version: $version" ;;
esac
"""

_PERSISTENCED = """\
#!/bin/sh
# Stands in for NVIDIA's nvidia-persistenced @DRIVER@: forks, keeps the device open, and ends on SIGTERM.
run=${NVIDIA_PERSISTENCED_RUN:-/run/nvidia-persistenced}
device=${NVIDIA_PERSISTENCED_DEVICE:-/dev/nvidiactl}
if [ ! -e /sys/module/nvidia ] && [ -z "${NVIDIA_PERSISTENCED_RUN:-}" ]; then
    echo "nvidia-persistenced failed to initialize. Check syslog for more details." >&2
    exit 1
fi
mkdir -p "$run" || exit 1
rm -f "$run/wait" && mkfifo "$run/wait" || exit 1
(
    trap 'rm -rf "$run"; exit 0' TERM INT
    # A node without a driver behind it cannot be opened; then there is nothing to keep.
    if (: <"$device") 2>/dev/null; then exec 3<"$device"; fi
    exec 4<>"$run/wait" </dev/null >/dev/null 2>&1
    while :; do read -r _ <&4; done
) &
echo $! >"$run/nvidia-persistenced.pid"
"""

_FABRIC = """\
#!/bin/sh
# Stands in for NVIDIA's nv-fabricmanager @DRIVER@: forks, makes its socket's place, and ends on SIGTERM.
if [ "$1" = --version ]; then
    echo "Fabric Manager version is : @DRIVER@"
    exit 0
fi
run=/run/nvidia-fabricmanager
cp "$2" "$run/seen.cfg" && mkfifo "$run/wait" || exit 1
(
    trap 'exit 0' TERM INT
    exec 4<>"$run/wait" </dev/null >/dev/null 2>&1
    while :; do read -r _ <&4; done
) &
echo $! >"$run/nv-fabricmanager.pid"
"""

# As NVIDIA's own begins, with the keys that a tree must change.
_FABRIC_CONFIGURATION = """\
# NVIDIA Fabric Manager configuration file (stand-in).
LOG_LEVEL=4
DAEMONIZE=1
STATE_FILE_NAME=/tmp/fabricmanager.state
TOPOLOGY_FILE_PATH=/usr/share/nvidia/nvswitch
"""

_MODPROBE = """\
#!/bin/sh
# Stands in for NVIDIA's nvidia-modprobe @DRIVER@; nvidiad makes the nodes by itself.
exit 0
"""


class Fault(StrEnum):
    """Ways in which a payload can be bad; each must be refused by name before anything is exposed."""

    WRONG_HASH = "wrong-hash"
    MISSING_FILE = "missing-file"
    EXTRA_FILE = "extra-file"
    LEAVES_TREE = "leaves-tree"
    LINK_LEAVES_TREE = "link-leaves-tree"
    WRONG_OS = "wrong-os"
    WRONG_KERNEL = "wrong-kernel"
    WRONG_DRIVER = "wrong-driver"
    WRONG_VERMAGIC = "wrong-vermagic"
    NO_MANIFEST = "no-manifest"
    BROKEN_MANIFEST = "broken-manifest"
    NOT_A_DRIVER = "not-a-driver"
    OTHER_GPUS = "other-gpus"
    """It names none of the beds' GPUs."""
    OTHER_MACHINE = "other-machine"
    MIXED_MODULES = "mixed-modules"
    """One of its modules is of another driver."""
    STRAY_LIBRARY = "stray-library"


def payload(
    dest: Path,
    *,
    driver: str,
    release: tuple[str, str],
    kernel: str,
    modules: Mapping[str, Path] | None = None,
    flavour: str = "open",
    product: str = "",
    bulk: int = 0,
    compiler: str = "gcc (Debian 12.2.0-14) 12.2.0",
    fabric: str = "",
) -> Path:
    """Make `dest`/opt/nvidia/DRIVER/OS-VERSION and give its path; `bulk` is the firmware's size in bytes.

    `modules` are real kernel modules by name (nvidia-uvm); without them there are stand-ins that can be read
    but not loaded, for beds without a kernel of their own. `fabric` is the version of a fabric manager.
    """
    os_id, os_version = release
    tree = dest / "opt/nvidia" / driver / os_version
    vermagic = f"{kernel} SMP preempt mod_unload"
    _put(tree / "bin/nvidia-smi", _SMI.replace("@DRIVER@", driver).encode(), 0o755)
    _put(tree / "bin/nvidia-persistenced", _PERSISTENCED.replace("@DRIVER@", driver).encode(), 0o755)
    _put(tree / "bin/nvidia-modprobe", _MODPROBE.replace("@DRIVER@", driver).encode(), 0o4755)
    if fabric:
        _put(tree / "bin/nv-fabricmanager", _FABRIC.replace("@DRIVER@", fabric).encode(), 0o755)
        _put(tree / "share/nvidia/nvswitch/fabricmanager.cfg", _FABRIC_CONFIGURATION.encode(), 0o644)
    for name in LIBRARIES:
        text = f"stand-in for NVIDIA's {name} {driver}"
        _put(tree / f"lib64/{name}.so.{driver}", elf.library(f"{name}.so.1", text), 0o755)
        (tree / f"lib64/{name}.so.1").symlink_to(f"{name}.so.{driver}")
        (tree / f"lib64/{name}.so").symlink_to(f"{name}.so.1")
    folder = tree / "lib/modules" / kernel
    if modules is None:
        for name, depends in MODULES.items():
            _put(folder / f"{name}.ko", _module(name, driver, vermagic, depends, flavour), 0o644)
    else:
        for name, path in modules.items():
            _put(folder / f"{name}.ko", path.read_bytes(), 0o644)
        vermagic = elf.modinfo((folder / "nvidia.ko").read_bytes())["vermagic"]
    firmware = hashlib.sha256(driver.encode()).digest() * (max(bulk, 4096) // 32)
    _put(tree / f"lib/firmware/nvidia/{driver}/gsp_ga10x.bin", firmware, 0o644)
    _put(tree / f"lib/firmware/nvidia/{driver}/gsp_tu10x.bin", firmware[:1024], 0o644)
    _put(tree / "share/doc/README", f"A stand-in for driver {driver}, for tests only.\n".encode(), 0o644)
    manifest = Manifest(
        driver=driver,
        flavour=Flavour(flavour),
        product=product,
        architecture="x86_64",
        os_id=os_id,
        os_version=os_version,
        kernel=kernel,
        vermagic=vermagic,
        compiler=compiler,
        pci=("10de:20b5", "10de:2330"),
        entries=entries(tree),
    )
    write_manifest(tree, manifests.render(manifest))
    return tree


def cuda_payload(dest: Path, version: str, minimum_driver: str = "525.60.13") -> Path:
    """Make `dest`/opt/cuda/VERSION, a stand-in for CUDA's package, and give its path."""
    tree = dest / "opt/cuda" / version
    _put(tree / "bin/nvcc", f'#!/bin/sh\necho "stand-in for nvcc {version}"\n'.encode(), 0o755)
    target = tree / "targets/x86_64-linux/lib"
    library = elf.library("libcudart.so.12", f"stand-in for CUDA's libcudart {version}")
    _put(target / f"libcudart.so.{version}", library, 0o755)
    (target / "libcudart.so.12").symlink_to(f"libcudart.so.{version}")
    # As in NVIDIA's own package: a link to a directory.
    (tree / "lib64").symlink_to("targets/x86_64-linux/lib")
    write_manifest(tree, manifests.render(manifests.cuda(version, minimum_driver, "x86_64", entries(tree))))
    return tree


def entries(tree: Path) -> tuple[Entry, ...]:
    """What is in a directory, as a manifest lists it."""
    found: list[Entry] = []
    for path in sorted(tree.rglob("*")):
        name = path.relative_to(tree).as_posix()
        if path.is_symlink():
            found.append(LinkEntry(name, os.readlink(path)))  # noqa: PTH115
        elif path.is_file() and name != "manifest.json":
            data = path.read_bytes()
            mode = stat.S_IMODE(path.stat().st_mode)
            found.append(FileEntry(name, mode, len(data), hashlib.sha256(data).hexdigest()))
    return tuple(found)


def image_labels(tree: Path) -> dict[str, str]:
    """The labels that an image of this tree should have; none where it has no manifest that can be read.

    Taken before a tree is spoiled they lie, which is a case of its own.
    """
    path = tree / "manifest.json"
    if not path.is_file():
        return {}
    text = path.read_text()
    # A line of an entry may be spoiled on purpose; the identity stands above them all.
    head = text.partition(' "files": [\n')[0]
    entry = '{"path": "share/x", "type": "link", "target": "y"}'
    try:
        manifest = manifests.parse(f'{head} "files": [\n{entry}\n]}}\n')
    except Failure:
        return {}
    size = sum(int(found) for found in re.findall(r'"size": ([0-9]+)', text))
    paths = re.findall(r'"path": "([^"]+)"', text)
    folders = {folder for path in paths for folder in parents(path)}
    return manifests.labels(manifest, hashlib.sha256(text.encode()).hexdigest()) | {
        manifests.SIZE: str(size),
        manifests.FILES: str(len(paths) + len(folders) + 2),
    }


def spoil(tree: Path, fault: Fault) -> Path:
    """Spoil a tree where it is; what is not the fault stays right, hashes included."""
    path = tree / "manifest.json"
    text = path.read_text()
    manifest = manifests.parse(text)
    library = tree / f"lib64/libcuda.so.{manifest.driver}"
    match fault:
        case Fault.WRONG_HASH:
            data = library.read_bytes()
            _put(library, data[:-1] + bytes([data[-1] ^ 1]), 0o755)
        case Fault.MISSING_FILE:
            library.unlink()
        case Fault.EXTRA_FILE:
            _put(tree / "lib64/libextra.so.1", b"not in the manifest\n", 0o755)
        case Fault.LEAVES_TREE:
            digest = hashlib.sha256(b"evil\n").hexdigest()
            outside = FileEntry("../../../../etc/profile.d/evil.sh", 0o644, 5, digest)
            write_manifest(tree, manifests.render(replace(manifest, entries=(outside, *manifest.entries))))
        case Fault.LINK_LEAVES_TREE:
            (tree / "lib64/libevil.so.1").symlink_to("../../../../../../etc/shadow")
            write_manifest(tree, manifests.render(replace(manifest, entries=entries(tree))))
        case Fault.WRONG_OS:
            write_manifest(tree, manifests.render(replace(manifest, os_version="9999.9.9")))
        case Fault.WRONG_KERNEL:
            write_manifest(tree, manifests.render(replace(manifest, kernel="9.9.9-other")))
        case Fault.WRONG_DRIVER:
            write_manifest(tree, manifests.render(replace(manifest, driver="999.99.99")))
        case Fault.WRONG_VERMAGIC:
            vermagic = "9.9.9-other SMP preempt mod_unload"
            for name, depends in MODULES.items():
                module = _module(name, manifest.driver, vermagic, depends, manifest.flavour or "")
                _put(tree / f"lib/modules/{manifest.kernel}/{name}.ko", module, 0o644)
            write_manifest(tree, manifests.render(replace(manifest, entries=entries(tree))))
        case Fault.OTHER_GPUS:
            write_manifest(tree, manifests.render(replace(manifest, pci=("10de:2330", "10de:2901"))))
        case Fault.OTHER_MACHINE:
            write_manifest(tree, manifests.render(replace(manifest, architecture="aarch64")))
        case Fault.MIXED_MODULES:
            vermagic = f"{manifest.kernel} SMP preempt mod_unload"
            module = _module("nvidia-uvm", "535.261.03", vermagic, "nvidia", manifest.flavour or "")
            _put(tree / f"lib/modules/{manifest.kernel}/nvidia-uvm.ko", module, 0o644)
            write_manifest(tree, manifests.render(replace(manifest, entries=entries(tree))))
        case Fault.STRAY_LIBRARY:
            stray = elf.library("libnvidia-opencl.so.1", "stand-in for libnvidia-opencl 535.261.03")
            _put(tree / "lib64/libnvidia-opencl.so.535.261.03", stray, 0o755)
            write_manifest(tree, manifests.render(replace(manifest, entries=entries(tree))))
        case Fault.NO_MANIFEST:
            path.unlink()
        case Fault.BROKEN_MANIFEST:
            write_manifest(tree, text[: len(text) // 2])
        case Fault.NOT_A_DRIVER:
            shutil.rmtree(tree)
    return tree


def write_manifest(tree: Path, text: str) -> None:
    """Put this text where a manifest is."""
    _put(tree / "manifest.json", text.encode(), 0o644)


def _module(name: str, driver: str, vermagic: str, depends: str, flavour: str) -> bytes:
    source = hashlib.md5(f"{name}{driver}".encode(), usedforsecurity=False).hexdigest()[:24].upper()
    facts = [
        ("license", "Dual MIT/GPL" if flavour == "open" else "NVIDIA"),
        ("version", driver),
        ("description", "stand-in, for tests only"),
        ("srcversion", source),
        ("depends", depends),
        ("name", name.replace("-", "_")),
        ("vermagic", vermagic),
    ]
    if name == "nvidia":
        facts[0:0] = [("firmware", f"nvidia/{driver}/gsp_{chip}.bin") for chip in ("tu10x", "ga10x")]
    return elf.module(facts)


def _put(path: Path, data: bytes, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    path.chmod(mode)

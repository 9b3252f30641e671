# SPDX-License-Identifier: Apache-2.0
"""A 3 MB initrd: a static busybox, the modules that reach the disk, and `init.sh`."""

from __future__ import annotations

import fnmatch
import lzma
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from nvidiad.image.thought import cpio
from tests.beds.common import run_checked

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.vm.kernels import Kernel

INIT = Path(__file__).with_name("init.sh")
# What Container Linux would have, as far as the bed can use it.
WANTED = (
    *("virtio*", "ext4", "btrfs", "overlay", "squashfs", "erofs", "loop", "fuse", "dm_mod", "configfs"),
    *("bridge", "br_netfilter", "veth", "nf_*", "nft_*", "nfnetlink*", "xt_*", "ip_tables", "iptable_*"),
    *("crc32c*", "crct10dif*", "libcrc32c", "ipmi_msghandler", "ipmi_devintf", "dummy"),
    *("drm", "drm_kms_helper", "ttm", "video", "i2c_core", "backlight"),
)
# Loaded for a slot that is one: at its start it measures which way to add up blocks is the fastest.
_BTRFS = ("btrfs",)
_EARLY = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4", "squashfs", "overlay", "virtio_console")


def module_name(path: str) -> str:
    """The kernel's name of a module file, in which a dash is an underscore."""
    return Path(path).name.split(".ko")[0].replace("-", "_")


def _dependencies(folder: Path) -> dict[str, list[str]]:
    lines = (folder / "modules.dep").read_text().splitlines()
    return {path: needs.split() for path, needs in (line.split(":", 1) for line in lines)}


def copy_modules(kernel: Kernel, target: Path) -> None:
    """Copy the wanted modules and what they need to `target`/lib/modules, a twentieth of all."""
    depends = _dependencies(kernel.modules)
    keep: set[str] = set()
    for path, needs in depends.items():
        if any(fnmatch.fnmatch(module_name(path), pattern) for pattern in WANTED):
            keep |= {path, *needs}
    folder = target / "lib/modules" / kernel.release
    for path in sorted(keep):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(kernel.modules / path, folder / path)
    for listing in kernel.modules.glob("modules.builtin*"):
        shutil.copy2(listing, folder)
    shutil.copy2(kernel.modules / "modules.order", folder)
    run_checked(["depmod", "-b", str(target), kernel.release], "depmod")


def build(kernel: Kernel, busybox: Path, out: Path) -> None:
    """Write the initrd of a kernel."""
    items = [cpio.directory(name) for name in ("bin", "proc", "sys", "dev", "sysroot", "ko")]
    items.append(cpio.file("bin/busybox", busybox.read_bytes(), 0o755))
    early = list(_in_load_order(kernel, _EARLY))
    late = [path for path in _in_load_order(kernel, _BTRFS) if path not in early]
    for listing, modules in (("modules", early), ("modules.btrfs", late)):
        names = [f"ko/{module_name(path)}.ko" for path in modules]
        for name, path in zip(names, modules, strict=True):
            data = (kernel.modules / path).read_bytes()
            # busybox's insmod reads plain modules only.
            items.append(cpio.file(name, lzma.decompress(data) if path.endswith(".xz") else data))
        items.append(cpio.file(listing, "".join(f"/{name}\n" for name in names).encode()))
    items.append(cpio.file("init", INIT.read_bytes(), 0o755))
    out.write_bytes(cpio.archive([*items, cpio.CONSOLE]))


def _in_load_order(kernel: Kernel, wanted: Sequence[str]) -> Iterator[str]:
    depends = _dependencies(kernel.modules)
    by_name = {module_name(path): path for path in depends}
    seen: set[str] = set()
    for name in wanted:
        path = by_name.get(name)
        if path is None:
            continue  # built into this kernel
        for needed in (*reversed(depends[path]), path):
            if needed not in seen:
                seen.add(needed)
                yield needed

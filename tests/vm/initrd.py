# SPDX-License-Identifier: Apache-2.0
"""A 3 MB initrd: a static busybox, the modules that reach the disk, and `init.sh`."""

from __future__ import annotations

import fnmatch
import io
import lzma
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tests.beds.common import run_checked

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.vm.kernels import Kernel

INIT = Path(__file__).with_name("init.sh")
# What Container Linux would have, as far as the bed can use it.
WANTED = (
    *("virtio*", "ext4", "overlay", "squashfs", "erofs", "loop", "fuse", "dm_mod", "configfs", "dummy"),
    *("bridge", "br_netfilter", "veth", "nf_*", "nft_*", "nfnetlink*", "xt_*", "ip_tables", "iptable_*"),
    *("crc32c*", "crct10dif*", "libcrc32c", "ipmi_msghandler", "ipmi_devintf"),
    *("drm", "drm_kms_helper", "ttm", "video", "i2c_core", "backlight"),
)
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
    modules = list(_in_load_order(kernel))
    entries: list[tuple[str, int, bytes]] = [
        (name, 0o40755, b"") for name in ("bin", "proc", "sys", "dev", "sysroot", "ko")
    ]
    entries.append(("bin/busybox", 0o100755, busybox.read_bytes()))
    listed = []
    for path in modules:
        data = (kernel.modules / path).read_bytes()
        # busybox's insmod reads plain modules only.
        name = f"ko/{module_name(path)}.ko"
        entries.append((name, 0o100644, lzma.decompress(data) if path.endswith(".xz") else data))
        listed.append(f"/{name}\n")
    entries.append(("modules", 0o100644, "".join(listed).encode()))
    entries.append(("init", 0o100755, INIT.read_bytes()))
    out.write_bytes(_cpio(entries))


def _in_load_order(kernel: Kernel) -> Iterator[str]:
    depends = _dependencies(kernel.modules)
    by_name = {module_name(path): path for path in depends}
    seen: set[str] = set()
    for name in _EARLY:
        path = by_name.get(name)
        if path is None:
            continue  # built into this kernel
        for needed in (*reversed(depends[path]), path):
            if needed not in seen:
                seen.add(needed)
                yield needed


def _cpio(entries: Iterable[tuple[str, int, bytes]]) -> bytes:
    """The kernel's archive format ("newc"), made here because cpio(1) packs no device node without root."""
    out = io.BytesIO()

    def add(number: int, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        text = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(text), 0)
        out.write(b"070701" + "".join(f"{field:08X}" for field in fields).encode() + text)
        out.write(b"\0" * (-out.tell() % 4) + data)
        out.write(b"\0" * (-out.tell() % 4))

    number = 0
    for number, (name, mode, data) in enumerate(entries, 1):
        add(number, name, mode, data)
    add(number + 1, "dev/console", 0o020600, device=(5, 1))
    add(0, "TRAILER!!!", 0)
    return out.getvalue()

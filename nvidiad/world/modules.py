# SPDX-License-Identifier: Apache-2.0
"""Modules: what the kernel has loaded, what a tree offers, loading and unloading, and the firmware path."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from nvidiad.nouns import naming
from nvidiad.nouns.errors import Code, Failure, Permanent, Transient
from nvidiad.nouns.model import Holder, LoadedModule, ModuleFile
from nvidiad.thought import parse
from nvidiad.world import files, holders, kernel_log, process

if TYPE_CHECKING:
    from nvidiad.world.process import Finished

# A driver's first insmod verifies and relocates up to 90 MB; nothing else takes that long.
LOAD_TIMEOUT = 300.0
UNLOAD_TIMEOUT = 120.0
HOST_TIMEOUT = 120.0
# Modules of the kernel itself whose names begin like the driver's.
NOT_OURS = frozenset({"nvidia_wmi_ec_backlight"})
COMPRESSED = (".ko.xz", ".ko.zst", ".ko.gz")
# How a signed module ends (kernel: scripts/sign-file.c).
SIGNATURE = b"~Module signature appended~\n"
FIRMWARE_PATH = "sys/module/firmware_class/parameters/path"


class Modules:
    """The kernel's modules as far as the driver is concerned."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    # -- what is loaded

    def loaded(self) -> tuple[LoadedModule, ...]:
        """The driver's modules that are live, by name."""
        try:
            names = sorted(path.name for path in (self.root / "sys/module").iterdir())
        except OSError:
            return ()
        return tuple(
            self._module(name)
            for name in names
            if (name == "nvidia" or name.startswith("nvidia_"))
            and name not in NOT_OURS
            and self._read(f"sys/module/{name}/initstate") == "live"
        )

    def present(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Those of these modules that are in the kernel."""
        return tuple(name for name in names if self._present(name))

    def unavailable(self, names: tuple[str, ...], kernel: str) -> tuple[str, ...]:
        """Those of these modules that a kernel neither has nor could load from the OS.

        Where nobody has listed the OS's modules (no modules.dep), nothing is known to be absent.
        """
        asked = [name for name in names if not self._present(name)]
        if not asked:
            return ()
        folders = [self.root / place / kernel for place in ("usr/lib/modules", "lib/modules")]
        texts = [
            files.text(folder / name) for folder in folders for name in ("modules.dep", "modules.builtin")
        ]
        if not any(texts[::2]):
            return ()
        return tuple(name for name in asked if not any(parse.lists_module(text, name) for text in texts))

    def _module(self, name: str) -> LoadedModule:
        references = self._read(f"sys/module/{name}/refcnt")
        return LoadedModule(
            name,
            self._read(f"sys/module/{name}/version"),
            # a kernel that cannot unload modules does not count
            int(references) if references and references.isdigit() else 0,
            self._held_by(name),
        )

    def _held_by(self, name: str) -> tuple[str, ...]:
        try:
            return tuple(sorted(path.name for path in (self.root / f"sys/module/{name}/holders").iterdir()))
        except OSError:
            return ()

    def driver_version(self) -> str | None:
        """The driver's version as the loaded nvidia.ko says it."""
        found = parse.driver_version(self._read("proc/driver/nvidia/version") or "")
        return found[0] if found else None

    def holders(self) -> tuple[Holder, ...]:
        """The processes that keep an NVIDIA device open."""
        return holders.scan(self.root)

    # -- what a tree offers

    def read(self, tree: str, kernel: str) -> tuple[ModuleFile, ...]:
        """The modules of a tree for one kernel, by path; none where it has none for that kernel."""
        directory = Path(tree) / "lib/modules" / kernel
        found: list[ModuleFile] = []
        for path in sorted(directory.rglob("*.ko*")):
            if path.name.endswith(COMPRESSED):
                raise Permanent(
                    Code.TREE_INVALID,
                    f"'{path}' is compressed: nvidiad loads modules by path, uncompressed",
                    "Build the image with uncompressed modules.",
                )
            if path.suffix == ".ko":
                found.append(_read_module(path))
        return tuple(found)

    # -- acting

    def load(self, module: ModuleFile, parameters: tuple[str, ...]) -> None:
        """insmod; a module that is there already is fine."""
        with kernel_log.since_now(self.root) as news:
            finished = process.run(["insmod", module.path, *parameters], timeout=LOAD_TIMEOUT)
            if finished.returncode == 0 or "File exists" in finished.err:
                return
            raise self._load_failure(module, finished, news.about(module.name))

    def load_from_host(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Load modules of the OS; returns those that it could not give."""
        wanted = [name for name in names if not self._present(name)]
        if not wanted:
            return ()
        # one process for all of them: -a goes on after a module that is not there
        finished = process.run(["modprobe", "-a", "--", *wanted], timeout=HOST_TIMEOUT)
        if finished.returncode == 0:
            return ()
        absent = [name for name in wanted if not self._present(name)]
        # A module built into the kernel need not be in /sys/module: where modprobe names some, it is those.
        said = set(re.findall(r"[a-z0-9_]+", finished.err.lower().replace("-", "_")))
        named = [name for name in absent if naming.module_name(name).lower() in said]
        return tuple(named or absent)

    def unload(self, name: str) -> None:
        """rmmod; a module that is not there is fine, one in use is a Failure that names its holders."""
        if not self._present(name):
            return
        finished = process.run(["rmmod", name], timeout=UNLOAD_TIMEOUT)
        said = finished.err.lower()
        if finished.returncode == 0 or not self._present(name):
            return
        if "in use" in said or "temporarily unavailable" in said or "busy" in said:
            who = [f"module {module}" for module in self._held_by(name)]
            who += [_who(holder) for holder in self.holders()]
            raise Transient(
                Code.MODULE_IN_USE,
                f"module '{name}' is in use by {', '.join(who) or 'something that opened no device'}",
                "Stop what uses the GPU, or reboot.",
            )
        raise Transient(Code.COMMAND_FAILED, process.failed(finished), "See the kernel log, or reboot.")

    # -- firmware

    def firmware_path(self) -> str:
        """Where the kernel looks for firmware before its own places; empty when nothing is set."""
        return (self._read(FIRMWARE_PATH) or "").replace("\0", "")

    def set_firmware_path(self, path: str) -> None:
        """Set it; the empty path clears it."""
        target = self.root / FIRMWARE_PATH
        # The kernel takes every byte, a newline too. It never hears of an empty write, but ends at a NUL.
        content = os.fsencode(path) or b"\0"
        try:
            descriptor = os.open(target, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
            try:
                os.write(descriptor, content)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise Permanent(
                Code.EXPOSURE_FAILED,
                f"cannot write '{path}' to '{target}': {error.strerror}",
                "The kernel must have CONFIG_FW_LOADER; it takes paths of fewer than 256 bytes.",
            ) from error

    # -- within

    def _present(self, name: str) -> bool:
        return (self.root / "sys/module" / naming.module_name(name)).is_dir()

    def _read(self, path: str) -> str | None:
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return None

    def _load_failure(self, module: ModuleFile, finished: Finished, words: str) -> Failure:
        """What a failed insmod means; insmod tells the errno only, the kernel's log tells the reason."""
        kernel = self._read("proc/sys/kernel/osrelease") or ""
        said = f"{finished.err} {words}"
        code, sentence, remedy, failure = _meaning(module, kernel, said)
        if code is Code.LOCKDOWN and self._read("proc/sys/kernel/modules_disabled") == "1":
            sentence, remedy = "the kernel takes no more modules (kernel.modules_disabled)", "Reboot."
        tail = f"the kernel says: {words}" if words else f"insmod says: {finished.said}"
        return failure(code, f"module '{module.name}' was not loaded: {sentence}; {tail}", remedy)


def _read_module(path: Path) -> ModuleFile:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            section = parse.elf_section(lambda offset, size: os.pread(descriptor, size, offset), ".modinfo")
            end = os.fstat(descriptor).st_size
            signed = os.pread(descriptor, len(SIGNATURE), max(0, end - len(SIGNATURE))) == SIGNATURE
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        raise Permanent(
            Code.TREE_INVALID,
            f"'{path}' cannot be read as a kernel module: {error}",
            "Install the image again.",
        ) from error
    info = parse.modinfo(section or b"")

    def first(key: str) -> str:
        return info.get(key, ("",))[0]

    if not first("vermagic"):
        raise Permanent(
            Code.TREE_INVALID,
            f"'{path}' is not a kernel module: it has no vermagic",
            "Install the image again.",
        )
    return ModuleFile(
        name=first("name") or naming.module_name(path.name),
        path=str(path),
        version=first("version"),
        vermagic=first("vermagic"),
        depends=tuple(name for name in first("depends").split(",") if name),
        signed=signed,
    )


def _who(holder: Holder) -> str:
    return f"process {holder.pid} ({holder.command})" + (f" of {holder.unit}" if holder.unit else "")


def _meaning(module: ModuleFile, kernel: str, said: str) -> tuple[Code, str, str, type[Failure]]:
    """The code, sentence and remedy for what insmod and the kernel said."""
    if "Invalid module format" in said or "Exec format error" in said:
        if "version magic" in said or (kernel and module.kernel != kernel):
            return (
                Code.VERMAGIC_MISMATCH,
                f"it was built for '{module.vermagic}', this is '{kernel}'",
                "An image for this kernel is needed.",
                Permanent,
            )
        return (
            Code.MODULE_REFUSED,
            "it does not fit this kernel",
            "An image for this kernel is needed.",
            Permanent,
        )
    if "Unknown symbol" in said:
        return (
            Code.SYMBOL_UNKNOWN,
            "a module that it needs is not loaded, or it is for another kernel",
            "Add the module to driver.host-modules, or use an image for this kernel.",
            Permanent,
        )
    if "Key was rejected" in said or "Required key not available" in said:
        return (
            Code.MODULE_REJECTED,
            "the kernel loads only modules signed with a key it knows",
            "Enrol the key that signed the modules, or let the kernel load unsigned ones.",
            Permanent,
        )
    if "Operation not permitted" in said:
        return (
            Code.LOCKDOWN,
            "the kernel is locked down",
            "Turn off Secure Boot, or use modules signed with a key that the kernel knows.",
            Permanent,
        )
    if "No such device" in said:
        return (
            Code.GPU_REFUSED,
            "it found no GPU that it can drive",
            "See whether another driver has the GPU, and whether this driver knows it.",
            Transient,
        )
    if "No such file or directory" in said:
        return Code.TREE_INVALID, f"'{module.path}' is not there", "Install the image again.", Permanent
    return Code.MODULE_REFUSED, "the module refused", "See the kernel log.", Transient

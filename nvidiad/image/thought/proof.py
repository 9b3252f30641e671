# SPDX-License-Identifier: Apache-2.0
"""What is proven of a driver's tree by reading it: modules, libraries, firmware, symbols and their CRCs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nvidiad.image.nouns.model import Check
from nvidiad.nouns import manifest as manifests
from nvidiad.nouns import naming
from nvidiad.nouns.entries import FileEntry, LinkEntry
from nvidiad.nouns.errors import Code
from nvidiad.nouns.model import Flavour
from nvidiad.thought import symbols

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from nvidiad.image.thought.elf import KernelModule, Library
    from nvidiad.nouns.manifest import Entry, Manifest
    from nvidiad.thought.symbols import Export

_SAID = 3
"""How many faults of a kind a sentence names."""


def passed(name: str, sentence: str) -> Check:
    """What is right."""
    return Check(name, passed=True, sentence=sentence)


def failed(name: str, code: Code, faults: Sequence[str]) -> Check:
    """What is wrong, the first faults named."""
    rest = len(faults) - _SAID
    more = f" (and {rest} more)" if rest > 0 else ""
    return Check(name, passed=False, sentence="; ".join(faults[:_SAID]) + more, code=code)


# ---------------------------------------------------------------------------------------------------
# The image itself


def labels_check(labels: Mapping[str, str], manifest: Manifest, digest: str) -> Check:
    """An image says on its outside what its manifest says; `digest` is that of the manifest's text."""
    wanted = manifests.labels(manifest, digest)
    faults = [
        f"label '{key}' is '{labels.get(key, '')}' and not '{value}'"
        for key, value in wanted.items()
        # Images that were made before there was such a label have none.
        if labels.get(key, "") != value and (key not in manifests.LATER or labels.get(key))
    ]
    if faults:
        return failed("labels", Code.IMAGE_MISMATCH, faults)
    return passed("labels", f"the image's {len(wanted)} labels say what its manifest says")


def modules_check(manifest: Manifest, modules: Sequence[KernelModule]) -> Check:
    """Every module is the manifest's driver, of its flavour, for its kernel."""
    faults: list[str] = []
    if not any(module.name == "nvidia" for module in modules):
        faults.append(f"there is no 'nvidia.ko' in 'lib/modules/{manifest.kernel}'")
    for module in modules:
        file = module.file
        if file.version != manifest.driver:
            faults.append(f"'{file.path}' is of version '{file.version}' and not '{manifest.driver}'")
        if file.kernel != manifest.kernel:
            faults.append(f"'{file.path}' was built for '{file.vermagic.strip()}', not '{manifest.kernel}'")
        elif module.name == "nvidia" and file.vermagic.strip() != manifest.vermagic.strip():
            faults.append(f"'{file.path}' has vermagic '{file.vermagic.strip()}', not '{manifest.vermagic}'")
        if module.name == "nvidia" and (module.license == "NVIDIA") != (
            manifest.flavour is Flavour.PROPRIETARY
        ):
            faults.append(f"'{file.path}' has license '{module.license}', the image is {manifest.flavour}")
    listed = {
        entry.path
        for entry in manifest.entries
        if entry.path.startswith("lib/modules/") and ".ko" in entry.path.rpartition("/")[2]
    }
    for path in sorted(listed - {module.file.path for module in modules}):
        faults.append(f"'{path}' is not a module in 'lib/modules/{manifest.kernel}'")
    if faults:
        return failed("modules", Code.DRIVER_MISMATCH, faults)
    names = ", ".join(f"'{module.name}'" for module in modules)
    sentence = f"{names} are {manifest.driver} ({manifest.flavour}) for kernel '{manifest.kernel}'"
    return passed("modules", sentence)


def firmware_check(manifest: Manifest, modules: Sequence[KernelModule]) -> Check:
    """What the modules may ask for is there, and the GSP firmware without which open modules do nothing."""
    there = {entry.path for entry in manifest.entries}
    asked = dict.fromkeys(name for module in modules for name in module.firmware)
    faults = [f"'lib/firmware/{name}' is not there" for name in asked if f"lib/firmware/{name}" not in there]
    own = f"lib/firmware/nvidia/{manifest.driver}/"
    if manifest.flavour is Flavour.OPEN and not any(path.startswith(f"{own}gsp") for path in there):
        faults.append(f"there is no GSP firmware in '{own}', and open modules drive no GPU without it")
    if faults:
        return failed("firmware", Code.TREE_INVALID, list(dict.fromkeys(faults)))
    if not asked:
        return passed("firmware", "the modules name no firmware")
    return passed("firmware", f"all {len(asked)} files of firmware that the modules name are there")


# ---------------------------------------------------------------------------------------------------
# Libraries

# What a host has: glibc and the compiler's own libraries.
_HOST = frozenset(
    {
        *("libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libresolv.so.2"),
        *(
            "libutil.so.1",
            "ld-linux-x86-64.so.2",
            "ld-linux-aarch64.so.1",
            "libgcc_s.so.1",
            "libstdc++.so.6",
        ),
    }
)
# What graphics libraries want is in the container that uses them, not on a host without a screen. Of the two
# libnvidia-pkcs11, libcuda loads the one that finds its OpenSSL, and only for confidential computing.
_ELSEWHERE = re.compile(
    r"lib(X\w+|xcb|xcb-\w+|GLdispatch|GLX?|OpenGL|EGL|gbm|drm|wayland-\w+|vulkan|ffi|expat|glib-2\.0"
    r"|gobject-2\.0|gtk-[x\d.-]+|gdk-[x\d.-]+|vdpau|va|va-\w+|crypto)\.so[.\d]*"
)
_SHARED = re.compile(r"lib64/(?:.+/)?(lib[^/]+\.so\.([^/]+))")


def libraries_check(manifest: Manifest, libraries: Sequence[Library]) -> Check:
    """Libraries have the name by which they are looked for, are of the driver's version, and find theirs.

    `libraries` are all shared objects and dynamic programs of the tree. Some in NVIDIA's package have
    versions of their own (libnvidia-egl-wayland.so.1.1.11): only what looks like a driver's version must be
    this driver's.
    """
    entries = {entry.path: entry for entry in manifest.entries}
    everywhere = {path.rpartition("/")[2] for path in entries}
    in_lib64 = {path.rpartition("/")[2] for path in entries if path.startswith("lib64/")}
    faults: list[str] = []
    own = 0
    for library in libraries:
        shared = _SHARED.fullmatch(library.path)
        if shared is not None:
            faults += _naming_faults(library, shared[1], shared[2], entries, manifest.driver)
            own += shared[2] == manifest.driver
        reachable = in_lib64 if shared is not None else everywhere
        for name in library.needed:
            if name not in reachable and name not in _HOST and not _ELSEWHERE.fullmatch(name):
                faults.append(f"'{library.path}' needs '{name}', which neither the tree nor a host has")
    if not own:
        faults.append(f"'lib64' has no library of driver {manifest.driver}")
    if faults:
        return failed("libraries", Code.TREE_INVALID, faults)
    return passed("libraries", f"{len(libraries)} libraries and programs find what they are linked to")


def _naming_faults(
    library: Library, name: str, suffix: str, entries: Mapping[str, Entry], driver: str
) -> Iterable[str]:
    beside = f"{library.path.rpartition('/')[0]}/{library.soname}"
    if not library.soname:
        yield f"'{library.path}' has no SONAME"
    elif library.soname.partition(".so")[0] != name.partition(".so")[0]:
        yield f"'{library.path}' calls itself '{library.soname}' (SONAME)"
    elif beside not in entries:
        yield f"'{library.path}' is looked for as '{beside}' (SONAME), which is not there"
    elif (found := _followed(beside, entries)) != library.path:
        yield f"'{library.path}' is looked for as '{beside}' (SONAME), which is '{found}'"
    if naming.BRANCHED.fullmatch(suffix) and suffix != driver:
        yield f"'{library.path}' is of driver {suffix} and not {driver}"


def _followed(path: str, entries: Mapping[str, Entry]) -> str:
    """Where links beside each other lead to in the end."""
    for _ in entries:
        entry = entries.get(path)
        if not isinstance(entry, LinkEntry):
            break
        path = f"{path.rpartition('/')[0]}/{entry.target}"
    return path


# ---------------------------------------------------------------------------------------------------
# The kernel


def release_check(modules: Sequence[KernelModule], release: str, kernel_vermagic: str) -> Check:
    """The modules are for this very release: a kernel with MODVERSIONS also takes those of a neighbour."""
    theirs = kernel_vermagic.strip()
    others: dict[str, list[str]] = {}
    for module in modules:
        if (mine := module.file.vermagic.strip()) != theirs:
            others.setdefault(mine, []).append(f"'{module.name}'")
    faults = [
        f"{', '.join(names)} {'was' if len(names) == 1 else 'were'} built for '{mine}',"
        f" the modules of kernel '{release}' for '{theirs}'"
        for mine, names in others.items()
    ]
    if faults:
        return failed("vermagic", Code.VERMAGIC_MISMATCH, faults)
    return passed("vermagic", f"every module was built for '{theirs}', as those of kernel '{release}' were")


def symbols_check(modules: Sequence[KernelModule], kernel: Mapping[str, Export], release: str) -> Check:
    """Every import is exported by the kernel or by another module of the image."""
    if not kernel:
        return failed("symbols", Code.PROOF_FAILED, [f"there is no Module.symvers of kernel '{release}'"])
    offered = {symbol for module in modules for symbol in module.exports}
    faults: list[str] = []
    for module in modules:
        unknown = sorted(module.undefined - kernel.keys() - offered)
        if unknown:
            listed = ", ".join(f"'{symbol}'" for symbol in unknown[:_SAID])
            more = f" and {len(unknown) - _SAID} more" if len(unknown) > _SAID else ""
            faults.append(
                f"'{module.name}' imports {listed}{more}, which kernel '{release}' does not export"
            )
        if not module.gpl:
            closed = sorted(
                name for name in module.undefined - offered if name in kernel and kernel[name].gpl
            )
            if closed:
                faults.append(
                    f"'{module.name}' (license '{module.license}') imports '{closed[0]}', which is for GPL"
                    " modules only"
                )
    if faults:
        return failed("symbols", Code.SYMBOL_UNKNOWN, faults)
    count = len({symbol for module in modules for symbol in module.undefined})
    return passed(
        "symbols", f"all {count} imports are exported by kernel '{release}' or by the image's modules"
    )


def versions_check(modules: Sequence[KernelModule], kernel: Mapping[str, Export], release: str) -> Check:
    """Every import has the CRC that the kernel gives it, where the kernel has MODVERSIONS."""
    if not any(export.crc for export in kernel.values()):
        return passed("versions", f"kernel '{release}' gives its symbols no CRCs")
    faults: list[str] = []
    count = 0
    crcs = {name: export.crc for name, export in kernel.items()}
    for module in modules:
        if not module.versions:
            faults.append(f"'{module.name}' has no CRCs of its imports, which kernel '{release}' compares")
        compared = {name: crc for name, crc in module.versions.items() if name in kernel}
        count += len(compared)
        different = symbols.different(compared, crcs)
        if different:
            listed = ", ".join(f"'{symbol}'" for symbol in different[:_SAID])
            faults.append(
                f"{len(different)} of {len(compared)} imports of '{module.name}' have other CRCs in kernel"
                f" '{release}': {listed}{' …' if len(different) > _SAID else ''}"
            )
    if faults:
        return failed("versions", Code.VERMAGIC_MISMATCH, faults)
    return passed("versions", f"the CRCs of {count} imports are those of kernel '{release}'")


def dependencies_check(missing: Sequence[tuple[str, str]], release: str) -> Check:
    """What the modules depend on is in the image, in the kernel, or among its modules."""
    faults = [
        f"'{module}' depends on '{dependency}', which kernel '{release}' does not have"
        for module, dependency in missing
    ]
    if faults:
        return failed("dependencies", Code.SYMBOL_UNKNOWN, faults)
    return passed("dependencies", f"kernel '{release}' and the image have what the modules depend on")


def elf_paths(manifest: Manifest) -> tuple[str, ...]:
    """The files of a tree that may be libraries or programs."""
    return tuple(
        entry.path
        for entry in manifest.entries
        if isinstance(entry, FileEntry) and not entry.path.startswith(("lib/modules/", "lib/firmware/"))
    )


def module_paths(manifest: Manifest) -> tuple[str, ...]:
    """The modules of a tree for its kernel."""
    folder = f"lib/modules/{manifest.kernel}/"
    return tuple(
        entry.path
        for entry in manifest.entries
        if isinstance(entry, FileEntry) and entry.path.startswith(folder) and entry.path.endswith(".ko")
    )

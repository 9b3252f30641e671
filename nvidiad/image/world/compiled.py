# SPDX-License-Identifier: Apache-2.0
"""What compilers made: modules are signed, programs learn where their libraries are."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from nvidiad.nouns.errors import Code, Permanent
from nvidiad.world import process

if TYPE_CHECKING:
    from collections.abc import Sequence

_TOOL = 60.0
# How a signed module ends (kernel: include/linux/module_signature.h, scripts/sign-file.c).
_MAGIC = b"~Module signature appended~\n"
_PKCS7 = 2
_DIGEST = "sha512"
# What belongs to the C library is the host's own.
_OF_LIBC = ("ld-linux", "libc.so", "libm.so", "libdl.so", "libpthread.so", "librt.so", "libresolv.so")


def sign(module: Path, key: Path, certificate: Path) -> None:
    """Append a signature as the kernel's `scripts/sign-file` does; the key stays on this machine.

    Raises source-invalid where key or certificate cannot be used. A module that is signed is signed anew.
    """
    content = unsigned(module.read_bytes())
    with tempfile.TemporaryDirectory(prefix="nvidiad-sign-") as where:
        bare, signature = Path(where) / "module", Path(where) / "signature"
        bare.write_bytes(content)
        # Detached, without certificates and attributes: the time would be one of those.
        command = [
            "openssl",
            "cms",
            "-sign",
            "-binary",
            "-noattr",
            "-nosmimecap",
            "-nocerts",
            "-outform",
            "DER",
        ]
        command += ["-md", _DIGEST, "-signer", str(certificate), "-inkey", str(key)]
        command += ["-in", str(bare), "-out", str(signature)]
        remedy = "Give a private key and its certificate as PEM files; the key must not ask for a password."
        process.check(command, timeout=_TOOL, code=Code.SOURCE_INVALID, remedy=remedy)
        data = signature.read_bytes()
    footer = bytes((0, 0, _PKCS7, 0, 0, 0, 0, 0)) + len(data).to_bytes(4, "big")
    module.write_bytes(content + data + footer + _MAGIC)


def unsigned(content: bytes) -> bytes:
    """A module's content without the signature that it may end in."""
    if not content.endswith(_MAGIC):
        return content
    end = len(content) - len(_MAGIC)
    size = int.from_bytes(content[end - 4 : end], "big")
    return content[: end - 12 - size]


def needed(program: Path) -> tuple[str, ...]:
    """The libraries that a program or library is linked to, without those of the C library."""
    listed = process.check(["patchelf", "--print-needed", str(program)], timeout=_TOOL, remedy=_INSTALL).out
    return tuple(name for name in listed.split() if not name.startswith(_OF_LIBC))


def look_beside(program: Path, directory: str) -> None:
    """Let a program find libraries in a directory relative to its own, `../lib/x`, before anywhere else.

    As RPATH, not RUNPATH: only that holds for the libraries of its libraries, too.
    """
    command = ["patchelf", "--force-rpath", "--set-rpath", f"$ORIGIN/{directory}", str(program)]
    process.check(command, timeout=_TOOL, remedy=_INSTALL)


def bundle(program: Path, places: Sequence[Path], dest: Path) -> tuple[str, ...]:
    """Copy what a program is linked to, and what that is linked to, into a directory of its own.

    The names that were copied, sorted; none where the program needs the C library only. Raises
    source-invalid where a library is in none of the places.
    """
    found: dict[str, Path] = {}
    wanted = list(needed(program))
    for name in wanted:
        if name in found:
            continue
        path = next((place / name for place in places if (place / name).exists()), None)
        if path is None:
            raise Permanent(
                Code.SOURCE_INVALID,
                f"'{program.name}' needs '{name}', which is in none of the packages",
                "Use a driver package of NVIDIA's own, whose programs need nothing.",
            )
        found[name] = path
        wanted += needed(path)
    for name, path in sorted(found.items()):
        dest.mkdir(parents=True, exist_ok=True)
        (dest / name).write_bytes(path.read_bytes())
        (dest / name).chmod(0o755)
    return tuple(sorted(found))


_INSTALL = "Install Debian's package 'patchelf'."

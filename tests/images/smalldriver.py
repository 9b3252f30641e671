# SPDX-License-Identifier: Apache-2.0
"""A small driver in NVIDIA's shape: a real `.run` package of stand-ins, whose modules compile in seconds."""

from __future__ import annotations

import hashlib
import json
import shutil
from typing import TYPE_CHECKING

from nvidiad.image.nouns.model import DriverSource, SourceKind
from nvidiad.nouns.model import Flavour
from tests.beds.common import CHECKOUT, require, run_checked
from tests.payload import elf

if TYPE_CHECKING:
    from pathlib import Path

VERSION = "535.309.01"
SOURCES = CHECKOUT / "tests/vm/modules"
_LIBRARIES = {"libcuda": "CUDA", "libnvidia-ml": "UTILITY_LIB", "libnvidia-cfg": "UTILITY_LIB"}
_HEAD = """\
NVIDIA Accelerated Graphics Driver for Linux-x86_64
{version}
nvidia-installer
nvidia nvidia-uvm nvidia-modeset
gcc
0
0
0
"""
# As NVIDIA's own, it takes SYSSRC and SYSOUT and has the target `modules`.
_MAKEFILE = """\
modules:
\t$(MAKE) -C $(SYSOUT) M=$(CURDIR) CC=$(CC) NV_VERSION={version} CONFIG_DEBUG_INFO_BTF_MODULES= modules
"""


def content(dest: Path, version: str = VERSION) -> Path:
    """What is in the package, below `dest`."""
    lines = [_HEAD.format(version=version).rstrip("\n")]

    def put(name: str, data: bytes | str, line: str, mode: int = 0o644) -> None:
        path = dest / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        path.chmod(mode)
        lines.append(f"{name} {mode:04o} {line}")

    for name, kind in _LIBRARIES.items():
        full = f"{name}.so.{version}"
        base = kind.removesuffix("_LIB")
        put(
            full,
            elf.library(f"{name}.so.1", f"{name} {version}"),
            f"{base}_LIB NATIVE / MODULE:gpgpu",
            0o755,
        )
        link = f"{kind}_SYMLINK NATIVE / {full} MODULE:gpgpu"
        lines.append(f"{name}.so.1 0000 {link}")
    smi = f"#!/bin/sh\necho 'stand-in for nvidia-smi {version}'\n"
    put("nvidia-smi", smi, "UTILITY_BINARY MODULE:gpgpu", 0o755)
    put("nvidia-modprobe", "#!/bin/sh\n", "NVIDIA_MODPROBE MODULE:installer", 0o755)
    put("nvidia-persistenced", "#!/bin/sh\n", "UTILITY_BINARY MODULE:nvpd", 0o755)
    put("nvidia-installer", "#!/bin/sh\nexit 1\n", "INSTALLER_BINARY MODULE:installer", 0o755)
    put("LICENSE", "Nobody's licence.\n", "DOCUMENTATION / MODULE:installer")
    put("firmware/gsp_ga10x.bin", bytes(4096), "FIRMWARE INHERIT_PATH_DEPTH:1 MODULE:gsp")
    chips = [
        {"devid": "0x20B5", "name": "A100", "features": ["kernelopen"]},
        {"devid": "0x1DB1", "features": []},
    ]
    gpus = "supported-gpus/supported-gpus.json"
    put(gpus, json.dumps({"chips": chips}), "DOCUMENTATION INHERIT_PATH_DEPTH:1 MODULE:installer")
    source = "KERNEL_MODULE_SRC INHERIT_PATH_DEPTH:1 MODULE:resman"
    put("kernel-open/Makefile", _MAKEFILE.format(version=version), source)
    for path in sorted(SOURCES.iterdir()):
        if path.is_file():
            put(f"kernel-open/{path.name}", path.read_bytes(), source)
    (dest / ".manifest").write_text("\n".join(lines) + "\n")
    return dest


def run_package(dest: Path, version: str = VERSION, compression: str = "xz") -> Path:
    """A self-extracting `.run` package, made by makeself as NVIDIA's is."""
    require("makeself", "xz-utils", "bzip2")
    name = f"NVIDIA-Linux-x86_64-{version}"
    where = content(dest / name, version)
    made = dest / f"{name}.run"
    command = ["makeself", f"--{compression}", "--nox11", "--quiet", str(where), str(made)]
    run_checked([*command, f"NVIDIA driver {version}", "./nvidia-installer"], "makeself")
    shutil.rmtree(where)
    return made


def redist_archive(dest: Path, version: str = VERSION) -> Path:
    """NVIDIA's redistributable archive, which has no list of its files."""
    name = f"nvidia_driver-linux-x86_64-{version}-archive"
    where = content(dest / name, version)
    (where / ".manifest").unlink()
    made = dest / f"{name}.tar.xz"
    run_checked(["tar", "-C", str(dest), "-cJf", str(made), name], "tar")
    shutil.rmtree(where)
    return made


def source(package: Path, version: str = VERSION, kind: SourceKind = SourceKind.RUN) -> DriverSource:
    """The package as a recipe has it."""
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    return DriverSource(version, Flavour.OPEN, kind, location=str(package), sha256=digest)

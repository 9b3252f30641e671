# SPDX-License-Identifier: Apache-2.0
"""A driver's package: what of it goes into a tree and where, by NVIDIA's list and by names."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from nvidiad.image.thought import package
from nvidiad.nouns.errors import Code, Permanent
from nvidiad.nouns.model import Flavour

if TYPE_CHECKING:
    from nvidiad.image.thought.package import Layout

V = "535.261.03"
HEAD = f"""NVIDIA Accelerated Graphics Driver for Linux-x86_64
{V}
nvidia-installer
nvidia nvidia-uvm nvidia-modeset nvidia-drm nvidia-peermem
1
2
3
4
"""
NEEDED = f"""\
libcuda.so.{V} 0755 CUDA_LIB NATIVE / MODULE:gpgpu
libcuda.so.1 0000 CUDA_SYMLINK NATIVE / libcuda.so.{V} MODULE:gpgpu
libcuda.so 0000 CUDA_SYMLINK NATIVE / libcuda.so.1 MODULE:gpgpu
libnvidia-ml.so.{V} 0755 UTILITY_LIB NATIVE / MODULE:gpgpu
nvidia-smi 0755 UTILITY_BINARY MODULE:gpgpu
"""


def layout(more: str = "", *, flavour: Flavour = Flavour.OPEN, graphics: bool = False) -> Layout:
    return package.from_manifest(HEAD + NEEDED + more, V, flavour, graphics=graphics)


def placed(made: Layout) -> dict[str, str]:
    """Paths in the tree with their modes or targets."""
    found = {item.path: f"{item.mode:04o}" for item in made.items}
    return found | {link.path: link.target for link in made.links}


BASIC = placed(layout())


def test_what_is_always_there() -> None:
    assert placed(layout()) == {
        f"lib64/libcuda.so.{V}": "0755",
        "lib64/libcuda.so.1": f"libcuda.so.{V}",
        "lib64/libcuda.so": "libcuda.so.1",
        f"lib64/libnvidia-ml.so.{V}": "0755",
        "bin/nvidia-smi": "0755",
    }
    assert layout().kernel == "kernel-open"
    assert layout(flavour=Flavour.PROPRIETARY).kernel == "kernel"
    assert layout().absent == ("nvidia-persistenced", "nvidia-modprobe", "gsp_ga10x.bin")


LINES = [
    # name, a line of the manifest, what it adds; and what it adds with graphics
    pytest.param(
        "nvidia-modprobe 4755 NVIDIA_MODPROBE MODULE:installer",
        {"bin/nvidia-modprobe": "4755"},
        {},
        id="setuid",
    ),
    pytest.param(
        "nvidia-persistenced 0755 UTILITY_BINARY MODULE:nvpd",
        {"bin/nvidia-persistenced": "0755"},
        {},
        id="daemon",
    ),
    pytest.param("nvidia-xconfig 0755 XMODULE_BINARY MODULE:xdriver", {}, {}, id="tool of X"),
    pytest.param("nvidia-installer 0755 INSTALLER_BINARY MODULE:installer", {}, {}, id="installer"),
    pytest.param(
        "firmware/gsp_ga10x.bin 0644 FIRMWARE INHERIT_PATH_DEPTH:1 MODULE:gsp",
        {f"lib/firmware/nvidia/{V}/gsp_ga10x.bin": "0644"},
        {},
        id="firmware",
    ),
    pytest.param(
        "supported-gpus/supported-gpus.json 0644 DOCUMENTATION INHERIT_PATH_DEPTH:1 MODULE:installer",
        {"share/supported-gpus.json": "0644"},
        {},
        id="supported gpus",
    ),
    pytest.param(
        "LICENSE 0644 DOCUMENTATION / MODULE:installer", {"share/doc/LICENSE": "0644"}, {}, id="licence"
    ),
    pytest.param(
        "nvidia.icd 0644 CUDA_ICD MODULE:gpgpu", {"share/OpenCL/vendors/nvidia.icd": "0644"}, {}, id="icd"
    ),
    pytest.param(
        f"libnvidia-future.so.{V} 0755 CUDA_LIB NATIVE / MODULE:gpgpu",
        {f"lib64/libnvidia-future.so.{V}": "0755"},
        {},
        id="a library nobody knows, of a known type",
    ),
    pytest.param(
        f"libnvidia-gpucomp.so.{V} 0755 SHADER_LIB NATIVE / MODULE:gpgpu",
        {f"lib64/libnvidia-gpucomp.so.{V}": "0755"},
        {},
        id="a known library of a type nobody knows",
    ),
    pytest.param(f"libnvidia-x.so.{V} 0755 QUANTUM_LIB NATIVE / MODULE:x", {}, {}, id="unknown in both"),
    pytest.param(f"./32/libcuda.so.{V} 0755 CUDA_LIB COMPAT32 / MODULE:gpgpu", {}, {}, id="32 bit"),
    pytest.param(f"libx.so.{V} 0755 CUDA_LIB COMPAT32 / MODULE:gpgpu", {}, {}, id="32 bit by its word"),
    pytest.param(f"32/libcuda.so.{V} 0755 CUDA_LIB MODULE:gpgpu", {}, {}, id="32 bit without its word"),
    pytest.param("libEGL.so.1.1.0 0755 GLVND_LIB NATIVE / MODULE:opengl", {}, {}, id="glvnd"),
    pytest.param(
        "libOpenCL.so.1.0.0 0755 OPENCL_WRAPPER_LIB NATIVE / MODULE:opencl", {}, {}, id="loader of OpenCL"
    ),
    pytest.param(
        f"libnvidia-opencl.so.{V} 0755 OPENCL_LIB NATIVE / MODULE:opencl",
        {f"lib64/libnvidia-opencl.so.{V}": "0755"},
        {},
        id="opencl",
    ),
    pytest.param(
        f"libnvidia-glcore.so.{V} 0755 OPENGL_LIB NATIVE / MODULE:opengl",
        {},
        {f"lib64/libnvidia-glcore.so.{V}": "0755"},
        id="graphics",
    ),
    pytest.param(
        f"libnvcuvid.so.{V} 0755 NVCUVID_LIB NATIVE / MODULE:gpgpu",
        {},
        {f"lib64/libnvcuvid.so.{V}": "0755"},
        id="video",
    ),
    pytest.param(
        "libnvidia-cfg.so.1 0000 UTILITY_LIB_SYMLINK NATIVE / libnvidia-cfg.so.9 MODULE:x",
        {},
        {},
        id="broken link",
    ),
    pytest.param(
        "kernel/Makefile 0644 KERNEL_MODULE_SRC INHERIT_PATH_DEPTH:1 MODULE:resman", {}, {}, id="sources"
    ),
    pytest.param("", {}, {}, id="empty line"),
    pytest.param("x", {}, {}, id="short line"),
]


@pytest.mark.parametrize(("line", "adds", "with_graphics"), LINES)
def test_lines(line: str, adds: dict[str, str], with_graphics: dict[str, str]) -> None:
    assert placed(layout(line + "\n")) == BASIC | adds
    assert placed(layout(line + "\n", graphics=True)) == BASIC | adds | with_graphics


REFUSED = [
    pytest.param("", "has no files", id="empty"),
    pytest.param(HEAD.replace(V, "550.1") + NEEDED, "version '550.1'", id="another version"),
    pytest.param(
        HEAD + "nvidia-smi 0755 UTILITY_BINARY MODULE:x\n", f"no 'libcuda.so.{V}'", id="no libcuda"
    ),
    pytest.param(HEAD + NEEDED.replace("nvidia-smi", "other"), "no 'nvidia-smi'", id="no nvidia-smi"),
]


@pytest.mark.parametrize(("text", "words"), REFUSED)
def test_refused(text: str, words: str) -> None:
    with pytest.raises(Permanent, match=words) as refused:
        package.from_manifest(text, V, Flavour.OPEN, graphics=False)
    assert refused.value.code is Code.SOURCE_INVALID


def test_by_names_as_debian_has_them() -> None:
    lib = "usr/lib/x86_64-linux-gnu/nvidia/current"
    names = {
        f"{lib}/libcuda.so.{V}": "",
        f"{lib}/libcuda.so.1": f"libcuda.so.{V}",
        f"{lib}/libnvidia-ml.so.{V}": "",
        f"{lib}/nvidia-drm_gbm.so": f"libnvidia-allocator.so.{V}",
        f"{lib}/libnvidia-glcore.so.{V}": "",
        "usr/lib/nvidia/current/nvidia-smi": "",
        "usr/bin/nvidia-modprobe": "",
        "usr/bin/nvidia-persistenced": "",
        "lib/x86_64-linux-gnu/libtirpc.so.3.0.0": "",
        f"lib/firmware/nvidia/{V}/gsp_ga10x.bin": "",
        "usr/share/doc/libcuda1/copyright": "",
        "usr/share/doc/libcuda1/changelog.gz": "",
        "usr/share/man/man1/nvidia-smi.1.gz": "",
        "usr/share/lintian/overrides/nvidia-smi": "",
        "usr/share/lintian/overrides/nvidia-persistenced": "",
        "etc/init.d/nvidia-persistenced": "",
    }
    made = package.from_names(names, V, Flavour.OPEN, graphics=False, pci=("10de:20b5",))
    assert placed(made) == {
        f"lib64/libcuda.so.{V}": "0755",
        "lib64/libcuda.so.1": f"libcuda.so.{V}",
        f"lib64/libnvidia-ml.so.{V}": "0755",
        "bin/nvidia-smi": "0755",
        "bin/nvidia-modprobe": "4755",
        "bin/nvidia-persistenced": "0755",
        f"lib/firmware/nvidia/{V}/gsp_ga10x.bin": "0644",
        "share/doc/libcuda1/copyright": "0644",
    }
    assert {item.source for item in made.items if item.path.startswith("bin/")} == {
        *("usr/lib/nvidia/current/nvidia-smi", "usr/bin/nvidia-modprobe", "usr/bin/nvidia-persistenced")
    }
    assert made.absent == () and made.pci == ("10de:20b5",)


GPUS = json.dumps(
    {
        "chips": [
            {"devid": "0x2330", "name": "H100", "features": ["kernelopen", "runtimepm"]},
            {"devid": "0x2330", "subdevid": "0x1", "name": "H100 again", "features": ["kernelopen"]},
            {"devid": "0x1DB1", "name": "V100", "features": []},
            {"devid": "0x0FFE", "name": "K2000", "legacybranch": "470.xx", "features": []},
        ]
    }
)


def test_devices() -> None:
    assert package.supported(GPUS, Flavour.OPEN) == ("10de:2330",)
    assert package.supported(GPUS, Flavour.PROPRIETARY) == ("10de:1db1", "10de:2330")
    listed = "10DE1340\n10DE20B5\n# no device\n10DE1E37\n"
    assert package.device_ids(listed, Flavour.OPEN) == ("10de:1e37", "10de:20b5")
    assert package.device_ids(listed, Flavour.PROPRIETARY) == ("10de:1340", "10de:1e37", "10de:20b5")
    with pytest.raises(Permanent, match="supported-gpus"):
        package.supported('{"chips": [{"devid": 5}]}', Flavour.OPEN)

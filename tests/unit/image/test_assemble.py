# SPDX-License-Identifier: Apache-2.0
"""Assembling: a tree of stand-ins laid down, described and refused where its modules are others'."""

from __future__ import annotations

import hashlib
import stat
from typing import TYPE_CHECKING

import pytest

from nvidiad.image.nouns import developer as developers
from nvidiad.image.nouns.model import Architecture, DriverSource, Family, OsRelease, SourceKind
from nvidiad.image.thought.package import Item, Layout, Link
from nvidiad.image.verbs import build as building
from nvidiad.image.verbs.assemble import assemble, check_modules
from nvidiad.image.world.workspace import Workspace
from nvidiad.nouns import manifest as manifests
from nvidiad.nouns.errors import Code, Failure
from nvidiad.nouns.model import Build, Flavour, ModuleFile
from nvidiad.world.modules import Modules
from nvidiad.world.trees import Trees
from tests.payload import elf

if TYPE_CHECKING:
    from pathlib import Path

    from nvidiad.nouns.manifest import Manifest

V = "535.309.01"
KERNEL = "6.6.54-flatcar"
RELEASE = OsRelease(Family.FLATCAR, "3975.2.0", "stable", Architecture.AMD64, KERNEL)
DRIVER = DriverSource(V, Flavour.OPEN, SourceKind.RUN, "grid")
LAYOUT = Layout(
    (
        Item("nvidia-smi", "bin/nvidia-smi", 0o755),
        Item("nvidia-modprobe", "bin/nvidia-modprobe", 0o4755),
        Item(f"libcuda.so.{V}", f"lib64/libcuda.so.{V}", 0o755),
    ),
    (Link("lib64/libcuda.so.1", f"libcuda.so.{V}"),),
    "kernel-open",
    ("10de:20b5",),
)


def module(name: str, kernel: str = KERNEL, version: str = V) -> bytes:
    facts = {
        "version": version,
        "name": name,
        "depends": "",
        "vermagic": f"{kernel} SMP preempt mod_unload ",
    }
    return elf.module(list(facts.items()))


def made(root: Path, modules: dict[str, bytes]) -> tuple[Manifest, str]:
    source, compiled = root / "source", root / "compiled"
    for item in LAYOUT.items:
        (source / item.source).parent.mkdir(parents=True, exist_ok=True)
        (source / item.source).write_bytes(item.source.encode())
    compiled.mkdir()
    (compiled / "compiler").write_text("gcc 13\n")
    for name, content in modules.items():
        (compiled / name).write_bytes(content)
    image = root / "image"
    return assemble(
        *(RELEASE, DRIVER, LAYOUT, source, compiled, "gcc 13", image, Workspace(), Modules()), lambda _: None
    )


def test_a_tree_is_what_its_manifest_says(tmp_path: Path) -> None:
    manifest, text = made(tmp_path, {"nvidia.ko": module("nvidia"), "nvidia-uvm.ko": module("nvidia_uvm")})
    build = Build(V, "3975.2.0", KERNEL, "grid")
    tree = tmp_path / "image/opt/nvidia" / V / "3975.2.0"
    Trees(tmp_path / "image/opt").verify(str(tree), build)
    assert manifest == manifests.parse(text) and manifest.build == build
    assert (tree / "manifest.json").read_text() == text
    assert manifest.vermagic == f"{KERNEL} SMP preempt mod_unload " and manifest.compiler == "gcc 13"
    assert stat.S_IMODE((tree / "bin/nvidia-modprobe").stat().st_mode) == 0o4755
    assert [entry.path for entry in manifest.entries] == [
        *("bin/nvidia-modprobe", "bin/nvidia-smi", f"lib/modules/{KERNEL}/nvidia-uvm.ko"),
        *(f"lib/modules/{KERNEL}/nvidia.ko", "lib64/libcuda.so.1", f"lib64/libcuda.so.{V}"),
    ]


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        pytest.param({"nvidia-uvm.ko": module("nvidia_uvm")}, "no nvidia.ko came of it", id="none"),
        pytest.param({}, "no nvidia.ko came of it", id="none at all"),
        pytest.param({"nvidia.ko": module("nvidia", "9.9.9")}, "is for kernel '9.9.9'", id="another kernel"),
        pytest.param(
            {"nvidia.ko": module("nvidia", version="1.2")}, "is of version '1.2'", id="another driver"
        ),
    ],
)
def test_modules_that_are_not_those_of_the_release(
    tmp_path: Path, modules: dict[str, bytes], words: str
) -> None:
    with pytest.raises(Failure) as failed:
        made(tmp_path, modules)
    assert failed.value.code is Code.BUILD_FAILED and words in failed.value.sentence
    assert not list(tmp_path.rglob("manifest.json"))


def test_a_module_without_a_version_is_taken() -> None:
    found = tuple(
        ModuleFile(name, f"/{name}.ko", v, f"{KERNEL} SMP", ()) for name, v in (("nvidia", V), ("x", ""))
    )
    assert check_modules(found, RELEASE, DRIVER) == f"{KERNEL} SMP"


def test_labels_become_arguments_of_the_transport_image(tmp_path: Path) -> None:
    manifest, text = made(tmp_path, {"nvidia.ko": module("nvidia")})
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert building.transport_arguments(manifests.labels(manifest, digest)) == {
        "SCHEMA": "1",
        "DRIVER": V,
        "FLAVOUR": "open",
        "PRODUCT": "grid",
        "OS_ID": "flatcar",
        "OS_VERSION": "3975.2.0",
        "KERNEL": KERNEL,
        "VERMAGIC": manifest.vermagic,
        "MANIFEST": digest,
        "SIZE": str(manifest.size),
        "FILES": str(manifest.count),
        "PCI": " ".join(manifest.pci).replace("10de:", ""),
    }


def test_the_transport_image_sets_every_label() -> None:
    """An argument that the Dockerfile does not know would be ignored, and its label missing."""
    from tests.payload.image import TRANSPORT

    text = (TRANSPORT / "Dockerfile").read_text()
    cuda = manifests.cuda("12.4.1", "525.60.13", "x86_64", ())
    driver = manifests.Manifest(V, Flavour.OPEN, "", "x86_64", "flatcar", "1", KERNEL, "v", "c", (), ())
    for manifest in (cuda, driver):
        for label in manifests.labels(manifest, "0" * 64):
            (argument,) = building.transport_arguments({label: ""})
            assert f'{label}="${{{argument}}}"' in text
            assert f" {argument}" in text.partition("LABEL")[0]


@pytest.mark.parametrize(
    ("version", "reference"),
    [("3975.2.0", "flatcar-developer:3975.2.0"), ("4081.0.0+nightly", "flatcar-developer:4081.0.0-nightly")],
)
def test_developer_images_have_names_that_are_tags(version: str, reference: str) -> None:
    release = OsRelease(Family.FLATCAR, version, "stable", Architecture.AMD64)
    assert developers.reference(release) == reference
    assert developers.reference(release, "r/dev").startswith("r/dev:")

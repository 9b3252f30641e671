# SPDX-License-Identifier: Apache-2.0
"""Building: the real driver for a real kernel, one that it cannot be built for, the same layer twice."""

from __future__ import annotations

import json
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from nvidiad.image.verbs import build as building
from nvidiad.image.verbs.build import Built, Options
from nvidiad.image.world import driver
from nvidiad.image.world.workspace import Workspace
from nvidiad.nouns import manifest as manifests
from nvidiad.nouns.errors import Code, Failure
from nvidiad.nouns.model import Build
from nvidiad.world.modules import Modules
from nvidiad.world.trees import Trees
from tests.beds.common import CHECKOUT, require, run_checked
from tests.images import realdriver, smalldriver
from tests.images.realdriver import BROKEN, DRIVER, KERNEL
from tests.images.workshop import BASE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nvidiad.image.nouns.model import DriverSource
    from nvidiad.image.thought.package import Layout
    from nvidiad.nouns.model import Progress
    from tests.images.workshop import Workshop

BUILD = Build(DRIVER, KERNEL, KERNEL)
LIBRARIES = (
    *("libcuda", "libnvidia-ml", "libnvidia-cfg", "libnvidia-ptxjitcompiler", "libnvidia-nvvm"),
    *("libnvidia-opencl", "libcudadebugger"),
)


@pytest.fixture(scope="module")
def image(workshop: Workshop) -> str:
    return realdriver.real_image(workshop)


@pytest.fixture(scope="module")
def host(workshop: Workshop, image: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory where the image has installed itself, as `docker run` alone lets it."""
    root = tmp_path_factory.mktemp("host")
    command = ("run", "--rm", "--privileged", "--network=none", "-v", f"{root}:/rootfs", image)
    assert "installed: '/opt/nvidia/" in workshop.docker(*command)
    assert "already installed" in workshop.docker(*command)
    return root


def test_the_image_installs_the_tree_that_its_manifest_and_labels_name(
    workshop: Workshop, image: str, host: Path
) -> None:
    tree = host / f"opt/nvidia/{DRIVER}/{KERNEL}"
    Trees(host / "opt").verify(str(tree), BUILD)
    labels = workshop.engine.labels(image)
    manifests.check_labels(labels, BUILD)
    manifest = manifests.parse((tree / "manifest.json").read_text())
    assert (
        labels["io.nvidiad.vermagic"] == manifest.vermagic == f"{KERNEL} SMP preempt mod_unload modversions "
    )
    assert manifest.compiler.startswith("gcc-12 (Debian 12.2.0")
    assert "10de:20b5" in manifest.pci and "10de:1340" not in manifest.pci
    modules = {module.name: module for module in Modules().read(str(tree), KERNEL)}
    assert set(modules) == {"nvidia", "nvidia_uvm", "nvidia_modeset", "nvidia_drm", "nvidia_peermem"}
    assert {module.version for module in modules.values()} == {DRIVER}
    for name in LIBRARIES:
        assert (tree / f"lib64/{name}.so.{DRIVER}").stat().st_size > 100_000
        assert (tree / f"lib64/{name}.so.1").exists() or name == "libnvidia-nvvm"
    assert (tree / f"lib/firmware/nvidia/{DRIVER}/gsp_ga10x.bin").stat().st_size > 30_000_000
    assert (tree / "bin/nvidia-modprobe").stat().st_mode & 0o7777 == 0o4755


def test_debug_symbols_are_gone_and_nothing_tells_of_this_machine(host: Path) -> None:
    folder = host / f"opt/nvidia/{DRIVER}/{KERNEL}/lib/modules/{KERNEL}"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 30_000_000
    content = (folder / "nvidia.ko").read_bytes()
    assert b".debug_info" not in content and b"nvidia-image-" not in content


@pytest.mark.parametrize(
    ("program", "status", "words"),
    [
        pytest.param(("nvidia-smi", ""), 9, "couldn't communicate with the NVIDIA driver", id="smi"),
        pytest.param(
            ("nvidia-persistenced", "--version"), 0, "nvidia-persistenced:  version", id="persistenced"
        ),
    ],
)
def test_the_programs_run_from_the_tree_alone(
    host: Path, program: tuple[str, ...], status: int, words: str
) -> None:
    """On a host that has a C library and nothing else of Debian's."""
    tree = f"/opt/nvidia/{DRIVER}/{KERNEL}"
    for name in (
        "ld-linux-x86-64.so.2",
        "libc.so.6",
        "libm.so.6",
        "libdl.so.2",
        "libpthread.so.0",
        "librt.so.1",
    ):
        _take(host, name)
    _take(host, "libresolv.so.2")
    # The linker asks /proc where a program lies, and finds by it what is beside the program.
    (host / "proc").mkdir(exist_ok=True)
    enter = 'mount --bind /proc "$1/proc"; export LD_LIBRARY_PATH=$2/lib64; exec chroot "$1" "$2/bin/$3" $4'
    command = ["unshare", "--mount", "sh", "-euc", enter, "sh", str(host), tree, *program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, words in done.stdout) == (status, True), done


def _take(host: Path, name: str) -> None:
    """Give a host one of this machine's libraries, where the linker looks for it."""
    listed = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    found = next(line.split(" => ")[1] for line in listed.splitlines() if line.split()[0] == name)
    for place in ("lib64", "lib/x86_64-linux-gnu"):
        (host / place).mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-L", found, str(host / place / name)], check=True)


def test_a_kernel_that_it_cannot_be_built_for(workshop: Workshop) -> None:
    with pytest.raises(Failure) as failed:
        realdriver.make(
            workshop, BROKEN, "workshop/broken:1", exclude=("nvidia-drm", "nvidia-peermem", "nvidia-modeset")
        )
    assert failed.value.code is Code.BUILD_FAILED and not failed.value.retry
    assert failed.value.sentence.startswith(
        f"driver {DRIVER} (open) for debian {BROKEN} (amd64), kernel {BROKEN},"
    )
    assert "nvidia/nv-pci.c:" in failed.value.sentence
    assert "too few arguments to function 'pci_resize_resource'" in failed.value.sentence
    assert not workshop.engine.has("workshop/broken:1")
    assert "nvidiad-modules" not in workshop.docker("images")


def test_what_was_measured(workshop: Workshop, image: str) -> None:
    """The facts in docs/images.md come from this file."""
    facts = json.loads((realdriver.real_archive(workshop) / "built.json").read_text())
    assert facts["layer"] == workshop.engine.layers(image)[-1]
    assert facts["compile_seconds"] > 1 and facts["tree_bytes"] > 100_000_000
    assert facts["absent"] == []


# ---------------------------------------------------------------------------------------------------
# A small driver, compiled for real in seconds


def small(workshop: Workshop, package: Path, reference: str, **more: object) -> Built:
    """Build the small driver's `.run` package for the real kernel, from the first compiler on."""

    def unpack(source: DriverSource, dest: Path, tell: Callable[[Progress], None]) -> Layout:
        driver.check(source, package, tell)
        return driver.unpack_run(source, package, dest)

    given = {"developer": realdriver.developer_image(workshop), **more}
    options = Options(reference, CHECKOUT / "docker", base=BASE, fresh=True, **given)  # type: ignore[arg-type]
    return building.build(
        realdriver.release(),
        smalldriver.source(package),
        options,
        workshop.engine,
        Workspace(),
        Modules(),
        unpack,
        time.monotonic,
        lambda _: None,
    )


def unnamed(workshop: Workshop) -> list[str]:
    """The images that have lost their names, whichever test left them."""
    return workshop.docker("images", "--quiet", "--filter", "dangling=true").split()


def test_two_builds_from_the_same_inputs_give_the_same_layer(workshop: Workshop, tmp_path: Path) -> None:
    package = smalldriver.run_package(tmp_path)
    others = unnamed(workshop)
    built = [small(workshop, package, f"workshop/small:{name}") for name in ("one", "two")]
    assert built[0].layer == built[1].layer and built[0].manifest == built[1].manifest
    assert built[0].image_id and built[0].modules == ("nvidia-modeset.ko", "nvidia-uvm.ko", "nvidia.ko")
    digests = []
    for each in built:
        reference = f"{workshop.registry}/small:{each.reference.rpartition(':')[2]}"
        workshop.engine.tag(each.reference, reference)
        workshop.engine.push(reference, None)
        shown = json.loads(workshop.docker("manifest", "inspect", "--insecure", reference))
        digests.append([layer["digest"] for layer in shown["layers"]])
    assert digests[0] == digests[1]
    # What stage one left is gone: images with sources and objects of every build would fill the disk.
    assert set(unnamed(workshop)) <= set(others)
    assert "nvidiad-modules" not in workshop.docker("images")


def test_signed_modules_and_no_key_in_any_layer(workshop: Workshop, tmp_path: Path) -> None:
    require("openssl")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ["-subj", "/CN=test", "-days", "2", "-nodes", "-newkey", "rsa:2048"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    run_checked(["openssl", "req", "-new", "-x509", *subject, *files], "openssl req")
    package = smalldriver.run_package(tmp_path)
    built = small(workshop, package, "workshop/small:signed", key=key, certificate=certificate)
    workshop.engine.extract(
        built.reference, f"/opt/nvidia/{smalldriver.VERSION}/{KERNEL}", tmp_path / "tree"
    )
    assert all(module.signed for module in Modules().read(str(tmp_path / "tree"), KERNEL))
    workshop.engine.save(built.reference, tmp_path / "saved.tar")
    secret = key.read_text().splitlines()[3].encode()
    assert secret not in (tmp_path / "saved.tar").read_bytes()
    unsigned = small(workshop, package, "workshop/small:unsigned")
    assert unsigned.layer != built.layer


def test_a_release_whose_developer_image_is_not_there_or_another(workshop: Workshop, tmp_path: Path) -> None:
    package = smalldriver.run_package(tmp_path)
    with pytest.raises(Failure, match="is not in the container engine") as failed:
        small(workshop, package, "workshop/small:none", developer="workshop/nothing:1")
    assert failed.value.code is Code.IMAGE_MISSING
    other = tmp_path / "other.tar"
    other.write_bytes(b"\0" * 10240)
    workshop.engine.import_tree(other, "workshop/other:1", {"io.nvidiad.developer.kernel": "9.9.9"})
    with pytest.raises(Failure, match=r"has kernel '9\.9\.9'") as failed:
        small(workshop, package, "workshop/small:none", developer="workshop/other:1")
    assert failed.value.code is Code.IMAGE_MISMATCH

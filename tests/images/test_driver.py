# SPDX-License-Identifier: Apache-2.0
"""Drivers as they come: packages made as NVIDIA makes them, unpacked without being executed."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING

import pytest

from nvidiad.image.nouns.model import SourceKind
from nvidiad.image.world import compiled, driver, tar
from nvidiad.nouns.errors import Code, Failure
from nvidiad.nouns.value import replace
from tests.beds.common import require, run_checked
from tests.images import smalldriver
from tests.images.smalldriver import VERSION

if TYPE_CHECKING:
    from pathlib import Path

PATHS = {
    *(f"lib64/{name}.so.{VERSION}" for name in ("libcuda", "libnvidia-ml", "libnvidia-cfg")),
    *("bin/nvidia-smi", "bin/nvidia-modprobe", "bin/nvidia-persistenced", "share/doc/LICENSE"),
    *("share/supported-gpus.json", f"lib/firmware/nvidia/{VERSION}/gsp_ga10x.bin"),
}


@pytest.mark.parametrize("compression", ["xz", "gzip", "bzip2"])
def test_a_run_package_is_unpacked_and_not_executed(tmp_path: Path, compression: str) -> None:
    package = smalldriver.run_package(tmp_path, compression=compression)
    # A script that would leave a mark, and say no, if anybody ran it.
    text = package.read_bytes()
    package.write_bytes(text.replace(b"#!/bin/sh\n", b"#!/bin/no\n", 1))
    layout = driver.unpack_run(smalldriver.source(package), package, tmp_path / "out")
    assert {item.path for item in layout.items} == PATHS
    assert [link.path for link in layout.links] == [
        f"lib64/{name}.so.1" for name in ("libcuda", "libnvidia-cfg", "libnvidia-ml")
    ]
    assert layout.pci == ("10de:20b5",) and layout.absent == ()
    assert (tmp_path / "out" / layout.kernel / "nvidia.c").is_file()


def test_what_python_cannot_read_the_package_unpacks_itself(tmp_path: Path) -> None:
    inner = smalldriver.content(tmp_path / "inner")
    run_checked(["tar", "-C", str(inner), "--zstd", "-cf", str(tmp_path / "x.zst"), "."], "tar")
    script = """\
#!/bin/sh
skip=5
[ "$1 $2" = '-x --target' ] || exit 3
mkdir -p "$3"; tail -n +5 "$0" | zstd -dc | tar -xf - -C "$3"; exit
"""
    package = tmp_path / "own.run"
    package.write_bytes(script.encode() + (tmp_path / "x.zst").read_bytes())
    layout = driver.unpack_run(smalldriver.source(package), package, tmp_path / "out")
    assert {item.path for item in layout.items} == PATHS


def test_the_redistributable_archive(tmp_path: Path) -> None:
    package = smalldriver.redist_archive(tmp_path)
    layout = driver.unpack_archive(
        smalldriver.source(package, kind=SourceKind.REDIST), package, tmp_path / "out"
    )
    assert {item.path for item in layout.items} == PATHS
    assert layout.pci == ("10de:20b5",)
    with pytest.raises(Failure, match=r"does not name version '1\.2\.3'"):
        driver.unpack_archive(
            smalldriver.source(package, "1.2.3", SourceKind.REDIST), package, tmp_path / "other"
        )


def test_the_fabric_manager_comes_in_an_archive_of_its_own(tmp_path: Path) -> None:
    package = smalldriver.run_package(tmp_path)
    source = smalldriver.source(package)
    layout = driver.unpack_run(source, package, tmp_path / "out")
    name = f"fabricmanager-linux-x86_64-{VERSION}-archive"
    for path in ("bin/nv-fabricmanager", "share/nvidia/nvswitch/fabricmanager.cfg", "include/nv_fm_agent.h"):
        (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name / path).write_text(path)
    run_checked(["tar", "-C", str(tmp_path), "-cJf", f"{tmp_path}/{name}.tar.xz", name], "tar")
    more = driver.add_archive(source, layout, tmp_path / f"{name}.tar.xz", tmp_path / "out")
    added = {item.path: item for item in more.items if item.path not in PATHS}
    assert set(added) == {"bin/nv-fabricmanager", "share/nvidia/nvswitch/fabricmanager.cfg"}
    assert (tmp_path / "out" / added["bin/nv-fabricmanager"].source).is_file()
    assert len(more.links) == len(layout.links)


def test_a_package_that_is_another_one(tmp_path: Path) -> None:
    package = smalldriver.run_package(tmp_path)
    source = smalldriver.source(package)
    driver.check(source, package, lambda _: None)
    with pytest.raises(Failure, match="instead of 0000") as failed:
        driver.check(replace(source, sha256="0" * 64), package, lambda _: None)
    assert failed.value.code is Code.DIGEST_MISMATCH
    with pytest.raises(Failure, match=f"says that it is version '{VERSION}'") as failed:
        driver.unpack_run(replace(source, version="550.163.01"), package, tmp_path / "out")
    assert failed.value.code is Code.SOURCE_INVALID


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        pytest.param(lambda data: data[:-2000], "not a whole tar archive", id="truncated"),
        pytest.param(
            lambda data: data[:-1500] + bytes(1000) + data[-500:], "not a whole tar archive", id="zeroed"
        ),
        pytest.param(lambda data: b"hello", "not a self-extracting package", id="no script"),
    ],
)
def test_a_damaged_package(tmp_path: Path, damage: object, words: str) -> None:
    package = smalldriver.run_package(tmp_path)
    assert callable(damage)
    package.write_bytes(damage(package.read_bytes()))
    with pytest.raises(Failure, match=words) as failed:
        driver.unpack_run(smalldriver.source(package), package, tmp_path / "out")
    assert failed.value.code is Code.SOURCE_INVALID


@pytest.mark.parametrize(
    ("name", "link"),
    [
        pytest.param("../evil", "", id="climbs"),
        pytest.param("a/../../evil", "", id="climbs after a descent"),
        pytest.param("out/evil", "..", id="through a link"),
    ],
)
def test_an_archive_that_leaves_its_place(tmp_path: Path, name: str, link: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        if link:
            # tarfile follows it where an earlier member made it: ours leaves such links out.
            info = tarfile.TarInfo(name.partition("/")[0])
            info.type, info.linkname = tarfile.SYMTYPE, link
            archive.addfile(info)
        info = tarfile.TarInfo(name)
        info.size = 4
        archive.addfile(info, io.BytesIO(b"evil"))
    buffer.seek(0)
    dest = tmp_path / "a/b"
    if link:
        tar.unpack(buffer, dest, "archive")
        assert (dest / "out/evil").read_bytes() == b"evil"
    else:
        with pytest.raises(Failure, match="lies outside"):
            tar.unpack(buffer, dest, "archive")
    assert not list(tmp_path.rglob("evil")) or (dest / "out/evil").is_file()
    assert not (tmp_path / "a/evil").exists() and not (tmp_path / "evil").exists()


def test_an_archive_is_the_same_for_the_same_tree(tmp_path: Path) -> None:
    for name in ("one", "two"):
        smalldriver.content(tmp_path / name)
        tar.pack(tmp_path / name, tmp_path / f"{name}.tar", 0)
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    with tarfile.open(tmp_path / "one.tar") as archive:
        members = archive.getmembers()
    assert {(m.uid, m.gid, m.mtime) for m in members} == {(0, 0, 0)}


def test_a_signature_is_the_kernels_and_leaves_the_module_as_it_was(tmp_path: Path) -> None:
    require("openssl")
    subject = ["-subj", "/CN=test", "-days", "2", "-nodes", "-newkey", "rsa:2048"]
    files = ["-keyout", f"{tmp_path}/key.pem", "-out", f"{tmp_path}/certificate.pem"]
    run_checked(["openssl", "req", "-new", "-x509", *subject, *files], "openssl req")
    module = tmp_path / "nvidia.ko"
    module.write_bytes(b"\x7fELF" + bytes(range(256)) * 20)
    bare = module.read_bytes()
    compiled.sign(module, tmp_path / "key.pem", tmp_path / "certificate.pem")
    once = module.read_bytes()
    compiled.sign(module, tmp_path / "key.pem", tmp_path / "certificate.pem")
    assert module.read_bytes() == once and once.endswith(b"~Module signature appended~\n")
    assert compiled.unsigned(once) == bare
    # What the kernel does: verify the detached PKCS#7 message over the content before it.
    size = int.from_bytes(once[-32:-28], "big")
    (tmp_path / "signature").write_bytes(once[len(bare) : len(bare) + size])
    (tmp_path / "bare").write_bytes(bare)
    verify = ["openssl", "cms", "-verify", "-binary", "-inform", "DER", "-in", f"{tmp_path}/signature"]
    verify += ["-content", f"{tmp_path}/bare", "-certfile", f"{tmp_path}/certificate.pem", "-noverify"]
    assert "Verification successful" in run_checked([*verify, "-out", "/dev/null"], "openssl cms")
    (tmp_path / "bare").write_bytes(bare + b"x")
    with pytest.raises(Exception, match="failed"):
        run_checked([*verify, "-out", "/dev/null"], "openssl cms")
    with pytest.raises(Failure, match="openssl") as failed:
        compiled.sign(module, tmp_path / "certificate.pem", tmp_path / "certificate.pem")
    assert failed.value.code is Code.SOURCE_INVALID

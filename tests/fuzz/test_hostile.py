# SPDX-License-Identifier: Apache-2.0
"""Archives and trees that were made to harm: where their files come to lie, and what is said of them."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nvidiad.image.world import tar
from nvidiad.nouns import manifest as manifests
from nvidiad.nouns.errors import Code, Failure
from nvidiad.world import files
from nvidiad.world.trees import Trees
from tests.unit.test_trees import BUILD, move, source, swap

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FILE, LINK, HARD, DIRECTORY = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE
Member = tuple[str, bytes, str]
"""A name, a type, and a target or what is in it."""


def packed(*members: Member, mode: int = 0o6777, **headers: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, kind, what in members:
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.uid = kind, mode, 1234
            info.pax_headers = dict(headers)
            data = what.encode() if kind == FILE else b""
            info.size, info.linkname = len(data), "" if kind == FILE else what
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def sparse(size: int) -> bytes:
    """A file of this size with nothing in it (GNU's sparse format 1.0)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("GNUSparseFile.0/huge")
        headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "huge"}
        info.pax_headers = headers | {"GNU.sparse.realsize": str(size)}
        table = f"1\n{size}\n0\n".encode().ljust(512, b"\0")
        info.size = len(table)
        archive.addfile(info, io.BytesIO(table))
    return out.getvalue()


# What is refused, and what is unpacked with less than it asks for: names and the content of files.
REFUSED: Mapping[str, bytes] = {
    "a name that climbs": packed(("../evil", FILE, "x")),
    "a name that climbs on its way": packed(("a/../../evil", FILE, "x")),
    "a name that climbs from the top": packed(("/../evil", FILE, "x")),
    "a directory that climbs": packed(("a/../../evil", DIRECTORY, "")),
    "a name of endless depth": packed(("a/" * 3000 + "x", FILE, "x")),
    "a name that is too long": packed(("x" * 3000, FILE, "x")),
    "a file below a file": packed(("a", FILE, "x"), ("a/b", FILE, "x")),
    "a file in place of a directory": packed(("a/b", FILE, "x"), ("a", FILE, "x")),
    "a directory in place of a file": packed(("a", FILE, "x"), ("a", DIRECTORY, "")),
    "a link in place of a directory": packed(("a/b", FILE, "x"), ("a", LINK, "c")),
    "links in a circle": packed(("a", LINK, "b"), ("b", LINK, "a"), ("a/x", FILE, "x")),
    "a time that is none": packed(("a", FILE, "x"), mtime="1e300"),
    "a huge sparse file": sparse(1 << 28),
    "half an archive": packed(("a", FILE, "x" * 4000))[:1000],
}
TAKEN: Mapping[str, tuple[bytes, dict[str, str]]] = {
    "an absolute name": (packed(("/etc/passwd", FILE, "x")), {"etc/passwd": "x"}),
    "an absolute link": (packed(("a", LINK, "/etc")), {}),
    "a file behind an absolute link": (packed(("a", LINK, "/etc"), ("a/b", FILE, "x")), {"a/b": "x"}),
    "a link that climbs": (packed(("a", LINK, "../../x")), {}),
    "a link that climbs by another": (
        packed(("d", DIRECTORY, ""), ("d/up", LINK, ".."), ("d/up2", LINK, "up/../x")),
        {"d/up": "-> .."},
    ),
    "a hard link to outside": (packed(("a", HARD, "/etc/passwd"), ("b", HARD, "../../etc/passwd")), {}),
    "a hard link to itself": (packed(("a", FILE, "x"), ("a", HARD, "a")), {"a": "x"}),
    "a hard link to a link to outside": (packed(("a", LINK, "/etc/passwd"), ("b", HARD, "a")), {}),
    "an empty link": (packed(("a", LINK, "")), {}),
    "a device": (packed(("dev", tarfile.CHRTYPE, ""), ("block", tarfile.BLKTYPE, "")), {}),
    "a pipe": (packed(("pipe", tarfile.FIFOTYPE, "")), {}),
    "a name of control characters": (packed(("a\x1b[31m\nb\u202e", FILE, "x")), {"a\x1b[31m\nb\u202e": "x"}),
    "a name that is not UTF-8": (packed(("a\udcff", FILE, "x")), {"a\udcff": "x"}),
    "twice the same": (packed(("a", FILE, "x"), ("a", FILE, "y")), {"a": "y"}),
}


def unpacked(data: bytes, place: Path) -> dict[str, str]:
    """What lies where it should, once it is known that nothing lies elsewhere."""
    inner = place / "in/side"
    try:
        tar.unpack(io.BytesIO(data), inner, "archive.tar")
    finally:
        assert [path.name for path in place.iterdir()] == ["in"]
        assert [path.name for path in (place / "in").iterdir()] == ["side"]
        for name, found in files.walk(inner):
            assert found.st_uid == os.geteuid(), name
            assert stat.S_ISLNK(found.st_mode) or not stat.S_IMODE(found.st_mode) & 0o7022, name
    content = {}
    for name, found in files.walk(inner):
        if stat.S_ISLNK(found.st_mode):
            content[name] = f"-> {(inner / name).readlink()}"
        elif not stat.S_ISDIR(found.st_mode):
            content[name] = (inner / name).read_text()
    return content


@pytest.mark.parametrize("name", REFUSED)
def test_an_archive_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(Failure) as caught:
        unpacked(REFUSED[name], tmp_path)
    assert caught.value.code is Code.SOURCE_INVALID
    assert len(caught.value.sentence) < 500


@pytest.mark.parametrize("name", TAKEN)
def test_an_archive_does_no_harm(tmp_path: Path, name: str) -> None:
    data, left = TAKEN[name]
    assert unpacked(data, tmp_path) == left


# ---------------------------------------------------------------------------------------------------
# Trees


def _deep(tree: Path) -> None:
    """Deeper than Python calls itself, and than a path can say."""
    here = os.open(tree, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)


def _many(tree: Path) -> None:
    for number in range(100_000):
        os.close(os.open(tree / f"bin/{number}", os.O_CREAT | os.O_WRONLY))


def _socket(tree: Path) -> None:
    os.mknod(tree / "bin/s", stat.S_IFSOCK | 0o755)


def _device(tree: Path) -> None:
    os.mknod(tree / "bin/x", stat.S_IFCHR | 0o666, 0)


def _sparse(tree: Path) -> None:
    with (tree / "bin/nvidia-smi").open("r+b") as file:
        file.truncate(1 << 42)


def _owned(path: str) -> Callable[[Path], None]:
    return lambda tree: os.lchown(tree / path, 1234, 1234)


HARMFUL: Mapping[str, tuple[Callable[[Path], object], str]] = {
    "a name with a newline": (
        lambda tree: (tree / "bin/a\nb").touch(),
        "'bin/a\\nb' is not in the manifest",
    ),
    "a name of control characters": (
        lambda tree: (tree / "bin/\x1b[2J\u202e").touch(),
        "'bin/\\x1b[2J\\u202e' is not in the manifest",
    ),
    "a name that is not UTF-8": (
        lambda tree: (tree / "bin/\udcff").touch(),
        "'bin/\\udcff' is not in the manifest",
    ),
    "a hundred thousand files": (_many, "is not in the manifest (and 99999 more faults)"),
    "a directory of endless depth": (_deep, "'d' is not in the manifest"),
    "a huge sparse file": (_sparse, f"'bin/nvidia-smi' has {1 << 42} bytes instead of"),
    "a socket": (_socket, "'bin/s' is not in the manifest"),
    "a device": (_device, "'bin/x' is not in the manifest"),
    "a device in place of a file": (
        lambda tree: swap(tree / "bin/nvidia-smi", lambda path: os.mknod(path, stat.S_IFBLK)),
        "'bin/nvidia-smi' is not a file",
    ),
    "a file that everybody may write": (
        lambda tree: (tree / "bin/nvidia-smi").chmod(0o757),
        "'bin/nvidia-smi' has mode 0757 instead of 0755",
    ),
    "a program that runs as root": (
        lambda tree: (tree / "bin/nvidia-smi").chmod(0o6755),
        "'bin/nvidia-smi' has mode 6755 instead of 0755",
    ),
    "a directory that everybody may write": (
        lambda tree: (tree / "lib64").chmod(0o1777),
        "directory 'lib64' may be written by others",
    ),
    "a tree that everybody may write": (
        lambda tree: tree.chmod(0o777),
        "its directory may be written by others",
    ),
    "a manifest that everybody may write": (
        lambda tree: (tree / "manifest.json").chmod(0o666),
        "'manifest.json' may be written by others",
    ),
    "a file of somebody else": (_owned("bin/nvidia-smi"), "'bin/nvidia-smi' belongs to uid 1234"),
    "a directory of somebody else": (_owned("lib64"), "directory 'lib64' belongs to uid 1234"),
    "a tree of somebody else": (_owned("."), "its directory belongs to uid 1234"),
    "a manifest of somebody else": (_owned("manifest.json"), "'manifest.json' belongs to uid 1234"),
    "a link out of it": (
        lambda tree: swap(tree / "bin/nvidia-smi", lambda path: path.symlink_to("/bin/sh")),
        "'bin/nvidia-smi' is not a file",
    ),
    "a directory that is elsewhere": (lambda tree: move(tree / "bin", "../bin"), "'bin' is not a directory"),
}


@pytest.mark.parametrize("name", HARMFUL)
def test_a_harmful_tree_is_refused(tmp_path: Path, name: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to make devices and to be others")
    harm, words = HARMFUL[name]
    tree = source(tmp_path / "source")
    trees = Trees(tmp_path / "source/opt")
    trees.verify(str(tree), BUILD)
    harm(tree)
    with pytest.raises(Failure) as caught:
        trees.verify(str(tree), BUILD)
    assert caught.value.code is Code.TREE_INVALID
    assert words in caught.value.sentence
    assert caught.value.sentence.isprintable()
    # pytest's own removal calls itself as often as there are directories.
    if name == "a directory of endless depth":
        os.system(f"rm -rf '{tree}/d'")  # noqa: S605


def test_a_file_that_is_a_hard_link_to_something_else_is_copied(tmp_path: Path) -> None:
    """What is installed has nothing in common with what it was installed from."""
    tree = source(tmp_path / "source")
    outside = tmp_path / "outside"
    os.link(tree / "bin/nvidia-smi", outside)
    installed = Path(Trees(tmp_path / "opt").install(tree, lambda _: None).path)
    outside.write_text("evil")
    assert (installed / "bin/nvidia-smi").read_text() != "evil"
    assert (installed / "bin/nvidia-smi").stat().st_nlink == 1


def test_a_manifest_of_endless_depth_is_refused() -> None:
    """Of so many names each has hundreds of directories, which are more than any memory."""
    digest = "0" * 64
    rows = [
        f'{{"path": "{"/".join([f"{number:x}"] + ["a"] * 500)}", "type": "file", "mode": "0644", "size": 1,'
        f' "sha256": "{digest}"}}'
        for number in range(50)
    ]
    head = manifests.render(manifests.cuda("12.4.1", "535.1", "x86_64", ())).partition("[\n")[0]
    with pytest.raises(Failure, match="deeper than 32 directories"):
        manifests.parse(f"{head}[\n{','.join(rows)}\n]}}\n")

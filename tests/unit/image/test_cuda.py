# SPDX-License-Identifier: Apache-2.0
"""A CUDA toolkit becomes a tree that the daemon and the installer take, or is refused by name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from nvidiad.image.nouns.model import Architecture
from nvidiad.image.verbs.cuda import cuda_tree
from nvidiad.image.world.workspace import Workspace
from nvidiad.nouns import manifest as manifests
from nvidiad.nouns.errors import Code, Failure
from nvidiad.nouns.model import Build, Kind
from nvidiad.world.trees import Trees

if TYPE_CHECKING:
    from pathlib import Path

    from nvidiad.nouns.manifest import Manifest

VERSION, MINIMUM = "12.4.1", "550.54.15"


@pytest.fixture
def toolkit(tmp_path: Path) -> Path:
    """What NVIDIA's package leaves at /usr/local/cuda-12.4, in small, unpacked with a lax umask."""
    top = tmp_path / "cuda-12.4"
    for path, mode in (("bin/nvcc", 0o775), ("targets/x86_64-linux/lib/libcudart.so.12.4.127", 0o664)):
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).write_text(path)
        (top / path).chmod(mode)
    (top / "targets/x86_64-linux/lib/libcudart.so.12").symlink_to("libcudart.so.12.4.127")
    (top / "lib64").symlink_to("targets/x86_64-linux/lib")
    (top / "version.json").write_text(json.dumps({"cuda": {"name": "CUDA SDK", "version": VERSION}}))
    return top


def make(toolkit: Path, root: Path, version: str = VERSION, minimum: str = MINIMUM) -> tuple[Manifest, str]:
    return cuda_tree(toolkit, version, minimum, Architecture.AMD64, root, Workspace(), lambda _: None)


def test_a_tree_that_is_what_its_manifest_says(toolkit: Path, tmp_path: Path) -> None:
    made, text = make(toolkit, tmp_path / "image")
    tree = tmp_path / "image/opt/cuda" / VERSION
    assert (made.kind, made.minimum_driver, made.architecture) == (Kind.CUDA, MINIMUM, "x86_64")
    assert (tree / "manifest.json").read_text() == text
    assert manifests.parse(text) == made
    Trees(tmp_path / "image/opt").verify(str(tree), Build(VERSION, "", "", kind=Kind.CUDA))
    (listed,) = Trees(tmp_path / "image/opt").list(Kind.CUDA)
    assert listed.minimum_driver == MINIMUM
    assert (tree / "lib64/libcudart.so.12").read_text() == "targets/x86_64-linux/lib/libcudart.so.12.4.127"
    assert (tree / "bin/nvcc").stat().st_mode & 0o7777 == 0o755
    assert manifests.labels(made, "")["io.nvidiad.minimum-driver"] == MINIMUM
    # The toolkit that was given is as it was.
    assert (toolkit / "bin/nvcc").stat().st_mode & 0o7777 == 0o775
    assert not (toolkit / "manifest.json").exists()
    # Once more, elsewhere: the same text.
    assert make(toolkit, tmp_path / "again")[1] == text


@pytest.mark.parametrize(
    ("version", "minimum", "words"),
    [
        ("12.5.0", MINIMUM, "is CUDA 12.4.1, not 12.5.0"),
        ("current", MINIMUM, "'current' is no CUDA version"),
        ("../x", MINIMUM, "'../x' is no CUDA version"),
        (VERSION, "550", "'550' is no driver version"),
        (VERSION, ">=550.54.15", "'>=550.54.15' is no driver version"),
        (VERSION, "", "'' is no driver version"),
    ],
)
def test_versions_that_are_refused(
    toolkit: Path, tmp_path: Path, version: str, minimum: str, words: str
) -> None:
    with pytest.raises(Failure) as caught:
        make(toolkit, tmp_path / "image", version, minimum)
    assert caught.value.code is Code.SOURCE_INVALID
    assert words in caught.value.sentence
    assert not (tmp_path / "image").exists()


def test_toolkits_that_are_refused(toolkit: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(Failure, match="is no CUDA toolkit"):
        make(tmp_path / "empty", tmp_path / "image")
    (toolkit / "manifest.json").write_text("{}")
    with pytest.raises(Failure, match=r"has a 'manifest\.json' already"):
        make(toolkit, tmp_path / "image")
    (toolkit / "manifest.json").unlink()
    (toolkit / "doc").symlink_to("/usr/share/doc/cuda")
    with pytest.raises(Failure, match="doc") as caught:
        make(toolkit, tmp_path / "image")
    assert caught.value.code is Code.MANIFEST_INVALID


@pytest.mark.parametrize("text", ["not JSON", "{}", "[]", '{"cuda": "12.4"}'])
def test_a_toolkit_that_does_not_say_its_version(toolkit: Path, tmp_path: Path, text: str) -> None:
    (toolkit / "version.json").write_text(text)
    assert make(toolkit, tmp_path / "image")[0].driver == VERSION

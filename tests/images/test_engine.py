# SPDX-License-Identifier: Apache-2.0
"""The workshop's engine: what is imported, built, read, saved and pushed, with a real registry."""

from __future__ import annotations

import os
import tarfile
from typing import TYPE_CHECKING

import pytest

from nvidiad.image.world import tar
from nvidiad.nouns.errors import Code, Failure
from nvidiad.world.files import walk
from tests.images.workshop import BASE

if TYPE_CHECKING:
    from pathlib import Path

    from nvidiad.nouns.model import Progress
    from tests.images.workshop import Workshop


def tree(path: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return path


def context(path: Path, dockerfile: str, **files: str) -> Path:
    return tree(path, {"Dockerfile": dockerfile, **files})


def test_an_imported_tree_has_its_labels_and_gives_its_files_back(
    workshop: Workshop, tmp_path: Path
) -> None:
    source = tree(tmp_path / "tree", {"usr/lib/a/one": "1", "usr/lib/a/b/two": "2", "usr/lib/c": "3"})
    (source / "usr/lib/a/inside").symlink_to("b/two")
    (source / "usr/lib/a/outside").symlink_to("/usr/src/linux")
    tar.pack(source, tmp_path / "tree.tar", 0)
    told: list[Progress] = []
    reference = "workshop/imported:1.0-a"
    labels = {"io.nvidiad.developer.kernel": "6.1.0-50-amd64", "quoted": 'a "b" $c \\d'}
    workshop.engine.import_tree(tmp_path / "tree.tar", reference, labels, told.append)
    assert told[-1].done == told[-1].total == (tmp_path / "tree.tar").stat().st_size
    assert workshop.engine.has(reference) and not workshop.engine.has("workshop/imported:other")
    assert workshop.engine.labels(reference) == labels
    workshop.engine.extract(reference, "/usr/lib/a", tmp_path / "out")
    found = {name: (tmp_path / "out" / name) for name, _ in walk(tmp_path / "out")}
    assert sorted(found) == ["b", "b/two", "inside", "one"]
    assert found["inside"].read_text() == "2"
    workshop.engine.extract(reference, "/usr/lib/c", tmp_path / "single")
    assert (tmp_path / "single/c").read_text() == "3"
    workshop.engine.extract(reference, "/", tmp_path / "whole")
    assert (tmp_path / "whole/usr/lib/a/one").read_text() == "1"
    workshop.engine.remove(reference)
    assert not workshop.engine.has(reference)
    assert workshop.docker("ps", "--all", "--quiet") == ""


def test_a_build_says_its_lines_and_repeats_itself(workshop: Workshop, tmp_path: Path) -> None:
    dockerfile = (
        "ARG BASE\nFROM ${BASE} AS compile\nCOPY source /source\n"
        "RUN mkdir /out; cat /source > /out/made; echo done-it\n"
        "FROM scratch AS modules\nCOPY --from=compile /out/ /\nFROM ${BASE}\nRUN echo never-reached\n"
    )
    lines: list[str] = []
    where = context(tmp_path / "context", dockerfile, source="text\n")
    for name in ("one", "two"):
        workshop.engine.build(
            where,
            f"workshop/built:{name}",
            arguments={"BASE": BASE},
            target="modules",
            fresh=True,
            say=lines.append,
        )
    assert "done-it" in lines and "never-reached" not in "".join(lines)
    workshop.engine.extract("workshop/built:two", "/", tmp_path / "out")
    assert (tmp_path / "out/made").read_text() == "text\n"


def test_a_failing_build_names_the_compilers_first_error(workshop: Workshop, tmp_path: Path) -> None:
    said = (
        "cc -c one.c\\n/src/nvidia/nv-pci.c:17:9: error: too few arguments to function 'f'\\n"
        "/src/nvidia/nv-pci.c:19:1: error: another\\nmake[1]: *** [Makefile:7: nv-pci.o] Error 1"
    )
    dockerfile = f'ARG BASE\nFROM ${{BASE}}\nRUN printf "{said}\\n"; exit 2\n'
    with pytest.raises(Failure, match="too few arguments") as failed:
        workshop.engine.build(
            context(tmp_path, dockerfile), "workshop/broken:1", arguments={"BASE": BASE}, say=lambda _: None
        )
    assert failed.value.code is Code.BUILD_FAILED and not failed.value.retry
    assert failed.value.sentence == (
        "'workshop/broken:1' cannot be built: nvidia/nv-pci.c:17:9: error: too few arguments to function 'f'"
    )
    assert "make[1]: ***" in failed.value.__notes__[0]
    assert not workshop.engine.has("workshop/broken:1")


def test_a_pushed_image_has_the_registrys_digest(workshop: Workshop, tmp_path: Path) -> None:
    reference = f"{workshop.registry}/pushed:1"
    # A layer that the registry cannot have from another test.
    tar.pack(tree(tmp_path / "tree", {"new": os.urandom(50_000).hex()}), tmp_path / "tree.tar", 0)
    workshop.engine.import_tree(tmp_path / "tree.tar", reference, {})
    layers = workshop.engine.layers(reference)
    told: list[Progress] = []
    digest = workshop.engine.push(reference, None, told.append)
    assert workshop.docker(
        "image", "inspect", "--format", "{{index .RepoDigests 0}}", reference
    ).strip() == (f"{workshop.registry}/pushed@{digest}")
    assert told and told[-1].done == told[-1].total > 0
    assert workshop.engine.push(reference, None) == digest
    workshop.engine.save(reference, tmp_path / "saved.tar")
    with tarfile.open(tmp_path / "saved.tar") as saved:
        assert "manifest.json" in saved.getnames()
    workshop.engine.remove(reference)
    workshop.engine.load(tmp_path / "saved.tar")
    assert workshop.engine.layers(reference) == layers


def test_a_registry_that_is_not_there(workshop: Workshop) -> None:
    reference = "127.0.0.1:1/pushed:1"
    workshop.engine.tag(BASE, reference)
    with pytest.raises(Failure, match="cannot be reached") as failed:
        workshop.engine.push(reference, None)
    assert failed.value.code is Code.REGISTRY_UNREACHABLE


def test_what_the_engine_does_not_have(workshop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(Failure, match="has no image 'workshop/nothing:1'") as failed:
        workshop.engine.labels("workshop/nothing:1")
    assert failed.value.code is Code.IMAGE_MISSING
    with pytest.raises(Failure, match="No such image"):
        workshop.engine.extract("workshop/nothing:1", "/", tmp_path)
    with pytest.raises(Failure, match="/no/such"):
        workshop.engine.extract(BASE, "/no/such", tmp_path)
    workshop.engine.remove("workshop/nothing:1")

# SPDX-License-Identifier: Apache-2.0
"""Bills of materials: whole, valid, and the same for the same inputs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from nvidiad.image.nouns.model import DriverSource, SourceKind
from nvidiad.image.thought import bom
from nvidiad.nouns import manifest as manifests
from nvidiad.nouns.entries import FileEntry
from nvidiad.nouns.model import Flavour
from tests.payload import builder

if TYPE_CHECKING:
    from pathlib import Path

    from nvidiad.nouns.manifest import Manifest

V = "535.309.01"
REFERENCE = f"registry.example:5000/team/nvidia-driver:3975.2.0-{V}"
RUN = DriverSource(V, Flavour.OPEN, SourceKind.RUN, "", f"https://secret.example/x/{V}.run", "a" * 64)
DEBIAN = DriverSource(V, Flavour.OPEN, SourceKind.DEBIAN, "", "bookworm")
MADE = bom.Made("flatcar-developer:3975.2.0", "sha256:" + "b" * 64, "alpine:3.20", "sha256:" + "c" * 64)
DIGEST = "d" * 64


@pytest.fixture(params=["open", "proprietary"])
def manifest(tmp_path: Path, request: pytest.FixtureRequest) -> Manifest:
    tree = builder.payload(
        tmp_path, driver=V, release=("flatcar", "3975.2.0"), kernel="6.6.54-flatcar", flavour=request.param
    )
    return manifests.parse((tree / "manifest.json").read_text())


def components(text: str) -> dict[str, dict[str, Any]]:
    return {one["bom-ref"]: one for one in json.loads(text)["components"]}


@pytest.mark.parametrize("source", [RUN, DEBIAN], ids=lambda one: str(one.kind))
@pytest.mark.parametrize("made", [MADE, bom.Made("developer:1", "x", "base")], ids=["known", "unknown"])
def test_it_is_valid(manifest: Manifest, source: DriverSource, made: bom.Made) -> None:
    text = bom.driver_image(REFERENCE, manifest, DIGEST, source, made)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    said = json.loads(text)
    refs = {"image", *components(text)}
    assert len(refs) == len(said["components"]) + 1
    for each in said["dependencies"]:
        assert {each["ref"], *each["dependsOn"]} <= refs


def test_the_check_of_validity_can_fail(manifest: Manifest) -> None:
    text = bom.driver_image(REFERENCE, manifest, DIGEST, RUN, MADE)
    wrong = text.replace('"SHA-256"', '"SHA-257"')
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(wrong) is not None


def test_every_file_is_in_it_and_what_it_was_made_of(manifest: Manifest) -> None:
    text = bom.driver_image(REFERENCE, manifest, DIGEST, RUN, MADE)
    found = components(text)
    files = {one["name"]: one["hashes"] for one in found.values() if one["bom-ref"].startswith("file:")}
    assert files == {
        entry.path: [{"alg": "SHA-256", "content": entry.sha256}]
        for entry in manifest.entries
        if isinstance(entry, FileEntry)
    }
    depends = {one["ref"]: one["dependsOn"] for one in json.loads(text)["dependencies"]}
    assert {f"file:{path}" for path in files} == {
        ref for ref in depends["driver"] + depends["modules"] if ref.startswith("file:")
    }
    assert found["driver"]["version"] == V
    assert "6.6.54-flatcar" in json.dumps(found["modules"]) and "6.6.54-flatcar" in json.dumps(found["os"])
    assert found["compiler"]["version"] == manifest.compiler
    assert found["source"]["name"] == f"{V}.run"
    assert found["source"]["hashes"][0]["content"] == RUN.sha256
    assert MADE.developer_id in json.dumps(found["developer"])
    licences = found["modules"]["licenses"]
    assert ("GPL" in json.dumps(licences)) is (manifest.flavour is Flavour.OPEN), licences
    # Where somebody fetched the package, and where the image goes, is not for everybody.
    assert "secret.example" not in text and "registry.example" not in text


def test_the_same_inputs_give_the_same_text_and_others_another_number(manifest: Manifest) -> None:
    first, again = (bom.driver_image(REFERENCE, manifest, DIGEST, RUN, MADE) for _ in range(2))
    assert first == again
    other = bom.driver_image(REFERENCE, manifest, DIGEST, DEBIAN, MADE)
    assert json.loads(first)["serialNumber"] != json.loads(other)["serialNumber"]

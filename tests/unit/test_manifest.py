# SPDX-License-Identifier: Apache-2.0
"""Manifests: what is read is what was written, and everything else is refused by name."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvidiad.nouns import manifest as manifests
from nvidiad.nouns.errors import Code, Failure, Permanent
from nvidiad.nouns.manifest import FileEntry, LinkEntry, Manifest
from nvidiad.nouns.model import Build, Flavour

DIGEST = "0123456789abcdef" * 4

GOOD = Manifest(
    driver="535.309.01",
    flavour=Flavour.OPEN,
    product="",
    architecture="x86_64",
    os_id="flatcar",
    os_version="3975.2.0+nightly",
    kernel="6.1.0-56-cloud-amd64",
    vermagic="6.1.0-56-cloud-amd64 SMP preempt mod_unload modversions",
    compiler='gcc (Débian "12") 12.2.0',
    pci=("10de:20b5",),
    entries=(
        FileEntry("bin/nvidia-modprobe", 0o4755, 7, DIGEST),
        FileEntry("bin/nvidia-smi", 0o755, 123, DIGEST),
        FileEntry("lib64/libcuda.so.535.309.01", 0o755, 0, DIGEST),
        LinkEntry("lib64/libcuda.so.1", "libcuda.so.535.309.01"),
        LinkEntry("share/up", "../lib64/libcuda.so.1"),
        FileEntry("share/with space", 0o444, 1 << 40, DIGEST),
    ),
)

TEXT = f"""\
{{"schema": 1, "driver": "535.309.01", "flavour": "open", "product": "", "architecture": "x86_64",
 "os": {{"id": "flatcar", "version": "3975.2.0"}}, "kernel": "6.1.0-56-cloud-amd64",
 "vermagic": "6.1.0-56-cloud-amd64 SMP preempt mod_unload ", "compiler": "gcc ...", "pci": ["10de:20b5"],
 "files": [
{{"path": "bin/nvidia-smi", "type": "file", "mode": "0755", "size": 123, "sha256": "{DIGEST}"}},
{{"path": "lib64/libcuda.so.1", "type": "link", "target": "libcuda.so.535.309.01"}}
]}}
"""


def test_exact_form() -> None:
    """The form is a contract with the installer's awk: byte for byte."""
    manifest = manifests.parse(TEXT)
    assert manifest.build == Build("535.309.01", "3975.2.0", "6.1.0-56-cloud-amd64")
    assert manifest.entries[1] == LinkEntry("lib64/libcuda.so.1", "libcuda.so.535.309.01")
    assert manifests.render(manifest) == TEXT


def test_round_trip() -> None:
    text = manifests.render(GOOD)
    assert text.isascii()
    assert manifests.parse(text) == GOOD


def test_derived() -> None:
    assert GOOD.size == 130 + (1 << 40)
    assert GOOD.directories() == {"bin", "lib64", "share"}
    assert GOOD.entry("share/up") == LinkEntry("share/up", "../lib64/libcuda.so.1")
    assert GOOD.entry("share") is None


ENTRY = '{"path": "bin/nvidia-smi", "type": "file", "mode": "0755", "size": 123, "sha256": "' + DIGEST + '"}'
LINK = '{"path": "lib64/libcuda.so.1", "type": "link", "target": "libcuda.so.535.309.01"}'


SMI = '"bin/nvidia-smi"'
TARGET = '"libcuda.so.535.309.01"'
DRIVER = '"driver": "535.309.01"'
KERNEL = '"kernel": "6.1.0-56-cloud-amd64"'
SHA256 = f'"sha256": "{DIGEST}"'


REFUSED = [
    ("]}\n", "]", "it is not JSON"),
    (TEXT, "", "it is not JSON"),
    (TEXT, "[]", "the document is not an object"),
    (TEXT, "[" * 100_000, "it is not JSON"),
    ('"size": 123', '"size": NaN', "it is not JSON: NaN is not a number"),
    ('"size": 123', '"size": ' + "9" * 5000, "it is not JSON"),
    (DRIVER, '"driver": "535.309.01", "driver": "1"', "a key appears twice"),
    ('"schema": 1', '"schema": 2', "schema 2 is unknown"),
    ('"schema": 1', '"schema": "1"', "schema '1' is unknown"),
    ('"schema": 1', '"schema": true', "schema True is unknown"),
    ('"schema": 1, ', "", "schema None is unknown"),
    (' "kernel": "6.1.0-56-cloud-amd64",', "", "field 'kernel' of the document is missing"),
    ('"schema": 1', '"schema": 1, "signature": ""', "field 'signature' of the document is unknown"),
    (DRIVER, '"driver": 535', "field 'driver' of the document is not a string"),
    (DRIVER, '"driver": "../x"', "field 'driver' of the document is no version: '../x'"),
    (DRIVER, '"driver": ""', "field 'driver' of the document is no version"),
    (DRIVER, '"driver": "5..3"', "field 'driver' of the document is no version"),
    ('"product": ""', '"product": "a/b"', "field 'product' of the document is no version: 'a/b'"),
    ('"version": "3975.2.0"', '"version": "3975/2"', "field 'version' of 'os' is no version: '3975/2'"),
    (' "os": {', ' "os": [], "so": {', "field 'so' of the document is unknown"),
    ('"id": "flatcar"', '"id": "Flat car"', "field 'id' of 'os' is not an OS id: 'Flat car'"),
    ('"id": "flatcar", ', "", "field 'id' of 'os' is missing"),
    (KERNEL, '"kernel": "a b"', "field 'kernel' of the document is no version"),
    ('"flavour": "open"', '"flavour": "free"', "flavour 'free' is neither of open, proprietary"),
    ('"architecture": "x86_64"', '"architecture": "X/86"', "is not an architecture: 'X/86'"),
    ('"gcc ..."', '"gcc\\n"', "field 'compiler' of the document is not a short printable text"),
    ('"gcc ..."', '"\\ud800"', "field 'compiler' of the document is not a short printable text"),
    ('["10de:20b5"]', '["10DE:20B5"]', "'pci' holds '10DE:20B5'"),
    ('["10de:20b5"]', '"10de:20b5"', "'pci' is not an array"),
    ('["10de:20b5"]', "[4318]", "'pci' holds 4318"),
    (f"{ENTRY},\n{LINK}\n", "", "'files' is empty"),
    (ENTRY, "7", "entry 1 is not an object"),
    ('"path": "bin/nvidia-smi", ', "", "field 'path' of entry 1 is missing or not a string"),
    (SMI, '"/bin/nvidia-smi"', "path '/bin/nvidia-smi' of entry 1 is absolute"),
    (SMI, '"bin/../../etc/x"', "path 'bin/../../etc/x' of entry 1 has a component '..'"),
    (SMI, '"bin//x"', "path 'bin//x' of entry 1 has a component ''"),
    (SMI, '"bin/"', "path 'bin/' of entry 1 has a component ''"),
    (SMI, '"./bin"', "path './bin' of entry 1 has a component '.'"),
    (SMI, '""', "path '' of entry 1 has characters that are not allowed"),
    (SMI, '"bin/a\\nb"', "path 'bin/a\\nb' of entry 1 has characters"),
    (SMI, '"bin/a\\u0000b"', "of entry 1 has characters that are not allowed"),
    (SMI, '"bin/a\\"b"', "of entry 1 has characters that are not allowed"),
    (SMI, '"bin/\\u00e9"', "of entry 1 has characters that are not allowed"),
    (SMI, '"' + "x" * 256 + '"', "of entry 1 has a component"),
    (SMI, '"manifest.json"', "path 'manifest.json' of entry 1 is the manifest's own"),
    (SMI, '"lib64/libcuda.so.1"', "path 'lib64/libcuda.so.1' appears twice"),
    (SMI, '"lib64/libcuda.so.1/x"', "is below 'lib64/libcuda.so.1'"),
    (SMI, '"lib64"', "path 'lib64/libcuda.so.1' is below 'lib64', which is no directory"),
    ('"type": "file"', '"type": "device"', "type 'device' of 'bin/nvidia-smi' is neither"),
    ('"type": "file", ', "", "type None of 'bin/nvidia-smi' is neither"),
    ('"mode": "0755"', '"mode": "755"', "mode '755' of 'bin/nvidia-smi'"),
    ('"mode": "0755"', '"mode": 493', "field 'mode' of 'bin/nvidia-smi' is not a string"),
    ('"mode": "0755"', '"mode": "4755"', "mode '4755' of 'bin/nvidia-smi'"),
    ('"mode": "0755"', '"mode": "0777"', "mode '0777' of 'bin/nvidia-smi'"),
    ('"mode": "0755"', '"mode": "0798"', "mode '0798' of 'bin/nvidia-smi'"),
    ('"mode": "0755"', '"mode": "\\u0660755"', "mode '\u0660755' of 'bin/nvidia-smi'"),
    ('"size": 123', '"size": -1', "size -1 of 'bin/nvidia-smi'"),
    ('"size": 123', '"size": 1.5', "size 1.5 of 'bin/nvidia-smi'"),
    ('"size": 123', '"size": true', "size True of 'bin/nvidia-smi'"),
    ('"size": 123', '"size": "123"', "size '123' of 'bin/nvidia-smi'"),
    (SHA256, '"sha256": "abc"', "sha256 'abc' of 'bin/nvidia-smi'"),
    (SHA256, f'"sha256": "{DIGEST.upper()}"', "of 'bin/nvidia-smi' is not 64 lower-case"),
    (SHA256, '"sha256": null', "field 'sha256' of 'bin/nvidia-smi' is not a string"),
    (', "size": 123', "", "field 'size' of 'bin/nvidia-smi' is missing"),
    ('"size": 123', '"size": 123, "owner": "x"', "field 'owner' of 'bin/nvidia-smi' is unknown"),
    (TARGET, '"/etc/shadow"', "target '/etc/shadow' of 'lib64/libcuda.so.1' is absolute"),
    (TARGET, '"../../x"', "target '../../x' of 'lib64/libcuda.so.1' leaves the tree"),
    (TARGET, '"a/../b"', "target 'a/../b' of 'lib64/libcuda.so.1' climbs after it descended"),
    (TARGET, '"a//b"', "target 'a//b' of 'lib64/libcuda.so.1' has an empty component"),
    (TARGET, '""', "target '' of 'lib64/libcuda.so.1' has characters"),
    (TARGET, '"x\\ty"', "of 'lib64/libcuda.so.1' has characters that are not allowed"),
    (TARGET, "5", "field 'target' of 'lib64/libcuda.so.1' is not a string"),
]


@pytest.mark.parametrize(("old", "new", "reason"), REFUSED)
def test_refused(old: str, new: str, reason: str) -> None:
    assert old in TEXT
    with pytest.raises(Permanent) as caught:
        manifests.parse(TEXT.replace(old, new, 1))
    assert caught.value.code is Code.MANIFEST_INVALID
    assert reason in caught.value.sentence
    assert caught.value.remedy
    assert len(caught.value.sentence) < 400


def test_set_user_id_belongs_to_one_program() -> None:
    text = TEXT.replace("bin/nvidia-smi", manifests.SETUID).replace('"0755"', '"4755"')
    assert manifests.parse(text).entries[0] == FileEntry(manifests.SETUID, 0o4755, 123, DIGEST)


def test_too_long() -> None:
    with pytest.raises(Permanent, match="more than"):
        manifests.parse(" " * (manifests.MAX_CHARACTERS + 1))


def test_labels_name_the_build() -> None:
    labels = manifests.labels(GOOD, DIGEST)
    assert labels["io.nvidiad.manifest"] == DIGEST
    assert set(labels) == {
        *("io.nvidiad.schema", "io.nvidiad.driver", "io.nvidiad.flavour", "io.nvidiad.product"),
        *("io.nvidiad.os.id", "io.nvidiad.os.version", "io.nvidiad.kernel", "io.nvidiad.vermagic"),
        *("io.nvidiad.manifest", "io.nvidiad.size", "io.nvidiad.files", "io.nvidiad.pci"),
    }
    assert labels["io.nvidiad.size"] == str(GOOD.size)
    assert labels["io.nvidiad.files"] == str(GOOD.count)
    assert manifests.devices(labels) == GOOD.pci
    manifests.check_labels(labels, GOOD.build)


@pytest.mark.parametrize(
    ("changed", "code", "words"),
    [
        ({"io.nvidiad.schema": None}, Code.IMAGE_FOREIGN, ("not a driver image", "io.nvidiad.schema")),
        ({"io.nvidiad.schema": "7"}, Code.MANIFEST_INVALID, ("schema '7'",)),
        ({"io.nvidiad.driver": "1.2"}, Code.IMAGE_MISMATCH, ("driver '1.2' instead of '535.309.01'",)),
        ({"io.nvidiad.kernel": None}, Code.IMAGE_MISMATCH, ("kernel '' instead of '6.1.0-56-cloud-amd64'",)),
        ({"io.nvidiad.product": "tesla"}, Code.IMAGE_MISMATCH, ("product 'tesla' instead of ''",)),
        (
            {"io.nvidiad.os.version": "1", "io.nvidiad.driver": "2"},
            Code.IMAGE_MISMATCH,
            ("driver '2' instead of", "OS version '1' instead of '3975.2.0+nightly'"),
        ),
    ],
)
def test_labels_refused(changed: dict[str, str | None], code: Code, words: tuple[str, ...]) -> None:
    labels: dict[str, str | None] = {**manifests.labels(GOOD, DIGEST), **changed}
    given = {key: value for key, value in labels.items() if value is not None}
    with pytest.raises(Failure) as caught:
        manifests.check_labels(given, GOOD.build)
    assert caught.value.code is code
    assert all(word in caught.value.sentence for word in words)


# ---------------------------------------------------------------------------------------------------
# Whatever a manifest may hold comes back as it was; whatever a text may hold raises nothing but a Failure.

versions = st.from_regex(r"\A[0-9A-Za-z][0-9A-Za-z._+~-]{0,20}\Z").filter(lambda text: ".." not in text)
component = st.text(
    st.characters(min_codepoint=32, max_codepoint=126, exclude_characters='"\\/'), min_size=1, max_size=12
).filter(lambda text: text not in (".", "..", "manifest.json"))
paths = st.lists(component, min_size=1, max_size=4).map("/".join)
digests = st.text("0123456789abcdef", min_size=64, max_size=64)
modes = st.sampled_from([0o644, 0o755, 0o555, 0o400, 0o711])
entry = st.builds(FileEntry, paths, modes, st.integers(0, 1 << 49), digests) | st.builds(
    LinkEntry, paths, paths
)


def consistent(entries: list[FileEntry | LinkEntry]) -> tuple[FileEntry | LinkEntry, ...]:
    """Those that can be in one tree."""
    kept: dict[str, FileEntry | LinkEntry] = {}
    for each in entries:
        ours = f"{each.path}/"
        if not any(ours.startswith(f"{path}/") or f"{path}/".startswith(ours) for path in kept):
            kept[each.path] = each
    return tuple(kept.values())


printable = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), max_size=40).filter(
    str.isprintable
)
made = st.builds(
    Manifest,
    driver=versions,
    flavour=st.sampled_from(Flavour),
    product=st.just("") | versions,
    architecture=st.sampled_from(["x86_64", "aarch64"]),
    os_id=st.sampled_from(["coreos", "flatcar", "debian"]),
    os_version=versions,
    kernel=versions,
    vermagic=printable,
    compiler=printable,
    pci=st.lists(st.from_regex(r"\A10de:[0-9a-f]{4}\Z"), max_size=3).map(tuple),
    entries=st.lists(entry, min_size=1, max_size=8).map(consistent),
)


@given(made)
def test_round_trip_of_anything(manifest: Manifest) -> None:
    text = manifests.render(manifest)
    assert manifests.parse(text) == manifest
    assert text.count("\n") == 5 + len(manifest.entries)
    json.loads(text)


@given(st.text(max_size=200) | st.integers(0, len(TEXT)).map(lambda end: TEXT[:end]))
def test_any_text_is_refused_with_a_failure(text: str) -> None:
    try:
        manifests.parse(text)
    except Failure as failure:
        assert failure.code is Code.MANIFEST_INVALID  # noqa: PT017
    else:
        assert text.strip() == TEXT.strip()


@given(st.data())
def test_any_value_in_any_place(data: st.DataObject) -> None:
    document = json.loads(TEXT)
    values: st.SearchStrategy[object] = (
        st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.builds(list) | st.builds(dict)
    )
    places = [(document, key) for key in document]
    places += [(document["os"], key) for key in document["os"]]
    places += [(listed, key) for listed in document["files"] for key in listed]
    where, key = data.draw(st.sampled_from(places))
    where[key] = data.draw(values)
    try:
        manifest = manifests.parse(json.dumps(document))
    except Failure as failure:
        assert failure.code is Code.MANIFEST_INVALID  # noqa: PT017
    else:
        assert manifests.parse(manifests.render(manifest)) == manifest

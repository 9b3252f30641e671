# SPDX-License-Identifier: Apache-2.0
"""The CDI specification: made from a tree, of the oldest version that will do, refused where it is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from nvidiad.nouns.entries import FileEntry, LinkEntry
from nvidiad.nouns.errors import Code, Failure, Permanent, Transient
from nvidiad.nouns.surroundings import GpuIdentity, Inventory, Word
from nvidiad.nouns.value import replace
from nvidiad.thought import cdi as thought
from nvidiad.verbs.surroundings import describe
from nvidiad.world.cdi import Specification
from nvidiad.world.filewatch import FileWatch
from nvidiad.world.surroundings import LinuxSurroundings, told_by
from tests.payload import cdi
from tests.unit.world import Quiet

if TYPE_CHECKING:
    from nvidiad.nouns.entries import Entry

TREE = "/opt/nvidia/535.309.01/3975.2.0"
FIRST = GpuIdentity("0000:01:00.0", 0, "GPU-5a1d0c3e-0000-4000-8000-000000000001", "NVIDIA A100")
SECOND = GpuIdentity("0000:02:00.0", 3)
INVENTORY = Inventory(
    driver="535.309.01",
    tree=TREE,
    identity="abc",
    architecture="x86_64",
    gpus=(FIRST, SECOND),
    nodes=("/dev/nvidiactl", "/dev/nvidia-uvm"),
    sockets=("/run/nvidia-persistenced/socket",),
)


def file(path: str) -> FileEntry:
    return FileEntry(path, 0o755, 1, "0" * 64)


ENTRIES: tuple[Entry, ...] = (
    file("bin/nvidia-smi"),
    file("bin/nvidia-modprobe"),
    file("bin/nvidia-persistenced"),
    file("lib/firmware/nvidia/535.309.01/gsp_ga10x.bin"),
    file("lib/modules/6.1.0/nvidia.ko"),
    file("lib64/libcuda.so.535.309.01"),
    LinkEntry("lib64/libcuda.so.1", "libcuda.so.535.309.01"),
    LinkEntry("lib64/libcuda.so", "libcuda.so.1"),
    file("lib64/libnvidia-ml.so.535.309.01"),
    LinkEntry("lib64/libnvidia-ml.so.1", "./libnvidia-ml.so.535.309.01"),
    LinkEntry("lib64/libnvidia-ml.so", "libnvidia-ml.so.1"),
    file("lib64/libnvidia-gpucomp.so.535.309.01"),
    file("lib64/libnvidia-nvvm70.so.4"),
    file("lib64/vdpau/libvdpau_nvidia.so.535.309.01"),
    LinkEntry("lib64/libnowhere.so.1", "libnowhere.so.535.309.01"),
    LinkEntry("lib64/libround.so.1", "libround.so.1"),
    file("share/nvidia/nvswitch/fabricmanager.cfg"),
)


def made(inventory: Inventory = INVENTORY) -> dict[str, Any]:
    found = thought.specification(inventory, ENTRIES)
    assert found is not None
    document: dict[str, Any] = json.loads(thought.text(found))
    cdi.validate(document)
    assert thought.read(thought.text(found)) == document
    return document


def mounts(document: dict[str, Any]) -> dict[str, str]:
    return {m["containerPath"]: m["hostPath"] for m in document["containerEdits"]["mounts"]}


def test_devices_are_named_by_their_place_by_uuid_where_it_is_known_and_all_together() -> None:
    devices = {d["name"]: d["containerEdits"]["deviceNodes"] for d in made()["devices"]}
    assert devices == {
        "0": [{"path": "/dev/nvidia0"}],
        FIRST.uuid: [{"path": "/dev/nvidia0"}],
        "1": [{"path": "/dev/nvidia3"}],
        "all": [{"path": "/dev/nvidia0"}, {"path": "/dev/nvidia3"}],
    }


def test_a_library_is_mounted_under_the_name_by_which_it_is_looked_for() -> None:
    found = mounts(made())
    names = {Path(path).name for path in found if path.startswith("/usr/lib64/")}
    assert names == {
        *("libcuda.so.1", "libcuda.so", "libnvidia-ml.so.1", "libnvidia-nvvm70.so.4"),
        "libnvidia-gpucomp.so.535.309.01",
    }
    for directory in ("/usr/lib64", "/usr/lib/x86_64-linux-gnu"):
        for name in ("libcuda.so.1", "libcuda.so"):
            assert found[f"{directory}/{name}"] == f"{TREE}/lib64/libcuda.so.535.309.01"


def test_programs_that_ask_firmware_and_sockets_and_nothing_that_changes_the_host() -> None:
    found = {path: source for path, source in mounts(made()).items() if "/lib64/" not in source}
    firmware = "lib/firmware/nvidia/535.309.01/gsp_ga10x.bin"
    assert found == {
        "/usr/bin/nvidia-smi": f"{TREE}/bin/nvidia-smi",
        f"/{firmware}": f"{TREE}/{firmware}",
        "/run/nvidia-persistenced/socket": "/run/nvidia-persistenced/socket",
    }
    document = made()
    assert all({"ro", "nosuid", "nodev"} <= set(m["options"]) for m in document["containerEdits"]["mounts"])
    assert [node["path"] for node in document["containerEdits"]["deviceNodes"]] == [*INVENTORY.nodes]


def test_another_architecture_has_another_directory() -> None:
    found = mounts(made(replace(INVENTORY, architecture="aarch64")))
    assert "/usr/lib/aarch64-linux-gnu/libcuda.so.1" in found
    assert not any("x86_64" in path for path in found)


def test_without_a_gpu_there_is_nothing_to_describe() -> None:
    assert thought.specification(replace(INVENTORY, gpus=()), ENTRIES) is None
    assert thought.digest(replace(INVENTORY, gpus=())) == thought.digest(None) == ""


@pytest.mark.parametrize(
    "change",
    [
        {"driver": "550.1"},
        {"identity": "abd"},
        {"gpus": (FIRST,)},
        {"gpus": (FIRST, replace(SECOND, uuid="GPU-5a1d0c3e-0000-4000-8000-000000000002"))},
        {"nodes": ()},
        {"sockets": ()},
    ],
    ids=str,
)
def test_whatever_it_is_made_from_makes_another_one(change: dict[str, Any]) -> None:
    assert thought.digest(replace(INVENTORY, **change)) != thought.digest(INVENTORY)


def edited(**edits: object) -> dict[str, object]:
    return {"kind": "x/y", "devices": [{"name": "gpu0", "containerEdits": edits}]}


VERSIONS: dict[str, tuple[dict[str, object], str]] = {
    "as it was in the beginning": (edited(deviceNodes=[{"path": "/dev/x"}]), "0.3.0"),
    "a mount with a type": (
        edited(mounts=[{"hostPath": "/a", "containerPath": "/a", "type": "tmpfs"}]),
        "0.4.0",
    ),
    "a node from elsewhere": (edited(deviceNodes=[{"path": "/dev/x", "hostPath": "/dev/y"}]), "0.5.0"),
    "a name that begins with a digit": ({"devices": [{"name": "0", "containerEdits": {}}]}, "0.5.0"),
    "notes": ({"annotations": {}, "devices": []}, "0.6.0"),
    "notes of a device": ({"devices": [{"name": "a", "annotations": {}}]}, "0.6.0"),
    "groups": (edited(additionalGids=[1]), "0.7.0"),
}


@pytest.mark.parametrize("name", VERSIONS)
def test_the_oldest_version_that_has_all_fields(name: str) -> None:
    document, version = VERSIONS[name]
    assert thought.minimum_version(document) == version


REFUSED: dict[str, tuple[object, str]] = {
    "no object": ([], "not an object"),
    "another kind": ({"cdiVersion": "0.5.0", "kind": "x/y", "devices": [{}]}, "kind"),
    "no version": ({"kind": thought.KIND, "devices": [{}]}, "cdiVersion"),
    "no devices": ({"cdiVersion": "0.5.0", "kind": thought.KIND, "devices": []}, "no devices"),
    "a device without a name": ({"cdiVersion": "0.5.0", "kind": thought.KIND, "devices": [{}]}, "no name"),
    "a device twice": (
        {"cdiVersion": "0.5.0", "kind": thought.KIND, "devices": [{"name": "0"}, {"name": "0"}]},
        "twice",
    ),
    "an unknown field": (
        {"cdiVersion": "0.5.0", "kind": thought.KIND, "devices": [{"name": "0"}], "more": 1},
        "unknown field",
    ),
    "an unknown field of a device": (
        {"cdiVersion": "0.5.0", "kind": thought.KIND, "devices": [{"name": "0", "more": 1}]},
        "unknown field",
    ),
    "edits that are none": (
        {"cdiVersion": "0.5.0", "kind": thought.KIND, "devices": [{"name": "0", "containerEdits": 1}]},
        "not an object",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_engine_would_take_is_refused(name: str) -> None:
    document, word = REFUSED[name]
    with pytest.raises(ValueError, match=word):
        thought.read(json.dumps(document))
    with pytest.raises(jsonschema.ValidationError):
        cdi.validate({**document, "kind": "no kind"} if isinstance(document, dict) else document)


@pytest.mark.parametrize("said", ["", "{", "nothing", "[" * 100_000])
def test_what_is_not_json_is_refused(said: str) -> None:
    with pytest.raises(ValueError, match="not JSON"):
        thought.read(said)


@pytest.mark.parametrize(
    ("said", "claimed"),
    [
        ("cdiVersion: 0.5.0\nkind: nvidia.com/gpu\n", True),
        ('kind: "nvidia.com/gpu"\n', True),
        ('{"cdiVersion": "0.5.0",\n "kind": "nvidia.com/gpu"}', True),
        ('{"cdiVersion":"0.5.0","kind":"nvidia.com/gpu","devices":[]}', True),
        ("{cdiVersion: 0.5.0, kind: nvidia.com/gpu}", True),
        ("kind: nvidia.com/gpu", True),
        ("kind: nvidia.com/gpu-extra\n", False),
        ('{"cdiVersion":"0.5.0","unkind":"nvidia.com/gpu"}', False),
        ("kind: management.nvidia.com/gpu\n", False),
        ('{"kind": "k8s.device-plugin.nvidia.com/gpu", "devices": []}', False),
        ("# kind: nvidia.com/gpu\n", False),
        ("", False),
    ],
)
def test_another_file_describes_the_same_devices(said: str, claimed: bool) -> None:  # noqa: FBT001
    assert thought.claims(said) is claimed


# -- the file --------------------------------------------------------------------------------------


class Place:
    """A specification in memory, with a toolkit that does as it is told."""

    def __init__(self, *, says: str | Failure | None = None, full: bool = False) -> None:
        self.says, self.full = says, full
        self.text: str | None = None

    def write(self, text: str) -> None:
        if self.full:
            raise Permanent(Code.DISK_FULL, "no room")
        self.text = text

    def remove(self) -> None:
        self.text = None

    def generator(self) -> str:
        return "/usr/bin/nvidia-ctk" if self.says is not None else ""

    def generate(self, program: str, tree: str) -> str:
        assert (program, tree) == ("/usr/bin/nvidia-ctk", TREE)
        if isinstance(self.says, Failure):
            raise self.says
        return self.says or ""

    def digest(self, text: str) -> str:
        return f"digest of {len(text)}"


def test_it_is_written_and_the_word_says_of_what() -> None:
    place = Place()
    word = describe(INVENTORY, ENTRIES, Word(), place=place, log=Quiet())
    assert word is not None and place.text is not None
    assert json.loads(place.text) == made()
    assert word == Word(of=thought.digest(INVENTORY), digest=place.digest(place.text))


def test_the_toolkit_has_the_word_and_ours_stands_in_for_it() -> None:
    place = Place(says="theirs")
    word = describe(INVENTORY, ENTRIES, Word(), place=place, log=Quiet())
    assert (place.text, word and word.problem) == ("theirs", None)
    place, log = Place(says=Transient(Code.CDI_FAILED, "it broke")), Quiet()
    word = describe(INVENTORY, ENTRIES, Word(), place=place, log=log)
    assert place.text == thought.text(made()) and word is not None
    assert word.problem is not None and word.problem.sentence == "it broke" and word.digest
    assert log.events("warning")


@pytest.mark.parametrize(("before", "left"), [(Word(digest="x"), None), (Word(), "theirs")])
def test_nothing_that_somebody_else_wrote_is_removed(before: Word, left: str | None) -> None:
    place = Place()
    place.text = "theirs"
    assert describe(None, (), before, place=place, log=Quiet()) is None
    assert place.text == left


def test_the_second_who_describes_them_gives_way() -> None:
    place = Place()
    place.text = "ours"
    word = describe(INVENTORY, ENTRIES, Word(digest="x"), rival="/run/cdi/x", place=place, log=Quiet())
    assert place.text in (None, "") and word is not None
    assert not word.digest and word.problem is not None and word.problem.code is Code.CDI_FAILED


def test_one_that_cannot_be_written_is_told() -> None:
    word = describe(INVENTORY, ENTRIES, Word(), place=Place(full=True), log=Quiet())
    assert word is not None and word.problem is not None and word.problem.code is Code.DISK_FULL


def test_the_toolkit_is_used_only_where_it_can_be_told_where_the_driver_is(tmp_path: Path) -> None:
    place, program = Specification(Path("run/cdi/nvidia.yaml"), tmp_path), tmp_path / "usr/bin/nvidia-ctk"
    assert place.generator() == ""
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho --driver-root --format\n")
    program.chmod(0o755)
    assert place.generator() == ""
    program.write_text("#!/bin/sh\necho --driver-root --dev-root --format\n")
    assert place.generator() == str(program)
    program.write_text("#!/bin/sh\necho no\n")
    with pytest.raises(Failure) as refused:
        place.generate(str(program), TREE)
    assert refused.value.code is Code.CDI_FAILED and "not JSON" in refused.value.sentence


_CTK = """#!/bin/sh
case "$*" in
  *--help) echo --driver-root --dev-root --format {options};;
  *) hook=/usr/bin/nvidia-cdi-hook
     for each; do case $each in --nvidia-*-path=*) hook=${{each#*=}};; esac; done
     echo '{{"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": [{{"name": "all",' \\
       '"containerEdits": {{"hooks": [{{"hookName": "createContainer", "path": "'$hook'"}}]}}}}]}}';;
esac
"""


@pytest.mark.parametrize(
    ("options", "beside", "hook"),
    [
        ("--nvidia-cdi-hook-path --nvidia-ctk-path", True, "/opt/bin/nvidia-cdi-hook"),
        ("--nvidia-cdi-hook-path --nvidia-ctk-path", False, "/opt/bin/nvidia-ctk"),
        ("--nvidia-ctk-path", True, "/opt/bin/nvidia-ctk"),
        ("", True, None),
    ],
)
def test_the_toolkits_hooks_are_programs_that_are_there(
    tmp_path: Path,
    options: str,
    beside: bool,  # noqa: FBT001
    hook: str | None,
) -> None:
    place, program = Specification(Path("run/cdi/nvidia.yaml"), tmp_path), tmp_path / "opt/bin/nvidia-ctk"
    program.parent.mkdir(parents=True)
    program.write_text(_CTK.format(options=options))
    program.chmod(0o755)
    program.with_name("nvidia-cdi-hook").write_text("#!/bin/sh\n")
    program.with_name("nvidia-cdi-hook").chmod(0o755 if beside else 0o644)
    if hook is None:
        with pytest.raises(Transient, match="'/usr/bin/nvidia-cdi-hook' run, which is no program here"):
            place.generate(str(program), TREE)
        return
    assert thought.hooks(thought.read(place.generate(str(program), TREE))) == (hook,)


def test_the_toolkit_is_asked_once_what_it_knows(tmp_path: Path) -> None:
    place, program = Specification(Path("run/cdi/nvidia.yaml"), tmp_path), tmp_path / "opt/bin/nvidia-ctk"
    program.parent.mkdir(parents=True)
    asked = tmp_path / "asked"
    program.write_text(_CTK.format(options="--nvidia-ctk-path").replace("case", f"echo >>{asked}\ncase", 1))
    program.chmod(0o755)
    place.generate(place.generator(), TREE)
    # Once for that, and once for the specification.
    assert len(asked.read_text().splitlines()) == 2


def test_a_file_beside_ours_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    place = Specification(Path("run/cdi/nvidia.yaml"), tmp_path)
    place.remove()
    place.write("{}\n")
    (tmp_path / "run/cdi/link.json").symlink_to("/etc/shadow")
    (tmp_path / "run/cdi/folder.yaml").mkdir()
    here, another = LinuxSurroundings(tmp_path), tmp_path / "run/cdi/another.yaml"
    assert here.rival() == ""
    another.write_text("kind: nvidia.com/gpu\n")
    assert here.rival() == str(another)


def test_another_file_that_comes_later_is_news(tmp_path: Path) -> None:
    (tmp_path / "run/cdi").mkdir(parents=True)
    watch = FileWatch(*told_by(tmp_path))
    (tmp_path / "run/cdi/k8s.gpu.nvidia.com-claim_1.yaml").touch()
    assert watch.drain() == ()
    for name in ("nvidia.yaml", "nvidia-container-toolkit.json"):
        (tmp_path / "run/cdi" / name).write_text("kind: nvidia.com/gpu\n")
        assert watch.drain() == (f"'{tmp_path}/run/cdi/{name}' changed",)
    watch.close()

# SPDX-License-Identifier: Apache-2.0
"""Publish against a real registry: what is missing gets there whole, once, signed, and under its names."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import tarfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import pytest

from nvidiad.image.nouns.model import (
    Architecture,
    Cell,
    Check,
    DriverSource,
    Family,
    OsRelease,
    SourceKind,
    State,
    Verdict,
)
from nvidiad.image.nouns.recipe import DriverWish, OsWish, Recipe
from nvidiad.image.thought import publication
from nvidiad.image.verbs.publish import Wishes, publish
from nvidiad.image.world.signing import SigningKey
from nvidiad.image.world.upload import upload
from nvidiad.nouns.errors import Code, Failure, Permanent, Transient
from nvidiad.nouns.model import Flavour, Progress
from nvidiad.nouns.value import replace
from nvidiad.thought import cosign, distribution, trust
from nvidiad.world.places import Registries, read_list
from nvidiad.world.repository import Limits, Repository
from nvidiad.world.vouchers import Vouchers
from tests.beds.common import host_root, require, run_checked
from tests.images.shelf import Shelf, TokenServer, password, shelf
from tests.payload import builder
from tests.payload import image as payload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nvidiad.image.nouns.publication import Published
    from tests.images.workshop import Workshop as Engineered

AMD64, ARM64 = Architecture.AMD64, Architecture.ARM64
NAME = "nvidia-driver"
NOW = "2026-11-27T01:02:03Z"
ERROR = "nvidia/nv-pci.c:165: error: too few arguments to function 'pci_resize_resource'"
RUN = DriverSource("535.309.01", Flavour.OPEN, SourceKind.RUN, "", "https://x.invalid/a.run", "a" * 64)
OLDER = replace(RUN, version="470.256.02", sha256="b" * 64)
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def release(version: str, channel: str = "stable", architecture: Architecture = AMD64) -> OsRelease:
    return OsRelease(Family.FLATCAR, version, channel, architecture, "6.12.1-flatcar")


OLD, NEW = release("4593.2.4"), release("4593.2.5")


@dataclass
class Bench:
    """Stands in for building and proving, which other tests do for real; the registry is a real one."""

    registry: Repository
    refuses: dict[str, Failure] = field(default_factory=dict)
    """What fails, by `what version-driver`."""
    unproven: set[str] = field(default_factory=set)
    done: list[str] = field(default_factory=list)
    salt: str = ""
    described: bool = False
    """Whether there are bills of materials."""

    def _do(self, what: str) -> None:
        self.done.append(what)
        if what in self.refuses:
            raise self.refuses[what]

    def developer(self, release: OsRelease, _tell: Callable[[Progress], None]) -> tuple[str, OsRelease]:
        self._do(f"developer {release.version}")
        return f"developer:{release.version}", replace(release, kernel=f"{release.kernel}-r1")

    def build(self, cell: Cell, developer: str, _tell: Callable[[Progress], None]) -> str:
        assert developer == f"developer:{cell.release.version}"
        assert cell.release.kernel.endswith("-r1")
        self._do(f"build {cell.build}")
        return f"local:{cell.build}-{cell.release.architecture}"

    def prove(self, cell: Cell, image: str, _developer: str, _tell: Callable[[Progress], None]) -> Verdict:
        self._do(f"prove {cell.build}")
        proven = str(cell.build) not in self.unproven
        check = Check("insmod", proven, "nvidia.ko: Exec format error")
        return Verdict(image, cell.build, cell.release.kernel, (check,))

    def push(self, image: str, _tell: Callable[[Progress], None]) -> str:
        self._do(f"push {image.removeprefix('local:')}")
        config = self.registry.put_blob(
            json.dumps({"of": image + self.salt}).encode(), distribution.OCI_CONFIG
        )
        layer = self.registry.put_blob(f"layer of {image}".encode(), LAYER)
        return self.registry.put_manifest(distribution.image(config, (layer,)))

    def bill(self, image: str) -> str:
        return f'{{"of": "{image}"}}' if self.described else ""

    def discard(self, image: str) -> None:
        self._do(f"discard {image.removeprefix('local:')}")


@pytest.fixture
def shelved(tmp_path: Path) -> Iterator[Shelf]:
    with shelf(tmp_path) as made:
        yield made


@pytest.fixture
def registry(shelved: Shelf) -> Iterator[Repository]:
    made = Repository(f"{shelved.address}/{NAME}", limits=Limits(connections=4, tries=2))
    yield made
    made.close()


@pytest.fixture
def bench(registry: Repository) -> Bench:
    return Bench(registry)


def recipe(*drivers: DriverSource, **more: Any) -> Recipe:
    wish = OsWish(Family.FLATCAR, ("stable", "beta"), **more)
    return Recipe(
        f"x.invalid/{NAME}", (wish,), tuple(DriverWish(d, tuple(Family)) for d in drivers or (RUN,))
    )


def run(bench: Bench, wanted: Recipe, *releases: OsRelease, **more: Any) -> Published:
    bench.done.clear()
    more = {"now": lambda: NOW, "tell": lambda _: None, **more}
    return publish(wanted, releases or (NEW,), registry=bench.registry, workshop=bench, **more)


def failure(code: Code, sentence: str = "it failed", kind: type[Failure] = Permanent) -> Failure:
    return kind(code, sentence, "Do something.")


# -- the road ------------------------------------------------------------------------------------------


def test_what_is_missing_is_built_proven_pushed_and_named(bench: Bench, registry: Repository) -> None:
    found = run(bench, recipe(newest=2), OLD, NEW)
    steps = ("developer", "build", "prove", "push", "discard")
    assert [line.partition(" ")[0] for line in bench.done] == [*steps, *steps]
    assert found.complete
    tags = ("4593.2.5-535.309.01", "4593.2.4-535.309.01")
    assert {o.cell.tag: o.digest for o in found.outcomes} == {tag: registry.head(tag) for tag in tags}
    assert found.moved == ("stable-535.309.01",)
    assert registry.head("stable-535.309.01") == registry.head("4593.2.5-535.309.01")
    listed = read_list(registry)
    assert found.listed and listed == found.compatibility
    assert listed is not None
    assert [(e.os_version, e.state, e.kernel, e.digest) for e in listed.entries] == [
        (one.cell.release.version, "published", "6.12.1-flatcar-r1", one.digest) for one in found.outcomes
    ]
    assert set(registry.tags()) == {*tags, "stable-535.309.01", "compatibility"}


def test_a_second_run_with_nothing_new_only_asks(bench: Bench, shelved: Shelf, tmp_path: Path) -> None:
    signer = key(tmp_path)
    run(bench, recipe(newest=2), OLD, NEW, signer=signer)
    before = len(shelved.requests())
    found = run(bench, recipe(newest=2), OLD, NEW, signer=signer, now=lambda: "2030-01-01T00:00:00Z")
    assert (bench.done, found.outcomes, found.moved, found.signed, found.listed) == ([], (), (), (), False)
    assert found.complete
    assert found.compatibility.generated == NOW
    requests = shelved.requests()[before:]
    methods = [request.partition(" ")[0] for request in requests]
    # Two images, a channel, the list with its manifest and its content.
    assert (methods.count("HEAD"), methods.count("GET"), len(methods)) == (4, 2, 6), requests


def test_a_new_release_takes_the_channel_along(bench: Bench, registry: Repository) -> None:
    first = run(bench, recipe(newest=2), OLD)
    old = registry.head("stable-535.309.01")
    found = run(bench, recipe(newest=2), OLD, NEW)
    assert [str(o.cell.build) for o in found.outcomes] == ["4593.2.5-535.309.01"]
    assert old == first.outcomes[0].digest != registry.head("stable-535.309.01") == found.outcomes[0].digest


def test_a_release_in_two_channels_is_built_once(bench: Bench, registry: Repository) -> None:
    found = run(bench, recipe(), NEW, replace(NEW, channel="beta"))
    assert len(found.outcomes) == 1
    assert set(found.moved) == {"stable-535.309.01", "beta-535.309.01"}
    assert registry.head("beta-535.309.01") == registry.head("stable-535.309.01")
    assert [standing.state for standing in found.standings] == [State.PUBLISHED] * 2
    assert not run(bench, recipe(), NEW, replace(NEW, channel="beta")).listed


def test_two_architectures_share_their_names(bench: Bench, registry: Repository, tmp_path: Path) -> None:
    wanted = recipe(architectures=(AMD64, ARM64))
    arm = replace(NEW, architecture=ARM64)
    bench.refuses = {"push 4593.2.5-535.309.01-arm64": failure(Code.REGISTRY_STALLED, kind=Transient)}
    found = run(bench, wanted, NEW, arm, signer=key(tmp_path))
    assert found.moved == ("4593.2.5-535.309.01",)
    assert registry.head("4593.2.5-535.309.01") == registry.head("4593.2.5-535.309.01-amd64")
    bench.refuses.clear()
    found = run(bench, wanted, NEW, arm, signer=key(tmp_path))
    assert found.complete
    index = registry.manifest("4593.2.5-535.309.01")
    assert index.media_type == distribution.OCI_INDEX
    assert {m["platform"]["architecture"]: m["digest"] for m in index.content()["manifests"]} == {
        "amd64": registry.head("4593.2.5-535.309.01-amd64"),
        "arm64": registry.head("4593.2.5-535.309.01-arm64"),
    }
    assert registry.head("stable-535.309.01") == index.digest
    # A host resolves the tag to the index: that has a signature, too.
    assert registry.head(cosign.tag(index.digest))
    assert {e.architecture for e in found.compatibility.entries} == {"x86_64", "aarch64"}
    again = run(bench, wanted, NEW, arm, signer=key(tmp_path))
    assert (again.moved, again.signed, again.listed) == ((), (), False)


def test_what_another_machine_has_to_build_is_left_to_it(bench: Bench, registry: Repository) -> None:
    wanted, arm = recipe(architectures=(AMD64, ARM64)), replace(NEW, architecture=ARM64)
    found = run(bench, wanted, NEW, arm, wishes=Wishes(architectures=(AMD64,)))
    assert [str(o.cell.release.architecture) for o in found.outcomes] == ["amd64"]
    assert found.complete
    assert registry.head("4593.2.5-535.309.01-arm64") is None
    # The channel waits for both.
    assert found.moved == ("4593.2.5-535.309.01",)
    found = run(bench, wanted, NEW, arm, wishes=Wishes(architectures=(ARM64,)))
    assert [str(o.cell.release.architecture) for o in found.outcomes] == ["arm64"]
    assert found.moved == ("4593.2.5-535.309.01", "stable-535.309.01")


# -- what cannot be, and what fails ----------------------------------------------------------------------


def test_what_cannot_be_built_is_known_from_then_on(bench: Bench, registry: Repository) -> None:
    told = f"'local:x' cannot be built: {ERROR}"
    bench.refuses = {"build 4593.2.5-535.309.01": failure(Code.BUILD_FAILED, told)}
    found = run(bench, recipe(RUN, OLDER))
    assert [(o.state, o.problem and o.problem.code) for o in found.outcomes] == [
        (State.UNBUILDABLE, Code.BUILD_FAILED),
        (State.PUBLISHED, None),
    ]
    # That it cannot be is an answer, too.
    assert found.complete
    listed = read_list(registry)
    assert listed is not None
    entry = listed.unbuildable("4593.2.5-535.309.01", "x86_64")
    assert entry is not None
    assert (entry.reason, entry.kernel) == (ERROR, "6.12.1-flatcar-r1")
    assert registry.head("stable-535.309.01") is None
    assert registry.head("stable-470.256.02")
    assert run(bench, recipe(RUN, OLDER)).outcomes == ()
    assert bench.done == []
    # Other inputs are tried again, and the same ones when it is asked for.
    again = run(bench, recipe(RUN, OLDER), wishes=Wishes(retry_unbuildable=True))
    assert [o.state for o in again.outcomes] == [State.UNBUILDABLE]
    assert not again.listed
    bench.refuses.clear()
    mended = run(bench, recipe(replace(RUN, sha256="c" * 64), OLDER))
    assert [o.state for o in mended.outcomes] == [State.PUBLISHED]
    assert mended.compatibility.unbuildable("4593.2.5-535.309.01", "x86_64") is None


@pytest.mark.parametrize(
    ("step", "code"),
    [
        pytest.param("developer 4593.2.5", Code.SIGNATURE_INVALID, id="developer"),
        pytest.param("build 4593.2.5-535.309.01", Code.SOURCE_INVALID, id="build"),
        pytest.param("build 4593.2.5-535.309.01", Code.BUILD_FAILED, id="build, for another reason"),
        pytest.param("prove 4593.2.5-535.309.01", Code.COMMAND_FAILED, id="prove"),
        pytest.param("push 4593.2.5-535.309.01-amd64", Code.PUSH_REFUSED, id="push"),
    ],
)
def test_one_that_fails_stops_no_other_and_stays_missing(
    bench: Bench, registry: Repository, step: str, code: Code
) -> None:
    bench.refuses = {step: failure(code)}
    found = run(bench, recipe(newest=2), OLD, NEW)
    assert [(o.state, o.problem and o.problem.code) for o in found.outcomes] == [
        (State.MISSING, code),
        (State.PUBLISHED, None),
    ]
    assert not found.complete
    assert registry.head("4593.2.5-535.309.01") is None
    # Its channel waits for the newest one.
    assert registry.head("stable-535.309.01") is None
    assert [e.state for e in found.compatibility.entries] == ["missing", "published"]
    bench.refuses.clear()
    found = run(bench, recipe(newest=2), OLD, NEW)
    assert found.complete and len(found.outcomes) == 1
    assert registry.head("stable-535.309.01") == registry.head("4593.2.5-535.309.01")


def test_what_was_built_is_discarded_whatever_becomes_of_it(bench: Bench) -> None:
    bench.refuses = {"prove 4593.2.5-535.309.01": failure(Code.COMMAND_FAILED)}
    run(bench, recipe())
    assert bench.done[-1] == "discard 4593.2.5-535.309.01-amd64"
    bench.refuses = {"discard 4593.2.5-535.309.01-amd64": failure(Code.ENGINE_LOST)}
    found = run(bench, recipe())
    assert found.outcomes[0].state is State.PUBLISHED
    assert "stays in the container engine" in found.notes[-1]


def test_a_developer_image_that_cannot_be_had_is_tried_once(bench: Bench) -> None:
    bench.refuses = {"developer 4593.2.5": failure(Code.DOWNLOAD_FAILED)}
    found = run(bench, recipe(RUN, OLDER))
    assert bench.done == ["developer 4593.2.5"]
    assert [o.problem and o.problem.code for o in found.outcomes] == [Code.DOWNLOAD_FAILED] * 2


def test_nothing_is_published_unproven_unless_it_is_wanted(bench: Bench, registry: Repository) -> None:
    bench.unproven = {"4593.2.5-535.309.01"}
    (outcome,) = run(bench, recipe()).outcomes
    assert outcome.problem is not None
    assert outcome.problem.code is Code.PROOF_FAILED
    assert "insmod: nvidia.ko: Exec format error" in outcome.problem.sentence
    assert not [line for line in bench.done if line.startswith("push")]
    assert registry.head("4593.2.5-535.309.01") is None
    assert run(bench, recipe(), wishes=Wishes(prove=False)).complete
    assert not [line for line in bench.done if line.startswith("prove")]


# -- a registry that refuses -----------------------------------------------------------------------------


def test_a_registry_that_is_read_only_gets_nothing_and_nothing_is_built(
    bench: Bench, registry: Repository, shelved: Shelf
) -> None:
    shelved.start(readonly=True)
    with pytest.raises(Failure) as caught:
        run(bench, recipe())
    assert caught.value.code is Code.PUSH_REFUSED
    assert "status 405" in caught.value.sentence
    assert bench.done == []
    shelved.start()
    assert registry.tags() == ()


def test_a_registry_that_turns_read_only_keeps_its_names(
    bench: Bench, registry: Repository, shelved: Shelf
) -> None:
    class Late(Bench):
        def push(self, image: str, tell: Callable[[Progress], None]) -> str:
            digest = super().push(image, tell)
            shelved.start(readonly=True)
            return digest

    found = run(Late(registry), recipe())
    assert found.outcomes[0].problem is not None
    assert found.outcomes[0].problem.code is Code.PUSH_REFUSED
    assert [problem.code for problem in found.problems] == [Code.PUSH_REFUSED]
    assert not found.listed
    shelved.start()
    assert registry.tags() == ()
    assert run(bench, recipe()).complete


def test_a_registry_that_only_lets_read(tmp_path: Path) -> None:
    with shelf(tmp_path, **password(tmp_path)) as locked:
        stranger = Repository(f"{locked.address}/{NAME}", limits=Limits(tries=2))
        found = run(Bench(stranger), recipe())
        assert [standing.state for standing in found.standings] == [State.UNKNOWN]
        assert not found.complete
        assert not locked.log().count("PUT")


def test_a_token_that_grants_no_push_is_told_before_anything_is_built(tmp_path: Path) -> None:
    class Reading(TokenServer):
        """It gives nobody more than the right to read."""

        def token(self, query: dict[str, list[str]]) -> str:
            return super().token({"scope": [one.replace("pull,push", "pull") for one in query["scope"]]})

    tokens = Reading(tmp_path)
    with shelf(tmp_path, **tokens.configuration()) as locked:
        reader = Repository(f"{locked.address}/{NAME}", {"username": "user", "password": "secret"})
        bench = Bench(reader)
        with pytest.raises(Failure) as caught:
            run(bench, recipe())
        assert caught.value.code is Code.REGISTRY_AUTH
        assert bench.done == []
    tokens.close()


# -- signatures ------------------------------------------------------------------------------------------


def key(top: Path) -> SigningKey:
    place = top / "signing.pem"
    if not place.exists():
        curve = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]
        run_checked(["openssl", "genpkey", *curve, "-out", str(place)], "openssl genpkey")
    return SigningKey(place)


def verify(top: Path, image: str, public: str) -> subprocess.CompletedProcess[str]:
    """Copy an image with skopeo, which takes it only where its signature is good."""
    (top / "public.pem").write_text(public)
    host = image.partition("/")[0]
    rule = {"type": "sigstoreSigned", "keyPath": str(top / "public.pem")}
    rule["signedIdentity"] = {"type": "matchRepository"}  # type: ignore[assignment]
    policy = {"default": [{"type": "reject"}], "transports": {"docker": {host: [rule]}}}
    (top / "policy.json").write_text(json.dumps(policy))
    places = top / "registries.d"
    places.mkdir(exist_ok=True)
    (places / "here.yaml").write_text(json.dumps({"docker": {host: {"use-sigstore-attachments": True}}}))
    # Debian 12 has taken this out of its skopeo. That of Debian 13 runs with its own loader and libraries.
    root = host_root("trixie")
    (libraries,) = root.glob("usr/lib/*-linux-gnu")
    (loader,) = root.glob("usr/lib*/ld-linux-*.so.*")
    command = [str(loader), "--library-path", str(libraries), str(root / "usr/bin/skopeo")]
    command += [f"--policy={top}/policy.json", f"--registries.d={places}", "copy"]
    command += ["--src-tls-verify=false", f"docker://{image}", f"dir:{top}/copy"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def vouchers(public: Path, registry: Repository, name: str) -> str:
    """The key that a host finds to vouch for an image."""
    limits = Limits(5, 10, tries=1)
    keys, asked = [PurePosixPath(public)], Registries(None, {})
    found = Vouchers(keys, Path("/"), required=True, registries=asked, limits=limits)
    reference, digest = f"{registry.name}:{name}", registry.head(name) or ""
    return trust.signer(reference, digest, found.seals(reference, digest), found.signer)


def test_what_is_signed_is_verified_by_others(
    bench: Bench, shelved: Shelf, registry: Repository, tmp_path: Path
) -> None:
    require("openssl")
    signer = key(tmp_path)
    found = run(bench, recipe(), signer=signer)
    assert found.signed == (found.outcomes[0].digest,)
    for tag in ("4593.2.5-535.309.01", "stable-535.309.01"):
        good = verify(tmp_path, f"{shelved.address}/{NAME}:{tag}", signer.public())
        assert good.returncode == 0, good.stderr
        assert vouchers(tmp_path / "public.pem", registry, tag).startswith("public.pem")
    (tmp_path / "other").mkdir()
    other = key(tmp_path / "other").public()
    bad = verify(tmp_path, f"{shelved.address}/{NAME}:4593.2.5-535.309.01", other)
    assert bad.returncode != 0
    assert "signature" in bad.stderr
    unsigned = run(bench, recipe(OLDER)).outcomes[0]
    bad = verify(tmp_path, f"{shelved.address}/{NAME}:{unsigned.cell.tag}", signer.public())
    assert bad.returncode != 0


def test_a_new_key_joins_the_old_one(bench: Bench, registry: Repository, tmp_path: Path) -> None:
    """A rotation: hosts with either key, or both, take the image."""
    digest = run(bench, recipe(), signer=key(tmp_path)).outcomes[0].digest
    (tmp_path / "new").mkdir()
    new = key(tmp_path / "new")
    found = run(bench, recipe(), signer=new, wishes=Wishes(sign_present=True))
    assert found.signed == (digest,)
    for signer in (key(tmp_path), new):
        (tmp_path / "public.pem").write_text(signer.public())
        assert vouchers(tmp_path / "public.pem", registry, digest)
        # Whoever has signed once does not do it again.
        assert run(bench, recipe(), signer=signer, wishes=Wishes(sign_present=True)).signed == ()


def test_a_new_key_signs_the_index_that_hosts_resolve_a_tag_to(
    bench: Bench, registry: Repository, tmp_path: Path
) -> None:
    wanted, arm = recipe(architectures=(AMD64, ARM64)), replace(NEW, architecture=ARM64)
    run(bench, wanted, NEW, arm, signer=key(tmp_path))
    index = registry.head("4593.2.5-535.309.01")
    (tmp_path / "new").mkdir()
    new = key(tmp_path / "new")
    found = run(bench, wanted, NEW, arm, signer=new, wishes=Wishes(sign_present=True))
    assert index in found.signed
    (tmp_path / "public.pem").write_text(new.public())
    assert vouchers(tmp_path / "public.pem", registry, "4593.2.5-535.309.01")
    assert run(bench, wanted, NEW, arm, signer=new, wishes=Wishes(sign_present=True)).signed == ()


def test_a_tag_does_not_leave_what_is_signed_for_what_is_not(
    bench: Bench, registry: Repository, tmp_path: Path
) -> None:
    """Hosts with the key would refuse the index: of one of its two images nobody knows who made it."""
    wanted, arm = recipe(architectures=(AMD64, ARM64)), replace(NEW, architecture=ARM64)
    run(bench, wanted, NEW, signer=key(tmp_path), wishes=Wishes(architectures=(AMD64,)))
    tag = "4593.2.5-535.309.01"
    signed = registry.head(tag)
    bench.salt = "by somebody else"
    # The second architecture comes from somebody who has not the key.
    run(bench, wanted, NEW, arm, wishes=Wishes(architectures=(ARM64,)))
    moved = registry.head(tag)
    registry.put_manifest(registry.manifest(signed or ""), tag)
    found = run(bench, wanted, NEW, arm, signer=key(tmp_path))
    assert moved != signed
    assert registry.head(tag) == signed
    assert any("stays with what is signed" in note for note in found.notes)
    found = run(bench, wanted, NEW, arm, signer=key(tmp_path), wishes=Wishes(sign_present=True))
    assert registry.head(tag) == moved
    (tmp_path / "public.pem").write_text(key(tmp_path).public())
    assert vouchers(tmp_path / "public.pem", registry, tag)


def test_what_was_published_without_a_key_is_signed_later(
    bench: Bench, registry: Repository, tmp_path: Path
) -> None:
    digest = run(bench, recipe()).outcomes[0].digest
    assert registry.head(cosign.tag(digest)) is None
    # Who put it there is not known: it is signed only where somebody says so.
    found = run(bench, recipe(), signer=key(tmp_path))
    assert (found.outcomes, found.signed) == ((), ())
    found = run(bench, recipe(), signer=key(tmp_path), wishes=Wishes(sign_present=True))
    assert (found.outcomes, found.signed) == ((), (digest,))


def test_a_name_lends_no_signature_to_what_somebody_else_has_pushed(
    bench: Bench, registry: Repository, tmp_path: Path
) -> None:
    wanted = recipe(architectures=(AMD64, ARM64))
    arm = replace(NEW, architecture=ARM64)
    # Pushed without the key, by whoever could.
    run(bench, wanted, NEW, wishes=Wishes(architectures=(AMD64,)))
    found = run(bench, wanted, NEW, arm, signer=key(tmp_path))
    index = registry.manifest("4593.2.5-535.309.01")
    assert index.media_type == distribution.OCI_INDEX
    assert found.signed == (registry.head("4593.2.5-535.309.01-arm64"),)
    assert registry.head(cosign.tag(index.digest)) is None


def test_the_tag_comes_after_the_signature(bench: Bench, shelved: Shelf, tmp_path: Path) -> None:
    run(bench, recipe(), signer=key(tmp_path))
    puts = [
        r.split("/manifests/")[1] for r in shelved.requests() if r.startswith("PUT") and "/manifests/" in r
    ]
    assert [name.partition(":")[0].partition("-")[0] for name in puts] == [
        "sha256",  # the image by its digest
        "sha256",  # its signature
        "4593.2.5",
        "stable",
        "compatibility",
    ]
    assert puts[1].endswith(".sig")


def test_the_bill_of_materials_comes_before_signature_and_tag(
    bench: Bench, registry: Repository, shelved: Shelf, tmp_path: Path
) -> None:
    bench.described = True
    found = run(bench, recipe(), signer=key(tmp_path))
    digest = found.outcomes[0].digest
    (listed,) = registry.manifest(distribution.referrers_tag(digest)).content()["manifests"]
    assert listed["artifactType"] == "application/vnd.cyclonedx+json"
    said = registry.manifest(listed["digest"]).content()
    assert said["subject"]["digest"] == digest
    assert b"4593.2.5" in registry.blob(said["layers"][0]["digest"])
    puts = [
        r.split("/manifests/")[1] for r in shelved.requests() if r.startswith("PUT") and "/manifests/" in r
    ]
    wanted = [digest, listed["digest"], digest.replace(":", "-"), cosign.tag(digest), "4593.2.5-535.309.01"]
    assert puts[: len(wanted)] == wanted


def test_an_image_whose_bill_is_refused_is_published_all_the_same(
    bench: Bench, registry: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> str:
        raise failure(Code.REGISTRY_STALLED, "the bill was not taken", Transient)

    bench.described = True
    monkeypatch.setattr(registry, "put_referrer", refuse)
    found = run(bench, recipe(), signer=key(tmp_path))
    digest = found.outcomes[0].digest
    assert registry.head("4593.2.5-535.309.01") == digest
    assert digest in found.signed
    assert [problem.sentence for problem in found.problems] == ["the bill was not taken"]
    assert not found.complete


@pytest.mark.parametrize(
    ("content", "word"),
    [
        pytest.param(None, "No such file", id="no file"),
        pytest.param("nothing", "", id="no key"),
        pytest.param("P-384", "no key of the curve P-256", id="another curve"),
    ],
)
def test_a_key_that_is_none(tmp_path: Path, content: str | None, word: str) -> None:
    place = tmp_path / "key.pem"
    if content == "P-384":
        curve = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"]
        run_checked(["openssl", "genpkey", *curve, "-out", str(place)], "openssl genpkey")
    elif content:
        place.write_text(content)
    with pytest.raises(Permanent) as caught:
        SigningKey(place)
    assert caught.value.code is Code.RECIPE_INVALID
    assert word in caught.value.sentence


# -- what is told ----------------------------------------------------------------------------------------


def test_what_is_told_of_a_run(bench: Bench) -> None:
    bench.refuses = {
        "build 4593.2.4-535.309.01": failure(Code.BUILD_FAILED, f"x cannot be built: {ERROR}"),
        "prove 4757.1.0-535.309.01": failure(Code.COMMAND_FAILED, "no QEMU"),
    }
    bench.refuses["build 4593.2.4-535.309.01"].add_note("make: entering\nmake: leaving")
    beta = release("4757.1.0", "beta")
    found = run(bench, recipe(newest=2), OLD, NEW, beta)
    digest = next(o.digest for o in found.outcomes if o.digest)
    assert publication.text(found) == (
        f"4593.2.5-535.309.01: published as {digest}\n"
        f"4593.2.4-535.309.01: cannot be built (build-failed: x cannot be built: {ERROR})\n"
        "4757.1.0-535.309.01: failed (command-failed: no QEMU)\n"
        "stable-535.309.01: names another image now\n"
        "the compatibility list was written: 3 entries\n"
        "1 published, 1 missing, 1 unbuildable\n"
    )
    document: Any = json.loads(json.dumps(publication.document("r", found)))
    assert document["counts"] == {"published": 1, "missing": 1, "unbuildable": 1, "unknown": 0}
    assert [o["state"] for o in document["outcomes"]] == ["published", "unbuildable", "missing"]
    assert document["outcomes"][1]["log"] == ["make: entering", "make: leaving"]
    assert document["outcomes"][2]["problem"]["code"] == "command-failed"
    assert document["complete"] is False


# -- upload, with a real engine --------------------------------------------------------------------------


def tree(top: Path) -> Path:
    """The tree of a stand-in driver."""
    return builder.payload(
        top / "made", driver="535.309.01", release=("flatcar", "4593.2.5"), kernel="6.1.0"
    )


def test_an_image_of_the_engine_goes_up_whole_and_the_same_each_time(
    workshop: Engineered, registry: Repository, shelved: Shelf, tmp_path: Path
) -> None:
    tree = builder.payload(
        tmp_path / "made", driver="535.309.01", release=("flatcar", "4593.2.5"), kernel="6.1.0"
    )
    packed = payload.pack_image(tree, "uploaded:1")
    (tmp_path / "image.tar").write_bytes(packed)
    workshop.engine.load(tmp_path / "image.tar")
    told: list[Progress] = []
    digest = upload(workshop.engine.save, "uploaded:1", registry, tmp_path / "scratch", told.append)
    assert registry.tags() == ()
    assert not list((tmp_path / "scratch").iterdir())
    assert digest == upload(workshop.engine.save, "uploaded:1", registry, tmp_path / "scratch", told.append)
    registry.put_manifest(registry.manifest(digest), "1")
    pulled = f"{shelved.address}/{NAME}@{digest}"
    workshop.docker("pull", pulled)
    assert workshop.engine.labels(pulled)["io.nvidiad.driver"] == "535.309.01"
    assert workshop.engine.layers(pulled) == workshop.engine.layers("uploaded:1")
    for image in (pulled, "uploaded:1"):
        workshop.engine.remove(image)


def test_layers_that_the_engine_has_compressed_get_the_same_digest(
    registry: Repository, tmp_path: Path
) -> None:
    whole = payload.pack_image(tree(tmp_path), "x:1")

    def save_as(change: Callable[[bytes], bytes]) -> str:
        def save(_image: str, dest: Path) -> None:
            rewrite(whole, dest, lambda name, data: change(data) if name.startswith("layer") else data)

        return upload(save, "x:1", registry, tmp_path / "scratch", lambda _: None)

    assert save_as(lambda data: data) == save_as(lambda data: gzip.compress(data, 1))


def rewrite(whole: bytes, dest: Path, change: Callable[[str, bytes], bytes]) -> None:
    """Write an archive with other contents of its files."""
    with tarfile.open(fileobj=io.BytesIO(whole)) as source, tarfile.open(dest, "w") as target:
        for member in source:
            file = source.extractfile(member)
            assert file is not None
            data = change(member.name, file.read())
            member.size = len(data)
            target.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("spoilt", ["layer", "manifest.json", "layers"])
def test_a_saved_image_that_is_damaged_is_not_pushed(
    registry: Repository, tmp_path: Path, spoilt: str
) -> None:
    whole = payload.pack_image(tree(tmp_path), "x:1")

    def change(name: str, data: bytes) -> bytes:
        if spoilt == "layer" and name == "layer1.tar":
            return data[:-1] + b"x"
        if spoilt == "layers" and name == "manifest.json":
            return data.replace(b'"layer0.tar", ', b"")
        return b"[]" if spoilt == name else data

    def save(_image: str, dest: Path) -> None:
        rewrite(whole, dest, change)

    with pytest.raises(Permanent) as caught:
        upload(save, "x:1", registry, tmp_path / "scratch", lambda _: None)
    assert caught.value.code is Code.IMAGE_CORRUPT
    assert registry.tags() == ()
    assert not list((tmp_path / "scratch").iterdir())

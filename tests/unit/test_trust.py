# SPDX-License-Identifier: Apache-2.0
"""Who vouches for an image: signatures that real tools made, keys, pins, and what is not run without."""

from __future__ import annotations

import base64
import json
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, padding, rsa

from nvidiad.nouns.errors import Code, Failure, Transient
from nvidiad.nouns.model import Phase, Signatures
from nvidiad.thought import cosign, distribution, trust
from nvidiad.thought.config import load
from nvidiad.thought.cosign import Seal
from nvidiad.thought.distribution import Descriptor, Document
from nvidiad.thought.settings import Settings, Trust
from nvidiad.world.keys import PublicKeys
from tests.unit import facts
from tests.unit.world import World, reference_of

if TYPE_CHECKING:
    from collections.abc import Callable

DATA = Path(__file__).parents[1] / "data/cosign"
"""By cosign 2.5.0: `sign --key`; and as cosign 3 signs, `attest --new-bundle-format --type …/sign/v1`."""
DIGEST = "sha256:f943901668d214e148e3c6d9c708694a4492e5ef6289b0ef9e796386d6240ffd"
OTHER = "sha256:" + "1" * 64
IMAGE = "registry.example/nvidia-driver:1-535.309.01"


def recorded(name: str) -> tuple[Document, dict[str, bytes]]:
    blob = (DATA / {"signature": "payload.json", "bundle": "bundle.json"}[name]).read_bytes()
    document = Document(distribution.OCI_MANIFEST, (DATA / f"{name}-manifest.json").read_bytes())
    return document, {distribution.digest_of(blob): blob}


def public(key: Any) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return bytes(key.public_key().public_bytes(serialization.Encoding.PEM, form))


def keys(*files: Path) -> PublicKeys:
    made = PublicKeys([PurePosixPath(file) for file in files], Path("/"))
    made.read()
    return made


# -- what real tools made ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["signature", "bundle"])
def test_what_cosign_signed_is_verified(name: str) -> None:
    document, blobs = recorded(name)
    assert cosign.material(document) == tuple(blobs)
    (seal,) = cosign.seals(document, blobs)
    assert seal.digests == (DIGEST,)
    known = keys(DATA / "key.pem")
    assert known.signer(seal.signed, seal.signature).startswith("key.pem (SHA-256 ")
    assert trust.signer(IMAGE, DIGEST, [seal], known.signer)
    assert known.signer(seal.signed + b" ", seal.signature) == ""
    assert known.signer(seal.signed, seal.signature[:-1]) == ""


def bundle(**changes: Any) -> bytes:
    """The recorded bundle with another statement, which nobody has signed."""
    said = json.loads((DATA / "bundle.json").read_bytes())
    statement = json.loads(base64.b64decode(said["dsseEnvelope"]["payload"])) | changes
    said["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    return json.dumps(said).encode()


def envelope(**changes: Any) -> bytes:
    said = json.loads((DATA / "bundle.json").read_bytes())
    return json.dumps(said | {"dsseEnvelope": said["dsseEnvelope"] | changes}).encode()


def layered(kind: str, blob: bytes, **more: Any) -> tuple[Document, dict[str, bytes]]:
    digest = distribution.digest_of(blob)
    layer = {"mediaType": kind, "digest": digest, "size": len(blob)} | more
    return Document("", json.dumps({"layers": [layer]}).encode()), {digest: blob}


SIGNATURE = {"annotations": {"dev.cosignproject.cosign/signature": "AAAA"}}


@pytest.mark.parametrize(
    ("blob", "digests"),
    [
        (cosign.payload("r/n", DIGEST), (DIGEST,)),
        (b"{}", ()),
        (b"[]", ()),
        (b"\xff", ()),
        (b'{"critical": 3}', ()),
        (b'{"critical": {"image": {"docker-manifest-digest": 3}}}', ()),
        (cosign.payload("r/n", DIGEST).replace(b"cosign container image signature", b"atomic"), ()),
    ],
)
def test_of_what_a_payload_speaks(blob: bytes, digests: tuple[str, ...]) -> None:
    (seal,) = cosign.seals(*layered(cosign.PAYLOAD, blob, **SIGNATURE))
    assert seal == Seal(blob, b"\0\0\0", digests)


@pytest.mark.parametrize(
    ("blob", "digests"),
    [
        pytest.param(bundle(), [(DIGEST,)], id="as it is"),
        pytest.param(bundle(predicateType="https://cyclonedx.org/bom"), [()], id="an SBOM approves nothing"),
        pytest.param(bundle(subject=[]), [()], id="about nothing"),
        pytest.param(bundle(subject={"a": 1}), [()], id="about what is no list"),
        pytest.param(bundle(subject=[{"digest": {"sha512": "1"}}, 3]), [()], id="about something else"),
        pytest.param(
            bundle(subject=[{"digest": {"sha256": n * 64}} for n in "12"]),
            [("sha256:" + "1" * 64, "sha256:" + "2" * 64)],
            id="about two",
        ),
        pytest.param(envelope(payloadType="text/plain"), [], id="no statement"),
        pytest.param(envelope(payload="*"), [], id="no base64"),
        pytest.param(envelope(payload=None), [], id="no payload"),
        pytest.param(envelope(signatures=None), [], id="no signatures"),
        pytest.param(envelope(signatures=[3, {}, {"sig": "*"}, {"sig": ""}]), [], id="none that is one"),
        pytest.param(envelope(signatures=[{"sig": "AA=="}] * 9), [(DIGEST,)], id="the same again"),
        pytest.param(
            envelope(signatures=[{"sig": base64.b64encode(bytes([n])).decode()} for n in range(99)]),
            [(DIGEST,)] * 64,
            id="too many",
        ),
        pytest.param(b"{}", [], id="no envelope"),
        pytest.param(b"[" * 100_000, [], id="too deep"),
    ],
)
def test_of_what_a_bundle_speaks(blob: bytes, digests: list[tuple[str, ...]]) -> None:
    assert [seal.digests for seal in cosign.seals(*layered(cosign.BUNDLE, blob))] == digests


def test_who_lays_down_thousands_of_signatures_has_few_of_them_looked_at() -> None:
    """Every layer may name the same blob: each would be parsed and verified anew."""
    blob = bundle()
    layer = {"mediaType": cosign.BUNDLE, "digest": distribution.digest_of(blob), "size": len(blob)}
    payload = cosign.payload("r/n", DIGEST)
    signed = {"mediaType": cosign.PAYLOAD, "digest": distribution.digest_of(payload), "size": len(payload)}
    layers: list[dict[str, Any]] = [layer] * 9000
    layers += [
        {**signed, "annotations": {"dev.cosignproject.cosign/signature": f"AA{n:02}"}} for n in range(90)
    ]
    for order in (layers, layers[::-1]):
        document = Document("", json.dumps({"layers": order}).encode())
        blobs = {distribution.digest_of(each): each for each in (blob, payload)}
        assert 1 <= len(list(cosign.seals(document, blobs))) <= 64


@pytest.mark.parametrize(
    ("kind", "may"),
    [
        ("", True),
        (cosign.BUNDLE, True),
        ("application/vnd.dev.cosign.artifact.sig.v1+json", True),
        ("application/vnd.oci.empty.v1+json", True),
        ("application/vnd.cyclonedx+json", False),
    ],
)
def test_which_referrers_are_asked_for(kind: str, may: bool) -> None:  # noqa: FBT001
    assert cosign.may_seal(kind) is may


@pytest.mark.parametrize(
    "layer",
    [
        {"mediaType": "application/octet-stream"},
        {"size": -1},
        {"size": 0},
        {"size": cosign.MAX_BYTES + 1},
        {"size": "3"},
        {"digest": "sha256:../../x"},
        {"digest": 3},
    ],
)
def test_what_is_not_fetched(layer: dict[str, object]) -> None:
    document, _ = layered(cosign.PAYLOAD, b"x", **layer)
    assert cosign.material(document) == ()


@pytest.mark.parametrize(
    "annotations", [None, {}, {"dev.cosignproject.cosign/signature": 3}, 3, {"x": "AAAA"}]
)
def test_a_layer_without_a_signature_is_none(annotations: object) -> None:
    assert list(cosign.seals(*layered(cosign.PAYLOAD, b"x", annotations=annotations))) == []


def test_a_second_signature_joins_the_first() -> None:
    first, _ = recorded("signature")
    config = Descriptor(distribution.OCI_CONFIG, OTHER, 2)
    blob = cosign.payload("r/n", DIGEST)
    layer = Descriptor(cosign.PAYLOAD, distribution.digest_of(blob), len(blob))
    both = cosign.manifest(config, layer, b"second", first)
    payload = (DATA / "payload.json").read_bytes()
    blobs = {distribution.digest_of(each): each for each in (blob, payload)}
    assert [seal.signature for seal in cosign.seals(both, blobs)][1:] == [b"second"]
    assert both.content()["config"] == first.content()["config"]


# -- keys --------------------------------------------------------------------------------------------


def ecdsa(curve: ec.EllipticCurve, algorithm: hashes.HashAlgorithm) -> tuple[bytes, bytes]:
    key = ec.generate_private_key(curve)
    return public(key), key.sign(b"said", ec.ECDSA(algorithm))


def rsa_(bits: int, algorithm: hashes.HashAlgorithm) -> tuple[bytes, bytes]:
    key = rsa.generate_private_key(65537, bits)
    return public(key), key.sign(b"said", padding.PKCS1v15(), algorithm)


def edwards() -> tuple[bytes, bytes]:
    key = ed25519.Ed25519PrivateKey.generate()
    return public(key), key.sign(b"said")


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: ecdsa(ec.SECP256R1(), hashes.SHA256()), id="P-256"),
        pytest.param(lambda: ecdsa(ec.SECP384R1(), hashes.SHA256()), id="P-384 with SHA-256"),
        pytest.param(lambda: ecdsa(ec.SECP384R1(), hashes.SHA384()), id="P-384"),
        pytest.param(lambda: ecdsa(ec.SECP521R1(), hashes.SHA512()), id="P-521"),
        pytest.param(lambda: rsa_(2048, hashes.SHA256()), id="RSA"),
        pytest.param(edwards, id="Ed25519"),
    ],
)
def test_keys_that_sign_images(make: Callable[[], tuple[bytes, bytes]], tmp_path: Path) -> None:
    text, signature = make()
    file = tmp_path / "images.pem"
    file.write_bytes(text)
    assert keys(file).signer(b"said", signature).startswith("images.pem (SHA-256 ")
    assert keys(file).signer(b"Said", signature) == ""
    assert keys(file).signer(b"said", b"") == ""


def test_of_several_keys_one_is_enough_and_named(tmp_path: Path) -> None:
    made = [ecdsa(ec.SECP256R1(), hashes.SHA256()) for _ in range(3)]
    (tmp_path / "old.pem").write_bytes(b"the old ones\r\n" + made[0][0].replace(b"\n", b"\r\n") + made[1][0])
    (tmp_path / "new.pem").write_bytes(made[2][0])
    known = keys(tmp_path / "old.pem", tmp_path / "new.pem")
    names = [known.signer(b"said", signature) for _, signature in made]
    assert [name.partition(" ")[0] for name in names] == ["old.pem", "old.pem", "new.pem"]
    assert len(set(names)) == 3
    (tmp_path / "old.pem").write_bytes(made[1][0])
    known.read()
    assert known.signer(b"said", made[0][1]) == ""


def test_a_rotation_needs_no_restart(tmp_path: Path) -> None:
    file = tmp_path / "images.pem"
    first, second = (ecdsa(ec.SECP256R1(), hashes.SHA256()) for _ in range(2))
    file.write_bytes(first[0])
    known = keys(file)
    file.write_bytes(second[0])
    known.read()
    assert (known.signer(b"said", first[1]), bool(known.signer(b"said", second[1]))) == ("", True)


def private_key() -> bytes:
    forms = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(*forms)


def certificate() -> bytes:
    return b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        pytest.param(lambda: b"", "holds no public key in PEM", id="empty"),
        pytest.param(lambda: b"\0\xff" * 10, "holds no public key in PEM", id="bytes"),
        pytest.param(certificate, "holds no public key in PEM", id="a certificate"),
        pytest.param(private_key, "holds a private key", id="a private key"),
        pytest.param(
            lambda: b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
            "cannot be used to verify",
            id="nothing in it",
        ),
        pytest.param(lambda: rsa_(1024, hashes.SHA256())[0], "RSA key of 1024 bits is too weak", id="weak"),
        pytest.param(lambda: public(dsa.generate_private_key(2048)), "its kind are not used", id="DSA"),
        pytest.param(
            lambda: public(ec.generate_private_key(ec.SECP256K1())), "curve secp256k1 are not", id="curve"
        ),
        pytest.param(
            lambda: (DATA / "key.pem").read_bytes() + rsa_(1024, hashes.SHA256())[0],
            "too weak",
            id="one bad",
        ),
        pytest.param(None, "No such file", id="absent"),
        pytest.param(
            lambda: (DATA / "key.pem").read_bytes() + certificate(),
            "something else",
            id="a certificate, too",
        ),
        pytest.param(
            lambda: (DATA / "key.pem").read_bytes() * 2 + (DATA / "key.pem").read_bytes()[:60],
            "something else",
            id="half a key, too",
        ),
        pytest.param(
            lambda: b"# " + (DATA / "key.pem").read_bytes(), "no public key", id="one that is commented out"
        ),
        pytest.param(lambda: (DATA / "key.pem").read_bytes() + b"x" * 65536, "larger than", id="large"),
    ],
)
def test_a_file_that_cannot_be_used_is_said_so(
    make: Callable[[], bytes] | None, says: str, tmp_path: Path
) -> None:
    file = tmp_path / "images.pem"
    if make:
        file.write_bytes(make())
    with pytest.raises(Failure) as caught:
        keys(DATA / "key.pem", file)
    assert (caught.value.code, caught.value.retry) == (Code.KEY_UNUSABLE, True)
    assert str(file) in caught.value.sentence
    assert says in caught.value.sentence


# -- the decision ------------------------------------------------------------------------------------


def seal(signature: bytes, *digests: str) -> Seal:
    return Seal(b"said", signature, digests)


@pytest.mark.parametrize(
    ("seals", "outcome"),
    [
        pytest.param([], "is not signed", id="unsigned"),
        pytest.param([seal(b"ours", DIGEST)], "", id="signed"),
        pytest.param([seal(b"theirs", DIGEST), seal(b"ours", DIGEST)], "", id="a stranger's before ours"),
        pytest.param([seal(b"ours", OTHER, DIGEST)], "", id="over several images"),
        pytest.param([seal(b"theirs", DIGEST)], "1 of its signatures are by no configured key", id="theirs"),
        pytest.param([seal(b"ours", OTHER)], f"has signed there is {OTHER}", id="stale"),
        pytest.param([seal(b"ours"), seal(b"theirs")], "is not signed", id="over no image"),
        pytest.param(
            [seal(b"ours", OTHER), seal(b"ours", "sha256:2"), seal(b"theirs", DIGEST)],
            "is 2 other images, and 1 of its",
            id="stale and theirs",
        ),
        pytest.param([seal(b"ours", "\x1b[2Jsha256:x\n")], "sha256:x", id="with words for a terminal"),
    ],
)
def test_whether_an_image_may_be_run(seals: list[Seal], outcome: str) -> None:
    def signed_by(_signed: bytes, signature: bytes) -> str:
        return "images.pem" if signature == b"ours" else ""

    if not outcome:
        assert trust.signer(IMAGE, DIGEST, seals, signed_by) == "images.pem"
        return
    with pytest.raises(Failure) as caught:
        trust.signer(IMAGE, DIGEST, seals, signed_by)
    failure = caught.value
    assert outcome in failure.sentence
    assert f"'{IMAGE}' ({DIGEST})" in failure.sentence
    assert failure.sentence.isprintable()
    assert failure.code is (
        Code.SIGNATURE_UNTRUSTED if any(each.digests for each in seals) else Code.SIGNATURE_MISSING
    )
    assert failure.retry
    assert failure.remedy


@pytest.mark.parametrize(
    ("settings", "policy"),
    [
        (Trust(), Signatures.OFF),
        (Trust(keys=(PurePosixPath("/k"),)), Signatures.REQUIRE),
        (Trust(keys=(PurePosixPath("/k"),), policy=Signatures.PREFER), Signatures.PREFER),
        (Trust(keys=(PurePosixPath("/k"),), policy=Signatures.OFF), Signatures.OFF),
    ],
)
def test_a_key_makes_signatures_required(settings: Trust, policy: Signatures) -> None:
    assert settings.signatures is policy


def test_pins() -> None:
    settings, faults = load([("f", f'[trust.pins]\n"{IMAGE}" = "{DIGEST}"\n')])
    assert faults == ()
    assert trust.pinned(IMAGE, settings) == f"{IMAGE}@{DIGEST}"
    assert trust.pinned(f"{IMAGE}0", settings) == f"{IMAGE}0"
    assert trust.pinned(IMAGE, Settings()) == IMAGE


@pytest.mark.parametrize(
    ("image", "pin"),
    [
        ("acme/nv:1", "docker.io/acme/nv:1"),
        ("docker.io/acme/nv:1", "acme/nv:1"),
        ("index.docker.io/acme/nv:1", "acme/nv:1"),
        ("nv:1", "docker.io/library/nv:1"),
        ("reg.example/nv:1", "REG.example/nv:1"),
        ("reg.example:5000/a/nv:1", "reg.example:5000/a/nv:1"),
        ("reg.example/nv", "reg.example/nv:latest"),
    ],
)
def test_a_pin_holds_however_the_image_is_written(image: str, pin: str) -> None:
    settings, faults = load([("f", f'[trust.pins]\n"{pin}" = "{DIGEST}"\n')])
    assert faults == ()
    assert trust.pinned(image, settings) == f"{image}@{DIGEST}"
    assert trust.pinned(f"{image}@{DIGEST}", settings) == f"{image}@{DIGEST}"
    with pytest.raises(Failure, match="is pinned to") as caught:
        trust.pinned(f"{image}@{OTHER}", settings)
    assert caught.value.code is Code.IMAGE_MISMATCH


@pytest.mark.parametrize(
    ("image", "pin"),
    [
        ("reg.example/nv:1", "reg.example/nv:2"),
        ("reg.example/nv:1", "reg.example:5000/nv:1"),
        ("reg.example/nv:1", "other.example/nv:1"),
        ("reg.example/a/nv:1", "reg.example/nv:1"),
        ("acme/nv:1", "reg.example/acme/nv:1"),
    ],
)
def test_a_pin_of_another_image_is_none_of_this_one(image: str, pin: str) -> None:
    settings, _ = load([("f", f'[trust.pins]\n"{pin}" = "{DIGEST}"\n')])
    assert trust.pinned(image, settings) == image


# -- on the way to a tree ----------------------------------------------------------------------------


def host(policy: Signatures) -> World:
    world = World(facts.settings(""))
    world.signatures = policy
    world.push()
    world.boot()
    world.effects.clear()
    return world


def reference(world: World) -> str:
    return reference_of(world.wanted())


def sign(world: World, signature: bytes = b"good", of: str = "") -> None:
    digest = world.registry[reference(world)].digest
    world.seals[digest] = (seal(signature, of or digest),)


def test_a_signed_image_is_taken() -> None:
    world = host(Signatures.REQUIRE)
    sign(world)
    assert world.reconciler().look(world.settings).phase is Phase.READY
    assert "signature verified" in world.log.events("info")


@pytest.mark.parametrize(
    ("prepare", "code"),
    [
        pytest.param(lambda world: None, Code.SIGNATURE_MISSING, id="unsigned"),
        pytest.param(lambda world: sign(world, b"bad"), Code.SIGNATURE_UNTRUSTED, id="by a stranger"),
        pytest.param(lambda world: sign(world, of=OTHER), Code.SIGNATURE_UNTRUSTED, id="stale"),
        pytest.param(
            lambda world: setattr(world, "unsealed", Transient(Code.REGISTRY_STALLED, "slow")),
            Code.REGISTRY_STALLED,
            id="nobody answers",
        ),
        pytest.param(
            lambda world: setattr(world, "unsealed", Transient(Code.KEY_UNUSABLE, "no key")),
            Code.KEY_UNUSABLE,
            id="no key",
        ),
    ],
)
def test_without_a_signature_nothing_is_fetched_and_with_one_it_is(
    prepare: Callable[[World], None], code: Code
) -> None:
    world = host(Signatures.REQUIRE)
    prepare(world)
    daemon = world.reconciler()
    status = daemon.look(world.settings)
    assert status.problem is not None
    assert status.problem.code is code
    assert not [effect for effect in world.effects if effect.startswith(("pull", "install"))]
    assert world.disk.pulled == {}
    assert world.disk.trees == {}
    assert status.plan is not None
    assert status.plan.wait
    world.unsealed = None
    sign(world)
    world.clock += status.plan.wait
    assert daemon.look(world.settings).phase is Phase.READY


@pytest.mark.parametrize("unsealed", [None, Transient(Code.REGISTRY_STALLED, "slow")])
def test_a_signature_that_is_only_preferred_is_missed_aloud(unsealed: Failure | None) -> None:
    world = host(Signatures.PREFER)
    world.unsealed = unsealed
    assert world.reconciler().look(world.settings).phase is Phase.READY
    assert "nobody vouches for an image, proceeding anyway" in world.log.events("warning")


def test_what_is_signed_is_run_and_not_what_the_tag_names_then() -> None:
    """Signed is what was there when the tag was asked for; then the tag moves to something else."""
    world = host(Signatures.REQUIRE)
    sign(world)
    signed = world.registry[reference(world)].digest

    def move() -> None:
        world.meanwhile = lambda: None
        old = world.registry[reference(world)]
        other = world.push(refused=True)
        assert other.digest != signed
        world.registry["elsewhere"] = old

    world.meanwhile = move
    assert world.reconciler().look(world.settings).phase is Phase.READY
    assert [effect for effect in world.effects if effect.startswith(("pull", "install"))] == [
        f"pull {signed}",
        f"install {signed}",
    ]


def test_a_pin_is_fetched_whatever_the_tag_names() -> None:
    plain = host(Signatures.OFF)
    good = plain.registry[reference(plain)]
    world = World(facts.settings(f'[trust.pins]\n"{reference(plain)}" = "{good.digest}"\n'))
    world.registry["elsewhere"] = good
    world.push(refused=True)
    world.boot()
    world.effects.clear()
    assert world.reconciler().look(world.settings).phase is Phase.READY
    assert f"install {good.digest}" in world.effects

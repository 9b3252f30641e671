# SPDX-License-Identifier: Apache-2.0
"""Signatures of real tools on a real host: what nobody vouches for never gets in, what is signed does."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.host import road

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.host.bed import Host

KUBELET = "kubelet.service"
NEW = road.OTHER_DRIVER
KEYS = "/etc/nvidiad/keys"
IMAGE = f"{road.REPOSITORY}:{road.tag(driver=NEW)}"
STORAGE = "/var/registry"
# cosign of Debian 13, whose cosign 3 form is what `attest` makes of this predicate.
COSIGN = "cd /root/keys && HOME=/root COSIGN_PASSWORD= cosign"
OPTIONS = "--yes --tlog-upload=false --allow-http-registry"
_NUMBERS = itertools.count(1)
APPROVAL = "https://sigstore.dev/cosign/sign/v1"


@pytest.fixture(scope="module")
def shared() -> Iterator[Host]:
    """A host with driver 535.309.01 in force, and two key pairs."""
    # cosign, and a skopeo that signs for it, are in Debian 13.
    with road.booted("trixie") as host:
        road.install(host)
        host.run("mkdir -p /root/keys; echo {} >/root/keys/predicate.json", check=True)
        for name in ("ours", "theirs"):
            host.run(f"{COSIGN} generate-key-pair --output-key-prefix {name}", check=True)
        host.write(f"{KEYS}/images.pem", host.read("/root/keys/ours.pub"))
        rule = {"docker": {"127.0.0.1:5000": {"use-sigstore-attachments": True}}}
        host.write("/etc/containers/registries.d/here.yaml", json.dumps(rule))
        digest = road.publish(host)
        sign(host, digest)
        host.write("/etc/nvidiad/nvidiad.toml", trusting(road.DRIVER))
        host.systemctl("start", "nvidiad.service")
        road.wait_ready(host)
        yield host


def trusting(driver: str, **more: Any) -> str:
    return road.configuration(driver, trust={"keys": [f"{KEYS}/images.pem"], **more})


def publish(host: Host) -> str:
    """Publish another image of driver NEW each time: equal images would share their signatures."""
    return road.publish(host, driver=NEW, bulk=4096 + 32 * next(_NUMBERS))


def sign(host: Host, digest: str, key: str = "ours", more: str = "") -> None:
    host.run(f"{COSIGN} sign --key {key}.key {OPTIONS} {more} {road.REPOSITORY}@{digest}", check=True)


def wait_taken(host: Host) -> None:
    """Wait until the driver that was wanted last is on disk, beside the old one or in its place."""

    def taken(document: dict[str, Any]) -> bool:
        on_disk = {tree["driver"] for tree in document["driver"]["installed"]}
        wanted = document["driver"]["wanted"] == NEW and NEW in on_disk
        return wanted and document["phase"] in ("ready", "pending-reboot")

    road.wait_status(host, taken, f"driver {NEW} is on disk")


@pytest.fixture
def ready(shared: Host) -> Iterator[Host]:
    yield shared
    host = shared
    road.configure(host, trusting(road.DRIVER))
    host.nvidiad("reconcile", check=True)
    road.wait_status(
        host,
        lambda d: (
            (d["phase"], d["driver"]["loaded"], d["driver"]["wanted"]) == ("ready", *[road.DRIVER] * 2)
        ),
        "the old driver is in force",
    )
    host.write(f"{KEYS}/images.pem", host.read("/root/keys/ours.pub"))
    host.run(f"rm -rf /opt/nvidia/{NEW}; docker system prune -af >&2", check=True)
    host.nvidiad("reconcile", check=True)
    road.wait_status(host, lambda d: len(d["driver"]["installed"]) == 1, "only the old one")


# -- what gets in ------------------------------------------------------------------------------------


def by_cosign(host: Host, digest: str) -> None:
    sign(host, digest)


def by_cosign_as_a_referrer(host: Host, digest: str) -> None:
    referring = "COSIGN_EXPERIMENTAL=1 cosign sign --registry-referrers-mode=oci-1-1 --key ours.key"
    host.run(f"{COSIGN.removesuffix('cosign')} {referring} {OPTIONS} {road.REPOSITORY}@{digest}", check=True)


def by_a_bundle(host: Host, digest: str) -> None:
    predicate = f"--new-bundle-format --type {APPROVAL} --predicate predicate.json"
    host.run(f"{COSIGN} attest --key ours.key {OPTIONS} {predicate} {road.REPOSITORY}@{digest}", check=True)


def by_skopeo(host: Host, _digest: str) -> None:
    signing = "--sign-by-sigstore-private-key /root/keys/ours.key --sign-passphrase-file /root/keys/none"
    tls = "--src-tls-verify=false --dest-tls-verify=false"
    host.run(
        f"echo >/root/keys/none; skopeo --insecure-policy copy {tls} {signing} docker://{IMAGE} "
        f"docker://{IMAGE}",
        check=True,
    )


def after_a_stranger(host: Host, digest: str) -> None:
    sign(host, digest, "theirs")
    sign(host, digest)


def with_another_key(host: Host, digest: str) -> None:
    """A rotation: the new key joins the file, then signs."""
    sign(host, digest, "theirs")
    both = host.read("/root/keys/ours.pub") + host.read("/root/keys/theirs.pub")
    host.write(f"{KEYS}/images.pem", both)


@pytest.mark.parametrize(
    "vouch",
    [by_cosign, by_cosign_as_a_referrer, by_a_bundle, by_skopeo, after_a_stranger, with_another_key],
    ids=lambda vouch: vouch.__name__.replace("_", " "),
)
def test_what_a_configured_key_has_signed_gets_in(ready: Host, vouch: Callable[[Host, str], None]) -> None:
    host = ready
    vouch(host, publish(host))
    road.configure(host, trusting(NEW))
    wait_taken(host)
    said = [entry for entry in host.journal("nvidiad.service") if "verified" in str(entry.get("MESSAGE"))]
    assert said
    assert "images.pem (SHA-256 " in json.dumps(said[-1])


# -- what does not -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wrong:
    """What was done to the image of driver NEW, and how that is told."""

    prepare: Callable[[Host], None]
    code: str
    words: tuple[str, ...]


def unsigned(host: Host) -> None:
    publish(host)


def signed_by_a_stranger(host: Host) -> None:
    sign(host, publish(host), "theirs")


def retagged(host: Host) -> None:
    """The tag's image was signed; then whoever may push lets the tag name another one."""
    sign(host, publish(host))
    publish(host)


def stale(host: Host) -> None:
    """The signature of an older image is laid beside the new one."""
    old = publish(host)
    sign(host, old)
    new = publish(host)
    source, target = (f"docker://{road.REPOSITORY}:{name.replace(':', '-')}.sig" for name in (old, new))
    tls = "--src-tls-verify=false --dest-tls-verify=false"
    host.run(f"skopeo --insecure-policy copy {tls} {source} {target}", check=True)


def described(host: Host) -> None:
    """Signed by our key, but only what is in it: nobody stands for the image."""
    digest = publish(host)
    predicate = "--new-bundle-format --type cyclonedx --predicate predicate.json"
    host.run(f"{COSIGN} attest --key ours.key {OPTIONS} {predicate} {road.REPOSITORY}@{digest}", check=True)


def swapped_layer(host: Host) -> None:
    """Manifest and signature are right; the registry hands out another layer for one of its own."""
    sign(host, publish(host))
    manifest = json.loads(
        host.run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{IMAGE}").out
    )
    digest = manifest["layers"][-1]["digest"].removeprefix("sha256:")
    place = f"{STORAGE}/docker/registry/v2/blobs/sha256/{digest[:2]}/{digest}/data"
    assert host.exists(place)
    host.run(f"size=$(stat -c %s {place}); head -c $size /dev/urandom >{place}", check=True)


def without_its_key(host: Host) -> None:
    sign(host, publish(host))
    host.run("rm", f"{KEYS}/images.pem", check=True)


WRONG = {
    "unsigned": Wrong(unsigned, "signature-missing", (IMAGE, "is not signed")),
    "wrong key": Wrong(signed_by_a_stranger, "signature-untrusted", (IMAGE, "by no configured key")),
    "re-tagged": Wrong(retagged, "signature-missing", (IMAGE, "is not signed")),
    "stale signature": Wrong(stale, "signature-untrusted", (IMAGE, "has signed there is sha256:")),
    "only described": Wrong(described, "signature-missing", (IMAGE, "is not signed")),
    "swapped layer": Wrong(swapped_layer, "image-corrupt", (IMAGE,)),
    "no key": Wrong(without_its_key, "key-unusable", (f"{KEYS}/images.pem", "No such file")),
}


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        *(pytest.param(name, "docker", id=name) for name in WRONG),
        *(pytest.param(name, "registry", id=f"{name}-registry") for name in ("re-tagged", "swapped layer")),
    ],
)
def test_what_nobody_vouches_for_is_refused_with_the_old_driver_in_force(
    ready: Host, name: str, engine: str
) -> None:
    host, wrong = ready, WRONG[name]
    road.fetched_by(host, engine)
    pids = {unit: road.main_pid(host, unit) for unit in (KUBELET, "nvidia-persistenced.service")}
    opt, calls, since = road.listing(host.path("/opt/nvidia")), len(host.kmod_log()), road.clock(host)
    wrong.prepare(host)
    road.configure(host, trusting(NEW))
    document = road.wait_status(
        host, lambda d: (d["problem"] or {}).get("code") == wrong.code, f"{wrong.code} for {name}"
    )
    for word in wrong.words:
        assert word in document["problem"]["sentence"]
    assert document["problem"]["remedy"]
    assert document["phase"] == "waiting"
    assert document["driver"]["loaded"] == road.DRIVER
    assert road.listing(host.path("/opt/nvidia"), without=(NEW, ".lock")) == {
        path: what for path, what in opt.items() if path != ".lock"
    }
    # nvidiad itself makes room for what comes, under a hidden name, at each of its tries.
    laid = road.listing(host.path(f"/opt/nvidia/{NEW}"))
    assert not [name for name in laid if engine == "docker" or not name.startswith(".")], laid
    assert {unit: road.main_pid(host, unit) for unit in pids} == pids
    assert len(host.kmod_log()) == calls
    assert road.engine_events(host, "start", since) == ""
    if name != "swapped layer":
        assert road.engine_events(host, "pull", since) == "", "something of it was fetched"

    # Set right, it gets in without help.
    host.write(f"{KEYS}/images.pem", host.read("/root/keys/ours.pub"))
    digest = publish(host)
    sign(host, digest)
    wait_taken(host)


def test_a_signature_that_is_only_preferred_is_missed_aloud(ready: Host) -> None:
    host = ready
    publish(host)
    road.configure(host, trusting(NEW, policy="prefer"))
    wait_taken(host)
    warned = [e for e in host.journal("nvidiad.service") if "nobody vouches" in str(e.get("MESSAGE"))]
    assert "signature-missing" in json.dumps(warned[-1])


def test_a_pin_decides_what_a_tag_names(ready: Host) -> None:
    host = ready
    pinned = publish(host)
    sign(host, pinned)
    other = publish(host)
    sign(host, other)
    road.configure(host, f'{trusting(NEW)}[trust.pins]\n"{IMAGE}" = "{pinned}"\n')
    wait_taken(host)
    memory = json.loads(host.read("/var/lib/nvidiad/memory.json"))
    assert pinned in json.dumps(memory)
    assert other not in json.dumps(memory)


def test_by_hand_only_what_is_signed_is_installed(ready: Host) -> None:
    host = ready
    host.systemctl("stop", "nvidiad.service", "nvidiad.socket")
    try:
        digest = publish(host)
        refused = host.nvidiad("install", IMAGE)
        assert refused.rc == 1
        assert "is not signed" in refused.err
        assert not host.exists(f"/opt/nvidia/{NEW}")
        sign(host, digest)
        assert host.nvidiad("install", IMAGE, check=True).out.startswith(f"/opt/nvidia/{NEW}/")
    finally:
        host.systemctl("start", "nvidiad.socket", "nvidiad.service")

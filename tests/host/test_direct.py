# SPDX-License-Identifier: Apache-2.0
"""A host without a container engine: nvidiad itself fetches images, and all ends as it does with one."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from tests.host import liar, road
from tests.host.aftermath import HEALED, assert_healed, assert_held, begin
from tests.host.broken import Fault as Broken
from tests.host.broken import broken
from tests.host.liar import Liar
from tests.host.machine import RELEASE
from tests.host.registry import ADDRESSES, PASSWORD, USER
from tests.host.test_kill import Kill, Victim, prepare
from tests.payload.builder import Fault

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host.bed import Host

TREE = f"/opt/nvidia/{road.DRIVER}/{RELEASE[0]}"
IMAGE = f"{road.REPOSITORY}:{road.tag()}"
COPY = "skopeo --insecure-policy copy -q --src-tls-verify=false"
AUTH = ADDRESSES["auth"]


@pytest.fixture(scope="module")
def victim() -> Iterator[Victim]:
    """A host whose engine is not there: neither its program's unit nor its socket."""
    with road.booted(docker=False, registries=("plain", "auth")) as host:
        yield prepare(host, road.configuration(), bulk=24 << 20)


@pytest.fixture
def cold(victim: Victim) -> Host:
    road.rewind(victim.host, trees=False)
    assert not victim.host.exists("/run/docker.sock")
    victim.host.write("/etc/nvidiad/nvidiad.toml", road.configuration())
    return victim.host


def test_a_host_without_an_engine_gets_its_driver(cold: Host) -> None:
    host = cold
    begin(host)
    assert_healed(host)
    document = road.status(host)
    assert document["engine"] == {
        "kind": "registry",
        "reason": "there is no engine: no socket '/run/docker.sock'",
    }
    assert "Fetched by: registry (there is no engine" in host.nvidiad("status").out
    assert "nvidiad itself fetches images" in host.nvidiad("check", "--json=short").out
    assert host.path(f"{TREE}/bin/nvidia-modprobe").stat().st_mode & 0o7777 == 0o4755
    # What is there already is not fetched again.
    host.registry_stop("plain")
    try:
        host.reboot()
        road.wait_ready(host)
    finally:
        host.registry_start("plain")


# -- killed, and without power -----------------------------------------------------------------------

KILLS = (
    Kill("run", "pull-image", "after"),
    # While layers come, with the first files on disk; then while they get their names.
    *(Kill("run", "install-tree", at) for at in ("before", "change 4", "change 40", "after")),
)


@pytest.mark.parametrize("kill", KILLS, ids=str)
def test_the_daemon_is_killed_while_it_fetches(victim: Victim, cold: Host, kill: Kill) -> None:
    victim.arm(kill)
    cold.systemctl("start", "--no-block", "nvidiad.socket", "nvidiad.service")
    victim.wait_hit()
    victim.wait_whole()
    assert int(cold.show("nvidiad.service", "NRestarts")) == 1


def test_the_daemon_is_killed_in_the_middle_of_a_stream(victim: Victim, cold: Host) -> None:
    host = cold
    with Liar(host, liar.slow(512 << 10)) as registry:
        begin(host, road.configuration(image={"repository": liar.REPOSITORY}))
        # A file of the large layer is being written.
        found = "find /opt/nvidia -path '*.new.partial/*' -size +1M"
        host.wait(lambda: host.run(found).out, "bytes are on disk", HEALED)
        # At once: the next nvidiad, which is there soon, sweeps them away.
        assert host.run(f"systemctl kill --signal=KILL nvidiad.service && {found}", check=True).out
        registry.heal()
        assert_healed(host)
    assert host.run("find /opt/nvidia -name '.*.partial'", check=True).out == ""


@pytest.mark.parametrize("at", ["change 4", "change 40"])
def test_the_power_is_cut_while_it_fetches(victim: Victim, cold: Host, at: str) -> None:
    victim.arm(Kill("run", "install-tree", at), power=True)
    cold.systemctl("start", "--no-block", "nvidiad.socket", "nvidiad.service")
    victim.wait_hit()
    cold.power_cut()
    victim.wait_whole()
    assert len(road.wait_witnessed(cold, 1)) == 1


# -- the network, and the disk -----------------------------------------------------------------------


def test_a_connection_that_is_cut_is_taken_up_where_it_ended(cold: Host) -> None:
    host, ranges = cold, list[str]()

    def cut(answer: liar.Answer) -> liar.Answer:
        """Every second answer of a layer ends in its middle."""
        large = answer.is_blob and len(answer.body) > 1 << 16
        if large:
            ranges.append(answer.headers.get("Content-Range", ""))
        return liar.truncated(answer) if large and len(ranges) % 2 else answer

    with Liar(host, cut):
        begin(host, road.configuration(image={"repository": liar.REPOSITORY}))
        document = road.wait_ready(host, HEALED)
        assert document["attempts"] == []
    # What had come was not fetched again.
    begun = [int(match[1]) for each in ranges if (match := re.match(r"bytes (\d+)-", each))]
    assert begun and min(begun) > 1 << 14, ranges
    assert_healed(host)


@pytest.mark.parametrize(
    ("fault", "code"),
    [(Broken.FULL, "disk-full"), (Broken.READ_ONLY, "read-only"), (Broken.DEAD, "image-failed")],
    ids=str,
)
def test_a_disk_that_takes_nothing(cold: Host, fault: Broken, code: str) -> None:
    host = cold
    with broken(host, "/opt/nvidia", fault):
        begin(host)
        said = lambda d: (d["problem"] or {}).get("code") == code and d["next_try"]  # noqa: E731
        document = road.wait_status(host, said, f"status says {code}", HEALED)
        assert document["problem"]["remedy"] and document["phase"] == "waiting"
        assert_held(host)
    assert_healed(host)


def test_a_disk_that_is_too_small_is_told_before_anything_is_fetched(cold: Host) -> None:
    host = cold
    host.run("mkdir -p /opt/nvidia && mount -t tmpfs -o size=8m,mode=755 small /opt/nvidia", check=True)
    try:
        begin(host)
        said = lambda d: (d["problem"] or {}).get("code") == "disk-full"  # noqa: E731
        document = road.wait_status(host, said, "there is no room", HEALED)
        assert [step["step"] for step in document["report"]["steps"]][-1] == "pull-image"
        assert host.run("ls -A /opt/nvidia", check=True).out == ""
    finally:
        host.run("umount -l /opt/nvidia", check=True)
    assert_healed(host)


# -- who we are, and where else it is ----------------------------------------------------------------

HELPER = """#!/bin/sh
read -r server
echo "$1 $server $HOME" >>/run/helped
[ "$server" = {server} ] || {{ echo 'credentials not found in native keychain'; exit 1; }}
echo '{{"ServerURL": "{server}", "Username": "{user}", "Secret": "{password}"}}'
"""


def test_a_credential_helper_says_who_we_are(cold: Host) -> None:
    host = cold
    config = road.configuration(
        image={"repository": f"{AUTH}/nvidia-driver", "auth-file": "/etc/nvidiad/auth.json"}
    )
    host.write("/etc/nvidiad/auth.json", json.dumps({"credHelpers": {AUTH: "bed"}}))
    program = "/opt/bin/docker-credential-bed"
    host.write(program, HELPER.format(server="elsewhere", user=USER, password=PASSWORD), 0o755)
    try:
        begin(host, config)
        document = road.wait_phase(host, "waiting", HEALED, code="registry-auth")
        assert AUTH in document["problem"]["sentence"]
        host.write(program, HELPER.format(server=AUTH, user=USER, password=PASSWORD), 0o755)
        assert_healed(host)
        assert f"get {AUTH} /root\n" in host.read("/run/helped")
        assert PASSWORD not in json.dumps(host.journal("nvidiad.service"))
    finally:
        host.run("rm -rf /opt/bin /etc/nvidiad/auth.json /run/helped")


def test_a_mirror_is_asked_first_and_its_registry_where_it_fails(cold: Host) -> None:
    host, asked = cold, list[str]()

    def mirror(answer: liar.Answer) -> liar.Answer:
        asked.append(answer.path)
        return answer

    # The registry itself is not there at all.
    away = road.configuration(image={"repository": "registry.invalid/nvidia-driver"})
    mirrors = '[engine.mirrors]\n"registry.invalid" = ["http://127.0.0.1:5999", "http://127.0.0.1:5002"]\n'
    with Liar(host, mirror) as registry:
        begin(host, away + mirrors)
        assert_healed(host)
        assert any("/manifests/" in path for path in asked) and any("/blobs/" in path for path in asked)
        # A mirror that is not well: what it gives wrong is fetched from the registry itself.
        road.rewind(host, trees=False)
        asked.clear()
        registry.change = lambda answer: liar.damaged(mirror(answer))
        own = '[engine.mirrors]\n"127.0.0.1:5000" = ["http://127.0.0.1:5002"]\n'
        begin(host, road.configuration() + own)
        assert_healed(host)
        assert road.status(host)["attempts"] == [] and any("/blobs/" in path for path in asked)


# -- without any registry ----------------------------------------------------------------------------

FORMS = {
    "oci-layout": ("oci:/var/air/layout:{tag}", "oci-layout:/var/air/layout@{digest}"),
    "oci-archive": ("oci-archive:/var/air/image.tar:{tag}", "oci-archive:/var/air/image.tar"),
    "docker-archive": (
        "docker-archive:/var/air/saved.tar:drivers:{tag}",
        "docker-archive:/var/air/saved.tar:drivers:{tag}",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_image_in_a_file_is_installed(cold: Host, form: str) -> None:
    host = cold
    digest = road.publish(host)
    written, asked = (each.format(tag=road.tag(), digest=digest) for each in FORMS[form])
    host.run(f"rm -rf /var/air; mkdir /var/air; {COPY} docker://{IMAGE} {written}", timeout=120, check=True)
    host.registry_stop("plain")
    try:
        assert host.nvidiad("install", asked, check=True).out == f"{TREE}\n"
        road.assert_nothing_half(host)
        assert host.nvidiad("install", asked, check=True).out == f"{TREE}\n"
    finally:
        host.registry_start("plain")
    begin(host)
    assert_healed(host)


def test_an_image_in_a_file_is_refused_as_any_other(cold: Host) -> None:
    host = cold
    road.publish(host, spoil=Fault.WRONG_HASH)
    layout = "oci-layout:/var/air/layout"
    host.run(f"rm -rf /var/air; mkdir /var/air; {COPY} docker://{IMAGE} oci:/var/air/layout:bad", check=True)
    done = host.nvidiad("install", layout)
    assert done.rc == 1 and "is refused: the tree in it is not what its manifest says" in done.err, done.err
    for name, words in (
        ("oci-layout:/var/air/none", "cannot be read: No such file"),
        (f"{layout}:other", "there is no image 'other'"),
        ("docker-archive:/var/air/layout/index.json", "it is no tar archive"),
        (f"{layout}@sha256:{'0' * 64}", "cannot be used"),
    ):
        done = host.nvidiad("install", name)
        assert done.rc == 1 and words in done.err, done.err
    # A blob that was changed since.
    host.run(
        "f=$(ls -S /var/air/layout/blobs/sha256/* | head -1); printf X | dd of=$f bs=1 seek=900 conv=notrunc"
    )
    done = host.nvidiad("install", layout)
    assert done.rc == 1 and ("has digest" in done.err or "layer sha256:" in done.err), done.err
    # Where signatures are required, nobody has signed it.
    host.write("/etc/nvidiad/keys/images.pem", _KEY)
    host.write("/etc/nvidiad/conf.d/50-trust.toml", '[trust]\nkeys = ["/etc/nvidiad/keys/images.pem"]\n')
    try:
        done = host.nvidiad("install", layout)
        assert done.rc == 1 and "is not signed" in done.err, done.err
    finally:
        host.run("rm -r /etc/nvidiad/conf.d/50-trust.toml /etc/nvidiad/keys", check=True)
    assert not host.exists(TREE)
    road.publish(host)


_KEY = """-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaxfR8uEsQkf4vOblY6RA8ncDfYEt
6zOg9KE5RdiYwpZP40Li/hp/m47n60p8D54WK84zV2sxXs7LtkBoN79R9Q==
-----END PUBLIC KEY-----
"""

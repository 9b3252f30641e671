# SPDX-License-Identifier: Apache-2.0
"""Images against real engines (Debian 12's, Debian 13's, its containerd store) and real registries."""

from __future__ import annotations

import base64
import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.host import engines
from tests.host.engines import (
    AUTH,
    BEGUN,
    BLOBS,
    DOCKERFILE,
    EVERYWHERE,
    NOWHERE,
    ONCE,
    PLACE,
    PLAIN,
    TLS,
    WAITING,
    Bed,
    damaged,
    wait_begun,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def shared(request: pytest.FixtureRequest) -> Iterator[Bed]:
    with engines.running(request.param) as bed:
        yield bed


@pytest.fixture
def bed(shared: Bed) -> Bed:
    return shared.fresh()


def installer_of(bed: Bed) -> str:
    """The name that nvidiad gives the container."""
    return f"nvidiad-install-{bed.digest[7:19]}"


# -- in health ----------------------------------------------------------------------------------------------


@EVERYWHERE
def test_an_image_is_resolved_pulled_read_and_run(bed: Bed) -> None:
    done = bed.act(f"{PLAIN}/nv:1", "pull", "labels", "install")
    assert (done["code"], done["sentence"]) == ("", "")
    assert done["digest"] == bed.digest
    assert done["labels"]["io.nvidiad.driver"] == "535.309.01"
    assert done["lines"] == ["r=", "end"]
    assert done["bytes"] > 36 << 20 or bed.store
    assert bed.runs() == 1
    assert bed.containers() == ""


@ONCE
def test_a_second_pull_asks_nobody(bed: Bed) -> None:
    assert bed.act(f"{PLAIN}/nv:1", "pull")["code"] == ""
    bed.host.registry_stop("plain")
    try:
        done = bed.act(f"{PLAIN}/nv:1", "pull", "labels", "install", digest=bed.digest)
    finally:
        bed.host.registry_start("plain")
    assert (done["code"], done["sentence"]) == ("", "")
    assert done["bytes"] == 0


@ONCE
def test_a_reference_with_a_digest_names_itself(bed: Bed) -> None:
    done = bed.act(f"{PLAIN}/nv:1@{bed.digest}", "pull", "labels")
    assert (done["code"], done["digest"]) == ("", bed.digest)


@ONCE
def test_another_root_is_handed_to_the_installer(bed: Bed) -> None:
    done = bed.act(f"{PLAIN}/nv:1", "pull", "install", root="/var/opt")
    assert done["lines"] == ["r=/var/opt", "end"]


@EVERYWHERE
def test_the_container_has_nothing_of_the_host_but_the_place_of_its_trees(bed: Bed) -> None:
    assert bed.act(f"{PLAIN}/nv:1", "pull")["code"] == ""
    bed.installer(WAITING)
    with bed.host.popen(*bed.command(f"{PLAIN}/nv:1", "install", digest=bed.digest)) as process:
        bed.host.wait(lambda: bed.host.run("docker ps -q", check=True).out, "it runs")
        made = bed.host.run("docker", "inspect", installer_of(bed), check=True).json()[0]
        bed.go()
        process.communicate(timeout=30)
    config = made["HostConfig"]
    mounts = [(mount["Source"], mount["Destination"], mount["RW"]) for mount in made["Mounts"]]
    assert sorted(mounts) == [
        ("/opt/nvidia", "/rootfs/opt/nvidia", True),
        ("/sys/module", "/rootfs/sys/module", False),
    ]
    assert config["Privileged"] is False and config["ReadonlyRootfs"] is True
    assert config["AutoRemove"] is True
    assert config["NetworkMode"] == "none"
    assert config["CapDrop"] == ["ALL"]
    assert sorted(name.removeprefix("CAP_") for name in config["CapAdd"]) == ["DAC_OVERRIDE", "FOWNER"]
    assert {"no-new-privileges", "label=disable"} <= set(config["SecurityOpt"])
    assert config["UsernsMode"] == "host"
    bed.host.wait(lambda: bed.containers() == "", "it is gone")


# What a hostile image may try, each of which must fail; the last line counts the processes that it sees.
ATTEMPTS = {
    "write to the host's /etc": "echo evil >/rootfs/etc/evil",
    "see the host's root": "ls /rootfs/etc /rootfs/usr",
    "replace nvidiad": "echo evil >/rootfs/opt/nvidiad/evil",
    "write through a link": "ln -s /etc evil; echo evil >evil/evil",
    "write to its own root": "echo evil >/evil",
    "make a disk": "mknod /tmp/disk b 8 0 || mknod disk b 8 0",
    "mount": "mount -t tmpfs none /tmp",
    "bind": "mount -o bind /proc /tmp",
    "write to /sys": "mount -o remount,rw,bind /rootfs/sys/module; echo / >$firmware",
    "write to its own /sys": "echo / >/sys/module/firmware_class/parameters/path",
    "write to /proc/sys": "echo evil >/proc/sys/kernel/core_pattern",
    "leave by a namespace": "unshare -m true",
    "be root of a namespace": "unshare -U true",
    "leave by chroot": "chroot / true",
    "take over files": "echo mine >mine; chown 1000 mine",
    "load a module": "insmod ./mine",
    "reboot": "reboot -f",
    "reach a registry": "wget -q -O - http://127.0.0.1:5000/v2/",
    "have a network": "ip addr add 10.1.1.1/32 dev lo",
    "read the kernel's log": "dmesg",
}


@EVERYWHERE
def test_a_hostile_image_gets_at_nothing_beside_its_place(bed: Bed) -> None:
    tries = [f'({command}) >/dev/null 2>&1 && echo "could {name}"' for name, command in ATTEMPTS.items()]
    told = "sed -n -e 's/^\\(CapBnd\\|NoNewPrivs\\|Seccomp\\):[[:space:]]*/\\1 /p' /proc/self/status"
    seen = "set -- /proc/[0-9]*; echo processes $#"
    firmware = "firmware=/rootfs/sys/module/firmware_class/parameters/path"
    bed.installer("\n".join([firmware, *tries, told, seen]))
    done = bed.act(f"{PLAIN}/nv:1", "pull", "install")
    assert (done["code"], done["sentence"]) == ("", "")
    assert [line for line in done["lines"] if line.startswith("could")] == []
    kept = {key: int(value, 16) for key, _, value in (x.partition(" ") for x in done["lines"][1:-1])}
    assert kept.pop("processes") < 5
    # DAC_OVERRIDE and FOWNER.
    assert kept == {"CapBnd": 1 << 1 | 1 << 3, "NoNewPrivs": 1, "Seccomp": 2}
    assert bed.host.run("find /etc /usr /opt/nvidiad -name evil", check=True).out == ""


@ONCE
def test_the_place_may_be_behind_links_and_need_not_be_there(bed: Bed) -> None:
    host = bed.host
    assert bed.act(f"{PLAIN}/nv:1", "pull")["code"] == ""
    # As an OS with a read-only /usr has it, where everything that may be written is below /var.
    host.run(
        "mkdir -p /var/far && ln -s ../var/far /srv/root && ln -s /var/nearer /var/far/nvidia", check=True
    )
    try:
        done = bed.act(f"{PLAIN}/nv:1", "install", digest=bed.digest, root="/srv/root")
        # It is made, and then the image has nothing there to read its orders from.
        assert done["code"] == "image-failed" and host.read("/var/nearer/runs") == ".\n"
        host.write("/var/nearer/act", "echo mine >mine\n")
        done = bed.act(f"{PLAIN}/nv:1", "install", digest=bed.digest, root="/srv/root")
        assert (done["code"], done["lines"]) == ("", ["r=/srv/root", "end"])
        assert host.read("/var/nearer/mine") == "mine\n"
        host.run("rm -r /var/nearer; mkdir /var/ro; mount -t tmpfs -o ro none /var/ro", check=True)
        done = bed.act(f"{PLAIN}/nv:1", "install", digest=bed.digest, root="/var/ro")
        assert done["code"] == "read-only" and "/var/ro/nvidia" in done["sentence"], done
    finally:
        host.run("umount /var/ro; rm -rf /srv/root /var/far /var/nearer /var/ro")
    bed.host.wait(lambda: bed.containers() == "", "no container is left")


# -- what is not there, or not for us -----------------------------------------------------------------------


@EVERYWHERE
@pytest.mark.parametrize(
    ("reference", "code", "says"),
    [
        (f"{PLAIN}/nv:9", "image-missing", "not in the registry"),
        (f"{PLAIN}/nope:1", "image-missing", "not in the registry"),
        ("127.0.0.1:5999/nv:1", "registry-unreachable", "connection refused"),
        ("10.99.0.1:5999/nv:1", "registry-unreachable", "connection refused"),
        ("no.such.test/nv:1", "registry-unreachable", "no.such.test"),
        ("10.200.0.1:5000/nv:1", "registry-unreachable", "network is unreachable"),
        (f"{AUTH}/nv:1", "registry-auth", "no basic auth credentials"),
        (f"{PLAIN}/NV:1", "config-invalid", "lowercase"),
        ("https://reg.test/nv:1", "config-invalid", "not an image reference"),
    ],
)
def test_what_cannot_be_had_is_told_apart(bed: Bed, reference: str, code: str, says: str) -> None:
    asked, pulled = bed.act(reference, stall=30), bed.act(reference, "pull", digest=NOWHERE, stall=30)
    for done in (asked, pulled):
        assert done["code"] == code, done
        assert reference in done["sentence"] and says in done["sentence"]
        assert done["remedy"]
        assert done["retry"] is (code != "config-invalid")
        # Nobody has waited until the registry had stalled.
        assert done["seconds"] < 29
    assert bed.images() == []


@EVERYWHERE
def test_an_unknown_authority_is_said_so(bed: Bed) -> None:
    bed.host.run("mv /etc/docker/certs.d /etc/docker/certs.off", check=True)
    try:
        asked, pulled = bed.act(f"{TLS}/nv:1"), bed.act(f"{TLS}/nv:1", "pull", digest=bed.digest)
    finally:
        bed.host.run("mv /etc/docker/certs.off /etc/docker/certs.d", check=True)
    for done in (asked, pulled):
        assert done["code"] == "registry-tls", done
        assert "unknown authority" in done["sentence"]
        assert f"/etc/docker/certs.d/{TLS}/ca.crt" in done["remedy"]
    assert bed.act(f"{TLS}/nv:1", "pull")["code"] == ""


@EVERYWHERE
def test_credentials_come_from_the_configured_file_only(bed: Bed) -> None:
    def auth(user: str) -> str:
        encoded = base64.b64encode(user.encode()).decode()
        bed.host.write("/etc/auth.json", json.dumps({"auths": {AUTH: {"auth": encoded}}}))
        return "/etc/auth.json"

    wrong = auth("user:wrong")
    for done in (
        bed.act(f"{AUTH}/nv:1", auth=wrong),
        bed.act(f"{AUTH}/nv:1", "pull", auth=wrong, digest=bed.digest),
    ):
        assert done["code"] == "registry-auth", done
        assert "nauthorized" in done["sentence"] and AUTH in done["remedy"]
        assert "wrong" not in done["sentence"]
    right = auth("user:secret")
    # root's own credentials are no business of the daemon's, and a broken file of root's no reason to fail.
    bed.host.run("mkdir -p /root/.docker && cp /etc/auth.json /root/.docker/config.json", check=True)
    assert bed.act(f"{AUTH}/nv:1")["code"] == "registry-auth"
    bed.host.write("/root/.docker/config.json", '{"auths": {"x": {"auth": "%"}}, "credsStore": 5')
    try:
        assert bed.act(f"{AUTH}/nv:1", "pull", "labels", auth=right)["code"] == ""
    finally:
        bed.host.run("rm -r /root/.docker", check=True)
    bed.host.write("/etc/auth.json", "{")
    done = bed.act(f"{AUTH}/nv:1", auth=right)
    assert done["code"] == "config-invalid" and "/etc/auth.json" in done["sentence"]
    assert bed.act(f"{AUTH}/nv:1", auth="/etc/not-there.json")["code"] == "registry-auth"


# -- registries and engines that fail in the middle ---------------------------------------------------------


@EVERYWHERE
def test_a_frozen_registry_is_noticed_in_time(bed: Bed) -> None:
    with bed.slow_network():
        bed.in_mid_pull(lambda: bed.host.registry_freeze("tls"))
        try:
            done = bed.act(f"{TLS}/nv:1", "pull", digest=bed.digest, stall=2)
            assert done["code"] == "registry-stalled", done
            assert 2 <= done["seconds"] < 25
            # The engine may not have told of anything yet when it freezes.
            assert done["bytes"] < 36 << 20
            assert done["told"] < 4 * done["seconds"] + 2
            done = bed.act(f"{TLS}/nv:1", stall=2)
            assert done["code"] == "registry-stalled", done
            assert done["seconds"] < 25
        finally:
            bed.host.registry_thaw("tls")
    assert bed.act(f"{TLS}/nv:1", "pull", "labels")["code"] == ""


@EVERYWHERE
def test_a_registry_that_dies_is_unreachable(bed: Bed) -> None:
    with bed.slow_network():
        bed.in_mid_pull(lambda: bed.host.registry_kill("tls"))
        try:
            done = bed.act(f"{TLS}/nv:1", "pull", digest=bed.digest, stall=30)
        finally:
            bed.host.registry_start("tls")
    assert done["code"] == "registry-unreachable", done
    assert TLS in done["sentence"]
    assert bed.act(f"{TLS}/nv:1", "pull", "labels")["code"] == ""


@ONCE
def test_a_pull_ends_at_the_total_limit(bed: Bed) -> None:
    with bed.slow_network():
        done = bed.act(f"{TLS}/nv:1", "pull", digest=bed.digest, total=2)
    assert done["code"] == "pull-timeout", done
    assert 1.9 < done["seconds"] < 30
    assert bed.images() == []


@EVERYWHERE
def test_an_engine_that_restarts_is_lost_and_found(bed: Bed) -> None:
    with bed.slow_network():
        bed.in_mid_pull(bed.host.engine_restart)
        done = bed.act(f"{TLS}/nv:1", "pull", digest=bed.digest)
    assert done["code"] == "engine-lost", done
    assert bed.act(f"{TLS}/nv:1", "pull", "labels")["code"] == ""


@ONCE
def test_an_engine_that_hangs_is_not_taken_for_the_registry(bed: Bed) -> None:
    with bed.slow_network():
        bed.in_mid_pull(bed.host.engine_freeze)
        try:
            done = bed.act(f"{TLS}/nv:1", "pull", digest=bed.digest, stall=2)
            assert done["code"] == "engine-lost", done
            done = bed.act(f"{TLS}/nv:1", "labels", digest=bed.digest, stall=2)
            assert done["code"] == "engine-unreachable", done
            assert "no answer for 2 s" in done["sentence"]
        finally:
            bed.host.engine_thaw()


@ONCE
def test_an_engine_that_is_not_there_is_said_so(bed: Bed) -> None:
    bed.host.engine_stop()
    try:
        done = bed.act(f"{PLAIN}/nv:1", "pull")
        assert done["code"] == "engine-unreachable", done
        assert "/run/docker.sock" in done["sentence"]
        done = bed.act(f"{PLAIN}/nv:1", socket="unix:///run/nothing.sock")
        assert done["code"] == "engine-unreachable" and "No such file" in done["sentence"]
    finally:
        bed.host.engine_start()


@EVERYWHERE
@pytest.mark.parametrize(
    "command",
    ["printf XXXX | dd of=$f bs=1 seek=1000000 conv=notrunc", "truncate -s 1000000 $f", "rm $f"],
    ids=["changed", "short", "missing"],
)
def test_what_is_damaged_in_the_registry_is_never_there(bed: Bed, command: str) -> None:
    bed.forget()
    with damaged(bed, bed.layer, command):
        done = bed.act(f"{PLAIN}/nv:1", "pull", digest=bed.digest)
    # To the containerd store a blob that ends too soon is a registry that hung up.
    hung_up = bed.store and command.startswith("truncate")
    assert done["code"] == ("registry-unreachable" if hung_up else "image-corrupt"), done
    assert bed.images() == []


@EVERYWHERE
def test_a_failed_pull_never_gives_the_older_image_of_the_tag(bed: Bed) -> None:
    old = {"first": b"old", "second": b"old"}
    bed.host.image(f"{PLAIN}/moved:1", old, DOCKERFILE.format(label="old"))
    bed.clean()
    before = bed.act(f"{PLAIN}/moved:1")
    new = {"first": os.urandom(6 << 20), "second": b"new"}
    digest = bed.host.image(f"{PLAIN}/moved:new", new, DOCKERFILE.format(label="new"))
    layers = json.loads(bed.host.read(f"{BLOBS}/{digest[7:9]}/{digest[7:]}/data"))["layers"]
    bed.clean()
    bed.forget()
    bed.host.run("docker", "pull", "-q", f"{PLAIN}/moved:1", check=True)  # by tag, as a person does
    copy = ["skopeo", "copy", "-q", "--src-tls-verify=false", "--dest-tls-verify=false"]
    bed.host.run(*copy, f"docker://{PLAIN}/moved:new", f"docker://{PLAIN}/moved:1", check=True)
    with damaged(bed, max(layers, key=lambda layer: layer["size"])["digest"], "rm $f"):
        done = bed.act(f"{PLAIN}/moved:1", "pull", "labels", "install")
        assert done["code"] == "image-corrupt", done
        assert done["digest"] == digest != before["digest"]
        local = bed.host.run("docker", "image", "inspect", f"{PLAIN}/moved:1", check=True).json()[0]
        # This is what the SDK's own pull would have returned, without a word.
        assert local["Config"]["Labels"]["io.nvidiad.driver"] == "old"
        for verb in ("labels", "install"):
            done = bed.act(f"{PLAIN}/moved:1", verb, digest=digest)
            assert done["code"] == "image-failed" and "no longer" in done["sentence"], done
    assert not bed.host.exists(f"{PLACE}/runs")
    done = bed.act(f"{PLAIN}/moved:1", "pull", "labels")
    assert done["labels"]["io.nvidiad.driver"] == "new"


@EVERYWHERE
def test_a_full_disk_of_the_engine_is_said_so(bed: Bed) -> None:
    # Where nvidiad does not look before it lets the engine pull.
    place = "/var/lib/containerd" if bed.store else "/var/lib/docker/overlay2"
    bed.host.engine_stop()
    bed.host.systemctl("stop", "containerd.service")
    bed.host.run(f"mount -t tmpfs -o size=20m tmpfs {place}", check=True)
    try:
        bed.host.engine_start()
        done = bed.act(f"{PLAIN}/nv:1", "pull")
    finally:
        bed.host.engine_stop()
        bed.host.systemctl("stop", "containerd.service")
        # An engine that ends unmounts what is mounted there.
        bed.host.run(f"! mountpoint -q {place} || umount -l {place}", check=True)
        bed.host.engine_start()
    assert done["code"] == "disk-full", done
    assert done["retry"]


# -- the installer ------------------------------------------------------------------------------------------


@ONCE
@pytest.mark.parametrize(
    ("act", "code", "says"),
    [
        ("echo the manifest is refused; exit 65", "manifest-invalid", "the manifest is refused"),
        ("echo cp: No space left on device; exit 73", "disk-full", "No space left"),
        ("echo cp: Read-only file system; exit 73", "read-only", "Read-only"),
        ("exit 74", "tree-invalid", "r="),
        ("exit 75", "install-busy", "another installation"),
        ("echo is the tree of the loaded driver; exit 77", "module-in-use", "loaded driver"),
        ("echo nvidiad install: odd >&2; exit 9", "image-failed", "status 9: odd"),
        ("exit 137", "image-failed", "was killed"),
    ],
)
def test_a_failed_installer_is_quoted(bed: Bed, act: str, code: str, says: str) -> None:
    bed.installer(act)
    done = bed.act(f"{PLAIN}/nv:1", "pull", "install")
    assert done["code"] == code, done
    assert says in done["sentence"]
    assert f"{PLAIN}/nv:1" in done["sentence"]
    assert bed.containers() == ""


@ONCE
@pytest.mark.parametrize(
    "dockerfile",
    [
        "FROM scratch\nCOPY busybox /\n",
        'FROM scratch\nCOPY busybox /\nENTRYPOINT ["/install"]\n',
        'FROM scratch\nCOPY text /install\nENTRYPOINT ["/install"]\n',
    ],
    ids=["no command", "no installer", "not a program"],
)
def test_an_image_that_is_no_driver_image_is_foreign(bed: Bed, dockerfile: str) -> None:
    bed.host.image(f"{PLAIN}/foreign:1", {"text": "just text"}, dockerfile)
    bed.clean()
    done = bed.act(f"{PLAIN}/foreign:1", "pull", "install")
    assert done["code"] == "image-foreign", done
    assert not done["retry"]
    bed.host.wait(lambda: bed.containers() == "", "no container is left")


@ONCE
def test_an_installer_that_does_not_end_is_ended(bed: Bed) -> None:
    assert bed.act(f"{PLAIN}/nv:1", "pull")["code"] == ""
    bed.installer("sleep 60 & wait")
    done = bed.act(f"{PLAIN}/nv:1", "install", digest=bed.digest, total=2)
    assert done["code"] == "image-failed" and "did not end within 2 s" in done["sentence"], done
    # It would have ended by itself after 60.
    assert done["seconds"] < 40
    bed.host.wait(lambda: bed.containers() == "", "no container is left")


def started(bed: Bed, **task: Any) -> None:
    """An installer at work, whose nvidiad was killed."""
    bed.installer(BEGUN)
    with bed.host.popen(*bed.command(f"{PLAIN}/nv:1", "pull", "install", **task)) as process:
        wait_begun(process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@EVERYWHERE
def test_a_running_installer_is_adopted(bed: Bed) -> None:
    started(bed)
    done = bed.install(bed.go)
    assert (done["code"], done["sentence"]) == ("", "")
    assert done["lines"] == ["r=", "begun", "end"]
    assert bed.runs() == 1
    assert bed.containers() == ""


@ONCE
def test_an_installer_that_an_older_nvidiad_gave_everything_is_adopted(bed: Bed) -> None:
    assert bed.act(f"{PLAIN}/nv:1", "pull")["code"] == ""
    bed.installer(BEGUN)
    older = ("docker", "run", "-d", "--rm", "--privileged", "-v", "/:/rootfs", "--name", installer_of(bed))
    bed.host.run(*older, f"{PLAIN}/nv@{bed.digest}", check=True)
    done = bed.install(bed.go)
    assert (done["code"], done["lines"][-1], bed.runs(), bed.containers()) == ("", "end", 1, "")


@ONCE
def test_an_adopted_installer_that_fails_is_quoted(bed: Bed) -> None:
    started(bed)
    done = bed.install(lambda: bed.host.run("docker kill $(docker ps -q)", check=True))
    assert done["code"] == "image-failed" and "was killed" in done["sentence"], done
    assert bed.containers() == ""


@ONCE
def test_an_installer_for_another_root_is_not_adopted(bed: Bed) -> None:
    started(bed, root="/var/opt")
    bed.installer("true")
    done = bed.act(f"{PLAIN}/nv:1", "install", digest=bed.digest)
    assert (done["code"], done["lines"]) == ("", ["r=", "end"])


@ONCE
def test_a_dead_container_of_the_name_is_removed(bed: Bed) -> None:
    assert bed.act(f"{PLAIN}/nv:1", "pull")["code"] == ""
    bed.host.run("docker", "create", "--name", installer_of(bed), f"{PLAIN}/nv@{bed.digest}", check=True)
    done = bed.act(f"{PLAIN}/nv:1", "install", digest=bed.digest)
    assert (done["code"], bed.containers(), bed.runs()) == ("", "", 1)


@ONCE
def test_an_engine_that_dies_under_an_installer_is_no_dead_end(bed: Bed) -> None:
    assert bed.act(f"{PLAIN}/nv:1", "pull")["code"] == ""
    bed.installer(BEGUN)
    done = bed.install(bed.host.engine_kill)
    assert done["code"] == "engine-lost", done
    bed.go()
    bed.host.engine_restart()
    done = bed.act(f"{PLAIN}/nv:1", "install", digest=bed.digest)
    assert (done["code"], done["sentence"], bed.containers()) == ("", "", "")

# SPDX-License-Identifier: Apache-2.0
"""The daemon's parsers: socket, manifests, files of the host, engine and registry, what is remembered."""

from __future__ import annotations

import asyncio
import json
import struct
import zlib
from contextlib import suppress
from typing import Any, cast

from nvidiad.kubernetes.thought import answer
from nvidiad.nouns import compatibility, manifest
from nvidiad.nouns.errors import Failure
from nvidiad.nouns.model import Build, Gpu
from nvidiad.rim import client, server
from nvidiad.rim.conversation import Conversation, Limits, Peer
from nvidiad.thought import (
    cdi,
    config,
    cosign,
    distribution,
    fabric,
    gpt,
    health,
    inhibition,
    kernel_image,
    ldcache,
    parse,
    provision,
    pull,
    refusals,
    slots,
    surroundings,
    trust,
    wire,
)
from nvidiad.world import holders, memory, nodes
from tests.fuzz.target import plain, reader, targets, text, values

REFERENCE = "registry.example/nvidia-driver:3975.2.0-535.309.01"
DIGEST = "sha256:f943901668d214e148e3c6d9c708694a4492e5ef6289b0ef9e796386d6240ffd"
BUILD = Build("535.309.01", "3975.2.0+nightly", "6.1.0-56-cloud-amd64")

# ---------------------------------------------------------------------------------------------------
# The socket


def _messages(pieces: list[bytes]) -> tuple[list[bytes], bool]:
    """The messages in a stream that came in pieces, and whether it was refused."""
    frames, taken = wire.Frames(), []
    for piece in pieces:
        frames.feed(piece)
        try:
            while (message := frames.take()) is not None:
                taken.append(message)
        except wire.Refusal:
            return taken, True
    return taken, False


def varlink(data: bytes) -> None:
    """However a stream is cut, it is the same messages; each is a request or a refusal that can be sent."""
    whole = _messages([data])
    cut = data[:300]
    assert _messages([cut[at : at + 1] for at in range(len(cut))]) == _messages([cut])
    assert _messages([data[at : at + 4096] for at in range(0, len(data), 4096)]) == whole
    for message in whole[0]:
        try:
            request = wire.parse_request(message)
            wire.only(request, "interface")
            said = wire.read_string(request.parameters, "interface")
            answered = wire.error_reply(wire.Refusal(wire.Error.METHOD_NOT_FOUND, method=said))
        except wire.Refusal as refusal:
            answered = wire.error_reply(refusal)
        assert answered.endswith(b"\0") and answered.count(b"\0") == 1
        assert "error" in json.loads(answered[:-1])


def http(data: bytes) -> None:
    """A head is a request or a refusal; what follows it changes nothing."""
    try:
        head = wire.http_head(data)
        if head is None:
            return
        assert wire.http_head(head + b"\r\n\r\n" + data) == head
        request = wire.parse_http(head)
        assert request.path.startswith("/")
    except wire.HttpRefusal as refusal:
        answered = wire.response(refusal.status, refusal.sentence.encode())
        assert answered.startswith(b"HTTP/1.1 ") and answered.count(b"\r\n\r\n") == 1


class _Writer:
    """Takes all that is said at once."""

    def __init__(self) -> None:
        self.said = bytearray()

    def write(self, data: bytes) -> None:
        self.said += data

    async def drain(self) -> None:
        if len(self.said) > 1 << 24:
            raise ConnectionResetError


class _Log:
    def debug(self, event: str, **fields: object) -> None: ...

    def info(self, event: str, **fields: object) -> None:
        raise AssertionError(f"{event}: {fields}")

    warning = error = info


_loop: list[asyncio.AbstractEventLoop] = []


def conversation(data: bytes) -> None:
    """Whatever somebody says who may not act: the daemon answers in form, says nothing, does nothing."""
    asked: list[str] = []
    snapshot = server.Snapshot({"schema": 1, "phase": "ready", "summary": "ready", "driver": {}})
    served = server.Server(lambda: snapshot, asked.append, log=_Log(), version="1", now=lambda: 0.0)
    if not _loop:
        _loop.append(asyncio.new_event_loop())
    writer = _Writer()

    async def talk() -> None:
        stream = asyncio.StreamReader()
        stream.feed_data(data)
        stream.feed_eof()
        who = Peer(1, 12345, (12345,))
        streams = cast("Any", stream), cast("Any", writer)
        await served._converse(Conversation(*streams, who, Limits()))

    _loop[0].run_until_complete(talk())
    assert not asked
    said = bytes(writer.said)
    if said.startswith(b"{"):
        assert said.endswith(b"\0")
        for message in said[:-1].split(b"\0"):
            assert isinstance(json.loads(message), dict)
    elif said:
        assert said.startswith(b"HTTP/1.1 ") and not said.startswith(b"HTTP/1.1 500")


def from_daemon(data: bytes) -> None:
    """What a stranger answers who listens on our path."""
    code, head, body = client.parse("/run/x", data)
    assert code >= 0 and data == head + b"\r\n\r\n" + body


def status_document(data: bytes) -> None:
    said = answer.read(data, 0.0)
    plain(said.reason, said.summary)


# ---------------------------------------------------------------------------------------------------
# Manifests and lists


def a_manifest(data: bytes) -> None:
    """What is read is written as the same; and it stays below its tree."""
    found = manifest.parse(text(data))
    assert manifest.parse(manifest.render(found)) == found
    for path in (*found.directories(), *(entry.path for entry in found.entries)):
        assert not path.startswith("/") and ".." not in path.split("/")
    assert found.size >= 0


def labels(data: bytes) -> None:
    said = values(data)
    given = {key: str(value) for key, value in said.items()} if isinstance(said, dict) else {}
    build = manifest.labelled(given)
    plain(str(build))
    manifest.check_driver(given, Build("12.4.1", "", "", kind=build.kind), "535.309.01")
    manifest.check_labels(given, BUILD)


def a_list(data: bytes) -> None:
    found = compatibility.parse(text(data), "registry.example/list")
    assert compatibility.parse(compatibility.render(found), "again") == found
    found.unbuildable("1", "x86_64")


# ---------------------------------------------------------------------------------------------------
# The host's files


def os_release(data: bytes) -> None:
    release = parse.os_release(text(data))
    assert "/" not in release.version and ".." not in release.version


def mountinfo(data: bytes) -> None:
    mounts = parse.mountinfo(text(data))
    for mount in mounts[:50]:
        parse.lower_directories(mount)
        assert parse.top(mounts, mount.point) is not None


def modinfo(data: bytes) -> None:
    for key, found in parse.modinfo(data).items():
        assert key and found


def elf_section(data: bytes) -> None:
    section = parse.elf_section(reader(data), ".modinfo")
    assert section is None or len(section) <= len(data)
    modinfo(section or b"")


def proc(data: bytes) -> None:
    said = text(data)
    for majors in (parse.devices(said),):
        nodes.desired(majors, nodes.minors([("0000:01:00.0", said)]), caps={}, switches=1)
    parse.driver_version(said)
    parse.lockdown(said)
    access = nodes.access_of(said, nodes.Access())
    assert 0 <= access.mode <= 0o777
    plain(holders.owner(said))


def update_status(data: bytes) -> None:
    said = values(data)
    found = parse.update_status(said if isinstance(said, list) else [])
    assert 0.0 <= found.progress <= 1.0
    json.dumps(found.progress, allow_nan=False)


def disk(data: bytes) -> None:
    """The table as it is, and once more with checksums that are right."""
    repaired = bytearray(data)
    if len(data) >= 1024:
        length, place, count, size = (
            *struct.unpack_from("<I", data, 524),
            *struct.unpack_from("<Q", data, 584),
            *struct.unpack_from("<II", data, 592),
        )
        begin, end = place * 512, place * 512 + count * size
        if end <= len(data) and 92 <= length <= 512:
            repaired[600:604] = struct.pack("<I", zlib.crc32(data[begin:end]))
            repaired[528:532] = bytes(4)
            repaired[528:532] = struct.pack("<I", zlib.crc32(repaired[512 : 512 + length]))
    for each in (data, bytes(repaired)):
        with suppress(Failure):
            found = gpt.partitions(each, 1 << 40, "disk")
            for partition in found:
                assert 0 <= partition.offset < partition.offset + partition.size <= 1 << 40
                slots.next_slot(found, partition)
            gpt.root(found, "disk")


def kernel_file(data: bytes) -> None:
    name = kernel_image.release(reader(data))
    assert name and "/" not in name and ".." not in name


def kernel_names(data: bytes) -> None:
    # No file has a longer name.
    names = [name[:255] for name in text(data).split("\n")]
    assert kernel_image.newest(names) in (*names, "")
    kernel_image.other_slot(text(data))
    slots.running(text(data), [gpt.Partition(3, "USR-A", 512, 512, 0, "x")])


def file_system(data: bytes) -> None:
    assert slots.file_systems(data)


def linker_cache(data: bytes) -> None:
    found = ldcache.read(data)
    ldcache.names(found, "/opt/nvidia/current/lib64")
    ldcache.first(found, "libcuda.so.1", "x86_64")
    ldcache.driver_version(text(data))


def logind(data: bytes) -> None:
    said = text(data)
    found = inhibition.others(said, {"10-x.conf": said, "99-z.conf": said})
    inhibition.drop_in(found.limit)
    inhibition.span(said)
    inhibition.locksmith(said)
    inhibition.is_locked(said, 8, 1, 12)


def configuration(data: bytes) -> None:
    settings, faults = config.load([("x.toml", text(data))])
    assert settings.driver.attempts > 0
    plain(*map(str, faults))


# ---------------------------------------------------------------------------------------------------
# The engine and the registry


def reference(data: bytes) -> None:
    found = pull.parse_reference(text(data))
    assert found.pinned("sha256:x").endswith("@sha256:x")
    assert distribution.base_url(found.registry, insecure=False).startswith("http")
    distribution.path_of(found.repository, found.registry)


def credentials(data: bytes) -> None:
    for registry in ("registry.example", "docker.io"):
        found = pull.credentials(text(data), "config.json", registry)
        assert found is None or found["serveraddress"] == registry
        assert distribution.basic(found or {}).isascii()


def engine_events(data: bytes) -> None:
    layers: pull.Layers = {}
    for line in data.split(b"\n"):
        event = pull.event(line)
        if event is not None:
            layers = pull.advance(layers, event)
            said = pull.event_error(event)
            if said is not None:
                plain(refusals.classify(None, said, REFERENCE).sentence)
    progress = pull.progress(layers)
    assert progress.done >= 0 and progress.total >= 0
    plain(f"{progress.detail} {progress.done} {progress.total}")


def engine_lists(data: bytes) -> None:
    said = values(data)
    images = provision.held(said if isinstance(said, list) else [])
    provision.expendable(images, "registry.example/x", "sha256:" + "0" * 64)
    provision.begun(images, "sha256:" + "0" * 64)
    if isinstance(said, dict):
        with suppress(ValueError):
            plain(refusals.agree(said))


def container_output(data: bytes) -> None:
    at = 0

    def read(size: int) -> bytes:
        nonlocal at
        at += size
        return data[at - size : at]

    lines = list(pull.printed(read))
    assert all(line and line.isprintable() and "\n" not in line for line in lines)
    for status in (65, 73, 127, 999):
        plain(refusals.exit_failure(status, lines, REFERENCE).sentence)


def refusal_words(data: bytes) -> None:
    said = text(data)
    for status in (None, 401, 404, 500):
        failure = refusals.classify(status, said, REFERENCE)
        assert len(failure.sentence) < 1000
    assert len(refusals.start_failure(said, REFERENCE).sentence) < 1000
    refusals.classify(None, said, said)


def challenge(data: bytes) -> None:
    found = distribution.challenge(data.decode("latin-1"))
    assert found.scheme == found.scheme.lower()


def registry_answer(data: bytes) -> None:
    document = distribution.Document(distribution.OCI_MANIFEST, data)
    contents = provision.contents(document)
    assert contents.compressed >= 0
    assert all(pull.DIGEST.fullmatch(digest) for digest in (*contents.blobs, *contents.manifests))
    provision.manifest_for(document, "x86_64")
    distribution.layers_of(document, distribution.OCI_MANIFEST)
    assert provision.tree_size(data) >= 0
    assert isinstance(distribution.token_in(data), str)
    for status in (400, 401, 404, 429, 500):
        for writing in (False, True):
            refusal = distribution.refusal(status, data, REFERENCE, writing=writing)
            assert len(refusal.sentence) < 1000


# ---------------------------------------------------------------------------------------------------
# What is remembered


def remembered(data: bytes) -> None:
    found = memory.decode(data)
    assert memory.decode(memory.encode(found)) == found


def signatures(data: bytes) -> None:
    """A manifest and, after a NUL, what it says was signed: nobody has a good signature of another image."""
    said, _, blob = data.partition(b"\0")
    document = distribution.Document(distribution.OCI_MANIFEST, said)
    found = list(cosign.seals(document, dict.fromkeys(cosign.material(document), blob)))
    assert trust_of(found, "") == [], "a signature by no key was taken"
    if trust_of(found, "key"):
        assert any(DIGEST in seal.digests for seal in found)


def trust_of(found: list[cosign.Seal], key: str) -> list[str]:
    try:
        return [trust.signer(REFERENCE, DIGEST, found, lambda *_: key)]
    except Failure as failure:
        plain(failure.sentence)
        return []


def cdi_document(data: bytes) -> None:
    said = text(data)
    cdi.claims(said)
    document = cdi.read(said)
    assert cdi.minimum_version(document) >= "0.3.0"
    assert cdi.read(cdi.text(document)) == document


def left_word(data: bytes) -> None:
    found = surroundings.decode(text(data))
    assert surroundings.decode(surroundings.encode(found)) == found


def gpu_words(data: bytes) -> None:
    """What nvidia-smi prints, after its exit status, and what the driver says in /proc."""
    said = text(data[1:])
    gpus = (Gpu("0000:01:00.0", "10de:20b5", "nvidia"),)
    for recovery in (True, False):
        word = health.read((data or b"\0")[0] % 32, said, recovery=recovery, gpus=gpus, loaded="535.309.01")
        problems = (word.problem, *(gpu.problem for gpu in word.gpus))
        plain(*(each.sentence for each in problems if each), *(gpu.model for gpu in word.gpus))
    found = surroundings.identity("0000:01:00.0", said, 0)
    assert found.uuid == "" or found.uuid.startswith("GPU-")
    fabric.configuration(said, "/opt/x")


TARGETS = targets(
    (cdi_document, (ValueError,)),
    (left_word, (ValueError,)),
    (gpu_words, ()),
    (signatures, ()),
    (varlink, ()),
    (http, ()),
    (conversation, ()),
    (from_daemon, (Failure,)),
    (status_document, (answer.NoAnswer,)),
    (a_manifest, (Failure,)),
    (labels, (Failure,)),
    (a_list, (Failure,)),
    (os_release, ()),
    (mountinfo, ()),
    (modinfo, ()),
    (elf_section, (ValueError,)),
    (proc, ()),
    (update_status, (ValueError,)),
    (disk, ()),
    (kernel_file, (ValueError,)),
    (kernel_names, ()),
    (file_system, (ValueError,)),
    (linker_cache, ()),
    (logind, ()),
    (configuration, ()),
    (reference, (Failure,)),
    (credentials, (Failure,)),
    (engine_events, ()),
    (engine_lists, (Failure,)),
    (container_output, ()),
    (refusal_words, ()),
    (challenge, ()),
    (registry_answer, ()),
    (remembered, (ValueError,)),
)

# SPDX-License-Identifier: Apache-2.0
"""The answer: tables of what nvidiad says, and of what a node then says; and every order of events."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvidiad.kubernetes.nouns.node import Node, Said
from nvidiad.kubernetes.thought import answer
from nvidiad.kubernetes.thought.answer import (
    AFTER_REBOOT,
    BEFORE_REBOOT,
    DRIVER_READY,
    DRIVER_STAGED,
    NOT_READY,
    REASON,
)
from nvidiad.nouns.model import Phase
from tests.kubernetes.apiserver import QUALIFIED

NOW = 1_800_000_000.0
GO = Said(go=True, ready=True, reason="it is on disk", summary="driver 1 is in force")
WAIT = Said(go=False, ready=False, reason="it is being fetched", summary="driver 2 is being loaded")


# -- what nvidiad says -------------------------------------------------------------------------------------


def document(**more: object) -> bytes:
    usual: dict[str, object] = {
        "schema": 1,
        "phase": "ready",
        "summary": "driver 1 is in force",
        "reboot": {"go": True, "reason": "it is on disk", "until": None, "held": False},
    }
    return json.dumps(usual | more).encode()


def reboot(*, go: object, until: object = None) -> bytes:
    return document(reboot={"go": go, "reason": "it is on disk", "until": until, "held": True})


READ = {
    "it may go": (document(), True),
    "it may not": (reboot(go=False), False),
    "until later": (reboot(go=False, until=NOW + 1), False),
    "until now": (reboot(go=False, until=NOW), True),
    "what is not quite true is false": (reboot(go="true"), False),
    "nothing": (reboot(go=None), False),
    "a moment that is no number": (reboot(go=False, until="now"), False),
}


@pytest.mark.parametrize(("body", "go"), READ.values(), ids=READ.keys())
def test_whether_a_reboot_may_go(body: bytes, go: bool) -> None:  # noqa: FBT001 - a column of the table
    said = answer.read(body, NOW)
    assert (said.go, said.reason, said.summary) == (go, "it is on disk", "driver 1 is in force")


@pytest.mark.parametrize("phase", [*Phase, "", "another"])
def test_whether_the_host_is_as_it_should_be(phase: str) -> None:
    said = answer.read(document(phase=str(phase)), NOW)
    assert said.ready == (phase in ("ready", "no-gpu", "standing-back"))


@pytest.mark.parametrize("phase", ["waiting", "converging", "pending-reboot"])
def test_a_driver_that_works_until_another_is_there_is_as_good(phase: str) -> None:
    assert answer.read(document(phase=phase, usable=True), NOW).ready
    assert not answer.read(document(phase=phase, usable=False), NOW).ready


NO_ANSWER = {
    "no JSON": (b"{", "not JSON"),
    "no text": (b"\xff", "not JSON"),
    "very deep": (b"[" * 100_000, "not JSON"),
    "a list": (b"[]", "schema 1"),
    "something else": (b"{}", "schema 1"),
    "of another nvidiad": (document(schema=2), "schema 1"),
    "before the first look": (document(reboot=None), "has not looked at this host yet"),
}


@pytest.mark.parametrize(("body", "words"), NO_ANSWER.values(), ids=NO_ANSWER.keys())
def test_what_is_no_answer(body: bytes, words: str) -> None:
    with pytest.raises(answer.NoAnswer, match=words):
        answer.read(body, NOW)


# -- what the node then says -------------------------------------------------------------------------------

BEFORE, AFTER = {BEFORE_REBOOT: "true"}, {AFTER_REBOOT: "true"}
Notes = dict[str, str]
CASES: dict[str, tuple[Notes, Notes, Said | None, dict[str, str | None]]] = {
    "nobody asks": ({}, {}, None, {}),
    "nobody asks, whatever is said": ({}, {}, GO, {}),
    "nobody asks any more": (
        {},
        {DRIVER_STAGED: "true", DRIVER_READY: "true", REASON: "it was so"},
        None,
        {DRIVER_STAGED: None, DRIVER_READY: None, REASON: None},
    ),
    "somebody else's annotations stay": ({}, {"other/driver-staged": "true"}, None, {}),
    "a label that is not true": ({BEFORE_REBOOT: "false", AFTER_REBOOT: ""}, {}, GO, {}),
    "before: it may go": (BEFORE, {}, GO, {DRIVER_STAGED: "true"}),
    "before: it may go, said already": (BEFORE, {DRIVER_STAGED: "true"}, GO, {}),
    "before: it may go now": (
        BEFORE,
        {REASON: "it is being fetched"},
        GO,
        {DRIVER_STAGED: "true", REASON: None},
    ),
    "before: it has to wait": (BEFORE, {}, WAIT, {REASON: "it is being fetched"}),
    "before: it still has to wait": (BEFORE, {REASON: "it is being fetched"}, WAIT, {}),
    "before: it has to wait again": (
        BEFORE,
        {DRIVER_STAGED: "true"},
        WAIT,
        {DRIVER_STAGED: None, REASON: "it is being fetched"},
    ),
    "before: a value of somebody else": (
        BEFORE,
        {DRIVER_STAGED: "false"},
        WAIT,
        {DRIVER_STAGED: None, REASON: "it is being fetched"},
    ),
    "before: nobody answers": (BEFORE, {}, None, {}),
    "before: nobody answers any more": (BEFORE, {DRIVER_STAGED: "true"}, None, {}),
    "before: ready is not asked for": (
        BEFORE,
        {DRIVER_READY: "true"},
        GO,
        {DRIVER_STAGED: "true", DRIVER_READY: None},
    ),
    "after: it is ready": (AFTER, {}, GO, {DRIVER_READY: "true"}),
    "after: it is not ready": (AFTER, {}, WAIT, {REASON: "driver 2 is being loaded"}),
    "after: it is ready now": (AFTER, {REASON: "it was so"}, GO, {DRIVER_READY: "true", REASON: None}),
    "after: nobody answers": (AFTER, {}, None, {}),
    "both: go": (BEFORE | AFTER, {}, GO, {DRIVER_STAGED: "true", DRIVER_READY: "true"}),
    "both: wait": (BEFORE | AFTER, {}, WAIT, {REASON: "it is being fetched"}),
    "no nvidiad, before": (BEFORE, {}, answer.NO_NVIDIAD, {DRIVER_STAGED: "true"}),
    "no nvidiad, after": (AFTER, {}, answer.NO_NVIDIAD, {DRIVER_READY: "true"}),
}


@pytest.mark.parametrize(("labels", "notes", "said", "changes"), CASES.values(), ids=CASES.keys())
def test_changes(labels: Notes, notes: Notes, said: Said | None, changes: dict[str, str | None]) -> None:
    assert answer.changes(Node("7", labels, notes), said) == changes


def test_a_reason_is_never_longer_than_a_person_reads() -> None:
    said = Said(go=False, ready=False, reason="why " * 1000, summary="")
    reason = answer.changes(Node("7", BEFORE, {}), said)[REASON]
    assert reason is not None
    assert len(reason) == 500


OURS, OTHER = {"key": NOT_READY, "effect": "NoSchedule"}, {"key": "nvidia.com/gpu", "effect": "NoSchedule"}
OURS_TOO = {"key": NOT_READY, "value": "x", "effect": "NoExecute"}
Taints = tuple[dict[str, str], ...]
TAINTS: dict[str, tuple[Taints, Said | None, Taints | None]] = {
    "none": ((), GO, None),
    "somebody else's": ((OTHER,), GO, None),
    "ours, and the driver works": ((OURS,), GO, ()),
    "ours among others": ((OTHER, OURS), GO, (OTHER,)),
    "whatever its value and its effect": ((OURS_TOO, OTHER, OURS), GO, (OTHER,)),
    "ours, and it does not work": ((OURS,), WAIT, None),
    "ours, and nobody answers": ((OURS,), None, None),
    "ours, without nvidiad": ((OURS,), answer.NO_NVIDIAD, ()),
}


@pytest.mark.parametrize(("taints", "said", "left"), TAINTS.values(), ids=TAINTS.keys())
def test_taints(taints: Taints, said: Said | None, left: Taints | None) -> None:
    node = Node("7", {}, {}, taints)
    assert answer.taints(node, said) == left
    assert answer.is_tainted(node) == any(taint["key"] == NOT_READY for taint in taints)
    assert answer.changes(node, said) == {}


@pytest.mark.parametrize("name", [DRIVER_STAGED, DRIVER_READY, NOT_READY, REASON])
def test_annotations_are_named_as_kubernetes_wants_it(name: str) -> None:
    assert QUALIFIED.fullmatch(name)


# -- every order of events ---------------------------------------------------------------------------------


class World:
    """A node with versions, an operator that asks and gives up, and a companion whose knowledge is old."""

    def __init__(self) -> None:
        self.version = 0
        self.labels: Notes = {}
        self.notes: Notes = {}
        self.said = WAIT
        self.known = self.look()
        self.heard: Said | None = None

    def look(self) -> Node:
        return Node(str(self.version), dict(self.labels), dict(self.notes))

    def do(self, event: str) -> None:
        match event:
            case "the operator asks":
                self.notes.pop(DRIVER_STAGED, None)
                self.labels[BEFORE_REBOOT] = "true"
                self.version += 1
            case "the operator gives up" | "the operator permits":
                if event == "the operator permits" and self.notes.get(DRIVER_STAGED) != "true":
                    return
                self.labels.pop(BEFORE_REBOOT, None)
                self.notes.pop(DRIVER_STAGED, None)
                self.version += 1
            case "a heartbeat":
                self.version += 1
            case "go":
                self.said = GO
            case "wait":
                self.said = WAIT
            case "the companion looks":
                self.known, self.heard = self.look(), None
            case "the companion asks":
                self.heard = self.said if answer.is_asked(self.known) else None
            case "the companion writes":
                self.write()

    def write(self) -> None:
        changes = answer.changes(self.known, self.heard)
        if not changes or self.known.version != str(self.version):
            return  # as the API server refuses it
        assert changes.get(DRIVER_STAGED) is None or (self.labels == BEFORE and self.heard is GO)
        for key, value in changes.items():
            if value is None:
                del self.notes[key]
            else:
                self.notes[key] = value
        self.version += 1


EVENTS = (
    *("the operator asks", "the operator gives up", "the operator permits", "a heartbeat", "go", "wait"),
    *("the companion looks", "the companion asks", "the companion writes"),
)


@given(st.lists(st.sampled_from(EVENTS), max_size=40))
def test_in_every_order_the_word_is_given_only_where_it_is_asked_for(events: list[str]) -> None:
    world = World()
    for event in events:
        world.do(event)
    # Whatever was before: once it is asked for and may go, one round is enough.
    round_ = ("the operator asks", "go", "the companion looks", "the companion asks", "the companion writes")
    for event in round_:
        world.do(event)
    assert world.notes == {DRIVER_STAGED: "true"}
    world.do("the operator permits")
    assert (world.labels, world.notes) == ({}, {})

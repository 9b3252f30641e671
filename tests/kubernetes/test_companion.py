# SPDX-License-Identifier: Apache-2.0
"""Stories of a node that FLUO reboots, with the real companion and nvidiad's real server."""

from __future__ import annotations

import itertools
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from nvidiad.kubernetes.thought.answer import DRIVER_READY, DRIVER_STAGED, NOT_READY, REASON
from tests.kubernetes.fluo import AFTER, BEFORE, OK, Agent, Operator
from tests.kubernetes.stage import NODE, PROGRAM, Companion, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.kubernetes.apiserver import ApiServer
    from tests.kubernetes.stage import Daemon


def told(api: ApiServer, name: str) -> str | None:
    return api.annotations(NODE).get(name)


def confirmed(api: ApiServer, name: str = DRIVER_STAGED) -> None:
    wait_for(f"{name} on the node", lambda: told(api, name) == "true")


def refused_and_taken(api: ApiServer) -> None:
    """A patch of a node that had changed, and one of the node as it was then."""
    statuses = [one.status for one in api.of("patch")]
    assert statuses[:2] == [409, 200]
    # A watch that lags tells of what was before, and a patch of that is refused.
    assert set(statuses[2:]) <= {409}


# -- a reboot, from the wish to the end --------------------------------------------------------------------


def test_a_node_reboots_when_its_next_driver_is_staged_and_is_used_when_its_driver_is_ready(
    api: ApiServer, daemon: Daemon, companion: Companion
) -> None:
    operator = Operator(api, before=[DRIVER_STAGED], after=[DRIVER_READY])
    agent = Agent(api, NODE)
    daemon.say(go=False, reason="driver 2 for 4081.2.0 is being fetched")
    agent.ask()
    operator.reconcile()
    assert BEFORE in api.labels(NODE)

    wait_for("the reason", lambda: told(api, REASON) == "driver 2 for 4081.2.0 is being fetched")
    operator.reconcile()
    assert (agent.permitted, told(api, DRIVER_STAGED)) == (False, None)

    daemon.say(go=True, reason="driver 2 for 4081.2.0 is on disk")
    confirmed(api)
    assert told(api, REASON) is None
    operator.reconcile()
    assert DRIVER_STAGED not in api.annotations(NODE)

    agent.reboot()
    daemon.be("converging", "driver 2 is being loaded")
    agent.come_back()
    operator.reconcile()
    assert api.labels(NODE)[AFTER] == "true"
    wait_for("the summary", lambda: told(api, REASON) == "driver 2 is being loaded")
    operator.reconcile()
    assert told(api, OK) == "true"
    assert told(api, DRIVER_READY) is None

    daemon.be("ready", "driver 2 is in force")
    confirmed(api, DRIVER_READY)
    operator.reconcile()
    assert told(api, OK) == "false"
    assert api.labels(NODE).keys().isdisjoint({BEFORE, AFTER})
    assert not any(name.startswith("nvidiad/") for name in api.annotations(NODE))
    # Each patch says one thing, and none says nothing.
    assert [list(one.body["metadata"]["annotations"]) for one in api.of("patch") if one.status == 200] == [
        [REASON],
        [DRIVER_STAGED, REASON],
        [REASON],
        [DRIVER_READY, REASON],
    ]
    wait_for("both in the log", lambda: companion.said("confirmed: io.nvidiad/driver-") == 2)


def test_where_nobody_asks_nothing_is_written_and_nvidiad_has_its_peace(
    api: ApiServer, daemon: Daemon, companion: Companion
) -> None:
    wait_for("a watch", lambda: api.watches == 1)
    for _ in range(5):
        api.edit(NODE)
    api.edit(NODE, labels={BEFORE: "false"})
    # It has seen all of that when it has seen what comes after.
    api.end_watches()
    wait_for("the next watch", lambda: api.count("watch") == 2)
    assert (api.count("patch"), daemon.questions, companion.runs) == (0, 0, True)


def test_what_was_confirmed_is_taken_back_while_the_operator_has_not_acted_on_it(
    api: ApiServer, daemon: Daemon, companion: Companion
) -> None:
    api.edit(NODE, labels={BEFORE: "true"})
    confirmed(api)
    daemon.say(go=False, reason="4081.2.1 has come, and its driver is not on disk yet")
    wait_for("it to be taken back", lambda: told(api, DRIVER_STAGED) is None)
    assert told(api, REASON) == "4081.2.1 has come, and its driver is not on disk yet"
    wait_for("a line", lambda: companion.said("no longer confirmed: io.nvidiad/driver-staged") == 1)


@pytest.mark.usefixtures("companion")
def test_what_is_left_on_a_node_where_nobody_asks_is_removed(api: ApiServer) -> None:
    wait_for("a watch", lambda: api.watches == 1)
    api.edit(NODE, annotations={DRIVER_STAGED: "true", REASON: "it is long ago", "other/note": "true"})
    wait_for("it to be gone", lambda: told(api, DRIVER_STAGED) is None)
    assert told(api, REASON) is None
    assert told(api, "other/note") == "true"


# -- a new node --------------------------------------------------------------------------------------------

OURS = {"key": NOT_READY, "effect": "NoSchedule"}
OTHERS = (
    {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule", "timeAdded": "2026-11-23T14:00:00Z"},
    {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"},
)


def test_a_node_keeps_its_startup_taint_until_its_driver_works(
    api: ApiServer, daemon: Daemon, companion: Companion
) -> None:
    daemon.be("converging", "driver 1 is being loaded")
    # As the kubelet registers it, and the control plane adds to it.
    api.taint(NODE, OTHERS[0], OURS, OTHERS[1])
    wait_for("two questions", lambda: daemon.questions >= 2)
    assert (api.taints(NODE), api.count("patch")) == ([OTHERS[0], OURS, OTHERS[1]], 0)

    # Somebody else changes the taints right before ours goes: theirs is kept.
    late = {"key": "example.com/maintenance", "effect": "NoExecute"}
    api.before_patch.append(lambda: api.taint(NODE, late))
    daemon.be("ready", "driver 1 is in force")
    wait_for("the taint to be gone", lambda: OURS not in api.taints(NODE))
    assert api.taints(NODE) == [*OTHERS, late]
    refused_and_taken(api)
    (body,) = [one.body for one in api.of("patch") if one.status == 200]
    assert set(body["metadata"]) == {"resourceVersion"}
    wait_for("a line", lambda: companion.said(f"taint taken off: {NOT_READY}") == 1)


@pytest.mark.usefixtures("companion")
def test_the_taint_and_a_coordinator_are_answered_in_one_patch(api: ApiServer, daemon: Daemon) -> None:
    daemon.be("converging", "driver 1 is being loaded")
    api.taint(NODE, OURS)
    api.edit(NODE, labels={BEFORE: "true"})
    confirmed(api)
    assert api.taints(NODE) == [OURS]
    daemon.be("no-gpu", "there is no NVIDIA GPU")
    api.edit(NODE, labels={BEFORE: None, AFTER: "true"}, annotations={DRIVER_STAGED: None})
    confirmed(api, DRIVER_READY)
    assert api.taints(NODE) == []


# -- nvidiad -----------------------------------------------------------------------------------------------


def test_nothing_is_set_while_nvidiad_cannot_be_asked_and_the_log_says_why_once(
    api: ApiServer, daemon: Daemon, companion: Companion, socket: Path
) -> None:
    daemon.stop()
    api.edit(NODE, labels={BEFORE: "true"})
    wait_for("a complaint", lambda: companion.said(f"nobody listens on '{socket}'") == 1)
    daemon.document |= {"reboot": None}
    daemon.start()
    wait_for("another one", lambda: companion.said("has not looked at this host yet") == 1)
    asked = daemon.questions
    wait_for("one more question", lambda: daemon.questions > asked)
    assert (api.count("patch"), companion.said("has not looked at this host yet")) == (0, 1)

    daemon.say(go=True)
    confirmed(api)
    wait_for("a line", lambda: companion.said("nvidiad answers") == 1)


def test_a_daemon_that_restarts_takes_back_no_word(
    api: ApiServer, daemon: Daemon, companion: Companion
) -> None:
    api.edit(NODE, labels={BEFORE: "true"})
    confirmed(api)
    daemon.stop()
    wait_for("a complaint", lambda: companion.said("nvidiad is not running") == 1)
    assert (told(api, DRIVER_STAGED), api.count("patch")) == ("true", 1)


@pytest.mark.usefixtures("companion")
def test_a_reboot_is_not_held_beyond_the_moment_that_nvidiad_named(api: ApiServer, daemon: Daemon) -> None:
    daemon.say(go=False, reason="not yet", until=time.time() + 3)
    api.edit(NODE, labels={BEFORE: "true"})
    wait_for("the reason", lambda: told(api, REASON) == "not yet")
    # As a daemon that hangs: what it says stays the same.
    confirmed(api)


def test_a_node_without_nvidiad_is_confirmed(api: ApiServer, socket: Path, tmp_path: Path) -> None:
    with Companion(api, socket, tmp_path, "--without-nvidiad"):
        api.edit(NODE, labels={BEFORE: "true"})
        confirmed(api)
        api.edit(NODE, labels={BEFORE: None, AFTER: "true"}, annotations={DRIVER_STAGED: None})
        confirmed(api, DRIVER_READY)


# -- somebody else is faster -------------------------------------------------------------------------------


@pytest.mark.usefixtures("companion")
def test_an_annotation_that_the_operator_has_just_deleted_is_not_set_again(
    api: ApiServer, daemon: Daemon
) -> None:
    wait_for("a watch", lambda: api.watches == 1)
    # The operator gives up the reboot right before the patch arrives.
    api.before_patch.append(lambda: api.edit(NODE, labels={BEFORE: None}))
    api.edit(NODE, labels={BEFORE: "true"})
    wait_for("the conflict", lambda: api.count("patch") == 1)
    wait_for("another look", lambda: api.count("get") == 2)
    api.end_watches()
    wait_for("the next watch", lambda: api.count("watch") == 2)
    assert [one.status for one in api.of("patch")] == [409]
    assert told(api, DRIVER_STAGED) is None
    assert daemon.questions == 1


def test_a_node_that_has_changed_meanwhile_is_looked_at_again_and_nvidiad_is_asked_again(
    api: ApiServer, daemon: Daemon, companion: Companion
) -> None:
    def changes() -> None:
        api.edit(NODE)
        daemon.say(go=False, reason="not any more")

    wait_for("a watch", lambda: api.watches == 1)
    api.before_patch.append(changes)
    api.edit(NODE, labels={BEFORE: "true"})
    wait_for("the new answer", lambda: told(api, REASON) == "not any more")
    refused_and_taken(api)
    assert told(api, DRIVER_STAGED) is None
    assert companion.said("cannot") == 0


def test_a_node_that_changes_all_the_time_is_not_fought_over(
    api: ApiServer, daemon: Daemon, companion: Companion
) -> None:
    wait_for("a watch", lambda: api.watches == 1)
    api.before_patch += [lambda: api.edit(NODE)] * 5
    api.edit(NODE, labels={BEFORE: "true"})
    wait_for("a complaint", lambda: companion.said(f"node '{NODE}' changed 5 times") == 1)
    assert (api.count("patch"), daemon.questions) == (5, 5)
    confirmed(api)


# -- the watch ---------------------------------------------------------------------------------------------

ENDS: dict[str, Callable[[ApiServer], None]] = {
    "the server ends it": lambda api: api.end_watches(),
    "the network cuts it": lambda api: api.cut_watches(),
    "its version is forgotten, as an event": lambda api: api.expire(),
    "a line is no JSON": lambda api: api.say(b"{oh\n"),
    "a line is no event": lambda api: api.say(b"[]\n"),
    "an object without metadata": lambda api: api.say(b'{"type":"ADDED","object":{"kind":"Node"}}\n'),
    "an error that is not explained": lambda api: api.say(b'{"type":"ERROR","object":{}}\n'),
}


@pytest.mark.usefixtures("daemon", "companion")
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
def test_another_watch_follows_the_one_that_ended(api: ApiServer, end: Callable[[ApiServer], None]) -> None:
    wait_for("a watch", lambda: api.watches == 1)
    end(api)
    wait_for("the next watch", lambda: api.count("watch") == 2)
    api.edit(NODE, labels={BEFORE: "true"})
    confirmed(api)


@pytest.mark.usefixtures("daemon", "companion")
def test_a_label_that_came_while_there_was_no_watch_is_seen(api: ApiServer) -> None:
    wait_for("a watch", lambda: api.watches == 1)
    api.cut_watches()
    api.edit(NODE, labels={BEFORE: "true"})
    confirmed(api)


@pytest.mark.usefixtures("companion")
def test_a_bookmark_is_no_state_of_the_node(api: ApiServer, daemon: Daemon) -> None:
    daemon.say(go=False, reason="not yet")
    api.edit(NODE, labels={BEFORE: "true"})
    wait_for("the reason", lambda: told(api, REASON) == "not yet")
    wait_for("a watch", lambda: api.watches == 1)
    # Taken for a node without labels it would have the reason removed.
    api.bookmark()
    asked = daemon.questions
    wait_for("more questions", lambda: daemon.questions > asked)
    assert (told(api, REASON), api.count("patch")) == ("not yet", 1)


@pytest.mark.usefixtures("daemon", "companion")
def test_a_node_that_is_deleted_and_comes_back_is_answered(api: ApiServer) -> None:
    wait_for("a watch", lambda: api.watches == 1)
    api.remove(NODE)
    api.add(NODE)
    api.edit(NODE, labels={BEFORE: "true"})
    confirmed(api)


@pytest.mark.usefixtures("daemon", "companion")
def test_a_server_that_ends_every_watch_at_once_is_not_hammered(api: ApiServer) -> None:
    api.end_watches_at_once = True
    wait_for("four watches", lambda: api.count("watch") == 4)
    begun = [one.at for one in api.of("watch")]
    # 0.5 to 1 s, then twice that, then four times.
    pauses = [later - earlier for earlier, later in itertools.pairwise(begun)]
    assert all(pause > least for pause, least in zip(pauses, (0.5, 1.0, 2.0), strict=True)), pauses
    api.edit(NODE, labels={BEFORE: "true"})
    confirmed(api)


# -- the API server fails ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize("verb", ["get", "watch", "patch"])
@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (401, "json", "refuses to {verb} node 'gpu-1' (401): as a test asks for, trying again"),
        (403, "json", "refuses to {verb} node 'gpu-1' (403): as a test asks for, trying again"),
        (500, "json", "cannot {verb} node 'gpu-1' (500): as a test asks for, trying again"),
        (429, "json", "cannot {verb} node 'gpu-1' (429)"),
        (503, "html", "cannot {verb} node 'gpu-1' (503): Service Unavailable"),
        (502, "bare", "cannot {verb} node 'gpu-1' (502): Bad Gateway"),
        (0, "", "does not answer: Server disconnected without sending a response., trying again"),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "",
)
def test_a_refusal_is_told_and_tried_again(
    api: ApiServer,
    socket: Path,
    tmp_path: Path,
    verb: str,
    status: int,
    kind: str,
    words: str,
) -> None:
    api.fail(verb, status, kind=kind)
    api.edit(NODE, labels={BEFORE: "true"})
    with Companion(api, socket, tmp_path) as companion:
        confirmed(api)
        wait_for("peace", lambda: companion.said("the API server answers") == 1)
        # The words of a refused watch are not read: its answer is a stream.
        expected = words.format(verb=verb).split(": as a test" if verb == "watch" else "\0")[0]
        assert companion.said(expected) == 1, companion.log


@pytest.mark.usefixtures("daemon")
def test_a_watch_that_is_refused_as_too_old_is_no_trouble(
    api: ApiServer, socket: Path, tmp_path: Path
) -> None:
    api.fail("watch", 410)
    with Companion(api, socket, tmp_path) as companion:
        wait_for("another watch", lambda: api.watches == 1)
        api.edit(NODE, labels={BEFORE: "true"})
        confirmed(api)
        assert companion.said("warning") == 0, companion.log


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize("verb", ["get", "watch", "patch"])
def test_trouble_that_lasts_is_told_once(api: ApiServer, socket: Path, tmp_path: Path, verb: str) -> None:
    api.fail(verb, 403, times=3)
    api.edit(NODE, labels={BEFORE: "true"})
    with Companion(api, socket, tmp_path) as companion:
        wait_for("peace", lambda: companion.said("the API server answers") == 1)
        confirmed(api)
        assert [one.status for one in api.of(verb)][:4] == [403, 403, 403, 200]
        assert companion.said(f"refuses to {verb}") == 1
        assert "contrib/kubernetes/companion.yaml" in "".join(companion.log)


def test_a_wrong_name_is_told(api: ApiServer, socket: Path, tmp_path: Path) -> None:
    with Companion(api, socket, tmp_path, "--node=gpu-2") as companion:
        wait_for("a complaint", lambda: companion.said("knows no node 'gpu-2', trying again") == 1)
        assert api.watches == 0
        api.add("gpu-2")
        wait_for("a watch", lambda: api.watches == 1)


# -- beginning and end -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize("verb", ["get", "watch", "patch"])
def test_it_ends_at_once_whatever_it_waits_for(
    api: ApiServer, socket: Path, tmp_path: Path, verb: str
) -> None:
    api.fail(verb, hold=True)
    api.edit(NODE, labels={BEFORE: "true"})
    with Companion(api, socket, tmp_path) as companion:
        wait_for("the request", lambda: api.count(verb) == 1)
        status, seconds = companion.end()
    assert status == 0
    # A request alone may take 30 s.
    assert seconds < 10, seconds


def test_it_ends_at_once_while_nvidiad_is_silent(
    api: ApiServer, socket: Path, tmp_path: Path, silent: Callable[[], bool]
) -> None:
    api.edit(NODE, labels={BEFORE: "true"})
    with Companion(api, socket, tmp_path) as companion:
        wait_for("a question", silent)
        status, seconds = companion.end()
    # nvidiad may take 10 s, which have begun already.
    assert (status, seconds < 8) == (0, True)


def test_it_ends_at_once_between_two_tries(api: ApiServer, socket: Path, tmp_path: Path) -> None:
    api.fail("get", 500, times=-1)
    with Companion(api, socket, tmp_path) as companion:
        wait_for("a long pause", lambda: api.count("get") == 4)
        status, seconds = companion.end()
    # The pause takes 4 s at least.
    assert (status, seconds < 3.9) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--kubeconfig=/none"], 1, "'/none' does not say how the API server is reached"),
        (["--service-account=/none"], 1, "'/none' does not say how the API server is reached"),
        (["--nod"], 2, "expected one argument"),
        (["--unheard-of"], 2, "unrecognized arguments"),
        (["--version"], 0, ""),
    ],
)
def test_what_it_cannot_begin_with_is_told(arguments: list[str], status: int, words: str) -> None:
    done = subprocess.run(
        [str(PROGRAM), *arguments], env={}, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, words in done.stderr) == (status, True), done.stderr

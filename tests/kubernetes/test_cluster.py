# SPDX-License-Identifier: Apache-2.0
"""How the API server is reached: service accounts, TLS, rotated tokens, configurations, limits."""

from __future__ import annotations

import asyncio
import subprocess
from typing import TYPE_CHECKING

import pytest

from nvidiad.kubernetes.nouns.node import Conflict
from nvidiad.kubernetes.thought.answer import DRIVER_STAGED
from nvidiad.kubernetes.world.cluster import Cluster, Limits
from nvidiad.nouns.errors import Code, Failure
from tests.kubernetes.apiserver import COMPANION, ApiServer
from tests.kubernetes.conftest import unasked
from tests.kubernetes.fluo import BEFORE
from tests.kubernetes.stage import KUBECONFIG, NODE, Companion, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path
    from typing import Any

    from nvidiad.kubernetes.world.cluster import NodeObject
    from tests.kubernetes.stage import Daemon

# For what is answered, on a machine that may be busy, and for what never is.
AMPLE, SHORT = Limits(connect=10, call=10, watch=1), Limits(connect=1.0, call=0.5, watch=1)


def certificate(place: Path) -> tuple[Path, Path]:
    """Of an authority of its own, which is the server's, too."""
    paths = place / "tls.crt", place / "tls.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    names = ["-subj", "/CN=kube-apiserver", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    where = ["-out", str(paths[0]), "-keyout", str(paths[1])]
    subprocess.run([*command, *names, *where], check=True, capture_output=True)
    return paths


def account(place: Path, authority: Path) -> Path:
    """A service account as the kubelet lays it down in a pod."""
    place.mkdir()
    (place / "token").write_text("companion-token\n")
    (place / "namespace").write_text("reboot-coordinator")
    (place / "ca.crt").write_bytes(authority.read_bytes())
    return place


def test_a_pod_uses_its_service_account_and_goes_on_when_the_token_is_rotated(
    daemon: Daemon, socket: Path, tmp_path: Path
) -> None:
    pair = certificate(tmp_path)
    place = account(tmp_path / "account", pair[0])
    with ApiServer(pair) as api:
        api.checks.append(unasked)
        api.add(NODE)
        environment = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(api.port)}
        more = (f"--service-account={place}", f"--node={NODE}")
        with Companion(api, socket, tmp_path, *more, environment=environment) as companion:
            wait_for("a watch", lambda: api.watches == 1)
            api.tokens = {"the next token": COMPANION}
            (place / "token").write_text("the next token\n")
            api.edit(NODE, labels={BEFORE: "true"})
            wait_for("the answer", lambda: api.annotations(NODE).get(DRIVER_STAGED) == "true")
            # The new token is sent in the same breath: no failure, no pause.
            assert companion.said("warning") == 0, companion.log
        assert [one.status for one in api.of("patch", who="")] == [401]
        assert api.offences == []
    assert daemon.questions


def test_a_watch_begins_with_the_rotated_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = certificate(tmp_path)
    place = account(tmp_path / "account", pair[0])
    seen: list[object] = []

    async def look_and_watch(node: NodeObject) -> None:
        await node.get()
        api.tokens = {"the next token": COMPANION}
        (place / "token").write_text("the next token\n")
        await node.follow(seen.append)

    with ApiServer(pair) as api:
        api.add(NODE)
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(api.port))
        on_node(Cluster(NODE, None, place, AMPLE), look_and_watch)
        assert [one.status for one in api.asked] == [200, 401, 200]
    assert len(seen) == 1


def test_a_server_that_is_somebody_else_gets_no_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    place = account(tmp_path / "account", certificate(tmp_path / "other")[0])
    with ApiServer(certificate(tmp_path)) as api:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(api.port))
        with pytest.raises(Failure, match=r"does not answer: .*certificate verify failed"):
            on_node(Cluster(NODE, None, place), lambda node: node.get())
        assert api.asked == []


CONFIGURATIONS = {
    "nothing": ("", "it is no kubeconfig"),
    "no YAML": ("{", "while parsing"),
    "a list": ("[]", "it is no kubeconfig"),
    "no clusters": ("current-context: here", "clusters is missing"),
    "no context": ("clusters: []\ncontexts: []", "No current context set"),
    "a context that is not there": (
        "current-context: a\nclusters: []\ncontexts: []",
        "Context 'a' not found",
    ),
    "no user": (
        """
current-context: a
clusters: [{name: c, cluster: {server: "http://127.0.0.1:1"}}]
contexts: [{name: a, context: {cluster: c}}]
""",
        "it names no user",
    ),
    "an old kind of user": (
        """
current-context: a
clusters: [{name: c, cluster: {server: "http://127.0.0.1:1"}}]
contexts: [{name: a, context: {cluster: c, user: u}}]
users: [{name: u, user: {auth-provider: {name: gcp}}}]
""",
        "auth-provider not supported",
    ),
    "an authority that is not there": (
        """
current-context: a
clusters: [{name: c, cluster: {server: "https://127.0.0.1:1", certificate-authority: /none}}]
contexts: [{name: a, context: {cluster: c, user: u}}]
users: [{name: u, user: {token: t}}]
""",
        "No such file or directory",
    ),
}


@pytest.mark.parametrize(("text", "words"), CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys())
def test_a_configuration_that_cannot_be_used_is_named(tmp_path: Path, text: str, words: str) -> None:
    config = tmp_path / "config"
    config.write_text(text)
    with pytest.raises(
        Failure, match=f"'{config}' does not say how the API server is reached: .*{words}"
    ) as e:
        on_node(Cluster(NODE, config, tmp_path), lambda node: node.get())
    assert (e.value.code, e.value.retry) == (Code.API_UNREACHABLE, False)


def test_a_service_account_without_a_cluster_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOST", "PORT"):
        monkeypatch.delenv(f"KUBERNETES_SERVICE_{name}", raising=False)
    place = account(tmp_path / "account", certificate(tmp_path)[0])
    with pytest.raises(Failure, match="KUBERNETES_SERVICE_HOST is missing"):
        Cluster(NODE, None, place).check()


# -- limits ------------------------------------------------------------------------------------------------


@pytest.fixture
def config(api: ApiServer, tmp_path: Path) -> Path:
    """How a person reaches the server."""
    path = tmp_path / "config"
    path.write_text(KUBECONFIG.format(url=api.url))
    return path


@pytest.fixture
def ample(config: Path) -> Cluster:
    """A cluster that has the time to answer."""
    return Cluster(NODE, config, config.parent, AMPLE)


@pytest.fixture
def short(config: Path) -> Cluster:
    """A cluster that is not waited for."""
    return Cluster(NODE, config, config.parent, SHORT)


def on_node(cluster: Cluster, do: Callable[[NodeObject], Coroutine[Any, Any, object]]) -> None:
    async def connected() -> None:
        async with cluster.connect() as node:
            await do(node)

    asyncio.run(asyncio.wait_for(connected(), 20))


ASK: dict[str, Callable[[NodeObject], Coroutine[Any, Any, object]]] = {
    "get": lambda node: node.get(),
    "patch": lambda node: node.change("1", {DRIVER_STAGED: None}),
    "watch": lambda node: node.follow(lambda _: None),
}


@pytest.mark.parametrize("verb", ["get", "patch", "watch"])
def test_no_request_is_waited_for_without_a_limit(api: ApiServer, short: Cluster, verb: str) -> None:
    api.fail(verb, hold=True)
    with pytest.raises(Failure, match=r"does not answer: nothing came within (0\.5|1\.5) s") as failure:
        on_node(short, ASK[verb])
    assert failure.value.retry


def test_a_watch_ends_where_the_server_ends_it(api: ApiServer, ample: Cluster) -> None:
    seen: list[object] = []
    on_node(ample, lambda node: node.follow(seen.append))
    assert len(seen) == api.count("watch") == 1


@pytest.mark.parametrize("verb", ["get", "patch", "watch"])
@pytest.mark.parametrize(
    ("kind", "words"),
    [("empty", "(a node without a version|Object missing required field)"), ("html", "JSON is malformed")],
    ids=["empty", "html"],
)
def test_an_answer_that_is_none_is_told(
    api: ApiServer, ample: Cluster, verb: str, kind: str, words: str
) -> None:
    api.fail(verb, 200, kind=kind)
    with pytest.raises(Failure, match=f"does not answer: {words}") as failure:
        on_node(ample, ASK[verb])
    assert failure.value.retry


def test_nobody_listens(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(KUBECONFIG.format(url="http://127.0.0.1:1"))
    with pytest.raises(Failure, match=r"'http://127\.0\.0\.1:1' does not answer: All connection") as failure:
        on_node(Cluster(NODE, config, tmp_path, AMPLE), lambda node: node.get())
    assert failure.value.retry


def test_an_old_version_is_a_conflict(api: ApiServer, ample: Cluster) -> None:
    with pytest.raises(Conflict, match="it has been modified"):
        on_node(ample, lambda node: node.change("1", {DRIVER_STAGED: None}))
    assert [one.status for one in api.of("patch")] == [409]

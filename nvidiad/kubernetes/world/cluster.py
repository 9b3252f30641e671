# SPDX-License-Identifier: Apache-2.0
"""The cluster: one node object of the API server, which is watched, read and patched through lightkube."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import httpx2
from lightkube import ApiError, AsyncClient, KubeConfig
from lightkube.config.client_adapter import verify_cluster
from lightkube.core.exceptions import ConfigError
from lightkube.resources.core_v1 import Node as NodeResource
from lightkube.types import PatchType

from nvidiad.kubernetes.nouns.node import Conflict, Node
from nvidiad.nouns.errors import Code, Failure, Permanent, Transient
from nvidiad.nouns.value import Value

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping

    from lightkube.config.kubeconfig import SingleConfig

    Anything = TypeVar("Anything")

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
# Who changed what, in the node's managedFields.
_MANAGER = "nvidiad-kubernetes"
# From the cache of the API server, not from its database: what is old in it meets a Conflict.
_ANY_VERSION = "0"
_WORDS_LIMIT = 300


class Limits(Value):
    """How long is waited, in seconds."""

    connect: float = 10.0
    call: float = 30.0
    """One read or change of the node, from its first byte to its last."""
    watch: int = 300
    """One watch: the server is asked to end it then."""


class Cluster:
    """How the API server is reached; read again for each connection, as all of it may be rotated."""

    def __init__(
        self, node: str, kubeconfig: Path | None, account: Path, limits: Limits | None = None
    ) -> None:
        self._node = node
        self._kubeconfig = kubeconfig
        self._account = account
        self._limits = limits or Limits()

    def check(self) -> str:
        """The API server's address; raises where no connection could even be tried."""
        return str(self._config().cluster.server)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[NodeObject]:
        """A connection for one watch and what comes of it."""
        config = self._config()
        try:
            client = AsyncClient(
                config=config,
                timeout=httpx2.Timeout(self._limits.connect),
                field_manager=_MANAGER,
                transport=_OneWatch(httpx2.AsyncHTTPTransport(verify=_trust(config))),
            )
        except (OSError, ValueError, ConfigError) as error:
            raise _unusable(self._source, error) from error
        try:
            yield NodeObject(client, str(config.cluster.server), self._node, self._limits)
        finally:
            await client.close()

    @property
    def _source(self) -> Path:
        return self._kubeconfig or self._account

    def _config(self) -> SingleConfig:
        try:
            if self._kubeconfig is None:
                config = KubeConfig.from_service_account(service_account=self._account).get()
            else:
                config = KubeConfig.from_file(self._kubeconfig).get()
        except KeyError as error:
            raise _unusable(self._source, f"{error.args[0]} is missing") from error
        except (AttributeError, TypeError) as error:
            raise _unusable(self._source, "it is no kubeconfig") from error
        except Exception as error:
            # The file is a person's, and each fault of it is another class of another package.
            raise _unusable(self._source, error) from error
        if config is None:
            raise _unusable(self._source, "it names no context")
        return config


class NodeObject:
    """The node of this host."""

    def __init__(self, client: AsyncClient, server: str, name: str, limits: Limits) -> None:
        self._client = client
        self._server = server
        self._name = name
        self._limits = limits

    async def follow(self, tell: Callable[[Node | None], None]) -> None:
        """Call `tell` with the node now and after each change, None where it is deleted, until the end."""
        try:
            await self._ask("watch", self._follow(tell), self._limits.watch + self._limits.call)
        except _WatchEnded:
            return

    async def _follow(self, tell: Callable[[Node | None], None]) -> None:
        watch = self._client.watch(
            NodeResource,
            fields={"metadata.name": self._name},
            server_timeout=self._limits.watch,
            resource_version=_ANY_VERSION,
        )
        async for kind, node in watch:
            # A bookmark has a version and nothing else: it is no state of the node.
            if kind in ("ADDED", "MODIFIED"):
                tell(_read(node))
            elif kind == "DELETED":
                tell(None)

    async def get(self) -> Node:
        """The node as it is now."""
        return await self._ask("get", _node(self._client.get(NodeResource, self._name)), self._limits.call)

    async def change(
        self,
        version: str,
        annotations: Mapping[str, str | None],
        taints: tuple[Mapping[str, object], ...] | None = None,
    ) -> Node:
        """Set annotations, remove those that are None; replace all taints where some are given.

        A Conflict where the node has another version: nothing is replaced that was not looked at.
        """
        metadata: dict[str, object] = {"resourceVersion": version}
        if annotations:
            metadata["annotations"] = dict(annotations)
        patch: dict[str, object] = {"metadata": metadata}
        if taints is not None:
            patch["spec"] = {"taints": [dict(taint) for taint in taints]}
        asked = self._client.patch(NodeResource, self._name, patch, patch_type=PatchType.MERGE)
        return await self._ask("patch", _node(asked), self._limits.call)

    async def _ask(self, verb: str, asked: Coroutine[object, object, Anything], limit: float) -> Anything:
        """A request within its limit; what goes wrong is a Failure, a Conflict or the end of a watch."""
        try:
            async with asyncio.timeout(limit):
                return await asked
        except _WatchEnded:
            raise
        except TimeoutError as error:
            raise self._silent(f"nothing came within {limit:g} s") from error
        except Exception as error:
            # Of many packages: lightkube lets through what its HTTP and its JSON library raise.
            raise self._explain(verb, error) from error

    def _explain(self, verb: str, error: Exception) -> Exception:
        status, words = _answer(error)
        server = f"the API server at '{self._server}'"
        what = f"{verb} node '{self._name}' ({status}): {words}"
        match status:
            case None:
                return self._silent(words)
            case 409 if verb == "patch":
                return Conflict(words)
            case 410 if verb == "watch":
                # The server has forgotten what came after our version: a new watch begins with the node.
                return _WatchEnded()
            case 401 | 403:
                remedy = (
                    "It needs the role of contrib/kubernetes/companion.yaml: get, watch and patch of nodes."
                )
                return Permanent(Code.API_REFUSED, f"{server} refuses to {what}", remedy)
            case 404:
                remedy = "Name it as `kubectl get nodes` does: --node, or the variable NODE_NAME."
                return Permanent(Code.API_REFUSED, f"{server} knows no node '{self._name}'", remedy)
            case _:
                return Transient(Code.API_UNREACHABLE, f"{server} cannot {what}", "Look at its log.")

    def _silent(self, why: str) -> Failure:
        return Transient(
            Code.API_UNREACHABLE,
            f"the API server at '{self._server}' does not answer: {why}",
            "Look at the network between this node and it.",
        )


class _WatchEnded(Exception):
    """The server has ended the watch."""


class _OneWatch(httpx2.AsyncBaseTransport):
    """Lets one watch begin: when a server ends one, lightkube begins the next at once, however soon that is.

    A server that ends each at once would be asked hundreds of times in a second, by every node.
    """

    def __init__(self, inner: httpx2.AsyncBaseTransport) -> None:
        self._inner = inner
        self._begun = False

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        watches = "watch" in request.url.params
        if watches and self._begun:
            raise _WatchEnded
        response = await self._inner.handle_async_request(request)
        # Not one that was refused: a token that was rotated is read again, and sent again.
        self._begun = self._begun or (watches and response.status_code == 200)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


async def _node(asked: Awaitable[NodeResource]) -> Node:
    return _read(await asked)


def _read(node: NodeResource) -> Node:
    metadata = node.metadata
    if metadata is None or not metadata.resourceVersion:
        raise ValueError("a node without a version")
    taints = (node.spec.taints if node.spec else None) or ()
    return Node(
        metadata.resourceVersion,
        metadata.labels or {},
        metadata.annotations or {},
        tuple(taint.to_dict() for taint in taints),
    )


def _trust(config: SingleConfig) -> ssl.SSLContext:
    """Whom the API server must be, and who we are to it where that is a certificate."""
    if config.user is None:
        raise ValueError("it names no user")
    return verify_cluster(config.cluster, config.user, config.abs_file)


def _answer(error: BaseException) -> tuple[int | None, str]:
    """The status of the answer, where there was one, and its words.

    What counts may be further up: lightkube fails in its turn over a refusal that is no JSON.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ApiError):
            return cause.status.code, _line(cause.status.message or cause.status.reason or "")
        if isinstance(cause, httpx2.HTTPStatusError):
            return cause.response.status_code, _line(cause.response.reason_phrase)
        cause = cause.__cause__ or cause.__context__
    return None, _line(str(error)) or type(error).__name__


def _line(text: str) -> str:
    return " ".join(text.split())[:_WORDS_LIMIT]


def _unusable(source: Path, why: object) -> Failure:
    return Permanent(
        Code.API_UNREACHABLE,
        f"'{source}' does not say how the API server is reached: {_line(str(why))}",
        "Run it as a pod with a service account, or name a kubeconfig: --kubeconfig.",
    )

# SPDX-License-Identifier: Apache-2.0
"""The registry: requests to it, who we are to it, and how often and by how many connections it is asked.

urllib3 is imported where it is needed: a daemon that misses no image never asks a registry.
"""

from __future__ import annotations

import threading
import urllib.parse
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvidiad.nouns.errors import Code, Failure
from nvidiad.nouns.value import Value
from nvidiad.thought import distribution, refusals
from nvidiad.thought import pull as pulling
from nvidiad.world.authorities import context as believing
from nvidiad.world.lines import Lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import urllib3

AUTHORITIES = Path("/etc/docker/certs.d")
"""Where container engines look for the authorities of a registry: HOST:PORT/NAME.crt."""
AT_MOST = 4 << 20
"""Bytes of an answer, where nothing else is said: what registries take as a manifest."""
_LONGEST_PAUSE = 60.0
_AGAIN = (429, 500, 502, 503, 504)


class Limits(Value):
    """How long (in seconds), how often and by how many connections a registry is asked."""

    connect: float = 10
    read: float = 60
    connections: int = 1
    tries: int = 4
    """Of one request, where the registry is away or says that it is busy."""
    whole: float = 0
    """For all requests together: who sends a byte at a time is never silent. 0 for no limit."""


class Answer(Value):
    """What came back; names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    elsewhere: bool = False
    """A redirect led to another host, which gave it."""


class Flow(Value):
    """What is coming back; names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    read: Callable[[int], bytes]
    """At most so many bytes more; none at the end."""
    elsewhere: bool = False


class Request(Value):
    """One request, of which `what` is told to a person and `scope` to a token server."""

    method: str
    url: str
    what: str
    scope: str
    headers: Mapping[str, str]
    body: bytes | None = None
    writing: bool = False
    limit: int = AT_MOST
    redirected: bool = True


class Registry:
    """One registry; threads may share it, and together they open no more than its connections."""

    def __init__(
        self,
        name: str,
        auth: Mapping[str, str] | None,
        limits: Limits,
        *,
        insecure: bool,
        authorities: Path = AUTHORITIES,
    ) -> None:
        self.name = name
        self.base = distribution.base_url(name, insecure=insecure)
        self._auth = dict(auth or {})
        self._limits = limits
        self._authorities = authorities / name
        self._authorizations: dict[str, str] = {}
        self._identifying, self._opening = threading.Lock(), threading.Lock()
        self._opened: urllib3.PoolManager | None = None
        self._lines = Lines(limits.whole)

    def ask(self, request: Request) -> Answer:
        """The answer, also one that refuses; asked again where the registry asks who we are."""
        ours, known = self._known(request)
        answer = self._send(request, known)
        # Whoever else asks who we are is not told.
        if answer.status == 401 and ours and not answer.elsewhere:
            answer = self._send(request, self._authorize(request, answer, known))
        return answer

    @contextmanager
    def flow(self, request: Request) -> Iterator[Flow]:
        """As `ask`, but the answer is read while it comes: it may be of any size."""
        ours, known = self._known(request)
        with self._requested(request, known) as response:
            asked = response.status == 401 and ours and not self._is_elsewhere(request, response)
            refused = self._whole(request, response) if asked else None
            if refused is None:
                yield self._flow(request, response)
                return
        with self._requested(request, self._authorize(request, refused, known)) as response:
            yield self._flow(request, response)

    def failure(self, code: Code, reference: str, detail: str) -> Failure:
        """A failure that names the registry in this module's words."""
        return refusals.failure(code, reference, detail)

    def close(self) -> None:
        """Hang up."""
        with self._opening:
            if self._opened is not None:
                self._opened.clear()
                self._opened = None
            self._lines.end()

    def _known(self, request: Request) -> tuple[bool, str]:
        """Whether a request is for the registry itself, and what it knows us by."""
        # Storage elsewhere has credentials of its own in the URL.
        ours = request.url.startswith(f"{self.base}/")
        return ours, self._authorizations.get(request.scope, "") if ours else ""

    # -- who we are ----------------------------------------------------------------------------------

    def _authorize(self, request: Request, answer: Answer, known: str) -> str:
        """What the registry wants to see with this request; of several threads, one gets it."""
        scope, refused = request.scope, distribution.refusal(401, answer.body, request.what, writing=False)
        with self._identifying:
            if self._authorizations.get(scope, "") == known:
                self._authorizations[scope] = self._identity(request, answer, refused)
            now = self._authorizations[scope]
        # The same password or token again would be refused again.
        if now == known:
            raise refused
        return now

    def _identity(self, request: Request, answer: Answer, refused: Failure) -> str:
        asked = distribution.challenge(answer.headers.get("www-authenticate", ""))
        if self._auth.get("registrytoken"):
            return f"Bearer {self._auth['registrytoken']}"
        if asked.scheme == "bearer":
            return f"Bearer {self._token(request, asked)}"
        if asked.scheme == "basic" and self._auth.get("username"):
            return distribution.basic(self._auth)
        raise refused

    def _token(self, request: Request, asked: distribution.Challenge) -> str:
        """The token of the server that the registry names (Docker's and OAuth 2's way of asking)."""
        if not asked.realm.startswith("https://") and self.base.startswith("https://"):
            where = pulling.clean(asked.realm)
            detail = f"it asks for credentials at '{where}', which would show them to the network"
            raise self.failure(Code.REGISTRY_AUTH, request.what, detail)
        query = [("service", asked.service), *(("scope", one) for one in request.scope.split(" "))]
        if token := self._auth.get("identitytoken"):
            query += [("grant_type", "refresh_token"), ("client_id", "nvidiad"), ("refresh_token", token)]
            kind = {"Content-Type": "application/x-www-form-urlencoded"}
            form = urllib.parse.urlencode(query).encode()
            # Redirected, the form would be sent on to whoever that names.
            answer = self._send(Request("POST", asked.realm, request.what, "", kind, form, redirected=False))
        else:
            url = asked.realm + ("&" if "?" in asked.realm else "?") + urllib.parse.urlencode(query)
            who = distribution.basic(self._auth) if self._auth.get("username") else ""
            answer = self._send(Request("GET", url, request.what, "", {}), who)
        token = distribution.token_in(answer.body) if answer.status == 200 else ""
        if not token:
            detail = f"its token server answered with status {answer.status}"
            raise self.failure(Code.REGISTRY_AUTH, request.what, detail)
        return token

    # -- requests ------------------------------------------------------------------------------------

    def _send(self, request: Request, authorization: str = "") -> Answer:
        with self._requested(request, authorization) as response:
            return self._whole(request, response)

    @contextmanager
    def _requested(self, request: Request, authorization: str) -> Iterator[urllib3.BaseHTTPResponse]:
        """The beginning of an answer; what is not read of it is not waited for."""
        import urllib3

        headers = dict(request.headers) | ({"Authorization": authorization} if authorization else {})
        try:
            response = self._pool().request(
                request.method,
                request.url,
                headers=headers,
                body=request.body,
                preload_content=False,
                redirect=request.redirected,
            )
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            # A ValueError: a token that can stand in no header, a redirect to what is no URL.
            raise self._lost(error, request.what) from None
        whole = False
        try:
            yield response
            whole = response.closed
        finally:
            # Only a connection whose answer was read to its end can serve another request.
            if not whole:
                response.close()
            response.release_conn()

    def _whole(self, request: Request, response: urllib3.BaseHTTPResponse) -> Answer:
        flow = self._flow(request, response, decode=True)
        data = flow.read(request.limit + 1)
        if self._lines.cut:
            # Cut in what follows an answer, it looks whole.
            raise self._lost(OSError(), request.what)
        if len(data) > request.limit or flow.read(1):
            detail = f"longer than the {request.limit} bytes that it may have"
            raise self.failure(Code.IMAGE_FOREIGN, request.what, detail)
        return Answer(response.status, flow.headers, data, flow.elsewhere)

    def _is_elsewhere(self, request: Request, response: urllib3.BaseHTTPResponse) -> bool:
        """Whether somebody else gave the answer, to whom the registry sent us."""
        place = request.url
        for step in response.retries.history if response.retries else ():
            place = urllib.parse.urljoin(place, step.redirect_location or place)
        return not place.startswith(f"{self.base}/")

    def _flow(self, request: Request, response: urllib3.BaseHTTPResponse, *, decode: bool = False) -> Flow:
        import urllib3

        def read(count: int) -> bytes:
            try:
                return response.read(count, decode_content=decode)
            except (urllib3.exceptions.HTTPError, OSError) as error:
                raise self._lost(error, request.what) from None

        names = {name.lower(): value for name, value in response.headers.items()}
        return Flow(response.status, names, read, self._is_elsewhere(request, response))

    def _lost(self, error: Exception, what: str) -> Failure:
        """The failure behind a connection that could not be made or that broke."""
        import ssl

        import urllib3

        if self._lines.cut:
            return self.failure(Code.REGISTRY_STALLED, what, f"not done within {self._limits.whole:g} s")
        reason = getattr(error, "reason", None)
        parts = (error, reason, *getattr(reason, "args", ()))
        if any(isinstance(part, (urllib3.exceptions.SSLError, ssl.SSLError)) for part in parts):
            return distribution.untrusted(self.name, what, refusals.root_cause(error))
        if any(isinstance(part, urllib3.exceptions.ReadTimeoutError) for part in parts):
            return self.failure(Code.REGISTRY_STALLED, what, f"no answer for {self._limits.read:g} s")
        # A refused connection is one of its subclasses.
        if any(type(part) is urllib3.exceptions.ConnectTimeoutError for part in parts):
            detail = f"no connection within {self._limits.connect:g} s"
            return self.failure(Code.REGISTRY_UNREACHABLE, what, detail)
        return self.failure(Code.REGISTRY_UNREACHABLE, what, refusals.root_cause(error))

    def _pool(self) -> urllib3.PoolManager:
        with self._opening:
            if self._opened is None:
                try:
                    self._opened = _open(self.base, self._limits, self._authorities)
                    self._lines.watch(self._opened)
                except OSError as error:  # also an authority that is none
                    raise distribution.untrusted(self.name, self.name, str(error)) from None
            return self._opened


def _open(base: str, limits: Limits, authorities: Path) -> urllib3.PoolManager:
    import ssl
    import urllib.request

    import urllib3

    class Retry(urllib3.Retry):
        """A registry may ask for a pause (Retry-After), but not for one of hours."""

        def get_retry_after(self, response: urllib3.BaseHTTPResponse) -> float | None:
            seconds = super().get_retry_after(response)
            return None if seconds is None else min(seconds, _LONGEST_PAUSE)

    settings: dict[str, Any] = {
        "num_pools": 4,  # the registry, its token server, its storage
        "maxsize": limits.connections,
        "block": True,
        "timeout": urllib3.Timeout(connect=limits.connect, read=limits.read),
        "retries": Retry(
            total=limits.tries + 2,
            connect=limits.tries - 1,
            read=limits.tries - 1,
            status=limits.tries - 1,
            other=0,
            redirect=3,
            allowed_methods=None,
            status_forcelist=_AGAIN,
            raise_on_status=False,
            backoff_factor=0.2,
            backoff_jitter=0.2,
        ),
    }
    if base.startswith("https://"):
        context = believing()
        # Since Python 3.13 more is asked of an authority than engines ask, which take the same files.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        for authority in sorted(authorities.glob("*.crt")):
            context.load_verify_locations(authority)
        settings["ssl_context"] = context
    scheme, _, host = base.partition("://")
    proxy = urllib.request.getproxies().get(scheme)
    if not proxy or urllib.request.proxy_bypass(host) or distribution.is_loopback(host):
        return urllib3.PoolManager(**settings)
    who = urllib3.util.parse_url(proxy).auth
    return urllib3.ProxyManager(
        proxy,
        proxy_headers=urllib3.make_headers(proxy_basic_auth=urllib.parse.unquote(who)) if who else None,
        **settings,
    )

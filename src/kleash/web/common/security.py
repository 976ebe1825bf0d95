"""Access control before every route, so that a route without a check of its own is closed, not open.

A request passes if its host name is ours (against DNS rebinding), if it is
within the limits of size and rate, and if it has the cookie of a person who is invited and not revoked. Only
`/join/TOKEN` is open: it turns the token of a link into that cookie, which is signed, hidden from scripts, and not sent
with other sites' requests. A request that changes anything needs a second token, which only our own pages can read.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from dataclasses import dataclass, field

from itsdangerous import BadSignature, URLSafeTimedSerializer
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kleash.labels.store import Annotator, Store

BODY_BYTES = 64 * 1024
COOKIE_SECONDS = 90 * 24 * 3600
RATE, BURST = 25.0, 100.0
"""Requests of one person a second, and at once: a person votes at most once a second, a page loads a few files."""
JOIN_RATE, JOIN_BURST = 1.0, 60.0
"""Links that one address may try a second, and at once."""

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",  # the address of a link holds its token
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Sessions:
    """Signed cookies, one a role: an admin who also labels has both, and neither page acts for the other."""

    def __init__(self, secret: str, *, secure: bool) -> None:
        self._signer = URLSafeTimedSerializer(secret, salt="kleash session")
        self._secret = secret.encode()
        self._secure = secure
        # Cookies ignore ports, and two stores may be served from one machine.
        self._site = hashlib.sha256(self._secret).hexdigest()[:8]

    def begin(self, response: Response, person: Annotator) -> None:
        """Set the cookie of a person."""
        response.set_cookie(
            self._name(person.role), self._signer.dumps(person.id), max_age=COOKIE_SECONDS, httponly=True,
            samesite="lax", secure=self._secure,
        )  # fmt: skip

    def identity(self, request: Request, role: str) -> int | None:
        """Id of the person of a cookie; None where there is none, or one that is not ours."""
        try:
            identity = self._signer.loads(request.cookies.get(self._name(role), ""), max_age=COOKIE_SECONDS)
        except BadSignature:
            return None
        return identity if isinstance(identity, int) else None

    def csrf(self, person: Annotator) -> str:
        """The second token, which requests that change anything carry in a header."""
        return hmac.new(self._secret, f"csrf {person.id}".encode(), "sha256").hexdigest()

    def _name(self, role: str) -> str:
        return f"kleash-{self._site}-{role}"


@dataclass
class Bucket:
    """Rate limit: `rate` a second, and `burst` at once."""

    rate: float
    burst: float
    levels: dict[str, tuple[float, float]] = field(default_factory=dict)

    def take(self, key: str) -> bool:
        """Whether one more is within the limit."""
        now = time.monotonic()
        level, since = self.levels.get(key, (self.burst, now))
        level = min(self.burst, level + (now - since) * self.rate)
        if len(self.levels) > 10_000:  # bounds the memory; a forgotten key starts with a full bucket
            self.levels.clear()
        self.levels[key] = (max(level - 1, 0), now)
        return level >= 1


class Guard:
    """Checks each request; see the module's docstring. Routes find the person in `request.state.person`."""

    def __init__(self, app: ASGIApp, *, store: Store, sessions: Sessions, hosts: frozenset[str]) -> None:
        self._app, self._store, self._sessions, self._hosts = app, store, sessions, hosts
        self._people, self._joins = Bucket(RATE, BURST), Bucket(JOIN_RATE, JOIN_BURST)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it with the reason."""
        if scope["type"] != "http":
            return None  # no websockets, and nothing to start or stop

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        request = Request(scope, receive)
        refused = await self._refusal(request)
        if refused is not None:
            return await refused(scope, receive, guarded)
        await self._app(scope, receive, guarded)

    async def _refusal(self, request: Request) -> Response | None:
        """The refusal of a request; None where it may pass."""
        path = request.scope["path"]  # what the router uses; `request.url` depends on the host header too
        if _name(request.headers.get("host", "")) not in self._hosts:
            return refusal(request, 421, "this server has another name; open the link exactly as you received it")
        if path.startswith("/join/"):
            address = request.client.host if request.client else ""
            return None if self._joins.take(address) else refusal(request, 429, "too many tries; wait a minute")
        person = await run_in_threadpool(self._person, request)
        if person is None:
            return refusal(request, 401, "this page needs an invitation; open the link that you received")
        if not self._people.take(str(person.id)):
            return refusal(request, 429, "too many requests; wait a moment")
        request.state.person = person
        if request.method in ("GET", "HEAD"):
            return None
        return self._forged(request, person)

    def _person(self, request: Request) -> Annotator | None:
        path = request.scope["path"]
        admin = path == "/admin" or path.startswith("/admin/")
        roles = ["admin"] if admin else ["annotator", "admin"] if path.startswith("/static/") else ["annotator"]
        for role in roles:
            identity = self._sessions.identity(request, role)
            person = None if identity is None else self._store.annotator(identity)
            if person is not None and not person.revoked and person.role == role:
                return person
        return None

    def _forged(self, request: Request, person: Annotator) -> Response | None:
        """The refusal of a request that our own page, opened by this person, did not send."""
        origin = request.headers.get("origin")
        if origin is not None and _name(origin.partition("://")[2]) not in self._hosts:
            return refusal(request, 403, "this was sent from another site")
        if not hmac.compare_digest(request.headers.get("x-csrf", ""), self._sessions.csrf(person)):
            return refusal(request, 403, "this page was opened by another person; reload it")
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            return refusal(request, 415, "send application/json")
        size = request.headers.get("content-length", "")
        # A chunked body has no size; the server enforces a stated size.
        if "transfer-encoding" in request.headers or not size.isdigit() or int(size) > BODY_BYTES:
            return refusal(request, 413, f"send at most {BODY_BYTES} bytes, with a content-length")
        return None


def _name(host: str) -> str:
    """The name of a host without its port; empty where it is not a valid one."""
    match = re.fullmatch(r"(\[[0-9a-f:.]+\]|[a-z0-9.-]+)(:\d+)?", host.lower())
    return match[1] if match else ""


def refusal(request: Request, status: int, reason: str) -> Response:
    """A refusal in one line: as JSON for scripts, as text for pages."""
    headers = {"retry-after": "2"} if status == 429 else None
    if request.scope["path"].startswith("/api/") or request.method == "POST":
        return JSONResponse({"error": reason}, status, headers)
    return PlainTextResponse(f"kleash: {reason}\n", status, headers)

"""The pages and the requests of `kleash label`: thin, over the queue of the label store.

    /join/TOKEN               the link of a person: a cookie, and on to their page
    /                         the page of an annotator, the first pair in it
    /api/pairs                the pairs that come next, rendered
    /api/vote, skip, report, undo, settings
    /admin                    the page of an admin
    /admin/live               its figures, asked for again and again
    /admin/export             the preference files of what was labelled
    /admin/invite, revoke, rule, guidelines

Everything but /join stands behind `kleash.web.security`.
"""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from kleash.errors import InputError
from kleash.labels.queue import Assignment, Queue, VoteRequest
from kleash.labels.store import Annotator
from kleash.web.render import render, turns, visible
from kleash.web.security import Guard, Sessions, no

REASON_CHARACTERS = 4_000
NAME_CHARACTERS = 100
RULED_AT_ONCE = 20
MOST_PAIRS = 25
"""Pairs that are given out at once at most."""

KEYS = {
    "left": "f", "tie": "t", "both_bad": "b", "cannot": "c", "right": "j", "undo": "u", "skip": "s", "report": "p",
    "raw": "r", "why": "w", "guidelines": "g", "keys": "k", "slightly": "1", "clearly": "2", "by_far": "3",
}  # fmt: skip
"""What each key does, until the annotator says otherwise."""


@dataclass(frozen=True)
class Site:
    """What the pages are told besides the store."""

    url: str
    """Where people open it: the beginning of every link."""
    hosts: frozenset[str]
    """Names of this server; requests under another one are refused."""
    secret: str
    """Signs the cookies."""
    tags: tuple[str, ...] = ()
    goal: int = 0
    """Pairs in a sitting; 0 where there is no goal."""
    ties: Literal["half", "davidson", "drop"] = "half"
    """How exports count ties."""


def build_app(queue: Queue, site: Site) -> Starlette:
    """The application of a queue."""
    sessions = Sessions(site.secret, secure=site.url.startswith("https:"))
    pages = Pages(queue, site, sessions)
    app = Starlette(
        routes=[
            Route("/join/{token}", pages.join),
            Route("/", pages.label),
            Route("/api/pairs", pages.pairs),
            Route("/api/vote", _post(pages.vote), methods=["POST"]),
            Route("/api/skip", _post(pages.skip), methods=["POST"]),
            Route("/api/report", _post(pages.report), methods=["POST"]),
            Route("/api/undo", _post(pages.undo), methods=["POST"]),
            Route("/api/settings", _post(pages.settings), methods=["POST"]),
            Route("/admin", pages.admin),
            Route("/admin/live", pages.live),
            Route("/admin/export", pages.export),
            Route("/admin/invite", _post(pages.invite), methods=["POST"]),
            Route("/admin/revoke", _post(pages.revoke), methods=["POST"]),
            Route("/admin/rule", _post(pages.rule), methods=["POST"]),
            Route("/admin/guidelines", _post(pages.guidelines), methods=["POST"]),
            Mount("/static", StaticFiles(directory=Path(__file__).parent / "static")),
        ],
        middleware=[Middleware(Guard, store=queue.store, sessions=sessions, hosts=site.hosts)],
        exception_handlers={InputError: _refused},
    )
    app.router.redirect_slashes = False
    return app


class Pages:
    """The routes. Starlette runs those that are plain functions in threads, since the store waits for its disk."""

    def __init__(self, queue: Queue, site: Site, sessions: Sessions) -> None:
        self.queue, self.store, self.site, self.sessions = queue, queue.store, site, sessions
        self._templates = Environment(
            loader=PackageLoader("kleash.web"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
            lstrip_blocks=True,
        )  # fmt: skip
        self._templates.globals.update(turns=turns, visible=visible)

    # --- annotators --------------------------------------------------------------------------------------------------

    def join(self, request: Request) -> Response:
        """The link of a person."""
        person = self.store.annotator_of(request.path_params["token"])
        if person is None:
            return PlainTextResponse("kleash: this link is not valid, or no longer; ask for a new one\n", 401)
        # Away from this address at once, so that the token is in no history that a page could read.
        response = RedirectResponse("/admin" if person.role == "admin" else "/", 303)
        self.sessions.begin(response, person)
        return response

    def label(self, request: Request) -> Response:
        """The page of an annotator."""
        person: Annotator = request.state.person
        first = self.queue.next(person.id, 1)
        guidelines = self.store.guidelines()
        return self._page(
            "label.html.jinja", person, pair=first[0] if first else None, progress=self.queue.progress(person.id),
            keys=KEYS | person.settings.get("keys", {}), defaults=KEYS, tags=self.site.tags, goal=self.site.goal,
            guidelines=render(guidelines.text) if guidelines else None,
        )  # fmt: skip

    def pairs(self, request: Request) -> Response:
        """The pairs that come next."""
        person: Annotator = request.state.person
        wanted = request.query_params.get("count", "1")
        count = min(int(wanted), MOST_PAIRS) if wanted.isdecimal() else 1
        pairs = [self._pair(assignment) for assignment in self.queue.next(person.id, count)]
        return JSONResponse({"pairs": pairs, "progress": vars(self.queue.progress(person.id))})

    def vote(self, person: Annotator, said: Mapping[str, Any]) -> dict[str, Any]:
        """A verdict."""
        identity = _whole(said, "assignment")
        strength, seconds = said.get("strength"), said.get("seconds")
        tags = said.get("tags", [])
        if not isinstance(tags, list) or any(tag not in self.site.tags for tag in tags):
            raise InputError(f"tags are some of: {', '.join(self.site.tags) or 'none here'}")
        vote_request = VoteRequest(
            key=_text(said, "key", 80),
            verdict=str(said.get("verdict")),
            strength=strength if isinstance(strength, int) else None,
            reason=_text(said, "reason", REASON_CHARACTERS),
            tags=tags,
            seconds=float(seconds) if isinstance(seconds, int | float) and 0 <= seconds < 1e6 else None,
        )
        receipt = self.queue.vote(person.id, identity, vote_request)
        # Practice alone has an answer, and practice counts for nothing: no vote that counts comes after a reveal.
        return vars(receipt) | {"answer": self.queue.assignment(person.id, identity).answer}

    def skip(self, person: Annotator, said: Mapping[str, Any]) -> dict[str, Any]:
        """A pair left to others."""
        receipt = self.queue.skip(
            person.id, _whole(said, "assignment"), _text(said, "key", 80), _text(said, "reason", REASON_CHARACTERS)
        )
        return vars(receipt)

    def report(self, person: Annotator, said: Mapping[str, Any]) -> dict[str, Any]:
        """A pair that is broken."""
        receipt = self.queue.report(
            person.id, _whole(said, "assignment"), _text(said, "key", 80), _text(said, "reason", REASON_CHARACTERS)
        )
        return vars(receipt)

    def undo(self, person: Annotator, said: Mapping[str, Any]) -> dict[str, Any]:
        """The last thing taken back; its pair comes again."""
        shown = self.queue.undo(person.id, _text(said, "key", 80))
        return {"pair": None if shown is None else self._pair(shown)}

    def settings(self, person: Annotator, said: Mapping[str, Any]) -> dict[str, Any]:
        """An annotator's keys."""
        keys = said.get("keys")
        if not isinstance(keys, dict) or any(
            action not in KEYS or not isinstance(key, str) or not 1 <= len(key) <= 20 for action, key in keys.items()
        ):
            raise InputError(f"keys are some of {', '.join(KEYS)}, each with the name of a key")
        self.store.set_settings(person.id, person.settings | {"keys": keys})
        return {"keys": keys}

    # --- admins ------------------------------------------------------------------------------------------------------

    def admin(self, request: Request) -> Response:
        """The page of an admin."""
        guidelines = self.store.guidelines()
        return self._page(
            "admin.html.jinja", request.state.person, guidelines=guidelines.text if guidelines else "",
            live=self._live(), disagreements=self._disagreements(),
        )  # fmt: skip

    def live(self, request: Request) -> Response:
        """The figures of now, as a part of the page."""
        return JSONResponse({"html": self._live(), "disagreements": self._disagreements()})

    def export(self, request: Request) -> Response:
        """What was labelled, as files in a zip."""
        from kleash.labels.import_export import export_labels  # statistics and files of rows take a while to import

        packed = io.BytesIO()
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            out = Path(folder, "labels")
            export_labels(self.store, out, ties=self.site.ties)
            for file in sorted(out.rglob("*")):
                if file.is_file():
                    archive.write(file, file.relative_to(folder))
        headers = {"content-disposition": 'attachment; filename="labels.zip"'}
        return Response(packed.getvalue(), media_type="application/zip", headers=headers)

    def invite(self, person: Annotator, said: Mapping[str, Any]) -> dict[str, Any]:
        """A new link, shown this once."""
        invitation = self.store.invite(_text(said, "name", NAME_CHARACTERS), str(said.get("role", "annotator")))
        return {"link": f"{self.site.url}/join/{invitation.token}"}

    def revoke(self, person: Annotator, said: Mapping[str, Any]) -> dict[str, Any]:
        """A link made void."""
        identity = _whole(said, "annotator")
        if identity == person.id:
            raise InputError("this is your own link; another admin may revoke it")
        self.store.revoke(identity)
        return {"annotator": identity}

    def rule(self, person: Annotator, said: Mapping[str, Any]) -> dict[str, Any]:
        """The last word on a pair that people disagree about."""
        receipt = self.queue.adjudicate(
            person.id, _whole(said, "task"), str(said.get("verdict")), _text(said, "key", 80)
        )
        return vars(receipt)

    def guidelines(self, person: Annotator, said: Mapping[str, Any]) -> dict[str, Any]:
        """A new version of what annotators are told."""
        return {"version": self.store.set_guidelines(_text(said, "text", 60_000)).version}

    # --- within ------------------------------------------------------------------------------------------------------

    def _page(self, name: str, person: Annotator, **values: Any) -> Response:
        template = self._templates.get_template(name)
        return HTMLResponse(template.render(person=person, csrf=self.sessions.csrf(person), **values))

    def _pair(self, assignment: Assignment) -> dict[str, Any]:
        html = self._templates.get_template("pair.html.jinja").render(pair=assignment)
        return {"id": assignment.id, "kind": assignment.kind, "html": html}

    def _live(self) -> str:
        from kleash.labels.agreement import summary

        template = self._templates.get_template("live.html.jinja")
        return template.render(figures=summary(self.store), people=self.store.annotators())

    def _disagreements(self) -> str:
        from kleash.labels.agreement import disagreements

        template = self._templates.get_template("disagreements.html.jinja")
        return template.render(disagreements=disagreements(self.store)[:RULED_AT_ONCE])


def _post(act: Callable[[Annotator, Mapping[str, Any]], dict[str, Any]]) -> Callable[[Request], Any]:
    """A route that reads a JSON object and answers with one."""

    async def route(request: Request) -> Response:
        try:
            said = json.loads(await request.body())
        except (ValueError, RecursionError):
            said = None
        if not isinstance(said, dict):
            return JSONResponse({"error": "send a JSON object"}, 400)
        return JSONResponse(await run_in_threadpool(act, request.state.person, said))

    return route


def _refused(request: Request, error: Exception) -> Response:
    return no(request, 400, str(error))


def _whole(said: Mapping[str, Any], name: str) -> int:
    value = said.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise InputError(f"'{name}' is missing, or no whole number")
    return value


def _text(said: Mapping[str, Any], name: str, most: int) -> str:
    value = said.get(name, "")
    if not isinstance(value, str) or len(value) > most:
        raise InputError(f"'{name}' is no text of at most {most} characters")
    return value.encode("utf-8", "replace").decode()

"""The pages and requests of `kleash label`, a thin layer over the queue of the label store.

    /join/TOKEN               the link of a person: sets a cookie and opens their page
    /                         the page of an annotator, with the first pair
    /api/pairs                the next pairs, rendered
    /api/vote, skip, report, undo, settings
    /admin                    the page of an admin
    /admin/live               its figures, requested every few seconds
    /admin/export             the labels as preference files
    /admin/invite, revoke, adjudicate, guidelines

`kleash.web.common.security` guards everything but /join.
"""

from __future__ import annotations

import io
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from kleash.data.shown import shown_prompt
from kleash.errors import InputError
from kleash.labels.queue import Assignment, Queue, VoteRequest
from kleash.labels.store import Annotator
from kleash.web.common.json_requests import Json, input_refused, json_route, query_number, text, whole_number
from kleash.web.common.render import render, turns, visible
from kleash.web.common.security import Guard, Sessions

HERE = Path(__file__).parent
TEMPLATES = ChoiceLoader([PackageLoader("kleash.web.label"), PackageLoader("kleash.web.common")])

REASON_CHARACTERS = 4_000
NAME_CHARACTERS = 100
GUIDELINE_CHARACTERS = 60_000
SHOWN_DISAGREEMENTS = 20
MOST_PAIRS = 25
"""Most pairs of one request."""

SIDES = {"left": ("a", "1", "ArrowLeft"), "right": ("b", "2", "ArrowRight")}
"""The keys that vote for a card, first its own letter, which stands on the card and on its button. They do nothing
else, whatever an annotator chose.
"""

KEYS = {
    "tie": "t", "both_bad": "x", "cannot": "c", "undo": "u", "skip": "s", "report": "p", "raw": "r", "why": "w",
    "guidelines": "g", "keys": "k", "slightly": "7", "clearly": "8", "by_far": "9",
}  # fmt: skip
"""The key of each other action; annotators can change theirs."""


@dataclass(frozen=True)
class Site:
    """Settings of the pages."""

    url: str
    """The address that people open: the beginning of every link."""
    hosts: frozenset[str]
    """Names of this server; requests under another name are refused."""
    secret: str
    """Signs the cookies."""
    tags: tuple[str, ...] = ()
    goal: int = 0
    """Pairs in a session; 0: no goal."""
    ties: Literal["half", "davidson", "drop"] = "half"
    """How exports count ties."""


def build_app(queue: Queue, site: Site) -> Starlette:
    """The web application of a queue."""
    sessions = Sessions(site.secret, secure=site.url.startswith("https:"))
    pages = Pages(queue, site, sessions)
    app = Starlette(
        routes=[
            Route("/join/{token}", pages.join),
            Route("/", pages.label),
            Route("/api/pairs", pages.pairs),
            Route("/api/vote", json_route(pages.vote), methods=["POST"]),
            Route("/api/skip", json_route(pages.skip), methods=["POST"]),
            Route("/api/report", json_route(pages.report), methods=["POST"]),
            Route("/api/undo", json_route(pages.undo), methods=["POST"]),
            Route("/api/settings", json_route(pages.settings), methods=["POST"]),
            Route("/admin", pages.admin),
            Route("/admin/live", pages.live),
            Route("/admin/export", pages.export),
            Route("/admin/invite", json_route(pages.invite), methods=["POST"]),
            Route("/admin/revoke", json_route(pages.revoke), methods=["POST"]),
            Route("/admin/adjudicate", json_route(pages.adjudicate), methods=["POST"]),
            Route("/admin/guidelines", json_route(pages.guidelines), methods=["POST"]),
            Mount("/static", StaticFiles(directory=HERE / "static", packages=[("kleash.web.common", "static")])),
        ],
        middleware=[Middleware(Guard, store=queue.store, sessions=sessions, hosts=site.hosts)],
        exception_handlers={InputError: input_refused},
    )
    app.router.redirect_slashes = False
    return app


class Pages:
    """The routes. Starlette runs plain functions in threads, since the store waits for its disk."""

    def __init__(self, queue: Queue, site: Site, sessions: Sessions) -> None:
        self.queue, self.store, self.site, self.sessions = queue, queue.store, site, sessions
        self._templates = Environment(
            loader=TEMPLATES, autoescape=True, undefined=StrictUndefined, trim_blocks=True,
            lstrip_blocks=True,
        )  # fmt: skip
        self._templates.globals.update(shown_prompt=shown_prompt, turns=turns, visible=visible)

    # --- annotators --------------------------------------------------------------------------------------------------

    def join(self, request: Request) -> Response:
        """The link of a person."""
        person = self.store.annotator_of(request.path_params["token"])
        if person is None:
            return PlainTextResponse("kleash: this link is not valid; ask for a new one\n", 401)
        # Redirects at once, so that the token is not in a history that a page could read.
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
            keys=_keys_of(person), defaults=KEYS, sides=SIDES, tags=self.site.tags, goal=self.site.goal,
            guidelines=render(guidelines.text) if guidelines else None,
        )  # fmt: skip

    def pairs(self, request: Request) -> Response:
        """The next pairs."""
        person: Annotator = request.state.person
        count = query_number(request, "count", default=1, most=MOST_PAIRS)
        pairs = [self._pair(assignment) for assignment in self.queue.next(person.id, count)]
        return JSONResponse({"pairs": pairs, "progress": vars(self.queue.progress(person.id))})

    def vote(self, person: Annotator, body: Json) -> Json:
        """A vote."""
        identity = whole_number(body, "assignment")
        strength, seconds, tags = body.get("strength"), body.get("seconds"), body.get("tags", [])
        if not isinstance(tags, list) or any(tag not in self.site.tags for tag in tags):
            raise InputError(f"'tags' should be some of: {', '.join(self.site.tags) or 'none here'}")
        request = VoteRequest(
            key=text(body, "key", 80),
            choice=str(body.get("choice")),
            strength=strength if isinstance(strength, int) else None,
            reason=text(body, "reason", REASON_CHARACTERS),
            tags=tags,
            seconds=float(seconds) if isinstance(seconds, int | float) and 0 <= seconds < 1e6 else None,
        )
        result = self.queue.vote(person.id, identity, request)
        # Only practice pairs have an answer, and they do not count: no vote that counts comes after a reveal.
        return vars(result) | {"answer": self.queue.assignment(person.id, identity).answer}

    def skip(self, person: Annotator, body: Json) -> Json:
        """Leave a pair to others."""
        return vars(self.queue.skip(person.id, *_details(body)))

    def report(self, person: Annotator, body: Json) -> Json:
        """Report a broken pair."""
        return vars(self.queue.report(person.id, *_details(body)))

    def undo(self, person: Annotator, body: Json) -> Json:
        """Take back the last vote, skip or report; its pair is shown again."""
        assignment = self.queue.undo(person.id, text(body, "key", 80))
        return {"pair": None if assignment is None else self._pair(assignment)}

    def settings(self, person: Annotator, body: Json) -> Json:
        """Store an annotator's keys."""
        keys = body.get("keys")
        if not isinstance(keys, dict) or any(
            action not in KEYS or not isinstance(key, str) or not 1 <= len(key) <= 20 for action, key in keys.items()
        ):
            raise InputError(f"'keys' should map some of {', '.join(KEYS)} to the name of a key")
        if reserved := sorted(key for key in keys.values() if _is_reserved(key)):
            raise InputError(f"the key '{reserved[0]}' votes for a card; choose another")
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
        """The current figures, as a part of the page."""
        return JSONResponse({"html": self._live(), "disagreements": self._disagreements()})

    def export(self, request: Request) -> Response:
        """The labels as preference files in a zip."""
        from kleash.labels.import_export import export_labels  # takes a while to import

        buffer = io.BytesIO()
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            out = Path(folder, "labels")
            export_labels(self.store, out, ties=self.site.ties)
            for file in sorted(out.rglob("*")):
                if file.is_file():
                    archive.write(file, file.relative_to(folder))
        headers = {"content-disposition": 'attachment; filename="labels.zip"'}
        return Response(buffer.getvalue(), media_type="application/zip", headers=headers)

    def invite(self, person: Annotator, body: Json) -> Json:
        """Invite a person; the link is shown once."""
        invitation = self.store.invite(text(body, "name", NAME_CHARACTERS), str(body.get("role", "annotator")))
        return {"link": f"{self.site.url}/join/{invitation.token}"}

    def revoke(self, person: Annotator, body: Json) -> Json:
        """Revoke a link."""
        identity = whole_number(body, "annotator")
        if identity == person.id:
            raise InputError("this is your own link; ask another admin to revoke it")
        self.store.revoke(identity)
        return {"annotator": identity}

    def adjudicate(self, person: Annotator, body: Json) -> Json:
        """Decide a pair that people disagree about, reported or skipped."""
        task, choice = whole_number(body, "task"), str(body.get("choice"))
        return vars(self.queue.adjudicate(person.id, task, choice, text(body, "key", 80)))

    def guidelines(self, person: Annotator, body: Json) -> Json:
        """Add a version of the guidelines."""
        return {"version": self.store.set_guidelines(text(body, "text", GUIDELINE_CHARACTERS)).version}

    # --- helpers -----------------------------------------------------------------------------------------------------

    def _page(self, name: str, person: Annotator, **values: Any) -> Response:
        template = self._templates.get_template(name)
        return HTMLResponse(template.render(person=person, csrf=self.sessions.csrf(person), **values))

    def _pair(self, assignment: Assignment) -> Json:
        html = self._templates.get_template("pair.html.jinja").render(pair=assignment)
        return {"id": assignment.id, "kind": assignment.kind, "html": html}

    def _live(self) -> str:
        from kleash.labels.agreement import summary

        template = self._templates.get_template("live.html.jinja")
        return template.render(figures=summary(self.store), people=self.store.annotators())

    def _disagreements(self) -> str:
        from kleash.labels.agreement import disagreements

        rows = disagreements(self.store)
        template = self._templates.get_template("disagreements.html.jinja")
        return template.render(disagreements=rows[:SHOWN_DISAGREEMENTS], hidden=max(0, len(rows) - SHOWN_DISAGREEMENTS))


def _keys_of(person: Annotator) -> dict[str, str]:
    """The keys of an annotator. Stored keys of another layout, of which one would vote for a card, are ignored: with
    them B was "both bad".
    """
    keys = person.settings.get("keys", {})
    return dict(KEYS) if keys.keys() - KEYS or any(map(_is_reserved, keys.values())) else KEYS | keys


def _is_reserved(key: str) -> bool:
    return key.lower() in (side.lower() for side_keys in SIDES.values() for side in side_keys)


def _details(body: Json) -> tuple[int, str, str]:
    """Assignment, key and reason of a skip or a report."""
    return whole_number(body, "assignment"), text(body, "key", 80), text(body, "reason", REASON_CHARACTERS)

from __future__ import annotations

import uuid
from typing import Any

import pytest
from starlette.routing import Mount

from kleash.labels.queue import Queue
from kleash.labels.store import Store
from kleash.web.common import security
from kleash.web.label.app import Site, build_app

from .conftest import Person, Running, Serve, pairs_of


def vote(assignment: int, **more: Any) -> dict[str, Any]:
    return {"assignment": assignment, "key": uuid.uuid4().hex, "choice": "left", "seconds": 3.5} | more


def first(person: Person) -> int:
    return int(person.get("/api/pairs?count=1").json()["pairs"][0]["id"])


def routes(store: Store) -> list[tuple[str, str]]:
    site = Site(url="http://127.0.0.1", hosts=frozenset({"127.0.0.1"}), secret="s")
    paths = []
    for route in build_app(Queue(store), site).routes:
        if isinstance(route, Mount):
            paths += [
                ("GET", f"{route.path}/{file}")
                for file in ("label.js", "admin.js", "page.js", "kleash.css", "icon.svg", "missing")
            ]
        else:
            paths += [(method, route.path) for method in sorted(route.methods - {"HEAD"})]  # type: ignore[attr-defined]
    return [*paths, ("GET", "/nowhere"), ("POST", "/"), ("DELETE", "/api/vote"), ("GET", "/favicon.ico")]


@pytest.mark.parametrize("cookie", ["", "forged", "signed with another secret", "of a revoked person"])
def test_every_route_refuses_without_its_token(serve: Serve, cookie: str) -> None:
    site = serve(pairs_of(3))
    if cookie == "of a revoked person":
        person = site.person()
        site.store.revoke(person.id)
        cookie = person.cookie
    elif cookie == "signed with another secret":
        name, _, value = site.person().cookie.partition("=")
        head, _, mac = value.rpartition(".")
        cookie = f"{name}={head}.{mac[:-3]}abc"
    requests = [(method, path) for method, path in routes(site.store) if not path.startswith("/join")]
    assert len(requests) >= 20
    for method, path in requests:
        answer = site.ask(method, path, {} if method == "POST" else None, cookie=cookie)
        assert answer.status == 401, (method, path, answer.status)
        assert b"good answer" not in answer.body and b"import" not in answer.body
    for token in ("x", "..%2f", "a" * 200, "%00"):
        answer = site.ask("GET", f"/join/{token}")
        assert answer.status in (401, 404) and not answer.cookies


def test_an_annotator_is_no_admin_and_an_admin_s_page_is_no_annotator_s(serve: Serve) -> None:
    site = serve(pairs_of(3))
    annotator, admin = site.person(), site.person("admin")
    for method, path in routes(site.store):
        if path.startswith("/admin"):
            answer = annotator.get(path) if method == "GET" else annotator.post(path, {})
            assert answer.status == 401, path
    assert admin.get("/api/pairs").status == 401
    assert admin.post("/api/vote", vote(1)).status == 401


def test_a_revoked_link_shuts_its_person_out_at_once_and_the_votes_stay(serve: Serve) -> None:
    site = serve(pairs_of(3))
    person, admin = site.person(), site.person("admin")
    assert person.post("/api/vote", vote(first(person))).status == 200
    assert admin.post("/admin/revoke", {"annotator": person.id}).status == 200
    assert person.get("/").status == 401 and person.post("/api/vote", vote(1)).status == 401
    assert len(site.store.votes()) == 1
    assert admin.post("/admin/revoke", {"annotator": admin.id}).status == 400  # nobody locks themselves out


def test_the_link_becomes_a_cookie_that_scripts_and_other_sites_do_not_get(serve: Serve) -> None:
    site = serve(pairs_of(1))
    invitation = site.store.invite()
    answer = site.ask("GET", f"/join/{invitation.token}")
    assert answer.status == 303 and answer.headers["location"] == "/"
    assert "HttpOnly" in answer.cookies[0] and "SameSite=lax" in answer.cookies[0]
    assert answer.headers["referrer-policy"] == "no-referrer" and answer.headers["cache-control"] == "no-store"
    page = site.ask("GET", "/", cookie=answer.cookies[0].partition(";")[0])
    assert invitation.token.encode() not in page.body + answer.body
    assert invitation.token not in answer.cookies[0]


def test_every_answer_carries_a_policy_without_inline_script_refusals_too(serve: Serve) -> None:
    site = serve(pairs_of(1))
    person = site.person()
    for answer in (person.get("/"), person.get("/api/pairs"), person.get("/static/label.js"), site.ask("GET", "/")):
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; ") and "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy and answer.headers["x-content-type-options"] == "nosniff"
    html = person.get("/").body.decode()
    assert "<script>" not in html and "style=" not in html and "onclick" not in html


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x-csrf": ""}, 403),
        ({"x-csrf": "0" * 64}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"host": "evil.example"}, 421),
        ({"host": "127.0.0.1.evil.example"}, 421),
        ({"host": ""}, 421),
        ({"host": "127.0.0.1:80/join/x?"}, 421),
    ],
)
def test_requests_that_our_page_did_not_send_change_nothing(serve: Serve, headers: dict[str, str], status: int) -> None:
    site = serve(pairs_of(3))
    person = site.person()
    assignment = first(person)
    assert person.post("/api/vote", vote(assignment), **headers).status == status
    assert not site.store.votes()
    assert person.post("/api/vote", vote(assignment), origin=site.url).status == 200


def test_the_second_token_of_one_person_does_not_serve_another(serve: Serve) -> None:
    site = serve(pairs_of(3))
    one, other = site.person(), site.person()
    assert other.post("/api/vote", vote(first(other)), **{"x-csrf": one.csrf}).status == 403


def test_bodies_have_a_size_and_say_it(serve: Serve) -> None:
    site = serve(pairs_of(3))
    person = site.person()
    assignment = first(person)
    assert person.post("/api/vote", vote(assignment, reason="x" * 70_000)).status == 413
    assert person.post("/api/vote", vote(assignment, reason="x" * 5_000)).status == 400
    chunked = {"transfer-encoding": "chunked"}
    body = b"5\r\nhello\r\n0\r\n\r\n"
    assert person.post("/api/vote", body, **chunked).status == 413
    assert not site.store.votes()


NONSENSE: list[Any] = [
    b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 30_000, {}, {"assignment": "1"}, {"assignment": True},
    {"assignment": -1}, {"assignment": 10**30}, {"assignment": 1}, {"assignment": 1, "key": 3},
    {"assignment": 1, "key": "k" * 16}, {"assignment": 1, "key": "k" * 16, "choice": "first"},
    {"assignment": 1, "key": "k" * 16, "choice": {}}, {"assignment": 1, "key": "short", "choice": "left"},
    {"assignment": 1, "key": "k" * 16, "choice": "left", "strength": 9},
    {"assignment": 1, "key": "k" * 16, "choice": "left", "tags": ["<script>"]},
    {"assignment": 1, "key": "k" * 16, "choice": "left", "tags": [[]]},
    {"assignment": 1, "key": "k" * 16, "choice": "left", "tags": "clear"},
    {"assignment": 99, "key": "k" * 16, "choice": "left"},
]  # fmt: skip


def test_nonsense_is_refused_in_one_line_and_counted_as_nothing(serve: Serve) -> None:
    site = serve(pairs_of(3))
    person = site.person()
    assert first(person) == 1
    for body in NONSENSE:
        answer = person.post("/api/vote", body)
        assert answer.status == 400 and "\n" not in answer.json()["error"], body
    assert not site.store.votes()


def test_a_person_cannot_vote_on_an_assignment_of_another(serve: Serve) -> None:
    site = serve(pairs_of(3))
    one, other = site.person(), site.person()
    assignment = first(one)
    for path in ("vote", "skip", "report"):
        assert other.post(f"/api/{path}", vote(assignment)).status == 400
    assert not site.store.votes()


def test_a_vote_that_is_sent_twice_is_counted_once_and_a_second_one_is_a_revision(serve: Serve) -> None:
    site = serve(pairs_of(3))
    person = site.person()
    sent = vote(first(person))
    assert person.post("/api/vote", sent).json()["repeated"] is False
    assert person.post("/api/vote", sent).json()["repeated"] is True
    assert len(site.store.votes()) == 1
    person.post("/api/vote", vote(sent["assignment"], choice="right"))
    assert [pairs_seen.counts for pairs_seen in site.store.votes()] == [False, True]


def test_more_than_a_person_can_do_is_slowed_down(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "BURST", 5.0)
    monkeypatch.setattr(security, "RATE", 0.001)
    site = serve(pairs_of(1))
    person, other = site.person(), site.person()
    answers = [person.get("/api/pairs") for _ in range(8)]
    assert [answer.status for answer in answers] == [200] * 4 + [429] * 4  # the page took one
    assert answers[-1].headers["retry-after"] and other.get("/api/pairs").status == 200


def test_links_cannot_be_guessed_without_end(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "JOIN_BURST", 5.0)
    monkeypatch.setattr(security, "JOIN_RATE", 0.001)
    site = serve(pairs_of(1))
    assert [site.ask("GET", f"/join/{i}").status for i in range(7)] == [401] * 5 + [429] * 2


def test_a_bucket_fills_again() -> None:
    bucket = security.Bucket(rate=1e6, burst=1)
    assert bucket.take("a") and bucket.take("a")
    dry = security.Bucket(rate=0.0, burst=2)
    assert [dry.take("a") for _ in range(3)] == [True, True, False] and dry.take("b")


def test_annotators_see_neither_models_nor_labels_nor_each_other(serve: Serve) -> None:
    from dataclasses import replace

    from kleash.data.group import Preference

    groups = [
        replace(group, label=Preference(1.0, "judge-7"), columns={"model": "secret-model-9000", "answer": "left"})
        for group in pairs_of(3)
    ]
    site = serve(groups, overlap=2)
    one, other = site.person(), site.person()
    pairs_seen = one.get("/api/pairs?count=3").json()["pairs"]
    for pair in pairs_seen:
        one.post("/api/vote", vote(pair["id"], reason="reason of another"))
    texts = other.get("/").body + other.get("/api/pairs?count=3").body
    for secret in (b"secret-model-9000", b"judge-7", b"reason of another", b"probability"):
        assert secret not in texts
    assert b"good answer" in texts
    result = other.post("/api/vote", vote(first(other))).json()
    assert result.keys() == {"key", "repeated", "answer"} and result["answer"] is None


def test_the_admin_s_link_and_the_annotator_s_live_in_one_browser(serve: Serve) -> None:
    site = serve(pairs_of(3))
    annotator, admin = site.person(), site.person("admin")
    both = Person(site, annotator.id, f"{annotator.cookie}; {admin.cookie}", annotator.csrf)
    assert both.get("/").status == 200 and both.get("/admin").status == 200
    assert both.post("/api/vote", vote(first(both))).status == 200
    assert site.store.votes()[0].annotator == annotator.id


def test_hostile_names_and_reasons_are_stored_unchanged(serve: Serve) -> None:
    site = serve(pairs_of(3))
    person = site.person()
    reason = "'; DROP TABLE votes; --\0<script>\u202e"
    assert person.post("/api/vote", vote(first(person), reason=reason)).status == 200
    assert site.store.votes()[0].reason == reason.replace("\0", "")


def test_keys_are_remembered_with_the_person(serve: Serve) -> None:
    site: Running = serve(pairs_of(1))
    person = site.person()
    assert person.post("/api/settings", {"keys": {"tie": "F9"}}).status == 200
    assert b"F9" in person.get("/").body
    for keys in ({"fire": "x"}, {"tie": ""}, {"tie": "x" * 21}, {"tie": 3}, {"left": "F9"}, []):
        assert person.post("/api/settings", {"keys": keys}).status == 400

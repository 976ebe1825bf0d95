"""The admin's page in a real Chromium, and what leaves through it."""

from __future__ import annotations

import io
import json
import uuid
import zipfile
from pathlib import Path
from typing import Any

import pytest

from kleash.data.formats import read_groups
from kleash.data.group import Preference

from .conftest import Browse, Person, Running, Serve, pairs_of
from .hostile import BRIEF, HOSTILE
from .test_label import session


def say(person: Person, verdict: str, times: int) -> None:
    """Vote on what comes next; `good` and `bad` wherever it stands."""
    for _ in range(times):
        (pair,) = person.get("/api/pairs?count=1").json()["pairs"]
        left_is_good = pair["html"].index("good answer") < pair["html"].index("bad answer")
        side = {"good": "left" if left_is_good else "right", "bad": "right" if left_is_good else "left"}.get(
            verdict, verdict
        )
        body = {"assignment": pair["id"], "key": uuid.uuid4().hex, "choice": side}
        assert person.post("/api/vote", body).status == 200


@pytest.mark.slow
def test_figures_are_live_and_disagreements_are_ruled_on(serve: Serve, browse: Browse) -> None:
    site = serve(pairs_of(4), overlap=2)
    one, other = site.person(), site.person()
    page = browse(site.link("admin"))
    assert page.locator(".figures dd").nth(1).inner_text() == "0" and "undefined" in page.inner_text(".figures")
    say(one, "good", 4)
    say(other, "good", 3)
    say(other, "bad", 1)
    page.wait_for_selector(".figures dd:has-text('8')")
    assert "75 %" in page.inner_text(".figures")
    page.click(".disagreement summary")
    assert "good answer" in page.inner_text(".disagreement") and one.cookie not in page.content()
    page.click(".disagreement [data-adjudicate=cannot]")
    page.wait_for_selector("text=None that is not adjudicated")
    adjudication = site.store.votes()[-1]
    assert adjudication.adjudicated and adjudication.choice == "cannot"
    assert page.seen.errors == [] and page.seen.dialogs == []


def test_the_admin_sees_who_passed_over_a_pair_and_why_and_rules_on_it(serve: Serve) -> None:
    site = serve(pairs_of(25), overlap=2)
    person, admin = site.person(), site.person("admin")
    reports = person.get("/api/pairs?count=25").json()["pairs"]
    for number, pair in enumerate(reports[:22]):
        body = {"assignment": pair["id"], "key": uuid.uuid4().hex, "reason": f"<b>broken</b> {number}"}
        assert person.post("/api/report", body).status == 200
    skip = {"assignment": reports[22]["id"], "key": uuid.uuid4().hex}
    assert person.post("/api/skip", skip).status == 200

    def shown() -> str:
        return str(admin.get("/admin/live").json()["disagreements"])

    assert shown().count("1 × report") == 20 and "1 × skip" not in shown() and "And 3 more" in shown()
    assert "&lt;b&gt;broken&lt;/b&gt; 0" in shown() and "<b>" not in shown()
    for _ in range(23):
        task = int(shown().split('data-task="')[1].partition('"')[0])
        ruling = {"task": task, "choice": "cannot", "key": uuid.uuid4().hex}
        assert admin.post("/admin/adjudicate", ruling).status == 200
    assert "None that is not adjudicated" in shown()


@pytest.mark.slow
def test_links_are_made_shown_once_opened_and_revoked(serve: Serve, browse: Browse) -> None:
    site = serve(pairs_of(4))
    page = browse(site.link("admin"))
    page.fill("[name=name]", "Desk & <b>one</b>")
    page.click("text=Make a link")
    page.wait_for_selector("#link:visible")
    link = page.inner_text("#link code")
    annotator = browse(link)
    annotator.wait_for_selector(".pair")
    assert "Desk" not in annotator.content()  # not even to themselves
    assert annotator.url == site.url + "/"
    page.reload()
    assert link not in page.content() and "Desk & <b>one</b>" in page.inner_text("#figures")
    page.click("[data-revoke]")
    page.wait_for_selector("#figures td:text-is('revoked')")
    assert len(page.seen.dialogs) == 1
    annotator.keyboard.press("a")
    annotator.wait_for_selector("text=Not saved: this page needs an invitation")
    assert not site.store.votes()
    assert browse(link).inner_text("body").startswith("kleash: this link is not valid")


def test_guidelines_have_versions_that_votes_remember(serve: Serve, browse: Browse) -> None:
    site = serve(pairs_of(4), guidelines="first")
    person = site.person()
    say(person, "good", 1)
    page = browse(site.link("admin"))
    page.fill("#guide-text", "second, **clearer**")
    page.click("text=Save a new version")
    page.wait_for_selector("text=Saved as version 2")
    say(person, "good", 1)
    assert [vote.guideline for vote in site.store.votes()] == [1, 2]
    assert b"<strong>clearer</strong>" in person.get("/").body


def exported(site: Running, folder: Path) -> Path:
    """What the admin's button downloads, unpacked."""
    answer = site.person("admin").get("/admin/export")
    assert answer.status == 200 and answer.headers["content-disposition"].startswith("attachment")
    with zipfile.ZipFile(io.BytesIO(answer.body)) as packed:
        packed.extractall(folder)
    return folder / "labels"


def test_the_export_is_the_preferences_and_an_error_where_there_are_none(serve: Serve, tmp_path: Path) -> None:
    site = serve(pairs_of(4))
    empty = site.person("admin").get("/admin/export")
    assert empty.status == 400 and empty.body.startswith(b"kleash: ")
    person = site.person()
    say(person, "good", 3)
    say(person, "tie", 1)
    groups = list(read_groups(exported(site, tmp_path) / "train.jsonl"))
    violations = sorted(group.label.probability for group in groups if isinstance(group.label, Preference))
    assert violations == [0.5, 1.0, 1.0, 1.0]
    assert all(
        "good" in group.responses[0].text for group in groups if group.label == Preference(1.0, group.label.annotator)
    )  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "names", [BRIEF[::4], pytest.param(HOSTILE, marks=pytest.mark.slow)], ids=["some of them", "all of them"]
)
def test_hostile_names_run_no_script_and_load_nothing(serve: Serve, browse: Browse, names: list[str]) -> None:
    site = serve(pairs_of(2))
    for text in names:
        site.store.invite(text[:100])
    page = browse(site.link("admin"))
    assert page.locator("#figures tbody tr").count() == len(names)
    page.wait_for_timeout(300)
    assert page.seen.dialogs == [] and page.seen.errors == []
    assert [url for url in page.seen.requests if not url.startswith(site.url)] == []


@pytest.mark.parametrize(("width", "scheme"), [(320, "dark"), pytest.param(1280, "light", marks=pytest.mark.slow)])
def test_axe_finds_nothing_serious_on_the_admin_s_page(serve: Serve, browse: Browse, width: int, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    site = serve(pairs_of(2), overlap=2)
    one, other = site.person(), site.person()
    say(one, "good", 2)
    say(other, "bad", 2)
    page = browse(site.link("admin"), width=width, color_scheme=scheme)
    page.click(".disagreement summary >> nth=0")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    violations = Axe().run(page).response["violations"]
    assert not [
        (issue["id"], issue["nodes"][0]["html"]) for issue in violations if issue["impact"] in ("serious", "critical")
    ]


@pytest.mark.slow
def test_a_reward_model_learns_from_what_a_person_labelled(
    serve: Serve, browse: Browse, base: Path, tmp_path: Path
) -> None:
    from kleash.stages.reward_model import RewardConfig, run

    site = serve([group for group in _spelt(20)])
    session(site, browse)
    folder = exported(site, tmp_path)
    manifest: dict[str, Any] = json.loads((folder / "labels.json").read_text())
    assert manifest["files"]
    done = run(
        RewardConfig(
            model=str(base),
            data=str(folder / "train.jsonl"),
            out=tmp_path / "reward",
            max_steps=3,
            batch_size=8,
            force=True,
        )
    )
    assert done.finished and (tmp_path / "reward" / "model.safetensors").exists()


def _spelt(count: int) -> list[Any]:
    """Pairs in the letters of the tiny tokenizer, each with a mark that a person in a hurry can see."""
    from kleash.data.group import Group, Response

    return [
        Group(f"a {i % 10} b", (Response(f"z z good {i % 7}"), Response(f"x y bad {i % 5} {i // 10}")))
        for i in range(count)
    ]

"""The page in a real Chromium."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kleash.data.formats import write_groups
from kleash.data.group import Group, Preference, Response
from kleash.labels.store import Store
from kleash.web.common import security

from .conftest import Browse, Serve, pairs_of
from .hostile import BRIEF, HOSTILE, OVERSIZED

VERDICTS = ("first", "second", "tie", "both_bad", "cannot")


def saved(page: Any) -> None:
    page.wait_for_selector("#saved:text-is('✓ Saved')")


def shown(page: Any) -> int:
    return int(page.locator(".pair").get_attribute("data-id"))


def press(page: Any, *keys: str) -> None:
    """Keys one after the other, each after the next pair is there."""
    for key in keys:
        page.wait_for_selector(".votes button:enabled")
        page.keyboard.press(key)


def standing(store: Store) -> list[str]:
    return [vote.choice for vote in store.votes() if vote.counts]


def good_side(page: Any) -> str:
    return "a" if "good" in page.locator(".side").first.inner_text() else "b"


# --- one decision ----------------------------------------------------------------------------------------------------


def test_each_key_says_what_its_button_says_and_no_pair_waits_for_the_server(serve: Serve, browse: Browse) -> None:
    site = serve(pairs_of(12))
    page = browse(site.link())
    waits, held = True, []  # votes are sent one at a time: the first waits, and the others behind it
    page.route("**/api/vote", lambda route: held.append(route) if waits else route.continue_())
    choices = []
    for key, verdict in zip("abtxc", ("left", "right", "tie", "both_bad", "cannot"), strict=True):
        button = page.locator(f"[data-act={verdict}]")
        assert button.locator("kbd").inner_text().lower() == key
        before = shown(page)
        press(page, key)
        page.wait_for_function("before => document.querySelector('.pair')?.dataset.id !== String(before)", arg=before)
        choices.append(verdict)
    waits = False
    held[0].continue_()
    saved(page)
    votes = site.store.votes()
    sides = [vote.choice if vote.swapped is None or vote.choice in choices else
             ("left" if (vote.choice == "first") != vote.swapped else "right") for vote in votes]  # fmt: skip
    assert sides == choices and all(vote.seconds is not None and 0 < vote.seconds < 20 for vote in votes)
    assert page.seen.errors == []


def test_nothing_that_is_pressed_moves_and_every_pair_begins_at_its_top(serve: Serve, browse: Browse) -> None:
    long = [
        Group(f"Question {i}", tuple(Response(f"{side} {i}\n\n" * (20 + 40 * (i % 3))) for side in "xy"))
        for i in range(8)
    ]
    page = browse(serve(long).link())
    boxes = set()
    for key in "abtab":
        page.evaluate("document.querySelector('#pair').scrollTop = 400")
        press(page, key)
        page.wait_for_timeout(60)
        boxes.add(str([page.locator(f"[data-act={name}]").bounding_box() for name in ("left", "right", "undo")]))
        assert page.evaluate("[scrollY, document.querySelector('#pair').scrollTop]") == [0, 0]
    assert len(boxes) == 1


def test_strength_tags_and_reason_go_with_the_vote_and_are_gone_for_the_next(serve: Serve, browse: Browse) -> None:
    site = serve(pairs_of(4))
    page = browse(site.link())
    press(page, "8", "w")
    page.keyboard.type("a, b, 1 and 2 are keys, but not here")
    page.keyboard.press("Enter")
    page.click("[data-tag=clear]")
    press(page, "a")
    press(page, "b")
    saved(page)
    one, two = site.store.votes()
    assert (one.strength, one.tags, one.reason) == (2, ["clear"], "a, b, 1 and 2 are keys, but not here")
    assert (two.strength, two.tags, two.reason) == (None, [], "")


def test_a_card_is_voted_for_by_its_letter_its_number_and_its_arrow(serve: Serve, browse: Browse) -> None:
    keys = {"left": ("a", "A", "1", "ArrowLeft"), "right": ("b", "B", "2", "ArrowRight")}
    site = serve(pairs_of(8))
    page = browse(site.link())
    for side, side_keys in keys.items():
        button = page.locator(f"[data-act={side}]")
        card = page.locator(".side").nth(0 if side == "left" else 1)
        assert button.locator("kbd").inner_text() == card.locator("h2").inner_text()[-1] == side_keys[1]
        for key in side_keys:
            press(page, key)
            page.wait_for_selector(f"#last:has-text('You voted: {side_keys[1]} is better')")
    saved(page)
    assert [(vote.choice == "first") != vote.swapped for vote in site.store.votes()] == [True] * 4 + [False] * 4


def test_no_other_action_has_a_key_that_votes_for_a_card(serve: Serve, browse: Browse) -> None:
    page = browse(serve(pairs_of(2), guidelines="Be fair.").link())
    page.keyboard.press("k")
    shown_keys = [key.lower() for key in page.locator("kbd[data-key]").all_inner_texts()]
    assert len(shown_keys) > 13 and not {"a", "b", "1", "2", "←", "→"} & set(shown_keys)
    assert page.evaluate("Object.keys(localStorage).length") == 0  # the keys above were no votes


def test_each_vote_is_named_and_undo_takes_it_out_of_the_store(serve: Serve, browse: Browse) -> None:
    site = serve(pairs_of(6))
    page = browse(site.link())
    names = {"a": "You voted: A is better", "x": "You voted: Both bad", "s": "Skipped", "p": "Reported"}
    for key, name in names.items():
        press(page, key)
        page.wait_for_selector(f"#last span:text-is('{name}')")
    before = shown(page)
    for name in ("Reported", "Skipped", "Both bad", "A is better"):
        page.click("#last button")
        page.wait_for_selector(f"#last span:text-is('Taken back: {name}')")
    saved(page)
    assert standing(site.store) == [] and shown(page) != before and page.inner_text("#count") == "0 of 6"
    press(page, "b")
    saved(page)
    (vote,) = [vote for vote in site.store.votes() if vote.counts]
    assert (vote.choice == "second") != vote.swapped


@pytest.mark.parametrize(("width", "height"), [(375, 667), (320, 568), (1280, 800)])
def test_the_question_stands_while_the_responses_scroll(serve: Serve, browse: Browse, width: int, height: int) -> None:
    turns = [{"role": "user", "content": f"turn {i}" + " and more" * 200} for i in range(3)]
    prompts = ("What does the otter eat?", tuple(turns))
    answers = tuple(Response(f"{side} says\n\n" * 200) for side in "xy")
    page = browse(
        serve([Group(prompt, answers) for prompt in prompts], order="random").link(), width=width, height=height
    )
    for _ in prompts:
        question, responses = (page.locator(name).bounding_box() for name in (".prompt", "#pair"))
        page.evaluate("document.querySelector('#pair').scrollTop = 10000")
        after = page.locator(".prompt").bounding_box()
        assert after["y"] == pytest.approx(responses["y"], abs=1) and question["height"] < responses["height"] * 0.75
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("document.querySelector('#pair').scrollWidth") <= width
        press(page, "t")


def test_keys_can_be_changed_change_places_and_are_remembered(serve: Serve, browse: Browse) -> None:
    site = serve(pairs_of(5))
    link = site.link()
    page = browse(link)
    press(page, "k")
    page.click("[data-remap=tie]")
    page.keyboard.press("b")  # votes for a card, whatever anybody chooses
    assert page.inner_text("[data-remap=tie] kbd").lower() == "votes"
    page.keyboard.press("x")
    page.wait_for_timeout(200)
    page.keyboard.press("Escape")
    assert page.locator(".votes [data-key=tie]").inner_text().lower() == "x"
    assert page.locator(".votes [data-key=both_bad]").inner_text().lower() == "t"
    again = browse(link)
    press(again, "x", "b")
    saved(again)
    tie, right = site.store.votes()
    assert tie.choice == "tie" and (right.choice == "second") != right.swapped


def test_stored_keys_of_another_layout_are_not_taken_up(serve: Serve, browse: Browse) -> None:
    site = serve(pairs_of(2))
    person = site.person()
    assert person.post("/api/settings", {"keys": {"both_bad": "b"}}).status == 400
    assert person.post("/api/settings", {"keys": {"tie": "arrowleft"}}).status == 400
    for keys in ({"both_bad": "b", "tie": "q"}, {"left": "f", "tie": "q"}):
        site.store.set_settings(person.id, {"keys": keys})
        page = person.get("/").body.decode()
        assert 'data-key="both_bad">x<' in page and 'data-key="tie">t<' in page


def test_modifiers_repeats_and_open_dialogs_are_no_votes(serve: Serve, browse: Browse) -> None:
    site = serve(pairs_of(4), guidelines="Be **fair**.")
    page = browse(site.link())
    for keys in ("Control+a", "Alt+b", "Meta+1", "Control+ArrowLeft", "Alt+ArrowRight", "Meta+t"):
        page.keyboard.press(keys)
        page.wait_for_timeout(20)
    page.evaluate("document.dispatchEvent(new KeyboardEvent('keydown', { key: 'a', repeat: true, bubbles: true }))")
    page.evaluate(
        "document.dispatchEvent(new KeyboardEvent('keydown', { key: 'a', modifierAltGraph: true, bubbles: true }))"
    )
    page.keyboard.press("g")
    assert page.locator("#guidelines strong").inner_text() == "fair"
    page.keyboard.press("a")
    page.keyboard.press("g")  # the same key closes it
    assert not page.locator("#guidelines").is_visible() and not site.store.votes()
    assert page.inner_text("#last span") == ""


def test_practice_tells_the_answer_after_the_vote_and_counts_for_nothing(serve: Serve, browse: Browse) -> None:
    practice = [Group("2 + 2?", (Response("good: 4"), Response("bad: 5")), Preference(1.0))]
    site = serve(pairs_of(3), practice=practice)
    page = browse(site.link())
    assert "Practice" in page.inner_text("#pair")
    wrong = "b" if good_side(page) == "a" else "a"
    press(page, wrong)
    page.wait_for_selector("#answer:visible")
    assert re.search(r"You chose: . is better\. The agreed answer: . is better", page.inner_text("#answer"))
    assert "4" in page.inner_text("#pair") and page.locator(".votes button:enabled").count() == 0
    page.keyboard.press("a")  # no vote after the reveal
    page.keyboard.press("Enter")
    press(page, "a")
    saved(page)
    assert len(standing(site.store)) == 1 and page.inner_text("#count") == "1 of 3"


def test_earlier_turns_are_folded_and_raw_text_is_a_key_away(serve: Serve, browse: Browse) -> None:
    turns = tuple({"role": role, "content": f"{role} says *hello*"} for role in ("system", "user", "assistant", "user"))
    answers = tuple(Response(({"role": "assistant", "content": f"**{name}**"},)) for name in ("one", "two"))
    page = browse(serve([Group(turns, answers)]).link())
    assert (
        page.inner_text(".prompt summary") == "3 earlier turns"
        and not page.locator("text=system says").first.is_visible()
    )
    page.click(".prompt summary")
    assert page.locator("text=system says").first.is_visible()
    press(page, "r")
    assert "**one**" in page.inner_text("#pair") and "**two**" in page.inner_text("#pair")
    press(page, "r")
    assert "**one**" not in page.inner_text("#pair")


def test_skip_and_report_go_on_and_a_goal_is_a_goal(serve: Serve, browse: Browse) -> None:
    site = serve(pairs_of(6), goal=2)
    page = browse(site.link())
    press(page, "s", "p", "a", "a")
    saved(page)
    assert [vote.choice for vote in site.store.votes()][:2] == ["skip", "report"]
    assert "2 pairs: that was the goal" in page.inner_text("#notice")
    press(page, "a", "a")
    page.wait_for_selector("#done:visible")
    saved(page)
    assert len(standing(site.store)) == 4


def test_after_forty_minutes_a_break_is_proposed_once(serve: Serve, browse: Browse) -> None:
    page = browse()
    page.clock.install()
    page.goto(serve(pairs_of(6)).link())
    press(page, "a")
    assert page.locator("#notice").is_hidden()
    page.clock.fast_forward("41:00")
    press(page, "a")
    assert "A short break" in page.inner_text("#notice")
    page.click("[data-act=dismiss]")
    press(page, "a")
    assert page.locator("#notice").is_hidden()


@pytest.mark.slow
def test_undo_reaches_back_before_the_page_was_opened(serve: Serve, browse: Browse) -> None:
    site = serve(pairs_of(5))
    link = site.link()
    page = browse(link)
    first = shown(page)
    press(page, "a")
    saved(page)
    again = browse(link)
    press(again, "u")
    again.wait_for_selector(f".pair[data-id='{first}']")
    press(again, "b")
    saved(again)
    assert [vote.choice for vote in site.store.votes()].count("undo") == 1 and len(standing(site.store)) == 1
    fresh = browse(site.link())
    fresh.keyboard.press("u")
    fresh.wait_for_selector("text=There is nothing to take back")


def test_notices_reach_a_screen_reader_and_the_pair_has_the_focus(serve: Serve, browse: Browse) -> None:
    page = browse()
    with page.expect_response(lambda response: "/api/pairs" in response.url) as pairs_ahead:
        page.goto(serve(pairs_of(3)).link())
    pairs_ahead.value.finished()
    page.evaluate("() => new Promise((done) => setTimeout(done))")  # the page has taken them up
    page.click("[data-act=tie]")
    page.wait_for_selector("#live:text-is('Equally good. Pair 2.')", state="attached")
    assert page.evaluate("document.activeElement.id") == "pair"
    assert page.locator("[data-act=left]").get_attribute("aria-keyshortcuts") == "a 1 ArrowLeft"


def test_a_page_that_is_slowed_down_goes_on_by_itself_and_saves_every_vote(
    serve: Serve, browse: Browse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(security, "RATE", 2.0)
    monkeypatch.setattr(security, "BURST", 7.0)
    site = serve(pairs_of(12))
    page = browse(site.link())
    for _ in range(12):
        press(page, good_side(page))
    page.wait_for_selector("#done:visible")
    saved(page)
    assert len(site.store.votes()) == 12
    assert page.seen.errors and all("429" in error for error in page.seen.errors)


# --- a whole session -------------------------------------------------------------------------------------------------


def session(site: Any, browse: Browse) -> None:
    """Twenty pairs by keyboard, two taken back, the browser closed in between."""
    link = site.link()
    page = browse(link)
    for _ in range(8):
        press(page, good_side(page))
    press(page, "u", "u")
    for _ in range(2):
        press(page, good_side(page))
    saved(page)
    sides = page.inner_text(".sides")
    state = page.context.storage_state()
    page.context.close()

    page = browse(site.url + "/", storage_state=state)  # days later, the same browser
    assert page.inner_text(".sides") == sides and page.inner_text("#count") == "8 of 20"
    for _ in range(12):
        press(page, good_side(page))
    page.wait_for_selector("#done:visible")
    saved(page)
    assert page.seen.errors == []


def test_a_person_labels_twenty_pairs_takes_two_back_and_comes_back_to_finish(serve: Serve, browse: Browse) -> None:
    site = serve(pairs_of(20))
    session(site, browse)
    assert standing(site.store) == ["first"] * 20
    assert [vote.choice for vote in site.store.votes()].count("undo") == 2


@pytest.mark.slow
def test_two_people_at_once_share_the_pairs_and_see_nothing_of_each_other(serve: Serve, browse: Browse) -> None:
    site = serve(pairs_of(10))
    pages = [browse(site.link()), browse(site.link())]
    for _ in range(5):
        for page in pages:
            press(page, "a")
    for page in pages:
        page.wait_for_selector("#done:visible")
        saved(page)
    votes = site.store.votes()
    assert sorted(vote.task for vote in votes) == list(range(1, 11))  # each pair once, since the overlap is one
    assert {vote.annotator for vote in votes} == {1, 2}


# --- the server away -------------------------------------------------------------------------------------------------


class Command:
    """`kleash label` as a process."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.options = folder, options
        self.start()

    def start(self) -> None:
        words = [sys.executable, "-m", "kleash", "label", *self.options]
        self.process = subprocess.Popen(
            words, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
        )
        assert self.process.stdout is not None
        lines = [self.process.stdout.readline().split() for _ in range(2)]
        self.links = {words[0]: words[1] for words in lines if len(words) == 2}

    def stop(self, how: int = signal.SIGINT) -> tuple[int, str]:
        self.process.send_signal(how)
        _, errors = self.process.communicate(timeout=20)
        return self.process.returncode, errors


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    write_groups(pairs_of(16), tmp_path / "pairs.jsonl")
    from kleash.web.common.listen import listen

    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    running = Command(tmp_path, "--data", "pairs.jsonl", "--port", str(port), "--repeat-share", "0")
    yield running
    if running.process.poll() is None:
        running.stop(signal.SIGKILL)


def test_a_server_killed_in_mid_session_loses_nothing_and_counts_nothing_twice(
    command: Command, browse: Browse
) -> None:
    page = browse(command.links["annotator"])
    for _ in range(3):
        press(page, good_side(page))
        page.wait_for_timeout(150)
    command.stop(signal.SIGKILL)
    for _ in range(2):
        press(page, good_side(page))
    press(page, "u")
    press(page, good_side(page))
    page.wait_for_selector("text=The server cannot be reached")
    assert "waiting" in page.inner_text("#saved")
    before = dict(command.links)
    command.start()
    assert command.links == before  # who had a link has it still
    saved(page)
    page.wait_for_selector("#notice", state="hidden")
    for _ in range(11):
        press(page, good_side(page))
    page.wait_for_selector("#done:visible")
    saved(page)
    code, errors = command.stop()
    assert code == 0 and "Traceback" not in errors and "stopped" in errors
    votes = Store.open(command.folder / "labels.db").votes()
    assert [vote.choice for vote in votes if vote.counts] == ["first"] * 16
    assert len({vote.key for vote in votes}) == len(votes) == 18  # sixteen, one taken back, the taking back


@pytest.mark.slow
def test_votes_wait_in_a_browser_that_is_closed_while_the_server_is_away(command: Command, browse: Browse) -> None:
    page = browse(command.links["annotator"])
    page.wait_for_timeout(300)
    command.stop(signal.SIGKILL)
    for _ in range(3):
        press(page, good_side(page))
    state = page.context.storage_state()
    page.context.close()
    command.start()
    page = browse(command.links["annotator"].split("/join")[0] + "/", storage_state=state)
    saved(page)
    press(page, good_side(page))
    saved(page)
    assert standing(Store.open(command.folder / "labels.db")) == ["first"] * 4


def test_the_first_pair_is_there_within_seconds_of_the_command_and_no_torch_is_loaded(
    tmp_path: Path, browse: Browse
) -> None:
    write_groups(pairs_of(16), tmp_path / "pairs.jsonl")
    page = browse()
    command = Command(tmp_path, "--data", "pairs.jsonl", "--port", "0")
    page.goto(command.links["annotator"])
    page.wait_for_selector(".pair")
    process = Path(f"/proc/{command.process.pid}")
    if process.exists():
        assert "libtorch" not in (process / "maps").read_text()
        # Seconds of the processor, which do not grow with what else runs on the machine: user and system, proc(5).
        figures = (process / "stat").read_text().rpartition(")")[2].split()
        assert sum(map(int, figures[11:13])) / os.sysconf("SC_CLK_TCK") < 5
    assert command.stop()[0] == 0


# --- every screen, every text ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (320, "light"),
        (1280, "dark"),
        pytest.param(320, "dark", marks=pytest.mark.slow),
        pytest.param(1280, "light", marks=pytest.mark.slow),
    ],
)
def test_axe_finds_nothing_serious_and_nothing_is_wider_than_the_screen(
    serve: Serve, browse: Browse, width: int, scheme: str
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    rich = (
        "# Title\n\ntext `code`\n\n```python\nx = 'a' * 3  # why\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n"
        "$$\\sum_{i=1}^{100} \\frac{1}{i^2} = \\frac{\\pi^2}{6} + \\mathrm{a\\ formula\\ that\\ goes\\ on}$$\n\n"
        + "w"
        * 300
    )
    two = tuple(Response(({"role": "assistant", "content": text},)) for text in (rich, "b"))
    conversation = (("user", "one"), ("assistant", "two"), ("user", rich))
    turns = tuple({"role": role, "content": text} for role, text in conversation)
    site = serve(
        [Group(turns, two)],
        practice=[Group("2 + 2?", (Response("good"), Response("bad")), Preference(1.0))],
        guidelines=rich,
    )
    page = browse(site.link(), width=width, height=700, color_scheme=scheme)

    def looked_at(where: str) -> None:
        violations = Axe().run(page).response["violations"]
        serious = [
            (issue["id"], issue["nodes"][0]["html"])
            for issue in violations
            if issue["impact"] in ("serious", "critical")
        ]
        assert not serious, (where, serious)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, where
        assert page.evaluate(
            "document.querySelector('#pair').scrollWidth <= document.querySelector('#pair').clientWidth"
        )

    looked_at("practice")
    press(page, "a")
    page.wait_for_selector("#answer:visible")
    looked_at("answer")
    page.keyboard.press("Enter")
    page.wait_for_selector("math")
    looked_at("pair")
    for key in ("g", "k"):
        page.keyboard.press(key)
        looked_at(key)
        page.keyboard.press("Escape")
    press(page, "7", "t")
    page.wait_for_selector("#done:visible")
    looked_at("done")


def _hostile_pair(texts: list[str]) -> Group:
    """The first as the prompt, the others shared out to the responses, as turns where they are many."""
    if len(texts) == 3:
        return Group(texts[0], (Response(texts[1]), Response(texts[2])))
    sides = (texts[1:3], texts[3:])
    return Group(
        ({"role": "user", "content": texts[0]},),
        tuple(Response(tuple({"role": "assistant", "content": text} for text in side)) for side in sides),
    )


@pytest.mark.parametrize(
    ("texts", "step"),
    [(BRIEF + OVERSIZED[:3], 6), pytest.param(HOSTILE, 1, marks=pytest.mark.slow)],
    ids=["each once", "each everywhere"],
)
def test_hostile_texts_run_no_script_load_nothing_and_break_nothing(
    serve: Serve, browse: Browse, texts: list[str], step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By steps of one each is prompt, response on either side and reason; by steps of six the turns of a pair."""
    monkeypatch.setattr(security, "BURST", 100_000.0)  # here keys come faster than a person's
    count = len(texts)
    groups = [_hostile_pair([texts[(i + k) % count] for k in range(max(step, 3))]) for i in range(0, count, step)]
    site = serve(groups, order="random")
    page = browse(site.link())
    for i in range(len(groups)):
        page.wait_for_selector(".votes button:enabled")
        page.evaluate("reason => { document.querySelector('#reason').value = reason }", texts[i * step][:3_900])
        page.keyboard.press("abtxc"[i % 5])
    page.wait_for_selector("#done:visible")
    saved(page)
    assert page.seen.dialogs == [] and page.seen.errors == []
    assert [url for url in page.seen.requests if not url.startswith(site.url)] == []
    assert page.title() == "Which is better? · kleash"
    assert len(site.store.votes()) == len(groups) and page.locator("#notice").is_hidden()

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markupsafe import Markup

from kleash.errors import InputError
from kleash.report import html
from kleash.report.html import findings, story, write_report
from tests.records import run_record
from tests.report import synthetic

RUNS = ("sft", "reward", "ppo", "ppo-no-leash")
HOSTILE = '</pre></title><script>alert(1)</script><img src=x onerror=alert(2)><a href="javascript:alert(3)">"\'&{{7*7}}'


class Page(HTMLParser):
    """Everything on a page that could fetch or run something, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def page_of_demo(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of the synthetic demo, drawn once for all tests that only read it."""
    return write_report(synthetic.write(tmp_path_factory.mktemp("demo"))).read_text()


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty frames in the place of pictures, which take the time."""
    monkeypatch.setattr(html, "_svg", lambda draw, *arguments, **options: Markup("<svg></svg>"))


def render(folder: Path, summary: dict[str, Any]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary))
    return write_report(folder).read_text()


def test_the_page_holds_everything_itself(page_of_demo: str):
    text = page_of_demo
    page = Page(text)
    assert not re.search(r"(https?:)?//\w", text.replace("<!--", "")), "an address of somewhere else"
    pointing = {"src", "href", "xlink:href", "srcset", "action", "data", "poster", "background", "formaction"}
    for name, value in page.attributes:
        assert name not in pointing or value.startswith(("#", "data:")), (name, value)
        assert not name.startswith("on"), name
    assert not {"script", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in page.attributes


def test_ids_are_unique_and_what_points_to_one_finds_it(page_of_demo: str):
    text = page_of_demo
    ids = [value for name, value in Page(text).attributes if name == "id"]
    assert len(ids) == len(set(ids)) > 100
    pointed = set(re.findall(r"url\(#([^)]*)\)|href=\"#([^\"]*)\"", text))
    assert {a or b for a, b in pointed} <= set(ids)


def test_all_pictures_and_parts_are_there(page_of_demo: str):
    page = Page(page_of_demo)
    assert page.tags.count("svg") == 11  # two distances, training, methods, five of the reward model, two losses
    for words in (
        "Where gold peaks", "Other methods", "The same questions", "How accurate is the reward model",
        "Learning from data",
        "The checks of each stage", "ten lines", "How it was made", "what does the otter eat", "held-out loss 3.912",
    ):  # fmt: skip
        assert words in page.text, words


def test_figures_of_the_summary_stand_in_the_table(page_of_demo: str, summary: dict[str, Any]):
    text = Page(page_of_demo).text.replace("−", "-")
    for policy in summary["policies"].values():
        for key in ("gold", "proxy", "kl"):
            assert f"{policy[key]['mean']:.2f} ± {policy[key]['se']:.2f}" in text


def test_every_method_has_its_figures_and_what_it_took(page_of_demo: str, summary: dict[str, Any]):
    text = Page(page_of_demo).text.replace("−", "-")
    table = html.methods_table(summary)
    for name, method in summary["roads"].items():
        for key in ("gold", "proxy", "kl"):
            assert f"{method[key]['mean']:.2f} ± {method[key]['se']:.2f}" in text
            assert f"{method[key]['mean']:.2f} ± {method[key]['se']:.2f}" in table
        assert html.METHODS[name] in table
    assert "1.41 M" in text and "640 MB" in text
    assert "1 min 01 s            4" in table, "PPO holds four models"


def test_a_demo_without_other_methods_does_not_mention_them(tmp_path: Path, summary: dict[str, Any]):
    summary["roads"] = {"ppo": summary["roads"]["ppo"]}
    assert html.methods_table(summary) == "" and "Other methods" not in render(tmp_path, summary)


def test_model_output_is_text_and_never_markup(tmp_path: Path, summary: dict[str, Any]):
    for sample in summary["samples"]:
        sample["prompt"] = sample["kind"] = HOSTILE
        for answer in sample["answers"]:
            answer["response"], answer["parts"] = HOSTILE, {HOSTILE: 1.0}
    summary["samples"][0]["answers"][0]["policy"] = HOSTILE
    summary["policies"][HOSTILE] = copy.deepcopy(summary["policies"]["ppo"])
    summary["curves"][HOSTILE] = copy.deepcopy(summary["curves"]["ppo"])
    summary["roads"][HOSTILE] = copy.deepcopy(summary["roads"]["ppo"]) | {"models": {HOSTILE: 1}}
    for policy in summary["policies"].values():
        policy["sample"] |= {"prompt": HOSTILE, "response": HOSTILE}
        policy["profile"][HOSTILE] = 1.0
    summary["gates"][HOSTILE] = {"passed": False, "finding": HOSTILE, "advice": HOSTILE}
    summary["stages"][HOSTILE], summary["versions"][HOSTILE] = 1.0, HOSTILE
    page = Page(render(tmp_path, summary))
    assert not {"script", "img", "a"} & set(page.tags)
    assert page.tags.count("pre") == page.tags.count("title") == 1
    assert page.text.count(HOSTILE) > 20  # said as it was, and not taken for a template either
    assert not [name for name, _ in page.attributes if name.startswith("on")]


def without_one_thing(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Copies of a summary that lack one key each, at any depth outside of lists."""
    if isinstance(value, dict):
        for key in value:
            yield f"{path}/{key}", {k: v for k, v in value.items() if k != key}
            for name, changed in without_one_thing(value[key], f"{path}/{key}"):
                yield name, {**value, key: changed}


def test_missing_parts_are_left_out(tmp_path: Path, summary: dict[str, Any], no_pictures: None):
    template, runs = html.environment().get_template("report.html.jinja"), dict.fromkeys(RUNS, tmp_path)
    copies = [(path, copy) for path, copy in without_one_thing(summary) if "/against_length/" not in path]
    assert len(copies) > 80
    for path, changed in copies:
        try:
            template.render(html._context(changed, runs))
        except Exception as error:
            raise AssertionError(f"without {path}") from error


def test_a_demo_with_only_the_run_without_kl_penalty_has_a_page(tmp_path: Path, summary: dict[str, Any]):
    del summary["curves"]["ppo"], summary["policies"]["ppo"]
    page = Page(render(tmp_path, summary))
    assert page.tags.count("svg") == 8 and "the other run" not in page.text


def test_an_empty_summary_still_gives_a_page(tmp_path: Path):
    page = Page(render(tmp_path, {}))
    assert "svg" not in page.tags and "How a model learns" in page.text


@pytest.mark.parametrize("name", ["base", "sft", "ppo", "ppo-no-leash"])
def test_a_missing_policy_is_left_out(tmp_path: Path, summary: dict[str, Any], name: str, no_pictures: None):
    del summary["policies"][name]
    summary["curves"].pop(name, None)
    for sample in summary["samples"]:
        sample["answers"] = [answer for answer in sample["answers"] if answer["policy"] != name]
    render(tmp_path, summary)
    assert len(story(summary).splitlines()) == 8
    assert len(findings(summary)) == {"base": 3, "sft": 2, "ppo": 2, "ppo-no-leash": 2}[name]


def test_nulls_and_unknowns_are_shown(tmp_path: Path, summary: dict[str, Any], no_pictures: None):
    summary["policies"]["base"]["kl"] = {"mean": None, "se": None}
    summary["policies"]["sft"]["kl"] = None
    summary["reward_model"] |= {"noise_ceiling": "unknown", "length_slope": None}
    summary["gates"]["sft"] = None
    page = Page(render(tmp_path, summary))
    assert "The best possible is unknown" in page.text and "None" not in page.text and "nan" not in page.text.split()


def test_losses_come_from_the_run_folders(demo: Path, no_pictures: None):
    with (demo / "sft" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 999, "lo')  # cut short by a kill
    (demo / "reward" / "metrics.jsonl").unlink()
    page = Page(write_report(demo).read_text())
    assert page.tags.count("svg") == 10 and "imitating answers" in page.text and "ordering pairs" not in page.text


def test_gates_and_settings_come_from_run_folders_too(demo: Path, summary: dict[str, Any], no_pictures: None):
    gates = {"out": {"passed": False, "finding": "it got worse"}}
    (demo / "sft" / "run.json").write_text(json.dumps(run_record(config={"learning_rate": 0.00123}, gates=gates)))
    del summary["gates"]
    text = Page(render(demo, summary)).text
    assert "it got worse" in text and "0.00123" in text


def test_no_summary_is_one_clear_line(tmp_path: Path):
    with pytest.raises(InputError, match=r"summary\.json does not exist; give"):
        write_report(tmp_path)
    (tmp_path / "summary.json").write_text('{"policies": ')
    with pytest.raises(InputError, match="is not JSON"):
        write_report(tmp_path)


def test_a_page_that_fails_leaves_the_old_one(demo: Path, no_pictures: None, monkeypatch: pytest.MonkeyPatch):
    old = write_report(demo).read_text()
    monkeypatch.setattr(html, "_context", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(demo)
    assert (demo / "report.html").read_text() == old
    assert not list(demo.glob("*.tmp")) + list(demo.glob(".*.tmp"))


# -- the story ---------------------------------------------------------------------------------------------------------


def test_the_story_has_ten_lines_with_all_figures(summary: dict[str, Any]):
    lines = story(summary).splitlines()
    assert len(lines) == 10 and max(map(len, lines)) <= 100
    columns = lines[0].split()
    assert columns == ["gold", "proxy", "KL", "(nats)"]
    for line, policy in zip(lines[1:5], summary["policies"].values(), strict=True):
        means = [float(number) for number in re.findall(r"(-?\d+\.\d+) ±", line)]
        assert means == [round(policy[key]["mean"], 2) for key in ("gold", "proxy", "kl")]
    assert len({line.index("±") for line in lines[1:5]}) == 1  # aligned
    for line, policy in zip(lines[6:], summary["policies"].values(), strict=True):
        assert policy["sample"]["response"][:30] in line
    peak = summary["policies"]["ppo-no-leash"]["gold_peak"]
    assert f"best {peak['gold']['mean']:.2f} at step {peak['step']}" in lines[4]


def test_the_story_cannot_steer_the_terminal(summary: dict[str, Any]):
    summary["policies"]["base"]["sample"]["response"] = "a\x1b[2J\x07\x9b\r\nb\tc \u202e d\u2028" + "x" * 300
    lines = story(summary).splitlines()
    assert len(lines) == 10 and max(map(len, lines)) <= 100
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "".join(lines))


def test_different_prompts_are_named_with_each_sample(summary: dict[str, Any]):
    summary["policies"]["base"]["sample"]["prompt"] = "another question"
    lines = story(summary).splitlines()
    assert len(lines) == 9 and "another question -> " in lines[5]


def test_the_summary_of_an_empty_demo_is_short():
    assert len(story({}).splitlines()) <= 1


# -- what the run shows ------------------------------------------------------------------------------------------------


def test_findings_hold_where_the_difference_is_beyond_two_standard_errors(summary: dict[str, Any]):
    assert [finding["holds"] for finding in findings(summary)] == [True] * 4


def test_findings_include_claims_that_were_not_shown(summary: dict[str, Any]):
    policies = summary["policies"]
    policies["ppo"]["gold"] = {"mean": 1.0, "se": 0.3}
    policies["sft"]["gold"] = {"mean": 0.3, "se": 0.3}  # a gain of .7 with a standard error of .42
    policies["base"]["gold"] = {"mean": 0.9, "se": 0.1}
    policies["ppo-no-leash"] |= {"gold": {"mean": 0.68, "se": 0.06}, "proxy": {"mean": 0.1, "se": 0.1}}
    policies["ppo-no-leash"]["gold_peak"] = {"step": 15, "gold": 0.7, "kl": 1.0}
    found = findings(summary)
    assert [finding["holds"] for finding in found] == [False] * 4
    assert "did not show a gain" in found[0]["text"] and "did not clearly fall" in found[3]["text"]
    assert found[3]["text"].count("0.70 at step 15") == 1


def test_synthetic_summary_is_json_as_the_demo_writes_it():
    assert json.loads(json.dumps(synthetic.summary(), allow_nan=False)) == synthetic.summary()


def test_the_reward_model_is_shown_from_all_sides_that_its_report_has(page_of_demo: str):
    text = Page(page_of_demo).text
    for heading in (
        "Can it be fooled?", "Which features does it reward?", "By length difference", "By kind",
        "Will more labels help?", "Best of n by its score", "How noisy are the labels?", "How far from its training?",
    ):  # fmt: skip
        assert heading in text, heading
    assert "at 10,800 labels, twice as many, expect an accuracy of" in text
    assert "Significant here: answer to another question, two other answers after it, empty words before it." in text


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("piece", "heading"),
    [
        ("probes", "Can it be fooled?"),
        ("bias", "Which features does it reward?"),
        ("strata", "By kind"),
        ("learning_curve", "Will more labels help?"),
        ("best_of", "Best of n by its score"),
        ("label_noise", "How noisy are the labels?"),
        ("distance", "How far from its training?"),
    ],
)
def test_a_piece_that_the_reward_report_lacks_leaves_no_gap(tmp_path: Path, summary: Any, piece: str, heading: str):
    del summary["reward_model"][piece]
    text = Page(render(tmp_path, summary)).text
    assert heading not in text and "How accurate is the reward model?" in text


@pytest.mark.usefixtures("no_pictures")
def test_names_of_strata_are_text_and_never_markup(tmp_path: Path, summary: Any):
    row = summary["reward_model"]["strata"][-1]
    row["name"], row["cells"][0]["value"] = HOSTILE, HOSTILE
    page = Page(render(tmp_path, summary))
    assert not {"script", "img", "a"} & set(page.tags)

from __future__ import annotations

import time
from html.parser import HTMLParser

import pytest

from kleash.data.group import Group, Response
from kleash.web.common.render import _CLEANER, SHOWN_CHARACTERS, render, turns

from .conftest import Serve
from .hostile import HOSTILE

TAGS = set(
    "p br hr strong em s blockquote ul ol li pre code span div table thead tbody tr th td h3 h4 h5 h6 "
    "math mrow mi mn mo ms mtext mspace mfrac msqrt mroot mstyle mpadded mphantom msub msup msubsup munder mover "
    "munderover mmultiscripts mprescripts mtable mtr mtd mfenced menclose".split()
)
ATTRIBUTES = set(
    "class start tabindex display mathvariant stretchy fence form separator separators columnalign displaystyle accent "
    "open close linethickness".split()
)


class Inspector(HTMLParser):
    """Every tag and attribute of a piece of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str]] = set()
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {(name, value or "") for name, value in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_there_are_two_hundred_hostile_texts() -> None:
    assert len(set(HOSTILE)) >= 200


def test_no_hostile_text_becomes_a_tag_that_acts_or_an_attribute_that_loads() -> None:
    for text in HOSTILE:
        started = time.process_time()
        match = Inspector(render(text))
        assert match.tags <= TAGS, (text[:80], match.tags - TAGS)
        assert {name for name, _ in match.attributes} <= ATTRIBUTES, (text[:80], match.attributes)
        assert not any("evil" in value or "alert" in value for _, value in match.attributes), text[:80]
        assert time.process_time() - started < 5, text[:80]


def test_the_sanitiser_is_sufficient_without_the_markdown_defence() -> None:
    for text in HOSTILE:
        match = Inspector(_CLEANER.clean(text[:50_000]))
        assert match.tags <= TAGS and {name for name, _ in match.attributes} <= ATTRIBUTES, text[:80]


def test_cleaning_again_changes_nothing() -> None:
    for text in HOSTILE:
        html = render(text)
        if html.startswith("<pre>") and len(html) > 20_000:
            continue
        assert _CLEANER.clean(html) == html, text[:80]


def test_html_is_shown_as_the_text_it_is() -> None:
    text = "<b>not bold</b> <img src=x onerror=alert(1)>"
    assert Inspector(render(text)).text.strip() == text


@pytest.mark.parametrize(
    "formula", [r"$\frac{a}{b}$", r"\(\frac{a}{b}\)", r"$$\frac{a}{b}$$", "\\[\n\\frac{a}{b}\n\\]"]
)
def test_maths_in_any_brackets_becomes_mathml(formula: str) -> None:
    html = render(f"so\n\n{formula}\n\nholds")
    assert "<mfrac><mrow><mi>a</mi></mrow><mrow><mi>b</mi></mrow></mfrac>" in html and "$" not in html


@pytest.mark.parametrize("text", ["it costs $5 and $6", "US$ 5 or US$ 6", r"a \$5 note", "$", "$$", "$ x $"])
def test_money_is_no_maths(text: str) -> None:
    assert "<math" not in render(text)


def test_markup_in_a_formula_is_the_formula_s_text() -> None:
    html = render(r"$\text{<img src=x>}$")
    assert "<math" in html and "&lt;img" in html and "<img" not in html


def test_invalid_latex_is_shown_as_source() -> None:
    assert Inspector(render(r"$\frac{1}$")).text.strip() in (r"\frac{1}", "1")
    assert "<code>" in render("$" + "{" * 200 + "$")


def test_code_is_coloured_in_languages_that_are_known_and_plain_in_others() -> None:
    assert '<span class="k">def</span>' in render("```python\ndef f(): pass\n```")
    assert "<span" not in render("```brainfuck\n+++\n```")


def test_links_and_images_are_shown_as_text_and_not_loaded() -> None:
    html = render("[here](http://a.example/x) ![cat](http://a.example/cat.png) <http://b.example>")
    assert "⟨http://a.example/x⟩" in html and "[image: cat ⟨http://a.example/cat.png⟩]" in html
    assert "<a" not in html and "<img" not in html and html.count("http://b.example") == 1


def test_headings_stand_below_the_page_s_own() -> None:
    assert "<h3>" in render("# a") and "<h6>" in render("###### a") and "<h1" not in render("# a")


def test_what_cannot_be_seen_is_spelt_out_and_joined_emoji_are_left_whole() -> None:
    assert "⟨U+202E⟩" in render("a\u202eb") and "⟨U+E0041⟩" in render("\U000e0041") and "⟨U+0000⟩" in render("a\0b")
    assert "\U0001f468\u200d\U0001f469" in render("\U0001f468\u200d\U0001f469")


def test_a_long_text_is_cut_with_a_note() -> None:
    html = render("x" * (SHOWN_CHARACTERS + 1))
    assert len(html) < SHOWN_CHARACTERS + 200 and "200,000 of 200,001 characters" in html


def test_single_line_breaks_are_preserved() -> None:
    assert "<br>" in render("autumn\nrain")


def test_a_conversation_has_its_turns_with_their_roles_and_calls_of_tools() -> None:
    parts = turns(
        ({"role": "user", "content": "<b>"}, {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]})
    )
    assert [turn.role for turn in parts] == ["user", "assistant"]
    assert parts[0].raw == "<b>" and "&lt;b&gt;" in parts[0].html and "name" in parts[1].html
    assert turns("plain")[0].role == ""


def test_tools_tool_calls_and_results_are_on_the_page_of_a_pair(serve: Serve) -> None:
    call = {"type": "function", "function": {"name": "weather_of", "arguments": {"place": "Oslo"}}}
    answer = Response(
        (
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "12 mm"},
            {"role": "assistant", "content": "Yes."},
        )
    )
    tools = [{"type": "function", "function": {"name": "forecast_of", "parameters": {}}}]
    site = serve([Group("Rain?", (answer, Response("No.")), columns={"tools": tools, "system": "Be brief."})])
    page = site.person().get("/").body.decode()
    for words in ("Be brief.", "forecast_of", "Rain?", "weather_of", "Oslo", "12 mm", "Yes."):
        assert words in page

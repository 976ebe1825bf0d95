"""Untrusted text as safe HTML: Markdown, code and maths, and nothing that runs or loads.

Text written by a model is shown to people who are signed in, so it is treated as an attack. There are four defences,
each enough against its kind of attack: Markdown in which HTML is text; links and images shown as text; a sanitiser that
parses the result last (text within a formula is markup to the formula's converter); and the page's content-security
policy, which runs only our script and loads nothing from elsewhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from html import escape
from typing import Any
from xml.etree import ElementTree

import nh3
from latex2mathml.converter import convert_to_element
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.token import STANDARD_TYPES

from kleash.data.group import Content

MARKDOWN_CHARACTERS = 20_000
"""Longer texts are shown without Markdown: parsing time is not linear in hostile ones."""
MARKDOWN_BRACKETS = 1_000
"""So are texts with more opening brackets: nested links take longest to parse."""
SHOWN_CHARACTERS = 200_000
"""Longer texts are cut, with a note."""
CODE_CHARACTERS = 10_000
FORMULA_CHARACTERS = 1_000
FORMULAS = 200

LANGUAGES = frozenset(
    "bash c c++ cpp css diff go html java javascript js json kotlin latex php py python r ruby rust sh sql swift tex "
    "toml ts typescript xml yaml yml".split()
)
"""Languages that are coloured; only some, since every lexer is many regular expressions that hostile text can slow."""

# Controls, direction overrides and tag characters, which hide text from the reader; they are spelt out.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)

_MATHML = (
    "math mrow mi mn mo ms mtext mspace mfrac msqrt mroot mstyle mpadded mphantom msub msup msubsup munder mover "
    "munderover mmultiscripts mprescripts mtable mtr mtd mfenced menclose".split()
)
_TAGS = {
    *"p br hr strong em s blockquote ul ol li pre code span div table thead tbody tr th td h3 h4 h5 h6".split(),
    *_MATHML,
}
_MATHML_ATTRIBUTES = set(
    "accent close columnalign display displaystyle fence form linethickness mathvariant open separator separators "
    "stretchy".split()
)
_CLEANER = nh3.Cleaner(
    tags=_TAGS,
    clean_content_tags={"script", "style", "iframe", "object", "embed", "template", "noscript"},
    attributes={"ol": {"start"}, "div": {"tabindex"}, **dict.fromkeys(_MATHML, _MATHML_ATTRIBUTES)},
    allowed_classes={
        "span": {*filter(None, STANDARD_TYPES.values()), "note"},
        "div": {"formula"},
        "th": {"left", "center", "right"},
        "td": {"left", "center", "right"},
    },
    link_rel=None,
    url_schemes=set(),
)


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation, ready to show."""

    role: str
    html: str
    """Safe to insert into a page."""
    raw: str
    """The text itself, not escaped."""


def turns(content: Content) -> list[Turn]:
    """The turns of a text or a conversation; plain text is one turn without a role."""
    if isinstance(content, str):
        return [_turn("", content)]
    return [_turn(str(turn["role"]), _text_of(turn)) for turn in content]


@lru_cache(maxsize=512)  # a pair is requested more than once: prefetched, reloaded, taken back
def render(text: str) -> str:
    """HTML of a text, safe for any text; Markdown where the text is short enough to be parsed."""
    text = visible(text)
    if len(text) <= MARKDOWN_CHARACTERS and text.count("[") <= MARKDOWN_BRACKETS:
        try:
            return _CLEANER.clean(_markdown().render(text))
        except (RecursionError, ValueError, IndexError, KeyError):
            pass  # hostile text broke the parser; show the text itself
    return f"<pre>{escape(text)}</pre>"


def visible(text: str) -> str:
    """The text with invisible characters spelt out, cut at `SHOWN_CHARACTERS`."""
    text = text.encode("utf-8", "replace").decode()
    if len(text) > SHOWN_CHARACTERS:
        text = text[:SHOWN_CHARACTERS] + f"\n\n[cut here: {SHOWN_CHARACTERS:,} of {len(text):,} characters are shown]"
    return _INVISIBLE.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", text.replace("\r\n", "\n"))


def _turn(role: str, text: str) -> Turn:
    return Turn(visible(role[:40]), render(text), visible(text))


def _text_of(turn: Any) -> str:
    text = str(turn.get("content") or "")
    calls = turn.get("tool_calls")
    return text if not calls else f"{text}\n\n```json\n{json.dumps(calls, indent=1, ensure_ascii=False)}\n```"


# --- Markdown --------------------------------------------------------------------------------------------------------


@cache
def _markdown() -> MarkdownIt:
    # `breaks`: line ends of models are intended.
    markdown = MarkdownIt("commonmark", {"html": False, "breaks": True, "maxNesting": 50}, renderer_cls=_Renderer)
    markdown.enable(["table", "strikethrough"])
    markdown.inline.ruler.before("escape", "formula", _inline_formula)  # `\(` is an escape too
    markdown.block.ruler.before("fence", "formula_block", _block_formula, {"alt": ["paragraph", "blockquote", "list"]})
    return markdown


class _Renderer(RendererHTML):
    """Differs from plain HTML in headings (below the page's own), coloured code, and links and images (as text)."""

    def heading_open(self, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        return f"<h{min(int(tokens[index].tag[1]) + 2, 6)}>"

    def heading_close(self, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        return f"</h{min(int(tokens[index].tag[1]) + 2, 6)}>\n"

    def fence(self, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        language = tokens[index].info.strip().split(" ")[0].lower()
        return f"<pre><code>{_coloured(tokens[index].content, language)}</code></pre>\n"

    def th_open(self, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        return _cell(tokens[index])

    def td_open(self, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        return _cell(tokens[index])

    def link_open(self, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        return ""

    def link_close(self, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        opening = next(token for token in reversed(tokens[:index]) if token.type == "link_open")
        text = "".join(token.content for token in tokens[tokens.index(opening) : index])
        address = str(opening.attrGet("href") or "")
        return "" if address == text else _note(f" ⟨{address}⟩")

    def image(self, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        token = tokens[index]
        return _note(f"[image: {token.content} ⟨{token.attrGet('src') or ''}⟩]")

    def formula(self, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        return _formula(tokens[index], env)

    def formula_block(self, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        # A wide formula scrolls, so the keyboard has to reach it.
        return f'<div class="formula" tabindex="0">{_formula(tokens[index], env)}</div>\n'


def _note(text: str) -> str:
    return f'<span class="note">{escape(text)}</span>'


def _cell(token: Token) -> str:
    side = str(token.attrGet("style") or "").removeprefix("text-align:")
    return f'<{token.tag} class="{side}">' if side in ("left", "center", "right") else f"<{token.tag}>"


def _coloured(code: str, language: str) -> str:
    if language not in LANGUAGES or len(code) > CODE_CHARACTERS:
        return escape(code)
    return highlight(code, get_lexer_by_name(language, stripnl=False), HtmlFormatter(nowrap=True))


# --- maths -----------------------------------------------------------------------------------------------------------

_DISPLAYED = {"$$": "$$", r"\[": r"\]"}


def _inline_formula(state: StateInline, silent: bool) -> bool:
    r"""`$x$` and `\(x\)` within a line, `$$x$$` and `\[x\]` too.

    As in pandoc, a dollar opens only before a character that is not a space, and closes only after one and not before
    a digit: "$5 and $6" is money.
    """
    text, start = state.src, state.pos
    opening = next((mark for mark in ("$$", "$", r"\(", r"\[") if text.startswith(mark, start)), None)
    if opening is None:
        return False
    closing = {r"\(": r"\)", "$": "$", **_DISPLAYED}[opening]
    begin = start + len(opening)
    end = text.find(closing, begin, begin + FORMULA_CHARACTERS)
    inside = text[begin:end]
    if end < 0 or not inside.strip():
        return False
    if opening == "$" and (inside[0].isspace() or inside[-1].isspace() or text[end + 1 : end + 2].isdigit()):
        return False
    if not silent:
        token = state.push("formula", "", 0)
        token.content, token.meta = inside, {"display": "block" if opening in _DISPLAYED else "inline"}
    state.pos = end + len(closing)
    return True


def _block_formula(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    r"""`$$ … $$` and `\[ … \]` on lines of their own."""
    first = state.getLines(start, start + 1, state.blkIndent, False).strip()
    closing = next((close for mark, close in _DISPLAYED.items() if first.startswith(mark)), None)
    if closing is None:
        return False
    for last in range(start, min(end, start + 50)):
        body = state.getLines(start, last + 1, state.blkIndent, False).strip()
        if len(body) >= 2 + len(closing) and body.endswith(closing):
            break
    else:
        return False
    inside = body[2 : -len(closing)]
    if not inside.strip() or closing in inside:
        return False
    if not silent:
        token = state.push("formula_block", "", 0)
        token.content, token.meta = inside, {"display": "block"}
        state.line = last + 1
    return True


def _formula(token: Token, env: Any) -> str:
    env["formulas"] = env.get("formulas", 0) + 1
    if len(token.content) <= FORMULA_CHARACTERS and env["formulas"] <= FORMULAS:
        try:
            return _mathml(token.content, token.meta["display"])
        except Exception:  # its parser fails in many ways on text that is not LaTeX; show the source
            pass
    return f"<code>{escape(token.content)}</code>"


def _mathml(latex: str, display: str) -> str:
    # The converter's own text output unescapes everything, markup too; here only its numbered characters come back.
    xml = ElementTree.tostring(convert_to_element(latex, display=display), encoding="unicode")
    return re.sub(r"&amp;(#x[0-9A-Fa-f]{1,6};)", r"&\1", xml)

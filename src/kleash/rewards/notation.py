r"""Mathematics as people and models write it into one notation, LaTeX in ASCII: √2, ½, 10³, 32,\!348, $18.90, ** and ^.

Functions of text. What a sign means (is 1.234 a thousand?) is decided here once, for answers and responses alike.
"""

from __future__ import annotations

import re

DOLLAR = "USD"
"""What an escaped or a currency's dollar becomes, so that the other dollars are delimiters."""

_FRACTIONS = {
    "½": (1, 2), "⅓": (1, 3), "⅔": (2, 3), "¼": (1, 4), "¾": (3, 4), "⅕": (1, 5), "⅖": (2, 5), "⅗": (3, 5), "⅘": (4, 5),
    "⅙": (1, 6), "⅚": (5, 6), "⅛": (1, 8), "⅜": (3, 8), "⅝": (5, 8), "⅞": (7, 8), "⅐": (1, 7), "⅑": (1, 9),
    "⅒": (1, 10),
}  # fmt: skip
_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣʸ", "0123456789+-()nixy", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋ₙₓₐₑᵢⱼₖ", "0123456789+-nxaeijk", strict=True))
_SIGNS = {
    "−": "-", "–": "-", "‐": "-", "‑": "-", "﹣": "-", "－": "-", "＋": "+", "×": r"\times ", "✕": r"\times ",
    "⋅": r"\cdot ", "·": r"\cdot ", "∙": r"\cdot ", "•": r"\cdot ", "∗": "*", "÷": "/", "∕": "/", "⁄": "/", "／": "/",
    "＝": "=", "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "≅": r"\approx ",
    "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∉": r"\notin ", "∅": r"\emptyset ",
    "⌀": r"\emptyset ",
    "±": r"\pm ", "∓": r"\mp ", "√": r"\sqrt ", "∛": r"\sqrt[3] ", "∜": r"\sqrt[4] ", "π": r"\pi ",
    "𝜋": r"\pi ", "θ": r"\theta ",
    "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "δ": r"\delta ", "λ": r"\lambda ", "φ": r"\phi ", "ω": r"\omega ",
    "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}",
    "ℯ": "e", "ⅈ": "i",
    "º": "°", "˚": "°", "％": "%", "﹪": "%", "（": "(", "）": ")", "，": ",", "：": ":", "；": ";", "。": ".",
    "′": "'",
    "’": "'", "‘": "'", "“": '"', "”": '"', "∣": "|", "⟨": r"\langle ", "⟩": r"\rangle ", "∨": r" or ", "￥": "¥",
    "＄": "$", "⅟": "1/", "ﬁ": "fi", "µ": "μ",
    **{chr(0xFF10 + digit): str(digit) for digit in range(10)},
}  # fmt: skip
_TABLE = str.maketrans(_SIGNS)

_SPACES = "\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u2061\u2062\u2063\u00ad"))
_THIN = rf"(?:\\[,;:! ]|~|[{_SPACES}]|\{{,\}}|\\thinspace)"
_GROUPED = re.compile(rf"(?<![\d.,])(\d{{1,3}})((?:(?:{_THIN}|,\s?\\!|,|{_THIN},){{1}}\s?\d{{3}}(?![\d]))+)")
_PLAIN_GROUPS = re.compile(r"(?<![\d.,/])[1-9]\d{0,2}(?: \d{3})+(?![\d/])")

_TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|normal|sf|tt)?|math(?:rm|bf|it|sf|tt|bb\b)?|mbox|operatorname|textnormal|hbox)\s*\{([^{}]*)\}"
)
_MATHBB = re.compile(r"\\mathbb\s*\{([A-Z])\}|\\mathbb\s*([A-Z])")
_SIZES = re.compile(
    r"(?<!\\)\\(?:left|right|big|Big|bigg|Bigg|bigl|bigr|Bigl|Bigr|displaystyle|textstyle|limits|middle|quad|qquad"
    r"|thinspace|hfill|enspace)(?![a-zA-Z])|(?<!\\)\\(?:[,;:!]|(?:hspace|phantom)\{[^{}]*\})"
)
_FUNCTIONS = re.compile(
    r"(?<![\\A-Za-z])(arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|pi|infty|theta|alpha)"
    r"(?![A-Za-z])"
)


def plain(text: str) -> str:
    r"""A text without signs that do not show and with ASCII for those that have one; LaTeX's fractions in one form."""
    text = text.translate(_INVISIBLE)
    text = re.sub(f"[{''.join(_SUPERSCRIPTS)}]+", lambda run: f"^{{{_ascii(run[0], _SUPERSCRIPTS)}}}", text)
    text = re.sub(f"[{''.join(_SUBSCRIPTS)}]+", lambda run: f"_{{{_ascii(run[0], _SUBSCRIPTS)}}}", text)
    text = re.sub(rf"(?<![\d.])(\d+)\s?([{''.join(_FRACTIONS)}])", _mixed_sign, text)
    text = re.sub(f"[{''.join(_FRACTIONS)}]", lambda sign: r"\frac{%d}{%d}" % _FRACTIONS[sign[0]], text)  # noqa: UP031
    return text.translate(_TABLE)


def ungrouped(text: str) -> str:
    r"""A text whose numbers have no separators but the point: 32,\!348, 32 348 and 32,348 become 32348."""
    return _PLAIN_GROUPS.sub(lambda match: match[0].replace(" ", ""), _thousands(text))


def _thousands(text: str) -> str:
    text = re.sub(rf"[{_SPACES}]", "\u2009", text)
    return _GROUPED.sub(lambda match: match[1] + re.sub(r"\D", "", match[2]), text).replace("\u2009", " ")


def _mixed_sign(match: re.Match[str]) -> str:
    return rf"{match[1]}\frac{{{_FRACTIONS[match[2]][0]}}}{{{_FRACTIONS[match[2]][1]}}}"


def _ascii(run: str, table: dict[str, str]) -> str:
    return "".join(table[sign] for sign in run)


def undelimited(text: str) -> str:
    """A text without the delimiters of mathematics and Markdown around it; a currency's dollar becomes `DOLLAR`."""
    text = text.strip()
    for _ in range(4):
        before = text
        text = re.sub(r"^(\*\*|__|`{1,3}|\*)(.+)\1[.,]?$", r"\2", text.strip(), flags=re.DOTALL).strip()
        text = re.sub(r"^\$\$(.+)\$\$$|^\\\[(.+)\\\]$|^\\\((.+)\\\)$", _inner, text, flags=re.DOTALL).strip()
        text = re.sub(r"^\$(?!\s)([^$]*[^$\\\s])\$$", r"\1", text, flags=re.DOTALL).strip()
        if text == before:
            break
    text = re.sub(r"\\[$]|\\textdollar\b", f" {DOLLAR} ", text)
    text = re.sub(r"\$(?!\s)([^$]*?[^\s$])\$(?!\d)", r" \1 ", text)
    text = re.sub(r"\\[()\[\]]", " ", text) if re.search(r"\\\(|\\\[", text) else text
    return text.replace("$", f" {DOLLAR} ").strip()


def _inner(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group is not None)


def latex(text: str) -> str:
    """A text in one notation: no delimiters, sizes and fonts; numbers without separators; arguments in braces."""
    text = undelimited(plain(_thousands(text)))
    text = re.sub(r"\\(?:d|t|c)frac", r"\\frac", text)
    text = _MATHBB.sub(lambda match: rf"\Reals{{{match[1] or match[2]}}}", text)
    text = re.sub(r"\\(?:lbrace)\b", r"\\{", re.sub(r"\\rbrace\b", r"\\}", text))
    text = _SIZES.sub(" ", text)
    text = re.sub(r"(?<!\\)\\ ", " ", text).replace("~", " ")
    for _ in range(3):
        text = _TEXT.sub(lambda match: f" {match[1]} ", text)
    text = re.sub(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ\b)|\\degree\b|\\circ(?=\s*[CF]?\s*$)", "°", text)
    text = text.replace(r"\%", "%").replace(r"\#", "#").replace(r"\&", "&").replace(r"\_", "_")
    text = re.sub(r"(?<=\d)\s*\b(?:percent|per cent|pct)\b\.?", "%", text, flags=re.IGNORECASE)
    text = (
        text.replace(r"\leq", r"\le ")
        .replace(r"\geq", r"\ge ")
        .replace(r"\neq", r"\ne ")
        .replace(r"\leqslant", r"\le ")
    )
    text = text.replace("<=", r"\le ").replace(">=", r"\ge ").replace("!=", r"\ne ")
    text = re.sub(r"\\(?:lt|gt)\b", lambda sign: " < " if "l" in sign[0] else " > ", text)
    text = re.sub(r"\\(?:varnothing|O)\b", r"\\emptyset ", text).replace(r"\div", "/")
    text = re.sub(r"(?<![\\A-Za-z])(?:infinity|infty|inf|oo)(?![A-Za-z])", r"\\infty ", text, flags=re.IGNORECASE)
    text = re.sub(r"(?<=\d)\s?\*\*\s?(?=[\d({-])|(?<=[a-z)])\*\*(?=[\d({-])", "^", text)
    text = _FUNCTIONS.sub(r"\\\1", text)
    return _braced(_PLAIN_GROUPS.sub(lambda match: match[0].replace(" ", ""), text)).strip()


def _braced(text: str) -> str:
    r"""Arguments in braces: \frac12, \sqrt2, \sqrt(x+1), x^10, x^(n+1), 2^-3."""
    text = re.sub(r"\\frac\s*(\d)\s*(\d)(?!\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{", text)
    text = re.sub(r"(\\frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}", text)
    text = re.sub(r"\\sqrt\s*(\[\d+\])?\s*(\d+(?:\.\d+)?|[a-z](?![a-z]))", r"\\sqrt\1{\2}", text)
    text = _parenthesised(text, re.compile(r"\\sqrt\s*(?:\[\d+\])?\s*\("))
    text = _parenthesised(text, re.compile(r"\^\s*\("))
    text = re.sub(r"\^\s*([-+]?\d+(?:\.\d+)?)", r"^{\1}", text)
    return re.sub(r"\^\{\s*\+?(-?[\w.]+)\s*\}", r"^{\1}", text)


def _parenthesised(text: str, opening: re.Pattern[str]) -> str:
    """Every argument in parentheses after an opening, in braces."""
    place = 0
    while (match := opening.search(text, place)) is not None:
        depth, end = 1, match.end()
        while end < len(text) and depth:
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        if depth:
            break
        text = f"{text[: match.end() - 1]}{{{text[match.end() : end - 1]}}}{text[end:]}"
        place = match.end()
    return text

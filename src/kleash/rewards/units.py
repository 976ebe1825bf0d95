"""Units of measure: 5 m is 500 cm, 90 min are 1.5 h, $5 are 500 cents. Only what conversions are exact and certain."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

_BASE: dict[str, tuple[str, Fraction]] = {}
"""A unit's names → its dimension and its size in the dimension's base unit."""


def _define(dimension: str, *units: tuple[str, Fraction | int]) -> None:
    for names, size in units:
        _BASE.update(dict.fromkeys(names.split(), (dimension, Fraction(size))))


_PREFIXES = {"k": Fraction(1000), "c": Fraction(1, 100), "m": Fraction(1, 1000), "d": Fraction(1, 10)}
_PREFIX_WORDS = {"kilo": "k", "centi": "c", "milli": "m", "deci": "d"}

_define(
    "length",
    ("m meter metre meters metres", 1), ("μm micrometer micrometre um micrometers", Fraction(1, 10**6)),
    ("nm nanometer nanometers nanometre", Fraction(1, 10**9)),
    ("in inch inches", Fraction(254, 10_000)), ("ft foot feet", Fraction(3048, 10_000)),
    ("yd yard yards yds", Fraction(9144, 10_000)), ("mi mile miles", Fraction(1_609_344, 1000)),
)  # fmt: skip
_define(
    "mass",
    ("g gram grams gm gramme grammes", 1), ("t ton tons tonne tonnes", 10**6),
    ("lb lbs pound pounds", Fraction(45_359_237, 100_000)),
    ("oz ounce ounces", Fraction(45_359_237, 1_600_000)), ("μg microgram micrograms", Fraction(1, 10**6)),
)  # fmt: skip
_define(
    "time",
    ("s sec secs second seconds", 1), ("min mins minute minutes", 60), ("h hr hrs hour hours", 3600),
    ("day days", 86_400), ("week weeks wk", 604_800), ("μs microsecond microseconds", Fraction(1, 10**6)),
)  # fmt: skip
_define("month", ("month months", 1), ("year years yr yrs", 12))
_define(
    "volume",
    ("l L liter litre liters litres", Fraction(1, 1000)),
    ("gal gallon gallons", Fraction(3_785_411_784, 10**12)),
)
_define("angle", ("°  degree degrees deg", 1))
_define("radian", ("rad radian radians", 1))
_define("dollar", ("USD dollar dollars buck bucks usd US$", 1), ("cent cents ¢", Fraction(1, 100)))
_define("euro", ("€ EUR euro euros eur", 1))
_define("sterling", ("£ GBP gbp quid", 1), ("pence penny", Fraction(1, 100)))
_define("yen", ("¥ JPY yen jpy", 1))
_define("rupee", ("₹ INR rupee rupees Rs Rs. inr", 1))
_define("celsius", ("°C ℃ celsius", 1))
_define("fahrenheit", ("°F ℉ fahrenheit", 1))
_define("kelvin", ("K kelvin kelvins", 1))
_define("force", ("N newton newtons", 1))
_define("energy", ("J joule joules", 1), ("cal calorie calories", Fraction(4184, 1000)))
_define("power", ("W watt watts", 1), ("hp horsepower", Fraction(7457, 10)))
_define("pressure", ("Pa pascal pascals", 1))
_define("voltage", ("V volt volts", 1))
_define("current", ("A amp amps ampere amperes", 1))
_define("resistance", ("Ω ohm ohms", 1))
_define("frequency", ("Hz hertz", 1))
_define("amount", ("mol mole moles", 1))
_define("data", ("B byte bytes", 1), ("KB kB", 1000), ("MB", 10**6), ("GB", 10**9))
_define("area", ("ha hectare hectares", 10**4), ("acre acres", Fraction(40_468_564_224, 10**7)))

for _name, (_dimension, _size) in list(_BASE.items()):
    if _dimension in (
        "length",
        "mass",
        "time",
        "volume",
        "power",
        "energy",
        "frequency",
        "pressure",
        "voltage",
        "current",
        "amount",
    ):
        if _name in ("m", "g", "s", "l", "L", "W", "J", "Hz", "Pa", "V", "A", "mol", "N"):
            for _prefix, _factor in _PREFIXES.items():
                _BASE.setdefault(_prefix + _name, (_dimension, _size * _factor))
        if _name.endswith(
            (
                "meter",
                "metre",
                "meters",
                "metres",
                "gram",
                "grams",
                "liter",
                "litre",
                "liters",
                "litres",
                "second",
                "seconds",
                "watt",
                "watts",
                "joule",
                "joules",
            )
        ) and not _name.startswith(("micro", "nano")):
            for _word, _prefix in _PREFIX_WORDS.items():
                _BASE.setdefault(_word + _name, (_dimension, _size * _PREFIXES[_prefix]))
_BASE["kilo"] = _BASE["kilos"] = ("mass", Fraction(1000))
_BASE["kWh"] = ("energy", Fraction(3_600_000))
_BASE["mph"] = ("speed", Fraction(1_609_344, 3_600_000))
_BASE["kmh"] = _BASE["kph"] = _BASE["kmph"] = ("speed", Fraction(1000, 3600))

_COMPOUND = {"volume": {"length": 3}, "area": {"length": 2}, "speed": {"length": 1, "time": -1}}
"""Dimensions that are products of others."""
ONE_LETTER = {name for name in _BASE if len(name) == 1 and name.isascii()}
"""Units that are variables as well: `5m` may be 5·m."""

_GENERIC = {"unit", "units", "u"}
_WORDS_OF_COUNT = {"total", "of", "the", "about", "a", "an", "different", "ways", "way", "possible"}


@dataclass(frozen=True)
class Unit:
    """A unit of measure, or what is counted ("apples")."""

    size: Fraction
    """In the base units of its dimensions."""
    dimensions: tuple[tuple[str, int], ...]
    """Dimension and power, in order; empty for what is counted."""
    words: frozenset[str] = frozenset()
    """What is counted, in the singular."""

    @property
    def is_angle(self) -> bool:
        """Whether it is degrees or radians, which are numbers."""
        return self.dimensions in ((("angle", 1),), (("radian", 1),))


def comparable(a: Unit | None, b: Unit | None) -> bool:
    """Whether numbers of two units can be equal: one of the units is left out, or they measure the same."""
    if a is None or b is None:
        return True
    if a.words or b.words:
        return bool(a.words and b.words) and (a.words <= b.words or b.words <= a.words)
    return a.dimensions == b.dimensions


def read_unit(text: str) -> Unit | None:
    """The unit of a text: `cm`, `km/h`, `m^{2}`, `square feet`, `dollars per hour`; None where it is unknown."""
    text = re.sub(r"\s*\^\s*\{?\s*(-?\d)\s*\}?", r"^\1", text.strip().rstrip("."))
    text = re.sub(r"\b(?:square|sq\.?)[\s-]+(\w+)", r"\1^2", re.sub(r"\b(?:cubic|cu\.?)[\s-]+(\w+)", r"\1^3", text))
    text = re.sub(r"(\w+) squared\b", r"\1^2", re.sub(r"(\w+) cubed\b", r"\1^3", text))
    text = re.sub(r"\s+per\s+|\s+an?\s+(?=hour|second|minute|day|week|month|year)", "/", text)
    text = re.sub(r"\s*/\s*", "/", re.sub(r"\\cdot|\\times|\*", " ", text))
    if not text or len(text) > 60:
        return None
    size, powers, divided = Fraction(1), dict[str, int](), False
    for part in re.findall(r"/|[^\s/]+", text):
        if part == "/":
            if divided:
                return None
            divided = True
            continue
        match = re.fullmatch(r"([^\W\d]+|°[CF]?|[€£¥₹¢]|US\$|Rs\.)(?:\^?(-?[1-4]))?", part)
        if match is None:
            return None
        name = match[1] if match[1] in _BASE else match[1].lower()
        if name in _GENERIC:
            dimension, factor = "", Fraction(1)
        elif name in _BASE:
            dimension, factor = _BASE[name]
        else:
            return None
        power = int(match[2] or 1) * (-1 if divided else 1)
        size *= factor**power
        for base, exponent in _COMPOUND.get(dimension, {dimension: 1}).items() if dimension else ():
            powers[base] = powers.get(base, 0) + exponent * power
    return Unit(size, tuple(sorted((name, power) for name, power in powers.items() if power))) if powers else None


def counted(text: str) -> Unit | None:
    """What is counted ("red apples"): up to four words, none of them one that says something about the number."""
    words = text.lower().replace("-", " ").split()
    if not 1 <= len(words) <= 4 or not all(re.fullmatch(r"[a-z][a-z'’]+", word) for word in words):
        return None
    if any(word in _SAYS for word in words) or (len(words) == 1 and len(words[0]) < 3):
        return None
    items = frozenset(_singular(word) for word in words if word not in _WORDS_OF_COUNT and word not in _GENERIC)
    return Unit(Fraction(1), (), items) if items else None


def is_generic(text: str) -> bool:
    """Whether a text counts without saying what: "units", "square units", "in total", "ways"."""
    words = text.lower().split()
    generic = _GENERIC | _WORDS_OF_COUNT | {"square", "cubic", "sq", "in", "all", "altogether", "u^{2}", "times"}
    return bool(words) and all(word in generic for word in words)


def _singular(word: str) -> str:
    for ending, singular in (("ies", "y"), ("ches", "ch"), ("shes", "sh"), ("xes", "x"), ("sses", "ss"), ("s", "")):
        if (
            word.endswith(ending)
            and len(word) > len(ending) + 1
            and not word.endswith("ss" if ending == "s" else "\x00")
        ):
            return word[: -len(ending)] + singular
    return {"children": "child", "people": "person", "men": "man", "women": "woman", "feet": "foot"}.get(word, word)


_SAYS = frozenset(
    "is are was were be been not no never or and but than then so if because since as which when where for that this "
    "it we you he she they wrong right correct incorrect too more less fewer least most almost nearly maybe perhaps "
    "possibly "
    "times minus plus over divided equals equal by from to with without except mod modulo thousand million billion "
    "trillion hundred dozen half halves third quarter percent negative squared cubed factorial only base at on in "
    "unless while however although though either neither both depending up down until through between".split()
)


POUND, STERLING = read_unit("pounds"), read_unit("£")
"""`20 pounds` are money or a weight."""

r"""Responses whose truth is known, by kind: what `kleash check math` measures a verifier's mistakes on.

A kind is a way in which answers are written, or in which a response could deceive. Each row is an answer, responses that
are right, and responses that look right and are wrong. All were written for this file; none is from a benchmark. A
verifier that is changed is to be measured here first, and what it gets wrong elsewhere belongs here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Row = tuple[Any, list[str], list[str]]
"""An answer, right responses, wrong responses."""


@dataclass(frozen=True)
class Pair:
    """A response to a row, and whether it is right."""

    verifier: str
    kind: str
    columns: Mapping[str, Any]
    response: str
    right: bool


@dataclass(frozen=True)
class Kind:
    """Rows of one kind, and the verifiers that are to get them right."""

    name: str
    verifiers: tuple[str, ...]
    rows: list[Row]
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Other columns of the rows."""


def pairs(verifier: str | None = None) -> Iterator[Pair]:
    """Every pair, or those of one verifier."""
    for kind in KINDS:
        for name in kind.verifiers:
            if verifier not in (None, name):
                continue
            for answer, right, wrong in kind.rows:
                columns = {_COLUMN.get(name, "answer"): answer, **kind.columns}
                for responses, truth in ((right, True), (wrong, False)):
                    yield from (Pair(name, kind.name, columns, response, truth) for response in responses)


_COLUMN = {"regex": "pattern", "json-schema": "schema"}

MATH, BOTH, CHOICE = ("math",), ("math", "number"), ("choice",)

KINDS = (
    Kind("corrections: the last answer counts", BOTH, [
        ("14", [
            r"First I get \boxed{12}. I forgot to add 2, so the answer is \boxed{14}.",
            "Answer: 12\nWait, I dropped a term.\nAnswer: 14",
            "The answer is 12. Wait, no, it's 14.",
            "#### 12\nActually, let me recompute: 12 + 2 = 14.\n#### 14",
            r"So \boxed{9}. Hmm, that is not right. So \boxed{11}? No. Adding both parts: \boxed{14}.",
            "I said 12 above; I made an error. The correct answer is 14.",
            "The answer is not 12 but 14.",
            r"My final answer is $14$. Let me double-check: 7 + 7 = 14. Yes, that is correct.",
            "It is 14, not 12.",
        ], [
            r"First I get \boxed{14}. I counted 2 twice, so the answer is \boxed{12}.",
            "Answer: 14\nWait, I added a term twice.\nAnswer: 12",
            "The answer is 14. Wait, no, it's 12.",
            "#### 14\nActually, let me recompute: 14 - 2 = 12.\n#### 12",
            r"\boxed{14} is wrong. It should be \boxed{12}.",
            "The answer is not 14.",
            "It is 12, not 14.",
            r"So the answer is \boxed{14}. Scratch that, this is wrong.",
            "I thought it was 14 at first, but the answer is 12.",
        ]),
        ("-3", [
            r"x = 3. Checking the sign: x must be negative, so x = \boxed{-3}.",
            "The answer is 3. Sorry, I lost the sign: the answer is -3.",
            "Final answer: 3\n\nCorrection:\n\nFinal answer: -3",
        ], [
            r"x = -3. Checking the sign: x must be positive, so x = \boxed{3}.",
            "The answer is -3. Sorry, I added a sign: the answer is 3.",
            "Final answer: -3\n\nCorrection:\n\nFinal answer: 3",
        ]),
    ]),
    Kind("mixed numbers", BOTH, [
        ("3/2", [r"\boxed{1\frac{1}{2}}", "The answer is 1 1/2.", "It is 1½.", r"$1 \frac{1}{2}$", "1.5", r"\boxed{\frac{3}{2}}"],
         [r"\boxed{1\frac{1}{3}}", "The answer is 11/2.", "It is 1⅓.", r"$\frac{1}{2}$", "1/2", r"\boxed{2\frac{1}{3}}"]),
        (r"2\frac{3}{4}", ["11/4", "2 3/4", "2.75", r"\frac{11}{4}", "2¾", r"\boxed{2 \tfrac34}"],
         ["23/4", "2 4/3", "3/2", r"\frac{6}{4}", "2¼", r"\boxed{2 \cdot \tfrac34}"]),
        (r"-1\frac{1}{4}", ["-5/4", "-1.25", r"\boxed{-1\frac14}", "−1¼"], ["-3/4", "1.25", r"\boxed{-1\frac12}", "−11/4"]),
        ("7/3", ["2 1/3", r"The length is $2\frac{1}{3}$ metres."], ["2 2/3", r"The length is $3\frac{1}{2}$ metres."]),
    ]),
    Kind("fractions", BOTH, [
        ("3/4", [r"\boxed{\frac{3}{4}}", r"\dfrac{3}{4}", r"$\tfrac34$", "0.75", "The probability is 3/4.", r"\frac{6}{8}", "¾"],
         [r"\boxed{\frac{4}{3}}", r"\dfrac{3}{5}", r"$\tfrac43$", "0.74", "The probability is 1/4.", r"\frac{6}{9}", "⅔"]),
        (r"-\frac{3}{4}", [r"\frac{-3}{4}", "-3/4", "-0.75", r"\boxed{-\dfrac{3}{4}}"],
         [r"\frac{3}{4}", "3/4", "0.75", r"\boxed{-\dfrac{4}{3}}"]),
        (r"\frac12", ["1/2", "0.5", r"\boxed{\frac{1}{2}}", "½", ".5"], ["12", "2", r"\boxed{\frac{2}{1}}", "1⁄12", ".05"]),
        ("1/3", [r"\frac{1}{3}", "⅓", "2/6"], ["0.33", "0.3", "0.333334", "3"]),
    ]),
    Kind("fractions of roots and letters", MATH, [
        (r"\frac{\sqrt{3}}{2}", [r"\boxed{\sqrt{3}/2}", r"\frac{1}{2}\sqrt{3}", "√3/2", r"\sqrt{\frac{3}{4}}", r"\frac{3}{2\sqrt{3}}"],
         [r"\boxed{\sqrt{3/2}}", r"\frac{3}{2}", "√(3/2)", r"\sqrt{\frac{3}{2}}", r"\frac{2}{\sqrt{3}}"]),
        (r"\frac{x+1}{x-1}", [r"\boxed{(x+1)/(x-1)}", r"\dfrac{1+x}{x-1}", r"-\frac{x+1}{1-x}"],
         [r"\boxed{x+1/(x-1)}", r"\dfrac{x-1}{x+1}", r"\frac{x+1}{1-x}"]),
        (r"\frac{3}{-4}", [r"-\frac34"], [r"\frac34"]),
        ("1/3", ["0.333333", "0.3333333"], ["0.3333", "0.333332"]),
        (r"0.\overline{3}", ["1/3", r"\frac{1}{3}"], ["0.3", "3/10"]),
        (r"\frac{\pi}{6}", ["π/6", r"\frac16 \pi", "pi/6"], ["6/π", r"\frac{\pi}{3}", "30"]),
    ]),
    Kind("bases", BOTH, [
        ("101_2", ["$101_2$", r"\boxed{101_{2}}", "101₂"], ["$101_3$", r"\boxed{110_{2}}", "101₃"]),
        ("0x1F", ["0x1f", "31"], ["0x1E", "0xF1"]),
        ("254_7", [r"\boxed{254_7}", "254₇"], [r"\boxed{254_8}", "245₇"]),
    ]),
    Kind("bases in words", MATH, [
        ("101_2", ["101 in base 2", "101 (base 2)", "101 base two", "0b101"], ["101 in base 3", "101 (base 10)", "101", "0b110"]),
        ("1F_{16}", ["0x1F", r"\boxed{1F_{16}}", "1F (base 16)"], ["0xF1", r"\boxed{1E_{16}}", "1F (base 17)"]),
        ("0o17", ["0o17", "17_8", "15"], ["0o71", "17_9", "17"]),
    ]),
    Kind("units", BOTH, [
        ("5 cm", ["5", "5 cm", r"\boxed{5\text{ cm}}", "The length is 5 centimeters.", r"$5\,\mathrm{cm}$", "0.05 m", "50 mm"],
         ["5 m", "6 cm", r"\boxed{5\text{ mm}}", "The length is 5 kilometers.", r"$5\,\mathrm{kg}$", "0.5 m", "500 mm"]),
        ("5 m", ["500 cm", "5 meters", "5", "5000 mm", "0.005 km"], ["500 m", "5 feet", "50", "500 mm", "0.05 km"]),
        ("12", ["12 apples", r"\boxed{12\text{ square units}}", "12 square units", "There are 12 ways.", "12 dollars"],
         ["13 apples", r"\boxed{21\text{ square units}}", "1.2 square units", "There are 11 ways.", "120 dollars"]),
        ("1.5 hours", ["90 minutes", "1.5 h", "1.5"], ["90 seconds", "1.5 min", "15 hours"]),
        ("60 km/h", ["60 km/h", "60"], ["60 m/s", "66"]),
    ]),
    Kind("compound units and angles", MATH, [
        (r"45^\circ", ["45", "45°", "45 degrees", r"\boxed{45^{\circ}}", r"45\degree"], ["54", "45 rad", "4.5 degrees", r"\boxed{90^{\circ}}", r"\frac{45}{2}\degree"]),
        (r"180^\circ", [r"\pi \text{ rad}", "180 degrees"], [r"2\pi \text{ rad}", "180 rad"]),
        ("12 m^2", [r"12 \text{ m}^2", "12 square meters", "12", "120000 cm^2", "12 m²"], [r"12 \text{ m}^3", "12 square feet", "144", "1200 cm^2", "12 cm²"]),
        ("3 apples", ["3 apples", "3", "three... that is, 3 apples", r"\boxed{3 \text{ apples}}"], ["3 oranges", "13", "three... that is, 4 apples", r"\boxed{3 \text{ pears}}"]),
        ("72 km/h", ["20 m/s", "72 kilometers per hour", "72 kmh"], ["20 km/h", "72 miles per hour", "72 m/s"]),
        ("2 liters", ["2000 ml", "2 L", "2000 cm^3"], ["200 ml", "2 gallons", "2 cm^3"]),
    ]),
    Kind("money", BOTH, [
        (r"\$18.90", [r"It is \boxed{18.90}.", "$18.90", "18.9", "18.90 dollars", r"\boxed{\$18.90}"],
         [r"It is \boxed{18.09}.", "$189.0", "18.8", "18.90 cents", r"\boxed{\$81.90}"]),
        ("$1,200", ["1200", r"\boxed{\$1,200}", "She pays $1200 in total.", "The cost is $1,200.00.", "$1,200"],
         ["120", r"\boxed{\$1,002}", "She pays $12000 in total.", "The cost is $1.200.", "$12,00"]),
        (r"\$32,\!348", ["32348", r"\boxed{32,348}", "$32,348", "32 348"], ["32384", r"\boxed{32.348}", "$3,2348", "323 48"]),
        ("$1.2 million", ["1200000", "$1,200,000"], ["120000", "$1,200"]),
        ("28", ["The answer is $28/month.", r"\boxed{\$28/month}", "#### $28 per person", "$168/6 months = $28/month", "$28 a day"],
         ["The answer is $29/month.", r"\boxed{\$28.5/month}", "#### $82 per person", "$28/4 months = $7/month"]),
    ]),
    Kind("currencies", MATH, [
        ("€5", ["5 euros", "5€", "5", "€5.00"], ["5 dollars", "$5", "50", "£5.00"]),
        ("$5", ["500 cents", "$5.00", "5 USD"], ["500 euros", "5 cents", "€5"]),
        (r"£3.50", ["350 pence", "3.5", "£3.50"], ["$3.50", "35", "3.50 euros"]),
    ]),
    Kind("thousands and thin spaces", BOTH, [
        ("1234567", ["1,234,567", r"1\,234\,567", "1 234 567", "1\u2009234\u2009567", "1\u202f234\u202f567", r"1{,}234{,}567", r"1,\!234,\!567"],
         ["1,234,576", r"1\,234\,657", "1 234", "1\u2009234\u2009576", "123\u202f567", r"1{,}234{,}56", r"1,\!234"]),
        ("10000", ["10,000", "10 000", r"\boxed{10\,000}", "10000.0"], ["1,000", "10,00", r"\boxed{10\,00}", "1000.00"]),
        ("1234.5", ["1,234.5", "1 234.5", "1234.50"], ["12,345", "1 234", "1234.05"]),
    ]),
    Kind("European decimals", MATH, [
        ("1234.5", ["1.234,5"], ["12.345"]),
        ("3.14", ["3,14", r"\boxed{3,14}"], ["314", r"\boxed{31,4}"]),
        ("1234567", ["1.234.567"], ["1.234567"]),
        ("0.25", ["0,25"], ["0,52"]),
    ]),
    Kind("scientific notation", BOTH, [
        ("1200", ["1.2e3", r"1.2 \times 10^{3}", "1.2×10³", "1.2 x 10^3", r"\boxed{1.2 \cdot 10^3}", "1.2E+3"],
         ["1.2e4", r"1.2 \times 10^{2}", "1.2×10²", "1.2 x 10^4", r"\boxed{12 \cdot 10^3}", "1.2E-3"]),
        (r"3 \times 10^{-4}", ["0.0003", "3e-4", "3×10⁻⁴"], ["0.003", "3e4", "3×10⁻³"]),
        ("6.02e23", [r"6.02 \times 10^{23}", r"\boxed{6.02\times10^{23}}"], [r"6.02 \times 10^{22}", r"\boxed{6.2\times10^{23}}"]),
    ]),
    Kind("roots, powers and signs in Unicode", MATH, [
        (r"\sqrt{2}", ["√2", r"\boxed{\sqrt2}", "sqrt(2)", "2^{1/2}", "√(2)"], ["2", r"\boxed{\sqrt3}", "sqrt(20)", "2^{2}", "1.41"]),
        (r"3\sqrt{5}", ["3√5", r"\sqrt{45}", "3*sqrt(5)", r"\boxed{3\sqrt5}"], ["5√3", r"\sqrt{15}", "3+sqrt(5)", r"\boxed{\sqrt[3]{5}}"]),
        ("x^2", ["x²", r"\boxed{x^{2}}", "x*x", "x**2"], ["2x", r"\boxed{x^{3}}", "x+x", "x_2"]),
        ("x^2+1", ["x² + 1", "1 + x^2", r"\boxed{x^{2}+1}"], ["x² - 1", "x + 1^2", r"\boxed{(x+1)^{2}}"]),
        (r"2\pi", ["2π", "π·2", r"\boxed{2\pi}", "2 pi"], ["π", "2", r"\boxed{\pi^2}", "6.28"]),
        (r"\sqrt[3]{4}", ["∛4", "4^{1/3}", r"\sqrt[3]{4}"], ["√4", "4^{3}", r"\sqrt[4]{3}"]),
        ("10^{12}", ["10¹²", "10^12", "1000000000000"], ["10^{1}2", "10^{13}", "100000000000"]),
        ("-5", ["−5", "–5", "\\boxed{-5}"], ["5", "+5", "\\boxed{5}"]),
        (r"\theta", ["θ", r"$\theta$"], ["φ", r"$2\theta$"]),
    ]),
    Kind("intervals", MATH, [
        ("[0,1)", ["$[0, 1)$", r"\boxed{[0,1)}", "0 ≤ x < 1", r"x \in [0,1)", r"\left[0,1\right)", "0 <= x < 1"],
         ["$(0, 1)$", r"\boxed{[0,1]}", "0 < x ≤ 1", r"x \in (0,1]", r"\left(0,1\right)", "0 <= x <= 1"]),
        (r"(-\infty, 2]", ["x ≤ 2", "(-∞, 2]", r"\boxed{(-\infty,2]}"], ["x < 2", "(-∞, 2)", r"\boxed{[2,\infty)}"]),
        ("(3, 7)", ["(3,7)", "3 < x < 7", r"\boxed{(3, 7)}"], ["[3,7]", "3 < x < 8", r"\boxed{(7, 3)}"]),
        (r"(-\infty,-1)\cup(1,\infty)", ["(-∞,-1) ∪ (1,∞)", r"\boxed{(1,\infty)\cup(-\infty,-1)}", "x < -1 or x > 1"],
         ["(-∞,-1] ∪ [1,∞)", r"\boxed{(-1,1)}", "x < -1 and x > 1"]),
        (r"[\frac{1}{2}, 3]", ["[0.5, 3]", "[1/2,3]"], ["[0.5, 3)", "[2,3]"]),
        (r"[2, \infty)", [r"x \ge 2", r"[2,+\infty)", "2 ≤ x"], [r"x > 2", r"(2,+\infty)", "x ≤ 2"]),
    ]),
    Kind("infinity", MATH, [
        (r"\infty", ["∞", r"\boxed{\infty}", "infinity", r"+\infty", "The limit is infinity."], ["-∞", r"\boxed{-\infty}", "0", r"\frac{1}{\infty}", "The limit does not exist."]),
        (r"-\infty", ["-∞", "−∞", "-infinity", r"$-\infty$"], ["∞", "+∞", "infinity", r"$\infty$"]),
    ]),
    Kind("complex values", MATH, [
        ("3+2i", ["2i+3", "3 + 2i", r"\boxed{3+2i}", "(3+2i)", "z = 3+2i"], ["3-2i", "2+3i", r"\boxed{-3+2i}", "(3,2)", "z = 3i+2"]),
        ("-i", ["-i", r"\boxed{-i}", r"\frac{1}{i}"], ["i", r"\boxed{-1}", r"\frac{-1}{i}"]),
        ("2i", ["2i", r"\sqrt{-4}", "i·2"], ["-2i", r"\sqrt{4}", "2"]),
        (r"1 \pm i", ["1+i, 1-i", "1-i and 1+i", r"x = 1 \pm i"], ["1+i", "1+i and -1-i", r"x = -1 \pm i"]),
    ]),
    Kind("tuples, sets and lists", MATH, [
        ("(3, 5)", ["(3,5)", r"\boxed{(3, 5)}", r"\left(3,5\right)", "The point is (3, 5)."], ["(5,3)", r"\boxed{\{3, 5\}}", r"\left(3,-5\right)", "The point is (3, 6)."]),
        (r"\{1,2,3\}", [r"\{3,2,1\}", "{1, 2, 3}", r"\boxed{\{2,1,3\}}", "1, 2, 3"], [r"\{1,2\}", "{1, 2, 4}", r"\boxed{(1,2,3)}", "1, 2, 3, 4"]),
        ("2, 3", ["x=2 or x=3", "3, 2", "2 and 3", r"\boxed{2, 3}", r"\boxed{2} and \boxed{3}", "x = 2, 3", "$x=2$ or $x=3$"],
         ["x=2", "2, 4", "2 and -3", r"\boxed{2, 3, 4}", r"\boxed{2} and \boxed{5}", "x = 3", "$x=2$ or $x=5$"]),
        (r"1 \pm \sqrt{2}", [r"1+\sqrt{2}, 1-\sqrt{2}", "x = 1 ± √2", r"x = 1-\sqrt{2} \text{ or } x = 1+\sqrt{2}"],
         [r"1+\sqrt{2}", "x = -1 ± √2", r"x = 1-\sqrt{2} \text{ or } x = -1+\sqrt{2}"]),
        ("(1, 2, 3)", ["(1,2,3)", r"\boxed{(1,2,3)}"], ["(1,3,2)", r"\boxed{(1,2)}"]),
        ("x=1, y=2", ["x = 1, y = 2", "y=2, x=1", "x=1 and y=2"], ["x = 2, y = 1", "y=1, x=2", "x=1 and y=3"]),
        (r"\emptyset", ["∅", r"\{\}", "the empty set", r"\boxed{\varnothing}"], ["0", r"\{0\}", "{1}", r"\boxed{1}"]),
        ("-2, 2", [r"\pm 2", "x = ±2", "-2 and 2", r"\boxed{\pm2}"], ["2", "x = ±4", "-2 and 4", r"\boxed{-2}"]),
    ]),
    Kind("matrices", MATH, [
        (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
         [r"\boxed{\begin{pmatrix}1&2\\3&4\end{pmatrix}}", r"\begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}", r"$\begin{pmatrix} 1 & \frac{4}{2} \\ 3 & 4 \end{pmatrix}$"],
         [r"\boxed{\begin{pmatrix}1&3\\2&4\end{pmatrix}}", r"\begin{bmatrix} 1 & 2 & 3 & 4 \end{bmatrix}", r"$\begin{pmatrix} 1 & \frac{2}{4} \\ 3 & 4 \end{pmatrix}$"]),
        (r"\begin{pmatrix} -1 \\ 5 \end{pmatrix}", [r"\begin{bmatrix}-1\\5\end{bmatrix}"], [r"\begin{bmatrix}5\\-1\end{bmatrix}"]),
    ]),
    Kind("inequalities", MATH, [
        ("x > 3", ["x>3", "3 < x", r"\boxed{x > 3}", r"(3, \infty)"], ["x<3", "3 > x", r"\boxed{x \ge 3}", r"[3, \infty)"]),
        (r"x \le -1", ["x ≤ -1", "-1 ≥ x", r"x \leq -1"], ["x ≥ -1", "-1 > x", r"x \leq 1"]),
        ("1 < x < 5", ["1<x<5", "5 > x > 1", "(1,5)"], ["1<x<6", "5 < x < 1", "[1,5]"]),
        ("2x + y < 4", ["y + 2x < 4", "4 > 2x + y"], ["2x + y > 4", "4 < 2x + y"]),
        (r"x \ne 2", ["x ≠ 2", r"x \neq 2"], ["x = 2", r"x \neq 3"]),
    ]),
    Kind("equations and expressions", MATH, [
        ("y=2x+1", ["y = 2x + 1", r"\boxed{y=2x+1}", "y = 1 + 2x", "2x - y + 1 = 0", "The line is $y = 2x+1$."],
         ["y = 2x - 1", r"\boxed{y=x+2}", "y = 1 - 2x", "2x + y + 1 = 0", "The line is $x = 2y+1$."]),
        ("x=3", ["3", "x = 3", r"\boxed{x=3}", "3 = x"], ["4", "y = 3", r"\boxed{x=-3}", "-3 = x"]),
        ("2(x+1)", ["2x+2", r"\boxed{2x+2}", "2 + 2x"], ["2x+1", r"\boxed{2x-2}", "x+2"]),
        ("x^2 + y^2 = 25", ["x² + y² = 25", "x^2+y^2=5^2", "25 = x^2 + y^2"], ["x² + y² = 5", "x^2-y^2=25", "25"]),
        ("xy", ["yx", r"\boxed{x y}", r"x \cdot y"], ["x+y", r"\boxed{x/y}", "x^y"]),
        (r"\sin(\pi x)", ["$sin(pi x)$", r"\boxed{\sin(\pi x)}"], [r"$\cos(\pi x)$", r"\boxed{\sin(x)}"]),
        ("f(x)=x^2", ["f(x) = x^2", "x²"], ["f(x) = 2x", "x^3"]),
        (r"\ln 2", [r"\ln(2)", r"\boxed{\ln{2}}"], [r"\ln(3)", r"\log_{10} 2"]),
        ("(x-1)(x+2)", ["x^2 + x - 2", "(x+2)(x-1)"], ["x^2 - x - 2", "(x-2)(x+1)"]),
        ("17", ["12 + 5 = 17", r"The sum is $12+5=17$.", "x + y = 17", "17 = 12 + 5"], ["12 + 5 = 18", r"The sum is $17+1=18$.", "x + y = 71", "12 + 17 = 29", "12 + 5", r"\boxed{20-3}", r"$17 \cdot 1$"]),
        (r"\sqrt{2}", [r"\sqrt{2} \approx 1.414", "√2 ≈ 1.41"], [r"\sqrt{3} \approx 1.732", "1.414"]),
    ]),
    Kind("percent and decimals", MATH, [
        ("50%", ["0.5", "50%", r"\boxed{50\%}", "1/2", "50 percent", "50"], ["0.05", "5%", r"\boxed{0.5\%}", "1/5", "55 percent", "500"]),
        ("0.25", ["25%", "1/4", r"\boxed{25\%}", ".25"], ["2.5%", "1/25", r"\boxed{0.25\%}", ".025"]),
        (r"12.5\%", ["12.5%", "1/8", "0.125", "12.5 percent"], ["125%", "1/12", "0.0125", "1.25 percent"]),
        ("9", [r"\boxed{9\%}", "9 %"], [r"\boxed{90\%}", "0.9"]),
    ]),
    Kind("text answers", MATH, [
        (r"\text{east}", ["east", r"\boxed{\text{East}}", "The answer is east.", "EAST"], ["seat", r"\boxed{\text{West}}", "The answer is west.", "eats"]),
        ("yes", ["Yes.", "Yes, because 7 is prime.", r"\boxed{\text{yes}}", "The answer is yes.", "<think>no?</think>Yes"],
         ["No.", "No, because 7 is prime.", r"\boxed{\text{no}}", "The answer is not yes.", "yes or no"]),
        ("no", ["No", "**No**", "No, it is not."], ["on", "**Yes**", "Yes, it is."]),
        ("true", ["True", r"\boxed{\text{True}}", "The statement is true."], ["False", r"\boxed{\text{False}}", "The statement is not true."]),
        ("no solution", ["No solution", r"\boxed{\text{no solution}}", "no solutions"], ["one solution", r"\boxed{0}", "solution no"]),
        ("Tuesday", ["tuesday", "It is Tuesday.", r"\boxed{\text{Tuesday}}"], ["Thursday", "It is Thursday.", "Tuesday or Thursday"]),
        ("listen", ["listen", r"\boxed{\text{listen}}"], ["silent", r"\boxed{\text{enlist}}"]),
        ("BCA", ["BCA", r"\boxed{BCA}"], ["ABC", r"\boxed{CAB}"]),
    ]),
    Kind("dates and times", MATH, [
        ("7:30 pm", ["7:30 PM", "7:30 p.m.", "19:30", r"\boxed{7:30\text{ pm}}"], ["7:30 am", "7:03 p.m.", "17:30", r"\boxed{7:30\text{ am}}"]),
        ("March 5, 2024", ["5 March 2024", "2024-03-05", "March 5th, 2024", "Mar 5, 2024"], ["3 May 2024", "2024-05-03", "March 5th, 2023", "Mar 15, 2024"]),
        ("9:05", ["9:05", "9:05 am"], ["9:50", "5:09"]),
        ("July 4", ["4 July", "July 4th", "The date is July 4."], ["7 April", "July 14th", "The date is June 4."]),
        ("3:4", ["3:4", "3 : 4", r"\boxed{3:4}"], ["4:3", "3 : 5", r"\boxed{34}"]),
    ]),
    Kind("reasoning is not read", BOTH, [
        ("8", [
            "<think>Is it 7? No, 8.</think>The answer is 8.",
            "<think>maybe 9</think>\n<answer>8</answer>",
            "I think it is 9 at first glance.</think>8",
            "<reasoning>5 + 4 = 9, minus 1</reasoning>\n<answer>\n8\n</answer>",
            "<|begin_of_thought|>9?<|end_of_thought|> The answer is 8.",
            r"<think>\boxed{7}</think> \boxed{8}",
            "<|channel|>analysis<|message|>try 7<|end|><|channel|>final<|message|>8<|return|>",
            "<think>\n\n</think>\n\n8",
            "[THINK]7 or 9[/THINK]8",
            "<thinking>It could be 3.</thinking> <answer>The result is 8</answer>",
        ], [
            "<think>The answer is 8.</think>",
            "<think>The answer is 8.",
            "<think>8</think>\n<answer>9</answer>",
            "So 8.</think>9",
            "<reasoning>The answer is 8</reasoning>\n<answer>\n\n</answer>",
            "<|begin_of_thought|>8<|end_of_thought|> The answer is 9.",
            r"<think>\boxed{8}</think>",
            "<|channel|>analysis<|message|>The answer is 8<|end|>",
            "<think>The answer is 8.</think> I cannot say.",
            "<thinking>8</thinking> <answer>The result is 7</answer>",
        ]),
        ("40", ["<answer>30</answer> Wait, no: <answer>40</answer>", "Some words.\n<answer>40</answer>\nGood luck with 30 more."],
         ["<answer>40</answer> Wait, no: <answer>30</answer>", "Some words about 40.\n<answer>30</answer>"]),
    ]),
    Kind("several accepted answers", BOTH, [
        (["6", "7"], ["6", r"\boxed{7}", "The answer is 6."], ["67", r"\boxed{8}", "The answer is 6 or 8."]),
        (["0.5", "50"], ["0.5", r"\boxed{50}"], ["5", r"\boxed{0.05}"]),
        ([12, 13], ["12", "13 apples"], ["11", "14 apples"]),
    ]),
    Kind("worked solutions as answers", BOTH, [
        ("5 boxes hold 3 each, so 5*3 = 15.\n#### 15", ["15", r"\boxed{15}", "#### 15"], ["5", r"\boxed{3}", "#### 51"]),
        (r"We have $x^2=49$ and $x>0$, so $x=\boxed{7}$.", ["7", "x = 7", r"$\boxed{7}$"], ["49", "x = -7", r"$\boxed{2}$"]),
    ]),
    Kind("sentences", BOTH, [
        ("36", [
            "There are 4 rows of 9 chairs, so there are 36 chairs.",
            "4 · 9 = 36",
            "**Answer:** 36",
            "**36**",
            "The answer is **36**.",
            "Final Answer: The final answer is $36$. I hope it is correct.",
            "So the total number of chairs is $4 \\times 9 = 36$.",
            "A: 36",
            "Therefore, the answer is\n\\[\n\\boxed{36}\n\\]",
            "Answer:\n36",
            "The answer is 36 because 4 times 9 is 36.",
            "She has $4 \\cdot 9 = 36$ chairs.",
            "`36`",
            "The result is: 36.0",
        ], [
            "There are 36 rows of 9 chairs, so there are 324 chairs.",
            "36 · 9 = 324",
            "**Answer:** 63",
            "**3.6**",
            "The answer is **360**.",
            "Final Answer: The final answer is $26$. I hope it is correct.",
            "So the total number of chairs is $36 \\times 9 = 324$.",
            "A: 35",
            "Therefore, the answer is\n\\[\n\\boxed{37}\n\\]",
            "Answer:\n-36",
            "The answer is 32 because 36 minus 4 is 32.",
            "Of 36 chairs, 4 are broken, which leaves 32.",
            "`3 6`",
            "The result is: 36.5",
        ]),
    ]),
    Kind("guesses, hedges and copies", BOTH, [
        ("6", [
            "It cannot be 5, so it is 6.",
            "I am not sure, but the answer is 6.",
            "6, since 2 · 3 = 6",
        ], [
            "5 or 6",
            "The answer is 6, or maybe 7.",
            "1, 2, 3, 4, 5, 6, 7, 8, 9",
            "1 2 3 4 5 6",
            r"\boxed{4} \boxed{5} \boxed{6}",
            "The answer is 6. It could also be 7.",
            "Either 6 or 8",
            "",
            "   \n",
            "Answer:",
            r"\boxed{}",
            "The answer is less than 7.",
            "Answer: 6 or 7",
            "What is 2 times 3?",
            "I do not know.",
            "The answer is 5 or 6.",
            "answer answer answer 6 6 6 6 6 6 6 6 6 6 6 6 6 6 6 6 6 6 6 6 6",
            "The answer is 4. The answer is 5. The answer is 6.",
            "#### 4\n#### 5\n#### 6",
            "6 is wrong.",
        ]),
        ("72", ["The answer is 72. I am sure."], ["70, 71, 72", "The answer is 70, 71 or 72."]),
    ]),
    Kind("texts that could take for ever", MATH, [
        ("5", [r"\boxed{5}" + " " * 2000, "x" * 5000 + r" \boxed{5}", "(" * 300 + ")" * 300 + r" The answer is \boxed{5}"], [
            r"\boxed{9^{9^{9^{9}}}}", "9" * 5000, r"\boxed{" * 500, r"\boxed{" + "(" * 3000 + "5}",
            r"\frac{1}{" * 200 + "5", r"\boxed{5!}", "$" * 3000, "1e999999999", r"\boxed{5" + "}" * 3000 + r"\boxed{6}",
        ]),
    ]),
    Kind("letters", CHOICE, [
        ("C", ["C", "(C)", "Answer: C", "**C**", "The answer is (C).", "C.", "c", r"\boxed{C}", r"$\boxed{\text{C}}$", "The correct option is C.",
               "Answer: (c)", "I choose C.", "C) 12", "<think>A or B?</think>C", "<answer>C</answer>", "Final answer: **C**",
               "Option A is wrong and B is wrong, so the answer is C.", "The answer is B. Wait, no, it is C.", "It's C because A is too small.",
               "The correct answer is: C", "Answer: C. 12", "A is not possible. Therefore C.",
               "I think B, no wait, C", "B. Actually, C.", "B. Hmm, actually it is C."],
         ["B", "(A)", "Answer: D", "**B**", "The answer is (D).", "A.", "b", r"\boxed{A}", r"$\boxed{\text{B}}$", "The correct option is B.",
          "Answer: (a)", "I choose D.", "B) 12", "<think>The answer is C</think>", "<answer>A</answer>", "Final answer: **C or D**",
          "A B C D", "The answer is C. Wait, no, it is B.", "Either B or C", "A) 3\nB) 5\nC) 12\nD) 9", "", "Answer:", "Answer: C or D",
          "Not C.", "C is wrong.", "I like the letter", "The answer is not C.", "<think>C", "A, B, C, D", "Could be C, maybe D.",
          "I think C, no wait, B", "C. Actually, B."]),
        ("A", ["A", "The answer is A.", "a", "(a)", "Answer: A"], ["A dog barks.", "a cat", "B", "An answer", "I need a hint."]),
        (2, ["C", "Answer: C"], ["B", "2"]),
    ]),
    Kind("letters and the texts of the options", CHOICE, [
        ("B", ["Paris", "The answer is Paris.", "B) Paris", "The capital is Paris.", r"\boxed{\text{Paris}}", "Answer: B. Paris"],
         ["London", "The answer is Rome.", "B) London", "The capital is Berlin.", r"\boxed{\text{Rome}}", "Answer: Paris or Rome", "London, Paris, Rome, Berlin"]),
        ("Rome", ["C", "Rome", "(C) Rome"], ["B", "Paris", "(C) Paris"]),
        (1, ["B", "Paris"], ["A", "London"]),
    ], {"choices": ["London", "Paris", "Rome", "Berlin"]}),
    Kind("text to the letter", ("exact",), [
        ("yes", ["yes", " yes\n", "<think>no?</think>yes", "<answer>yes</answer>"], ["Yes", "yes.", "<think>yes</think>", "no", ""]),
        (["red", "crimson"], ["red", "crimson"], ["Red", "redcrimson"]),
    ]),
    Kind("patterns", ("regex",), [
        (r"<think>.*</think>\s*<answer>.*</answer>", ["<think>two\nlines</think>\n<answer>5</answer>", "<think></think><answer>5</answer>"],
         ["<think>two\nlines</think> 5", "x<think></think><answer>5</answer>", ""]),
        (r"\d{3}-\d{4}", ["555-0199", " 555-0199 "], ["555-019", "555-0199x"]),
        ("(a+)+b", ["aaab"], ["a" * 40 + "c"]),
    ]),
    Kind("JSON", ("json-schema",), [
        ({"type": "object", "required": ["a"]}, ['{"a": 1}', ' {"a": null, "b": 2} ', '<think>hm</think>{"a": 1}'],
         ['{"b": 1}', "{'a': 1}", '{"a": 1', 'Here: {"a": 1}', '<think>{"a": 1}</think>', ""]),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 2}, ["[1, 2]"], ["[1]", '["1", "2"]', "[1, 2.5]", "[" * 5000]),
    ]),
)  # fmt: skip
"""The kinds. `exact` compares letter by letter, so most kinds are not for it."""

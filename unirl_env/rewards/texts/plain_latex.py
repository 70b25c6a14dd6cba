"""One spelling for mathematics: signs that people and models type become LaTeX, and LaTeX loses its looks."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

# fmt: off
_SIGNS = {
    "\u2212": "-", "\u2013": "-", "\u2012": "-", "\u2010": "-", "\u2011": "-", "\ufe63": "-",
    "\u00d7": r"\cdot ", "\u2715": r"\cdot ", "\u2a2f": r"\cdot ", "\u00b7": r"\cdot ", "\u22c5": r"\cdot ",
    "\u2219": r"\cdot ", "\u2217": r"\cdot ", "\u00f7": "/", "\u2044": "/",
    "\u2215": "/", "\u03c0": r"\pi ", "\u221e": r"\infty ", "\u2264": r"\le ", "\u2265": r"\ge ",
    "\u2a7d": r"\le ",
    "\u2a7e": r"\ge ", "\u2260": r"\ne ", "\u2248": r"\approx ", "\u2261": r"\equiv ",
    "\u2243": r"\approx ", "\u00b1": r"\pm ",
    "\u2208": r"\in ", "\u222a": r"\cup ", "\u2229": r"\cap ", "\u2205": r"\emptyset ", "\u2192": r"\to ",
    "\u21d2": r"\to ", "\u27f9": r"\to ", "\u2124": r"\mathbb{Z}", "\u211d": r"\mathbb{R}",
    "\u211a": r"\mathbb{Q}", "\u2115": r"\mathbb{N}", "\u03b8": r"\theta ", "\u03b1": r"\alpha ",
    "\u03b2": r"\beta ", "\u03b3": r"\gamma ", "\u03bb": r"\lambda ", "\u03bc": r"\mu ",
    "\u03c6": r"\varphi ", "\u00ba": "\u00b0", "\u02da": "\u00b0", "\u2103": "\u00b0C",
    "\u2109": "\u00b0F", "\u212a": "K",
    "\u066a": "%", "\u066b": ".", "\u066c": ",", "\u02b9": "'", "\u2019": "'", "\u2018": "'",
    "\u3002": ".", "\u3001": ",", "\uffe5": "\u00a5", "\uffe1": "\u00a3",
}
# fmt: on
_TABLE = str.maketrans(_SIGNS)
_LOOKS = ("<wide>", "<narrow>", "<font>", "<square>", "<noBreak>")
"""Unicode's words for signs that are another one in a different shape."""
_ROOTS = {"\u221a": r"\sqrt", "\u221b": r"\sqrt[3]", "\u221c": r"\sqrt[4]"}
_ROOT = re.compile(
    r"([\u221a-\u221c]) {0,2}(?:\(([^()\n]{1,200})\)|\{([^{}\n]{1,200})\}"
    r"|(\\frac\{\d{1,9}\}\{\d{1,9}\}|\d{1,300}(?:[.,]\d{1,300})?|\\[A-Za-z]{2,9}|[A-Za-z]))"
)


def plain_signs(text: str) -> str:
    r"""`text` in ASCII as far as mathematics goes: small digits are exponents, and root signs `\sqrt{...}`.

    Digits of every script become ours, full-width letters become narrow, and what has no width goes.
    Degrees, currencies and letters that no formula needs stay as they are. Takes linear time.
    """
    if text.isascii():
        return text
    parts: list[str] = []
    level = ""
    for sign in text:
        plain, mark = (sign, "") if sign.isascii() else _plain(sign)
        if mark != level:
            # A run of small digits is one exponent.
            parts.append("}" if level else "")
            parts.append(mark + "{" if mark else "")
            level = mark
        parts.append(plain)
    plain = "".join([*parts, "}" if level else ""]).translate(_TABLE)
    return _ROOT.sub(lambda found: f"{_ROOTS[found[1]]}{{{found[2] or found[3] or found[4]}}}", plain)


def _plain(sign: str) -> tuple[str, str]:
    """What a sign means, and whether it stands above (`^`) or below (`_`) the line."""
    if sign in _SIGNS:
        return sign, ""
    digit = unicodedata.decimal(sign, None)
    if digit is not None:
        return str(digit), ""
    category = unicodedata.category(sign)
    if category == "Cf":
        return "", ""
    if category == "Zs":
        return " ", ""
    look, _, code = unicodedata.decomposition(sign).partition(" ")
    if look == "<fraction>":
        top, _, bottom = unicodedata.normalize("NFKC", sign).partition("\u2044")
        return (rf"\frac{{{top}}}{{{bottom}}}", "") if bottom else (sign, "")
    if look in ("<super>", "<sub>") and " " not in code:
        return chr(int(code, 16)).replace("\u2212", "-"), "^" if look == "<super>" else "_"
    if look in _LOOKS:
        return unicodedata.normalize("NFKC", sign), ""
    return sign, ""


_NOISE = re.compile(
    r"\\(?:displaystyle|textstyle|limits|left\.|right\.|left(?![a-z])|right(?![a-z])|[bB]igg?[lr]?(?![a-z])|!)"
    r"|(?<!\\)\\[()\[\]](?![A-Za-z])"
)
_SPACE = re.compile(r"(?:(?<!\\)\\(?:[,;: ~]|(?:thin|med|thick|en)space(?![a-z])|q?quad(?![a-z]))|~|\s)+")
_WRAPPER = re.compile(
    r"\\(?P<name>math(?:rm|bf|it|sf|tt|normal|up)|text(?:rm|bf|it|sf|tt|normal|up)?|mbox|hbox|operatorname\*?|emph"
    r"|boldsymbol|bm|rm) ?(?:\{(?P<content>[^{}]{0,200}(?:\{[^{}]{0,60}\}[^{}]{0,60}){0,4})\}"
    r"|(?P<letter>[A-Za-z](?![A-Za-z])))"
)
_FRACTION = re.compile(r"\\frac ?(?:\{([^{}]{1,200})\}|(\d|[A-Za-z])) ?(?:\{([^{}]{1,200})\}|(\d|[A-Za-z]))")
_SQRT = re.compile(
    r"\\?sqrt ?(?:(\d{1,300})(?!\])|([A-Za-z])(?![A-Za-z])|(\\pi)(?![A-Za-z])|\(([^()]{1,200})\))"
)
_OPERATORS = [
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(?:times|ast|cdotp|bullet)(?![A-Za-z])|\*\*(?=[-\d(])|\*"), r"\\cdot "),
    (re.compile(r"(?<![A-Za-z\\{])(?=(?:sin|cos|tan|log|ln|exp|lcm|gcd)[ _(^{\d\\])"), r"\\"),
    (re.compile(r"\\div(?![A-Za-z])"), "/"),
    (re.compile(r"\\(?:leq|leqslant)(?![A-Za-z])|<="), r"\\le "),
    (re.compile(r"\\(?:geq|geqslant)(?![A-Za-z])|>="), r"\\ge "),
    (re.compile(r"\\neq(?![A-Za-z])|!="), r"\\ne "),
    (re.compile(r"\\(?:varnothing|O)(?![A-Za-z])"), r"\\emptyset "),
    (re.compile(r"\^ ?\{? ?\\circ ?\}?|\\degrees?(?![A-Za-z])"), "\u00b0"),
    (re.compile(r"\u00b0 ?(?:\\text\{ ?)?([CF])(?: ?\})?(?![A-Za-z])"), "\u00b0\\1"),
    (re.compile(r"\\(?:textdollar|\$)"), "$"),
    (re.compile(r"\\(?:euro|texteuro)(?![A-Za-z])"), "\u20ac"),
    (re.compile(r"\\(?:pounds|textsterling)(?![A-Za-z])"), "\u00a3"),
    (re.compile(r"\\(?:yen|textyen)(?![A-Za-z])"), "\u00a5"),
    (re.compile(r"\\%|(?<=[\d} ])(?:per ?cent|pct\b|percentage(?! points?))"), "%"),
    (re.compile(r"(?<=\d) ?x ?(?=10 ?\^|\d+(?![\w.]) ?=)|(?<=\d) x (?=\d)"), r"\\cdot "),
    (re.compile(r"\^ ?([-+]?\d+)"), r"^{\1}"),
    (re.compile(r"\^ ?\(([^()]{1,60})\)"), r"^{\1}"),
]
_LINKS = re.compile(r"(?: ?,)? ?(?:\\text\{ ?(?:and|or|,) ?\}|(?<![A-Za-z\\{])(?:and|or)(?![A-Za-z]))")
_REPEATING = re.compile(
    r"(?<![\d.])(\d{0,99})\.(\d{0,99})(?:\\(?:overline|bar|dot) ?(?:\{(\d{1,99})\}|(?P<digit>\d)))"
)
_RATIO_OF_UNITS = re.compile(r"\\frac ?\{ ?\\text\{([^{}]{1,40})\} ?\} ?\{ ?\\text\{([^{}]{1,40})\} ?\}")


_PLAIN = re.compile(r"-?\d+(?:\.\d+)?|-?\\frac\{\d+\}\{\d+\}|-?\d+/\d+")


@lru_cache(maxsize=8192)
def plain_latex(answer: str) -> str:
    """An answer in one spelling of LaTeX, which later steps read: see the module for what goes."""
    if _PLAIN.fullmatch(answer):
        return answer
    text = plain_signs(answer).strip()
    text = text.removeprefix("**").removesuffix("**").strip("`")
    text = _NOISE.sub("", text)
    text = _SPACE.sub(" ", text).strip(" ")
    if len(text) > 1 and text[0] == text[-1] == "$" and "$" not in text[1:-1].strip("$"):
        text = text.strip("$ ")
    text = _WRAPPER.sub(_unwrapped, text)
    for pattern, plain in _OPERATORS:
        text = pattern.sub(plain, text)
    for _ in range(2):
        text = _FRACTION.sub(lambda f: rf"\frac{{{f[1] or f[2]}}}{{{f[3] or f[4]}}}", text)
        text = _SQRT.sub(lambda f: rf"\sqrt{{{f[1] or f[2] or f[3] or f[4]}}}", text)
    text = _REPEATING.sub(_as_fraction, text)
    text = _RATIO_OF_UNITS.sub(r"\\text{\1}/\\text{\2}", _LINKS.sub(", ", text))
    text = text.strip().lstrip(":=,; ").removeprefix(r"\approx").rstrip(".,;: ")
    return _SPACE.sub(" ", text).strip()


def _as_fraction(found: re.Match[str]) -> str:
    whole, fixed, repeated = found[1] or "0", found[2], found[3] or found[4]
    top = int(whole + fixed + repeated) - int(whole + fixed)
    return rf"\frac{{{top}}}{{{(10 ** len(repeated) - 1) * 10 ** len(fixed)}}}"


def _unwrapped(found: re.Match[str]) -> str:
    """Numbers, and the letters of e and i, need no upright type; words and units keep one name for it."""
    content = found["content"] if found["content"] is not None else found["letter"]
    inner = content.strip()
    if not inner:
        return " "
    if inner in ("e", "i") or inner[0].isdigit() or re.fullmatch(r"\\?[-+$%].*|percent|per cent", inner):
        return inner
    if (
        found["name"].startswith(("mathbf", "mathit", "boldsymbol", "bm", "textit", "textbf"))
        and len(inner) == 1
    ):
        return inner
    if found["name"].startswith("operatorname") and inner not in _OWN_FUNCTIONS:
        return rf"\operatorname{{{inner}}}" if len(inner) > 1 else inner
    if inner in _OWN_FUNCTIONS:
        return rf"\{inner} "
    return rf"\text{{{content}}}"


_OWN_FUNCTIONS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan log ln exp lcm gcd max min det".split()
)

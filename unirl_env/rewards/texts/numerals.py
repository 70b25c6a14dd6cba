r"""Numerals as the world writes them: thousands, decimal commas, powers of ten.

Three digits after a comma are thousands (`1,234`), unless the number begins with 0; any other single comma is
a decimal one (`3,14`). Outside of brackets such a comma may as well separate two answers (`3,5`), so that a
text can have two readings. `{,}` never separates answers, and a comma within brackets always does.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from fractions import Fraction
from numbers import Rational, Real
from typing import Any

_COMMA = r"(?:,|\{,\})"
_NUMERAL = re.compile(
    r"(?<![\w.])(?:"
    rf"(?P<spaced>\d{{1,3}}(?:[ '_]\d{{3}})+)(?![ ']?\d)(?! ?/)(?:(?:\.|{_COMMA})(?P<spaced_rest>\d+))?"
    rf"|(?P<english>[1-9]\d{{0,2}}(?:{_COMMA}\d{{3}})+|[1-9]\d?(?:,\d{{2}})+,\d{{3}})(?!\d|,\d)"
    r"(?P<english_rest>\.\d+)?"
    rf"|(?P<european>\d{{1,3}}(?:\.\d{{3}})+){_COMMA}(?P<european_rest>\d+)(?!\d|{_COMMA}\d)"
    r"|(?P<dotted>[1-9]\d{0,2}(?:\.\d{3}){2,})(?![\d.,])"
    r"|(?P<comma>\d+(?:,|\{,\})\d+)(?!\d|,\d|\.\d)"
    r"|(?P<plain>\d+(?:\.\d*)?|\.\d+))"
    r"(?:[eE](?P<power>[-+]?\d{1,9})(?![\d.]))?"
)
_SEPARATORS = re.compile(r"[ ',_]|\{,\}")
_BRACKET = re.compile(r"\\[{}]|[()\[\]]")
_LARGEST_POWER = 400
"""Powers of ten beyond are not written out."""
_PLAIN = re.compile(r"[-+]?(?:\d{1,400}(?:\.\d{0,400})?|\.\d{1,400})(?:[eE][-+]?\d{1,4})?")


def readings(latex: str) -> list[str]:
    """What numerals in `latex` can mean, likeliest first, each with plain ones: digits, a point, digits."""
    found = [_read(latex, lists=False, powers=True)]
    if "," in latex:
        found.append(_read(latex, lists=True, powers=True))
    if "e" in latex:
        # 2e-3 may be a power of ten, or twice Euler's number less 3.
        found.append(_read(latex, lists=False, powers=False))
    return list(dict.fromkeys(found))


def _read(latex: str, *, lists: bool, powers: bool) -> str:
    parts, end, depth = [], 0, 0
    for found in _NUMERAL.finditer(latex):
        between = latex[end : found.start()]
        depth += sum(1 if mark[-1] in "([{" else -1 for mark in _BRACKET.findall(between))
        parts += [between, _written(found, lists=lists or depth > 0, always=depth > 0, powers=powers)]
        end = found.end()
    return "".join([*parts, latex[end:]])


def _written(found: re.Match[str], *, lists: bool, always: bool, powers: bool) -> str:
    numeral = found.group()
    if found["spaced"]:
        whole, rest = found["spaced"], found["spaced_rest"]
    elif found["english"]:
        if always and "{,}" not in found["english"]:
            return numeral.replace(",", ", ")
        whole, rest = found["english"], (found["english_rest"] or "")[1:]
    elif found["european"]:
        whole, rest = found["european"].replace(".", ""), found["european_rest"]
    elif found["dotted"]:
        whole, rest = found["dotted"].replace(".", ""), ""
    elif found["comma"]:
        if lists and "{,}" not in numeral:
            return numeral.replace(",", ", ")
        whole, _, rest = found["comma"].replace("{,}", ",").partition(",")
    else:
        whole, _, rest = found["plain"].partition(".")
    mantissa = (_SEPARATORS.sub("", whole) or "0") + ("." + rest if rest else "")
    power = found["power"]
    if power is None:
        return mantissa
    if not powers:
        return f"{mantissa} e{power}"
    if abs(int(power)) > _LARGEST_POWER:
        return rf"({mantissa}\cdot 10^{{{int(power)}}})"
    return f"{Decimal(f'{mantissa}E{power}'):f}"


def plain_value(text: str) -> Fraction | None:
    """The value of a number in digits, with or without a point or a power of ten; None for all else."""
    return Fraction(text) if _PLAIN.fullmatch(text) else None


def is_numeric(value: Any) -> bool:
    """Whether `value` is a finite number of Python, of NumPy or of a table; a truth value is none."""
    if isinstance(value, bool) or not isinstance(value, Real | Decimal):
        return False
    return isinstance(value, Rational) or math.isfinite(value)


def plain_numeral(number: Any) -> str:
    """A finite number in digits, as people write it: 1e-07 is 0.0000001, and 42.0 is 42."""
    if isinstance(number, Rational):
        return str(number)
    written = Decimal(str(number))
    if written and abs(written.adjusted()) > _LARGEST_POWER // 10:
        return str(written).lower()
    digits = f"{written:f}"
    return digits.rstrip("0").rstrip(".") if "." in digits else digits

r"""What stands around a value: a currency, a percent sign, a unit, the noun of what is counted.

Units are compared, not converted: 5 m is not 5 cm, and not 500 cm either. A value without a unit fits one
with any. Nouns (`5 apples`) say nothing; words that change a value (`5 million`, `5 thirds`) are no nouns.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# fmt: off
_NAMES = {
    "m": "m metre metres meter meters", "cm": "cm cms centimetre centimetres centimeter centimeters",
    "mm": "mm millimetre millimetres millimeter millimeters",
    "km": "km kms kilometre kilometres kilometer kilometers",
    "nm": "nm nanometres nanometers", "in": "in inch inches", "ft": "ft foot feet", "yd": "yd yard yards",
    "mi": "mi mile miles", "g": "g gm gms gram grams gramme grammes",
    "kg": "kg kgs kilogram kilograms kilogramme kilogrammes", "mg": "mg milligram milligrams",
    "t": "tonne tonnes ton tons", "lb": "lb lbs pound pounds", "oz": "oz ounce ounces",
    "s": "s sec secs second seconds", "ms": "ms millisecond milliseconds", "min": "min mins minute minutes",
    "h": "h hr hrs hour hours", "day": "day days", "week": "week weeks", "month": "month months",
    "year": "yr yrs year years", "l": "l L litre litres liter liters",
    "ml": "ml mL millilitre milliliter milliliters",
    "gal": "gal gallon gallons", "ha": "hectare hectares", "acre": "acre acres", "n": "N newton newtons",
    "j": "J joule joules", "kj": "kJ kilojoule kilojoules", "w": "W watt watts",
    "kw": "kW kilowatt kilowatts",
    "kwh": "kWh", "v": "V volt volts", "a": "A amp amps ampere amperes",
    "ohm": "ohm ohms \u03a9 \u2126 \\Omega",
    "hz": "Hz hertz", "pa": "Pa pascal pascals", "kpa": "kPa", "k": "K kelvin kelvins",
    "mol": "mol mole moles",
    "ev": "eV", "c": "C coulomb coulombs", "\u00b0c": "\u00b0C celsius",
    "\u00b0f": "\u00b0F fahrenheit",
    "\u00b0": "\u00b0 deg degree degrees", "rad": "rad rads radian radians", "cal": "cal calories",
    "kcal": "kcal", "mph": "mph", "kmh": "kmh kmph kph", "unit": "unit units", "cc": "cc", "bit": "bit bits",
    "byte": "byte bytes", "gb": "GB", "mb": "MB",
    "$": "$ US$ USD dollar dollars", "\u20ac": "\u20ac EUR euro euros", "\u00a3": "\u00a3 GBP",
    "\u00a5": "\u00a5 JPY CNY RMB yen yuan \u5143 \u5186", "\u20b9": "\u20b9 INR Rs Rs. rupee rupees",
    "\u20a9": "\u20a9 KRW won", "\u20bd": "\u20bd RUB rubles roubles", "chf": "CHF",
    "cent": "cent cents \u00a2",
    "pence": "pence",
}
# fmt: on
_KNOWN = {spelling: name for name, line in _NAMES.items() for spelling in line.split()}
_MONEY = "$ US$ USD \u20ac EUR \u00a3 GBP \u00a5 JPY CNY RMB \u20b9 INR Rs Rs. \u20a9 \u20bd CHF".split()
_COMPOSED = {"mph": (("h", -1), ("mi", 1)), "kmh": (("h", -1), ("km", 1)), "cc": (("cm", 3),)}
_SCALES = {
    "dozen": "12", "hundred": "100", "thousand": "10^{3}", "lakh": "10^{5}", "million": "10^{6}",
    "crore": "10^{7}", "billion": "10^{9}", "trillion": "10^{12}",
}  # fmt: skip
_VALUE_WORDS = frozenset(
    "half halves third thirds quarter quarters fourth fourths fifth fifths sixth sixths seventh sevenths"
    " eighth eighths ninth ninths tenth tenths hundredths thousandths squared cubed factorial dozens score"
    " plus minus over than to by and or not no from through until if power root pi divided negative positive"
    " percent percentage point pct permille mod modulo with without between but except versus vs equals is"
    " are into log sin cos tan sqrt frac".split()
)
_LETTERS = frozenset("m g s h L l N J W V A K C".split())
"""Units of one letter, which in algebra are variables."""
_BARE = frozenset("m g s h L N J W V".split())
"""Those that may stand right behind a number (`5m`)."""

_names = sorted((re.escape(name) for name in _KNOWN if name not in {*_LETTERS, "in"}), key=len, reverse=True)
_WORD = rf"(?<![A-Za-z])(?:(?:{'|'.join(_names)})(?![A-Za-z])|in(?=\s*(?:$|[.,;)^}}])))"
_LETTER = r"(?<![A-Za-z\\])[mgshLlNJWVAKC](?![A-Za-z_'])"
_POWER = r"(?: ?\^ ?\{? ?-?\d ?\}?|[23](?![\d.,]))?"
_KIND = r"(?:(?:square|sq\.?|cubic|cu\.?) )?"
_FACTOR = rf"{_KIND}(?:\\text\{{ ?{_KIND}(?:{_WORD}|{_LETTER}){_POWER}"
_FACTOR += rf"(?: ?(?:/|per |\\cdot|\.| ) ?(?:{_WORD}|{_LETTER}){_POWER})* ?\}}|{_WORD}|{_LETTER}){_POWER}"
_UNIT = re.compile(rf"{_FACTOR}(?: ?(?:/|\\cdot|per | ) ?{_FACTOR})*")
_PART = re.compile(
    rf"(?P<link>/|per )? ?(?P<kind>square|sq|cubic|cu)?\.? ?(?P<name>{_WORD}|{_LETTER})(?P<power>{_POWER})"
)
_UNIT_END = re.compile(rf"(?P<space> ?)(?P<unit>{_UNIT.pattern})\.?$")
_MONEY_START = re.compile(
    rf"^(?P<sign>[-+]? ?)(?P<money>{'|'.join(map(re.escape, _MONEY[::-1]))}) ?(?=[-+]?[\d.\\])"
)
_NOUN = r"[A-Za-z\u00c0-\u024f][A-Za-z\u00c0-\u024f'-]+"
_NOUN_END = re.compile(
    rf"(?: |(?<=\d)-)(?P<noun>{_NOUN}(?: {_NOUN}){{0,5}})$|\\text\{{ ?(?P<text>[^{{}}\d]{{1,60}}?) ?\}}$"
)
_ORDINAL_END = re.compile(r"(?<=\d)(?:\^ ?\{? ?)?(?:\\text\{ ?)?(?:st|nd|rd|th)(?: ?\})*$")
_CJK_END = re.compile(r"(?<=[\d}]) ?[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7a3]{1,4}$")
_SCALE_END = re.compile(rf"(?: |\\text\{{ ?)(?P<scale>{'|'.join(_SCALES)}) ?\}}?$")
_FRACTIONS = (
    "halves|(?:third|quarter|fourth|fifth|sixth|seventh|eighth|ninth|tenth|hundredth|thousandth)s?|squared|cubed"
    "|factorial|and (?:a|one) (?:half|third|quarter)"
)
_AFTER = re.compile(
    rf"(?:(?:st|nd|rd|th)(?![A-Za-z])| (?:{_FRACTIONS})(?![A-Za-z])"
    rf"|(?: ?(?:{'|'.join(_SCALES)})(?![A-Za-z]))?(?: ?(?:{_UNIT.pattern}))?)"
)
_COMPLETE = re.compile(r"[\d.)\]}!]$|\\(?:pi|infty)$|[A-Za-z]$")
_SYMBOLS = re.compile(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])")


class Measure(NamedTuple):
    """A value in plain LaTeX, and what it is a value of.

    Attributes:
        value: The text of the value.
        unit: Pairs of a unit and its power, sorted; empty for none and for nouns.
        percent: Whether a percent sign stood there.
    """

    value: str
    unit: tuple[tuple[str, int], ...] = ()
    percent: bool = False


def measured(latex: str, *, attached: bool = False) -> Measure:
    r"""An answer in plain LaTeX without its unit.

    Args:
        latex: The answer.
        attached: Whether a letter right behind a number (`5m`) is a unit rather than a variable.
    """
    unit: tuple[tuple[str, int], ...] = ()
    found = _MONEY_START.match(latex)
    if found:
        unit = ((_KNOWN[found["money"]], 1),)
        latex = (found["sign"] + latex[found.end() :]).strip()
    if latex.endswith("%") and len(latex) > 1:
        return Measure(latex.rstrip("%").rstrip(), unit, True)
    latex = _ORDINAL_END.sub("", latex)
    noun = _NOUN_END.search(latex)
    found = _UNIT_END.search(latex)
    if found and _is_unit(latex, found, attached):
        unit, latex = _factors(found["unit"]) if not unit else unit, latex[: found.start()].rstrip()
    elif noun and _is_noun(noun["noun"] or noun["text"]) and _COMPLETE.search(latex[: noun.start()].rstrip()):
        inner = measured(latex[: noun.start()].rstrip()) if noun.start() else Measure(latex)
        return inner._replace(unit=unit or inner.unit)
    else:
        latex = _CJK_END.sub("", latex)
    scale = _SCALE_END.search(latex)
    if scale and scale.start():
        latex = rf"{latex[: scale.start()].rstrip()}\cdot {_SCALES[scale['scale']]}"
    return Measure(latex, unit)


def trailing_unit(text: str, start: int) -> int:
    """Where the unit, scale word or ending of an ordinal at `start` ends; `start` itself without one."""
    found = _AFTER.match(text, start)
    return start if found is None else found.end()


def _is_unit(latex: str, found: re.Match[str], attached: bool) -> bool:
    body = latex[: found.start()].rstrip()
    if not body or not _COMPLETE.search(body):
        return False
    bare = found["unit"][0] in _LETTERS and not found["unit"][1:2].isalpha()
    if not bare:
        return True
    if _SYMBOLS.search(body):
        return False
    alone = found["unit"][0] in _BARE and "/" not in found["unit"] and body[-1].isdigit()
    return bool(found["space"]) or (attached and alone)


def _is_noun(words: str) -> bool:
    return not any(word in _VALUE_WORDS or word in _SCALES for word in re.split(r"[ -]", words.lower()))


def _factors(unit: str) -> tuple[tuple[str, int], ...]:
    powers: dict[str, int] = {}
    for part in _PART.finditer(unit.replace(r"\text{", " ").replace("^{", "^").replace("}", "")):
        sign = -1 if part["link"] else 1
        power = re.sub(r"[^-\d]", "", part["power"]) or {"s": 2, "c": 3}.get((part["kind"] or " ")[0], 1)
        name = _KNOWN[part["name"]]
        for base, own in _COMPOSED.get(name, ((name, 1),)):
            powers[base] = powers.get(base, 0) + sign * own * int(power)
    return tuple(sorted((name, power) for name, power in powers.items() if power))

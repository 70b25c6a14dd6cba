r"""The exact value of answers that are sums, products, powers and roots of numbers.

Most answers are such, and computer algebra would take a thousand times as long. Numbers have a largest size,
which is known before they are made: a tower of powers costs nothing.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

LARGEST = 1 << 16
"""Bits of the largest numerator or denominator, some 20,000 digits."""
_TOKEN = re.compile(r" *(\d+(?:\.\d*)?|\.\d+|\\[A-Za-z]+|\S)")
_DEEPEST = 60
_CLOSES = {"(": ")", "[": "]", "{": "}"}


class TooLarge(ArithmeticError):
    """A number would have more than `LARGEST` bits."""


class _NoNumber(ValueError):
    """The expression is not one of rational arithmetic."""


def exact_value(latex: str) -> Fraction | None:
    r"""The value of arithmetic in plain LaTeX; None if it holds anything else.

    A whole number before a proper fraction is a mixed number (`2\frac{1}{2}`, `2 1/2`), otherwise what
    stands side by side is a product.

    Raises:
        TooLarge: If a number on the way has more than `LARGEST` bits.
    """
    tokens, end = [], 0
    for found in _TOKEN.finditer(latex):
        tokens.append((found[1], found.start(1) > found.start() or found.start() > end))
        end = found.end()
    reader = _Reader(tokens)
    try:
        value = reader.sum()
        return value if reader.at == len(tokens) else None
    except (ValueError, ZeroDivisionError):
        return None


class _Reader:
    """Reads tokens from left to right; every method takes what its name says, and moves `at` behind it."""

    def __init__(self, tokens: list[tuple[str, bool]]):
        self.tokens, self.at, self.depth = tokens, 0, 0

    @property
    def next(self) -> str:
        return self.tokens[self.at][0] if self.at < len(self.tokens) else ""

    def take(self, token: str = "") -> str:
        taken = self.next
        if not taken or (token and taken != token):
            raise _NoNumber
        self.at += 1
        return taken

    def sum(self) -> Fraction:
        value = self.product()
        while self.next in ("+", "-"):
            sign = 1 if self.take() == "+" else -1
            value = _checked(value + sign * self.product())
        return value

    def product(self) -> Fraction:
        value = self.signed()
        while self.next:
            if self.next in (r"\cdot", "/"):
                if self.take() == "/":
                    value = _checked(value / self.signed())
                else:
                    value = _checked(value * self.signed())
            elif self.next in ("(", r"\frac", r"\sqrt", r"\binom"):
                value = _checked(value * self.power())
            else:
                break
        return value

    def signed(self) -> Fraction:
        if self.next in ("+", "-"):
            self.depth += 1
            if self.depth > _DEEPEST:
                raise _NoNumber
            return -self.signed() if self.take() == "-" else self.signed()
        return self.power()

    def power(self) -> Fraction:
        value = self.mixed()
        while self.next == "!":
            self.take()
            value = _factorial(value)
            if self.next == "!":
                raise _NoNumber
        if self.next == "^":
            self.take()
            value = _power(value, self.group("{") if self.next == "{" else self.signed())
        return value

    def mixed(self) -> Fraction:
        whole = self.next
        value = self.atom()
        if not whole.isdigit():
            return value
        start = self.at
        if self.next == r"\frac" or (self.next.isdigit() and self.tokens[self.at][1]):
            spaced = self.next != r"\frac"
            try:
                top = self.atom()
                if spaced:
                    self.take("/")
                    top /= self.atom()
            except _NoNumber:
                top = Fraction(-1)
            proper = 0 < top < 1 and self.next not in ("^", "!", "/")
            if proper:
                return value + top
            if spaced:
                raise _NoNumber
            self.at = start
        return value

    def atom(self) -> Fraction:
        token = self.take()
        if token[0].isdigit() or token[0] == ".":
            return Fraction(token)
        if token in ("(", "{", "["):
            self.at -= 1
            return self.group(token)
        if token == r"\frac":
            top = self.group("{")
            return _checked(top / self.group("{"))
        if token == r"\sqrt":
            order = self.group("[") if self.next == "[" else Fraction(2)
            return _root(self.group("{"), order)
        if token == r"\binom":
            return _binomial(self.group("{"), self.group("{"))
        raise _NoNumber

    def group(self, opens: str) -> Fraction:
        self.take(opens)
        self.depth += 1
        if self.depth > _DEEPEST:
            raise _NoNumber
        value = self.sum()
        self.take(_CLOSES[opens])
        self.depth -= 1
        return value


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _checked(value: Fraction) -> Fraction:
    if _bits(value) > LARGEST:
        raise TooLarge
    return value


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator > 1:
        if exponent.denominator > 99:
            raise _NoNumber
        base, exponent = _root(base, Fraction(exponent.denominator)), Fraction(exponent.numerator)
    if abs(base) not in (0, 1) and abs(exponent) * (_bits(base) - 1) > LARGEST:
        raise TooLarge
    if abs(base) in (0, 1):
        exponent = exponent if exponent < 2 else 2 + exponent % 2
        exponent = exponent if exponent > -2 or not base else -(2 + exponent % 2)
    if base == exponent == 0:
        raise _NoNumber
    return _checked(base ** int(exponent))


def _root(value: Fraction, order: Fraction) -> Fraction:
    """The root if it is rational; algebra knows the others."""
    if order.denominator > 1 or not 2 <= order <= 99 or value < 0:
        raise _NoNumber
    parts = []
    for whole in (value.numerator, value.denominator):
        root = math.isqrt(whole) if order == 2 else _integer_root(whole, int(order))
        if root ** int(order) != whole:
            raise _NoNumber
        parts.append(root)
    return Fraction(*parts)


def _integer_root(whole: int, order: int) -> int:
    low, high = 0, 1 << (whole.bit_length() // order + 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**order <= whole else (low, middle - 1)
    return low


def _factorial(value: Fraction) -> Fraction:
    if value.denominator > 1 or value < 0:
        raise _NoNumber
    if value * value.numerator.bit_length() > 2 * LARGEST:
        raise TooLarge
    return _checked(Fraction(math.factorial(int(value))))


def _binomial(top: Fraction, bottom: Fraction) -> Fraction:
    if top.denominator > 1 or bottom.denominator > 1 or not 0 <= bottom <= top:
        raise _NoNumber
    if min(bottom, top - bottom) * top.numerator.bit_length() > LARGEST:
        raise TooLarge
    return Fraction(math.comb(int(top), int(bottom)))

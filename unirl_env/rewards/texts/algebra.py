"""The program that a `MathProcess` runs: math-verify with exact numbers, and a bound on what it may cost.

It is started by its path and imports nothing of this package. A first process imports the algebra and forks a
worker; where a worker ends, the next one is there at once. Both rules for numbers that are no texts stand
here: when a decimal stands for another value (`rounds_to`), and how large a number may be.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import signal
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from multiprocessing.connection import Connection
from typing import Any

GRACE_SECONDS = 0.25
"""Of processor time between the signal that interrupts a comparison and the one that ends the worker."""
DIGITS = 6
"""A decimal stands for a value that it rounds if it has as many decimals, and as many digits that count."""
LARGEST = 1 << 16
"""Bits of a number."""
_PLACES = 700
_IDLE, _EXPECTED, _GIVEN = range(3)


def same_number(one: Fraction, other: Fraction) -> bool:
    """Whether two values are equal, or one is a decimal that stands for the other."""
    return one == other or _stands_for(one, other) or _stands_for(other, one)


def _stands_for(decimal: Fraction, value: Fraction) -> bool:
    """Whether `decimal` is `value` rounded, or cut off, at its last digit, and has enough of them.

    One of 16 or 17 digits is what a double prints, and also stands for a shorter one that differs beyond the
    fifteenth: 0.30000000000000004 for 0.3.
    """
    places = _places(decimal)
    if places is None or places < DIGITS or (decimal < 0) != (value < 0):
        return False
    digits, exact = abs(decimal.numerator) * 10**places // decimal.denominator, abs(value) * 10**places
    count = len(str(digits))
    if count < DIGITS:
        return False
    cut = math.floor(exact)
    if digits == cut or digits == math.floor(exact + Fraction(1, 2)):
        return True
    unit = 10 ** (count - 15)
    return 16 <= count <= 17 and exact.denominator == 1 and cut % unit == 0 and abs(digits - cut) * 2 < unit


def _places(value: Fraction) -> int | None:
    """How many decimals a value has; None for endless ones, and for more than anybody writes."""
    rest, places = value.denominator, 0
    if rest.bit_length() > 4 * _PLACES:
        return None
    while rest % 10 == 0:
        rest, places = rest // 10, places + 1
    for factor in (2, 5):
        while rest % factor == 0:
            rest, places = rest // factor, places + 1
    return places if rest == 1 else None


def main(descriptor: int, timeout: float, memory: int) -> None:
    """Fork workers that answer until the parent is gone."""
    import resource

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prepare()
    stage = mmap.mmap(-1, 1)
    with Connection(descriptor) as connection, contextlib.suppress(EOFError, ConnectionError):
        connection.send_bytes(b"[]")
        while True:
            stage[0] = _IDLE
            worker = os.fork()
            if worker == 0:
                with contextlib.suppress(EOFError, ConnectionError):
                    _work(connection, stage, timeout)
                os._exit(0)
            _, status = os.waitpid(worker, 0)
            if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
                return
            if stage[0] == _IDLE:
                continue
            # Only the answer's own budget ends a worker by this signal; whatever else did is no answer.
            spent = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF
            answer = [stage[0] != _EXPECTED, False, False] if spent else None
            connection.send_bytes(json.dumps([None, answer]).encode())


def _work(connection: Connection, stage: mmap.mmap, timeout: float) -> None:
    signal.signal(signal.SIGVTALRM, _interrupt)
    # The default action ends the process even in the middle of a multiplication.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGVTALRM, signal.SIGPROF])
    while True:
        connection.poll(None)
        stage[0] = _EXPECTED
        number, expected, given = json.loads(connection.recv_bytes())
        answer = _answer(expected, given, stage, timeout)
        stage[0] = _IDLE
        connection.send_bytes(json.dumps([number, answer]).encode())


class _TimeUp(BaseException):
    """Passes through every `except Exception` of the algebra."""


def _interrupt(number: int, frame: object) -> None:
    raise _TimeUp


@contextlib.contextmanager
def _budget(seconds: float) -> Iterator[None]:
    """Processor time for what an answer needs; a busy machine, which takes longer, changes nothing."""
    signal.setitimer(signal.ITIMER_PROF, seconds + GRACE_SECONDS)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)


def _answer(expected: str, given: str, stage: mmap.mmap, timeout: float) -> tuple[bool, bool, bool]:
    """Whether the expected and the given answer could be read, and whether they are equal."""
    try:
        with _budget(timeout):
            known = _read(expected)
    except (_TimeUp, Exception):
        known = None
    if known is None:
        return False, False, False
    stage[0] = _GIVEN
    try:
        with _budget(timeout):
            said = _read(given)
            return True, said is not None, said is not None and _equal(known, said)
    except (_TimeUp, Exception):
        return True, False, False


_symbolic: Callable[[Any, Any], bool]
"""Math-verify's own, once `_prepare` was called."""


def _prepare() -> None:
    """Imports, and readings of a little of everything, which workers then inherit."""
    from math_verify import grader

    global _symbolic
    _symbolic = grader.sympy_symbolic_eq
    grader.sympy_numeric_eq, grader.sympy_symbolic_eq = _numeric_equal, _symbolic_equal
    for one, other in (
        (r"\frac{x}{2}", "0.5x"),
        (r"\sqrt{2}", "1.4"),
        ("(1, 2)", r"\{1, \pi\}"),
        ("x<1", "x>2"),
    ):
        known, said = _read(one), _read(other)
        assert not _equal(known, said) or one.endswith("{2}")
    _equal(_read("x^2 + 2x"), _read("x(x+2)"))


def _read(latex: str) -> Any:
    """A SymPy expression without floats; None if `latex` is none."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    rules = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none", equations=False
    )
    found = parse(
        f"${latex}$",
        (LatexExtractionConfig(boxed_match_priority=-1, normalization_config=rules),),
        fallback_mode="no_fallback",
        parsing_timeout=None,
    )
    if not found:
        return None
    expression = _exact(found[0])
    _magnitude(expression)
    return expression


def _exact(expression: Any) -> Any:
    """Decimals become fractions, and the letter i, to math-verify a variable, the imaginary unit."""
    import sympy

    if not isinstance(expression, sympy.Basic):
        return expression.applyfunc(_exact) if hasattr(expression, "applyfunc") else expression
    decimals = {number: sympy.Rational(str(number)) for number in expression.atoms(sympy.Float)}
    expression = expression.xreplace(decimals)
    units = {symbol: sympy.I for symbol in getattr(expression, "free_symbols", ()) if symbol.name == "i"}
    return expression.subs(units) if units and isinstance(expression, sympy.Expr) else expression


def _magnitude(expression: Any) -> float:
    """An upper bound of log2 of the absolute value of a number, 0 for what is none.

    Raises:
        OverflowError: If a number in `expression` has more than `LARGEST` bits.
    """
    import sympy

    if isinstance(expression, sympy.Rational):
        size = math.log2(max(abs(expression.p), expression.q))
    elif isinstance(expression, sympy.Symbol) or not hasattr(expression, "args"):
        return 0.0
    else:
        parts = [_magnitude(part) for part in expression.args]
        size = max(parts, default=0.0)
        if isinstance(expression, sympy.Mul | sympy.Add):
            size = sum(parts)
        elif isinstance(expression, sympy.Pow):
            size = (parts[0] or 1.0) * 2.0 ** min(parts[1], 64.0) if expression.exp.is_number else size
        elif isinstance(expression, sympy.factorial | sympy.factorial2 | sympy.gamma):
            size = parts[0] * 2.0 ** min(parts[0], 64.0)
        elif isinstance(expression, sympy.exp | sympy.sinh | sympy.cosh):
            size = 2.0 ** min(parts[0] + 1, 64.0) if expression.is_number else size
    if size > LARGEST:
        raise OverflowError
    return size


def _equal(known: Any, said: Any) -> bool:
    from math_verify import verify

    return bool(verify([known], [said], timeout_seconds=None))


def _numeric_equal(one: Any, other: Any, *_: Any) -> bool:
    """Takes the place of math-verify's comparison, which rounds to six decimals whatever the size."""
    import sympy

    if isinstance(one, sympy.MatrixBase) or isinstance(other, sympy.MatrixBase):
        same = isinstance(one, sympy.MatrixBase) and isinstance(other, sympy.MatrixBase)
        return (
            same
            and one.shape == other.shape
            and all(
                a == b or _numeric_equal(a, b) or _symbolic(a, b) for a, b in zip(one, other, strict=True)
            )
        )
    if not (isinstance(one, sympy.Expr) and isinstance(other, sympy.Expr)):
        return False
    one, other = one.doit(), other.doit()
    if not (one.is_number and other.is_number):
        return bool((one - other).expand() == 0)
    if one.is_Rational and other.is_Rational:
        return same_number(Fraction(one.p, one.q), Fraction(other.p, other.q))
    if not (one.is_finite and other.is_finite):
        return bool(one == other)
    return _same_constant(one, other)


def _same_constant(one: Any, other: Any) -> bool:
    from sympy import S
    from sympy.core.evalf import PrecisionExhausted

    try:
        different = (one - other).evalf(15, maxn=400, strict=True) != S.Zero
    except PrecisionExhausted:
        different = False
    if not different:
        return True
    for decimal, value in ((one, other), (other, one)):
        if decimal.is_Rational and value.is_real:
            places = _places(Fraction(decimal.p, decimal.q))
            if places is not None and places >= DIGITS:
                near = value.evalf(places + len(str(abs(decimal.p))) + 20)
                return _stands_for(Fraction(decimal.p, decimal.q), Fraction(str(near)))
    return False


def _symbolic_equal(one: Any, other: Any) -> bool:
    """Numbers are compared as numbers, once; all else as math-verify does."""
    if getattr(one, "is_number", False) and getattr(other, "is_number", False):
        return False
    return _symbolic(one, other)


if __name__ == "__main__":
    settings = json.loads(sys.argv[2])
    sys.path[:] = settings["path"]
    main(int(sys.argv[1]), settings["timeout"], settings["memory"])

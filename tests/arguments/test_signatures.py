"""Signatures that are whole where classes pass options on, and options held against them."""

import inspect

import pytest

from unirl_env.arguments.signatures import PassesOptions, options_of, require_own
from unirl_env.errors import ConfigError


class Inner:
    def __init__(self, *, size: int = 3, kind: str = "a"):
        self.size, self.kind = size, kind


class Outer(PassesOptions, passes_to=Inner):
    def __init__(self, name: str, *, size: int = 5, **options):
        self.name, self.inner = name, Inner(size=size, **options)


class Below(Outer):
    def __init__(self, name: str, *, more: bool = False, **options):
        super().__init__(name, **options)
        self.more = more


class Plain(Outer):
    def __init__(self, name: str):
        super().__init__(name)


def test_the_other_ones_arguments_are_shown_and_own_defaults_stay():
    shown = inspect.signature(Outer).parameters
    assert list(shown) == ["name", "size", "kind"] and shown["size"].default == 5
    assert list(inspect.signature(Below).parameters) == ["name", "more", "size", "kind"]
    assert list(inspect.signature(Plain).parameters) == ["name"]
    assert Below("x", kind="b").inner.kind == "b"


def test_options_are_those_of_the_whole_signature():
    assert options_of(Below) == {"name", "more", "size", "kind"} and options_of(Plain) == {"name"}
    assert options_of(print) is None
    with pytest.raises(ConfigError, match="must be its own, got 'sice', which is none; did you mean `size`"):
        require_own({"sice": 1}, options_of(Below), "Options must be its own")

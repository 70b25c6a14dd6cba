"""Patterns on texts, also those that would never end."""

import logging
import time

import pytest

from unirl_env.errors import ConfigError, ContractError
from unirl_env.modes import MODES
from unirl_env.rewards import build_scorer, for_mode, scoring
from unirl_env.rewards.texts.regex import RegexScorer
from unirl_env.types import Prompt, Sample


def judge(scorer, *texts, metadata=None):
    return scorer([Sample(text=text) for text in texts], [Prompt("p", metadata=metadata or {})] * len(texts))


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ({"pattern": r"\d+"}, [1, 0, 1]),
        ({"pattern": r"\d+", "mode": "fullmatch"}, [0, 0, 1]),
        ({"pattern": r"\d+", "expected": "no_match"}, [0, 1, 0]),
        ({"pattern": "TOTAL"}, [0, 0, 0]),
        ({"pattern": "TOTAL", "flags": "i"}, [1, 0, 0]),
        ({"pattern": "^of it$"}, [0, 0, 0]),
        ({"pattern": "^of it$", "flags": "m"}, [1, 0, 0]),
        ({"pattern": "42.of"}, [0, 0, 0]),
        ({"pattern": "42.of", "flags": "s"}, [1, 0, 0]),
        ({"pattern": "4 2  # the answer", "flags": "x"}, [1, 0, 1]),
        ({"pattern": "^ü$|^$"}, [0, 1, 0]),
    ],
)
def test_texts_are_matched_as_asked_for(options, values):
    scorer = build_scorer({"name": "regex", **options})
    assert judge(scorer, "a total of 42\nof it", "", "42").value.tolist() == values


def test_every_prompt_may_bring_its_own_pattern(caplog):
    scorer = RegexScorer()
    prompts = [
        Prompt("a", metadata={"regex": "^yes"}),
        Prompt("b", metadata={"regex": "^no"}),
        Prompt("c"),
        Prompt("d", metadata={"regex": "(unclosed"}),
        Prompt("e", metadata={"regex": ["^yes"]}),
    ]
    with caplog.at_level(logging.WARNING):
        scores = scorer([Sample(text="yes, it is")] * 5, prompts)
        scorer([Sample(text="no")] * 5, prompts)
    assert scores.value[:2].tolist() == [1, 0]
    assert scores.valid.tolist() == [True, True, False, False, False]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3  # once for each prompt at fault
    assert "'c': `metadata['regex']` is missing" in said[0]
    assert "'d': `metadata['regex']` is no regular expression: missing )" in said[1]
    assert "'e': `metadata['regex']` is no regular expression: it is no text, but list" in said[2]


def test_warnings_are_forgotten_when_they_are_many(caplog, monkeypatch):
    monkeypatch.setattr(scoring, "REMEMBERED", 2)
    scorer = RegexScorer()
    with caplog.at_level(logging.WARNING):
        for name in "abaacba":
            scorer([Sample(text="")], [Prompt(name)])
    assert [record.args[1] for record in caplog.records] == ["a", "b", "c", "a"]


def test_another_key_may_hold_the_pattern():
    assert judge(RegexScorer(key="form"), "ab", metadata={"form": "b$", "regex": "x"}).value.item() == 1


def test_a_pattern_that_does_not_end_is_stopped_and_its_text_is_invalid(caplog):
    scorer = RegexScorer("(a|aa)+$", timeout=0.2)
    begun = time.monotonic()
    with caplog.at_level(logging.WARNING):
        scores = judge(scorer, "aaa", "a" * 60 + "b", "bbb")
    assert time.monotonic() - begun < 5
    assert scores.valid.tolist() == [True, False, True]
    assert scores.value[[0, 2]].tolist() == [1, 0]
    assert "TimeoutError on a text of 61 characters; the limit is 0.2 s" in caplog.text


def test_alone_is_as_in_company():
    scorer = RegexScorer(r"(\w+) \1")
    texts = ["the the", "a b", "", "so so so"]
    together = judge(scorer, *texts).value.tolist()
    assert together == [judge(scorer, text).value.item() for text in texts] == [1, 0, 0, 1]


def test_a_sample_without_text_breaks_the_contract():
    with pytest.raises(ContractError, match=r"Sample\.text"):
        RegexScorer("a")([Sample()], [Prompt("p")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pattern": "(a"}, r"`pattern` must be a regular expression, got '\(a'"),
        ({"pattern": 3}, "`pattern` must be a regular expression, got 3: it is no text, but int"),
        ({"mode": "match"}, r"`mode` must be one of \['search', 'fullmatch'\], got 'match'"),
        ({"expected": True}, "`expected` must be one of"),
        ({"flags": "iu"}, "`flags` must be letters of 'imsxa', got 'iu'"),
        ({"timeout": 0}, "`timeout` must be a positive number of seconds, got 0"),
        ({"timeout": None}, "`timeout` must be a positive number"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        build_scorer({"name": "regex", **options})


def test_it_is_a_reward_of_texts():
    assert for_mode("regex", MODES.get("ar")) == "regex"
    with pytest.raises(ConfigError, match="must be a reward of image or latent"):
        for_mode("regex", MODES.get("diffusion"))

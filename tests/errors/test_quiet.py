"""Loading and reading a model fill no screen, and what the user had set is set again."""

import logging

import gymnasium as gym
import pytest

import unirl_env  # noqa: F401  # registers the ids
from unirl_env.errors.quiet import quiet_loading, unheard
from unirl_env.models.sd3 import SD3Denoiser
from unirl_env.models.shared import of_diffusers
from unirl_env.types import Prompt


@pytest.fixture
def bars():
    """`bars()`: whether diffusers, transformers and the hub show theirs; as before afterwards."""
    import diffusers.utils.logging as one
    import transformers.utils.logging as two
    from huggingface_hub import utils as hub

    before = (
        one.is_progress_bar_enabled(),
        two.is_progress_bar_enabled(),
        not hub.are_progress_bars_disabled(),
    )

    def show(diffusers, transformers, downloads):
        (one.enable_progress_bar if diffusers else one.disable_progress_bar)()
        (two.enable_progress_bar if transformers else two.disable_progress_bar)()
        (hub.enable_progress_bars if downloads else hub.disable_progress_bars)()

    def shown():
        return (
            one.is_progress_bar_enabled(),
            two.is_progress_bar_enabled(),
            not hub.are_progress_bars_disabled(),
        )

    shown.set = show
    yield shown
    show(*before)


@pytest.mark.parametrize("own", [(True, True, True), (False, True, True), (True, True, False), (False,) * 3])
def test_bars_are_hidden_for_the_while_except_those_of_downloads(bars, own):
    bars.set(*own)
    with pytest.raises(KeyError), quiet_loading():
        assert bars() == (False, False, own[2])
        raise KeyError
    assert bars()[:2] == own[:2]


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("unirl/TinySD3-T2I-v0", "a red circle"),
        ("unirl/TinyQwen3-Math-v0", "1+1="),
        ("unirl/TinyUnified-T2I-v0", "a"),
    ],
)
def test_making_an_environment_writes_nothing(bars, capfd, caplog, name, prompt):
    bars.set(True, True, True)
    env = gym.make(name, prompts=[prompt], scorer=None)
    env.reset(seed=0)
    env.unwrapped.close()
    assert capfd.readouterr() == ("", "") and not caplog.text
    assert bars() == (True, True, True)


def test_prompts_that_are_not_read_to_the_end_are_told_of_once(tiny_dir, capfd, caplog, monkeypatch):
    monkeypatch.setattr(of_diffusers, "_told", set())
    denoiser = SD3Denoiser(str(tiny_dir), max_sequence_length=8)
    denoiser.encode([Prompt("a red circle")])
    assert not caplog.text
    for _ in range(2):
        denoiser.encode([Prompt("a red circle at the very top, and below it " + "a green triangle, " * 40)])
    (record,) = caplog.records
    assert record.name == "unirl_env.models.shared.of_diffusers"
    assert "do not read every prompt to its end" in record.getMessage()
    assert "a red circle at the very top" in record.getMessage() and "at most 8 tokens" in record.getMessage()
    assert capfd.readouterr().err.count("truncated") == 0


def test_other_words_of_the_same_loggers_pass(caplog):
    logger = logging.getLogger("chatty.library")
    with unheard(("chatty.library",), ("was truncated",)) as said:
        logger.warning("your input %s", "was truncated")
        logger.warning("the disk is full")
    logger.warning("this was truncated, too")
    assert said == ["your input was truncated"]
    assert [record.getMessage() for record in caplog.records] == [
        "the disk is full",
        "this was truncated, too",
    ]

"""What rewards ask of prompts, found out before anything is played."""

import json
import re

import gymnasium as gym
import pytest
import torch
from worlds import world

from unirl_env.errors import ConfigError, ContractError, PromptError
from unirl_env.prompts.sources import PromptSource
from unirl_env.rewards import build_scorer, needs_of, require_judgeable, score_safely
from unirl_env.rewards.asks import asks_of
from unirl_env.rewards.compose import Background
from unirl_env.run.preflight import preflight
from unirl_env.train import recipes, settings
from unirl_env.types import Prompt, Sample, Scores
from unirl_env.wrappers.reward import RewardWrapper

RUBRIC = "Grade {answer} by {metadata.level.name}; it should be {expected}."
JUDGE = {"name": "judge", "url": "http://127.0.0.1:9/v1", "model": "m", "rubric": RUBRIC}
HTTP = {"name": "http", "url": "http://127.0.0.1:9", "fields": ["prompt", "text", "metadata.key"]}
REMOTE = {"name": "remote", "urls": "http://127.0.0.1:9", "reward": "x"}
CASES = [
    ("exact", {"answer": "4"}, {}),
    ("exact", {"answer": [4, "four"]}, {"answer": []}),
    ("exact", {"answer": 0}, {"answer": True}),
    ({"name": "exact", "key": "solution"}, {"solution": "4"}, {"answer": "4"}),
    ("math", {"answer": "4"}, {"answer": None}),
    ("choice", {"answer": "(B)"}, {"answer": "a dog"}),
    ({"name": "choice", "letters": "AB"}, {"answer": "B"}, {"answer": "C"}),
    ("regex", {"regex": "a+"}, {"regex": "("}),
    ({"name": "regex", "key": "form"}, {"form": "a+"}, {"regex": "a+"}),
    ("plan", {"caption": "a red circle left of a blue square"}, {"caption": "a cat"}),
    ("ocr", {"ocr_text": "Stop"}, {"ocr_text": 7}),
    ("geneval", {"include": [{"class": "circle"}]}, {"include": [{"count": 2}]}),
    ("geneval", {"include": [{"class": "circle"}]}, {"include": []}),
    ("vqa", {"questions": [["Is it red?", "yes"]]}, {"questions": [["Is it red?"]]}),
    (JUDGE, {"answer": "4", "level": {"name": "easy"}}, {"answer": "4", "level": {}}),
    (HTTP, {"key": 1}, {"kay": 1}),
    (REMOTE, {"count": 3}, {"count": {1, 2}}),
    ("shapes", {"caption": "a red circle left of a blue square"}, {}),
]


@pytest.mark.parametrize(("spec", "right", "wrong"), CASES)
def test_every_scorer_says_what_it_asks_for_without_being_built(spec, right, wrong):
    prompts = [
        Prompt("one", metadata=right),
        Prompt("another", metadata=wrong),
        Prompt("a third", metadata=right),
    ]
    require_judgeable(spec, prompts[::2])
    with pytest.raises(PromptError, match=r"got 1 of 3 .*the prompt 'another'"):
        require_judgeable(spec, prompts)


@pytest.mark.parametrize(
    "spec", ["jpeg", "clip", "length", {"name": "regex", "pattern": "a"}, "linear", "format"]
)
def test_others_ask_for_nothing(spec):
    assert asks_of(spec) == {}


WRAPPED = [
    {"name": "weighted_sum", "parts": {"exact": 1.0, "jpeg": 0.1}},
    {"name": "weighted_sum", "parts": {"mine": {"name": "exact", "weight": 0.5}, "jpeg": 1}},
    {"name": "product", "parts": {"exact": {}, "jpeg": {}}},
    {"name": "minimum", "parts": {"exact": {}, "jpeg": {}}},
    {"name": "gate", "gate": "jpeg", "scorer": "exact", "threshold": 0.5},
    {"name": "overlong", "scorer": "exact", "mode": "zero"},
    {"name": "normalized", "scorer": "exact", "low": 0, "high": 2},
    {"name": "pictured", "scorer": {"name": "gate", "gate": "exact", "scorer": "jpeg", "threshold": 1}},
]


@pytest.mark.parametrize("spec", WRAPPED)
def test_compositions_pass_it_on_in_words_and_built(spec):
    for found in (spec, build_scorer(spec), Background(build_scorer(spec))):
        with pytest.raises(PromptError, match=r"`exact`: `Prompt\.metadata"):
            require_judgeable(found, [Prompt("1 + 1")])
        require_judgeable(found, [Prompt("1 + 1", metadata={"answer": 2})])


def test_a_part_that_is_only_watched_asks_for_nothing():
    spec = {"name": "weighted_sum", "parts": {"jpeg": 1.0, "exact": 0}}
    for found in (spec, build_scorer(spec)):
        require_judgeable(found, [Prompt("1 + 1")])


class Own:
    """A scorer of a user's own, with what it asks for as a method."""

    name = "own"

    def __init__(self, least=0):
        self.least = least

    def asks(self, prompt):
        if prompt.metadata["level"] < self.least:
            raise ValueError(f"its level must be at least {self.least}")

    def __call__(self, samples, prompts):
        return Scores([1.0] * len(samples))


class Named(Own):
    asks = ("metadata.level", "images")


class Told(Own):
    @staticmethod
    def asks_with(least=0, **options):
        return lambda prompt: Own(least).asks(prompt)


def judge(samples, prompts):
    return Scores([1.0] * len(samples))


judge.asks = "metadata.level"


def test_a_scorer_of_ones_own_may_say_so_too():
    low, none = [Prompt("x", metadata={"level": 1})], [Prompt("x")]
    for scorer in (Own(2), {"name": f"{__name__}:Told", "least": 2}):
        with pytest.raises(PromptError, match="its level must be at least 2"):
            require_judgeable(scorer, low)
        with pytest.raises(PromptError, match="KeyError: 'level'"):
            require_judgeable(scorer, none)
    require_judgeable(f"{__name__}:Own", none)  # a method needs an object
    for scorer in (Named(), f"{__name__}:Named", judge, f"{__name__}:judge"):
        with pytest.raises(PromptError, match=r"`metadata.level` must be there"):
            require_judgeable(scorer, none)
    with pytest.raises(PromptError, match="`images` must be there"):
        require_judgeable(Named(), low)
    pictured = [Prompt("x", metadata={"level": 1}, images=(torch.rand(3, 4, 4),))]
    require_judgeable(Named(), pictured)


@pytest.mark.parametrize("asks", ["answer", "metadata", "metadata.", ("video",), 7])
def test_a_name_that_prompts_do_not_have_is_refused(asks):
    scorer = Own()
    scorer.asks = asks
    with pytest.raises(ConfigError, match="`asks` of the reward 'own' must be names"):
        require_judgeable(scorer, [Prompt("x")])


def test_lines_of_a_file_are_named_and_many_are_counted(tmp_path):
    lines = [{"prompt": f"{n}?", **({"answer": n} if n % 2 else {})} for n in range(12)]
    path = tmp_path / "sums.jsonl"
    path.write_text("\n\n".join(map(json.dumps, lines)))
    with pytest.raises(PromptError) as error:
        require_judgeable("exact", PromptSource.of(path), reward="reward.train", source="prompts.train")
    assert re.search(r"`prompts.train` \(.*sums.jsonl\) .*`reward.train` .*got 6 of 12", str(error.value))
    assert all(f"line {line}: the prompt" in str(error.value) for line in (1, 5, 9))
    assert "and 3 more" in str(error.value)


@pytest.mark.parametrize(("field", "said"), [("train", "prompts.train"), ("heldout", "prompts.heldout")])
def test_a_run_is_refused_before_anything_is_loaded(tmp_path, field, said):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "1+1?", "answer": 2}\n{"prompt": "1+2?"}\n')
    words = [f"prompts.{field}={path}", "rollout.num_prompts=2"]
    with pytest.raises(PromptError, match=rf"`{said}` .*`reward.train` asks for, got 1 of 2 .*line 2"):
        preflight(settings("ar/tiny_qwen3", words))


@pytest.mark.slow
def test_prompts_of_all_recipes_have_what_their_rewards_ask_for():
    for recipe in recipes():
        cfg = settings(recipe)
        for spec in (cfg.reward.train, cfg.reward.heldout):
            for source in (cfg.prompts.train, cfg.prompts.heldout):
                if spec is not None and source is not None:
                    require_judgeable(spec, PromptSource.of(source), reward=recipe)


def test_an_environment_asks_when_it_is_made():
    prompts = ["a red circle left of a blue square", {"prompt": "a cat", "regex": "a+"}]
    with pytest.raises(PromptError, match=r"entry 0: the prompt 'a red .*`exact`"):
        gym.make_vec("unirl/GaussianMixture-v0", num_envs=2, scorer="exact", prompts=prompts)
    with pytest.raises(PromptError, match=r"entry 1: the prompt 'a cat': `shapes`"):
        gym.make("unirl/GaussianMixture-v0", scorer="shapes", prompts=prompts)


def test_who_takes_invalid_scores_is_only_warned_of_them(caplog):
    prompts = PromptSource.of([{"prompt": "1+1?", "answer": 2}, "1+2?"])
    RewardWrapper(world(prompts=prompts), build_scorer("regex"), on_invalid=0.0)
    assert "Scores will be invalid" in caplog.text and "`metadata['regex']` is missing" in caplog.text
    with pytest.raises(PromptError, match="`exact`"):  # scoring it would raise, whatever is invalid
        RewardWrapper(world(prompts=prompts), build_scorer("exact"), on_invalid=0.0)


def test_what_is_said_beforehand_is_what_scoring_finds():
    for spec, right, wrong in CASES:
        if spec in ("vqa", "math") or (isinstance(spec, dict) and "url" in str(spec)):
            continue
        sample = (
            Sample(text="a", image=torch.rand(3, 32, 32)) if "image" in needs_of(spec) else Sample(text="a")
        )
        scorer = build_scorer(spec)
        assert score_safely(scorer, [sample], [Prompt("x", metadata=right)]).valid.all(), spec
        try:
            assert not score_safely(scorer, [sample], [Prompt("x", metadata=wrong)]).valid.any(), spec
        except ContractError:
            pass

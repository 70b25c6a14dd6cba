"""An algorithm's own settings, RLlib's words for ours, and groups of settings laid over one another."""

from dataclasses import dataclass

import pytest
from toy import toy_config

from unirl_env.agents import AgentConfig, FlowDPPOConfig, GRPOConfig
from unirl_env.agents.attributes import knob_names
from unirl_env.agents.grpo import GRPOKnobs
from unirl_env.errors import ConfigError
from unirl_env.settings import PolicySettings, Settings, StepSettings, setting


class PlainConfig(GRPOConfig):
    """As RLlib's users write one: attributes in `__init__`."""

    def __init__(self, algo_class=None):
        super().__init__(algo_class)
        self.baseline = 0.5
        self.anneal = False
        self.entropy_coeff = 0.01
        self.gamma = 0.9
        self.policy.dynamics = "cps"
        self.token_clip_low = 0.3


@dataclass
class DecayKnobs(Settings):
    decay: float = setting(0.9, above=0, below=1)
    """How much of it stays."""
    kind: str = setting("mean", choices=("mean", "median"))
    """Of what."""


class DecayConfig(GRPOConfig):
    knobs = DecayKnobs


def test_attributes_of_a_subclass_are_its_knobs():
    own = ("anneal", "baseline", "entropy_coeff", "gamma")
    assert set(knob_names(PlainConfig)) == {*own, *knob_names(GRPOConfig)}
    config = toy_config(PlainConfig, baseline=0.7, gamma=0.8, entropy_coeff=0.0)
    config.validate()
    assert (config.baseline, config.gamma, config.token_clip_low) == (0.7, 0.8, 0.3)
    again = PlainConfig.from_dict(config.to_dict())
    again.validate()
    assert again.baseline == 0.7
    with pytest.raises(ConfigError, match=r"`basline` must be a setting of PlainConfig.*try `baseline`"):
        toy_config(PlainConfig, basline=0.7)
    with pytest.raises(ConfigError, match="`anneal` must be True or False"):
        toy_config(PlainConfig, anneal="no").validate()
    with pytest.raises(ConfigError, match="`token_clip_low` must lie in"):
        toy_config(PlainConfig, token_clip_low=1.0).validate()


@pytest.mark.parametrize("word", ["gamma", "entropy_coeff"])
def test_a_word_of_rllibs_is_a_knob_only_of_who_makes_it_one(word):
    toy_config(PlainConfig, **{word: 0.5}).validate()
    with pytest.raises(ConfigError, match=f"`{word}` must stay unset"):
        toy_config(GRPOConfig).update_from_dict({word: 0.5}).validate()


def test_declared_knobs_join_those_of_the_class_that_is_derived_from():
    assert knob_names(DecayConfig) == tuple(sorted(["decay", "kind", *vars(GRPOKnobs())]))
    config = toy_config(DecayConfig, decay=0.5, clip_low=0.1)
    config.validate()
    assert (config.decay, config.kind, config.clip_low) == (0.5, "mean", 0.1)
    for settings, said in (
        ({"decay": 1.0}, r"`decay` must lie in \(0, 1\), got 1.0; try 0.9"),
        ({"kind": "mode"}, "`kind` must be one of mean, median, got 'mode'"),
        ({"decay": "much"}, "`decay` must be a finite number"),
        ({"clip_low": 2.0}, "`clip_low` must lie"),
    ):
        with pytest.raises(ConfigError, match=said):
            toy_config(DecayConfig, **settings).validate()


def test_knobs_may_be_a_plain_dataclass():
    @dataclass
    class Plain:
        width: int = 3

    class PlainKnobs(GRPOConfig):
        knobs = Plain

    assert toy_config(PlainKnobs, width=4).width == 4
    with pytest.raises(ConfigError, match=r"`width` must be a whole number, got 0.5"):
        toy_config(PlainKnobs, width=0.5).validate()


def test_a_knob_cannot_take_the_name_of_a_setting():
    @dataclass
    class Taken(Settings):
        lr: float = setting(1.0)

    for wrong, said in (
        (Taken, "`lr` must not be a knob of Wrong"),
        (3, "`Wrong.knobs` must be a dataclass"),
    ):
        with pytest.raises(ConfigError, match=said):
            type("Wrong", (GRPOConfig,), {"knobs": wrong})()


def test_given_fields_are_laid_over_the_present_ones():
    """Through `training`, by attribute and from Tune's dictionary alike."""
    config = toy_config(PlainConfig, policy={"eta": 0.3}).training(policy={"lora_rank": 2})
    config.policy = {"guidance": 2.0}
    config.update_from_dict({"policy": {"temperature": 0.9}, "steps": {"window": 2}})
    config.validate()
    assert config.policy == PolicySettings(
        lora_rank=2, lora_alpha=32, dynamics="cps", eta=0.3, guidance=2.0, temperature=0.9
    )
    assert config.steps == StepSettings(kind="all", window=2)
    whole = PolicySettings(eta=0.1)
    assert config.training(policy=whole).policy == whole, "a dataclass says all"


def test_no_two_configurations_share_a_group():
    given = PolicySettings(eta=0.5)
    one, other = (toy_config(GRPOConfig, policy=given) for _ in range(2))
    copied = one.copy()
    one.policy.eta, one.engine_options["rows"], one.steps.window = 0.1, 3, 7
    for untouched in (other, copied, GRPOConfig()):
        assert untouched.policy.eta in (0.5, 0.7) and not untouched.engine_options
        assert untouched.steps.window == 4
    assert given.eta == 0.5


@pytest.mark.parametrize(
    ("settings", "learners", "prompts"),
    [
        ({"train_batch_size": 96}, 0, 8),
        ({"train_batch_size": 48}, 2, 4),
        ({"train_batch_size_per_learner": 48}, 2, 8),
        ({"train_batch_size_per_learner": 48, "train_batch_size": 96}, 2, 8),
        ({"train_batch_size": 32, "group_size": 8}, 0, 4),
        ({"train_batch_size": 96, "num_prompts": 8}, 0, 8),
        ({}, 0, 8),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_rllibs_batch_size_counts_episodes(settings, learners, prompts, late):
    config = GRPOConfig().environment("toy:toy/Points-v0")
    config = config.learners(num_learners=learners) if not late else config
    config = config.training(**settings)
    config = config.learners(num_learners=learners) if late else config
    for again in (config, config.copy(), GRPOConfig.from_dict(config.to_dict())):
        again.validate()
        again.validate()
        assert again.num_prompts == prompts
        assert again.train_batch_size == again.total_train_batch_size == again.episodes
        assert again.train_batch_size_per_learner == again.episodes // max(1, learners)


def test_a_batch_size_follows_what_is_said_later():
    config = GRPOConfig().environment("toy:toy/Points-v0").training(train_batch_size=96)
    config.validate()
    config.training(group_size=8).validate()
    assert config.num_prompts == 12
    config.update_from_dict({"train_batch_size": 64}).validate()
    assert config.num_prompts == 8
    plain = GRPOConfig().environment("toy:toy/Points-v0").training(num_prompts=4)
    plain.validate()
    assert plain.training(num_prompts=2).train_batch_size == 24 and plain.validate() is None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"train_batch_size": 100}, "`group_size` must divide.*12 with `train_batch_size` = 100.*=96"),
        (
            {"train_batch_size": 96, "num_prompts": 4},
            "4 x 12 = 48 with `train_batch_size` = 96; try num_prompts=8",
        ),
        ({"num_prompts": 8, "train_batch_size": 48}, "8 x 12 = 96 with `train_batch_size` = 48"),
        ({"train_batch_size_per_learner": 50}, "50 x 2 = 100"),
        ({"train_batch_size": 48, "train_batch_size_per_learner": 48}, "must be 96.*got 48"),
        ({"train_batch_size": 0}, "`train_batch_size` must be at least 1"),
        ({"train_batch_size": "all"}, "`train_batch_size` must be a whole number"),
        ({"train_batch_size_per_learner": 1.5}, "`train_batch_size_per_learner` must be a whole number"),
    ],
)
def test_batch_sizes_that_contradict_are_refused_with_their_numbers(settings, said):
    config = GRPOConfig().environment("toy:toy/Points-v0").learners(num_learners=2)
    with pytest.raises(ConfigError, match=said):
        config.training(**settings).validate()
    config = FlowDPPOConfig().environment("toy:toy/Points-v0").learners(num_learners=2)
    with pytest.raises(ConfigError, match=said):
        config.update_from_dict(settings).validate()


def test_an_agent_without_knobs_has_none():
    assert knob_names(AgentConfig) == ()

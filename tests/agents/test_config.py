"""What an agent's settings refuse, before anything is built."""

import pickle

import numpy as np
import pytest
from toy import toy_config

from unirl_env.agents import DRPOConfig, FlowDPPOConfig, GRPOConfig
from unirl_env.errors import ConfigError
from unirl_env.settings import PolicySettings, StepSettings


def validated(config_class=GRPOConfig, **settings):
    config = toy_config(config_class, **settings)
    config.validate()
    return config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group_size": 5}, "`num_minibatches` x `num_learners`.*20 and 8; try group_size=8"),
        ({"num_prompts": 3}, "`num_env_runners` \\(2\\), got 3.*num_prompts=4"),
        ({"num_prompts": 0}, "`num_prompts` must be at least 1"),
        ({"micro_batch_size": 0}, "`micro_batch_size`"),
        ({"micro_batch_steps": 0}, "`micro_batch_steps`"),
        ({"rollout_batch_size": -1}, "`rollout_batch_size`"),
        ({"lr": "high"}, "`lr` must be a finite number"),
        ({"grad_clip": 0.0}, "`grad_clip`"),
        ({"anchor": "memory"}, "`anchor` must be one of rollout, replay, or null"),
        ({"advantage_scale": "all"}, "`advantage_scale`"),
        ({"steps": {"kind": "fraction", "fraction": (0.9, 1.0)}}, "`fraction`"),
        ({"steps": {"sort": "all"}}, "`steps` must have keys of kind.*'sort'"),
        ({"policy": {"rank": 3}}, "`policy` must have keys.*'rank'"),
        ({"clip_low": 1.5}, "`clip_low`"),
        ({"clip_high": 0.0}, "`clip_high`"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    config = toy_config(GRPOConfig, num_minibatches=4, **settings)
    config.env_runners(num_env_runners=2).learners(num_learners=2)
    with pytest.raises(ConfigError, match=message):
        config.validate()


@pytest.mark.parametrize(
    "settings",
    [
        {"same_noise": "no"},
        {"same_noise": 1},
        {"self_check": "true"},
        {"mask_truncated": None},
        {"keep_samples": 0},
        {"num_prompts": 4.0},
        {"group_size": 2.5},
        {"num_minibatches": True},
        {"warmup_iterations": 1.5},
        {"micro_batch_size": 2.0},
        {"micro_batch_size": "half"},
        {"rollout_batch_size": "8"},
        {"lr": float("nan")},
        {"lr": True},
        {"weight_decay": "0.1"},
        {"grad_clip": float("nan")},
        {"grad_clip": "1"},
        {"advantage_clip": True},
        {"betas": (0.9,)},
        {"betas": (0.9, 1.0)},
        {"betas": ("0.9", 0.99)},
        {"reference_kl": float("nan")},
        {"clip_low": "0.1"},
        {"clip_low": float("nan")},
        {"phase_weights": {"image": "1"}},
        {"phase_rewards": ["image"]},
        {"seed": 0.5},
        {"policy": {"eta": "0.7"}},
        {"policy": {"guidance": float("nan")}},
        {"policy": {"lora_rank": 4.0}},
        {"policy": {"gradient_checkpointing": "no"}},
        {"steps": {"kind": "random", "count": 1.5}},
        {"steps": {"kind": "window", "window": True}},
    ],
    ids=lambda value: type(value).__name__,
)
def test_settings_of_another_kind_are_refused(settings):
    """A text for a truth value, a truth value for a number, a fraction for a count, NaN for a number."""
    name, value = next(iter(settings.items()))
    inner = list(value)[-1] if name in ("policy", "steps") else name
    with pytest.raises(ConfigError, match=rf"`(\w+[._])?{inner}` must (be|lie)"):
        validated(**settings)


def test_whole_numbers_stand_for_floats_and_numpys_for_both():
    config = validated(lr=1, num_prompts=np.int64(4), grad_clip=None, policy={"eta": np.float32(1)})
    assert config.lr == 1 and config.num_prompts == 4


@pytest.mark.parametrize(
    ("config_class", "settings"),
    [(FlowDPPOConfig, {"kl_threshold": 0.0}), (DRPOConfig, {"epsilon": -1.0})],
)
def test_knobs_out_of_range_are_refused(config_class, settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        validated(config_class, **settings)


def test_an_unknown_setting_is_named_with_the_nearest_known_one():
    with pytest.raises(ConfigError, match=r"`kl_treshold`.*try `kl_threshold`"):
        FlowDPPOConfig().training(kl_treshold=1e-5)
    with pytest.raises(ConfigError, match="`kl_threshold`"):
        GRPOConfig().training(kl_threshold=1e-5)
    # A dictionary, as Tune gives it, goes past `training`.
    config = toy_config(GRPOConfig).update_from_dict({"clip_lo": 1e-3})
    with pytest.raises(ConfigError, match="`clip_lo`"):
        config.validate()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_epochs": 0}, "`num_epochs` must be at least 1"),
        ({"num_epochs": True}, "`num_epochs` must be a whole number"),
        ({"num_minibatches": 2.0}, "`num_minibatches` must be a whole number"),
        ({"minibatch_size": 5}, "divisible by `minibatch_size` x `num_learners`.*32 and 5"),
        ({"minibatch_size": 8, "num_minibatches": 8}, "`num_minibatches` must be 4 or stay unset"),
        ({"shuffle_batch_per_epoch": 1}, "`shuffle_batch_per_epoch` must be one of false, true, group"),
        ({"shuffle_batch_per_epoch": "groups"}, "`shuffle_batch_per_epoch`"),
        ({"shuffle_batch_per_epoch": "group", "num_minibatches": 8}, "cut a group.*try num_minibatches=4"),
        ({"shuffle_batch_per_epoch": "group", "minibatch_size": 4}, "cut a group.*'episode'|'episode'.*cut"),
        ({"grad_clip": -1.0}, "`grad_clip` must be positive, or null"),
        ({"grad_clip_by": "value"}, "`grad_clip_by` must be 'global_norm'"),
        ({"grad_clip_by": "norm"}, "`grad_clip_by` must be 'global_norm'"),
        ({"self_check_gap_mean": 0.0}, "`self_check_gap_mean` must be positive, or null"),
        ({"self_check_kl": float("nan")}, "`self_check_kl`"),
    ],
)
def test_epochs_that_do_not_divide_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        validated(**settings)
    # Tune's dictionaries go past `training`.
    with pytest.raises(ConfigError, match=message):
        toy_config(GRPOConfig).update_from_dict(settings).validate()


def test_minibatches_are_counted_or_sized_and_the_size_is_each_learners():
    assert validated().minibatches == 2 and validated(num_minibatches=4).minibatches == 4
    assert validated(minibatch_size=4).minibatches == 8
    config = toy_config(GRPOConfig, minibatch_size=4).learners(num_learners=2)
    config.validate()
    assert config.minibatches == 4, "a step takes 4 episodes of each of two learners"
    assert validated(minibatch_size=8, num_minibatches=4).minibatches == 4


def test_what_a_shuffle_moves():
    assert validated().shuffle is None, "as in RLlib, nothing unless asked for"
    assert validated(shuffle_batch_per_epoch=True).shuffle == "group"
    assert validated(shuffle_batch_per_epoch=True, num_minibatches=8).shuffle == "episode"
    assert validated(shuffle_batch_per_epoch="episode").shuffle == "episode"
    assert validated(shuffle_batch_per_epoch="group").shuffle == "group"


def test_rllibs_defaults_pass_and_survive_the_way_through_a_dictionary():
    config = validated(num_epochs=3, minibatch_size=8, shuffle_batch_per_epoch="episode", grad_clip=None)
    again = GRPOConfig.from_dict(config.to_dict())
    again.validate()
    assert (again.num_epochs, again.minibatches, again.shuffle, again.grad_clip) == (3, 4, "episode", None)


@pytest.mark.parametrize(
    ("word", "value", "remedy"),
    [
        ("gamma", 0.9, "nothing is discounted"),
        ("num_sgd_iter", 8, "`num_epochs`"),
        ("sgd_minibatch_size", 8, "`minibatch_size`"),
        ("use_critic", False, "no critic"),
        ("lambda_", 0.95, "`advantage_scale`"),
        ("vf_loss_coeff", 0.5, "no critic"),
        ("kl_coeff", 0.2, "`reference_kl`"),
        ("entropy_coeff", 0.01, "entropy"),
        ("clip_param", 0.2, "`clip_low`"),
        ("learner_config_dict", {"a": 1}, "`training"),
        ("model", {"fcnet_hiddens": [8]}, "`policy`"),
    ],
)
def test_rllibs_words_that_mean_nothing_here_are_refused_with_ours(word, value, remedy):
    message = f"`{word}` must stay unset.*{remedy}"
    with pytest.raises(ConfigError, match=message):
        toy_config(GRPOConfig, **{word: value}).validate()
    with pytest.raises(ConfigError, match=message):
        toy_config(GRPOConfig).update_from_dict({word: value}).validate()


def test_an_unknown_environment_is_refused():
    for env in ("unirl/Nothing-v0", "no_such_module:x/Y-v0", 3):
        with pytest.raises(ConfigError, match="`environment` must"):
            GRPOConfig().environment(env).validate()


def test_plain_ids_get_the_prefix_that_remote_runners_need():
    config = GRPOConfig().environment("unirl/GaussianMixture-v0")
    config.validate()
    assert config.env == "unirl_env:unirl/GaussianMixture-v0"
    assert config.num_steps == 10


def test_seeds_do_not_reach_rllib():
    for config in (
        toy_config(GRPOConfig, seed=7),
        toy_config(GRPOConfig).debugging(seed=7),
        toy_config(GRPOConfig).update_from_dict({"seed": 7}),
    ):
        config.validate()
        assert (config.run_seed, config.seed) == (7, None)


def test_groups_of_settings_may_be_dictionaries():
    config = validated(steps={"kind": "random", "count": 2}, policy=PolicySettings(eta=0.3))
    assert config.steps == StepSettings(kind="random", count=2)
    assert config.policy_options()["actor"]["eta"] == 0.3
    assert len(config.trained_steps(0)) == 2


def test_the_policy_takes_the_environments_model():
    config = toy_config(GRPOConfig, policy={"lora_rank": 4, "lora_targets": ["inner"]})
    config.environment(env_config={"pretrained": "somewhere", "device": "cpu", "num_steps": 4})
    options = config.policy_options() if config.validate() is None else None
    assert options["model"] == "toy:PointDenoiser"
    assert options["model_options"] == {"pretrained": "somewhere"}
    assert options["lora"] == {"rank": 4, "alpha": 32, "targets": ("inner",)}
    assert config.num_steps == 4


def test_guidance_asks_the_environment_for_negative_prompts():
    assert not validated().rollout_env_options()["with_negative"]
    assert validated(policy={"guidance": 4.5}).rollout_env_options()["with_negative"]


@pytest.mark.parametrize(("learners", "gpus"), [(0, 1), (2, 0)])
def test_a_device_says_where_the_drivers_parts_live(learners, gpus):
    config = toy_config(GRPOConfig).environment(env_config={"device": "cuda:1"})
    config.learners(num_learners=learners)
    if learners:
        with pytest.raises(ConfigError, match="`num_gpus_per_learner` must be positive"):
            config.validate()
    else:
        config.validate()
        assert (config.num_gpus_per_learner, config.local_gpu_idx) == (1, 1)


def test_warmup_rises_to_the_learning_rate():
    config = toy_config(GRPOConfig, lr=1.0, warmup_iterations=4)
    assert [config.learning_rate(i) for i in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert toy_config(GRPOConfig, lr=1.0).learning_rate(0) == 1.0


def test_a_configuration_can_be_pickled_and_copied():
    config = validated(FlowDPPOConfig, kl_threshold=1e-4)
    for copied in (pickle.loads(pickle.dumps(config)), config.copy()):
        assert copied.kl_threshold == 1e-4 and copied.steps == config.steps
        copied.validate()

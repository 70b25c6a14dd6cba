"""One record of a mode: found by an environment's arguments, open to users, resolved once by an agent."""

import copy
import pickle

import cloudpickle
import gymnasium as gym
import mdp_cases  # noqa: F401, registers its ids
import pytest
from plain_ring import Rings

from unirl_env.agents import DRPOConfig, FlowDPPOConfig, GRPOConfig, GSPOConfig
from unirl_env.agents.kinds import KINDS, LATENTS, Losses, PhaseKind
from unirl_env.errors import ConfigError
from unirl_env.modes import MODES, Mode, mode_of
from unirl_env.modes.mode import Playing
from unirl_env.registry import Registry
from unirl_env.worlds.ids import IDS

SHIPPED = ["ar", "diffusion", "mdp", "pe", "unified_model"]


@pytest.fixture
def names(monkeypatch):
    """The table, as it was afterwards."""
    monkeypatch.setattr(MODES, "_targets", dict(MODES._targets))
    return MODES


def test_the_shipped_modes_are_called_what_recipes_call_them():
    assert list(MODES) == SHIPPED
    for name in SHIPPED:
        mode = MODES.get(name)
        assert mode.name == name and isinstance(mode, Mode) and not mode.__dict__


def test_every_registered_id_has_its_mode():
    by_argument = {
        "denoiser": "diffusion",
        "language_model": "ar",
        "mdp": "mdp",
        "unified_model": "unified_model",
    }
    for name, arguments in IDS.items():
        (argument,) = by_argument.keys() & arguments.keys()
        expected = "pe" if "generator" in arguments else by_argument[argument]
        assert mode_of(gym.spec(name).kwargs).name == expected


@pytest.mark.parametrize("said", ["plain_ring:Rings", Rings, Rings()])
def test_a_mode_of_ones_own_is_handed_over(said):
    mode = mode_of({"mode": said, "compass": "plain_ring:Compass"})
    assert mode.name == "ring" and mode.argument == "compass" and mode.embedded == ""
    assert mode.gives is None and not (mode.engines or mode.steps or mode.may_skip or mode.generator)


def test_a_registered_mode_is_found_by_its_name_and_by_its_argument(names):
    names.register("ring", "plain_ring:Rings")
    assert mode_of({"mode": "ring"}).name == "ring"
    assert mode_of({"compass": "plain_ring:Compass"}).name == "ring"
    # A shipped one is not taken over.
    names.register("other", f"{__name__}:Denoisers")
    assert mode_of({"denoiser": "sd3"}).name == "diffusion"
    assert mode_of({"denoiser": "sd3", "mode": "other"}).name == "other"
    with pytest.raises(ConfigError, match="must be free"):
        names.register("ring", f"{__name__}:Denoisers")


class Denoisers(Playing):
    """A mode of one's own whose models are called as those of a shipped one."""

    name = "other"
    argument = "denoiser"
    environment = Rings.environment


class Unfinished(Mode):
    """Says nothing."""


class Nameless(Playing):
    """Lacks a name."""


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({}, "must name a model family, got none"),
        ({"denoiser": "sd3", "language_model": "causal_lm"}, "must name a model family"),
        ({"mode": "no_such_mode"}, "`mode` must be one of .*'diffusion'.*got 'no_such_mode'"),
        ({"mode": ""}, "`mode` must be one of"),
        ({"mode": "plain_ring:Compass"}, "`mode` must be one of .* or a `Mode`, got 'plain_ring:Compass'"),
        ({"mode": 3}, "or a `Mode`, got 3"),
        ({"mode": Unfinished}, "`mode` must answer phases, which Unfinished does not"),
        ({"mode": Nameless}, "`mode` must say its `name`, which Nameless does not"),
    ],
)
def test_modes_that_are_none(arguments, words):
    with pytest.raises(ConfigError, match=words):
        mode_of(arguments)


def test_an_agents_mode_is_resolved_once_and_follows_its_environment(monkeypatch):
    import unirl_env.agents.config as config

    asked = []

    def counted(arguments):
        asked.append(arguments)
        return mode_of(arguments)

    monkeypatch.setattr(config, "mode_of", counted)
    config = GRPOConfig().environment("cases/Walk-v0")
    assert [config.mode.name for _ in range(5)] == ["mdp"] * 5 and len(asked) == 1
    for twin in (copy.deepcopy(config), config.copy(), pickle.loads(cloudpickle.dumps(config))):
        assert twin.mode.name == "mdp"
    config.environment("unirl/TinyQwen3-Math-v0")
    assert config.mode.name == "ar"
    config.environment(env_config={"generator": {"denoiser": "tiny_sd3"}})
    assert config.mode.name == "pe"
    config.env_config["mode"] = "plain_ring:Rings"
    assert config.mode.name == "ring"
    config.freeze()
    assert config.mode.name == "ring"
    frozen = config.copy(copy_frozen=False).environment("unirl/GaussianMixture-v0", env_config={"mode": None})
    assert config.mode.name == "ring" and frozen.env_config["mode"] is None


def test_losses_hold_for_kinds_that_are_like_those_they_are_on(monkeypatch):
    for kind in (GRPOConfig, DRPOConfig, FlowDPPOConfig, GSPOConfig):
        assert kind.losses["discrete"] is kind.losses["tokens"] and "discrete" in kind.losses
    assert "continuous" in GRPOConfig.losses and "continuous" not in FlowDPPOConfig.losses
    own = Losses({"discrete": 1, "tokens": 2})
    assert own["discrete"] == 1 and own["tokens"] == 2 and "latents" not in own
    with pytest.raises(KeyError):
        Losses({})["latents"]
    with pytest.raises(ConfigError, match="`phase kind` must be one of"):
        _ = "no_such_kind" in own


MINE = PhaseKind(LATENTS.step, LATENTS.rows, LATENTS.micro_batches, LATENTS.reference_kl, like="latents")


def test_a_kind_of_ones_own_is_found_by_its_path():
    path = f"{__name__}:MINE"
    assert KINDS[path] is MINE and KINDS["latents"] is LATENTS
    assert GRPOConfig.losses[path] is GRPOConfig.losses["latents"]


def test_what_cannot_be_trained_is_refused_before_anything_is_built():
    def config(kind, env="cases/Throw-v0", **settings):
        policy = {"lora_rank": None, **settings.pop("policy", {})}
        return kind().environment(env).training(num_prompts=1, group_size=4, policy=policy, **settings)

    config(GRPOConfig).validate()
    config(FlowDPPOConfig, "cases/Walk-v0").validate()
    for kind in (FlowDPPOConfig, DRPOConfig):
        with pytest.raises(ConfigError, match=r"a loss on continuous \(real actions.*cases/Throw-v0"):
            config(kind).validate()
    with pytest.raises(ConfigError, match="`engine` must be 'local' in mode 'mdp', got 'vllm'"):
        config(GRPOConfig, engine="vllm").validate()
    for name, value in {
        "temperature": 0.0,
        "eval_temperature": 0.5,
        "top_p": 0.5,
        "top_k": 3,
        "guidance": 2.0,
    }.items():
        with pytest.raises(ConfigError, match=f"`policy.{name}` must"):
            config(GRPOConfig, policy={name: value}).validate()
    with pytest.raises(ConfigError, match=r"`train_phases` must name phases of .* which has actions"):
        config(GRPOConfig, train_phases=["image"]).validate()


def test_the_path_of_a_models_name_travels_to_the_policy(monkeypatch):
    class Named(Rings):
        models = Registry("compass", {"plain": "plain_ring:Compass"})

    config = GRPOConfig().environment("cases/Walk-v0")
    config.env_config |= {"mode": Named, "compass": "plain"}
    assert config.policy_options()["model"] == "plain_ring:Compass"
    assert config.mode.phases(config) == {"actions": "discrete"}

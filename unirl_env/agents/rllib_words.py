"""RLlib's words for training: those that mean the same here, and those that mean nothing.

RLlib gives every algorithm all of its settings, so that each of the latter would be accepted and do nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from unirl_env.agents.knobs import knob_defaults
from unirl_env.errors import ConfigError

__all__ = ["RLLIBS_OWN", "check_rllib_words", "knob_names", "own_names", "refuse_rllib_word"]

RLLIBS_OWN = ("learner_class", "model", "optimizer")
"""What RLlib itself sends through `training` when it reads a dictionary."""
SHARED = (
    "lr",
    "grad_clip",
    "grad_clip_by",
    "num_epochs",
    "minibatch_size",
    "shuffle_batch_per_epoch",
    "train_batch_size",
    "train_batch_size_per_learner",
)
"""RLlib's settings that mean the same here."""
EPOCHS = "try `num_epochs`"
CRITIC = "there is no critic: advantages compare the episodes of a group; see `advantage_scale`"
PENALTY = "try `reference_kl`, the weight of the KL to the untrained model, or the algorithm's trust region"
CONNECTORS = "the learner takes whole episodes as they are; try a wrapper of the environment"
WORDS = {
    "gamma": "an episode is paid once, for what it has made, and nothing is discounted",
    "num_sgd_iter": EPOCHS,
    "sgd_minibatch_size": "try `minibatch_size`, in episodes",
    "model": "the network is the environment's own model; try `policy`",
    "optimizer": "try `lr`, `betas` and `weight_decay`",
    "use_critic": CRITIC,
    "use_gae": CRITIC,
    "lambda_": CRITIC,
    "lambda": CRITIC,
    "vf_loss_coeff": CRITIC,
    "vf_clip_param": CRITIC,
    "vf_share_layers": CRITIC,
    "use_kl_loss": PENALTY,
    "kl_coeff": PENALTY,
    "kl_target": PENALTY,
    "entropy_coeff": "no loss here has an entropy bonus; try `reference_kl`",
    "clip_param": "try the algorithm's own range: `clip_low` on latents, `token_clip_low` on tokens",
    "clip_rewards": "advantages are scaled by their group; try `advantage_clip`",
    "learner_config_dict": "the learner reads the settings of `training()`",
    "learner_connector": CONNECTORS,
    "add_default_connectors_to_learner_pipeline": CONNECTORS,
    "torch_lr_scheduler_classes": "try `warmup_iterations`",
    "torch_grad_scaler_class": "try `model.dtype=bfloat16`, which needs no scaling",
    "log_gradients": "the log has their norm as `grad_norm`",
}
"""By RLlib's name, why it means nothing, and what does."""
PLACES = {name: f"_{name}" for name in WORDS if name.startswith(("torch_", "learner_connector"))}
"""Where RLlib keeps what it does not keep under the word itself."""


def refuse_rllib_word(name: str, value: Any) -> None:
    """Refuse a word of RLlib's that somebody has written.

    Raises:
        ConfigError: If it is one of those that mean nothing here, with the right one.
    """
    if name in WORDS:
        raise ConfigError(
            f"`{name}` must stay unset: it is a setting of RLlib that means nothing to this agent, got "
            f"{value!r}; {WORDS[name]}."
        )


def check_rllib_words(config: AlgorithmConfig) -> None:
    """Refuse such words that came another way; RLlib's own defaults pass, and so do an algorithm's knobs.

    Raises:
        ConfigError: Naming the first of them.
    """
    own, defaults, knobs = vars(config), _defaults(AlgorithmConfig), knob_names(type(config))
    for name in WORDS:
        place = PLACES.get(name, name)
        if name not in knobs and place in own and _changed(own, defaults, place):
            refuse_rllib_word(name, own[place])


@functools.cache
def own_names(config_class: type[AlgorithmConfig]) -> tuple[str, ...]:
    """The settings that `training` takes: what this library and the algorithm add, and RLlib's that fit."""
    names = {name for name in _defaults(config_class) if not name.startswith("_")}
    rllibs = _defaults(AlgorithmConfig).keys()
    return tuple(sorted((names - rllibs) | {*SHARED, *knob_names(config_class)}))


@functools.cache
def knob_names(config_class: type[AlgorithmConfig]) -> tuple[str, ...]:
    """All knobs of an algorithm: declared ones, and attributes that its configuration sets by itself.

    A word of RLlib's that means nothing to other agents is one where the algorithm gives it a default.
    """
    from unirl_env.agents.config import AgentConfig

    own, shared, declared = _defaults(config_class), _defaults(AgentConfig), knob_defaults(config_class)
    added = {name for name in own if name not in shared and not name.startswith("_")}
    words = {name for name in WORDS if _changed(own, shared, PLACES.get(name, name))}
    return tuple(sorted(added | declared.keys() | words))


@functools.cache
def _defaults(config_class: type[AlgorithmConfig]) -> dict[str, Any]:
    return vars(config_class())


def _changed(own: Mapping[str, Any], defaults: Mapping[str, Any], name: str) -> bool:
    return name in own and (name not in defaults or own[name] != defaults[name])

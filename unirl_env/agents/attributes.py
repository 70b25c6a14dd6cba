"""Which attributes an `AgentConfig` has: the settings of a run, an algorithm's knobs, and words of RLlib's.

`AgentSettings` and `RolloutSettings` are flat there (`config.lr`), as are the knobs of an algorithm: a
dataclass that its configuration names, or attributes that it sets. `StepSettings` and `PolicySettings` stay
dataclasses in an attribute. RLlib gives every algorithm all of its own settings; those that would be accepted
and do nothing are refused here.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.tune.search.sample import Domain

from unirl_env.arguments.values import like_default, whole
from unirl_env.errors import ConfigError
from unirl_env.settings import (
    AgentSettings,
    LearnerSettings,
    NoisingSettings,
    PolicySettings,
    RolloutSettings,
    Settings,
    StepSettings,
)
from unirl_env.settings.fields import check_values, python_name

FLAT = (AgentSettings, RolloutSettings)
"""Groups whose settings are attributes of their own."""
NESTED: Mapping[str, type[Settings]] = {
    "steps": StepSettings,
    "noising": NoisingSettings,
    "learner": LearnerSettings,
    "policy": PolicySettings,
}
"""Groups that are an attribute."""
RLLIBS_OWN = ("learner_class", "model")
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
    "optimizer",
)
"""RLlib's settings that mean the same here, and one that means more: `optimizer`."""
EPOCHS = "try `num_epochs`"
CRITIC = "there is no critic: advantages compare the episodes of a group; see `advantage_scale`"
PENALTY = "try `reference_kl`, the weight of the KL to the untrained model, or the algorithm's trust region"
CONNECTORS = "the learner takes whole episodes as they are; try a wrapper of the environment"
WORDS = {
    "gamma": "an episode is paid once, for what it has made, and nothing is discounted",
    "num_sgd_iter": EPOCHS,
    "sgd_minibatch_size": "try `minibatch_size`, in episodes",
    "model": "the network is the environment's own model; try `policy`",
    "use_critic": CRITIC,
    "use_gae": CRITIC,
    "lambda_": CRITIC,
    "lambda": CRITIC,
    "vf_loss_coeff": CRITIC,
    "vf_clip_param": CRITIC,
    "vf_share_layers": CRITIC,
    "use_kl_loss": PENALTY,
    "kl_coeff": PENALTY,
    "kl_target": f"{PENALTY}, or `stop_kl`, which ends an iteration",
    "entropy_coeff": "try `entropy_bonus`, the weight of the mean entropy of tokens or actions",
    "clip_param": "try the algorithm's own range: `clip_low` on latents, `token_clip_low` on tokens",
    "clip_rewards": "advantages are scaled by their group; try `advantage_clip`",
    "learner_config_dict": "the learner reads the settings of `training()`",
    "learner_connector": CONNECTORS,
    "add_default_connectors_to_learner_pipeline": CONNECTORS,
    "torch_lr_scheduler_classes": "try `lr_schedule` and `warmup_iterations`",
    "torch_grad_scaler_class": "try `model.dtype=bfloat16`, which needs no scaling",
    "log_gradients": "the log has their norm as `grad_norm`",
}
"""By RLlib's name, why it means nothing, and what does."""
PLACES = {name: f"_{name}" for name in WORDS if name.startswith(("torch_", "learner_connector"))}
"""Where RLlib keeps what it does not keep under the word itself."""


def defaults(config_class: type) -> dict[str, Any]:
    """The attributes that an agent's configuration has besides RLlib's: every agent's, and declared knobs.

    Raises:
        ConfigError: If a knob is called as a setting of every agent.
    """
    shared = {name: kind() for name, kind in NESTED.items()}
    for group in (kind() for kind in FLAT):
        shared |= {name: getattr(group, field.name) for name, field in _flat(group)}
    knobs = knob_defaults(config_class)
    taken = knobs.keys() & {*shared, "prompts", "run_seed", "seed"}
    if taken:
        name = min(taken)
        raise ConfigError(
            f"`{name}` must not be a knob of {config_class.__name__}: it is a setting of every agent; "
            "try another name, or set it in `__init__` after `super().__init__()`."
        )
    return shared | knobs


def take_over(config: Any, group: Any) -> None:
    """Set the attributes of an `AgentConfig` that stand for a group of settings.

    What is null and thereby the algorithm's own is left as the algorithm has it.
    """
    for name, field in _flat(group):
        value = getattr(group, field.name)
        if value is not None or not field.metadata.get("inherits"):
            setattr(config, name, value)


def rebuilt(kind: type, config: Any) -> Any:
    """A group of settings as the attributes of an `AgentConfig` have it."""
    return kind(**{field.name: getattr(config, name) for name, field in _flat(kind)})


def laid_over(kind: type[Any], present: Any, given: Any) -> Any:
    """A group of settings: given fields over the present ones, or as it is given as a whole.

    What does not fit is returned as it is; `check_groups` refuses it.
    """
    if isinstance(given, kind):
        return dataclasses.replace(given)  # so that two configurations never share one
    if not isinstance(given, Mapping):
        return given
    if isinstance(present, kind):
        present = {field.name: getattr(present, field.name) for field in dataclasses.fields(kind)}
    laid = {**present, **given} if isinstance(present, Mapping) else dict(given)
    if not laid.keys() <= {field.name for field in dataclasses.fields(kind)}:
        return given
    # Tune draws from search spaces that it finds in mappings, and sets what it has drawn.
    return laid if any(map(_is_searched, laid.values())) else kind(**laid)


def check_groups(config: AlgorithmConfig) -> None:
    """Refuse what cannot work in a group of settings by itself, the algorithm's knobs included.

    Raises:
        ConfigError: Naming the setting, its value and the remedy.
    """
    for name, kind in NESTED.items():
        group = getattr(config, name)
        if not isinstance(group, kind):
            known = [field.name for field in dataclasses.fields(kind)]
            wrong = (
                next((key for key in group if key not in known), group)
                if isinstance(group, Mapping)
                else group
            )
            raise ConfigError(f"`{name}` must have keys of {', '.join(known)}, got {wrong!r}.")
        group.check(f"{name}.")
    for kind in FLAT:
        rebuilt(kind, config).check()
    for kind in knob_kinds(type(config)):
        check_knobs(rebuilt(kind, config))
    # Of an attribute that stands for no declared knob, nothing is known but its default.
    plain = set(knob_names(type(config))) - knob_defaults(type(config)).keys()
    default = type(config)() if plain else None
    for name in sorted(plain):
        like_default(name, getattr(config, name), getattr(default, name))


def _is_searched(value: Any) -> bool:
    return isinstance(value, Domain) or (isinstance(value, Mapping) and "grid_search" in value)


def _flat(group: Any) -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    for field in dataclasses.fields(group):
        if name := python_name(field):
            yield name, field


def knob_kinds(config_class: type) -> list[type]:
    """The dataclasses of knobs that an algorithm and those that it derives from declare, its own first.

    Raises:
        ConfigError: If something else is declared.
    """
    found: list[type] = []
    for cls in config_class.__mro__:
        kind = vars(cls).get("knobs")
        if kind is None:
            continue
        if not (inspect.isclass(kind) and dataclasses.is_dataclass(kind)):
            raise ConfigError(
                f"`{cls.__name__}.knobs` must be a dataclass, got {kind!r}; try `@dataclass` over its class."
            )
        if not any(issubclass(known, kind) for known in found):
            found.append(kind)
    return found


def knob_defaults(config_class: type) -> dict[str, Any]:
    """The declared knobs of an algorithm, with their defaults."""
    found: dict[str, Any] = {}
    for kind in reversed(knob_kinds(config_class)):
        group = kind()
        found |= {field.name: getattr(group, field.name) for field in dataclasses.fields(group)}
    return found


def check_knobs(knobs: Any, prefix: str = "") -> None:
    """Refuse knobs that cannot work; a dataclass without a `check` is held against its types.

    Args:
        knobs: The dataclass.
        prefix: What stands before their names in an error.

    Raises:
        ConfigError: Naming the knob, its value and the remedy.
    """
    check = getattr(knobs, "check", None)
    if callable(check):
        check(prefix)
    else:
        check_values(knobs, prefix)


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
    own, shared, declared = (
        _defaults(config_class),
        _defaults(_plain(config_class)),
        knob_defaults(config_class),
    )
    added = {name for name in own if name not in shared and not name.startswith("_")}
    words = {name for name in WORDS if _changed(own, shared, PLACES.get(name, name))}
    return tuple(sorted(added | declared.keys() | words))


def _plain(config_class: type[AlgorithmConfig]) -> type[AlgorithmConfig]:
    """What all agents' settings derive from: the class next to RLlib's own."""
    return next(
        c
        for c in reversed(config_class.__mro__)
        if issubclass(c, AlgorithmConfig) and c is not AlgorithmConfig
    )


@functools.cache
def _defaults(config_class: type[AlgorithmConfig]) -> dict[str, Any]:
    return vars(config_class())


def _changed(own: Mapping[str, Any], defaults: Mapping[str, Any], name: str) -> bool:
    return name in own and (name not in defaults or own[name] != defaults[name])


class BatchSize:
    """RLlib's words for the number of episodes, beside `num_prompts` and `group_size` of an `AgentConfig`.

    What was said in several ways must agree, in whatever order it was said: `solve_batch_size` looks at it
    when all has been said. Where `num_prompts` was not, it follows from the others.
    """

    _train_batch_size: int | None = None
    _num_prompts_given: bool = False

    if TYPE_CHECKING:  # What stands for fields of settings, and RLlib's own.
        num_prompts: int
        group_size: int
        num_learners: int
        learner: Any
        _train_batch_size_per_learner: Any

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "num_prompts":
            super().__setattr__("_num_prompts_given", True)

    @property
    def train_batch_size(self) -> int:
        """B, episodes of an iteration."""
        given = self._train_batch_size
        return self.num_prompts * self.group_size if given is None else given

    @train_batch_size.setter
    def train_batch_size(self, value: int | None) -> None:
        self._train_batch_size = value

    @property
    def num_shares(self) -> int:
        """Among how many learners, or groups of them that read the same, episodes are dealt; at least 1."""
        return max(1, int(self.num_learners // self.learner.sharers))

    def solve_batch_size(self) -> None:
        """Let `num_prompts` follow from RLlib's words, where they were given and it was not.

        Raises:
            ConfigError: If numbers contradict each other, or are no whole groups.
        """
        total, each = self._train_batch_size, self._train_batch_size_per_learner
        learners, group_size = self.num_shares, self.group_size
        for name, value in (("train_batch_size", total), ("train_batch_size_per_learner", each)):
            if value is not None:
                whole(name, value, 1)
        if each is not None:
            episodes = each * learners
            said = f"`train_batch_size_per_learner` x `num_learners` = {each} x {learners} = {episodes}"
            if total not in (None, episodes):
                raise ConfigError(
                    f"`train_batch_size` must be {episodes} or stay unset with {said}, got {total}: both "
                    "count the episodes of an iteration; try one of the two."
                )
        elif total is not None:
            episodes, said = total, f"`train_batch_size` = {total}"
        else:
            return
        if episodes % group_size:
            raise ConfigError(
                f"`group_size` must divide the episodes of an iteration, got {group_size} with {said}: they "
                f"are whole groups; try train_batch_size={max(1, episodes // group_size) * group_size}."
            )
        if self._num_prompts_given and self.num_prompts * group_size != episodes:
            raise ConfigError(
                f"`num_prompts` x `group_size` must be the episodes of an iteration, got "
                f"{self.num_prompts} x {group_size} = {self.num_prompts * group_size} with {said}; try "
                f"num_prompts={episodes // group_size}, or to leave it unset."
            )
        self.num_prompts = episodes // group_size
        self._num_prompts_given = False

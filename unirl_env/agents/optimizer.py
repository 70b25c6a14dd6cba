"""The optimizer: how it is made, how far it goes, and what it moves: float32 masters of half precision."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unirl_env.errors import ConfigError
from unirl_env.registry import Registry, is_path


def learning_rate(config: Any, iteration: int) -> float:
    """The learning rate of an iteration, from 0: a linear rise to `lr`, then the schedule.

    With w iterations of warm-up, n of the schedule and x = (iteration - w) / (n - w), cut to [0, 1], it is
    lr (f + (1 - f) g), where f is `lr_final` and g = 1 - x (`linear`) or (1 + cos(pi x)) / 2 (`cosine`).

    Args:
        config: An `AgentConfig`.
        iteration: Its number.

    Raises:
        ConfigError: If nothing is left of it, so that nothing would be learned.

    Reference:
        Loshchilov and Hutter, "SGDR" (https://arxiv.org/abs/1608.03983), equation 5, without restarts.
    """
    warmup = config.warmup_iterations
    risen = min(1.0, (iteration + 1) / max(1, warmup))
    if config.lr_schedule == "constant":
        return float(config.lr * risen)
    length = config.lr_iterations
    gone = min(1.0, max(0.0, (iteration - warmup) / (length - warmup)))
    left = 1.0 - gone if config.lr_schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * gone))
    rate = float(config.lr * risen * (config.lr_final + (1.0 - config.lr_final) * left))
    if gone == 1.0 and not config.lr_final:
        raise ConfigError(
            f"`lr_iterations` must reach as far as the agent trains where `lr_final` is 0, got {length} in "
            f"iteration {iteration + 1}: nothing would be learned; try lr_final=0.1."
        )
    return rate


def check_optimizer(config: Any) -> None:
    """Refuse an optimizer that cannot be made, and a schedule that does not know its end.

    Raises:
        ConfigError: Naming the setting, its value and the remedy.
    """
    if config.grad_clip_by != "global_norm":
        raise ConfigError(
            f"`grad_clip_by` must be 'global_norm', got {config.grad_clip_by!r}: clipping each weight or "
            "value by itself turns the gradient; try 'global_norm' and `grad_clip`, which keep its "
            "direction."
        )
    if config.lr_schedule != "constant" and config.lr_iterations is None:
        raise ConfigError(
            f"`lr_iterations` must be given with `lr_schedule` {config.lr_schedule!r} where no run says how "
            "many iterations there are, got None; try as many as you will train."
        )
    make_optimizer(config, [nn.Parameter(torch.zeros(2, 2))], [1.0])


def lr_factors(actor: Any, trained: Sequence[nn.Parameter], phases: Mapping[str, float]) -> list[float]:
    """The factor on the learning rate of each trained weight.

    Args:
        actor: An `Actor`.
        trained: Its trained weights.
        phases: For some phases, the factor of the weights that no other one reads.

    Returns:
        A factor for each of `trained`.

    Raises:
        ConfigError: If a phase has no trained weights that no other one reads.
    """
    found = {id(weight): 1.0 for weight in trained}
    for phase, factor in phases.items():
        own = [id(weight) for weight in actor.private(phase) if id(weight) in found]
        if not own:
            raise ConfigError(
                f"`phase_lrs` must name phases with trained weights that no other one reads, got {phase!r}, "
                "which has none in this policy; try `phase_weights`."
            )
        found |= dict.fromkeys(own, factor)
    return [found[id(weight)] for weight in trained]


def make_optimizer(
    config: Any, weights: Sequence[nn.Parameter], factors: Sequence[float]
) -> torch.optim.Optimizer:
    """The optimizer of the settings: a group of weights for each factor on the learning rate.

    Args:
        config: An `AgentConfig`.
        weights: What it moves.
        factors: Of each, in the same order; a group has it as `factor`.

    Raises:
        ConfigError: If the path leads to no optimizer, or its arguments do not fit.
    """
    kind, options = _class_of(config.optimizer), dict(config.optimizer_options)
    known = inspect.signature(kind).parameters
    settings = {"betas": "betas", "weight_decay": "weight_decay", "eps": "adam_epsilon"}
    for argument, setting in settings.items():
        value = getattr(config, setting)
        if argument in known:
            options[argument] = tuple(value) if argument == "betas" else value
        elif value != (default := getattr(type(config)(), setting)):
            raise ConfigError(
                f"`{setting}` must be {default} with `optimizer` {config.optimizer}, which has no argument "
                f"`{argument}`, got {value}; try its own in `optimizer_options`."
            )
    if config.optimizer is None:
        options.setdefault("fused", all(weight.device.type in ("cpu", "cuda") for weight in weights))
    groups: dict[float, list[nn.Parameter]] = {}
    for weight, factor in zip(weights, factors, strict=True):
        groups.setdefault(factor, []).append(weight)
    given = [{"params": each, "lr": config.lr * factor} for factor, each in groups.items()]
    try:
        optimizer: torch.optim.Optimizer = kind(given, lr=config.lr, **options)
    except (TypeError, ValueError, AssertionError) as error:
        name = config.optimizer or "AdamW"
        raise ConfigError(
            f"`optimizer_options` must be arguments of `optimizer` {name}, got {config.optimizer_options}: "
            f"{error}"
        ) from error
    for group, factor in zip(optimizer.param_groups, groups, strict=True):
        group["factor"] = factor
    return optimizer


def _class_of(path: str | None) -> Any:
    if path is None:
        return torch.optim.AdamW
    if not is_path(path):
        name = next((name for name in dir(torch.optim) if name.lower() == path.lower()), "SGD")
        raise ConfigError(f"`optimizer` must be the path of a class, got {path!r}; try 'torch.optim:{name}'.")
    kind = Registry("optimizer").get(path)
    if not (inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer)):
        raise ConfigError(
            f"`optimizer` must be a class that derives from torch.optim.Optimizer, got {path!r}, which is "
            f"{kind!r}; try 'torch.optim:SGD'."
        )
    closure = inspect.signature(kind.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ConfigError(
            f"`optimizer` must take steps without a closure, got {path!r}, which computes losses anew in the "
            "middle of a step; try 'torch.optim:AdamW'."
        )
    return kind


class Masters:
    """What the optimizer moves, where the network computes with a cast of it.

    A step of 1e-6 on a weight of 0.05 is less than half of the way to the next bfloat16: rounding after every
    step would take it back. The masters keep what steps add up to, and the network holds `master.to(dtype)`,
    rounded to nearest. Moments and gradients are as wide as the masters. A gradient is added to the master's
    in float32 as soon as a backward pass has finished it, and its own memory is given back at once.

    The network's weights are what counts: whoever loads other ones into it, by whatever way, has changed the
    policy, and `follow` lets the masters begin there. Weights in float32 are their own masters; where all
    are, nothing here costs anything.

    Args:
        parameters: The policy's weights by name, trained and frozen ones, each once.

    Raises:
        ConfigError: If some are float16. Losses are divided by the number of rows, so gradients are small,
            and what is below 6e-8 is 0 there: with 500 000 tokens the gradient of adapters points elsewhere
            (cosine 0.77 on the embedded Qwen3; bfloat16: 0.999).

    Reference:
        Micikevicius et al., "Mixed Precision Training", section 3.1 (https://arxiv.org/abs/1710.03740).
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]):
        narrow = next((name for name, weight in parameters.items() if weight.dtype == torch.float16), None)
        if narrow is not None:
            raise ConfigError(
                f"`dtype` of a network that is trained must be float32 or bfloat16, got float16 (weight "
                f"`{narrow}`): its gradients would vanish without a word; try bfloat16."
            )
        self.weights: list[nn.Parameter] = []
        """What the optimizer trains, in the order of `parameters`."""
        self._pairs: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        for name, weight in parameters.items():
            if not weight.requires_grad:
                continue
            if weight.dtype.itemsize < torch.float32.itemsize:
                master = nn.Parameter(weight.detach().float())
                weight.register_post_accumulate_grad_hook(_giver(master))
                self._pairs[name] = weight, master
                self.weights.append(master)
            else:
                self.weights.append(weight)

    @torch.no_grad()
    def cast(self) -> None:
        """Give the network what the masters have become; in place, for all who hold its weights."""
        for weight, master in self._pairs.values():
            weight.copy_(master)

    @torch.no_grad()
    def follow(self) -> None:
        """Begin anew from every weight of the network that is no longer the cast of its master."""
        for weight, master in self._pairs.values():
            if not torch.equal(weight, master.to(weight.dtype)):
                master.copy_(weight)

    def state(self) -> dict[str, Tensor]:
        """The masters by name; nothing of weights that are their own. References, not copies."""
        self.follow()
        return {name: master.detach() for name, (_, master) in self._pairs.items()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over masters by name, and leave out other names; the network's weights come by another way."""
        for name, (_, master) in self._pairs.items():
            if name in state:
                master.copy_(state[name])


def _giver(master: nn.Parameter) -> Callable[[Tensor], None]:
    """A hook that adds a finished gradient to the master's and gives back its memory."""

    def give(weight: Tensor) -> None:
        assert weight.grad is not None  # it has just been finished
        if master.grad is None:
            master.grad = weight.grad.to(master.dtype)
        else:
            master.grad.add_(weight.grad)
        weight.grad = None

    return give

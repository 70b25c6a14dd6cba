"""What a learner leaves behind: published weights, and the state from which a run goes on bit for bit."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from torch import Tensor
from torch.distributed.tensor import DTensor

from unirl_env.agents.parallel import Parallel
from unirl_env.agents.parallel.stored import PartsWriter, read
from unirl_env.errors import CheckpointError, ConfigError
from unirl_env.policies.parts import divided_like, gathered
from unirl_env.policies.trained_weights import AVERAGE

logger = logging.getLogger(__name__)

NETWORK = "actor.network."
"""Where a policy keeps what it trains; the names in its state begin behind it."""
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class StatefulLearner(TorchLearner):
    """A learner of one policy, whose trained weights have `_masters` in float32."""

    _masters: Any
    _untouched: Mapping[str, Tensor]
    policy: Any
    parallel: Parallel
    """How the policy lies on the learners."""
    _writer: PartsWriter | None = None

    def get_parameters(self, module: Any) -> list[torch.nn.Parameter]:
        """The trainable parameters only."""
        return [parameter for parameter in module.parameters() if parameter.requires_grad]

    def _make_modules_ddp_if_necessary(self) -> None:
        # Nothing to wrap: gradients are exchanged once per optimizer step, not once per backward pass.
        return

    def export(self, what: str, weights: str = "trained") -> dict[str, bytes]:
        """The files of the published form of the `adapters` or the `weights`, by relative path.

        Args:
            what: Either of these.
            weights: Whose values: `"trained"`, or `"ema"`, the average.
        """
        with self.policy.actor.under(weights):
            policy = self._whole_policy(what) if self.parallel.divides else self.policy
            return {} if policy is None else _saved(policy.actor, what)

    def _whole_policy(self, what: str) -> Any:
        """A policy with the weights in force, on the CPU of the first learner; None on the others.

        It is built anew, because modules that are divided are no longer of their own classes. Where `what` is
        wanted are the `adapters`, it need not have the other weights.
        """
        own = self.policy
        state = gathered(own.actor.trainable_state())
        if dist.get_rank():
            return None
        spaces = {"observation_space": own.observation_space, "action_space": own.action_space}
        with self.parallel.making() if what == "adapters" else nullcontext():
            policy: Any = RLModuleSpec(type(own), model_config=own.model_config, **spaces).build()
        policy.set_state(state)
        return policy

    def count_parameters(self) -> tuple[int, int]:
        """How many weights are trained, and how many of the policy's are not."""
        sizes = [(p.numel(), p.requires_grad) for p in self.policy.parameters()]
        trained = sum(size for size, wanted in sizes if wanted)
        return trained, sum(size for size, _ in sizes) - trained

    def run_state(self) -> dict[str, Tensor]:
        """Weights and optimizer, by name, as tensors on the CPU; of half precision, the float32 masters."""
        return gathered(self._run_state())

    def _run_state(self) -> dict[str, Tensor]:
        """`run_state`, as this learner has it: the tensors themselves, in parts where it holds parts."""
        weights = {f"policy/{name}": tensor for name, tensor in self.policy.actor.state().items()}
        weights |= {f"policy/{name.removeprefix(NETWORK)}": t for name, t in self._masters.state().items()}
        return weights | _memory(self.get_optimizer(), self._moved())

    def begin_storing(self, folder: Path, facts: Callable[[Path], Any]) -> None:
        """Begin to write this learner's parts of `run_state`; see `PartsWriter.begin`. All learners must."""
        if self._writer is None:
            self._writer = PartsWriter()
        self._writer.begin(self._run_state, folder, facts)

    def end_storing(self) -> dict[str, Any]:
        """Wait for what was begun; see `PartsWriter.end`."""
        return {} if self._writer is None else self._writer.end()

    def load_run_state(self, tensors: Mapping[str, Tensor] | Path) -> None:
        """Go back to `run_state`'s result, bit for bit.

        Args:
            tensors: That result, or the folder in which learners have written it in parts.

        Raises:
            CheckpointError: If the tensors do not belong to this policy.
        """
        if isinstance(tensors, Path):
            tensors = read(tensors, self._models())
        weights = {
            name.removeprefix("policy/"): t for name, t in tensors.items() if name.startswith("policy/")
        }
        self.policy.set_state(weights)
        self._masters.load({NETWORK + name: tensor for name, tensor in weights.items()})
        load_optimizer_state(self.get_optimizer(), self._moved(), tensors, self._untouched)

    def _moved(self) -> dict[str, Tensor]:
        """What the optimizer moves, by the name of the weight."""
        named = self.policy.named_parameters()
        names = [name for name, parameter in named if parameter.requires_grad]
        return dict(zip(names, self._masters.weights, strict=True))

    def _models(self) -> dict[str, Tensor]:
        """By the names of weights, of their averages and of what the optimizer moves: how each lies here."""
        own = self.policy.actor.trainable_state()
        averages = {f"{AVERAGE}:{name}": weight for name, weight in own.items()}
        return own | averages | {NETWORK + name: weight for name, weight in own.items()}

    # RLlib's own checkpoints go through these; its defaults turn tensors into numpy, which has no bfloat16.

    def _get_optimizer_state(self) -> dict[str, Any]:
        # RLlib keeps the policy's state apart from this, as the network holds it.
        masters = {f"master/{name}": tensor for name, tensor in self._masters.state().items()}
        return gathered(masters | _memory(self.get_optimizer(), self._moved()))

    def _set_optimizer_state(self, state: Mapping[str, Any]) -> None:
        self._masters.load({name.removeprefix("master/"): tensor for name, tensor in state.items()})
        load_optimizer_state(self.get_optimizer(), self._moved(), state, self._untouched)


def _saved(actor: Any, what: str) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as directory:
        getattr(actor, f"save_{what}")(directory)
        root = Path(directory)
        files = sorted(path for path in root.rglob("*") if path.is_file())
        return {str(path.relative_to(root)): path.read_bytes() for path in files}


def require_saveable(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer whose memory of a weight could not be restored, before anybody relies on it.

    Raises:
        ConfigError: If something in it is neither a tensor nor a number.
    """
    for state in optimizer.state.values():
        for moment, value in state.items():
            if value is not None and not isinstance(value, Tensor | int | float):
                raise ConfigError(
                    f"`optimizer` must remember tensors and numbers of each weight, to be saved, got "
                    f"{type(value).__name__} as `{moment}` of {type(optimizer).__name__}; try another one."
                )


def optimizer_state(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the optimizer remembers, on the CPU; of AdamW nothing before the first step.

    Args:
        optimizer: Any whose memory of a weight is tensors and numbers.
        parameters: All that it moves, by name.

    Returns:
        `optimizer/<moment>/<parameter>` of tensors; `numbers/<moment>/<parameter>` of numbers, which are
        restored as such; and `groups/<entry>/<group>` of numbers that a group was not made with.
    """
    return gathered(_memory(optimizer, parameters))


def _memory(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`optimizer_state`, of the tensors themselves."""
    require_saveable(optimizer)
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        for moment, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{moment}/{name}"] = value
            elif value is not None:
                tensors[f"numbers/{moment}/{name}"] = _packed(value)
    for number, group in enumerate(optimizer.param_groups):
        for entry, value in group.items():
            moved = isinstance(value, int | float) and value != optimizer.defaults.get(entry)
            if moved and entry not in ("lr", "factor"):  # these follow from the settings
                tensors[f"groups/{entry}/{number}"] = _packed(value)
    return tensors


def load_optimizer_state(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    untouched: Mapping[str, Tensor] | None = None,
) -> None:
    """Give the optimizer back what `optimizer_state` returned; without any, it starts afresh.

    It does so, too, where AdamW's moments are narrower than what they belong to: a second moment in half
    precision never decays, and would hold every weight back for thousands of steps.

    Args:
        optimizer: As it was made, or later.
        parameters: All that it moves, by name.
        tensors: The state, among others.
        untouched: What it remembers before its first step; None for nothing.

    Raises:
        CheckpointError: If a moment is missing or has another shape than its parameter.
    """
    if type(optimizer) in (torch.optim.Adam, torch.optim.AdamW):
        narrow = [name for name, parameter in parameters.items() if _narrow(name, parameter, tensors)]
        if narrow:
            logger.warning(
                "AdamW starts afresh: the moments of %d weights were saved in half precision, in which they "
                "are wrong. The weights themselves are taken over.",
                len(narrow),
            )
            tensors = {}
    saved = _by_parameter(parameters, tensors)
    if any(saved.values()):
        _require_moments(optimizer, parameters, saved)
    else:
        saved = _by_parameter(parameters, untouched or {})
    places = [weight for group in optimizer.param_groups for weight in group["params"]]
    place = {id(weight): number for number, weight in enumerate(places)}
    state = {
        place[id(parameters[name])]: _divided(moments, parameters[name])
        for name, moments in saved.items()
        if moments
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for name, moments in saved.items():
        for moment, value in moments.items():
            held = optimizer.state[parameters[name]]
            # torch gives everything the weight's own data type, moments of eight bits, too.
            if isinstance(value, Tensor) and held[moment].dtype != value.dtype:
                held[moment] = value.to(held[moment].device)
    for number, group in enumerate(optimizer.param_groups):
        for entry in group:
            if (value := tensors.get(f"groups/{entry}/{number}")) is not None:
                group[entry] = value.item()


def _by_parameter(names: Collection[str], tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """The moments of each parameter; copies, which the optimizer may write over."""
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, value in tensors.items():
        place, _, rest = key.partition("/")
        moment, _, name = rest.partition("/")
        if place in ("optimizer", "numbers") and name in found:
            found[name][moment] = value.clone() if place == "optimizer" else value.item()
    return found


def _require_moments(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, Tensor],
    saved: Mapping[str, Mapping[str, Any]],
) -> None:
    """Raise CheckpointError unless each parameter has its moments: of AdamW all, of others any."""
    adam = type(optimizer) in (torch.optim.Adam, torch.optim.AdamW)
    wanted = MOMENTS if adam else ()
    if adam and optimizer.param_groups[0]["amsgrad"]:
        wanted = (*wanted, "max_exp_avg_sq")
    for name, parameter in parameters.items():
        for moment in wanted or list(saved[name])[:1] or ("<moment>",):
            value = saved[name].get(moment)
            if value is None or (adam and moment != "step" and value.shape != parameter.shape):
                found = "nothing" if value is None else f"shape {list(value.shape)}"
                raise CheckpointError(
                    f"`optimizer/{moment}/{name}` must have shape {list(parameter.shape)}, got {found}; try "
                    "the settings of the run that wrote this state."
                )


def _divided(moments: Mapping[str, Any], parameter: Tensor) -> dict[str, Any]:
    """Moments as their weight lies: divided where it is, but for numbers that are tensors."""
    if not isinstance(parameter, DTensor):
        return dict(moments)
    return {
        name: divided_like(value, parameter)
        if isinstance(value, Tensor) and not isinstance(value, DTensor) and value.shape == parameter.shape
        else value
        for name, value in moments.items()
    }


def _packed(value: float) -> Tensor:
    """A number as a tensor that gives back the very number."""
    return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)


def _narrow(name: str, parameter: Tensor, tensors: Mapping[str, Tensor]) -> bool:
    moment = tensors.get(f"optimizer/exp_avg_sq/{name}")
    return moment is not None and moment.dtype.itemsize < parameter.dtype.itemsize

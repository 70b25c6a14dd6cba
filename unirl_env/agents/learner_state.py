"""What a learner leaves behind: published weights, and the state from which a run goes on bit for bit."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from torch import Tensor

from unirl_env.errors import CheckpointError

logger = logging.getLogger(__name__)

NETWORK = "actor.network."
"""Where a policy keeps what it trains; the names in its state begin behind it."""
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class StatefulLearner(TorchLearner):
    """A learner of one policy, whose trained weights have `_masters` in float32."""

    _masters: Any
    policy: Any

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
        actor = self.policy.actor
        with tempfile.TemporaryDirectory() as directory, actor.under(weights):
            getattr(actor, f"save_{what}")(directory)
            root = Path(directory)
            files = sorted(path for path in root.rglob("*") if path.is_file())
            return {str(path.relative_to(root)): path.read_bytes() for path in files}

    def count_parameters(self) -> tuple[int, int]:
        """How many weights are trained, and how many of the policy's are not."""
        sizes = [(p.numel(), p.requires_grad) for p in self.policy.parameters()]
        trained = sum(size for size, wanted in sizes if wanted)
        return trained, sum(size for size, _ in sizes) - trained

    def run_state(self) -> dict[str, Tensor]:
        """Weights and optimizer, by name, as tensors on the CPU; of half precision, the float32 masters."""
        weights = {f"policy/{name}": tensor for name, tensor in self.policy.get_state().items()}
        weights |= {f"policy/{name.removeprefix(NETWORK)}": t for name, t in self._masters.state().items()}
        return weights | optimizer_state(self.get_optimizer(), self._names())

    def load_run_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to `run_state`'s result, bit for bit.

        Raises:
            CheckpointError: If the tensors do not belong to this policy.
        """
        weights = {
            name.removeprefix("policy/"): t for name, t in tensors.items() if name.startswith("policy/")
        }
        self.policy.set_state(weights)
        self._masters.load({NETWORK + name: tensor for name, tensor in weights.items()})
        load_optimizer_state(self.get_optimizer(), self._names(), tensors)

    def _names(self) -> list[str]:
        return [name for name, parameter in self.policy.named_parameters() if parameter.requires_grad]

    # RLlib's own checkpoints go through these; its defaults turn tensors into numpy, which has no bfloat16.

    def _get_optimizer_state(self) -> dict[str, Any]:
        # RLlib keeps the policy's state apart from this, as the network holds it.
        masters = {f"master/{name}": tensor for name, tensor in self._masters.state().items()}
        return masters | optimizer_state(self.get_optimizer(), self._names())

    def _set_optimizer_state(self, state: Mapping[str, Any]) -> None:
        self._masters.load({name.removeprefix("master/"): tensor for name, tensor in state.items()})
        load_optimizer_state(self.get_optimizer(), self._names(), state)


def optimizer_state(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, Tensor]:
    """`optimizer/<moment>/<parameter>` on the CPU; empty before the first step.

    Args:
        optimizer: With one group of parameters.
        names: The parameters' names, in the order of the group.
    """
    tensors = {}
    parameters = optimizer.param_groups[0]["params"]
    for name, parameter in zip(names, parameters, strict=True):
        for moment, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{moment}/{name}"] = torch.as_tensor(value).detach().cpu().clone()
    return tensors


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, names: Sequence[str], tensors: Mapping[str, Tensor]
) -> None:
    """Give the optimizer back what `optimizer_state` returned; without any, it starts afresh.

    It does so, too, where moments are narrower than what they belong to: a second moment in half precision
    never decays, and would hold every weight back for thousands of steps.

    Raises:
        CheckpointError: If a moment is missing or has another shape than its parameter.
    """
    parameters = optimizer.param_groups[0]["params"]
    present = any(name.startswith("optimizer/") for name in tensors)
    narrow = [
        name for name, parameter in zip(names, parameters, strict=True) if _narrow(name, parameter, tensors)
    ]
    if narrow:
        logger.warning(
            "AdamW starts afresh: the moments of %d weights were saved in half precision, in which they are "
            "wrong. The weights themselves are taken over.",
            len(narrow),
        )
        present = False
    state: dict[int, dict[str, Tensor]] = {}
    for number, (name, parameter) in enumerate(zip(names, parameters, strict=True)):
        if not present:
            break
        state[number] = {}
        for moment in MOMENTS:
            value = tensors.get(f"optimizer/{moment}/{name}")
            if value is None or (moment != "step" and value.shape != parameter.shape):
                found = "nothing" if value is None else f"shape {list(value.shape)}"
                raise CheckpointError(
                    f"`optimizer/{moment}/{name}` must have shape {list(parameter.shape)}, got {found}; try "
                    "the settings of the run that wrote this state."
                )
            state[number][moment] = value.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _narrow(name: str, parameter: Tensor, tensors: Mapping[str, Tensor]) -> bool:
    moment = tensors.get(f"optimizer/exp_avg_sq/{name}")
    return moment is not None and moment.dtype.itemsize < parameter.dtype.itemsize

"""What a Markov decision process must answer to be an environment and a policy.

As everywhere here there are two halves. The frozen half is a handful of pure functions over the states of B
episodes, a mapping of tensors; the trained half is a network from what an episode sees to logits over
`Discrete` actions, or to a mean and a log-std of `Box` ones. Rewards are the world's: a scorer judges the
`Sample` that a finished episode leaves, and what an MDP earns on its way it carries in its state.

    class Coin(MDP):
        action_space = spaces.Discrete(2)
        observation_spaces = {"side": spaces.Box(0, 1, (1,))}
        max_steps = 1

        def initial(self, prompts, noise): return {"side": (noise.uniform() < 0.5).float()}
        def transition(self, state, action, noise): return {"side": action.float()}
        def observation(self, state): return {"side": state["side"][:, None]}
        def sample(self, state): return [Sample(latent=side) for side in state["side"]]
        def network(self): return Linear()
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

import unirl_env.functional as F
from unirl_env.arguments.values import whole
from unirl_env.models.backbone import Backbone
from unirl_env.types import Prompt, Sample

State = Mapping[str, Tensor]
"""The state of N episodes: tensors `[N, ...]` by name."""


@dataclass(frozen=True)
class Noise:
    """Random numbers of N episodes at one step: functions of their keys, not of what was drawn before.

    Attributes:
        seeds: `[N]` int64, on the CPU.
        step: `[N]` int64, how many actions each has taken; -1 before the first state.
        device: Where the numbers are made.
    """

    seeds: Tensor
    step: Tensor
    device: torch.device

    def __len__(self) -> int:
        return len(self.seeds)

    def uniform(self) -> Tensor:
        """A number `[N]` float64 in [0, 1) for each; the same ones whenever it is asked."""
        return F.keyed_uniform(self.seeds, self.step, device=self.device)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers `[N, *shape]` float32; of the same shape the same ones."""
        return F.keyed_noise(self.seeds, self.step, shape, device=self.device)


class MDP(Backbone):
    """A decision process in the form of pure functions over the states of many episodes.

    Every function takes the states of N episodes, for any N, and row i of what it returns depends on row i
    alone. States are never written to. It is pickled as its constructor's arguments; a subclass that takes
    arguments of its own hands the rest on: `super().__init__(**options)`.

    Args:
        device: Where the states live.
        dtype: Of the network, for subclasses that care.
        rows_per_forward: Rows that the network sees at a time, so that its last bits do not depend on how
            many episodes there are; None lets it see all at once.

    Attributes:
        action_space: `Discrete`, or a `Box` of floating point numbers; actions outside a `Box` are clipped to
            it before `transition` sees them.
        observation_spaces: The space of each entry of an observation: `Box` or `Discrete`.
        max_steps: Episodes that are longer are truncated.
        lora_targets: Names of the network's linear layers that adapters attach to; without any, all weights
            are trained (`policy.lora_rank: null`).

    Raises:
        ConfigError: If an argument or an attribute is out of range or missing.
    """

    role = "mdp"
    action_space: spaces.Space
    observation_spaces: Mapping[str, spaces.Space]
    max_steps: int = 100
    lora_targets: tuple[str, ...] = ()

    def __init__(
        self,
        *,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "float32",
        rows_per_forward: int | None = None,
    ):
        self.device = torch.device(device)
        self.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        self.rows_per_forward = rows_per_forward
        if rows_per_forward is not None:
            self.rows_per_forward = whole("rows_per_forward", rows_per_forward, 1)

    def identity(self) -> dict[str, Any]:
        """What tells this process from another one, as plain values by name; a state goes on in no other."""
        arguments = {k: str(v) for k, v in self._arguments[1].items() if k not in ("device", "dtype")}
        return {**super().identity(), **arguments}

    @abstractmethod
    def initial(self, prompts: Sequence[Prompt], noise: Noise) -> State:
        """The first states of N episodes.

        Args:
            prompts: What each is to do; their text and metadata may say where it starts.
            noise: Random numbers for it; alike in a group that begins alike.
        """

    @abstractmethod
    def transition(self, state: State, action: Tensor, noise: Noise) -> State:
        """The next states of N episodes that are not over.

        Args:
            state: The present ones.
            action: `[N]` int64 in the `Discrete` space, or `[N, *shape]` float32 within the `Box`.
            noise: Random numbers for it, none of which draws the policy's actions.
        """

    @abstractmethod
    def observation(self, state: State) -> Mapping[str, Tensor]:
        """What N episodes see, each entry `[N, *shape]`."""

    @abstractmethod
    def sample(self, state: State) -> list[Sample]:
        """What N finished episodes leave for the scorer, for example `Sample(latent=...)`."""

    @abstractmethod
    def network(self) -> nn.Module:
        """A fresh copy of the trained half, always with the same weights.

        It is called with an observation, a mapping of tensors `[N, ...]`, and returns logits `[N, n]`, or a
        mean `[N, *shape]` and a log-std that broadcasts to it. Weights that are drawn should come from a
        generator of their own, or `torch.random.fork_rng`.
        """

    def terminated(self, state: State) -> Tensor:
        """`[N]` bool, which episodes are over; by default, only `max_steps` ends one."""
        return torch.zeros(len(next(iter(state.values()))), dtype=torch.bool, device=self.device)

    def truncated(self, state: State) -> Tensor:
        """`[N]` bool, which episodes are cut off for a reason other than `max_steps`; by default none."""
        return torch.zeros(len(next(iter(state.values()))), dtype=torch.bool, device=self.device)

    def pictures(self, state: State) -> list[Tensor]:
        """What to show of N episodes: pictures `[3, H, W]` in [0, 1]; without this method, nothing can be."""
        raise NotImplementedError(f"{type(self).__name__} shows no pictures.")

    def save_adapters(self, network: nn.Module, directory: str) -> None:
        """Write the network's adapters as `adapters.safetensors`, by the names in the network."""
        self._save(
            {name: t for name, t in network.state_dict().items() if "lora_" in name}, directory, "adapters"
        )

    def save_weights(self, network: nn.Module, directory: str) -> None:
        """Write all weights as `model.safetensors`, by the names in `network()`, adapters merged in."""
        from unirl_env.models.shared.exports import merged_state

        self._save(merged_state(network), directory, "model")

    @staticmethod
    def _save(state: Mapping[str, Tensor], directory: str, name: str) -> None:
        from pathlib import Path

        from safetensors.torch import save_file

        Path(directory).mkdir(parents=True, exist_ok=True)
        # Clones, because weights that share memory are refused.
        kept = {key: tensor.detach().cpu().clone().contiguous() for key, tensor in state.items()}
        save_file(kept, Path(directory) / f"{name}.safetensors", metadata={"format": "pt"})

"""RLlib's env runner for generative environments: one natively batched environment, whole episodes."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import ray
from ray.rllib.core import (
    COMPONENT_RL_MODULE,
    DEFAULT_MODULE_ID,
)
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES, INPUT_ENV_SPACES
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.utils.checkpoints import Checkpointable
from ray.rllib.utils.framework import get_device
from torch import Tensor

import unirl_env.functional as F
from unirl_env.envs.contract import env_attr
from unirl_env.episode import EpisodeBatch
from unirl_env.errors import ContractError, NoWeights
from unirl_env.policies.buckets import Bucket
from unirl_env.rollouts.callbacks import RunnerCallbacks
from unirl_env.rollouts.driver import RolloutRequest
from unirl_env.rollouts.kept import put_away
from unirl_env.rollouts.memory import keep_freed_memory
from unirl_env.rollouts.sync import require_version


class GenerativeEnvRunner(EnvRunner, Checkpointable):
    """Owns an environment and a policy, and plays whole groups with them.

    In the driver of a run with remote runners it is an empty shell: a second copy of the model would only
    take memory. Where runner and learner share a process, they share one module, too, which is handed over
    with `adopt`.

    Attributes:
        weights_version: Which publication of weights the policy holds.
        shares_module: Whether the learner's own module is played.
    """

    def __init__(self, *, config: Any, **kwargs: Any):
        super().__init__(config=config, **kwargs)
        if not config.learners_play:  # those hand it back
            keep_freed_memory()
        self.spaces = kwargs.get("spaces") or {}
        self.world: Any = None
        self.env: gym.vector.VectorEnv | None = None
        self.module: Any = None
        self.weights_version, self._has_weights = 0, False
        self._awaited: tuple[int, int] | None = None
        in_driver = not self.worker_index
        alone = config.num_env_runners == 0 and config.num_learners == 0
        self.shares_module = not in_driver if config.learners_play else in_driver and alone
        self.idle = in_driver and config.num_env_runners > 0
        self._poses = in_driver and config.learners_play  # an environment that tells its spaces
        # Without remote learners, num_gpus_per_learner says where the driver's module lives.
        gpus = config.num_gpus_per_learner if self.shares_module else config.num_gpus_per_env_runner
        self.device = get_device(self.config, 0 if self.idle else gpus)
        self.callbacks = RunnerCallbacks(self.config)
        self._rollout: Any = None
        self._position = 0
        if not self.idle:
            self.make_env()
            if not self.shares_module and not self._poses:
                self.make_module()

    # What an agent calls.

    def collect(self, request: RolloutRequest) -> EpisodeBatch:
        """Play the episodes of `request`, and call RLlib's callbacks on its occasion.

        Returns:
            The episodes; on the CPU if they are to leave this process.

        Raises:
            StaleWeights: If the policy does not hold the weights that the request is about; `NoWeights` if it
                was never given any.
        """
        have = self.weights_version if self._awaited is None else None
        require_version(have, request.weights_version, self._who, given=self._has_weights)
        play = self._player().collect
        told = self.callbacks.wanted and request.occasion is not None
        with self._needs_module().actor.under("trained" if request.base else request.weights):
            batch = self.callbacks.around(self, play, request) if told else play(request)
        if not self.worker_index:
            return batch
        batch = batch.to("cpu")
        return put_away(batch) if request.put_away else batch

    def load_weights(
        self, version: int, weights: Mapping[str, Tensor] | ray.ObjectRef, *, part: int = 0, parts: int = 1
    ) -> None:
        """Take over published weights, given or by reference, all at once or one part after another.

        From the first part to the last, and for ever if one fails, this runner holds weights of no version.

        Args:
            version: What they are called.
            weights: By name, or a reference to these or to a `Bucket`.
            part: Which part it is.
            parts: Of how many.

        Raises:
            NoWeights: If it is not the part that comes next, as in a runner that has started again meanwhile.
        """
        if part and self._awaited != (version, part):
            raise NoWeights(
                f"{self._who} must be given all parts of version {version} in their order, got part "
                f"{part + 1} of {parts} out of turn; publish the weights once more."
            )
        self._awaited = version, part
        if isinstance(weights, ray.ObjectRef):
            weights = ray.get(weights)
        self._needs_module().set_state(weights.tensors() if isinstance(weights, Bucket) else weights)
        self._awaited = version, part + 1
        if part + 1 == parts:
            self.take_version(version)

    def take_version(self, version: int) -> None:
        """Play under the name `version` from now on; an engine beside the policy takes over its weights."""
        rollout = self._player()
        if hasattr(rollout, "load_weights"):
            with self._needs_module().actor.under(self.config.rollout_weights):
                rollout.load_weights(version)
        self.weights_version, self._has_weights, self._awaited = version, True, None

    def adopt(self, module: Any) -> None:
        """Play `module`, which the learner trains in this very process."""
        self.module, self._rollout = module, None

    def attempt(self, number: int, method: str, arguments: Mapping[str, Any]) -> tuple[int, Any]:
        """Call a method of this runner and return what came of it, an error as well.

        RLlib ends a runner in which a call raises, and its driver never learns why.
        """
        try:
            return number, getattr(self, method)(**arguments)
        except Exception as error:
            error.add_note("".join(traceback.format_exception(error)))
            return number, error
        except SystemExit as error:
            # It would end the process, and the driver would hear of a death without a cause.
            trace = traceback.format_exception(error)
            wrong = ContractError(
                f"A reward, an environment or a model must return or raise, got an attempt to end the "
                f"process (SystemExit({error.code!r})); try raising an Exception there."
            )
            wrong.add_note("".join(trace))
            return number, wrong

    # RLlib's interface.

    def make_env(self) -> None:
        """Build the environment of this runner's share, in place of an earlier one, in the same world."""
        if self.env is not None:
            self.env.close()
        if self.world is None:
            self.world = self.config.world(str(self.device))
        self.env, self._rollout = self.world.env(self.config.episodes_per_play), None
        self.callbacks.made(self)

    def make_module(self) -> None:
        """Build a policy of this runner's own, with the untrained weights."""
        spec = self.config.get_rl_module_spec(spaces=self.get_spaces(), inference_only=True)
        self.module, self._rollout = spec.build().to(self.device), None

    def sample(self, **kwargs: Any) -> EpisodeBatch:
        """Play the environment's next prompts under the present weights."""
        count, size = self.config.num_prompts, self.config.group_size
        self._needs_env()
        prompts = self.world.prompts.take(self._position, count, seed=self.config.run_seed)
        seed = F.derive_seed(self.config.run_seed, "sample", self.worker_index or 0, self._position)
        self._position += count
        return self.collect(
            RolloutRequest(
                prompts,
                seed=seed,
                group_size=size,
                same_noise=self.config.same_noise,
                weights_version=self.weights_version,
                occasion="training",
            )
        )

    def get_spaces(self) -> dict[str, tuple[gym.Space, gym.Space]]:
        """The environment's spaces, by RLlib's names."""
        if self.env is None:
            return self.spaces
        single = (self.env.single_observation_space, self.env.single_action_space)
        return {
            INPUT_ENV_SPACES: (self.env.observation_space, self.env.action_space),
            INPUT_ENV_SINGLE_SPACES: single,
            DEFAULT_MODULE_ID: single,
        }

    def get_metrics(self) -> Any:
        """What callbacks have logged: of everything else that is measured, the episodes tell."""
        return self.metrics.reduce()

    def assert_healthy(self) -> None:
        """Raise unless this runner can play, or is meant to stay empty."""
        if not self.idle:
            self._needs_env()
            if not self.shares_module and not self._poses:
                self._needs_module()

    def stop(self) -> None:
        """Close the environments."""
        if self._rollout is not None:
            self._rollout.close()
        if self.env is not None:
            self.env.close()

    # RLlib's checkpoints.

    def get_state(
        self, components: Any = None, *, not_components: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The weights, unless they are excluded or there are none here."""
        state: dict[str, Any] = {"weights_version": self.weights_version}
        if self.module is not None and self._check_component(COMPONENT_RL_MODULE, components, not_components):
            state[COMPONENT_RL_MODULE] = self.module.get_state()
        return state

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Take over weights, if there are any in `state` and a policy here."""
        weights = state.get(COMPONENT_RL_MODULE)
        if weights is not None and self.module is not None:
            weights = ray.get(weights) if isinstance(weights, ray.ObjectRef) else weights
            self.module.set_state(weights.get(DEFAULT_MODULE_ID, weights))
            self._awaited = None
        self.weights_version = state.get("weights_version", self.weights_version)

    def get_ctor_args_and_kwargs(self) -> tuple[tuple, dict[str, Any]]:
        """What it takes to build this runner again."""
        return (), {"config": self.config}

    def get_checkpointable_components(self) -> list[tuple[str, Any]]:
        """None: the learners' checkpoint has the weights."""
        return []

    # Parts.

    @property
    def _who(self) -> str:
        return f"Runner {self.worker_index or 0}"

    def _player(self) -> Any:
        if self._rollout is None:
            self._needs_env()
            actor = self._needs_module().actor
            self._rollout = self.config.mode.rollout(self.config, self._env_of_size, actor)
        return self._rollout

    def _env_of_size(self, num_envs: int, num_steps: int | None = None, **how: Any) -> gym.vector.VectorEnv:
        env = self._needs_env()
        same = num_steps in (None, env_attr(env, "num_steps", None)) and not how
        if num_envs == env.num_envs and same:
            return env
        return self.world.env(num_envs, num_steps, **how)

    def _needs_env(self) -> gym.vector.VectorEnv:
        if self.env is None:
            raise ContractError("This runner has no environment: remote runners play in this run.")
        return self.env

    def _needs_module(self) -> Any:
        if self.module is None:
            raise ContractError("This runner has no policy; call `make_module` or `adopt` first.")
        return self.module

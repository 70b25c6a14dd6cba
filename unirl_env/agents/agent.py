"""The loop of every agent: prompts, rollout, advantages, update, publication of the new weights."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import ray
import torch
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS
from torch import Tensor

import unirl_env.functional as F
from unirl_env.agents.batching import credit, largest, misread, share_out
from unirl_env.agents.parallel import Bell
from unirl_env.agents.parallel.storing import Storing, stores_parts
from unirl_env.agents.phases import passes_over_idle
from unirl_env.agents.reference import Drift, own_drift, own_reference_kls
from unirl_env.agents.reports import (
    FollowedFailure,
    Update,
    function_evaluations,
    rollout_metrics,
    update_metrics,
)
from unirl_env.agents.rllib import RLlibAlgorithm, log_episodes, log_update
from unirl_env.agents.selfcheck import FirstUpdate
from unirl_env.agents.step_credit import charges_returns, credit_steps, warn_of_idle_clip
from unirl_env.episode import EpisodeBatch
from unirl_env.errors import CheckpointError, Diverged, EpisodesLost
from unirl_env.monitor.iteration_metrics import is_due
from unirl_env.rollouts.calls import (
    learner_results,
    learners_live,
    of_first_learner,
    play_on_learners,
    share_requests,
)
from unirl_env.rollouts.driver import RolloutRequest
from unirl_env.rollouts.sync import SyncReport, WeightSync
from unirl_env.types import Prompt, Scores

logger = logging.getLogger(__name__)

REPLAYS = 3
"""How often an iteration's episodes are played at most."""
STATE_FORMAT = 1


class Agent(RLlibAlgorithm):
    """Trains the policy of a generative environment on groups of its own samples.

    An iteration takes P prompts, draws G samples of each, turns their rewards into advantages within each
    group, takes N optimizer steps, and publishes the new weights. The algorithm is a loss in the
    configuration; nothing here knows it by name.

    Attributes:
        iteration_metrics: The numbers of the last iteration.
        last_batch: Its episodes, with samples if `keep_samples`.
        iterations_done: How many iterations this run has finished, before it was resumed included.
        weights_version: Counts the updates that the runners have received.
        first_update: The self-check: what it has still to look at, and what it found.
    """

    def _begin(self) -> None:
        """Let runner and learner share one module where they share a process, and publish the weights."""
        warn_of_idle_clip(self.config)
        self.source = self.config.prompts_of(self.env_runner_group.local_env_runner)
        self.sync = WeightSync(
            self.learner_group,
            self.env_runner_group,
            divided=self.config.divides,
            learners_play=self.config.learners_play,
        )
        self.iterations_done, self._updating = 0, False
        self.weights_version = 0
        self.iteration_metrics: dict[str, float] = {}
        self.last_batch: EpisodeBatch | None = None
        self.first_update = FirstUpdate(self.config)
        runner: Any = self.env_runner_group.local_env_runner
        if runner.shares_module:
            self._on_learners(lambda learner: runner.adopt(learner.policy))
        self._bell = Bell() if self.config.divides else None
        if (bell := self._bell) is not None:
            self._on_learners(lambda learner: learner.take_bell(bell))
        self._parameters = self._of_first_learner(lambda learner: learner.count_parameters())
        self._publish()

    def training_step(self) -> None:
        """One iteration, with its numbers in `iteration_metrics`; without any score there is no update."""
        config, iteration = self.config, self.iterations_done
        self.learner_group.require_all()  # before anybody plays for nothing
        self.last_batch = None  # its latents would lie beside those of the new one
        began = time.perf_counter()
        request = RolloutRequest(
            self.source.take(iteration * config.num_prompts, config.num_prompts, seed=config.run_seed),
            seed=F.derive_seed(config.run_seed, "rollout", iteration),
            group_size=config.group_size,
            keep_samples=config.keep_samples,
            put_away=self._keeps_away,
            occasion="training",
            **config.mode.training_options(config, iteration, checked=not self.first_update.pending),
        )
        lr = config.learning_rate(iteration)
        batch, advantages, sampled, updates = self._played_and_learned(request, lr)
        learned = time.perf_counter()
        self.iterations_done, self._updating = iteration + 1, False
        self.weights_version += 1
        sync = self._publish()

        self.last_batch = batch
        self.iteration_metrics = {
            **rollout_metrics(batch, torch.stack([largest(each) for each in advantages.values()]).amax(0)),
            **update_metrics(updates),
            "lr": lr,
            "episodes": float(len(batch)),
            "function_evaluations": function_evaluations(batch, config, request.steps_taken),
            "episodes_per_second": len(batch) / (time.perf_counter() - began),
            "seconds/rollout": sampled - began,
            "seconds/update": learned - sampled,
            "seconds/sync": sync.seconds,
            "sync_bytes": float(sync.size),
            "weights_version": float(self.weights_version),
        }
        self._log(batch, config.episode_lengths(batch, request.steps_taken), self.weights_version - 1)

    # Evaluation, and what a run leaves behind.

    def rollout_eval(
        self,
        prompts: Sequence[Prompt],
        *,
        samples_per_prompt: int = 1,
        seed: int = 0,
        num_steps: int | None = None,
        base: bool = False,
        keep_samples: bool = True,
    ) -> EpisodeBatch:
        """Samples drawn under fixed seeds: comparable between iterations.

        Latents are denoised without noise on the way, from fixed initial noise; texts are drawn at
        `policy.eval_temperature`.

        Args:
            prompts: P prompts.
            samples_per_prompt: G.
            seed: Key of all noise.
            num_steps: Denoising steps; None takes the training episodes' number. Texts have none.
            base: Draw from the untrained model.
            keep_samples: Whether the batch holds the samples.

        Returns:
            P x G episodes in the order of the prompts, with scores and without transitions to train on.
        """
        return self._collect(
            RolloutRequest(
                list(prompts),
                seed=seed,
                group_size=samples_per_prompt,
                base=base,
                keep_samples=keep_samples,
                **self.config.mode.evaluation_options(self.config, num_steps),
            )
        )

    def drift(self, prompts: Sequence[Prompt], *, samples_per_prompt: int = 1, seed: int = 0) -> Drift:
        """How far the policy is from the untrained model, on episodes that it plays under fixed seeds.

        They are played as training would play them were every step of latents to explore (but for the last
        one), at `policy.eta` and at the temperature of training, by the weights that evaluation plays
        (`policy.eval_weights`): the number is of one kind for all agents, those whose own episodes have no
        log-probabilities included. The episodes are scored, like all others.

        Args:
            prompts: P prompts.
            samples_per_prompt: G.
            seed: Key of all noise.
        """
        weights = self.config.policy.eval_weights
        batch = self._collect(
            RolloutRequest(
                list(prompts),
                seed=seed,
                group_size=samples_per_prompt,
                keep_samples=False,
                put_away=self._keeps_away,
                **self.config.mode.drift_options(self.config),
            )
        )
        # Where a scorer failed, the policy has played none the less.
        batch = dataclasses.replace(batch, scores=Scores(torch.zeros(len(batch))))
        blank = {name: torch.zeros(len(batch)) for name in self.config.trained}
        shards: list[Any] = share_out(batch, blank, num_minibatches=1, num_learners=1)
        if self.learner_group.is_remote:
            shards = [ray.put(shard.to("cpu")) for shard in shards]
        found: Drift = self._on_learners(lambda learner: own_drift(learner, shards, weights))[0]
        return found

    def export_adapters(self, directory: str | Path, *, weights: str = "trained") -> None:
        """Write the adapters in the form that the model family's own library loads.

        Args:
            directory: Where to.
            weights: Whose values: `"trained"`, or `"ema"`, their average.

        Raises:
            NotImplementedError: If the family has no such form.
            ContractError: If no average is kept.
        """
        self._export("adapters", directory, weights)

    def export_weights(self, directory: str | Path, *, weights: str = "trained") -> None:
        """Write all weights in the form that the model family's own library loads.

        Args:
            directory: Where to.
            weights: Whose values: `"trained"`, or `"ema"`, their average.

        Raises:
            NotImplementedError: If the family has no such form.
            ContractError: If no average is kept.
        """
        self._export("weights", directory, weights)

    def _export(self, what: str, directory: str | Path, weights: str) -> None:
        # As bytes, because the learner may live on another machine.
        files = self._of_first_learner(lambda learner: learner.export(what, weights))
        for name, content in files.items():
            path = Path(directory) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def holds(self, iteration: int) -> bool:
        """Whether the weights are those after `iteration` iterations: not in the middle of an update."""
        return self.iterations_done == iteration and not self._updating

    @cached_property
    def storing(self) -> Storing | None:
        """What lets learners write their parts of a run's state themselves; None where they are not to."""
        if not stores_parts(self.config, self._parameters[0]):
            return None
        return Storing(self._on_learners)

    def run_meta(self) -> dict[str, Any]:
        """What a run needs, beside tensors, to go on: JSON."""
        return {
            "format": STATE_FORMAT,
            "agent": self.algorithm_name,
            "iteration": self.iterations_done,
            "weights_version": self.weights_version,
            "checked": self._checked(),
            "optimizer": self.config.optimizer,
        }

    def run_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that a run needs to go on bit for bit: tensors by name, and `run_meta`."""
        return self._of_first_learner(lambda learner: learner.run_state()), self.run_meta()

    def load_run_state(self, tensors: Mapping[str, Tensor] | Path, meta: Mapping[str, Any]) -> None:
        """Go on where `run_state` was taken, or where learners have written their parts.

        Args:
            tensors: By name, or the folder in which their parts lie.
            meta: As `run_meta` gave it.

        Raises:
            CheckpointError: If the state was written by another agent or for another policy.
        """
        if meta.get("format") != STATE_FORMAT:
            raise CheckpointError(
                f"A run's state must be of format {STATE_FORMAT}, got {meta.get('format')}; try the "
                "version of this library that wrote it."
            )
        self.require_own(meta.get("agent"))
        written = meta.get("optimizer")
        if written != self.config.optimizer:
            raise CheckpointError(
                f"The state must be of `optimizer` {self.config.optimizer}, got one of {written}: "
                "what one remembers means nothing to another; try the settings of the run that wrote it."
            )
        if self.learner_group.is_remote and not isinstance(tensors, Path):
            place = {"tensors": ray.put(dict(tensors))}
            self._on_learners(lambda learner: learner.load_run_state(ray.get(place["tensors"])))
        else:
            self._on_learners(lambda learner: learner.load_run_state(tensors))
        self._resume_at(int(meta["iteration"]), int(meta["weights_version"]), meta.get("checked"))

    # Parts of an iteration.

    @property
    def _keeps_away(self) -> bool:
        """Whether large tensors go from players to learners without passing through this process."""
        from_players = self.config.num_env_runners > 0 or self.config.learners_play
        return from_players and self.learner_group.is_remote

    def _played_and_learned(
        self, request: RolloutRequest, lr: float
    ) -> tuple[EpisodeBatch, dict[str, Tensor], float, list[Update]]:
        """The episodes, their advantages, when they had been played, and what learners report.

        Noise is keyed: episodes that die with a player before anybody has learned from them are the same
        again.
        """
        for left in reversed(range(REPLAYS)):
            try:
                return self._play_and_learn(request, lr)
            except EpisodesLost as lost:
                self._updating = False
                if not left:
                    raise
                logger.warning("%s", lost)
                request = dataclasses.replace(request, occasion=None)  # which has been told of
        raise AssertionError  # the last replay returns or raises

    def _play_and_learn(
        self, request: RolloutRequest, lr: float
    ) -> tuple[EpisodeBatch, dict[str, Tensor], float, list[Update]]:
        config = self.config
        batch = misread(self._collect(request), config.log_prob_noise)
        sampled = time.perf_counter()
        advantages, valid = credit(batch, config)
        kls = self._reference_kls(batch, valid) if charges_returns(config) else {}
        advantages, kl_scales = credit_steps(batch, config, advantages, valid, kls)
        self._updating = True
        updates = []
        if batch.scores.valid.any():
            updates = self._update(batch, advantages, valid, lr, kl_scales)
        return batch, advantages, sampled, updates

    def _collect(self, request: RolloutRequest) -> EpisodeBatch:
        """Roll out P x G episodes under the present weights; whole groups go to each player."""
        request = dataclasses.replace(request, weights_version=self.weights_version)
        if self.config.learners_play:
            return play_on_learners(self.learner_group, request, self._cause)
        shares = request.share_out(self.env_runner_group.num_remote_env_runners())
        batches = share_requests(
            self.env_runner_group,
            "collect",
            [{"request": share} for share in shares],
            revive=self._await_env_runner,
            renew=self._publish,
        )
        return EpisodeBatch.cat(batches) if len(batches) > 1 else batches[0]

    def _reference_kls(self, batch: EpisodeBatch, valid: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What each step paid for leaving the untrained model, by phase `[B, S]`, from all learners."""
        blank = {name: torch.zeros(len(batch)) for name in valid}
        shards: list[Any] = share_out(
            batch, blank, valid, num_minibatches=1, num_learners=self.config.num_shares
        )
        order = torch.cat([shard.places for shard in shards]).argsort()
        if self.learner_group.is_remote:
            shards = [ray.put(shard.to("cpu")) for shard in shards]
        # Of learners that read the same episodes, all have found the same.
        found = dict(self._on_learners(lambda learner: own_reference_kls(learner, shards)))
        names = found[0]
        return {name: torch.cat([found[place][name] for place in sorted(found)])[order] for name in names}

    def _update(
        self,
        batch: EpisodeBatch,
        advantages: Mapping[str, Tensor],
        valid: Mapping[str, Tensor],
        lr: float,
        kl_scales: Mapping[str, Tensor],
    ) -> list[Update]:
        shards = share_out(
            batch,
            advantages,
            valid,
            num_learners=self.config.num_shares,
            **self.config.epochs(self.iterations_done),
            aggregate=self.config.weighing,
            horizon=self.config.horizon,
            mask_truncated=self.config.mask_truncated,
            idle_episodes=self.config.idle_episodes,
            kl_scales=kl_scales,
            phase_scale=self.config.phase_scale,
            passed_over=[
                name
                for name, phase in batch.phases.items()
                if name in advantages and passes_over_idle(self.config, phase.kind)
            ],
        )
        if self.learner_group.is_remote:
            # One reference per learner; RLlib's own sharding would make a sample batch of it first.
            references = [ray.put(shard.to("cpu")) for shard in shards]
            sharers = self.config.num_learners // len(references)
            data = TrainingData(batch_refs=[each for each in references for _ in range(sharers)])
        else:
            data = TrainingData(batch=cast(Any, shards[0]))
        check = sorted(self.first_update.pending)
        with learners_live("an update", self._cause):
            updates: list[Any] = self.learner_group.update(
                training_data=data,
                lr=lr,
                check=check,
                watch=is_due(self.iterations_done + 1, self.config.reference_kl_every),
            )
        if errors := [update.error for update in updates if update.error is not None]:
            raise min(errors, key=lambda error: isinstance(error, FollowedFailure))
        updates = [update for update in updates if not update.repeated]
        if all(updates[0].skipped):
            raise Diverged(
                "Gradients must be finite, got NaN or infinity in every optimizer step of an iteration; "
                "try a smaller `lr`, or float32."
            )
        if self.first_update.pending:
            self.first_update.note(batch, updates)
        return updates

    def _cause(self) -> tuple[int, Exception] | None:
        return None if self._bell is None else self._bell.cause()

    def _log(self, batch: EpisodeBatch, lengths: list[int], version: int) -> None:
        """The iteration's numbers where RLlib and Tune look for them."""
        seconds, place = self.iteration_metrics["seconds/rollout"], (ENV_RUNNER_RESULTS,)
        log_episodes(self.metrics, batch.scores, lengths, seconds=seconds, version=version, place=place)
        log_update(self.metrics, self.iteration_metrics, self._parameters)
        if logged := self._callback_metrics():
            self.metrics.aggregate(logged, key=ENV_RUNNER_RESULTS)

    def _checked(self) -> list[str]:
        return sorted(self.first_update.reported)

    def _publish(self, runners: Sequence[int] | None = None) -> SyncReport:
        return self.sync.publish(self.weights_version, runners=runners)

    def _resume_at(self, iteration: int, version: int, checked: Sequence[str] | None) -> None:
        self._iteration_is(iteration)
        self.iterations_done, self.weights_version = iteration, version
        self.first_update.begin(self.config.trained if checked is None and iteration else checked or ())
        self._publish()

    def _on_learners(self, function: Any) -> list[Any]:
        """Call `function(learner)` on all learners; errors are raised here."""
        return learner_results(self.learner_group.foreach_learner(function))

    def _of_first_learner(self, function: Any) -> Any:
        """What `function(learner)` returns on the first learner; errors are raised here."""
        return of_first_learner(self.learner_group, function, divided=self.config.divides)

"""The learner: score, loss, backward, exchange, clip, step. An update stands here from top to bottom."""

from __future__ import annotations

import math
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
import torch.distributed as dist
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from torch import Tensor

import unirl_env.functional as F
from unirl_env.agents import early_stop, selfcheck
from unirl_env.agents.batching import largest
from unirl_env.agents.correction import corrected
from unirl_env.agents.estimators import FORWARD, estimator_of
from unirl_env.agents.kinds import KINDS, micro_batches_of
from unirl_env.agents.learner_state import optimizer_state, require_saveable
from unirl_env.agents.loss import Context
from unirl_env.agents.optimizer import Masters, lr_factors, make_optimizer
from unirl_env.agents.parallel import Minibatch, idle_rows, parallel_of
from unirl_env.agents.parallel.playing import PlayingLearner
from unirl_env.agents.phases import has_entropy, passes_over_idle, rewards_entropy
from unirl_env.agents.reports import FollowedFailure, PhaseUpdate, Update
from unirl_env.agents.rows import Rows, Shard, Step
from unirl_env.errors import ConfigError, ContractError, EpisodesLost
from unirl_env.functional import Metric, SDEStep
from unirl_env.rollouts.kept import fetched
from unirl_env.rollouts.memory import keep_freed_memory, return_freed_memory


class GenerativeLearner(PlayingLearner):
    """Trains one policy on a `Shard` of finished episodes per iteration.

    It replaces the batch handling of RLlib's `update`: episodes stay whole, a context that episodes share
    stays shared, and the minibatches of an epoch are disjoint by construction. The loss is whatever pure
    function the configuration names for a phase.

    All learners take the same number of optimizer steps and meet once in each, whatever their shards hold
    and even if one of them fails, so that none waits for ever.
    """

    config: Any  # An `AgentConfig`, which names this class.

    def _make_module(self) -> Any:
        return_freed_memory() if self.config.divides else keep_freed_memory()
        self.parallel = parallel_of(self.config, distributed=self.distributed, device=self.device)
        with self.parallel.making():
            made: Any = super()._make_module()
        self.parallel.place(made[DEFAULT_MODULE_ID].actor)
        return made

    def _map_module_to_device(self, module: Any) -> None:
        if not self.config.divides:  # parts are moved as they are made: a device need not have room for all
            super()._map_module_to_device(module)

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """The optimizer of the trainable weights, in float32; their gradients live in one buffer.

        Raises:
            ConfigError: If the policy has nothing to train, or computes in float16, or if a phase of
                `phase_lrs` has no weights of its own.
        """
        config = config or self.config
        module: Any = self.module[module_id]
        self._masters = Masters(dict(module.named_parameters()))
        parameters = self._masters.weights
        if not parameters:
            raise ConfigError("`policy` must have weights to train, got none; try `lora_rank=16`.")
        factors = lr_factors(module.actor, self.get_parameters(module), config.phase_lrs)
        optimizer = make_optimizer(config, parameters, factors)
        self.register_optimizer(module_id=module_id, optimizer=optimizer, params=parameters)
        self._untouched = optimizer_state(optimizer, self._moved())
        trained = len(config.trained)
        self._gradient = self.parallel.gradient(
            parameters,
            parts=trained if config.phase_grad_norms else 1,
            told=2 * trained if config.stop_kl is not None else 0,
        )
        for head in module.actor.heads.values():
            head.entropy_gradient = config.entropy_bonus > 0
        self._replays = config.old_log_probs == "replay"

    @property
    def policy(self) -> Any:
        """The one module that is trained."""
        return self.module[DEFAULT_MODULE_ID]

    def update(
        self,
        *,
        training_data: TrainingData,
        lr: float,
        check: Collection[str] = (),
        watch: bool = False,
        **kwargs: Any,
    ) -> Update:
        """Take the optimizer steps of a `Shard`: one per minibatch of each epoch.

        Args:
            training_data: Holds the shard as its `batch`, or one reference to it.
            lr: The learning rate of this iteration, before the factors of `phase_lrs`.
            check: Phases of which scoring is compared with sampling before the first step.
            watch: Whether the KL to the reference policy is measured though no loss charges it; where no step
                explores, there is none.
            **kwargs: What RLlib passes to every learner; unused.

        Returns:
            The report. An error is in it and not raised, so that the driver can tell the first cause from
            what followed from it on other learners.
        """
        report = Update(repeated=not self.parallel.reports)
        try:
            self._learn(training_data, lr, check, watch, report)
        except Exception as error:
            if self._bell is not None and not isinstance(error, EpisodesLost):
                self._bell.leave(dist.get_rank(), error)
            if self.config.num_learners:
                # A traceback does not survive the way to the driver; a note does.
                error.add_note("".join(traceback.format_exception(error)))
            report.error = error
        return report

    def _learn(
        self, training_data: TrainingData, lr: float, check: Collection[str], watch: bool, report: Update
    ) -> None:
        optimizer = self.get_optimizer()
        for group in optimizer.param_groups:
            group["lr"] = lr * group["factor"]
        with self._telling_the_others():
            self._masters.follow()
            training_data.solve_refs()
            shard = self.fetched(cast(Shard, training_data.batch))
            self.parallel.require_same({"places": shard.places, **shard.advantages}, "episodes to learn from")
            actor = self.policy.actor
            branching = frozenset(name for name in shard.phases if actor.branches(name))
            shard = replace(shard.to(self.device), branching=branching)
            for name in shard.phases:
                if estimator_of(self.config, shard.phases[name].kind) is FORWARD:
                    shard = FORWARD.drawn(shard, name, self.config, actor.latent_head(name).model)
            minibatches = self._minibatches(shard, report)
            with actor.under(self.config.rollout_weights):  # the policy that sampled
                if any("old" in loss.copies for loss in self.config.losses.values()):
                    actor.keep("old")
                anchored = self._replayed(shard, minibatches, report)
                if self.config.correcting != "none":
                    anchored = corrected(anchored, shard, minibatches, self.config, report)
                self._check(shard, anchored, minibatches, check, report)
        for number, minibatch in enumerate(minibatches):
            self._gradient.zero()
            with self._telling_the_others():
                for phase in minibatch:
                    watched = watch and shard.phases[phase].drawn
                    self._accumulate(shard, anchored, phase, number, minibatch[phase], report, check, watched)
            if self._gradient.exchange():
                raise FollowedFailure("Another learner failed; see its error.")
            if self.config.stop_kl is not None and self._stops(anchored, number, report):
                break
            self._step(optimizer, report, minibatch)
        require_saveable(optimizer)
        self._average(shard.iteration)
        for part in report.phases.values():
            part.metrics = [_floats(metrics) for metrics in part.metrics]

    def fetched(self, shard: Shard) -> Shard:
        """The shard with all its tensors; all learners fetch theirs, or none.

        Raises:
            EpisodesLost: If whoever had them is gone.
        """
        if shard.kept is None:
            return shard
        lost: EpisodesLost | None = None
        try:
            shard = replace(shard, phases=fetched(shard.phases, shard.kept), kept=None)
        except EpisodesLost as error:
            lost = error
        if self.parallel.any(lost is not None):
            raise lost or EpisodesLost("The episodes of another learner were lost; they are played again.")
        return shard

    def _step(self, optimizer: Any, report: Update, minibatch: Minibatch) -> None:
        """Clip the exchanged gradient, and go where it points."""
        if len(minibatch) > 1 and self.config.phase_grad_norms:
            for phase, part in zip(minibatch, self._gradient.part_norms(), strict=True):
                report.phases[phase].grad_norm.append(part)
        norm = float(self._gradient.clip(self.config.grad_clip or math.inf))
        if math.isfinite(norm):  # One overflow must not ruin the weights.
            optimizer.step()
            self._masters.cast()
        report.grad_norm.append(norm)
        report.skipped.append(not math.isfinite(norm))

    def _stops(self, anchored: Shard, number: int, report: Update) -> bool:
        """Whether this step and those behind it are not taken; all learners find the same."""
        report.stopped = report.stopped or 0
        if not number:  # the policy that sampled
            return False
        found = []
        told = self._gradient.told.view(-1, 2).tolist()
        for (name, phase), (total, rows) in zip(anchored.phases.items(), told, strict=False):
            gaussian = KINDS[phase.kind].step is SDEStep
            kl = early_stop.settled(total, rows, gaussian=gaussian, exact=phase.mean is not None)
            if rows:
                report.phases[name].stop_kl = kl
            found.append(kl)
        if not any(kl > self.config.stop_kl for kl in found):
            return False
        report.stopped = len(anchored.steps) - number
        for part in report.phases.values():
            part.rows = part.rows[: number + 1]
        return True

    def _average(self, iteration: int) -> None:
        """Let the average of the weights follow what this iteration made of them."""
        decay = self.config.average_decay(iteration)
        if decay is not None:
            weights = dict(zip(self.policy.actor.trainable_state(), self._masters.weights, strict=True))
            self.policy.actor.average("ema", decay, weights)

    def _accumulate(
        self,
        shard: Shard,
        anchored: Shard,
        phase: str,
        number: int,
        micro_batches: Sequence[Tensor],
        report: Update,
        check: Collection[str],
        watched: bool,
    ) -> None:
        """Add up a minibatch's gradients of a phase; metrics, and the first gap, go into the report."""
        denominator, kind = shard.denominators[number][phase], shard.phases[phase].kind
        context, wanted = self._context(phase, kind, shard.iteration, number), self.config.losses[kind]
        losses, metrics, gaps, place = [], [], [], list(shard.phases).index(phase)
        forward, fresh = phase in shard.noised, number == 0 and self._is_fresh(shard, phase)
        measured = (
            self.config.stop_kl is not None and number > 0 and not forward and shard.phases[phase].drawn
        )
        scale = shard.phase_scales[number][phase] if shard.phase_scales else 1.0
        for rows, played, idle in self._parts(anchored, shard, phase, micro_batches, denominator):
            new: Any = None
            charged = self.config.reference_kl or rewards_entropy(self.config, kind) or measured
            if wanted.scores or charged or watched:
                new = estimator_of(self.config, kind).score(rows, context)
            rerouted = self._rerouted(rows, new)
            if fresh:
                old = new.velocity.detach() if "velocity" in wanted.needs else None
                rows = replace(rows, old_log_prob=new.log_prob.detach(), old_velocity=old)
            if number == 0 and new is not None and not forward and not idle:
                gaps.append(_gap(new, played))
            if measured and not idle:
                moved = early_stop.drift(new, rows, self.config.max_log_ratio)
                self._gradient.told[2 * place : 2 * place + 2] += moved
            loss, found = self.loss(rows, new, context, watched)
            loss = loss * scale
            if number == 0 and phase in check and not idle:
                wanted.require_finite(loss)
            loss.backward()
            if idle:
                continue
            losses.append(loss.detach())
            metrics.append({**found, **rerouted})
        if self.config.phase_grad_norms and place + 1 < len(shard.phases):
            self._gradient.mark()
        part = report.phases[phase]
        if self.config.reference_kl or watched:
            part.scored += part.rows[number]
        part.metrics.append(_step_metrics(losses, metrics, denominator, part.reduce))
        if gaps:
            part.gap = _floats({name: metric.value for name, metric in F.merge_metrics(gaps).items()})

    def loss(
        self, rows: Rows, new: Step | None, context: Context, watched: bool = False
    ) -> tuple[Tensor, dict[str, Metric]]:
        """The phase's loss, the KL to the reference policy if it is charged or watched, and metrics."""
        loss, metrics = self.config.losses[rows.kind](rows, new, context)
        if new is not None and has_entropy(rows.kind):
            entropy = cast(Any, new).entropy
            if rewards_entropy(self.config, rows.kind):
                if not entropy.requires_grad:
                    raise ContractError(
                        f"The entropy of phase `{context.phase}` must have a gradient with `entropy_bonus`, "
                        "got one without; try a `Head` that obeys its `entropy_gradient`."
                    )
                loss = loss - self.config.entropy_bonus * rows.mean(entropy)
            metrics = {"entropy": Metric.over(rows, entropy), **metrics}
        if self.config.reference_kl or watched:
            estimator = estimator_of(self.config, rows.kind)
            with context.weights("reference"):
                reference = estimator.score(rows, context)
            pull, kl = estimator.reference_kl(new, reference, rows, self.config)
            if self.config.reference_kl:
                loss = loss + self.config.reference_kl * pull
            metrics = {**metrics, "reference_kl": Metric(kl.detach())}
        return loss * self.config.phase_weights.get(context.phase, 1.0), metrics

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: Mapping[str, Rows], fwd_out: Mapping[str, Step]
    ) -> Tensor:
        """The loss of one micro-batch, summed over its phases."""
        parts = ((rows, fwd_out[name], self._context(name, rows.kind)) for name, rows in batch.items())
        return sum((self.loss(*part)[0] for part in parts), torch.zeros((), device=self.device))

    def _minibatches(self, shard: Shard, report: Update) -> list[Minibatch]:
        """The micro-batches of every optimizer step; counts their rows in `report`.

        Episodes of advantage 0 are left out, too, where a loss allows it and no other term touches them:
        their gradient is exactly 0. They stay in the denominator.
        """
        config = self.config
        minibatches: list[Minibatch] = [{} for _ in shard.steps]
        for name, phase in shard.phases.items():
            rows = phase.mask.sum(dim=1).cpu()
            if passes_over_idle(config, phase.kind):
                rows = rows * (largest(shard.advantages[name].cpu()) != 0)
            part = report.phases.setdefault(name, PhaseUpdate())
            for minibatch, episodes in zip(minibatches, shard.steps, strict=True):
                busy = episodes[rows[episodes] > 0]
                minibatch[name] = micro_batches_of(self, name, phase, busy)
                part.rows.append(int(rows[busy].sum()))
        return self.parallel.level(minibatches)

    @torch.no_grad()
    def _replayed(self, shard: Shard, minibatches: Sequence[Minibatch], report: Update) -> Shard:
        """The shard with old log-probs, means and velocities as the policy that sampled has them, taken anew.

        They are taken before the first step changes a weight, in the micro-batches in which training first
        uses them: a forward pass of another batch size may differ in the last bits; of the same size it does
        not. Where episodes are shuffled, those of later epochs are others, and differ from the anchor by such
        bits, too. What no loss looks at stays as it was recorded.
        """
        phases = {}
        for name, phase in shard.phases.items():
            forward, loss = name in shard.noised, self.config.losses[phase.kind]
            if forward:
                wanted = self.config.estimating == "elbo" or "velocity" in loss.needs
            else:
                wanted = self._replays and (loss.scores or "mean" in loss.needs)
            if not wanted:
                phases[name] = phase
                continue
            log_prob, more = phase.log_prob.clone(), "velocity" if forward else "mean"
            kept = torch.zeros_like(phase.action, dtype=torch.float32) if more in loss.needs else None
            known = torch.zeros(len(phase), dtype=torch.bool)
            if self._is_fresh(shard, name):
                known[:] = True
                for minibatch in minibatches[1:]:
                    for index in minibatch[name]:
                        known[index] = False
            for index in (index for minibatch in minibatches for index in minibatch[name]):
                index = index[~known[index]]
                if not self.parallel.any(len(index) > 0):
                    continue
                known[index] = True
                for rows in self.parts(shard, name, index, 1.0):
                    old = self._scored(rows, name)
                    if not len(index):
                        continue
                    report.phases[name].scored += len(rows)
                    log_prob[rows.episode, rows.step] = old.log_prob
                    if kept is not None:
                        kept[rows.episode, rows.step] = getattr(old, more)
            phases[name] = replace(phase, log_prob=log_prob, mean=kept)
        unchanged = all(phases[name] is phase for name, phase in shard.phases.items())
        return shard if unchanged else replace(shard, phases=phases)

    def _is_fresh(self, shard: Shard, name: str) -> bool:
        """Whether the first optimizer step knows the policy that sampled from its own forward pass."""
        scored = self.config.losses[shard.phases[name].kind].scores
        return name in shard.noised and scored and self.config.rollout_weights == "trained"

    def _check(
        self,
        shard: Shard,
        anchored: Shard,
        minibatches: Sequence[Minibatch],
        names: Collection[str],
        report: Update,
    ) -> None:
        """Compare scoring with sampling in each phase's first minibatch that has rows, and change nothing.

        Steps of the ODE were not drawn from anything, and have no log-prob to compare; nor have finished
        latents that are noised anew.
        """
        for name in (name for name in names if name not in shard.noised and shard.phases[name].drawn):
            measured = []
            first = next((minibatch[name] for minibatch in minibatches if minibatch.get(name)), ())
            for rows, recorded, idle in self._parts(anchored, shard, name, first, 1.0):
                # With gradients, though none is taken: without them, a kernel may be another than training's.
                new = self._scored(rows, name)
                if not idle:
                    measured.append(selfcheck.measure(new, rows, recorded))
            if measured:
                report.phases[name].check = _floats(selfcheck.summary(measured))
                selfcheck.judge(report.phases[name].check, self.config, name)

    def rows(self, shard: Shard, phase: str, index: Tensor, denominator: float) -> Rows:
        """The rows of the episodes at `index` `[b]` of a phase; of none, rows that count nothing."""
        if not len(index):
            return idle_rows(shard, phase, denominator)
        return KINDS[shard.phases[phase].kind].rows(shard, phase, index.to(self.device), denominator)

    def parts(self, shard: Shard, phase: str, index: Tensor, denominator: float) -> Iterator[Rows]:
        """The rows of a micro-batch of episodes, in parts that go through the network one after another."""
        rows, total = self.rows(shard, phase, index, denominator), shard.phases[phase].log_prob.shape[1]
        for part in rows.by_steps(self.config.micro_batch_steps, total):
            if phase in shard.noised:
                model = self.policy.actor.latent_head(phase).model
                part = FORWARD.noised(part, phase, shard.iteration, self.config, model)
            yield part

    def _parts(
        self, anchored: Shard, shard: Shard, phase: str, micro_batches: Sequence[Tensor], denominator: float
    ) -> Iterator[tuple[Rows, Rows, bool]]:
        """What goes through the network together: its rows, the same as recorded, and whether it is none."""
        same = anchored is shard or phase in shard.noised
        for index in micro_batches:
            parts, played = (self.parts(each, phase, index, denominator) for each in (anchored, shard))
            pairs: Any = ((rows, rows) for rows in parts) if same else zip(parts, played, strict=True)
            yield from ((*pair, not len(index)) for pair in pairs)

    def _rerouted(self, rows: Rows, new: Step | None) -> dict[str, Metric]:
        """Which share of the experts that sampled would not be chosen now, where they are replayed."""
        routing = self.policy.actor.routing
        if routing is None or new is None:
            return {}
        return {"rerouted": Metric.over(rows, routing.rerouted)}

    def _scored(self, rows: Rows, phase: str) -> Step:
        return estimator_of(self.config, rows.kind).score(rows, self._context(phase, rows.kind))

    def _context(self, phase: str, kind: str, iteration: int = 0, step: int = 0) -> Context:
        return Context(self.policy, self.config, phase=phase, kind=kind, iteration=iteration, step=step)

    @contextmanager
    def _telling_the_others(self) -> Iterator[None]:
        """On an error, meet the other learners at the next exchange before passing it on.

        Those that hold parts of the weights wait elsewhere, too, and are freed by the end of this process.
        """
        try:
            yield
        except Exception:
            if not self.parallel.divides:
                self._gradient.exchange(failed=True)
            raise


@torch.no_grad()
def _gap(new: Step, recorded: Rows) -> dict[str, Metric]:
    """How far scoring misses what the rollout recorded: `max`, `sum` and `rows` of the unmasked rows."""
    distance = (new.log_prob - recorded.old_log_prob).abs()[recorded.mask]
    found = {"max": distance.amax(), "sum": distance.sum(), "rows": recorded.mask.sum()}
    return {name: Metric(value, "max" if name == "max" else "sum") for name, value in found.items()}


def _step_metrics(
    losses: Sequence[Tensor],
    metrics: Sequence[Mapping[str, Metric]],
    denominator: float,
    reduce: dict[str, str],
) -> dict[str, Tensor | float]:
    """The `loss` and metrics of an optimizer step; of means, the sum over its rows.

    Args:
        losses: Of its micro-batches.
        metrics: Likewise, all with one denominator.
        denominator: What means were divided by.
        reduce: How each metric is reduced, by earlier steps; those of this step are added.

    Raises:
        ContractError: If a metric is reduced now so and now otherwise.
    """
    sums = [
        {n: replace(m, value=m.value * denominator) if m.reduce == "mean" else m for n, m in part.items()}
        for part in metrics
    ]
    merged = F.merge_metrics(sums)
    for name, metric in merged.items():
        if reduce.setdefault(name, metric.reduce) != metric.reduce:
            raise ContractError(
                f"The metric {name!r} must always be reduced alike, got {reduce[name]!r} and others."
            )
    step = {name: metric.value for name, metric in merged.items()}
    return step | {"loss": torch.stack(list(losses)).sum()} if losses else step


def _floats(metrics: Mapping[str, Any]) -> dict[str, float]:
    """All at once: each number fetched from an accelerator on its own would wait for it."""
    if not metrics:
        return {}
    values = torch.stack([value.detach().float() for value in metrics.values()])
    return dict(zip(metrics, values.tolist(), strict=True))

"""The learner: micro-batches, one gradient exchange per optimizer step, the check of the first update."""

from __future__ import annotations

import math
import tempfile
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.learner.training_data import TrainingData
from torch import Tensor

import unirl_env.functional as F
from unirl_env.agents import selfcheck
from unirl_env.agents.gradients import FlatGradient
from unirl_env.agents.loss import Context, Metric
from unirl_env.agents.masters import Masters
from unirl_env.agents.optimizer_state import load_optimizer_state, optimizer_state
from unirl_env.agents.phases import KINDS, Step
from unirl_env.agents.replay import Lots, replayed
from unirl_env.agents.rows import Rows, busy_rows, completed
from unirl_env.agents.shards import Shard
from unirl_env.agents.update import FollowedFailure, PhaseUpdate, Update, floats
from unirl_env.errors import ConfigError

__all__ = ["GenerativeLearner"]

NETWORK = "actor.network."
"""Where a policy keeps what it trains; the names in its state begin behind it."""


class GenerativeLearner(TorchLearner):
    """Trains one policy on a `Shard` of finished episodes per iteration.

    It replaces the batch handling of RLlib's `update`: episodes stay whole, a context that episodes share
    stays shared, and the minibatches of an epoch are disjoint by construction. The loss is whatever pure
    function the configuration names for a phase.

    All learners take the same number of optimizer steps and meet once in each, whatever their shards hold
    and even if one of them fails, so that none waits for ever.
    """

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """AdamW over the trainable weights, in float32; their gradients live in one buffer.

        Raises:
            ConfigError: If the policy has nothing to train, or computes in float16.
        """
        config = config or self.config
        self._masters = Masters(dict(self.module[module_id].named_parameters()))
        parameters = self._masters.weights
        if not parameters:
            raise ConfigError("`policy` must have weights to train, got none; try `lora_rank=16`.")
        optimizer = torch.optim.AdamW(
            parameters,
            lr=config.lr,
            betas=tuple(config.betas),
            weight_decay=config.weight_decay,
            eps=config.adam_epsilon,
            fused=all(parameter.device.type in ("cpu", "cuda") for parameter in parameters),
        )
        self.register_optimizer(module_id=module_id, optimizer=optimizer, params=parameters)
        self._gradient = FlatGradient(parameters, distributed=self.distributed)

    def get_parameters(self, module: Any) -> list[torch.nn.Parameter]:
        """The trainable parameters only."""
        return [parameter for parameter in module.parameters() if parameter.requires_grad]

    def _make_modules_ddp_if_necessary(self) -> None:
        # Nothing to wrap: gradients are exchanged once per optimizer step, not once per backward pass.
        return

    @property
    def policy(self) -> Any:
        """The one module that is trained."""
        return self.module[DEFAULT_MODULE_ID]

    def update(
        self, *, training_data: TrainingData, lr: float, check: Collection[str] = (), **kwargs: Any
    ) -> Update:
        """Take the optimizer steps of a `Shard`: one per minibatch of each epoch.

        Args:
            training_data: Holds the shard as its `batch`, or one reference to it.
            lr: The learning rate of this iteration.
            check: Phases of which scoring is compared with sampling before the first step.
            **kwargs: What RLlib passes to every learner; unused.

        Returns:
            The report. An error is in it and not raised, so that the driver can tell the first cause from
            what followed from it on other learners.
        """
        report = Update()
        try:
            self._learn(training_data, lr, check, report)
        except Exception as error:
            if self.config.num_learners:
                # A traceback does not survive the way to the driver; a note does.
                error.add_note("".join(traceback.format_exception(error)))
            report.error = error
        return report

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: Mapping[str, Rows], fwd_out: Mapping[str, Step]
    ) -> Tensor:
        """The loss of one micro-batch, summed over its phases."""
        parts = ((rows, fwd_out[name], self._context(name, rows.kind)) for name, rows in batch.items())
        return sum(self.loss(*part)[0] for part in parts)

    def loss(self, rows: Rows, new: Step | None, context: Context) -> tuple[Tensor, dict[str, Metric]]:
        """The phase's loss, the KL to the reference policy if one is asked for, and metrics."""
        loss, metrics = self.config.losses[rows.kind](rows, new, context)
        if self.config.reference_kl:
            with context.weights("reference"):
                reference = context.score(rows.observation, rows.action)
            pull, kl = KINDS[rows.kind].reference_kl(new, reference, rows, self.config)
            loss = loss + self.config.reference_kl * pull
            metrics = {**metrics, "reference_kl": Metric(kl)}
        return loss * self.config.phase_weights.get(context.phase, 1.0), metrics

    def export(self, what: str) -> dict[str, bytes]:
        """The files of the published form of the `adapters` or the `weights`, by relative path."""
        with tempfile.TemporaryDirectory() as directory:
            getattr(self.policy.actor, f"save_{what}")(directory)
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

    def _learn(self, training_data: TrainingData, lr: float, check: Collection[str], report: Update) -> None:
        optimizer = self.get_optimizer()
        for group in optimizer.param_groups:
            group["lr"] = lr
        with self._telling_the_others():
            self._masters.follow()
            training_data.solve_refs()
            shard: Shard = training_data.batch
            steps = self._lots(shard, report)
            shard = shard.to(self.device)
            replay = self.config.old_log_probs == "replay"
            anchored = replayed(shard, steps, self.config.losses, self._scored) if replay else shard
            self._check(shard, anchored, steps, check, report)
        for number, lots in enumerate(steps):
            self._gradient.zero()
            with self._telling_the_others():
                self._accumulate(shard, anchored, number, lots, report, check)
            if self._gradient.exchange():
                raise FollowedFailure("Another learner failed; see its error.")
            self._step(optimizer, report)
        for part in report.phases.values():
            part.metrics = [floats(metrics) for metrics in part.metrics]

    def _lots(self, shard: Shard, report: Update) -> list[Lots]:
        """The micro-batches of every optimizer step; counts their rows in `report`."""
        config, steps = self.config, [dict[str, list[Tensor]]() for _ in shard.steps]
        for name, phase in shard.batch.phases.items():
            skip_idle = config.losses[phase.kind].skips_idle and not config.reference_kl
            rows = busy_rows(phase, shard.advantages[name], skip_idle=skip_idle)
            part = report.phases.setdefault(name, PhaseUpdate())
            for lots, episodes in zip(steps, shard.steps, strict=True):
                busy = episodes[rows[episodes] > 0]
                lots[name] = KINDS[phase.kind].lots(
                    phase, busy, size=config.micro_batch_size, tokens=config.micro_batch_tokens
                )
                part.rows.append(int(rows[busy].sum()))
        return steps

    def _check(
        self, shard: Shard, anchored: Shard, steps: Sequence[Lots], names: Collection[str], report: Update
    ) -> None:
        """Compare scoring with sampling in each phase's first minibatch that has rows, and change nothing.

        Steps of the ODE were not drawn from anything, and have no log-prob to compare.
        """
        for name in (name for name in names if shard.batch.phases[name].drawn):
            measured = []
            for index in next((lots[name] for lots in steps if lots.get(name)), ()):
                # With gradients, though none is taken: without them, a kernel may be another than training's.
                rows, new = self._scored(anchored, name, index)
                recorded = rows if anchored is shard else self._rows(shard, name, index, 1.0)
                measured.append(selfcheck.measure(new, rows, recorded))
            if measured:
                report.phases[name].check = floats(selfcheck.summary(measured))
                selfcheck.judge(report.phases[name].check, self.config, name)

    def _accumulate(
        self,
        shard: Shard,
        anchored: Shard,
        number: int,
        minibatch: Lots,
        report: Update,
        check: Collection[str],
    ) -> None:
        """Add up the gradients of a minibatch; into the report go its metrics, and the first one's gap."""
        for name, lots in minibatch.items():
            losses, metrics, gaps = [], [], []
            denominator, kind = shard.denominators[number][name], shard.batch.phases[name].kind
            context, wanted = self._context(name, kind, shard.iteration, number), self.config.losses[kind]
            for index in lots:
                rows = self._rows(anchored, name, index, denominator)
                new = self._score(name, rows) if wanted.scores or self.config.reference_kl else None
                if number == 0 and new is not None:
                    recorded = rows if anchored is shard else self._rows(shard, name, index, denominator)
                    gaps.append(selfcheck.gap(new, recorded))
                loss, found = self.loss(rows, new, context)
                if number == 0 and name in check:
                    wanted.require_finite(loss)
                loss.backward()
                losses.append(loss.detach())
                metrics.append(found)
            report.phases[name].take(losses, metrics, denominator)
            if gaps:
                report.phases[name].gap = floats(F.merge_metrics(gaps, maxima=("max",)))

    def _rows(self, shard: Shard, name: str, index: Tensor, denominator: float) -> Rows:
        kind = KINDS[shard.batch.phases[name].kind]
        return completed(kind.rows(shard, name, index.to(self.device), denominator), shard, name)

    def _scored(self, shard: Shard, name: str, index: Tensor) -> tuple[Rows, Step]:
        rows = self._rows(shard, name, index, 1.0)
        return rows, self._score(name, rows)

    def _score(self, phase: str, rows: Rows) -> Step:
        return self._context(phase, rows.kind).score(rows.observation, rows.action)

    def _context(self, phase: str, kind: str, iteration: int = 0, step: int = 0) -> Context:
        return Context(self.policy, self.config, phase=phase, kind=kind, iteration=iteration, step=step)

    def _step(self, optimizer: torch.optim.Optimizer, report: Update) -> None:
        """Clip and step, unless the gradient is not finite: one overflow must not ruin the weights."""
        norm = float(self._gradient.clip(self.config.grad_clip or math.inf))
        if math.isfinite(norm):
            optimizer.step()
            self._masters.cast()
        report.grad_norm.append(norm)
        report.skipped.append(not math.isfinite(norm))

    @contextmanager
    def _telling_the_others(self) -> Iterator[None]:
        """On an error, meet the other learners at the next exchange before passing it on."""
        try:
            yield
        except Exception:
            self._gradient.exchange(failed=True)
            raise

    # RLlib's own checkpoints go through these; its defaults turn tensors into numpy, which has no bfloat16.

    def _get_optimizer_state(self) -> dict[str, Any]:
        # RLlib keeps the policy's state apart from this, as the network holds it.
        masters = {f"master/{name}": tensor for name, tensor in self._masters.state().items()}
        return masters | optimizer_state(self.get_optimizer(), self._names())

    def _set_optimizer_state(self, state: Mapping[str, Any]) -> None:
        self._masters.load({name.removeprefix("master/"): tensor for name, tensor in state.items()})
        load_optimizer_state(self.get_optimizer(), self._names(), state)

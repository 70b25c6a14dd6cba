"""The loop of a run: train, write down, save, look from time to time.

It knows no algorithm and no mode; everything that learns is behind `agent.train()`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from unirl_env.errors import ScorerError
from unirl_env.monitor.alarm import HackingAlarm
from unirl_env.monitor.iteration_metrics import heldout_metrics, is_due, nothing_scored
from unirl_env.run.evaluator import HELDOUT, MAIN, Evaluator, causes, nothing_valid
from unirl_env.run.interrupt import Interrupt
from unirl_env.run.progress import RunProgress
from unirl_env.run.record import checkpoint as checkpoints
from unirl_env.run.record.folder import RunFolder
from unirl_env.run.record.logbook import Logbook, as_json
from unirl_env.run.record.parted import Writing
from unirl_env.run.record.samples import save_samples, thin_out
from unirl_env.settings import RunConfig

ENDED_BY_ALARM = 3
"""The exit code of a run that an alarm ended before its last iteration."""
RECENT = 10
"""Iterations whose mean reward scores a checkpoint when nothing is evaluated on the way."""


@dataclass
class Loop:
    """One run, from iteration `start` to its end or to a wish to stop.

    Attributes:
        agent: What learns: `train`, `iteration_metrics`, `run_state`; where learners write states themselves,
            `storing` and `run_meta`.
        cfg: The settings.
        folder: Where everything is written.
        evaluator: Fixed prompts and seeds.
        logbook: The record; it has been cut at `start`.
        progress: What a person sees.
        interrupt: Whether somebody wants to stop.
        start: Iterations that were finished before.
        over: A context around each piece of work, which is given in words.
        finished: Iterations that are finished and on record.
        alarm: What has been seen of the reward so far, also before `start`; made from the record.
    """

    agent: Any
    cfg: RunConfig
    folder: RunFolder
    evaluator: Evaluator
    logbook: Logbook
    progress: RunProgress
    interrupt: Interrupt
    start: int = 0
    over: Callable[[str], AbstractContextManager[Any]] = nullcontext

    def __post_init__(self) -> None:
        self.finished, self._training = self.start, False
        self._saved = self.start if self.start else None
        self._writing: Writing | None = None  # what learners write themselves, while training goes on
        self._failed = 0  # iterations in a row in which nothing was scored
        self.alarm = HackingAlarm.replay(self.cfg.alarm, self.logbook.rows())
        # Under other settings of the alarm, the same rows may ring at other times.
        self.logbook.replace_alarms([finding.row() for finding in self.alarm.findings])

    def run(self) -> int:
        """Train until the last iteration, an interrupt or an alarm; the number of finished iterations."""
        iteration = self.start
        self._settle(iteration)
        while iteration < self.cfg.iterations and not self._ends:
            iteration += 1
            self._iterate(iteration)
            self._finish_writing()
            if self._saves(iteration):
                self._save(iteration)
            self._settle(iteration)
        if self._ends:
            self._save(iteration)
        self._finish_writing()
        return iteration

    def rescue(self) -> bool:
        """After an error, save what is finished; whether there is a checkpoint of it now.

        An error in a rollout leaves the weights as the last finished iteration left them. One in the middle
        of an update does not: then the last checkpoint is what there is.
        """
        holds = getattr(self.agent, "holds", None)
        sound = not self._training or (holds is not None and holds(self.finished))
        if self.finished > 0 and sound:
            self._save(self.finished)
        self._finish_writing()
        return self._saved == self.finished

    @property
    def _ends(self) -> bool:
        return self.interrupt.requested or self.alarm.ended_by is not None

    def _iterate(self, iteration: int) -> None:
        began, self._training = time.perf_counter(), True
        with self.over(f"iteration {iteration}"):
            self.agent.train()
            row = {"iteration": iteration, **self.agent.iteration_metrics, **self._heldout(iteration)}
        row["seconds"] = time.perf_counter() - began
        self.logbook.log(row)
        self.finished, self._training = iteration, False
        self.progress.advance(row)
        # What is on record is what a continued run will see: of a number that is none, nothing.
        for finding in self.alarm.observe(as_json(row)):
            self.logbook.log_alarm(finding.row())
            self.progress.warn(finding.signal, finding.sentence)
        self._failed = self._failed + 1 if nothing_scored(row) else 0
        if self._failed >= self.cfg.reward.max_failed_iterations:
            # Nothing was learnt in them, so they are not done: a continued run scores the same prompts.
            self.finished, batch = iteration - self._failed, self.agent.last_batch
            raise ScorerError(
                f"`reward.train` must give valid scores, got none in {self._failed} iterations in a row "
                f"(`reward.max_failed_iterations`) of {row['reward/failed']:g} samples each; "
                f"{causes(() if batch is None else batch.scores.faults)}."
            )

    def _heldout(self, iteration: int) -> Mapping[str, float]:
        """The held-out reward of the samples that were just trained on, where it is due."""
        scorer, batch = self.evaluator.heldout, self.agent.last_batch
        if scorer is None or batch is None or not is_due(iteration, self.cfg.alarm.heldout_every):
            return {}
        return heldout_metrics(scorer, batch)

    def _evaluates(self, iteration: int) -> bool:
        every = self.cfg.logging.eval_every
        last = iteration == self.cfg.iterations or (iteration > 0 and self.alarm.ended_by is not None)
        return iteration == 0 or last or bool(every and iteration % every == 0)

    def _saves(self, iteration: int) -> bool:
        every = self.cfg.logging.checkpoint_every
        if self._failed and iteration < self.cfg.iterations:
            return False
        return self._evaluates(iteration) or bool(every and iteration % every == 0)

    def _save(self, iteration: int) -> None:
        if self._saved == iteration:
            return
        self._finish_writing()
        place, storing = self.folder.checkpoints, getattr(self.agent, "storing", None)
        score = None if self.cfg.logging.eval_every else self._recent_reward()
        if storing is None:
            with self.over(f"saving iteration {iteration}"):
                tensors, meta = self.agent.run_state()
            checkpoints.write(place, iteration, tensors, _as_of(meta, iteration), score)
            checkpoints.prune(place, self.cfg.logging.keep_last)
        else:
            with self.over(f"saving iteration {iteration}"):
                meta = _as_of(self.agent.run_meta(), iteration)
                self._writing = Writing.begin(storing, place, iteration, meta, score)
        self._saved = iteration

    def _finish_writing(self) -> None:
        """Wait for learners that write a checkpoint themselves, and make one of their parts."""
        if self._writing is None:
            return
        writing, self._writing, saved, self._saved = self._writing, None, self._saved, None
        with self.over(f"writing iteration {writing.iteration}"):
            writing.finish()
        checkpoints.prune(self.folder.checkpoints, self.cfg.logging.keep_last)
        self._saved = saved

    def _recent_reward(self) -> float | None:
        rewards = [row.get("reward") for row in self.logbook.rows()[-RECENT:]]
        valid = [reward for reward in rewards if reward is not None]
        return sum(valid) / len(valid) if valid else None

    def _settle(self, iteration: int) -> None:
        """Evaluate what is due and not on record: the base first, since everything is compared with it."""
        if iteration > 0:
            self._evaluate(0, base=True)
        if self._evaluates(iteration):
            self._evaluate(iteration, base=iteration == 0)
            if self.cfg.logging.eval_every and iteration > 0:
                self._note_score(iteration)

    def _evaluate(self, iteration: int, base: bool) -> None:
        for name in self.evaluator.sets:
            if self.interrupt.requested or self._known(iteration, name):
                continue
            self.progress.doing(f"evaluating {'the base' if base else 'the policy'} on {name} prompts")
            with self.over(f"the evaluation on {name} prompts after iteration {iteration}"):
                row, samples = self.evaluator.measure(name, iteration, base, self._known(0, name))
            folder = self.folder.pictures / f"{iteration:06d}" / name
            evaluator = self.evaluator
            save_samples(folder, samples, evaluator.samples, evaluator.sets[name], evaluator.fps)
            thin_out(self.folder.pictures, name, keep=(0, iteration))
            if base:
                self._require_base(name, row)
            # Last of all, so that a row on record means that its samples are there, too.
            self.logbook.log_evaluation(row)

    def _require_base(self, name: str, row: Mapping[str, Any]) -> None:
        """Stop where nothing of the base was scored: everything is compared with it.

        The row is then on no record, so that a continued run measures the base again.
        """
        rewards, faults = row["rewards"], row.get("faults", {})
        if nothing_valid(rewards[MAIN]):
            raise ScorerError(
                f"`reward.train` must give valid scores, got none for the {rewards[MAIN]['failed']} samples "
                f"of the untrained model on {name} prompts; {causes(faults.get(MAIN, ()))}."
            )
        if HELDOUT in rewards and nothing_valid(rewards[HELDOUT]):
            self.progress.warn(
                "reward.heldout",
                f"it gave no valid score of the untrained model on {name} prompts; "
                f"{causes(faults.get(HELDOUT, ()))}. Training goes on without it.",
            )

    def _known(self, iteration: int, name: str) -> Mapping[str, Any] | None:
        for row in self.logbook.evaluation_rows():
            if row["iteration"] == iteration and row["set"] == name:
                return row
        return None

    def _note_score(self, iteration: int) -> None:
        self._finish_writing()
        row = self._known(iteration, next(iter(self.evaluator.sets)))
        for checkpoint in checkpoints.listing(self.folder.checkpoints):
            if row is not None and checkpoint.iteration == iteration:
                checkpoints.set_score(checkpoint, row["rewards"][MAIN]["mean"])
        checkpoints.prune(self.folder.checkpoints, self.cfg.logging.keep_last)


def _as_of(meta: Mapping[str, Any], iteration: int) -> Mapping[str, Any]:
    """The meta as if iterations in which nothing was learnt had not been done."""
    undone = meta.get("iteration", iteration) - iteration
    if not undone:
        return meta
    return {**meta, "iteration": iteration, "weights_version": meta["weights_version"] - undone}

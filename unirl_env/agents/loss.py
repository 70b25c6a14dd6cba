"""What an algorithm is to a learner: a `Loss`, and the `Context` that it may ask for more than its rows.

A loss of your own, of velocities at finished latents that are noised anew (a forward-process loss):

    def compute(rows, new, context):
        with context.weights("reference"):
            untrained = context.velocity(rows.observation)
        miss = (new.velocity - rows.action).square().flatten(1).mean(1)
        drift = (new.velocity - untrained).square().flatten(1).mean(1)
        loss = rows.mean(rows.advantages * miss + context.config.pull * drift)
        return loss, {"miss": Metric.over(rows, miss), "drift_max": Metric.over(rows, drift, "max")}

    class MyConfig(AgentConfig):
        losses = {"latents": Loss(compute, estimators={"regression"})}
        own_estimator = "regression"
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import unirl_env.functional as F
from unirl_env.agents.kinds import KINDS
from unirl_env.agents.rows import Rows, Step
from unirl_env.errors import ConfigError, ContractError
from unirl_env.functional import Metric

NEEDS = {"mean": "old_mean", "final": "final", "velocity": "old_velocity"}
"""What a loss may need of the policy that sampled, and where its rows have it: of latents, that is."""
ESTIMATORS = ("trajectory", "elbo", "regression")
COPIES = ("old", "ema")
"""Weights besides the trained and the untrained ones."""
SHARES = ("row", "episode", "group")
RESERVED = {"loss", "gap", "gap_max", "grad_norm", "skipped_steps", "trained_rows", "lr", "reference_kl"}
RESERVED |= {"reward", "reward_std", "advantage_max", "advantage_zero", "zero_std_groups", "saturation"}
RESERVED |= {
    "episodes",
    "function_evaluations",
    "episodes_per_second",
    "sync_bytes",
    "weights_version",
    "tokens",
    "truncated",
    "scored_rows",
    "correction",
    "correction_cut",
    "stop_kl",
    "stopped_steps",
}
RESERVED_PREFIXES = ("self_check/", "noise_floor/", "seconds/", "reward/", "heldout")
"""What the log says of an iteration besides a loss's metrics: they must not take its place."""


@dataclass(frozen=True)
class Loss:
    """The loss of one kind of phase, what it needs recorded, and what may be left out for it.

    Attributes:
        compute: `(rows, new, context) -> (loss, metrics)`, a function of these alone. `new` is the step of
            `rows.action` under the present weights, with gradient. The loss is a scalar with gradient:
            masked rows must not count, rows count by their weight, and sums are divided by
            `rows.denominator` (`rows.mean` does all three). It is called once for each micro-batch; what it
            returns is added up. Metrics are `Metric`s by name; a plain tensor is a share of the denominator.
        needs: What must be known of the sampling policy: `"mean"`, its means of the steps (`rows.old_mean`);
            `"final"`, the finished latent of each row's episode (`rows.final`); `"velocity"`, its velocity at
            noised latents (`rows.old_velocity`). All are of latents.
        estimators: Which values of `agent.estimator` it is made for. Under `"elbo"` and `"regression"`, rows
            are finished latents noised anew: `rows.observation` has `latent` and `sigma`, `rows.action` is
            the velocity that leads back, and `new` a `NoisedStep` with `velocity` and `log_prob`, the bound.
            None is `{"trajectory", "elbo"}` for a loss of log-probs alone, and `{"trajectory"}` for one that
            needs means or scores nothing.
        copies: Other weights that `compute` looks through (`context.weights`): `"old"`, those that sampled,
            `"ema"`, the average.
        skips_idle: Whether rows of advantage 0 may be left out, because the gradient there is exactly 0; or a
            function of the configuration that says so. All other losses are given every unmasked row.
        scores: Whether `compute` uses `new`. Without, that forward pass is left out and `new` is None.

    Raises:
        ConfigError: If `needs` names something unknown, or a field is of another kind.
    """

    compute: Callable[[Rows, Any, Context], tuple[Tensor, Mapping[str, Metric | Tensor]]]
    needs: Collection[str] = frozenset()
    skips_idle: bool | Callable[[Any], bool] = False
    scores: bool = True
    estimators: Collection[str] | None = None
    copies: Collection[str] = frozenset()

    def __post_init__(self) -> None:
        if not callable(self.compute):
            raise ConfigError(f"`compute` must be a function, got {self.compute!r}.")
        for name in ("skips_idle", "scores"):
            value = getattr(self, name)
            if not isinstance(value, bool) and (name == "scores" or not callable(value)):
                raise ConfigError(f"`{name}` must be True or False, got {value!r}.")
        known = "log-probs of the sampling policy are always there, as `rows.old_log_prob`"
        object.__setattr__(self, "needs", _names("needs", self.needs, tuple(NEEDS), known))
        object.__setattr__(self, "copies", _names("copies", self.copies, COPIES, "'reference' always is"))
        if self.estimators is None:
            plain = self.scores and "mean" not in self.needs
            usual = {"trajectory", "elbo"} if plain else {"trajectory"}
            object.__setattr__(self, "estimators", frozenset(usual))
        else:
            object.__setattr__(self, "estimators", _names("estimators", self.estimators, ESTIMATORS))

    @property
    def name(self) -> str:
        """`module:qualname` of what computes it."""
        what = getattr(self.compute, "func", self.compute)  # of a partial
        what = what if hasattr(what, "__qualname__") else type(what)
        return f"{what.__module__}:{what.__qualname__}"

    def may_skip_idle(self, config: Any) -> bool:
        """Whether rows of advantage 0 may be left out under the settings of `config`."""
        return self.skips_idle if isinstance(self.skips_idle, bool) else bool(self.skips_idle(config))

    def __call__(self, rows: Rows, new: Step | None, context: Context) -> tuple[Tensor, dict[str, Metric]]:
        """Loss and metrics of a micro-batch, checked as far as that costs no wait for an accelerator.

        Raises:
            ContractError: If rows lack what is needed, or `compute` returns something else than promised.
        """
        for name in self.needs:
            if getattr(rows, NEEDS[name]) is None:
                raise self._wrong(f"need only what {rows.kind} have recorded", repr(name))
        try:
            result = self.compute(rows, new if self.scores else None, context)
        except Exception as error:
            error.add_note(f"In the loss {self.name} of phase `{context.phase}`.")
            raise
        if not (isinstance(result, tuple) and len(result) == 2):
            raise self._wrong("return (loss, metrics)", type(result).__name__)
        loss, metrics = result
        if not isinstance(loss, Tensor):
            raise self._wrong("return a tensor as its loss", type(loss).__name__)
        if loss.ndim:
            raise self._wrong("return a scalar", f"shape {list(loss.shape)}; try rows.mean(values)")
        if not loss.requires_grad:
            raise self._wrong(
                "depend on the trained weights",
                "a tensor without gradient; try `new`, `context.score` or `context.velocity` outside "
                "`context.weights`",
            )
        return loss, as_metrics(metrics, self.name, loss.device)

    def require_finite(self, loss: Tensor) -> None:
        """Raise ContractError if `loss` is NaN or infinite; it waits for an accelerator."""
        if not bool(torch.isfinite(loss)):
            raise self._wrong(
                "be finite in the first update",
                f"{float(loss.detach())}; try `rows.mean`, and torch.where before what may overflow",
            )

    def _wrong(self, words: str, got: str) -> ContractError:
        return ContractError(f"The loss {self.name} must {words}, got {got}.")


def as_metrics(found: Any, loss: str, device: torch.device) -> dict[str, Metric]:
    """What the loss named `loss` reports, checked.

    A plain tensor is taken as a share of the denominator.

    Raises:
        ContractError: If something cannot be a metric.
    """
    if not isinstance(found, Mapping):
        raise ContractError(f"The metrics of the loss {loss} must be a dict, got {type(found).__name__}.")
    metrics = {}
    for name, value in found.items():
        metric = Metric(value) if isinstance(value, Tensor) else value
        _check_metric(name, metric, loss, device)
        if not isinstance(metric.value, Tensor):
            metric = Metric(torch.tensor(float(metric.value), device=device), metric.reduce)
        metrics[name] = metric
    return metrics


def _check_metric(name: Any, metric: Any, loss: str, device: torch.device) -> None:
    """Raise ContractError, naming metric and loss, unless it can be reported."""

    def must(words: str, got: str) -> ContractError:
        return ContractError(f"The metric {name!r} of the loss {loss} must {words}, got {got}.")

    if not isinstance(name, str):
        raise must("have a name", type(name).__name__)
    if name in RESERVED or name.startswith(RESERVED_PREFIXES):
        raise must("have a name of its own", "one that the log has already; try another name")
    if not isinstance(metric, Metric):
        raise must("be a Metric or a tensor", f"{type(metric).__name__}; try Metric(value, 'max')")
    value = metric.value
    if not isinstance(value, Tensor):
        if not isinstance(value, int | float):
            raise must("hold a number", type(value).__name__)
        return
    if value.ndim or value.is_complex():
        raise must(
            "be one real number", f"shape {list(value.shape)}, {value.dtype}; try Metric.over(rows, values)"
        )
    if value.requires_grad:
        raise must("have no gradient", "one that has; try .detach()")
    if value.device != device:
        raise must(f"be on {device} like the loss", str(value.device))


class Context:
    """What a loss may ask for, beside its rows: the network, other weights, and keyed random numbers.

    Args:
        policy: The `GenerativePolicy` that is trained.
        config: The `AgentConfig`.
        phase: The name of the phase.
        kind: The kind of the phase.
        iteration: The iteration's number, from 0.
        step: The number of the optimizer step within it, from 0.

    Attributes:
        config: The agent's settings, the algorithm's own knobs among them.
        phase: The name of the phase that the rows are of.
        iteration: The iteration's number, from 0.
        step: The number of the optimizer step within the iteration, from 0.
    """

    def __init__(self, policy: Any, config: Any, *, phase: str, kind: str, iteration: int = 0, step: int = 0):
        self.config, self.phase, self.iteration, self.step = config, phase, iteration, step
        self._policy, self._kind, self._elsewhere = policy, kind, ""

    def score(self, observation: Mapping[str, Tensor], action: Tensor) -> Step:
        """The step of `action` `[N, ...]` given `observation`, with gradient to the present weights.

        Args:
            observation: As `rows.observation`, or what `rows.observed` returned.
            action: As `rows.action`.
        """
        step = self._policy.actor.score(observation, action, phase=self.phase)
        return KINDS[self._kind].step(**step._asdict())

    def velocity(self, observation: Mapping[str, Tensor]) -> Tensor:
        """The guided velocity `[N, ...]` float32, `d x / d sigma`, with gradient to the present weights.

        Args:
            observation: As `rows.observed(latent=..., sigma=...)` returns it: `latent` `[N, ...]`, `sigma`
                `[N]` in [0, 1], and the contexts.

        Raises:
            ContractError: If the phase does not denoise.
        """
        return self._policy.velocity(self.phase, observation)

    def weights(self, name: str) -> AbstractContextManager[None]:
        """Within it, `score` and `velocity` are those of other weights, without gradients.

        Args:
            name: `"reference"`, the untrained model; `"old"`, the weights that sampled the episodes; `"ema"`,
                the average of the trained ones.

        Raises:
            ConfigError: If these weights are not kept.
        """
        kept = ("reference", *self._policy.actor.copies)
        if name not in kept:
            known = {
                "old": "it is kept for losses that say so; try Loss(compute, copies={'old'})",
                "ema": "no average is kept; try `ema_decay=0.9`",
            }
            remedy = known.get(name, f"try one of {', '.join(map(repr, ('reference', *COPIES)))}")
            raise ConfigError(
                f"`weights` must be one of {', '.join(map(repr, kept))}, got {name!r}: {remedy}."
            )
        return self._under(name)

    def noise(self, rows: Rows, name: str, *, by: str = "row") -> Tensor:
        """Standard normal noise `[N, ...]` float32 of the shape of the rows' actions.

        A number is a function of the run's seed, the iteration, the optimizer step, `name` and the row's
        place: it does not depend on micro-batches, the number of learners or a resume. The same call gives
        the same numbers again.

        Args:
            rows: For which rows, repeated ones included.
            name: What it is for; other names give other numbers.
            by: What has numbers of its own: each `"row"`; each `"episode"`, alike in all its rows; or each
                `"group"`, alike in all its episodes. Draws of a repeated row always differ.

        Raises:
            ContractError: If the rows do not know their episodes, or `by` is unknown.
        """
        seeds, step = self._keys("noise", rows, name, by)
        return F.keyed_noise(seeds, step, rows.action.shape[1:], device=seeds.device)

    def uniform(self, rows: Rows, name: str, *, by: str = "row") -> Tensor:
        """Numbers `[N]` float32 in [0, 1), evenly spread; arguments and keys as in `noise`.

        Raises:
            ContractError: If the rows do not know their episodes, or `by` is unknown.
        """
        seeds, step = self._keys("uniform", rows, name, by)
        # Rounded down: the nearest float32 of a number just below 1 would be 1.
        return (F.keyed_uniform(seeds, step, device=seeds.device) * 2**24).floor().float() * 2**-24

    @contextmanager
    def _under(self, name: str) -> Iterator[None]:
        if self._elsewhere == name:  # leaving an inner one must not end the outer one
            yield
            return
        if self._elsewhere:
            raise ConfigError(f"`weights` must be left before others are entered, got {name!r} within.")
        with torch.no_grad(), self._policy.actor.under(name):
            self._elsewhere = name
            try:
                yield
            finally:
                self._elsewhere = ""

    def _keys(self, what: str, rows: Rows, name: str, by: str) -> tuple[Tensor, Tensor]:
        """Seeds and steps `[N]` for keyed numbers."""
        if by not in SHARES:
            raise ContractError(f"`by` must be one of {', '.join(SHARES)}, got {by!r}.")
        key = rows.group if by == "group" else rows.episode_seed
        if key is None:
            raise ContractError(
                "`rows` must know their episodes, got some without; try those that the learner gave."
            )
        place = (self.config.run_seed, self.iteration, self.step, self.phase)
        salts = [F.derive_seed("loss", what, *place, name, by, draw) for draw in range(rows.draws)]
        salt = torch.tensor(salts, device=key.device)
        salt = salt[0] if rows.draw is None else salt[rows.draw]
        # Both are 63 bits of a hash (a group's number aside), and the generator mixes its whole key.
        return key ^ salt, rows.step if by == "row" else torch.zeros_like(rows.step)


def check_loss(config: Any, kind: str) -> None:
    """Refuse a loss on `kind` that cannot work with the settings.

    Args:
        config: An `AgentConfig`.
        kind: The kind of a trained phase.

    Raises:
        ConfigError: Naming the loss, or the setting and the remedy.
    """
    loss = config.losses[kind]
    if not isinstance(loss, Loss):
        raise ConfigError(f"`losses[{kind!r}]` must be a Loss, got {loss!r}; try Loss(compute).")
    if kind == "tokens" and loss.needs:
        raise ConfigError(
            f"`needs` of a loss on {kind} must not name {sorted(loss.needs)[0]!r}, which latents alone have "
            f"(the loss {loss.name}); try needs=set()."
        )
    if kind == "latents":
        _check_latents(config, loss)


def _check_latents(config: Any, loss: Loss) -> None:
    assert loss.estimators is not None  # `__post_init__` has seen to it
    if config.estimating not in loss.estimators:
        known = ", ".join(map(repr, sorted(loss.estimators)))
        why = " (it needs the means of transitions)" if "mean" in loss.needs else ""
        raise ConfigError(
            f"`estimator` must be one that the loss {loss.name} is made for, {known}{why}, got "
            f"{config.estimating!r}; try another estimator, or an agent whose loss is one of velocities or "
            "of log-probs alone."
        )
    if config.looks_forward or config.trained_steps(0):
        return
    if loss.scores or "final" not in loss.needs:
        raise ConfigError(
            "Some step must explore where transitions are scored (`estimator` 'trajectory'), got "
            f"`steps.kind` {config.steps.kind!r} and `sampler` {config.sampling!r}: a step of the ODE has no "
            f"log-probability, and the loss {loss.name} is not one of finished latents alone "
            "(needs={'final'}, scores=False); try steps.kind='all' and sampler='sde', or estimator='elbo'."
        )
    if config.reference_kl:
        raise ConfigError(
            f"`reference_kl` must be 0 where no step explores (`steps.kind` {config.steps.kind!r}, `sampler` "
            f"{config.sampling!r}), got {config.reference_kl:g}: the KL is that of steps; try "
            "steps.kind='all', estimator='elbo', or a term of the loss with context.weights('reference')."
        )


def _names(field: str, given: Any, known: tuple[str, ...], remedy: str = "") -> frozenset[str]:
    """A set of names, each of which must be known."""
    if isinstance(given, str) or not isinstance(given, Collection):
        raise ConfigError(f"`{field}` must be a set of names, got {given!r}; try {{{known[0]!r}}}.")
    unknown = [name for name in given if name not in known]
    if unknown:
        more = f"; {remedy}" if remedy else ""
        raise ConfigError(
            f"`{field}` must be some of {', '.join(map(repr, known))}, got {unknown[0]!r}{more}."
        )
    return frozenset(given)


def per_element(config: Any, name: str, elements: int, default: float) -> float:
    """A bound on latents, given in either unit, on the scale of mean-reduced log-probs.

    Args:
        config: An `AgentConfig` with the settings `name` and `<name>_nats`.
        name: Of the one that is given per element.
        elements: D, of one action.
        default: Where neither is given.
    """
    nats = getattr(config, f"{name}_nats")
    if nats is not None:
        return F.nats_to_mean(nats, elements)
    value: float | None = getattr(config, name)
    return default if value is None else value


def fall(config: Any, name: str, elements: int, default: float) -> float:
    """How far a ratio of actions of D = `elements` elements may fall, given in either unit (`per_element`).

    Raises:
        ConfigError: If the range in nats is too wide for so few elements.
    """
    low = per_element(config, name, elements, default)
    if not low < 1:
        raise ConfigError(
            f"`{name}_nats` must be less than the {elements} elements of an action, got "
            f"{getattr(config, f'{name}_nats')}: the ratio cannot fall below 0; try {0.1 * elements:g}."
        )
    return low


def threshold(
    config: Any, name: str, elements: int, value: float, quantity: str
) -> dict[str, tuple[float, str]]:
    """An entry of `AgentConfig.thresholds`, under the name of the setting that was given."""
    given = name if getattr(config, f"{name}_nats") is None else f"{name}_nats / {elements}"
    return {given: (value, quantity)}


def check_either(knobs: Any, name: str, prefix: str = "") -> None:
    """Refuse `name` and `<name>_nats` at once.

    Raises:
        ConfigError: Naming both, their values and the remedy.
    """
    value, nats = getattr(knobs, name), getattr(knobs, f"{name}_nats")
    if value is not None and nats is not None:
        raise ConfigError(
            f"`{prefix}{name}` and `{prefix}{name}_nats` must not both be given, got {value} and {nats}: "
            "they are one bound in two units; try either of them alone."
        )

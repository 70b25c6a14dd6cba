"""Agents that are wrong in one way each, and some that are right in an unusual way, to judge a judge by."""

from dataclasses import replace

import torch

import unirl_env.functional as F
from unirl_env.agents import Agent, AgentConfig, GRPOConfig, Loss, Metric
from unirl_env.agents.learner import GenerativeLearner
from unirl_env.types import Scores

CLIP = 0.2


def surrogate(ratio, advantages):
    """PPO's, row by row."""
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - CLIP, 1 + CLIP))


def ratio_of(rows, new):
    return torch.where(rows.mask, new.log_prob - rows.old_log_prob, 0.0).exp()


def on_both(name, compute, **more):
    """A configuration with one loss on latents and on tokens."""
    losses = {kind: Loss(compute, **more) for kind in ("latents", "tokens")}
    return type(name, (AgentConfig,), {"losses": losses, "__module__": __name__})


# Right ones.


def plain(rows, new, context):
    return rows.mean(surrogate(ratio_of(rows, new), rows.advantages)), {}


def reinforce(rows, new, context):
    return rows.mean(-rows.advantages * new.log_prob), {"surprise": Metric.over(rows, -new.log_prob)}


def leashed(rows, new, context):
    with context.weights("reference"):
        untrained = context.score(rows.observation, rows.action)
    drift = (new.log_prob - untrained.log_prob).square()
    return rows.mean(0.01 * drift - rows.advantages * ratio_of(rows, new)), {}


def unbounded(rows, new, context):
    return rows.mean(-rows.advantages * ratio_of(rows, new)), {}


def cispo(rows, new, context):
    weight = ratio_of(rows, new).clamp(1 - CLIP, 1 + CLIP).detach()
    return rows.mean(-weight * rows.advantages * new.log_prob), {}


Plain, Unbounded = on_both("Plain", plain), on_both("Unbounded", unbounded)
Reinforce, Cispo = on_both("Reinforce", reinforce), on_both("Cispo", cispo)
Leashed = on_both("Leashed", leashed)
RIGHT = {"plain": Plain, "unbounded": Unbounded, "reinforce": Reinforce, "cispo": Cispo, "leashed": Leashed}

# Wrong losses.


def flipped(rows, new, context):
    return rows.mean(rows.advantages * ratio_of(rows, new)), {}


def twice_flipped(rows, new, context):
    """Two wrong signs make a right gradient, and a clip on the wrong side."""
    return rows.mean(-surrogate(ratio_of(rows, new), -rows.advantages)), {}


def upside_down(rows, new, context):
    return rows.mean(surrogate(ratio_of(rows, new), -rows.advantages)), {}


def own_mean(rows, new, context):
    values = rows.weight * surrogate(ratio_of(rows, new), rows.advantages)
    return values[rows.mask].mean(), {}


def maskless(rows, new, context):
    ratio = (new.log_prob - rows.old_log_prob).exp()
    return (rows.weight * surrogate(ratio, rows.advantages)).sum() / rows.denominator, {}


def weightless(rows, new, context):
    values = surrogate(ratio_of(rows, new), rows.advantages)
    return torch.where(rows.mask, values, 0.0).sum() / rows.denominator, {}


def with_itself(rows, new, context):
    ratio = (new.log_prob - new.log_prob.detach()).exp()
    return rows.mean(surrogate(ratio, rows.advantages)), {}


def rescored(rows, new, context):
    with torch.no_grad():
        old = context.score(rows.observation, rows.action).log_prob
    return rows.mean(surrogate((new.log_prob - old).exp(), rows.advantages)), {}


def wrong_side(rows, new, context):
    ratio = ratio_of(rows, new)
    bound = ratio.clamp(1 - CLIP, 1 + CLIP)
    return rows.mean(torch.minimum(-rows.advantages * ratio, -rows.advantages * bound)), {}


def by_chance(rows, new, context):
    kept = (torch.rand(len(rows)) < 0.9).float() / 0.9
    return rows.mean(kept * surrogate(ratio_of(rows, new), rows.advantages)), {}


def away(rows, new, context):
    with context.weights("reference"):
        untrained = context.score(rows.observation, rows.action)
    drift = (new.log_prob - untrained.log_prob).square()
    return rows.mean(surrogate(ratio_of(rows, new), rows.advantages) - 0.3 * drift), {}


def positive_only(rows, new, context):
    return rows.mean(surrogate(ratio_of(rows, new), rows.advantages.clamp_min(0.0))), {}


def whitened(rows, new, context):
    """Advantages are centred and scaled once more, over whatever is in the micro-batch."""
    a = rows.advantages
    return rows.mean(surrogate(ratio_of(rows, new), (a - a.mean()) / (a.std() + 1e-4) * 1.3)), {}


def regularised(rows, new, context):
    """Weights drift to zero, whatever the rewards."""
    return rows.mean(surrogate(ratio_of(rows, new), rows.advantages) + 0.1 * new.log_prob), {}


def twice(rows, new, context):
    return 2.0 * rows.mean(surrogate(ratio_of(rows, new), rows.advantages)), {}


def first_half(rows, new, context):
    """Rows are told apart by their places."""
    near = (torch.arange(len(rows)) < len(rows) / 2).float() * 2
    return rows.mean(near * surrogate(ratio_of(rows, new), rows.advantages)), {}


def inverted(rows, new, context):
    return rows.mean(-rows.advantages / ratio_of(rows, new)), {}


def from_the_untrained(rows, new, context):
    """The ratio is taken to the untrained model."""
    with context.weights("reference"):
        untrained = context.score(rows.observation, rows.action)
    return rows.mean(-rows.advantages * (new.log_prob - untrained.log_prob).clamp(-5, 5).exp()), {}


def summed(rows, new, context):
    return rows.mean(surrogate(ratio_of(rows, new), rows.advantages)) * rows.denominator, {}


def strangers(rows, new, context):
    """Each row has the advantage of another one."""
    return rows.mean(surrogate(ratio_of(rows, new), rows.advantages.roll(7))), {}


def broken(rows, new, context):
    raise ValueError("nothing works here")


class Reversed(GenerativeLearner):
    """The pull to the untrained model pushes."""

    def loss(self, rows, new, context, watched=False):
        plain, _ = self.config.losses[rows.kind](rows, new, context)
        whole, metrics = super().loss(rows, new, context, watched)
        return 2 * plain - whole, metrics


class OtherWay(GenerativeLearner):
    """The KL from the untrained model to the policy, in the place of that from the policy."""

    def loss(self, rows, new, context, watched=False):
        loss, metrics = self.config.losses[rows.kind](rows, new, context)
        if self.config.reference_kl:
            with context.weights("reference"):
                old = context.score(rows.observation, rows.action)
            gap = old.log_prob - new.log_prob
            loss = loss + self.config.reference_kl * rows.mean(gap.exp() - 1 - gap)
        return loss, metrics


class Climbing(GenerativeLearner):
    """The optimizer climbs."""

    def configure_optimizers_for_module(self, module_id, config=None):
        super().configure_optimizers_for_module(module_id, config)
        for group in self.get_optimizer().param_groups:
            group["maximize"] = True


class Piling(GenerativeLearner):
    """Gradients are never set back."""

    def _learn(self, *arguments):
        self._gradient.zero()
        self._gradient.zero, keep = (lambda: None), self._gradient.zero
        try:
            super()._learn(*arguments)
        finally:
            self._gradient.zero = keep


class Anew(GenerativeLearner):
    """Old log-probs are taken anew before every optimizer step."""

    def rows(self, shard, phase, index, denominator):
        rows = super().rows(shard, phase, index, denominator)
        with torch.no_grad():
            old = self._context(phase, rows.kind).score(rows.observation, rows.action)
        return replace(rows, old_log_prob=old.log_prob)


def learning(name, learner, base=Plain):
    members = {"get_default_learner_class": lambda self: learner, "__module__": __name__}
    return type(name, (base,), members)


class Forgiving(Agent):
    """Failed scores are zeros."""

    def _update(self, batch, advantages, valid, *more):
        value = batch.rewards.nan_to_num(0.0)
        batch = replace(batch, scores=Scores(value))
        advantages = {name: F.group_advantages(value, batch.group, scale="none") for name in advantages}
        return super()._update(batch, advantages, {n: batch.scores.valid for n in valid}, *more)


class Ungrouped(Agent):
    """Advantages are centred over the batch and not within groups."""

    def _update(self, batch, advantages, valid, *more):
        value = batch.rewards
        mean = value[batch.scores.valid].mean()
        own = {name: torch.where(batch.scores.valid, value - mean, 0.0) for name in advantages}
        return super()._update(batch, own, valid, *more)


class Uncentred(Agent):
    """Rewards are advantages."""

    def _update(self, batch, advantages, valid, *more):
        own = {name: batch.rewards.nan_to_num(0.0) for name in advantages}
        return super()._update(batch, own, valid, *more)


def acting(name, agent):
    def __init__(self, algo_class=None):
        Plain.__init__(self, algo_class or agent)

    return type(name, (Plain,), {"__init__": __init__, "__module__": __name__})


class NoThreshold(GRPOConfig):
    """A clip that rounding crosses."""

    def thresholds(self, phase):
        return {"clip_low": (0.0, "log_prob")}


def regressed(rows, old, advantages, new, context):
    return F.nft_loss(
        new.velocity,
        old,
        rows.action,
        rows.observation["sigma"],
        advantages,
        weight=context.config.noise_weight,
        mask=rows.mask,
        denominator=rows.denominator,
    )


def nft(rows, new, context):
    return regressed(rows, rows.old_velocity, rows.advantages, new, context)


def nft_backwards(rows, new, context):
    return regressed(rows, rows.old_velocity, -rows.advantages, new, context)


def nft_from_here(rows, new, context):
    """What is reflected is the present policy, and not the one that sampled."""
    return regressed(rows, new.velocity.detach(), rows.advantages, new, context)


def regression(name, compute):
    losses = {"latents": Loss(compute, needs={"velocity"}, estimators={"regression"})}
    return type(
        name, (AgentConfig,), {"losses": losses, "own_estimator": "regression", "__module__": __name__}
    )


WRONG = {
    "flipped": (on_both("Flipped", flipped), {"gradient", "trust region", "optimum"}),
    "twice_flipped": (on_both("TwiceFlipped", twice_flipped), {"trust region"}),
    "upside_down": (on_both("UpsideDown", upside_down), {"gradient", "trust region", "optimum"}),
    "own_mean": (on_both("OwnMean", own_mean), {"micro-batches", "learners"}),
    "maskless": (on_both("Maskless", maskless), {"masks"}),
    "with_itself": (on_both("WithItself", with_itself), {"old policy"}),
    "rescored": (on_both("Rescored", rescored), {"old policy"}),
    "anew": (learning("AnewConfig", Anew), {"old policy"}),
    "wrong_side": (on_both("WrongSide", wrong_side), {"trust region"}),
    "by_chance": (on_both("ByChance", by_chance), {"repeatable"}),
    "away": (on_both("Away", away), {"constant rewards"}),
    "positive_only": (on_both("PositiveOnly", positive_only), {"gradient", "trust region"}),
    "whitened": (on_both("Whitened", whitened), {"micro-batches"}),
    "regularised": (on_both("Regularised", regularised), {"constant rewards"}),
    "twice": (on_both("Twice", twice), {"gradient"}),
    "first_half": (on_both("FirstHalf", first_half), {"micro-batches", "order"}),
    "inverted": (on_both("Inverted", inverted), {"gradient", "step"}),
    "from_the_untrained": (on_both("FromTheUntrained", from_the_untrained), {"gradient"}),
    "summed": (on_both("Summed", summed), {"gradient"}),
    "strangers": (on_both("Strangers", strangers), {"gradient"}),
    "careless": (on_both("Careless", leashed, skips_idle=True), {"idle rows"}),
    "climbing": (learning("ClimbingConfig", Climbing), {"step"}),
    "piling": (learning("PilingConfig", Piling), {"minibatches"}),
    "broken": (on_both("Broken", broken), {"ratio one", "gradient"}),
    "reversed_pull": (learning("ReversedConfig", Reversed), {"pull"}),
    "forgiving": (acting("ForgivingConfig", Forgiving), {"invalid scores"}),
    "ungrouped": (acting("UngroupedConfig", Ungrouped), {"constant rewards"}),
    "uncentred": (acting("UncentredConfig", Uncentred), {"constant rewards"}),
    "no_threshold": (NoThreshold, {"thresholds"}),
}
"""By name: the configuration, and the checks of which one at least must fail on every kind of phase."""
ON_TOKENS = {
    "weightless": (on_both("Weightless", weightless), {"weights of texts"}),
    "other_way": (learning("OtherWayConfig", OtherWay), {"pull"}),
}
"""What can be seen of tokens alone: weights differ, and a KL and its reverse."""
Nft = regression("Nft", nft)
ON_LATENTS = {
    "nft_backwards": (regression("NftBackwards", nft_backwards), {"gradient"}),
    "nft_from_here": (regression("NftFromHere", nft_from_here), {"old policy"}),
}
"""What is of finished latents alone."""

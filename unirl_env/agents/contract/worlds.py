"""The worlds in which agents are judged, with exact numbers: gradients, divergences and optima.

In each, a policy is its network, and what is expected of its episodes is a sum over a grid or over all words.
Gradients are given as a learner would find them on average: in the units of its loss, a mean over rows.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unirl_env.agents.contract.words import EndingWords, Word, all_words, options
from unirl_env.functional.paths import PathPolicy, path_grid, path_value
from unirl_env.functional.sequences import best_table, sequence_log_prob, sequence_value
from unirl_env.models.gaussian_mixture import GaussianMixtureDenoiser

LINE = {"means": [[-1.0], [1.0]], "stds": 0.4, "weights": [0.6, 0.4]}
STEPS, ETA = 16, math.sqrt(2.0)
BEST_ON_THE_LINE = 0.32228
"""The largest objective, at a price of 1, of all policies that are mixtures of two (start: -0.1812)."""
RESTING_ON_THE_LINE = 0.31864
"""The objective at which a loss comes to rest that charges the KL of visited states."""
MEMORYLESS = {"lora_rank": None, "eta": ETA}


class Value(NamedTuple):
    """What a policy achieves, as scalars: `reward`, and `kl` in nats of whole episodes."""

    reward: Tensor
    kl: Tensor


class ExactWorld(ABC):
    """A world whose expectations can be added up.

    Attributes:
        kind: Of its phase, as losses are named by it.
        env: Its id.
        loss_kind: The kind under which the phase looks for its loss.
    """

    kind: str
    loss_kind: str
    env: str

    @abstractmethod
    def env_config(self) -> dict[str, Any]:
        """The environment's arguments."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What `training` must be told in this world."""

    @abstractmethod
    def value(self, network: nn.Module, reference: nn.Module) -> Value:
        """What a network achieves, with gradient to its weights."""

    @abstractmethod
    def policy_gradient(self, network: nn.Module, weighing: str | None = None) -> Tensor:
        """The gradient `[n]` float64 of minus the reward, by rows as `weighing` weighs them; None by none."""

    @abstractmethod
    def pull(self, network: nn.Module, reference: nn.Module, config: Any, *, whole: bool = False) -> Tensor:
        """The gradient `[n]` float64 of the KL to the reference, in units of `policy_gradient`.

        Args:
            network: The policy.
            reference: The untrained one.
            config: An `AgentConfig`, which says how rows are weighed and what estimates the KL.
            whole: Whether what later steps will pay counts; otherwise, visited states are taken as given.
        """


class LineWorld(ExactWorld):
    """A point on a line in 16 steps; the reward is the place, and the network's six numbers are a mixture."""

    kind = loss_kind = "latents"
    env = "unirl/Line-v0"

    def __init__(self) -> None:
        self.model = GaussianMixtureDenoiser(**LINE)  # type: ignore[arg-type]
        self.sigmas, self.grid = self.model.sigmas(STEPS), path_grid(8.0, 0.05)

    def env_config(self) -> dict[str, Any]:
        """The id's own world."""
        return {"num_steps": STEPS}

    def settings(self) -> dict[str, Any]:
        """All weights, memoryless noise, and every step but the last explores."""
        return {"policy": dict(MEMORYLESS), "steps": {"kind": "all"}}

    def value(self, network: nn.Module, reference: nn.Module) -> Value:
        """By dynamic programming."""
        with torch.no_grad():
            untrained = self._path(reference)
        found = path_value(self._path(network), untrained, self.grid, 1.0)
        return Value(found.reward, found.kl)

    def policy_gradient(self, network: nn.Module, weighing: str | None = None) -> Tensor:
        """Of the steps that explore; what the last one contributes has no log-probability."""
        path = self._explored(self._path(network))
        with torch.no_grad():
            same = self._path(network)
        return _gradient(-path_value(path, same, self.grid, 1.0).reward / (STEPS - 1), network)

    def pull(self, network: nn.Module, reference: nn.Module, config: Any, *, whole: bool = False) -> Tensor:
        """That of Gaussians, which is the same in both directions."""
        path = self._explored(self._path(network))
        with torch.no_grad():
            untrained = self._path(reference)
        if whole:
            return _gradient(path_value(path, untrained, self.grid, 1.0).kl / (STEPS - 1), network)
        visited, total = torch.softmax(-self.grid.square() / 2, 0), torch.zeros(())
        for new, old, std in zip(path.mean[:-1], untrained.mean, path.std, strict=False):
            total = total + visited @ ((new - old) / std).square() / 2
            with torch.no_grad():
                ahead = torch.softmax(-(((self.grid - new[:, None]) / std) ** 2) / 2, dim=1)
                visited = visited @ ahead
        return _gradient(total / (STEPS - 1), network)

    def _path(self, network: nn.Module) -> PathPolicy:
        return PathPolicy.of(
            lambda x, sigma: self.model.velocity(network, x, sigma, {}),
            self.sigmas,
            grid=self.grid,
            eta=ETA,
        )

    def _explored(self, path: PathPolicy) -> PathPolicy:
        return PathPolicy(path.grid, torch.cat([path.mean[:-1], path.mean[-1:].detach()]), path.std)


class WordWorld(ExactWorld):
    """Words of up to three letters out of three, after a prompt of one; a table of logits writes them.

    Args:
        ends: Whether the first letter ends a word, so that their lengths differ.
    """

    kind, loss_kind = "tokens", "discrete"
    env = "unirl/TabularTokens-v0"

    def __init__(self, ends: bool = True):
        self.ends = ends
        self.model = EndingWords(ends=ends)
        self.words = [all_words(self.model, letter) for letter in self.model.letters]

    def env_config(self) -> dict[str, Any]:
        """The words instead of the id's own."""
        return dict(options(self.ends))

    def settings(self) -> dict[str, Any]:
        """The whole table; what is said of latents means nothing here."""
        of_latents = dict.fromkeys(("estimator", "sampler", "step_weights"))
        return {"policy": {"lora_rank": None}, **of_latents}

    def value(self, network: nn.Module, reference: nn.Module) -> Value:
        """The sum over all words; prompts count alike."""
        rewards, kls = [], []
        for words, new, old in self._written(network, reference):
            total = (new * words.mask).sum(1)
            rewards.append((total.exp() * words.reward).sum())
            kls.append((total.exp() * (total - (old * words.mask).sum(1))).sum())
        return Value(torch.stack(rewards).mean(), torch.stack(kls).mean())

    def policy_gradient(self, network: nn.Module, weighing: str | None = None) -> Tensor:
        """By the score function, each word with its weight."""
        parts, rows = [], 0.0
        for words, new, _ in self._written(network, network):
            total = (new * words.mask).sum(1)
            chance, length = total.detach().exp(), words.mask.sum(1)
            centred = words.reward - (chance * words.reward).sum()
            weight = 1.0 / length if weighing == "sequence_mean" else torch.ones_like(length)
            parts.append(-(chance * weight * centred * total).sum())
            rows += float((chance * weight * length).sum())
        loss = torch.stack(parts).mean()
        return _gradient(loss if weighing is None else loss / (rows / len(parts)), network)

    def pull(self, network: nn.Module, reference: nn.Module, config: Any, *, whole: bool = False) -> Tensor:
        """Of the sampled tokens' estimate, on average: `k2` pulls as the KL does, `k3` as the reversed KL."""
        weighing = config.weighing
        parts, rows = [], 0.0
        for words, new, old in self._written(network, reference):
            total, length = (new * words.mask).sum(1), words.mask.sum(1)
            chance = total.detach().exp()
            weight = 1.0 / length if weighing == "sequence_mean" else torch.ones_like(length)
            rows += float((chance * weight * length).sum())
            if whole:
                apart = ((new - old) * words.mask).sum(1).detach()
                parts.append((chance * weight * apart * total).sum())
                continue
            gap = (new - old).detach()
            score = gap if config.kl_estimator == "k2" else 1.0 - torch.exp(-gap)
            parts.append((chance * weight * (score * new * words.mask).sum(1)).sum())
        return _gradient(torch.stack(parts).mean() / (rows / len(parts)), network)

    def best(self, reference: nn.Module, price: float) -> float:
        """The largest objective of all policies; at a price of 0 the largest reward."""
        found = []
        for words, old, _ in self._written(reference, reference):
            log = (old.detach() * words.mask).sum(1)
            tilted = torch.logsumexp(log + words.reward / price, 0) * price if price else words.reward.max()
            found.append(tilted)
        return float(torch.stack(found).mean())

    def rests(self, reference: nn.Module, price: float) -> float:
        """Where a loss comes to rest that charges the KL of visited prefixes; words of one length."""
        if not price:
            return self.best(reference, price)
        found = []
        for table, words in zip(self._tables(reference), self.words, strict=True):
            rests = best_table(table, words.reward, price, future_kl=False)
            old, new = sequence_log_prob(table), sequence_log_prob(rests)
            found.append(sequence_value(new, old, words.reward, price).objective)
        return float(torch.stack(found).mean())

    def _tables(self, network: nn.Module) -> list[Tensor]:
        """The part of the table that each prompt has."""
        return list(_logits(network).detach().split(self.model.prefixes))

    def _written(self, network: nn.Module, reference: nn.Module) -> list[tuple[Word, Tensor, Tensor]]:
        """Of each prompt its words, and the log-probability of each letter `[M, L]` under both networks."""
        new, old = (torch.log_softmax(_logits(each), 1) for each in (network, reference))
        return [(words, _letters(new, words), _letters(old, words)) for words in self.words]


def _logits(network: nn.Module) -> Tensor:
    logits: Any = network.logits
    return logits.double()


def _letters(table: Tensor, words: Word) -> Tensor:
    return table[words.row].gather(2, words.letter[..., None])[..., 0]


def _gradient(value: Tensor, network: nn.Module) -> Tensor:
    """The gradient of a scalar in the network's trained weights, one after another `[n]` float64."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    found = torch.autograd.grad(value, weights, allow_unused=True)
    return torch.cat(
        [
            torch.zeros(weight.numel(), dtype=torch.float64) if each is None else each.flatten().double()
            for weight, each in zip(weights, found, strict=True)
        ]
    )


WORLDS: Mapping[str, type[ExactWorld]] = {"latents": LineWorld, "tokens": WordWorld}
"""Where the losses on each kind of phase are judged."""

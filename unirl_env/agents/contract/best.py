"""Whether a short training reaches the best that the network can be, with a price on the KL and without."""

from __future__ import annotations

import torch

from unirl_env.agents.contract.certificate import Check
from unirl_env.agents.contract.ground import Ground
from unirl_env.agents.contract.stand import Stand
from unirl_env.agents.contract.worlds import BEST_ON_THE_LINE, WordWorld
from unirl_env.errors import ConfigError

LINE = {"num_prompts": 1, "group_size": 256, "lr": 0.05, "betas": (0.9, 0.98)}
WORDS = {"num_prompts": 3, "group_size": 64, "lr": 0.1}
ITERATIONS = {"latents": (90, 40), "tokens": (60, 20)}
"""How many, and over how many of the last the weights are averaged."""
PRICES = {"latents": 1.0, "tokens": 0.2}
MISSED = {"latents": 0.03, "tokens": 0.03}
"""The share of the way from the untrained model to the best that may be missed."""


def optimum(ground: Ground) -> Check:
    """Of `E[reward] - beta KL`."""
    return _reached(ground, "optimum", PRICES[ground.kind])


def optimum_without_kl(ground: Ground) -> Check:
    """Of `E[reward]`; of points it is infinitely far away."""
    if ground.kind == "latents":
        return ground.idle("optimum, no KL", "Without a price of KL the best place is infinitely far away.")
    return _reached(ground, "optimum, no KL", 0.0)


def _reached(ground: Ground, name: str, price: float) -> Check:
    if ground.quick:
        return ground.idle(name, "Nothing is trained where quick=True.")
    settings = dict(LINE if ground.kind == "latents" else WORDS)
    size = int(settings["group_size"])  # type: ignore[call-overload]
    coefficient = price * (size - 1) / size  # the judged sample is in its own baseline
    try:
        stand = ground.stand(
            moved=False,
            world=ground.even_words(),
            **settings,
            advantage_scale="none",
            reference_kl=coefficient,
        )
    except ConfigError as error:
        return ground.idle(name, str(error))
    iterations, tail = ITERATIONS[ground.kind]
    trained = stand.train(iterations, tail=tail)
    start, found, best = (*_objectives(stand, trained, price), _best(stand, price))
    missed = (best - found) / (best - start)
    allowed = MISSED[ground.kind] * (4 if ground.declared else 1)
    return ground.check(
        name,
        missed <= allowed,
        missed,
        f"<= {allowed:g} of the way",
        f"{iterations} iterations end at {found:.3f}, from {start:.3f}; the best of its policies has {best:.3f}.",
        f"{iterations} iterations end at {found:.3f}, from {start:.3f}; the best of its policies has "
        f"{best:.3f}. Something that training takes for an improvement is none: see the checks of the gradient "
        "and of the pull.",
    )


@torch.no_grad()
def _objectives(stand: Stand, trained: torch.Tensor, price: float) -> tuple[float, float]:
    values = [stand.world.value(net, stand.reference) for net in (stand.reference, stand.at(trained))]
    start, found = (float(value.reward - price * value.kl) for value in values)
    return start, found


def _best(stand: Stand, price: float) -> float:
    if isinstance(stand.world, WordWorld):
        return stand.world.best(stand.reference, price)
    return BEST_ON_THE_LINE

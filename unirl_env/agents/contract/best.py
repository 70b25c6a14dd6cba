"""Whether a short training reaches the best that the network can be, with a price on the KL and without."""

from __future__ import annotations

from typing import Any

import torch

from unirl_env.agents.contract.certificate import Check
from unirl_env.agents.contract.ground import Ground
from unirl_env.agents.contract.stand import Stand
from unirl_env.agents.contract.worlds import BEST_ON_THE_LINE, RESTING_ON_THE_LINE, WordWorld
from unirl_env.errors import ConfigError

LINE: dict[str, Any] = {"num_prompts": 1, "group_size": 256, "lr": 0.05, "betas": (0.9, 0.98)}
WORDS: dict[str, Any] = {"num_prompts": 3, "group_size": 64, "lr": 0.1}
ITERATIONS = {"latents": (60, 30), "tokens": (60, 20)}
"""How many, and over how many of the last the weights are averaged."""
PRICES = {"latents": 1.0, "tokens": 0.2}
MISSED, BIASED = 0.03, 0.06
"""The share of the way to the best that may be missed, and where a bias is declared."""


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
    size = int(settings["group_size"])
    coefficient = price * (size - 1) / size * _unit(ground)  # the judged sample is in its own baseline
    try:
        stand = ground.stand(
            far=0.0,
            world=ground.even_words(),
            **settings,
            advantage_scale="none",
            reference_kl=coefficient,
            **(_forward(ground.config) if ground.kind == "latents" else {}),
        )
    except ConfigError as error:
        return ground.idle(name, str(error))
    iterations, tail = ITERATIONS[ground.kind]
    trained = stand.train(iterations, tail=tail)
    start, found = _objectives(stand, trained, price)
    best, rests = _best(stand, price)
    aim = best if stand.config.kl_in == "return" else rests
    missed, allowed = (aim - found) / (aim - start), BIASED if ground.declared else MISSED
    known = f"the best of its policies has {best:.3f}" + (
        "" if aim == best else f", where the KL in a loss comes to rest {rests:.3f}"
    )
    return ground.check(
        name,
        missed <= allowed,
        missed,
        f"<= {allowed:g} of the way",
        f"{iterations} iterations end at {found:.3f}, from {start:.3f}; {known}.",
        f"{iterations} iterations end at {found:.3f}, from {start:.3f}; {known}. "
        "Something that training takes for an improvement is none: see the gradient and the pull.",
    )


def _unit(ground: Ground) -> float:
    """What a loss of latents with a bias of its own counts a reward, over what it counts a nat."""
    if ground.kind != "latents" or not ground.declared or ground.config.looks_forward:
        return 1.0
    return max(1e-3, ground.sizes.get("gradient", 1.0)) / max(1e-3, ground.sizes.get("pull", 1.0))


def _forward(config: Any) -> dict[str, Any]:
    """Of agents on finished latents: rewards and nats are counted alike only under the weight of the bound.

    What is reached is measured under the steps that explore; data of the ODE are narrower.
    """
    if not config.looks_forward:
        return {}
    return {"sampler": "sde", "noising": {"weight": "elbo", "reduction": "sum"}}


@torch.no_grad()
def _objectives(stand: Stand, trained: torch.Tensor, price: float) -> tuple[float, float]:
    values = [stand.world.value(net, stand.reference) for net in (stand.reference, stand.at(trained))]
    start, found = (float(value.reward - price * value.kl) for value in values)
    return start, found


def _best(stand: Stand, price: float) -> tuple[float, float]:
    """The largest objective of its policies, and that at which a loss with the KL of visited states rests."""
    if isinstance(stand.world, WordWorld):
        return stand.world.best(stand.reference, price), stand.world.rests(stand.reference, price)
    return BEST_ON_THE_LINE, RESTING_ON_THE_LINE

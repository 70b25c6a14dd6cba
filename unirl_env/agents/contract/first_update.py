"""What the first update finds: ratio one, and a noise floor that lies below every threshold."""

from __future__ import annotations

import math
from typing import Any

from unirl_env.agents import selfcheck
from unirl_env.agents.contract.certificate import Check
from unirl_env.agents.contract.ground import Ground

TOLERANCE = 1e-4


def ratio_one(ground: Ground) -> Check:
    """Scoring what was just sampled finds the ratio 1 and the KL 0."""
    stand = ground.small(self_check=True)
    stand.iterate()
    found = stand.agent.first_update.found
    if selfcheck.RATIO not in found:
        return ground.idle("ratio one", "No step has a log-probability to find again.")
    ratio, kl = found[selfcheck.RATIO], found.get(selfcheck.KL, 0.0)
    most = max(ratio, kl)
    return ground.check(
        "ratio one",
        most <= TOLERANCE,
        most,
        f"|ratio - 1|, KL <= {TOLERANCE:g}",
        f"The first update finds |ratio - 1| {ratio:.1e} and KL {kl:.1e} nats.",
        f"The first update finds |ratio - 1| {ratio:.1e} and KL {kl:.1e} nats: what is scored is not what "
        "was sampled. Try scoring by the code that samples, in float32.",
    )


def thresholds(ground: Ground) -> Check:
    """What bounds ratios and divergences lies above what rounding does to them."""
    stand = ground.small(self_check=True, micro_batch_size=1)
    batch = stand.iterate().batch
    (phase,) = batch.phases.values()
    declared: dict[str, tuple[float, str]] = stand.config.thresholds(phase)
    found: dict[str, Any] = stand.agent.first_update.found
    if not declared:
        return ground.idle("thresholds", "The agent names no thresholds (`AgentConfig.thresholds`).")
    floors = {name: found.get(f"noise_floor/{quantity}", 0.0) for name, (_, quantity) in declared.items()}
    low = [name for name, (value, _) in declared.items() if not value > floors[name]]
    margin = min(
        (value / floors[name] if floors[name] else math.inf for name, (value, _) in declared.items()),
        default=math.inf,
    )
    worst = min(declared, key=lambda name: declared[name][0])
    return ground.check(
        "thresholds",
        not low,
        declared[worst][0],
        f"> {max(floors.values()):.1e}, the noise floor",
        f"`{worst}` is the least, {margin:.0f} times the noise floor here."
        if math.isfinite(margin)
        else f"`{worst}` is the least; there is no noise here.",
        f"`{', '.join(low)}` lies below what rounding does to scores, or is none; try a larger one.",
    )

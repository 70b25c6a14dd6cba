"""Rows of the tables of families, `test_clip_families.py` and `test_picture_families.py`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from models.family_checks import Family

Check = Callable[..., None]


@dataclass(frozen=True)
class Checked:
    """A family, and with what it is checked.

    Attributes:
        family: Its case.
        recipe: Trains it.
        overrides: Of the recipe, for each agent.
        of_grpo: More of them, for GRPO.
        agents: Train it.
        steps: Numbers of steps of which samples are compared, at each guidance.
        other: Height and width of a sample of evaluation.
        latents: The largest difference of its latents from the pipeline's.
        apart: What is not checked by the table, and why.
    """

    family: Family
    recipe: str
    overrides: tuple[str, ...] = ()
    of_grpo: tuple[str, ...] = ()
    agents: tuple[str, ...] = ("awm", "grpo", "flow_dppo", "drpo")
    steps: tuple[int, ...] = (4,)
    other: tuple[int, int] = (48, 32)
    latents: float = 1e-5
    apart: Mapping[Check, str] = field(default_factory=dict)

    def told(self, agent: str) -> tuple[str, ...]:
        """Overrides of the recipe for one agent."""
        return (*self.overrides, *(self.of_grpo if agent == "grpo" else ()))


def drawn(families: Mapping[str, Checked]) -> Any:
    """`name`, `guidance` and `num_steps` of all samples that are compared."""
    rows = [(name, g, n) for name, row in families.items() for g in row.family.guidances for n in row.steps]
    return pytest.mark.parametrize(("name", "guidance", "num_steps"), rows)


def of_all(families: Mapping[str, Checked], check: Check) -> Any:
    """`name` of each family that `check` is for."""
    return pytest.mark.parametrize("name", [name for name, row in families.items() if check not in row.apart])


def trained(families: Mapping[str, Checked], check: Check) -> Any:
    """`name` and `agent` of all that train."""
    rows = [(name, agent) for name, row in families.items() if check not in row.apart for agent in row.agents]
    return pytest.mark.parametrize(("name", "agent"), rows)

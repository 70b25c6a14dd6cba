"""The mode of Markov decision processes: finite or continuous ones, given as pure functions over states."""

from __future__ import annotations

from unirl_env.envs.acting import MDPVectorEnv
from unirl_env.models import MDPS as NAMES
from unirl_env.modes.playing import Playing

__all__ = ["MDPS", "Processes"]


class Processes(Playing):
    """Episodes of `MDPVectorEnv`."""

    name = "mdp"
    argument = "mdp"
    models = NAMES
    environment = MDPVectorEnv


MDPS = Processes()

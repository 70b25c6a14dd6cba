"""Two decision processes whose optimal policies are known, for tests."""

import torch
from gymnasium import spaces
from torch import nn

import unirl_env
from unirl_env.models import MDP
from unirl_env.types import Sample, Scores


class Walk(MDP):
    """Left or right on five places, with a slip of the foot now and then; over at either end."""

    action_space = spaces.Discrete(2, start=3)
    observation_spaces = {"place": spaces.Box(0, 1, (5,)), "time": spaces.Discrete(9)}
    max_steps = 8
    lora_targets = ("logits",)

    def __init__(self, slip=0.2, **options):
        super().__init__(**options)
        self.slip = float(slip)

    def initial(self, prompts, noise):
        place = torch.tensor([int(prompt.text) for prompt in prompts], device=noise.device)
        return {"place": place, "time": torch.zeros_like(place)}

    def transition(self, state, action, noise):
        slipped = noise.uniform() < self.slip
        move = torch.where(slipped, 0, 2 * (action - 3) - 1)
        return {"place": (state["place"] + move).clamp(0, 4), "time": state["time"] + 1}

    def terminated(self, state):
        return (state["place"] == 0) | (state["place"] == 4)

    def observation(self, state):
        return {"place": nn.functional.one_hot(state["place"], 5).float(), "time": state["time"]}

    def sample(self, state):
        return [Sample(latent=torch.stack(row).float().cpu()) for row in zip(*state.values(), strict=True)]

    def network(self):
        return WalkNetwork()

    def pictures(self, state):
        return list(nn.functional.one_hot(state["place"], 5).float()[:, None, None].expand(-1, 3, 4, 5))


class WalkNetwork(nn.Module):
    """Logits by place; at first, all are alike."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Linear(5, 2)
        nn.init.zeros_(self.logits.weight)
        nn.init.zeros_(self.logits.bias)

    def forward(self, obs):
        return self.logits(obs["place"])


class Throw(MDP):
    """One throw at a target in the plane, which hits nearly what it aims at."""

    action_space = spaces.Box(-2.0, 2.0, (2,))
    observation_spaces = {"target": spaces.Box(-2, 2, (2,))}
    max_steps = 2

    def initial(self, prompts, noise):
        target = [[float(number) for number in prompt.text.split(",")] for prompt in prompts]
        return {
            "target": torch.tensor(target, device=noise.device),
            "hit": torch.zeros(len(target), 2, device=noise.device),
            "thrown": torch.zeros(len(target), dtype=torch.bool, device=noise.device),
        }

    def transition(self, state, action, noise):
        return {**state, "hit": action + 0.05 * noise.normal(2), "thrown": ~state["thrown"]}

    def terminated(self, state):
        return state["thrown"]

    def observation(self, state):
        return {"target": state["target"]}

    def sample(self, state):
        return [Sample(latent=hit.cpu()) for hit in state["hit"]]

    def network(self):
        return ThrowNetwork()


class ThrowNetwork(nn.Module):
    """A mean that is linear in the target, and one log-std of its own."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Linear(2, 2)
        nn.init.zeros_(self.mean.weight)
        nn.init.zeros_(self.mean.bias)
        self.log_std = nn.Parameter(torch.zeros(2) - 0.5)

    def forward(self, obs):
        return self.mean(obs["target"]), self.log_std


def at_the_right_end(samples, prompts):
    """1 for whoever leaves at the right end."""
    return Scores([float(sample.latent[0] == 4) for sample in samples])


def closeness(samples, prompts):
    """Minus the squared distance to the target."""
    targets = [torch.tensor([float(n) for n in prompt.text.split(",")]) for prompt in prompts]
    return Scores([-float((s.latent - t).square().sum()) for s, t in zip(samples, targets, strict=True)])


class Arms(MDP):
    """One pull of one of three arms; the sample says which."""

    action_space = spaces.Discrete(3)
    observation_spaces = {"bias": spaces.Box(0, 1, (1,))}

    def initial(self, prompts, noise):
        return {"arm": torch.full((len(prompts),), -1, device=noise.device)}

    def transition(self, state, action, noise):
        return {"arm": action}

    def terminated(self, state):
        return state["arm"] >= 0

    def observation(self, state):
        return {"bias": torch.ones(len(state["arm"]), 1, device=state["arm"].device)}

    def sample(self, state):
        return [Sample(latent=arm[None].float().cpu()) for arm in state["arm"]]

    def network(self):
        return ArmsNetwork()


class ArmsNetwork(nn.Module):
    """Three logits, which begin unequal."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.5, 0.0, -0.5]))

    def forward(self, obs):
        return obs["bias"] * self.logits


WAGES = (0.0, 1.0, 0.5)
"""What the arms pay."""


def wages(samples, prompts):
    """What the arm pays that was pulled."""
    return Scores([WAGES[int(sample.latent)] for sample in samples])


for name, prompts, scorer in (
    ("Walk", ["1", "2", "3"], "at_the_right_end"),
    ("Throw", ["1,0", "0,1", "-1,0.5"], "closeness"),
    ("Arms", ["pull"], "wages"),
):
    unirl_env.register(
        f"cases/{name}-v0",
        mdp=f"{__name__}:{name}",
        prompts=prompts,
        scorer=f"{__name__}:{scorer}",
    )

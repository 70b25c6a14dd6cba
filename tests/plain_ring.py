"""A batch environment that derives from nothing of ours, and keeps the contract by itself: places on a ring.

An episode takes some steps left or right, from a place that its noise draws; its sample is where it ends.
"""

import copy

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import nn

import unirl_env.functional as F
from unirl_env.errors import ConfigError
from unirl_env.modes.mode import Playing
from unirl_env.types import Prompt, Sample, Scores

PLACES = 6
KNOWN = {"prompts", "group_size", "same_noise", "sample_offset"}
SPACES = {
    "discrete": spaces.Discrete(3),
    "multi": spaces.MultiDiscrete([3, 2]),
    "box": spaces.Box(-1.0, 1.0, (2,), np.float32),
}


class RingVectorEnv(VectorEnv):
    """B places on a ring, and how many steps were taken."""

    laws = ("plain_ring:stays_on_the_ring",)

    def __init__(self, model=None, *, num_envs=1, prompts=("0",), actions="discrete", steps=4, **options):
        self.model, self.num_envs, self.steps = model, num_envs, steps
        self.texts = [str(getattr(prompt, "text", prompt)) for prompt in prompts]
        mode = str(options.get("autoreset_mode", "next_step")).upper()
        self.metadata = {"autoreset_mode": AutoresetMode[mode], "render_modes": []}
        self.held = {"group_size": options.get("group_size", 1), "same_noise": False}
        self.single_observation_space = spaces.Dict(
            {"place": spaces.Box(0, 1, (PLACES,), np.float32), "left": spaces.Box(0, steps, (), np.int64)}
        )
        self.single_action_space = copy.deepcopy(SPACES[actions])
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.started, self.playing, self.finished, self.state = False, (), {}, {}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        options = {name: value for name, value in (options or {}).items() if value is not None}
        if unknown := set(options) - KNOWN:
            raise ConfigError(f"`options` must be of {sorted(KNOWN)}, got {sorted(unknown)}.")
        size = options.get("group_size", self.held["group_size"])
        if size < 1 or self.num_envs % size:
            raise ConfigError(f"`group_size` must divide {self.num_envs}, got {size}.")
        course = (seed, 0) if seed is not None else (self.state["course"][0], self.state["course"][1] + 1)
        self._begin(course, size, options)
        return self._seen(), self._info()

    def _begin(self, course, size, options):
        count = self.num_envs // size
        asked = options.get("prompts") or [self.texts[i % len(self.texts)] for i in range(count)]
        prompts = [each if isinstance(each, Prompt) else Prompt(str(each)) for each in asked]
        key, offsets = F.derive_seed(*course), options.get("sample_offset") or [i for i in range(count)]
        seeds, starts = [], []
        for prompt, offset in zip(prompts, offsets, strict=True):
            own = [F.episode_seed(key, prompt.id, offset * size + i) for i in range(size)]
            seeds += own
            starts += [own[0]] * size if options.get("same_noise") else own
        self.playing = tuple(prompt for prompt in prompts for _ in range(size))
        places = (F.keyed_uniform(torch.tensor(starts), 0).numpy() * PLACES).astype(np.int64)
        group = np.repeat(np.arange(count), size)
        self.state = {"place": places, "step": 0, "seed": np.array(seeds), "group": group, "course": course}
        self.started, self.finished = True, {}

    def step(self, actions):
        if not self.started or (self._over and self.metadata["autoreset_mode"] is AutoresetMode.DISABLED):
            raise ResetNeeded("Call `reset` first.")
        self.finished = {}
        if self._over:
            self._begin((self.state["course"][0], self.state["course"][1] + 1), self.held["group_size"], {})
        else:
            acted = np.asarray(actions.cpu() if isinstance(actions, torch.Tensor) else actions)
            moved = np.sign(acted).astype(np.int64) if acted.dtype.kind == "f" else acted - 1
            moved = moved if moved.ndim == 1 else moved[:, 0]
            self.state = {
                **self.state,
                "place": (self.state["place"] + moved) % PLACES,
                "step": self.state["step"] + 1,
            }
            if self._over:
                self.finished = {
                    i: Sample(latent=torch.tensor([p])) for i, p in enumerate(self.state["place"])
                }
        over = np.full(self.num_envs, self._over)
        return self._seen(), np.zeros(self.num_envs, np.float32), over, ~over & False, self._info()

    @property
    def _over(self):
        return self.state["step"] >= self.steps

    def _seen(self):
        left = np.full(self.num_envs, self.steps - self.state["step"])
        return {"place": np.eye(PLACES, dtype=np.float32)[self.state["place"]], "left": left}

    def _info(self):
        texts, everyone = np.empty(self.num_envs, dtype=object), np.ones(self.num_envs, dtype=bool)
        texts[:] = [prompt.text for prompt in self.playing]
        plain = {"group": self.state["group"].copy(), "episode_seed": self.state["seed"].copy()}
        plain |= {"prompt": texts, "prompt_id": texts.copy()}
        plain |= {f"_{name}": everyone for name in list(plain)}
        if self.finished:
            latent = np.stack([sample.latent.numpy() for sample in self.finished.values()])
            plain |= {"sample": {"latent": latent, "_latent": everyone}, "_sample": everyone}
        return plain

    def snapshot(self):
        return copy.deepcopy((self.state, self.playing))

    def restore(self, snapshot):
        self.state, self.playing = copy.deepcopy(snapshot)
        self.finished = {}
        return self._seen(), self._info()

    def fork(self, indices):
        rows, seen, seeds = np.asarray(indices), set(), []
        for i, row in enumerate(rows.tolist()):
            own = int(self.state["seed"][row])
            seeds.append(F.derive_seed(own, "copy", i) if row in seen else own)
            seen.add(row)
        picked = {name: self.state[name][rows] for name in ("place", "group")}
        self.state = {**self.state, **picked, "seed": np.array(seeds)}
        self.playing = tuple(self.playing[row] for row in rows)
        return self._seen(), self._info()


def stays_on_the_ring(env, act, seed, max_steps):
    """A law of this environment's own."""
    obs, _ = env.reset(seed=seed)
    assert (np.asarray(obs["place"]).sum(1) == 1).all(), "Everyone must be in one place."


class Compass:
    """What the policy knows: the actions, and a network that sees the place only."""

    action_space = SPACES["discrete"]
    lora_targets = ("logits",)

    def __init__(self, device="cpu", dtype="float32", **options):
        self.device = device

    def network(self):
        return CompassNetwork()


class CompassNetwork(nn.Module):
    """Logits of left, stay and right for each place; at first, all are alike."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Linear(PLACES, 3)
        nn.init.zeros_(self.logits.weight)
        nn.init.zeros_(self.logits.bias)

    def forward(self, obs):
        return self.logits(obs["place"].float())


class Rings(Playing):
    """The mode that a user hands over."""

    name = "ring"
    argument = "compass"
    environment = RingVectorEnv


def at_home(samples, prompts):
    """1 for whoever ends at the place that the prompt names."""
    return Scores([float(s.latent[0] == int(p.text)) for s, p in zip(samples, prompts, strict=True)])

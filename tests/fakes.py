"""A generative vector environment without a model, for tests of what is wrapped around one."""

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from unirl_env.envs.info import of_samples
from unirl_env.types import Prompt, Sample

SHAPE = (2, 4, 4)


class FakeDenoiseEnv(VectorEnv):
    """Episode i takes `steps[i]` actions (next latents `[2, 4, 4]`); its sample is the sigmoid of its latent.

    Observation, info (as objects), autoreset and array types are those of the real environments.
    """

    def __init__(self, steps=(3, 3), backend="numpy", autoreset="disabled", reward=0.0, render_mode=None):
        self.num_envs = len(steps)
        self.steps = np.asarray(steps)
        self.backend = backend
        self.reward = reward
        self.render_mode = render_mode
        self.metadata = {
            "autoreset_mode": AutoresetMode[autoreset.upper()],
            "render_modes": ["rgb_array"],
            "render_fps": 4,
        }
        self.single_observation_space = gym.spaces.Dict(
            {
                "latent": gym.spaces.Box(-9.0, 9.0, SHAPE, np.float32),
                "sigma": gym.spaces.Box(0.0, 1.0, (), np.float32),
                "prompt_embeds": gym.spaces.Box(-9.0, 9.0, (3, 2), np.float32),
            }
        )
        self.single_action_space = gym.spaces.Box(-9.0, 9.0, SHAPE, np.float32)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.latent = np.zeros((self.num_envs, *SHAPE), np.float32)
        self.k = np.zeros(self.num_envs, int)
        self.done = np.zeros(self.num_envs, bool)
        self.episode = np.zeros(self.num_envs, int)
        self.info_objects, self.finished, self.playing = True, {}, ()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed = 0 if seed is None else seed
        mask = (options or {}).get("reset_mask")
        self.options, self.finished = options, {}
        self._begin(np.ones(self.num_envs, bool) if mask is None else np.asarray(mask))
        return self._observation(), self._info()

    def step(self, actions):
        if torch.is_tensor(actions):
            actions = actions.numpy()
        live = ~self.done
        if self.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP:
            self._begin(self.done.copy())
        self.latent[live] = actions[live]
        self.k[live] += 1
        finished = live & (self.k >= self.steps)
        self.done = self.done | finished
        pictures = torch.sigmoid(torch.from_numpy(self.latent.copy()))
        self.finished = {
            i: Sample(image=pictures[i, :1].expand(3, 4, 4)) for i in np.flatnonzero(finished).tolist()
        }
        info = self._info() | of_samples(self, self.finished)
        rewards = np.where(live, self.reward, 0.0).astype(np.float32)
        terminated, truncated = self.done.copy(), np.zeros(self.num_envs, bool)
        return self._observation(), *map(self._array, (rewards, terminated, truncated)), info

    def render(self):
        picture = (255 / (1 + np.exp(-self.latent[:, :1]))).astype(np.uint8)
        return tuple(picture.repeat(3, axis=1).transpose(0, 2, 3, 1))

    def _begin(self, mask):
        for i in np.flatnonzero(mask):
            draw = np.random.default_rng([self.seed, self.episode[i], i])
            self.latent[i] = draw.standard_normal(SHAPE, np.float32)
            self.episode[i] += 1
        self.k[mask] = 0
        self.done = self.done & ~mask

    def _array(self, value):
        return torch.from_numpy(np.array(value)) if self.backend == "torch" else np.array(value)

    def _observation(self):
        sigma = (1 - self.k / self.steps).astype(np.float32)
        embeds = np.arange(self.num_envs, dtype=np.float32)[:, None, None] * np.ones((1, 3, 2), np.float32)
        values = {"latent": self.latent, "sigma": sigma, "prompt_embeds": embeds}
        return {name: self._array(value) for name, value in values.items()}

    def _info(self):
        prompts = np.empty(self.num_envs, object)
        prompts[:] = [Prompt(f"prompt {i // 2}", id=f"p{i // 2}") for i in range(self.num_envs)]
        self.playing = tuple(prompts)
        seeds = self.seed * 1000 + self.episode * 10 + np.arange(self.num_envs)
        return {
            "group": self._array(np.arange(self.num_envs) // 2),
            "prompt": prompts,
            "episode_seed": self._array(seeds),
        }


def walk(env, actions=None):
    """Reset and step until every episode has finished once; the list of what `step` returned."""
    obs, _ = env.reset(seed=0)
    results, seen = [], np.zeros(env.num_envs, bool)
    while not seen.all():
        chosen = obs["latent"] * 0.5 if actions is None else actions(obs)
        results.append(env.step(chosen))
        obs = results[-1][0]
        seen |= np.asarray(results[-1][2])
    return results

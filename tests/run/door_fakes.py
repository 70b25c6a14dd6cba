"""An agent that learns in a millisecond, with everything that the door asks of one."""

import torch

import unirl_env.functional as F
from unirl_env.episode import EpisodeBatch
from unirl_env.run.agent_setup import Parts
from unirl_env.settings import RunConfig
from unirl_env.types import Sample, Scores

SIDE = 8


class FakeAgent:
    """Paints a grey picture whose level is its one weight; the reward is the brightness.

    Its next weight depends on the weight, on a momentum and on a generator, so that a state that is restored
    in part shows up in the curve.
    """

    def __init__(self, seed=0, on_iteration=None):
        self.weight = torch.tensor(0.3)
        self.momentum = torch.tensor(0.0)
        self.generator = torch.Generator().manual_seed(seed)
        self.iteration = 0
        self.iteration_metrics = {}
        self.last_batch = None
        self.stopped = False
        self.exports = []
        self.on_iteration = on_iteration

    def train(self):
        self.iteration += 1
        if self.on_iteration is not None:
            self.on_iteration(self.iteration)
        step = torch.rand((), generator=self.generator) * 0.05
        self.momentum = 0.9 * self.momentum + step
        self.weight = (self.weight + 0.1 * self.momentum).clamp(max=0.95)
        self.iteration_metrics = {
            "reward": float(self.weight + 0.01 * torch.randn((), generator=self.generator)),
            "reward_std": 0.1,
            "reward/failed": 0.0,
            "kl": 1e-4 * self.iteration,
            "masked_fraction": 0.02,
            "seconds/rollout": 0.4,
            "seconds/update": 0.5,
            "episodes_per_second": 100.0,
        }
        return {}

    def run_state(self):
        tensors = {
            "weight": self.weight,
            "momentum": self.momentum,
            "generator": self.generator.get_state(),
        }
        return tensors, {"iteration": self.iteration}

    def load_run_state(self, tensors, meta):
        self.weight, self.momentum = tensors["weight"], tensors["momentum"]
        self.generator.set_state(tensors["generator"])
        self.iteration = meta["iteration"]

    def rollout_eval(
        self, prompts, *, samples_per_prompt, seed, num_steps=None, base=False, keep_samples=True
    ):
        weight = 0.3 if base else float(self.weight)
        samples, rows = [], []
        for prompt in prompts:
            for number in range(samples_per_prompt):
                rows.append(prompt)
                draw = torch.Generator().manual_seed(F.episode_seed(seed, prompt.id, number))
                picture = weight + 0.1 * torch.randn(3, SIDE, SIDE, generator=draw)
                samples.append(Sample(image=picture.clamp(0, 1)))
        value = torch.stack([sample.image.mean() for sample in samples])
        return EpisodeBatch(
            phases={},
            scores=Scores(value=value, parts={"brightness": value}),
            group=torch.arange(len(prompts)).repeat_interleave(samples_per_prompt),
            prompts=tuple(rows),
            episode_seed=torch.arange(len(rows)),
            samples=tuple(samples) if keep_samples else None,
        )

    def export_adapters(self, directory, *, weights="trained"):
        self.exports.append(directory)

    def export_weights(self, directory, *, weights="trained"):
        self.exports.append(directory)

    def stop(self):
        self.stopped = True


def darkness(samples, prompts):
    """A held-out scorer that fails on the first sample."""
    value = torch.stack([1 - sample.image.mean() for sample in samples])
    value[0] = torch.nan
    return Scores(value=value)


def small_config(folder, **changes):
    """Settings of a run that takes no time."""
    cfg = RunConfig(name="fake", iterations=6)
    cfg.reward.train = "jpeg"  # which asks nothing of prompts
    cfg.prompts.train = [f"a picture of {number} lamps" for number in range(8)]
    cfg.prompts.heldout = ["a dark room", "a bright window"]
    cfg.logging.folder = str(folder)
    cfg.logging.eval_prompts = 2
    cfg.logging.eval_samples = 2
    cfg.logging.checkpoint_every = 2
    cfg.logging.tensorboard = False
    cfg.logging.progress = False
    for name, value in changes.items():
        target, _, field = name.rpartition("__")
        setattr(getattr(cfg, target) if target else cfg, field, value)
    return cfg


def fake_parts(on_iteration=None, agents=None):
    """A `build` for `launch`; the agents that it builds are appended to `agents`."""

    def build(cfg):
        agent = FakeAgent(cfg.seed, on_iteration)
        if agents is not None:
            agents.append(agent)
        return Parts(agent, darkness, {"model": "fake"})

    return build

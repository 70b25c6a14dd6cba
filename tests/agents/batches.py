"""Episodes of the toy without RLlib: what a learner is given."""

import torch
from toy import POINTS, make_points

import unirl_env.functional as F
from unirl_env.agents.batching import share_out
from unirl_env.prompts.sources import PromptSource
from unirl_env.rollouts.driver import RolloutRequest
from unirl_env.rollouts.play import Rollout


def play(policy, *, group_size=8, prompts=POINTS, seed=3, **options):
    """A rollout of the toy by a `GenerativePolicy`."""

    def make_env(num_envs, num_steps=None):
        return make_points(
            num_envs,
            num_steps=num_steps or 6,
            prompts=POINTS,
            array_backend="torch",
            autoreset_mode="disabled",
        )

    prompts = list(PromptSource.of(prompts))
    rollout = Rollout(make_env, policy.actor)
    return rollout.collect(
        RolloutRequest(prompts, seed=seed, group_size=group_size, keep_mean=True, **options)
    )


def advantages_of(batch):
    return F.group_advantages(batch.rewards, batch.group, valid=batch.scores.valid)


def shards_of(batch, *, num_minibatches=2, num_learners=1, **options):
    advantages = {name: advantages_of(batch) for name in batch.phases}
    return share_out(batch, advantages, num_minibatches=num_minibatches, num_learners=num_learners, **options)


def trainable(learner):
    return torch.cat([tensor.flatten() for tensor in learner.policy.get_state().values()])

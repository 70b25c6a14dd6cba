"""A configuration's learner and player in this process, without Ray: an iteration by hand."""

import dataclasses

from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData

import unirl_env.functional as F
from unirl_env.agents.batching import credit, share_out
from unirl_env.prompts.sources import PromptSource
from unirl_env.rollouts.driver import RolloutRequest


class OneLearner:
    """Plays and learns by the settings of `config`."""

    def __init__(self, config):
        config.validate()
        self.config, world = config, config.world("cpu")
        env = world.env(config.episodes_per_play)
        spaces = {DEFAULT_MODULE_ID: (env.single_observation_space, env.single_action_space)}
        self.learner = config.build_learner(spaces=spaces)
        self.rollout = config.mode.rollout(config, world.env, self.learner.policy.actor)
        source = config.prompt_source()
        self.prompts = PromptSource.of(source) if source is not None else world.prompts

    @property
    def network(self):
        return self.learner.policy.actor.network

    def request(self, iteration=0, **options):
        config = self.config
        return RolloutRequest(
            self.prompts.take(iteration * config.num_prompts, config.num_prompts, seed=config.run_seed),
            seed=F.derive_seed(config.run_seed, "rollout", iteration),
            group_size=config.group_size,
            keep_samples=True,
            **config.mode.training_options(config, iteration, checked=True),
            **options,
        )

    def play(self, iteration=0, **options):
        return self.rollout.collect(self.request(iteration, **options))

    def shards(self, batch, *, learners=1, iteration=0, advantages=None, **options):
        config = self.config
        credited, valid = credit(batch, config)
        return share_out(
            batch,
            credited if advantages is None else advantages,
            valid,
            num_learners=learners,
            **{**config.epochs(iteration), **options},
            aggregate=config.weighing,
            horizon=config.horizon,
            phase_scale=config.phase_scale,
        )

    def update(self, shard, lr=None, **options):
        lr = self.config.learning_rate(shard.iteration) if lr is None else lr
        report = self.learner.update(training_data=TrainingData(batch=shard), lr=lr, **options)
        if report.error is not None:
            raise report.error
        return report

    def learn(self, batch=None, *, lr=None, **options):
        (shard,) = self.shards(self.play() if batch is None else batch, **options)
        return self.update(shard, lr)


def still(batch):
    """The batch with rewards that teach nothing."""
    value = batch.scores.value.clone().fill_(0.5)
    return dataclasses.replace(batch, scores=type(batch.scores)(value))

"""Passes without a gradient go past autograd: the same bits, and tensors that can be trained with later."""

import pytest
import torch
from torch import nn
from toy import PointDenoiser

from unirl_env.models.tiny import TinyQwen3
from unirl_env.policies import forward_only as guard
from unirl_env.policies.actor import Actor, LoRAConfig
from unirl_env.prompts.sources import PromptSource
from unirl_env.rollouts.driver import RolloutRequest
from unirl_env.rollouts.play import Rollout
from unirl_env.types import Scores
from unirl_env.worlds import make_vector_env

pytestmark = pytest.mark.skipif(guard._BELOW is None, reason="this torch lacks the guard")


class Remembers(nn.Module):
    """A network that makes a table when it is first asked, as rotary positions are made."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(5, 2)
        self.table = None

    def forward(self, latent, sigma, point):
        if self.table is None:
            self.table = torch.arange(1.0, 3.0)[None]
        return self.inner(torch.cat([latent, sigma[:, None], point], 1)) * self.table


class RememberingDenoiser(PointDenoiser):
    lora_targets = ("inner",)

    def network(self):
        return Remembers().eval()


def played(model, monkeypatch, *, guarded, **options):
    """What a rollout records, with the guard or with `torch.no_grad` alone."""
    with monkeypatch.context() as patch:
        if not guarded:
            patch.setattr(guard, "_BELOW", None)
        torch.manual_seed(0)
        actor = Actor(model, lora=LoRAConfig(rank=4))
        with torch.no_grad():
            for weight in actor.trainable_state().values():
                weight.add_(0.1)

        def make_env(num_envs, **more):
            return make_vector_env(
                num_envs,
                scorer=lambda samples, prompts: Scores(torch.zeros(len(samples))),
                array_backend="torch",
                autoreset_mode="disabled",
                **options,
                **more,
            )

        prompts = PromptSource.of(options["prompts"]).take(0, 2)
        batch = Rollout(make_env, actor).collect(RolloutRequest(prompts, seed=3, group_size=3))
        return next(iter(batch.phases.values()))


def same(first, second):
    assert torch.equal(first.log_prob, second.log_prob)
    assert torch.equal(first.action, second.action)
    for tensor in (first.log_prob, first.action):
        assert not tensor.requires_grad and not tensor.is_inference()


def test_latents_come_out_bit_for_bit(tiny, monkeypatch):
    options = {"denoiser": tiny, "prompts": "shapes_train", "num_steps": 4}
    same(*(played(tiny, monkeypatch, guarded=each, **options) for each in (True, False)))


def test_tokens_come_out_bit_for_bit(monkeypatch):
    model = TinyQwen3()
    options = {"language_model": model, "prompts": "sums_train", "max_new_tokens": 4}
    same(*(played(model, monkeypatch, guarded=each, **options) for each in (True, False)))


def test_what_a_network_keeps_of_a_pass_can_be_trained_with():
    actor = Actor(RememberingDenoiser())
    rows = torch.ones(3)
    obs = {
        "latent": torch.randn(3, 2),
        "sigma": 0.8 * rows,
        "sigma_next": 0.5 * rows,
        "stochastic": rows.bool(),
        "point": torch.randn(3, 2),
    }
    with torch.no_grad():
        step = actor.act(obs, torch.randn(3, 2))
    assert actor.network.table is not None
    actor.score(obs, step.latent).log_prob.sum().backward()
    assert actor.network.inner.weight.grad.abs().sum() > 0


def test_where_gradients_are_on_an_act_has_one():
    actor = Actor(RememberingDenoiser())
    rows = torch.ones(1)
    obs = {"latent": torch.ones(1, 2), "sigma": rows, "sigma_next": 0.5 * rows, "point": torch.ones(1, 2)}
    step = actor.act({**obs, "stochastic": ~rows.bool()})
    step.latent.sum().backward()
    assert actor.network.inner.weight.grad.abs().sum() > 0

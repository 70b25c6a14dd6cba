"""The optimizer of the settings: which one, how far it goes in an iteration, and that it resumes exactly."""

import math
import sys
from dataclasses import replace

import pytest
import torch
from batches import play, trainable
from test_learner import learn, make_learner
from torch import nn
from toy import toy_config

from unirl_env import train
from unirl_env.agents import GRPOConfig
from unirl_env.agents.learner_state import load_optimizer_state, optimizer_state
from unirl_env.agents.optimizer import make_optimizer
from unirl_env.errors import CheckpointError, ConfigError
from unirl_env.run.agent_setup import agent_config
from unirl_env.run.compose.yaml import differences

OWN = """
import torch

class Signs(torch.optim.Optimizer):
    '''Follows the sign of a sum of gradients; knows numbers, and moments of eight bits.'''

    def __init__(self, params, lr, decay=0.9):
        super().__init__(params, {"lr": lr, "decay": decay, "rounds": 0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["rounds"] += 1
            for weight in group["params"]:
                state = self.state[weight]
                if not state:
                    state["age"], state["sum"] = 0, torch.zeros_like(weight)
                    state["code"] = torch.zeros(3, dtype=torch.uint8)
                state["age"] += 1
                state["code"] += 1
                state["sum"].mul_(group["decay"]).add_(weight.grad)
                step = group["lr"] / (state["age"] + 0.1 * group["rounds"] + float(state["code"][0]))
                weight.sub_(step * state["sum"].sign())


class Forgetful(Signs):
    def step(self, closure=None):
        super().step()
        for state in self.state.values():
            state["why"] = "no reason"


def function(params, lr):
    return Signs(params, lr)
"""
OPTIMIZERS = {
    "momentum": ("torch.optim:SGD", {"momentum": 0.9}),
    "plain": ("torch.optim.SGD", {}),
    "adagrad": ("torch.optim:Adagrad", {}),
    "rmsprop": ("torch.optim:RMSprop", {"momentum": 0.5, "centered": True}),
    "amsgrad": (None, {"amsgrad": True}),
    "own": ("my_optimizers:Signs", {"decay": 0.5}),
}


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "my_optimizers.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_optimizers"
    sys.modules.pop("my_optimizers", None)


def rates(count, **settings):
    config = toy_config(GRPOConfig, lr=1.0, **settings)
    return [config.learning_rate(i) for i in range(count)]


def test_linear_and_cosine_fall_to_the_share_at_the_end():
    line = rates(6, lr_schedule="linear", lr_iterations=4, lr_final=0.2)
    assert line == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.2])
    half = rates(5, lr_schedule="cosine", lr_iterations=4, lr_final=0.2)
    expected = [0.2 + 0.8 * math.cos(math.pi * x / 8) ** 2 for x in range(5)]  # cos² of half the angle
    assert half == pytest.approx(expected)


def test_a_schedule_begins_after_the_warm_up():
    found = rates(7, lr_schedule="linear", lr_iterations=7, warmup_iterations=3)
    assert found == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0, 0.75, 0.5, 0.25])


def test_beyond_a_schedule_nothing_may_be_learned_without_a_word():
    config = toy_config(GRPOConfig, lr_schedule="cosine", lr_iterations=3)
    assert config.learning_rate(2) > 0
    with pytest.raises(ConfigError, match=r"got 3 in iteration 4.*lr_final=0.1"):
        config.learning_rate(3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr_schedule": "cosine"}, "`lr_iterations` must be given with `lr_schedule` 'cosine'"),
        ({"lr_schedule": "step"}, "`lr_schedule` must be one of constant, linear, cosine"),
        ({"lr_final": 0.1}, "`lr_final` must be 0 where the learning rate stays"),
        (
            {"lr_schedule": "linear", "lr_iterations": 5, "warmup_iterations": 5},
            "`warmup_iterations` must be less than the 5",
        ),
        ({"phase_lrs": {"text": 2.0}}, "`phase_lrs` must name phases of .*image"),
        ({"phase_lrs": {"image": 0.0}}, "`phase_lrs` must be positive"),
        ({"optimizer": "sgd"}, "`optimizer` must be the path of a class, got 'sgd'; try 'torch.optim:SGD'"),
        ({"optimizer": "torch.optim:SDG"}, "did you mean `torch.optim:SGD`"),
        ({"optimizer": "no.such.module:A"}, "`no.such.module:A` must name a module"),
        ({"optimizer": "torch.nn:Linear"}, "derives from torch.optim.Optimizer"),
        ({"optimizer": "torch.optim:LBFGS"}, "without a closure"),
        ({"optimizer": "torch.optim:SGD", "betas": (0.9, 0.95)}, "`betas` must be .*no argument `betas`"),
        ({"optimizer": "torch.optim:SGD", "optimizer_options": {"momentun": 1}}, "momentun"),
        ({"optimizer": "torch.optim:SGD", "optimizer_options": {"momentum": -1}}, "Invalid momentum"),
        ({"optimizer_options": {"lr": 1}}, "must not name 'lr'.*try `lr`"),
        ({"optimizer_options": {"eps": 1}}, "must not name 'eps'.*try `adam_epsilon`"),
        ({"optimizer_options": {"params": []}}, "must not name 'params'"),
        (
            {"optimizer": {"type": "adam"}},
            "`optimizer` must be the path of a class, or null.*optimizer_options",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_built(settings, message):
    with pytest.raises(ConfigError, match=message):
        toy_config(GRPOConfig, **settings).validate()


def test_settings_reach_every_optimizer_that_knows_them():
    def made(**settings):
        config = toy_config(GRPOConfig, **settings)
        config.validate()
        return make_optimizer(config, [nn.Parameter(torch.zeros(2))], [1.0]).param_groups[0]

    usual = made(betas=(0.8, 0.9), weight_decay=0.1, adam_epsilon=1e-6)
    assert (usual["betas"], usual["weight_decay"], usual["eps"]) == ((0.8, 0.9), 0.1, 1e-6)
    other = made(optimizer="torch.optim:RMSprop", weight_decay=0.1, optimizer_options={"alpha": 0.5})
    assert (other["weight_decay"], other["eps"], other["alpha"]) == (0.1, 1e-8, 0.5)
    assert made(optimizer="torch.optim:SGD")["weight_decay"] == 0.0


def test_dictionaries_of_rllib_carry_the_optimizer():
    config = toy_config(GRPOConfig, optimizer="torch.optim:SGD", optimizer_options={"momentum": 0.9})
    again = GRPOConfig.from_dict(config.to_dict())
    again.validate()
    assert (again.optimizer, again.optimizer_options) == ("torch.optim:SGD", {"momentum": 0.9})


def test_one_step_of_another_optimizer_is_its_own():
    """Gradients by hand: SGD without momentum moves each weight by -lr times its gradient."""
    learner = make_learner("grpo", optimizer="torch.optim:SGD", grad_clip=None)
    batch, before = play(learner.policy), trainable(learner)
    report = learn(learner, batch, num_minibatches=1, lr=0.5)
    moved = trainable(learner) - before
    assert float(moved.norm()) == pytest.approx(0.5 * report.grad_norm[0], rel=1e-4)


@pytest.mark.parametrize("way", ["run", "rllib"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_resumes_bit_for_bit(own_module, name, way):
    path, options = OPTIMIZERS[name]
    settings = {"optimizer": path, "optimizer_options": options, "lr_schedule": "linear", "lr_iterations": 9}
    learner = make_learner("grpo", **settings)
    first, second = play(learner.policy), play(learner.policy, seed=4)
    learn(learner, first)
    policy, state = learner.policy.get_state(), learner.run_state()
    other = learner._get_optimizer_state()
    learn(learner, second)
    resumed = make_learner("grpo", **settings)
    if way == "run":
        resumed.load_run_state(state)
    else:
        resumed.policy.set_state(policy)
        resumed._set_optimizer_state(other)
    learn(resumed, second)
    assert torch.equal(trainable(resumed), trainable(learner))
    again, expected = resumed.run_state(), learner.run_state()
    assert again.keys() == expected.keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in expected.items())
    assert all(again[key].dtype == tensor.dtype for key, tensor in expected.items())
    if name == "plain":
        return
    # Without the memory it starts afresh, and goes another way.
    fresh = make_learner("grpo", **settings)
    fresh.load_run_state({name: t for name, t in state.items() if name.startswith("policy/")})
    learn(fresh, second)
    assert not torch.equal(trainable(fresh), trainable(learner))


def test_numbers_come_back_as_numbers(own_module):
    learner = make_learner("grpo", optimizer="my_optimizers:Signs")
    learn(learner, play(learner.policy))
    state = learner.run_state()
    assert {key.split("/")[0] for key in state} == {"policy", "optimizer", "numbers", "groups"}
    resumed = make_learner("grpo", optimizer="my_optimizers:Signs")
    resumed.load_run_state(state)
    for moments in resumed.get_optimizer().state.values():
        assert moments["age"] == 2 and type(moments["age"]) is int
        assert moments["code"].dtype == torch.uint8
    assert resumed.get_optimizer().param_groups[0]["rounds"] == 2


def test_an_optimizer_that_cannot_be_saved_is_refused_in_the_first_iteration(own_module):
    learner = make_learner("grpo", optimizer="my_optimizers:Forgetful")
    with pytest.raises(ConfigError, match="got str as `why` of Forgetful"):
        learn(learner, play(learner.policy))


def test_a_state_that_lacks_a_weights_memory_is_refused():
    learner = make_learner("grpo", optimizer="torch.optim:RMSprop")
    learn(learner, play(learner.policy))
    state = learner.run_state()
    name = next(key.split("/")[-1] for key in state if key.startswith("optimizer/"))
    lacking = {
        key: t for key, t in state.items() if not (key.startswith("optimizer/") and key.endswith(name))
    }
    with pytest.raises(CheckpointError, match="got nothing"):
        make_learner("grpo", optimizer="torch.optim:RMSprop").load_run_state(lacking)


class TestGroups:
    """Weights of several factors on the learning rate."""

    def made(self, factors, **settings):
        torch.manual_seed(3)
        weights = [nn.Parameter(torch.randn(3)) for _ in factors]
        config = toy_config(GRPOConfig, **settings)
        return dict(zip("abcd", weights, strict=False)), make_optimizer(config, weights, factors)

    def test_each_factor_has_a_group(self):
        weights, optimizer = self.made([1.0, 0.1, 1.0], lr=0.5)
        assert [(group["lr"], len(group["params"])) for group in optimizer.param_groups] == [
            (0.5, 2),
            (0.05, 1),
        ]
        for weight in weights.values():
            weight.grad = torch.ones_like(weight)
        before = {name: weight.detach().clone() for name, weight in weights.items()}
        optimizer.step()
        moved = {
            name: float((weight - before[name]).detach().abs().mean()) for name, weight in weights.items()
        }
        assert moved == pytest.approx({"a": 0.5, "b": 0.05, "c": 0.5}, rel=1e-4)

    def test_the_state_goes_by_name_and_not_by_place(self):
        weights, optimizer = self.made([1.0, 0.1, 1.0])
        for number, weight in enumerate(weights.values(), 1):
            weight.grad = torch.full_like(weight, float(number))
        optimizer.step()
        state = optimizer_state(optimizer, weights)
        assert {name: float(state[f"optimizer/exp_avg/{name}"][0]) for name in "abc"} == pytest.approx(
            {"a": 0.1, "b": 0.2, "c": 0.3}
        )
        others, resumed = self.made([0.1, 1.0, 1.0])
        load_optimizer_state(resumed, others, state)
        for name, weight in others.items():
            assert torch.equal(resumed.state[weight]["exp_avg"], state[f"optimizer/exp_avg/{name}"])
        assert [group["lr"] for group in resumed.param_groups] == pytest.approx([5e-4, 5e-3])

    def test_one_phase_has_all_weights(self):
        moved = []
        for factor in (1.0, 0.1):
            learner = make_learner("grpo", phase_lrs={"image": factor})
            before = trainable(learner)
            learn(learner, play(learner.policy), num_minibatches=1, lr=1e-2)
            moved.append(trainable(learner) - before)
        torch.testing.assert_close(moved[1], 0.1 * moved[0], rtol=1e-3, atol=1e-7)


class TestRuns:
    """A schedule over the iterations of a run."""

    @pytest.fixture(scope="class")
    def run(self):
        return train.settings(
            "diffusion/gaussian_mixture", ["agent=grpo", "agent.lr_schedule=linear", "iterations=10"]
        )

    def test_the_run_says_how_long_it_is(self, run):
        config = agent_config(run)
        assert config.learning_rate(5) == pytest.approx(config.lr / 2)
        longer = replace(run, agent=replace(run.agent, lr_iterations=20))
        assert agent_config(longer).learning_rate(5) == pytest.approx(config.lr * 0.75)

    def test_a_run_that_is_continued_keeps_its_schedule(self, run):
        longer = replace(run, iterations=20)
        assert differences(run, longer) == ["agent.lr_iterations: 10 -> 20"]
        kept = replace(longer, agent=replace(run.agent, lr_iterations=10, lr_final=0.1))
        with_share = replace(run, agent=replace(run.agent, lr_final=0.1))
        assert differences(with_share, kept) == []
        constant = replace(run, agent=replace(run.agent, lr_schedule="constant"))
        assert differences(constant, replace(constant, iterations=20)) == []

    def test_a_run_longer_than_its_schedule_is_refused_where_nothing_is_left(self, run):
        wrong = replace(run, agent=replace(run.agent, lr_iterations=5))
        with pytest.raises(
            ConfigError, match=r"`iterations` must be at most `agent.lr_iterations`.*10 and 5"
        ):
            wrong.check()
        replace(run, agent=replace(run.agent, lr_iterations=5, lr_final=0.1)).check()

    def test_the_warm_up_must_end_within_the_run(self, run):
        wrong = replace(run, agent=replace(run.agent, warmup_iterations=10))
        with pytest.raises(ConfigError, match=r"`agent.warmup_iterations` must be less than the 10"):
            wrong.check()

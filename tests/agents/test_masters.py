"""Half-precision weights train as float32 ones do: masters, moments and gradients that do not round."""

import copy
import json
import logging

import pytest
import torch
from batches import play, shards_of
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from torch import nn
from toy import POINTS, make_points, toy_config

from unirl_env.agents import GRPO, GRPOConfig
from unirl_env.agents.optimizer import Masters
from unirl_env.agents.parallel.flat_gradient import FlatGradient
from unirl_env.errors import ConfigError

WHOLE = {"policy": {"lora_rank": None}}


def trainer(module, lr=1e-3, **options):
    masters = Masters(dict(module.named_parameters()))
    return masters, torch.optim.AdamW(masters.weights, lr=lr, weight_decay=0.0, **options)


def make_learner(env="HalfPoints", config_class=GRPOConfig, **settings):
    config = toy_config(config_class, env, **{**WHOLE, **settings})
    config.validate()
    one = make_points(1, prompts=POINTS, num_steps=6)
    spaces = {DEFAULT_MODULE_ID: (one.single_observation_space, one.single_action_space)}
    return config.build_learner(spaces=spaces)


def learn(learner, batch, *, lr=1e-3, **cut):
    (shard,) = shards_of(batch, **cut)
    report = learner.update(training_data=TrainingData(batch=shard), lr=lr)
    if report.error is not None:
        raise report.error
    return report


def cast_of(learner):
    """What the network computes with."""
    return torch.cat([t.float().flatten() for t in learner.policy.actor.trainable_state().values()])


def weights_in(state):
    return {name.removeprefix("policy/"): t for name, t in state.items() if name.startswith("policy/")}


def assert_same(mine, theirs):
    assert mine.keys() == theirs.keys()
    assert all(mine[name].dtype == theirs[name].dtype for name in mine)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


class TestMasters:
    def test_steps_too_small_for_the_weight_add_up(self):
        """Adam's step on a steady gradient is `lr`: 200 of 1e-4, where bfloat16 at 1 has steps of 4e-3."""
        layer = nn.Linear(4, 4, bias=False).bfloat16()
        nn.init.ones_(layer.weight)
        masters, optimizer = trainer(layer, lr=1e-4)
        for _ in range(200):
            masters.weights[0].grad = torch.ones(4, 4)
            optimizer.step()
            masters.cast()
        exact = torch.full((4, 4), 1 - 200 * 1e-4)
        torch.testing.assert_close(masters.state()["weight"], exact, rtol=1e-5, atol=0)
        assert torch.equal(layer.weight, exact.bfloat16())

    def test_the_second_moment_decays(self):
        """A gradient of 1, then nothing: after n more steps it is (1 - b) b^n."""
        layer = nn.Linear(1, 1, bias=False).bfloat16()
        masters, optimizer = trainer(layer, betas=(0.9, 0.999))
        for number in range(3001):
            masters.weights[0].grad = torch.full((1, 1), float(number == 0))
            optimizer.step()
        moment = optimizer.state[masters.weights[0]]["exp_avg_sq"]
        assert float(moment) == pytest.approx(1e-3 * 0.999**3000, rel=1e-3)

    def test_gradients_add_up_in_float32(self):
        """1 + 1 + ... ends at 256 in bfloat16, the last number before its steps are of 2."""
        layer = nn.Linear(2, 1, bias=False).bfloat16()
        masters, _ = trainer(layer)
        gradient = FlatGradient(masters.weights)
        gradient.zero()
        for _ in range(1000):
            layer(torch.ones(1, 2, dtype=torch.bfloat16)).sum().backward()
        assert torch.equal(masters.weights[0].grad, torch.full((1, 2), 1000.0))
        assert layer.weight.grad is None, "nothing is held twice"
        torch.testing.assert_close(gradient.clip(1.0), torch.tensor(2.0).sqrt() * 1000)
        gradient.zero()
        assert not masters.weights[0].grad.any()

    def test_float32_weights_are_their_own(self):
        layer = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).bfloat16(), nn.Linear(2, 2).double())
        layer[2].bias.requires_grad_(False)
        masters, _ = trainer(layer)
        trained = [weight for weight in layer.parameters() if weight.requires_grad]
        kept = [master is weight for master, weight in zip(masters.weights, trained, strict=True)]
        assert kept == [True, True, False, False, True]
        assert masters.state().keys() == {"1.weight", "1.bias"}
        assert {master.dtype for master in masters.weights} == {torch.float32, torch.float64}

    def test_a_weight_in_two_places_has_one_master(self):
        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.words = nn.Embedding(5, 3)
                self.head = nn.Linear(3, 5, bias=False)
                self.head.weight = self.words.weight

            def forward(self, token):
                return self.head(self.words(token))

        network, plain = Tied(), Tied()
        plain.load_state_dict(network.bfloat16().state_dict())
        (masters, optimizer), token = trainer(network, lr=0.1), torch.tensor([1, 1, 4])
        network(token).float().square().sum().backward()
        plain(token).square().sum().backward()
        (master,) = masters.weights
        torch.testing.assert_close(master.grad, plain.words.weight.grad, rtol=0.02, atol=0.02)
        optimizer.step()
        masters.cast()
        assert network.head.weight is network.words.weight
        assert torch.equal(network.head.weight, master.bfloat16())

    @pytest.mark.parametrize("way", ["copy", "data", "load_state_dict"])
    def test_weights_from_outside_are_where_training_goes_on(self, way):
        layer = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).bfloat16()
        masters, optimizer = trainer(layer, lr=1e-5)
        for master in masters.weights:
            master.grad = torch.ones_like(master)
        optimizer.step()
        masters.cast()
        before = {name: tensor.clone() for name, tensor in masters.state().items()}
        loaded = torch.randn(8, 8).bfloat16()
        if way == "copy":
            with torch.no_grad():
                layer[0].weight.copy_(loaded)
        elif way == "data":
            layer[0].weight.data = loaded.clone()
        else:
            layer.load_state_dict({**layer.state_dict(), "0.weight": loaded})
        after = masters.state()
        assert torch.equal(after["0.weight"], loaded.float())
        assert all(torch.equal(after[name], before[name]) for name in before if name != "0.weight")
        masters.cast()
        assert torch.equal(layer[0].weight, loaded)

    def test_float16_is_refused(self):
        frozen = nn.Linear(2, 2).half().requires_grad_(False)
        for network in (nn.Linear(2, 2).half(), nn.Sequential(frozen, nn.Linear(2, 2))):
            with pytest.raises(ConfigError, match=r"float32 or bfloat16, got float16 .*weight"):
                Masters(dict(network.named_parameters()))


def test_weights_move_as_far_as_those_of_float32():
    """200 steps of 1e-5 on the same rows: together 2e-3, where most weights are 1e-3 from the next bfloat16.

    Ratios are not clipped: the noise of bfloat16 would leave the range at other steps than float32 does.
    """
    rows = play(make_learner("Points").policy, group_size=4)
    moved = []
    for env in ("Points", "HalfPoints"):
        learner = make_learner(env, clip_low=0.9, clip_high=10.0)
        start = cast_of(learner)
        for _ in range(200):
            learn(learner, rows, lr=1e-5, num_minibatches=1)
        moved.append(cast_of(learner) - start)
    assert 0.9 <= moved[1].norm() / moved[0].norm() <= 1.1
    assert torch.cosine_similarity(*moved, dim=0) > 0.95


def test_micro_batches_change_little_in_half_precision():
    """What is rounded is each micro-batch's gradient, not their sum."""
    norms, weights = [], []
    for size in (None, 1):
        learner = make_learner(micro_batch_size=size)
        norms.append(learn(learner, play(learner.policy), num_minibatches=1).grad_norm[0])
        weights.append(learner.run_state())
    assert norms[1] == pytest.approx(norms[0], rel=5e-3)
    for name, moment in weights[0].items():
        if "/exp_avg/" in name:
            torch.testing.assert_close(
                weights[1][name], moment, rtol=0.02, atol=2e-3 * float(moment.abs().max())
            )


def test_a_float32_network_knows_of_no_masters():
    learner = make_learner("Points")
    assert all(mine is weight for mine, weight in zip(
        learner.get_optimizer().param_groups[0]["params"], learner.policy.parameters(), strict=True
    ))  # fmt: skip
    assert not any(name.startswith("master/") for name in learner._get_optimizer_state())


def test_the_policy_gives_out_the_cast_and_a_checkpoint_the_masters():
    learner = make_learner()
    learn(learner, play(learner.policy))
    given, kept = learner.policy.get_state(), weights_in(learner.run_state())
    assert given.keys() == kept.keys() and len(kept) == 4
    assert {t.dtype for t in given.values()} == {torch.bfloat16}
    assert {t.dtype for t in learner.run_state().values()} == {torch.float32}
    assert all(torch.equal(kept[name].bfloat16(), given[name]) for name in kept)
    assert any(not torch.equal(kept[name], given[name].float()) for name in kept)


def test_a_trained_weight_takes_18_bytes():
    """Its cast 2, master 4, gradient 4, moments 8; three numbers of a tensor's own come on top."""
    learner = make_learner()
    learn(learner, play(learner.policy))
    optimizer = learner.get_optimizer()
    masters = optimizer.param_groups[0]["params"]
    held = [*learner.policy.parameters(), *masters, *(master.grad for master in masters)]
    held += [moment for state in optimizer.state.values() for moment in state.values()]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
    count = sum(weight.numel() for weight in learner.policy.parameters())
    assert 18 * count <= sum(storages.values()) <= 18 * count + 8 * len(masters)
    assert all(weight.grad is None for weight in learner.policy.parameters())


def test_an_export_is_the_cast(tmp_path):
    from transformers import AutoModelForCausalLM

    space = make_points(1, prompts=POINTS).single_observation_space  # which no policy looks at
    config = GRPOConfig().environment("unirl/TinyQwen3-Math-v0", env_config={"dtype": "bfloat16"})
    config.training(num_prompts=2, group_size=2, policy={"lora_rank": None}).validate()
    learner = config.build_learner(spaces={DEFAULT_MODULE_ID: (space, space)})
    with torch.no_grad():
        for master in learner.get_optimizer().param_groups[0]["params"]:
            master.mul_(1.01)
    learner._masters.cast()
    for name, content in learner.export("weights").items():
        (tmp_path / name).write_bytes(content)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").state_dict()
    given, kept = learner.policy.get_state(), weights_in(learner.run_state())
    assert_same({name: loaded[name] for name in given}, given)
    assert_same({name: t.bfloat16() for name, t in kept.items()}, given)


@pytest.mark.parametrize("way", ["run", "rllib", "rllib, the policy last", "rllib's files"])
def test_half_precision_resumes_bit_for_bit(way, tmp_path):
    learner = make_learner()
    first, second = play(learner.policy), play(learner.policy, seed=4)
    for rows in (first, second):
        learn(learner, rows)
    resumed = make_learner()
    learn(resumed, second)
    if way == "run":
        resumed.load_run_state(learner.run_state())
    elif way == "rllib's files":
        resumed.restore_from_path(learner.save_to_path(str(tmp_path / "learner")))
    else:
        state = copy.deepcopy(learner.get_state())
        if way == "rllib":
            resumed.set_state(state)
        else:
            policy = state.pop("rl_module")
            resumed.set_state(state)
            resumed.module.set_state(policy)
    for one in (learner, resumed):
        learn(one, first)
    assert_same(resumed.run_state(), learner.run_state())
    assert torch.equal(cast_of(resumed), cast_of(learner))


def test_a_checkpoint_of_one_precision_goes_on_in_the_other():
    half, full = make_learner(), make_learner("Points")
    learn(half, play(half.policy))
    full.load_run_state(half.run_state())
    assert_same(full.run_state(), half.run_state())
    learn(full, play(full.policy))
    half.load_run_state(full.run_state())
    assert_same(half.run_state(), full.run_state())
    assert torch.equal(cast_of(half), cast_of(full).bfloat16().float())


def test_a_state_from_before_the_masters_is_taken_over_without_its_moments(caplog):
    learner, other = make_learner(), make_learner()
    rows = play(learner.policy)
    for one in (learner, other):
        learn(one, rows, lr=1e-2)
    old = {name: t.bfloat16() if t.dim() else t for name, t in learner.run_state().items()}
    with caplog.at_level(logging.WARNING):
        other.load_run_state(old)
    assert "starts afresh" in caplog.text
    assert_same(other.run_state(), {f"policy/{name}": t.float() for name, t in weights_in(old).items()})


def test_loaded_weights_are_not_overwritten():
    learner = make_learner()
    rows = play(learner.policy)
    learn(learner, rows)
    given = {name: torch.full_like(t, 0.25) for name, t in learner.policy.get_state().items()}
    learner.policy.set_state({"inner.weight": given["inner.weight"]})
    learn(learner, rows, lr=1e-4, num_minibatches=1)
    after = weights_in(learner.run_state())
    torch.testing.assert_close(after["inner.weight"], given["inner.weight"].float(), rtol=0, atol=2e-4)
    assert not torch.equal(after["inner.weight"], given["inner.weight"].float())


def test_the_untrained_copy_stays_what_it_was():
    learner = make_learner(reference_kl=0.1)
    rows = play(learner.policy)
    start = cast_of(learner)
    report = learn(learner, rows, lr=1e-2)
    assert report.phases["image"].metrics[0]["reference_kl"] == pytest.approx(0.0, abs=1e-9)
    with learner.policy.reference():
        kept = torch.cat([w.float().flatten() for w in learner.policy.actor.network.parameters()])
    assert torch.equal(kept, start) and not torch.equal(cast_of(learner), start)


@pytest.mark.ray
class TestAgents:
    @pytest.fixture
    def build(self, cluster):
        agents = []

        def build():
            # Rows in other company round differently here, by more than the check of ratio one allows.
            config = toy_config(GRPOConfig, "HalfPoints", self_check=False, **WHOLE)
            agents.append(config.build_algo())
            return agents[-1]

        yield build
        for agent in agents:
            agent.stop()

    def test_runners_play_the_cast_and_resume_with_the_masters(self, build, tmp_path):
        agent = build()
        runner = agent.env_runner_group.local_env_runner
        agent.train()
        (policy,) = agent._on_learners(lambda learner: learner.policy)
        assert runner.module is policy
        playing = policy.get_state()
        masters = weights_in(agent.run_state()[0])
        assert_same(playing, {name: masters[name].bfloat16() for name in playing})

        path = agent.save_to_path(str(tmp_path / "checkpoint"))
        tensors, meta = agent.run_state()
        agent.train()
        expected = agent.run_state()[0]
        restored = GRPO.from_checkpoint(path)
        try:
            restored.train()
            assert_same(restored.run_state()[0], expected)
            restored.load_run_state(tensors, json.loads(json.dumps(meta)))
            restored.train()
            assert_same(restored.run_state()[0], expected)
            restored.restore_from_path(path)
            assert_same(restored.run_state()[0], tensors)
        finally:
            restored.stop()

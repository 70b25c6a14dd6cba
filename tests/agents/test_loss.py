"""What a user's loss is given, and what it is told when it gives back something else."""

from dataclasses import replace

import pytest
import torch
from batches import advantages_of, play, shards_of
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from test_learner import learn, play_spaces
from toy import toy_config

import unirl_env.functional as F
from unirl_env.agents.agent import Agent
from unirl_env.agents.config import AgentConfig
from unirl_env.agents.loss import Context, Loss
from unirl_env.agents.reports import phase_metrics
from unirl_env.agents.rows import Rows
from unirl_env.errors import ConfigError, ContractError, ShapeError
from unirl_env.functional import Metric


def config_with(compute, *, needs=(), skips_idle=False, scores=True, **settings):
    """An agent on the toy whose loss is `compute`."""

    class Mine(AgentConfig):
        losses = {"latents": Loss(compute, needs=needs, skips_idle=skips_idle, scores=scores)}

        def __init__(self, algo_class=None):
            super().__init__(algo_class=algo_class or Agent)

    config = toy_config(Mine, **settings)
    config.validate()
    return config


def learner_with(compute, **settings):
    config = config_with(compute, **settings)
    return config.build_learner(spaces={DEFAULT_MODULE_ID: play_spaces()})


def plain(rows, new, context):
    return rows.mean(-rows.advantages * new.log_prob), {}


def watched(seen, **fields):
    """A loss that keeps what it is given."""

    def compute(rows, new, context):
        seen.append((rows, new, context))
        return rows.mean(-rows.advantages * new.log_prob), {}

    return compute


def with_a_constant_group(batch):
    value = batch.scores.value.clone()
    value[8:16] = 0.25
    return replace(batch, scores=type(batch.scores)(value))


@pytest.mark.parametrize(
    ("skips_idle", "count"),
    [
        (False, 32 * 5),
        (True, 24 * 5),
        (lambda config: config.num_epochs == 1, 24 * 5),
        (lambda config: 0, 32 * 5),
    ],
)
def test_only_a_loss_that_says_so_is_spared_rows_of_advantage_zero(skips_idle, count):
    seen = []
    learner = learner_with(watched(seen), skips_idle=skips_idle, micro_batch_size=3)
    batch = with_a_constant_group(play(learner.policy))
    report = learn(learner, batch, num_minibatches=1)
    assert sum(len(rows) for rows, *_ in seen) == count == report.phases["image"].rows[0]


def test_a_term_of_ones_own_is_asked_for_where_every_advantage_is_zero():
    def entropy(rows, new, context):
        return rows.mean(rows.advantages * new.log_prob + 0.1 * new.mean.square().mean(1)), {}

    learner = learner_with(entropy)
    batch = play(learner.policy)
    batch = replace(batch, scores=type(batch.scores)(torch.full((32,), 0.5)))
    report = learn(learner, batch)
    assert report.phases["image"].rows == [80, 80] and all(norm > 0 for norm in report.grad_norm)


def test_rows_tell_their_episodes_whatever_the_micro_batch_and_the_learner():
    seen = []
    learner = learner_with(watched(seen), needs={"mean", "final"}, micro_batch_size=5)
    batch = play(learner.policy, keep_final=True)
    phase = batch.phases["image"]
    assert torch.equal(phase.final, torch.stack([sample.latent for sample in batch.samples]))
    for learners in (1, 2):
        seen.clear()
        for shard in shards_of(batch, num_minibatches=1, num_learners=learners):
            report = learner.update(training_data=TrainingData(batch=shard), lr=0.0)
            assert report.error is None
        places = {seed: i for i, seed in enumerate(batch.episode_seed.tolist())}
        found = torch.cat([rows.episode_seed for rows, *_ in seen])
        place = torch.tensor([places[seed] for seed in found.tolist()])
        step = torch.cat([rows.step for rows, *_ in seen])
        assert sorted(zip(place.tolist(), step.tolist(), strict=True)) == [
            (i, k) for i in range(32) for k in range(5)
        ]
        for name, expected in (
            ("final", phase.final[place]),
            ("group", batch.group[place]),
            ("old_mean", phase.mean[place, step]),
            ("action", phase.action[place, step]),
            ("advantages", advantages_of(batch)[place]),
        ):
            assert torch.equal(torch.cat([getattr(rows, name) for rows, *_ in seen]), expected), name


def test_what_was_not_needed_is_not_recorded_and_what_was_is_missed():
    for needs, kept in ((["mean"], (True, False)), ({"final"}, (False, True)), ((), (False, False))):
        config = config_with(plain, needs=needs)
        asked = config.mode.training_options(config, 0, checked=True)
        assert (asked["keep_mean"], asked["keep_final"]) == kept
    learner = learner_with(plain, needs={"final"})
    with pytest.raises(ContractError, match=r"test_loss:plain must need only what latents have .*'final'"):
        learn(learner, play(learner.policy))


def test_context_scores_and_denoises_as_the_policy_does():
    seen = []
    learner = learner_with(watched(seen))
    batch = play(learner.policy)
    learner.policy.set_state({k: v + 0.05 for k, v in learner.policy.get_state().items()})
    learn(learner, batch, num_minibatches=1, lr=0.0)
    ((rows, new, context),) = seen
    assert context.config is learner.config and context.phase == "image"
    again = context.score(rows.observation, rows.action)
    assert torch.equal(again.log_prob, new.log_prob) and again.log_prob.requires_grad
    velocity = context.velocity(rows.observation)
    assert velocity.requires_grad and velocity.shape == rows.action.shape
    expected = F.sde_step(
        velocity,
        *(rows.observation[name] for name in ("latent", "sigma", "sigma_next")),
        next_latent=rows.action,
    )
    assert torch.equal(expected.mean, new.mean)
    with context.weights("reference"):
        with context.weights("reference"):
            inner = context.velocity(rows.observation)
        outer = context.velocity(rows.observation)  # leaving the inner one has not left the outer
    assert torch.equal(inner, outer) and not outer.requires_grad
    with learner.policy.reference():
        assert torch.equal(outer, learner.policy.actor.velocity(rows.observation))
    assert not torch.allclose(outer, velocity) and torch.equal(context.velocity(rows.observation), velocity)
    for name in ("old", "ema", "Reference"):
        with pytest.raises(ConfigError, match=f"`weights` must be one of 'reference', got '{name}'"):
            context.weights(name)


def test_the_network_is_the_trained_one_again_after_an_error_under_other_weights():
    def broken(rows, new, context):
        with context.weights("reference"):
            raise ValueError("mine")

    learner = learner_with(broken)
    batch = play(learner.policy)
    before = learner.policy.actor.velocity(batch.phases["image"].rows(torch.arange(4))[0])
    with pytest.raises(ValueError, match="mine") as caught:
        learn(learner, batch)
    assert any("test_loss:test_the_network" in note for note in caught.value.__notes__)
    assert torch.equal(learner.policy.actor.velocity(batch.phases["image"].rows(torch.arange(4))[0]), before)


def rows_of(count=6, *, groups=2, steps=1, **fields):
    index = torch.arange(count)
    return Rows(
        kind="latents",
        observation={
            "latent": torch.randn(count, 2, generator=torch.Generator().manual_seed(0)),
            "sigma": torch.full((count,), 0.5),
            "point": torch.arange(2 * groups, dtype=torch.float32).view(groups, 2),
            "context_row": index % groups,
        },
        action=torch.zeros(count, 2),
        episode=index // steps,
        step=index % steps,
        old_log_prob=torch.zeros(count),
        old_mean=None,
        advantages=index.float(),
        weight=torch.ones(count),
        mask=index != 1,
        denominator=10.0,
        final=index.float()[:, None].expand(-1, 2),
        group=index // steps % groups,
        episode_seed=100 + index // steps,
        shared=frozenset({"point"}),
        **fields,
    )


class Settings:
    run_seed = 3


def context_of(**where):
    return Context(None, Settings(), **{"phase": "image", "kind": "latents", **where})


@pytest.mark.parametrize("by", ["row", "episode", "group"])
def test_random_numbers_follow_from_keys_and_not_from_who_else_is_there(by):
    rows, context = rows_of(12, steps=3), context_of(iteration=2, step=1)
    many = rows.repeat(4)
    noise, uniform = context.noise(many, "e", by=by), context.uniform(many, "s", by=by)
    assert noise.shape == (48, 2) and uniform.shape == (48,) and uniform.dtype == torch.float32
    assert torch.equal(noise, context_of(iteration=2, step=1).noise(many, "e", by=by))
    order = torch.tensor([7, 2, 2, 11])
    alone = rows.select(order).repeat(4)
    picked = (order[:, None] * 4 + torch.arange(4)).flatten()
    assert torch.equal(context.noise(alone, "e", by=by), noise[picked])
    assert torch.equal(context.uniform(alone, "s", by=by), uniform[picked])
    assert torch.equal(context.noise(rows, "e", by=by), noise[::4]), "the first draw is the only one's"
    distinct = {"row": 12, "episode": 4, "group": 2}[by] * 4
    assert len(noise.unique(dim=0)) == len(uniform.unique()) == distinct
    for other in (
        context.noise(many, "f", by=by),
        context_of(iteration=3, step=1).noise(many, "e", by=by),
        context_of(iteration=2, step=2).noise(many, "e", by=by),
        context_of(iteration=2, step=1, phase="video").noise(many, "e", by=by),
    ):
        assert not (other == noise).any()


def test_random_numbers_are_evenly_spread_below_one():
    rows = rows_of(4000)
    uniform = context_of().uniform(rows, "s")
    assert uniform.min() >= 0 and uniform.max() < 1
    counts = torch.histc(uniform, 8, 0, 1)
    assert ((counts - 500).square() / 500).sum() < 30
    noise = context_of().noise(rows, "e")
    assert noise.mean().abs() < 0.05 and abs(noise.std() - 1) < 0.05
    with pytest.raises(ContractError, match="`by` must be one of"):
        context_of().noise(rows, "e", by="prompt")
    with pytest.raises(ContractError, match="`rows` must know their episodes"):
        context_of().noise(replace(rows, episode_seed=None), "e")


def test_repeated_rows_keep_contexts_shared_and_means_what_they_were():
    rows = rows_of(6)
    many = rows.repeat(2).repeat(2)
    assert len(many) == 24 and many.draws == 4 and many.denominator == 40.0
    assert many.draw.tolist() == [0, 1, 2, 3] * 6
    assert many.observation["point"] is rows.observation["point"]
    assert many.observation["context_row"].tolist() == [row for row in [0, 1] * 3 for _ in range(4)]
    value = rows.action.new_tensor([1.0, torch.inf, 3.0, 4.0, 5.0, 6.0])
    assert rows.mean(value) == many.mean(value.repeat_interleave(4)) == pytest.approx(1.9)
    half = rows.select(rows.advantages > 2)
    assert half.episode_seed.tolist() == [103, 104, 105] and half.final[:, 0].tolist() == [3, 4, 5]


def test_what_the_network_is_to_see_must_fit_the_rows():
    rows = rows_of(6)
    seen = rows.observed(latent=rows.final, sigma=torch.zeros(6))
    assert seen["latent"] is rows.final and seen["point"] is rows.observation["point"]
    with pytest.raises(ShapeError, match=r"`sigma` must be \[6\]"):
        rows.observed(sigma=torch.zeros(6, 1))
    for name in ("sigmas", "point"):
        with pytest.raises(ContractError, match=f"`{name}` must be an entry of each row's observation"):
            rows.observed(**{name: torch.zeros(6)})
    for draws in (0, 1.5, torch.tensor(2)):
        with pytest.raises(ContractError, match="`draws` must be a whole number"):
            rows.repeat(draws)
    with pytest.raises(ContractError, match="packed"):
        replace(rows, kind="tokens").repeat(2)
    with pytest.raises(ShapeError, match=r"`values` must be \[6\]"):
        rows.mean(torch.zeros(6, 1))


def test_metrics_are_reduced_as_they_say_whatever_they_are_called():
    def compute(rows, new, context):
        far = rows.step.float()
        return rows.mean(-rows.advantages * new.log_prob), {
            "max_of_none": Metric.over(rows, far),
            "farthest": Metric.over(rows, far, "max"),
            "count": Metric.over(rows, torch.ones_like(far), "sum"),
            "share": (far > 1).sum() / rows.denominator,
            "knob": Metric(2.5, "max"),
        }

    found = []
    for size in (None, 3):
        learner = learner_with(compute, micro_batch_size=size)
        report = learn(learner, play(learner.policy))
        found.append(phase_metrics([report.phases["image"]]))
    expected = {"max_of_none": 2.0, "farthest": 4.0, "count": 160.0, "share": 0.6, "knob": 2.5}
    for each in found:
        assert {name: each[name] for name in expected} == pytest.approx(expected)


def test_a_metric_is_reduced_alike_always():
    def compute(rows, new, context):
        how = "max" if rows.episode.min() == 0 else "sum"
        return rows.mean(-rows.advantages * new.log_prob), {"odd": Metric(1.0, how)}

    learner = learner_with(compute, micro_batch_size=4)
    with pytest.raises(ContractError, match="'odd' must always be reduced alike"):
        learn(learner, play(learner.policy))


def returning(make):
    def compute(rows, new, context):
        return make(rows.mean(-rows.advantages * new.log_prob), rows, new)

    return compute


WRONG = {
    "nan": (lambda loss, rows, new: (loss * torch.nan, {}), "must be finite in the first update, got nan"),
    "infinite": (lambda loss, rows, new: (loss + torch.inf, {}), "must be finite in the first .* got inf"),
    "rows": (lambda loss, rows, new: (new.log_prob, {}), r"must return a scalar, got shape \[160\]"),
    "alone": (lambda loss, rows, new: loss, r"must return \(loss, metrics\), got Tensor"),
    "number": (lambda loss, rows, new: (0.5, {}), "must return a tensor as its loss, got float"),
    "detached": (lambda loss, rows, new: (loss.detach(), {}), "must depend on the trained weights"),
    "list": (lambda loss, rows, new: (loss, [loss]), "metrics of the loss .* must be a dict, got list"),
    "metric with gradient": (lambda loss, rows, new: (loss, {"kl": loss}), r"'kl' .* must have no gradient"),
    "metric of rows": (
        lambda loss, rows, new: (loss, {"kl": new.log_prob.detach()}),
        r"'kl' .* must be one real number, got shape \[160\].* try Metric.over",
    ),
    "metric elsewhere": (
        lambda loss, rows, new: (loss, {"kl": torch.zeros((), device="meta")}),
        "'kl' .* must be on cpu like the loss, got meta",
    ),
    "metric of text": (lambda loss, rows, new: (loss, {"kl": "high"}), "be a Metric or a tensor, got str"),
    "metric of none": (lambda loss, rows, new: (loss, {"kl": Metric(None)}), "hold a number, got NoneType"),
    "number as metric": (lambda loss, rows, new: (loss, {"b": 0.1}), "'b' .* got float; try Metric"),
    "name": (lambda loss, rows, new: (loss, {3: Metric(1.0)}), "metric 3 .* must have a name, got int"),
    "taken name": (lambda loss, rows, new: (loss, {"reward": Metric(1.0)}), "'reward' .* a name of its own"),
    "taken prefix": (lambda loss, rows, new: (loss, {"self_check/kl": Metric(1.0)}), "name of its own"),
    "reduction": (lambda loss, rows, new: (loss, {"kl": Metric(1.0, "median")}), "`reduce` must be one of"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_loss_that_gives_back_something_else_is_told_so(name):
    make, words = WRONG[name]
    learner = learner_with(returning(make))
    batch = play(learner.policy)
    with pytest.raises(ContractError, match=words) as caught:
        learn(learner, batch, num_minibatches=1, check=("image",))
    named = f"{caught.value!s} {getattr(caught.value, '__notes__', '')}"
    assert "test_loss:returning.<locals>.compute" in named


def test_a_step_that_overflows_later_is_left_out_as_ever():
    learner = learner_with(returning(lambda loss, rows, new: (loss * torch.nan, {})))
    assert learn(learner, play(learner.policy)).skipped == [True, True]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"needs": {"old"}}, "`needs` must be some of 'mean', 'final', 'velocity', got 'old'"),
        ({"needs": {"log_prob"}}, "log-probs of the sampling policy are always there"),
        ({"needs": "mean"}, "`needs` must be a set of names, got 'mean'"),
        ({"needs": None}, "`needs` must be a set of names, got None"),
        ({"skips_idle": 1}, "`skips_idle` must be True or False"),
        ({"scores": "no"}, "`scores` must be True or False"),
    ],
)
def test_a_loss_says_what_it_can_say(fields, words):
    with pytest.raises(ConfigError, match=words):
        Loss(plain, **fields)
    with pytest.raises(ConfigError, match="`compute` must be a function"):
        Loss(None)


def test_a_loss_that_cannot_work_is_refused_before_anything_is_built():
    class Bare(AgentConfig):
        losses = {"latents": plain}

    class OnTokens(AgentConfig):
        losses = {"tokens": Loss(plain, needs={"final"})}

    with pytest.raises(ConfigError, match=r"`losses\['latents'\]` must be a Loss"):
        toy_config(Bare).validate()
    config = OnTokens().environment("unirl/TinyQwen3-Math-v0")
    with pytest.raises(ConfigError, match=r"on tokens must not name 'final'.*test_loss:plain"):
        config.validate()

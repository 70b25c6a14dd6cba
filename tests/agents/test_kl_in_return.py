"""With the KL in the return a learner climbs the exact objective; with the KL in the loss alone, another one.

The gradient that a learner finds at ratio one, averaged over many keyed batches, against that of J.
"""

import math
from itertools import pairwise

import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from test_learner import play_spaces
from test_step_credit import shares, update

import unirl_env.functional as F
from unirl_env import train
from unirl_env.agents import FlowDPPOConfig, GRPOConfig
from unirl_env.agents.batching import share_out
from unirl_env.agents.reference import reference_kls
from unirl_env.bench import exact
from unirl_env.episode import EpisodeBatch, Phase
from unirl_env.functional.paths import PathPolicy, path_grid, path_value
from unirl_env.functional.sequences import all_sequences, sequence_log_prob, sequence_value
from unirl_env.models.gaussian_mixture import GaussianMixture, GaussianMixtureDenoiser, mixture_velocity
from unirl_env.types import Prompt, Scores

BETA, SIZE = 0.7, 8


def learner_of(config_class, env, kl_in, env_config=None, **settings):
    config = config_class().environment(env, env_config=env_config or {})
    config.training(
        num_prompts=1,
        group_size=SIZE,
        num_minibatches=1,
        reference_kl=BETA,
        kl_in=kl_in,
        advantage_scale="none",
        grad_clip=None,
        micro_batch_size=None,
        **settings,
    )
    config.validate()
    return config.build_learner(spaces={DEFAULT_MODULE_ID: play_spaces()})


def episodes(phases, reward, seeds):
    group = torch.arange(len(reward)) // SIZE
    return EpisodeBatch(phases, Scores(reward.float()), group, (Prompt("A"),) * len(reward), seeds)


def found_gradient(learner, batch):
    """Minus the learner's gradient, by weight: its estimate of `(G - 1) / (G S D)` times that of J."""
    kls = {}
    if learner.config.kl_in == "return":
        blank = {name: torch.zeros(len(batch)) for name in batch.phases}
        kls = reference_kls(learner, share_out(batch, blank, num_minibatches=1, num_learners=1)[0])
    update(learner, shares(learner, batch, kls)[0])
    return {n: -p.grad.double().clone() for n, p in learner.policy.actor.network.named_parameters()}


def deviations(found, expected):
    """How many standard errors the mean of `found` lies from what is expected, number by number."""
    found = torch.stack(found)
    error = found.std(0) / math.sqrt(len(found))
    assert float(error.max()) < 0.1 * float(expected.abs().max()), "or nothing could be told"
    return ((found.mean(0) - expected) / error.clamp_min(1e-12)).abs().max()


# Points in the plane, of which the second number is a Gaussian that is not touched: J is that of a line, and
# what is a mean over the elements of an action is half of what it is in nats.

STEPS, ETA = 5, math.sqrt(2.0)
START = {"means": [[-1.0, 0.0], [1.0, 0.0]], "stds": [[0.4, 0.5], [0.4, 0.5]], "weights": [0.6, 0.4]}
MOVED = {"log_weights": [0.0, 0.9], "means": [-0.6, 1.3], "log_stds": [-0.8, -1.0]}
GRID = path_grid(7.0, 0.05)


def paths_of(mixture):
    sigmas = GaussianMixtureDenoiser().sigmas(STEPS)
    return PathPolicy.of(lambda x, s: mixture_velocity(x, s, mixture), sigmas, grid=GRID, eta=ETA)


@pytest.fixture(scope="module")
def slope_on_the_line():
    """The gradient of J by the numbers of the line, the last, deterministic step left as it is."""
    numbers = {name: torch.tensor(value, requires_grad=True) for name, value in MOVED.items()}
    means, stds = numbers["means"][:, None], numbers["log_stds"].exp()[:, None]
    mine = paths_of(GaussianMixture(numbers["log_weights"], means, stds))
    mine = PathPolicy(GRID, torch.cat([mine.mean[:-1], mine.mean[-1:].detach()]), mine.std)
    reference = paths_of(GaussianMixture.of([[-1.0], [1.0]], 0.4, [0.6, 0.4]))
    value = path_value(mine, reference, GRID, BETA)
    assert float(value.kl.detach()) > 0.3
    return torch.cat(
        [torch.autograd.grad(value.objective, n, retain_graph=True)[0] for n in numbers.values()]
    )


def points(actor, seeds):
    """Episodes as the environment plays them, and where they end."""
    sigmas = actor.model.sigmas(STEPS)
    x, seen = F.keyed_noise(seeds, 0, (2,)), []
    for k, (sigma, ahead) in enumerate(pairwise(sigmas)):
        obs = {"latent": x, "sigma": sigma.expand(len(x)), "sigma_next": ahead.expand(len(x))}
        if k == STEPS - 1:
            return phase_of(seen), actor.likeliest(obs).latent
        step = actor.act(obs, F.keyed_noise(seeds, k + 1, (2,)))
        seen.append((obs, step))
        x = step.latent


def phase_of(seen):
    observation = {name: torch.stack([obs[name] for obs, _ in seen], 1) for name in seen[0][0]}
    action, log_prob, mean = (
        torch.stack([getattr(step, name) for _, step in seen], 1) for name in ("latent", "log_prob", "mean")
    )
    return Phase(observation, action, log_prob, torch.ones_like(log_prob, dtype=torch.bool), mean=mean)


@pytest.mark.parametrize(
    ("config_class", "kl_in"), [(GRPOConfig, "return"), (FlowDPPOConfig, "return"), (GRPOConfig, "loss")]
)
@torch.no_grad()
def test_on_latents(config_class, kl_in, slope_on_the_line):
    world = {"model_options": START, "num_steps": STEPS, "scorer": "linear"}
    learner = learner_of(
        config_class,
        "unirl/GaussianMixture-v0",
        kl_in,
        world,
        policy={"lora_rank": None, "eta": ETA},
        steps={"kind": "all"},
    )
    network = learner.policy.actor.network
    for name, value in MOVED.items():
        own = getattr(network, name)
        (own if own.ndim == 1 else own[:, 0]).copy_(torch.tensor(value))
    found = []
    for number in range(24):
        seeds = torch.tensor([F.derive_seed("points", number, i) for i in range(128 * SIZE)])
        phase, end = points(learner.policy.actor, seeds)
        batch = episodes({"image": phase}, end[:, 0], seeds)
        with torch.enable_grad():
            slope = found_gradient(learner, batch)
        numbers = [slope["log_weights"], slope["means"][:, 0], slope["log_stds"][:, 0]]
        found.append(torch.cat(numbers) * (STEPS - 1) * 2)
    off = deviations(found, slope_on_the_line.double() * (SIZE - 1) / SIZE)
    assert off < 4.5 if kl_in == "return" else off > 9


LENGTH, LETTERS = 3, 3


@pytest.mark.parametrize("kl_in", ["return", "loss"])
@torch.no_grad()
def test_on_tokens(kl_in):
    world = {"model_options": {"vocabulary": LETTERS, "length": LENGTH}, "prompts": ["A"]}
    learner = learner_of(GRPOConfig, "unirl/TabularTokens-v0", kl_in, world, policy={"lora_rank": None})
    actor, (name,) = learner.policy.actor, learner.policy.actor.heads
    table = actor.network.logits
    reference = table.double().clone()
    table.add_(torch.randn(table.shape, generator=torch.Generator().manual_seed(3)))
    words = all_sequences(LETTERS, LENGTH)
    reward = torch.randn(len(words), generator=torch.Generator().manual_seed(4))

    rows = actor.model.prefixes
    mine = table[:rows].double().requires_grad_()
    with torch.enable_grad():
        value = sequence_value(
            sequence_log_prob(mine), sequence_log_prob(reference[:rows]), reward.double(), BETA
        )
        expected = torch.autograd.grad(value.objective, mine)[0]
    chances = sequence_log_prob(table[:rows].double()).exp().cumsum(0)
    first = torch.tensor([0, 1, 1 + LETTERS])  # of the rows of each length
    found = []
    for number in range(24):
        seeds = torch.tensor([F.derive_seed("words", number, i) for i in range(256 * SIZE)])
        drawn = torch.searchsorted(chances, F.keyed_uniform(seeds, 0)).clamp_max(len(words) - 1)
        tokens = words[drawn]
        code = torch.stack([torch.zeros_like(drawn), tokens[:, 0], tokens[:, 0] * LETTERS + tokens[:, 1]], 1)
        row = first + code
        log_prob = table.log_softmax(1)[row].gather(2, tokens[..., None])[..., 0]
        mask = torch.ones_like(row, dtype=torch.bool)
        phase = Phase({"row": row}, tokens, log_prob, mask, ragged=True, kind="discrete")
        batch = episodes({name: phase}, reward[drawn], seeds)
        with torch.enable_grad():
            found.append(found_gradient(learner, batch)["logits"][:rows] * LENGTH)
    off = deviations(found, expected * (SIZE - 1) / SIZE)
    assert off < 4.5 if kl_in == "return" else off > 9


# As users have it.


@pytest.mark.ray
@pytest.mark.slow
def test_the_curve_does_not_depend_on_the_number_of_learners(cluster):
    from test_processes import assert_same_curve, train, weights
    from toy import toy_config

    found = []
    for learners in (0, 2):
        options = {"kl_in": "return", "reference_kl": 0.5, "advantage_scale": "group"}
        config = toy_config(GRPOConfig, policy={"lora_rank": None}, **options)
        agent = config.learners(num_learners=learners).build_algo()
        try:
            found.append((train(agent, 2), weights(agent)))
        finally:
            agent.stop()
    (curve, mine), (other, theirs) = found
    assert_same_curve(other, curve)
    for name, tensor in mine.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=0, atol=1e-4)


def test_a_measured_price_is_the_setting_itself_and_the_loss_rests_at_the_best():
    price, base = {}, {}
    for kl_in in ("return", "loss"):
        cfg = train.settings("diffusion/line", [f"agent.kl_in={kl_in}", "model.num_steps=5"])
        found = exact.line(cfg, exact.network_of(cfg))
        price[kl_in] = found["fixed_point"] - found["gaussian_optimum"]
        base[kl_in] = found["base"]
    assert price["return"] == 0 > price["loss"]
    assert base["return"] == base["loss"], "the untrained policy pays nothing"


@pytest.mark.ray
@pytest.mark.parametrize("agent", ["grpo", "flow_dppo"])
def test_a_run_comes_nearer_to_the_optimum(cluster, tmp_path, agent):
    words = ["logging.progress=false", "logging.tensorboard=false", "logging.eval_samples=4", "name=run"]
    words += [f"logging.folder={tmp_path}", "iterations=3", "agent.kl_in=return", "agent.step_weights=noise"]
    words += [f"agent={agent}", "rollout.group_size=64", "agent.advantage_scale=group"]
    assert train.main(["--config-name=diffusion/gaussian_mixture", *words]) == 0

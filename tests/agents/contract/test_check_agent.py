"""The judge of agents: what ships passes, so do right ones of users, and wrong ones fail by their fault."""

import pytest
import torch
import wrong_agents as cases

from unirl_env.agents import AGENTS, AgentConfig, DRPOConfig, GRPOConfig, GSPOConfig, Loss, check_agent
from unirl_env.agents.by_name import default_config
from unirl_env.agents.contract.certificate import DECLARED, FAILED, IDLE, PASSED
from unirl_env.agents.contract.ground import Ground
from unirl_env.agents.contract.judge import CHECKS
from unirl_env.errors import ConfigError

pytestmark = pytest.mark.ray
KINDS = ("latents", "tokens")
SHIPPED = [(name, kind) for name in AGENTS for kind in KINDS if kind in default_config(name).losses]
FIRST = {name: kind for name, kind in reversed(SHIPPED)}
"""By name, the first kind of phase that it has a loss on: one is looked at in every run of the tests."""


def said(certificate):
    """What failed, for a message."""
    return [(check.name, check.kind, check.figure, check.words) for check in certificate.failures]


def refused(config, kind, names):
    """The checks of these names that fail, without the others."""
    ground = Ground(config(), kind, quick=True)
    try:
        found = set()
        for name, check in CHECKS:
            if name in names:
                try:
                    found |= {name} if check(ground).verdict == FAILED else set()
                except Exception:
                    found.add(name)
        return found
    finally:
        ground.close()


@pytest.mark.parametrize("name", FIRST)
def test_what_ships_passes(name, cluster):
    certificate = check_agent(name, kinds=(FIRST[name],), quick=True)
    assert certificate.passed, said(certificate)
    (ratio,), (learned,) = certificate["ratio one"], certificate["optimum"]
    assert ratio.verdict in (PASSED, IDLE) and learned.verdict == IDLE


@pytest.mark.slow
@pytest.mark.parametrize("name, kind", SHIPPED)
def test_what_ships_reaches_the_best_of_its_policies(name, kind, cluster):
    certificate = check_agent(name, kinds=(kind,))
    assert certificate.passed, said(certificate)
    (reached,) = certificate["optimum"]
    assert reached.verdict == PASSED


def test_a_declared_bias_is_measured_and_reported(cluster):
    ground = Ground(GSPOConfig(), "tokens", quick=True)
    check = dict(CHECKS)["gradient"](ground)
    assert check.verdict == DECLARED and 0.2 < check.figure < 0.6
    assert check.interval[0] > 0.1, "in words of unequal length it is one"
    ground.close()
    silent = type("Silent", (GSPOConfig,), {"declared_bias": {}})()
    silent.own_aggregate = "sequence_mean"
    # What the settings say is known without a declaration, too.
    assert "count alike" in Ground(silent, "tokens").declared


@pytest.mark.parametrize("name", cases.RIGHT)
@pytest.mark.parametrize("kind", ["latents", pytest.param("tokens", marks=pytest.mark.slow)])
def test_right_agents_of_users_pass(name, kind, cluster):
    certificate = check_agent(cases.RIGHT[name], kinds=(kind,), quick=True)
    assert certificate.passed, said(certificate)


@pytest.mark.parametrize("name", cases.WRONG)
@pytest.mark.parametrize("kind", [pytest.param("latents", marks=pytest.mark.slow), "tokens"])
def test_wrong_agents_are_refused_for_their_fault(name, kind, cluster):
    config, names = cases.WRONG[name]
    assert refused(config, kind, names), f"none of {sorted(names)} has seen it"


@pytest.mark.parametrize("name", cases.ON_TOKENS)
def test_what_can_be_seen_of_tokens_alone(name, cluster):
    config, names = cases.ON_TOKENS[name]
    assert refused(config, "tokens", names)
    assert not refused(cases.Plain, "tokens", names), "and a right one passes the same check"


@pytest.mark.parametrize("name", cases.ON_LATENTS)
def test_what_is_of_finished_latents_alone(name, cluster):
    config, names = cases.ON_LATENTS[name]
    assert refused(config, "latents", names)
    assert not refused(cases.Nft, "latents", names)


@pytest.mark.parametrize(
    "settings",
    [
        {"advantage_scale": "batch"},
        {"advantage_scale": "leave_one_out"},
        {"anchor": "replay"},
        {"kl_estimator": "k3"},
        {"aggregate": "sequence_mean"},
        {"aggregate": "horizon", "horizon": 8},
        {"dual_clip": 3.0, "token_clip_high": 0.28},
    ],
)
@pytest.mark.slow
def test_settings_of_an_algorithm_are_kept_and_pass(settings, cluster):
    certificate = check_agent(GRPOConfig().training(**settings), kinds=("tokens",), quick=True)
    assert certificate.passed, said(certificate)


def test_what_belongs_to_a_run_is_left_out(cluster):
    config = DRPOConfig().environment("unirl/TinySD3-T2I-v0", env_config={"num_steps": 4})
    config.training(num_prompts=64, lr=1e3, epsilon=0.25, phase_weights={"image": 7.0}, reference_kl=9.0)
    ground = Ground(config, "latents")
    stand = ground.small()
    assert stand.config.epsilon == 0.25 and stand.config.phase_weights == {}
    assert stand.config.reference_kl == 0.0 and stand.config.env == "unirl/Line-v0"
    assert config.num_prompts == 64 and config.epsilon == 0.25, "the agent's own is not touched"
    ground.close()


def test_nothing_is_raised_for_a_wrong_agent(cluster):
    certificate = check_agent(cases.WRONG["broken"][0], kinds=("tokens",), quick=True)
    assert not certificate.passed
    (check,) = certificate["gradient"]
    assert check.verdict == FAILED and "nothing works here" in check.error
    empty = type("Empty", (AgentConfig,), {"losses": {}})
    assert not check_agent(empty).passed


def test_wrong_arguments_are_named():
    with pytest.raises(ConfigError, match="`kinds` must be some of 'latents', 'tokens', got 'pictures'"):
        check_agent("grpo", kinds=("pictures",))
    with pytest.raises(ConfigError, match="on which the agent has a loss, got 'latents'"):
        check_agent("gspo", kinds=("latents",))
    with pytest.raises(ConfigError, match="`config` must be one of"):
        check_agent("grop")


def test_an_agent_stays_as_it_was(cluster):
    """Iterations on a stand begin where it says, whatever was done before."""
    ground = Ground(GRPOConfig(), "latents")
    stand = ground.small()
    first = stand.iterate(3)
    stand.iterate(4)
    again = stand.iterate(3)
    assert torch.equal(first.gradient, again.gradient) and torch.equal(first.weights, again.weights)
    assert not torch.equal(first.gradient, stand.iterate(4).gradient)
    assert torch.equal(stand.begins, stand.weights())
    assert float((stand.begins - stand.start).abs().max()) > 0.05
    ground.close()


def test_losses_see_what_a_look_gives_them(cluster):
    ground = Ground(GRPOConfig(), "tokens")
    stand, calls = ground.small(), []

    def look(compute, rows, new, context):
        calls.append(len(rows))
        loss, metrics = compute(rows, new, context)
        return 2 * loss, metrics

    plain = stand.iterate().gradient
    torch.testing.assert_close(stand.iterate(look=look).gradient, 2 * plain)
    assert calls and torch.equal(stand.iterate().gradient, plain)
    assert isinstance(GRPOConfig.losses["tokens"], Loss), "the class itself is not touched"
    ground.close()

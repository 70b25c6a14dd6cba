"""An algorithm by its name or its path: what is found, what is refused, and whose state goes on in it."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from toy import toy_config

from unirl_env.agents import AGENTS, Agent, AgentConfig, FlowDPPOConfig, GRPOConfig, Loss
from unirl_env.agents.by_name import default_config
from unirl_env.agents.catalogue import algorithm_name, path_of, same_algorithm
from unirl_env.errors import CheckpointError, ConfigError
from unirl_env.run.agent_setup import agent_config
from unirl_env.settings import RunConfig


class OwnConfig(AgentConfig):
    losses = {"latents": Loss(lambda rows, new, context: (rows.mean(-rows.advantages * new.log_prob), {}))}

    def __init__(self, algo_class=None):
        super().__init__(algo_class)
        self.pull = 0.5


class Own(Agent):
    @classmethod
    def get_default_config(cls):
        return OwnConfig()


class NeedsMore(AgentConfig):
    def __init__(self, more, algo_class=None):
        super().__init__(algo_class)


HERE = __name__
READY = OwnConfig()


@pytest.mark.parametrize("name", list(AGENTS))
def test_every_shipped_algorithm_is_found_by_its_name(name):
    config = default_config(name)
    assert path_of(type(config)) == name
    assert type(config.algo_class.get_default_config()) is type(config)


@pytest.mark.parametrize("path", [f"{HERE}:OwnConfig", f"{HERE}.OwnConfig"])
def test_a_path_needs_no_registration(path):
    config = default_config(path)
    assert type(config) is OwnConfig and config.algo_class is Agent
    assert path_of(OwnConfig) == f"{HERE}:OwnConfig"


def test_an_algorithm_stands_for_its_configuration():
    config = default_config(f"{HERE}:Own")
    assert type(config) is OwnConfig and config.algo_class is Own
    assert type(default_config("unirl_env.agents:GRPO")) is GRPOConfig


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gropo", ["one of awm, drpo, elbo_pg, flow_dppo", "got 'gropo'; did you mean 'grpo'"]),
        ("FlowDPPO", ["did you mean 'flow_dppo'"]),
        ("nothing_like_it", ["got 'nothing_like_it'."]),
        ("", ["got ''"]),
        (":x", ["got ':x'"]),
        ("x:", ["got 'x:'"]),
        (3, ["got 3"]),
        ("no_such_lab.alg:OwnConfig", ["No module named 'no_such_lab'", "PYTHONPATH"]),
        ("unirl_env.agnets:GRPOConfig", ["No module named 'unirl_env.agnets'", "mean `unirl_env.agents`"]),
        (
            "unirl_env.agents.grpo:GRPOConfg",
            ["no attribute 'GRPOConfg'", "mean `unirl_env.agents.grpo:GRPOConfig"],
        ),
        (f"{HERE}:Mine", ["no attribute 'Mine'", f"Its algorithms are {HERE}:NeedsMore, {HERE}:OwnConfig."]),
        (f"{HERE}.OwnConfig.Inner", [f"'{HERE}:OwnConfig'"]),
        ("unirl_env.agents.grpo", ["which is a module; try 'unirl_env.agents.grpo:GRPOConfig'"]),
        (f"{HERE}:READY", ["a configuration and no class", f"try '{HERE}:OwnConfig'"]),
        (f"{HERE}:NeedsMore", ["made without arguments", "'more'"]),
        ("unirl_env.models:Denoiser", ["derived from AgentConfig", "the class Denoiser"]),
        ("unirl_env.functional:grpo_loss", ["derived from AgentConfig", "a function"]),
        ("ray.rllib.algorithms.ppo:PPOConfig", ["derived from AgentConfig", "the class PPOConfig"]),
    ],
)
def test_what_is_no_algorithm_is_refused_with_the_nearest_that_is(name, words):
    with pytest.raises(ConfigError) as caught:
        default_config(name)
    assert "`agent.name`" in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("import a_dependency_that_is_missing", "ModuleNotFoundError: No module named 'a_dep"),
        ("1 / 0", "ZeroDivisionError"),
        ("def broken(:", "SyntaxError"),
    ],
)
def test_a_module_that_cannot_be_imported_is_told_with_its_cause(tmp_path, monkeypatch, text, cause):
    module = f"lab_{cause.partition('E')[0].lower()}"
    (tmp_path / f"{module}.py").write_text(f"{text}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=f"must name a module that can be imported.*{module}:X.*{cause}"):
        default_config(f"{module}:X")


def test_an_algorithms_own_knobs_are_its_options():
    cfg = RunConfig()
    cfg.agent.name = f"{HERE}:OwnConfig"
    cfg.agent.options = {"pull": 0.25}
    config = agent_config(cfg)
    assert type(config) is OwnConfig and config.pull == 0.25
    cfg.agent.options = {"pul": 0.25}
    with pytest.raises(ConfigError, match=r"`agent.options.pul`.*did you mean `agent.options.pull`"):
        agent_config(cfg)
    cfg.agent.options = {"lr": 0.25}
    with pytest.raises(ConfigError, match=r"it is a setting of every agent; try `agent.lr=0.25`"):
        agent_config(cfg)


def test_naming_an_algorithm_on_the_command_line_drops_the_knobs_of_the_recipes_own():
    from unirl_env.train import settings

    recipe = "diffusion/gaussian_mixture"
    assert settings(recipe).agent.options
    own = settings(recipe, [f"agent.name={HERE}:OwnConfig"])
    assert own.agent.name == f"{HERE}:OwnConfig" and own.agent.options == {}
    assert settings(recipe, [f"agent.name={HERE}:OwnConfig", "agent.options.pull=0.1"]).agent.options == {
        "pull": 0.1
    }
    assert settings(recipe, ["agent.name=flow_dppo"]).agent.options, "which is the recipe's own"


def test_listing_the_algorithms_loads_none():
    code = (
        "import sys; from unirl_env.agents import AGENTS; assert list(AGENTS) and AGENTS.target('grpo'); "
        "assert 'ray' not in sys.modules and 'unirl_env.agents.grpo' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Twin:
    """Another package's class of the same name."""

    OwnConfig = type("OwnConfig", (OwnConfig,), {"__module__": "other_lab.alg", "__qualname__": "OwnConfig"})


@pytest.mark.ray
def test_a_state_names_who_wrote_it_and_goes_on_in_nobody_else(cluster, tmp_path):
    own = toy_config(OwnConfig).build_algo()
    twin = toy_config(Twin.OwnConfig).build_algo()
    try:
        own.train()
        tensors, meta = own.run_state()
        assert json.loads(json.dumps(meta))["agent"] == f"{HERE}:OwnConfig" == algorithm_name(own)
        with pytest.raises(CheckpointError, match=rf"other_lab.alg:OwnConfig, got one of {HERE}:OwnConfig"):
            twin.load_run_state(tensors, meta)
        before = {name: tensor.clone() for name, tensor in twin.run_state()[0].items()}
        path = own.save_to_path(str(tmp_path / "checkpoint"))
        with pytest.raises(CheckpointError, match=rf"got one of {HERE}:OwnConfig"):
            twin.restore_from_path(path)
        after = twin.run_state()[0]
        assert all((after[name] == tensor).all() for name, tensor in before.items()), "nothing was loaded"
        with pytest.raises(CheckpointError):
            twin.set_state({**own.get_state(), "counters": {**own.get_state()["counters"]}})
        own.restore_from_path(path)
        assert own.iterations_done == 1
    finally:
        own.stop()
        twin.stop()


@pytest.mark.ray
def test_an_agents_own_class_counts_and_states_of_before_are_known(cluster):
    plain, shipped = default_config(f"{HERE}:Own"), toy_config(FlowDPPOConfig).build_algo()
    agent = plain.environment("toy:toy/Points-v0").training(num_prompts=4, group_size=8).build_algo()
    try:
        assert type(agent) is Own and algorithm_name(agent) == f"{HERE}:OwnConfig as {HERE}:Own"
        assert not same_algorithm(f"{HERE}:OwnConfig", agent)
        assert not same_algorithm("Own", agent), "which of several packages is it?"
        assert algorithm_name(shipped) == "flow_dppo"
        assert same_algorithm("FlowDPPO", shipped) and not same_algorithm("GRPO", shipped)
    finally:
        agent.stop()
        shipped.stop()


def test_no_algorithm_takes_more_than_a_page():
    for name in AGENTS:
        module = AGENTS.target(name).partition(":")[0]
        lines = Path(find_spec(module).origin).read_text().splitlines()
        assert len(lines) <= 120, f"{module}: an algorithm is a loss, its knobs and what it needs"

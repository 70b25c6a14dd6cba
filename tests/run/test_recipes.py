import pytest

from unirl_env import train
from unirl_env.agents import AGENTS
from unirl_env.agents.attributes import knob_names
from unirl_env.errors import ConfigError, PromptError
from unirl_env.run.agent_setup import agent_config
from unirl_env.run.compose.yaml import differences, read_yaml, to_yaml
from unirl_env.run.preflight import preflight

RECIPES = train.recipes()


def options(group):
    return sorted(path.stem for path in (train.CONFIGS / group).glob("*.yaml"))


def test_there_are_recipes_to_test():
    assert {"diffusion/tiny_sd3", "diffusion/sd3", "diffusion/gaussian_mixture"} <= set(RECIPES)
    assert {"diffusion/line", "mdp/tabular_tokens"} <= set(RECIPES)
    assert options("agent") == sorted(AGENTS)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_composes_and_is_short(recipe):
    cfg = train.settings(recipe)
    cfg.check()
    assert len((train.CONFIGS / f"{recipe}.yaml").read_text().splitlines()) <= 25


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("agent", ["grpo", "drpo", "flow_dppo"])
def test_the_agent_is_one_word(recipe, agent):
    assert train.settings(recipe, [f"agent={agent}"]).agent.name == agent


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("agent", ["grpo", "drpo", "flow_dppo"])
def test_another_agent_brings_its_own_knobs_along(recipe, agent):
    chosen = train.settings(recipe, [f"agent={agent}"])
    assert chosen.agent.options and set(chosen.agent.options) <= set(knob_names(AGENTS.get(agent)))


@pytest.mark.parametrize(
    ("group", "option"), [(g, o) for g in train.GROUPS for o in options(g)], ids=lambda value: value
)
def test_every_option_of_every_group_composes(group, option):
    train.settings("diffusion/tiny_sd3", [f"{group}={option}"])


def test_a_recipe_survives_its_yaml(tmp_path):
    cfg = train.settings("diffusion/tiny_sd3", ["agent.betas=[0.8,0.99]", "policy.lora_targets=[q,k]"])
    (tmp_path / "config.yaml").write_text(to_yaml(cfg))
    assert read_yaml(tmp_path / "config.yaml") == cfg
    assert cfg.agent.betas == (0.8, 0.99)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("agent.lrr=1", "did you mean `agent.lr`"),
        ("agnet=grpo", "did you mean `agent`"),
        ("nonsense=1", "--show"),
        ("agent=ppo", "`agent` must be one of awm, drpo, elbo_pg, flow_dppo, .*, got ppo"),
        ("agent.lr=fast", "fast"),
        ("iterations=many", "many"),
        ("steps.fraction=[0,x]", "x"),
        ("model.height=[1]", "model.height"),
        ("iterations", "iterations"),
        ("seed=1,2", "seed=1,2"),
    ],
)
def test_a_typing_error_ends_the_run_before_it_begins(override, message):
    with pytest.raises(ConfigError, match=message):
        train.settings("diffusion/tiny_sd3", [override])


def test_an_unknown_recipe_names_the_known_ones():
    with pytest.raises(ConfigError, match="diffusion/tiny_sd3"):
        train.settings("diffusion/nothing")


def test_recipes_of_ones_own(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [/run_settings, /agent: grpo, /model: tiny_sd3, _self_]\nseed: 5\n"
    )
    by_path = train.settings(str(tmp_path / "mine.yaml"), ["agent=drpo"])
    by_folder = train.settings("mine", ["agent=drpo"], str(tmp_path))
    assert by_path == by_folder
    assert (by_path.seed, by_path.agent.name) == (5, "drpo")


def test_a_runs_own_settings_are_a_recipe(tmp_path):
    cfg = train.settings("diffusion/tiny_sd3", ["seed=3", "agent=grpo"])
    (tmp_path / "config.yaml").write_text(to_yaml(cfg))
    assert train.settings(str(tmp_path / "config.yaml")) == cfg
    assert train.settings(str(tmp_path / "config.yaml"), ["iterations=7"]).iterations == 7


NEW = {"name": "clip", "model": "ViT-B-32"}


def test_a_reward_that_is_typed_takes_the_place_of_the_recipes(tmp_path):
    (tmp_path / "config.yaml").write_text(to_yaml(train.settings("unified_model/tiny_unified")))
    for recipe in ("unified_model/tiny_unified", str(tmp_path / "config.yaml")):
        cfg = train.settings(
            recipe, ["rewards.train={name: clip, model: ViT-B-32}", "prompts.train={file: a.jsonl}"]
        )
        assert cfg.reward.train == NEW and cfg.prompts.train == {"file": "a.jsonl"}
        assert cfg.reward.heldout == train.settings("unified_model/tiny_unified").reward.heldout
        later = ["reward.train={name: clip}", "reward.train.model=ViT-B-32"]
        assert train.settings(recipe, later).reward.train == NEW
        merged = train.settings(recipe, ["rewards.train.scorer=clip"]).reward.train
        assert merged == {"name": "pictured", "scorer": "clip"}


def test_any_name_may_stand_in_a_setting_of_options():
    cfg = train.settings(
        "ar/tiny_qwen3",
        ["model.options.a=1", "rollout.engine_options.b=2", "agent.options.c=3", "agent.advantage_parts.d=4"],
    )
    assert cfg.model.options["a"] == 1 and cfg.rollout.engine_options == {"b": 2}
    assert cfg.agent.options["c"] == 3 and cfg.agent.advantage_parts == {"d": 4}
    with pytest.raises(ConfigError, match="unknown name"):
        train.settings("ar/tiny_qwen3", ["model.a=1"])


def test_a_continued_run_brings_its_own_settings(tmp_path):
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    cfg = train.settings("diffusion/tiny_sd3", ["seed=3", "agent=grpo"])
    (folder / "config.yaml").write_text(to_yaml(cfg))
    found = train.settings("diffusion/tiny_sd3", [f"resume={folder}", "iterations=500"])
    assert (found.seed, found.agent.name, found.iterations, found.name) == (3, "grpo", 500, "mine")
    assert differences(cfg, found) == []
    with pytest.raises(ConfigError, match="agent=drpo; try leaving"):
        train.settings("diffusion/tiny_sd3", [f"resume={folder}", "agent=drpo"])
    with pytest.raises(ConfigError, match=r"agent\.lrr"):
        train.settings("diffusion/tiny_sd3", [f"resume={folder}", "agent.lrr=3"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.env=unirl/Nothing-v0"], "registered"),
        (["rollout.group_size=1"], "at least 2"),
        (["rollout.num_prompts=5", "rollout.group_size=3"], "divisible"),
        (["rollout.num_env_runners=3"], "divisible"),
        (["rollout.num_prompts=100000"], "distinct prompts"),
        (["steps.kind=random"], r"`steps\.count`"),
        (["steps.fraction=[0.95,1.0]"], "`steps` must leave a step to train of the 8"),
        (["steps.kind=every"], "all, none, fraction, random, window"),
        (["policy.eta=0"], "log-probability"),
        (["logging.eval_prompts=0"], "logging.eval_prompts"),
        (["agent.micro_batch_size=0"], "agent.micro_batch_size"),
        (["prompts.heldout=shapes_train"], "never sees"),
        (["reward.train=nothing"], r"reward\.train"),
        (["name=a/b"], "folder"),
        (["model.device=cuda:0"], "model.device"),
        (["rollout.num_gpus_per_learner=1"], "GPU"),
    ],
)
def test_impossible_combinations_fail_before_anything_loads(overrides, message, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=message):
        preflight(train.settings("diffusion/tiny_sd3", overrides))


@pytest.mark.parametrize("prompts", ["[]", "nowhere.txt", "['']"])
def test_prompts_that_cannot_be_used_fail_before_anything_loads(prompts):
    with pytest.raises(PromptError):
        preflight(train.settings("diffusion/tiny_sd3", [f"prompts.train={prompts}"]))


def test_the_command_line_answers_without_a_model(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train.main(["--list"]) == 0
    assert "diffusion/sd3" in capsys.readouterr().out
    assert train.main(["--show", "agent=grpo"]) == 0
    assert "name: grpo" in capsys.readouterr().out
    assert train.main(["agent.lrr=1"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("ConfigError")
    assert "Traceback" not in message
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_nobody_foresaw_keeps_its_traceback(capsys, monkeypatch):
    monkeypatch.setattr(train, "settings", lambda *_, **__: 1 / 0)
    assert train.main([]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.parametrize("devices", [8, 16])
def test_hunyuan_image_3_on_several_devices(devices):
    """Learners divide the network and play on their own parts."""
    cfg = train.settings("unified_model/hunyuan_image3", [f"rollout=hunyuan_{devices}"])
    cfg.check()
    assert cfg.learner.parallel == "sharded" and cfg.policy.gradient_checkpointing
    assert cfg.rollout.num_learners == devices and cfg.rollout.num_env_runners == 0
    assert cfg.rollout.num_prompts % devices == 0, "whole groups for every learner"
    assert cfg.policy.lora_rank == 32 and cfg.model.dtype == "bfloat16"
    config = agent_config(cfg)
    assert config.divides and config.env_options().get("rows_per_forward") is None
    hybrid = ["learner.parallel=hybrid", "learner.shard_size=8", f"rollout=hunyuan_{devices}"]
    assert agent_config(train.settings("unified_model/hunyuan_image3", hybrid)).learner.shard_size == 8

"""What a user's package registers works wherever an id is taken; nothing of it stands in this library."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import own_package
import pytest
import torch

import unirl_env
from unirl_env import train
from unirl_env.agents import GRPOConfig
from unirl_env.errors import ConfigError, ContractError, UnknownArgument
from unirl_env.models import DENOISERS, LANGUAGE_MODELS
from unirl_env.models.making import make_model
from unirl_env.rollouts.runner import GenerativeEnvRunner
from unirl_env.run.preflight import preflight
from unirl_env.worlds.registration import full_id, recall, spec_of
from unirl_env.worlds.world import World, world_of

NAME = "lab_of_its_own"
PLAYED = {"array_backend": "torch", "autoreset_mode": "disabled"}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The folder that the package lies in, which can be imported from now on."""
    folder = own_package.write(tmp_path_factory.mktemp("elsewhere"), NAME)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    yield folder
    sys.path.remove(str(folder))
    for name in [each for each in gym.registry if each.startswith(f"{NAME}/")]:
        del gym.registry[name]
    for name in [each for each in sys.modules if each.partition(".")[0] == NAME]:
        del sys.modules[name]


def parts():
    return sys.modules[f"{NAME}.parts"]


def run_settings(task="Orbit", mode="diffusion/gaussian_mixture", *words):
    chosen = ["reward.train=" + f"{NAME}.parts:" + ("roundness" if task == "Orbit" else "brevity")]
    chosen += [f"model.env={NAME}:{NAME}/{task}-v0", "prompts.heldout=null", "reward.heldout=null", *words]
    return train.settings(mode, chosen)


def runner_of(name, **training):
    settings = {"num_prompts": 2, "group_size": 2, **training}
    config = GRPOConfig().environment(name).training(**settings).env_runners(num_env_runners=1)
    config.validate()
    return GenerativeEnvRunner(config=config, worker_index=1)


class TestOneCall:
    def test_an_id_is_an_environment_single_and_batched_from_any_process(self, lab):
        code = f"""
import gymnasium as gym
one = gym.make("{NAME}:{NAME}/Orbit-v0")
many = gym.make_vec("{NAME}/Orbit-v0", num_envs=4, vectorization_mode="vector_entry_point", num_steps=2)
print(one.reset(seed=0)[0]["latent"].shape, many.reset(seed=0)[0]["latent"].shape, many.unwrapped.num_steps)
"""
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=lab, timeout=300
        )
        assert done.stdout.split() == ["(2,)", "(4,", "2)", "2"], done.stderr

    def test_it_loads_no_torch_and_knows_its_home(self, lab):
        code = f"""
import sys, {NAME}
from unirl_env.worlds.registration import full_id
print('torch' in sys.modules, full_id('{NAME}/Orbit-v0'))
"""
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=lab, timeout=300
        )
        assert done.stdout.split() == ["False", f"{NAME}:{NAME}/Orbit-v0"], done.stderr

    def test_twice_alike_is_fine_and_otherwise_is_refused_unless_it_is_meant(self, lab):
        given = {"denoiser": "tiny_sd3", "prompts": ["a"], "num_steps": 3}
        unirl_env.register(f"{NAME}/Twice-v0", **given)
        unirl_env.register(f"{NAME}/Twice-v0", **given)
        with pytest.raises(ConfigError, match=r"`id` must be free.*num_steps=3.*override=True"):
            unirl_env.register(f"{NAME}/Twice-v0", **{**given, "num_steps": 4})
        unirl_env.register(f"{NAME}/Twice-v0", override=True, **{**given, "num_steps": 4})
        assert gym.spec(f"{NAME}/Twice-v0").kwargs["num_steps"] == 4
        with pytest.raises(ConfigError, match="stands for an environment of the entry point"):
            unirl_env.register("CartPole-v1", **given)

    @pytest.mark.parametrize(
        "id, arguments, error, message",
        [
            ("x/A-v0", {"denoiser": "a:B", "num_step": 3}, UnknownArgument, "'num_step', try 'num_steps'"),
            ("x/A-v0", {"denoiser": "a:B", "max_new_tokens": 3}, UnknownArgument, "'max_new_tokens'"),
            ("x/A-v0", {"denoizer": "a:B"}, UnknownArgument, "'denoizer', try 'denoiser'"),
            (
                "x/A-v0",
                {"language_model": "a:B", "generator": {"denoiser": "c:D", "step": 1}},
                UnknownArgument,
                "step",
            ),
            ("x/A-v0", {"prompts": ["a"]}, ConfigError, "must name the model of x/A-v0, got none"),
            ("x/A-v0", {"denoiser": "a:B", "unified_model": "a:B"}, ConfigError, "must name the model"),
            ("x:x/A-v0", {"denoiser": "a:B"}, ConfigError, "without a package before it"),
            ("x/A v0", {"denoiser": "a:B"}, ConfigError, "`id` must be"),
            (7, {"denoiser": "a:B"}, ConfigError, "`id` must be"),
        ],
    )
    def test_what_cannot_be_is_said_at_once(self, id, arguments, error, message):
        with pytest.raises(error, match=message):
            unirl_env.register(id, **arguments)
        assert id not in gym.registry

    def test_the_names_that_are_known_are_those_that_the_classes_take(self):
        import inspect

        from unirl_env.arguments import names as arguments
        from unirl_env.envs import DenoiseVectorEnv, HybridVectorEnv, MDPVectorEnv, TokenVectorEnv
        from unirl_env.envs.vector_env import GenerativeVectorEnv
        from unirl_env.wrappers import DrawWrapper

        def takes(kind, *but):
            return set(inspect.signature(kind.__init__).parameters) - {
                "self",
                "shared",
                "num_envs",
                "device",
                *but,
            }

        kinds = {
            "denoiser": DenoiseVectorEnv,
            "language_model": TokenVectorEnv,
            "mdp": MDPVectorEnv,
            "unified_model": HybridVectorEnv,
        }
        assert set(kinds) == set(arguments.FAMILIES)
        for model, kind in kinds.items():
            assert takes(kind, model) | takes(GenerativeVectorEnv) == set(kind.arguments)
        assert takes(DrawWrapper, "env", "generator") == set(arguments.DRAW)


class TestIds:
    def test_a_package_that_is_not_there_and_an_id_that_is_not(self, lab):
        with pytest.raises(
            ConfigError, match=f"No module named 'nowhere'.*did you mean {NAME}:{NAME}/Orbit-v0"
        ):
            spec_of(f"nowhere:{NAME}/Orbit-v0")
        with pytest.raises(ConfigError, match=f"did you mean {NAME}:{NAME}/Orbit-v0"):
            spec_of(f"{NAME}:{NAME}/Orbt-v0", "model.env")
        with pytest.raises(ConfigError, match="did you mean unirl/TinySD3-T2I-v0"):
            spec_of("unirl/TinySD3-T2I")

    def test_an_id_without_its_package_is_told_which_one_it_needs(self, tmp_path, monkeypatch):
        own_package.write(tmp_path, "lab_unheard_of")
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(ConfigError, match="did you mean lab_unheard_of:lab_unheard_of/Orbit-v0"):
            spec_of("lab_unheard_of/Orbit-v0")

    def test_a_package_that_breaks_says_why(self, tmp_path, monkeypatch):
        (tmp_path / "lab_that_breaks.py").write_text("raise RuntimeError('no licence')")
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(ConfigError, match=r"`model.env` must.*RuntimeError: no licence"):
            spec_of("lab_that_breaks:lab/A-v0", "model.env")

    def test_what_no_module_registers_travels_as_it_is(self, lab):
        name = f"{NAME}/Here-v0"
        unirl_env.register(name, denoiser="tiny_sd3", prompts=["a"], num_steps=2)
        assert full_id(name) == name, "no import would register it"
        spec = gym.registry.pop(name)
        recall(name, spec)
        assert spec_of(name) is spec

    def test_an_agents_environment_gets_the_prefix_that_others_need(self, lab):
        spec_of(f"{NAME}:{NAME}/Orbit-v0")
        config = GRPOConfig().environment(f"{NAME}/Orbit-v0")
        config.validate()
        assert config.env == f"{NAME}:{NAME}/Orbit-v0"
        with pytest.raises(UnknownArgument, match="'num_stpes', try 'num_steps'"):
            GRPOConfig().environment(f"{NAME}/Orbit-v0", env_config={"num_stpes": 3}).validate()

    def test_a_run_is_looked_at_before_anything_is_loaded(self, lab):
        assert (
            len(
                preflight(
                    run_settings("Orbit", "diffusion/gaussian_mixture", "prompts.train=[a,b,c,d,e,f,g,h]")
                ).train
            )
            == 8
        )
        with pytest.raises(ConfigError, match=f"`mode` must be 'diffusion' for {NAME}:{NAME}/Orbit-v0"):
            preflight(run_settings("Orbit", "ar/tiny_qwen3"))
        with pytest.raises(ConfigError, match=r"(?s)Orbit\b.*`dtype`|dtype='bfloat16'"):
            preflight(run_settings("Orbit", "diffusion/gaussian_mixture", "model.dtype=bfloat16"))


class TestModels:
    @pytest.mark.parametrize("task", ["Orbit", "Murmur", "Sketch"])
    def test_a_constructor_that_takes_nothing_plays_in_world_and_policy(self, lab, task):
        runner = runner_of(f"{NAME}:{NAME}/{task}-v0")
        assert type(runner.module.actor.model) is type(runner.world.model) is getattr(parts(), task)
        batch = runner.sample()
        assert len(batch) == 4 and batch.scores.valid.all()
        assert (
            set(batch.phases) == {"Orbit": {"image"}, "Murmur": {"text"}, "Sketch": {"text", "image"}}[task]
        )
        runner.stop()

    def test_what_it_does_not_take_is_no_matter_until_it_is_asked_for(self, lab):
        spec_of(f"{NAME}:{NAME}/Orbit-v0")
        for plain in ({"device": "cpu"}, {"dtype": "float32"}, {"dtype": torch.float32}, {"offload": False}):
            assert make_model(DENOISERS, f"{NAME}.parts:Orbit", plain)
        for option, value in {"device": "cuda:0", "dtype": "bfloat16", "offload": True}.items():
            with pytest.raises(
                UnknownArgument, match=rf"parts:Orbit.*{option}={value!r}.*__init__\(self, {option}="
            ):
                make_model(DENOISERS, f"{NAME}.parts:Orbit", {option: value})

    def test_what_it_needs_is_named_with_its_class(self):
        class Sized(parts().Orbit):
            def __init__(self, radius, *, device="cpu"):
                self.radius = radius

        with pytest.raises(ConfigError, match="Sized is not made without `radius`; try model_options="):
            make_model(DENOISERS, Sized, {"device": "cpu"})
        assert make_model(DENOISERS, Sized, {"radius": 3, "dtype": "float32"}).radius == 3
        made = Sized(4)
        assert make_model(DENOISERS, made, {"device": "cpu"}) is made

    def test_options_that_are_passed_on_are_found_inside(self):
        class Passing(parts().Orbit):
            def __init__(self, **options):
                super().__init__(**options)

        assert make_model(DENOISERS, Passing, {"device": "cpu", "dtype": "float32"})
        with pytest.raises(UnknownArgument, match="'radius'"):
            make_model(DENOISERS, Passing, {"radius": 3})

    def test_no_constructor_at_all_and_half_a_contract(self):
        class Bare(parts().Orbit):
            __init__ = object.__init__

        class Half(parts().Denoiser):
            def network(self):
                return None

        assert make_model(DENOISERS, Bare, {"device": "cpu", "dtype": "float32"})
        with pytest.raises(ContractError, match=r"Half.*incomplete.*decode, encode, sigmas, velocity"):
            make_model(DENOISERS, Half, {})

    def test_a_model_of_another_kind_is_sent_to_its_argument(self):
        with pytest.raises(ConfigError, match=f"try denoiser='{NAME}.parts:Orbit'"):
            make_model(LANGUAGE_MODELS, f"{NAME}.parts:Orbit", {})
        with pytest.raises(ConfigError, match="`denoiser` must be a Denoiser"):
            make_model(DENOISERS, 7, {})


class TestWorlds:
    def test_all_sizes_share_what_is_frozen(self, lab):
        spec_of(f"{NAME}:{NAME}/Orbit-v0")
        made = parts().Orbit.made
        world = world_of(f"{NAME}/Orbit-v0", PLAYED)
        envs = [world.env(2), world.env(6), world.env(2, num_steps=7)]
        assert parts().Orbit.made == made + 1
        assert {id(env.unwrapped.denoiser) for env in envs} == {id(world.model)}
        assert {id(env.scorer) for env in envs} == {id(world.scorer)}
        assert all(env.unwrapped.prompts is world.prompts for env in envs)
        assert [env.unwrapped.num_steps for env in envs] == [3, 3, 7]

    def test_things_may_stand_where_words_do(self, lab):
        spec_of(f"{NAME}:{NAME}/Orbit-v0")
        orbit = parts().Orbit
        for model in (f"{NAME}.parts:Orbit", orbit, orbit()):
            world = World.of({"denoiser": model, "prompts": ["a"], "scorer": parts().roundness})
            assert isinstance(world.model, orbit) and world.env(3).num_envs == 3

    def test_an_environment_of_ones_own_takes_what_it_takes(self, lab):
        name = f"{NAME}:{NAME}/Wobble-v0"
        assert world_of(name, {"wobble": 5}).env(2).wobble == 5
        with pytest.raises(UnknownArgument, match="'wobbel', try 'wobble'"):
            world_of(name, {"wobbel": 5, "wobble": 3}).env(2)

    def test_an_entry_point_of_ones_own_is_called_for_each_size(self, lab, monkeypatch):
        calls = []

        def make(num_envs, **options):
            calls.append((num_envs, options))
            return unirl_env.worlds.make_vector_env(num_envs, **options)

        def narrow(num_envs, *, denoiser, prompts):
            raise AssertionError("never called")

        given = {"denoiser": f"{NAME}.parts:Orbit", "prompts": ["a", "b"], "num_steps": 2}
        for name, entry in {"Own": make, "Narrow": narrow}.items():
            gym.register(f"{NAME}/{name}-v0", vector_entry_point=entry, kwargs=given)
        world = world_of(f"{NAME}/Own-v0", {**PLAYED, "scorer": f"{NAME}.parts:roundness"})
        world.env(2), world.env(4, num_steps=5)
        assert [size for size, _ in calls] == [2, 4] and calls[1][1]["num_steps"] == 5
        assert calls[0][1]["denoiser"] is calls[1][1]["denoiser"] is world.model
        assert calls[0][1]["scorer"] is calls[1][1]["scorer"] and calls[0][1]["prompts"] is world.prompts
        with pytest.raises(
            ContractError, match=f"entry point of {NAME}/Narrow-v0 must take `num_steps`, which is 2"
        ):
            world_of(f"{NAME}/Narrow-v0", {}).env(2)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("processes", [0, 2])
def test_it_trains_goes_on_and_is_compared_in_one_process_and_in_five(lab, tmp_path, processes):
    """As a user would; processes of Ray import nothing but what they are told."""
    paths = [str(lab), str(Path(unirl_env.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    place = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}

    def door(module, *words):
        command = [sys.executable, "-m", f"unirl_env.{module}", *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=lab, env=place, timeout=900)
        assert done.returncode == 0, done.stdout + done.stderr

    door(
        "train",
        "--config-name=diffusion/gaussian_mixture",
        f"model.env={NAME}:{NAME}/Orbit-v0",
        f"reward.train={NAME}.parts:roundness",
        "reward.heldout=null",
        "prompts.train=[a,b]",
        "prompts.heldout=null",
        "rollout.num_prompts=2",
        "rollout.group_size=4",
        f"rollout.num_env_runners={processes}",
        f"rollout.num_learners={processes}",
        f"logging.folder={tmp_path}",
        "name=orbit",
        "iterations=1",
    )
    door("train", f"resume={tmp_path / 'orbit'}", "iterations=2")
    door("evaluate", f"--run={tmp_path / 'orbit'}", "--samples=2")
    rows = [json.loads(row) for row in (tmp_path / "orbit" / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [1, 2]
    assert all(row["reward"] < 0 for row in rows)
    assert list((tmp_path / "orbit" / "comparisons").glob("*/comparison.json"))

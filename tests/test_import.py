"""Importing the package costs next to nothing, registers every id, and needs no Ray to play."""

import subprocess
import sys
import textwrap

import gymnasium as gym
import pytest

import unirl_env
from unirl_env.worlds.ids import IDS

HEAVY = ("ray", "diffusers", "transformers", "vllm", "open_clip", "peft", "accelerate", "hydra", "torch")


def python(code, **options):
    """Run `code` in a fresh interpreter; its standard output."""
    done = subprocess.run(
        [sys.executable, *options.pop("flags", ()), "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_nothing_heavy():
    loaded = python("import sys, unirl_env; print(*{name.partition('.')[0] for name in sys.modules})")
    assert not set(HEAVY) & set(loaded.split())


def test_import_costs_no_more_than_gymnasium_and_a_bit():
    """Processor time beyond gymnasium's own, which a busy machine does not stretch; the best of three."""
    code = """
        import time, gymnasium
        start = time.process_time()
        import unirl_env
        print(time.process_time() - start)
    """
    assert min(float(python(code)) for _ in range(3)) < 0.3


def test_every_id_is_registered_by_its_import():
    registered = python("import unirl_env, gymnasium; print(*gymnasium.registry)")
    assert set(IDS) <= set(registered.split())
    for name in IDS:
        assert gym.spec(name).entry_point and gym.spec(name).vector_entry_point


def test_registering_again_changes_nothing():
    before = {name: gym.spec(name) for name in IDS}
    unirl_env.worlds.ids.register_ids()
    assert {name: gym.spec(name) for name in IDS} == before


def test_the_prefixed_id_needs_no_import(tiny_dir):
    shape = python(
        """
        import sys, gymnasium
        env = gymnasium.make("unirl_env:unirl/TinySD3-T2I-v0", pretrained=sys.argv[1])
        obs, info = env.reset(seed=0)
        print(*obs["latent"].shape, "ray" in sys.modules)
        """.replace("sys.argv[1]", repr(str(tiny_dir)))
    )
    assert shape.split() == ["4", "8", "8", "False"]


def test_submodules_come_by_name_and_others_are_refused():
    assert unirl_env.functional.flow_sigmas(2).shape == (3,)
    with pytest.raises(AttributeError, match="no_such_part"):
        unirl_env.no_such_part  # noqa: B018


def test_everything_but_the_agents_works_without_ray():
    reward = python(
        """
        import sys
        sys.modules["ray"] = None  # importing it now raises
        sys.path.insert(0, TESTS)
        import unirl_env
        import unirl_env.functional, unirl_env.envs, unirl_env.models, unirl_env.worlds
        import unirl_env.policies.actor, unirl_env.rollouts.play, unirl_env.wrappers, unirl_env.rewards
        from worlds import PlainDenoiser, maker
        from unirl_env.types import Prompt
        actor = unirl_env.policies.actor.Actor(PlainDenoiser())
        rollout = unirl_env.rollouts.play.Rollout(maker(actor.model), actor)
        request = unirl_env.rollouts.RolloutRequest([Prompt("a cat")], seed=0, group_size=3)
        batch = rollout.collect(request)
        print(len(batch), bool(batch.rewards.isfinite().all()))
        """.replace("TESTS", repr(__file__.rpartition("/")[0]))
    )
    assert reward.split() == ["3", "True"]

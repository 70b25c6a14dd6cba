"""An environment is judged by the laws of all and by those that it names; nothing is guessed."""

import numpy as np
import pytest
from gymnasium.vector import VectorWrapper
from plain_ring import RingVectorEnv
from worlds import world

from unirl_env.envs import check_vector_env
from unirl_env.errors import ContractError


@pytest.mark.parametrize("mode", ["next_step", "disabled"])
@pytest.mark.parametrize("actions", ["discrete", "multi", "box"])
def test_an_environment_of_ones_own_is_judged_whatever_its_actions(actions, mode):
    env = RingVectorEnv(num_envs=4, prompts=["0", "3"], group_size=2, actions=actions, autoreset_mode=mode)
    check_vector_env(env, seed=3)


def broken(law, **options):
    class Broken(RingVectorEnv):
        laws = (law,)

    return Broken(num_envs=2, **options)


def test_a_law_that_raises_is_told_in_its_own_words():
    def nobody_waits(env, act, seed, max_steps):
        raise AssertionError("nobody may wait")

    with pytest.raises(
        ContractError, match=r"own law `.*nobody_waits` must hold, got AssertionError: nobody may"
    ):
        check_vector_env(broken(nobody_waits))
    with pytest.raises(ContractError, match="must hold, got KeyError: 'x'"):
        check_vector_env(broken(lambda env, act, seed, max_steps: {}["x"]))
    with pytest.raises(ContractError, match="must hold, and said False"):
        check_vector_env(broken(lambda env, act, seed, max_steps: False))

    def ours(env, act, seed, max_steps):
        raise ContractError("as it is")

    with pytest.raises(ContractError, match=r"^as it is$"):
        check_vector_env(broken(ours))


def test_a_law_is_given_the_policy_the_seed_and_the_limit():
    found = []

    def notes(env, act, seed, max_steps):
        obs, _ = env.reset(seed=seed)
        found.append((act(obs).shape, seed, max_steps))

    check_vector_env(broken(notes), seed=5, max_steps=77)
    assert found == [((2,), 5, 77)]


@pytest.mark.parametrize("laws", ["tokens", ("no_such_law",), ("nowhere.module:law",), (3,), 7])
def test_laws_that_are_none(laws):
    class Odd(RingVectorEnv):
        pass

    Odd.laws = laws
    with pytest.raises(ContractError, match="`laws` must"):
        check_vector_env(Odd(num_envs=2))


def test_laws_of_another_kind_convict():
    with pytest.raises(ContractError, match="Observations of tokens must have"):
        check_vector_env(broken("tokens"))
    with pytest.raises(
        ContractError, match="`single_action_space` must be Discrete where actions are tokens"
    ):
        check_vector_env(broken("tokens", actions="box"))
    with pytest.raises(ContractError, match="must be a Dict where there are two phases"):
        check_vector_env(broken("hybrid"))
    with pytest.raises(ContractError, match="must have `latent`"):
        check_vector_env(broken("latents"))


def test_a_wrapper_names_laws_in_place_of_what_it_wraps():
    asked = []

    class Strict(VectorWrapper):
        laws = (lambda env, act, seed, max_steps: asked.append(env),)

    env = Strict(world())
    check_vector_env(env)
    assert asked == [env]


def test_an_example_act_is_the_environments_own():
    seen = []

    class Exemplary(RingVectorEnv):
        def example_act(self, obs):
            seen.append(obs["left"].max())
            return np.full(self.num_envs, 2)

    check_vector_env(Exemplary(num_envs=2))
    assert max(seen) == 4
    Exemplary.example_act = "left"
    with pytest.raises(ContractError, match="`example_act` must be a function"):
        check_vector_env(Exemplary(num_envs=2))


def test_what_an_environment_does_not_answer_is_named():
    env = RingVectorEnv(num_envs=2)
    del env.playing
    env._begin = lambda *arguments: None
    with pytest.raises(ContractError, match="must have `playing`"):
        from unirl_env.envs.contract import env_attr

        env_attr(env, "playing")

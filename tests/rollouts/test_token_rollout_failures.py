"""Engines that are lost, refuse, or do not answer as they must, and requests that cannot be played."""

import pytest
from scripted import CHAT, ONE, TWO, assert_same, echo, player

from unirl_env.errors import ConfigError, ContractError, EngineError, EngineLost, StaleWeights
from unirl_env.rollouts.driver import RolloutRequest
from unirl_env.rollouts.engines import Answer


class TestLoss:
    def test_an_engine_that_is_lost_between_rollouts_is_restarted(self):
        actor = object()
        rollout = player(CHAT, actor=actor)
        load = rollout.drivers["text"].engine.load_weights

        def lost(version, actor):
            rollout.drivers["text"].engine.load_weights = load
            raise EngineLost("the engine fell over")

        rollout.drivers["text"].engine.load_weights = lost
        rollout.load_weights(7)
        assert rollout.drivers["text"].engine.log == [("restart",), ("load", 7, actor)]

    def test_a_lost_engine_is_restarted_with_its_weights(self):
        expected = player(CHAT, tool=echo, max_new_tokens=20).collect(
            RolloutRequest([ONE, TWO], seed=0, weights_version=4)
        )
        calls = []

        def tool(text, prompt):
            calls.append(text)
            return echo(text, prompt)

        actor = object()
        rollout = player(CHAT, actor=actor, losses=[True, False, True], tool=tool, max_new_tokens=20)
        rollout.load_weights(4)
        batch = rollout.collect(RolloutRequest([ONE, TWO], seed=0, weights_version=4))
        assert_same(batch, expected)
        again = [("restart",), ("load", 4, actor), ("generate", None, False)]
        lost = ("generate", None, False)
        assert rollout.drivers["text"].engine.log == [("load", 4, actor), lost, *again, lost, *again]
        assert sorted(calls) == ["say <2>", "ten", "two"], "no turn happens twice"
        assert rollout._env(2, RolloutRequest([ONE, TWO], seed=0)).scored == 2, "no text is judged twice"

    def test_an_engine_that_stays_lost_ends_it(self):
        rollout = player(CHAT, actor=object(), losses=[True] * 3)
        with pytest.raises(EngineLost, match=r"3 times.*fell over"):
            rollout.collect(RolloutRequest([ONE], seed=0))
        assert [entry[0] for entry in rollout.drivers["text"].engine.log].count("generate") == 3
        batch = rollout.collect(RolloutRequest([TWO], seed=0))
        assert batch.rewards.tolist() == [4], "and the next rollout is whole"

    def test_other_failures_are_not_repeated(self):
        rollout = player(CHAT)

        def refuse(requests, **how):
            raise EngineError("too long")

        rollout.drivers["text"].engine.generate = refuse
        with pytest.raises(EngineError, match="too long"):
            rollout.collect(RolloutRequest([ONE], seed=0))

    def test_without_an_actor_there_are_no_weights_to_load(self):
        with pytest.raises(ConfigError, match="`actor`"):
            player(CHAT).load_weights(1)


class TestRefusals:
    @pytest.mark.parametrize(
        "arguments, word",
        [
            ({"prompts": []}, "`prompts`"),
            ({"group_size": 0}, "group_size=0"),
            ({"sample_offset": [0, 1]}, "offset"),
        ],
    )
    def test_impossible_requests_are_named(self, arguments, word):
        with pytest.raises(ConfigError, match=word):
            player({"1+1": "2$"}).collect(RolloutRequest(**{"prompts": [ONE], "seed": 0, **arguments}))

    def test_a_batch_size_is_positive(self):
        with pytest.raises(ConfigError, match="`batch_size`"):
            player({}, batch_size=0)

    def test_weights_of_another_version(self):
        rollout = player({"1+1": "2$"}, actor=object())
        rollout.load_weights(2)
        with pytest.raises(StaleWeights, match="version 3, got version 2"):
            rollout.collect(RolloutRequest([ONE], seed=0, weights_version=3))
        assert (
            rollout.collect(RolloutRequest([ONE], seed=0, weights_version=3, base=True)).weights_version == 3
        )

    def test_an_environment_without_scores(self):
        with pytest.raises(ContractError, match="RewardWrapper"):
            player({"1+1": "2$"}, scored=False).collect(RolloutRequest([ONE], seed=0))

    @pytest.mark.parametrize(
        "answers, word",
        [
            ([], "all 1 requests, got 0"),
            ([Answer((), ())], "1 to 12 tokens, got 0"),
            ([Answer((5,) * 13, (0.0,) * 13)], "1 to 12 tokens, got 13"),
        ],
    )
    def test_an_engine_that_does_not_answer_as_it_must(self, answers, word):
        rollout = player({})
        rollout.drivers["text"].engine.generate = lambda requests, **how: answers
        with pytest.raises(ContractError, match=word):
            rollout.collect(RolloutRequest([ONE], seed=0))

"""Rollouts of texts: what an engine proposes, walked through the environment and recorded in its place."""

import pytest
import torch
from scripted import CHAT, ONE, TWO, assert_same, echo, player
from talk import EOS, SeeingModel, SpellingModel, spelled

import unirl_env.functional as F
from unirl_env.episode import EpisodeBatch
from unirl_env.rollouts.driver import RolloutRequest
from unirl_env.rollouts.engines import Answer
from unirl_env.types import Prompt, Scores


class TestRecords:
    def test_texts_of_unequal_length(self):
        rollout = player({"1+1": "2$", "2*3+4": "10 or so$"})
        batch = rollout.collect(RolloutRequest([ONE, TWO], seed=5, group_size=2))
        phase = batch.phases["text"]
        assert phase.ragged and phase.observation == {}
        assert (
            phase.action.tolist() == [[*spelled("2"), EOS] + [-1] * 7] * 2 + [[*spelled("10 or so"), EOS]] * 2
        )
        assert torch.equal(phase.mask, phase.action >= 0)
        assert phase.log_prob[0].tolist() == [-1, -2] + [0] * 7 and phase.log_prob[2, -1] == -9
        assert phase.context["prompt_length"].tolist() == [6, 8] and phase.context_row.tolist() == [
            0,
            0,
            1,
            1,
        ]
        model = SpellingModel()
        assert phase.context["prompt"][0].tolist() == [*model.encode(ONE).tokens.tolist(), 0, 0]
        assert phase.context["prompt"][1].tolist() == model.encode(TWO).tokens.tolist()
        assert batch.rewards.tolist() == [2, 2, 9, 9] and batch.truncated.tolist() == [False] * 4
        assert [sample.text for sample in batch.samples] == ["2", "2", "10 or so", "10 or so"]
        assert batch.group.tolist() == [0, 0, 1, 1]
        assert batch.episode_seed.tolist() == [
            F.episode_seed(5, p.id, i) for p in (ONE, TWO) for i in range(2)
        ]

    def test_the_engine_is_asked_once_for_all(self):
        rollout = player({"1+1": "2$", "2*3+4": "10$"})
        batch = rollout.collect(RolloutRequest([ONE, TWO], seed=5, temperature=0.5, base=True))
        (asked,) = rollout.drivers["text"].engine.asked
        assert [request.prompt for request in asked] == [ONE, TWO]
        assert [request.seed for request in asked] == batch.episode_seed.tolist()
        assert [request.position for request in asked] == [0, 0]
        assert [request.max_new_tokens for request in asked] == [12, 12]
        assert list(asked[1].tokens) == SpellingModel().encode(TWO).tokens.tolist()
        assert rollout.drivers["text"].engine.log == [("generate", 0.5, True)]

    def test_an_empty_answer(self):
        batch = player({"1+1": "$", "2*3+4": "ten$"}).collect(RolloutRequest([ONE, TWO], seed=0))
        assert batch.phases["text"].mask.sum(1).tolist() == [1, 4]
        assert batch.samples[0].text == "" and batch.rewards.tolist() == [1, 4]

    def test_all_may_be_empty(self):
        batch = player({"1+1": "$"}).collect(RolloutRequest([ONE], seed=0, group_size=3))
        assert batch.phases["text"].action.tolist() == [[EOS]] * 3

    def test_all_may_be_truncated(self):
        batch = player({"1+1": "x" * 30}).collect(RolloutRequest([ONE], seed=0, group_size=2))
        assert batch.truncated.tolist() == [True, True] and batch.phases["text"].mask.sum(1).tolist() == [
            12,
            12,
        ]
        assert all(sample.truncated for sample in batch.samples)

    def test_an_end_at_the_limit_is_an_end(self):
        batch = player({"1+1": "x" * 11 + "$", "2*3+4": "x" * 12}).collect(RolloutRequest([ONE, TWO], seed=0))
        assert batch.truncated.tolist() == [False, True]

    def test_what_an_engine_says_after_the_end_is_dropped(self):
        rollout = player({"1+1": "2$", "2*3+4": "abcdef$"})
        honest = rollout.collect(RolloutRequest([ONE, TWO], seed=0))
        rollout.drivers["text"].engine._said = lambda line: [*spelled(line[:-1]), EOS, *spelled("zzz")]
        assert_same(rollout.collect(RolloutRequest([ONE, TWO], seed=0)), honest)

    def test_an_engine_may_answer_in_pieces(self):
        rollout = player({"1+1": "a long one$"})
        whole = rollout.collect(RolloutRequest([ONE], seed=0))
        tokens = (*spelled("a long one"), EOS)

        def piece(request):
            cut = slice(request.position, request.position + 4)
            return Answer(tokens[cut], tuple(-1.0 - i for i in range(11))[cut])

        rollout.drivers["text"].engine._answer = piece
        assert_same(rollout.collect(RolloutRequest([ONE], seed=0)), whole)
        assert [asked[0].position for asked in rollout.drivers["text"].engine.asked[1:]] == [0, 4, 8]

    def test_samples_are_kept_when_asked_for(self):
        assert (
            player({"1+1": "2$"}).collect(RolloutRequest([ONE], seed=0, keep_samples=False)).samples is None
        )

    def test_failed_scores_are_kept_as_such(self):
        rollout = player({"1+1": "2$", "2*3+4": "10$"})
        env = rollout._env(2, RolloutRequest([ONE, TWO], seed=0))
        env.scorer = lambda samples, prompts: Scores(
            torch.tensor([torch.nan if sample.text == "2" else 1.0 for sample in samples]),
            {"size": torch.tensor([float(len(sample.tokens)) for sample in samples])},
        )
        batch = rollout.collect(RolloutRequest([ONE, TWO], seed=0))
        assert batch.scores.valid.tolist() == [False, True] and batch.rewards[0].isnan()
        assert batch.scores.parts["size"].tolist() == [2, 3], "they came at different steps"


class TestConversations:
    def test_replies_stand_between_the_turns(self):
        rollout = player(CHAT, tool=echo, max_new_tokens=20)
        batch = rollout.collect(RolloutRequest([ONE, TWO], seed=0))
        phase = batch.phases["text"]
        reply = SpellingModel().reply("2")
        first = [*spelled("say <2>"), EOS]
        said = [*first, *reply, *spelled("two"), EOS]
        assert phase.action[0].tolist() == said
        assert phase.mask[0].tolist() == [True] * 8 + [False] * len(reply) + [True] * 4
        expected = [-1.0 - i for i in range(len(said))]
        expected[8 : 8 + len(reply)] = [0.0] * len(reply)
        assert phase.log_prob[0].tolist() == expected
        assert phase.action[1].tolist() == [*spelled("ten"), EOS] + [-1] * 12
        assert [sample.text for sample in batch.samples] == ["two", "ten"]
        assert batch.rewards.tolist() == [len(said), 4]

    def test_only_those_who_were_answered_are_asked_again(self):
        rollout = player(CHAT, tool=echo, max_new_tokens=20)
        rollout.collect(RolloutRequest([ONE, TWO], seed=0))
        first, second = rollout.drivers["text"].engine.asked
        assert len(first) == 2 and [request.prompt for request in second] == [ONE]
        said = (*spelled("say <2>"), EOS, *SpellingModel().reply("2"))
        assert second[0].tokens == (*first[0].tokens, *said)
        assert second[0].position == len(said) and second[0].max_new_tokens == 20 - len(said)

    def test_a_reply_without_room_truncates(self):
        batch = player(CHAT, tool=echo, max_new_tokens=10).collect(RolloutRequest([ONE, TWO], seed=0))
        assert batch.truncated.tolist() == [True, False]
        assert batch.phases["text"].mask.sum(1).tolist() == [8, 4]


class TestLots:
    lines = {"1+1": "2$", "2*3+4": "ten or so$"}

    @pytest.mark.parametrize("size", [1, 2, 3, 5])
    def test_of_any_size(self, size):
        whole = player(self.lines).collect(RolloutRequest([ONE, TWO], seed=3, group_size=3))
        assert_same(
            player(self.lines, batch_size=size).collect(RolloutRequest([ONE, TWO], seed=3, group_size=3)),
            whole,
        )

    def test_shared_out_over_two_workers(self):
        whole = player(self.lines).collect(RolloutRequest([ONE, TWO, ONE], seed=3, group_size=2))
        parts = [
            player(self.lines).collect(
                RolloutRequest([ONE], seed=3, group_size=2, sample_offset=[0], first_group=0)
            ),
            player(self.lines).collect(
                RolloutRequest([TWO, ONE], seed=3, group_size=2, sample_offset=[0, 2], first_group=1)
            ),
        ]
        assert_same(EpisodeBatch.cat(parts), whole)
        assert len(set(whole.episode_seed.tolist())) == 6

    def test_environments_are_made_once_per_size_and_closed(self):
        rollout = player(self.lines, batch_size=4)
        made, make_env = [], rollout.make_env
        rollout.make_env = lambda num_envs: made.append(num_envs) or make_env(num_envs)
        for _ in range(2):
            rollout.collect(RolloutRequest([ONE, TWO], seed=0, group_size=3))
        assert made == [4, 2]
        rollout.close()
        assert rollout.drivers["text"].engine.closed


class TestPictures:
    """The context of a vision-language model."""

    def test_is_padded_to_the_largest_of_the_batch(self):
        prompts = [Prompt("3 dots"), Prompt("none"), Prompt("5 more dots")]
        rollout = player({prompt.id: "ok$" for prompt in prompts}, SeeingModel())
        phase = rollout.collect(RolloutRequest(prompts, seed=0, group_size=2)).phases["text"]
        assert phase.context["pixel_values"].shape == (3, 5, 2)
        assert phase.context["image_grid_thw"][:, 0].tolist() == [[1, 1, 3], [1, 1, 0], [1, 1, 5]]
        assert phase.context["positions"].shape == (3, 3, 14)
        assert phase.context["pixel_values"][0].flatten().tolist() == [1, 2, 3, 4, 5, 6, 0, 0, 0, 0]
        asked = rollout.drivers["text"].engine.asked[0]
        assert [len(request.inputs["pixel_values"]) for request in asked] == [3, 3, 0, 0, 5, 5]
        assert asked[0].inputs["pixel_values"] is asked[1].inputs["pixel_values"]

    def test_lots_with_and_without_pictures_join(self):
        class Mixed(SeeingModel):
            def encode(self, prompt):
                encoded = super().encode(prompt)
                if not len(encoded.inputs["pixel_values"]):
                    del encoded.inputs["pixel_values"], encoded.inputs["image_grid_thw"]
                return encoded

        prompts = [Prompt("none"), Prompt("3 dots")]
        batch = player({p.id: "ok$" for p in prompts}, Mixed(), batch_size=1).collect(
            RolloutRequest(prompts, seed=0)
        )
        context = batch.phases["text"].context
        assert context["pixel_values"].shape == (2, 3, 2) and context["image_grid_thw"].shape == (2, 1, 3)
        assert context["pixel_values"][0].sum() == 0 and context["image_grid_thw"][0].sum() == 0

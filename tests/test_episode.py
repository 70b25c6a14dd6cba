import pytest
import torch

from unirl_env.episode import EpisodeBatch, Phase
from unirl_env.errors import ShapeError
from unirl_env.types import Prompt, Sample, Scores


def phase(episodes=4, steps=3, context_row=(0, 0, 2, 1), *, mean=True, start=0):
    """A phase in which every number tells where it belongs: episode, then step."""
    place = start + torch.arange(episodes * steps, dtype=torch.float32).view(episodes, steps)
    rows = torch.tensor(context_row)
    return Phase(
        observation={"latent": place[..., None, None].expand(-1, -1, 2, 5), "sigma": place / 100},
        action=place[..., None, None].expand(-1, -1, 2, 5) + 0.5,
        log_prob=-place,
        mask=place % 2 == 0,
        context={"embeds": start + 10.0 * torch.arange(int(rows.max()) + 1)[:, None].expand(-1, 7)},
        context_row=rows,
        mean=place[..., None, None].expand(-1, -1, 2, 5) + 0.25 if mean else None,
        final=place[:, -1, None, None].expand(-1, 2, 5) + 0.5 if mean else None,
    )


def batch(episodes=4, *, version=3, start=0, parts=True, samples=True):
    made = phase(episodes, context_row=[i % 3 for i in range(episodes)], start=start)
    return EpisodeBatch(
        phases={"image": made},
        scores=Scores(start + torch.arange(float(episodes)), {"half": torch.ones(episodes)} if parts else {}),
        group=torch.arange(episodes) // 2 + start,
        prompts=tuple(Prompt(f"prompt {start + i}") for i in range(episodes)),
        episode_seed=start + torch.arange(episodes),
        weights_version=version,
        samples=tuple(Sample(text=f"{start + i}") for i in range(episodes)) if samples else None,
    )


def texts(lengths, *, prompts, row, start=0):
    """A ragged phase: episode i did `lengths[i]` actions, whose numbers tell where they belong."""
    count, longest = len(lengths), max(lengths)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    place = start + torch.arange(count * longest).view(count, longest)
    prompt = torch.zeros(len(prompts), max(map(len, prompts)), dtype=torch.long)
    for i, tokens in enumerate(prompts):
        prompt[i, : len(tokens)] = torch.tensor(tokens)
    return Phase(
        observation={},
        action=torch.where(mask, place, -1),
        log_prob=torch.where(mask, -place.float() - 1, 0.0),
        mask=mask,
        context={
            "prompt": prompt,
            "prompt_length": torch.tensor([len(tokens) for tokens in prompts]),
            "pixel_values": torch.ones(len(prompts), max(map(len, prompts)), max(map(len, prompts))),
        },
        context_row=torch.tensor(row),
        ragged=True,
    )


class TestRaggedPhase:
    first = staticmethod(lambda: texts([2, 1], prompts=[[5, 6, 7]], row=[0, 0]))
    second = staticmethod(lambda: texts([1, 3], prompts=[[8], [9, 9]], row=[1, 0], start=50))

    def test_cat_pads_with_what_says_nothing(self):
        joined = Phase.cat([self.first(), self.second()])
        assert joined.action.tolist() == [[0, 1, -1], [2, -1, -1], [50, -1, -1], [53, 54, 55]]
        assert joined.log_prob.tolist() == [[-1, -2, 0], [-3, 0, 0], [-51, 0, 0], [-54, -55, -56]]
        assert joined.mask.sum(1).tolist() == [2, 1, 1, 3] and joined.mask.dtype == torch.bool
        assert torch.equal(joined.mask, joined.action >= 0) and joined.ragged

    def test_cat_pads_the_context_in_every_dimension(self):
        joined = Phase.cat([self.second(), self.first()])
        assert joined.context["prompt"].tolist() == [[8, 0, 0], [9, 9, 0], [5, 6, 7]]
        assert joined.context["prompt_length"].tolist() == [1, 2, 3]
        assert joined.context["pixel_values"].shape == (3, 3, 3)
        assert joined.context["pixel_values"].sum((1, 2)).tolist() == [4, 4, 9]
        assert joined.context_row.tolist() == [1, 0, 2, 2]

    def test_select_trims_nothing_and_undoes_cat(self):
        joined = Phase.cat([self.first(), self.second()])
        one = joined.select(torch.tensor([1, 2]))
        assert one.action.tolist() == [[2, -1, -1], [50, -1, -1]] and one.ragged
        assert one.context["prompt"][one.context_row].tolist() == [[5, 6, 7], [9, 9, 0]]
        again = Phase.cat([joined.select(torch.tensor([i])) for i in range(4)])
        assert torch.equal(again.action, joined.action) and torch.equal(again.mask, joined.mask)
        assert torch.equal(again.context["prompt"][again.context_row], joined.context["prompt"][[0, 0, 2, 1]])

    def test_to_stays_ragged(self):
        assert self.first().to("meta").ragged

    def test_no_actions_at_all(self):
        empty = texts([0], prompts=[[4]], row=[0])
        assert Phase.cat([empty, self.first()]).action.tolist() == [[-1, -1], [0, 1], [2, -1]]
        assert Phase.cat([empty, empty]).action.shape == (2, 0)

    def test_it_joins_with_its_like_only(self):
        strict = Phase(**{**vars(self.first()), "ragged": False})
        with pytest.raises(ShapeError, match="all ragged or none"):
            Phase.cat([self.first(), strict])
        flat = self.second()
        flat.context["pixel_values"] = flat.context["pixel_values"][0]
        with pytest.raises(ShapeError, match="one number of dimensions"):
            Phase.cat([self.first(), flat])


class TestPhase:
    def test_select_takes_episodes_in_order_and_prunes_the_context(self):
        one = phase().select(torch.tensor([2, 0]))
        assert one.log_prob.tolist() == [[-6, -7, -8], [0, -1, -2]]
        assert torch.equal(one.action[:, :, 0, 0], -one.log_prob + 0.5)
        assert torch.equal(one.mean[:, :, 1, 4], -one.log_prob + 0.25)
        assert torch.equal(one.mask, one.log_prob % 2 == 0)
        assert torch.equal(one.final, one.action[:, -1])
        assert one.context["embeds"].shape == (2, 7)
        assert one.context["embeds"][one.context_row, 0].tolist() == [20.0, 0.0]

    def test_select_may_repeat_an_episode(self):
        one = phase().select(torch.tensor([3, 3, 3]))
        assert one.context["embeds"].shape == (1, 7) and one.context_row.tolist() == [0, 0, 0]

    def test_select_by_mask(self):
        assert len(phase().select(torch.tensor([True, False, True, False]))) == 2

    def test_rows_pair_every_step_with_its_own_context(self):
        inputs, actions = phase().rows(torch.tensor([1, 2]))
        assert inputs["latent"].shape == actions.shape == (6, 2, 5)
        assert (inputs["sigma"] * 100).round().tolist() == [3, 4, 5, 6, 7, 8]
        assert actions[:, 0, 0].tolist() == [3.5, 4.5, 5.5, 6.5, 7.5, 8.5]
        assert inputs["embeds"][:, 0].tolist() == [0, 0, 0, 20, 20, 20]

    def test_cat_keeps_each_episode_with_its_context(self):
        joined = Phase.cat([phase(), phase(context_row=(1, 1, 0, 0), start=100)])
        assert joined.log_prob[:, 0].tolist() == [0, -3, -6, -9, -100, -103, -106, -109]
        assert joined.context["embeds"][joined.context_row, 0].tolist() == [0, 0, 20, 10, 110, 110, 100, 100]
        whole, _ = joined.rows(torch.arange(8))
        parts = [p.rows(torch.arange(4))[0] for p in (phase(), phase(context_row=(1, 1, 0, 0), start=100))]
        assert all(torch.equal(whole[k], torch.cat([part[k] for part in parts])) for k in whole)

    def test_cat_keeps_means_and_finals_only_if_all_have_them(self):
        both, one = Phase.cat([phase(), phase(start=50)]), Phase.cat([phase(), phase(mean=False)])
        assert both.mean.shape == (8, 3, 2, 5) and torch.equal(both.final, both.action[:, -1])
        assert one.mean is None and one.final is None

    def test_actions_are_drawn_unless_every_step_says_otherwise(self):
        one = phase()
        assert one.drawn
        for stochastic, drawn in ((torch.zeros(4, 3, dtype=torch.bool), False), (one.mask, True)):
            said = Phase(**{**vars(one), "observation": {**one.observation, "stochastic": stochastic}})
            assert said.drawn == drawn

    def test_cat_refuses_other_numbers_of_steps(self):
        with pytest.raises(ShapeError, match=r"one number of steps, got \[3, 4\]"):
            Phase.cat([phase(), phase(steps=4)])

    def test_cat_refuses_other_inputs(self):
        guided = phase()
        guided.context["negative_embeds"] = guided.context["embeds"]
        with pytest.raises(ShapeError, match="same inputs"):
            Phase.cat([phase(), guided])

    def test_select_then_cat_is_the_whole(self):
        one = phase()
        halves = [one.select(torch.tensor([0, 1])), one.select(torch.tensor([2, 3]))]
        again, _ = Phase.cat(halves).rows(torch.arange(4))
        expected, _ = one.rows(torch.arange(4))
        assert all(torch.equal(again[k], expected[k]) for k in expected)

    def test_a_phase_without_context_is_whole(self):
        bare = Phase(
            observation={"sigma": torch.zeros(2, 3)},
            action=torch.zeros(2, 3, 1),
            log_prob=torch.zeros(2, 3),
            mask=torch.ones(2, 3, dtype=torch.bool),
        )
        assert len(Phase.cat([bare, bare]).select(torch.tensor([3]))) == 1
        assert set(bare.rows(torch.tensor([0]))[0]) == {"sigma"}

    def test_to_moves_every_tensor(self):
        moved = phase().to("meta")
        tensors = [moved.action, moved.log_prob, moved.mask, moved.mean, moved.final, moved.context_row]
        tensors += [*moved.observation.values(), *moved.context.values()]
        assert {tensor.device.type for tensor in tensors} == {"meta"}

    @pytest.mark.parametrize(
        "change, word",
        [
            ({"log_prob": torch.zeros(4)}, "log_prob"),
            ({"mask": torch.ones(4, 2, dtype=torch.bool)}, "mask"),
            ({"action": torch.zeros(3, 3, 2)}, "action"),
            ({"mean": torch.zeros(4, 4, 2)}, "mean"),
            ({"final": torch.zeros(3, 2)}, "final"),
            ({"observation": {"latent": torch.zeros(4, 2)}}, "latent"),
            ({"context_row": torch.zeros(3, dtype=torch.long)}, "context_row"),
            ({"context_row": None}, "context_row"),
        ],
    )
    def test_shapes_that_do_not_fit_are_named(self, change, word):
        fields = {name: getattr(phase(), name) for name in Phase.__dataclass_fields__}
        with pytest.raises(ShapeError, match=f"`{word}`"):
            Phase(**{**fields, **change})


class TestEpisodeBatch:
    def test_select_takes_everything_along(self):
        one = batch().select(torch.tensor([3, 1]))
        assert one.rewards.tolist() == [3, 1] and one.group.tolist() == [1, 0]
        assert [p.text for p in one.prompts] == ["prompt 3", "prompt 1"]
        assert [s.text for s in one.samples] == ["3", "1"]
        assert one.episode_seed.tolist() == [3, 1] and one.weights_version == 3
        assert one.scores.parts["half"].shape == (2,) and len(one) == len(one.phases["image"]) == 2

    def test_select_by_mask(self):
        one = batch().select(torch.tensor([False, False, True, True]))
        assert [p.text for p in one.prompts] == ["prompt 2", "prompt 3"]
        assert one.rewards.tolist() == [2, 3] and [s.text for s in one.samples] == ["2", "3"]

    def test_select_keeps_failed_scores_failed(self):
        one = batch()
        object.__setattr__(one, "scores", Scores(torch.tensor([1.0, float("nan"), 2.0, 3.0])))
        assert one.select(torch.tensor([1, 2])).scores.valid.tolist() == [False, True]

    def test_cat_is_select_backwards(self):
        whole = batch()
        again = EpisodeBatch.cat([whole.select(torch.tensor([0])), whole.select(torch.tensor([1, 2, 3]))])
        assert again.prompts == whole.prompts and torch.equal(again.rewards, whole.rewards)
        assert torch.equal(again.group, whole.group) and again.samples == whole.samples
        assert torch.equal(again.episode_seed, whole.episode_seed)
        rows, expected = (b.phases["image"].rows(torch.arange(4)) for b in (again, whole))
        assert torch.equal(rows[1], expected[1])
        assert all(torch.equal(rows[0][k], expected[0][k]) for k in expected[0])

    def test_cat_drops_samples_that_only_some_kept(self):
        assert EpisodeBatch.cat([batch(), batch(start=100, samples=False)]).samples is None

    def test_cat_of_a_failed_batch_keeps_the_parts_of_the_other(self):
        joined = EpisodeBatch.cat([batch(), batch(start=100, parts=False)])
        assert joined.scores.parts["half"].isnan().tolist() == [False] * 4 + [True] * 4

    def test_cat_refuses_nothing_and_mixed_policies_and_mixed_phases(self):
        with pytest.raises(ShapeError, match="at least one"):
            EpisodeBatch.cat([])
        with pytest.raises(ShapeError, match=r"one policy version, got \[3, 4\]"):
            EpisodeBatch.cat([batch(), batch(version=4)])
        bare = batch(start=100)
        object.__setattr__(bare, "phases", {})
        with pytest.raises(ShapeError, match="phases"):
            EpisodeBatch.cat([batch(), bare])

    def test_truncation_goes_along(self):
        whole = batch()
        assert whole.truncated is None and whole.select(torch.tensor([1])).truncated is None
        object.__setattr__(whole, "truncated", torch.tensor([True, False, False, True]))
        assert whole.select(torch.tensor([3, 1])).truncated.tolist() == [True, False]
        again = EpisodeBatch.cat([whole.select(torch.tensor([0, 1])), whole.select(torch.tensor([2, 3]))])
        assert torch.equal(again.truncated, whole.truncated)
        assert EpisodeBatch.cat([whole, batch(start=100)]).truncated is None

    def test_to(self):
        assert batch().to("meta").phases["image"].action.device.type == "meta"

    @pytest.mark.parametrize("name", ["group", "prompts", "episode_seed", "truncated"])
    def test_counts_that_do_not_fit_are_named(self, name):
        fields = {key: getattr(batch(), key) for key in EpisodeBatch.__dataclass_fields__}
        fields["truncated"] = torch.zeros(4, dtype=torch.bool)
        with pytest.raises(ShapeError, match=name):
            EpisodeBatch(**{**fields, name: fields[name][:3]})

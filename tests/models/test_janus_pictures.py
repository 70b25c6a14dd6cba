"""Picture tokens: drawn with a cache, scored packed, and both as transformers' own Janus has them."""

import pytest
import torch
from janus_cases import PROMPTS, ask, packed, write_tiny_janus

import unirl_env.functional as F
from unirl_env.errors import ContractError, ShapeError
from unirl_env.models.janus.model import Janus
from unirl_env.models.shared.cache import roomy_cache
from unirl_env.policies.actor import Actor, LoRAConfig
from unirl_env.rollouts.engines import Request
from unirl_env.rollouts.engines.local import LocalEngine


@pytest.fixture(scope="module")
def model(tmp_path_factory, quiet_models):
    return Janus(write_tiny_janus(tmp_path_factory.mktemp("models") / "janus"))


@pytest.fixture(scope="module")
def actor(model):
    return Actor(model.image)


@pytest.fixture(scope="module")
def whole(model):
    """The same weights in transformers' hands."""
    from transformers import JanusForConditionalGeneration

    return JanusForConditionalGeneration.from_pretrained(model.pretrained).eval()


class TestTheLaw:
    @pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7, "top_k": 20, "top_p": 0.9}])
    @pytest.mark.parametrize("before", [(), ([5, 6, 7], [], [9] * 11)])
    def test_log_probs_are_those_of_the_learner(self, model, actor, sampling, before):
        own = Actor(model.image, **sampling)
        own.network = actor.network
        requests = ask(model, before=before)
        answers = LocalEngine(own).generate(requests)
        assert all(len(answer.tokens) == 16 for answer in answers)
        obs, tokens = packed(requests, answers)
        assert tokens.min() >= model.image.first_id and tokens.max() < model.image.first_id + 64
        assert len(tokens.unique()) > 12 and len({answer.tokens for answer in answers}) == 9
        with torch.no_grad():
            step = own.score(obs, tokens)
        drawn = torch.tensor([value for answer in answers for value in answer.log_probs])
        assert torch.equal(step.token, tokens)
        torch.testing.assert_close(step.log_prob, drawn, rtol=0, atol=1e-5)
        assert drawn.min() < -2, "else they would agree too easily"

    def test_pictures_do_not_depend_on_the_batch(self, model, actor):
        requests = ask(model)
        together = LocalEngine(actor).generate(requests)
        alone = [LocalEngine(actor).generate([request])[0] for request in requests]
        assert [answer.tokens for answer in alone] == [answer.tokens for answer in together]

    def test_a_picture_can_be_continued(self, model, actor):
        (request,) = ask(model, PROMPTS[:1], group=1)
        (answer,) = LocalEngine(actor).generate([request])
        rest = Request(
            tokens=request.tokens + answer.tokens[:6],
            prompt=request.prompt,
            seed=request.seed,
            position=6,
            max_new_tokens=10,
        )
        assert LocalEngine(actor).generate([rest])[0].tokens == answer.tokens[6:]

    def test_one_token_at_a_time_is_the_same_picture(self, model, actor):
        (request,) = ask(model, PROMPTS[:1], group=1)
        (answer,) = LocalEngine(actor).generate([request])
        row = list(request.tokens)
        for t in range(16):
            obs = {
                "tokens": torch.tensor([row]),
                "length": torch.tensor([len(row)]),
                "prompt_length": torch.tensor([len(request.tokens)]),
                "is_action": torch.zeros(1, len(row)),
            }
            step = actor.act(obs, F.keyed_uniform(torch.tensor([request.seed]), torch.tensor([t])))
            row.append(int(step.token))
        assert tuple(row[len(request.tokens) :]) == answer.tokens
        likeliest = actor.act(obs)
        assert model.image.first_id <= int(likeliest.token) and float(likeliest.log_prob) == 0

    def test_texts_are_scored_as_they_are_written(self, model, actor):
        own = Actor(model.text)
        own.network = actor.network
        requests = ask(model.text, tokens=30)
        answers = LocalEngine(own).generate(requests)
        obs, tokens = packed(requests, answers)
        assert tokens.max() < model.image.first_id
        with torch.no_grad():
            scored = own.score(obs, tokens).log_prob
        drawn = torch.tensor([value for answer in answers for value in answer.log_probs])
        torch.testing.assert_close(scored, drawn, rtol=0, atol=1e-5)


class TestTransformers:
    def test_greedy_pictures_are_those_of_its_own_generation(self, model, actor, whole):
        from transformers import LogitsProcessorList

        def conditional(tokens, logits):
            # Its generation also computes what the prompt has no part in, at any guidance.
            return logits[: len(logits) // 2]

        requests = ask(model, group=1)
        answers = LocalEngine(actor).generate(requests, temperature=0)
        for request, answer in zip(requests, answers, strict=True):
            tokens = torch.tensor([request.tokens])
            drawn = whole.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                generation_mode="image",
                do_sample=False,
                guidance_scale=1.0,
                logits_processor=LogitsProcessorList([conditional]),
            )
            assert tuple((drawn[0] + model.image.first_id).tolist()) == answer.tokens

    def test_logits_are_its_own(self, model, actor, whole):
        (request,) = ask(model, PROMPTS[:1], group=1)
        pieces = torch.randint(64, (1, 16), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            words = whole.get_input_embeddings()(torch.tensor([request.tokens]))
            drawn = whole.prepare_embeddings_for_image_generation(pieces)
            states = whole.model.language_model(inputs_embeds=torch.cat([words, drawn], 1)).last_hidden_state
            expected = whole.model.generation_head(states)
            tokens = torch.cat([torch.tensor([request.tokens]), pieces + model.image.first_id], 1)
            places = torch.arange(tokens.shape[1])[None, None]
            hidden = model.image.hidden(
                actor.network, tokens, places, lengths=torch.tensor([tokens.shape[1]])
            )
            logits = hidden @ model.image.head(actor.network).T
        assert expected.std() > 0.5
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)

    def test_pictures_are_its_own(self, model, whole):
        pieces = torch.randint(64, (70, 16), generator=torch.Generator().manual_seed(0))
        samples = model.image.pictures(pieces + model.image.first_id)
        with torch.no_grad():
            painted = whole.decode_image_tokens(pieces)
        shown = torch.stack([sample.image for sample in samples])
        assert shown.shape == (70, 3, 16, 16) and shown.dtype == torch.float32
        expected = (painted.permute(0, 3, 1, 2) / 2 + 0.5).clamp(0, 1)
        torch.testing.assert_close(shown, expected, rtol=0, atol=1e-5)
        assert shown.min() == 0 and shown.max() == 1 and shown.std() > 0.1
        published = model.text.reader.postprocess(list(painted), return_tensors="pt")["pixel_values"]
        assert (published.float() / 255 - shown).abs().max() <= 1 / 255 + 1e-6
        alone = model.image.pictures(pieces[:1] + model.image.first_id)[0].image
        assert torch.equal(alone, samples[0].image), "whatever it is painted with"


class TestTheHead:
    def test_the_bias_is_folded_in(self, model, actor):
        layer = actor.network.model.generation_head.vision_head
        weight = model.image.head(actor.network)
        assert layer.bias.abs().max() > 0.1 and weight.shape[1] % 8 == 0
        (request,) = ask(model, PROMPTS[:1], group=1)
        tokens = torch.tensor([request.tokens])
        places, lengths = torch.arange(tokens.shape[1])[None, None], torch.tensor([tokens.shape[1]])
        with torch.no_grad():
            hidden = model.image.hidden(actor.network, tokens, places, lengths=lengths)
            narrow = layer(hidden[..., : layer.in_features])
        torch.testing.assert_close(hidden @ weight.T, narrow, rtol=1e-6, atol=1e-6)
        assert torch.equal(weight.sum(1) - weight[:, : layer.in_features].sum(1) != 0, layer.bias != 0)

    def test_bias_and_weight_are_trained(self, model):
        own = Actor(model.image)
        requests = ask(model)
        obs, tokens = packed(requests, LocalEngine(own).generate(requests))
        own.score(obs, tokens).log_prob.mean().backward()
        layer = own.network.model.generation_head.vision_head
        found = layer.weight.grad.clone(), layer.bias.grad.clone()
        own.network.zero_grad()
        hidden = own.head()._hidden(own.network, obs)[:, : layer.in_features]
        plain = layer(hidden).log_softmax(-1).gather(1, tokens[:, None] - model.image.first_id)
        plain.mean().backward()
        for one, other in zip(found, (layer.weight.grad, layer.bias.grad), strict=True):
            assert other.abs().max() > 1e-3
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)

    def test_in_half_precision(self, model):
        half = Janus(model.pretrained, dtype="bfloat16")
        own = Actor(half.image, lora=LoRAConfig(rank=2))
        requests = ask(half)
        obs, tokens = packed(requests, LocalEngine(own).generate(requests))
        assert half.image.head(own.network).dtype == torch.bfloat16
        own.score(obs, tokens).log_prob.mean().backward()
        assert all(p.grad is not None for p in own.network.parameters() if p.requires_grad)
        assert half.image.pictures(tokens.view(-1, 16))[0].image.dtype == torch.float32


class TestTheNetwork:
    def test_has_no_part_that_is_not_trained(self, actor):
        names = {name.split(".")[1] for name, _ in actor.network.named_parameters() if "model." in name}
        expected = {"language_model", "generation_embeddings", "generation_aligner", "generation_head"}
        assert names == expected

    def test_gradients_are_the_same_recomputed(self, model):
        plain, spare = (Actor(model.image, gradient_checkpointing=spare) for spare in (False, True))
        requests = ask(model)
        answers = LocalEngine(plain).generate(requests)
        assert answers == LocalEngine(spare).generate(requests)
        obs, tokens = packed(requests, answers)
        for own in (plain, spare):
            own.score(obs, tokens).log_prob.mean().backward()
        for one, other in zip(plain.network.parameters(), spare.network.parameters(), strict=True):
            assert (one.grad is None) == (other.grad is None)
            if one.grad is not None:
                torch.testing.assert_close(one.grad, other.grad)

    def test_words_and_pieces_may_be_read_at_once_with_a_cache(self, model, actor):
        (request,) = ask(model, PROMPTS[:1], group=1)
        pieces = torch.arange(5) + model.image.first_id
        tokens = torch.cat([torch.tensor(request.tokens), pieces])[None]
        places = torch.arange(tokens.shape[1])[None, None]
        cut = len(request.tokens) + 2
        with torch.no_grad():
            packed_row = model.image.hidden(
                actor.network, tokens, places, lengths=torch.tensor([tokens.shape[1]])
            )
            cache = roomy_cache(actor.network.config)
            parts = [
                model.image.hidden(actor.network, tokens[:, part], places[..., part], cache=cache)
                for part in (slice(0, cut), slice(cut, None))
            ]
        torch.testing.assert_close(torch.cat(parts, 1), packed_row, rtol=1e-5, atol=1e-5)


class TestRefusals:
    def test_half_a_picture(self, model):
        with pytest.raises(ShapeError, match=r"whole pictures \[B, 16\], got \[2, 15\]"):
            model.image.pictures(torch.full((2, 15), model.image.first_id))

    @pytest.mark.parametrize("token", [3, 267 + 64])
    def test_what_is_no_piece(self, model, token):
        with pytest.raises(ContractError, match="267 to 330"):
            model.image.pictures(torch.full((2, 16), token))

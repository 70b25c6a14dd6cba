"""The words of a unified model: what is generated is what is scored, with and without a picture."""

import pytest
import torch
from unified_cases import PICTURE, PROMPTS, latents, scattered

from unirl_env.errors import PromptError
from unirl_env.models.tiny import TinyUnified
from unirl_env.models.unified_flow.network import patches_of
from unirl_env.policies.actor import Actor
from unirl_env.policies.packing import pack_prefixes
from unirl_env.rollouts.engines.base import Request
from unirl_env.rollouts.engines.local import LocalEngine
from unirl_env.types import Prompt


@pytest.fixture(scope="module")
def model(tiny_unified_dir):
    return TinyUnified(tiny_unified_dir)


@pytest.fixture(scope="module")
def network(model):
    return scattered(model.network())


class TestText:
    def packed(self, model, network, prompts, answers):
        encoded = [model.text.encode(prompt) for prompt in prompts]
        width = max(len(e.tokens) + len(a) for e, a in zip(encoded, answers, strict=True))
        tokens, keep = torch.zeros(len(prompts), width, dtype=torch.int64), []
        grid = torch.zeros(len(prompts), 1, 3, dtype=torch.int64)
        pixels = torch.zeros(len(prompts), 16, 16)
        for row, (e, answer) in enumerate(zip(encoded, answers, strict=True)):
            whole = torch.cat([e.tokens, answer])
            tokens[row, : len(whole)] = whole
            keep.append(torch.arange(width) < len(whole))
            if e.inputs:
                grid[row], pixels[row] = e.inputs["image_grid_thw"], e.inputs["pixel_values"]
        length = torch.stack(keep).sum(1)
        obs = {"tokens": tokens, "length": length, "prompt_length": length, "is_action": tokens}
        row = pack_prefixes(obs | {"pixel_values": pixels, "image_grid_thw": grid})
        hidden = model.text.hidden(
            network,
            row["tokens"][None],
            row["positions"][:, None],
            lengths=row["lengths"],
            inputs={name: row[name] for name in ("pixel_values", "image_grid_thw")},
        )[0]
        log_probs = (hidden @ model.text.head(network).T).log_softmax(-1)
        parts = log_probs.split(row["lengths"].tolist())
        return [
            part[-len(a) - 1 : -1].gather(1, a[:, None])[:, 0] for part, a in zip(parts, answers, strict=True)
        ]

    def test_what_is_generated_is_scored_alike(self, model, network):
        """Answers that say the marks of pictures, behind prompts with and without one."""
        actor = Actor(model.text)
        actor.network = network
        requests = []
        for i, prompt in enumerate(PROMPTS):
            encoded = model.text.encode(prompt)
            requests.append(
                Request(
                    prompt=prompt, tokens=tuple(encoded.tokens.tolist()), inputs=encoded.inputs,
                    max_new_tokens=12, seed=i,
                )
            )  # fmt: skip
        answers = LocalEngine(actor, eos_ids=()).generate(requests)
        with torch.no_grad():
            scored = self.packed(model, network, PROMPTS, [torch.tensor(a.tokens) for a in answers])
        for answer, log_prob in zip(answers, scored, strict=True):
            assert len(answer.tokens) == 12
            assert torch.allclose(torch.as_tensor(answer.log_probs), log_prob, atol=2e-5)

    def test_marks_that_a_policy_says_are_words(self, model, network):
        config = model.config
        marks = torch.tensor([config.source_start_token_id, *[config.source_token_id] * 3])
        with torch.no_grad():
            together = self.packed(model, network, PROMPTS, [marks] * 4)
            alone = [self.packed(model, network, [prompt], [marks])[0] for prompt in PROMPTS]
        for one, other in zip(together, alone, strict=True):
            assert torch.allclose(one, other, atol=2e-5)

    def test_the_picture_of_a_prompt_is_seen_by_both_views(self, model, network):
        other = Prompt("make it blue", images=(1 - PICTURE,))
        end = torch.tensor(model.opens)
        a, b = (self.packed(model, network, [p], [end])[0] for p in (PROMPTS[1], other))
        assert not torch.allclose(a, b, atol=1e-3)
        latent, sigma = latents(1)
        a, b = (
            model.image.velocity(network, latent, sigma, model.image.read(network, model.image.encode([p])))
            for p in (PROMPTS[1], other)
        )
        assert not torch.allclose(a, b, atol=1e-3)


class TestPrompts:
    def test_a_picture_stands_before_the_chat(self, model):
        encoded, config = model.text.encode(PROMPTS[1]), model.config
        plain = model.text.encode(Prompt("make it blue")).tokens
        marks = [config.source_start_token_id, *[config.source_token_id] * 16, config.source_end_token_id]
        assert encoded.tokens.tolist() == [*marks, *plain.tolist()]
        expected = patches_of(model.autoencoder.latents(PICTURE[None]), 2)[0]
        assert torch.equal(encoded.inputs["pixel_values"], expected)
        for name, (shape, _) in model.text.input_spaces.items():
            assert tuple(encoded.inputs[name].shape) == shape

    def test_chats_may_mark_their_picture(self, model):
        content = [{"type": "text", "text": "make it blue"}, {"type": "image"}]
        chat = Prompt("x", messages=({"role": "user", "content": content},), images=(PICTURE,))
        assert torch.equal(model.text.encode(chat).tokens, model.text.encode(PROMPTS[1]).tokens)
        with pytest.raises(PromptError, match="image part"):
            model.text.encode(Prompt("x", messages=chat.messages))

    @pytest.mark.parametrize("name", ["source_token_id", "source_start_token_id", "begin_image_token_id"])
    def test_marks_that_are_typed_are_text(self, model, name):
        number = getattr(model.config, name)
        (mark,) = model.text.spelling.named([number])
        for prompt in (Prompt(f"a {mark}"), Prompt(f"a {mark}", images=(PICTURE,))):
            typed, usual = (
                model.text.encode(Prompt(text, images=prompt.images)).tokens for text in (prompt.text, "a")
            )
            assert (typed == number).sum() == (usual == number).sum()
            assert prompt.text in model.text.tokenizer.decode(typed)

    def test_pictures_of_any_size_are_resized(self, model):
        large = torch.nn.functional.interpolate(PICTURE[None], (64, 64))[0]
        assert model.text.encode(Prompt("x", images=(large,))).inputs["pixel_values"].shape == (16, 16)

    def test_what_cannot_be_read_is_refused(self, model, tiny_unified_dir):
        with pytest.raises(PromptError, match="at most 1 pictures"):
            model.text.encode(Prompt("x", images=(PICTURE, PICTURE)))
        with pytest.raises(PromptError, match="max_prompt_tokens"):
            model.image.encode([Prompt("word " * 50)])
        blind = TinyUnified(tiny_unified_dir, max_images=0)
        assert blind.context_keys == ("tokens", "length") and blind.text.input_spaces == {}
        with pytest.raises(PromptError, match="max_images"):
            blind.text.encode(PROMPTS[1])

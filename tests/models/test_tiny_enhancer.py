"""The embedded prompt enhancer: what ships, what it can do, and how it came to be."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pretraining.enhancer_build import build_tiny_enhancer, enhancer_tokenizer
from pretraining.enhancer_pretrain import evaluate, pretrain
from pretraining.requests_data import FORMS, loose_rewrite, requests_of, vocabulary, write_prompts
from unirl_env.models import LANGUAGE_MODELS
from unirl_env.models.shared.generate import draw_latents
from unirl_env.models.tiny import TinyPromptEnhancer, TinySD3Denoiser, tiny_path
from unirl_env.prompts.shapes import parse_caption, split_captions
from unirl_env.prompts.sources import PromptSource
from unirl_env.rewards.pictures.shapes_scorers import ShapesScorer
from unirl_env.types import Prompt, Sample


@pytest.fixture(scope="module")
def model(quiet_models):
    return TinyPromptEnhancer()


@pytest.fixture(scope="module")
def shipped():
    return {part: PromptSource.of(f"requests_{part}").prompts for part in ("train", "heldout")}


class TestWhatShips:
    def test_it_is_small_and_loads_as_float32(self, model):
        assert sum(path.stat().st_size for path in tiny_path("enhancer").iterdir()) < 1_000_000
        network = AutoModelForCausalLM.from_pretrained(tiny_path("enhancer"))
        assert type(network).__name__ == "Qwen3ForCausalLM" and network.dtype == torch.float32
        assert network.config.head_dim == 32 and network.config.hidden_size % 32 == 0
        assert LANGUAGE_MODELS.get("tiny_enhancer") is TinyPromptEnhancer

    def test_every_word_is_one_token_and_any_text_can_be_read(self, model):
        tokenizer = AutoTokenizer.from_pretrained(tiny_path("enhancer"))
        for held_out in (False, True):
            for text, caption in requests_of(held_out=held_out)[::53]:
                for words in (text.replace(",", " ,").replace("?", " ?"), caption.text):
                    assert len(tokenizer(words.replace(" ,", ",").replace(" ?", "?")).input_ids) == len(
                        words.split()
                    )
        text = "Ünicode 中文 \t user?\n"
        assert model.decode(model.encode(Prompt(text)).tokens) == f"user\n{text}\nassistant\n"

    def test_it_knows_what_is_meant_and_often_says_another_thing(self, model):
        found = evaluate(tiny_path("enhancer"), count=200)
        assert 0.1 < found["train"] < 0.35 and 0.1 < found["heldout"] < 0.35

    def test_greedy_rewrites_are_right(self, model):
        network, tokenizer = model.network(), AutoTokenizer.from_pretrained(tiny_path("enhancer"))
        asked = requests_of(held_out=True)[::50]
        chats = [[{"role": "user", "content": text}] for text, _ in asked]
        read = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            said = network.generate(**read, max_new_tokens=12, do_sample=False)[
                :, read["input_ids"].shape[1] :
            ]
        right = [model.decode(row) == caption.text for row, (_, caption) in zip(said, asked, strict=True)]
        assert sum(right) > 0.95 * len(asked)

    @pytest.mark.slow
    def test_the_generator_draws_right_rewrites_rightly_and_requests_badly(self, quiet_models):
        """The margin between what the base writes, a request as it stands, and the best that can be."""
        generator = TinySD3Denoiser()
        network, asked = generator.network(), requests_of()[::600]
        prompts = [Prompt(text, metadata={"caption": caption.text}) for text, caption in asked]

        def score(texts):
            latents = draw_latents(
                generator,
                network,
                [Prompt(text) for text in texts],
                range(len(texts)),
                num_steps=4,
                guidance=3.0,
            )
            pictures = [Sample(image=picture) for picture in generator.pictures(latents)]
            return ShapesScorer()(pictures, prompts).value.mean()

        assert score([caption.text for _, caption in asked]) > 0.9
        assert score([text for text, _ in asked]) < 0.5


class TestRequests:
    def test_sizes_and_nothing_held_out_is_trained_on(self, shipped):
        assert {name: len(prompts) for name, prompts in shipped.items()} == {"train": 300, "heldout": 80}
        meant = {name: {p.metadata["caption"] for p in prompts} for name, prompts in shipped.items()}
        train, heldout = split_captions("place")
        assert meant["train"] == {caption.text for caption in train}
        assert meant["heldout"] == {caption.text for caption in heldout}
        assert not {p.text for p in shipped["train"]} & {p.text for p in shipped["heldout"]}

    def test_a_request_has_one_meaning(self):
        both = requests_of() + requests_of(held_out=True)
        assert len({text for text, _ in both}) == len(both) > 20_000
        assert ("draw something crimson and round in the upper left corner, please") in dict(both)
        assert dict(both)["draw something crimson and round in the upper left corner, please"].text == (
            "a red circle at the top left"
        )
        assert not any(" a a" in text or " a e" in text or " an r" in text for text, _ in both)

    def test_no_request_is_a_caption_but_every_form_occurs(self, shipped):
        assert all(parse_caption(text) is None for text, _ in requests_of())
        for form in FORMS:
            head = form.partition("{")[0]
            assert any(prompt.text.startswith(head) for prompt in shipped["heldout"])

    def test_the_tokenizer_knows_every_word(self):
        known = set(vocabulary())
        for text, caption in requests_of(held_out=True):
            for i, word in enumerate(text.split()):
                assert (word if not i else f" {word}") in known
            assert {f" {word}" for word in caption.text.split()} <= known

    def test_loose_rewrites_are_often_wrong_and_sometimes_unknown(self):
        rng = np.random.default_rng(0)
        caption = requests_of()[0][1]
        assert loose_rewrite(caption, 0.0, rng) == caption.text
        said = [loose_rewrite(caption, 0.5, rng) for _ in range(600)]
        unknown = sum(parse_caption(text) is None for text in said) / 600
        right = sum(text == caption.text for text in said) / 600
        assert 0.1 < unknown < 0.2 and 0.1 < right < 0.3

    def test_the_script_writes_what_ships(self, tmp_path):
        write_prompts(tmp_path)
        for path in tmp_path.iterdir():
            assert (
                path.read_text()
                == (tiny_path("enhancer").parents[2] / "prompts" / "sets" / path.name).read_text()
            )
        assert len(list(tmp_path.iterdir())) == 2


class TestPreTraining:
    def test_it_is_a_function_of_the_seed(self, tmp_path, quiet_models):
        states = []
        for name, seed in (("a", 0), ("b", 0), ("c", 1)):
            pretrain(tmp_path / name, seed=seed, phases=[(2, 0.0, 1e-3), (1, 0.5, 1e-3)])
            states.append(AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict())
        same = [all(torch.equal(states[0][key], other[key]) for key in other) for other in states[1:]]
        assert same == [True, False]

    def test_the_tokenizer_is_the_shipped_one(self, tmp_path, quiet_models):
        build_tiny_enhancer(tmp_path)
        for name in ("tokenizer.json", "config.json"):
            assert (tmp_path / name).read_text() == (tiny_path("enhancer") / name).read_text()
        assert len(enhancer_tokenizer()) == AutoModelForCausalLM.from_pretrained(tmp_path).config.vocab_size

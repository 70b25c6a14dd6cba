"""BAGEL's two views: what they read and say, how a text becomes a picture, and how they fail."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from bagel_cases import PROMPTS, SMALL, build, opened, packed_row

from unirl_env.errors import ConfigError, ContractError, ModelNotFound, PromptError
from unirl_env.models import UNIFIED_MODELS
from unirl_env.models.bagel import Bagel
from unirl_env.policies.actor import Actor
from unirl_env.rollouts.engines.base import Request
from unirl_env.rollouts.engines.local import LocalEngine
from unirl_env.types import Prompt

SAID = "<|im_start|>a red circle<|im_end|>"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return build(tmp_path_factory.mktemp("models") / "bagel")


@pytest.fixture(scope="module")
def model(directory):
    return opened(directory)


@pytest.fixture(scope="module")
def thinker(directory):
    return opened(directory, thinking=True)


def read(model, tokens):
    """Tokens as text, special ones shown."""
    return model.text._published.tokenizer.decode(tokens)


class TestTexts:
    def test_a_prompt_is_a_block(self, model):
        encoded = model.text.encode(PROMPTS[0])
        assert read(model, encoded.tokens) == SAID and encoded.inputs == {}
        assert encoded.tokens.dtype == torch.int64

    def test_a_thought_follows_the_published_words(self, thinker):
        said = read(thinker, thinker.text.encode(PROMPTS[0]).tokens)
        head, _, rest = said.partition("<|im_end|>")
        assert head.startswith("<|im_start|>You should first think about the planning process in the mind")
        assert head.endswith("i.e. <think> planning process here </think> image here")
        assert rest == f"{SAID}<|im_start|>"

    def test_a_system_of_ones_own(self, directory):
        own = opened(directory, system="Paint.")
        assert read(own, own.text.encode(PROMPTS[0]).tokens) == f"<|im_start|>Paint.<|im_end|>{SAID}"
        own = opened(directory, system="Paint.", thinking=True)
        assert read(own, own.text.encode(PROMPTS[0]).tokens).endswith(f"Paint.<|im_end|>{SAID}<|im_start|>")

    def test_turns_are_blocks_without_roles(self, model):
        parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
        turns = ({"role": "user", "content": parts}, {"role": "assistant", "content": "c"})
        said = read(model, model.text.encode(Prompt("name", messages=turns)).tokens)
        assert said == "<|im_start|>ab<|im_end|><|im_start|>c<|im_end|>"
        with pytest.raises(PromptError, match="`images`"):
            model.text.encode(Prompt("x", messages=({"content": [{"type": "image"}]},)))

    def test_replies_and_answers(self, model):
        assert read(model, model.text.reply("no")) == "<|im_start|>no<|im_end|><|im_start|>"
        ids = model.text._published.tokenizer("<think>a  b</think><|im_end|><|vision_start|>").input_ids
        assert model.text.decode(torch.tensor(ids)) == "<think>a  b</think>"

    @pytest.mark.parametrize("mark", ["<|im_end|>", "<|vision_start|>", "<|image_pad|>"])
    def test_marks_that_are_typed_are_text(self, model, mark):
        number = model.text._published.tokenizer.convert_tokens_to_ids(mark)
        for typed, usual in (
            (
                model.text.encode(Prompt(f"a {mark} cat")).tokens.tolist(),
                model.text.encode(Prompt("a")).tokens,
            ),
            (model.text.reply(f"a {mark} cat"), torch.tensor(model.text.reply("a"))),
        ):
            assert typed.count(number) == usual.tolist().count(number)
            assert f"a {mark} cat" in read(model, typed)

    def test_sizes(self, model):
        network, text = model.network(), model.text
        assert text.vocab_size == text.head(network).shape[0] == 288 and text.max_context == 4096
        assert (text.position_axes, text.input_spaces, text.first_id) == (1, {}, 0)
        assert read(model, text.eos_ids) == "<|im_end|>" and text.pad_id not in text.eos_ids
        assert not network.training and {p.dtype for p in network.parameters()} == {torch.float32}


class TestOpening:
    def test_a_picture_follows_the_end_of_a_thought(self, model, thinker):
        for each in (model, thinker):
            assert each.opens == each.text.eos_ids and each.opening(each.opens[0]) == []
            with pytest.raises(ContractError, match="`ended_by`"):
                each.opening(5)

    def test_an_unwritten_thought_is_closed(self, model, thinker):
        assert model.opening(None) == [] and read(thinker, thinker.opening(None)) == "<|im_end|>"

    @pytest.mark.parametrize("thinking", [False, True])
    def test_the_image_view_reads_prompt_and_opening(self, directory, thinking):
        model = opened(directory, thinking=thinking, max_prompt_tokens=256)
        context = model.image.encode(PROMPTS)
        assert set(context) == set(model.context_keys) == {"tokens", "length"}
        assert context["tokens"].shape == (3, 256) and context["tokens"].dtype == torch.int64
        for prompt, tokens, length in zip(PROMPTS, context["tokens"], context["length"], strict=True):
            whole = [*model.text.encode(prompt).tokens.tolist(), *model.opening(None)]
            assert tokens[:length].tolist() == whole and (tokens[length:] == model.text.pad_id).all()

    def test_the_unconditional_context(self, model, thinker):
        assert model.image.encode(PROMPTS, negative=True)["length"].tolist() == [0, 0, 0]
        tokens = thinker.image.encode(PROMPTS[:1], negative=True)
        assert read(thinker, tokens["tokens"][0, : tokens["length"][0]]).endswith("image here<|im_end|>")
        away = model.image.encode([Prompt("x", negative="blue")], negative=True)
        assert read(model, away["tokens"][0, : away["length"][0]]) == "<|im_start|>blue<|im_end|>"

    def test_long_prompts_are_named(self, directory):
        model = opened(directory, max_prompt_tokens=8)
        with pytest.raises(
            PromptError, match=r"at most 8 tokens, got 14 .*'a red circle'.*`max_prompt_tokens`"
        ):
            model.image.encode(PROMPTS)


class TestEpisode:
    def test_think_then_draw(self, thinker):
        """An episode by hand: a thought by the local engine, and a picture that depends on it."""
        actor, steps = Actor(thinker.text, temperature=1.0), 4
        start = [tuple(thinker.text.encode(prompt).tokens.tolist()) for prompt in PROMPTS]
        requests = [
            Request(tokens, prompt, seed=i, max_new_tokens=24)
            for i, (tokens, prompt) in enumerate(zip(start, PROMPTS, strict=True))
        ]
        answers = LocalEngine(actor).generate(requests)
        packed = packed_row(thinker.text, PROMPTS, [list(answer.tokens) for answer in answers])
        with torch.no_grad():
            hidden = thinker.text.hidden(actor.network, **packed)[0]
            scores = (hidden @ thinker.text.head(actor.network).T).log_softmax(-1)
        for row, answer, tokens in zip(scores.split(packed["lengths"].tolist()), answers, start, strict=True):
            said = torch.tensor(answer.tokens)
            found = row[len(tokens) - 1 : -1].gather(1, said[:, None])[:, 0]
            assert (found - torch.tensor(answer.log_probs)).abs().max() <= 1e-5, "what is said is scored"
        end = thinker.opens[0]
        thoughts = [[t for t in answer.tokens if t != end] + [end] for answer in answers]
        rows = [
            [*tokens, *thought, *thinker.opening(end)]
            for tokens, thought in zip(start, thoughts, strict=True)
        ]
        tokens = torch.full((3, max(map(len, rows))), thinker.text.pad_id)
        for row, out in zip(rows, tokens, strict=True):
            out[: len(row)] = torch.tensor(row)
        contexts = {"tokens": tokens, "length": torch.tensor(list(map(len, rows)))}
        noise = torch.randn(3, *thinker.image.latent_shape, generator=torch.Generator().manual_seed(0))
        pictures = []
        for context in (contexts, thinker.image.encode(PROMPTS)):
            latent, sigmas = noise, thinker.image.sigmas(steps)
            with torch.no_grad():
                reading = thinker.image.read(actor.network, context)
                for sigma, after in pairwise(sigmas):
                    flow = thinker.image.velocity(actor.network, latent, sigma.expand(3), reading)
                    latent = latent + (after - sigma) * flow
            pictures.append(torch.stack([sample.image for sample in thinker.image.decode(latent)]))
        assert pictures[0].shape == (3, 3, 32, 48) and 0 <= pictures[0].min() <= pictures[0].max() <= 1
        assert (pictures[0] - pictures[1]).abs().amax((1, 2, 3)).min() > 1e-3, "thoughts must matter"


class TestSettings:
    def test_names(self):
        assert UNIFIED_MODELS.get("bagel") is Bagel

    @pytest.mark.parametrize("height, width", [(16, 1024), (64, 32), (256, 256)])
    def test_sizes_of_pictures(self, directory, height, width):
        model = Bagel(directory, height=height, width=width)
        assert model.image.latent_shape == (16, height // 8, width // 8)

    @pytest.mark.parametrize("size, near", [(1040, 1024), (500, 496), (8, 16), (-32, 16), (0, 16)])
    def test_sizes_that_do_not_fit_are_named_with_the_nearest(self, directory, size, near):
        for name in ("height", "width"):
            words = f"`{name}` must be a positive multiple of 16 up to 1024, got {size}; try {near}."
            with pytest.raises(ConfigError, match=words):
                Bagel(directory, **{**SMALL, name: size})

    @pytest.mark.parametrize("option", [{"dtype": "int8"}, {"rows_per_forward": 0}, {"max_images": -1},
                                        {"max_prompt_tokens": 0}])  # fmt: skip
    def test_settings_out_of_range_are_named(self, directory, option):
        with pytest.raises(ConfigError, match=f"`{next(iter(option))}`"):
            opened(directory, **option)

    def test_half_precision(self, directory):
        model = opened(directory, dtype="bfloat16")
        network = model.network()
        assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
        latent = torch.randn(3, *model.image.latent_shape)
        reading = model.image.read(network, model.image.encode(PROMPTS))
        velocity = model.image.velocity(network, latent, torch.tensor([0.2, 0.5, 1.0]), reading)
        assert velocity.dtype == torch.bfloat16 and velocity.isfinite().all()
        assert model.image.decode(latent)[0].image.dtype == torch.float32

    def test_what_only_one_phase_reads(self, model):
        network = model.network()
        own = {phase: {id(p) for p in model.private(network, phase)} for phase in ("text", "image")}
        for phase in own:
            network.requires_grad_(True).zero_grad()
            if phase == "text":
                model.text.hidden(network, **packed_row(model.text, PROMPTS, [[1]] * 3)).sum().backward()
            else:
                reading = model.image.read(network, model.image.encode(PROMPTS))
                latent = torch.randn(3, *model.image.latent_shape)
                model.image.velocity(network, latent, torch.rand(3), reading).square().sum().backward()
            other = own["image" if phase == "text" else "text"]
            reached = {id(p) for p in network.parameters() if p.grad is not None and p.grad.abs().max() > 0}
            assert reached and not reached & other
        assert not own["text"] & own["image"]


class TestMissingModels:
    REMEDY = r"Try a local directory.*`unirl/TinyUnified-T2I-v0`, which needs no download"

    @pytest.fixture(autouse=True)
    def offline(self, monkeypatch):
        """The hub answers at once that it is not there, instead of after five tries."""
        import huggingface_hub.constants

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    @pytest.mark.parametrize("name", ["nobody/no-such-model-at-all", "no-such-folder/model/"])
    def test_the_error_names_id_cause_and_alternative(self, name):
        with pytest.raises(ModelNotFound, match=rf"got '{name}': .+{self.REMEDY}"):
            Bagel(name)

    @pytest.mark.parametrize(
        "file", ["llm_config.json", "vit_config.json", "ema.safetensors", "ae.safetensors"]
    )
    @pytest.mark.parametrize("harm", ["missing", "torn", "another"])
    def test_files(self, directory, tmp_path, file, harm):
        shutil.copytree(directory, tmp_path / "m")
        path = tmp_path / "m" / file
        if harm == "missing":
            path.unlink()
        elif harm == "torn" or file.endswith("safetensors"):
            whole = Path(directory, "ema.safetensors" if file == "ae.safetensors" else "ae.safetensors")
            path.write_bytes(path.read_bytes()[:9] if harm == "torn" else whole.read_bytes())
        else:
            path.write_text(json.dumps({"model_type": "llama"}))
        with pytest.raises(ModelNotFound, match=self.REMEDY):
            model = opened(tmp_path / "m")
            model.image.decode(torch.zeros(1, *model.image.latent_shape))
            model.network()

    def test_tables_of_places_may_be_left_out(self, directory, tmp_path, model):
        from safetensors.torch import load_file, save_file

        shutil.copytree(directory, tmp_path / "m")
        state = load_file(Path(directory, "ema.safetensors"))
        bare = {name: weight for name, weight in state.items() if "pos_embed.pos_embed" not in name}
        save_file(bare, tmp_path / "m" / "ema.safetensors")
        loaded = opened(tmp_path / "m").network().state_dict()
        assert len(bare) == len(state) - 2 and all(torch.equal(state[n], loaded[n]) for n in state)

    def test_a_tokenizer_without_marks(self, directory, tmp_path):
        from pretraining.qwen3_build import tiny_tokenizer

        shutil.copytree(directory, tmp_path / "m")
        tiny_tokenizer().save_pretrained(tmp_path / "m")
        with pytest.raises(ConfigError, match=r"got one without <\|vision_start\|>, <\|vision_end\|>"):
            opened(tmp_path / "m")

"""The embedded Qwen3: what ships, what it can do, and how it came to be."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pretraining.qwen3_build import build_tiny_qwen3
from pretraining.qwen3_pretrain import evaluate, likelihood, pretrain
from pretraining.sums_data import split_sums
from pretraining.word_problems import write_prompts
from unirl_env.models import LANGUAGE_MODELS
from unirl_env.models.tiny import TinyQwen3, tiny_path
from unirl_env.prompts.sources import PromptSource
from unirl_env.types import Prompt

SETS = ("math", "sums", "sums_tool")


@pytest.fixture(scope="module")
def model(quiet_models):
    return TinyQwen3()


@pytest.fixture(scope="module")
def shipped():
    return {
        f"{name}_{part}": PromptSource.of(f"{name}_{part}").prompts
        for name in SETS
        for part in ("train", "heldout")
    }


class TestWhatShips:
    def test_it_is_small_and_loads_as_float32(self, model):
        files = list(tiny_path("qwen3").iterdir())
        assert sum(path.stat().st_size for path in files) < 1_000_000
        network = AutoModelForCausalLM.from_pretrained(tiny_path("qwen3"))
        assert type(network).__name__ == "Qwen3ForCausalLM" and network.dtype == torch.float32
        assert LANGUAGE_MODELS.get("tiny_qwen3") is TinyQwen3 and model.pretrained == str(tiny_path("qwen3"))

    def test_engines_take_its_heads(self, model):
        config = model.network().config
        assert config.head_dim == 32 and config.hidden_size % 32 == 0

    def test_any_text_can_be_read(self, model):
        text = "Ünicode 中文 \t user? <tool>1</tool>\n"
        assert model.decode(
            model.encode(Prompt("x", messages=({"role": "user", "content": text},))).tokens
        ) == (f"user\n{text}\nassistant\n")

    def test_its_tokenizer_pads_on_the_left(self, model):
        tokenizer = AutoTokenizer.from_pretrained(tiny_path("qwen3"))
        assert tokenizer(["1", "123"], padding=True).input_ids[0][0] == model.pad_id

    def test_sampling_is_right_in_half_of_the_cases(self, model):
        """By transformers' own `generate` with the settings that ship."""
        network, tokenizer = model.network(), AutoTokenizer.from_pretrained(tiny_path("qwen3"))
        pairs = split_sums()[1][:200]
        chats = [[{"role": "user", "content": f"{a}+{b}=?"}] for a, b in pairs]
        asked = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            answered = network.generate(**asked, max_new_tokens=8, top_k=0)[:, asked["input_ids"].shape[1] :]
        texts = [model.decode(row) for row in answered]
        right = [text == str(a + b) for text, (a, b) in zip(texts, pairs, strict=True)]
        assert 0.35 < sum(right) / 200 < 0.6

    def test_it_knows_what_its_author_says(self):
        found = evaluate(tiny_path("qwen3"))
        assert 0.42 < found["right"] < 0.5 and 0.4 < found["tool_called"] < 0.7
        assert found["tool_right"] > 0.95 and found["calc_right"] < 0.1


class TestPromptSets:
    def test_answers_are_right(self, shipped):
        for name, prompts in shipped.items():
            for prompt in prompts if name.startswith("sums") else ():
                a, b = prompt.text.removeprefix("calc ").removesuffix("=?").split("+")
                assert int(prompt.metadata["answer"]) == int(a) + int(b)
            assert all(int(prompt.metadata["answer"]) >= 0 for prompt in prompts)

    def test_sizes_and_no_overlap(self, shipped):
        sizes = {name: len(prompts) for name, prompts in shipped.items()}
        assert sizes == {
            **{"math_train": 400, "math_heldout": 100, "sums_train": 2000, "sums_heldout": 300},
            **{"sums_tool_train": 500, "sums_tool_heldout": 100},
        }
        for name in SETS:
            assert not {p.id for p in shipped[f"{name}_train"]} & {p.id for p in shipped[f"{name}_heldout"]}

    def test_what_is_held_out_is_never_trained_on_in_either_order(self, shipped):
        train, heldout = split_sums()
        assert len(train) + len(heldout) == 8100 and len(set(train + heldout)) == 8100
        assert not {frozenset(pair) for pair in train} & {frozenset(pair) for pair in heldout}
        held = {f"{a}+{b}" for a, b in heldout}
        for name, prompts in shipped.items():
            if name.startswith("sums"):
                inside = {p.text.removeprefix("calc ").removesuffix("=?") in held for p in prompts}
                assert inside == {name.endswith("heldout")}

    def test_the_script_writes_what_ships(self, tmp_path):
        write_prompts(tmp_path)
        for path in tmp_path.iterdir():
            assert (
                path.read_text()
                == (tiny_path("qwen3").parents[2] / "prompts" / "sets" / path.name).read_text()
            )
        assert len(list(tmp_path.iterdir())) == 6


class TestPreTraining:
    def test_it_is_a_function_of_the_seed(self, tmp_path, quiet_models):
        part = {"goal": "right", "target": 0.9, "tool_rate": 0.5, "call_rate": 0.5, "steps": 3, "batch": 8}
        states = []
        for name, seed in (("a", 0), ("b", 0), ("c", 1)):
            pretrain(tmp_path / name, seed=seed, parts=[part])
            states.append(AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict())
        same = [all(torch.equal(states[0][key], other[key]) for key in other) for other in states[1:]]
        assert same == [True, False]
        found = evaluate(tmp_path / "a", count=3)
        assert set(found) == {"right", "tool_called", "tool_right", "calc_right"}

    def test_only_what_the_model_says_counts(self, tmp_path, quiet_models):
        model = TinyQwen3(build_tiny_qwen3(tmp_path, seed=0))
        network, chat = model.network(), [([1, 2, 3], False), ([4, 5], True), ([6], False), ([7], True)]
        log_prob, count = likelihood(model, network, [chat, [([1], False), ([2], True)]])
        logits = network(input_ids=torch.tensor([[1, 2, 3, 4, 5, 6, 7]])).logits[0].log_softmax(-1)
        expected = logits[2, 4] + logits[3, 5] + logits[5, 7]
        assert torch.allclose(log_prob[0], expected, atol=1e-4) and count.tolist() == [3, 1]

"""The embedded vision-language model: its files, its questions, and what it answers."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import unirl_env
from pretraining.qwen_vl_build import build_tiny_qwen_vl
from pretraining.qwen_vl_pretrain import evaluate, pretrain
from pretraining.vqa_data import (
    ANSWERS,
    HELD_OUT,
    KINDS,
    ask,
    draw_things,
    loose_answer,
    picture_uri,
    sample_things,
    write_prompts,
)
from pretraining.vqa_sheet import draw_sheet
from unirl_env.media.pixels import load_picture
from unirl_env.models.tiny import TinyQwenVL, tiny_path
from unirl_env.models.words import LanguageModel
from unirl_env.prompts.shapes import COLOURS, SHAPES
from unirl_env.types import Prompt

PROMPTS = Path(unirl_env.__file__).parent / "prompts" / "sets"


def rows_of(name):
    return [json.loads(line) for line in (PROMPTS / f"shapes_vqa_{name}.jsonl").read_text().splitlines()]


def questions(count, seed=0, **options):
    """`(objects, question)` of all kinds."""
    rng, found = np.random.default_rng(seed), []
    while len(found) < count:
        things = sample_things(rng, **options)
        question = ask(things, KINDS[len(found) % len(KINDS)], rng)
        if question:
            found.append((things, question))
    return found


def names_held_out(text):
    return any(re.search(rf"\b{colour} {shape}", text) for colour, shape in HELD_OUT)


class TestFiles:
    def test_are_small_and_half_precision(self):
        from safetensors import safe_open

        files = [path for path in tiny_path("qwen_vl").rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) < 4_000_000
        with safe_open(tiny_path("qwen_vl") / "model.safetensors", "pt") as weights:
            assert {weights.get_tensor(key).dtype for key in weights.keys()} == {torch.float16}

    def test_name_no_machine(self):
        for path in tiny_path("qwen_vl").rglob("*.json"):
            assert "/" not in str(json.loads(path.read_text()).get("_name_or_path", "")), path

    def test_the_auto_classes_load_them_and_answer(self):
        from transformers import AutoModelForImageTextToText, AutoProcessor

        network = AutoModelForImageTextToText.from_pretrained(tiny_path("qwen_vl")).eval()
        assert {p.dtype for p in network.parameters()} == {torch.float32}
        processor = AutoProcessor.from_pretrained(tiny_path("qwen_vl"))
        pixels = draw_things([(("cyan", "circle", "top left"),)], np.random.default_rng(0))[0]
        parts = [
            {"type": "image", "image": Image.fromarray(pixels.permute(1, 2, 0).numpy())},
            {"type": "text", "text": "what is at the top left?"},
        ]
        read = processor.apply_chat_template(
            [{"role": "user", "content": parts}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        made = network.generate(**read, max_new_tokens=6, do_sample=False)
        answer = processor.decode(made[0, read["input_ids"].shape[1] :], skip_special_tokens=True)
        assert answer == "cyan circle"

    def test_heads_are_wide_enough_for_engines(self):
        config = json.loads((tiny_path("qwen_vl") / "config.json").read_text())
        assert config["model_type"] == "qwen3_vl" and config["text_config"]["head_dim"] == 32

    def test_an_untrained_directory_is_a_function_of_its_seed(self, tmp_path, quiet_models):
        from safetensors.torch import load_file

        weights = []
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            before = torch.get_rng_state()
            weights.append(load_file(build_tiny_qwen_vl(tmp_path / name, seed=seed) / "model.safetensors"))
            assert torch.equal(before, torch.get_rng_state())
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
        assert any(not torch.equal(weights[0][key], weights[2][key]) for key in weights[0])


class TestTheModel:
    def test_reads_questions_about_pictures(self):
        model = TinyQwenVL()
        assert isinstance(model, LanguageModel) and model.position_axes == 3
        encoded = model.encode(Prompt("how many circles?", images=(torch.zeros(3, 32, 32),)))
        places = "<|vision_start|>" + "<|image_pad|>" * 4 + "<|vision_end|>"
        assert model.decode(encoded.tokens) == f"user\n{places}how many circles?\nassistant\n"
        assert encoded.inputs["image_grid_thw"].tolist() == [[1, 4, 4]]
        assert model.input_spaces["pixel_values"][0] == tuple(encoded.inputs["pixel_values"].shape)

    def test_each_word_is_one_token(self):
        model = TinyQwenVL()
        tokenizer = model.reader.tokenizer
        for things, question in questions(300):
            words = re.findall(r"\w+|\?", question.text)
            assert len(tokenizer(question.text).input_ids) == len(words), things
            assert len(tokenizer(question.answer).input_ids) == len(question.answer.split())
        assert tokenizer.decode(tokenizer("Ünknown 🙂").input_ids) == "Ünknown 🙂"

    @pytest.mark.parametrize("name, low, greedy", [("train", 0.45, 0.85), ("heldout", 0.33, 0.58)])
    def test_the_base_is_right_about_as_often_as_wrong(self, name, low, greedy):
        """The margin that reinforcement learning needs: it sees, and answers loosely."""
        shares = evaluate(tiny_path("qwen_vl"), PROMPTS / f"shapes_vqa_{name}.jsonl", samples=4)["all"]
        assert low < shares["sampled"] < 0.55 and shares["greedy"] > greedy, shares

    def test_the_script_runs_every_phase(self, tmp_path, quiet_models):
        first = pretrain(tmp_path / "a", phases=[(2, ("what",), 0.0, 1e-3), (1, KINDS, 0.5, 1e-3)])
        again = pretrain(tmp_path / "b", phases=[(2, ("what",), 0.0, 1e-3), (1, KINDS, 0.5, 1e-3)])
        assert (first / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
        untrained = build_tiny_qwen_vl(tmp_path / "c")
        assert (first / "model.safetensors").read_bytes() != (untrained / "model.safetensors").read_bytes()
        write_prompts(tmp_path, train=10, held_out=10)
        shares = evaluate(first, tmp_path / "shapes_vqa_train.jsonl", samples=2)
        assert set(shares) == {"all", *KINDS} and set(shares["all"]) == {"sampled", "greedy"}


class TestQuestions:
    def test_have_the_right_answers(self):
        """By a second reading of the words; a question that could mean two objects is not asked."""
        for things, question in questions(600):
            colours = [colour for colour in COLOURS if colour in question.text.split()]
            said = re.sub(r"s?\?$", "", question.text).split()
            shapes = [shape for shape in SHAPES if shape in said]
            place = re.search(r"(top|bottom) (left|right)", question.text)
            meant = [
                thing
                for thing in things
                if (not colours or thing[0] in colours)
                and (not shapes or thing[1] in shapes)
                and (not place or thing[2] == place[0])
            ]
            if question.kind == "count":
                assert question.answer == str(len(meant))
            else:
                (thing,) = meant
                colour, shape, where = thing
                expected = {"colour": colour, "shape": shape, "where": where, "what": f"{colour} {shape}"}
                assert question.answer == expected[question.kind]

    def test_pictures_show_their_objects(self):
        things = (("red", "square", "top left"), ("cyan", "circle", "bottom right"))
        picture = draw_things([things], np.random.default_rng(0))[0]
        for (colour, *_), (row, column) in zip(things, ((9, 9), (23, 23)), strict=True):
            expected = torch.tensor(COLOURS[colour]) * 255
            assert (picture[:, row, column] - expected).abs().max() <= 1
        assert picture[:, 9, 23].float().max() < 50, "nothing is at the top right"

    def test_what_is_held_out_is_never_drawn_or_named(self):
        for things, question in questions(500):
            assert not {thing[:2] for thing in things} & set(HELD_OUT)
            assert not names_held_out(question.text + " " + question.answer)
        assert not any(names_held_out(answer) for answers in ANSWERS.values() for answer in answers)
        assert all(
            {thing[:2] for thing in things} & set(HELD_OUT) for things, _ in questions(50, held_out=True)
        )

    def test_loosened_answers_stay_in_their_kind(self):
        rng, asked = np.random.default_rng(0), [question for _, question in questions(400)]
        assert [loose_answer(q, 0.0, rng) for q in asked] == [q.answer for q in asked]
        loose = [loose_answer(q, 1.0, rng) for q in asked]
        assert all(answer in ANSWERS[q.kind] for answer, q in zip(loose, asked, strict=True))
        assert 0.1 < np.mean([a == q.answer for a, q in zip(loose, asked, strict=True)]) < 0.3

    def test_pictures_survive_their_uri(self):
        picture = draw_things([(("red", "square", "top left"),)], np.random.default_rng(0))[0]
        assert torch.equal((load_picture(picture_uri(picture)) * 255).round().to(torch.uint8), picture)


class TestPromptFiles:
    def test_are_what_the_script_writes(self, tmp_path):
        write_prompts(tmp_path)
        for name in ("train", "heldout"):
            assert [(r["id"], r["prompt"], r["answer"]) for r in rows_of(name)] == [
                (r["id"], r["prompt"], r["answer"])
                for r in map(json.loads, (tmp_path / f"shapes_vqa_{name}.jsonl").read_text().splitlines())
            ]

    def test_sizes_and_split(self):
        files = [PROMPTS / f"shapes_vqa_{name}.jsonl" for name in ("train", "heldout")]
        assert sum(path.stat().st_size for path in files) < 600_000
        train, held_out = rows_of("train"), rows_of("heldout")
        assert len(train) == 400 and len(held_out) == 100
        assert len({row["id"] for row in train + held_out}) == 500
        assert not {row["image"] for row in train} & {row["image"] for row in held_out}
        assert not any(names_held_out(row["prompt"] + " " + row["answer"]) for row in train)
        assert sum(names_held_out(row["prompt"] + " " + row["answer"]) for row in held_out) >= 20
        for rows in (train, held_out):
            assert {row["kind"] for row in rows} == set(KINDS)


def test_a_sheet_shows_questions(tmp_path):
    rows = rows_of("heldout")[:5]
    rows[0]["said"], rows[1]["said"] = rows[0]["answer"], "nothing"
    draw_sheet(rows, tmp_path / "sheet.png", columns=3)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (660, 520) and np.asarray(sheet).std() > 20

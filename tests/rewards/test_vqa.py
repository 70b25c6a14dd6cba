"""The VQA score against a plain forward pass of one answer at a time, and on the embedded Qwen-VL."""

import importlib.util
import math
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

from pretraining.vqa_data import KINDS, ask, draw_things, sample_things
from unirl_env.models.tiny import tiny_path
from unirl_env.rewards.learned.vqa import VQAScore
from unirl_env.rewards.learned.vqa_reading import rows_for
from unirl_env.types import Prompt, Sample

CASES = Path(__file__).parents[1] / "models" / "vl_cases.py"
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
ASKED = (
    Prompt("a", metadata={"questions": [["is it red?", "yes"], {"question": "how many?", "answer": "two"}]}),
    Prompt("b", metadata={"questions": [["what is at the top left of this picture?", "red circle"]]}),
    Prompt("c", metadata={"questions": [["any?", "No"], ["what shape?", ["circle", "circles"]]]}),
)


def cases():
    """The tests' builder of untrained checkpoints."""
    if "vl_cases" not in sys.modules:
        found = importlib.util.spec_from_file_location("vl_cases", CASES)
        sys.modules["vl_cases"] = importlib.util.module_from_spec(found)
        found.loader.exec_module(sys.modules["vl_cases"])
    return sys.modules["vl_cases"]


def picture(seed, height=32, width=32):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


SAMPLES = [Sample(image=picture(0)), Sample(image=picture(1, 24, 16)), Sample(image=picture(2))]


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request, tmp_path_factory, quiet_models):
    return cases().build(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory, quiet_models):
    return cases().build("qwen3_vl", tmp_path_factory.mktemp("one"))


@lru_cache
def loaded(checkpoint):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    return AutoModelForImageTextToText.from_pretrained(checkpoint).eval(), AutoProcessor.from_pretrained(
        checkpoint
    )


def plain(checkpoint, image, question, said):
    """The probability that the model says `said`: one forward call over the whole chat, token by token."""
    network, processor = loaded(checkpoint)
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    text = processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
    bytes_ = (image * 255).round().to(torch.uint8)
    before = processor(text=[text], images=[bytes_], return_tensors="pt")["input_ids"].shape[1]
    whole = processor(text=[text + said], images=[bytes_], return_tensors="pt")
    with torch.no_grad():
        logs = network(**whole).logits[0].log_softmax(-1)
    tokens = whole["input_ids"][0]
    return math.exp(sum(float(logs[i - 1, tokens[i]]) for i in range(before, len(tokens))))


def expected(checkpoint, image, question, spellings, against=()):
    """The sum over spellings, divided by that of all where there are wrong ones."""
    p, q = (sum(plain(checkpoint, image, question, word) for word in words) for words in (spellings, against))
    return p / (p + q) if against else p


def test_probabilities_are_those_of_plain_forward_passes(checkpoint):
    yes, no = ("yes", "Yes"), ("no", "No")
    images = [sample.image for sample in SAMPLES]
    first = [
        expected(checkpoint, images[0], "is it red? One word.", yes, no),
        expected(checkpoint, images[0], "how many? One word.", ("two", "Two", "2")),
    ]
    second = expected(
        checkpoint,
        images[1],
        "what is at the top left of this picture? One word.",
        ("red circle", "Red circle"),
    )
    third = [
        expected(checkpoint, images[2], "any? One word.", no, yes),
        # " circle" and " circles" are tokens; "circles" begins with the token of "circle", which counts it.
        expected(checkpoint, images[2], "what shape? One word.", ("circle", " circle", "Circle", " circles")),
    ]
    scorer = VQAScore(checkpoint, dtype="float32", suffix=" One word.", batch_size=3)
    scores = scorer(SAMPLES, ASKED)
    assert scores.valid.all() and scores.parts["questions"].tolist() == [2, 1, 2]
    for row, each in enumerate((first, [second], third)):
        assert scores.value[row] == pytest.approx(math.exp(np.mean(np.log(each))), rel=1e-4, abs=0)
        assert scores.parts["mean"][row] == pytest.approx(np.mean(each), rel=1e-4, abs=0)
        assert scores.parts["minimum"][row] == pytest.approx(min(each), rel=1e-4, abs=0)


@pytest.mark.parametrize("aggregation", ["geometric", "arithmetic", "minimum"])
def test_the_value_is_the_chosen_mean(qwen3, aggregation):
    prompts = [Prompt("x", metadata={"questions": [["how many?", n] for n in ("1", "2", 3)]})] * 3
    scores = VQAScore(qwen3, dtype="float32", aggregation=aggregation)(SAMPLES, prompts)
    each = torch.stack(
        [
            VQAScore(qwen3, dtype="float32")(
                SAMPLES, [Prompt("x", metadata={"questions": [["how many?", n]]})] * 3
            ).value
            for n in ("1", "2", 3)
        ]
    )
    means = {"arithmetic": each.mean(0), "minimum": each.amin(0), "geometric": each.prod(0) ** (1 / 3)}
    assert torch.allclose(scores.value, means[aggregation], rtol=1e-4)
    assert len({float(mean[0]) for mean in means.values()}) == 3


def test_yes_is_weighed_against_no_or_stands_alone(qwen3):
    prompt = Prompt("x", metadata={"questions": [["is it red?", True]]})
    opposite = Prompt("x", metadata={"questions": [["is it red?", "no"]]})
    weighed, alone = (VQAScore(qwen3, dtype="float32", relative=relative) for relative in (True, False))
    yes, no = (alone(SAMPLES[:1], [each]).value for each in (prompt, opposite))
    scores = weighed(SAMPLES[:1], [prompt])
    assert torch.allclose(scores.value, yes / (yes + no), rtol=1e-4)
    assert torch.allclose(scores.parts["answered"], yes + no, rtol=1e-4)
    assert torch.allclose(scores.value + weighed(SAMPLES[:1], [opposite]).value, torch.ones(1))
    assert weighed(SAMPLES[:1], ASKED[1:2]).parts["answered"].isnan().all()


@pytest.mark.parametrize("rows", [1, 3])
def test_a_score_is_bitwise_the_same_in_any_company(checkpoint, rows):
    samples = [Sample(image=picture(i, *((32, 32), (24, 16), (16, 32))[i % 3])) for i in range(6)]
    prompts = [ASKED[(i * i) % 3] for i in range(6)]
    scorer = VQAScore(checkpoint, dtype="float32", rows_per_forward=rows)
    assert scorer.pointwise
    together = scorer(samples, prompts).value
    alone = torch.cat([scorer([s], [p]).value for s, p in zip(samples, prompts, strict=True)])
    order = [4, 1, 5, 0, 3, 2]
    shuffled = scorer([samples[i] for i in order], [prompts[i] for i in order]).value
    assert torch.equal(together, alone) and torch.equal(together[order], shuffled)
    padded = VQAScore(checkpoint, dtype="float32", batch_size=5)(samples, prompts).value
    assert torch.allclose(together, padded, rtol=1e-4, atol=0) and together.log().std() > 0.3


def test_many_pictures_are_taken_in_parts(qwen3, monkeypatch):
    scorer = VQAScore(qwen3, dtype="float32", rows_per_forward=2)
    samples, prompts = [Sample(image=picture(i)) for i in range(5)], [ASKED[i % 3] for i in range(5)]
    whole = scorer(samples, prompts)
    monkeypatch.setattr("unirl_env.rewards.learned.vqa.PICTURES", 2)
    parts = scorer(samples, prompts)
    assert torch.equal(whole.value, parts.value)
    assert all(torch.equal(whole.parts[k].nan_to_num(), parts.parts[k].nan_to_num()) for k in whole.parts)


def test_odds_do_not_come_in_the_steps_of_bfloat16(qwen3):
    scorer = VQAScore(qwen3, dtype="bfloat16", rows_per_forward=1)
    logits = []
    for i in range(12):
        inputs = scorer._reader.encode(scorer._reader.look(picture(i)), "is it red?")
        told = scorer._reader.log_probs(rows_for(inputs, [(40,), (41,)]), scorer.placement)[0]
        logits.append(float(told[0] - told[1]))
        hidden = scorer._reader._network.base_model(**inputs).last_hidden_state[0, -1].float()
        head = scorer._reader._network.get_output_embeddings().weight.float()
        assert torch.allclose(told, (head @ hidden).log_softmax(-1)[[40, 41]], atol=1e-5)
    steps = [each * 256 % 1 for each in logits]
    assert len(set(logits)) == 12 and max(steps) - min(steps) > 0.3


def test_the_embedded_model_prefers_the_right_picture():
    scorer = VQAScore(str(tiny_path("qwen_vl")), dtype="float32", suffix="", batch_size=64)
    rng = np.random.default_rng(3)
    right, wrong, prompts = [], [], []
    while len(prompts) < 60:
        things, others = sample_things(rng, fewest=2), sample_things(rng, fewest=2)
        kind = KINDS[len(prompts) % len(KINDS)]
        question = ask(things, kind, rng)
        place = question and question.text[len("what is at the ") : -1]
        if question is None or (kind == "what" and place not in [where for *_, where in others]):
            continue
        answer = question.answer
        if kind != "what" and all(word in " ".join(map(" ".join, others)) for word in answer.split()):
            continue  # the other picture may give the same answer
        if kind == "count" and answer in ("0", "1"):
            continue
        right.append(Sample(image=draw_things([things], rng)[0] / 255))
        wrong.append(Sample(image=draw_things([others], rng)[0] / 255))
        prompts.append(Prompt(question.text, metadata={"questions": [[question.text, answer]]}))
    better = scorer(right, prompts).value
    worse = scorer(wrong, prompts).value
    assert (better > worse).float().mean() >= 0.9, (better, worse)
    assert better.mean() > 2 * worse.mean()

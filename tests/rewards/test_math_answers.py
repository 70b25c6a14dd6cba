"""Hundreds of answers, right and wrong, as models write them: what each of them earns.

`math_answers.jsonl` holds a text, the expected answer and the reward per line: sizes, decimal commas and
thousands, mixed numbers, powers of ten, e and i, signs, currencies, units, structure, texts without a box.
"""

import json
from pathlib import Path

import pytest

from unirl_env.rewards import MathScorer
from unirl_env.types import Prompt, Sample

pytest.importorskip("math_verify")

ROWS = [
    json.loads(line)
    for line in Path(__file__).with_name("math_answers.jsonl").read_text(encoding="utf-8").splitlines()
]


@pytest.fixture(scope="module")
def scorer():
    return MathScorer(timeout=20.0)


@pytest.mark.parametrize("reward", [1, 0])
@pytest.mark.parametrize("boxed", [True, False])
def test_what_answers_earn(scorer, boxed, reward):
    rows = [row for row in ROWS if row["reward"] == reward and row["text"].startswith(r"\boxed{") == boxed]
    assert len(rows) > 100
    prompts = [
        Prompt("What is it?", id=str(i), metadata={"answer": row["answer"]}) for i, row in enumerate(rows)
    ]
    scores = scorer([Sample(text=row["text"]) for row in rows], prompts)
    wrong = [row for row, value in zip(rows, scores.value.tolist(), strict=True) if value != reward]
    assert wrong == []

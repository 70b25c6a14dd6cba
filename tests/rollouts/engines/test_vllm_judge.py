"""The judge on vLLM's own chat endpoint: a real server on a CPU, and an untrained tiny Qwen3."""

import json
import sys

import httpx
import pytest

from pretraining.qwen3_build import build_tiny_qwen3
from unirl_env.rewards.external.judge_scorer import JudgeScorer
from unirl_env.rollouts.engines.process import ServerProcess, free_port
from unirl_env.rollouts.engines.vllm import vllm_variables
from unirl_env.types import Prompt, Sample

pytest.importorskip("vllm", reason="vLLM is not installed here; `make test-vllm` installs it")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

KEY = "a-key-of-the-test"
RUBRIC = "Is {answer} the sum {prompt}?"
SAMPLES = [Sample(text=f"{n}") for n in (1, 12, 123)]
PROMPTS = [Prompt(f"{n} + {n}") for n in range(3)]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    model = build_tiny_qwen3(tmp_path_factory.mktemp("models") / "judge", seed=3)
    # The words of a question are more than the embedded model was made for; its positions reach any length.
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}))
    port = free_port()
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
        "--served-model-name", "judge-1", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32",
        "--max-model-len", "2048", "--max-num-seqs", "8", "--kv-cache-memory-bytes", str(64 << 20),
        "--generation-config", "vllm", "--enforce-eager", "--seed", "0",
        # Untrained models would write spaces between the brackets for ever.
        "--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}',
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    process = ServerProcess(
        "vLLM", command, required={"VLLM_API_KEY": KEY}, defaults=vllm_variables(in_process=False)
    )

    def ready():
        try:
            return httpx.get(f"{url}/health", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    process.wait_until(ready, 900)
    yield f"{url}/v1"
    process.stop()


@pytest.fixture
def judge(server, monkeypatch):
    monkeypatch.setenv("TEST_VLLM_KEY", KEY)

    def make(**options):
        settings = {"rubric": RUBRIC, "token_env": "TEST_VLLM_KEY", "attempts": 1, "reason": False}
        return JudgeScorer(server, "judge-1", **{"structured": "json_schema", **settings, **options})

    return make


def test_a_schema_makes_any_model_a_judge_and_greedy_says_the_same_twice(judge):
    scorer = judge(scale=(0, 9))
    scores = scorer(SAMPLES, PROMPTS)
    assert scores.valid.all() and (scores.value >= 0).all() and (scores.value <= 1).all()
    assert scorer.spending.requests == 3 and scorer.spending.uncounted == 0
    assert scorer.spending.prompt_tokens > 300
    again = judge(scale=(0, 9))(SAMPLES[::-1], PROMPTS[::-1])
    assert again.value.tolist() == scores.value.tolist()[::-1]


def test_aspects_come_back_each_by_itself(judge):
    scores = judge(scale=(1, 5), aspects={"truth": 2, "style": 1})(SAMPLES, PROMPTS)
    assert scores.valid.all()
    mean = (2 * scores.parts["truth"] + scores.parts["style"]) / 3
    assert scores.value.tolist() == pytest.approx(mean.tolist(), abs=1e-6)


def test_answers_are_kept(judge, tmp_path):
    path = tmp_path / "answers.sqlite"
    first, second = judge(cache=path), judge(cache=path)
    scores = first(SAMPLES, PROMPTS)
    assert scores.value.tolist() == second(SAMPLES, PROMPTS).value.tolist()
    assert first.spending.requests == 3 and second.spending.requests == 0


def test_a_judge_that_says_no_end_is_invalid(judge):
    scorer = judge(reason=True, max_tokens=24, repeats=1)
    scores = scorer(SAMPLES[:1], PROMPTS[:1])
    assert not scores.valid.any() and scorer.spending.requests == 2


def test_an_answer_that_is_too_long_for_the_judge_is_invalid_alone(judge):
    scorer = judge()
    scores = scorer([*SAMPLES[:2], Sample(text="9" * 4000)], PROMPTS)
    assert scores.valid.tolist() == [True, True, False]

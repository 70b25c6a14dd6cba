"""What the VQA score does with what it cannot judge, and as the reward of an environment."""

import json
import logging
import shutil

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from unirl_env.errors import ConfigError, ContractError, ModelNotFound
from unirl_env.models.tiny import tiny_path
from unirl_env.rewards import build_scorer, score_safely
from unirl_env.rewards.learned.vqa import VQAScore
from unirl_env.types import Prompt, Sample

TINY = str(tiny_path("qwen_vl"))
ASKED = Prompt("x", metadata={"questions": [["what shape is the red thing?", "circle"]]})


def picture(seed, height=32, width=32):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def scorer(quiet_models):
    return VQAScore(TINY, dtype="float32")


def test_a_prompt_without_questions_is_invalid_and_said_once(scorer, caplog):
    samples = [Sample(image=picture(i)) for i in range(3)]
    with caplog.at_level(logging.WARNING):
        scores = scorer(samples, [Prompt("a red circle"), ASKED, Prompt("a dog", metadata={"questions": []})])
    assert scores.valid.tolist() == [False, True, False]
    assert scores.value.isnan().tolist() == [True, False, True]
    assert scores.parts["questions"].isnan().tolist() == [True, False, True]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and "'a red circle'" in said[0] and "`from_prompt: true`" in said[0]
    assert not scorer(samples[:1], [Prompt("a red circle")]).valid.any()


def test_the_prompt_itself_is_asked_about_only_if_so_wished():
    asking = VQAScore(TINY, dtype="float32", from_prompt=True, template="is {prompt} here?", suffix=" Now.")
    sample = Sample(image=picture(0))
    by_hand = Prompt("x", metadata={"questions": [["is a {red} circle here?", "yes"]]})
    plain = VQAScore(TINY, dtype="float32", suffix="")
    assert asking([sample], [Prompt("a {red} circle")]).value == plain([sample], [by_hand]).value
    both = asking([sample, sample, sample], [Prompt("a circle"), ASKED, Prompt("  ", id="blank")])
    assert both.valid.tolist() == [True, True, False]
    alone = VQAScore(TINY, dtype="float32", suffix=" Now.")([sample], [ASKED]).value
    assert both.value[1] == pytest.approx(float(alone), rel=1e-5)


def test_pictures_that_cannot_be_read_are_invalid_by_themselves(scorer):
    bad = picture(0)
    bad[0, 0, 0] = torch.inf
    thin = Sample(image=torch.rand(3, 1, 400))
    samples = [Sample(image=bad), Sample(image=picture(1)), thin, Sample(image=picture(1))]
    marked = Prompt("x", metadata={"questions": [["what is <|image_pad|>?", "circle"]]})
    scores = score_safely(scorer, samples, [ASKED, ASKED, ASKED, marked])
    assert scores.valid.tolist() == [False, True, False, False]
    assert torch.allclose(scores.value[1], scorer(samples[1:2], [ASKED]).value)


def test_samples_and_questions_that_break_the_contract(scorer):
    with pytest.raises(ContractError, match=r"must be \[3, H, W\] for the reward `vqa`"):
        score_safely(scorer, [Sample(text="none")], [ASKED])
    with pytest.raises(ContractError, match="must be a list of questions"):
        score_safely(scorer, [Sample(image=picture(0))], [Prompt("x", metadata={"questions": "why?"})])


def test_values_beyond_the_range_and_between_bytes_are_rounded(scorer):
    whole = (picture(0) * 255).round() / 255
    near = whole + 0.001
    assert torch.equal(
        scorer([Sample(image=whole)], [ASKED]).value, scorer([Sample(image=near)], [ASKED]).value
    )
    assert scorer([Sample(image=whole + 2)], [ASKED]).valid.all()


def test_random_numbers_stay_alone_and_threads_agree(scorer):
    from concurrent.futures import ThreadPoolExecutor

    before = torch.get_rng_state()
    samples = [Sample(image=picture(0))]
    fresh = VQAScore(TINY, dtype="float32")(samples, [ASKED]).value
    assert torch.equal(before, torch.get_rng_state())
    with ThreadPoolExecutor(1) as pool:
        assert torch.equal(pool.submit(scorer, samples, [ASKED]).result().value, fresh)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "`dtype` must be one of"),
        ({"aggregation": "median"}, "`aggregation` must be one of .*, got 'median'"),
        ({"template": "is it good?"}, r"`template` must hold \{prompt\}, got 'is it good\?'"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"min_pixels": 2048}, "`min_pixels` must be .* got 2048 and 1024"),
        ({"max_pixels": 100}, "`min_pixels` must be .* got 512 and 100"),
        ({"pretrained": "x"}, "options of reward 'vqa' do not fit"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        build_scorer({"name": "vqa", "model": TINY, **options})


def test_models_that_cannot_be_loaded_are_named_with_a_way_out(tmp_path):
    with pytest.raises(ModelNotFound, match=r"`model` must be a hub id or directory of a Qwen-VL.*`shapes`"):
        VQAScore(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"must be a vision-language model of one of .*, got 'qwen3'"):
        VQAScore(str(tiny_path("qwen3")))
    broken = shutil.copytree(TINY, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    name = next(name for name in weights if name.endswith("q_proj.weight"))
    save_file({k: v for k, v in weights.items() if k != name}, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelNotFound, match=r"its weights lack \['.*q_proj\.weight'\]"):
        VQAScore(str(broken))


def test_code_that_comes_with_a_model_is_not_run(tmp_path):
    folder = shutil.copytree(TINY, tmp_path / "own")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ModelNotFound):
        VQAScore(str(folder))
    assert not (tmp_path / "ran").exists()


def test_it_is_the_reward_of_an_environment(tiny_dir):
    words = {"name": "vqa", "model": TINY, "dtype": "float32", "from_prompt": True, "rows_per_forward": 2}
    env = gym.make_vec(
        "unirl_env:unirl/TinySD3-T2I-v0",
        num_envs=4,
        info_objects=True,
        vectorization_mode="vector_entry_point",
        pretrained=str(tiny_dir),
        num_steps=2,
        group_size=2,
        scorer=words,
    )
    obs, _ = env.reset(seed=0)
    for _ in range(2):
        _, reward, *_, info = env.step(obs["latent"])
    alone = build_scorer(words)([info["samples"][1]], [info["prompt"][1]])
    assert info["scores"].valid.all() and np.array_equal(reward, info["scores"].value)
    assert torch.equal(alone.value, info["scores"].value[1:2])
    env.close()

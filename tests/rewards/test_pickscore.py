"""PickScore against a hand computation with the classes of transformers, on a model of random weights."""

import json
import math
import shutil

import pytest
import torch
from PIL import Image
from tiny_clips import counted, picture

from unirl_env.errors import ConfigError, ContractError, ModelNotFound
from unirl_env.rewards import PickScore, build_scorer
from unirl_env.rewards.scoring import score_safely
from unirl_env.types import Prompt, Sample

transformers = pytest.importorskip("transformers")

PROMPTS = [Prompt("a red circle"), Prompt("a blue square"), Prompt("a red circle")]
LONG = Prompt("a very long text of many letters " * 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The model in `model`, its processor in `processor`."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    folder = tmp_path_factory.mktemp("pickscore")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        "re</w>",
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\nr e</w>\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    size = {"height": 32, "width": 32}
    pictures = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size)
    CLIPProcessor(pictures, tokenizer).save_pretrained(folder / "processor")
    shared = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={
            **shared,
            "vocab_size": len(tokens),
            "max_position_embeddings": 77,
            "bos_token_id": len(tokens) - 2,
            "eos_token_id": len(tokens) - 1,
        },
        vision_config={**shared, "image_size": 32, "patch_size": 8},
        projection_dim=16,
        logit_scale_init_value=math.log(100.0),
    )
    torch.manual_seed(0)
    model = CLIPModel(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(5)  # random weights of the usual size tell pictures apart by the last digits only
    model.save_pretrained(folder / "model")
    return folder


def build(folder, **options):
    return PickScore(str(folder / "model"), str(folder / "processor"), **options)


@pytest.fixture(scope="module")
def scorer(folder):
    return build(folder)


def by_hand(folder, images, texts):
    """The published computation: PIL pictures, a padded batch, and the diagonal of all pairs."""
    from transformers import CLIPModel, CLIPProcessor

    model = CLIPModel.from_pretrained(folder / "model").eval()
    processor = CLIPProcessor.from_pretrained(folder / "processor")
    files = [Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()) for image in images]
    words = processor(text=texts, padding=True, truncation=True, max_length=77, return_tensors="pt")
    with torch.no_grad():
        image = model.get_image_features(**processor(images=files, return_tensors="pt")).pooler_output
        text = model.get_text_features(**words).pooler_output
    image, text = image / image.norm(dim=-1, keepdim=True), text / text.norm(dim=-1, keepdim=True)
    return (model.logit_scale.exp() * text @ image.T).diag()


def test_the_value_is_the_published_computation_on_the_pictures_files(folder, scorer):
    images = [picture(0), picture(1, 96, 48), picture(2, 40, 64), picture(3, 200, 200)]
    prompts = [*PROMPTS, LONG]
    scores = scorer([Sample(image=image) for image in images], prompts)
    expected = by_hand(folder, images, [prompt.text for prompt in prompts])
    assert torch.allclose(scores.value, expected.detach(), atol=2e-4), (scores.value, expected)
    assert scores.valid.all() and expected.std() > 1


def test_a_picture_scores_what_its_8_bits_score(scorer):
    image = picture(1, 64, 64)
    shifted = (image + 0.4 / 255 * torch.ones_like(image)).clamp(0, 1)
    one, other = scorer([Sample(image=image), Sample(image=shifted)], PROMPTS[:1] * 2).value
    assert one == other


def test_alone_is_as_in_company_bit_by_bit(folder):
    scorer = build(folder, rows_per_forward=4)
    samples = [Sample(image=picture(i, 32 + 8 * i, 40)) for i in range(6)]
    prompts = [*PROMPTS, LONG, Prompt("b"), Prompt("a red circle")]
    together = scorer(samples, prompts).value
    for order in ([5, 3, 1, 0, 2, 4], [0], [4], [2, 0]):
        part = scorer([samples[i] for i in order], [prompts[i] for i in order]).value
        assert torch.equal(part, together[order])
    assert together.unique().numel() == 6


def test_a_text_that_comes_twice_is_encoded_once(folder, monkeypatch):
    scorer = build(folder, batch_size=8)
    calls = counted(monkeypatch, scorer, "_of_texts")
    scorer([Sample(image=picture(i)) for i in range(3)], PROMPTS)
    assert calls == [2]


def test_the_models_own_scale_and_the_option_multiply(folder, scorer, tmp_path):
    from transformers import CLIPModel

    samples = [Sample(image=picture(1))]
    value = scorer(samples, PROMPTS[:1]).value
    assert torch.allclose(build(folder, scale=1 / 26)(samples, PROMPTS[:1]).value, value / 26)
    model = CLIPModel.from_pretrained(folder / "model")
    model.logit_scale.data.fill_(0.0)
    model.save_pretrained(tmp_path)
    cosine = PickScore(str(tmp_path), str(folder / "processor"))(samples, PROMPTS[:1]).value
    assert torch.allclose(100 * cosine, value, atol=1e-4)


def test_bfloat16_stays_close_and_keeps_the_scale(folder, scorer):
    samples = [Sample(image=picture(i)) for i in range(3)]
    low = build(folder, dtype="bfloat16")
    assert low.scale == scorer.scale == pytest.approx(100.0, rel=1e-6)
    assert (low(samples, PROMPTS).value - scorer(samples, PROMPTS).value).abs().max() < 5


def test_what_cannot_be_judged_is_invalid_or_an_error(scorer):
    bad = picture(0)
    bad[0, 3, 3] = math.inf
    scores = score_safely(scorer, [Sample(image=bad), Sample(image=picture(1))], PROMPTS[:2])
    assert scores.valid.tolist() == [False, True]
    assert scores.value[1] == pytest.approx(
        float(scorer([Sample(image=picture(1))], PROMPTS[1:2]).value), abs=1e-4
    )
    with pytest.raises(ContractError, match=r"\[3, H, W\] for the reward `pickscore`, got None"):
        score_safely(scorer, [Sample(text="no picture")], PROMPTS[:1])


def test_models_that_are_missing_or_not_whole_are_named(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    with pytest.raises(ModelNotFound, match=r"`PickScore` must find '.*nowhere', got .*`shapes`"):
        PickScore(str(tmp_path / "nowhere"), str(folder / "processor"))
    with pytest.raises(ModelNotFound, match=r"the processor '.*nowhere'.*`processor` with the directory"):
        PickScore(str(folder / "model"), str(tmp_path / "nowhere"))
    shutil.copytree(folder / "model", tmp_path / "half")
    weights = load_file(tmp_path / "half" / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, tmp_path / "half" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelNotFound, match=r"it lacks 1 weights, such as 'text_projection\.weight'"):
        PickScore(str(tmp_path / "half"), str(folder / "processor"))
    (tmp_path / "half" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelNotFound, match=r"half', got SafetensorError"):
        PickScore(str(tmp_path / "half"), str(folder / "processor"))


def test_settings_out_of_range_are_refused():
    for options, words in (
        ({"dtype": "int8"}, "`dtype` must be one of"),
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
        ({"rows_per_forward": 0}, "`rows_per_forward` must be at least 1"),
        ({"device": "abacus"}, "`device` must be 'auto'"),
    ):
        with pytest.raises(ConfigError, match=words):
            build_scorer({"name": "pickscore", **options})


def test_it_pays_a_real_environment(folder):
    import gymnasium as gym

    import unirl_env  # noqa: F401

    words = {"name": "pickscore", "model": str(folder / "model"), "processor": str(folder / "processor")}
    env = gym.make_vec(
        "unirl/TinySD3-T2I-v0",
        num_envs=2,
        info_objects=True,
        vectorization_mode="vector_entry_point",
        num_steps=2,
        scorer={**words, "device": "auto"},
    )
    env.reset(seed=0)
    for _ in range(2):
        _, reward, *_, info = env.step(env.action_space.sample())
    assert info["scores"].valid.all() and reward == pytest.approx(info["scores"].value.numpy())
    env.close()

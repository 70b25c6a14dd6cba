"""The CLIP score against a hand computation, on a model of random weights."""

import json
import math
import sys

import pytest
import torch
import torch.nn.functional as nnf
from PIL import Image

from unirl_env.errors import ConfigError, ContractError, MissingExtra, ModelNotFound
from unirl_env.rewards.learned.clip import CLIPScore
from unirl_env.rewards.scoring import score_safely
from unirl_env.types import Prompt, Sample

open_clip = pytest.importorskip("open_clip")

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    (folder / "Tiny-Test.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(folder / "Tiny-Test.json")
    torch.manual_seed(0)
    model = open_clip.create_model("Tiny-Test")
    path = folder / "weights.pt"
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def scorer(checkpoint):
    return CLIPScore("Tiny-Test", checkpoint)


def picture(seed, height=32, width=32):
    """A smooth random picture."""
    coarse = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return nnf.interpolate(coarse, (height, width), mode="bilinear")[0].contiguous()


PROMPTS = [Prompt("a red circle"), Prompt("a blue square"), Prompt("a red circle")]


def test_the_value_is_the_cosine_of_the_models_own_embeddings(scorer, checkpoint):
    samples = [Sample(image=picture(i)) for i in range(3)]
    scores = scorer(samples, PROMPTS)

    model = open_clip.create_model("Tiny-Test", str(checkpoint)).eval()
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN)[:, None, None]
    std = torch.tensor(open_clip.OPENAI_DATASET_STD)[:, None, None]
    tokens = open_clip.get_tokenizer("Tiny-Test")([prompt.text for prompt in PROMPTS])
    with torch.no_grad():
        image = model.encode_image(torch.stack([(sample.image - mean) / std for sample in samples]))
        text = model.encode_text(tokens)
    expected = nnf.cosine_similarity(image, text)
    assert torch.allclose(scores.value, expected, atol=1e-6)
    assert scores.valid.all() and expected.std() > 1e-4


def test_pictures_of_other_sizes_go_through_the_models_own_preprocessing(scorer, checkpoint):
    model, _, preprocess = open_clip.create_model_and_transforms("Tiny-Test", str(checkpoint))
    model.eval()
    tokens = open_clip.get_tokenizer("Tiny-Test")(["a red circle"])
    for height, width in ((200, 200), (96, 48), (24, 40)):
        noise = torch.rand(3, height, width, generator=torch.Generator().manual_seed(1))
        image = 0.5 * picture(5, height, width) + 0.5 * noise  # fine detail shows a missing antialias filter
        bytes_ = (image * 255).round().to(torch.uint8)
        file = Image.fromarray(bytes_.permute(1, 2, 0).numpy())
        with torch.no_grad():
            by_file = nnf.cosine_similarity(
                model.encode_image(preprocess(file)[None]), model.encode_text(tokens)
            )
        score = scorer([Sample(image=bytes_ / 255)], PROMPTS[:1])
        assert torch.allclose(score.value, by_file, atol=1e-3), (height, width)


def test_batch_size_and_company_do_not_matter(checkpoint, scorer):
    samples = [Sample(image=picture(i, 32 + i, 40)) for i in range(3)]
    small = CLIPScore("Tiny-Test", checkpoint, batch_size=1)(samples, PROMPTS)
    assert torch.allclose(small.value, scorer(samples, PROMPTS).value, atol=1e-6)


def test_the_scale_multiplies(checkpoint, scorer):
    samples = [Sample(image=picture(1))]
    scaled = CLIPScore("Tiny-Test", checkpoint, scale=2.5)(samples, PROMPTS[:1])
    assert torch.allclose(scaled.value, 2.5 * scorer(samples, PROMPTS[:1]).value)


def test_bfloat16_stays_close(checkpoint, scorer):
    samples = [Sample(image=picture(i)) for i in range(3)]
    low = CLIPScore("Tiny-Test", checkpoint, dtype="bfloat16")(samples, PROMPTS)
    assert (low.value - scorer(samples, PROMPTS).value).abs().max() < 0.05


def test_weights_trained_with_quick_gelu_are_run_with_it(checkpoint, monkeypatch):
    seen = {}
    create = open_clip.create_model

    def spy(model, weights, **settings):
        seen.update(settings)
        return create("Tiny-Test", str(checkpoint), device=settings["device"])

    monkeypatch.setattr(open_clip, "create_model", spy)
    CLIPScore("ViT-B-32", "openai")
    assert seen["force_quick_gelu"] is True
    CLIPScore("ViT-B-32", "laion2b_s34b_b79k")
    assert seen["force_quick_gelu"] is False


def test_a_model_directory_brings_its_weights(checkpoint, tmp_path, scorer):
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG}))
    torch.save(torch.load(checkpoint), tmp_path / "open_clip_model.pth")
    samples = [Sample(image=picture(1))]
    local = CLIPScore(f"local-dir:{tmp_path}")(samples, PROMPTS[:1])
    assert torch.equal(local.value, scorer(samples, PROMPTS[:1]).value)


def test_a_picture_that_is_not_finite_is_invalid(scorer):
    bad = picture(0)
    bad[0, 3, 3] = math.nan
    scores = score_safely(scorer, [Sample(image=bad), Sample(image=picture(1))], PROMPTS[:2])
    assert scores.valid.tolist() == [False, True]


@pytest.mark.parametrize("sample", [Sample(text="no picture"), Sample(image=torch.rand(1, 8, 8))])
def test_samples_without_a_picture_break_the_contract(scorer, sample):
    with pytest.raises(ContractError, match=r"`Sample.image` must be \[3, H, W\]"):
        score_safely(scorer, [sample], PROMPTS[:1])


def test_unknown_models_and_weights_are_named_with_a_way_out(checkpoint, tmp_path):
    with pytest.raises(ModelNotFound, match=r"got 'ViT-L/14'; try one of \['ViT-L-14'"):
        CLIPScore("ViT-L/14")
    with pytest.raises(ModelNotFound, match=r"'Tiny-Test' with weights 'nowhere.pt'.*`shapes`"):
        CLIPScore("Tiny-Test", "nowhere.pt")
    (tmp_path / "broken.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ModelNotFound, match=r"broken\.pt', got UnpicklingError"):
        CLIPScore("Tiny-Test", tmp_path / "broken.pt")
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ModelNotFound, match="got RuntimeError"):
        CLIPScore("Tiny-Test", tmp_path / "other.pt")
    with pytest.raises(ModelNotFound, match="got FileNotFoundError"):
        CLIPScore(f"local-dir:{tmp_path / 'nowhere'}")


def test_settings_out_of_range_are_refused(checkpoint):
    with pytest.raises(ConfigError, match="`dtype` must be one of"):
        CLIPScore("Tiny-Test", checkpoint, dtype="int8")
    with pytest.raises(ConfigError, match="`batch_size` must be at least 1, got 0"):
        CLIPScore("Tiny-Test", checkpoint, batch_size=0)
    with pytest.raises(ConfigError, match="`pretrained` must name weights for 'Tiny-Test', got None"):
        CLIPScore("Tiny-Test", None)


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MissingExtra, match=r"open_clip_torch.*unirl-env\[clip\]"):
        CLIPScore("Tiny-Test", "x")


def test_alone_is_as_in_company_bit_by_bit_with_rows_per_forward(checkpoint):
    scorer = CLIPScore("Tiny-Test", checkpoint, rows_per_forward=4, device="auto")
    samples = [Sample(image=picture(i, 32 + i, 40)) for i in range(6)]
    prompts = [*PROMPTS, Prompt("a"), Prompt("b"), Prompt("c")]
    together = scorer(samples, prompts).value
    for order in ([5, 3, 1, 0, 2, 4], [0], [4], [2, 0]):
        part = scorer([samples[i] for i in order], [prompts[i] for i in order]).value
        assert torch.equal(part, together[order])
    with pytest.raises(ConfigError, match="`rows_per_forward` must be at least 1, got 0"):
        CLIPScore("Tiny-Test", checkpoint, rows_per_forward=0)
    with pytest.raises(ConfigError, match="`device` must be 'auto', 'cpu' or a GPU"):
        CLIPScore("Tiny-Test", checkpoint, device="abacus")


def test_a_picture_that_is_not_finite_where_it_is_cut_away_is_invalid(scorer):
    bad = picture(0, 32, 64)
    bad[0, 3, 63] = math.inf
    assert not scorer([Sample(image=bad)], PROMPTS[:1]).valid.any()

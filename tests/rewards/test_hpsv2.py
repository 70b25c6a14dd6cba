"""HPS v2 against a hand computation, on a checkpoint of random weights."""

import math

import pytest
import torch
import torch.nn.functional as nnf
from tiny_clips import counted, picture, tiny_open_clip

from unirl_env.errors import ConfigError, ContractError, ModelNotFound
from unirl_env.rewards import HPSv2Score, build_scorer
from unirl_env.rewards.learned.open_clip_model import letterboxed
from unirl_env.rewards.scoring import score_safely
from unirl_env.types import Prompt, Sample

open_clip = pytest.importorskip("open_clip")

PROMPTS = [Prompt("A red Circle"), Prompt("a blue square"), Prompt("A red Circle")]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """As it is published: `{"state_dict": ...}`."""
    folder = tmp_path_factory.mktemp("hpsv2")
    _, weights = tiny_open_clip(folder)
    path = folder / "HPS.pt"
    torch.save({"state_dict": torch.load(weights)}, path)
    return path


def build(checkpoint, **options):
    return HPSv2Score(checkpoint=checkpoint, model="Tiny-Test", **options)


@pytest.fixture(scope="module")
def scorer(checkpoint):
    return build(checkpoint)


def by_hand(checkpoint, images, texts):
    """The diagonal of all cosines; the pictures resized by an explicit filter, then set into black."""
    model = open_clip.create_model("Tiny-Test")
    model.load_state_dict(torch.load(checkpoint)["state_dict"])
    made = []
    for image in images:
        height, width = image.shape[1:]
        scale = 32 / max(height, width)
        inner = (round(height * scale), round(width * scale))
        small = nnf.interpolate(image[None], inner, mode="bicubic", antialias=True)[0]
        top, left = (32 - inner[0]) // 2, (32 - inner[1]) // 2
        canvas = torch.zeros(3, 32, 32)
        canvas[:, top : top + inner[0], left : left + inner[1]] = small
        mean, std = torch.tensor(open_clip.OPENAI_DATASET_MEAN), torch.tensor(open_clip.OPENAI_DATASET_STD)
        made.append((canvas - mean[:, None, None]) / std[:, None, None])
    with torch.no_grad():
        image = nnf.normalize(model.eval().encode_image(torch.stack(made)), dim=-1)
        text = nnf.normalize(model.encode_text(open_clip.get_tokenizer("Tiny-Test")(texts)), dim=-1)
    return (image @ text.T).diagonal()


def test_the_value_is_the_cosine_of_letterboxed_pictures(scorer, checkpoint):
    images = [picture(0), picture(1, 96, 48), picture(2, 20, 31), picture(3, 51, 200), picture(4, 64, 64)]
    prompts = [*PROMPTS, Prompt("b"), Prompt("many words " * 40)]
    scores = scorer([Sample(image=image) for image in images], prompts)
    expected = by_hand(checkpoint, images, [prompt.text for prompt in prompts])
    assert torch.allclose(scores.value, expected, atol=1e-5), (scores.value, expected)
    assert scores.valid.all() and expected.std() > 1e-3
    assert torch.allclose(
        build(checkpoint, scale=100.0)([Sample(image=images[1])], PROMPTS[1:2]).value, 100 * expected[1]
    )


def test_the_longer_side_fills_and_the_rest_is_black():
    wide = letterboxed(torch.ones(3, 10, 40), 20)
    assert wide.shape == (3, 20, 20)
    assert (
        wide[:, 7:12].allclose(torch.ones(3, 5, 20)) and wide[:, :7].eq(0).all() and wide[:, 12:].eq(0).all()
    )
    assert letterboxed(torch.ones(3, 500, 1), 20).shape == (3, 20, 20)
    same = torch.rand(3, 20, 20)
    assert torch.equal(letterboxed(same, 20), same)


def test_alone_is_as_in_company_bit_by_bit(checkpoint):
    scorer = build(checkpoint, rows_per_forward=4)
    samples = [Sample(image=picture(i, 32 + 8 * i, 40)) for i in range(6)]
    prompts = [*PROMPTS, Prompt("a"), Prompt("b"), Prompt("c")]
    together = scorer(samples, prompts).value
    for order in ([5, 3, 1, 0, 2, 4], [0], [4], [2, 0]):
        part = scorer([samples[i] for i in order], [prompts[i] for i in order]).value
        assert torch.equal(part, together[order])


def test_a_text_that_comes_twice_is_encoded_once(checkpoint, monkeypatch):
    scorer = build(checkpoint)
    calls = counted(monkeypatch, scorer._model._model, "encode_text")
    scorer([Sample(image=picture(i)) for i in range(3)], PROMPTS)
    assert calls == [2]


def test_bfloat16_stays_close(checkpoint, scorer):
    samples = [Sample(image=picture(i)) for i in range(3)]
    low = build(checkpoint, dtype="bfloat16")(samples, PROMPTS)
    assert (low.value - scorer(samples, PROMPTS).value).abs().max() < 0.05


def test_what_cannot_be_judged_is_invalid_or_an_error(scorer):
    bad = picture(0, 32, 64)
    bad[0, 3, 3] = math.nan
    scores = score_safely(scorer, [Sample(image=bad), Sample(image=picture(1))], PROMPTS[:2])
    assert scores.valid.tolist() == [False, True]
    with pytest.raises(ContractError, match=r"\[3, H, W\] for the reward `hpsv2`, got None"):
        score_safely(scorer, [Sample(text="no picture")], PROMPTS[:1])


def test_the_version_names_the_file_of_the_hub(checkpoint, monkeypatch):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *of: asked.append(of) or str(checkpoint))
    HPSv2Score(model="Tiny-Test")
    HPSv2Score("v2", model="Tiny-Test")
    assert asked == [("xswu/HPSv2", "HPS_v2.1_compressed.pt"), ("xswu/HPSv2", "HPS_v2_compressed.pt")]

    def refused(*of):
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refused)
    with pytest.raises(
        ModelNotFound,
        match=r"'HPS_v2\.1_compressed\.pt' of 'xswu/HPSv2', got OSError: no route.*`checkpoint`",
    ):
        HPSv2Score()


class Trap:
    """What a pickle could do."""

    def __reduce__(self):
        return (print, ("executed",))


def test_damaged_and_foreign_checkpoints_are_named(checkpoint, tmp_path, capsys):
    with pytest.raises(
        ModelNotFound, match=r"`HPSv2Score` must find 'Tiny-Test' with weights '.*nowhere\.pt'"
    ):
        build(tmp_path / "nowhere.pt")
    (tmp_path / "broken.pt").write_bytes(b"not a checkpoint")
    torch.save({"state_dict": {"logit_scale": torch.ones(())}}, tmp_path / "other.pt")
    torch.save({"state_dict": Trap()}, tmp_path / "trap.pt")
    for name in ("broken", "other", "trap"):
        with pytest.raises(ModelNotFound, match=rf"{name}\.pt', got .*`shapes`"):
            build(tmp_path / f"{name}.pt")
    assert "executed" not in capsys.readouterr().out


def test_settings_out_of_range_are_refused(checkpoint):
    with pytest.raises(ConfigError, match=r"`version` must be one of \['v2', 'v2.1'\], got 'v3'"):
        build_scorer({"name": "hpsv2", "version": "v3"})
    with pytest.raises(ConfigError, match="`rows_per_forward` must be at least 1"):
        build(checkpoint, rows_per_forward=0)

"""The aesthetic predictor against the published network, on random weights."""

import math

import pytest
import torch
import torch.nn.functional as nnf
from safetensors.torch import save_file
from tiny_clips import picture, tiny_open_clip
from torch import nn

from unirl_env.errors import ContractError, ModelNotFound
from unirl_env.rewards import AestheticScore, build_scorer
from unirl_env.rewards.scoring import score_safely
from unirl_env.types import Prompt, Sample

open_clip = pytest.importorskip("open_clip")


class Published(nn.Module):
    """The network whose checkpoints are published, dropouts and all."""

    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )

    def forward(self, vectors):
        return self.layers(vectors)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The model's name, and the head's file."""
    folder = tmp_path_factory.mktemp("aesthetic")
    model, _ = tiny_open_clip(folder)
    torch.manual_seed(1)
    head = Published(16)
    with torch.no_grad():
        for weight in head.parameters():
            weight.mul_(2)  # so that pictures differ by more than rounding
    path = tmp_path_factory.mktemp("head") / "head.pth"
    torch.save(head.state_dict(), path)
    return model, path


def build(files, **options):
    model, head = files
    return AestheticScore(**{"head": head, "model": model, **options})


def judge(scorer, images):
    return scorer([Sample(image=image) for image in images], [Prompt("anything")] * len(images))


def test_the_value_is_the_published_network_on_unit_vectors(files):
    model, head = files
    images = [picture(i, 32 + 24 * i, 40) for i in range(4)]
    network = Published(16)
    network.load_state_dict(torch.load(head))
    clip, _, preprocess = open_clip.create_model_and_transforms(model)
    from torchvision.transforms.functional import to_pil_image

    with torch.no_grad():
        pixels = torch.stack([preprocess(to_pil_image(image)) for image in images])
        expected = network.eval()(nnf.normalize(clip.eval().encode_image(pixels), dim=-1))[:, 0]
    scores = judge(build(files), images)
    assert torch.allclose(scores.value, expected, atol=5e-3) and scores.valid.all()
    assert expected.std() > 0.03
    assert torch.allclose(judge(build(files, scale=0.1), images).value, 0.1 * scores.value)


def test_dropouts_are_off_and_prompts_do_not_matter(files):
    scorer, image = build(files), [picture(1)]
    first = judge(scorer, image).value
    assert torch.equal(first, judge(scorer, image).value)
    assert torch.equal(first, scorer([Sample(image=image[0])], [Prompt("something else")]).value)


def test_alone_is_as_in_company_bit_by_bit(files):
    scorer = build(files, rows_per_forward=4)
    images = [picture(i, 32 + 8 * i, 40) for i in range(6)]
    together = judge(scorer, images).value
    for order in ([5, 3, 1, 0, 2, 4], [0], [4], [2, 0]):
        assert torch.equal(judge(scorer, [images[i] for i in order]).value, together[order])


def test_bfloat16_stays_close_and_the_head_stays_in_float32(files, tmp_path):
    images = [picture(i) for i in range(3)]
    low = build(files, dtype="bfloat16")
    assert (judge(low, images).value - judge(build(files), images).value).abs().max() < 0.5
    half = {name: tensor.half() for name, tensor in torch.load(files[1]).items()}
    torch.save(half, tmp_path / "half.pth")
    as_saved = judge(build(files, head=tmp_path / "half.pth"), images).value
    assert torch.allclose(as_saved, judge(build(files), images).value, atol=0.05)


def test_a_head_in_safetensors_is_the_same(files, tmp_path):
    save_file(torch.load(files[1]), tmp_path / "head.safetensors")
    again = build(files, head=tmp_path / "head.safetensors")
    assert torch.equal(judge(again, [picture(0)]).value, judge(build(files), [picture(0)]).value)


def test_what_cannot_be_judged_is_invalid_or_an_error(files):
    bad = picture(0, 32, 64)
    bad[0, 3, 63] = math.nan  # at the edge, where the model's own preprocessing would cut it away
    prompts = [Prompt("")] * 2
    scores = score_safely(build(files), [Sample(image=bad), Sample(image=picture(1))], prompts)
    assert scores.valid.tolist() == [False, True]
    with pytest.raises(ContractError, match=r"\[3, H, W\] for the reward `aesthetic`, got None"):
        score_safely(build(files), [Sample(text="no picture")], prompts[:1])


def test_the_head_comes_from_the_hub_by_default(files, monkeypatch):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *of: asked.append(of) or str(files[1]))
    build_scorer({"name": "aesthetic", "model": files[0]})
    build_scorer({"name": "aesthetic", "model": files[0], "repository": "a/b", "file": "c.pth"})
    published = ("camenduru/improved-aesthetic-predictor", "sac+logos+ava1-l14-linearMSE.pth")
    assert asked == [published, ("a/b", "c.pth")]


def test_heads_that_are_damaged_or_do_not_fit_are_named(files, tmp_path):
    whole = torch.load(files[1])
    with pytest.raises(
        ModelNotFound, match=r"`AestheticScore` must find '.*nowhere\.pth', got FileNotFoundError"
    ):
        build(files, head=tmp_path / "nowhere.pth")
    (tmp_path / "broken.pth").write_bytes(b"not a checkpoint")
    torch.save({"anything": 1}, tmp_path / "words.pth")
    for name in ("broken", "words"):
        with pytest.raises(ModelNotFound, match=rf"{name}\.pth', got .*`shapes`"):
            build(files, head=tmp_path / f"{name}.pth")
    torch.save({**whole, "layers.2.bias": torch.zeros(3)}, tmp_path / "shape.pth")
    torch.save({name: whole[name] for name in list(whole)[2:]}, tmp_path / "part.pth")
    for name in ("shape", "part"):
        with pytest.raises(ModelNotFound, match=r"must find the tensors \['layers\.0\.weight'"):
            build(files, head=tmp_path / f"{name}.pth")
    torch.save(Published(768).state_dict(), tmp_path / "large.pth")
    with pytest.raises(ModelNotFound, match="vectors of width 16, as `model` gives them, got one for 768"):
        build(files, head=tmp_path / "large.pth")

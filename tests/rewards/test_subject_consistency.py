"""Subject consistency against VBench's formula, on untrained models of both families."""

import math

import pytest
import torch
import torch.nn.functional as nnf
from degenerate_clips import things, way

from unirl_env.errors import ConfigError, ContractError, ModelNotFound
from unirl_env.rewards import SubjectConsistency
from unirl_env.rewards.scoring import score_safely
from unirl_env.types import Prompt, Sample

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32}


@pytest.fixture(scope="module", params=["vit", "dinov2"])
def checkpoint(request, tmp_path_factory, quiet_models):
    import transformers as t

    folder = tmp_path_factory.mktemp(request.param)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if request.param == "vit":
            config = t.ViTConfig(**SIZES, intermediate_size=48, patch_size=8, initializer_range=0.3)
            t.ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
        else:
            config = t.Dinov2Config(**SIZES, mlp_ratio=2, patch_size=8, initializer_range=0.3)
            t.Dinov2Model(config).save_pretrained(folder)
    return str(folder)


CLIPS = [
    things(40, 56, way(5)),
    things(40, 56, way(5)[:1] * 4),
    torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
]


def judge(scorer, *clips):
    return scorer([Sample(video=clip) for clip in clips], [Prompt("")] * len(clips))


def test_it_is_vbenchs_formula(checkpoint):
    from torchvision.transforms import Compose, Normalize, Resize
    from transformers import AutoModel

    scores = judge(SubjectConsistency(checkpoint, side=32, batch_size=2), *CLIPS)
    network = AutoModel.from_pretrained(checkpoint).eval()
    options = {"interpolate_pos_encoding": True} if network.config.model_type == "vit" else {}
    prepare = Compose(
        [
            Resize(32, antialias=False),
            lambda x: x / 255,
            Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    for clip, value in zip(CLIPS, scores.value, strict=True):
        with torch.no_grad():
            frames = [prepare((frame * 255).round().to(torch.uint8)) for frame in clip]
            tokens = [network(frame[None], **options).last_hidden_state[0, 0] for frame in frames]
        total = 0.0
        for t in range(1, len(tokens)):
            near = max(0.0, float(nnf.cosine_similarity(tokens[t], tokens[t - 1], dim=0)))
            total += (near + max(0.0, float(nnf.cosine_similarity(tokens[t], tokens[0], dim=0)))) / 2
        assert float(value) == pytest.approx(total / (len(tokens) - 1), abs=1e-4)
    assert scores.value[1] == pytest.approx(1.0, abs=1e-5) and scores.value[0] < 0.99999


def test_company_does_not_matter(checkpoint):
    scorer = SubjectConsistency(checkpoint, side=32, rows_per_forward=2)
    assert torch.equal(judge(scorer, *CLIPS).value, torch.cat([judge(scorer, clip).value for clip in CLIPS]))


def test_what_cannot_be_judged_is_invalid_or_an_error(checkpoint, tmp_path):
    scorer = SubjectConsistency(checkpoint, side=32)
    broken = CLIPS[0].clone()
    broken[1, 0, 0, 0] = math.nan
    scores = score_safely(
        scorer, [Sample(video=v) for v in (broken, CLIPS[0], CLIPS[0][:1])], [Prompt("")] * 3
    )
    assert scores.valid.tolist() == [False, True, False]
    with pytest.raises(ContractError, match=r"`Sample.video` must be \[F, 3, H, W\]"):
        score_safely(scorer, [Sample(image=torch.zeros(3, 8, 8))], [Prompt("")])
    with pytest.raises(ConfigError, match=r"`side` must be a multiple of 8 .*got 30; try 224"):
        SubjectConsistency(checkpoint, side=30)
    with pytest.raises(ModelNotFound, match=r"hub id or directory of a DINO.*`temporal_consistency`"):
        SubjectConsistency(str(tmp_path))


def test_another_family_and_missing_weights_are_refused(tmp_path, quiet_models):
    import transformers as t

    t.CLIPVisionConfig().save_pretrained(tmp_path / "clip")
    with pytest.raises(ConfigError, match=r"'vit', 'dinov2'"):
        SubjectConsistency(str(tmp_path / "clip"))
    config = t.ViTConfig(**SIZES, intermediate_size=48, patch_size=8)
    network = t.ViTModel(config, add_pooling_layer=False)
    state = {name: tensor for name, tensor in network.state_dict().items() if "layernorm.weight" not in name}
    network.save_pretrained(tmp_path / "part", state_dict=state)
    with pytest.raises(ModelNotFound, match="its weights lack"):
        SubjectConsistency(str(tmp_path / "part"))

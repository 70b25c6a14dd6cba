"""Detectors and namers of colours: rules on drawings, models of random weights against a hand computation."""

import json
import math

import detector_cases as cases
import numpy as np
import pytest
import torch

from unirl_env.errors import ConfigError, ModelNotFound
from unirl_env.prompts import shapes
from unirl_env.rewards import build_scorer
from unirl_env.rewards.pictures import detectors
from unirl_env.rewards.pictures.detections import Detection
from unirl_env.rewards.pictures.detectors import ShapesDetector, TransformersDetector
from unirl_env.rewards.pictures.named_colours import CLIPColours, LabColours
from unirl_env.types import Prompt, Sample

THRESHOLD = 0.05
PICTURES = [
    torch.rand(3, h, w, generator=torch.Generator().manual_seed(h)) for h, w in ((64, 64), (48, 96), (65, 64))
]


@pytest.fixture(scope="module", params=["yolos", "detr", "mask2former"])
def folder(request, tmp_path_factory):
    return getattr(cases, request.param)(str(tmp_path_factory.mktemp(request.param)))


# The embedded world


def test_shapes_are_found_where_they_were_drawn():
    scenes = shapes.lay_out([shapes.parse_caption("three cyan squares")], np.random.default_rng(0))
    for height, width in ((32, 32), (128, 128), (64, 128)):
        picture = shapes.render(scenes, 128)
        picture = torch.nn.functional.interpolate(picture, (height, width), mode="area")[0]
        found = ShapesDetector()([picture])[0]
        assert [(one.label, one.colour, one.score) for one in found] == [("square", "cyan", 1.0)] * 3
        side = torch.tensor([width, height, width, height])
        drawn = [
            torch.tensor([x - 0.88 * r, y - 0.88 * r, x + 0.88 * r, y + 0.88 * r]) * side
            for (x, y), r in zip(scenes.centre[0].tolist(), scenes.radius[0].tolist(), strict=True)
        ]
        for one in found:
            away = min((torch.tensor(one.box) - box).abs().max().item() for box in drawn)
            assert away < 0.03 * max(height, width)


def test_what_has_no_name_has_no_name():
    line = torch.tensor(shapes.BACKGROUND)[:, None, None].repeat(1, 32, 32)
    line[:, 14:18, 2:30] = torch.tensor([0.9, 0.5, 0.5])[:, None, None]
    assert [one.label for one in ShapesDetector()([line])[0]] == ["irregular"]


# Models


def by_hand(folder, picture):
    """`(label, score, box)` of one picture by the model's own functions, the surest first."""
    import transformers

    masked = "mask2former" in folder
    home = (
        transformers.AutoModelForUniversalSegmentation if masked else transformers.AutoModelForObjectDetection
    )
    model = home.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    levels = (picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    inputs = processor(images=levels, return_tensors="pt")
    size = [tuple(picture.shape[1:])]
    with torch.no_grad():
        outputs = model(**inputs)
    if masked:
        made = processor.post_process_instance_segmentation(
            outputs, threshold=THRESHOLD, target_sizes=size, return_binary_maps=True
        )[0]
        rows = []
        for info, mask in zip(made["segments_info"], made["segmentation"], strict=True):
            y, x = np.nonzero(mask.numpy())
            box = [x.min(), y.min(), x.max() + 1, y.max() + 1]
            rows.append((cases.NAMES[info["label_id"]], info["score"], [float(edge) for edge in box]))
    else:
        made = processor.post_process_object_detection(
            outputs, threshold=THRESHOLD, target_sizes=torch.tensor(size)
        )[0]
        ends = [size[0][1], size[0][0]] * 2
        rows = [
            (
                cases.NAMES[label.item()],
                score.item(),
                [min(max(e, 0), end) for e, end in zip(box.tolist(), ends, strict=True)],
            )
            for label, score, box in zip(made["labels"], made["scores"], made["boxes"], strict=True)
        ]
    return sorted(rows, key=lambda row: -row[1])


def test_detections_are_those_of_the_models_own_functions(folder):
    found = TransformersDetector(folder, threshold=THRESHOLD)(PICTURES)
    other = {"mouse": "computer mouse"}
    for picture, detections in zip(PICTURES, found, strict=True):
        expected = by_hand(folder, picture)
        assert [one.label for one in detections] == [other.get(row[0], row[0]) for row in expected]
        assert [one.score for one in detections] == pytest.approx([row[1] for row in expected], abs=1e-4)
        boxes = torch.tensor([one.box for one in detections])
        assert torch.allclose(boxes, torch.tensor([row[2] for row in expected]), atol=0.02)
        assert all((one.mask is None) == ("mask2former" not in folder) for one in detections)
        assert all(one.mask is None or one.mask.shape == picture.shape[1:] for one in detections)
    assert sum(len(detections) for detections in found) > 5


def test_company_does_not_matter_one_row_a_forward_and_hardly_otherwise(folder):
    pictures = [*PICTURES, *[picture.flip(1) for picture in PICTURES]]

    def plain(detector, *pictures):
        return [[(one.label, one.score, *one.box) for one in found] for found in detector(pictures)]

    single = TransformersDetector(folder, threshold=THRESHOLD, rows_per_forward=1)
    together = plain(single, *pictures)
    assert together == [plain(single, picture)[0] for picture in pictures]
    for size in ({"rows_per_forward": 4}, {"batch_size": 4}):
        several = plain(TransformersDetector(folder, threshold=THRESHOLD, **size), *pictures)
        for found, expected in zip(several, together, strict=True):
            assert [one[0] for one in found] == [one[0] for one in expected]
            numbers = [torch.tensor([one[1:] for one in rows]) for rows in (found, expected)]
            assert torch.allclose(*numbers, rtol=1e-4, atol=1e-2)


def test_the_threshold_and_names_are_kept(folder):
    everything = TransformersDetector(folder, threshold=THRESHOLD, names={"bench": "seat"})
    found = everything(PICTURES[:1])[0]
    assert everything.labels == {"seat", "mouse", "cat"}
    middle = found[len(found) // 2].score
    fewer = TransformersDetector(folder, threshold=middle)(PICTURES[:1])[0]
    assert len(fewer) <= len(found) // 2 + 1 and all(one.score >= middle for one in fewer)


def test_masks_of_large_pictures_have_their_size_and_take_little_memory(folder, monkeypatch):
    full = TransformersDetector(folder, threshold=THRESHOLD)(PICTURES[1:2])[0]
    monkeypatch.setattr(detectors, "MASK_SIDE", 48)
    half = TransformersDetector(folder, threshold=THRESHOLD)(PICTURES[1:2])[0]
    assert [one.score for one in half] == [one.score for one in full]
    for one, other in zip(half, full, strict=True):
        assert torch.allclose(torch.tensor(one.box), torch.tensor(other.box), atol=2)
        assert one.mask is None or one.mask.shape == other.mask.shape == (48, 96)


def test_bfloat16_stays_close(folder):
    low, full = (
        TransformersDetector(folder, threshold=0.0, dtype=d)(PICTURES[:1])[0] for d in ("bfloat16", "float32")
    )
    assert low[0].score == pytest.approx(full[0].score, abs=0.1)


def test_a_detection_model_judges_by_words(folder):
    spec = {"name": "geneval", "detector": {"name": "transformers", "model": folder, "threshold": 0.0}}
    scorer = build_scorer({**spec, "value": "soft"})
    prompts = [
        Prompt(
            "a photo of a computer mouse",
            metadata={"tag": "single_object", "include": [{"class": c, "count": 1}]},
        )
        for c in ("bench", "computer mouse", "cat", "unicorn")
    ]
    scores = scorer([Sample(image=PICTURES[0])] * 4, prompts)
    labels = {one.label for one in TransformersDetector(folder, threshold=0.0)(PICTURES[:1])[0]}
    assert scores.value[:3].tolist() == [float(c in labels) for c in ("bench", "computer mouse", "cat")]
    assert scorer.pointwise and math.isnan(scores.value[3])


def test_a_model_that_cannot_be_had_is_named(tmp_path):
    with pytest.raises(ModelNotFound, match=r"must find '.*nowhere'.*`detector: shapes`"):
        TransformersDetector(str(tmp_path / "nowhere"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelNotFound, match="BertConfig, which detects no objects"):
        TransformersDetector(tmp_path)
    with pytest.raises(ConfigError, match=r"`threshold` must be a number in \[0, 1\), got 30"):
        TransformersDetector(tmp_path, threshold=30)
    with pytest.raises(ConfigError, match="`batch_size` must be at least 1"):
        TransformersDetector(tmp_path, batch_size=0)


# Colours


def patch(rgb, box=(10, 10, 30, 30), around=(128, 128, 128)):
    picture = (torch.tensor(around) / 255)[:, None, None].repeat(1, 40, 40)
    picture[:, box[1] : box[3], box[0] : box[2]] = (torch.tensor(rgb) / 255)[:, None, None]
    return picture


@pytest.mark.parametrize(
    ("name", "rgb"),
    [
        ("red", (220, 20, 60)), ("orange", (255, 140, 0)), ("yellow", (255, 215, 0)),
        ("green", (34, 139, 34)), ("blue", (65, 105, 225)), ("purple", (128, 0, 128)),
        ("pink", (255, 182, 193)), ("brown", (139, 69, 19)), ("black", (0, 0, 0)), ("white", (255, 255, 255)),
    ],
)  # fmt: skip
def test_the_web_colours_have_their_names(name, rgb):
    """CSS's crimson, darkorange, gold, forestgreen, royalblue, lightpink, saddlebrown and others."""
    found = Detection("thing", 1.0, (10, 10, 30, 30))
    noisy = patch(rgb) + 0.03 * torch.randn(3, 40, 40, generator=torch.Generator().manual_seed(0))
    assert LabColours()(noisy.clamp(0, 1), [found], "thing") == [name]


def test_a_colour_is_that_of_the_mask_or_the_middle_of_the_box():
    picture = patch((30, 60, 220), (16, 16, 24, 24), around=(220, 20, 30))
    box = Detection("thing", 1.0, (10, 10, 30, 30))  # its middle half is mostly blue, all of it mostly red
    mask = torch.zeros(40, 40, dtype=torch.bool)
    mask[:8] = True
    nowhere = Detection("thing", 1.0, (0, 0, 40, 40), mask=torch.zeros(40, 40, dtype=torch.bool))
    pixel = Detection("thing", 1.0, (39.9, 39.9, 40.0, 40.0))
    found = [box, Detection("thing", 1.0, (10, 10, 30, 30), mask=mask), nowhere, pixel]
    assert LabColours()(picture, found, "thing") == ["blue", "red", "", "red"]


def test_other_names_may_be_given():
    namer = LabColours({"teal": [0, 128, 128], "warm": [[255, 0, 0], [255, 200, 0]]})
    box = [Detection("thing", 1.0, (10, 10, 30, 30))]
    assert [namer(patch(rgb), box, "")[0] for rgb in ((0, 110, 120), (250, 190, 20))] == ["teal", "warm"]
    for names in ({}, {"red": [1, 2]}, {"red": "red"}, {"red": [300, 0, 0]}):
        with pytest.raises(ConfigError, match="`names"):
            LabColours(names)


def test_clip_names_the_likest_word_of_the_object_cut_out_on_grey(tmp_path):
    open_clip = pytest.importorskip("open_clip")
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
    }
    (tmp_path / "Tiny-Colours.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "Tiny-Colours.json")
    torch.manual_seed(1)
    model = open_clip.create_model("Tiny-Colours").eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    picture = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[16:48, 20:40] = True
    found = [Detection("cat", 1.0, (16, 16, 48, 48), mask=mask), Detection("cat", 1.0, (0, 0, 32, 32))]
    namer = CLIPColours("Tiny-Colours", str(tmp_path / "weights.pt"))
    assert namer.names[:3] == ("red", "orange", "yellow") and len(namer.names) == 10

    cut = torch.where(mask, picture, 0.6)[:, 16:48, 16:48]
    tokenizer = open_clip.get_tokenizer("Tiny-Colours")
    with torch.no_grad():
        normalise = open_clip.image_transform(32, is_train=False).transforms[-1]
        seen = model.encode_image(torch.stack([normalise(cut), normalise(picture[:, :32, :32])]))
        columns = []
        for name in namer.names:
            texts = [
                f"a photo of a {name} cat",
                f"a photo of a {name}-colored cat",
                f"a photo of a {name} object",
            ]
            words = torch.nn.functional.normalize(model.encode_text(tokenizer(texts)), dim=-1).mean(0)
            columns.append(words / words.norm())
    likest = (seen @ torch.stack(columns).T).argmax(1).tolist()
    assert namer(picture, found, "cat") == [namer.names[i] for i in likest]

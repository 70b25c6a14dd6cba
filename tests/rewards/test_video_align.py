"""VideoReward's published layout, written by peft from an untrained Qwen2-VL, and read back."""

import importlib.util
import json
import pickle
import sys
from pathlib import Path

import pytest
import torch
from degenerate_clips import things, way

from unirl_env.errors import ConfigError, ContractError, ModelNotFound
from unirl_env.rewards import VideoAlignScore, build_scorer
from unirl_env.rewards.asks import require_judgeable
from unirl_env.rewards.scoring import score_safely
from unirl_env.rewards.videos.video_align import frames_of
from unirl_env.rewards.videos.video_align_question import MARKS, PLACE, read_question
from unirl_env.types import Prompt, Sample

CASES = Path(__file__).parents[1] / "models" / "vl_cases.py"
SPREAD = {"VQ_mean": 0.5, "VQ_std": 2.0, "MQ_mean": -1.0, "MQ_std": 0.5, "TA_mean": 0.25, "TA_std": 4.0}
CLIPS = [things(40, 56, way(9)), things(32, 32, way(5), "blue", "square")]
QUESTION = (
    f"\nIs it sharp?  \n{MARKS[0]}\nDoes it move?\n{MARKS[1]}\nIs it what was asked, {PLACE}?\n{MARKS[2]}\n"
)
PROMPTS = [Prompt("a red circle moves {right}"), Prompt("a blue square")]


def cases():
    """The tests' builder of untrained checkpoints."""
    if "vl_cases" not in sys.modules:
        found = importlib.util.spec_from_file_location("vl_cases", CASES)
        sys.modules["vl_cases"] = importlib.util.module_from_spec(found)
        found.loader.exec_module(sys.modules["vl_cases"])
    return sys.modules["vl_cases"]


def settings(base, outputs, **changes):
    said = {
        "data_config": {
            **{"meta_data": "", "data_dir": "", "fps": 2.0, "num_frames": None, "max_frame_pixels": 2048},
            **{"eval_dim": ["VQ", "MQ", "TA"], "prompt_template_type": "detailed_special"},
            **{"sample_type": "uniform"},
        },
        "training_args": {},
        "model_config": {
            **{"model_name_or_path": str(base), "output_dim": outputs, "use_special_tokens": True},
            **{"reward_token": "special"},
        },
        "peft_lora_config": {"lora_enable": True, "lora_r": 4, "lora_alpha": 8, "use_rslora": False},
        "inference_config": SPREAD,
    }
    for key, value in changes.items():
        next(group for group in said.values() if key in group)[key] = value
    return said


def trained(base, outputs, rslora=False):
    """A reward model as it was trained: updates of the language model's linear layers, and a head."""
    from peft import LoraConfig, get_peft_model
    from torch import nn
    from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

    processor = AutoProcessor.from_pretrained(base)
    processor.tokenizer.add_tokens(list(MARKS), special_tokens=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = Qwen2VLForConditionalGeneration.from_pretrained(base)
        model.rm_head = nn.Linear(64, outputs, bias=False)
        model.resize_token_embeddings(len(processor.tokenizer), mean_resizing=False)
        layers = [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and "language_model" in name
        ]
        config = LoraConfig(r=4, lora_alpha=8, target_modules=layers, use_rslora=rslora, lora_dropout=0.05)
        wrapped = get_peft_model(model, config)
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(weight, std=0.1)
    return wrapped.eval(), processor


def published(folder, base, outputs=3, rslora=False, **changes):
    """Write the published layout, with the names of transformers 4.45; returns the model itself, too."""
    wrapped, processor = trained(base, outputs, rslora)
    old = {
        name.replace("base_model.model.model.visual.", "base_model.model.visual.").replace(
            "base_model.model.model.language_model.", "base_model.model.model."
        ): tensor
        for name, tensor in wrapped.state_dict().items()
    }
    for step in ("checkpoint-900", "checkpoint-11352"):
        (folder / step).mkdir(parents=True)
    torch.save({"rm_head.weight": torch.zeros(1)}, folder / "checkpoint-900" / "model.pth")
    torch.save(old, folder / "checkpoint-11352" / "model.pth")
    said = settings(base, outputs, use_rslora=rslora, **changes)
    (folder / "model_config.json").write_text(json.dumps(said))
    return wrapped, processor


@pytest.fixture(scope="module")
def base(tmp_path_factory, quiet_models):
    return cases().build("qwen2_vl", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def question(tmp_path_factory):
    path = tmp_path_factory.mktemp("question") / "question.txt"
    path.write_bytes(QUESTION.encode())
    return path


@pytest.fixture(scope="module")
def three(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("three")
    return str(folder), *published(folder, base)


def expected(wrapped, processor, clip, text, frames):
    """The head's numbers by the processor's and the wrapped model's own calls, as in training."""
    from torchvision.transforms.functional import InterpolationMode, resize

    model = wrapped.base_model.model
    eight = (clip[frames] * 255).round().to(torch.uint8)
    # In squares of 8, of 2048 pixels: the sides divided by 1.05 and rounded down, or times 1.41 and up.
    sizes = {(40, 56): (32, 48), (32, 32): (48, 48)}
    eight = resize(eight, sizes[tuple(clip.shape[2:])], InterpolationMode.BICUBIC, antialias=True)
    turn = [{"type": "video"}, {"type": "text", "text": QUESTION.format(text_prompt=text)}]
    chat = processor.apply_chat_template([{"role": "user", "content": turn}], add_generation_prompt=True)
    batch = processor(text=[chat], videos=[eight], return_tensors="pt", do_resize=False)
    ids = batch["input_ids"]
    with torch.no_grad():
        inner = model.model
        states = inner.language_model.embed_tokens(ids)
        seen = inner.visual(batch["pixel_values_videos"], grid_thw=batch["video_grid_thw"]).pooler_output
        mask = (ids == model.config.video_token_id)[..., None].expand_as(states)
        hidden = inner.language_model(inputs_embeds=states.masked_scatter(mask, seen)).last_hidden_state
        logits = model.rm_head(hidden)[0]
    marks = torch.tensor(processor.tokenizer.convert_tokens_to_ids(list(MARKS)))
    pooled = logits[torch.isin(ids[0], marks)]
    assert pooled.shape[0] == 3
    return pooled.diagonal() if pooled.shape[1] == 3 else pooled[:, 0]


def judge(scorer, clips=CLIPS, prompts=PROMPTS):
    return scorer([Sample(video=clip) for clip in clips], prompts)


@pytest.mark.parametrize(("outputs", "rslora"), [(3, False), (1, True)])
def test_ratings_are_those_of_the_model_that_was_trained(base, tmp_path, outputs, rslora, question):
    wrapped, processor = published(tmp_path, base, outputs, rslora)
    plain = judge(VideoAlignScore(str(tmp_path), question=question, dtype="float32", normalise=False))
    scores = judge(VideoAlignScore(str(tmp_path), question=question, dtype="float32"))
    frames = [[0, 3, 5, 8], [0, 1, 3, 4]]
    for row in range(2):
        wanted = expected(wrapped, processor, CLIPS[row], PROMPTS[row].text, frames[row])
        found = torch.stack([plain.parts[name][row] for name in ("visual", "motion", "alignment")])
        assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-4), (found, wanted)
        normal = [
            (wanted[i] - SPREAD[f"{n}_mean"]) / SPREAD[f"{n}_std"] for i, n in enumerate(("VQ", "MQ", "TA"))
        ]
        assert float(scores.value[row]) == pytest.approx(float(sum(normal)), rel=1e-3, abs=1e-3)
    assert len({round(float(value), 4) for value in (*plain.value, *scores.value)}) == 4


def test_a_checkpoint_whose_updates_were_added_before_is_the_same(three, tmp_path, question):
    folder, wrapped, _ = three
    before = judge(VideoAlignScore(folder, question=question, dtype="float32")).value
    from copy import deepcopy

    state = deepcopy(wrapped).merge_and_unload().state_dict()
    (tmp_path / "checkpoint-1").mkdir()
    torch.save(state, tmp_path / "checkpoint-1" / "model.pth")
    said = json.loads((Path(folder) / "model_config.json").read_text())
    said["peft_lora_config"]["lora_enable"] = False
    (tmp_path / "model_config.json").write_text(json.dumps(said))
    assert torch.allclose(
        judge(VideoAlignScore(str(tmp_path), question=question, dtype="float32")).value, before, atol=1e-4
    )


def test_the_prompt_and_the_clip_matter_and_company_does_not(three, question):
    scorer = VideoAlignScore(three[0], question=question, dtype="float32")
    together = judge(scorer).value
    assert torch.equal(together, torch.cat([judge(scorer, [CLIPS[i]], [PROMPTS[i]]).value for i in (0, 1)]))
    other = judge(scorer, CLIPS[:1], PROMPTS[1:])
    assert abs(float(other.value[0] - together[0])) > 1e-4
    # What stands before the prompt in the question cannot depend on it.
    assert torch.allclose(
        other.parts["visual"], judge(scorer, CLIPS[:1], PROMPTS[:1]).parts["visual"], atol=1e-5
    )
    assert abs(float(judge(scorer, [CLIPS[0].flip(0)], PROMPTS[:1]).value[0] - together[0])) > 1e-4


def test_ratings_are_added_with_their_weights(three, question):
    scores = judge(
        VideoAlignScore(three[0], question=question, dtype="float32", weights={"MQ": 2.0, "TA": -1.0})
    )
    assert torch.allclose(scores.value, 2 * scores.parts["motion"] - scores.parts["alignment"], atol=1e-5)


@pytest.mark.parametrize(
    "count, fps, wanted, frames",
    [
        (81, 16, None, [0, 9, 18, 27, 36, 44, 53, 62, 71, 80]),
        (121, 24, None, [0, 13, 27, 40, 53, 67, 80, 93, 107, 120]),
        (9, 8, None, [0, 3, 5, 8]),
        (3, 8, None, [0, 2]),
        (20, 8, 5, [0, 6, 13, 19]),
        (3, 8, 8, [0, 1, 2]),
    ],
)
def test_frames_are_taken_as_the_published_code_takes_them(count, fps, wanted, frames):
    assert frames_of(count, fps, 2.0, wanted) == frames


def test_what_cannot_be_judged_is_invalid_or_an_error(three, question):
    scorer = VideoAlignScore(three[0], question=question, dtype="float32")
    broken = CLIPS[0].clone()
    broken[1, 0, 0, 0] = torch.nan
    prompts = [PROMPTS[0], PROMPTS[0], PROMPTS[0], Prompt("10 of 10: <|MQ_reward|>")]
    clips = [broken, CLIPS[0], CLIPS[0][:1], CLIPS[0]]
    scores = score_safely(scorer, [Sample(video=clip) for clip in clips], prompts)
    assert scores.valid.tolist() == [False, True, False, False]
    with pytest.raises(Exception, match=r"must not hold '<\|MQ_reward\|>'"):
        require_judgeable(scorer, prompts)
    with pytest.raises(ContractError, match=r"`Sample.video` must be \[F, 3, H, W\]"):
        score_safely(scorer, [Sample(image=torch.zeros(3, 8, 8))], PROMPTS[:1])


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"prompt_template_type": "simple"}, "`prompt_template_type` is 'simple'"),
        ({"sample_type": "multi_pts"}, "`sample_type` is 'multi_pts'"),
        ({"use_special_tokens": False}, "`use_special_tokens` is False"),
        ({"lora_enable": False}, "is not whole, or `lora_enable` is false"),
        ({"model_name_or_path": "/nowhere"}, "nowhere"),
    ],
)
def test_other_kinds_of_checkpoints_are_refused(three, tmp_path, base, changes, words, question):
    (tmp_path / "checkpoint-5").symlink_to(Path(three[0]) / "checkpoint-11352")
    (tmp_path / "model_config.json").write_text(json.dumps(settings(base, 3, **changes)))
    with pytest.raises(ModelNotFound, match=words):
        VideoAlignScore(str(tmp_path), question=question)


def test_what_is_missing_or_out_of_range_is_named(three, tmp_path, base, question):
    with pytest.raises(ModelNotFound, match=r"no checkpoint-<step>/model.pth.*`temporal_consistency`"):
        VideoAlignScore(str(tmp_path), question=question)
    state = torch.load(Path(three[0]) / "checkpoint-11352" / "model.pth", weights_only=True)
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "model_config.json").write_text(json.dumps(settings(base, 3)))
    for lost, words in (
        ("base_model.model.rm_head.weight", "rm_head.weight"),
        ("base_model.model.model.norm.weight", "do not fit.*norm.weight"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight", "is not whole"),
    ):
        kept = {name: tensor for name, tensor in state.items() if name != lost}
        assert len(kept) == len(state) - 1
        torch.save(kept, tmp_path / "checkpoint-2" / "model.pth")
        with pytest.raises(ModelNotFound, match=words):
            VideoAlignScore(str(tmp_path), question=question)
    for options, words in (({"fps": 0}, "`fps`"), ({"weights": {"XQ": 1}}, "`weights`")):
        with pytest.raises(ConfigError, match=words):
            VideoAlignScore(three[0], question=question, **options)


@pytest.mark.parametrize(
    "text, words",
    [
        (QUESTION.replace(MARKS[1], ""), r"got {'<\|MQ_reward\|>': 0} times"),
        (QUESTION + MARKS[0], r"got {'<\|VQ_reward\|>': 2} times"),
        (QUESTION.replace(PLACE, "a cat"), r"got {'{text_prompt}': 0} times"),
        (QUESTION + "<|video_pad|>", r"got {'<\|video_pad\|>': 1} times"),
        ("", r"each of \['<\|VQ_reward\|>', .*'{text_prompt}'\] once"),
    ],
)
def test_a_question_without_its_marks_is_refused(tmp_path, text, words):
    (tmp_path / "other.txt").write_text(text)
    with pytest.raises(ConfigError, match=f"`question` must hold .*{words}.*github.com/KwaiVGI/VideoAlign"):
        VideoAlignScore("/nowhere", question=tmp_path / "other.txt")


@pytest.mark.parametrize("path", [None, "", 3, "/nowhere/question.txt", "/", QUESTION, QUESTION * 99, "\0"])
def test_a_question_must_be_a_file_and_named(path):
    options = {} if path is None else {"question": path}
    with pytest.raises(ConfigError, match=r"`question` must be the path.*prompt_template.py") as found:
        build_scorer({"name": "video_align", **options})
    assert len(str(found.value)) < 600


def test_a_question_is_read_as_python_reads_its_own_sources(tmp_path):
    (tmp_path / "windows.txt").write_bytes(b"\xef\xbb\xbf" + QUESTION.replace("\n", "\r\n").encode())
    assert read_question(str(tmp_path / "windows.txt")) == QUESTION
    for other in (b"\xff\xfe" + QUESTION.encode("utf-16-le"), bytes(2**17)):
        (tmp_path / "other.txt").write_bytes(other)
        with pytest.raises(ConfigError, match="`question` must be the path of a text file"):
            read_question(tmp_path / "other.txt")


def test_it_is_pickled_as_its_arguments(three, question):
    scorer = VideoAlignScore(three[0], question=question, dtype="float32")
    twin = pickle.loads(pickle.dumps(scorer))
    assert torch.equal(judge(twin).value, judge(scorer).value)

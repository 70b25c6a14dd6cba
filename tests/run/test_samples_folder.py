"""What is written of samples, and what is left of it later."""

import json

import pytest
import torch
from PIL import Image

from unirl_env.run.record.samples import (
    MOST_FURTHER,
    clip_paths,
    drawn_paths,
    further_pictures,
    load_latents,
    load_questions,
    load_texts,
    picture_paths,
    question_pictures,
    save_samples,
    thin_out,
)
from unirl_env.types import Prompt, Sample

HOSTILE = '</script>\x00\u202e\ud800 "\n\U0001f600'
RED = torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(3, 4, 6)


def text(words, tokens=None, truncated=False):
    tokens = None if tokens is None else torch.zeros(tokens, dtype=torch.int64)
    return Sample(text=words, tokens=tokens, truncated=truncated)


def test_texts_come_back_as_they_were(tmp_path):
    save_samples(tmp_path, [text("a", 3), text(HOSTILE, 0, True), text(""), text("d")], 2)
    rows = json.loads((tmp_path / "texts.json").read_text())
    assert rows[0] == {"prompt": 0, "sample": 0, "text": "a", "tokens": 3, "truncated": False}
    assert rows[1] == {"prompt": 0, "sample": 1, "text": HOSTILE, "tokens": 0, "truncated": True}
    assert load_texts(tmp_path)[1, 0]["tokens"] is None
    assert sorted(load_texts(tmp_path)) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert load_questions(tmp_path) == {} and picture_paths(tmp_path) == {}


def test_questions_come_with_their_answers_and_pictures(tmp_path):
    prompts = [
        Prompt("How many?", metadata={"answer": 3}),
        Prompt("Which?", images=(RED, RED.flip(0)), metadata={"answer": ["first", "1"]}),
        Prompt("Why?", images=(torch.rand(3, 600, 2048),)),
    ]
    save_samples(tmp_path, [text(str(i)) for i in range(6)], 2, prompts)
    assert [row["answer"] for row in load_questions(tmp_path).values()] == ["3", "first or 1", None]
    assert load_questions(tmp_path)[2]["text"] == "Why?"
    assert question_pictures(tmp_path, 0) == []
    first, second = question_pictures(tmp_path, 1)
    assert Image.open(first).getpixel((0, 0)) == (255, 0, 0)
    assert Image.open(second).getpixel((0, 0)) == (0, 0, 255)
    assert Image.open(question_pictures(tmp_path, 2)[0]).size == (1024, 300)
    assert picture_paths(tmp_path) == {}


def test_pictures_and_latents_are_written_as_ever(tmp_path):
    save_samples(tmp_path, [Sample(image=RED), Sample(image=RED)], 1, [Prompt("a"), Prompt("b")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000-0.png", "001-0.png"]
    save_samples(tmp_path, [Sample(latent=torch.ones(2))], 1, [Prompt("a")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latents.safetensors"]
    assert load_latents(tmp_path).tolist() == [[1.0, 1.0]]
    save_samples(tmp_path, [Sample(latent=torch.ones(2)), Sample(latent=torch.ones(3))], 1)
    assert load_latents(tmp_path) is None and (tmp_path / "latents.safetensors").exists()
    assert load_texts(tmp_path) == {}


def test_a_picture_that_was_drawn_from_words_keeps_them(tmp_path):
    save_samples(tmp_path, [Sample(image=RED, text="a red square")], 1)
    assert (tmp_path / "000-0.png").exists() and load_texts(tmp_path)[0, 0]["text"] == "a red square"


def test_all_pictures_of_a_text_are_kept_up_to_a_limit(tmp_path):
    several = torch.stack([RED, RED.flip(0), RED.roll(1, 0)])
    many = RED.expand(MOST_FURTHER + 5, 3, 4, 6)
    samples = [Sample(image=RED, text="a", pictures=several), Sample(text="b", truncated=True)]
    samples += [Sample(image=RED, text="c", pictures=RED[None]), Sample(image=RED, text="d", pictures=many)]
    save_samples(tmp_path, samples, 2, [Prompt("p"), Prompt("q")])
    assert sorted(picture_paths(tmp_path)) == [(0, 0), (1, 0), (1, 1)]
    found = further_pictures(tmp_path)
    assert {key: len(paths) for key, paths in found.items()} == {(0, 0): 2, (1, 1): MOST_FURTHER}
    colours = [Image.open(path).getpixel((0, 0)) for path in found[0, 0]]
    assert colours == [(0, 0, 255), (0, 255, 0)]
    assert load_texts(tmp_path)[0, 1]["truncated"] and len(load_questions(tmp_path)) == 2


def test_clips_are_animations_at_their_speed(tmp_path):
    whole = torch.randint(0, 256, (9, 3, 8, 8), dtype=torch.uint8)
    floats = Sample(video=whole.float() / 255, latent=torch.ones(2))
    samples = [Sample(video=whole), floats, Sample(image=RED)]
    save_samples(tmp_path, samples, 3, fps=16)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000-0.webp", "000-1.webp", "000-2.png"]
    assert sorted(clip_paths(tmp_path)) == [(0, 0), (0, 1)] and sorted(picture_paths(tmp_path)) == [(0, 2)]
    assert sorted(drawn_paths(tmp_path)) == [(0, 0), (0, 1), (0, 2)]
    for path in clip_paths(tmp_path).values():
        with Image.open(path) as clip:
            assert (clip.format, clip.n_frames, clip.info["loop"]) == ("WEBP", 9, 0)
            clip.seek(8)
            last = torch.tensor(list(clip.convert("RGB").getdata()))
            assert torch.equal(last.T.reshape(3, 8, 8), whole[8])
            assert clip.info["duration"] in (62, 63)


def test_movies_are_written_where_asked_for_and_go_with_their_clips(tmp_path):
    pytest.importorskip("moviepy")
    whole = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    folder = tmp_path / "000001" / "train"
    save_samples(folder, [Sample(video=whole)] * 2, 2, movies=True)
    (folder / "000-holiday.mp4").touch()
    (folder / "holiday.webp").touch()
    mine = {"000-holiday.mp4", "holiday.webp"}
    ours = {"000-0.mp4", "000-0.webp", "000-1.mp4", "000-1.webp"}
    assert {path.name for path in folder.iterdir()} == mine | ours
    thin_out(tmp_path, "train", keep=())
    assert {path.name for path in folder.iterdir()} == mine | {"000-0.mp4", "000-0.webp"}
    save_samples(folder, [Sample(image=RED)], 1)
    assert {path.name for path in folder.iterdir()} == mine | {"000-0.png"}


@pytest.mark.parametrize("name", ["train", "heldout"])
def test_thinning_leaves_the_first_sample_and_all_of_what_is_kept(tmp_path, name):
    prompts = [Prompt("a", images=(RED,)), Prompt("b", images=(RED,))]
    for iteration in (0, 5, 10):
        drawn = {"image": RED, "pictures": RED.expand(2, 3, 4, 6)}
        samples = [Sample(text=f"{iteration}-{i}", **drawn) for i in range(4)]
        save_samples(tmp_path / f"{iteration:06d}" / name, samples, 2, prompts)
    for _ in range(2):
        thin_out(tmp_path, name, keep=(0, 10))
        for iteration, left in ((0, 4), (5, 2), (10, 4)):
            folder = tmp_path / f"{iteration:06d}" / name
            assert len(picture_paths(folder)) == len(load_texts(folder)) == left
            assert len(further_pictures(folder)) == (4 if left == 4 else 0)
            assert len(question_pictures(folder, 1)) == (left == 4) == len(load_questions(folder)) // 2
    assert load_texts(tmp_path / "000005" / name)[1, 0]["text"] == "5-2"
    thin_out(tmp_path, "other", keep=())
    assert len(load_texts(tmp_path / "000010" / name)) == 4

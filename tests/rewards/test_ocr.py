"""Texts that are drawn, and read again by a real program."""

import logging
import math
import pickle
import shutil
import stat
import sys

import gymnasium as gym
import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from unirl_env.errors import ConfigError, ContractError, MissingExtra, ScorerError
from unirl_env.rewards import build_scorer, score_safely
from unirl_env.rewards.pictures.ocr import OCRScorer, edit_distance
from unirl_env.types import Prompt, Sample

FONT = f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf"


@pytest.fixture(scope="module")
def scorer():
    pytest.importorskip("rapidocr_onnxruntime")
    return OCRScorer()


def drawn(text, size=(256, 256), height=36, ink="black", paper="white"):
    picture = Image.new("RGB", size, paper)
    draw = ImageDraw.Draw(picture)
    middle = (size[0] / 2, size[1] / 2)
    draw.text(middle, text, font=ImageFont.truetype(FONT, height), fill=ink, anchor="mm")
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def judge(scorer, picture, text, **metadata):
    return scorer([Sample(image=picture)], [Prompt(text, metadata=metadata)])


# Edit distance


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("abc", "abc", 0)],
)
def test_known_distances(first, second, distance):
    assert edit_distance(first, second) == edit_distance(second, first) == distance


@settings(deadline=None, max_examples=100)
@given(st.text("ab", max_size=7), st.text("ab", max_size=7), st.text("ab", max_size=7))
def test_the_distance_is_a_metric_that_is_as_short_as_can_be(a, b, c):
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    if a and b:  # by its own definition, the last step at a time
        steps = [edit_distance(a, b[:-1]) + 1, edit_distance(a[:-1], b) + 1]
        steps.append(edit_distance(a[:-1], b[:-1]) + (a[-1] != b[-1]))
        assert edit_distance(a, b) == min(steps)


# Reading


@pytest.mark.parametrize(
    ("text", "look"),
    [
        ("Hello World", {}),
        ("OPEN", {"size": (128, 128)}),
        ("Grand Hotel", {"size": (512, 256), "height": 64, "ink": "yellow", "paper": "navy"}),
        ("SALE", {"size": (48, 32), "height": 12, "ink": "white", "paper": "darkred"}),
        ("New York\nSkyline", {"size": (320, 200)}),
        ("Book Fair", {"size": (300, 700), "height": 48, "ink": "darkgreen", "paper": "lightyellow"}),
    ],
)
def test_a_text_is_read_at_any_size_and_colour(scorer, text, look):
    picture = drawn(text, **look)
    said = text.replace("\n", " ")
    assert judge(scorer, picture, f'a sign that says "{said}"').value.item() > 0.9
    assert judge(scorer, picture, "a sign", ocr_text=said.upper()).value.item() > 0.9
    assert judge(scorer, picture, 'a sign that says "zigzag"').value.item() < 0.35


def test_an_empty_picture_was_read_and_says_nothing(scorer):
    scores = judge(scorer, drawn(""), 'a sign that says "Hello"')
    assert scores.valid.item() and scores.value.item() == 0
    assert scores.parts["found"].item() == 0 and scores.parts["distance"].item() == 5


def test_one_wrong_letter_costs_its_share(scorer):
    scores = judge(scorer, drawn("Hello"), 'says "Help!"')
    assert scores.value.item() == pytest.approx(1 - 2 / 5)
    assert scores.parts["distance"].item() == 2 and scores.parts["found"].item() == 5
    assert judge(OCRScorer(match="exact"), drawn("Hello"), 'says "Help!"').value.item() == 0
    assert judge(OCRScorer(match="exact"), drawn("Hello"), 'says "hello"').value.item() == 1


def test_what_stands_around_it_counts_only_if_asked_for(scorer):
    picture = drawn("the big sale")
    assert judge(scorer, picture, 'says "big"').value.item() == 1
    strict = judge(OCRScorer(contained=False), picture, 'says "big"')
    assert strict.value.item() == 0 and strict.parts["distance"].item() == 7
    assert judge(OCRScorer(contained=False), picture, 'says "the big sale"').value.item() == 1


@pytest.mark.parametrize("text", ['a "Hello" sign', "a \u201cHello\u201d sign", 'a "hel lo", not a "Bye"'])
def test_the_first_quoted_text_is_expected(scorer, text):
    assert judge(scorer, drawn("Hello"), text).value.item() == 1


def test_without_an_expected_text_nothing_can_be_said(scorer, caplog):
    prompts = [
        Prompt("a sign without words"),
        Prompt('an unclosed "quote'),
        Prompt('a blank " "'),
        Prompt('a "Hello" of another type', metadata={"ocr_text": 5}),
        Prompt('says "Hello"'),
    ]
    with caplog.at_level(logging.WARNING):
        scores = scorer([Sample(image=drawn("Hello"))] * 5, prompts)
    assert scores.valid.tolist() == [False, False, False, False, True]
    assert torch.isnan(scores.value[:4]).all()
    assert "'a sign without words': it has neither a text `metadata['ocr_text']` nor" in caplog.text


def test_a_picture_that_is_not_finite_is_invalid(scorer):
    bad = drawn("Hello")
    bad[0, 0, 0] = math.nan
    samples = [Sample(image=bad), Sample(image=drawn("Hello"))]
    assert score_safely(scorer, samples, [Prompt('"Hello"')] * 2).valid.tolist() == [False, True]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 50), (1, 2000), (300_000, 2)])
def test_pictures_of_any_form_are_read_in_bounded_memory(scorer, height, width):
    assert judge(scorer, torch.rand(3, height, width), '"Hello"').value.item() == 0


def test_a_text_in_a_strip_is_read(scorer):
    strip = drawn("a very long line of words", (640, 32), 24)
    assert judge(scorer, strip, 'says "a very long line of words"').value.item() > 0.9


def test_company_threads_and_copies_change_nothing(scorer):
    pictures = [drawn(text, height=24) for text in ("Hello", "Good bye", "")]
    pictures = [(p + 0.2 * torch.rand(p.shape, generator=torch.Generator().manual_seed(1))) for p in pictures]
    prompts = [Prompt('says "Hallo"'), Prompt('says "Good day"'), Prompt('says "x"')]
    together = scorer([Sample(image=picture) for picture in pictures], prompts)
    pairs = zip(pictures, prompts, strict=True)
    alone = torch.cat([scorer([Sample(image=picture)], [prompt]).value for picture, prompt in pairs])
    assert torch.equal(together.value, alone)
    copy = pickle.loads(pickle.dumps(scorer))
    for other in (copy, OCRScorer(threads=2)):
        assert torch.equal(other([Sample(image=p) for p in pictures], prompts).value, together.value)


def test_it_is_the_reward_of_an_environment():
    """The embedded model draws no letters: what was read and has no text is a real 0."""
    pytest.importorskip("rapidocr_onnxruntime")
    env = gym.make_vec(
        "unirl_env:unirl/TinySD3-T2I-v0",
        num_envs=2,
        info_objects=True,
        num_steps=2,
        scorer={"name": "ocr"},
        on_invalid="nan",
        array_backend="torch",
    )
    env.reset(seed=0, options={"prompts": ['a red circle with the word "Hello"', "a red circle"]})
    for _ in range(2):
        _, _, _, _, info = env.step(env.action_space.sample())
    assert info["scores"].valid.tolist() == [True, False]
    assert info["scores"].value[0] == 0
    env.close()


# Settings


@pytest.mark.parametrize("sample", [Sample(text="none"), Sample(image=torch.rand(1, 8, 8))])
def test_samples_without_a_picture_break_the_contract(scorer, sample):
    with pytest.raises(ContractError, match=r"`Sample.image` must be \[3, H, W\]"):
        scorer([sample], [Prompt('"a"')])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "paddle"}, r"`engine` must be one of \['rapidocr', 'tesseract'\], got 'paddle'"),
        ({"match": "near"}, "`match` must be one of"),
        ({"confidence": 50}, r"`confidence` must be a number in \[0, 1\], got 50"),
        ({"threads": 0}, "`threads` must be a whole number from 1 on, got 0"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        build_scorer({"name": "ocr", **options})


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr_onnxruntime", None)
    with pytest.raises(MissingExtra, match=r"rapidocr-onnxruntime.*unirl-env\[ocr\]"):
        OCRScorer()


# Tesseract, by a program that says what it would


def install(folder, monkeypatch, body):
    program = folder / "tesseract"
    program.write_text(f"#!{sys.executable}\nimport sys\n{body}\n")
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", str(folder))


def test_tesseract_is_asked_for_words_and_their_confidence(tmp_path, monkeypatch):
    body = (
        "assert sys.stdin.buffer.read(8) == b'\\x89PNG\\r\\n\\x1a\\n'\n"
        "assert sys.argv[1:3] == ['stdin', 'stdout']\n"
        "print('\\t'.join(['level'] * 10 + ['conf', 'text']))\n"
        "for confidence, word in ((-1, ''), (96.5, 'Hello'), (12, 'Mars'), (80, 'World')):\n"
        "    print('\\t'.join(['5'] * 10 + [str(confidence), word]))"
    )
    install(tmp_path, monkeypatch, body)
    scores = judge(OCRScorer("tesseract", contained=False), drawn(""), 'says "hello world"')
    assert scores.value.item() == 1 and scores.parts["found"].item() == 10
    sure = judge(OCRScorer("tesseract", confidence=0.9), drawn(""), 'says "hello world"')
    assert sure.value.item() == 0.5


@pytest.mark.skipif(shutil.which("tesseract") is None, reason="the program Tesseract is not installed")
def test_a_tesseract_that_is_installed_reads():
    reader = OCRScorer("tesseract")
    sign = drawn("Hello World", (512, 256), 60)
    assert judge(reader, sign, 'says "hello world"').value.item() == 1
    assert judge(reader, sign, 'says "Goodbye"').value.item() < 0.5
    assert judge(reader, drawn(""), 'says "Goodbye"').value.item() == 0


def test_tesseract_that_fails_is_a_failure_and_no_zero(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "sys.stderr.write('Error opening data file eng.traineddata'); sys.exit(1)")
    failing = OCRScorer("tesseract")
    with pytest.raises(ScorerError, match="exit status 1: Error opening data file"):
        judge(failing, drawn(""), 'says "a"')
    assert not score_safely(failing, [Sample(image=drawn(""))], [Prompt('"a"')]).valid.any()


def test_tesseract_that_is_not_there_is_said_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"must find the program `tesseract`.*try to install it"):
        OCRScorer("tesseract")

"""Chats and pictures in prompt entries."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from unirl_env.errors import PromptError
from unirl_env.prompts.sources import PromptSource, as_prompts
from unirl_env.types import Prompt

TURN = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it?"}]}
BLACK, WHITE = torch.zeros(3, 2, 2), torch.ones(3, 2, 2)


def one(entry):
    return as_prompts([entry])[0]


@pytest.fixture
def picture(tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (2, 2), (255, 0, 0)).save(tmp_path / "pictures" / "red.png")
    return tmp_path / "pictures" / "red.png"


class TestChats:
    def test_the_text_is_by_default_the_users_last_one(self):
        messages = [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "hi"},
            {"role": "user", "content": "1+1?", "name": None},
            {"role": "assistant", "content": "well,"},
        ]
        prompt = one({"messages": messages, "answer": "2"})
        assert prompt.text == "1+1?" and prompt.metadata == {"answer": "2"}
        assert [turn["role"] for turn in prompt.messages] == [turn["role"] for turn in messages]
        assert "name" not in prompt.messages[3], "empty columns of a table are left out"
        assert one({"messages": messages, "prompt": "sum"}).text == "sum"
        assert one({"messages": messages, "prompt": None}).text == "1+1?"
        assert one({"messages": [TURN], "image": BLACK}).text == "what is it?"

    def test_chats_that_differ_have_ids_that_differ(self):
        short = [{"role": "user", "content": "hi"}]
        chats = [short, [{"role": "system", "content": "x"}, *short]]
        first, second, again = as_prompts([{"messages": chat} for chat in (*chats, chats[0])])
        assert first.text == second.text == "hi" and first.id != second.id
        assert first.id == again.id and first.id.startswith("hi#")
        assert one({"messages": chats[0], "id": 7}).id == "7"

    @pytest.mark.parametrize(
        ("messages", "message"),
        [
            ("hello", "`messages` must be a list of turns, got str"),
            (["hello"], "must be a mapping, got str"),
            ([{"content": "hello"}], "must have a `role`, got None"),
            ([{"role": "user"}], "must be a text or a list of parts, got NoneType"),
            ([{"role": "user", "content": []}], "must be a text or a list of parts"),
            ([{"role": "user", "content": [{"type": "audio"}]}], "an image or a text, got type 'audio'"),
            (
                [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}],
                "an image or a text, got type 'image' with",
            ),
            ([{"role": "user", "content": [{"type": "text", "text": 3}]}], "an image or a text"),
            ([{"role": "system", "content": "be brief"}], "must have a turn of the user"),
            ([{"role": "user", "content": "x" * 5000}], "at most 4000 characters, got 5000"),
            ([TURN], "a place for each of 0 pictures, got 1"),
        ],
    )
    def test_malformed_ones_are_refused_with_their_place(self, messages, message):
        with pytest.raises(PromptError, match=f"(?s){message}.*entry 0"):
            one({"messages": messages})

    def test_a_prompt_object_is_checked_too(self):
        with pytest.raises(PromptError, match=r"a place for each of 1 pictures, got 0 .*entry 0"):
            one(Prompt("a", messages=({"role": "user", "content": "a"},), images=(BLACK,)))
        kept = Prompt("a", id="x", images=(BLACK,))
        assert one(kept) is kept


class TestPictures:
    def test_one_question_about_two_pictures_is_two_prompts(self):
        source = PromptSource([{"prompt": "what?", "image": BLACK}, {"prompt": "what?", "images": [WHITE]}])
        assert len({prompt.id for prompt in source}) == 2 and {p.text for p in source} == {"what?"}
        assert [prompt.id for prompt in source] == [
            prompt.id for prompt in as_prompts([Prompt("what?", images=(p,)) for p in (BLACK, WHITE)])
        ]
        assert source[0].metadata == {}

    def test_paths_start_at_the_file_and_ids_do_not_tell_where_it_lies(self, tmp_path, picture):
        rows = [
            {"prompt": "what?", "image": "pictures/red.png"},
            {"prompt": "why?", "images": [str(picture)]},
        ]
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
        source = PromptSource.of(tmp_path / "a.jsonl")
        assert [prompt.images for prompt in source] == [(str(picture),)] * 2
        (tmp_path / "elsewhere" / "pictures").mkdir(parents=True)
        for name in ("a.jsonl", "pictures/red.png"):
            (tmp_path / "elsewhere" / name).write_bytes((tmp_path / name).read_bytes())
        moved = PromptSource.of(tmp_path / "elsewhere" / "a.jsonl")
        assert moved.fingerprint == source.fingerprint and moved[0].images != source[0].images
        assert [prompt.id for prompt in moved] == [prompt.id for prompt in source]

    def test_the_fingerprint_counts_pictures_and_chats(self):
        chat = {"messages": [{"role": "user", "content": "a"}]}
        entries = [
            {"prompt": "a", "id": "1"},
            {"prompt": "a", "id": "1", "image": BLACK},
            {"prompt": "a", "id": "1", "image": WHITE},
            {"prompt": "a", "id": "1", "images": [WHITE, WHITE]},
            {"prompt": "a", "id": "1", **chat},
        ]
        assert len({PromptSource([entry]).fingerprint for entry in entries}) == len(entries)
        for other in entries[1:]:
            with pytest.raises(PromptError, match="got '1' twice with different content"):
                PromptSource([entries[0], other])

    def test_identical_ones_are_kept_once(self):
        assert len(PromptSource([{"prompt": "a", "image": BLACK}] * 2)) == 1

    def test_a_picture_of_a_library_becomes_a_tensor(self):
        prompt = one({"prompt": "a", "image": Image.new("RGB", (4, 2))})
        assert torch.equal(prompt.images[0], torch.zeros(3, 2, 4))

    def test_absent_ones_are_none_at_all(self):
        for entry in ({"image": None}, {"images": None}, {"images": []}):
            assert one({"prompt": "a", **entry}) == Prompt("a")

    @pytest.mark.parametrize(
        ("entry", "message"),
        [
            ({"image": "nowhere.png"}, "No such file"),
            ({"image": "https://a.b/c.png"}, "on this machine"),
            ({"image": 3}, "must be a path, a data URI or a tensor"),
            ({"images": "a.png"}, "must be a list, got str"),
            ({"images": [], "image": BLACK}, "either `images` or `image`"),
            ({"images": np.zeros((3, 2, 2))}, "must be a list, got ndarray"),
        ],
    )
    def test_unusable_ones_are_refused_with_their_place(self, entry, message):
        with pytest.raises(PromptError, match=f"{message}.*entry 0"):
            one({"prompt": "a", **entry})


def test_shipped_sets_may_be_jsonl():
    with pytest.raises(PromptError, match="sums_train") as raised:
        PromptSource.of("no_such_set")
    assert "shapes_train" in str(raised.value)
    assert all("answer" in prompt.metadata for prompt in PromptSource.of("sums_train"))

"""Prompt sources: what they accept, the order they give, and how they refuse."""

import json
import sys

import numpy as np
import pytest

from unirl_env.errors import MissingExtra, PromptError
from unirl_env.prompts.sources import PromptSource, as_prompts
from unirl_env.types import Prompt


def texts(source):
    return [prompt.text for prompt in source]


def write(path, content, encoding="utf-8"):
    path.write_text(content, encoding=encoding)
    return path


# ---------------------------------------------------------------- what is accepted


def test_a_list_may_mix_texts_mappings_and_prompts():
    source = PromptSource.of(["a cat", {"prompt": "a dog", "id": 7, "count": 2}, Prompt("a cow", id="c")])
    assert texts(source) == ["a cat", "a dog", "a cow"]
    assert [prompt.id for prompt in source] == ["a cat", "7", "c"]
    assert source[1].metadata == {"count": 2}


def test_a_source_is_returned_as_it_is():
    source = PromptSource(["a cat"])
    assert PromptSource.of(source) is source


def test_a_text_file_skips_empty_lines_and_comments_and_a_byte_order_mark(tmp_path):
    path = write(tmp_path / "p.txt", "a cat\r\n\n# a comment\n  ein Käfer \n", encoding="utf-8-sig")
    assert texts(PromptSource.of(str(path))) == ["a cat", "ein Käfer"]
    assert texts(PromptSource.of(path)) == ["a cat", "ein Käfer"]


def test_a_jsonl_file_carries_every_field_and_puts_the_rest_into_the_metadata(tmp_path):
    rows = [
        {"prompt": "a cat", "id": "x", "negative": "blur", "metadata": {"n": 1}, "tag": "single"},
        {"text": "a dog"},
    ]
    path = write(tmp_path / "p.jsonl", "\n\n".join(map(json.dumps, rows)))
    first, second = PromptSource.of(path)
    assert (first.text, first.id, first.negative) == ("a cat", "x", "blur")
    assert first.metadata == {"n": 1, "tag": "single"}
    assert (second.text, second.id, second.metadata) == ("a dog", "a dog", {})


def test_the_column_can_be_named():
    assert texts(PromptSource.of([{"caption": "a cat", "prompt": "no"}], column="caption")) == ["a cat"]


def test_a_saved_data_set_is_read_with_its_split_and_column(tmp_path):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"caption": ["a cat", "a dog"], "level": [1, 2]})
    data.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"test": data}).save_to_disk(str(tmp_path / "split"))
    source = PromptSource.of(tmp_path / "one", column="caption")
    assert texts(source) == ["a cat", "a dog"] and source[1].metadata == {"level": 2}
    assert texts(PromptSource.of(tmp_path / "split", column="caption", split="test")) == ["a cat", "a dog"]
    with pytest.raises(PromptError, match=r"`split` must be one of \['test'\], got 'train'"):
        PromptSource.of(tmp_path / "split", column="caption")
    with pytest.raises(PromptError, match=r"must have the key `prompt`.*row 0.*`column=`"):
        PromptSource.of(tmp_path / "one")


@pytest.mark.parametrize("name", ["shapes_train", "shapes_heldout"])
def test_shipped_sets_are_found_by_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = PromptSource.of(name)
    assert len(source) >= 10 and source.name == name
    (tmp_path / f"{name}.txt").write_text("a cat")
    assert texts(PromptSource.of(f"{name}.txt")) == ["a cat"]


def test_what_is_held_out_is_not_trained_on():
    assert not set(texts(PromptSource.of("shapes_train"))) & set(texts(PromptSource.of("shapes_heldout")))


def test_identical_entries_are_kept_once_and_reported(caplog):
    source = PromptSource(["a cat", "a dog", "a cat"])
    assert texts(source) == ["a cat", "a dog"]
    assert "1 identical prompts are kept once" in caplog.text


def test_single_prompts_may_occur_again():
    prompts = as_prompts(np.array(["a cat", Prompt("a dog"), "a cat"], dtype=object))
    assert texts(prompts) == ["a cat", "a dog", "a cat"]
    with pytest.raises(PromptError, match=r"must be a list of prompts, got str"):
        as_prompts("a cat")
    with pytest.raises(PromptError, match=r"must not be empty, got '' .*entry 1"):
        as_prompts(["a", ""])


# ---------------------------------------------------------------- the order


def test_an_epoch_is_a_permutation_and_epochs_differ():
    source = PromptSource([str(i) for i in range(20)])
    epochs = [[prompt.id for prompt in source.take(20 * e, 20, seed=3)] for e in range(3)]
    assert all(sorted(epoch, key=int) == [str(i) for i in range(20)] for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert epochs[0] != [prompt.id for prompt in source.take(0, 20, seed=4)]


def test_the_order_resumes_at_any_position_and_ignores_how_it_is_split():
    source = PromptSource([str(i) for i in range(7)])
    whole = source.take(0, 30, seed=1)
    pieces = [prompt for start in range(0, 30, 4) for prompt in source.take(start, 4, seed=1)][:30]
    assert pieces == whole
    fresh = PromptSource([str(i) for i in range(7)])
    assert fresh.take(17, 13, seed=1) == whole[17:]


def test_the_order_is_pinned():
    source = PromptSource([str(i) for i in range(6)])
    assert [prompt.id for prompt in source.take(0, 12, seed=0)] == PINNED


PINNED = ["1", "2", "0", "4", "5", "3", "3", "0", "4", "1", "5", "2"]


def test_seed_none_keeps_the_order_of_the_source():
    source = PromptSource(["a", "b", "c"])
    assert [prompt.id for prompt in source.take(2, 4, seed=None)] == ["c", "a", "b", "c"]


def test_taking_nothing_is_fine_and_a_negative_position_is_not():
    source = PromptSource(["a"])
    assert source.take(5, 0) == []
    with pytest.raises(PromptError, match=r"must be at least 0, got -1"):
        source.take(-1, 1)


def test_the_fingerprint_tells_sets_apart_by_content_and_order():
    prints = {
        PromptSource(["a", "b"]).fingerprint,
        PromptSource(["b", "a"]).fingerprint,
        PromptSource(["a"]).fingerprint,
        PromptSource([{"prompt": "a", "negative": "x"}, "b"]).fingerprint,
        PromptSource([{"prompt": "a", "k": 1}, "b"]).fingerprint,
    }
    assert len(prints) == 5
    assert PromptSource(["a", "b"], name="other").fingerprint in prints


def test_odd_metadata_counts_by_its_type_and_not_by_its_address():
    first = PromptSource([{"prompt": "a", "thing": object(), "z": 1, "b": 2}])
    second = PromptSource([{"prompt": "a", "b": 2, "z": 1, "thing": object()}])
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint != PromptSource([{"prompt": "a", "b": 2, "z": 1}]).fingerprint
    with pytest.raises(PromptError, match=r"got 'a' twice with different content"):
        PromptSource([{"prompt": "a", "thing": object()}, {"prompt": "a", "thing": object()}])


# ---------------------------------------------------------------- how it refuses


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "must hold at least one prompt, got none"),
        (["a", "   "], "`text` must not be empty, got '   ' .*entry 1"),
        ([{"prompt": None}], "`text` must be a text, got NoneType"),
        ([{"prompt": ["a"]}], "`text` must be a text, got list"),
        ([{"text_": "a"}], r"must have the key `prompt`, got \['text_'\]"),
        ([{"prompt": "a", "metadata": [1]}], "`metadata` must be a mapping, got list"),
        ([{"prompt": "a", "metadata": {"x": {1: 0, "a": 0}}}], "`metadata` must have texts as keys"),
        ([{"prompt": "a", "negative": 3}], "`negative` must be a text, got int"),
        ([3], "must be a text, a mapping or a Prompt, got int"),
        (["bad \ud800"], "must be valid Unicode, got surrogates not allowed"),
        ([Prompt("a", id="x"), Prompt("b", id="x")], "`id` must belong to one prompt only, got 'x' twice"),
        ([{"prompt": "a", "answer": 1}, {"prompt": "a", "answer": 2}], "id of its own"),
    ],
)
def test_unusable_entries_are_refused_with_their_place(entries, message):
    with pytest.raises(PromptError, match=message):
        PromptSource.of(entries)


def test_a_prompt_of_ten_thousand_characters_is_refused_with_its_line_and_length(tmp_path):
    path = write(tmp_path / "p.txt", "short\n" + "x" * 10_000)
    with pytest.raises(PromptError, match=r"at most 4000 characters, got 10000 \(.*p\.txt, line 2\)"):
        PromptSource.of(path)
    assert len(PromptSource.of(path, max_characters=10_000)) == 2


def test_broken_json_is_refused_with_its_line(tmp_path):
    path = write(tmp_path / "p.jsonl", '{"prompt": "a"}\n\n{"prompt": "b"')
    with pytest.raises(PromptError, match=r"must be JSON, got .*\(line 3\)"):
        PromptSource.of(path)
    with pytest.raises(PromptError, match=r"must be a JSON object, got str \(line 1\)"):
        PromptSource.of(write(tmp_path / "q.jsonl", '"a"'))
    with pytest.raises(PromptError, match=r"must be JSON, got .*recursion"):
        PromptSource.of(write(tmp_path / "r.jsonl", "[" * 100_000))


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(PromptError, match=r"existing file or directory.*shipped sets.*got 'nowhere.txt'"):
        PromptSource.of("nowhere.txt")
    with pytest.raises(PromptError, match=r"must end in .txt or .jsonl, got 'p.csv'"):
        PromptSource.of(write(tmp_path / "p.csv", "a"))
    with pytest.raises(PromptError, match=r"must be UTF-8, got a byte that is not at offset 0"):
        PromptSource.of(write(tmp_path / "p.txt", "a cat", encoding="utf-16"))
    with pytest.raises(PromptError, match=r"must hold at least one prompt"):
        PromptSource.of(write(tmp_path / "empty.txt", "\n# nothing\n"))
    with pytest.raises(PromptError, match=r"must be a list, a path or a shipped set's name, got int"):
        PromptSource.of(3)


def test_a_prompt_given_as_a_plain_string_is_refused_with_the_remedy():
    with pytest.raises(PromptError, match=r"try \['a red circle'\]"):
        PromptSource.of("a red circle")
    with pytest.raises(PromptError, match=r"existing file or directory"):
        PromptSource.of("x" * 100_000)


def test_a_directory_that_is_no_data_set_is_refused(tmp_path):
    pytest.importorskip("datasets")
    with pytest.raises(PromptError, match=r"must hold a saved data set, got FileNotFoundError.*save_to_disk"):
        PromptSource.of(tmp_path)


def test_a_data_set_without_the_library_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"unirl-env\[data\]"):
        PromptSource.of(tmp_path)


def test_a_file_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "p.txt", "a")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "read_text", refuse)
    with pytest.raises(PromptError, match=r"must be readable, got Permission denied"):
        PromptSource.of(path)


def test_numbers_of_a_file_are_those_that_stand_there(tmp_path):
    path = tmp_path / "numbers.jsonl"
    written = [
        "0.5",
        "1e-7",
        "42.0",
        "1e22",
        "123456789012345678901234567890",
        "0.1000000000000000000001",
        "1e400",
    ]
    path.write_text("".join(f'{{"prompt": "{i}", "answer": {text}}}\n' for i, text in enumerate(written)))
    answers = [prompt.metadata["answer"] for prompt in PromptSource.of(path)]
    assert answers[:5] == [0.5, 1e-7, 42.0, 1e22, 123456789012345678901234567890]
    assert [type(answer) for answer in answers[:5]] == [float, float, float, float, int]
    # No float is this number, so that it stays a text.
    assert answers[5:] == written[5:]


def test_numbers_of_single_precision_in_a_data_set_keep_their_digits(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "prompt": datasets.Value("string"),
            "answer": datasets.Value("float32"),
            "others": datasets.Sequence(datasets.Value("float32")),
            "double": datasets.Value("float64"),
        }
    )
    rows = {"prompt": ["p"], "answer": [0.1], "others": [[0.1, 0.7]], "double": [0.1 + 0.2]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "set"))
    metadata = PromptSource.of(tmp_path / "set")[0].metadata
    assert metadata == {"answer": 0.1, "others": [0.1, 0.7], "double": 0.1 + 0.2}

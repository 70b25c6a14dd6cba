"""What is written in a setting is what is read, wherever it was written."""

import io
import itertools

import pytest
from door_fakes import fake_parts, small_config
from rich.console import Console

from unirl_env.errors import ConfigError
from unirl_env.run.compose.yaml import read_yaml, to_yaml
from unirl_env.run.launch import launch
from unirl_env.settings.literal import parsed, shielded, unshielded
from unirl_env.train import settings

TEXTS = [
    "Solve ${x}^2 = 9$ for x.",
    "${seed}",
    "${oc.env:HOME}",
    "${unbalanced",
    "}${a ${b} c}$",
    r"\boxed{${x}} \n \\ \${y}",
    "⁒S and ⁒⁒ and $",
    "ünïcode, commas, [brackets] and {braces}: #no comment",
    "two\nlines\tand 'quotes' and \"quotes\"",
]
NUMERALS = [
    "5e10432",
    "12e4567",
    "1e5",
    "1_000",
    "3.10",
    "2024-01-01",
    "007",
    "0x1f",
    "true",
    "12:30:00",
    "-1",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_survives_its_yaml(text, tmp_path):
    cfg = small_config(tmp_path, model__options={"system": text, text: [text]}, name="x")
    cfg.prompts.train = [text, {"prompt": text}]
    cfg.model.revision = text
    (tmp_path / "config.yaml").write_text(to_yaml(cfg), encoding="utf-8")
    assert read_yaml(tmp_path / "config.yaml") == cfg
    assert settings(str(tmp_path / "config.yaml")) == cfg
    assert unshielded(shielded({text: [text]})) == {text: [text]} and "$" not in shielded(text)


@pytest.mark.parametrize("text", [text for text in TEXTS if "\n" not in text])
def test_a_text_on_the_command_line_is_itself(text):
    cfg = settings("ar/tiny_qwen3", [f"model.options.system={text}", f"model.revision={text}"])
    assert cfg.model.options["system"] == cfg.model.revision == text
    quoted = text.replace("'", "").replace('"', "")
    inside = settings("ar/tiny_qwen3", [f"model.options={{a: '{quoted}', b: ['{quoted}', ü]}}"]).model.options
    assert inside == {"a": quoted, "b": [quoted, "ü"]}


@pytest.mark.parametrize("name", NUMERALS)
def test_a_name_that_looks_like_a_number_is_a_name(name, tmp_path):
    cfg = settings("ar/tiny_qwen3", [f"name={name}", f"model.revision={name}"])
    assert (cfg.name, cfg.model.revision) == (name, name)
    (tmp_path / "config.yaml").write_text(to_yaml(cfg), encoding="utf-8")
    assert read_yaml(tmp_path / "config.yaml") == cfg


def test_a_run_with_dollars_is_continued(tmp_path):
    cfg = small_config(tmp_path, iterations=1)
    cfg.prompts.train, cfg.rollout.num_prompts = ["${x}", "${oc.env:HOME}", "${y", "a"], 4
    console = Console(file=io.StringIO())
    assert launch(cfg, console, [], fake_parts()) == 0
    assert read_yaml(tmp_path / "fake/config.yaml").prompts.train == cfg.prompts.train
    cfg.iterations, cfg.resume = 2, "auto"
    assert launch(cfg, console, [], fake_parts()) == 0


HEAD = "# @package _global_\ndefaults: [/run_settings, /agent: grpo, /model: tiny_qwen3, _self_]\nmode: ar\n"


def recipe(folder, text, name="mine"):
    (folder / f"{name}.yaml").write_text(HEAD + text, encoding="utf-8")
    return str(folder / f"{name}.yaml")


def test_a_recipe_fills_in_names_of_settings_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "hush")
    place = tmp_path / "a folder, [of] mine's"
    place.mkdir()
    path = recipe(
        place,
        "name: run_${seed}_${x}\nseed: 3\niterations: ${seed}\n"
        "prompts: {train: ['${seed} + ${x}$', '${oc.env:SECRET}']}\n"
        "model: {options: {system: '${seed} ${'}}\n",
    )
    cfg = settings(path, ["seed=5"])
    assert (cfg.name, cfg.iterations) == ("run_5_${x}", 5)
    assert cfg.prompts.train == ["${seed} + ${x}$", "${oc.env:SECRET}"]
    assert cfg.model.options["system"] == "${seed} ${"
    assert settings("mine", ["agent=drpo"], str(place)).agent.name == "drpo"
    assert "hush" not in to_yaml(cfg)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("logging: {folder: '${oc.env:HOME}/runs'}", "command line"),
        ("name: 007", "must be a text, got 7.*quotes"),
        ("model: {revision: 1e5}", "must be a text"),
        ("seed: ${x}", "seed"),
        ("agent: {lrr: 1}", "did you mean `agent.lr`"),
        ("agent: {lr: [}", "must be YAML"),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_explained(text, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        settings(recipe(tmp_path, text))


def test_hydras_grammar_with_any_letter():
    assert parsed("{a: 0.1, b: [1, x y, 'é, $']}") == {"a": 0.1, "b": [1, "x y", "é, $"]}
    for text in ("1,2", "{a", "[1] x", "choice(1,2)"):
        with pytest.raises(ValueError):
            parsed(text)


def test_plus_signs_and_sections_mean_what_is_there():
    for sign, key in itertools.product(("", "+", "++"), ("agent.lr", "agent.options.x")):
        cfg = settings("ar/tiny_qwen3", [f"{sign}{key}=0.5"])
        assert (cfg.agent.lr if key == "agent.lr" else cfg.agent.options["x"]) == 0.5
    assert settings("ar/tiny_qwen3", ["steps={kind: all}", "agent={lr: 0.5}"]).steps.kind == "all"
    gone = settings("ar/tiny_qwen3", ["agent.options.x=1", "~agent.options.x"]).agent.options
    assert "x" not in gone

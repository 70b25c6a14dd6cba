"""What a user's package may import: every public name is there, documented, and all that examples use."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

import unirl_env

ROOT = Path(__file__).parents[1]
ROOMS = [
    "agents",
    "envs",
    "functional",
    "models",
    "modes",
    "monitor",
    "policies",
    "rewards",
    "rollouts",
    "worlds",
    "wrappers",
]
MODULES = [
    "episode",
    "errors",
    "types",
    "policies.packing",
    "models.hunyuan_image3",
    "modes.mode",
    "rollouts.engines",
]
"""Besides the rooms: nouns, errors, worlds, packed texts, engines, players, a model with its own settings."""
WANTED = {
    "agents": [
        "AGENTS",
        "Agent",
        "AgentConfig",
        "Context",
        "Loss",
        "Metric",
        "NoisedStep",
        "Rows",
        "SDEStep",
        "TokenStep",
    ],
    "envs": ["GenerativeVectorEnv", "PromptSource", "check_vector_env"],
    "models": ["Denoiser", "LanguageModel", "UnifiedModel"],
    "rewards": ["SCORERS", "WeightedSum", "build_scorer", "checked_scorer"],
    "types": ["Prompt", "Sample", "Scorer", "Scores"],
    "wrappers": ["DrawWrapper", "RewardWrapper"],
}
"""What whoever writes an algorithm, an environment, a model or a reward cannot do without."""
EXAMPLES = [
    *sorted((ROOT / "examples").rglob("*.py")),
    *[path for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))],
]


def module(name):
    return importlib.import_module(f"unirl_env.{name}")


@pytest.mark.parametrize("name", [*ROOMS, *MODULES])
def test_every_public_name_is_there_and_documented(name):
    room = module(name)
    assert room.__doc__ and len(set(room.__all__)) == len(room.__all__)
    for public in room.__all__:
        thing = getattr(room, public)
        plain = not (inspect.isclass(thing) or inspect.isroutine(thing))
        assert plain or inspect.getdoc(thing), f"{name}.{public} says nothing of itself"
        assert public in dir(room)


@pytest.mark.parametrize("name", WANTED)
def test_what_a_package_is_written_with_is_public(name):
    assert set(WANTED[name]) <= set(module(name).__all__)


def test_the_package_itself_gives_its_rooms_and_nothing_else():
    assert {*ROOMS, "errors", "types"} <= set(unirl_env.__all__)
    assert all(getattr(unirl_env, name) is not None for name in unirl_env.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'agent'; it has"):
        unirl_env.agent  # noqa: B018


@pytest.mark.parametrize("name", ["agents", "policies", "rewards", "rollouts"])
def test_a_name_that_is_not_there_is_told_with_those_that_are(name):
    with pytest.raises(AttributeError, match=f"unirl_env.{name}.*has no attribute 'Nothing'; it has"):
        module(name).Nothing  # noqa: B018


def test_what_is_loaded_on_first_use_is_told_to_type_checkers():
    assert (ROOT / "unirl_env" / "py.typed").exists()
    for name in ("agents", "monitor", "policies", "rewards", "rollouts", "worlds"):
        text = (ROOT / "unirl_env" / name / "__init__.py").read_text()
        checked, _ = [node for node in ast.parse(text).body if isinstance(node, ast.If)]
        told = {alias.name for node in checked.body for alias in node.names}
        assert told == set(module(name).__all__) - {"AGENTS"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_import_public_names_only(path):
    for home, names in imported(path):
        assert home in [*ROOMS, *MODULES, ""], f"unirl_env.{home} is nobody else's"
        public = module(home).__all__ if home else unirl_env.__all__
        assert set(names) <= set(public), f"unirl_env.{home} does not list {set(names) - set(public)}"


def imported(path):
    """`(module below the package, names)` of every import of the package's."""
    text = path.read_text()
    texts = [text] if path.suffix == ".py" else re.findall(r"```python\n(.*?)```", text, flags=re.S)
    for code in texts:
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "unirl_env":
                yield node.module.partition(".")[2], [alias.name for alias in node.names]
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.startswith("unirl_env."):
                        yield alias.name.partition(".")[2], []

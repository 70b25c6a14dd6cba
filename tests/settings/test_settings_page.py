"""Every setting stands once, and the page of them says what the dataclasses say."""

import ast
import dataclasses
import inspect
import typing
from collections import Counter
from pathlib import Path

import pytest

from unirl_env.agents import AGENTS, AgentConfig
from unirl_env.agents.attributes import knob_kinds
from unirl_env.functional.losses.ratio import LARGEST_LOG_RATIO
from unirl_env.run.compose.page import main, page, reasons
from unirl_env.settings import RunConfig, Settings, setting
from unirl_env.settings.agent import AgentSettings, RolloutSettings
from unirl_env.settings.fields import python_name

PAGE = Path(__file__).parents[2] / "docs/settings.md"
GROUPS = {
    name: kind for name, kind in typing.get_type_hints(RunConfig).items() if dataclasses.is_dataclass(kind)
}
CONFIGS = [AGENTS.get(name) for name in AGENTS]
KINDS = [RunConfig, *GROUPS.values(), *(kind for config in CONFIGS for kind in knob_kinds(config))]


def test_the_page_is_what_the_dataclasses_say(tmp_path):
    assert PAGE.read_text(encoding="utf-8") == page(), "try `make docs`"
    assert main([str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == page()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_setting_has_its_reason_under_it(kind):
    named = {field.name for field in dataclasses.fields(kind)} - GROUPS.keys()
    assert named <= reasons(kind).keys()
    assert all(len(reasons(kind)[name]) > 5 for name in named)
    for name in named:
        assert f"{name}`" in page()


def test_a_page_shows_a_new_setting_and_its_bounds():
    @dataclasses.dataclass
    class Group(Settings):
        """A group."""

        depth: int | None = setting(None, least=2, may_change=True)
        """How deep | it goes."""

    from unirl_env.run.compose.page import _table

    assert r"| `x.depth` ↻ | whole number or null, at least 2 | `null` | How deep \| it goes. |" in _table(
        Group, "x."
    )


def test_no_setting_is_declared_twice():
    """Neither under one attribute in two groups, nor by hand beside a group."""
    flat = [
        python_name(each) for kind in (AgentSettings, RolloutSettings) for each in dataclasses.fields(kind)
    ]
    knobs = {
        each.name for config in CONFIGS for kind in knob_kinds(config) for each in dataclasses.fields(kind)
    }
    names = [*filter(None, flat), "steps", "policy", *knobs]
    assert [name for name, count in Counter(names).items() if count > 1] == []
    for config in (AgentConfig, *CONFIGS):
        assert by_hand(config) & {*names, "batch_size"} == set()


def by_hand(config):
    """The attributes that the bodies and the constructors of a class and of its bases of ours set."""
    targets = []
    for kind in config.__mro__:
        if not kind.__module__.startswith("unirl_env."):
            continue
        (tree,) = ast.parse(inspect.getsource(kind)).body
        made = [each for each in tree.body if getattr(each, "name", "") == "__init__"]
        for node in [*tree.body, *(inner for each in made for inner in ast.walk(each))]:
            targets += node.targets if isinstance(node, ast.Assign) else []
            targets += [node.target] if isinstance(node, ast.AnnAssign) else []
    return {getattr(target, "attr", getattr(target, "id", None)) for target in targets}


def test_what_is_set_by_hand_is_seen():
    assert {"run_seed", "prompts", "_num_prompts_given"} <= by_hand(AgentConfig)


def test_the_bound_on_log_ratios_is_that_of_the_losses():
    (field,) = [each for each in dataclasses.fields(AgentSettings) if each.name == "max_log_ratio"]
    assert field.metadata["most"] == LARGEST_LOG_RATIO

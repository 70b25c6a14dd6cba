"""Names, dotted paths, and how unknown ones are refused."""

import math
import subprocess
import sys

import pytest

from unirl_env.errors import ConfigError
from unirl_env.registry import Registry
from unirl_env.rewards import SCORERS

COLOURS = Registry("colour", {"red": "math:sqrt", "dark_red": "collections:OrderedDict.fromkeys"})


def test_a_name_gives_its_target():
    assert COLOURS.get("red") is math.sqrt
    assert COLOURS.get("dark_red") == __import__("collections").OrderedDict.fromkeys


@pytest.mark.parametrize("path", ["math:pi", "math.pi"])
def test_a_dotted_path_needs_no_registration(path):
    assert COLOURS.get(path) == math.pi
    assert COLOURS.get("os.path.join") is __import__("os").path.join


def test_an_unknown_name_lists_the_known_ones_and_the_other_way():
    with pytest.raises(
        ConfigError, match=r"`colour` must be one of \['dark_red', 'red'\].*got 'rad'"
    ) as caught:
        COLOURS.get("rad")
    assert "try 'red'" in str(caught.value) and "package.module:attribute" in str(caught.value)


@pytest.mark.parametrize("name", ["", "a:", ":b", ".b", "..b", None, 3])
def test_what_is_no_name_and_no_path_is_refused(name):
    with pytest.raises(ConfigError):
        COLOURS.get(name)


def test_paths_that_lead_nowhere_are_refused():
    with pytest.raises(ConfigError, match="must name a module that exists, got No module named 'nowhere'"):
        COLOURS.get("nowhere:thing")
    with pytest.raises(ConfigError, match=r"`math:thing` must name something in `math`"):
        COLOURS.get("math:thing")


def test_a_missing_dependency_inside_a_module_keeps_its_own_message(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import a_dependency_that_is_missing\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="a_dependency_that_is_missing"):
        COLOURS.get("needs_more:thing")


def test_registering():
    registry = Registry("colour")
    registry.register("blue", "math:tau")
    registry.register("blue", "math:tau")
    assert list(registry) == ["blue"] and "blue" in registry and len(registry) == 1
    assert registry.get("blue") == math.tau
    with pytest.raises(ConfigError, match=r"must be free, got 'blue', which stands for 'math:tau'"):
        registry.register("blue", "math:pi")
    with pytest.raises(ConfigError, match=r"must be 'package.module:attribute', got 'math.pi'"):
        registry.register("green", "math.pi")
    with pytest.raises(ConfigError, match=r"must have no '\.' and no ':'"):
        registry.register("a.b", "math:pi")


@pytest.mark.parametrize("name", list(SCORERS))
def test_every_registered_reward_is_there(name):
    assert callable(SCORERS.get(name))


def test_importing_the_rewards_loads_none_of_them():
    code = (
        "import sys, unirl_env.rewards as rewards; "
        "heavy = {'open_clip', 'scipy', 'torchvision', 'unirl_env.rewards.learned.clip'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules); "
        "assert rewards.WeightedSum.__name__ == 'WeightedSum' and 'Gate' in dir(rewards)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_unknown_reward_attribute_is_refused():
    import unirl_env.rewards as rewards

    with pytest.raises(AttributeError, match="has no attribute 'Average'"):
        rewards.Average  # noqa: B018

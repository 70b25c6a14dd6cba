"""The rooms of the package and the floors they stand on, held by reading every import."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "unirl_env"
FLOORS = {
    "": 0, "types": 0, "episode": 0, "errors": 0, "registry": 0, "arguments": 0, "media": 0, "http": 0,
    "command_line": 0, "settings": 0, "statistics": 0,
    "functional": 1,
    "prompts": 2, "models": 2, "rewards": 2,
    "envs": 3,
    "wrappers": 4,
    "policies": 5, "service": 5,
    "rollouts": 6,
    "modes": 7,
    "worlds": 8,
    "agents": 10, "monitor": 10,
    "run": 11,
    "bench": 12,
    "train": 13, "evaluate": 13,
}  # fmt: skip
TOP = 14
"""Where the package itself stands, which shows all of it."""
WITHIN_THE_WORLD = {
    "models": {"models", "prompts"},
    "prompts": {"prompts"},
    "rewards": {"rewards", "prompts"},
    "envs": {"prompts", "models.denoiser", "models.words", "models.process", "models.unified"},
    "wrappers": {"rewards", "prompts", "models.denoiser", "models.shared.generate"},
}
"""What a room of the world may know of floor 2."""
LIGHT = {floor: {"torch"} if floor == 1 else {"torch", "numpy", "gymnasium"} for floor in range(5)}
"""Libraries that modules import as they load; all others are imported inside functions."""
OF_RAY = {
    "policies.rl_module", "rollouts.callbacks", "rollouts.calls", "rollouts.kept", "rollouts.runner",
    "rollouts.sync", "service.deploy",
}  # fmt: skip
"""What serves Ray below the agents; everything else there works without it."""
HYDRA = {"settings.literal", "run.compose", "train"}
DOOR_TO_THE_ENVIRONMENT = {
    "run.entry", "train", "evaluate", "run.launch", "run.trust",
    # vLLM takes some settings from the environment alone: defaults are set before it is imported,
    # and a server gets them together with everything its libraries find there.
    "rollouts.engines.vllm", "rollouts.engines.process",
    # The tokens of services that judge samples, which must stand in no configuration.
    "rewards.secrets",
    # How glibc treats freed memory, unless a person has said so there.
    "rollouts.memory",
}  # fmt: skip


OF_TRANSFORMERS = {"models.shared.cache", "models.unified_flow.network"}
"""Classes that derive from those of transformers; whoever needs them imports the module inside a function."""


def sources():
    """Module name, without the package's own, to its text."""
    named = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        named[".".join(part for part in parts if part != "__init__")] = path.read_text()
    return named


def imports(text):
    """`(module, inside a function or a type-checking block)` of every import."""
    found = []

    def visit(node, inside):
        for child in ast.iter_child_nodes(node):
            deep = inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if isinstance(child, ast.Import):
                found.extend((alias.name, deep) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = "." * child.level + (child.module or "")
                found.extend((f"{base}.{alias.name}", deep) for alias in child.names)
            visit(child, deep)

    visit(ast.parse(text), False)
    return found


def floor(module):
    near = [".".join(module.split(".")[:count]) for count in (2, 1)]
    return next((FLOORS[name] for name in near if name in FLOORS), 0)


def violations(modules):
    """Everything in `modules` (name to text) that the house forbids."""
    wrong = []
    for name, text in modules.items():
        for target, inside in imports(text):
            library, _, inner = target.partition(".")
            if target.startswith("."):
                said = ["imports are absolute"]
            elif library == PACKAGE:
                said = own_rules(name, inner, inside)
            else:
                said = library_rules(name, library, inside)
            wrong += [f"{name or PACKAGE} imports {target}: {words}" for words in said]
    return wrong


def own_rules(name, inner, inside=False):
    """What is wrong with a module's import of another one of the package."""
    part, own, other = name.partition(".")[0], floor(name) if name else TOP, floor(inner)
    allowed = WITHIN_THE_WORLD.get(part, ())
    if other > own:
        yield f"up from floor {own} to {other}"
    elif not inside and any(f"{inner}.".startswith(f"{module}.") for module in OF_TRANSFORMERS):
        yield "it loads transformers"
    elif allowed and other == 2 and not any(f"{inner}.".startswith(f"{known}.") for known in allowed):
        yield f"{part} may know {sorted(allowed)}"
    elif part == "service" and other >= 2 and not inner.startswith(("rewards", "service")):
        yield "a service knows rewards only"


def library_rules(name, library, inside):
    """What is wrong with a module's import of a library."""
    own = floor(name)
    at_the_door = any(f"{name}.".startswith(f"{door}.") for door in HYDRA)
    if library in sys.stdlib_module_names:
        return
    if own in LIGHT and not inside and library not in LIGHT[own] and name not in OF_TRANSFORMERS | HYDRA:
        yield f"floor {own} loads {sorted(LIGHT[own])} only"
    elif own == 0 and library == "gymnasium":
        yield "the ground knows no environments"
    elif library == "ray" and own < FLOORS["agents"] and name not in OF_RAY:
        yield "it works without Ray"
    elif library in ("hydra", "omegaconf") and not at_the_door:
        yield "Hydra stays at the door"


def environment_reads(text):
    """Lines that touch environment variables."""
    names = {"environ", "environb", "getenv", "putenv"}
    return sorted(
        node.lineno
        for node in ast.walk(ast.parse(text))
        if (isinstance(node, ast.Attribute) and node.attr in names)
        or (isinstance(node, ast.ImportFrom) and {alias.name for alias in node.names} & names)
    )


def test_imports_point_down():
    assert violations(sources()) == []


@pytest.mark.parametrize(
    "name, text",
    [
        ("functional.noise", "import unirl_env.envs"),
        ("functional.noise", "import numpy"),
        ("episode", "def f():\n    from unirl_env.models.denoiser import Denoiser"),
        ("types", "import gymnasium"),
        ("envs.denoising", "from unirl_env.models.sd3 import SD3Denoiser"),
        ("envs.denoising", "from unirl_env.rewards import SCORERS"),
        ("rewards.clip", "from unirl_env.models.denoiser import Denoiser"),
        ("models.sd3", "from unirl_env.rewards import scoring"),
        ("models.sd3", "from diffusers import StableDiffusion3Pipeline"),
        ("models.sd3", "if True:\n    import transformers.models"),
        ("models.sd3", "from unirl_env.models.unified_flow import network"),
        ("wrappers.reward", "def f():\n    import ray"),
        ("policies.actor", "import ray.rllib"),
        ("rollouts.play", "from unirl_env.agents.agent import Agent"),
        ("agents.agent", "import hydra"),
        ("agents.agent", "from unirl_env.run.agent_setup import build_agent"),
        ("run.agent_setup", "def f():\n    import unirl_env.train"),
        ("service.app", "from unirl_env.envs.vector_env import GenerativeVectorEnv"),
        ("envs.vector_env", "from .groups import Groups"),
    ],
)
def test_a_wrong_import_is_seen(name, text):
    assert len(violations({name: text})) == 1


def test_files_hold_one_idea():
    """Most have 60 to 300 lines; one idea is not cut in two for a number, but no idea needs more than 500."""
    long = {name: text.count("\n") for name, text in sources().items() if text.count("\n") > 500}
    assert long == {}


def test_environment_variables_are_read_at_the_door():
    reads = {name: environment_reads(text) for name, text in sources().items()}
    assert {name for name, lines in reads.items() if lines} <= DOOR_TO_THE_ENVIRONMENT
    assert environment_reads("import os\nos.environ['A']\nfrom os import getenv") == [2, 3]


def test_no_file_names_a_place_on_somebodys_machine():
    place = re.compile(r"(?<![\w.~<{])/(?:root|home|tmp|Users|work|mnt|data|opt)/|[A-Z]:\\\\")
    folders = (PACKAGE, "benchmarks", "examples", "docs")
    kinds = {".py", ".md", ".yaml", ".toml", ".json", ".txt"}
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in kinds]
    assert len(files) > 100
    assert [path for path in files if place.search(path.read_text(encoding="utf-8"))] == []
    assert place.search("open('/home/me/weights')") and not place.search("https://a.b/home/page")


def test_every_module_and_function_is_documented_where_it_is_public():
    bare = []
    for name, text in sources().items():
        tree = ast.parse(text)
        if text.strip() and not ast.get_docstring(tree):
            bare.append(name)
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                if not ast.get_docstring(node):
                    bare.append(f"{name}.{node.name}")
    assert bare == []

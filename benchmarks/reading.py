"""How much one must read: files and functions entered by a step, an update and an iteration; sizes; rooms.

    python benchmarks/reading.py                  # all figures
    python benchmarks/reading.py lines            # code lines (no docstrings, comments, blanks) by room
    python benchmarks/reading.py entered --list   # with the names of the files
    python benchmarks/reading.py rooms --draw docs/images/rooms.svg

A step is one of `unirl/TinySD3-T2I-v0` that does not end its episodes; an update and an iteration are those
of GRPO on `unirl/GaussianMixture-v0` in one process, after the first, which checks itself. What libraries
enter of themselves is not counted.
"""

from __future__ import annotations

import argparse
import ast
import io
import sys
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LONGEST_FUNCTION, LONGEST_FILE = 80, 500


class Entered:
    """The functions of a package that run while it is open; `within` counts only below one of them."""

    def __init__(self, root: Path, within: str | None = None):
        self.root, self.within = str(root), within
        self.found: dict[str, set[str]] = defaultdict(set)
        self._depth = 0

    @contextmanager
    def counting(self) -> Iterator[Entered]:
        """Count in this thread."""
        sys.setprofile(self._seen)
        try:
            yield self
        finally:
            sys.setprofile(None)

    def _seen(self, frame, event, argument):
        code = frame.f_code
        if event not in ("call", "return") or not code.co_filename.startswith(self.root):
            return
        if self.within is not None and code.co_qualname == self.within:
            self._depth += 1 if event == "call" else -1
        if self.within is not None and not self._depth:
            return
        if event == "call" and not code.co_name.startswith("<"):
            self.found[str(Path(code.co_filename).relative_to(self.root))].add(code.co_qualname)

    def __str__(self) -> str:
        return f"{len(self.found)} files, {sum(map(len, self.found.values()))} functions"


def entered() -> dict[str, Entered]:
    """What a step, an update and an iteration enter."""
    import gymnasium as gym

    import unirl_env
    from unirl_env.agents import GRPOConfig

    root = Path(unirl_env.__file__).parent
    env = gym.make_vec(
        "unirl/TinySD3-T2I-v0",
        num_envs=4,
        vectorization_mode="vector_entry_point",
        group_size=2,
        array_backend="torch",
    )
    obs, _ = env.reset(seed=0)
    with Entered(root).counting() as step:
        env.step(obs["latent"] * 0.9)
    config = GRPOConfig().environment("unirl/GaussianMixture-v0")
    config = config.training(num_prompts=2, group_size=8, policy={"lora_rank": None})
    agent = config.build_algo()
    agent.train()
    with Entered(root, "GenerativeLearner.update").counting() as update:
        agent.training_step()
    with Entered(root).counting() as iteration:
        agent.training_step()
    agent.stop()
    return {"one env.step": step, "one learner update": update, "one iteration": iteration}


def code_lines(text: str) -> int:
    """Lines that hold code: neither docstrings nor comments nor blanks."""
    documented: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        for child in node.body if isinstance(getattr(node, "body", None), list) else ():
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                if isinstance(child.value.value, str):
                    documented.update(range(child.lineno, child.end_lineno + 1))
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in layout | {tokenize.ENDMARKER}:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - documented)


def sources() -> dict[str, str]:
    """The text of every file, by its path inside the package."""
    root = Path(__file__).parents[1] / "unirl_env"
    return {str(path.relative_to(root)): path.read_text() for path in sorted(root.rglob("*.py"))}


def long_things(texts: dict[str, str]) -> list[str]:
    """Functions and files that are longer than a reader likes."""
    found = []
    for name, text in texts.items():
        if text.count("\n") > LONGEST_FILE:
            found.append(f"{name} has {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = node.end_lineno - node.lineno + 1
                if length > LONGEST_FUNCTION:
                    found.append(f"{node.name} in {name} has {length} lines")
    return found


def room(name: str) -> str:
    """The room of a module or a file: the first part of its name."""
    return name.replace("/", ".").removesuffix(".py").partition(".")[0]


def arrows(texts: dict[str, str]) -> set[tuple[str, str]]:
    """Imports between rooms: those as a module loads, inside functions, and for type checkers."""
    found = set()
    for name, text in texts.items():
        for node in ast.walk(ast.parse(text)):
            named = []
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "unirl_env":
                inner = node.module.removeprefix("unirl_env").lstrip(".")
                named = [inner] if inner else [alias.name for alias in node.names]
            elif isinstance(node, ast.Import):
                named = [
                    a.name.removeprefix("unirl_env.") for a in node.names if a.name.startswith("unirl_env.")
                ]
            found |= {(room(name), room(target)) for target in named if room(target) != room(name)}
    rooms = {room(name) for name in texts}
    return {(here, there) for here, there in found if there in rooms and here != "__init__"}


def main() -> None:
    """Print what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", help="entered, lines, long, rooms; all of them without")
    parser.add_argument("--list", action="store_true", help="name the files that are entered")
    given = parser.parse_args()
    wanted, texts = given.what or ["entered", "lines", "long", "rooms"], sources()
    if "entered" in wanted:
        for what, counted in entered().items():
            print(f"{what} enters {counted}")
            for name, functions in sorted(counted.found.items()) if given.list else ():
                print(f"    {name}: {', '.join(sorted(functions))}")
    if "lines" in wanted:
        lines = Counter()
        for name, text in texts.items():
            lines[room(name)] += code_lines(text)
        for name, count in lines.most_common():
            print(f"{count:7d} {name}")
        print(f"{sum(lines.values()):7d} code lines in {len(texts)} files")
    if "long" in wanted:
        print("\n".join(long_things(texts)) or "no function above 80 lines, no file above 500")
    if "rooms" in wanted:
        rooms = {room(name) for name in texts} - {"__init__"}
        print(f"{len(rooms)} rooms, {len(arrows(texts))} arrows between them")


if __name__ == "__main__":
    main()

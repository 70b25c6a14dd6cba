"""How much one must read: files and functions entered by a step, an update and an iteration; sizes; rooms.

    python benchmarks/reading.py                  # all figures
    python benchmarks/reading.py lines            # code lines (no docstrings, comments, blanks) by room
    python benchmarks/reading.py entered --list   # with the names of the files
    python benchmarks/reading.py rooms --draw docs/images/rooms.png

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
                documented = node.body[0].end_lineno if ast.get_docstring(node) else node.lineno
                length = node.end_lineno - documented
                if length > LONGEST_FUNCTION:
                    found.append(f"{node.name} in {name} has {length} lines below its docstring")
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


def heights(rooms: set[str], between: set[tuple[str, str]]) -> dict[str, int]:
    """How high a room stands: above all that it imports; rooms of a circle share their height."""
    below = {name: {there for here, there in between if here == name} for name in rooms}

    def reached(name: str) -> set[str]:
        found, queue = set(), [name]
        while queue:
            fresh = below[queue.pop()] - found
            found |= fresh
            queue += fresh
        return found

    everything = {name: reached(name) for name in rooms}
    height: dict[str, int] = {}
    for name in sorted(rooms, key=lambda name: (len(everything[name]), name not in everything[name])):
        lower = [there for there in everything[name] if name not in everything[there]]
        height[name] = 1 + max((height[there] for there in lower), default=-1)
    return height


def draw(texts: dict[str, str], path: Path) -> None:
    """The rooms with their lines of code, and the imports between them: down in blue, up in red."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    between, rooms = arrows(texts), {room(name) for name in texts} - {"__init__"}
    height, lines = heights(rooms, between), Counter()
    for name, text in texts.items():
        lines[room(name)] += code_lines(text)
    floors = [[n for n in sorted(rooms) if height[n] == level] for level in range(max(height.values()) + 1)]
    place = {}
    for level, names in enumerate(floors):
        # Below the middle of those that import it, so that arrows are short.
        names.sort(key=lambda name: -lines[name])
        order = names[::2] + names[1::2][::-1]
        for number, name in enumerate(order):
            place[name] = ((number + 0.5) / len(order) * 24, level)
    figure, axes = plt.subplots(figsize=(14, 0.95 * len(floors) + 0.6))
    for here, there in sorted(between):
        (x, y), (u, v) = place[here], place[there]
        style = {"color": "#c0392b", "alpha": 0.9} if v >= y else {"color": "#4a6fa5", "alpha": 0.28}
        axes.annotate("", (u, v + 0.2), (x, y - 0.2), arrowprops={"arrowstyle": "-|>", "lw": 0.9, **style})
    for name, (x, y) in place.items():
        label = f"{name}\n{lines[name]}"
        box = {"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": "#333333"}
        axes.text(x, y, label, ha="center", va="center", fontsize=8 if len(rooms) > 40 else 9.5, bbox=box)
    axes.set(xlim=(0, 24), ylim=(-0.6, len(floors) - 0.4))
    axes.set_title(f"{len(rooms)} rooms, {len(between)} arrows, {sum(lines.values())} lines of code")
    axes.axis("off")
    figure.savefig(path, dpi=80, bbox_inches="tight")


def main() -> None:
    """Print what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", help="entered, lines, long, rooms; all of them without")
    parser.add_argument("--draw", type=Path, help="with `rooms`: a picture of them")
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
        if given.draw is not None:
            draw(texts, given.draw)


if __name__ == "__main__":
    main()

"""What it costs to walk finished texts through `env.step`: 256 episodes of 1024 tokens, torch backend.

An engine generates whole texts; the runner still replays them token by token, so that tools, ends and rewards
have one code path. The texts are prepared, the tokenizer and the scorer do nothing. Two batches: texts that
all reach the limit, and texts whose lengths are spread evenly up to it, each of which is judged at its own
end. One JSON line: seconds of a replay (the least and the median over repeats), milliseconds of a step, and
of `reset`, with and without `RewardWrapper`, as the runner plays (`info_objects=True`), and with `plain`
infos, which hold all tokens of the texts that end at a step as one array.

    python benchmarks/replay_tokens.py [--episodes 256] [--tokens 1024] [--repeats 10] [--device cpu]
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from timing import report

from unirl_env.envs import WAIT, TokenVectorEnv
from unirl_env.models.words import Encoded, Words
from unirl_env.types import Scores
from unirl_env.wrappers import RewardWrapper

PROMPT = 128
EOS = 1


class Wordless(Words):
    """The vocabulary of Qwen3, and no words."""

    vocab_size, eos_ids, pad_id = 151_936, (EOS,), 0
    max_context = 1 << 20

    def encode(self, prompt):
        """A prompt of the usual length."""
        return Encoded(torch.full((PROMPT,), 5))

    def decode(self, tokens):
        """Nothing."""
        return ""

    def reply(self, text):
        """Nothing."""
        return []


def no_score(samples, prompts):
    return Scores(torch.zeros(len(samples)))


def texts(episodes: int, tokens: int, *, even: bool) -> torch.Tensor:
    """Actions `[tokens, episodes]`, WAIT after the end of each text."""
    said = torch.randint(2, Wordless.vocab_size, (tokens, episodes))
    if not even:
        ends = torch.linspace(0, tokens - 1, episodes).long()
        step = torch.arange(tokens)[:, None]
        said = torch.where(step < ends, said, torch.where(step == ends, EOS, WAIT))
    return said


def replay(env, actions: torch.Tensor, seed: int) -> tuple[float, float]:
    """Seconds of the reset, and of all steps."""
    begin = time.perf_counter()
    env.reset(seed=seed)
    middle = time.perf_counter()
    for action in actions:
        env.step(action)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return middle - begin, time.perf_counter() - middle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("episodes", 256), ("tokens", 1024), ("repeats", 10)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    shared = dict(
        num_envs=args.episodes,
        max_new_tokens=args.tokens,
        max_prompt_tokens=PROMPT,
        prompts=[f"prompt {i}" for i in range(32)],
        group_size=args.episodes // 32 or 1,
        array_backend="torch",
        autoreset_mode="disabled",
        device=args.device,
    )
    bare = TokenVectorEnv(Wordless(), info_objects=True, **shared)
    plain = TokenVectorEnv(Wordless(), **shared)
    played = {
        "env": bare,
        "env+reward": RewardWrapper(bare, no_score),
        "plain": plain,
        "plain+reward": RewardWrapper(plain, no_score),
    }
    numbers: dict[str, float] = {}
    for name, env in played.items():
        for kind in ("even", "uneven"):
            actions = texts(args.episodes, args.tokens, even=kind == "even")
            times = [replay(env, actions, seed) for seed in range(args.repeats)]
            resets, replays = zip(*times, strict=True)
            numbers[f"{name}/{kind}/least_s"] = min(replays)
            numbers[f"{name}/{kind}/median_s"] = statistics.median(replays)
            numbers[f"{name}/{kind}/step_ms"] = 1e3 * min(replays) / args.tokens
            numbers[f"{name}/{kind}/reset_ms"] = 1e3 * statistics.median(resets)
    report("replay_tokens", {"episodes": args.episodes, "tokens": args.tokens, **numbers})


if __name__ == "__main__":
    main()

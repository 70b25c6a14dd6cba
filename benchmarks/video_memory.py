"""What clips of real size take on their way: steps of the environment, storage, advantages, updates.

The network is a stub, one number a channel, and so is the decoder, which enlarges the latent: what is left
are latents and clips in their real shapes. A whole iteration of GRPO is played and learned in this process;
its peak of memory, above what the process had before, is held against what a run says of it before it begins
(`unirl_env.run.memory`).

    python benchmarks/video_memory.py [--episodes 8]   # 5 GB of memory; benchmarks/results/video_memory.md
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from unirl_env.models.denoiser import Denoiser
from unirl_env.models.shared.fixed_batches import filmed
from unirl_env.types import Sample, Scores

PAGE = Path(__file__).parent / "results" / "video_memory.md"
STEPS = 10
SHAPES = {
    "HunyuanVideo 1.5, 121 frames of 480 x 848": ((32, 31, 30, 53), (121, 480, 848)),
    "Wan 2.1, 81 frames of 480 x 832": ((16, 21, 60, 104), (81, 480, 832)),
}


class Stub(Denoiser):
    """A model of clips whose network is one number for each channel.

    Args:
        latent: The shape of a latent.
        frames: Frames, height and width of a clip.
    """

    makes, fps = "video", 24.0

    def __init__(self, latent: tuple[int, ...], frames: tuple[int, int, int]):
        self.latent_shape = tuple(latent)
        self.num_frames, self.height, self.width = frames

    def identity(self):
        """Nothing that a file could tell."""
        return {"latent": self.latent_shape}

    def sigmas(self, num_steps):
        """From 1 to 0 in equal steps."""
        return torch.linspace(1, 0, num_steps + 1)

    def encode(self, prompts, *, negative=False):
        """A number, so that prompts have a context."""
        return {"length": torch.tensor([[float(len(prompt.text))] for prompt in prompts])}

    def decode(self, latents: Tensor) -> list[Sample]:
        """Three channels of the latent, enlarged, one clip at a time."""
        size = (self.num_frames, self.height, self.width)

        def draw(latents: Tensor) -> Tensor:
            return nn.functional.interpolate(latents[:, :3].float(), size)

        return filmed(draw, latents, *size)

    def network(self):
        """The stub."""
        return Scale(self.latent_shape[0])

    def velocity(self, network, latent, sigma, context):
        """What it says."""
        return network(latent)


class Scale(nn.Module):
    """One number for each channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels, 1, 1, 1), 0.5))

    def forward(self, latent: Tensor) -> Tensor:
        """`[N, C, ...]` times them."""
        return latent.float() * self.scale


def bright(samples, prompts):
    """A reward that looks at every clip, in bytes."""
    return Scores(torch.tensor([float(s.video[:, 0].float().mean() / 255) for s in samples]))


def peak() -> int:
    """The most bytes that the process has held."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024


def forget_peak() -> int:
    """From now on `peak` begins anew; what the process holds now."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def measured(name: str, storage: str, episodes: int) -> str:
    """One row of the table: an iteration in a fresh process."""
    from unirl_env.agents import GRPOConfig
    from unirl_env.run.memory import episode_memory

    latent, frames = SHAPES[name]
    world = {"denoiser": Stub(latent, frames), "num_steps": STEPS, "scorer": bright}
    config = (
        GRPOConfig()
        .environment("unirl/TinySD3-T2I-v0", env_config={**world, "prompts": "scenes_train"})
        .training(
            num_prompts=episodes // 2,
            group_size=2,
            num_minibatches=1,
            micro_batch_size=1,
            micro_batch_steps=1,
            steps={"kind": "all"},
            rollout_batch_size=2,
            self_check=False,
            policy={"lora_rank": None, "storage_dtype": storage},
        )
    )
    algorithm = config.build_algo()
    said = episode_memory(world["denoiser"], algorithm.config)
    before = forget_peak()
    algorithm.train()
    above = peak() - before
    algorithm.stop()
    return (
        f"| {name} | {storage} | {said.step / 1e6:.1f} | {said.sample / 1e6:.0f} | {said.total / 1e6:.0f} | "
        f"{episodes * said.total / 1e9:.2f} | {above / 1e9:.2f} | **{above / episodes / said.total:.2f}** |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--episodes", type=int, default=8)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(measured(*args.one, args.episodes))
        return
    rows = []
    for name in SHAPES:
        for storage in ("float32", "bfloat16"):
            command = [sys.executable, __file__, "--episodes", str(args.episodes), "--one", name, storage]
            found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            rows.append(next(line for line in found.splitlines() if line.startswith("| ")))
    page = "\n".join(
        (
            "# Memory of clips of real size\n",
            f"An iteration of GRPO: {args.episodes} episodes of {STEPS} steps, {STEPS - 1} of them trained,"
            " a stub for the\nnetwork: what a run says of an episode before it begins, and the peak of the"
            " process above what it\nheld before. The update takes one step of one clip at a time.\n",
            "| clips | stored in | step, MB | clip, MB | episode, MB | all, GB | peak, GB | peak of said |",
            "|---|---|---:|---:|---:|---:|---:|---:|",
            *rows,
            "\nBy `python benchmarks/video_memory.py`.",
        )
    )
    print(page)
    PAGE.write_text(page + "\n", "utf-8")


if __name__ == "__main__":
    main()

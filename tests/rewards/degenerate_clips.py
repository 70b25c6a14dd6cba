"""Clips that a reward of videos must not be fooled by, beside honest ones, each made by a rule.

`python tests/rewards/degenerate_clips.py` prints the table of docs/rewards.md.
"""

import torch
import torch.nn.functional as nnf

from unirl_env.prompts.shapes import COLOURS, SHAPES, Scenes, render
from unirl_env.types import Prompt, Sample

CAPTION = Prompt(
    "a red circle moves right", metadata={"colour": "red", "shape": "circle", "direction": "right"}
)
SIZES = {"9 frames, 32 x 32": (9, 32, 32), "17 frames, 96 x 64": (17, 64, 96)}
"""Frames, height and width."""
PRODUCT = ("temporal_consistency", "motion")


def random(seed):
    return torch.Generator().manual_seed(seed)


def picture(height, width, cells, seed):
    """A picture `[3, H, W]` of random colours, without detail below a share `1 / cells` of its side."""
    side = min(height, width)
    grid = (max(2, round(cells * height / side)), max(2, round(cells * width / side)))
    coarse = torch.rand(1, 3, *grid, generator=random(seed))
    return nnf.interpolate(coarse, (height, width), mode="bilinear")[0] * 0.8 + 0.1


def smooth(height, width, seed):
    return picture(height, width, 3, seed)


def textured(height, width, seed):
    return picture(height, width, 12, seed)


def things(height, width, places, colour="red", shape="circle", radii=None, ground=None):
    """A film of one thing: its middle in each frame, as shares of the shorter side; none where it is None."""
    radii = radii or [0.16] * len(places)
    side, film = min(height, width), []
    for place, radius in zip(places, radii, strict=True):
        centre = torch.tensor(place or (0.5, 0.5)).view(1, 1, 2)
        scene = Scenes(
            rgb=torch.tensor(COLOURS[colour]).view(1, 1, 3),
            shape=torch.tensor([[SHAPES.index(shape)]]),
            centre=centre * side / max(height, width),
            radius=torch.tensor([[radius * side / max(height, width) if place else 0.0]]),
        )
        frame = render(scene, max(height, width))[0, :, :height, :width]
        if ground is not None:
            bare = render(Scenes(scene.rgb, scene.shape, scene.centre, torch.zeros(1, 1)), max(height, width))
            frame = torch.where((frame == bare[0, :, :height, :width]).all(dim=0), ground, frame)
        film.append(frame)
    return torch.stack(film)


def way(frames, start=(0.25, 0.5), end=(0.75, 0.5)):
    """Places on a straight way."""
    return [
        tuple(a + (b - a) * t / (frames - 1) for a, b in zip(start, end, strict=True)) for t in range(frames)
    ]


def honest_clips(frames, height, width):
    """What a reward of consistent motion must pay."""
    size = (height, width)
    return {
        "a red circle moves right": things(*size, way(frames)),
        "a blue square moves down": things(*size, way(frames, (0.5, 0.3), (0.5, 0.7)), "blue", "square"),
        "a disc moves over a texture": things(*size, way(frames), ground=textured(*size, 1)),
        "pan over a texture": pan(frames, *size),
    }


def pan(frames, height, width):
    """A camera that moves to the side by a share of 0.03 of the height per frame."""
    step = max(1, round(0.03 * height))
    wide = textured(height, width + step * (frames - 1), 2)
    return torch.stack([wide[:, :, step * t : step * t + width] for t in range(frames)])


def degenerate_clips(frames, height, width):
    """What it must not, or not fully, or only by a reward that knows no caption."""
    size = (height, width)
    still = things(*size, way(frames)[:1] * frames)
    moving = things(*size, way(frames))
    lamp = torch.where(torch.arange(frames) % 2 == 0, 1.0, 0.7)[:, None, None, None]
    noise = torch.randn(moving.shape, generator=random(3))
    jumps = [tuple(p) for p in (0.2 + 0.6 * torch.rand(frames, 2, generator=random(4))).tolist()]
    return {
        "frozen thing": still,
        "frozen texture": textured(*size, 1).expand(frames, -1, -1, -1).clone(),
        "blank": torch.full_like(still, 0.4),
        "pure noise": torch.rand(moving.shape, generator=random(5)),
        "noise over a frozen thing": (still + 0.1 * noise).clamp(0, 1),
        "noise over a frozen texture": (textured(*size, 1) + 0.1 * noise).clamp(0, 1),
        "flicker of a frozen thing": still * lamp,
        "flicker of a frozen texture": textured(*size, 1) * lamp,
        "flicker of a frozen thing, at random": still
        * (0.6 + 0.4 * torch.rand(frames, 1, 1, 1, generator=random(6))),
        "unrelated smooth pictures": torch.stack([smooth(*size, 10 + t) for t in range(frames)]),
        "unrelated smooth grey pictures": torch.stack(
            [smooth(*size, 50 + t)[:1].expand(3, -1, -1) for t in range(frames)]
        ),
        "unrelated textured pictures": torch.stack([textured(*size, 10 + t) for t in range(frames)]),
        "cuts between smooth pictures": torch.stack([smooth(*size, 100 + t // 3) for t in range(frames)]),
        "cuts between textured pictures": torch.stack([textured(*size, 100 + t // 3) for t in range(frames)]),
        "jumps to random places": things(*size, jumps),
        "one jump": things(
            *size, way(frames)[:1] * (frames // 2) + way(frames)[-1:] * (frames - frames // 2)
        ),
        "moves, then vanishes": things(
            *size, way(frames)[: frames // 2 + 1] + [None] * (frames - frames // 2 - 1)
        ),
        "moves, then cut to another thing": torch.cat(
            [moving[: frames // 2], things(*size, way(frames), "cyan", "triangle")[frames // 2 :]]
        ),
        "moves and flickers": moving * lamp,
        "reversed": moving.flip(0),
        "to and fro": moving[[t % 2 for t in range(frames)]],
        "zoom on the thing": things(
            *size, [(0.5, 0.5)] * frames, radii=[0.1 + 0.2 * t / (frames - 1) for t in range(frames)]
        ),
        "zoom into a texture": zoom(frames, *size),
    }


def zoom(frames, height, width):
    """A camera that comes nearer by a factor of 1.3."""
    ground, film = textured(height, width, 1)[None], []
    for t in range(frames):
        scale = 1.3 ** (-t / (frames - 1))
        grid = nnf.affine_grid(torch.tensor([[[scale, 0, 0], [0, scale, 0]]]), [1, 3, height, width], False)
        film.append(nnf.grid_sample(ground, grid, padding_mode="border", align_corners=False)[0])
    return torch.stack(film)


def scorers():
    """The rewards of the table."""
    from unirl_env.rewards import build_scorer

    product = {"name": "product", "parts": {"temporal_consistency": {}, "motion": {}}}
    return {"product": build_scorer(product)} | {
        name: build_scorer(name) for name in ("moving_shapes", "moving_template")
    }


def table(size, judges=None):
    """The score of each clip of `SIZES[size]` under each scorer: `{clip: {scorer: number}}`."""
    clips = {**honest_clips(*SIZES[size]), **degenerate_clips(*SIZES[size])}
    samples = [Sample(video=clip) for clip in clips.values()]
    columns = {}
    for name, scorer in (judges or scorers()).items():
        scores = scorer(samples, [CAPTION] * len(samples))
        columns |= {part: scores.parts[part] for part in scores.parts if part in PRODUCT}
        columns[name] = scores.value
    return {
        clip: {name: float(column[i]) for name, column in columns.items()} for i, clip in enumerate(clips)
    }


def lines(tables):
    """The table of docs/rewards.md, in Markdown, a score for each size."""
    names = list(next(iter(tables[0].values())))
    yield f"| clip | {' | '.join(f'`{name}`' if name != 'product' else 'their product' for name in names)} |"
    yield "|---|" + "---|" * len(names)
    for clip in tables[0]:
        cells = (" / ".join(f"{rows[clip][name]:.2f}" for rows in tables) for name in names)
        yield f"| {clip} | {' | '.join(cells)} |"


if __name__ == "__main__":
    print("\n".join(lines([table(size) for size in SIZES])))

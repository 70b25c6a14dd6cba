"""The judge of denoisers: every input of the network, and what comes of its answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Any

import torch
from torch import Tensor

from unirl_env.errors import ContractError
from unirl_env.models.denoiser import Denoiser, in_context
from unirl_env.models.shared.listening import as_output, heard
from unirl_env.models.shared.network_inputs import Gap, Row, gap, gaps, rows_of
from unirl_env.models.shared.recording import RecordedPipeline, Recording, Step
from unirl_env.types import Prompt, Sample

PROMPTS = (
    Prompt("a red circle at the top left", negative="green"),
    Prompt("cat", negative="a small yellow triangle"),
)
"""Two of unequal length, with negatives of other lengths."""
MOST = {torch.float32: 1e-5, torch.float64: 1e-5}
MOST_IN_HALF = 3e-2
SEED = 20


def allowed(dtype: torch.dtype) -> float:
    """How far equal numbers may be apart by rounding, relative to the largest."""
    return MOST.get(dtype, MOST_IN_HALF)


@dataclass
class DenoiserReport:
    """What `check_denoiser` found.

    Attributes:
        denoiser: The class that was held against the pipeline.
        pipeline: The class of that.
        dtype: Of weights and activations.
        size: Height and width in pixels.
        num_steps: The numbers of steps.
        guidances: The values of classifier-free guidance.
        gaps: By what was compared, the largest difference: relative to the largest number, where that is
            above 1.
        not_compared: What was not, and why.
    """

    denoiser: str
    pipeline: str
    dtype: torch.dtype
    size: tuple[int, int]
    num_steps: tuple[int, ...]
    guidances: tuple[float, ...]
    gaps: dict[str, float] = field(default_factory=dict)
    not_compared: list[str] = field(default_factory=list)
    wrong: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        height, width = self.size
        lines = [
            f"{self.denoiser} against {self.pipeline} in {kind}, {height} x {width} pixels, "
            f"{' and '.join(map(str, self.num_steps))} steps, guidance "
            f"{' and '.join(f'{g:g}' for g in self.guidances)}:"
        ]
        lines += [f"  {name}: off by at most {size:.2g}" for name, size in self.gaps.items()]
        return "\n".join([*lines, *(f"  not compared: {said}" for said in self.not_compared)])


def judge(
    denoiser: Denoiser,
    recorded: RecordedPipeline,
    *,
    num_steps: Sequence[int] = (2, 3),
    guidance: float = 3.5,
    prompts: Sequence[Prompt] = PROMPTS,
) -> DenoiserReport:
    """`check_denoiser` of a pipeline that listens already.

    Raises:
        ContractError: If they differ.
    """
    court = _Court(denoiser, recorded, list(prompts), tuple(num_steps), guidance)
    for hearing in (court.latents, court.schedule, court.inputs, court.picture):
        hearing()
    report = court.report
    if report.wrong:
        raise ContractError(
            f"{report.denoiser} must give what {report.pipeline} gives, got other\n"
            + "\n".join(f"- {name}: {told}" for name, told in report.wrong.items())
            + f"\ntry its own pieces for these, as the leaves of `unirl_env.models` do.\n{report}"
        )
    return report


class _Court:
    """One comparison."""

    def __init__(
        self,
        denoiser: Any,
        recorded: RecordedPipeline,
        prompts: list[Prompt],
        num_steps: tuple[int, ...],
        guidance: float,
    ):
        self.denoiser, self.recorded, self.prompts = denoiser, recorded, prompts
        if "negative_prompt" not in recorded.takes:  # what it takes in their place is nothing
            self.prompts = [replace(prompt, negative="") for prompt in prompts]
        count = len(self.prompts)
        # Pipelines that change pictures take one at a time.
        self.calls = [[i] for i in range(count)] if prompts[0].images else [list(range(count))]
        guided = recorded.guides and not getattr(denoiser, "unguided", "")
        self.report = DenoiserReport(
            type(denoiser).__name__,
            type(recorded.pipeline).__name__,
            denoiser.dtype,
            (denoiser.height, denoiser.width),
            num_steps,
            (1.0, guidance) if guided else (1.0,),
        )
        self.most = allowed(denoiser.dtype)
        if not guided:
            why = getattr(denoiser, "unguided", "") or "the pipeline has none"
            self.report.not_compared.append(f"guidance, because {why}")
        if denoiser.height == denoiser.width:
            self.report.not_compared.append("a picture that is not square; try another `height`")

    def found(self, name: str, gap: Gap, where: str = "") -> None:
        """Note how far something is off."""
        before = self.report.gaps.get(name, -1.0)
        self.report.gaps[name] = max(before, gap.size)
        if gap.size > self.most and gap.size > before:
            size = "" if gap.size == float("inf") else f"off by {gap.size:.3g}, "
            self.report.wrong[name] = f"{size}{gap.told}{where}"

    def recordings(self) -> Iterator[tuple[Recording, float, list[int]]]:
        """The pipeline's calls, for each number of steps and each guidance, and of which prompts they are."""
        for count, guidance, of in product(self.report.num_steps, self.report.guidances, self.calls):
            texts, without = zip(*((self.prompts[i].text, self.prompts[i].negative) for i in of), strict=True)
            how = {"without": without, "guidance": guidance, "num_steps": count}
            yield self.recorded.run(texts, **how, seed=SEED), guidance, of

    @cached_property
    def context(self) -> dict[str, Tensor]:
        """What the denoiser's encoders say of the prompts."""
        return in_turn(self.denoiser, self.prompts, negative=False)

    def latents(self) -> None:
        """The shape of a latent, and what an episode begins with."""
        recording = self.recorded.run([self.prompts[0].text], num_steps=2, seed=SEED)
        begun = recording.steps[0].sample
        shape, own = tuple(begun.shape[1:]), tuple(self.denoiser.latent_shape)
        if shape != own:
            raise ContractError(
                f"`latent_shape` of {self.report.denoiser} must be that of {self.report.pipeline}, "
                f"{list(shape)}, got {list(own)} at {self.report.size[0]} x {self.report.size[1]} pixels; "
                "try its height before its width."
            )
        found = []
        for dtype in {torch.float32, self.denoiser.dtype}:  # pipelines draw in the one or the other
            keyed = torch.Generator().manual_seed(SEED)
            noise = torch.randn(begun.shape, generator=keyed, dtype=dtype)
            started = self.denoiser.start(noise.float(), float(recording.sigmas[0]))
            # A pipeline may pack its noise: it is held against the same numbers in any order.
            found.append(gap(*(each.float().cpu().flatten().sort().values for each in (started, begun))))
        self.found("initial latents", min(found))

    def schedule(self) -> None:
        """The noise levels."""
        even = getattr(self.denoiser, "schedule", "pipeline") == "flow"
        for count in self.report.num_steps:
            theirs = self.recorded.run([self.prompts[0].text], num_steps=count, even=even).sigmas
            ours = self.denoiser.sigmas(count).float().cpu()
            self.found(
                "schedule", gap(ours, theirs), f" in {count} steps: {numbers(ours)} for {numbers(theirs)}"
            )

    def inputs(self) -> None:
        """Every argument of the network, and what its answers come to."""
        denoiser = self.denoiser
        without = {}
        if len(self.report.guidances) > 1:
            without = in_turn(denoiser, self.prompts, negative=True)
        for recording, guidance, of in self.recordings():
            count = len(recording.steps)
            doubled = {name: value[of] for name, value in self.context.items()}
            if guidance != 1.0:
                doubled = {name: torch.cat([without[name][of], value]) for name, value in doubled.items()}
            for place, step in enumerate(recording.steps):
                where = f" (step {place + 1} of {count}, guidance {guidance:g})"
                sigma = recording.sigmas[place].to(step.sample.device)
                self._at(step, sigma, doubled, guidance, where)

    def _at(
        self, step: Step, sigma: Tensor, context: Mapping[str, Tensor], guidance: float, where: str
    ) -> None:
        rows, count = rows_of(step.calls), len(step.sample)
        halves = 1 if guidance == 1.0 else 2
        # Some pipelines end guidance on the way, and ask their network for the prompts alone then.
        ended = halves == 2 and len(rows) == count
        if len(rows) != halves * count and not ended:
            told = f"{halves} rows of the network for each prompt in the place of {len(rows) / count:g}"
            self.found("network calls", Gap(float("inf"), told), where)
            return
        network = Replaying(self.recorded, rows, self.most if ended else None)
        latent, level = torch.cat([step.sample] * halves), sigma.expand(halves * count)
        denoiser = self.denoiser
        with torch.no_grad():
            reading = denoiser.read(network.module, context)
            network.gaps.clear()  # a pass that reads texts in advance is no step of the pipeline's
            velocity = denoiser.velocity(network.module, latent, level, reading).float()
            if guidance != 1.0:
                velocity = denoiser.guided(*velocity.chunk(2), guidance, level[:count])
        network.module.hear = None
        for name, found in network.gaps.items():
            self.found(f"`{name}`", found, where)
        ours, theirs = velocity, step.output.float()
        off = gap(ours, theirs)
        if off.size > self.most and gap(-ours, theirs).size <= self.most:
            off = off._replace(told=f"{off.told}: the sign is the other one")
        self.found("velocity" if guidance == 1.0 else "guided velocity", off, where)

    def picture(self) -> None:
        """What final latents are decoded to."""
        generator = torch.Generator().manual_seed(SEED + 1)
        final = torch.randn(len(self.prompts), *self.denoiser.latent_shape, generator=generator)
        final, count = final.to(self.denoiser.device), min(self.report.num_steps)
        decoded, rounded = shown(in_context(self.denoiser.decode, final, self.context))
        for of in self.calls:
            texts = [self.prompts[i].text for i in of]
            theirs = self.recorded.run(texts, num_steps=count, final=final[of]).images
            self.found("picture", gap(*near(decoded[of], theirs.float().cpu(), rounded)))


def shown(samples: Sequence[Sample]) -> tuple[Tensor, float]:
    """Pictures or clips as float32 in [0, 1], and how far rounding to bytes may have moved them."""
    made = torch.stack([s.video if s.image is None else s.image for s in samples]).cpu()
    return (made.float() / 255, 0.51 / 255) if made.dtype == torch.uint8 else (made.float(), 0.0)


def near(ours: Tensor, theirs: Tensor, rounded: float) -> tuple[Tensor, Tensor]:
    """Both, the first with what is within `rounded` of the second put in its place."""
    if ours.shape != theirs.shape:
        return ours, theirs
    return torch.where((ours - theirs).abs() <= rounded, theirs, ours), theirs


class Replaying:
    """A network that answers what it answered the pipeline, wherever it is given the same.

    Args:
        recorded: The pipeline.
        rows: What it gave the network, and the answers.
        others: Rows that are further from all of these get answers of their own, and are not compared; None
            compares all.

    Attributes:
        module: The network.
        gaps: By the names of its arguments, how far what it is given is from the nearest row.
    """

    def __init__(self, recorded: RecordedPipeline, rows: list[Row], others: float | None = None):
        self.rows, self.module, self.others = rows, recorded.network, others
        self.module.hear = self.hear
        self.gaps: dict[str, Gap] = {}

    def hear(self, *args: Any, **options: Any) -> Any:
        """Answer each row as the nearest one was."""
        call = heard(self.module, args, options)
        answers = []
        for row in rows_of([call]):
            nearest, found = min(
                ((known, gaps(row.arguments, known.arguments)) for known in self.rows),
                key=lambda pair: (sum(g.size > 1e-3 for g in pair[1].values()), _total(pair[1])),
            )
            if self.others is not None and any(each.size > self.others for each in found.values()):
                answers.append(torch.ones_like(nearest.answer))
                continue
            answers.append(nearest.answer)
            for name, each in found.items():
                if each.size >= self.gaps.get(name, Gap(-1.0, "")).size:
                    self.gaps[name] = each
        listed = not isinstance(next(iter(call.arguments.values())), Tensor)
        return as_output(answers if listed else torch.stack(answers), call.arguments)


def _total(found: Mapping[str, Gap]) -> float:
    return sum(min(each.size, 1e6) for each in found.values())


def in_turn(denoiser: Denoiser, prompts: Sequence[Prompt], *, negative: bool) -> dict[str, Tensor]:
    """The context of prompts, each encoded by itself, as environments do."""
    found = [denoiser.encode([prompt], negative=negative) for prompt in prompts]
    return {name: torch.cat([each[name] for each in found]) for name in found[0]}


def numbers(sigmas: Tensor) -> str:
    """Noise levels in a few words."""
    return f"[{', '.join(f'{value:.4g}' for value in sigmas.tolist()[:6])}]"

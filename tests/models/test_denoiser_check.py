"""The judge of denoisers: it acquits what is right, and names what is wrong by its own name."""

import pytest
import torch

from unirl_env.errors import ConfigError, ContractError, ModelNotFound
from unirl_env.models import check_denoiser
from unirl_env.models.gaussian_mixture import GaussianMixtureDenoiser
from unirl_env.models.sd3 import SD3Denoiser
from unirl_env.models.shared.network_inputs import gap, gaps
from unirl_env.types import Prompt

SMALL = {"height": 32, "width": 48, "max_sequence_length": 10}


class OtherSign(SD3Denoiser):
    def _forward(self, network, latent, sigma, context):
        return -super()._forward(network, latent, sigma, context)


class OtherTime(SD3Denoiser):
    def _forward(self, network, latent, sigma, context):
        return super()._forward(network, latent, sigma / self._flow.num_train_timesteps, context)


class OtherLatent(SD3Denoiser):
    def _forward(self, network, latent, sigma, context):
        return super()._forward(network, 0.999 * latent, sigma, context)


class OtherText(SD3Denoiser):
    def _encode(self, texts):
        return super()._encode([text.upper() for text in texts])


class NoPooledText(SD3Denoiser):
    def _encode(self, texts):
        context = super()._encode(texts)
        return {**context, "pooled_prompt_embeds": torch.zeros_like(context["pooled_prompt_embeds"])}


class NegativesForgotten(SD3Denoiser):
    def encode(self, prompts, *, negative=False):
        return super().encode([Prompt(p.text, negative="") for p in prompts], negative=negative)


class OtherGuidance(SD3Denoiser):
    def guided(self, without, with_prompt, guidance, sigma):
        return with_prompt + guidance * (with_prompt - without)


class Transposed(SD3Denoiser):
    def _shape(self, rows, columns):
        return super()._shape(columns, rows)


class OtherScale(SD3Denoiser):
    def _draw(self, vae, latents):
        return super()._draw(vae, 1.5305 * latents)


class Flipped(SD3Denoiser):
    def _draw(self, vae, latents):
        return super()._draw(vae, latents).flip(-1)


class OtherSchedule(SD3Denoiser):
    def sigmas(self, num_steps):
        return super().sigmas(num_steps) ** 1.01


class WideStart(SD3Denoiser):
    def start(self, noise, sigma):
        return 1.01 * noise


BROKEN = {
    OtherSign: r"- velocity: off by .* the sign is the other one",
    OtherTime: r"- `timestep`: off by 0\.999, 1 in the place of 1000 \(step 1 of 2, guidance 1\)",
    OtherLatent: "- `hidden_states`: off by",
    OtherText: "- `encoder_hidden_states`: off by",
    NoPooledText: "- `pooled_projections`: off by",
    NegativesForgotten: r"- `encoder_hidden_states`: off by .* \(step \d of \d, guidance 3\.5\)",
    OtherGuidance: "- guided velocity: off by",
    Transposed: r"`latent_shape` .* must be .*\[4, 8, 12\], got \[4, 12, 8\] at 32 x 48 pixels",
    OtherScale: "- picture: off by",
    Flipped: "- picture: off by",
    OtherSchedule: r"- schedule: off by .* in \d steps: \[1, 0\.\d",
    WideStart: "- initial latents: off by",
}


FOLLOWS = {OtherText: 2, OtherSign: 2, NegativesForgotten: 3}
"""How much is off where one mistake has consequences: other texts are other in both encodings, and so on."""


@pytest.mark.parametrize("schedule", ["pipeline", "flow"])
def test_what_is_right_is_acquitted(tiny_dir, schedule):
    report = check_denoiser(SD3Denoiser(tiny_dir, schedule=schedule, **SMALL))
    compared = {"schedule", "initial latents", "velocity", "guided velocity", "picture"}
    inputs = {"hidden_states", "timestep", "encoder_hidden_states", "pooled_projections"}
    assert compared | {f"`{name}`" for name in inputs} <= set(report.gaps) and not report.not_compared
    assert max(report.gaps.values()) <= 1e-5
    assert "guidance 1 and 3.5" in str(report) and "32 x 48" in str(report)


def test_a_directory_is_judged_by_its_own_leaf_on_a_picture_that_is_not_square(tiny_dir):
    report = check_denoiser(str(tiny_dir), max_sequence_length=10, num_steps=(1,))
    assert report.denoiser == "SD3Denoiser" and report.size[0] != report.size[1]
    assert report.num_steps == (1,)


def test_texts_in_lots_are_judged_alike(tiny_dir):
    report = check_denoiser(SD3Denoiser(tiny_dir, rows_per_forward=3, **SMALL), num_steps=(2,))
    assert max(report.gaps.values()) <= 1e-5


def test_half_precision_is_held_to_its_own_bound(tiny_dir):
    right, wrong = (kind(tiny_dir, dtype="bfloat16", **SMALL) for kind in (SD3Denoiser, OtherSign))
    assert check_denoiser(right, num_steps=(2,)).dtype == torch.bfloat16
    with pytest.raises(ContractError, match="- velocity"):
        check_denoiser(wrong, num_steps=(2,))


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_what_is_wrong_is_convicted_by_its_name(tiny_dir, kind):
    denoiser = kind(tiny_dir, schedule="pipeline", **SMALL)
    with pytest.raises(ContractError, match=BROKEN[kind]) as caught:
        check_denoiser(denoiser)
    said = str(caught.value)
    assert kind.__name__ in said and "StableDiffusion3Pipeline" in said
    wrong = [line for line in said.splitlines() if line.startswith("- ")]
    assert len(wrong) <= FOLLOWS.get(kind, 1), "what is right is not blamed"


def test_what_has_no_pipeline_is_refused(tiny_dir):
    with pytest.raises(ConfigError, match=r"GaussianMixtureDenoiser.*check_vector_env"):
        check_denoiser(GaussianMixtureDenoiser())
    with pytest.raises(ConfigError, match="`options`"):
        check_denoiser(SD3Denoiser(tiny_dir), height=32)
    with pytest.raises(ModelNotFound, match="nowhere"):
        check_denoiser("./nowhere")


class TestInputs:
    """Rows of arguments, which may be padded and batched in other ways."""

    text = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))

    def row(self, width, *, mask=True, kind=torch.int64, **more):
        """A text of 5 tokens, padded to `width` with a mask."""
        full = torch.cat([self.text, torch.zeros(width - 5, 3)])
        counted = (torch.arange(width) < 5).to(kind) if mask else None
        return {"x": torch.zeros(4, 2), "text": full, "text_mask": counted, **more}

    def worst(self, one, other):
        return {name for name, found in gaps(one, other).items() if found.size > 0}

    def test_padding_that_masks_leave_out_does_not_count(self):
        assert not self.worst(self.row(8), self.row(7))
        assert not self.worst(self.row(8), self.row(5, mask=False))
        assert not self.worst(self.row(5, mask=False), self.row(5))
        assert not self.worst(self.row(8, kind=torch.float32), self.row(7, kind=torch.float32))

    def test_a_missing_mask_is_named(self):
        assert self.worst(self.row(8, mask=False), self.row(8)) == {"text_mask"}
        assert "text" in self.worst(self.row(8, mask=False), self.row(7))

    def test_texts_of_another_length_or_place_are_named(self):
        longer = {**self.row(8), "text_mask": (torch.arange(8) < 6).long()}
        assert self.worst(longer, self.row(7)) == {"text", "text_mask"}
        behind = {**self.row(8), "text_mask": (torch.arange(8) >= 3).long()}
        assert "text" in self.worst(behind, self.row(7))

    def test_a_mask_that_is_added_is_no_mask_of_truth_values(self):
        one, other = self.row(8, kind=torch.bool), self.row(8, kind=torch.float32)
        assert self.worst(one, other) == {"text_mask"}

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            (torch.zeros(2), torch.zeros(3)),
            ([(1, 2, 3)], [(1, 3, 2)]),
            ([torch.ones(2)], [torch.zeros(2)]),
            (None, torch.ones(1)),
            ("a", "b"),
            ({"scale": 1.0}, {}),
            (torch.tensor([float("nan")]), torch.ones(1)),
        ],
    )
    def test_what_differs_differs(self, one, other):
        assert gap(one, other).size > 0 and gap(other, one).size > 0

    @pytest.mark.parametrize(
        ("one", "other"),
        [(None, {}), (torch.tensor(3), 3.0), ([(1, 2)], [(1, 2)]), (torch.ones(1), torch.tensor(1.0))],
    )
    def test_what_is_the_same_is_the_same(self, one, other):
        assert gap(one, other).size == 0

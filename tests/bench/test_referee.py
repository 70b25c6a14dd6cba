"""The referee: the same batches through several losses."""

import io

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from unirl_env.bench.referee import RefereeSettings, batches, judged, referee
from unirl_env.errors import ConfigError

GRPO = "unirl_env.functional:grpo_loss?clip_low=0.2"
HERE = "test_referee"


def theirs(old_log_prob, log_prob, advantages, response_mask):
    """The clipped surrogate as other libraries write and order it."""
    ratio = (log_prob - old_log_prob).exp()
    least = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    return -(least * response_mask).sum() / response_mask.sum()


def by_means(log_prob, old_log_prob, advantages, mask=None):
    """The same in the mean over texts."""
    ratio = (log_prob - old_log_prob).exp()
    least = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages) * mask
    return -(least.sum(1) / mask.sum(1)).mean(), {}


def broken(log_prob, old_log_prob, advantages):
    raise ValueError("not today")


def rows_of(*losses, **options):
    settings = RefereeSettings(losses=list(losses), **options)
    settings.check()
    return referee(settings, Console(file=io.StringIO()))


def test_what_another_library_calls_otherwise_is_the_same_loss():
    rows = [row for row in rows_of(GRPO, f"{HERE}:theirs") if row["loss"].endswith("theirs")]
    tokens = [row for row in rows if row["batch"].startswith("tokens")]
    assert len(tokens) == 4 and {row["verdict"] for row in tokens} == {"the same"}


def test_another_weighing_of_texts_is_found_out():
    rows = [row for row in rows_of(GRPO, f"{HERE}:by_means") if row["loss"].endswith("by_means")]
    tokens = {row["batch"]: row for row in rows if row["batch"].startswith("tokens")}
    assert {row["verdict"] for row in tokens.values()} == {"different"}
    assert 0.5 < tokens["tokens at ratio one"]["cosine"] < 0.999


def test_the_gradient_at_ratio_one_is_minus_the_advantage_over_the_count():
    batch = batches()["tokens at ratio one"]
    found = judged(GRPO, "x", batch)
    wanted = torch.where(batch["mask"], -batch["advantages"] / batch["mask"].sum(), 0.0)
    assert torch.allclose(found.gradient, wanted, atol=1e-7)


def test_on_latents_gradients_are_those_of_the_means():
    batch = batches()["latents at ratio one"]
    found = judged("unirl_env.functional:flow_dppo_loss?kl_threshold=0.1", "x", batch)
    pull = (batch["action"] - batch["mean"]) / batch["std"][..., None].square() / batch["mean"].shape[-1]
    wanted = -batch["advantages"][..., None] * pull / batch["mask"].sum()
    assert torch.allclose(found.gradient, wanted, atol=1e-6)
    assert found.gradient.shape == batch["mean"].shape


def test_what_a_loss_lacks_or_raises_is_told():
    rows = rows_of(GRPO, "unirl_env.functional:flow_dppo_loss?kl_threshold=0.1", f"{HERE}:broken")
    said = {(row["batch"], row["loss"].rpartition(":")[2]): row["verdict"] for row in rows}
    assert said["tokens far away", "flow_dppo_loss?kl_threshold=0.1"] == "needs mean, old_mean, std"
    assert said["tokens far away", "broken"] == "ValueError: not today"


def test_batches_of_ones_own(tmp_path):
    path = tmp_path / "mine.safetensors"
    parts = {name: torch.randn(3, 4) for name in ("log_prob", "old_log_prob", "advantages")}
    save_file({f"mine/{name}": tensor for name, tensor in parts.items()}, path)
    assert {row["batch"] for row in rows_of(GRPO, batches=str(path))} == {"mine"}
    save_file({"mine/log_prob": torch.zeros(2, 2)}, path)
    with pytest.raises(ConfigError, match="must have `advantages`"):
        rows_of(GRPO, batches=str(path))
    with pytest.raises(ConfigError, match="`losses` must name"):
        RefereeSettings().check()

"""The names and signatures that users' code relies on."""

import inspect

import pytest

import unirl_env.functional as F

EMPTY = inspect.Parameter.empty
PROMISED = {
    "flow_sigmas": [("num_steps", EMPTY), ("shift", 3.0)],
    "sde_step": [
        *((name, EMPTY) for name in ("velocity", "latent", "sigma", "sigma_next")),
        *(("dynamics", "flow"), ("eta", 0.7), ("sigma_max", None), ("next_latent", None), ("noise", None)),
    ],
    "group_advantages": [("rewards", EMPTY), ("group", EMPTY), ("scale", "group"), ("valid", None)],
    "grpo_loss": [
        *((name, EMPTY) for name in ("log_prob", "old_log_prob", "advantages", "clip_low")),
        *((name, None) for name in ("clip_high", "mask", "denominator")),
    ],
    "flow_dppo_loss": [
        *((name, EMPTY) for name in ("log_prob", "old_log_prob", "mean", "old_mean", "std", "advantages")),
        *(("kl_threshold", EMPTY), ("mask", None), ("denominator", None)),
    ],
    "drpo_loss": [
        *((name, EMPTY) for name in ("log_prob", "old_log_prob", "advantages")),
        *(("epsilon", 12.5), ("mask", None), ("denominator", None)),
    ],
}


@pytest.mark.parametrize("name", PROMISED)
def test_signatures(name):
    parameters = inspect.signature(getattr(F, name)).parameters
    assert [(n, parameters[n].default) for n, _ in PROMISED[name]] == PROMISED[name]
    extra = [p for n, p in parameters.items() if n not in dict(PROMISED[name])]
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not EMPTY for p in extra)


def test_every_public_function_is_exported_and_documented():
    for name in F.__all__:
        assert len(inspect.getdoc(getattr(F, name))) > 80, name
    assert len(set(F.__all__)) == len(F.__all__)

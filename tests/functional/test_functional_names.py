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
    "token_step": [
        *(("logits", EMPTY), ("temperature", 1.0), ("top_p", 1.0), ("top_k", 0)),
        *(("token", None), ("uniform", None)),
    ],
    "score_tokens": [
        *((name, EMPTY) for name in ("hidden", "weight", "token")),
        *(("temperature", 1.0), ("top_p", 1.0), ("top_k", 0), ("chunk_bytes", 256 << 20)),
    ],
    "keyed_uniform": [("episode_seeds", EMPTY), ("step", EMPTY), ("device", "cpu")],
    "dppo_loss": [
        *((name, EMPTY) for name in ("log_prob", "old_log_prob", "advantages")),
        *(("threshold", 0.15), ("divergence", "tv"), ("mask", None), ("denominator", None)),
    ],
    "gspo_loss": [
        *((name, EMPTY) for name in ("log_prob", "old_log_prob", "advantages", "sequence")),
        *(("clip_low", 3e-4), ("clip_high", 4e-4), ("mask", None), ("denominator", None)),
    ],
    "token_reference_kl": [
        *(("log_prob", EMPTY), ("ref_log_prob", EMPTY), ("old_log_prob", None), ("estimator", "k2")),
        *((name, None) for name in ("mask", "denominator", "weight")),
    ],
    "token_weights": [("lengths", EMPTY), ("aggregate", "token_mean"), ("horizon", None)],
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

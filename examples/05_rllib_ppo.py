"""RLlib's own PPO, unmodified, on a natively batched environment of ours.

PPO brings its own policy, which knows nothing of the flow: a small network looks at (latent, sigma) and
proposes the next latent. It must find from scratch what a velocity network already knows, so this shows that
the environment is an ordinary one, not how a generative model is best trained: that is 04. And because the
linear reward has no bound and nothing ties PPO to the data, what it learns is to leave the mixture.

    python examples/05_rllib_ppo.py
"""

import argparse

import ray
from ray.rllib.algorithms.ppo import PPOConfig


def main(iterations=10, num_envs=64, num_steps=5, num_env_runners=0):
    config = (
        PPOConfig()
        .environment(
            "unirl_env:unirl/GaussianMixture-v0",  # the prefix registers the id on remote workers, too
            # PPO wants one flat Box; natively batched environments flatten themselves.
            env_config={"num_steps": num_steps, "flat": True},
            normalize_actions=False,  # latents have unit scale; +-16 are only their bounds
        )
        .env_runners(
            num_env_runners=num_env_runners,
            num_envs_per_env_runner=num_envs,
            gym_env_vectorize_mode="vector_entry_point",
            rollout_fragment_length=4 * (num_steps + 1),  # an episode, and the step that resets
        )
        .training(
            lr=1e-3,
            gamma=1.0,
            lambda_=1.0,  # the only reward is the last one
            train_batch_size_per_learner=num_envs * 4 * (num_steps + 1),
            minibatch_size=256,
            num_epochs=6,
            grad_clip=1.0,
        )
        .rl_module(model_config={"fcnet_hiddens": [32, 32]})
        .debugging(seed=0)
    )
    algorithm = config.build_algo()
    curve = []
    for iteration in range(iterations):
        runners = algorithm.train()["env_runners"]
        curve.append(runners["episode_return_mean"])
        print(
            f"iteration {iteration:3}  reward {curve[-1]:6.3f}"
            f"  episode length {runners['episode_len_mean']:.1f}  episodes {runners['num_episodes']}"
        )
    algorithm.stop()
    return curve


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("iterations", "num-envs", "num-env-runners"):
        parser.add_argument(f"--{name}", type=int, default=argparse.SUPPRESS)
    main(**vars(parser.parse_args()))
    ray.shutdown()

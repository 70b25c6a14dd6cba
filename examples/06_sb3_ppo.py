"""Stable-Baselines3's PPO on `gym.make`: one environment, numpy, five return values.

As in 05, PPO starts from nothing and is tied to no data, so the reward rises by leaving the mixture. Left
out: the natively batched form, which SB3's own vector environments cannot use.

    pip install 'unirl-env[sb3]' && python examples/06_sb3_ppo.py
"""

import argparse

import gymnasium as gym
import numpy as np

from unirl_env.wrappers import flatten_for_ppo


def evaluate(env, act, episodes):
    """The mean reward of some episodes, always the same ones."""
    rewards = []
    for episode in range(episodes):
        obs, _ = env.reset(seed=1000 + episode)
        done = False
        while not done:
            obs, reward, terminated, truncated, _ = env.step(act(obs))
            done = terminated or truncated
        rewards.append(reward)
    return float(np.mean(rewards))


def main(timesteps=20_000, num_steps=5, episodes=50):
    from stable_baselines3 import PPO

    # One flat Box to see and one to act in; `flat=True` does the same, and goes through workers as well.
    env = flatten_for_ppo(gym.make("unirl_env:unirl/GaussianMixture-v0", num_steps=num_steps))
    agent = PPO(
        "MlpPolicy",
        env,
        n_steps=200 * num_steps,
        batch_size=250,
        gamma=1.0,
        gae_lambda=1.0,  # the only reward is the last one
        learning_rate=1e-3,
        policy_kwargs={"net_arch": [32, 32]},
        device="cpu",
        seed=0,
    )
    before = evaluate(env, lambda obs: agent.predict(obs, deterministic=True)[0], episodes)
    agent.learn(timesteps)
    after = evaluate(env, lambda obs: agent.predict(obs, deterministic=True)[0], episodes)
    print(f"reward {before:.3f} before, {after:.3f} after {timesteps} steps of one environment")
    return before, after


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--timesteps", type=int, default=20_000)
    main(**vars(parser.parse_args()))

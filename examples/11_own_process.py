"""A decision process of your own under GRPO: the way out of a maze, from wherever the prompt says.

    python examples/11_own_process.py

The optimum is known: the shortest ways.
"""

import torch
from gymnasium import spaces

import unirl_env
from unirl_env.agents import GRPOConfig
from unirl_env.models import MDP
from unirl_env.types import Sample, Scores

MAZE = ["....#", ".##..", "...#.", ".#...", ".#.#X"]  # X is the way out, and # a wall
SHORTEST = {"0,0": 8, "0,3": 5, "2,0": 6, "4,2": 4}  # where episodes start, and how far it is from there


class Table(torch.nn.Linear):
    """Logits of the four ways in each cell; at first, all are alike."""

    def __init__(self):
        super().__init__(25, 4, bias=False)
        torch.nn.init.zeros_(self.weight)

    def forward(self, seen):
        return super().forward(seen["cell"])


class Maze(MDP):
    """Walk right, left, down or up; whoever runs into a wall stays where it is."""

    action_space = spaces.Discrete(4)
    observation_spaces = {"cell": spaces.Box(0, 1, (25,))}
    max_steps = 20
    free = torch.tensor([[cell != "#" for cell in row] for row in MAZE])
    moves = torch.tensor([[0, 1], [0, -1], [1, 0], [-1, 0]])

    def initial(self, prompts, noise):
        cells = [[int(number) for number in prompt.text.split(",")] for prompt in prompts]
        return {"cell": torch.tensor(cells), "steps": torch.zeros(len(cells))}

    def transition(self, state, action, noise):
        ahead = (state["cell"] + self.moves[action]).clamp(0, 4)
        free = self.free[ahead[:, 0], ahead[:, 1]][:, None]
        return {"cell": torch.where(free, ahead, state["cell"]), "steps": state["steps"] + 1}

    def terminated(self, state):
        return (state["cell"] == 4).all(1)

    def observation(self, state):
        return {"cell": torch.nn.functional.one_hot(state["cell"] @ torch.tensor([5, 1]), 25).float()}

    def sample(self, state):
        return [Sample(latent=steps) for steps in state["steps"]]

    def network(self):
        return Table()


def haste(samples, prompts):
    """The fewer steps, the better."""
    return Scores(-torch.stack([sample.latent for sample in samples]))


unirl_env.register("own/Maze-v0", mdp=Maze, prompts=list(SHORTEST), scorer=haste)


def main(iterations=30):
    """Train; how many steps the likeliest ways then take, from each start."""
    config = GRPOConfig().environment("own/Maze-v0")
    policy = {"lora_rank": None, "eval_temperature": 0}
    agent = config.training(num_prompts=4, group_size=32, lr=0.3, policy=policy).build_algo()
    for _ in range(iterations):
        agent.train()
    played = agent.rollout_eval(agent.source.take(0, 4, seed=0))
    agent.stop()
    steps = {prompt.text: -int(reward) for prompt, reward in zip(played.prompts, played.rewards, strict=True)}
    for start, shortest in SHORTEST.items():
        print(f"from {start}: {steps[start]} steps, and the shortest way takes {shortest}")
    return steps


if __name__ == "__main__":
    main()

"""The episodes of an iteration, which RLlib calls `train_batch_size`, or per learner."""

from __future__ import annotations

from typing import Any

from unirl_env.arguments.values import whole
from unirl_env.errors import ConfigError

__all__ = ["BatchSize"]


class BatchSize:
    """RLlib's words for the number of episodes, beside `num_prompts` and `group_size` of an `AgentConfig`.

    What was said in several ways must agree, in whatever order it was said: `solve_batch_size` looks at it
    when all has been said. Where `num_prompts` was not, it follows from the others.
    """

    _train_batch_size: int | None = None
    _num_prompts_given: bool = False

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "num_prompts":
            super().__setattr__("_num_prompts_given", True)

    @property
    def train_batch_size(self) -> int:
        """B, episodes of an iteration."""
        given = self._train_batch_size
        return self.num_prompts * self.group_size if given is None else given

    @train_batch_size.setter
    def train_batch_size(self, value: int | None) -> None:
        self._train_batch_size = value

    def solve_batch_size(self) -> None:
        """Let `num_prompts` follow from RLlib's words, where they were given and it was not.

        Raises:
            ConfigError: If numbers contradict each other, or are no whole groups.
        """
        total, each = self._train_batch_size, self._train_batch_size_per_learner
        learners, group_size = max(1, self.num_learners), self.group_size
        for name, value in (("train_batch_size", total), ("train_batch_size_per_learner", each)):
            if value is not None:
                whole(name, value, 1)
        if each is not None:
            episodes = each * learners
            said = f"`train_batch_size_per_learner` x `num_learners` = {each} x {learners} = {episodes}"
            if total not in (None, episodes):
                raise ConfigError(
                    f"`train_batch_size` must be {episodes} or stay unset with {said}, got {total}: both "
                    "count the episodes of an iteration; try one of the two."
                )
        elif total is not None:
            episodes, said = total, f"`train_batch_size` = {total}"
        else:
            return
        if episodes % group_size:
            raise ConfigError(
                f"`group_size` must divide the episodes of an iteration, got {group_size} with {said}: they "
                f"are whole groups; try train_batch_size={max(1, episodes // group_size) * group_size}."
            )
        if self._num_prompts_given and self.num_prompts * group_size != episodes:
            raise ConfigError(
                f"`num_prompts` x `group_size` must be the episodes of an iteration, got "
                f"{self.num_prompts} x {group_size} = {self.num_prompts * group_size} with {said}; try "
                f"num_prompts={episodes // group_size}, or to leave it unset."
            )
        self.num_prompts = episodes // group_size
        self._num_prompts_given = False

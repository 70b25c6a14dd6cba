"""RLlib's group of learners where each holds a part of the policy: all are asked for a state."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ray.rllib.core import COMPONENT_LEARNER
from ray.rllib.core.learner.learner_group import LearnerGroup

from unirl_env.rollouts.calls import of_first_learner

Components = str | Collection[str] | None


class DividedLearnerGroup(LearnerGroup):
    """Learners of which none has a whole state by itself.

    RLlib's own group asks one alone, which would wait for the others for ever.
    """

    def get_state(
        self, components: Components = None, *, not_components: Components = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The whole state, gathered by all learners."""
        if self.is_local or not self._check_component(COMPONENT_LEARNER, components, not_components):
            return dict(super().get_state(components, not_components=not_components, **kwargs))
        group: Any = self
        wanted = group._get_subcomponents(COMPONENT_LEARNER, components)
        unwanted = group._get_subcomponents(COMPONENT_LEARNER, not_components)

        def state(learner: Any) -> Any:
            return learner.get_state(wanted, not_components=unwanted, **kwargs)

        return {COMPONENT_LEARNER: of_first_learner(self, state, divided=True)}

    def get_checkpointable_components(self) -> list[tuple[str, Any]]:
        """None that could write itself: the state is the group's own."""
        own: Any = super()
        return list(own.get_checkpointable_components()) if self.is_local else []

"""RLlib's group of learners, which goes on only with all of them; where each holds a part, all are asked."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from ray.rllib.core import COMPONENT_LEARNER
from ray.rllib.core.learner.learner_group import LearnerGroup

from unirl_env.rollouts.calls import learners_live, lost_learners, of_first_learner

Components = str | Collection[str] | None


class AgentLearnerGroup(LearnerGroup):
    """Learners that must all live.

    RLlib's own leaves one that has died out of every later call: the others would wait for it in the next
    exchange of gradients, and where none is left whoever wants its answer takes it from an empty list.
    """

    def require_all(self) -> None:
        """Refuse to go on without one.

        Raises:
            LearnerLost: If one has died in an earlier call.
        """
        group: Any = self
        living = 1 if self.is_local else group._worker_manager.num_healthy_actors()
        if living < len(self):
            raise lost_learners(living, len(self))

    def update(self, **arguments: Any) -> list[Any]:
        """RLlib's own, of all learners."""
        self.require_all()
        own: Any = super()
        return list(own.update(**arguments))

    def foreach_learner(
        self, func: Callable[..., Any], *, remote_actor_ids: list[int] | None = None, **options: Any
    ) -> Any:
        """RLlib's own, of all learners; of those that live where some are named."""
        if remote_actor_ids is None:
            self.require_all()
        own: Any = super()
        return own.foreach_learner(func, remote_actor_ids=remote_actor_ids, **options)

    def get_state(
        self, components: Components = None, *, not_components: Components = None, **kwargs: Any
    ) -> dict[str, Any]:
        """RLlib's own, of all learners."""
        self.require_all()
        with learners_live("a call"):
            return dict(super().get_state(components, not_components=not_components, **kwargs))

    def save_to_path(self, *arguments: Any, **options: Any) -> str:
        """RLlib's own, which overlooks a learner that dies instead of writing.

        Raises:
            LearnerLost: If one has died: what is written has no weights.
        """
        self.require_all()
        with learners_live("a checkpoint"):
            path = super().save_to_path(*arguments, **options)
        self.require_all()
        return str(path)


class DividedLearnerGroup(AgentLearnerGroup):
    """Learners of which none has a whole state by itself.

    RLlib's own group asks one alone, which would wait for the others for ever.
    """

    _asked = False

    def get_state(
        self, components: Components = None, *, not_components: Components = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The whole state, gathered by all learners.

        When it starts, RLlib asks for the untrained weights, to give them to runners. They have them: then
        nothing is gathered.
        """
        if kwargs.get("inference_only") and not self._asked:
            self._asked = True
            return {COMPONENT_LEARNER: {}}
        if self.is_local or not self._check_component(COMPONENT_LEARNER, components, not_components):
            return super().get_state(components, not_components=not_components, **kwargs)
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

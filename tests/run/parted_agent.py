"""An agent of the door whose states are written in parts, by what learners write them with."""

from pathlib import Path

from door_fakes import FakeAgent

from unirl_env.agents.parallel import stored

stored.FILE_BYTES = 16  # so that a state of three numbers takes several files


class PartedAgent(FakeAgent):
    """It begins to write at once, and is waited for when the run asks."""

    def __init__(self, seed, way="parted"):
        super().__init__(seed)
        self.storing = self if way == "parted" else None
        self.writer = stored.PartsWriter()
        self.shared = []

    def require_shared(self, folder):
        self.shared.append(folder)

    def begin(self, folder, facts):
        self.writer.begin(lambda: self.run_state()[0], folder, facts)

    def end(self):
        return self.writer.end()

    def run_meta(self):
        return {"iteration": self.iteration}

    def load_run_state(self, tensors, meta):
        super().load_run_state(stored.read(tensors, {}) if isinstance(tensors, Path) else tensors, meta)

"""Hosts `online_dpo.learner.learner.Learner`; its methods are the actor's, unchanged."""

from __future__ import annotations

import os

from online_dpo.learner.learner import Learner


class LearnerHost(Learner):
    """The learner in an actor's process."""

    def ready(self) -> int:
        """The process id, once the model is loaded."""
        return os.getpid()

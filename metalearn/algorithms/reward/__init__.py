"""Learners by reward: an example is an episode, which the learner itself plays."""

from metalearn.algorithms.reward.maml_rl import maml_rl

__all__ = ["maml_rl"]

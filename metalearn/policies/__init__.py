"""Policies for meta-reinforcement learning: acting, advantages and objectives."""

from metalearn.policies.advantages import (
    discounted_returns,
    gae,
    linear_baseline,
    normalised,
)
from metalearn.policies.distributions import Categorical, DiagonalGaussian, Distribution
from metalearn.policies.policy import (
    Policy,
    categorical_policy,
    gaussian_policy,
    policy_for,
)
from metalearn.policies.rollout import (
    Trajectories,
    first_nonfinite,
    log_probs,
    mean_return,
    play,
    returns,
    rollout,
)
from metalearn.policies.surrogates import (
    clipped,
    dice,
    exploration_term,
    importance_weights,
    likelihood_ratio,
)

__all__ = [
    "Categorical",
    "DiagonalGaussian",
    "Distribution",
    "Policy",
    "Trajectories",
    "categorical_policy",
    "clipped",
    "dice",
    "discounted_returns",
    "exploration_term",
    "first_nonfinite",
    "gae",
    "gaussian_policy",
    "importance_weights",
    "likelihood_ratio",
    "linear_baseline",
    "log_probs",
    "mean_return",
    "normalised",
    "play",
    "policy_for",
    "returns",
    "rollout",
]

"""Environments in pure JAX: families of decision problems whose parameters are tasks."""

from metalearn.environments.bandit_oracles import (
    bayes_optimal_value,
    play,
    thompson,
    ucb1,
)
from metalearn.environments.bandits import bernoulli_bandit, gaussian_bandit
from metalearn.environments.chain import Chain, check_chain
from metalearn.environments.environment import (
    Continuous,
    Discrete,
    Environment,
    check_environment,
)
from metalearn.environments.episodes import episodes, neighbours
from metalearn.environments.maze import maze
from metalearn.environments.navigation import corner_point, navigation, rotating_goal
from metalearn.environments.tabular import optimal_value, policy_value, tabular_mdp
from metalearn.environments.thrusters import (
    TEST_PAIRS,
    TRAIN_PAIRS,
    drift_chain,
    drift_point,
)

__all__ = [
    "Chain",
    "Continuous",
    "Discrete",
    "Environment",
    "TEST_PAIRS",
    "TRAIN_PAIRS",
    "bayes_optimal_value",
    "bernoulli_bandit",
    "check_chain",
    "check_environment",
    "corner_point",
    "drift_chain",
    "drift_point",
    "episodes",
    "gaussian_bandit",
    "maze",
    "navigation",
    "neighbours",
    "optimal_value",
    "play",
    "policy_value",
    "rotating_goal",
    "tabular_mdp",
    "thompson",
    "ucb1",
]

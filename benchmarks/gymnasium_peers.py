"""2-D navigation in gymnasium, with a Gaussian policy in PyTorch: what others do."""

from __future__ import annotations

import itertools
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from torch import nn

from benchmarks._harness import Contender

BOUND, NEAR = 0.1, 0.01
PLANE = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
MOVES = gymnasium.spaces.Box(-BOUND, BOUND, (2,), np.float32)


class Navigation(gymnasium.Env):
    """The task of `metalearn.environments.navigation`, one environment."""

    observation_space, action_space = PLANE, MOVES

    def __init__(self, goal: np.ndarray, horizon: int):
        self.goal, self.horizon = goal, horizon

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        del options
        super().reset(seed=seed)
        self.position, self.steps = np.zeros(2, np.float32), 0
        return self.position, {}

    def step(self, action: np.ndarray):
        self.position = self.position + np.clip(action, -BOUND, BOUND)
        self.steps += 1
        away = self.position - self.goal
        distance = float(np.sqrt(away @ away))
        there = bool((np.abs(away) < NEAR).all())
        ended = self.steps >= self.horizon
        return self.position, -distance, there, ended, {}


class AllAtOnce(VectorEnv):
    """All environments by one array, written for this task alone."""

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012

    def __init__(self, goals: np.ndarray, horizon: int):
        self.goals, self.horizon, self.num_envs = goals, horizon, len(goals)
        self.single_observation_space, self.single_action_space = PLANE, MOVES
        batch = gymnasium.vector.utils.batch_space
        self.observation_space = batch(PLANE, self.num_envs)
        self.action_space = batch(MOVES, self.num_envs)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        del seed, options
        self.position, self.steps = np.zeros((self.num_envs, 2), np.float32), 0
        return self.position, {}

    def step(self, actions: np.ndarray):
        self.position = self.position + np.clip(actions, -BOUND, BOUND)
        self.steps += 1
        away = self.position - self.goals
        distance = np.sqrt((away**2).sum(-1))
        there = (np.abs(away) < NEAR).all(-1)
        ended = np.full(self.num_envs, self.steps >= self.horizon)
        return self.position, -distance, there, ended, {}


class Policy(nn.Module):
    """A Gaussian policy, as `metalearn.policies.gaussian_policy`."""

    def __init__(self, widths: tuple[int, ...]):
        super().__init__()
        sizes, layers = (2, *widths), []
        for rows, columns in itertools.pairwise(sizes):
            layers += [nn.Linear(rows, columns), nn.Tanh()]
        self.mean = nn.Sequential(*layers, nn.Linear(sizes[-1], 2))
        self.log_std = nn.Parameter(torch.zeros(2))

    def forward(self, observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        law = torch.distributions.Normal(self.mean(observations), self.log_std.exp())
        actions = law.sample()
        return actions, law.log_prob(actions).sum(-1)


def contenders(
    goals: np.ndarray, horizon: int, widths: tuple[int, ...]
) -> dict[str, Contender]:
    """Rollouts of all goals to the horizon, one environment after another and all at once.

    Args:
      goals: Goal of each episode, float32 `[N, 2]`.
      horizon: Steps of an episode.
      widths: Hidden units of each layer of the policy.
    """

    def one_by_one() -> VectorEnv:
        make = [lambda goal=goal: Navigation(goal, horizon) for goal in goals]
        return SyncVectorEnv(make)

    return {
        "gymnasium SyncVectorEnv, torch": _played(one_by_one, horizon, widths),
        "a vector environment of NumPy, torch": _played(
            lambda: AllAtOnce(goals, horizon), horizon, widths
        ),
    }


def _played(make: Any, horizon: int, widths: tuple[int, ...]) -> Contender:
    def setup():
        torch.manual_seed(0)
        environment, policy = make(), Policy(widths)

        def play() -> tuple[np.ndarray, ...]:
            seen: list[tuple[Any, ...]] = []
            observations, _ = environment.reset(seed=0)
            with torch.no_grad():
                for _ in range(horizon):
                    actions, logs = policy(torch.from_numpy(observations))
                    chosen = actions.numpy()
                    following, rewards, there, ended, _ = environment.step(chosen)
                    seen.append((observations, chosen, rewards, there | ended, logs))
                    observations = following
            return tuple(np.stack([np.asarray(v) for v in row]) for row in zip(*seen))

        play()
        return play

    return Contender(setup)

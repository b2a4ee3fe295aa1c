"""What every environment keeps to, and what the checks of the contract refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metalearn import environments as env
from metalearn.environments.environment import no_action

HORIZON = 4
MADE = {
    "bernoulli": lambda horizon: env.bernoulli_bandit(3, horizon),
    "gaussian": lambda horizon: env.gaussian_bandit(3, horizon),
    "tabular": lambda horizon: env.tabular_mdp(3, 2, horizon),
    "navigation": lambda horizon: env.navigation(horizon),
    "sparse corner": lambda horizon: env.corner_point(True, horizon),
    "dense corner": lambda horizon: env.corner_point(False, horizon),
    "drift": lambda horizon: env.drift_point(horizon),
    "hidden drift": lambda horizon: env.drift_point(horizon, show_goal=False),
    "maze": lambda horizon: env.maze(7, horizon),
}
every = pytest.mark.parametrize("name", MADE)


def _random_action(environment, key):
    actions = environment.actions
    if isinstance(actions, env.Discrete):
        return jax.random.randint(key, (), 0, actions.num)
    shape = (actions.size,)
    return 1.5 * actions.bound * jax.random.uniform(key, shape, minval=-1.0)


def _rollout(environment, key, task):
    """Everything that a random episode of two steps beyond the horizon returns."""

    def step(state, key):
        k_act, k_step = jax.random.split(key)
        action = _random_action(environment, k_act)
        seen, state, *rest = environment.step(k_step, state, action, task)
        return state, (seen, state, *rest)

    first, state = environment.reset(key, task)
    return first, jax.lax.scan(step, state, jax.random.split(key, HORIZON + 2))[1]


@functools.cache
def _run(name):
    """Tasks `[3]`, rollouts `[3, 2]`, the last of them alone, and steps at the bounds.

    All under one `jit`, for compiling is what takes time.
    """
    environment = MADE[name](HORIZON)
    rollout = functools.partial(_rollout, environment)

    def run(keys):
        tasks = jax.vmap(environment.task)(keys[:, 0])
        many = jax.vmap(jax.vmap(rollout, (0, None)))(keys, tasks)
        task = jax.tree.map(lambda leaf: leaf[2], tasks)
        _, state = environment.reset(keys[2, 1], task)
        step = lambda action: environment.step(keys[2, 1], state, action, task)
        edges = jax.vmap(step)(jnp.concatenate(_edges(environment.actions)))
        return tasks, many, rollout(keys[2, 1], task), edges

    return jax.jit(run)(jax.random.split(jax.random.key(7), (3, 2)))


def _edges(actions):
    """Two actions at the bounds and two beyond them."""
    if isinstance(actions, env.Discrete):
        last = actions.num - 1
        return jnp.array([last, 0]), jnp.array([last + 3, -2])
    signs = jnp.where(jnp.arange(actions.size) % 2 == 0, 1.0, -1.0)
    within = actions.bound * jnp.stack([signs, -signs])
    return within, 7.0 * within


@every
def test_environments_pass_their_check(name):
    env.check_environment(MADE[name](HORIZON))


@every
def test_random_episodes_are_finite_and_do_not_depend_on_the_batch(name):
    _, many, alone, _ = _run(name)
    for one, leaf in zip(jax.tree.leaves(alone), jax.tree.leaves(many), strict=True):
        assert leaf.shape[:2] == (3, 2) and np.all(np.isfinite(leaf))
        np.testing.assert_allclose(one, leaf[2, 1], rtol=1e-5, atol=1e-6)


@every
def test_episodes_are_truncated_at_the_horizon_and_not_terminated_by_it(name):
    _, (_, (_, _, reward, terminated, truncated, _)), _, _ = _run(name)
    assert reward.shape == (3, 2, HORIZON + 2)
    over = np.arange(1, HORIZON + 3) >= HORIZON
    np.testing.assert_array_equal(truncated, np.broadcast_to(over, truncated.shape))
    assert not np.any(terminated)


@every
def test_episodes_and_tasks_differ_by_their_keys(name):
    tasks, (_, (_, _, reward, *_)), _, _ = _run(name)
    assert not np.array_equal(reward[0, 0], reward[1, 0]) or "corner" in name
    first = [np.asarray(leaf) for leaf in jax.tree.leaves(tasks)]
    assert any(not np.array_equal(leaf[0], leaf[1]) for leaf in first)


@every
def test_actions_beyond_the_bounds_act_as_the_nearest_within(name):
    edges = [np.asarray(leaf) for leaf in jax.tree.leaves(_run(name)[3])]
    for leaf in edges:
        np.testing.assert_array_equal(leaf[2:], leaf[:2])
    # The two ends act differently, so that clipping is what makes them equal.
    assert any(not np.array_equal(leaf[0], leaf[1]) for leaf in edges)


@every
def test_a_horizon_of_zero_is_refused(name):
    for wrong in (0, -1, 2.0, True, "4"):
        with pytest.raises(ValueError, match=r"(horizon|pulls) is .*; expected an integer"):
            MADE[name](wrong)


@every
def test_equal_settings_are_one_environment(name):
    assert MADE[name](HORIZON) is MADE[name](HORIZON)
    assert MADE[name](HORIZON).name != MADE[name](HORIZON + 1).name


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: env.bernoulli_bandit(1),
            ValueError,
            "arms is 1; expected an integer of 2",
        ),
        (lambda: env.gaussian_bandit(0), ValueError, "arms is 0; expected an integer of 2"),
        (lambda: env.gaussian_bandit(2, spread=-1), ValueError, "spread is -1; expected"),
        (lambda: env.tabular_mdp(0), ValueError, "states is 0; expected an integer of 1"),
        (lambda: env.tabular_mdp(2, 0), ValueError, "actions is 0; expected"),
        (lambda: env.tabular_mdp(noise=-0.1), ValueError, "noise is -0.1; expected"),
        (lambda: env.corner_point(1), TypeError, "sparse is 1; expected True or False"),
        (lambda: env.drift_point(dt=0), ValueError, "dt is 0; expected .* above 0"),
        (lambda: env.drift_point(drag=-1), ValueError, "drag is -1; expected"),
        (lambda: env.drift_point(dt=1, drag=2), ValueError, "Take a smaller dt"),
        (lambda: env.drift_point(show_goal=0), TypeError, "show_goal is 0; expected"),
        (lambda: env.drift_chain(1), ValueError, "episodes is 1; expected an integer of 2"),
        (lambda: env.drift_chain(pairs=()), ValueError, "one or more pairs"),
        (lambda: env.drift_chain(pairs=(0, 1)), ValueError, "one or more pairs"),
        (lambda: env.drift_chain(pairs=[(1, 1)]), ValueError, "pairs of different"),
        (lambda: env.drift_chain(pairs=[(0, 4)]), ValueError, "thrusters from 0 to 3"),
        (lambda: env.drift_chain(horizon=0), ValueError, "horizon is 0; expected"),
        (lambda: env.rotating_goal(1), ValueError, "episodes is 1; expected"),
        (lambda: env.rotating_goal(angles=(1, 0)), ValueError, "least and the largest"),
        (lambda: env.rotating_goal(angles=0.5), ValueError, "angles is 0.5; expected two"),
        (lambda: env.rotating_goal(radius=0), ValueError, "radius is 0; expected"),
        (lambda: env.rotating_goal(horizon=0), ValueError, "horizon is 0; expected"),
        (lambda: env.maze(3), ValueError, "size is 3; expected an integer of 5"),
    ],
)
def test_wrong_settings_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def _changed(index, change):
    """Navigation, of whose step one value is changed."""
    good = env.navigation(HORIZON)

    def step(*arguments):
        values = list(good.step(*arguments))
        values[index] = change(values[index])
        return tuple(values)

    return good._replace(step=step)


GOOD = env.navigation(HORIZON)
WRONG = {
    "horizon": (GOOD._replace(horizon=0), ValueError, "horizon of navigation"),
    "size": (GOOD._replace(observation_size=0), ValueError, "observation_size of"),
    "another size": (
        GOOD._replace(observation_size=3),
        ValueError,
        r"reset of .* observation of shape \(2,\); expected \(3,\)",
    ),
    "five values": (
        GOOD._replace(step=lambda *arguments: GOOD.step(*arguments)[:5]),
        TypeError,
        "returns 5 values; expected a tuple of observation",
    ),
    "seen": (_changed(0, lambda seen: seen[:1]), ValueError, r"step of .* shape \(1,\)"),
    "seen integers": (
        _changed(0, lambda seen: seen.astype(jnp.int32)),
        ValueError,
        "step of .* observation of int32; expected floats",
    ),
    "state": (
        _changed(1, lambda state: state._replace(steps=state.steps + 0.5)),
        ValueError,
        "expected the same arrays",
    ),
    "reward": (_changed(2, lambda reward: reward[None]), ValueError, "expected a float"),
    "reward of integers": (
        _changed(2, lambda reward: jnp.int32(1)),
        ValueError,
        r"reward int32\[\]; expected a float scalar",
    ),
    "terminated": (
        _changed(3, lambda flag: flag.astype(jnp.float32)),
        ValueError,
        r"terminated float32\[\]; expected a bool",
    ),
    "truncated": (_changed(4, lambda flag: flag[None]), ValueError, "truncated bool"),
}


@pytest.mark.parametrize("what", WRONG)
def test_the_check_refuses_other_shapes_and_kinds(what):
    wrong, error, message = WRONG[what]
    with pytest.raises(error, match=message):
        env.check_environment(wrong)


def test_the_check_refuses_what_is_no_environment():
    with pytest.raises(TypeError, match=r"is a function; .* Make one, e.g. navigation\(\)"):
        env.check_environment(env.navigation)


def test_no_action_is_of_the_shape_and_kind_of_actions():
    assert no_action(env.Discrete(3)).dtype == jnp.int32
    assert no_action(env.Continuous(3, 0.1)).shape == (3,)


CHAINS = {
    "drift": lambda: env.drift_chain(3),
    "tested drift": lambda: env.drift_chain(4, env.TEST_PAIRS, show_goal=False),
    "rotating": lambda: env.rotating_goal(3),
}


@pytest.mark.parametrize("name", CHAINS)
def test_chains_pass_their_check(name):
    chain = CHAINS[name]()
    env.check_chain(chain)
    assert chain == CHAINS[name]()


def test_the_check_of_chains_refuses_other_tasks():
    good = env.rotating_goal(3)
    with pytest.raises(ValueError, match="with a leading axis of the length"):
        env.check_chain(good._replace(length=4))
    with pytest.raises(ValueError, match="tasks of drift-point"):
        env.check_chain(good._replace(environment=env.drift_point()))
    with pytest.raises(TypeError, match=r"expected Chain. Make one, e.g. drift_chain\(\)"):
        env.check_chain(env.navigation())


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (
            {"reset": lambda key, task: jnp.zeros(2)},
            TypeError,
            "expected a tuple of an obs",
        ),
        ({"step": lambda *given: None}, TypeError, "returns NoneType; expected a tuple"),
        ({"actions": None}, TypeError, r"actions of .* are None; expected Discrete\(num\)"),
        ({"actions": env.Discrete(0)}, ValueError, "number of actions of .* is 0"),
        ({"actions": env.Continuous(2, float("nan"))}, ValueError, "bound of the actions"),
    ],
)
def test_what_is_no_reset_step_or_action_is_named(change, error, words):
    with pytest.raises(error, match=words):
        env.check_environment(env.navigation(horizon=3)._replace(**change))

"""Surrogates against exact derivatives: all trajectories of small worlds, enumerated.

The policy has three parameters, which two states share and which enter its logits in a
curved way, so that no term of a Hessian vanishes. In "chain" two actions lead through two
states; in "short" the second action ends the episode at once.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metalearn import policies

pytestmark = pytest.mark.usefixtures("x64")

WORLDS = {  # actions and masks of all trajectories
    "bandit": ([[0], [1]], [[1], [1]]),
    "chain": ([[0, 0], [0, 1], [1, 0], [1, 1]], [[1, 1]] * 4),
    "short": ([[0, 0], [0, 1], [1, 0]], [[1, 1], [1, 1], [1, 0]]),
}
THETA, OTHER = np.array([0.3, -0.8, 0.9]), np.array([-0.4, 0.2, 1.1])


def logits(theta):
    a, b, c = theta
    return jnp.stack([jnp.stack([a, b * c]), jnp.stack([jnp.sin(b), a * c + b**2])])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class World:
    """Actions, states, rewards and masks of all N trajectories, `[4, 2]`.

    Where there are fewer they are filled up, so that one program serves all worlds: empty
    trajectories with the weight 0 stand in for missing ones.
    """

    actions: np.ndarray
    states: np.ndarray
    rewards: np.ndarray
    mask: np.ndarray
    weights: np.ndarray

    @property
    def to_go(self):
        return np.cumsum(self.rewards[:, ::-1], axis=1)[:, ::-1]

    def logs(self, theta):
        logs = jax.nn.log_softmax(logits(theta))[self.states, self.actions]
        return jnp.where(self.mask, logs, 0.0)

    def chances(self, theta):
        return jnp.exp(self.logs(theta).sum(1)) * self.weights

    def value(self, theta):
        """The expected return, exactly."""
        return self.chances(theta) @ self.rewards.sum(1)

    def expected(self, derivative, surrogate, advantages, behaviour=THETA):
        """The expected derivative of a surrogate of one trajectory, over all of them."""
        found = compiled(derivative, surrogate)(self, jnp.asarray(advantages), THETA)
        return np.tensordot(chances_of(self, behaviour), found, axes=1)


@functools.cache
def world_of(name, table=((1.0, 2.5), (-0.7, 4.0))):
    """A world with rewards `[2, 2]` of state and action."""
    actions, mask = (np.array(part) for part in WORLDS[name])
    weights = np.array([1.0] * len(actions) + [0.0] * (4 - len(actions)))
    fill = ((0, 4 - actions.shape[0]), (0, 2 - actions.shape[1]))
    actions = np.pad(actions, fill)
    mask = np.pad(mask, fill).astype(bool)
    first = np.zeros_like(actions[:, :1])  # the action is the next state
    states = np.concatenate([first, actions[:, :-1]], axis=1)
    rewards = np.where(mask, np.array(table)[states, actions], 0)
    return World(actions, states, rewards, mask, weights)


chances_of = jax.jit(World.chances)
logs_of = jax.jit(World.logs)
scores_of = jax.jit(jax.jacfwd(World.logs, 1))


@functools.cache
def compiled(derivative, surrogate):
    """Derivatives of a surrogate at each trajectory by itself."""

    def each(world, advantages, theta):
        run = lambda logs, *rest: surrogate(logs[None], *(x[None] for x in rest))
        of = lambda theta: jax.vmap(run)(world.logs(theta), advantages, world.mask)
        return derivative(of)(theta)

    return jax.jit(each)


@functools.cache
def value_of(derivative):
    return jax.jit(lambda world: derivative(world.value)(THETA))


def lvc(logs, advantages, mask):
    return policies.likelihood_ratio(logs, jax.lax.stop_gradient(logs), advantages, mask)


def ppo(logs, advantages, mask):
    return policies.clipped(logs, jax.lax.stop_gradient(logs), advantages, mask, 0.2)


def naive(logs, advantages, mask):
    return jnp.sum(logs * advantages * mask) / len(mask)


@functools.cache
def exact(name, derivative):
    return np.asarray(value_of(derivative)(world_of(name)))


def third(fn):
    return jax.jacfwd(jax.hessian(fn))


def close(found, wanted):
    return np.allclose(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("surrogate", [policies.dice, lvc, ppo, naive])
def test_first_derivatives_are_the_policy_gradient(name, surrogate):
    world = world_of(name)
    found = world.expected(jax.jacrev, surrogate, world.to_go)
    assert close(found, exact(name, jax.grad))
    assert np.abs(found).min() > 0.01


@pytest.mark.parametrize("name", WORLDS)
def test_the_second_derivative_of_dice_is_the_exact_one(name):
    world = world_of(name)
    found = world.expected(jax.hessian, policies.dice, world.to_go)
    assert close(found, exact(name, jax.hessian))


@pytest.mark.parametrize("name", WORLDS)
def test_the_second_derivative_of_log_probabilities_times_returns_is_wrong(name):
    world = world_of(name)
    found = world.expected(jax.hessian, naive, world.to_go)
    assert np.abs(found - exact(name, jax.hessian)).max() > 0.1


def test_the_third_derivative_of_dice_is_the_exact_one():
    world = world_of("short")
    found = world.expected(third, policies.dice, world.to_go)
    assert close(found, exact("short", third))


def test_a_baseline_of_the_state_changes_no_expectation_of_dice():
    world = world_of("chain")
    advantages = world.to_go - np.array([0.9, -2.0])[world.states]
    for derivative in (jax.jacrev, jax.hessian):
        found = world.expected(derivative, policies.dice, advantages)
        assert close(found, exact("chain", derivative))


def test_credit_for_the_reward_of_the_step_alone_is_wrong():
    world = world_of("chain")
    found = world.expected(jax.jacrev, policies.dice, world.rewards)
    assert np.abs(found - exact("chain", jax.grad)).max() > 0.1


def original(logs, rewards, mask):
    past = jnp.cumsum(logs, axis=1)
    return jnp.sum(mask * rewards * jnp.exp(past - jax.lax.stop_gradient(past))) / len(mask)


def test_dice_has_the_derivatives_of_rewards_times_boxes():
    """The form of Foerster et al., whose value is the return, differs by a constant."""
    world = world_of("short")
    found = compiled(jax.hessian, policies.dice)(world, jnp.asarray(world.to_go), THETA)
    wanted = compiled(jax.hessian, original)(world, jnp.asarray(world.rewards), THETA)
    assert close(found, wanted)
    assert jax.jit(policies.dice)(world.rewards, world.to_go, world.mask) == 0


def dropped(world):
    """The expectation of the sum of `A_t (g_t p_t' + p_t g_t')`; here t is 1."""
    scores = np.asarray(scores_of(world, THETA))
    cross = np.einsum("n,ni,nj->nij", world.to_go[:, 1], scores[:, 1], scores[:, 0])
    return np.tensordot(chances_of(world, THETA), cross + cross.transpose(0, 2, 1), axes=1)


@pytest.mark.parametrize("name", ["chain", "short"])
def test_low_variance_curvature_lacks_the_terms_of_two_steps(name):
    world = world_of(name)
    found = world.expected(jax.hessian, lvc, world.to_go)
    missing = dropped(world)
    assert close(found + missing, exact(name, jax.hessian))
    assert np.abs(missing).max() > 0.1


def test_nothing_is_lacking_where_later_steps_do_not_depend_on_earlier_ones():
    world = world_of("chain", ((1.0, 2.5), (1.0, 2.5)))
    world = dataclasses.replace(world, states=0 * world.states)
    assert np.abs(dropped(world)).max() < 1e-12
    found = world.expected(jax.hessian, lvc, world.to_go)
    assert close(found, value_of(jax.hessian)(world))


def test_on_one_step_low_variance_curvature_is_exact():
    world = world_of("bandit")
    found = world.expected(jax.hessian, lvc, world.to_go)
    assert close(found, exact("bandit", jax.hessian))


RATIOS = np.array([[1.5, 0.5, 1.5, 0.5, 1.1, 9.0]])
GAINS = np.array([[1.0, 1.0, -1.0, -1.0, 3.0, np.nan]])
VALID = np.array([[True] * 5 + [False]])


def test_ratios_are_averaged_as_by_hand():
    old = np.full((1, 6), -1.0)
    logs, gains, mask = np.log(RATIOS) - 1.0, GAINS, VALID
    run = jax.value_and_grad(lambda x: policies.likelihood_ratio(x, old, gains, mask))
    value, slope = jax.jit(run)(logs)
    np.testing.assert_allclose(value, 1.5 + 0.5 - 1.5 - 0.5 + 3.3)
    np.testing.assert_allclose(slope, [[1.5, 0.5, -1.5, -0.5, 3.3, 0]])


def test_ratios_are_clipped_as_by_hand():
    old = np.full((1, 6), -1.0)
    logs, gains, mask = np.log(RATIOS) - 1.0, GAINS, VALID
    run = jax.value_and_grad(lambda x: policies.clipped(x, old, gains, mask, 0.2))
    value, slope = jax.jit(run)(logs)
    np.testing.assert_allclose(value, 1.2 + 0.5 - 1.5 - 0.8 + 3.3)
    np.testing.assert_allclose(slope, [[0, 0.5, -1.5, 0, 3.3, 0]])
    run = functools.partial(policies.clipped, clip=0.2, over="steps")
    steps = jax.jit(run)(logs, old, gains, mask)
    np.testing.assert_allclose(steps, value / 5)


def test_a_ratio_that_overflows_is_clipped_without_nan():
    logs, gains = jnp.array([[1000.0, -1000.0]]), jnp.array([[1.0, -1.0]])
    run = lambda x: policies.clipped(x, jnp.zeros((1, 2)), gains, gains != 0)
    value, slope = jax.jit(jax.value_and_grad(run))(logs)
    np.testing.assert_allclose(value, 1.2 - 0.8)
    np.testing.assert_array_equal(slope, [[0, 0]])


@pytest.mark.parametrize("surrogate", [policies.dice, lvc, ppo])
def test_averages_are_over_episodes_or_over_valid_steps(surrogate):
    world = world_of("short")
    gains, mask = world.to_go, world.mask
    logs = np.where(mask, -0.7, 0)
    run = jax.jit(jax.grad(surrogate))
    slope = run(logs, gains, mask)
    np.testing.assert_allclose(slope, np.where(mask, gains, 0) / 4)
    np.testing.assert_array_equal(run(logs, np.where(mask, gains, np.nan), mask), slope)
    if surrogate is policies.dice:
        run = jax.jit(jax.grad(functools.partial(policies.dice, over="steps")))
        np.testing.assert_allclose(run(logs, gains, mask), slope * 4 / 5)


weights_of = jax.jit(policies.importance_weights, static_argnums=(3, 4))
to_go_of = jax.jit(policies.discounted_returns, static_argnums=2)


def weighted(name, per):
    """The expected gradient at THETA, of trajectories that the policy of OTHER draws."""
    world = world_of(name)
    logs, acted, mask = logs_of(world, THETA), logs_of(world, OTHER), world.mask
    weights = np.asarray(weights_of(logs, acted, mask, 1e9, per)[0])
    if per == "decision":
        advantages = to_go_of(weights * world.rewards, mask, 1.0)
    else:
        weights = weights[:, None] if per == "trajectory" else weights
        advantages = weights * world.to_go
    return world.expected(jax.jacrev, policies.dice, advantages, behaviour=OTHER)


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("per", ["decision", "trajectory"])
def test_weighted_gradients_of_another_policy_are_unbiased(name, per):
    assert close(weighted(name, per), exact(name, jax.grad))


def test_weights_of_steps_alone_are_right_for_one_step_and_biased_for_two():
    assert close(weighted("bandit", "step"), exact("bandit", jax.grad))
    assert np.abs(weighted("chain", "step") - exact("chain", jax.grad)).max() > 0.05


@pytest.mark.parametrize("per", ["step", "decision", "trajectory"])
@pytest.mark.parametrize("limit", [1, 7.3])
def test_weights_of_equal_policies_are_exactly_one(per, limit):
    world = world_of("short")
    logs, mask = np.float32(logs_of(world, THETA)), world.mask
    weights, num = weights_of(logs, logs, mask, limit, per)
    assert weights.shape == (mask.shape[:1] if per == "trajectory" else mask.shape)
    np.testing.assert_array_equal(weights, 1)
    assert num == 0 and num.dtype == jnp.int32


def test_weights_are_limited_and_counted_as_by_hand():
    logs = np.log(np.array([[4.0, 0.25, 8.0], [2.0, 2.0, 64.0]]))
    mask = np.array([[True, True, True], [True, True, False]])
    run = lambda per: weights_of(logs, np.zeros((2, 3)), mask, 3, per)
    wanted = {
        "step": ([[3, 0.25, 3], [2, 2, 1]], 2),
        "decision": ([[3, 1, 3], [2, 3, 3]], 3),
        "trajectory": ([3, 3], 2),
    }
    for per, (weights, num) in wanted.items():
        found = run(per)
        np.testing.assert_allclose(found[0], weights, rtol=1e-12)
        assert found[1] == num


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_weight_overflows_or_exceeds_the_limit(dtype):
    logs, mask = np.array([[1e4, -1e4, 700.0]], dtype), np.ones((1, 3), bool)
    for limit in (10.0, 1e6):
        found, num = weights_of(logs, 0 * logs, mask, limit)
        assert found.max() <= np.asarray(limit, dtype) and num == 2 and found[0, 1] == 0
    slope = jax.grad(lambda x: policies.importance_weights(x, 0 * x, mask, 9)[0].sum())
    np.testing.assert_array_equal(jax.jit(slope)(np.full((1, 3), 0.1)), 0)


PAIRS = np.array(list(itertools.product(range(4), repeat=2)))


@jax.jit
def of_pairs(world):
    """Chances of all pairs of trajectories, returns after a step on them, the terms."""
    to_go, mask = world.to_go[PAIRS], world.mask[PAIRS]

    def after(theta, pair, to_go, mask):
        gain = lambda x: policies.dice(world.logs(x)[pair], to_go, mask)
        return world.value(theta + 0.3 * jax.grad(gain)(theta))

    def both(theta):
        values = jax.vmap(after, (None, 0, 0, 0))(theta, PAIRS, to_go, mask)
        given = world.logs(theta)[PAIRS], mask, values
        terms = [
            jax.vmap(functools.partial(policies.exploration_term, baseline=baseline))(
                *given
            )
            for baseline in (0.0, 1.7)
        ]
        found = world.chances(theta)[PAIRS].prod(1), values, *terms
        return found, found

    return jax.jacfwd(both, has_aux=True)(THETA)


@pytest.mark.parametrize("name", ["bandit", "short"])
def test_the_exploration_term_completes_the_gradient_of_the_return_after_adaptation(name):
    slopes, (chances, values, *terms) = of_pairs(world_of(name))
    of_chances, of_values, *of_terms = slopes
    wanted = chances @ of_values + values @ of_chances
    maml = chances @ of_values
    for term in of_terms:
        assert close(maml + chances @ term, wanted)
    assert np.abs(maml - wanted).max() > 0.02
    assert not close(*of_terms)
    np.testing.assert_array_equal(terms, np.zeros((2, 16)))


ONES, ALL = np.ones((2, 3)), np.ones((2, 3), bool)
MISTAKES = {
    "advantages has shape \\(2, 1\\)": lambda: policies.dice(ONES, ONES[:, :1], ALL),
    "mask has the dtype float": lambda: policies.dice(ONES, ONES, ONES),
    "mask has shape \\(1, 2, 3\\); expected \\[E, H\\]": lambda: policies.dice(
        ONES[None], ONES[None], ALL[None]
    ),
    "over is 'tasks'": lambda: policies.dice(ONES, ONES, ALL, over="tasks"),
    "behaviour_log_probs has shape": lambda: policies.likelihood_ratio(
        ONES, ONES[0], ONES, ALL
    ),
    "clip is 1": lambda: policies.clipped(ONES, ONES, ONES, ALL, 1),
    "clip is 0": lambda: policies.clipped(ONES, ONES, ONES, ALL, 0),
    "limit is 0.5": lambda: policies.importance_weights(ONES, ONES, ALL, 0.5),
    "per is 'episode'": lambda: policies.importance_weights(ONES, ONES, ALL, 2, "episode"),
    "post_return has shape \\(2,\\)": lambda: policies.exploration_term(
        ONES, ALL, ONES[:, 0]
    ),
    "baseline has shape": lambda: policies.exploration_term(ONES, ALL, 1.0, ONES),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_told(message):
    with pytest.raises((TypeError, ValueError), match=message):
        MISTAKES[message]()

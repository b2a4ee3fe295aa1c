"""Wrong implementations of the learners of `metalearn.algorithms.reward`."""

from mutations import Mutation

HERE = "algorithms/reward"
TESTS = f"{HERE}/test_maml_rl.py"
BY_HAND = f"{TESTS}::test_meta_gradient_is_that_of_the_objective_by_hand"
HORIZON = f"{TESTS}::test_values_after_the_horizon_are_not_hoped_for"
PADDED = f"{TESTS}::test_padded_episodes_have_no_part_in_an_update"


def maml_rl(old, new, test):
    return Mutation("maml_rl", f"{HERE}/maml_rl.py", old, new, test)


MUTATIONS = [
    # The update is no part of what is differentiated.
    maml_rl(
        "slope = jax.grad(self.gain)(params, seen, self.surrogate)",
        "slope = jax.lax.stop_gradient(\n"
        "                jax.grad(self.gain)(params, seen, self.surrogate)\n"
        "            )",
        BY_HAND,
    ),
    # It descends the surrogate.
    maml_rl("p + self.rate * g", "p - self.rate * g", BY_HAND),
    # Both surrogates are the first.
    maml_rl('if how == "dice":', 'if how == "none":', BY_HAND),
    # Padded episodes count.
    maml_rl("seen.mask & examples.mask[:, None]", "seen.mask", PADDED),
    # A value is hoped for after the horizon.
    maml_rl("jnp.ones_like(seen.terminated)", "seen.terminated", HORIZON),
]

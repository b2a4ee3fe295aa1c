"""Wrong versions of learners that plan their tasks."""

from mutations import Mutation, of

MUTATIONS: list[Mutation] = [
    *of(
        "chaml",
        # The easiest come again.
        (
            "algorithms/gradient/chaml.py",
            "ordered = jnp.where(among, values, jnp.inf)",
            "ordered = jnp.where(among, -values, jnp.inf)",
            "test_hard_half_of_areas_is_the_half_of_lowest_accuracy",
        ),
        # The second step draws areas of its own.
        (
            "algorithms/gradient/chaml.py",
            "jnp.where(is_second, jnp.where(before, 2 + draws, fresh), first)",
            "first",
            "test_second_step_has_the_areas_of_the_first_and_its_hardest_users",
        ),
        # The pool is never the easy part.
        (
            "algorithms/gradient/chaml.py",
            "return (place < easy) | (step >= self.easy_steps)",
            "return (place < easy) | (step >= 0)",
            "test_pool_grows_at_its_step",
        ),
        # The order is read as places, which it is not.
        (
            "algorithms/gradient/chaml.py",
            "place = jnp.argsort(jnp.array(tuple(order), jnp.int32))",
            "place = jnp.array(tuple(order), jnp.int32)",
            "test_pool_grows_at_its_step",
        ),
        # Masked queries count.
        (
            "algorithms/gradient/chaml.py",
            "weight = mask.astype(jnp.float32)",
            "weight = jnp.ones_like(mask, jnp.float32)",
            "test_accuracies_are_of_valid_queries_by_area_and_user",
        ),
        # Hard users are not asked for.
        (
            "algorithms/gradient/chaml.py",
            "jnp.where(hard, 2, jnp.where(shown, 0, 1))",
            "jnp.where(hard, 0, jnp.where(shown, 0, 1))",
            "test_second_step_has_the_areas_of_the_first_and_its_hardest_users",
        ),
        tests="algorithms/gradient/test_chaml.py",
    ),
]

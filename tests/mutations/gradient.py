"""Wrong versions of learners of an initialisation."""

from mutations import Mutation, of

ROUNDS = (
    "inner/test_descent.py::"
    "test_rounds_of_batches_see_every_valid_row_once_and_in_orders_of_their_own"
)

MUTATIONS: list[Mutation] = [
    *of(
        "maml",
        # The support set in place of the queries.
        (
            "algorithms/bilevel.py",
            "query = done.task.query\n    outputs, state = done.predict(",
            "query = done.task.support\n    outputs, state = done.predict(",
            "test_maml_on_quadratics[False-1]",
        ),
        # Second derivatives dropped.
        (
            "algorithms/bilevel.py",
            'for choice in (differentiation, "first_order")',
            'for choice in ("first_order", "first_order")',
            "test_maml_on_quadratics[False-3]",
        ),
        # No derivative back to the initialisation at all.
        (
            "inner/unroll.py",
            "start = (params, inner_opt.init(params) if opt_state is None else opt_state)",
            "start = (jax.lax.stop_gradient(params), inner_opt.init(params))",
            "test_maml_on_quadratics[False-1]",
        ),
        # The state of the inner optimiser does not move.
        (
            "inner/unroll.py",
            "updates, opt_state = inner_opt.update(grads, opt_state, params)",
            "updates, _ = inner_opt.update(grads, opt_state, params)",
            "test_inner_optimisers_follow_numpy[momentum]",
        ),
        # One step too many.
        (
            "algorithms/bilevel.py",
            "num_steps=num_steps,\n            differentiation=choice,",
            "num_steps=num_steps + 1,\n            differentiation=choice,",
            "test_maml_on_quadratics[False-0]",
        ),
        # Outer steps are not counted.
        (
            "algorithms/bilevel.py",
            '"step": step + 1',
            '"step": step',
            "algorithms/test_options.py::test_outer_steps_are_counted",
        ),
        tests="algorithms/test_numerics.py",
    ),
    *of(
        "fomaml",
        (
            "algorithms/gradient/maml.py",
            'differentiation="first_order",',
            'differentiation="reverse",',
            "test_fomaml_is_the_query_gradient_at_the_end",
        ),
        (
            "algorithms/gradient/maml.py",
            '"fomaml",\n        model,\n        loss_fn,\n        inner_opt,\n'
            "        num_steps=num_steps,",
            '"fomaml",\n        model,\n        loss_fn,\n        inner_opt,\n'
            "        num_steps=1,",
            "test_fomaml_is_the_query_gradient_at_the_end",
        ),
        # Inner gradients still depend on what does not adapt.
        (
            "inner/differentiate.py",
            "return value, jax.lax.stop_gradient(grads)",
            "return value, grads",
            "algorithms/test_reductions.py::"
            "test_first_order_anil_drops_the_body_terms_of_inner_gradients",
        ),
        # A held gradient that a learned rate still sees move.
        (
            "inner/differentiate.py",
            "value, grads = plain(jax.lax.stop_gradient(params), step)",
            "value, grads = plain(params, step)\n        return value, grads",
            "test_fomaml_learns_a_rate_with_all_inner_gradients_held",
        ),
        tests="algorithms/gradient/test_maml.py",
    ),
    *of(
        "anil",
        (
            "algorithms/gradient/maml.py",
            "adapt_filter=trees.path_filter(head),",
            "adapt_filter=lambda path, leaf: not trees.path_filter(head)(path, leaf),",
            "algorithms/test_reductions.py::test_anil_and_boil_move_complementary_parameters",
        ),
        (
            "algorithms/gradient/maml.py",
            "adapt_filter=trees.path_filter(head),",
            'adapt_filter=trees.path_filter("head"),',
            "algorithms/test_reductions.py::test_reduces_to_maml[anil of all parameters]",
        ),
        # The body is not seen by the inner gradients, so that a part of its slope is lost.
        (
            "inner/descent.py",
            "trees.merge(moving, fixed),\n",
            "trees.merge(moving, jax.lax.stop_gradient(fixed)),\n",
            "test_all_is_learned_where_a_part_adapts[anil-head-head]",
        ),
        # The body is not learned outside.
        (
            "inner/descent.py",
            "params = trees.merge(result.params, fixed)\n",
            "params = trees.merge(result.params, jax.lax.stop_gradient(fixed))\n",
            "test_all_is_learned_where_a_part_adapts[anil-head-head]",
        ),
        (
            "algorithms/gradient/maml.py",
            '"anil",\n        model,\n        loss_fn,\n        inner_opt,\n'
            "        num_steps=num_steps,",
            '"anil",\n        model,\n        loss_fn,\n        inner_opt,\n'
            "        num_steps=1,",
            "test_all_is_learned_where_a_part_adapts[anil-head-head]",
        ),
        tests="algorithms/gradient/test_maml.py",
    ),
    *of(
        "boil",
        (
            "algorithms/gradient/maml.py",
            "lambda path, leaf: not in_head(path, leaf)",
            "in_head",
            "algorithms/test_reductions.py::test_anil_and_boil_move_complementary_parameters",
        ),
        (
            "algorithms/gradient/maml.py",
            "adapt_filter=lambda path, leaf: not in_head(path, leaf),",
            "adapt_filter=None,",
            "test_boil_is_near_chance_until_its_body_adapts",
        ),
        (
            "algorithms/gradient/maml.py",
            "in_head = trees.path_filter(head)",
            'in_head = trees.path_filter("head")',
            "test_all_is_learned_where_a_part_adapts[boil-body-head]",
        ),
        (
            "algorithms/gradient/maml.py",
            '"boil",\n        model._replace(init=init),',
            '"boil",\n        model,',
            "test_boil_without_a_head_is_refused",
        ),
        # What does not adapt is not learned either.
        (
            "inner/descent.py",
            "params = trees.merge(result.params, fixed)\n",
            "params = trees.merge(result.params, jax.lax.stop_gradient(fixed))\n",
            "test_all_is_learned_where_a_part_adapts[boil-head-body]",
        ),
        tests="algorithms/gradient/test_maml.py",
    ),
    *of(
        "reptile",
        # Slots handed on are ignored: in training, in adaptation, at the end of a task.
        (
            "algorithms/gradient/reptile.py",
            "inner, None, everything, key=key, train=True, opt_state=opt_state",
            "inner, None, everything, key=key, train=True, opt_state=None",
            "test_two_steps_with_adam_by_hand[True]",
        ),
        (
            "algorithms/gradient/reptile.py",
            "testing.adapt(inner, None, support, key=key, opt_state=opt_state)",
            "testing.adapt(inner, None, support, key=key)",
            "test_two_steps_with_adam_by_hand[True]",
        ),
        (
            "algorithms/gradient/reptile.py",
            'state = {"model": state, "opt": path.opt_state}',
            'state = {"model": state, "opt": opt_state}',
            "test_two_steps_with_adam_by_hand[True]",
        ),
        (
            "algorithms/gradient/reptile.py",
            "jax.tree.map(jnp.subtract, inner.params, adapted.params)",
            "jax.tree.map(jnp.subtract, adapted.params, inner.params)",
            "test_two_steps_with_adam_by_hand[False]",
        ),
        (
            "algorithms/gradient/reptile.py",
            "everything = concatenate(task.support, task.query)",
            "everything = task.support",
            "test_two_steps_with_adam_by_hand[False]",
        ),
        (
            "algorithms/gradient/reptile.py",
            "num_steps=eval_steps,",
            "num_steps=num_steps,",
            "test_steps_of_evaluation_are_their_own_number",
        ),
        (
            "algorithms/gradient/reptile.py",
            "batch_size=eval_batch_size,\n        **shared,",
            "batch_size=batch_size,\n        **shared,",
            "test_batches_of_evaluation_are_their_own_size",
        ),
        # Running averages of the first step in place of those of the last.
        (
            "algorithms/gradient/reptile.py",
            "last_state = jax.tree.map(lambda s: s[-1], path.aux)",
            "last_state = jax.tree.map(lambda s: s[0], path.aux)",
            "test_averages_are_those_of_the_last_inner_step",
        ),
        # Batches that overlap; rounds in one order; masked rows among them.
        (
            "inner/descent.py",
            "places = step * batch_size + jnp.arange(batch_size, dtype=jnp.int32)",
            "places = step + jnp.arange(batch_size, dtype=jnp.int32)",
            ROUNDS,
        ),
        (
            "inner/descent.py",
            "rows = orders[places // valid % rounds, places % valid]",
            "rows = orders[0, places % valid]",
            ROUNDS,
        ),
        (
            "inner/descent.py",
            "jnp.argsort(jnp.where(support.mask[None], scores, 2.0), axis=-1)",
            "jnp.argsort(scores, axis=-1)",
            ROUNDS,
        ),
        tests="algorithms/gradient/test_reptile.py",
    ),
]

"""Wrong versions of learners of an initialisation and of inner rates."""

from mutations import Mutation, of

ROUNDS = (
    "inner/test_descent.py::"
    "test_rounds_of_batches_see_every_valid_row_once_and_in_orders_of_their_own"
)
STARTS = (
    "algorithms/test_options.py::"
    "test_what_is_learned_for_inner_steps_starts_where_it_was_told"
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
    *of(
        "meta_sgd",
        (
            "algorithms/gradient/maml.py",
            "lambda a, g: -a * g, rates, grads",
            "lambda a, g: a * g, rates, grads",
            "test_meta_sgd_on_quadratics",
        ),
        (
            "algorithms/gradient/maml.py",
            "lambda a, g: -a * g, rates, grads",
            "lambda a, g: -jnp.mean(a) * g, rates, grads",
            "test_meta_sgd_on_quadratics",
        ),
        (
            "algorithms/gradient/maml.py",
            "lambda a, g: -a * g, rates, grads",
            "lambda a, g: -jax.lax.stop_gradient(a) * g, rates, grads",
            "test_meta_sgd_on_quadratics",
        ),
        (
            "algorithms/gradient/maml.py",
            "jnp.full_like(p, initial_rate), params",
            "jnp.full_like(p, 0.1), params",
            f"{STARTS}[meta_sgd]",
        ),
        # Rates that cannot become negative.
        (
            "algorithms/gradient/maml.py",
            "lambda a, g: -a * g, rates, grads",
            "lambda a, g: -jnp.abs(a) * g, rates, grads",
            "algorithms/gradient/test_maml.py::test_meta_sgd_rates_may_be_negative",
        ),
        (
            "algorithms/gradient/maml.py",
            "jax.random.uniform(k, p.shape, p.dtype, low, high)",
            "jax.random.uniform(k, p.shape, p.dtype, 0.0, high)",
            "test_meta_sgd_draws_rates_from_its_range",
        ),
        (
            "algorithms/gradient/maml.py",
            "jax.random.uniform(k, p.shape, p.dtype, low, high)",
            "jax.random.uniform(key, p.shape, p.dtype, low, high)",
            "algorithms/gradient/test_maml.py::test_meta_sgd_draws_other_rates_for_other_arrays",
        ),
        tests="algorithms/test_numerics.py",
    ),
    *of(
        "maml_plus_plus",
        (
            "algorithms/gradient/maml_plus_plus.py",
            "early = jnp.maximum(1 - t, LEAST) / num_steps",
            "early = jnp.maximum(1 - t, LEAST / num_steps) / num_steps",
            "test_weights_follow_the_formula",
        ),
        (
            "algorithms/gradient/maml_plus_plus.py",
            "jax.vmap(after)(jnp.arange(1, num_steps, dtype=jnp.int32))",
            "jax.vmap(after)(jnp.arange(0, num_steps - 1, dtype=jnp.int32))",
            "test_multi_step_loss_has_its_closed_form[30]",
        ),
        (
            "algorithms/gradient/maml_plus_plus.py",
            "return jnp.sum(weights[:-1] * losses)",
            "return jax.lax.stop_gradient(jnp.sum(weights[:-1] * losses))",
            "test_multi_step_loss_has_its_closed_form[30]",
        ),
        (
            "algorithms/gradient/maml_plus_plus.py",
            "jax.tree.map(lambda r, g: -r[count] * g,",
            "jax.tree.map(lambda r, g: -r[0] * g,",
            "test_rate_of_each_step_has_its_closed_form",
        ),
        (
            "algorithms/gradient/maml_plus_plus.py",
            "return trees.merge(of_norm, moves), count + 1",
            "return trees.merge(of_norm, moves), count",
            "test_rate_of_each_step_has_its_closed_form",
        ),
        # Weights of norms are added to the first ones, not put in their place.
        (
            "algorithms/gradient/maml_plus_plus.py",
            "jax.tree.map(jnp.subtract, next_norm, of_norm)",
            "next_norm",
            "test_norm_weights_stand_for_the_pass_after_their_step",
        ),
        # All query losses with the statistics of the last step.
        (
            "algorithms/gradient/maml_plus_plus.py",
            'if norm == "support" and jax.tree.leaves(adapted.state):',
            'if norm == "never" and jax.tree.leaves(adapted.state):',
            "test_multi_step_loss_predicts_as_learners_of_fewer_steps",
        ),
        # The order changes one outer step too late.
        (
            "algorithms/bilevel.py",
            'variables.state["step"] < loop.hooks.first_order_until',
            'variables.state["step"] <= loop.hooks.first_order_until',
            "test_order_changes_the_gradient_and_not_the_loss",
        ),
        # All passes with the averages of the first; queries with those before the last.
        (
            "inner/norm.py",
            "state = jax.tree.map(lambda s: s[step], state)",
            "state = jax.tree.map(lambda s: s[0], state)",
            "test_every_pass_of_evaluation_reads_the_averages_of_its_step",
        ),
        (
            "inner/norm.py",
            "return jax.tree.map(lambda s: s[num_steps], state)",
            "return jax.tree.map(lambda s: s[num_steps - 1], state)",
            "test_every_pass_of_evaluation_reads_the_averages_of_its_step",
        ),
        (
            "algorithms/gradient/maml_plus_plus.py",
            "rate = initial_rate if learned_rates else None",
            "rate = 0.1 if learned_rates else None",
            f"{STARTS}[maml_plus_plus]",
        ),
        tests="algorithms/gradient/test_maml_plus_plus.py",
    ),
    *of(
        "alpha_maml",
        (
            "algorithms/gradient/alpha_maml.py",
            "rate = state.rate + hyper_rate * along",
            "rate = state.rate - hyper_rate * along",
            "test_hypergradient_of_the_outer_rate_by_finite_differences",
        ),
        # beta moves after it was applied.
        (
            "algorithms/gradient/alpha_maml.py",
            "lambda u: -rate.astype(u.dtype) * u, direction",
            "lambda u: -state.rate.astype(u.dtype) * u, direction",
            "test_outer_rate_is_updated_before_it_is_applied",
        ),
        # h is that of the gradient, not of the direction that was taken.
        (
            "algorithms/gradient/alpha_maml.py",
            "HypergradientState(rate, direction, inner_state)",
            "HypergradientState(rate, grads, inner_state)",
            "test_outer_rate_is_updated_before_it_is_applied",
        ),
        (
            "algorithms/gradient/alpha_maml.py",
            "lambda s, a: a * jnp.expm1(-rate * s)",
            "lambda s, a: a * jnp.expm1(rate * s)",
            "test_multiplicative_inner_rate_follows_the_latest_slopes",
        ),
        (
            "algorithms/gradient/alpha_maml.py",
            "optax.scale_by_adam(b1=0.0, b2=0.9, eps=1e-12)",
            "optax.scale_by_adam(b1=0.0, b2=0.999, eps=1e-12)",
            "test_multiplicative_inner_rate_follows_the_latest_slopes",
        ),
        # The rate starts elsewhere.
        (
            "algorithms/gradient/alpha_maml.py",
            "hooks = Hooks(inner_hparams=rate,",
            "hooks = Hooks(inner_hparams=0.01,",
            f"{STARTS}[alpha_maml]",
        ),
        tests="algorithms/gradient/test_alpha_maml.py",
    ),
]

"""Wrong versions of learners that shape inner gradients."""

from mutations import Mutation, of

STARTS = (
    "algorithms/test_options.py::"
    "test_what_is_learned_for_inner_steps_starts_where_it_was_told"
)

MUTATIONS: list[Mutation] = [
    *of(
        "meta_curvature",
        (
            "algorithms/gradient/kronecker.py",
            '"inputs": "ji,tio->tjo"',
            '"inputs": "ij,tio->tjo"',
            "test_equals_explicit_kronecker_products",
        ),
        (
            "algorithms/gradient/kronecker.py",
            '"taps": "st,tio->sio"',
            '"taps": "ts,tio->sio"',
            "test_equals_explicit_kronecker_products",
        ),
        (
            "algorithms/gradient/meta_curvature.py",
            'curved_sgd(hparams["factors"], hparams.get("rate", rate))',
            'curved_sgd(hparams["factors"], rate)',
            "test_meta_gradients_match_an_explicit_step",
        ),
        (
            "algorithms/gradient/meta_curvature.py",
            'curved_sgd(hparams["factors"], hparams.get("rate", rate))',
            'curved_sgd(\n            jax.lax.stop_gradient(hparams["factors"]), '
            'hparams.get("rate", rate)\n        )',
            "test_identity_factors_are_maml",
        ),
        (
            "algorithms/gradient/kronecker.py",
            "return -jnp.asarray(rate, gradient.dtype) * transform(gradient, of)",
            "return -jnp.asarray(rate, gradient.dtype) * transform(\n"
            "            transform(gradient, of), of\n        )",
            "test_one_scaled_mode_scales_the_rate",
        ),
        tests="algorithms/gradient/test_meta_curvature.py",
    ),
    *of(
        "kfo",
        # The move is made with the factors of the step before.
        (
            "algorithms/gradient/kfo.py",
            "return move(phi, grads), KroneckerState(phi, grads)",
            "return move(state.factors, grads), KroneckerState(phi, grads)",
            "test_factors_descend_the_loss_of_the_step_they_made[False]",
        ),
        (
            "algorithms/gradient/kfo.py",
            "lambda f, s: f - rate * s, state.factors, slope",
            "lambda f, s: f + rate * s, state.factors, slope",
            "test_factors_descend_the_loss_of_the_step_they_made[False]",
        ),
        (
            "algorithms/gradient/kfo.py",
            "lambda factor: factor.T @ factor",
            "lambda factor: factor @ factor",
            "test_psd_maps_keep_the_angle_to_the_gradient_acute[dense]",
        ),
        # Adapted factors are forgotten after their step.
        (
            "algorithms/gradient/kfo.py",
            "return move(phi, grads), KroneckerState(phi, grads)",
            "return move(phi, grads), KroneckerState(state.factors, grads)",
            "test_factors_descend_the_loss_of_the_step_they_made[False]",
        ),
        # The gradient that the move is of is held.
        (
            "algorithms/gradient/kfo.py",
            "lambda phi: move(phi, state.gradient)",
            "lambda phi: move(phi, jax.lax.stop_gradient(state.gradient))",
            "test_meta_gradients_match_the_steps_by_hand[False]",
        ),
        tests="algorithms/gradient/test_kfo.py",
    ),
    *of(
        "t_net",
        # Biases do not adapt.
        (
            "algorithms/gradient/tnet.py",
            r'ADAPTED = r"(^|/)(TDense_\d+|TConv_\d+|head)/(kernel|bias)$"',
            r'ADAPTED = r"(^|/)(TDense_\d+|TConv_\d+|head)/(kernel)$"',
            "test_only_kernels_and_biases_move",
        ),
        (
            "models/tnet.py",
            "return (x @ kernel + bias[None]) @ transform",
            "return (x @ kernel + bias[None]) @ transform.T",
            "test_a_step_moves_the_composite_by_the_metric",
        ),
        (
            "models/tnet.py",
            "return (x @ kernel + bias[None]) @ transform",
            "return x @ kernel @ transform + bias[None]",
            "test_a_step_moves_the_composite_by_the_metric",
        ),
        (
            "models/tnet.py",
            "return x + (bias[None] @ transform)[:, None, None]",
            "return x + bias[None, None, None]",
            "test_tconv_is_a_convolution_and_a_1x1_convolution",
        ),
        # The matrix is not learned.
        (
            "models/tnet.py",
            "return (x @ kernel + bias[None]) @ transform",
            "return (x @ kernel + bias[None]) @ jax.lax.stop_gradient(transform)",
            "test_only_kernels_and_biases_move",
        ),
        tests="algorithms/gradient/test_tnet.py",
    ),
    *of(
        "mt_net",
        # Masked gradients in place of masked updates: weight decay moves what may not.
        (
            "algorithms/gradient/tnet.py",
            "lambda masks: optax.chain(inner_opt, masked(masks)),",
            "lambda masks: optax.chain(masked(masks), inner_opt),",
            "test_empty_masks_let_nothing_adapt[opt1]",
        ),
        # The soft draw in place of the hard one.
        (
            "algorithms/gradient/tnet.py",
            "return (noisy > 0).astype(zeta.dtype) + (soft - jax.lax.stop_gradient(soft))",
            "return soft",
            "test_draws_are_binary_with_the_slope_of_the_relaxed_draw",
        ),
        (
            "algorithms/gradient/tnet.py",
            "soft = jax.nn.sigmoid(noisy / temperature)",
            "soft = jax.nn.sigmoid(noisy)",
            "test_draws_are_binary_with_the_slope_of_the_relaxed_draw",
        ),
        (
            "algorithms/gradient/tnet.py",
            "zeta = jnp.full(leaf.shape[-1:], initial_logit, leaf.dtype)",
            "zeta = jnp.full(leaf.shape[-1:], 0.0, leaf.dtype)",
            f"{STARTS}[mt_net]",
        ),
        # The same draw for every task.
        (
            "algorithms/gradient/tnet.py",
            'masks = draw_masks(key, params["inner"], temperature)',
            'masks = draw_masks(jax.random.key(0), params["inner"], temperature)',
            "test_masks_differ_between_tasks_and_repeat_with_the_key",
        ),
        # No derivative: zeta is not learned.
        (
            "algorithms/gradient/tnet.py",
            "(soft - jax.lax.stop_gradient(soft))",
            "jax.lax.stop_gradient(soft - soft)",
            "test_masks_differ_between_tasks_and_repeat_with_the_key",
        ),
        (
            "algorithms/gradient/tnet.py",
            'masks = jax.tree.map(jax.nn.sigmoid, params["inner"])',
            "masks = jax.tree.map(\n"
            '                lambda z: (z > 0).astype(z.dtype), params["inner"]\n'
            "            )",
            "test_mean_masks_need_no_key",
        ),
        tests="algorithms/gradient/test_tnet.py",
    ),
    *of(
        "warpgrad",
        # A sum over the states in place of the mean.
        (
            "algorithms/gradient/warpgrad.py",
            "return loss / num_steps, aux",
            "return loss, aux",
            "test_closed_form_of_a_scalar",
        ),
        # The step itself is held, as if approximate.
        (
            "algorithms/gradient/warpgrad.py",
            'single=steps(1, "first_order" if approximate else "reverse"),',
            'single=steps(1, "first_order"),',
            "test_closed_form_of_a_scalar",
        ),
        (
            "algorithms/gradient/warpgrad.py",
            'single=steps(1, "first_order" if approximate else "reverse"),',
            'single=steps(1, "reverse"),',
            "test_omega_is_learned_through_single_steps[None-True]",
        ),
        # Every step starts the optimiser afresh.
        (
            "algorithms/gradient/warpgrad.py",
            "at.variables(), None, task.support, key=k_step, train=True, "
            "opt_state=opt_state",
            "at.variables(), None, task.support, key=k_step, train=True, opt_state=None",
            "test_omega_is_learned_through_single_steps[opt2-False]",
        ),
        # All states are the first one.
        (
            "algorithms/gradient/warpgrad.py",
            "return (end, opt_state, (of_theta, of_omega)), (report, state)",
            "return (theta, opt_state, (of_theta, of_omega)), (report, state)",
            "test_closed_form_of_a_scalar",
        ),
        # Leap without its stabiliser.
        (
            "algorithms/gradient/leap.py",
            "(jnp.abs(fall) * s + b) / size",
            "(fall * s + b) / size",
            "test_leap_shortens_the_path_with_its_losses",
        ),
        # theta_0 is learned by first order only.
        (
            "algorithms/gradient/warpgrad.py",
            "whole=steps(num_steps, differentiation),",
            'whole=steps(num_steps, "first_order"),',
            "test_closed_form_of_a_scalar",
        ),
        tests="algorithms/gradient/test_warpgrad.py",
    ),
    *of(
        "meta_embedding",
        # The warm loss of the examples that the vector has adapted to.
        (
            "algorithms/gradient/meta_embedding.py",
            "outputs = self.inner.predict(adapted, query.x, mask=query.mask)[0]",
            "outputs = self.inner.predict(adapted, support.x, mask=support.mask)[0]",
            "test_gradient_of_the_generator_by_finite_differences",
        ),
        # First order.
        (
            "algorithms/gradient/meta_embedding.py",
            'norm="running",\n    )\n    warm',
            'norm="running", differentiation="first_order",\n    )\n    warm',
            "test_gradient_of_the_generator_by_finite_differences",
        ),
        # The base model goes on by the momenta of its training.
        (
            "algorithms/gradient/meta_embedding.py",
            "lambda now, then: jnp.where(goes_on, now, then),",
            "lambda now, then: now,",
            "test_base_model_is_frozen_after_its_training_and_judges_then",
        ),
        # The base model sees the items that are kept for the generator.
        (
            "algorithms/gradient/meta_embedding.py",
            "of_base = jnp.where(apart, 0, 1 / (1 - self.apart))",
            "of_base = jnp.where(apart, 1.0, 1.0)",
            "test_items_apart_train_the_generator_alone_and_the_others_the_base_model",
        ),
        # The number of an item of training is seen.
        (
            "algorithms/gradient/meta_embedding.py",
            "return inner.predict(adapted, _hide(x, item), key=key, mask=mask)[0]",
            "return inner.predict(adapted, x, key=key, mask=mask)[0]",
            "test_only_the_vector_adapts_and_the_number_of_the_item_is_unread",
        ),
        # A sum over the examples for their mean.
        (
            "algorithms/gradient/meta_embedding.py",
            "trees.masked_mean(vectors, support.mask)",
            "vectors.sum(0)",
            "test_masked_rows_generate_nothing",
        ),
        tests="algorithms/gradient/test_meta_embedding.py",
    ),
    *of(
        "melu",
        # The embeddings adapt, and what is above them does not.
        (
            "algorithms/gradient/melu.py",
            "adapt_filter=lambda path, leaf: not is_shared(path, leaf),",
            "adapt_filter=is_shared,",
            "test_embeddings_stay_and_the_rest_adapts",
        ),
        # Everything adapts: MAML.
        (
            "algorithms/gradient/melu.py",
            "adapt_filter=lambda path, leaf: not is_shared(path, leaf),",
            "adapt_filter=None,",
            "test_embeddings_stay_and_the_rest_adapts",
        ),
        # Evidence of all parameters, as in the released code.
        (
            "algorithms/gradient/melu.py",
            "kept, adapts = _parts(variables.params, shared)",
            "kept, adapts = trees.split(variables.params, lambda path, leaf: False)",
            "test_evidence_is_the_gradient_of_the_unit_loss",
        ),
        # Evidence of the loss itself, which depends on its scale.
        (
            "algorithms/gradient/melu.py",
            "size = jnp.where(exact, 1, value)",
            "size = 1",
            "test_evidence_is_the_gradient_of_the_unit_loss",
        ),
        # The sum of the norms of all tensors, as in the released code.
        (
            "algorithms/gradient/melu.py",
            "sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(unit))",
            "sum(jnp.linalg.norm(leaf) for leaf in jax.tree.leaves(unit)) ** 2",
            "test_evidence_is_the_gradient_of_the_unit_loss",
        ),
        tests="algorithms/gradient/test_melu.py",
    ),
]

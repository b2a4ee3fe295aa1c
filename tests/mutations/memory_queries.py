"""Wrong versions of learners whose queries read what a support set left in a memory."""

from mutations import Mutation, of

MUTATIONS: list[Mutation] = [
    *of(
        "snail",
        # The softmax of a port: over the queries.
        (
            "algorithms/memory/snail.py",
            "jax.nn.softmax(scores, axis=-1)",
            "jax.nn.softmax(jnp.maximum(scores, -99), axis=0)",
            "test_weights_of_attention_sum_to_one",
        ),
        # A step sees all others.
        (
            "algorithms/memory/snail.py",
            "jnp.tri(num, k=-1, dtype=bool) & valid[None]",
            "~jnp.eye(num, dtype=bool) & valid[None]",
            "test_a_step_changes_nothing_before_it",
        ),
        # Dilations of the paper as printed.
        (
            "algorithms/memory/snail.py",
            "yield 2**power, convolution",
            "yield 2 ** (power + 1), convolution",
            "test_convolutions_reach_every_step",
        ),
        # A query does not see itself.
        (
            "algorithms/memory/snail.py",
            "+ weights[:, -1:] * value",
            "",
            "test_each_query_equals_the_last_step_of_a_whole_stream",
        ),
        # The label of the step before.
        (
            "algorithms/memory/snail.py",
            "jax.nn.one_hot(support.y, num_ways",
            "jax.nn.one_hot(jnp.roll(support.y, 1), num_ways",
            "test_each_query_equals_the_last_step_of_a_whole_stream",
        ),
        # A query sees the convolution of the last support example.
        (
            "algorithms/memory/snail.py",
            "kept = earlier[num]",
            "kept = earlier[num - 1]",
            "test_each_query_equals_the_last_step_of_a_whole_stream",
        ),
        # What convolutions make of masked rows goes on.
        (
            "algorithms/memory/snail.py",
            "u = jnp.where(valid[:, None], u, 0)",
            "pass",
            "test_masked_rows_stand_for_nothing_wherever_they_are",
        ),
        (
            "algorithms/memory/snail.py",
            "u = _attend(block, u, *kept, stream.valid[None])",
            "u = _attend(block, u, *kept, jnp.ones_like(stream.valid)[None])",
            "test_masked_rows_stand_for_nothing_wherever_they_are",
        ),
        # Masked rows stand at the end.
        (
            "algorithms/memory/snail.py",
            'drawn_order(key, support.mask, masked="first")',
            "drawn_order(key, support.mask)",
            "test_masked_rows_stand_for_nothing_wherever_they_are",
        ),
        # Labels keep their places.
        (
            "algorithms/memory/snail.py",
            "jnp.concatenate([support.x, labels], -1)[order]",
            "jnp.concatenate([support.x[order], labels], -1)",
            "test_a_key_draws_the_order_of_the_valid_rows",
        ),
        # What was kept of the support set is held in training.
        (
            "algorithms/memory/snail.py",
            "return Stream(valid, tuple(past))",
            "return Stream(valid, jax.lax.stop_gradient(tuple(past)))",
            "test_the_whole_loss_is_differentiated",
        ),
        (
            "algorithms/memory/snail.py",
            "(steps - 1).bit_length()",
            "steps.bit_length()",
            "test_convolutions_cover_the_length[8-3]",
        ),
        tests="algorithms/memory/test_snail.py",
    ),
    *of(
        "meta_networks",
        # Derivatives through the inner gradients are cut where they are asked for.
        (
            "algorithms/memory/meta_networks.py",
            "return grads if second_order else jax.lax.stop_gradient(grads)",
            "return jax.lax.stop_gradient(grads)",
            "test_logits_and_derivatives_equal_numpy",
        ),
        (
            "algorithms/memory/meta_networks.py",
            "return grads if second_order else jax.lax.stop_gradient(grads)",
            "return grads",
            "test_inner_gradients_are_constants_of_the_outer_loss",
        ),
        # Fast weights are constants, so no generator learns.
        (
            "algorithms/memory/meta_networks.py",
            "return Memory(fast, keys, values, support.mask)",
            "return Memory(fast, keys, jax.lax.stop_gradient(values), support.mask)",
            "test_inner_gradients_are_constants_of_the_outer_loss",
        ),
        # One nonlinearity of a sum, in place of a sum of two.
        (
            "algorithms/memory/meta_networks.py",
            'jax.nn.relu(h @ slow["hidden"]) + jax.nn.relu(h @ fast["hidden"])',
            'jax.nn.relu(h @ slow["hidden"] + h @ fast["hidden"])',
            "test_logits_and_derivatives_equal_numpy",
        ),
        # Keys of slow weights alone.
        (
            "algorithms/memory/meta_networks.py",
            'keys = support.x @ params["representation"] + support.x @ fast',
            'keys = support.x @ params["representation"]',
            "test_logits_and_derivatives_equal_numpy",
        ),
        # Masked rows are read from the memory, or by the LSTM.
        (
            "algorithms/memory/meta_networks.py",
            "jnp.where(memory.mask[None], cosines, out)",
            "jnp.where(jnp.ones_like(memory.mask)[None], cosines, out)",
            "test_equal_keys_read_the_mean_of_the_memory",
        ),
        (
            "algorithms/memory/meta_networks.py",
            "jnp.where(valid, a, b), new, carry), None",
            "jnp.where(True, a, b), new, carry), None",
            "test_logits_and_derivatives_equal_numpy",
        ),
        # Fast weights come from one gradient for all examples.
        (
            "algorithms/memory/meta_networks.py",
            'lambda g: _each_weight(params["m"], log_sign(g, RANGE)),',
            "lambda g: _each_weight(\n"
            '                params["m"], log_sign(0 * g + g.mean(0)[None], RANGE)\n'
            "            ),",
            "test_logits_and_derivatives_equal_numpy",
        ),
        # Gradients as they are.
        (
            "algorithms/memory/meta_networks.py",
            "items = log_sign(grads, RANGE), mask",
            "items = jnp.stack([grads, grads], -1), mask",
            "test_logits_and_derivatives_equal_numpy",
        ),
        # A generator that sees which weight it handles.
        (
            "algorithms/memory/meta_networks.py",
            'return linear(params["out"], state)[..., 0]',
            'fast = linear(params["out"], state)[..., 0]\n'
            "    return fast * (1 + jnp.arange(fast.shape[-1], dtype=fast.dtype))[None]",
            "test_generators_handle_every_weight_by_itself",
        ),
        # The fast logits have a bias of their own, which no slow network knows.
        (
            "algorithms/memory/meta_networks.py",
            'return h @ slow["logits"] + h @ fast["logits"]',
            'return h @ slow["logits"] + jax.nn.relu(h @ fast["logits"]) + h.mean()',
            "test_without_generators_the_slow_network_classifies",
        ),
        # Masked rows are sampled.
        (
            "algorithms/memory/meta_networks.py",
            "order = order[-num_sampled:]",
            "order = order[:num_sampled]",
            "test_sampled_gradients_are_those_of_valid_rows_in_an_order_that_the_key_draws",
        ),
        # The key is not used.
        (
            "algorithms/memory/meta_networks.py",
            'order = drawn_order(key, support.mask, masked="first")',
            'order = drawn_order(None, support.mask, masked="first")',
            "test_sampled_gradients_are_those_of_valid_rows_in_an_order_that_the_key_draws",
        ),
        # The logarithm without its range.
        (
            "inner/log_sign.py",
            "jnp.log(jnp.where(large, size, 1)) / p",
            "jnp.log(jnp.where(large, size, 1))",
            "inner/test_log_sign.py::test_values_are_those_of_the_two_branches",
        ),
        (
            "inner/log_sign.py",
            "jnp.log(jnp.where(large, size, 1))",
            "jnp.log(size)",
            "inner/test_log_sign.py::test_derivatives_are_finite_at_zero_and_right_elsewhere",
        ),
        (
            "inner/log_sign.py",
            "math.exp(p) * jnp.where(large, 0, grads)",
            "jnp.where(large, 0, grads)",
            "inner/test_log_sign.py::test_it_is_continuous_at_the_bound[1.0]",
        ),
        tests="algorithms/memory/test_meta_networks.py",
    ),
]

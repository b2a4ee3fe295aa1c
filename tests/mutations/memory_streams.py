"""Wrong versions of the learners that read a stream, and of the stream itself."""

from mutations import Mutation, of

STREAMS = "algorithms/memory/test_label_streams.py::"
CAUSALITY = f"{STREAMS}test_a_label_changes_the_answers_to_later_items_and_to_no_other"

MUTATIONS: list[Mutation] = [
    *of(
        "rnn",
        # An item comes with its own label.
        (
            "algorithms/memory/stream.py",
            "reader.step(params, carry, x, label)\n            keep",
            "reader.step(params, carry, x, told)\n            keep",
            f"{CAUSALITY}[rnn]",
        ),
        # The label of the last item never arrives.
        (
            "algorithms/memory/stream.py",
            "reading.carry, row, reading.label)",
            "reading.carry, row, jnp.zeros_like(reading.label))",
            f"{CAUSALITY}[rnn]",
        ),
        (
            "algorithms/memory/rnn.py",
            '"bias": z}, carry, label)',
            '"bias": z}, carry, 0 * label)',
            f"{CAUSALITY}[gru]",
        ),
        # A masked row is read; its label counts; it moves the draws of the others.
        (
            "algorithms/memory/stream.py",
            "jnp.where(valid, new, old)",
            "jnp.where(True, new, old)",
            f"{STREAMS}test_an_item_meets_the_label_before_and_masked_rows_do_not_exist",
        ),
        (
            "algorithms/memory/stream.py",
            "return jax.tree.map(keep, (carry, told), before), logits",
            "return (jax.tree.map(keep, carry, before[0]), told), logits",
            f"{STREAMS}test_an_item_meets_the_label_before_and_masked_rows_do_not_exist",
        ),
        (
            "core/rows.py",
            "jnp.cumsum(mask, dtype=jnp.int32) - 1",
            "jnp.arange(mask.shape[0], dtype=jnp.int32)",
            f"{STREAMS}test_a_drawn_order_is_that_of_the_valid_rows_alone",
        ),
        # The order is that of the sampler.
        (
            "algorithms/memory/stream.py",
            "if key is not None:",
            "if key is None and key is not None:",
            f"{STREAMS}test_all_orders_are_as_likely",
        ),
        # The queries alone are learned from; or each set counts as one.
        (
            "algorithms/memory/stream.py",
            "return mean, {",
            "return cross_entropy(logits, asked), {",
            f"{STREAMS}test_the_loss_is_the_mean_over_all_items_and_queries",
        ),
        (
            "algorithms/memory/stream.py",
            "return mean, {",
            'return (cross_entropy(logits, asked) + report["loss"]) / 2, {',
            f"{STREAMS}test_the_loss_is_the_mean_over_all_items_and_queries",
        ),
        # The item itself counts as an earlier one; items of all classes do.
        (
            "algorithms/memory/stream.py",
            "jnp.cumsum(rows, axis=0, dtype=jnp.int32) - rows",
            "jnp.cumsum(rows, axis=0, dtype=jnp.int32)",
            f"{STREAMS}test_presentations_are_counted_as_by_a_loop",
        ),
        (
            "algorithms/memory/stream.py",
            "jnp.sum(before * rows, axis=-1",
            "jnp.sum(before, axis=-1",
            f"{STREAMS}test_presentations_are_counted_as_by_a_loop",
        ),
        # What is read does not learn from what comes later.
        (
            "algorithms/memory/rnn.py",
            '"bias": z}, carry, label)',
            '"bias": z}, jax.lax.stop_gradient(carry), label)',
            "test_the_whole_loss_has_the_derivative_of_finite_differences",
        ),
        # The gates have no bias.
        (
            "algorithms/memory/cells.py",
            'return x @ params["x"] + params["cell"]["bias"][None]',
            'return x @ params["x"]',
            "test_the_learner_is_a_loop_of_its_cell[lstm]",
        ),
        # The reset gate takes the part of the update.
        (
            "algorithms/memory/cells.py",
            "h = (1 - u) * n + u * h",
            "h = (1 - r) * n + r * h",
            "test_the_learner_is_a_loop_of_its_cell[gru]",
        ),
        (
            "algorithms/memory/cells.py",
            'r * (of_state[2] + params["state_bias"])',
            'r * of_state[2] + params["state_bias"]',
            "test_the_gru_is_that_of_flax",
        ),
        (
            "algorithms/memory/cells.py",
            "hidden, hidden, _orthogonal)",
            "hidden, hidden)",
            "test_the_gru_starts_orthogonal",
        ),
        tests="algorithms/memory/test_rnn.py",
    ),
    *of(
        "mann",
        # All rows whose usage is no more than the smallest are marked.
        (
            "algorithms/memory/mann.py",
            "slots = jax.nn.one_hot(least, usage.shape[0], dtype=memory.dtype)",
            "slots = (usage[None] <= usage[least][:, None]).astype(memory.dtype)",
            "test_new_items_go_to_rows_of_their_own_until_all_are_taken[1]",
        ),
        (
            "algorithms/memory/mann.py",
            "jax.lax.top_k(-usage, ",
            "jax.lax.top_k(usage, ",
            "test_two_steps_by_hand",
        ),
        # All heads write to the least used row.
        (
            "algorithms/memory/mann.py",
            "weights = gates * reads + (1 - gates) * slots",
            "weights = gates * reads + (1 - gates) * slots[:1]",
            "test_several_heads_write_in_the_order_of_usage_and_one_row_is_erased",
        ),
        (
            "algorithms/memory/mann.py",
            "weights = gates * reads + (1 - gates) * slots",
            "weights = (1 - gates) * reads + gates * slots",
            "test_two_steps_by_hand",
        ),
        # Nothing is erased; what is written is erased with the rest; nothing is written.
        (
            "algorithms/memory/mann.py",
            "return erased + weights.T @ keys, weights",
            "return memory + weights.T @ keys, weights",
            "test_two_steps_by_hand",
        ),
        (
            "algorithms/memory/mann.py",
            "return erased + weights.T @ keys, weights",
            "return (memory + weights.T @ keys) * (1 - slots[0])[:, None], weights",
            "test_two_steps_by_hand",
        ),
        (
            "algorithms/memory/mann.py",
            "return erased + weights.T @ keys, weights",
            "return erased, weights",
            "test_two_steps_by_hand",
        ),
        (
            "algorithms/memory/mann.py",
            "usage = decay * usage + ",
            "usage = usage + ",
            "test_two_steps_by_hand",
        ),
        (
            "algorithms/memory/mann.py",
            "jnp.sum(reads + writes, axis=0)",
            "jnp.sum(reads, axis=0)",
            "test_two_steps_by_hand",
        ),
        # It reads before it writes; or writes where it reads now.
        (
            "algorithms/memory/mann.py",
            "found, values = read(memory, keys, sharp)",
            "found, values = read(state.memory, keys, sharp)",
            "test_a_stream_and_its_derivative_are_those_of_a_loop",
        ),
        (
            "algorithms/memory/mann.py",
            "write(state.memory, state.usage, state.reads, keys, gates)",
            "write(state.memory, state.usage, read(state.memory, keys)[0], keys, gates)",
            "test_a_stream_and_its_derivative_are_those_of_a_loop",
        ),
        # What was read does not reach the controller.
        (
            "algorithms/memory/mann.py",
            "known = jnp.concatenate([label, state.values.reshape(-1)])",
            "known = jnp.concatenate([label, 0 * state.values.reshape(-1)])",
            "test_a_stream_and_its_derivative_are_those_of_a_loop",
        ),
        # All heads are equally blunt.
        (
            "algorithms/memory/mann.py",
            "cosines = strengths[:, None] * cosines",
            "cosines = cosines",
            "test_a_stream_and_its_derivative_are_those_of_a_loop",
        ),
        # A product and not an angle.
        (
            "algorithms/memory/mann.py",
            "cosines = _unit(keys) @ _unit(memory).T",
            "cosines = keys @ memory.T",
            "test_a_key_reads_by_its_angle_and_an_erased_row_has_a_derivative",
        ),
        (
            "algorithms/memory/mann.py",
            "jax.lax.rsqrt(squares + LEAST_SQUARE)",
            "jax.lax.rsqrt(squares)",
            "test_a_key_reads_by_its_angle_and_an_erased_row_has_a_derivative",
        ),
        # What was written is a constant.
        (
            "algorithms/memory/mann.py",
            "return State(cell, memory, ",
            "return State(cell, jax.lax.stop_gradient(memory), ",
            "test_a_stream_and_its_derivative_are_those_of_a_loop",
        ),
        tests="algorithms/memory/test_mann.py",
    ),
]

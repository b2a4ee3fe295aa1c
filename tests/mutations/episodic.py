"""Wrong versions of the learners that recall episodes, and of their memory."""

from mutations import Mutation, of

LSTM, STORE = "algorithms/episodic/test_lstm.py", "algorithms/episodic/test_store.py"
AGENT = "algorithms/episodic/test_agent.py"
EPOCH = "test_an_epoch_is_remembered_as_numpy_plays_it"
GRADIENT = "test_the_gradient_is_that_of_an_actor_critic_whose_memory_is_held"
LISTS = "test_three_batches_are_recalled_and_remembered_as_by_lists[mean-lru]"

MUTATIONS: list[Mutation] = [
    *of(
        "episodic_lstm",
        # What is recalled is not squashed.
        (
            "algorithms/episodic/agent.py",
            "c = c + r * jnp.tanh(recalled)",
            "c = c + r * recalled",
            "test_without_its_gate_the_cell_is_an_lstm",
        ),
        # The gate is shared with the input.
        (
            "algorithms/episodic/agent.py",
            "c = c + r * jnp.tanh(recalled)",
            "c = c + jax.nn.sigmoid(i) * jnp.tanh(recalled)",
            "test_an_agent_that_recalls_knows_the_arm_at_once_and_forgets_it_without_the_gate",
        ),
        # The state of the output is stored in place of the cell.
        (
            "algorithms/episodic/agent.py",
            "((_, cell), _), steps = loops.scan",
            "((cell, _), _), steps = loops.scan",
            EPOCH,
        ),
        # Masked episodes leave a trace.
        (
            "algorithms/episodic/agent.py",
            "                episode.mask,\n                eviction",
            "                True,\n                eviction",
            EPOCH,
        ),
        # A context is stored once for each time that it is met.
        (
            "algorithms/episodic/agent.py",
            "                replace=True,\n",
            "                replace=False,\n",
            EPOCH,
        ),
        # Rewards are discounted from the start of the episode.
        (
            "algorithms/episodic/agent.py",
            "rules.discount ** jnp.maximum(later, 0)",
            "rules.discount ** jnp.maximum(places[:, None] + 0 * later, 0)",
            GRADIENT,
        ),
        # Returns hold rewards of the past.
        (
            "algorithms/episodic/agent.py",
            "jnp.where(later >= 0, powers, 0)",
            "powers",
            GRADIENT,
        ),
        (
            "algorithms/episodic/agent.py",
            "policy = -chosen * jax.lax.stop_gradient(errors)",
            "policy = -chosen * errors",
            GRADIENT,
        ),
        (
            "algorithms/episodic/agent.py",
            "- rules.entropy_cost * entropy",
            "+ rules.entropy_cost * entropy",
            GRADIENT,
        ),
        # Values predict nothing, for their targets move with them.
        (
            "algorithms/episodic/agent.py",
            "jnp.square(errors)",
            "jnp.square(jax.lax.stop_gradient(errors))",
            GRADIENT,
        ),
        # A bad arm never pays.
        (
            "algorithms/episodic/agent.py",
            "jnp.where(action == arm, rules.good, rules.bad)",
            "jnp.where(action == arm, rules.good, 0.0)",
            "test_arms_pay_as_often_as_they_should",
        ),
        # Without a key nothing but the good arm pays.
        (
            "algorithms/episodic/agent.py",
            "rewarded = chance > 0.5",
            "rewarded = action == arm",
            f"{AGENT}::test_without_a_key_a_reward_comes_where_it_is_likely",
        ),
        # Masked episodes move the draws of those behind them.
        (
            "algorithms/episodic/agent.py",
            "return jnp.cumsum(episodes.mask, dtype=jnp.int32) - 1",
            "return jnp.arange(episodes.mask.shape[0], dtype=jnp.int32)",
            f"{AGENT}::test_a_masked_episode_leaves_no_trace_in_the_draws",
        ),
        # The best action is taken, and never another one.
        (
            "algorithms/episodic/agent.py",
            "action = jax.random.categorical(k_action, logits)",
            "action = jnp.argmax(logits)",
            "test_arms_pay_as_often_as_they_should",
        ),
        # Every context counts as an old one.
        (
            "algorithms/episodic/lstm.py",
            "earlier = jnp.arange(columns)[None] < jnp.arange(rows)[:, None]",
            "earlier = jnp.arange(columns)[None] <= jnp.arange(rows)[:, None]",
            GRADIENT,
        ),
        # The memory: gradients pass, the oldest stays, marks stay.
        (
            "algorithms/episodic/store.py",
            "new = jax.lax.stop_gradient(jnp.asarray(new).astype(leaf.dtype))",
            "new = jnp.asarray(new).astype(leaf.dtype)",
            f"{STORE}::test_what_is_not_written_changes_nothing_and_what_is_has_no_derivative",
        ),
        (
            "algorithms/episodic/store.py",
            "jnp.argmin(memory.written if",
            "jnp.argmax(memory.written if",
            f"{STORE}::test_evictions_as_a_list_of_python",
        ),
        (
            "algorithms/episodic/store.py",
            "kept & ~passed",
            "kept",
            f"{STORE}::test_evictions_as_a_list_of_python",
        ),
        (
            "algorithms/episodic/store.py",
            "hand = (oldest + 1) % capacity",
            "hand = memory.hand",
            f"{STORE}::test_evictions_as_a_list_of_python",
        ),
        # Of equal keys the oldest is read.
        (
            "algorithms/episodic/store.py",
            "jnp.lexsort((-memory.written, apart))",
            "jnp.lexsort((memory.written, apart))",
            f"{STORE}::test_of_equal_keys_the_latest_is_read_and_replace_keeps_one",
        ),
        (
            "algorithms/episodic/store.py",
            "weights = weights / jnp.where(total > 0, total, 1)",
            "weights = weights / recall.slots.shape[0]",
            f"{STORE}::test_reads_are_weighted_means_of_the_nearest",
        ),
        tests=LSTM,
    ),
    *of(
        "emo",
        # The mean counts slots that hold nothing.
        (
            "algorithms/episodic/aggregate.py",
            "count = jnp.sum(past.found).astype(past.similarity.dtype)",
            "count = jnp.asarray(num, past.similarity.dtype)",
            LISTS,
        ),
        # The mean of the others alone.
        (
            "algorithms/episodic/aggregate.py",
            'own = share if how == "mean" else jnp.ones_like(share)',
            "own = jnp.ones_like(share)",
            "test_equal_gradients_leave_the_mean_and_are_added_to_the_current_one",
        ),
        # Weights that sum to 1 over what was found and what was not.
        (
            "algorithms/episodic/aggregate.py",
            "return jax.nn.softmax(jnp.where(there, x @ params",
            "return jax.nn.softmax(jnp.where(there | True, x @ params",
            "test_weights_of_the_transformer_as_numpy_computes_them",
        ),
        # The current gradient counts as a constant in what the transformer reads.
        (
            "algorithms/episodic/aggregate.py",
            "g = trees.widened(current).reshape(-1)",
            "g = trees.widened(jax.lax.stop_gradient(current)).reshape(-1)",
            "test_the_transformer_and_the_rates_learn_by_finite_differences",
        ),
        # The combined gradient is remembered, and so a part of it for ever.
        (
            "algorithms/episodic/recall.py",
            "        return updates, Noted(noted.step + 1, notes)",
            "        put = lambda rows, g: rows.at[noted.step].set(g)\n"
            "        notes = jax.tree.map(put, noted.grads, stored)\n"
            "        return updates, Noted(noted.step + 1, notes)",
            LISTS,
        ),
        # Every step recalls gradients of the first.
        (
            "algorithms/episodic/recall.py",
            "return leaf[:, jnp.minimum(noted.step, leaf.shape[1] - 1)]",
            "return leaf[:, 0 * noted.step]",
            LISTS,
        ),
        # Masked rows count in the key.
        (
            "algorithms/episodic/recall.py",
            "found = masked_mean(_moments(support), support.mask)",
            "found = jnp.mean(_moments(support), axis=0)",
            "test_the_key_is_a_mean_of_valid_rows_or_what_is_given",
        ),
        (
            "algorithms/episodic/recall.py",
            "return jax.lax.stop_gradient(trees.widened(found))",
            "return trees.widened(found)",
            "test_the_key_is_a_mean_of_valid_rows_or_what_is_given",
        ),
        # Gradients of the head are mixed as well.
        (
            "algorithms/episodic/emo.py",
            'select = None if remember == "all" else _outside(head)',
            "select = None",
            "test_gradients_of_the_head_are_not_mixed_unless_asked",
        ),
        # Nothing that was used is known to have been.
        (
            "algorithms/episodic/emo.py",
            'if entries.recall is not None and how.eviction != "fifo":',
            "if entries.recall is None:",
            LISTS,
        ),
        # A task without a support example is remembered, or counts as a use.
        (
            "algorithms/episodic/emo.py",
            "memory, entries.key, entries.grads, entries.valid, eviction",
            "memory, entries.key, entries.grads, eviction",
            LISTS,
        ),
        (
            "algorithms/episodic/emo.py",
            "store.touch(memory, *used), None",
            "store.touch(memory, used[0]), None",
            LISTS,
        ),
        # The memory of the batch alone.
        (
            "algorithms/episodic/emo.py",
            '    memory = old["memory"]\n',
            '    memory = jax.tree.map(jnp.zeros_like, old["memory"])\n',
            LISTS,
        ),
        tests="algorithms/episodic/test_emo.py",
    ),
]

"""Wrong versions of the metric learner and of the baselines."""

from mutations import Mutation, of

MUTATIONS: list[Mutation] = [
    *of(
        "protonet",
        (
            "algorithms/metric/protonet.py",
            "2 * x @ means.T",
            "x @ means.T",
            "test_protonet_is_a_linear_classifier_and_a_distance",
        ),
        # Sums in place of means.
        (
            "algorithms/embedding.py",
            "return members / jnp.maximum(members.sum(0), 1)[None]",
            "return members",
            "test_protonet_is_a_linear_classifier_and_a_distance",
        ),
        (
            "algorithms/embedding.py",
            "return jnp.where(support.mask[:, None], members, 0)",
            "return members",
            "test_protonet_with_ragged_classes_equals_a_loop",
        ),
        (
            "algorithms/metric/protonet.py",
            "return -scale * (",
            "return -(",
            "test_scale_multiplies_the_distances_and_never_revives_an_absent_class",
        ),
        (
            "algorithms/embedding.py",
            "mask_absent(head.score(params, adapted.fitted, embeddings), adapted.present)",
            "head.score(params, adapted.fitted, embeddings)",
            "test_protonet_with_ragged_classes_equals_a_loop",
        ),
        # Prototypes are held in training.
        (
            "algorithms/embedding.py",
            "support, query = seen(of_support, task.support)",
            "support, query = seen(jax.lax.stop_gradient(of_support), task.support)",
            "test_prototypes_learn_as_centres_and_as_queries",
        ),
        tests="algorithms/metric/test_protonet.py",
    ),
    *of(
        "fine_tune",
        # Labels of the task in place of those of training.
        (
            "algorithms/baselines.py",
            "examples = labels.of_training(examples, task.info)",
            "pass",
            "test_joint_training_is_over_support_and_query_and_all_classes",
        ),
        (
            "algorithms/baselines.py",
            "examples = concatenate(task.support, task.query)",
            "examples = task.support",
            "test_joint_training_is_over_support_and_query_and_all_classes",
        ),
        # The head of training stays.
        (
            "algorithms/baselines.py",
            'params = {**variables.params, "head": head}',
            "trained = jax.tree.map(\n"
            '                lambda leaf: leaf[..., :num_ways], variables.params["head"]\n'
            "            )\n"
            '            params = {**variables.params, "head": trained}',
            "test_a_new_head_is_fitted_to_the_support_set[False]",
        ),
        (
            "algorithms/baselines.py",
            "if with_head and adapt_filter is None:",
            "if not with_head and adapt_filter is None:",
            "test_a_new_head_is_fitted_to_the_support_set[False]",
        ),
        (
            "algorithms/baselines.py",
            "if with_head and adapt_filter is None:",
            "if with_head:",
            "test_a_new_head_is_fitted_to_the_support_set[True]",
        ),
        (
            "algorithms/baselines.py",
            'return features @ head["kernel"] + head["bias"][None], state',
            'return features @ head["kernel"], state',
            "test_joint_training_is_over_support_and_query_and_all_classes",
        ),
        tests="algorithms/test_baselines.py",
    ),
    *of(
        "no_adaptation",
        # It adapts a little.
        (
            "algorithms/baselines.py",
            "optax.identity(), num_steps=0, norm=norm",
            "optax.sgd(1e-3), num_steps=1, norm=norm",
            "test_without_classes_the_model_is_trained_and_adapts_as_it_is[0]",
        ),
        (
            "algorithms/baselines.py",
            "examples = concatenate(task.support, task.query)",
            "examples = task.query",
            "test_without_classes_the_model_is_trained_and_adapts_as_it_is[0]",
        ),
        # Masked rows count.
        (
            "algorithms/baselines.py",
            "report = metrics.of_task(loss_fn, outputs, examples)",
            "examples = Examples.of(examples.x, examples.y)\n"
            "        report = metrics.of_task(loss_fn, outputs, examples)",
            "test_without_classes_the_model_is_trained_and_adapts_as_it_is[0]",
        ),
        # The averages of training are thrown away, or kept where nothing reads them.
        (
            "algorithms/baselines.py",
            'if norm != "running":',
            'if norm == "running":',
            "test_averages_are_learned_where_they_are_read[running]",
        ),
        (
            "algorithms/baselines.py",
            "num_steps=0, norm=norm, task_chunk",
            'num_steps=0, norm="running", task_chunk',
            "test_averages_are_learned_where_they_are_read[support]",
        ),
        tests="algorithms/test_baselines.py",
    ),
]

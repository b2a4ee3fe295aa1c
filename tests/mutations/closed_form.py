"""Wrong versions of the learners that solve a convex problem on the support set."""

from mutations import Mutation, of

RIDGE = "algorithms/closed_form/ridge.py"
LOGISTIC = "algorithms/closed_form/logistic.py"
MACHINE = "algorithms/closed_form/metaoptnet.py"
SVM = "algorithms/closed_form/svm.py"
KERNEL = "algorithms/closed_form/kernel.py"

MUTATIONS: list[Mutation] = [
    *of(
        "r2d2",
        # The regularisation is not multiplied by the number of examples, or by all rows.
        (
            RIDGE,
            "members_of(support, num_ways), num * penalty)",
            "members_of(support, num_ways), 0 * num + penalty)",
            "test_weights_are_those_of_least_squares[None]",
        ),
        (
            RIDGE,
            "jnp.maximum(support.mask.sum(), 1)",
            "jnp.asarray(support.mask.shape[0])",
            "test_weights_are_those_of_least_squares[mask1]",
        ),
        # The bias counts masked rows.
        (
            RIDGE,
            "mask[:, None].astype(x.dtype)], 1)",
            "jnp.ones_like(x[:, :1])], 1)",
            "test_weights_are_those_of_least_squares[mask1]",
        ),
        (
            RIDGE,
            "weights[:-1] + weights[-1:])",
            "weights[:-1])",
            "test_weights_are_those_of_least_squares[None]",
        ),
        # The solution is held in training.
        (
            "inner/solve.py",
            "        lambda solution: matrix @ solution,\n",
            "        lambda solution: jax.lax.stop_gradient(matrix) @ solution,\n",
            "test_encoder_and_numbers_learn_through_the_solution",
        ),
        # The number is learned as it is, and read as a logarithm.
        (
            RIDGE,
            "math.log(n.start) if n.positive else n.start",
            "n.start",
            "test_learning_starts_with_the_given_numbers",
        ),
        tests="algorithms/closed_form/test_ridge.py",
    ),
    *of(
        "metaoptnet_ridge",
        (
            RIDGE,
            "return 2 * ridge(",
            "return ridge(",
            "test_metaoptnet_doubles_the_weights_without_a_bias",
        ),
        (
            RIDGE,
            "penalty = jnp.asarray(regularisation, support.x.dtype)",
            "penalty = regularisation * support.mask.sum().astype(support.x.dtype)",
            "test_metaoptnet_doubles_the_weights_without_a_bias",
        ),
        (
            RIDGE,
            "return adjusted(numbers, params, x @ weights)",
            "return adjusted(numbers, params, x @ jax.lax.stop_gradient(weights))",
            "test_encoder_learns_through_the_doubled_solution",
        ),
        tests="algorithms/closed_form/test_ridge.py",
    ),
    *of(
        "lr_d2",
        (
            LOGISTIC,
            "4 * y - 2, 4 * penalty)",
            "4 * y - 2, penalty)",
            "test_first_step_is_ridge_regression_on_larger_targets",
        ),
        (
            LOGISTIC,
            "length=steps - 1)",
            "length=steps)",
            "test_first_step_is_ridge_regression_on_larger_targets",
        ),
        (
            LOGISTIC,
            "weight * scores + y - shares",
            "weight * (scores + y - shares)",
            "test_steps_are_those_of_newton_and_lead_to_the_optimum[shape0]",
        ),
        (
            LOGISTIC,
            "root[:, None] * gram * root[None]",
            "root[:, None] * gram",
            "test_steps_are_those_of_newton_and_lead_to_the_optimum[shape1]",
        ),
        # Confident examples divide by zero.
        (
            LOGISTIC,
            "jnp.maximum(shares * (1 - shares), LEAST)",
            "shares * (1 - shares)",
            "test_confident_examples_do_not_divide_by_zero",
        ),
        # Steps are held in training.
        (
            LOGISTIC,
            "scores = x @ weights\n",
            "scores = x @ jax.lax.stop_gradient(weights)\n",
            "test_encoder_and_numbers_learn_through_all_steps",
        ),
        tests="algorithms/closed_form/test_logistic.py",
    ),
    *of(
        "metaoptnet",
        (
            MACHINE,
            "diagonal * jnp.eye(",
            "jnp.eye(",
            "test_logits_are_products_with_sums_of_support_vectors",
        ),
        # The solution is held in training.
        (
            SVM,
            "_correction(problem, rate, free, found)",
            "_correction(still, rate, free, found)",
            "test_encoder_and_scale_learn_through_the_solution",
        ),
        # The cost of the paper, whatever is asked for.
        (
            MACHINE,
            "cost=cost,",
            "cost=0.1,",
            "test_logits_are_products_with_sums_of_support_vectors",
        ),
        # Bounds that are touched move in the derivative.
        (
            SVM,
            "free = still.allowed & (found < still.upper)",
            "free = still.allowed",
            "algorithms/closed_form/test_svm.py::"
            "test_derivatives_of_first_and_second_order",
        ),
        # Others than the class of an example have no bound.
        (
            SVM,
            "upper=cost * own.astype(dtype),",
            "upper=jnp.full_like(own, cost, dtype),",
            "algorithms/closed_form/test_svm.py::test_solution_is_that_of_a_general_solver",
        ),
        (
            SVM,
            "jnp.min((self.cost[None] + sums) / counts, 0)",
            "jnp.max((self.cost[None] + sums) / counts, 0)",
            "algorithms/closed_form/test_svm.py::test_solution_is_that_of_a_general_solver",
        ),
        # Classes without an example compete.
        (
            SVM,
            "allowed=own.any(1, keepdims=True) & mask[None],",
            "allowed=jnp.ones_like(own) & mask[None],",
            "algorithms/closed_form/test_svm.py::"
            "test_masked_rows_and_absent_classes_take_no_part",
        ),
        # What does not lie on the bounds that were found passes for a solution.
        (
            SVM,
            "residual = jnp.where(better, after, before)",
            "residual = jnp.zeros_like(before)",
            "algorithms/closed_form/test_svm.py::"
            "test_the_residual_shows_too_few_iterations",
        ),
        # A class that rounding takes for larger than itself.
        (
            SVM,
            "        below = below | jnp.eye(gaps.shape[0], dtype=bool)[:, :, None]\n",
            "",
            "algorithms/closed_form/test_svm.py::test_single_precision",
        ),
        tests="algorithms/closed_form/test_metaoptnet.py",
    ),
    *of(
        "dkt",
        (
            KERNEL,
            "signs = 2 * members_of(examples, num_ways) - 1",
            "signs = members_of(examples, num_ways)",
            "test_predictive_mean_is_kernel_ridge_regression",
        ),
        (
            KERNEL,
            'return values["mean"] + near @ process.weights',
            "return near @ process.weights",
            "test_predictive_mean_is_kernel_ridge_regression",
        ),
        (
            KERNEL,
            "2 * jnp.square(values",
            "jnp.square(values",
            "test_predictive_mean_is_kernel_ridge_regression",
        ),
        # Masked rows have the noise of others.
        (
            KERNEL,
            "jnp.diag(jnp.where(mask, noise, 1))",
            "jnp.diag(jnp.where(mask, noise, noise))",
            "test_training_maximises_the_likelihood_of_support_and_query",
        ),
        # The likelihood of the support set alone.
        (
            KERNEL,
            "concatenate(support, query)\n",
            "support\n",
            "test_training_maximises_the_likelihood_of_support_and_query",
        ),
        # Classes without an example count.
        (
            KERNEL,
            "masked_mean(nll, present)",
            "jnp.mean(nll)",
            "test_training_maximises_the_likelihood_of_support_and_query",
        ),
        # Masked rows bring classes.
        (
            "algorithms/embedding.py",
            "return jnp.where(support.mask[:, None], members, 0)",
            "return members",
            "test_training_maximises_the_likelihood_of_support_and_query",
        ),
        # The root of zero.
        (
            "core/rows.py",
            "jnp.where(some, squares, 1)",
            "squares",
            "test_an_embedding_of_zero_has_a_derivative",
        ),
        tests="algorithms/closed_form/test_deep_kernel.py",
    ),
]

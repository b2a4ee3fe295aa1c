"""Wrong versions of learners whose prototypes adapt by gradients."""

from mutations import Mutation, of

MUTATIONS: list[Mutation] = [
    *of(
        "g_meta",
        # Prototypes of the queries are those before the adaptation.
        (
            "algorithms/gradient/g_meta.py",
            "outputs, _ = done.predict(done.adapted, support.x, key=k_support, "
            "mask=support.mask)",
            "start = done.adapted.replace(params=done.start.params)\n"
            "        outputs, _ = done.predict(start, support.x, mask=support.mask)",
            "test_the_outer_gradient_is_of_second_order",
        ),
        # The same at test alone.
        (
            "algorithms/gradient/g_meta.py",
            "outputs = made.predict(adapted, support.x, key=k_embed, mask=support.mask)",
            "outputs = made.predict(\n            adapted.replace("
            'params=variables.params["model"]), support.x, mask=support.mask\n        )',
            "test_what_it_predicts_is_what_it_is_trained_on",
        ),
        # The product of an embedding and a mean counts once.
        (
            "algorithms/gradient/g_meta.py",
            "- 2 * x @ means.T)",
            "- x @ means.T)",
            "test_without_a_step_it_is_a_prototypical_network",
        ),
        # Masked rows are members of their class.
        (
            "algorithms/gradient/g_meta.py",
            "return seen(trees.widened(outputs), examples)",
            "every = jnp.ones_like(examples.mask)\n"
            "    examples = Examples(x=examples.x, y=examples.y, mask=every)\n"
            "    return seen(trees.widened(outputs), examples)",
            "test_masked_rows_and_absent_classes_do_not_count",
        ),
        # Absent classes win as any other.
        (
            "algorithms/gradient/g_meta.py",
            "return mask_absent(logits, present)",
            "return logits + 0 * mask_absent(logits, present)",
            "test_masked_rows_and_absent_classes_do_not_count",
        ),
        tests="algorithms/gradient/test_g_meta.py",
    ),
]

"""Wrong versions of MetaDistil."""

from __future__ import annotations

from mutations import of

MUTATIONS = [
    *of(
        "meta_distil",
        # The student steps with the teacher of before.
        (
            "algorithms/joint/meta_distil.py",
            "grads, (_, new) = jax.grad(pupil, has_aux=True)(params, moved)",
            'grads, (_, new) = jax.grad(pupil, has_aux=True)(params, state["teacher"])',
            "test_the_student_steps_from_its_start_with_the_new_teacher",
        ),
        # The student is not taken back from the pilot.
        (
            "algorithms/joint/meta_distil.py",
            "            told = found.outer_aux\n",
            "            told, params = found.outer_aux, found.state[0]\n",
            "test_the_student_steps_from_its_start_with_the_new_teacher",
        ),
        # Its norm statistics have seen the quiz.
        (
            "algorithms/joint/meta_distil.py",
            'kept = {"model": new, "teacher": moved, "second": moments}',
            "new = network.apply(params, new, task.query)[1]\n"
            '        kept = {"model": new, "teacher": moved, "second": moments}',
            "test_the_pilot_leaves_no_trace_in_the_state_of_the_student",
        ),
        # First order: the teacher descends the quiz loss of nobody.
        (
            "algorithms/joint/meta_distil.py",
            "found = sama(pupil, quiz, params, moved, step, alpha=None)",
            "found = sama(lambda p, t: pupil(p, jax.lax.stop_gradient(t)), quiz, params, "
            "moved, step, alpha=None)",
            "test_the_teacher_descends_the_quiz_loss_after_the_pilot_step",
        ),
        # The pilot goes twice as far.
        (
            "algorithms/joint/meta_distil.py",
            "step = optax.sgd(pilot_rate)",
            "step = optax.sgd(2 * pilot_rate)",
            "test_the_teacher_descends_the_quiz_loss_after_the_pilot_step",
        ),
        # KD without the factor of its temperature.
        (
            "algorithms/joint/meta_distil.py",
            "return temperature**2 * trees.masked_mean(each, examples.mask)",
            "return trees.masked_mean(each, examples.mask)",
            "test_soft_loss_by_hand",
        ),
        # The divergence the other way round.
        (
            "algorithms/joint/meta_distil.py",
            "jnp.sum(jnp.exp(theirs) * (theirs - ours), axis=-1)",
            "jnp.sum(jnp.exp(ours) * (ours - theirs), axis=-1)",
            "test_soft_loss_by_hand",
        ),
        # Shares of the two losses exchanged.
        (
            "algorithms/joint/meta_distil.py",
            "value = soft * kd.astype(plain.dtype) + (1 - soft) * plain",
            "value = (1 - soft) * kd.astype(plain.dtype) + soft * plain",
            "test_without_soft_targets_the_teacher_has_no_derivative",
        ),
        # The first phase trains the student, too.
        (
            "algorithms/joint/meta_distil.py",
            'zeros = jax.tree.map(jnp.zeros_like, variables.params["model"])',
            'zeros = jax.tree.map(jnp.ones_like, variables.params["model"])',
            "test_the_first_phase_trains_the_teacher_alone",
        ),
        tests="algorithms/joint/test_meta_distil.py",
    ),
]

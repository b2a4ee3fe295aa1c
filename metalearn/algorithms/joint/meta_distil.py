"""MetaDistil: a teacher that learns to teach, by what its student then knows.

W. Zhou, C. Xu, J. McAuley. BERT Learns to Teach: Knowledge Distillation with Meta Learning.
ACL 2022. Differences:

- The teacher is trained here too, in a first phase, unless one is given. The paper starts
  from a network that was fine-tuned before.
- The derivative of the quiz loss in the teacher is one product of second derivatives with
  one vector, which is exact: the pilot step is never differentiated as a graph.
- As in the released code, the pilot step is plain descent, whichever optimiser takes the
  real step. Its rate follows no schedule.
- The teacher's optimiser is Adam unless plain descent is asked for, and its rate follows no
  schedule. It forgets the first phase.
- The teacher is applied as at test: without dropout, with the running averages of the first
  phase.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax

from metalearn.algorithms.joint.builder import Gradient, Network, joint, network_of
from metalearn.core import checks, kinds, metrics, trees
from metalearn.core.keys import split_key
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Model, Variables
from metalearn.core.pairing import paired
from metalearn.core.task import Examples, Task
from metalearn.core.types import Array, Key, LossFn, PyTree, TaskChunk
from metalearn.hypergradient import sama
from metalearn.inner.norm import JointNorm

TeacherOpt = Literal["adam", "sgd"]


def meta_distil(
    model: Model,
    loss_fn: LossFn,
    *,
    teacher: Model | None = None,
    taught: Variables | None = None,
    pretrain_steps: int = 1000,
    pretrain_rate: float = 1e-3,
    temperature: float = 4.0,
    soft: float = 0.5,
    pilot_rate: float = 0.05,
    teacher_rate: float = 3e-5,
    teacher_opt: TeacherOpt = "adam",
    norm: JointNorm = "running",
    task_chunk: TaskChunk = "auto",
) -> MetaLearner:
    """A student and its teacher, who is corrected by a quiz that the student takes.

    A task is a batch to learn from, the support set, and a quiz, the query set, of examples
    that training keeps apart. With the student's loss
    `D(p, t) = soft KD(p, t) + (1 - soft) L(p)` of the support set, KD being `soft_loss`, a
    step does this:

        pilot    = p - pilot_rate grad_p D(p, t)
        t       <- teacher_opt on the quiz loss L(pilot), which depends on t by the pilot
        gradient of the student = grad_p D(p, t), with the new t, at the old p

    For the first `pretrain_steps` steps the teacher alone is trained, by Adam on the
    support sets, and the student stays as it was made unless the outer optimiser decays it.
    That optimiser sees gradients of 0 meanwhile: a schedule goes on, and Adam forgets that
    its moments are young, so that its first steps afterwards are some four times as long.
    SGD with momentum, as in the paper, begins as it should.
    The pilot is thrown away, with the statistics of its norm layers. With `teacher_rate=0`
    the teacher stays as it is: plain distillation, at its cost. With `soft=0` in addition
    the student learns from the labels alone; with `soft=0` alone it does so too, at the
    cost of pilots whose quiz says nothing of the teacher. If a step has several tasks, each
    moves the teacher from where it was, and the mean of these goes on.

    Args:
      model: The student's network, which returns logits.
      loss_fn: Loss of one task, of logits.
      teacher: The teacher's network, with as many logits; that of the student if None.
      taught: Variables of a teacher that was trained before; made at random if None.
      pretrain_steps: Steps of the first phase; 0 for a teacher that is given.
      pretrain_rate: Rate of Adam in the first phase, if there is one.
      temperature: Divisor of the logits in KD, above 0; read with a `soft` above 0.
      soft: Share of KD in the student's loss, in 0..1.
      pilot_rate: Length of the pilot step, above 0; of a teacher that learns.
      teacher_rate: Rate of the teacher in the second phase; 0 for plain distillation.
      teacher_opt: Optimiser of a teacher that learns in the second phase: "adam", or "sgd"
        without momentum.
      norm: Batch-norm policy of the student: "support", "batch" or "running"; see
        `metalearn.inner.norm`.
      task_chunk: Tasks handled at once, or "auto".

    Returns:
      A `MetaLearner`; `adapt` takes the student as it is. The state has the teacher, under
      "teacher" its params and under "teacher_state" the rest, and counts steps. A step
      reports the loss of the quiz, which the teacher takes in the first phase, the pilot in
      the second, and without a pilot the student.

    Raises:
      TypeError: `teacher` is no `Model`, or `taught` are no `Variables`.
      ValueError: a number is out of range, or given where nothing reads it; or, once there
        is a task, student and teacher differ in their logits.

    Example:
      >>> student = ml.from_linen(ml.models.MLP(10, widths=(8,)))
      >>> big = ml.from_linen(ml.models.MLP(10, widths=(256,)))
      >>> learner = ml.meta_distil(student, ml.losses.cross_entropy, teacher=big)
    """
    teacher = model if teacher is None else teacher
    numbers = {
        "pretrain_steps": pretrain_steps,
        "pretrain_rate": pretrain_rate,
        "temperature": temperature,
        "soft": soft,
        "pilot_rate": pilot_rate,
        "teacher_rate": teacher_rate,
        "teacher_opt": teacher_opt,
    }
    _check(teacher, taught, **numbers)
    first_opt = optax.adam(pretrain_rate)
    opts = {"adam": optax.adam, "sgd": optax.sgd}
    second_opt = opts[teacher_opt](teacher_rate)

    def gradient(network: Network) -> Gradient:
        prepare = _first_phase(network_of(teacher, loss_fn, keeps=True), first_opt)
        pupil = _pupil(network, teacher, loss_fn, soft, temperature)
        opt = second_opt if teacher_rate else None
        distil = _second_phase(network, pupil, pilot_rate, opt)

        return _of_phases(prepare, distil, pretrain_steps, loss_fn)

    made = joint(
        *("meta_distil", model, loss_fn, gradient),
        settings=numbers,
        norm=norm,
        task_chunk=task_chunk,
    )

    def init(key: Key, task: Task) -> Variables:
        found = made.init(key, task)
        begun = taught
        if begun is None:
            begun = teacher.init(split_key(key, 2)[1], task.support.x)
        _check_logits(model, teacher, found, begun, task)
        own = {
            "step": jnp.zeros((), jnp.int32),
            "teacher": begun.params,
            "teacher_state": begun.state,
            "first": first_opt.init(begun.params),
            "second": second_opt.init(begun.params),
        }
        return Variables(params=found.params, state={**found.state, **own})

    return made._replace(init=init)


def _of_phases(
    prepare: Callable[..., Any], distil: Callable[..., Any], num: int, loss_fn: LossFn
) -> Gradient:
    """The gradient of a task: `num` steps of the first phase, then the second."""

    def of_task(variables: Variables, task: Task, *, key: Key):
        step = variables.state["step"]
        if num:
            found = jax.lax.cond(step < num, prepare, distil, variables, task, key)
        else:
            found = distil(variables, task, key)
        grads, kept, told = found
        report = metrics.of_task(loss_fn, told, task.query)
        report = {f"query/{name}": value for name, value in report.items()}
        return {"model": grads}, ({**kept, "step": step + 1}, report)

    return of_task


def _pupil(
    network: Network, teacher: Model, loss_fn: LossFn, soft: float, temperature: float
):
    """Function `(params, state, taught, examples, key) -> (loss, (outputs, state))`."""

    def loss(params, state, taught: Variables, examples: Examples, key: Key | None):
        outputs, new = network.apply(params, state, examples, key=key)
        plain = paired(loss_fn, outputs, examples)
        # As at test: noise of the teacher would be another's lesson in each product.
        targets, _ = teacher.apply(taught, examples.x, train=False, mask=examples.mask)
        kd = soft_loss(outputs, targets, examples, temperature=temperature)
        value = soft * kd.astype(plain.dtype) + (1 - soft) * plain
        return value, (outputs, new)

    return loss


def _first_phase(big: Network, opt: optax.GradientTransformation):
    """Function `(variables, task, key) -> (gradient, state, outputs)`."""

    def prepare(variables: Variables, task: Task, key: Key):
        k_support, k_query = split_key(key, 2)
        state = variables.state
        grads, (_, new) = jax.grad(big.loss, has_aux=True)(
            state["teacher"], state["teacher_state"], task.support, key=k_support
        )
        moved, moments = _moved(opt, grads, state["first"], state["teacher"])
        found, _ = big.apply(moved, new, task.query, key=k_query)
        kept = {"teacher": moved, "teacher_state": new, "first": moments}
        zeros = jax.tree.map(jnp.zeros_like, variables.params["model"])
        return zeros, {**state, **kept}, found

    return prepare


def _second_phase(
    network: Network,
    pupil_loss: Callable[..., Any],
    pilot_rate: float,
    opt: optax.GradientTransformation | None,
):
    """Function as that of the first phase; without `opt` the teacher stays."""

    def distil(variables: Variables, task: Task, key: Key):
        k_support, k_query = split_key(key, 2)
        params, state = variables.params["model"], variables.state

        def pupil(params: PyTree, of_teacher: PyTree):
            taught = Variables(params=of_teacher, state=state["teacher_state"])
            return pupil_loss(params, state["model"], taught, task.support, k_support)

        def quiz(params: PyTree, of_teacher: PyTree):
            del of_teacher
            value, aux = network.loss(params, state["model"], task.query, key=k_query)
            return value, aux[0]

        moved, moments = state["teacher"], state["second"]
        if opt is None:
            told = quiz(params, moved)[1]
        else:
            # Of one plain step this is the whole derivative, and no estimate.
            step = optax.sgd(pilot_rate)
            found = sama(pupil, quiz, params, moved, step, alpha=None)
            told = found.outer_aux
            moved, moments = _moved(opt, found.gradient, moments, moved)
        grads, (_, new) = jax.grad(pupil, has_aux=True)(params, moved)
        kept = {"model": new, "teacher": moved, "second": moments}
        return grads, {**state, **kept}, told

    return distil


def soft_loss(
    outputs: Array, targets: Array, examples: Examples, *, temperature: float
) -> Array:
    """The loss of a student beside its teacher, `T^2 KL(teacher || student)` at T.

    Both distributions are softmax of logits divided by T. The factor keeps the gradient of
    one size as T grows.

    Args:
      outputs: Logits of the student, `[N, C]`.
      targets: Logits of the teacher, `[N, C]`.
      examples: Examples, of which the mask alone is read.
      temperature: T, above 0.

    Returns:
      Mean over the valid examples, in nats; 0 if there is none.

    Raises:
      TypeError: the logits are no arrays.
      ValueError: they differ in shape.

    Example:
      >>> examples = ml.Examples.of(jnp.zeros((1, 1)), jnp.array([0]))
      >>> logits, other = jnp.array([[0.0, 0.0]]), jnp.array([[0.0, 2.0]])
      >>> round(float(ml.soft_loss(logits, other, examples, temperature=2.0)), 4)
      0.4438
    """
    for name, value in (("student", outputs), ("teacher", targets)):
        trees.one_array(value, f"the output of the {name}", "logits [N, C]")
    _check_shapes(outputs.shape, targets.shape)
    valid = examples.mask.reshape((-1,) + (1,) * (outputs.ndim - 1))

    def logs(logits: Array) -> Array:
        # What a masked row holds may be no number, which a derivative would keep.
        wide = jnp.where(valid, trees.widened(logits), 0)
        return jax.nn.log_softmax(wide / temperature, axis=-1)

    ours, theirs = logs(outputs), logs(targets)
    each = jnp.sum(jnp.exp(theirs) * (theirs - ours), axis=-1)
    return temperature**2 * trees.masked_mean(each, examples.mask)


def _moved(
    opt: optax.GradientTransformation, grads: PyTree, moments: PyTree, params: PyTree
) -> tuple[PyTree, PyTree]:
    # Adam divides by a power of a Python number.
    with jax.numpy_dtype_promotion("standard"):
        updates, moments = opt.update(grads, moments, params)
        return optax.apply_updates(params, updates), moments


def _check_logits(
    model: Model, teacher: Model, student: Variables, of_teacher: Variables, task: Task
) -> None:
    """By shapes, before the first step is compiled."""
    own = Variables(params=student.params["model"], state=student.state["model"])
    shapes = []
    for one, variables in ((model, own), (teacher, of_teacher)):
        apply = lambda v, x, one=one: one.apply(v, x, train=False)[0]
        found = jax.eval_shape(apply, variables, task.support.x)
        trees.one_array(found, "the output of a network", "logits [N, C]")
        shapes.append(found.shape)
    _check_shapes(*shapes)


def _check_shapes(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    if student != teacher:
        raise ValueError(
            f"the student's logits are {list(student)} and the teacher's are "
            f"{list(teacher)}; expected one shape, [N, C]. Give both networks as many "
            "outputs."
        )


def _check(teacher: Model, taught: Variables | None, **numbers: Any) -> None:
    checks.whole_number("pretrain_steps", numbers["pretrain_steps"], least=0)
    for name in ("pretrain_rate", "temperature", "pilot_rate"):
        checks.number(name, numbers[name], positive=True)
    for name in ("teacher_rate", "soft"):
        checks.number(name, numbers[name])
    checks.one_of("teacher_opt", numbers["teacher_opt"], get_args(TeacherOpt))
    if numbers["soft"] > 1:
        raise ValueError(f"soft is {numbers['soft']}; expected a share in 0..1.")
    _check_read(numbers)
    checks.model(teacher)
    if taught is not None:
        kinds.variables(taught)


def _check_read(numbers: dict[str, Any]) -> None:
    """Refuses numbers of a mechanism that others have switched off."""
    idle: dict[str, tuple[str, ...]] = {}
    if not numbers["pretrain_steps"]:
        idle["pretrain_steps above 0"] = ("pretrain_rate",)
    if not numbers["soft"]:
        # A rate of 0 says what is so anyway.
        learns = ("teacher_rate",) if numbers["teacher_rate"] else ()
        idle["soft above 0"] = ("temperature", "pilot_rate", "teacher_opt", *learns)
    elif not numbers["teacher_rate"]:
        idle["teacher_rate above 0"] = ("pilot_rate", "teacher_opt")
    for reader, names in idle.items():
        checks.unread(meta_distil, {name: numbers[name] for name in names}, reader)

# %% [markdown]
# # Four learners on few-shot images
#
# Characters of the world's scripts, printed in the fonts on this machine: `glyphs`, built once,
# without a download. Scripts of the test are never seen in training. A task shows one image of
# each of five characters and asks for fifteen more of each. MAML, ANIL, Reptile and prototypical
# networks, side by side, with the same network and the same test tasks.

# %%
import os
import time

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

import metalearn as ml

FAST = bool(os.environ.get("METALEARN_FAST"))  # fewer steps, for continuous integration
STEPS = 4 if FAST else 300
WIDTH = 4 if FAST else 32
NORM = "none" if FAST else "batch"  # most of compiling is batch norm
TASKS = 10 if FAST else 300

# %% [markdown]
# ## Data
#
# Set `DATASET = "omniglot"` and `DATA_DIR` to the folder with Omniglot's archives for handwriting.

# %%
DATASET, DATA_DIR = "glyphs", None
dataset = ml.data.load(DATASET, data_dir=DATA_DIR)
for part in ("train", "validation", "test"):
    classes = dataset.part(part)
    print(f"{part:10} {classes.num_classes:5} classes  {', '.join(classes.group_names)}")

# %%
train = ml.data.few_shot(dataset.train, num_ways=5, num_support=1, num_query=5)
test = ml.data.few_shot(dataset.test, num_ways=5, num_support=1, num_query=15)
task = test(jax.random.key(0))


def show_row(axes, examples, names=None):
    order = np.argsort(np.asarray(examples.y), kind="stable")
    for ax, i in zip(axes, order[:: max(len(order) // len(axes), 1)], strict=False):
        ax.imshow(examples.x[i, ..., 0], cmap="gray_r", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[])


fig, axes = plt.subplots(3, 5, figsize=(5, 3.2))
for row, number in zip(axes, range(3), strict=True):
    show_row(row, test(jax.random.key(number)).support)
    row[0].set_ylabel(f"task {number}")
fig.suptitle("support sets of three test tasks")
plt.show()

# %% [markdown]
# ## Learners
#
# Batch norm is a choice of the learner: statistics of the support set for those that adapt by
# gradients, running averages for prototypes. None of them looks at other queries.

# %%
network = ml.from_linen(
    ml.models.Conv4(num_outputs=5, width=WIDTH, norm=NORM, downsample="stride")
)
encoder = ml.from_linen(ml.models.Conv4(width=WIDTH, norm=NORM, downsample="stride"))
loss = ml.losses.cross_entropy
reptile_train = ml.data.few_shot(dataset.train, num_ways=5, num_support=5, num_query=5)
adam = optax.adam(optax.cosine_decay_schedule(2e-3, STEPS))
learners = {
    "MAML": (ml.maml(network, loss, optax.sgd(0.4)), train, adam),
    # One small step of a linear head hardly moves its logits: more and larger ones.
    "ANIL": (ml.anil(network, loss, optax.sgd(2.0), num_steps=5), train, adam),
    "Reptile": (
        ml.reptile(
            network,
            loss,
            optax.adam(1e-3, b1=0.0),
            num_steps=5,
            batch_size=10,
            eval_steps=50,
            eval_batch_size=5,
        ),
        reptile_train,
        optax.sgd(optax.linear_schedule(1.0, 0.0, STEPS)),
    ),
    "ProtoNet": (ml.protonet(encoder, num_ways=5), train, adam),
}
if FAST:  # two of them, without second derivatives, compile in a quarter of the time
    first_order = ml.fomaml(network, loss, optax.sgd(0.4))
    learners = {"MAML": (first_order, train, adam), "ProtoNet": learners["ProtoNet"]}

# %%
fitted, evaluations = {}, {}
for name, (learner, tasks, outer_opt) in learners.items():
    began = time.perf_counter()
    fitted[name] = ml.fit(
        ml.meta_trainer(learner, outer_opt),
        tasks,
        num_steps=STEPS,
        tasks_per_step=16,
        key=jax.random.key(0),
        log_every=max(STEPS // 20, 1),
        progress=False,
    )
    seconds = time.perf_counter() - began
    evaluations[name] = ml.evaluate(
        learner, fitted[name].variables, test, num_tasks=TASKS, key=jax.random.key(1)
    )
    print(f"{name:9} {evaluations[name]}  trained in {seconds:.0f} s")

# %% [markdown]
# The same key gave all four the same test tasks, so differences can be taken task by task: the
# interval of a paired difference is far tighter than two separate intervals suggest.

# %%
for name in list(learners)[1:]:
    mean, half = ml.paired_difference(evaluations[name], evaluations["MAML"])
    print(f"{name} - MAML: {100 * mean:+.2f} ± {100 * half:.2f} points")

# %%
fig, ax = plt.subplots(figsize=(6, 3))
for name, result in fitted.items():
    rows = [row for row in result.history if "query/accuracy" in row]
    if rows:
        ax.plot([r["step"] for r in rows], [r["query/accuracy"] for r in rows], label=name)
ax.set(xlabel="outer step", ylabel="accuracy in training")
ax.legend(frameon=False)
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## One test task, four learners
#
# The five queries below each support image are new drawings; a red frame is a mistake.

# %%
learner_names = list(learners)
fig, axes = plt.subplots(1 + len(learner_names), 10, figsize=(10, 5.4))
support_order = np.argsort(np.asarray(task.support.y))
queries = np.concatenate(
    [np.flatnonzero(np.asarray(task.query.y) == c)[:2] for c in range(5)]
)
for i, ax in enumerate(axes[0]):
    ax.imshow(task.support.x[support_order[i // 2], ..., 0], cmap="gray_r")
    ax.set(xticks=[], yticks=[])
axes[0, 0].set_ylabel("support", rotation=0, ha="right")
for row, name in zip(axes[1:], learner_names, strict=True):
    learner = learners[name][0]
    adapt, predict = jax.jit(learner.adapt), jax.jit(learner.predict)
    adapted = adapt(fitted[name].variables, task.support, key=jax.random.key(2))
    guesses = np.asarray(predict(adapted, task.query.x)).argmax(-1)
    for ax, i in zip(row, queries, strict=True):
        right = guesses[i] == task.query.y[i]
        ax.imshow(task.query.x[i, ..., 0], cmap="gray_r")
        ax.set(xticks=[], yticks=[])
        for spine in ax.spines.values():
            spine.set(color="tab:green" if right else "tab:red", linewidth=2)
    row[0].set_ylabel(name, rotation=0, ha="right")
plt.show()

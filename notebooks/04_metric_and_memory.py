# %% [markdown]
# # Metric learners and a memory
#
# Three learners classify among embeddings, each by its own rule: prototypical networks by the
# nearest class mean, matching networks by attention over single examples, R2-D2 by ridge
# regression. Their embeddings are drawn in two dimensions. Then MANN reads streams of new classes
# and binds each to its label: what it writes and reads is drawn while a stream goes by.
#
# The images are characters of the world's scripts in the fonts on this machine (`glyphs`, no
# download). Scripts of the test are never seen in training.

# %%
import os
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import metalearn as ml

FAST = bool(os.environ.get("METALEARN_FAST"))  # fewer steps, for continuous integration
STEPS = 4 if FAST else 300
WIDTH = 4 if FAST else 32
NORM = "none" if FAST else "batch"  # most of compiling is batch norm
TASKS = 10 if FAST else 300

# %%
dataset = ml.data.load("glyphs")
train = ml.data.few_shot(dataset.train, num_ways=5, num_support=1, num_query=5)
test = ml.data.few_shot(dataset.test, num_ways=5, num_support=1, num_query=15)
# Without the last ReLU features have both signs, which cosines and regressions want.
network = ml.models.Conv4(width=WIDTH, norm=NORM, downsample="stride", last_relu=False)
encoder = ml.from_linen(network)
learners = {
    "ProtoNet": ml.protonet(encoder, num_ways=5),
    "Matching": ml.matching_networks(encoder, num_ways=5, learn_scale=True),
    "R2-D2": ml.r2d2(encoder, num_ways=5, regularisation=0.1, learn="all"),
}
if FAST:
    learners = {"ProtoNet": learners["ProtoNet"]}

# %%
fitted, evaluations = {}, {}
for name, learner in learners.items():
    began = time.perf_counter()
    fitted[name] = ml.fit(
        ml.meta_trainer(learner, optax.adam(optax.cosine_decay_schedule(2e-3, STEPS))),
        train,
        num_steps=STEPS,
        tasks_per_step=16,
        key=jax.random.key(0),
        progress=False,
    )
    seconds = time.perf_counter() - began
    evaluations[name] = ml.evaluate(
        learner, fitted[name].variables, test, num_tasks=TASKS, key=jax.random.key(1)
    )
    print(f"{name:9} {evaluations[name]}  trained in {seconds:.0f} s")
for name in list(learners)[1:]:
    mean, half = ml.paired_difference(evaluations[name], evaluations["ProtoNet"])
    print(f"{name} - ProtoNet: {100 * mean:+.2f} ± {100 * half:.2f} points")

# %% [markdown]
# ## Embeddings of one test task
#
# The two directions in which the embeddings of the task spread most, before and after training.
# Stars are support images, dots are queries, colours are classes.


# %%
def embeddings(variables, x):
    """The encoder's outputs in evaluation, whatever the learner keeps beside it."""
    params = variables.params
    if isinstance(params, dict) and "encoder" in params:
        params = params["encoder"]
    now = ml.Variables(params=params, state=variables.state)
    return np.asarray(encoder.apply(now, x, train=False)[0])


def draw(ax, variables, task):
    both = embeddings(variables, jnp.concatenate([task.support.x, task.query.x]))
    both = both - both.mean(0)
    flat = both @ np.linalg.svd(both, full_matrices=False)[2][:2].T
    num = len(task.support.y)
    for marker, size, rows, labels in (
        (".", 30, flat[num:], task.query.y),
        ("*", 160, flat[:num], task.support.y),
    ):
        ax.scatter(*rows.T, c=labels, cmap="tab10", vmax=9, marker=marker, s=size)
    ax.set(xticks=[], yticks=[])


task = test(jax.random.key(3))
start = learners["ProtoNet"].init(jax.random.key(0), task)
fig, axes = plt.subplots(1, 1 + len(learners), figsize=(2.6 * (1 + len(learners)), 2.6))
draw(axes[0], start, task)
axes[0].set_title("before training")
for ax, (name, result) in zip(axes[1:], fitted.items(), strict=True):
    draw(ax, result.variables, task)
    ax.set_title(name)
plt.show()

# %% [markdown]
# ## A memory while a stream goes by
#
# A stream shows drawings of five new characters in random order. MANN answers each and is told
# its label with the next one, so it has to bind what it saw to a label that comes late: it
# writes to a row of its memory that it hardly uses, and finds the row again by its content. What
# it reads here are the embeddings of the prototypical network above, which stay as they are.

# %%
SHOTS, ROWS = (2, 4) if FAST else (6, 16)
READ = 4 if FAST else 4000


def embedded(part):
    """All images of a part as vectors of length about one, and their classes."""
    # Cosines of vectors with a common mean are all alike, and a memory is read by cosines.
    run = jax.jit(lambda x: embeddings_of(x.astype(jnp.float32) / 255))
    x = np.concatenate(
        [run(part.images[i : i + 500]) for i in range(0, len(part.images), 500)]
    )
    x = x - x.mean(0)
    return x / np.sqrt(np.mean(np.sum(x**2, -1))), part.labels


def embeddings_of(x):
    return encoder.apply(fitted["ProtoNet"].variables, x, train=False)[0]


streams = {
    name: ml.data.few_shot(
        *embedded(dataset.part(name)), num_ways=5, num_support=SHOTS, num_query=1
    )
    for name in ("train", "test")
}
as_it_is = ml.from_apply_fn(lambda key, x: jnp.zeros(()), lambda params, x: x)
mann = ml.mann(
    as_it_is,
    num_ways=5,
    hidden=8 if FAST else 64,
    rows=ROWS,
    reads=1 if FAST else 4,
    strength=True,  # a softmax of cosines alone reads an average of all rows
)
read = ml.fit(
    ml.meta_trainer(mann, optax.adam(2e-3)),
    streams["train"],
    num_steps=READ,
    tasks_per_step=16,
    key=jax.random.key(0),
    progress=False,
)

# %% [markdown]
# Nothing can be known at the first drawing of a class, but for the classes that came already: the
# last new one is what is left. From the second on it is memory.


# %%
@jax.jit
def judged(key):
    def one(key):
        task = streams["test"](key)
        adapted = mann.adapt(read.variables, task.support, key=key)
        return ml.presentations(adapted.fitted, SHOTS)

    hits, counts = jax.vmap(one)(jax.random.split(key, TASKS))
    return hits.sum(0) / counts.sum(0)


accuracy = np.asarray(judged(jax.random.key(2)))
fig, ax = plt.subplots(figsize=(4, 2.6))
ax.plot(1 + np.arange(SHOTS), 100 * accuracy, "o-")
ax.axhline(20, color="grey", linestyle=":")
ax.set(xlabel="presentation of a class", ylabel="accuracy (%)", ylim=(0, 100))
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# One stream of the test. Each column is a drawing; its colour above is its class. Below, how much
# of each row of the memory was read to answer it: a class that comes back lights up the row
# where it was written.


# %%
def weights_of(task):
    """Read weights `[N, rows]` of a stream in its given order, by reading ever more of it."""
    num = len(task.support.y)

    def upto(i):
        part = ml.Examples(x=task.support.x, y=task.support.y, mask=jnp.arange(num) <= i)
        return mann.adapt(read.variables, part).fitted.carry.reads.mean(0)

    return np.asarray(jax.jit(jax.vmap(upto))(jnp.arange(num)))


stream = streams["test"](jax.random.key(4))
order = jax.random.permutation(jax.random.key(5), len(stream.support.y))
mixed = ml.Task(
    support=jax.tree.map(lambda leaf: leaf[order], stream.support), query=stream.query
)
fig, axes = plt.subplots(
    2, 1, figsize=(8, 3.4), height_ratios=[1, ROWS], sharex=True, layout="constrained"
)
axes[0].imshow(np.asarray(mixed.support.y)[None], cmap="tab10", vmax=9, aspect="auto")
axes[0].set(yticks=[], title="class of each drawing, and what was read to answer it")
axes[1].imshow(weights_of(mixed).T, cmap="Greys", aspect="auto", vmin=0)
axes[1].set(xlabel="drawing", ylabel="row of the memory")
plt.show()

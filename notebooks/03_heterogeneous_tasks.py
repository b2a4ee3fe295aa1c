# %% [markdown]
# # Heterogeneous tasks
#
# One starting point does not fit all: if tasks come from different families, a network cannot be near
# every solution at once. Hierarchically structured meta-learning (HSML, Yao et al. 2019) embeds the
# support set of a task, routes it softly through a small tree of learned clusters, and scales the
# shared starting point by a gate that the route decides. Here the tasks are sines, lines, quadratics
# and cubics; the learner is never told which.

# %%
import os

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

import metalearn as ml
from metalearn.apps import plots

FAST = bool(os.environ.get("METALEARN_FAST"))  # fewer steps, for continuous integration
STEPS = 100 if FAST else 4_000
TASKS = 50 if FAST else 1000
WIDTH = 4 if FAST else 16
INNER, IMAGE_INNER = (1, 1) if FAST else (5, 3)  # inner steps

# %%
tasks = ml.tasks.function_families(num_support=10, num_query=10)
batch = ml.sample_batch(tasks, tasks.data, jax.random.split(jax.random.key(1), 40))
fig, axes = plt.subplots(1, 4, figsize=(10, 2.2), sharey=True)
for family, (name, ax) in enumerate(zip(ml.tasks.FAMILIES, axes)):
    for i in np.flatnonzero(np.asarray(batch.info["family"]) == family)[:4]:
        order = np.argsort(batch.query.x[i, :, 0])
        ax.plot(batch.query.x[i, order, 0], batch.query.y[i, order, 0], ".-", lw=1)
    ax.set_title(name, fontsize=10)
    ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## One start, or one for each task
#
# Both train on the same tasks, for far fewer steps than the 70,000 of the recipes `families-*`.
# `ml.mumomaml` is the ablation between them: a gate made of the task's embedding, without clusters.

# %%
model = ml.from_linen(ml.models.MLP(1))
inner = optax.sgd(1e-3)
learners = {
    "MAML": ml.maml(model, ml.losses.mse, inner, num_steps=INNER),
    "HSML": ml.hsml(model, ml.losses.mse, inner, num_steps=INNER, tree=(4, 2, 1)),
}
results = {
    name: ml.fit(
        ml.meta_trainer(learner, optax.adam(1e-3)),
        tasks,
        num_steps=STEPS,
        tasks_per_step=25,
        key=jax.random.key(0),
        log_every=max(STEPS // 30, 1),
        progress=False,
    )
    for name, learner in learners.items()
}

# %%
fig, ax = plt.subplots(figsize=(7, 3))
for name, result in results.items():
    steps = [row["step"] for row in result.history]
    ax.plot(steps, [row["query/loss"] for row in result.history], label=name)
ax.set(xlabel="outer step", ylabel="query error after 5 steps", yscale="log")
ax.legend(frameon=False)
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
evaluations = {
    name: ml.evaluate(
        learners[name],
        result.variables,
        tasks,
        ml.losses.mse,
        num_tasks=TASKS,
        key=jax.random.key(9),
    )
    for name, result in results.items()
}
for name, evaluation in evaluations.items():
    print(f"{name:10} {evaluation}")
difference, half = ml.paired_difference(
    evaluations["HSML"], evaluations["MAML"], name="query/loss"
)
print(f"HSML - MAML, on the same tasks: {difference:+.3f} ± {half:.3f}")

# %% [markdown]
# ## What the tree has found
#
# `adapt` tells the route of a task. The bars show which families reach a cluster, the lines how much
# flows. A soft tree need not give one leaf to each family; that the route says something about the family at all
# is measured by `python -m benchmarks families`.

# %%
learner, variables = learners["HSML"], results["HSML"].variables


@jax.jit
def routes(keys):
    def one(key):
        task = tasks(key)
        return task.info["family"], learner.adapt(variables, task.support).info

    return jax.vmap(one)(keys)


family, route = routes(jax.random.split(jax.random.key(5), TASKS))
by_family = lambda x: np.stack([np.asarray(x)[family == i].mean(0) for i in range(4)])
plots.cluster_tree(
    None,
    by_family(route.leaves),
    [by_family(shares) for shares in route.upper],
    ml.tasks.FAMILIES,
    title="Clusters of HSML and the families that reach them",
)

# %% [markdown]
# ## Images of several styles
#
# The printed characters that need no download, at 14x14; a task shows them as they are, blurred, or as
# edges, in the manner of Art-Multi. `ml.tasks.mixture` draws from several data sets in the same way;
# the recipes `mixed-*` train on four of them.

# %%
glyphs = ml.data.shrunk(ml.data.load("glyphs"), 2)
STYLES = ("original", "blurred", "edges")


def styled(part):
    return ml.tasks.styled(
        ml.data.few_shot(part, num_ways=5, num_support=1, num_query=5), STYLES
    )


train, test = styled(glyphs.train), styled(glyphs.test)
batch = ml.sample_batch(test, test.data, jax.random.split(jax.random.key(3), 40))
fig, axes = plt.subplots(3, 5, figsize=(5, 3.2))
for style, row in enumerate(axes):
    i = np.flatnonzero(np.asarray(batch.info["style"]) == style)[0]
    for image, ax in zip(batch.support.x[i], row):
        ax.imshow(image[..., 0], cmap="gray_r")
        ax.set(xticks=[], yticks=[])
    row[0].set_ylabel(STYLES[style], fontsize=9)
plt.show()

# %%
IMAGE_STEPS = 5 if FAST else 1_000
network = ml.from_linen(ml.models.Conv4(5, width=WIDTH, downsample="stride"))
features = ml.from_linen(ml.models.Conv4(32, width=WIDTH, norm="none", downsample="stride"))
loss, inner = ml.losses.cross_entropy, optax.sgd(0.1)
learners = {
    "MAML": ml.maml(network, loss, inner, num_steps=IMAGE_INNER),
    "HSML": ml.hsml(
        network,
        loss,
        inner,
        num_steps=IMAGE_INNER,
        features=features,
        num_ways=5,
        sigma=10.0,
    ),
}
for name, learner in learners.items():
    results[name] = ml.fit(
        ml.meta_trainer(learner, optax.adam(2e-3)),
        train,
        num_steps=IMAGE_STEPS,
        tasks_per_step=16,
        key=jax.random.key(0),
        progress=False,
    )
    evaluations[name] = ml.evaluate(
        learner, results[name].variables, test, num_tasks=TASKS, key=jax.random.key(9)
    )
    print(f"{name:10} {evaluations[name]}")
difference, half = ml.paired_difference(evaluations["HSML"], evaluations["MAML"])
print(f"HSML - MAML: {100 * difference:+.2f} ± {100 * half:.2f} points")

# %%
learner, variables = learners["HSML"], results["HSML"].variables


@jax.jit
def image_routes(keys):
    def one(key):
        task = test(key)
        return task.info["style"], learner.adapt(variables, task.support).info

    return jax.lax.map(one, keys)


style, route = image_routes(jax.random.split(jax.random.key(5), TASKS))
by_style = lambda x: np.stack([np.asarray(x)[style == i].mean(0) for i in range(3)])
plots.cluster_tree(
    None,
    by_style(route.leaves),
    [by_style(shares) for shares in route.upper],
    STYLES,
    title="Clusters of HSML and the styles that reach them",
)

# %% [markdown]
# With `sigma=10` of the paper's images and this short a training the leaves share every style alike: here
# the gate acts through the embedding of the task and not through the tree. On four different image
# sets (`metalearn train mixed-hsml`) two leaves become those of characters and two those of photographs.

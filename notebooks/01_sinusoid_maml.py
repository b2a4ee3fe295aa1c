# %% [markdown]
# # MAML on sine waves
#
# The smallest problem of meta-learning (Finn et al. 2017, section 5.1): every task is one sine
# wave `y = A sin(x - phase)`; the learner sees ten of its points and has to draw the rest. One
# network trained on all waves together learns their mean, which is nothing. MAML learns a
# *starting point* from which a few gradient steps on ten points give the wave.

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import metalearn as ml

FAST = bool(os.environ.get("METALEARN_FAST"))  # fewer steps, for continuous integration
STEPS = 300 if FAST else 6_000
TASKS = 50 if FAST else 600
INNER, LAST = (1, 1) if FAST else (5, 10)  # inner steps; at test, at most

# %% [markdown]
# ## Tasks
#
# A sampler is a function of a key. A task holds a support set to adapt to and a query set to be
# judged on, each with inputs `x`, targets `y` and a mask of valid rows.

# %%
tasks = ml.tasks.sinusoid(num_support=10, num_query=10)
task = tasks(jax.random.key(3))
jax.tree.map(jnp.shape, task)

# %% [markdown]
# ## A learner
#
# A learner is a record of four pure functions. The inner optimiser is any optax transformation;
# the meta-gradient goes through its five steps.

# %%
model = ml.from_linen(ml.models.MLP())
learner = ml.maml(model, ml.losses.mse, optax.sgd(0.01), num_steps=INNER)
ml.describe(learner)

# %% [markdown]
# ## Training
#
# `fit` draws 25 tasks a step on the device and compiles the whole step once.

# %%
trainer = ml.meta_trainer(learner, optax.adam(1e-3))
result = ml.fit(
    trainer,
    tasks,
    num_steps=STEPS,
    tasks_per_step=25,
    key=jax.random.key(0),
    log_every=max(STEPS // 60, 1),
    progress=False,
)

# %%
steps = [row["step"] for row in result.history]
fig, ax = plt.subplots(figsize=(7, 3))
ax.plot(steps, [row["support/loss"] for row in result.history], label="before adaptation")
ax.plot(steps, [row["query/loss"] for row in result.history], label="after 5 steps, query")
ax.set(xlabel="outer step", ylabel="mean squared error", yscale="log")
ax.legend(frameon=False)
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## What it is worth
#
# The mean over new tasks with its 95 % interval, against a network that never adapts and one
# that was trained on all tasks jointly and is then fine-tuned with the same inner loop. The same
# key means the same tasks, so differences can be taken task by task.

# %%
key = jax.random.key(1)
maml_result = ml.evaluate(learner, result.variables, tasks, num_tasks=TASKS, key=key)
print("MAML:          ", maml_result)

baseline = ml.fine_tune(model, ml.losses.mse, optax.sgd(0.01), num_steps=INNER)
joint = ml.fit(
    ml.meta_trainer(baseline, optax.adam(1e-3)),
    tasks,
    num_steps=STEPS,
    tasks_per_step=25,
    key=jax.random.key(0),
    progress=False,
)
tuned = ml.evaluate(baseline, joint.variables, tasks, num_tasks=TASKS, key=key)
still = ml.no_adaptation(model, ml.losses.mse)
unmoved = ml.evaluate(still, joint.variables, tasks, num_tasks=TASKS, key=key)
print("fine-tuning:   ", tuned)
print("no adaptation: ", unmoved)
mean, half = ml.paired_difference(tuned, maml_result, "query/loss")
print(f"fine-tuning minus MAML, task by task: {mean:.2f} ± {half:.2f}")

# %% [markdown]
# ## Before and after
#
# One new wave. More steps at test time are a second learner with the same variables.

# %%
x = jnp.linspace(-5, 5, 200)[:, None]
fig, axes = plt.subplots(1, 2, figsize=(10, 3.2), sharey=True)
starts = {
    "MAML": (ml.maml, result.variables),
    "joint training": (ml.fine_tune, joint.variables),
}
for ax, (title, (make, variables)) in zip(axes, starts.items(), strict=True):
    wave = task.info["amplitude"] * jnp.sin(x - task.info["phase"])
    ax.plot(x, wave, color="0.7", linewidth=4, label="the task")
    for num_steps, style in ((0, ":"), (1, "--"), (INNER, "-")):
        tested = make(model, ml.losses.mse, optax.sgd(0.01), num_steps=num_steps)
        adapted = tested.adapt(variables, task.support)
        ax.plot(
            x, tested.predict(adapted, x), style, color="C0", label=f"{num_steps} steps"
        )
    ax.plot(task.support.x, task.support.y, "o", color="C3", label="support")
    ax.set(title=title, xlabel="x")
    ax.spines[["top", "right"]].set_visible(False)
axes[0].legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# ## Where the skill sits
#
# The error against the number of inner steps, for three orders of differentiation: second order,
# first order, and the joint model.

# %%
first_order = ml.fomaml(model, ml.losses.mse, optax.sgd(0.01), num_steps=INNER)
fo = ml.fit(
    ml.meta_trainer(first_order, optax.adam(1e-3)),
    tasks,
    num_steps=STEPS,
    tasks_per_step=25,
    key=jax.random.key(0),
    progress=False,
)
fig, ax = plt.subplots(figsize=(6, 3))
for name, (make, variables) in {
    "MAML": (ml.maml, result.variables),
    "first order": (ml.fomaml, fo.variables),
    "joint training": (ml.fine_tune, joint.variables),
}.items():
    errors = []
    for num_steps in range(0, LAST + 1, 2):
        tested = make(model, ml.losses.mse, optax.sgd(0.01), num_steps=num_steps)
        evaluation = ml.evaluate(tested, variables, tasks, num_tasks=TASKS, key=key)
        errors.append(evaluation.mean_ci95("query/loss")[0])
    ax.plot(range(0, LAST + 1, 2), errors, "o-", label=name)
ax.set(xlabel="inner steps at test", ylabel="query MSE", yscale="log")
ax.legend(frameon=False)
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# # Wrong labels, and a few that are right
#
# Labels of a large set come cheap and often wrong; a hundred of them can be checked by hand. How
# should both be used? *Learning to reweight* gives an example weight as far as a step on it would
# lower the loss of the checked ones. So it learns on two levels: the model from the weighted
# examples, the weights from the checked ones. `ml.meta_weight_net` has the same form and learns a
# function from the loss of an example to its weight.
#
# The images are 1,797 handwritten digits of 8 by 8 pixels that come with scikit-learn.

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import metalearn as ml
from metalearn.data.noisy import flipped

FAST = bool(os.environ.get("METALEARN_FAST"))  # fewer steps, for continuous integration
STEPS, ROUNDS = (4, 1) if FAST else (1000, 10)
WIDTH = 8 if FAST else 200
SHARE = 0.4  # of the labels are made wrong
CLEAN = 10  # checked examples a class

# %%
digits = load_digits()
x = (digits.images / 16).astype(np.float32).reshape(len(digits.images), -1)
truth = digits.target.astype(np.int32)
order = np.random.default_rng(0).permutation(len(x))
test, rest = order[:397], order[397:]
clean = np.concatenate([rest[truth[rest] == digit][:CLEAN] for digit in range(10)])
noisy = np.setdiff1d(rest, clean)
given = flipped(truth[noisy], 10, share=SHARE, seed=0)
wrong = given != truth[noisy]
print(
    f"{len(noisy)} labels, {wrong.mean():.0%} wrong; {len(clean)} checked; {len(test)} test"
)


# %% [markdown]
# ## A task is a pair of batches
#
# The support set is a batch of the large set, the query set a batch of the checked one. Any
# function from a random key to a task will do.


# %%
def batches(x, y, clean_x, clean_y, name):
    """Tasks with 100 of the one and 50 of the other."""
    data = {"many": (x, y.astype(np.int32)), "few": (clean_x, clean_y)}
    data = jax.tree.map(jnp.asarray, data)

    def drawn(part, key, num):
        rows = jax.random.choice(key, len(part[1]), (num,), replace=len(part[1]) < num)
        return ml.Examples.of(part[0][rows], part[1][rows])

    def sample(data, key):
        k_many, k_few = jax.random.split(key)
        return ml.Task(
            support=drawn(data["many"], k_many, 100), query=drawn(data["few"], k_few, 50)
        )

    return ml.TaskSampler(sample, data, name)


checked = x[clean], truth[clean]
tasks = batches(x[noisy], given, *checked, "digits")
right = batches(x[noisy][~wrong], given[~wrong], *checked, "digits without wrong labels")
model = ml.from_linen(ml.models.MLP(10, (WIDTH, WIDTH)))
loss = ml.losses.cross_entropy
plain = ml.no_adaptation(model, loss)
# The bound has training labels that are all right, which nobody has.
runs = {
    "plain": (plain, tasks, 0.02),
    "learning to reweight": (ml.l2rw(model, loss), tasks, 0.02),
    "bound": (plain, right, 0.02),
}
if FAST:
    runs.pop("bound")


# %%
def of_model(variables):
    """The variables of the network, whatever a learner keeps beside it."""
    if "model" not in variables.params:
        return variables
    return ml.Variables(params=variables.params["model"], state=variables.state["model"])


@jax.jit
def accuracy(variables):
    logits, _ = model.apply(variables, jnp.asarray(x[test]), train=False)
    return (logits.argmax(-1) == jnp.asarray(truth[test])).mean()


curves, fitted = {}, {}
for name, (learner, sampler, rate) in runs.items():
    trainer = ml.meta_trainer(learner, optax.sgd(rate, momentum=0.9))
    state, curves[name] = None, []
    for number in range(ROUNDS):
        result = ml.fit(
            trainer,
            sampler,
            num_steps=STEPS // ROUNDS * (number + 1),
            tasks_per_step=1,
            key=jax.random.key(0),
            state=state,
            progress=False,
        )
        state = result.state
        curves[name].append(float(accuracy(of_model(result.variables))))
    fitted[name] = result.variables
    print(f"{name:20}  last {curves[name][-1]:.1%}  best {max(curves[name]):.1%}")

# %% [markdown]
# Plain training, which sees the checked digits too, first learns the digits and then the wrong
# labels by heart. Weighted training forgets less. At their best steps the two are close: to stop in
# time is another use of checked labels.

# %%
fig, ax = plt.subplots(figsize=(5, 3.2))
at = STEPS // ROUNDS * (1 + np.arange(ROUNDS))
for name, values in curves.items():
    style = {"color": "grey", "linestyle": ":"} if name == "bound" else {}
    ax.plot(at, 100 * np.array(values), label=name, **style)
ax.set(xlabel="step", ylabel="test accuracy (%)")
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# ## What the weights are
#
# Weights of training examples, batch by batch: those with a wrong label mostly get none.

# %%
mine = of_model(fitted["learning to reweight"])


@jax.jit
def weighed(rows, key):
    """Weights of training examples, 1 being that of plain training."""
    some = ml.Examples.of(jnp.asarray(x[noisy])[rows], jnp.asarray(given)[rows])
    few = tasks(key).query
    task = ml.Task(support=some, query=few)
    return len(rows) * ml.clean_weights(model, mine, task, loss_fn=loss)


size = 100
shuffled = np.random.default_rng(0).permutation(len(noisy))
shuffled = shuffled[: len(noisy) // size * size].reshape(-1, size)
weights = np.stack([weighed(rows, jax.random.key(i)) for i, rows in enumerate(shuffled)])
bad = wrong[shuffled]
print(
    f"{bad.mean():.0%} of the labels are wrong, with {weights[bad].sum() / weights.sum():.0%} of the weight"
)
fig, ax = plt.subplots(figsize=(5, 3))
for name, some in (("right", ~bad), ("wrong", bad)):
    ax.hist(
        np.minimum(weights[some], 4),
        bins=np.linspace(0, 4, 30),
        weights=np.full(some.sum(), 1 / some.sum()),
        alpha=0.5,
        label=f"label is {name}",
    )
ax.set(xlabel="weight, 1 as in plain training", ylabel="share of the examples")
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# Digits of one batch with the largest and with the smallest weights, under the labels that they
# were given. Wrong labels are red.

# %%
rows = shuffled[0]
best = np.argsort(-weights[0], kind="stable")
fig, axes = plt.subplots(2, 10, figsize=(8, 2))
for line, chosen in zip(axes, (best[:10], best[-10:]), strict=True):
    for ax, i in zip(line, chosen, strict=True):
        row = rows[i]
        ax.imshow(x[noisy][row].reshape(8, 8), cmap="gray_r")
        ax.set_title(given[row], fontsize=10, color="red" if wrong[row] else "black", pad=2)
        ax.axis("off")
plt.show()

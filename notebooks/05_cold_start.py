# %% [markdown]
# # A new user: cold-start recommendation
#
# A recommender meets a user who has rated five films. What does the user think of the others?
# Each user is a task: the few ratings are its support set, the others its queries. MeLU learns,
# over many users, embeddings of what is known of users and films, and layers above them that
# adapt to a user by a few steps of gradient descent.
#
# The ratings here are made up, so that everybody can run this page: users have tastes that
# partly follow from their age, films have genres, a decade and a quality. Set `METALEARN_ML1M`
# to a folder with the files of MovieLens-1M to see the same with real ratings.

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import metalearn as ml
from metalearn.apps.recommendation import candidates, movements
from metalearn.data.ratings import cold_start, load_ratings, rating_tables, without_unseen

FAST = bool(os.environ.get("METALEARN_FAST"))  # fewer steps, for continuous integration
STEPS = 4 if FAST else 600
USERS = 150 if FAST else 2000
SHOWN = (5,) if FAST else (3, 5, 10, 20, 40)
INNER = 1 if FAST else 5
TASKS = 20 if FAST else 500
RATES = (0.01,) if FAST else (0.01, 0.03, 0.1)

# %% [markdown]
# ## Three tables
#
# One of ratings, one of users, one of items: data frames or dictionaries of columns. What is
# known of users and items are categories; a cell may hold several, such as genres.


# %%
def made_up(num_users, num_items=300, seed=0):
    """Tables of users, films and ratings from 1 to 5."""
    rng = np.random.default_rng(seed)
    genres = np.array(["action", "comedy", "drama", "horror", "romance", "war"])
    ages, decades = np.array(["18", "25", "35", "50"]), np.array(["70s", "80s", "90s"])
    has = rng.random((num_items, len(genres))) < 0.3
    has[np.arange(num_items), rng.integers(len(genres), size=num_items)] = True
    decade, age = rng.integers(3, size=num_items), rng.integers(4, size=num_users)
    # A taste is partly that of the age, partly the user's own, and so is the level.
    taste = rng.normal(size=(4, len(genres)))[age] * 0.4
    taste += rng.normal(size=(num_users, len(genres))) * 0.8
    level = 3.4 + 0.4 * rng.normal(size=num_users)
    quality = 0.4 * rng.normal(size=num_items) + 0.1 * decade
    shares = has / has.sum(1, keepdims=True)
    rows = {"user": [], "item": [], "rating": []}
    popular = rng.dirichlet(np.full(num_items, 0.7))
    for user in range(num_users):
        seen = rng.choice(num_items, rng.integers(20, 70), replace=False, p=popular)
        mean = level[user] + quality[seen] + 1.5 * shares[seen] @ taste[user]
        given = np.clip(np.rint(mean + 0.5 * rng.normal(size=len(seen))), 1, 5)
        rows["user"] += [user] * len(seen)
        rows["item"] += seen.tolist()
        rows["rating"] += given.tolist()
    users = {"user": np.arange(num_users), "age": ages[age]}
    items = {
        "item": np.arange(num_items),
        "genres": ["|".join(genres[row]) for row in has],
        "decade": decades[decade],
    }
    return rating_tables(rows, users, items, separators={"genres": "|"}, name="made up")


folder = os.environ.get("METALEARN_ML1M")
ratings = load_ratings("ml-1m", folder) if folder else made_up(USERS)
split = cold_start(ratings, validation_users=0.1, test_users=0.2, new_items=0.2, seed=1)
seen = without_unseen(ratings, split.mask(ratings, "train"))
print(f"{len(ratings):,} ratings by {len(ratings.users):,} users")


def tasks(part, state, shown=None):
    """A task for each user: ten queries, and up to 40 other ratings to learn from."""
    rows = np.flatnonzero(split.mask(ratings, part, state))
    x = {"content": seen.content_of(rows)}
    y, user = seen.rating[rows][:, None], seen.user[rows]
    sizes = {"num_query": 6 if state == "both" else 10, "most_support": 40}
    least = 4 if state == "both" else 5
    return ml.tasks.histories(x, y, user, **sizes, least_support=least, shown=shown)


# %% [markdown]
# ## Three ways to meet a new user
#
# The joint model is one for all and does not adapt. Fine-tuning adapts the same model to the
# user's ratings by gradient descent. MeLU was trained so that this goes well: the outer loss is
# that of the queries after adaptation.

# %%
train = tasks("train", "warm")
mean = float(seen.rating[split.mask(ratings, "train")].mean())
network = ml.models.FieldMLP(
    fields=seen.fields, dim=32, widths=(64, 64), offset=round(mean, 3)
)
model = ml.from_linen(network)
learners = {
    "joint model": ml.no_adaptation(model, ml.losses.mse),
    "MeLU": ml.melu(model, ml.losses.mse, optax.sgd(0.01), num_steps=INNER),
}
fitted = {
    name: ml.fit(
        ml.meta_trainer(learner, optax.adam(optax.cosine_decay_schedule(2e-3, STEPS))),
        train,
        num_steps=STEPS,
        tasks_per_step=32,
        key=jax.random.key(0),
        progress=False,
    ).variables
    for name, learner in learners.items()
}


def judged(name, sampler, num=TASKS):
    """Mean absolute error of each of the users."""
    found = ml.evaluate(
        learners[name],
        fitted[name],
        sampler,
        num_tasks=num,
        key=jax.random.key(1),
        metrics={"query/mae": ml.metrics.mae},
    )
    return found.values["query/mae"]


# %% [markdown]
# Fine-tuning starts from the joint model. Its rate is the best one on validation users.

# %%
errors = {}
for rate in RATES:
    learners["fine-tuning"] = ml.fine_tune(
        model,
        ml.losses.mse,
        optax.sgd(rate),
        num_steps=INNER,
        adapt_filter="^(decision|head)",
    )
    fitted["fine-tuning"] = fitted["joint model"]
    error = judged("fine-tuning", tasks("validation", "user"), min(TASKS, 150)).mean()
    errors[error] = learners["fine-tuning"]
    print(f"rate {rate}: {error:.3g}")  # a large one diverges
learners["fine-tuning"] = errors[min(errors)]
if FAST:
    learners = {"MeLU": learners["MeLU"]}

# %% [markdown]
# The error of new users' ratings, by how many of them were shown. All learners and all numbers
# have the same queries. The mean of the shown ratings is a baseline that needs no training.


# %%
def by_mean(sampler, num=TASKS):
    """Mean absolute error of each of the users, by the mean of the shown ratings."""

    def one(key):
        task = sampler(key)
        shown = jnp.where(task.support.mask[:, None], task.support.y, 0)
        return abs(task.query.y - shown.sum() / task.support.mask.sum()).mean()

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), num)))


curves = {name: [] for name in [*learners, "user's mean"]}
for shown in SHOWN:
    sampler = tasks("test", "user", shown)
    for name in learners:
        curves[name].append(judged(name, sampler))
    curves["user's mean"].append(by_mean(sampler))
fig, ax = plt.subplots(figsize=(5, 3.2))
for name, each in curves.items():
    means = np.array([values.mean() for values in each])
    half = np.array([1.96 * v.std() / len(v) ** 0.5 for v in each])
    (line,) = ax.plot(SHOWN, means, "o-", label=name)
    ax.fill_between(SHOWN, means - half, means + half, color=line.get_color(), alpha=0.15)
ax.set(xlabel="ratings that were shown", ylabel="error of a rating", xscale="log")
ax.set_xticks(SHOWN, SHOWN, minor=False)
ax.minorticks_off()
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# ## New films too
#
# Of films that no training user has rated, the model knows the genres and the decade.
#
# With the real ratings of MovieLens-1M, fine-tuning comes close to MeLU: tastes there are less
# simple than genres. `python -m benchmarks cold-start` compares them, and the README has the
# numbers.

# %%
sampler = tasks("test", "both")
for name in learners:
    error = judged(name, sampler, min(TASKS, 300))
    print(f"{name:12} {error.mean():.3f} ± {1.96 * error.std() / len(error) ** 0.5:.3f}")
error = by_mean(sampler, min(TASKS, 300))
print(f"user's mean  {error.mean():.3f} ± {1.96 * error.std() / len(error) ** 0.5:.3f}")

# %% [markdown]
# ## What to ask
#
# Which films should a new user rate first? Evidence candidates are films that many users know
# and whose rating would move the deciding layers most.

# %%
rows = np.flatnonzero(split.mask(ratings, "train"))
variables = fitted["MeLU"]
of_model = ml.Variables(params=variables.params["model"], state=variables.state["model"])


def movement(examples):
    return ml.evidence(model, of_model, examples, loss_fn=ml.losses.mse)


norms = movements(movement, seen, rows)
fig, ax = plt.subplots(figsize=(5, 3.2))
count = np.bincount(seen.item[rows], minlength=len(seen.items))
moved = np.bincount(seen.item[rows], norms, len(seen.items)) / np.maximum(count, 1)
ax.plot(count[count > 0], moved[count > 0], ".", color="lightgrey", label="all films")
for kind, marker in (("popular", "s"), ("evidence", "x")):
    # The norms are read by evidence candidates alone.
    found = candidates(
        seen, rows, num=10, kind=kind, norms=norms if kind == "evidence" else None
    )
    chosen = [c.item for c in found]
    ax.plot(count[chosen], moved[chosen], marker, mfc="none", label=kind)
ax.set(xlabel="users who rated it", ylabel="movement by a rating")
ax.set_ylim(0, 1.3 * np.quantile(moved[count > 0], 0.98))
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False)
plt.show()

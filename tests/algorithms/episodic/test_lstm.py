"""The episodic LSTM against an epoch that NumPy plays, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import close
from tiny import one

import metalearn as ml
from metalearn.algorithms.episodic import agent as parts
from metalearn.algorithms.episodic import episodic_lstm, lstm
from metalearn.models.cells import lstm_step
from metalearn.tasks.barcodes import barcodes

pytestmark = pytest.mark.usefixtures("x64")
ARMS, PULLS, HIDDEN, BITS = 3, 3, 4, 5
SETTINGS = {"pulls": PULLS, "hidden": HIDDEN, "discount": 0.8, "entropy_cost": 0.3}
RULES = parts.Rules(ARMS, PULLS, 0.9, 0.1, 100, 1, "euclidean", "fifo", 0.8, 0.5, 0.3)


def learner_of(**options):
    return episodic_lstm(None, num_ways=ARMS, task_chunk=2, **{**SETTINGS, **options})


@functools.cache
def epochs():
    """Two tasks of five episodes of three bandits; the last one does not count."""
    sampler = barcodes(3, 5, bits=BITS, arms=ARMS, num_new=1)
    tasks = jax.jit(jax.vmap(sampler))(jax.random.split(jax.random.key(1), 2))
    tasks = jax.tree.map(np.asarray, tasks)
    mask = np.array([[True] * 5, [True] * 4 + [False]])
    x = np.where(mask[..., None], tasks.support.x, np.nan).astype(np.float64)
    support = ml.Examples(x=x, y=tasks.support.y, mask=mask)
    query = ml.Examples(
        x=tasks.query.x.astype(np.float64), y=tasks.query.y, mask=tasks.query.mask
    )
    return ml.Task(support=support, query=query)


@functools.cache
def agents():
    """Fresh parameters, with a memory and without."""
    like = jax.ShapeDtypeStruct((1, BITS), jnp.float64)

    def made(key):
        both = (True, False)
        return [parts.agent_init(key, like, ARMS, HIDDEN, memory=m) for m in both]

    return jax.tree.map(np.asarray, jax.jit(made)(jax.random.key(0)))


@functools.cache
def agent_of():
    """Parameters with biases that are not zero."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: p + 0.3 * rng.normal(size=p.shape), agents()[0])


def variables_of(agent):
    return ml.Variables(params={"agent": agent}, state={})


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def cell(agent, h, c, x, recalled):
    lstm, gate = agent["lstm"], agent["reinstate"]
    i, f, g, o = np.split(x @ lstm["input"] + h @ lstm["recurrent"] + lstm["bias"], 4)
    r = sigmoid(x @ gate["input"] + h @ gate["recurrent"] + gate["bias"])
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g) + r * np.tanh(recalled)
    return sigmoid(o) * np.tanh(c), c


def episode(agent, context, recalled, choose, reward):
    """`(logits, value)` before each pull and the last cell state.

    `choose(step, logits)` is the arm, `reward(step, arm)` what it pays.
    """
    h = c = np.zeros(HIDDEN)
    before, steps = np.zeros(ARMS + 1), []
    for step in range(PULLS):
        h, c = cell(agent, h, c, np.concatenate([context, before]), recalled)
        logits, value = (
            h @ agent[n]["kernel"] + agent[n]["bias"] for n in ("policy", "value")
        )
        steps.append((logits, value[0]))
        arm = choose(step, logits)
        before = np.append(np.eye(ARMS)[arm], reward(step, arm))
    return steps, c


def nearest(memory, context):
    """The state of the nearest context of a list, of equal ones the latest."""
    apart = [((key - context) ** 2).sum() for key, _ in memory]
    if not apart:
        return np.zeros(HIDDEN)
    return memory[max(i for i, d in enumerate(apart) if d == min(apart))][1]


def test_without_its_gate_the_cell_is_an_lstm():
    agent = agent_of()
    rng = np.random.default_rng(1)
    h, c, m = rng.normal(size=(3, HIDDEN))
    x = rng.normal(size=BITS + ARMS + 1)
    closed = {**agent["reinstate"], "bias": np.full(HIDDEN, -np.inf)}
    run = jax.jit(lambda a: parts.episodic_step(a, (h, c), x, m))
    close(run(agent), cell(agent, h, c, x, m))
    plain = jax.jit(lambda a: lstm_step(a, (h, c), x)[0])(agent["lstm"])
    without = {k: v for k, v in agent.items() if k != "reinstate"}
    for found in (run({**agent, "reinstate": closed}), run(without)):
        jax.tree.map(np.testing.assert_array_equal, found, plain)


def test_an_epoch_is_remembered_as_numpy_plays_it():
    """The last state of each context, once, under the context alone."""
    learner, agent = learner_of(capacity=4), agent_of()

    def run(task):
        adapted = learner.adapt(variables_of(agent), task.support)
        return adapted.memory, learner.predict(adapted, task.query.x)

    stores, logits = jax.jit(jax.vmap(run))(epochs())
    for t in range(2):
        task, memory = one(epochs(), t), []
        for x, y, valid in zip(task.support.x, task.support.y, task.support.mask):
            if not valid:
                continue
            found = episode(
                agent,
                x,
                nearest(memory, x),
                lambda step, logits: logits.argmax(),
                lambda step, arm, y=y: float(arm == y),
            )[1]
            known = [i for i, (key, _) in enumerate(memory) if (key == x).all()]
            for i in known:
                memory.pop(i)
            memory.append((x, found))
        store = one(stores, t)
        assert int(store.filled.sum()) == len(memory)
        order = np.argsort(np.where(store.filled, store.written, 99))[: len(memory)]
        close(store.keys[order], np.stack([key for key, _ in memory]))
        close(store.values[order], np.stack([state for _, state in memory]))
        for x, found in zip(task.query.x, logits[t]):
            steps, _ = episode(agent, x, nearest(memory, x), lambda *_: 0, lambda *_: 0.0)
            close(found, steps[0][0])


def drawn(agent):
    """Support and query episodes of both tasks as `estimate` draws them."""

    def run(task, key):
        _, k_support, k_query = jax.random.split(key, 3)
        mask = task.support.mask
        x = jnp.where(mask[:, None], task.support.x, 0)
        support = ml.Examples(x=x, y=jnp.asarray(task.support.y), mask=mask)
        memory, first = parts.play_all(agent, RULES, support, k_support)
        query = jax.tree.map(jnp.asarray, task.query)
        return first, parts.play_each(agent, RULES, query, memory, k_query)

    keys = jax.random.split(jax.random.key(5), 2)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(run))(epochs(), keys))


def test_the_gradient_is_that_of_an_actor_critic_whose_memory_is_held():
    """Finite differences with actions, rewards, advantages and recalled states fixed."""
    agent = agent_of()
    found = jax.jit(learner_of().estimate)(
        variables_of(agent), epochs(), key=jax.random.key(5)
    )
    first, then = drawn(agent)

    def epoch(agent, t, held=None):
        """Loss of a task, and what is held: recalled states and advantages."""
        task, memory, losses, kept = one(epochs(), t), [], [], []
        rows = [(task.support, first, i) for i in range(5) if task.support.mask[i]]
        rows += [(task.query, then, i) for i in range(len(task.query.y))]
        for examples, played, i in rows:
            x, actions, rewards = examples.x[i], played.actions[t, i], played.rewards[t, i]
            recalled = nearest(memory, x) if held is None else held[len(kept)][0]
            steps, state = episode(
                agent,
                x,
                recalled,
                lambda step, _, actions=actions: actions[step],
                lambda step, _, rewards=rewards: rewards[step],
            )
            if examples is task.support:
                memory.append((x, state))
            values = np.array([value for _, value in steps])
            returns = [
                sum(0.8 ** (s - p) * rewards[s] for s in range(p, PULLS))
                for p in range(PULLS)
            ]
            gains = returns - values if held is None else held[len(kept)][1]
            kept.append((recalled, gains))
            for (logits, value), action, gain, back in zip(steps, actions, gains, returns):
                shares = np.exp(logits) / np.exp(logits).sum()
                entropy = -(shares * np.log(shares)).sum()
                policy = -np.log(shares[action]) * gain
                losses.append(policy + 0.5 * (back - value) ** 2 - 0.3 * entropy)
        return np.mean(losses), kept

    held = [epoch(agent, t)[1] for t in range(2)]
    rng = np.random.default_rng(3)
    way = jax.tree.map(lambda p: rng.normal(size=p.shape), agent)

    def loss(size):
        moved = jax.tree.map(lambda p, w: p + size * w, agent, way)
        return np.mean([epoch(moved, t, held[t])[0] for t in range(2)])

    along = jax.tree.map(lambda g, w: np.sum(g * w), found.grads["agent"], way)
    slope = (loss(1e-6) - loss(-1e-6)) / 2e-6
    close(sum(jax.tree.leaves(along)), slope, rtol=1e-6)
    check_report(found.metrics, first, then)


def check_report(report, first, then):
    """Metrics of both tasks from their episodes."""
    for t in range(2):
        task = one(epochs(), t)
        rewards, regrets = [], {"recurring": [], "new": []}
        seen, hits = [], []
        for i, valid in enumerate(task.support.mask):
            if valid:
                told = any((task.support.x[i] == x).all() for x in seen)
                seen.append(task.support.x[i])
                wrong = first.actions[t, i] != task.support.y[i]
                regrets["recurring" if told else "new"].append(0.8 * wrong.mean())
                rewards.append(first.rewards[t, i].mean())
        for i, y in enumerate(task.query.y):
            told = any((task.query.x[i] == x).all() for x in seen)
            wrong = then.actions[t, i] != y
            regrets["recurring" if told else "new"].append(0.8 * wrong.mean())
            rewards.append(then.rewards[t, i].mean())
            if told:
                hits.append(then.logits[t, i, 0].argmax() == y)
        close(report["reward"][t], np.mean(rewards))
        close(report["recurring/accuracy"][t], np.mean(hits))
        for name, values in regrets.items():
            close(report[f"{name}/regret"][t], np.mean(values))


def solver(strength=20.0):
    """An agent by hand: its cell marks the arm that paid; a pull that did not clears it.

    So it recovers from what it recalls of another context at the first pull.
    """
    inputs, arms, paid = BITS + ARMS + 1, slice(BITS, BITS + ARMS), -1
    i, f, g, o = (np.zeros((inputs, ARMS)) for _ in range(4))
    i[arms], i[paid] = np.eye(ARMS), 1  # open for the arm that was pulled and paid
    f[arms], f[paid] = -1, 1
    lstm = {
        "input": 2 * strength * np.concatenate([i, f, g, o], axis=1),
        "recurrent": np.zeros((ARMS, 4 * ARMS)),
        "bias": strength * np.repeat([-3, 1, 1, 1], ARMS),
    }
    gate = {
        "input": 2 * strength * np.minimum(f, 0),  # open until an arm is pulled
        "recurrent": np.zeros((ARMS, ARMS)),
        "bias": strength * np.ones(ARMS),
    }
    policy = {"kernel": strength * np.eye(ARMS), "bias": np.zeros(ARMS)}
    value = {"kernel": np.zeros((ARMS, 1)), "bias": np.zeros(1)}
    return {"lstm": lstm, "reinstate": gate, "policy": policy, "value": value}


def test_an_agent_that_recalls_knows_the_arm_at_once_and_forgets_it_without_the_gate():
    """What was solved once is solved at the first pull; new contexts are at chance."""
    agent = solver()
    shut = {**agent["reinstate"], "bias": np.full(ARMS, -np.inf)}
    rules = {"pulls": 8, "hidden": ARMS, "good": 1.0, "bad": 0.0, "task_chunk": 40}
    learner = episodic_lstm(None, num_ways=ARMS, **rules)
    tasks = barcodes(4, 8, bits=BITS, arms=ARMS, num_new=4)

    def run(agent, key):
        k_task, k_play = jax.random.split(key)
        task = tasks(k_task)
        to64 = lambda e: ml.Examples(x=e.x.astype(jnp.float64), y=e.y, mask=e.mask)
        adapted = learner.adapt(variables_of(agent), to64(task.support), key=k_play)
        logits = learner.predict(adapted, to64(task.query).x)
        hit = jax.nn.softmax(logits)[jnp.arange(8), task.query.y]
        return hit[:4].mean(), hit[4:].mean()

    run = jax.jit(jax.vmap(run, in_axes=(None, 0)))
    keys = jax.random.split(jax.random.key(0), 100)
    again, new = (np.mean(found) for found in run(agent, keys))
    assert again > 0.9 and 0.2 < new < 0.45
    again, new = (np.mean(found) for found in run({**agent, "reinstate": shut}, keys))
    assert 0.2 < again < 0.45 and 0.2 < new < 0.45


def test_arms_pay_as_often_as_they_should():
    agent = agent_of()
    examples = ml.Examples.of(jnp.ones((400, BITS)), jnp.arange(400) % ARMS)
    play = jax.jit(lambda key: parts.play_each(agent, RULES, examples, None, key))
    found = play(jax.random.key(0))
    good = np.asarray(found.actions) == np.asarray(examples.y)[:, None]
    rewards = np.asarray(found.rewards)
    assert abs(rewards[good].mean() - 0.9) < 0.05
    assert abs(rewards[~good].mean() - 0.1) < 0.05
    # Actions are drawn, by the policy of their time.
    shares = np.exp(found.logits) / np.exp(found.logits).sum(-1, keepdims=True)
    pulled = np.eye(ARMS)[found.actions].mean(0)
    np.testing.assert_allclose(pulled, shares.mean(0), atol=0.08)


def test_an_encoder_and_the_agent_draw_from_keys_of_their_own(monkeypatch):
    seen = []

    def apply(variables, x, *, key=None, train=False, mask=None):
        seen.append(key)
        return x, variables.state

    def play_all(agent, rules, episodes, key):
        seen.append(key)
        return None, None

    monkeypatch.setattr(lstm, "play_all", play_all)
    encoder = ml.Model(lambda key, x: ml.Variables(params={}, state={}), apply)
    learner = episodic_lstm(encoder, num_ways=ARMS)
    variables = ml.Variables(params={"agent": {}, "encoder": {}}, state={})
    learner.adapt(variables, one(epochs()).support)
    assert seen == [None, None]
    learner.adapt(variables, one(epochs()).support, key=jax.random.key(0))
    embedded, played = (jax.random.key_data(key).tolist() for key in seen[2:])
    assert embedded != played


def test_with_and_without_memory_agents_start_alike():
    first, second = agents()
    gate = first["reinstate"]
    jax.tree.map(np.testing.assert_array_equal, {**second, "reinstate": gate}, first)
    assert gate["input"].shape == (BITS + ARMS + 1, HIDDEN)
    adapted = jax.eval_shape(
        learner_of(memory=False).adapt, variables_of(second), one(epochs()).support
    )
    assert adapted.memory is None and adapted.episodes.rewards.shape == (5, PULLS)
    like = jax.eval_shape(learner_of(memory=False).init, jax.random.key(0), one(epochs()))
    assert like.params["agent"].keys() == second.keys()


def test_arguments_out_of_range_are_named():
    for options, words in (
        ({"pulls": 0}, "pulls is 0"),
        ({"hidden": 0}, "hidden is 0"),
        ({"capacity": 2, "recall": 3}, "recall is 3; expected at most 2"),
        ({"good": 0.1}, "good is 0.1 and bad 0.1"),
        ({"good": 1.2}, "good is 1.2"),
        ({"discount": 1.1}, "discount is 1.1"),
        ({"kernel": "dot"}, "kernel is 'dot'"),
        ({"eviction": "x"}, "eviction is 'x'"),
        ({"norm": "x"}, "norm is 'x'"),
    ):
        with pytest.raises(ValueError, match=words):
            learner_of(**options)
    with pytest.raises(ValueError, match="num_ways is 1"):
        episodic_lstm(None, num_ways=1)
    with pytest.raises(TypeError, match="encoder is a int"):
        episodic_lstm(3, num_ways=2)
    images = ml.Examples.of(jnp.zeros((2, 3, 3)), jnp.zeros(2, jnp.int32))
    with pytest.raises(ValueError, match=r"expected contexts \[N, D\]"):
        learner_of().adapt(variables_of(agent_of()), images)

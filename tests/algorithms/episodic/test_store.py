"""The memory against lists of Python, and through files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import close

import metalearn as ml
from metalearn.algorithms.episodic import store

pytestmark = pytest.mark.usefixtures("x64")
POLICIES = ("fifo", "lru", "clock")
KEYS = np.eye(8)


def test_values_that_have_no_mean_are_refused():
    number = {"number": np.zeros(2, np.int32)}
    with pytest.raises(ValueError, match=r"value is int32\[2\] at number; expected real"):
        store.empty(2, KEYS[0], number)
    with pytest.raises(ValueError, match=r"a value is bool\[\]; expected real numbers"):
        store.empty(2, KEYS[0], np.asarray(True))


def at_first(capacity):
    """A memory for each policy."""
    memory = store.empty(capacity, KEYS[0], {"number": np.zeros(2)})
    return dict.fromkeys(POLICIES, memory)


def advanced(memories, number, writing):
    """Writes an entry, or says that it was used if it is there."""

    def one(memory, eviction):
        key = jnp.asarray(KEYS)[number]
        found = store.nearest(memory, key)
        memory = store.touch(memory, found, ~writing & (found.distances[0] == 0))
        value = {"number": jnp.full(2, number, jnp.float64)}
        return store.write(memory, key, value, writing, eviction=eviction)

    return {eviction: one(memory, eviction) for eviction, memory in memories.items()}


advance = jax.jit(advanced)


def act(memories, script):
    """Writes an upper letter, and uses a lower one."""
    for name in script:
        memories = advance(memories, ord(name.upper()) - ord("A"), name.isupper())
    return memories


def held(memory):
    """The letters of the slots, by their values and by their keys."""
    numbers = np.asarray(memory.values["number"])
    assert (numbers[:, 0] == numbers[:, 1]).all()
    for number, key, filled in zip(numbers[:, 0], memory.keys, memory.filled):
        assert not filled or (np.asarray(key) == KEYS[int(number)]).all()
    letters = [chr(ord("A") + int(n)) for n in numbers[:, 0]]
    return "".join(np.where(memory.filled, letters, "-"))


@pytest.mark.parametrize(
    ("script", "expected"),
    (
        ("ABC", ("CB", "CB", "CB")),
        ("ABaC", ("CB", "AC", "AC")),  # A was used, for which the first in does not care
        ("ABbaC", ("CB", "AC", "CB")),  # a clock knows that both were used, not when
        ("ABaCB", ("CB", "BC", "BC")),  # the mark of A is gone
        ("AA", ("AA", "AA", "AA")),
    ),
)
def test_evictions_by_hand(script, expected):
    memories = act(at_first(2), script)
    assert tuple(held(memories[eviction]) for eviction in POLICIES) == expected


class Slots:
    """Evictions as a list of dictionaries."""

    def __init__(self, capacity, eviction):
        self.slots, self.capacity, self.eviction = [], capacity, eviction
        self.time = self.hand = 0

    def write(self, number):
        slot = {"number": number, "written": self.time, "used": self.time, "mark": False}
        if len(self.slots) < self.capacity:
            self.slots.append(slot)
        else:
            self.slots[self.victim()] = slot
        self.time += 1

    def victim(self):
        if self.eviction == "clock":
            while self.slots[self.hand]["mark"]:
                self.slots[self.hand]["mark"] = False
                self.hand = (self.hand + 1) % self.capacity
            here, self.hand = self.hand, (self.hand + 1) % self.capacity
            return here
        order = "written" if self.eviction == "fifo" else "used"
        return min(range(self.capacity), key=lambda i: self.slots[i][order])

    def use(self, number):
        places = [i for i, slot in enumerate(self.slots) if slot["number"] == number]
        for i in places:
            self.slots[i] |= {"used": self.time, "mark": True}
        self.time += bool(places)

    def held(self):
        return "".join(chr(ord("A") + slot["number"]) for slot in self.slots)


def test_evictions_as_a_list_of_python():
    """Writings and uses of eight entries in three slots."""
    rng = np.random.default_rng(0)
    memories, paths = at_first(3), {eviction: [] for eviction in POLICIES}
    models = {eviction: Slots(3, eviction) for eviction in POLICIES}
    present = {eviction: set() for eviction in POLICIES}
    for _ in range(60):
        number = int(rng.integers(0, 8))
        # What one of them holds is used and not written, so that none holds it twice.
        known = any(number in numbers for numbers in present.values())
        memories = advance(memories, number, not known)
        for eviction, model in models.items():
            model.use(number) if known else model.write(number)
            present[eviction] = {slot["number"] for slot in model.slots}
            paths[eviction].append(model.held())
            assert held(memories[eviction]).strip("-") == model.held(), eviction
    assert paths["fifo"] != paths["lru"] != paths["clock"] != paths["fifo"]


def filled_memory():
    """Three entries in four slots."""
    rng = np.random.default_rng(1)
    keys, values = rng.normal(size=(3, 5)), rng.normal(size=(3, 2, 3))
    memory = store.empty(4, keys[0], {"cell": values[0]})
    return store.write_all(memory, keys, {"cell": values}), keys, values


def test_reads_are_weighted_means_of_the_nearest():
    def run(query):
        memory, *_ = filled_memory()
        return {
            (kernel, k): (
                store.nearest(memory, query, k, kernel),
                store.read(memory, query, k, kernel)["cell"],
            )
            for kernel in ("cosine", "euclidean")
            for k in (1, 2, 4)
        }

    run = jax.jit(run)
    _, keys, values = filled_memory()
    for query in (keys[1], np.random.default_rng(2).normal(size=5)):
        for (kernel, k), (recall, found) in run(query).items():
            apart = ((keys - query) ** 2).sum(-1)
            if kernel == "cosine":
                lengths = np.linalg.norm(keys, axis=-1) * np.linalg.norm(query)
                apart = 1 - keys @ query / lengths
            order = apart.argsort()[:k]
            num = len(order)
            assert np.asarray(recall.slots)[:num].tolist() == order.tolist()
            assert np.asarray(recall.found).tolist() == [True] * num + [False] * (k - num)
            np.testing.assert_allclose(recall.distances[:num], apart[order], atol=1e-12)
            weights = np.ones(1) if k == 1 else 1 / (apart[order] + 1e-3)
            close(found, np.tensordot(weights / weights.sum(), values[order], 1))
    np.testing.assert_array_equal(run(keys[1])["cosine", 1][1], values[1])


def test_an_empty_memory_reads_zeros_and_a_query_of_zeros_has_derivatives():
    def run(query):
        memory, _, values = filled_memory()
        vacant = store.empty(4, query, {"cell": values[0]})
        slopes = [
            jax.grad(lambda q, k=k: store.read(memory, q, k)["cell"].sum())(0 * query)
            for k in (1, 4)
        ]
        reads = [store.read(vacant, query, k)["cell"] for k in (1, 4)]
        return slopes, reads, store.nearest(vacant, query, 4).found

    slopes, reads, found = jax.jit(run)(np.ones(5))
    assert all(np.isfinite(s).all() for s in slopes)
    assert not np.any(reads) and not np.any(found)


def test_of_equal_keys_the_latest_is_read_and_replace_keeps_one():
    def run():
        memory = store.empty(3, KEYS[0], np.zeros(()))
        rows = KEYS[[0, 1, 0]], jnp.arange(1.0, 4.0)
        twice, once = (store.write_all(memory, *rows, replace=r) for r in (False, True))
        return [(store.read(m, KEYS[0]), m.filled.sum(), m.written) for m in (twice, once)]

    (latest, number, _), (value, kept, written) = jax.jit(run)()
    assert (latest, number, value, kept) == (3, 3, 3, 2)
    # The entry that was written over is the younger one now.
    assert written[:2].tolist() == [2, 1]


def test_what_is_not_written_changes_nothing_and_what_is_has_no_derivative():
    memory = act(at_first(2), "AB")["fifo"]
    rows = KEYS[[2, 3]], {"number": np.full((2, 2), 3.0)}

    def run(value):
        same = store.write(memory, KEYS[2], {"number": value}, where=False)
        second = store.write_all(memory, *rows, np.array([False, True]))
        written = store.write(memory, KEYS[2], {"number": value})
        return store.read(written, KEYS[2])["number"].sum(), (same, second)

    (value, (same, second)), slope = jax.jit(jax.value_and_grad(run, has_aux=True))(
        jnp.ones(2)
    )
    jax.tree.map(np.testing.assert_array_equal, same, memory)
    assert held(second) == "DB" and value == 2 and not slope.any()


def test_compiled_mapped_and_plain_are_equal():
    first, second = (act(at_first(2), script) for script in ("ABaC", "AB"))
    compiled, plain = advance(first, 3, True), advanced(first, 3, jnp.asarray(True))
    jax.tree.map(np.testing.assert_array_equal, compiled, plain)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), first, second)
    mapped = jax.jit(jax.vmap(lambda m: advanced(m, 3, jnp.asarray(True))))(stacked)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b), mapped, compiled)


def test_a_memory_comes_back_from_files(tmp_path):
    memory = act(at_first(2), "ABaC")
    learner = ml.no_adaptation(
        ml.from_apply_fn(lambda key, x: np.ones(1), lambda w, x: x), ml.losses.mse
    )
    variables = ml.Variables(params=np.ones(1), state=memory)
    ml.save(tmp_path / "file", variables, learner)
    kept = ml.Checkpoints(tmp_path / "folder")
    kept.save(1, variables)
    for back in (ml.load(tmp_path / "file"), kept.restore(1, like=variables)[0]):
        assert type(back.state["clock"]) is store.EpisodicMemory
        jax.tree.map(np.testing.assert_array_equal, back.state, memory)
        for found, was in zip(act(back.state, "D").values(), act(memory, "D").values()):
            assert held(found) == held(was)
    kept.close()


def test_wrong_numbers_of_slots_are_refused():
    memory = act(at_first(2), "A")["fifo"]
    value = memory.values
    for call, words in (
        (lambda: store.empty(0, jnp.zeros(2), 0), "capacity is 0"),
        (lambda: store.empty(1, jnp.zeros((2, 2)), 0), "expected real numbers"),
        (lambda: store.nearest(memory, KEYS[0], 3), "k is 3; expected at most 2"),
        (lambda: store.nearest(memory, KEYS[0], 0), "k is 0"),
        (lambda: store.read(memory, KEYS[0], 1, "dot"), "kernel is 'dot'"),
        (lambda: store.write(memory, KEYS[0], value, eviction="?"), "eviction is '?'"),
    ):
        with pytest.raises(ValueError, match=words.replace("?", r"\?")):
            call()

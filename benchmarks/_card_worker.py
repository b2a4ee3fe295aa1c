"""One row of `accelerator`, in a process that can be ended while it compiles.

Reads the row from the first line of its input, makes everything ready, says so, and waits
for the word to measure: meanwhile other rows compile, and none disturbs a timing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Lines of a worker that are meant for `accelerator`, and the word that it waits for.
MARK, GO = "ROW ", "go"
Measure = Callable[[], dict[str, Any]]


def main() -> None:
    row = json.loads(sys.stdin.readline())
    began = time.perf_counter()
    try:
        measure = JOBS[row["job"]](**row["spec"], seconds=row["seconds"])
        _say({"ready_s": round(time.perf_counter() - began, 2)})
        if sys.stdin.readline() != GO + "\n":  # whoever asked has ended
            return
        _say(measure())
    except Exception as error:  # told, and the next row goes on
        _say({"error": f"{type(error).__name__}: {error}"[:600]})


def _say(words: dict[str, Any]) -> None:
    # A library may have left a line without its end.
    print("\n" + MARK + json.dumps(words), flush=True)


def ceilings(side: int, copied: int, seconds: float) -> Measure:
    """Rates that nothing exceeds: products in every precision, and a copy."""
    import jax
    import jax.numpy as jnp

    x = jax.random.normal(jax.random.key(0), (side, side))
    flat = jnp.ones((copied,), jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    cases = {}
    for name, word in PRECISIONS.items():
        operand = x.astype(jnp.bfloat16) if name == "bfloat16" else x
        run = jax.jit(functools.partial(jnp.dot, precision=word))
        cases[name] = functools.partial(run, operand, operand)
    for run in (*cases.values(), functools.partial(copy, flat)):
        jax.block_until_ready(run())

    def measure() -> dict[str, Any]:
        found = {}
        for name, run in cases.items():
            rate = 2 * side**3 / _seconds(run, seconds)
            found[f"{name}_tflops"] = round(rate / 1e12, 1)
        rate = 2 * flat.nbytes / _seconds(lambda: copy(flat), seconds)
        return found | {"copy_gb_per_s": round(rate / 1e9)}

    return measure


def convolutions(shapes: list[list[int]], precision: str, seconds: float) -> Measure:
    """A convolution of the tasks' own kernels with both of its gradients, by form."""
    cases = {
        f"{'x'.join(map(str, shape))} {form}": _convolution(shape, precision, form)
        for shape in shapes
        for form in ("grouped", "patches", "apart")
    }

    def measure() -> dict[str, Any]:
        found = {}
        for name, (run, flops) in cases.items():
            each = _seconds(run, seconds / 5)
            rate = round(flops / each / 1e12, 1)
            found[name] = {"ms": round(1e3 * each, 3), "tflops": rate}
        return {"forms": found}

    return measure


def _convolution(shape: list[int], precision: str, form: str) -> tuple[Callable, float]:
    import jax
    import jax.numpy as jnp

    from metalearn import lowering

    tasks, num, side, depth, width = shape
    dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (tasks, num, side, side, depth), dtype)
    w = jax.random.normal(keys[1], (tasks, 3, 3, depth, width), dtype)
    cotangent = jax.random.normal(keys[2], (tasks, num, side, side, width), dtype)

    def conv(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def all_three(conv, x, w, cotangent):
        out, pull = jax.vjp(conv, x, w)
        return out, pull(cotangent)

    def apart(*operands):
        parts = [all_three(conv, *one) for one in zip(*operands, strict=True)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)

    inner = lowering.lower(conv) if form == "patches" else conv
    fn = apart if form == "apart" else jax.vmap(functools.partial(all_three, inner))
    with _precision(precision):
        run = _compiled(fn, x, w, cotangent)
    flops = 3 * 2 * tasks * num * side**2 * 9 * depth * width
    return functools.partial(run, x, w, cotangent), flops


def step(
    lower: bool | str, precision: str, options: dict[str, Any], seconds: float, **sizes: Any
) -> Measure:
    """An outer step of this library, and its kernels."""
    import jax
    import numpy as np
    import optax

    import metalearn as ml
    from benchmarks import workloads

    work = _work(**sizes)
    with _precision(precision):
        # All at once, as on a card, also where this is tried on a CPU.
        options = {"task_chunk": work.tasks} | options
        learner = workloads.learner_of(
            work, lower=lower, dtype=_dtype(precision), **options
        )
        trainer = ml.meta_trainer(learner, optax.adam(1e-3))
        tasks = jax.tree.map(np.asarray, workloads.as_tasks(workloads.arrays(work)))
        one = jax.tree.map(lambda x: x[0], tasks)
        held = [jax.jit(trainer.init)(jax.random.key(0), one)]
        tasks, key = jax.device_put(tasks), jax.random.key(1)
        began = time.perf_counter()
        run = _compiled(
            lambda state, tasks, key: trainer.step(state, tasks, key=key),
            held[0],
            tasks,
            key,
            donate_argnums=0,
        )
        ready = time.perf_counter()

    def once():
        held[0], metrics = run(held[0], tasks, key)
        return held[0], metrics

    def measure() -> dict[str, Any]:
        found = _rounds(once, seconds, work.tasks)
        stats = jax.local_devices()[0].memory_stats() or {}
        found["trace_and_compile_s"] = round(ready - began, 2)
        found["peak_gb"] = round(stats.get("peak_bytes_in_use", 0) / 1e9, 2)
        try:
            return found | {"kernels": _kernels(once)}
        except Exception as error:  # a machine may not let its card be profiled
            return found | {"no_kernels": f"{type(error).__name__}: {error}"[:200]}

    return measure


def correct(
    lower: bool | str, precision: str, options: dict[str, Any], seconds: float, **sizes: Any
) -> Measure:
    """The meta-gradient beside that of float64 on the host, by norms."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from benchmarks import workloads

    jax.config.update("jax_enable_x64", True)
    work, key = _work(**sizes), jax.random.key(0)
    tasks = workloads.as_tasks(workloads.arrays(work))
    host, card = jax.devices("cpu")[0], jax.devices()[0]

    def gradient(device: Any, real: Any, lower: bool | str, **options: Any) -> np.ndarray:
        learner = workloads.learner_of(work, task_chunk=work.tasks, lower=lower, **options)
        with jax.default_device(host):
            one = jax.tree.map(lambda x: x[0], tasks)
            variables = jax.jit(learner.init)(key, one)

        def cast(x: Any) -> np.ndarray:
            is_real = jnp.issubdtype(x.dtype, jnp.floating)
            return np.asarray(x, real if is_real else x.dtype)

        args = jax.device_put(jax.tree.map(cast, (variables, tasks)), device)
        args = (*args, jax.device_put(key, device))
        with jax.default_device(device):
            run = _compiled(lambda v, t, k: learner.estimate(v, t, key=k).grads, *args)
            leaves = jax.tree.leaves(run(*args))
        return np.concatenate([np.asarray(x, np.float64).ravel() for x in leaves])

    with _precision(precision):
        found = gradient(card, np.float32, lower, dtype=_dtype(precision), **options)
    true = gradient(host, np.float64, True)
    off = float(np.linalg.norm(found - true) / np.linalg.norm(true))
    return lambda: {"relative_error": off}


def torch_step(peer: str, precision: str, seconds: float, **sizes: Any) -> Measure:
    """An outer step of PyTorch."""
    import torch

    from benchmarks import torch_peers

    work = _work(**sizes)
    torch_peers.prepare(precision)
    makers = {
        "loop": torch_peers.loop,
        "vmap": torch_peers.vmap,
        "prototypes": functools.partial(torch_peers.embeddings, batched=True),
    }
    contender = torch_peers.waited(makers[peer](work))

    def measure() -> dict[str, Any]:
        began = time.perf_counter()
        once = contender.setup()
        first = round(time.perf_counter() - began, 2)
        found = _rounds(once, seconds, work.tasks, wait=lambda _: None)
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        return found | {"first_steps_s": first, "peak_gb": round(peak / 1e9, 2)}

    return measure


JOBS = {fn.__name__: fn for fn in (ceilings, convolutions, step, correct, torch_step)}
PRECISIONS = {"tf32": "tensorfloat32", "float32": "float32", "bfloat16": "default"}


def _work(workload: str, tasks: int, sizes: dict[str, int] | None = None):
    from benchmarks import workloads

    return dataclasses.replace(workloads.WORKLOADS[workload], tasks=tasks, **(sizes or {}))


def _precision(name: str):
    import jax

    return jax.default_matmul_precision(PRECISIONS[name])


def _dtype(precision: str) -> Any:
    import jax.numpy as jnp

    return jnp.bfloat16 if precision == "bfloat16" else None


def _compiled(fn: Callable, *args: Any, **options: Any) -> Callable:
    from metalearn.core import programs

    return programs.compiled(fn, **options).lower(*args).compile()


def _rounds(
    once: Callable[[], Any], seconds: float, tasks: int, wait: Callable | None = None
) -> dict[str, Any]:
    """Five timings of a step after two that do not count."""
    _seconds(once, 0.0, wait, warm=0)
    found = [_seconds(once, seconds / 5, wait, warm=0, least=1) for _ in range(5)]
    median = statistics.median(found)
    return {
        "tasks_per_s": round(tasks / median, 1),
        "step_s": median,
        "step_s_min": min(found),
        "step_s_max": max(found),
    }


def _seconds(
    once: Callable[[], Any],
    seconds: float,
    wait: Callable | None = None,
    *,
    warm: int = 2,
    least: int = 2,
) -> float:
    """Mean seconds of a call that waits for its result."""
    if wait is None:
        import jax

        wait = jax.block_until_ready
    for _ in range(warm):
        wait(once())
    began, count = time.perf_counter(), 0
    while count < least or time.perf_counter() - began < seconds:
        wait(once())
        count += 1
    return (time.perf_counter() - began) / count


def _kernels(once: Callable[[], Any], steps: int = 3) -> list[list[Any]]:
    """Milliseconds and calls of a step by kernel of a card: all, then the longest."""
    import jax

    if jax.default_backend() == "cpu":
        return []
    total: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                jax.block_until_ready(once())
        (path,) = Path(folder).rglob("*.xplane.pb")
        planes = jax.profiler.ProfileData.from_file(str(path)).planes
        lines = [line for plane in planes if "GPU" in plane.name for line in plane.lines]
        for line in lines:
            for event in line.events if line.name.startswith("Stream") else ():
                entry = total.setdefault(event.name[:90], [0.0, 0.0])
                entry[0] += event.duration_ns / 1e6 / steps
                entry[1] += 1 / steps
    rows = [[name, round(ms, 3), round(n, 1)] for name, (ms, n) in total.items()]
    rows.sort(key=lambda row: -row[1])
    together = ["all", round(sum(r[1] for r in rows), 3), round(sum(r[2] for r in rows))]
    return [together, *rows[:20]]


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        main()

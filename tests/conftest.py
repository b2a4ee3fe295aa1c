"""Common ground of all tests: devices, compilation cache, strictness, fixtures.

Rank promotion raises in every test, so a hidden broadcast is an error. Strict dtype
promotion is a fixture of its own, `strict_dtypes`: optax.adam does not keep to it.
"""

import gc
import os
import signal
import tempfile
import threading
import zlib
from importlib.metadata import version
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling is what tests spend their time on, hence a low level of optimisation. The older
# emitters of fusions take a fifth of the time; jaxlib has them up to 0.10. A flag that it
# does not know would end the process.
JAX_0_10 = version("jaxlib").startswith("0.10.")
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_parallel_codegen_split_count=1",
        *(["--xla_cpu_use_fusion_emitters=false"] if JAX_0_10 else []),
    ]
)
# Tracing makes millions of objects that live long. Python's collector looks through all of
# them again and again, which is a tenth of the time of the tests.
gc.set_threshold(200_000, 20, 100)
# Where a shell starts the tests in the background they ignore this signal, and so would the
# commands that they start and interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
CACHE = os.environ.get("METALEARN_TEST_CACHE") or str(
    Path(tempfile.gettempdir()) / f"metalearn-test-cache-{os.getuid()}"
)

import jax  # noqa: E402
import pytest  # noqa: E402
from commands import (  # noqa: E402, F401
    base,
    glyphs_cache,
    image_folder,
    sine,
    tiny,
    trained,
    trained_sine,
)

from metalearn.core import programs  # noqa: E402
from metalearn.runs import environment  # noqa: E402

if JAX_0_10:
    # jax 0.10 makes a compiler context for every program, which takes longer than lowering
    # a small one. As in later releases each serves ten, for it keeps what it has interned;
    # a program that is lowered within another gets its own.
    from jax._src.interpreters import mlir

    def _lowering():
        try:
            return mlir.ir.Context.current is not None
        except ValueError:  # there is no current one
            return False

    def _shared_context(made=mlir.make_ir_context, held=threading.local()):  # noqa: B008
        if _lowering():
            return made()
        held.uses = getattr(held, "uses", 0) % 10 + 1
        if held.uses == 1:
            held.context = made()
        return held.context

    mlir.make_ir_context = _shared_context

    # Before jax keeps a program it reads a file of each that is kept, in case they are too
    # many, while all other processes wait: for a thousand of them that takes longer than to
    # compile most programs. Once in a process is enough.
    from jax._src import compilation_cache
    from jax._src.lru_cache import LRUCache

    def _evict_once(self, *, additional_size=0, evict=LRUCache._evict_if_needed):
        if not getattr(self, "looked", False):
            self.looked = True
            evict(self, additional_size=additional_size)

    LRUCache._evict_if_needed = _evict_once

    # Programs are kept for minutes; to pack them well takes four times as long.
    if not (compilation_cache.zstd or compilation_cache.zstandard):
        compilation_cache.compress_executable = lambda found: zlib.compress(found, level=1)

environment.share_compilations(CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
# Where in Python each operation comes from is written into programs for profilers.
jax.config.update("jax_traceback_in_locations_limit", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


class _Collector:
    """Python's collector for `metalearn.core.programs`: looks at what is new.

    The package collects for every eighth learner, and to look through all that a process of
    hundreds of tests has made takes seconds each time. What has outlived one collection is
    left out of the next ones, until `room_for_programs` lets it go.
    """

    @staticmethod
    def collect():
        found = gc.collect()
        gc.freeze()
        return found


programs.gc = _Collector

IGNORED_WARNINGS = (
    # Third parties; ours must not warn.
    "ignore::DeprecationWarning:(?!metalearn)",
    "ignore::PendingDeprecationWarning:(?!metalearn)",
)


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "error")
    for line in IGNORED_WARNINGS:
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture(autouse=True)
def no_rank_promotion():
    """No silent broadcasting over ranks."""
    with jax.numpy_rank_promotion("raise"):
        yield


_compiled: list[str] = []  # since the maps were counted


@jax.monitoring.register_event_duration_secs_listener
def _note_program(event, duration, **kwargs):
    del duration, kwargs
    if event == "/jax/core/compile/backend_compile_duration":
        _compiled.append(event)


@pytest.fixture(autouse=True)
def room_for_programs():
    """Lets compiled programs go before they are too many.

    Each maps memory several times, and where a process has as many maps as Linux allows
    (65,530) the next program ends it by a segmentation fault. Counting takes a
    fiftieth of a second, hence not after every test.
    """
    yield
    if len(_compiled) > 500:
        _compiled.clear()
        maps = Path("/proc/self/maps")
        if maps.exists() and maps.read_bytes().count(b"\n") > 25_000:
            gc.unfreeze()
            jax.clear_caches()
            gc.collect()


@pytest.fixture
def strict_dtypes():
    """No silent casts between dtypes."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def x64():
    """Double precision within one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def shared_dir():
    """The shared data folder: `METALEARN_SHARED`, or `../shared` beside the checkout."""
    root = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("METALEARN_SHARED") or root.parent / "shared")
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set METALEARN_SHARED to the folder")
    return folder


@pytest.fixture
def count_compilations():
    """`count_compilations()`: programs compiled since the last call, or the start."""
    seen = []

    def listen(event, duration, **kwargs):
        del duration, kwargs
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)

    def count():
        number = len(seen)
        seen.clear()
        return number

    yield count
    jax.monitoring.unregister_event_duration_listener(listen)

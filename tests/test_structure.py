"""The shape of the package: layers, file sizes, documentation, cost of an import."""

import ast
import graphlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import metalearn as ml
from metalearn.algorithms import registry

ROOT = Path(ml.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# A folder may import from earlier lines only; files of one folder order themselves, but
# those of `algorithms`, whose order is held below.
LAYERS = (
    ("_clash", "lowering"),
    ("core",),
    ("inner", "models", "tasks", "data", "environments"),
    ("hypergradient", "policies"),
    ("testing", "algorithms"),
    ("training",),
    ("apps",),
    ("runs",),
    ("cli",),
    ("__main__",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def module_of(file):
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(file):
    """Modules of this package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("metalearn"):
            inside = node.module.removeprefix("metalearn").lstrip(".")
            folder = ROOT.joinpath(*inside.split(".")) if inside else ROOT
            for name in node.names:
                is_file = (folder / f"{name.name}.py").exists()
                is_file |= (folder / name.name / "__init__.py").exists()
                child = f"{inside}.{name.name}".lstrip(".")
                found.add(child if is_file else inside)
        elif isinstance(node, ast.Import):
            names = [n.name for n in node.names if n.name.startswith("metalearn.")]
            found |= {n.removeprefix("metalearn.") for n in names}
    return found - {""}


def test_files_import_only_lower_layers():
    wrong = []
    for file in FILES:
        module = module_of(file)
        if module == "__init__":
            continue
        top = module.split(".")[0]
        if top not in RANK:
            wrong.append(f"{module} has no place in LAYERS of this test")
            continue
        for used in imports(file):
            lower = used.split(".")[0]
            if lower != top and RANK.get(lower, 99) >= RANK[top]:
                wrong.append(f"{module} imports {used}")
    assert not wrong, wrong


FAMILIES = sorted(
    p.parent.name
    for p in (ROOT / "algorithms").glob("*/__init__.py")
    if p.parent.name != "registry"
)
SHARED = ("algorithms.bilevel", "algorithms.embedding", "algorithms.options")


def test_the_root_holds_four_files_and_folders():
    files = sorted(file.name for file in ROOT.glob("*.py"))
    assert files == ["__init__.py", "__main__.py", "_clash.py", "testing.py"]


def test_files_do_not_import_in_a_circle():
    graph = {module_of(file): imports(file) for file in FILES}
    graph = {
        module: {m for m in used if m in graph and not module.startswith(f"{m}.")}
        for module, used in graph.items()
    }
    graph.pop("__init__")
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        raise AssertionError(f"imports in a circle: {error.args[1]}") from None


@pytest.mark.parametrize("family", FAMILIES)
def test_families_import_their_own_files_and_what_they_share(family):
    for file in (ROOT / "algorithms" / family).glob("*.py"):
        used = {m for m in imports(file) if m.startswith("algorithms")}
        others = {m for m in used if not m.startswith(f"algorithms.{family}.")}
        assert others <= set(SHARED), f"{module_of(file)} imports {others - set(SHARED)}"


def test_shared_algorithms_import_no_family():
    for module in (*SHARED, "algorithms.baselines"):
        file = ROOT.joinpath(*module.split(".")).with_suffix(".py")
        used = {m for m in imports(file) if m.startswith("algorithms")}
        assert used <= set(SHARED), f"{module} imports {used}"


def _words(file):
    """Names and strings of the code of a file, documentation aside."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names)


def test_only_the_registry_and_recipes_name_a_learner():
    """What a learner is stands in its record, and not in lists of names elsewhere."""
    learners = {record.name for record in registry.RECORDS}
    named = []
    for file in FILES:
        module = module_of(file)
        own = module.startswith("algorithms.") and module.split(".")[1] in FAMILIES
        recipes = module.startswith("apps.") and "RECIPES" in _words(file)
        if own or recipes or module.startswith("algorithms.registry"):
            continue
        if module == "algorithms.baselines":
            continue
        if module == "algorithms":  # the baselines have no folder
            continue
        named += [f"{module}: {word}" for word in _words(file) if word in learners]
    assert not named, named


def test_data_imports_no_learning():
    for file in (ROOT / "data").rglob("*.py"):
        outside = {m for m in imports(file) if not m.startswith("data")}
        allowed = {"task", "types", "cache", "cost", "digest", "files", "optional"}
        allowed |= {"columns", "given", "pixels"}
        assert outside <= {"core"} | {f"core.{name}" for name in allowed}, (
            f"{file.name} imports {outside}"
        )


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_files_are_short_and_documented(file):
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400, "more than 400 lines; split the file by duty"
    assert ast.get_docstring(ast.parse(text)), "no docstring at the top of the file"


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_functions_are_short(file):
    long = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            lines = node.end_lineno - node.lineno + 1
            text = node.body[0] if ast.get_docstring(node) else None
            told = 0 if text is None else text.end_lineno - text.lineno + 1
            if lines > 120 or lines - told > 80:
                long.append(f"{node.name}: {lines} lines, {lines - told} of code")
    assert not long, long


PUBLIC = [
    *(ml, ml.data, ml.environments, ml.hypergradient, ml.inner, ml.models, ml.policies),
    ml.tasks,
]


@pytest.mark.parametrize("module", PUBLIC, ids=lambda m: m.__name__)
def test_public_names_exist_and_are_documented(module):
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        thing = getattr(module, name)
        if callable(thing) or inspect.ismodule(thing):
            is_class = inspect.isclass(thing)
            text = thing.__dict__.get("__doc__") if is_class else thing.__doc__
            assert text and not text.startswith(f"{name}("), f"{name} has no docstring"


def test_few_shot_is_where_messages_say():
    assert ml.data.few_shot.__module__ == "metalearn.data.few_shot"


def test_keyword_options_of_public_functions_are_described():
    missing = []
    for name in ml.__all__:
        thing = getattr(ml, name)
        if inspect.isfunction(thing) and "Args:" in (thing.__doc__ or ""):
            for argument in inspect.signature(thing).parameters:
                if f"{argument}:" not in thing.__doc__:
                    missing.append(f"{name}({argument})")
    assert not missing, missing


IMPORT = """
import sys, time
began = time.perf_counter()
import jax, flax.linen, optax
middle = time.perf_counter()
import metalearn
end = time.perf_counter()
heavy = ("tensorflow", "tensorflow_datasets", "matplotlib", "orbax", "torch")
print([name for name in heavy if name in sys.modules], end - middle, middle - began)
"""


def test_import_is_light():
    best = 99.0
    for _ in range(3):  # other processes may take the CPU for a moment
        run = subprocess.run(
            [sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True
        )
        heavy, ours, theirs = run.stdout.rsplit(maxsplit=2)
        assert heavy == "[]", f"import metalearn imports {heavy}"
        best = min(best, float(ours) - 0.5 * float(theirs))
        if best < 0.7:
            return
    assert best < 0.7, f"import metalearn takes {best:.2f} s beyond its dependencies"

"""Imports of all modules. Commands start quickly because heavy libraries are imported only where they are used."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACES = {"overpaint": ROOT / "benchmark", "overpaint.methods": ROOT / "methods"}

#: Libraries that a function may import: they load slowly, start threads, or are optional.
HEAVY = {
    "PIL", "cv2", "diffusers", "huggingface_hub", "hydra", "matplotlib", "nudenet", "onnxruntime", "pandas", "peft",
    "platformdirs", "pyarrow", "ray", "scipy", "statsmodels", "submitit", "torch", "torch_fidelity", "torchmetrics",
    "torchvision", "transformers", "wandb",
}  # fmt: skip
#: Commands must start, plan and report without these.
MODELS = {"torch", "diffusers", "transformers", "peft"}


def module_of(path):
    """``overpaint.run.plan`` for ``benchmark/run/plan.py``."""
    package, top = next((name, top) for name, top in reversed(PLACES.items()) if path.is_relative_to(top))
    return ".".join([package, *path.relative_to(top).with_suffix("").parts]).removesuffix(".__init__")


#: Module -> its syntax tree. `rglob` does not follow the link `benchmark/methods`.
TREES = {module_of(path): ast.parse(path.read_text()) for top in PLACES.values() for path in top.rglob("*.py")}
PACKAGES = {module_of(path) for top in PLACES.values() for path in top.rglob("__init__.py")}


def named(module, node):
    """Full names of the modules and attributes that an import statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    start = node.module
    if node.level:
        parts = module.split(".")
        parts = parts[: len(parts) - node.level + (module in PACKAGES)]
        start = ".".join([*parts, *([node.module] if node.module else [])])
    inside = [f"{start}.{alias.name}" for alias in node.names if f"{start}.{alias.name}" in TREES]
    return inside if len(inside) == len(node.names) else [start, *inside]


def library(name):
    """The library that an import loads: ``safetensors.torch`` loads torch."""
    return "torch" if name == "safetensors.torch" else name.split(".")[0]


@cache
def imports(module):
    """(imports on loading the module, imports inside functions); those for type checkers are neither."""
    loading, deferred = [], []

    def visit(node, inside):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import | ast.ImportFrom):
                (deferred if inside else loading).extend(named(module, child))
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            else:
                visit(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    visit(TREES[module], False)
    return loading, deferred


def loaded(module):
    """Everything that loading a module loads: modules of overpaint, and other libraries by name."""
    seen, todo = set(), [module]
    while todo:
        name = todo.pop()
        if name not in TREES:
            seen.add(library(name))
        elif name not in seen:
            seen.add(name)
            todo += [name.rpartition(".")[0]] if "." in name else []
            todo += imports(name)[0]
    return seen


def test_the_trees_are_those_of_the_package():
    assert {"overpaint", "overpaint.cli", "overpaint.run.plan", "overpaint.methods.uce"} < set(TREES)
    assert {"numpy", "overpaint.models.diffusion", "overpaint.errors"} < loaded("overpaint.methods.uce")
    assert {"torch", "diffusers"} < loaded("overpaint.models.loading")


def test_functions_import_only_what_is_heavy():
    """They import a heavy library, or a module of overpaint that loads one that is not loaded yet."""
    idle = []
    for module in TREES:
        already = loaded(module)
        for name in imports(module)[1]:
            needed = loaded(name) if name in TREES else {library(name)}
            if not needed & HEAVY - already:
                idle.append(f"{module} imports {name} inside a function: import it at the top")
    assert idle == []


def test_planning_running_and_reporting_load_no_model():
    """A plan needs the classes of methods, attacks, metrics and extractors."""
    rooms = ("grid", "run", "report", "commands", "methods", "attacks", "metrics", "extractors")
    modules = [m for m in TREES if m.split(".")[1:2] and m.split(".")[1] in rooms]
    modules += ["overpaint", "overpaint.cli", "overpaint.images.planner", "overpaint.images.track"]
    assert {module: found for module in modules if (found := loaded(module) & MODELS)} == {}


def loaded_by(code):
    """Third-party libraries that are loaded after the code ran in a fresh interpreter."""
    code += "\nimport sys; print(*{name.split('.')[0] for name in sys.modules} - sys.stdlib_module_names)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in done.stdout.splitlines()[-1].split() if not name.startswith(("_", "sitecustomize"))}


def test_help_loads_click_alone():
    found = loaded_by("from overpaint.cli import cli\ncli(['--help'], standalone_mode=False)")
    assert found == {"overpaint", "click"}


def test_plans_and_tables_load_no_model(tmp_path):
    """Of methods and attacks that train, search and edit, and with metrics of many kinds."""
    grid = "['method=none,uce,esd,receler,spm', 'concepts=church', 'attack=none,uda,mma,relearn,rab', 'metrics=gold']"
    code = f"""
from overpaint.commands.grids import planned
import overpaint.commands.table
assert len(planned({grid} + ['store={tmp_path}'], partial=True).plan.cells) == 25
"""
    assert loaded_by(code) & (MODELS | {"scipy", "matplotlib"}) == set()


def test_tables_of_result_files_load_pandas_alone():
    code = """
from overpaint.cli import cli
cli(['table', '--from', 'leaderboards/results/demo', '--format', 'md'], standalone_mode=False)
"""
    assert loaded_by(code) & HEAVY == {"pandas", "pyarrow"}


def test_listing_loads_nothing_heavy():
    code = "from overpaint.commands.list import lines\nassert any(row.startswith('uce') for row in lines('methods'))"
    assert loaded_by(code) & (HEAVY | {"numpy"}) == set()

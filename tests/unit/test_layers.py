"""Who may import whom, and what nobody may do: read from the source, inside functions too."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "metta_ray"

# Low to high. A module imports its own package and lower layers, never a neighbour in the same row.
LAYERS = (
    {"common"},
    {"control", "state", "metrics"},
    {"envs"},
    {"mettagrid"},
    {"agent"},
    {"rl"},
    {"sim"},
    {"eval"},
    {"api"},
    {"service"},
    {"jobs", "bench", "report"},
    {"commands"},
    {"cli"},
    {"__main__"},
)
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}
LIBRARY = ("common", "envs", "mettagrid", "agent", "rl", "sim", "eval", "api")
SERVICE_ONLY = {"ray", "redis", "prometheus_client"}
DECISIONS = {"control", "state", "metrics"}
UNPICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
# Both ends of a worker's private socket are processes of one run, started one by the other; an environment's
# constructor arguments may be any Python values. Nothing that comes from a file or another run passes there.
WORKER_SOCKET = {"metta_ray.envs.worker_main", "metta_ray.envs.worker_process"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> str:
    """``metta_ray.rl.losses`` → ``rl``; "" for the package itself."""
    return [*module.split("."), ""][1]


@cache
def nodes_of(tree: ast.AST) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(tree))


@cache
def imports_of(tree: ast.AST, module: str) -> set[str]:
    """Absolute dotted names of everything that is imported, at any depth of the file."""
    found: set[str] = set()
    for node in nodes_of(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute in this package"
            assert node.module is not None
            # `from metta_ray import rl` and `from metta_ray.rl import losses` name modules too.
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@cache
def parsed() -> list[tuple[str, ast.Module]]:
    """(name, syntax tree) of every module; read once for all tests."""
    return [(dotted(path), ast.parse(path.read_text())) for path in modules()]


def test_every_package_has_a_place_in_the_layers():
    assert {layer_of(dotted(path)) for path in modules()} - {""} <= HEIGHT.keys()


def test_a_module_imports_only_its_own_package_and_lower_layers():
    violations = []
    for module, tree in parsed():
        own = layer_of(module)
        for imported in imports_of(tree, module):
            if not imported.startswith("metta_ray."):
                continue
            other = layer_of(imported)
            if other != own and HEIGHT[other] >= HEIGHT[own]:
                violations.append(f"{module} imports {imported}")

    assert violations == []


def test_the_library_does_not_know_the_service():
    violations = []
    for module, tree in parsed():
        if layer_of(module) not in LIBRARY:
            continue
        for imported in imports_of(tree, module):
            foreign = imported.split(".")[0] in SERVICE_ONLY
            if foreign or (imported.startswith("metta_ray.") and layer_of(imported) in DECISIONS):
                violations.append(f"{module} imports {imported}")

    assert violations == []


def test_common_and_decisions_import_neither_torch_nor_ray():
    violations = [
        f"{module} imports {imported}"
        for module, tree in parsed()
        if layer_of(module) in {"common", *DECISIONS}
        for imported in imports_of(tree, module)
        if imported.split(".")[0] in {"torch", "ray"}
    ]

    assert violations == []


def test_envs_import_no_torch():
    violations = [
        f"{module} imports {imported}"
        for module, tree in parsed()
        if layer_of(module) == "envs"
        for imported in imports_of(tree, module)
        if imported.split(".")[0] == "torch"
    ]

    assert violations == []


def test_only_the_mettagrid_package_imports_the_engine():
    # The floor of the benchmark measures the bare engine, so it must speak to it directly.
    importers = {
        module
        for module, tree in parsed()
        if any(name.split(".")[0] == "mettagrid" for name in imports_of(tree, module))
    }

    assert {name for name in importers if layer_of(name) != "mettagrid"} <= {"metta_ray.bench.floor"}


def test_the_floors_of_the_benchmarks_share_no_code_with_what_they_measure():
    floors = {
        module: tree for module, tree in parsed() if module.startswith("metta_ray.bench.") and module.endswith("floor")
    }

    ours = {name for module, tree in floors.items() for name in imports_of(tree, module) if "metta_ray" in name}

    assert len(floors) >= 3
    assert {".".join(name.split(".")[:3]) for name in ours} <= set(floors)


def test_package_files_are_empty():
    assert [dotted(path) for path in modules() if path.name == "__init__.py" and path.read_text().strip()] == []


def test_every_folder_with_modules_is_a_package():
    folders = {path.parent for path in modules()}

    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_nothing_is_unpickled_but_on_the_sockets_of_our_own_workers():
    importers = {
        module
        for module, tree in parsed()
        if any(name.split(".")[0] in UNPICKLERS for name in imports_of(tree, module))
    }

    assert importers == WORKER_SOCKET


def test_no_call_can_unpickle():
    """torch.load, numpy's allow_pickle, and weights_only=False."""
    violations = []
    for module, tree in parsed():
        for node in nodes_of(tree):
            if not isinstance(node, ast.Call):
                continue
            callee = ast.unparse(node.func)
            # safetensors.torch.load reads raw numbers; torch.save writes what only torch.load reads.
            if callee in {"torch.load", "torch.save", "torch.hub.load", "pandas.read_pickle"}:
                violations.append(f"{module}:{node.lineno} {callee}")
            for keyword in node.keywords:
                if keyword.arg in {"allow_pickle", "weights_only"}:
                    violations.append(f"{module}:{node.lineno} {keyword.arg}")

    assert violations == []


def test_no_object_collectives():
    """torch.distributed's *_object_* functions pickle behind the scenes."""
    violations = [
        f"{module}:{node.lineno} {node.attr}"
        for module, tree in parsed()
        for node in nodes_of(tree)
        if isinstance(node, ast.Attribute)
        and node.attr in {"all_gather_object", "broadcast_object_list", "gather_object", "scatter_object_list"}
    ]

    assert violations == []


def test_every_wait_for_ray_has_a_deadline():
    """``ray.get`` without a timeout waits for ever for what may never come."""
    violations = [
        f"{module}:{node.lineno}"
        for module, tree in parsed()
        for node in nodes_of(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in {"ray.get", "ray.wait"}
        and "timeout" not in {keyword.arg for keyword in node.keywords}
    ]

    assert violations == []

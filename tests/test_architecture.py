"""The layers of docs/architecture.md hold: rooms import from the rooms below them alone."""

import ast
import importlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "talora_jax"
# What a room may import from, besides itself.
GROUND = set(
    "arrays compiled errors files hosts metrics rgb sharding signals slurm storage".split()
) | {"task_names"}
MAY_IMPORT = {
    "errors": {"signals"},
    "arrays": {"errors"},
    "compiled": set(),
    "files": {"errors", "signals", "storage"},
    "hosts": {"errors", "signals", "slurm", "storage"},
    "metrics": set(),
    "rgb": {"arrays", "errors"},
    "sharding": {"errors"},
    "signals": set(),
    "slurm": set(),
    "storage": {"errors"},
    "task_names": {"errors"},
    "models": GROUND,
    "tasks": GROUND,
    "weighting": GROUND,
    "data": GROUND | {"tasks"},
    "weights": GROUND | {"models"},
    "config": GROUND,
    "config_checks": GROUND | {"config", "data", "models", "tasks", "weighting"},
    "command_line": {"errors", "config"},
    "inference": GROUND | {"models", "tasks", "weights"},
    "page": GROUND | {"inference", "models", "tasks", "weights"},
    "prompting": {"models"},
    "training": GROUND
    | {"config", "config_checks", "data", "models", "prompting", "tasks", "weighting", "weights"},
    "experiments": GROUND
    | {"command_line", "config", "config_checks", "data", "models", "tasks", "training"}
    | {"weighting", "weights"},
}
# Entrances: they may import anything.
ENTRANCES = {
    "__init__",
    "__main__",
    "commands",
    "main",
    "adapter",
    "demo",
    "describe_data",
    "export",
    "masks",
    "report",
    "sweep",
}


def imports_of(path):
    """Modules of this package that a file imports, wherever in it, without `talora_jax`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "talora_jax":
            yield from (name.name for name in node.names if not name.name.startswith("__"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("talora_jax."):
            module = node.module.removeprefix("talora_jax.")
            for name in node.names:
                inside = PACKAGE.joinpath(*module.split("."), name.name)
                is_module = inside.is_dir() or inside.with_suffix(".py").is_file()
                yield f"{module}.{name.name}" if is_module else module
        elif isinstance(node, ast.Import):
            names = (name.name for name in node.names)
            yield from (n.removeprefix("talora_jax.") for n in names if n.startswith("talora_jax."))


def room_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_arrows_point_down(room):
    files = [path for path in PACKAGE.rglob("*.py") if room_of(path) == room]
    assert files
    for path in files:
        for module in imports_of(path):
            other = module.partition(".")[0]
            assert other == room or other in MAY_IMPORT[room], f"{path} imports {module}"


def test_every_module_has_a_room():
    assert {room_of(path) for path in PACKAGE.rglob("*.py")} <= {*MAY_IMPORT, *ENTRANCES}


def test_rooms_say_what_lives_in_them():
    for room in MAY_IMPORT:
        if (PACKAGE / room).is_dir():
            doc = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text()))
            assert doc and doc.splitlines()[0].strip(), room


def test_no_import_circles():
    """Also inside of a room."""
    graph = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        graph[name] = set(imports_of(path))
    done, open_now = set(), []

    def visit(name):
        assert name not in open_now, " → ".join([*open_now, name])
        if name in done or name not in graph:
            return
        open_now.append(name)
        for other in sorted(graph[name]):
            visit(other)
        open_now.pop()
        done.add(name)

    for name in graph:
        visit(name)


def test_pytorch_is_named_in_the_conversion_alone():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [n.name for n in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "torch" for name in names), path


def test_every_module_can_be_imported():
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if parts[1] != "configs" and parts[-1] not in ("__main__", "__init__"):
            importlib.import_module(".".join(parts))

"""The rooms of the house: who imports whom, and how much code there may be."""

import ast
import io
import tokenize
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

SOURCE = REPOSITORY / "src"
MODULES = sorted(path for path in SOURCE.rglob("*.py"))
# Of all modules together, without blank lines, comments and docstrings. It may only fall, or
# grow with a capability: a theme that needs 400 lines looks for 100 that it can retire.
MAX_CODE_LINES = 11_134

FRONT_DOORS = {"run_clm", "run_eval", "export", "report"}
NO_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENCODING, tokenize.ENDMARKER,
}  # fmt: skip
BASE = {"foundation", "arguments", "hardware", "processes"}
MAY_IMPORT = {
    "foundation": set(),
    "arguments": {"foundation"},
    "hardware": {"foundation"},
    "processes": {"foundation"},
    "configuration": {*BASE, "configuration"},
    "data": {*BASE, "data"},
    "evaluation": {*BASE, "evaluation"},
    "training": {*BASE, "data", "evaluation", "training"},
    "entry": {*BASE, "data", "evaluation", "training", "entry"},
    "reporting": {*BASE, "data", "evaluation", "training", "entry", "reporting"},
    **dict.fromkeys(
        FRONT_DOORS,
        {
            *(*BASE, "configuration", "data", "training", "evaluation", "entry"),
            "reporting",
        },
    ),
}
HYDRA = {*FRONT_DOORS, "configuration"}


def name(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def room(path: Path) -> str:
    """The folder of a module under `src/`, or the module itself."""
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imported(tree: ast.AST) -> list[str]:
    """Every module that is imported anywhere: "src.data.blocks", "wandb", …"""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names += [f"{module}.{alias.name}" for alias in node.names]
    return names


def our_imports(tree: ast.AST) -> set[str]:
    """The rooms under `src/` that are imported."""
    return {
        name.split(".")[1] for name in imported(tree) if name.split(".")[0] == "src"
    }


def libraries(tree: ast.AST) -> set[str]:
    return {name.split(".")[0] for name in imported(tree)}


def own_start(node: ast.AST) -> bool:
    """Whether it is a module's `if __name__ == "__main__":`."""
    return isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)


def parsed(path: Path) -> ast.Module:
    """The module without its `__main__` block, which may import the module itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if not own_start(node)]
    return tree


def test_imports_are_found_wherever_they_are():
    code = (
        "import wandb.sdk\nfrom src import arguments\n"
        "def f():\n    from src.data.blocks import Blocks\n"
        "if __name__ == '__main__':\n    from src.run_clm import main\n"
    )
    tree = ast.parse(code)
    assert libraries(tree) == {"wandb", "src"}
    assert our_imports(tree) == {"arguments", "data", "run_clm"}
    assert [own_start(node) for node in tree.body] == [False, False, False, True]


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_imports_only_what_lies_below_it(path):
    tree = parsed(path)
    assert not [x for x in imported(tree) if x.startswith(".")], "relative import"
    if path != SOURCE / "__init__.py":
        assert our_imports(tree) <= MAY_IMPORT[room(path)]


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_library_stays_in_its_room(path):
    found = libraries(parsed(path))
    assert room(path) in HYDRA or not found & {"hydra", "omegaconf"}
    assert name(path) == "training/record/wandb_logging.py" or "wandb" not in found
    assert room(path) == "reporting" or not found & {"matplotlib", "jinja2"}


def test_wandb_is_imported_inside_functions_only():
    tree = parsed(SOURCE / "training/record/wandb_logging.py")
    assert "wandb" in libraries(tree)
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    outside = [node for node in tree.body if not isinstance(node, functions)]
    assert not any("wandb" in libraries(node) for node in outside)


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_is_called_by_its_theme(path):
    assert path.stem not in {"utils", "util", "common", "helpers", "helper", "misc"}


def code_lines(text: str) -> int:
    """Lines that hold code: no blank lines, comments or docstrings."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                lines.difference_update(range(value.lineno, value.end_lineno + 1))
    return len(lines)


def test_lines_of_code_are_counted_without_what_explains_them():
    text = '"""A module."""\n\n# why\ndef f(\n    x,\n):\n    """A docstring."""\n    return x\n'
    assert code_lines(text) == 4


def test_the_code_has_a_size_one_can_read():
    code = [path for path in MODULES if "sample" not in path.parts]
    assert sum(code_lines(path.read_text("utf-8")) for path in code) <= MAX_CODE_LINES

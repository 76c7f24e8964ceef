"""Signatures of what plam-eval uses of vLLM, read from the source of a version that need not be installed.

    pip download --no-deps vllm==0.33.0 && unzip -q vllm-0.33.0-*.whl 'vllm/*.py' -d vllm-0.33.0
    python tools/vllm_signatures.py vllm-0.33.0 > tests/serving/vllm-0.33.0.json

Nothing of it is imported. `tests/serving/test_versions.py` holds the table against what plam-eval needs.
"""

from __future__ import annotations

import ast
import json
import sys
from functools import lru_cache
from pathlib import Path

from plam_eval.serving.versions import EVERYTHING, Signature


def look_up(root: Path, name: str) -> Signature | None:
    """What the vLLM below the folder `root` has under `name`, "module:name"; None where it has nothing."""
    module, _, path = name.partition(":")
    place_and_node = _find(root, module, path.split("."))
    if place_and_node is None:
        return None
    place, node = place_and_node
    if isinstance(node, ast.ClassDef):
        return Signature(tuple(_fields(root, place, node)))
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or _is_property(node):
        return Signature(())
    arguments = node.args
    positional = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    required = positional[: len(positional) - len(arguments.defaults)]
    keyword = list(zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True))
    names = (*positional, *(argument.arg for argument, _ in keyword))
    return Signature(names, (*required, *(argument.arg for argument, default in keyword if default is None)))


def _find(root: Path, module: str, path: list[str]) -> tuple[str, ast.AST] | None:
    """The node of a name and the module that it stands in, through imports and base classes."""
    tree = _tree(root, module)
    if tree is None:
        return None
    node = _defined(tree, path[0])
    if node is None:
        origin = _imported(root, tree, module, path[0])
        return _find(root, origin[0], [origin[1], *path[1:]]) if origin else None
    for index, attribute in enumerate(path[1:], 1):
        inner = _defined(node, attribute)
        if inner is None and isinstance(node, ast.ClassDef):
            for base in node.bases:
                name = ast.unparse(base).partition("[")[0]
                inherited = _find(root, module, [name, *path[index:]]) if "." not in name else None
                if inherited is not None:
                    return inherited
        if inner is None:
            return None
        node = inner
    return module, node


@lru_cache(maxsize=64)
def _tree(root: Path, module: str) -> ast.Module | None:
    place = root.joinpath(*module.split("."))
    for file in (place.with_suffix(".py"), place / "__init__.py"):
        if file.is_file():
            return ast.parse(file.read_text(encoding="utf-8"))
    return None


def _defined(node: ast.AST, name: str) -> ast.AST | None:
    for inner in getattr(node, "body", []):
        if getattr(inner, "name", None) == name:
            definition: ast.AST = inner
            return definition
        targets = [inner.target] if isinstance(inner, ast.AnnAssign) else getattr(inner, "targets", [])
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return ast.Pass()  # it is there, and no function
    return None


def _imported(root: Path, tree: ast.Module, module: str, name: str) -> tuple[str, str] | None:
    """Module and name that an import brings a name from."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom):
            continue
        for alias in node.names:
            if (alias.asname or alias.name) == name:
                package = (
                    module if root.joinpath(*module.split("."), "__init__.py").is_file() else module.rpartition(".")[0]
                )
                above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                return ".".join([*above, *([node.module] if node.module else [])]), alias.name
    return None


def _fields(root: Path, module: str, node: ast.ClassDef) -> list[str]:
    """Annotated names of a class and its bases: those of a dataclass or a struct."""
    names: list[str] = []
    for base in node.bases:
        base_class = _find(root, module, [ast.unparse(base).partition("[")[0]])
        if base_class is not None and isinstance(base_class[1], ast.ClassDef):
            names += _fields(root, base_class[0], base_class[1])
    own = [item for item in node.body if isinstance(item, ast.AnnAssign) and "ClassVar" not in ast.unparse(item)]
    own_names = [item.target.id for item in own if isinstance(item.target, ast.Name)]
    return [*names, *(name for name in own_names if name not in names)]


def _is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(
        ast.unparse(decorator).rpartition(".")[2] in ("property", "cached_property")
        for decorator in node.decorator_list
    )


def main() -> None:
    root = Path(sys.argv[1])
    table = {}
    for name, needed in EVERYTHING.items():
        signature = look_up(root, name)
        if signature is not None:
            # Of a class with a hundred fields those that are needed, so that the table stays one to read.
            names = (
                [field for field in signature.names if field in needed]
                if len(signature.names) > 20
                else [*signature.names]
            )
            table[name] = {"names": names, "required": [*signature.required]}
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()

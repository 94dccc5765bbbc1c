"""Names that tests use and do not define: of the completion, or modules that nobody imported."""

from __future__ import annotations

import ast
import builtins
import symtable
import sys
from collections.abc import Iterator, Sequence


def free_names(sources: Sequence[str]) -> list[str]:
    """Global names that sources use and none of them defines, builtins aside.

    Raises:
        SyntaxError, ValueError, RecursionError: one is no Python.
    """
    used: set[str] = set()
    bound: set[str] = set()
    for table in _tables([symtable.symtable(source, "<test>", "exec") for source in sources]):
        outermost = table.get_type() == "module"
        for symbol in table.get_symbols():
            name = symbol.get_name()
            if (outermost or symbol.is_declared_global()) and (symbol.is_assigned() or symbol.is_imported()):
                bound.add(name)
            if symbol.is_referenced() and (outermost or symbol.is_global()):
                used.add(name)
    return sorted(used - bound - set(vars(builtins)))


def called_builtins(trees: Sequence[ast.Module]) -> list[str]:
    """What asserts call first: where tests use builtin names only, the function under test is among them."""
    found = []
    for node in (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Assert)):
        call = next((inner for inner in ast.walk(node.test) if isinstance(inner, ast.Call)), None)
        if call is not None and isinstance(call.func, ast.Name):
            found.append(call.func.id)
    return sorted(set(found))


def modules_among(names: Sequence[str], trees: Sequence[ast.Module]) -> list[str]:
    """Those that are modules of the standard library, by the way the tests use them."""
    nodes = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    dotted = {node.value.id for node in nodes if isinstance(node.value, ast.Name)}
    return [name for name in names if name in dotted and name in sys.stdlib_module_names]


def imported_from_solution(trees: Sequence[ast.Module]) -> list[str]:
    """What tests import `from solution`."""
    nodes = (node for tree in trees for node in ast.walk(tree))
    found = (node for node in nodes if isinstance(node, ast.ImportFrom) and node.module == "solution")
    return [alias.name for node in found for alias in node.names]


def _tables(tables: Sequence[symtable.SymbolTable]) -> Iterator[symtable.SymbolTable]:
    for table in tables:
        yield table
        yield from _tables(table.get_children())

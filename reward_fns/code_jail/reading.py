"""The code of a completion: what a careful reader would run of a text with fences, tags and prose.

It runs in the completion's own jail, before any of its code: reading hostile text as Python costs time,
memory and sometimes the process, and all of these are bounded there.

A text is cut into blocks: fenced ones (backticks or tildes, any tag, closed or not), and the stretches
between them that are Python. The last block that defines what the tests ask for counts; what it needs and
does not define is taken from the other blocks. Of a program, the last block counts that runs, reads and
prints.
"""

from __future__ import annotations

import ast
import builtins
import itertools
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

_TAGGED = re.compile(
    r"(?:^|\n)[ \t]*\[(BEGIN|PYTHON|CODE|ANSWER|SOLUTION)\](.*?)(?:\[(?:DONE|END|/\1)\]|\Z)"
    r"|<(?i:(answer|code|python|solution))>(.*?)(?:</(?i:\3)>|\Z)",
    re.DOTALL,
)
# In capitals alone: `x[end]` is Python.
_DONE = re.compile(r"\[DONE\]|^[ \t]*\[(?:END|/PYTHON|/CODE)\]", re.MULTILINE)
_FENCE = re.compile(r"(?P<before>.*?)(?P<fence>`{3,}|~{3,})(?P<info>.*)")
_SPAN = re.compile(r"^\s*`([^`]+)`\s*$")
_QUOTE = re.compile(r"[ \t]*>[ \t]?")
_NO_PYTHON = frozenset(
    "bash sh shell zsh console terminal cmd powershell text txt plaintext plain output stdout stdin input "
    "json yaml toml xml html css js javascript typescript ts java c cpp c++ cs csharp go rust ruby php sql r "
    "result markdown md diff latex tex math".split()
)
_CODE_START = re.compile(
    r"\s*(?:from\s+[\w.]+\s+import\b|import\s|def\s|class\s|async\s|@\w|if\s|for\s|while\s|with\s|try\s*:|print\("
    r"|[\w.]+(?:\[[^\]]*\])?(?:\s*,\s*\w+)*\s*(?::[^=]*)?[-+*/|&]?=[^=]|[\w.]+\(|\"\"\"|''')"
)
_FIRST_LINE = re.compile(r"(?:from|import|def|class|async|for|while|if|print|return)\b|@")
_MAX_BLOCKS = 24
_MAX_CLOSINGS = 4
_MAX_LINES = 600
_MAX_TRIES = 1500
_MAX_CUTS = 60
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
_KEPT = (*_DEFINITIONS, ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Try)


def sources(completion: Mapping[str, Any]) -> list[str]:
    """Readings of a completion; the first that compiles counts.

    Args:
        completion: `text`; `names` that are asked for, none for a program; `stubs`, readings of a prompt that
            the text may continue; `entry`, the function that they begin.
    """
    text = completion["text"].rpartition("</think>")[2].replace("\r\n", "\n")
    for part in _parts(text):
        found = _read(part, completion)
        if found:
            return found
    return []


def _parts(text: str) -> Iterator[str]:
    """What is between tags, last first; what is before a closing tag; all of it."""
    tagged = [found[2] if found[2] is not None else found[4] for found in _TAGGED.finditer(text)]
    yield from reversed(tagged[-_MAX_BLOCKS:])
    end = _DONE.search(text)
    if end:
        yield text[: end.start()]
    yield text


def _read(text: str, completion: Mapping[str, Any]) -> list[str]:
    names, stubs, entry = set(completion["names"]), completion["stubs"], completion["entry"]
    blocks = list(_blocks(text))[-_MAX_BLOCKS:]
    if not names:
        found = _program(blocks)
        return [found] if found else []
    if stubs and _continues(text, entry):
        bodies = _continuations(text, blocks, stubs, entry)
        if bodies:
            return bodies
    found = _definition(blocks, names)
    if found:
        return [*(f"{stub}\n{found}" for stub in stubs), found]
    return _continuations(text, blocks, stubs, entry)


class _Block:
    """A stretch of a completion that may be Python.

    Attributes:
        rank: 2: fenced; 1: fenced as another language; 0: between fences.
        tree: None where it is no Python.
        defines: names that it defines, functions that say nothing aside.
        needs: names that it uses and nobody defines in it.
    """

    def __init__(self, source: str, rank: int) -> None:
        self.source, self.rank = source, rank
        self.tree = _parsed(source)
        body = self.tree.body if self.tree else []
        self.defines = {name for node in body if not _is_stub(node) for name in _names_of(node)}
        used = {inner.id for node in body for inner in ast.walk(node) if isinstance(inner, ast.Name)}
        self.needs = used - _bound(body) - set(vars(builtins))


def _parsed(source: str) -> ast.Module | None:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _blocks(text: str) -> Iterator[_Block]:
    """Every block, in order; a fence that is not Python as a whole gives the Python in it."""
    for source, rank in _stretches(text):
        source = _without_prompts(textwrap.dedent(source))
        block = _Block(source, rank)
        if rank and block.tree is not None:
            yield block
        else:
            yield from (_Block(chunk, rank) for chunk in _chunks(source))


def _stretches(text: str) -> Iterator[tuple[str, int]]:
    """The text between fences and in them, with the rank of a block."""
    lines = text.split("\n")
    prose: list[str] = []
    index = 0
    while index < len(lines):
        opening = _FENCE.match(lines[index])
        if opening is None:
            prose.append(_SPAN.sub(r"\1", lines[index]))
            index += 1
            continue
        yield "\n".join([*prose, _after_quote(opening["before"])]), 0
        prose = []
        content, rank, index = _fenced(lines, index, opening)
        yield content, rank
    yield "\n".join(prose), 0


def _fenced(lines: list[str], start: int, opening: re.Match[str]) -> tuple[str, int, int]:
    """Content of the fence that a line opens, its rank, and the line after it."""
    mark, info = opening["fence"], opening["info"]
    inline = info.partition(mark)
    if inline[1]:
        word, _, rest = inline[0].strip().partition(" ")
        return (rest if _is_language(word) and rest else inline[0].strip()), 2, start + 1
    quoted = ">" in opening["before"]
    head = [info] if _FIRST_LINE.match(info.strip()) else []
    language = "" if head else info.strip().strip("{}.").split(" ")[0].split(",")[0].lower()
    closing = (n for n in range(start + 1, len(lines)) if _closes(lines[n], mark))
    ends = list(itertools.islice(closing, _MAX_CLOSINGS))
    # A fence in a docstring closes nothing: of the next closing lines the first that leaves Python counts.
    body: list[str] = []
    for end in [*ends, *([] if ends else [len(lines)])]:
        body = [*head, *lines[start + 1 : end], *_before_mark(lines, end, mark)]
        body = [_QUOTE.sub("", line, count=1) for line in body] if quoted else body
        if _parsed(textwrap.dedent("\n".join(body))) is not None:
            return "\n".join(body), 1 if language in _NO_PYTHON else 2, end + 1
    end = ends[0] if ends else len(lines)
    body = [*head, *lines[start + 1 : end], *_before_mark(lines, end, mark)]
    body = [_QUOTE.sub("", line, count=1) for line in body] if quoted else body
    return "\n".join(body), 1 if language in _NO_PYTHON else 2, end + 1


def _closes(line: str, mark: str) -> bool:
    bare = _after_quote(line).strip()
    return bare.endswith(mark) and bare.count(mark[0] * 3) == 1


def _before_mark(lines: list[str], end: int, mark: str) -> list[str]:
    return [lines[end].partition(mark)[0]] if end < len(lines) else []


def _after_quote(line: str) -> str:
    return _QUOTE.sub("", line, count=1)


def _is_language(word: str) -> bool:
    return word.lower().startswith(("py", "ipython")) or word.lower() in _NO_PYTHON


def _without_prompts(source: str) -> str:
    """What was typed in a session of the interpreter."""
    lines = source.strip("\n").split("\n")
    if not lines[0].startswith(">>>"):
        return source
    return "\n".join(line[4:] for line in lines if line.startswith((">>>", "...")))


def _chunks(text: str) -> Iterator[str]:
    """Stretches of Python in prose, without the words among them that happen to be Python."""
    lines = text.split("\n")
    index = tries = 0
    while index < len(lines) and tries < _MAX_TRIES:
        if not _CODE_START.match(lines[index]):
            index += 1
            continue
        tries += 1
        source = _longest(_unindented(lines[index : index + _MAX_LINES]))
        if source is None:
            index += 1
            continue
        yield _only(source, _has_effect)
        index += source.count("\n") + 1


def _unindented(lines: list[str]) -> str:
    """Lines without the indentation of the first."""
    indent = lines[0][: len(lines[0]) - len(lines[0].lstrip())]
    return "\n".join(line.removeprefix(indent) for line in lines)


def _longest(source: str) -> str | None:
    """The longest beginning of a text that is Python, found by leaving out lines from the first error on."""
    lines = source.split("\n")
    for _ in range(_MAX_CUTS):
        if not any(line.strip() for line in lines):
            return None
        try:
            compile("\n".join(lines), "<completion>", "exec", dont_inherit=True)
            return "\n".join(lines)
        except SyntaxError as error:
            wrong = error.lineno or len(lines)
        except (ValueError, RecursionError, MemoryError):
            return None
        lines = lines[: min(max(wrong - 1, 0), len(lines) - 1)]
    return None


def _only(source: str, wanted: Callable[[ast.stmt], bool]) -> str:
    """A text without the statements of its outermost level that are not wanted."""
    tree = _parsed(source)
    if tree is None:
        return source
    lines = source.split("\n")
    for node in reversed(tree.body):
        if not wanted(node):
            lines[node.lineno - 1 : node.end_lineno] = ["" if node.col_offset == 0 else ";"]
    return "\n".join(lines)


def _has_effect(node: ast.stmt) -> bool:
    """It is no single word, comparison or `word: words` that prose may be."""
    if isinstance(node, ast.AnnAssign):
        return node.value is not None
    if not isinstance(node, ast.Expr):
        return True
    return any(isinstance(inner, ast.Call | ast.Await | ast.Constant) for inner in ast.walk(node))


def _is_definition(node: ast.stmt) -> bool:
    return isinstance(node, _KEPT) or (isinstance(node, ast.If) and "__name__" not in ast.unparse(node.test))


def _is_stub(node: ast.stmt) -> bool:
    """A function that says `...` or nothing."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    return all(
        isinstance(inner, ast.Expr) and isinstance(inner.value, ast.Constant) or isinstance(inner, ast.Pass)
        for inner in node.body
    )


def _names_of(node: ast.stmt) -> set[str]:
    """Names that a statement of the outermost level defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    inner = ast.walk(node) if not isinstance(node, ast.If) or _is_definition(node) else ()
    return {name for part in inner for name in _bound_by(part)}


def _bound(body: Sequence[ast.stmt]) -> set[str]:
    nodes = [inner for node in body for inner in ast.walk(node)]
    found = {node.arg for node in nodes if isinstance(node, ast.arg)}
    found |= {node.name for node in nodes if isinstance(node, ast.ExceptHandler) and node.name}
    return found | {name for node in nodes for name in _bound_by(node)}


def _bound_by(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return {node.id}
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    return set()


def _definition(blocks: Sequence[_Block], names: set[str]) -> str | None:
    """The last of the best blocks that define a name, with what they need of others."""
    telling = [block for block in blocks if names & block.defines]
    if not telling:
        return None
    best = max(block.rank for block in telling)
    main = [block for block in telling if block.rank == best][-1]
    return _with_needs(main, blocks, names)


def _with_needs(main: _Block, blocks: Sequence[_Block], names: set[str]) -> str:
    """A block after the definitions of other blocks that it needs, or that are asked for too."""
    chosen: list[int] = []
    at = blocks.index(main)
    missing = (main.needs | names) - main.defines
    nearest = [*range(at - 1, -1, -1), *range(at + 1, len(blocks))]
    while missing:
        name = missing.pop()
        found = next((n for n in nearest if name in blocks[n].defines or _imports_all(blocks[n])), None)
        if found is not None and found not in chosen:
            chosen.append(found)
            missing |= blocks[found].needs - main.defines
    return "\n".join([*(_only(blocks[n].source, _is_definition) for n in sorted(chosen)), main.source])


def _imports_all(block: _Block) -> bool:
    return "*" in block.defines


def _program(blocks: Sequence[_Block]) -> str | None:
    """The last of the blocks that, with what they need of others, do most of what a program does."""
    candidates = [block for block in blocks if block.tree is not None and block.tree.body]
    best, found = 0, None
    for block in candidates:
        source = _with_needs(block, candidates, set())
        worth = _worth(block, source)
        if worth >= best and worth > 0:
            best, found = worth, source
    return found


def _worth(block: _Block, source: str) -> int:
    """How much of a program a block is: it does something, reads, prints, is fenced."""
    assert block.tree is not None
    if not any(not isinstance(node, _DEFINITIONS) for node in block.tree.body) or "(" not in source:
        return 0
    runs = any(not _is_definition(node) and _has_effect(node) for node in block.tree.body)
    reads = re.search(r"\binput\b|\bstdin\b|\bopen\(0|\bfileinput\b|\bos\.read\b", source) is not None
    prints = re.search(r"\bprint\b|\bstdout\b|\bos\.write\b", source) is not None
    return 1 + 16 * prints + 8 * reads + 4 * runs + block.rank


def _continues(text: str, entry: str) -> bool:
    """It begins like the body of a function."""
    first = next((line for line in text.split("\n") if line.strip()), "")
    return first[:1] in (" ", "\t") and not re.match(rf"\s*(?:async\s+)?(?:def\s+{entry}\b|`|~)", first)


def _continuations(text: str, blocks: Sequence[_Block], stubs: Sequence[str], entry: str) -> list[str]:
    """The text, or a fenced block, as the body of the function that a prompt begins."""
    fenced = [source for source, rank in _stretches(text) if rank]
    before = next((source for source, rank in _stretches(text) if not rank and source.strip()), "")
    for body in [before] if _continues(text, entry) else [*reversed(fenced), before]:
        for stub in stubs:
            found = _continued(stub.rstrip(), body, entry)
            if found:
                return [found]
    return []


def _continued(stub: str, body: str, entry: str) -> str | None:
    """What a prompt and a body make: as they are, else without what follows the body and is no Python."""
    body = body.strip("\n").rstrip()
    shapes = (body, f"    {body}", textwrap.indent(textwrap.dedent(body), "    "))
    whole = [f"{stub}\n{shape}" for shape in shapes]
    for source in whole:
        if _compiles(source) and _has_body(source, entry):
            return _once(source, entry)
    whole += [f"{stub}\n{_indented_part(shape)}" for shape in shapes]
    begun = [found for source in whole if (found := _longest(source)) and _has_body(found, entry)]
    return _once(max(begun, key=len), entry) if begun else None


def _once(source: str, entry: str) -> str:
    """Definitions alone, without a second one of the function."""
    found: list[ast.stmt] = []

    def wanted(node: ast.stmt) -> bool:
        if entry in _names_of(node):
            found.append(node)
        return _is_definition(node)

    first = _only(source, wanted)
    if len(found) < 2:
        return first
    # `_only` goes from the end to the beginning.
    return "\n".join(first.split("\n")[: found[-2].lineno - 1 - len(_decorators(found[-2]))])


def _decorators(node: ast.stmt) -> list[ast.expr]:
    return getattr(node, "decorator_list", [])


def _compiles(source: str) -> bool:
    try:
        compile(source, "<completion>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _indented_part(body: str) -> str:
    """The lines of a body up to the first that is not indented."""
    lines = body.split("\n")
    end = next((n for n, line in enumerate(lines) if line.strip() and line[0] not in " \t"), len(lines))
    return "\n".join(lines[:end])


def _has_body(source: str, entry: str) -> bool:
    """The function does something: it has more than the text that says what it should do."""
    tree = _parsed(source)
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = (
        [node for node in ast.walk(tree) if isinstance(node, kinds) and node.name == entry] if tree else []
    )
    return bool(found) and not _is_stub(found[-1])

"""Layering and size: who may import whom, what is pure (D6), how long things get.

Reads the sources with `ast`; nothing is imported. A module that isn't written yet
is passed over. Each test names all offenders at once.
"""

import ast
import os
from typing import Dict, Iterator, List, Set, Tuple, Union

import pytest

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# Rooms, each in order: a module may import those before it in its room, and the rooms
# named. So there are no cycles, and the list is the map.
ROOMS: Dict[str, Tuple[List[str], List[str]]] = {
    # room: (its modules, rooms it may use)
    "core": (
        "conditions record effects decoding hashtree taskqueue workers waits probation "
        "matching facts component deaths blame mesh replica durable hands coordinator "
        "room whereabouts ghosts roster adding purge peers reasons rest node "
        "clairvoyants reports ghostnode letters".split(),
        [],
    ),
    "points": (["points", "descriptors"], []),
    "start": (["ownpath"], []),
    "wire": ("wire discovery net".split(), ["points"]),
    "disk": ("database journal home store".split(), ["points"]),
    "tasks": (
        "keeper taskscript slots shells places machine excess runs sandbox "
        "folder arrivals collection".split(),
        ["points"],
    ),
    "settings": ("cookie settings process loop".split(), []),
    "control": (
        "usage control taskform terminal choosing sweep listing queuetable inforce "
        "printed top completing steering waiting verbs clients".split(),
        ["core", "settings", "points"],
    ),
    "cluster": (
        "jar addresses links transfer shelf outputs batches workplace relaying "
        "post".split(),
        ["core", "points", "start", "wire", "disk", "tasks"],
    ),
    "letters": (
        ["filecalls", "sending", "doctor", "rotation"],
        "core wire settings control tasks".split(),
    ),
    "roles": (
        ["calls", "relay", "ghost", "comrade"],
        "core wire disk tasks settings control cluster letters start".split(),
    ),
}
MAY_IMPORT: Dict[str, Set[str]] = {
    module: set(modules[:i]).union(*(ROOMS[room][0] for room in rooms))
    for modules, rooms in ROOMS.values()
    for i, module in enumerate(modules)
}

PURE = tuple(ROOMS["core"][0])

# What can neither do I/O, nor read a clock, nor draw at random (hashlib: only hashes).
PURE_LIBRARY = set(
    "__future__ _blake2 _sha2 _sha256 abc array base64 binascii bisect collections "
    "copy enum functools hashlib heapq itertools json math operator string struct "
    "types typing zlib".split()
)
IMPURE_CALLS = {"open", "print", "input", "exec", "eval", "compile", "__import__"}

# Costly for a process that stays on an old machine; inside a rare function they may be.
HEAVY = set(
    "argparse asyncio copy dataclasses inspect logging random shlex shutil subprocess "
    "tempfile traceback multiprocessing unittest urllib http xml".split()
)

# What may stand at the top besides dot files and tests/. Those that DESIGN 3 names, and
# modules that say in their docstring why they are one more to know.
FILES = set(
    "README.md leoronic leoronic_utilities comrade.py node.py taskqueue.py "
    "conditions.py control.py store.py sandbox.py net.py ghost.py relay.py".split()
)
REASON = "Reason for this file"

# What only a comrade has: a ghost and a relay, on a machine with little memory, don't
# load it (0.6 MiB of memory).
OF_COMRADES = set(
    "matching replica durable coordinator room ghosts roster adding purge rest peers "
    "reasons node addresses links shelf comrade".split()
)
LIGHT = {"ghost": OF_COMRADES - {"addresses", "shelf"}, "relay": OF_COMRADES}

FUNCTION_LINES_MAX = 60
CLASS_LINES_MAX = 300
MODULE_LINES_MAX = 500
# Where the rule would make the code worse, and why.
LONGER_MODULES = {
    "comrade": 835,  # the rim: one short method for each effect and answer
    "ghost": 765,  # the same
    "record": 525,  # what a record is, its order and its one wire form: one table
    "wire": 560,  # a row for each kind of frame: one catalogue, in one place
    "sandbox": 505,  # one lifecycle, a short method for each step and its answer
    "verbs": 600,  # one function a utility; two files would only hide each other
}
LONGER_CLASSES = {
    "Comrade": 580,  # the same: many methods of a few lines, no decisions
    "Ghost": 605,  # the same
    "Node": 345,  # one method for each message, a line or two each
    "GhostNode": 345,  # the same
    "Matcher": 390,  # one index: its parts make no sense without each other
    "Journal": 350,  # one connection, which only its own thread may touch
    "Queue": 335,  # the one way in and out of all records
    "Durable": 340,  # D10 in one place, with what of it takes many turns
    "Mesh": 345,  # membership is one set of rules over one set of facts
    "Peers": 315,  # a handler for each kind of frame
    "Replica": 315,  # reconciling is one conversation, from both its ends
    "Sandbox": 430,  # one lifecycle, a short method for each step and its answer
    "Links": 400,  # the same for what can happen between two links
}
MORE_ARGUMENTS = {"Sandbox.__init__": 9}  # seams one function wide (STYLE 10)
ARGUMENTS_MAX = 6

Function = (ast.FunctionDef, ast.AsyncFunctionDef)


def _modules() -> List[str]:
    paths = (os.path.join(TOP, name + ".py") for name in MAY_IMPORT)
    return [os.path.basename(path)[:-3] for path in paths if os.path.exists(path)]


MODULES = _modules()


def _text(module: str) -> str:
    with open(os.path.join(TOP, module + ".py"), encoding="utf-8") as file:
        return file.read()


def _tree(module: str) -> ast.Module:
    return ast.parse(_text(module))


def _imported(tree: ast.AST) -> Iterator[Tuple[str, int]]:
    """Yield the first part of each imported name, and its line.

    What is imported for the type checker alone doesn't count.
    """
    for node in _without_type_checking(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name.split(".")[0], node.lineno
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "").split(".")[0], node.lineno


def _without_type_checking(tree: ast.AST) -> Iterator[ast.AST]:
    yield tree
    for node in ast.iter_child_nodes(tree):
        if not _is_for_type_checking(node):
            yield from _without_type_checking(node)


def _is_for_type_checking(node: ast.AST) -> bool:
    test = getattr(node, "test", None)
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"


def _imported_at_start(tree: ast.AST) -> Iterator[Tuple[str, int]]:
    """Yield what is imported when the module is: not what stands in functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from _imported(ast.Module(body=[node], type_ignores=[]))
        elif not isinstance(node, Function) and not _is_for_type_checking(node):
            yield from _imported_at_start(node)


def _lines(node: Union[ast.AST, ast.stmt]) -> int:
    """Count the lines of a definition, without its decorators."""
    within = list(ast.walk(node))
    # Python 3.7 has no end_lineno; what starts last is close enough there.
    ends = [getattr(each, "end_lineno", None) or _line(each) for each in within]
    return max(ends) - _line(node) + 1


def _line(node: ast.AST) -> int:
    return getattr(node, "lineno", 0)


def _arguments(function: ast.AST) -> int:
    given = function.args  # type: ignore[attr-defined]  # only called for functions
    names = [arg.arg for arg in getattr(given, "posonlyargs", []) + given.args]
    if names[:1] in (["self"], ["cls"], ["_cls"]):
        del names[0]
    return len(names) + len(given.kwonlyargs)


def _report(offenders: List[str]) -> None:
    assert not offenders, "\n" + "\n".join(offenders)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_its_layer_may(module):
    allowed = MAY_IMPORT[module]
    ours = set(MAY_IMPORT) - allowed
    _report(
        [
            f"{module}.py:{line} imports {name}; it may import {sorted(allowed)}"
            for name, line in _imported(_tree(module))
            if name in ours or name.startswith(".")
        ]
    )


@pytest.mark.parametrize("module", [name for name in PURE if name in MODULES])
def test_the_core_can_do_no_io_and_read_no_clock_d6(module):
    tree = _tree(module)
    allowed = PURE_LIBRARY | set(MAY_IMPORT)
    offenders = [
        f"{module}.py:{line} imports {name}; a pure module may not"
        for name, line in _imported(tree)
        if name not in allowed
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in IMPURE_CALLS:
                offenders.append(
                    f"{module}.py:{node.lineno} calls {node.func.id}; "
                    "a pure module may not"
                )
    _report(offenders)


@pytest.mark.parametrize("module", MODULES)
def test_what_a_process_rarely_needs_is_not_imported_at_its_start(module):
    _report(
        [
            f"{module}.py:{line} imports {name} at the start; do so where used"
            for name, line in _imported_at_start(_tree(module))
            if name in HEAVY
        ]
    )


def _loaded_with(module: str) -> Dict[str, str]:
    """Give all modules that a module's start loads, and how it comes to each."""
    found, left = {module: module}, [module]
    while left:
        by = left.pop()
        for name, _ in _imported_at_start(_tree(by)):
            if name in MODULES and name not in found:
                found[name] = "%s, %s" % (found[by], name)
                left.append(name)
    return found


@pytest.mark.parametrize("module", [name for name in LIGHT if name in MODULES])
def test_a_light_process_loads_nothing_of_a_comrade(module):
    loaded = _loaded_with(module)
    _report([loaded[name] for name in sorted(LIGHT[module] & set(loaded))])


@pytest.mark.parametrize("module", MODULES)
def test_a_module_opens_with_its_docstring(module):
    first, _, rest = _text(module).partition("\n")
    opening = rest if first.startswith("#!") else first
    assert opening.startswith('"""'), f"{module}.py opens with something else"
    assert len((ast.get_docstring(_tree(module)) or "").splitlines()) > 1


def test_nothing_outgrows_its_size():
    offenders = []
    for module in MODULES:
        lines = len(_text(module).splitlines())
        most = LONGER_MODULES.get(module, MODULE_LINES_MAX)
        if lines > most:
            offenders.append(f"{module}.py has {lines} lines, at most {most}")
        for node in ast.walk(_tree(module)):
            where = f"{module}.py:{_line(node)} {getattr(node, 'name', '')}"
            if isinstance(node, ast.ClassDef):
                most = LONGER_CLASSES.get(node.name, CLASS_LINES_MAX)
                if _lines(node) > most:
                    lines = _lines(node)
                    offenders.append(f"{where} has {lines} lines, at most {most}")
            if not isinstance(node, Function):
                continue
            if _lines(node) > FUNCTION_LINES_MAX:
                lines, most = _lines(node), FUNCTION_LINES_MAX
                offenders.append(f"{where} has {lines} lines, at most {most}")
            allowed = MORE_ARGUMENTS if module == "sandbox" else {}
            if _arguments(node) > max([ARGUMENTS_MAX, *allowed.values()]):
                count, most = _arguments(node), ARGUMENTS_MAX
                offenders.append(f"{where} has {count} arguments, at most {most}")
    _report(offenders)


def test_the_top_of_the_folder_shows_the_program_and_nothing_else():
    names = {name for name in os.listdir(TOP) if not name.startswith(".")}
    others = names - FILES - {"tests", "__pycache__"}
    offenders = []
    for name in sorted(others):
        module, _, ending = name.rpartition(".")
        if ending == "py":
            text = ast.get_docstring(_tree(module))
        else:
            with open(os.path.join(TOP, name), encoding="utf-8") as file:
                text = file.read()
        if REASON not in " ".join((text or "").split()):
            offenders.append(f"{name} is no file of DESIGN 3 and gives no reason")
    _report(offenders)


def test_every_module_has_its_layer():
    found = {name[:-3] for name in os.listdir(TOP) if name.endswith(".py")}
    _report([f"{name}.py has no row in MAY_IMPORT" for name in found - set(MAY_IMPORT)])

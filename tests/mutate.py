"""Breaks lines of the package and the pages, one at a time and at random, and says which of them no test noticed.

python -m tests.mutate --lines 60 --seed 1
python -m tests.mutate --lines 10 --seed 2 emacore/averaging emacore/ema.py

It works on a copy of the checkout.  mutmut breaks functions only, and pages have none; cosmic-ray breaks the checkout
itself and knows one command for all of it.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: Imported once, and not again for each line that is broken.
LIBRARIES = ("altair", "hypothesis", "pandas", "scipy.stats", "sklearn.datasets", "streamlit.testing.v1", "torch")
#: What is asked of all modules.
OF_ALL = ["tests/test_conventions.py", "tests/pages/test_said.py"]
SWAPS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.MatMult: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


@dataclass(frozen=True)
class Mutant:
    """A part of a source file, from ``start`` to ``end`` in bytes, what stands there instead, and whose part it is."""

    line: int
    start: int
    end: int
    text: str
    owner: str


def mutants(source: str) -> list[Mutant]:
    """All that can be broken: an operator, a condition, a number, the order of two arguments, a statement."""
    starts = [0]
    for line in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []

    def enter(node: ast.AST, broken: ast.AST | str) -> None:
        text = broken if isinstance(broken, str) else f"({ast.unparse(broken)})"
        begin = starts[node.lineno - 1] + node.col_offset
        found.append(Mutant(node.lineno, begin, starts[node.end_lineno - 1] + node.end_col_offset, text, owner))

    def changed(node: ast.AST, **fields: object) -> ast.AST:
        other = copy.copy(node)
        for name, value in fields.items():
            setattr(other, name, value)
        return other

    def walk(node: ast.AST) -> None:
        match node:
            case ast.Compare(ops=[op]) if type(op) in SWAPS:
                enter(node, changed(node, ops=[SWAPS[type(op)]()]))
            case ast.BinOp(op=op) | ast.BoolOp(op=op) if type(op) in SWAPS:
                enter(node, changed(node, op=SWAPS[type(op)]()))
            case ast.UnaryOp(op=ast.Not() | ast.USub()):
                enter(node, node.operand)
            case ast.Constant(value=bool(value)):
                enter(node, str(not value))
            case ast.Constant(value=int(value)):
                enter(node, str(value + 1))
            case ast.Constant(value=float(value)):
                enter(node, repr(1.5 * value if value else 0.5))
            case ast.Call(args=[first, second, *rest]) if not any(isinstance(a, ast.Starred) for a in node.args):
                enter(node, changed(node, args=[second, first, *rest]))
            case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Raise():
                enter(node, "pass")
        if isinstance(node, ast.If | ast.IfExp | ast.While) and ast.unparse(node.test) != "TYPE_CHECKING":
            enter(node.test, ast.UnaryOp(ast.Not(), node.test))
        for name, value in ast.iter_fields(node):
            if name not in ("annotation", "returns"):  # they are never evaluated
                for child in value if isinstance(value, list) else [value]:
                    if isinstance(child, ast.AST) and not hidden(child):
                        walk(child)

    owner = ""
    for statement in ast.parse(source).body:
        owner = getattr(statement, "name", "")
        walk(statement)
    return found


def hidden(node: ast.AST) -> bool:
    """Whether nothing in here is broken: f-strings do not tell places, and strict=True finds what never happens."""
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.keyword) and node.arg == "strict")


def test_files(module: Path, owner: str, root: Path) -> tuple[list[str], list[str]]:
    """The test files that belong to a module by the layout, with those beside them that name it; and others.

    Where the layout has none these are all that name it; for widgets, those of the pages that use it.  The others,
    which are asked where the first notice nothing, name the module, import the function or class that is broken
    (``owner``), or lie beside; for widgets, they are also those of all other pages.
    """
    if module.parts[0] == "pages":
        return [f"tests/pages/test_{module.stem}.py"], ["tests/pages/test_app.py", "tests/pages/test_link.py", *OF_ALL]
    mirrored = root / "tests" / Path(*module.parts[1:-1])
    dotted = ".".join(module.with_suffix("").parts)
    named = re.compile(rf"{dotted}\b|from {dotted.rpartition('.')[0]} import .*\b{module.stem}\b")
    everywhere = [path for path in sorted((root / "tests").rglob("test_*.py")) if "browser" not in path.parts]
    naming = [path for path in everywhere if named.search(path.read_text())]
    own = [path for path in everywhere if path == mirrored / f"test_{module.stem}.py"]
    beside = [path for path in naming if path.parent == mirrored != root / "tests"]
    pages = [root / "tests/pages" / f"test_{page.stem}.py" for page in using_pages(module, root)]
    found = list(dict.fromkeys([*own, *beside, *pages] or naming))
    imported = re.compile(rf"from emacore\b.* import [^#\n]*\b{owner}\b")
    using = [path for path in everywhere if owner and imported.search(path.read_text())]
    # A page's test may go on to another page, with what was opened there.
    all_pages = sorted((root / "tests/pages").glob("test_*.py")) if pages else []
    others = dict.fromkeys([*naming, *using, *all_pages, *(root / name for name in OF_ALL)])
    if mirrored != root / "tests":
        others |= dict.fromkeys(path for path in everywhere if path.parent == mirrored)
    return [str(path.relative_to(root)) for path in found], [
        str(path.relative_to(root)) for path in others if path not in found
    ]


def using_pages(module: Path, root: Path) -> list[Path]:
    """The pages that import a module of widgets, or what imports it."""
    if module.parts[1] != "widgets":
        return []
    widgets, pages = sorted((root / "emacore/widgets").glob("*.py")), sorted((root / "pages").glob("*.py"))
    known = {module.stem}
    while True:
        named = re.compile(rf"emacore\.widgets\.({'|'.join(map(re.escape, sorted(known)))})\b")
        more = {path.stem for path in widgets if named.search(path.read_text())} - known
        if not more:
            return [path for path in pages if named.search(path.read_text())]
        known |= more


def passed(files: list[str], root: Path, timeout: float) -> bool:
    """Whether the tests of some files of the copy pass in time."""
    process = multiprocessing.get_context("fork").Process(target=run, args=(files, root))
    process.start()
    process.join(timeout)
    with suppress(ProcessLookupError):  # processes of joblib's, which tests leave, wait for minutes for more to do
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)


def run(files: list[str], root: Path) -> None:
    """Run tests of the copy in a process of its own, where the libraries are imported already."""
    os.setsid()
    os.chdir(root)
    os.environ |= {"CI": "true", "EMACORE_HOME": str(root / "home")}
    sys.dont_write_bytecode = True  # two changes of one second look the same to what is cached
    sys.path[:] = [str(root), *(path for path in sys.path if Path(path).resolve() != ROOT)]
    for name in list(sys.modules):
        if name.partition(".")[0] in ("emacore", "tests"):
            del sys.modules[name]
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-m", "not browser and not long", *files]))


def copied(root: Path) -> None:
    """The checkout's files, as they are now, in a folder of their own."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)


def timed(name: str) -> tuple[str, float | None]:
    """How many seconds the tests of one file take as they are; None where they fail."""
    start = time.monotonic()
    return name, time.monotonic() - start if passed([name], own_copy(), 600) else None


def tried(module: Path, mutant: Mutant, asked: list[list[str]], timeout: float) -> tuple[Path, Mutant, str, bool]:
    """A mutant, what it takes the place of, and whether a test noticed it, of one list of files or the next."""
    root = own_copy()
    source = (root / module).read_bytes()
    try:
        (root / module).write_bytes(source[: mutant.start] + mutant.text.encode() + source[mutant.end :])
        noticed = any(files and not passed(files, root, timeout) for files in asked)
    finally:
        (root / module).write_bytes(source)
    return module, mutant, source[mutant.start : mutant.end].decode(), noticed


def own_copy() -> Path:
    """The copy of the checkout that the process which asks has for itself."""
    root = Path(os.environ["MUTANTS"]) / str(os.getpid())
    if not root.exists():
        copied(root)
    return root


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=60, help="how many lines are broken")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="how many are tried at a time")
    parser.add_argument("paths", nargs="*", default=["emacore", "pages"], help="files and folders to choose them from")
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in LIBRARIES:
        importlib.import_module(name)
    rng = random.Random(asked.seed)
    places: dict[tuple[Path, int], list[Mutant]] = {}
    for path in asked.paths:
        for file in sorted((ROOT / path).rglob("*.py")) if (ROOT / path).is_dir() else [ROOT / path]:
            for mutant in mutants(file.read_text()):
                places.setdefault((file.relative_to(ROOT), mutant.line), []).append(mutant)
    chosen = [
        (place[0], rng.choice(places[place])) for place in rng.sample(sorted(places), min(asked.lines, len(places)))
    ]
    files = {(module, mutant.owner): test_files(module, mutant.owner, ROOT) for module, mutant in chosen}
    unnoticed = 0
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(asked.jobs, multiprocessing.get_context("fork")) as pool,
    ):
        os.environ["MUTANTS"] = folder
        named = {name for both in files.values() for names in both for name in names}
        seconds = dict(pool.map(timed, sorted(named)))
        for name in [name for name, took in seconds.items() if took is None]:
            print(f"{name} fails as it is and is left out", flush=True)
        trying = []
        for module, mutant in chosen:
            both = [[name for name in names if seconds[name] is not None] for names in files[module, mutant.owner]]
            timeout = 60 + 4 * sum(seconds[name] or 0 for names in both for name in names)
            trying.append(pool.submit(tried, module, mutant, both, timeout))
        for number, done in enumerate(as_completed(trying), 1):
            module, mutant, was, noticed = done.result()
            unnoticed += not noticed
            print(f"{number:3} {'noticed ' if noticed else 'UNNOTICED'} {module}:{mutant.line}  ", end="")
            print(f"{' '.join(was.split())}  ->  {mutant.text}", flush=True)
    print(f"{unnoticed} of {len(chosen)} unnoticed")


if __name__ == "__main__":
    main()

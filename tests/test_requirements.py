import ast
import re
import sys
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OWN = {"emacore", "tests", "benchmarks", "pages", "app"}


def listed(file):
    """The distributions that a requirements file names, and those of the files that it takes in."""
    found = set()
    for line in (ROOT / file).read_text().splitlines():
        if line.startswith("-r "):
            found |= listed(line.removeprefix("-r "))
        elif line.strip():
            found.add(normal(re.split(r"[=<>~!;\[ ]", line)[0]))
    return found


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def homes():
    """The distributions of each module that is installed; looking through them takes seconds."""
    return packages_distributions()


def needed(folder):
    """What the sources in a folder import, or read the files of, by its distribution."""
    modules, names = set(), set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules.add(str(node.module).partition(".")[0])
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "distribution":
                names.add(ast.literal_eval(node.args[0]))
    names |= {homes().get(module, [module])[0] for module in modules - set(sys.stdlib_module_names) - OWN}
    return {normal(name) for name in names}


@pytest.mark.parametrize(
    ("file", "folders"),
    [("requirements.txt", ["pages", "emacore/widgets"]), ("requirements-dev.txt", ["tests", "emacore", "benchmarks"])],
)
def test_one_file_installs_all_that_is_imported(file, folders):
    missing = set().union(*map(needed, folders)) - listed(file)
    assert not missing


def test_the_gate_installs_that_file_and_no_more_than_what_installs_it():
    calls = re.findall(r"\b(pip|uv) ([\w.-]+(?: [\w.-]+)*)", (ROOT / ".ci" / "test").read_text().split("\n}\n")[1])
    assert calls == [("pip", "uv"), ("uv", "-r requirements-dev.txt"), ("pip", "-r requirements-dev.txt")]

"""What docs/contributing.md asks of tests."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent
PACKAGE = ROOT / "emacore"
#: Folders whose modules are tested through what they make together: pictures, and pages.
TOGETHER = ("charts/", "widgets/")
SOURCES = {path.relative_to(TESTS).as_posix(): path.read_text() for path in sorted(TESTS.rglob("*.py"))}
#: A task in one file: it is shown as it stands, so others take it from there.
EXAMPLE = "tests.training.test_second_task"


def test_only_waiting_for_a_condition_sleeps():
    waits = re.compile(r"\bsleep\(|wait_for_timeout\(")
    assert [name for name, source in SOURCES.items() if waits.search(source)] == ["helpers.py"]


def test_what_tests_share_is_in_no_test_module():
    for name, source in SOURCES.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("tests"):
                modules = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
                shared = {module for module in modules if re.search(r"\.test_\w+$", module) and exists(module)}
                assert shared <= {EXAMPLE}, name


def exists(module):
    return f"{module.removeprefix('tests.').replace('.', '/')}.py" in SOURCES


def test_everything_in_a_browser_is_marked():
    for name, source in SOURCES.items():
        if name.startswith("browser/test_"):
            assert "pytestmark = pytest.mark.browser" in source, name


def test_each_module_has_its_tests_where_it_lies():
    modules = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    ours = {name for name in modules if not (name.startswith(TOGETHER) or name.endswith("__.py"))}
    assert len(ours) > 40
    tests = {name.parent.joinpath(f"test_{name.name}").as_posix() for name in map(Path, ours)}
    assert not tests - set(SOURCES)


def test_headings_do_not_skip_a_level():
    for path in [*ROOT.glob("pages/*.py"), *ROOT.glob("emacore/widgets/*.py")]:
        assert "st.subheader(" not in path.read_text(), f"{path.name}: st.title is h1, st.header h2, st.subheader h3"


def test_a_choice_of_one_cannot_be_emptied():
    """A click on what is chosen would leave None, which no page draws."""
    for path in [*ROOT.glob("pages/*.py"), *ROOT.glob("emacore/widgets/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and re.search(r"\.(segmented_control|pills)$", ast.unparse(node.func)):
                given = {one.arg: ast.unparse(one.value) for one in node.keywords}
                one_or_several = (given.get("required"), given.get("selection_mode"))
                assert one_or_several in {("True", None), (None, "'multi'")}, f"{path.name}:{node.lineno}"


def test_each_page_sends_a_new_servers_first_visitor_through_the_app():
    """A link to a page may be a server's first request: before anything is drawn, the page looks how it is run."""
    pages = sorted(ROOT.glob("pages/*.py"))
    assert len(pages) == 10
    for path in pages:
        calls = [ast.unparse(node) for node in ast.parse(path.read_text()).body if isinstance(node, ast.Expr)]
        assert next(call for call in calls if call.endswith(")")) == "through_app()", path.name

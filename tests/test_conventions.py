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


def test_one_of_several_is_always_chosen():
    for path in [*ROOT.glob("pages/*.py"), *ROOT.glob("emacore/widgets/*.py")]:
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and ast.unparse(call.func).endswith((".segmented_control", ".pills")):
                given = {key.arg: ast.unparse(key.value) for key in call.keywords}
                several = given.get("selection_mode") == "'multi'"
                assert several or given.get("required") == "True", f"{path.name}: {given['key']} can be left empty"


def test_pages_run_themselves_anew_by_the_one_function_that_takes_nobody_back():
    for path in [ROOT / "app.py", *ROOT.glob("pages/*.py"), *ROOT.glob("emacore/widgets/*.py")]:
        assert path.name == "page.py" or "st.rerun(" not in path.read_text(), f"{path.name}: run_anew()"


def test_what_is_kept_shows_no_name_of_a_function_while_it_is_made():
    """Streamlit says "Running plan_of(...)" of what it keeps, unless it is told what to say, or nothing."""
    for path in [*ROOT.glob("pages/*.py"), *ROOT.glob("emacore/widgets/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            for one in getattr(node, "decorator_list", []):
                if ast.unparse(one).startswith("st.cache_"):
                    said = [key.value.value for key in getattr(one, "keywords", []) if key.arg == "show_spinner"]
                    assert said == [False] or (said and isinstance(said[0], str)), f"{path.name}: {node.name}"


def test_each_page_sends_a_new_servers_first_visitor_through_the_app():
    """A link to a page may be a server's first request: before anything is drawn, the page looks how it is run."""
    pages = sorted(ROOT.glob("pages/*.py"))
    assert len(pages) == 10
    for path in pages:
        calls = [ast.unparse(node) for node in ast.parse(path.read_text()).body if isinstance(node, ast.Expr)]
        assert next(call for call in calls if call.endswith(")")) == "through_app()", path.name

"""Text of others in Markdown: it says what it says, and nothing of it is followed, loaded or drawn."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emacore.widgets.page import escaped
from tests.widgets.conftest import FOUND_BEFORE, FOUND_LATER, read

JOINER = "\N{WORD JOINER}"
PLANTED = [
    "[x](http://evil)",
    "![x](http://evil/p.png)",
    "<img src=http://evil/p.png>",
    "<http://evil>",
    ":material/x:",
    ":red[x]",
    ":smile:",
    ":+1:",
    "$x$",
    "$$x$$",
    "**x** *x* _x_ __x__ ~~x~~ `x`",
    "http://evil.com www.evil.com me@evil.com",
    "# x",
    "- x",
    "1. x",
    "> x",
    "---",
    "x\n\n# y",
    "x\n===",
    "&lt;b&gt; &#91;x]",
    "\\[x](http://evil)",
    "[x][y] [^1]",
]


@pytest.mark.parametrize("text", PLANTED)
def test_what_is_planted_stays_text(text):
    assert_plain(text)
    assert_plain(f"before {text} after")
    assert escaped(text) != text


@given(st.text(st.sampled_from("ab1 \n\t\\`*_[]()<>#+-.!|~$:&@/=^{}'\"wh;,\u00e4"), max_size=40))
def test_any_text_stays_text(text):
    assert_plain(text)


def assert_plain(text):
    blocks, parts, found = read(escaped(text))
    assert blocks <= {"paragraph_open", "inline", "paragraph_close"}
    assert parts <= {"text"}
    assert found.replace(JOINER, "") == " ".join(text.split())
    assert not FOUND_LATER.search(found)
    assert not FOUND_BEFORE.search(escaped(text))


@pytest.mark.parametrize("text", ["inv_gamma = 2/3 (at most 5 %)", "not a schedule: 'x'", "-inf", "a < b", "min_value"])
def test_plain_words_are_left_alone(text):
    assert escaped(text).replace("\\<", "<") == text


def test_numbers_and_errors_can_be_told():
    assert escaped(3) == "3"
    assert escaped(ValueError("[x]")) == "\\[x\\]"

import os
import subprocess
import sys

import click
import pytest

from emacore.cli.options import Count, tried


@pytest.mark.parametrize(("text", "value"), [("7", 7), ("1e3", 1000), ("1_000", 1000), ("2.0", 2)])
def test_counts_as_people_write_them(text, value):
    assert Count(1, 1000).convert(text, None, None) == value


@pytest.mark.parametrize("text", ["", "0", "1001", "1.5", "nan", "inf", "x", "1e400", "9" * 5000])
def test_what_is_no_count_within_bounds_is_told(text):
    with pytest.raises(click.BadParameter, match="whole number|must be from 1 to 1,000"):
        Count(1, 1000).convert(text, None, None)


def test_an_output_is_tried_and_left_as_it_was(tmp_path):
    for name, content in (("there", "mine"), ("new", None)):
        path = tmp_path / name
        if content:
            path.write_text(content)
        assert tried(None, None, str(path)) == str(path)
        assert path.exists() == bool(content)
        assert not content or path.read_text() == content
    assert tried(None, None, "-") is None
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert tried(None, None, str(pipe)) == str(pipe)
    for wrong in (tmp_path / "no" / "file", tmp_path / "there" / "file", "a\0b"):
        with pytest.raises(click.BadParameter, match="cannot be written"):
            tried(None, None, str(wrong))


def test_the_options_need_no_pandas():
    code = "import sys, emacore.cli.options; sys.exit('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

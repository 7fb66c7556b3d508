import os
import subprocess
import sys
from dataclasses import fields

import click
import pytest
from click.testing import CliRunner

from emacore.averaging.schedules import FAMILIES
from emacore.cli.commands import cli
from emacore.cli.options import Count, Number, WithSettings, tried


@pytest.mark.parametrize(("text", "value"), [("7", 7), ("1e3", 1000), ("1_000", 1000), ("2.0", 2)])
def test_counts_as_people_write_them(text, value):
    assert Count(1, 1000).convert(text, None, None) == value


@pytest.mark.parametrize("text", ["", "0", "1001", "1.5", "nan", "inf", "x", "1e400", "9" * 5000])
def test_what_is_no_count_within_bounds_is_told(text):
    with pytest.raises(click.BadParameter, match="whole number|must be from 1 to 1,000"):
        Count(1, 1000).convert(text, None, None)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "-0.1", "1e400", "x"])
def test_a_number_is_finite_and_within_bounds(text):
    assert Number(0).convert("0.5", None, None) == 0.5
    with pytest.raises(click.BadParameter):
        Number(0).convert(text, None, None)


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


def test_the_help_of_what_trains_lists_the_settings_and_the_families():
    told = click.unstyle(WithSettings("train").get_help(click.Context(WithSettings("train"))))
    settings, families = (told.index(f"\n{title}:\n") for title in ("Settings, with their defaults", "Schedules"))
    assert "optimizer.learning_rate" in told[settings:families]
    assert "InversePower" in told[families:]


def options(command):
    if isinstance(command, click.Group):
        return [option for one in command.commands.values() for option in options(one)]
    return [one for one in command.params if isinstance(one, click.Option)]


def test_the_help_tells_what_each_setting_of_each_family_is_by_default():
    told = " ".join(CliRunner().invoke(cli, ["schedule", "--help"]).output.partition("Schedules:")[2].split())
    starts = [told.index(f"{name} {family.label}.") for name, family in FAMILIES.items()] + [told.index("all of them")]
    shared = told[starts[-1] :]
    for family, start, stop in zip(FAMILIES.values(), starts, starts[1:], strict=False):
        for setting in fields(family):
            own, everybodys = (f"{setting.name} = {setting.default}" in part for part in (told[start:stop], shared))
            assert own or (everybodys and f"{setting.name} =" not in told[start:stop]), (family, setting.name)


def test_the_help_of_each_option_tells_what_it_is_by_default():
    with_default = [one for one in options(cli) if one.default and not one.is_flag and one.help]
    silent = [one.name for one in with_default if isinstance(one.default, str | int | float) and not one.show_default]
    assert {"seeds", "steps", "suffix"} <= {one.name for one in with_default}
    assert silent == []


def test_the_options_need_no_pandas():
    code = "import sys, emacore.cli.options; sys.exit('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

import csv

import pytest
import torch
from click.testing import CliRunner

from emacore.cli.commands import cli


@pytest.fixture
def folder(tmp_path):
    weights = torch.zeros(400)
    average = weights.clone()
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 201):
        weights = weights + torch.randn(400, generator=generator)
        average = torch.lerp(average, weights, 0.01)
        if step in (120, 160, 200):
            contents = {"model": {"w": weights}, "model_ema": {"w": average}, "global_step": step}
            torch.save(contents, tmp_path / f"c{step}.pt")
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(cli, [str(one) for one in arguments])


def test_what_an_average_did_is_told_and_written(folder):
    table = folder / "decays.csv"
    found = run("diagnose", folder, "--configured", "Constant(beta=0.99)", "-o", table)
    assert found.exit_code == 0, found.output
    assert found.stdout.startswith("Nothing wrong was found.\nFrom step 120 to 160 a step had decay 0.9")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [(row["from_step"], row["to_step"]) for row in rows] == [("120.0", "160.0"), ("160.0", "200.0")]
    for row in rows:
        assert float(row["low"]) < 0.99 < float(row["high"])
        assert float(row["configured"]) == pytest.approx(0.99)
    other = run("diagnose", folder / "c120.pt", folder / "c200.pt", "--configured", "Constant(beta=0.9999)")
    assert "Not as configured: from step 120 to 200 the average kept" in other.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--configured", "Window(size=3)"], 2, "a window has no decays"),
        (["--average", "nope"], 1, "there is no section 'nope'; there are 'model', 'model_ema'"),
    ],
)
def test_what_does_not_go_is_a_sentence(folder, arguments, code, message):
    found = run("diagnose", folder, *arguments)
    assert found.exit_code == code
    assert message in found.output

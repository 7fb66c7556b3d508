"""What the README promises runs."""

import importlib
import re
import shlex
from dataclasses import replace
from pathlib import Path

import torch
from click.testing import CliRunner
from torch import nn

import emacore
from benchmarks import pictures
from emacore.averaging.advice import Run, advise, half_life_in, steps_of_samples
from emacore.averaging.code import to_code
from emacore.averaging.families import Constant, InversePower, PowerFunction
from emacore.cli.commands import cli
from emacore.experiments.article_study import in_words, shipped
from emacore.snippets import snippets
from emacore.tasks.regression.config import RunConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_its_code_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = nn.Linear(2, 1)

    def train_on(batch):
        nn.init.constant_(model.weight, batch)

    names = {
        "model": model,
        "other_model": nn.Linear(2, 1),
        "batches": [1.0, 2.0, 3.0],
        "train_on": train_on,
        "x": torch.ones(1, 2),
        "validate": print,
        "my_accuracy": lambda tensors: float(tensors["weight"].mean()),
    }
    whole, asked = emacore.train, []
    monkeypatch.setattr(
        emacore,
        "train",
        lambda config, **kept: asked.append(config) or whole(replace(config, max_epochs=3), **kept),
    )
    for block in BLOCKS:
        exec(block, names)
    assert asked == [RunConfig(seed=1)]
    assert names["result"].history["epoch"].tolist() == [1, 2, 3]
    assert names["prediction"].shape == (1, 1)


def test_the_code_on_checkpoints_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "checkpoints.md").read_text()
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, {})
    assert sorted(path.name for path in (tmp_path / "merged").glob("*.pt")) == ["decay.pt", "power.pt", "window.pt"]
    for arguments in re.findall(r"^    python -m emacore (.*)$", text, re.MULTILINE)[:3]:
        done = CliRunner().invoke(cli, shlex.split(arguments))
        assert done.exit_code == 0, done.output


def test_all_that_it_imports_is_on_the_public_face():
    imports = [line for block in BLOCKS for line in block.splitlines() if "import " in line]
    assert len(imports) >= 5
    assert all(line.startswith("from emacore import ") for line in imports)
    names = {name.strip() for line in imports for name in line.removeprefix("from emacore import ").split(",")}
    assert names <= set(emacore.__all__)
    assert sorted(emacore.__all__) == sorted(emacore._HOMES)
    for name in emacore.__all__:
        assert getattr(emacore, name).__name__ == name


def test_the_gate_calls_its_test_command():
    assert "    bash .ci/test\n" in README
    assert "bash .ci/test" in (ROOT / ".ci/run").read_text()
    assert "requirements-dev.txt" in (ROOT / ".ci/test").read_text()


def test_what_it_says_of_the_articles_experiment_follows_the_shipped_study():
    said = " ".join(README.split())
    for sentence in in_words(shipped()[0]):
        assert f"- {sentence} " in said, sentence


def test_what_it_names_exists():
    for path in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / path).is_file(), path


def test_its_benchmarks_start_as_it_says():
    names = set(re.findall(r"python -m (benchmarks\.\w+)", README))
    assert len(names) >= 8
    for name in sorted(names):
        importlib.import_module(name)


RUNS = {
    "diffusion": Run(400_000, trained="diffusion", batch=256),
    "ImageNet": Run(
        steps_of_samples(1_281_167, 1024, 90),
        trained="image classifier",
        rate="cosine or linear to zero",
        batch=1024,
        epochs=90,
    ),
    "language": Run(100_000, trained="language model", rate="warm-up, stable, decay"),
}


def test_its_common_settings_are_those_that_are_advised():
    for word, run in RUNS.items():
        first = advise(run).settings[0]
        row = next(line for line in README.splitlines() if line.startswith(f"| {word}"))
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[1:] == [
            f"`{to_code(first.schedule)}`",
            str(half_life_in(run, first.schedule)),
            first.source.name,
        ]


def test_its_pictures_are_there_and_a_command_makes_them():
    shown = set(re.findall(r"\]\(docs/([\w.]+)\)", README))
    made = {f"{name}.png" for name in pictures.PICTURES} | {"drag.gif"}
    assert {name for name in shown if name.endswith(("png", "gif"))} <= made
    assert all((ROOT / "docs" / name).is_file() for name in shown)
    assert "python -m benchmarks.pictures" in README


def test_it_counts_the_libraries_for_which_there_is_code():
    families = (Constant(), InversePower(), PowerFunction(sigma_rel=0.1))
    libraries = {snippet.library.split()[0] for schedule in families for snippet in snippets(schedule)}
    assert len(libraries) == 12
    assert "code for twelve libraries" in " ".join(README.split())

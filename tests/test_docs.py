"""What the pages of docs say as code, where it needs neither another library nor several processes."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import emacore
from emacore.averaging.code import merge_from_code

DOCS = Path(__file__).parents[1] / "docs"
ELSEWHERE = re.compile(r"from (peft|accelerate|lightning|transformers|torch\.distributed)|import torch\.distributed")
BLOCKS = re.findall(r"```python\n(.*?)```", (DOCS / "your_loop.md").read_text(), re.DOTALL)


def test_the_code_for_your_loop_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train_on(batch):
        model(batch).sum().backward()
        optimizer.step()

    names = {"model": model, "optimizer": optimizer, "batches": torch.ones(3, 1, 2), "train_on": train_on}
    own = [block for block in BLOCKS if not ELSEWHERE.search(block)]
    assert len(own) == 6
    for block in own:
        exec(block, names)
        if "attach" in block:
            assert names["ema"].step.item() == 3


def test_what_a_merge_is_called_in_python_is_that():
    told = re.findall(r"^\| `(.*?)`, in Python `(.*?)`", (DOCS / "checkpoints.md").read_text(), re.MULTILINE)
    assert len(told) == 2
    for code, python in told:
        assert eval(python, vars(emacore) | {name: getattr(emacore, name) for name in emacore.__all__}) == (
            merge_from_code(code)
        )


@pytest.mark.parametrize("block", [block for block in BLOCKS if ELSEWHERE.search(block)])
def test_the_rest_is_python(block):
    compile(block, "your_loop.md", "exec")

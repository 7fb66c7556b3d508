"""What ``pip install emacore`` alone can do, with the oldest versions that it allows."""

import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
USE = """
import importlib.util
import tempfile

for absent in ("pandas", "sklearn", "joblib", "streamlit", "altair"):
    assert importlib.util.find_spec(absent) is None, absent

import emacore
from emacore import EMA, Averages, Constant, InversePower, PowerFunction, Recorder, Trajectory, UniformAverage, Window
from emacore import Snapshots, effective_count, mean_age, merge, open_checkpoints, with_half_life
from emacore.replay.relatives import relatives
from emacore.replay.weight_space import space
from torch import nn

schedule = with_half_life(InversePower(update_every=1), num_steps=5000, steps=250)
decays = schedule.decays(5000)
assert 240 < mean_age(decays) < effective_count(decays)

model, other = nn.Linear(2, 1), nn.Linear(2, 1)
folder = tempfile.mkdtemp()
ema = EMA(model, schedule=UniformAverage())
averages = Averages(model, {"mean": UniformAverage(), "EDM2": PowerFunction(sigma_rel=0.1)})
with Recorder(model, folder) as recorder:
    for value in (1.0, 2.0, 6.0, 3.0):
        nn.init.constant_(model.weight, value)
        ema.update()
        averages.update()
        recorder.record()
        recorder.end_epoch()
assert ema.ema_model.weight.tolist() == [[3.0, 3.0]]
averages.copy_to(other, "mean")
assert other.weight.tolist() == [[3.0, 3.0]]

snapshots = tempfile.mkdtemp()
with Snapshots(model, snapshots, every=2) as kept:
    for value in (1.0, 2.0, 6.0, 3.0):
        nn.init.constant_(model.weight, value)
        kept.update()
[merged] = merge(open_checkpoints(snapshots), {"mean": UniformAverage()}, snapshots + "/merged")
assert open_checkpoints(merged)[0].sections[0].tensors["weight"].value().tolist() == [[3.0, 3.0]]
assert Trajectory(open_checkpoints([snapshots + "/step_000000004.safetensors"]).rows()).steps == 4

trajectory = Trajectory.open(folder, measure=lambda tensors: float(tensors["weight"].mean()))
assert trajectory.replay({"mean": UniformAverage()})["loss"].tolist() == [1.0, 1.5, 3.0, 3.0]
assert trajectory.final({"window": Window(2)})["loss"].tolist() == [4.5]
trajectory.load_into(other, Constant(0.5))
assert other.weight.tolist() == [[3.375, 3.375]]
assert "EMA" not in relatives(trajectory)["scheme"]
assert len(space(trajectory, Constant(0.5), "principal components").steps) == 4

try:
    emacore.train
except ImportError as error:
    assert "pip install 'emacore[experiments]'" in str(error), error
else:
    raise AssertionError("train came without pandas")
"""


def lend(site, name, version, others):
    """Link a package of this version that is here, and all that it needs, into ``site``: torch takes half a minute.

    Not the ``others``, of which another version is installed there: pip would write it over the one that is here.
    """
    if metadata.version(name).split("+")[0] != version:
        return
    needed, lent = [name], set(others)
    while needed:
        here = metadata.distribution(needed.pop())
        if here.name not in lent:
            lent.add(here.name)
            for top in {file.parts[0] for file in here.files} - {"..", "__pycache__"}:
                if not (site / top).exists():
                    (site / top).symlink_to(here.locate_file(top))
            wanted = [Requirement(one) for one in here.requires or []]
            needed += [one.name for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]


@pytest.mark.slow
def test_the_core_alone_averages_records_and_replays(tmp_path):
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = settings["project"]["dependencies"]
    assert all(re.fullmatch(r"[a-z]+>=[\d.]+", one) for one in wanted), "lower bounds, no upper ones"
    (tmp_path / "oldest.txt").write_text("\n".join(one.replace(">=", "==") for one in wanted))
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    site = sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv")})
    bounds = dict(one.split(">=") for one in wanted)
    lend(Path(site), "torch", bounds.pop("torch"), others=bounds)
    # What it is built by, which takes as long to install as all the rest.
    [builder] = map(Requirement, settings["build-system"]["requires"])
    assert metadata.version(builder.name) in builder.specifier
    lend(Path(site), builder.name, metadata.version(builder.name), others=bounds)
    pip = [sys.executable, "-m", "pip", "--python", python]
    install = [*pip, "install", "--quiet", "--disable-pip-version-check", "--no-compile", "--no-build-isolation"]
    # A build leaves files where its sources are.
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*cache*", ".git", ".venv", "build", "*.egg-info"))
    subprocess.run([*install, "-c", tmp_path / "oldest.txt", source], check=True)
    subprocess.run([python, "-c", USE], check=True, cwd=tmp_path)
    command = [python, "-m", "emacore"]
    found = subprocess.run(
        [*command, "schedule", "Constant(beta=0.9)", "--steps", "5"], check=True, capture_output=True, text=True
    )
    assert found.stdout.splitlines()[:2] == ["step,decay,weight", "0,0.0,0.6561000000000001"]
    refused = subprocess.run([*command, "train"], capture_output=True, text=True, cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "pip install 'emacore[experiments]'" in refused.stderr
    refused = subprocess.run([*command, "app"], capture_output=True, text=True, cwd=tmp_path)
    assert refused.returncode == 1
    assert "pip install 'emacore[app]'" in refused.stderr

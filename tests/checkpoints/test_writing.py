import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from emacore.checkpoints.stored import CheckpointError
from emacore.checkpoints.writing import SafetensorsFile


@settings(max_examples=20)
@given(st.data())
def test_the_library_reads_what_was_written_in_any_order(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("written") / "a.safetensors"
    dtypes = [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.float64, torch.uint8]
    shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
    layout = data.draw(
        st.dictionaries(st.text("ab.ä", min_size=1), st.tuples(shapes, st.sampled_from(dtypes)), min_size=1)
    )
    whole = {name: torch.randint(0, 2, shape).to(dtype) for name, (shape, dtype) in layout.items()}
    file = SafetensorsFile(path, layout, room=100)
    for name in data.draw(st.permutations(list(layout))):
        middle = whole[name].numel() // 2
        file.write(name, middle, whole[name].reshape(-1)[middle:])
        file.write(name, 0, whole[name].reshape(-1)[:middle])
    file.close({"step": "3", "long": "x" * 1000})
    found = load_file(path)
    assert found.keys() == whole.keys()
    for name, tensor in whole.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    with safe_open(path, "pt") as opened:
        assert opened.metadata() == {"step": "3"}  # what had no room lies in the JSON file beside


def test_numbers_are_rounded_to_the_files_dtype(tmp_path):
    file = SafetensorsFile(tmp_path / "a.safetensors", {"w": ((3,), torch.bfloat16)}, room=100)
    values = torch.tensor([1.001, -2.7, 1e-3])
    file.write("w", 0, values)
    file.close({})
    assert torch.equal(load_file(tmp_path / "a.safetensors")["w"], values.to(torch.bfloat16))


def test_a_file_is_not_written_over(tmp_path):
    (tmp_path / "a.safetensors").write_text(json.dumps({}))
    with pytest.raises(FileExistsError):
        SafetensorsFile(tmp_path / "a.safetensors", {"w": ((3,), torch.float32)}, room=10)


def test_the_largest_number_of_a_dtype_fits_and_a_larger_one_does_not(tmp_path):
    file = SafetensorsFile(tmp_path / "a.safetensors", {"w": ((2,), torch.float16)}, room=10)
    file.write("w", 0, torch.tensor([65504.0, -65504.0]))
    with pytest.raises(CheckpointError, match=r"'w' does not fit into float16: .* size 65,537; write another dtype"):
        file.write("w", 0, torch.tensor([1.0, -65537.0]))

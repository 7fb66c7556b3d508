import pytest
import torch
from torch import nn

from emacore.tensors.pairing import ties
from emacore.tensors.shadow import built, copy_of, set_dtype


def test_a_copy_has_no_gradients_and_lives_outside_inference_mode():
    model = nn.Linear(2, 1)
    model(torch.ones(1, 2)).sum().backward()
    with torch.inference_mode():
        shadow = copy_of(model)
    assert all(parameter.grad is None and not parameter.is_inference() for parameter in shadow.parameters())
    assert torch.equal(shadow.weight, model.weight)


def test_what_a_function_builds_is_a_module():
    assert isinstance(built(lambda: nn.Linear(1, 1)), nn.Linear)
    with pytest.raises(TypeError, match="or a function that builds one, got 3"):
        built(3)
    with pytest.raises(TypeError, match="must build a module, and gave None"):
        built(lambda: None)


def test_another_dtype_goes_to_each_name_of_a_tensor():
    module = nn.ModuleDict({"a": nn.BatchNorm1d(2), "b": nn.BatchNorm1d(2)}).bfloat16()
    module["b"].weight, module["b"].running_mean = module["a"].weight, module["a"].running_mean
    for name in ("a.weight", "a.running_mean"):
        set_dtype(module, ties(module), name, torch.float32)
    for name in ("weight", "running_mean"):
        assert getattr(module["a"], name) is getattr(module["b"], name)
        assert getattr(module["b"], name).dtype == torch.float32
    assert module["a"].bias.dtype == torch.bfloat16

import pytest
import torch
from torch import nn

from emacore.tensors import moves
from emacore.tensors.moves import is_plain, move


@pytest.fixture(autouse=True, params=[1])
def threads(request):
    """What is plain is so in one thread alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def pair(shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2)]


@pytest.mark.parametrize("share", [1e-9, 0.001, 0.25, 0.4999, 0.5, 0.75, 0.999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_move_is_torchs(share, dtype):
    pairs = [pair(shape, dtype, n) for n, shape in enumerate([(), (1,), (7,), (3, 5), (2, 17, 4), (0, 3), (4096,)])]
    pairs[3][1][0] = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0])
    targets, sources = map(list, zip(*pairs, strict=True))
    expected = [target.lerp(source, share) for target, source in pairs]
    sources = [nn.Parameter(source) for source in sources]
    kept = [source.detach().clone() for source in sources]
    versions = [[tensor._version for tensor in some] for some in (targets, sources)]
    assert is_plain(targets, sources)
    move(targets, sources, share)
    # One rounding more or less, where a processor multiplies and adds at once.
    close = {"rtol": 2 * torch.finfo(dtype).eps, "atol": torch.finfo(dtype).eps, "equal_nan": True}
    torch.testing.assert_close(targets, expected, **close)
    torch.testing.assert_close([source.detach() for source in sources], kept, rtol=0, atol=0, equal_nan=True)
    assert [target._version - version for target, version in zip(targets, versions[0], strict=True)] == [1] * 7
    assert [source._version for source in sources] == versions[1], "who trains them has not written"


class Other(torch.Tensor):
    pass


def made_otherwise(kind):
    """A target and a source that lie in memory in a way that a step would not see."""
    target, source = pair((4, 4))
    wide = torch.randn(8, 8)
    return {
        "turned target": (target.t(), source),
        "turned source": (target, source.t()),
        "every other number": (target, wide[::2, ::2]),
        "expanded": (target, source[:1].expand(4, 4)),
        "spread": (target, source[:1]),
        "negative": (target, torch.complex(source, source).conj().imag),
        "another precision": (target.double(), source.double()),
        "half": (target.half(), source.half()),
        "complex": (target + 1j, source + 2j),
        "another kind": (target, source.as_subclass(Other)),
        "sparse": (target, source.to_sparse()),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "turned target",
        "turned source",
        "every other number",
        "expanded",
        "spread",
        "negative",
        "another precision",
        "half",
        "complex",
        "another kind",
        "sparse",
    ],
)
def test_what_is_not_plain_is_moved_as_torch_does_it(kind):
    plain, (target, source) = pair((3,)), made_otherwise(kind)
    assert is_plain(plain[:1], plain[1:])
    assert not is_plain([plain[0], target], [plain[1], source])
    if kind == "sparse":
        return
    expected = [plain[0].lerp(plain[1], 0.25), target.lerp(source, 0.25)]
    move([plain[0], target], [plain[1], source], 0.25)
    torch.testing.assert_close([plain[0], target], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("lacking", ["_fused_sgd_", "_increment_version"])
def test_a_torch_that_has_no_such_step_moves_as_well(monkeypatch, lacking):
    monkeypatch.setattr(moves, lacking, None)
    moves._is_right.cache_clear()
    try:
        target, source = pair((5,))
        expected = target.lerp(source, 0.25)
        assert not is_plain([target], [source])
        move([target], [source], 0.25)
        torch.testing.assert_close(target, expected)
    finally:
        moves._is_right.cache_clear()


def test_a_step_that_does_something_else_is_not_taken(monkeypatch):
    monkeypatch.setattr(moves, "_fused_sgd_", lambda targets, *_, **__: targets[0].zero_())
    moves._is_right.cache_clear()
    try:
        assert not is_plain([torch.ones(2)], [torch.ones(2)])
    finally:
        moves._is_right.cache_clear()


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
def test_several_threads_do_not_share_small_tensors(threads):
    target, source = pair((600,))
    expected = target.lerp(source, 0.25)
    assert is_plain([target], [source]) == (threads == 1)
    move([target], [source], 0.25)
    torch.testing.assert_close(target, expected)

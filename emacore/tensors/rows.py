"""Averages as rows of numbers, and as tensors by name; of sharded tensors, a row is what this process holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from emacore.tensors.pairing import from_reals, listed, real_count, reals
from emacore.tensors.sharded import as_part, is_sharded, laid_out, local


def by_name(rows: Tensor, like: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Rows, shape (K, P), as tensors by name.

    Args:
        like: What each is like, in the order in which they lie: shape, kind, and how it is sharded.
    """
    found = from_reals(rows, {name: local(tensor) for name, tensor in like.items()})
    return [{name: as_part(found[name][n], like[name]) for name in like} for n in range(len(rows))]


def in_rows(averages: Iterable[Mapping[str, Tensor]], like: Mapping[str, Tensor], numbers: Tensor) -> Tensor:
    """Tensors by name as rows, shape (K, P): :func:`by_name` the other way round.

    Args:
        averages: K of them; their tensors may be sharded otherwise than those of ``like``.
        like: As :func:`by_name` takes it.
        numbers: Has the rows' dtype and device.
    """
    return torch.stack(
        [
            torch.cat([reals(local(laid_out(one[name], tensor))).to(numbers) for name, tensor in like.items()])
            for one in averages
        ]
    )


def rows_of_state(
    averages: Tensor | Mapping[str, Mapping[str, Tensor]],
    names: Iterable[str],
    like: Mapping[str, Tensor],
    numbers: Tensor,
) -> Tensor:
    """The averages of a state, be they rows of whole tensors or tensors by name.

    Args:
        names: Of the averages, in the order of their rows.

    Raises:
        ValueError: if they are of other tensors.
    """
    order = list(names)
    if isinstance(averages, Tensor):
        expected = sum(map(real_count, like.values()))
        if averages.shape != (len(order), expected):
            raise ValueError(f"the state holds averages of {averages.shape[-1]} weights, this module has {expected}")
        if not any(map(is_sharded, like.values())):
            return averages
        whole = from_reals(averages, like)
        return in_rows(({name: whole[name][n] for name in like} for n in range(len(order))), like, numbers)
    for one in averages.values():
        shapes, expected_shapes = ({name: tuple(t.shape) for name, t in some.items()} for some in (one, like))
        if strange := {name for name, _ in shapes.items() ^ expected_shapes.items()}:
            raise ValueError(f"the state has {listed(strange)} in place of this module's weights, or of other shapes")
    return in_rows((averages[name] for name in order), like, numbers)

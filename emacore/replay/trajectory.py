"""The weights of a run, and their exact replay under any schemes.

The average never touches the training, so the weights after every optimiser step answer what any other schedule would
have given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from emacore.averaging.schedules import Schedule, check_schedule, last_move
from emacore.averaging.weights import stretch_weights, weights
from emacore.averaging.windows import Scheme, Window, check_scheme, decays_at_end
from emacore.checks import check_named, check_whole
from emacore.replay.measure import Measure, Metric, OneByOne, as_number, check_metrics
from emacore.replay.recording import read_recording
from emacore.replay.rows import Rows, read_in_turn
from emacore.tensors.buffers import Policy, copied_buffers
from emacore.tensors.pairing import check_takes_values, from_reals, ties, unwrapped

Floats = NDArray[np.float64]
#: A table: columns of equal length by name, as ``pandas.DataFrame`` takes them.
Table = dict[str, NDArray[Any]]

#: Bytes of weights read at a time, which bounds the memory.
_BLOCK_BYTES = 8 * 2**20
#: Columns of them weighed at a time: few, so that averages of many schemes are carried on within the processor's cache.
_STRIP_COLUMNS = 2**13
#: Columns averaged at a time where all are wanted in the end, which bounds it for networks of any size.
_BLOCK_COLUMNS = 2**18


class Trajectory:
    """Rows of weights, to be replayed.

    Args:
        rows: Where they come from; they may be memory-mapped, and the file may still be growing.
        measure: How networks are measured: a :class:`~emacore.replay.measure.Measure`, or a function from one
            network's tensors by name to a number (its loss).

    Raises:
        ValueError: if two metrics of ``measure`` have the same column, or one has a column that tables have already.
        TypeError: if ``rows`` or ``measure`` is another thing.

    Attributes:
        weights: Shape (T, P), float32 or float16: the flat weights after each row's step.
        epoch_ends: The rows at which epochs ended.
        settings: What the run says of itself; ``None`` if nothing.
        tensors: Names, shapes and dtypes of what lies in a row, as tensors without values.
    """

    def __init__(self, rows: Rows, measure: Measure | Callable[[dict[str, Tensor]], float] | None = None) -> None:
        if not isinstance(rows, Rows):
            raise TypeError(
                f"rows must be Rows, got {rows!r:.200}: Trajectory.open(folder) opens a recording, "
                "Trajectory(open_checkpoints(path).rows()) a folder of checkpoints"
            )
        if measure is not None and not callable(measure):
            raise TypeError(f"measure must be a function of one network's tensors, or a Measure, got {measure!r}")
        self.rows = rows
        self.weights = rows.weights
        self.epoch_ends = list(rows.epoch_ends)
        self.settings = rows.settings
        self.tensors = rows.tensors
        self._measure = measure if measure is None or isinstance(measure, Measure) else OneByOne(measure)
        if self._measure is not None:
            check_metrics(self._measure.metrics)
        self._first_steps = np.concatenate([[0], np.asarray(rows.steps[:-1]) + 1]) if len(rows.steps) else rows.steps
        self._of_windows: dict[tuple[Window, bytes], Floats] = {}
        self._read: dict[int, int] = {}  # up to which row columns, by their first, were read in turn

    @classmethod
    def open(
        cls,
        folder: str | Path,
        epochs: int | None = None,
        measure: Measure | Callable[[dict[str, Tensor]], float] | None = None,
    ) -> Trajectory:
        """Open what is whole of a recording, or only its first ``epochs``.

        Args:
            epochs: At least 1, and at most as many as are whole.
            measure: As of the class.

        Raises:
            RecordingError: if there is none, or it is damaged, foreign, or of another version.
            ValueError: for another number of epochs.
        """
        return cls(read_recording(folder, epochs), measure)

    @property
    def steps(self) -> int:
        """How many steps of the run the rows stand for."""
        return int(self.rows.steps[-1]) + 1 if len(self.weights) else 0

    @property
    def every(self) -> int:
        """The most steps that one row stands for.

        With more than one, replays are those of a run that moved only then: close to the exact ones where the weights
        moved little in between, and the average looks back over many rows and holds little of its start.  On the
        article's run, from epoch 10 on, those of every 2nd, 5th and 10th step miss the loss of its own schedule by up
        to 0.5, 2 and 5 %, with ``update_every=10`` by up to 1, 4 and 9 %, that of ``Constant(0.9)``, which looks back
        ten steps, by up to 8, 27 and 61 %, and that of ``Constant(0.999)``, which holds the first weights for long, by
        up to 4, 13 and 23 % (the largest of 8 seeds, ``benchmarks/thinning.py``).
        """
        return int(np.diff(self.rows.steps, prepend=-1).max()) if len(self.weights) else 1

    @property
    def measured(self) -> Sequence[Metric]:
        """What is measured; the first is the loss.

        Raises:
            ValueError: if nothing says how networks are measured.
        """
        return self._measuring.metrics

    @property
    def _measuring(self) -> Measure:
        if self._measure is None:
            raise ValueError(
                "nothing says how these networks are measured: open the recording with a measure, or use evaluate()"
            )
        return self._measure

    def decays(self, schedule: Schedule, rows: int) -> Floats:
        """The schedule's decays over the first ``rows`` rows: of each, the product over the steps it stands for.

        Raises:
            ValueError: if there are not so many rows.
            TypeError: if ``schedule`` is none; a window has no decays.
        """
        check_schedule("schedule", schedule)
        check_whole("rows", rows, 0, len(self.weights))
        return self._by_row(schedule.decays(int(self.rows.steps[rows - 1]) + 1), rows) if rows else np.empty(0)

    def shares(self, scheme: Scheme) -> Floats:
        """What each row weighs in the last average of a scheme: shape (T,)."""
        if not len(self.weights):
            return np.empty(0)
        return weights(self._by_row(decays_at_end(scheme, self.steps), len(self.weights)))

    def average(self, schemes: Sequence[Scheme], at: Sequence[int] | None = None) -> NDArray[np.float32]:
        """The averaged weights of each scheme after the rows ``at`` (by default the ends of epochs).

        Returns:
            Shape (schemes, rows, P).

        Raises:
            ValueError: if ``at`` is not rising or names a row that there is not.
            TypeError: if a scheme is none, or the schemes are no list.
        """
        if not isinstance(schemes, Sequence) or isinstance(schemes, str):
            raise TypeError(f"schemes must be a list, such as [Constant(beta=0.999)], got {schemes!r}")
        wanted = self._checked(at)
        columns = self.weights.shape[1]
        result = np.empty((len(schemes), len(wanted), columns), dtype=np.float32)
        for first in range(0, columns, _BLOCK_COLUMNS):
            block = slice(first, first + _BLOCK_COLUMNS)
            for n, averages in enumerate(self._averages(schemes, wanted, block)):
                result[:, n, block] = averages
        return result

    def replay(self, schemes: Mapping[str, Scheme]) -> Table:
        """The curve of each scheme over the epochs: schedule, epoch, and each metric's column.

        Raises:
            ValueError: if nothing says how networks are measured (also the methods below that measure).
        """
        table = self.metrics(schemes, self.epoch_ends)
        epochs = np.tile(np.arange(1, len(self.epoch_ends) + 1), len(schemes))
        return {"schedule": table["schedule"], "epoch": epochs, **self._measured(table)}

    def final(self, schemes: Mapping[str, Scheme]) -> Table:
        """The metrics of each scheme's last average: schedule, and each metric's column."""
        table = self.metrics(schemes, [len(self.weights) - 1] if len(self.weights) else [])
        return {"schedule": table["schedule"], **self._measured(table)}

    def metrics(self, schemes: Mapping[str, Scheme], at: Sequence[int]) -> Table:
        """The metrics of each scheme's average after the rows ``at``: schedule, row, and each metric's column.

        One pass over the rows; only some averages are in memory at a time.
        """
        check_named("schemes", schemes)
        wanted = self._checked(at)
        found = self._table(self._networks(schemes.values(), wanted))
        return self._labelled(schemes, wanted, found)

    def measure(self, networks: NDArray[Any]) -> Table:
        """The metrics of flat weights of shape (N, P), a row each: each metric's column.

        Raises:
            ValueError: for another shape.
        """
        last = len(self.weights) - 1
        return self._table((network, last) for network in self._flat(networks, 0))

    def ensemble(self, networks: NDArray[Any]) -> dict[str, float]:
        """The metrics of the one model that averages the predictions of flat weights of shape (N, P), N at least 1.

        Raises:
            ValueError: for another shape.
        """
        last = len(self.weights) - 1
        given = self._flat(networks, 1)
        batches = _batches(((network, last) for network in given), self._measuring.at_once)
        return dict(self._measuring.ensemble([self._stacked(batch) for batch in batches]))

    def state(self, scheme: Scheme, at: int = -1) -> dict[str, Tensor]:
        """The averaged tensors after row ``at`` by name, in their own dtypes; those that were copied, as EMA does.

        Integers and booleans are those of the last move of a schedule; a shared tensor is there once.

        Raises:
            ValueError: if there is no such row.
        """
        row = self._row(at)
        return self._state(self.average([scheme], [row])[0, 0], self._moved(scheme, row))

    @torch.no_grad()
    def load_into(self, module: nn.Module, scheme: Scheme, at: int = -1, *, buffers: Policy = None) -> None:
        """Put the averages after row ``at`` into a module that has these tensors by name.

        Its other tensors stay as they are.

        Args:
            buffers: Which of the buffers that were recorded as numbers to average are taken as they were at the last
                move instead: what :func:`emacore.tensors.buffers.copied_buffers` says of the module.  Those recorded as
                they are stay so.

        Raises:
            RuntimeError: if the module lacks one of the tensors, or has it in another shape.
            ValueError: if there is no such row, or the module has no values yet.
            TypeError: if it is none, or ``scheme`` is none.
        """
        check_takes_values("module", module, self.tensors.keys() | self.rows.copied_tensors.keys())
        found = ties(unwrapped(module))
        for name, tensor in {**self.tensors, **self.rows.copied_tensors}.items():
            if name not in found or found[name].tensor.shape != tensor.shape:
                have = f"with shape {tuple(found[name].tensor.shape)}" if name in found else "under no such name"
                raise RuntimeError(
                    f"the recording holds {name!r} with shape {tuple(tensor.shape)}, the module has it {have}"
                )
        row = self._row(at)
        state = self.state(scheme, row)
        if copied := copied_buffers(unwrapped(module), buffers) & self.tensors.keys():
            as_recorded = self._state(self.weights[self._moved(scheme, row, always=True)], row)
            state |= {name: as_recorded[name] for name in copied}
        for name, tensor in state.items():
            found[name].tensor.copy_(tensor)

    def evaluate(
        self,
        schemes: Mapping[str, Scheme],
        function: Callable[[dict[str, Tensor]], float | Mapping[str, float]],
        at: Sequence[int] | None = None,
    ) -> Table:
        """What ``function`` makes of each scheme's averages: schedule, row, and its results.  One pass over the rows.

        Args:
            function: Gets the averaged tensors by name, as ``load_state_dict(..., strict=False)`` and
                ``torch.func.functional_call`` take them; returns a number (column ``value``) or several by name.
            at: After which rows; by default the last.

        Raises:
            ValueError: if ``at`` is not rising or names a row that there is not, or a result has a column's name.
            TypeError: if a result is no number.
        """
        check_named("schemes", schemes)
        wanted = [self._row(-1)] if at is None else self._checked(at)
        results: list[Mapping[str, float]] = []
        for network, moved in self._networks(schemes.values(), wanted):
            result = function(self._state(network, moved))
            if isinstance(result, Mapping):
                results.append({name: as_number(one, name) for name, one in result.items()})
            else:
                results.append({"value": as_number(result)})
        names = dict.fromkeys(name for result in results for name in result)
        if "schedule" in names or "row" in names:
            raise ValueError('the results of function must not be named "schedule" or "row": those are columns')
        found = {name: np.array([result.get(name, np.nan) for result in results]) for name in names}
        return self._labelled(schemes, wanted, found)

    def _averages(
        self, schemes: Sequence[Scheme], at: list[int], block: slice = slice(None)
    ) -> Iterator[NDArray[np.float32]]:
        """The averages of a block of columns after each of the rows ``at``, shape (schemes, columns), in turn.

        One pass over the rows: stretch by stretch, a matrix product weighs them for all schemes at once, for those
        that have the same decays there once.  What is carried from one stretch to the next is float64.
        """
        for scheme in schemes:
            check_scheme(scheme)
        offset, end, _ = block.indices(self.weights.shape[1])
        columns = end - offset
        length = at[-1] + 1 if at else 0
        recursive = [k for k, scheme in enumerate(schemes) if isinstance(scheme, Schedule)]
        windows = [(k, scheme) for k, scheme in enumerate(schemes) if isinstance(scheme, Window)]
        decays = np.empty((len(recursive), length))
        for n, scheme in enumerate(scheme for scheme in schemes if isinstance(scheme, Schedule)):
            decays[n] = self.decays(scheme, length)
        carried = np.zeros((len(recursive), columns))
        sliding = {row: np.zeros((len(windows), columns)) for row in at} if windows else {}
        strip = min(columns, _STRIP_COLUMNS)
        for first, stop in _stretches(at, max(1, _BLOCK_BYTES // (4 * strip))):
            kinds, kind_of = _kinds(decays[:, first:stop])
            shares, kept = stretch_weights(decays[kinds, first:stop])
            open_windows = []
            for n, (_, window) in enumerate(windows):
                open_windows += [
                    (n, row, _stretch_of(self._recent(window, row), row, first, stop))
                    for row in sliding
                    if self._reach(window, row) < stop
                ]
            weighing = np.concatenate([shares, *(share[np.newaxis] for *_, share in open_windows)])
            begin = first + _leading_zeros(weighing)
            weighing = weighing[:, begin - first :]
            for left in range(0, columns, strip):
                right = min(left + strip, columns)
                if left % _BLOCK_COLUMNS == 0 and len(weighing) > 1:
                    self._read_ahead(begin, stop, offset + left, offset + min(left + _BLOCK_COLUMNS, columns))
                rows = np.asarray(self.weights[begin:stop, offset + left : offset + right])
                products = _weighed(weighing, rows.astype(np.float32, copy=False))
                part = carried[:, left:right]
                part[kept[kind_of] == 0] = 0  # of what a copy replaced nothing is left, even if it was not finite
                part *= kept[kind_of, np.newaxis]
                with np.errstate(invalid="ignore"):  # infinities of both signs have no mean
                    part += products[: len(kept)][kind_of]
                    for (n, row, _), product in zip(open_windows, products[len(kept) :], strict=True):
                        sliding[row][n, left:right] += product
            if stop - 1 in at:
                result = np.empty((len(schemes), columns), dtype=np.float32)
                result[recursive] = carried
                if windows:
                    result[[k for k, _ in windows]] = sliding.pop(stop - 1)
                yield result

    def _read_ahead(self, begin: int, stop: int, left: int, right: int) -> None:
        """Read what a product will ask for, where it was not read before: it costs little then, but not nothing."""
        seen = self._read.get(left, 0)
        if seen < stop:
            read_in_turn(self.weights, slice(max(begin, seen), stop), slice(left, right))
            self._read[left] = stop

    def _networks(self, schemes: Iterable[Scheme], at: list[int]) -> Iterator[tuple[NDArray[np.float32], int]]:
        """The flat averages after each row for each scheme, and the row whose copied tensors go with each."""
        listed = list(schemes)
        for row, averages in zip(at, self._averages(listed, at), strict=True):
            for scheme, network in zip(listed, averages, strict=True):
                yield network, self._moved(scheme, row)

    def _moved(self, scheme: Scheme, row: int, always: bool = False) -> int:
        """The row of what is copied at the last move up to ``row``."""
        if isinstance(scheme, Window) or not (always or self.rows.copied_tensors):
            return row
        # A row is the last of the steps it stands for.
        return int(np.searchsorted(self.rows.steps, last_move(scheme, int(self.rows.steps[row]) + 1)))

    def _by_row(self, decays: Floats, rows: int) -> Floats:
        """Decays of steps as decays of rows: the product over the steps that each stands for."""
        if len(decays) == rows:
            return decays
        return np.asarray(np.multiply.reduceat(decays, self._first_steps[:rows]))

    def _reach(self, window: Window, row: int) -> int:
        """The first row of those that reach into the window ending at ``row``."""
        steps = self.rows.steps
        return int(steps.searchsorted(max(0, int(steps[row]) - window.size + 1)))

    def _recent(self, window: Window, row: int) -> Floats:
        """What each of the rows up to ``row`` that reach into the window ending there weighs in it."""
        steps = self.rows.steps
        end = int(steps[row])
        begin = max(0, end - window.size + 1)
        first = self._reach(window, row)
        starts = np.concatenate([[0], steps[first:row] + 1 - begin])
        key = window, np.append(starts, end + 1 - begin).tobytes()
        if key not in self._of_windows:
            self._of_windows[key] = weights(np.multiply.reduceat(window.rule.decays(end + 1 - begin), starts))
        return self._of_windows[key]

    def _table(self, networks: Iterable[tuple[NDArray[Any], int]]) -> Table:
        """Each metric's column, over networks in turn."""
        measure = self._measuring
        tables = [measure(self._stacked(batch)) for batch in _batches(networks, measure.at_once)]
        return {
            metric.column: np.concatenate([np.asarray(table[metric.column], dtype=np.float64) for table in tables])
            if tables
            else np.empty(0)
            for metric in measure.metrics
        }

    def _stacked(self, batch: Sequence[tuple[NDArray[Any], int]]) -> dict[str, Tensor]:
        """The tensors of some networks by name, each of shape (N, *its own shape*)."""
        if self._measuring.at_once == 1:
            [(network, moved)] = batch
            return {name: tensor.unsqueeze(0) for name, tensor in self._state(network, moved).items()}
        flat = np.stack([np.asarray(network, dtype=np.float32) for network, _ in batch])
        stacked = from_reals(torch.from_numpy(flat), self.tensors)
        if self.rows.copied_tensors:
            copies = [self._copies(moved) for _, moved in batch]
            stacked |= {name: torch.stack([copy[name] for copy in copies]) for name in copies[0]}
        return stacked

    def _state(self, network: NDArray[Any], moved: int) -> dict[str, Tensor]:
        """The tensors of one network by name, in their own dtypes."""
        flat = torch.from_numpy(_writable(network)).unsqueeze(0)
        averaged = from_reals(flat, self.tensors)
        return {name: tensor[0].to(self.tensors[name].dtype) for name, tensor in averaged.items()} | self._copies(moved)

    def _copies(self, row: int) -> dict[str, Tensor]:
        """What is copied, as it was at a row."""
        described = self.rows.copied_tensors
        if not described:
            return {}
        content = torch.from_numpy(np.array(self.rows.copied[row]))
        pieces = torch.split(content, [tensor.nbytes for tensor in described.values()])
        return {
            name: piece.clone().view(tensor.dtype).reshape(tensor.shape)
            for (name, tensor), piece in zip(described.items(), pieces, strict=True)
        }

    def _labelled(self, schemes: Mapping[str, Scheme], at: list[int], found: Table) -> Table:
        """Results in the order of :meth:`_networks` as a table, scheme by scheme: schedule, row, and the results."""
        order = np.arange(len(at) * len(schemes)).reshape(len(at), len(schemes)).T.reshape(-1)
        names = np.array([name for name in schemes for _ in at], dtype=object)
        rows = np.array(list(at) * len(schemes), dtype=np.int64)
        return {"schedule": names, "row": rows, **{name: values[order] for name, values in found.items()}}

    def _measured(self, table: Table) -> Table:
        return {metric.column: table[metric.column] for metric in self.measured}

    def _flat(self, networks: NDArray[Any], least: int) -> NDArray[Any]:
        found, columns = np.asarray(networks), self.weights.shape[1]
        if found.ndim != 2 or found.shape[1] != columns or len(found) < least:
            some = f", N at least {least}" if least else ""
            raise ValueError(f"networks must have shape (N, {columns}){some}; got {found.shape}")
        return found

    def _checked(self, at: Sequence[int] | None) -> list[int]:
        rows = np.asarray(self.epoch_ends if at is None else at)
        if not rows.size and rows.ndim == 1:
            return []
        whole = rows.ndim == 1 and np.issubdtype(rows.dtype, np.integer)
        if not whole or (rows[1:] <= rows[:-1]).any() or rows[0] < 0 or rows[-1] >= len(self.weights):
            raise ValueError(f"at must be rising rows from 0 to {len(self.weights) - 1}, such as [0], got {at!r}")
        return [int(row) for row in rows]

    def _row(self, at: int) -> int:
        if not len(self.weights):
            raise ValueError("the recording holds no row: record() or close() came before the first")
        if not isinstance(at, (int, np.integer)) or not -len(self.weights) <= at < len(self.weights):
            raise ValueError(f"at must be one of the {len(self.weights)} recorded rows, got {at!r}")
        return int(at) % len(self.weights)


def _writable(network: NDArray[Any]) -> NDArray[np.float32]:
    """Flat weights in float32; torch warns of memory that it may not write, such as that of a recording."""
    found = np.asarray(network, dtype=np.float32)
    return found if found.flags.writeable else found.copy()


def _batches(networks: Iterable[tuple[NDArray[Any], int]], size: int) -> Iterator[list[tuple[NDArray[Any], int]]]:
    """The networks in lists of at most ``size``."""
    kept: list[tuple[NDArray[Any], int]] = []
    for network in networks:
        kept.append(network)
        if len(kept) == size:
            yield kept
            kept = []
    if kept:
        yield kept


def _stretches(rows: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Stretches of at most ``most`` rows, from the first row on; each of ``rows`` is the last of one."""
    first = 0
    for row in rows:
        while first <= row:
            stop = min(first + most, row + 1)
            yield first, stop
            first = stop


def _kinds(decays: Floats) -> tuple[NDArray[np.intp] | slice, NDArray[np.intp] | slice]:
    """Which of the rows of ``decays`` are all that there are, and which of these each row is."""
    count = len(decays)
    _, firsts, group_of = np.unique(decays.sum(axis=1), return_index=True, return_inverse=True)
    if len(firsts) == count:
        return slice(None), slice(None)
    kinds = firsts[group_of]
    others = np.flatnonzero(kinds != np.arange(count))
    different = others[(decays[others] != decays[kinds[others]]).any(axis=1)]
    kinds[different] = different
    return np.unique(kinds, return_inverse=True)


def _leading_zeros(weighing: Floats) -> int:
    """How many of the first columns hold nothing but exact zeros."""
    used = np.flatnonzero(weighing.any(axis=0))
    return int(used[0]) if used.size else weighing.shape[1]


def _weighed(shares: Floats, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """``shares @ rows``, where a share of exactly 0 takes nothing, not even of what is not finite."""
    used = shares.any(axis=1)
    if not used.all():
        result = np.zeros((len(shares), rows.shape[1]), dtype=np.float32)
        if used.any():
            result[used] = _weighed(shares[used], rows)
        return result
    single = shares.astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        products = single @ rows
        if np.isfinite(products.sum()):
            return products
        products = single @ np.where(np.isfinite(rows), rows, np.float32(0))
        takes = (shares != 0).astype(np.float32)
        for value, where in ((np.nan, np.isnan(rows)), (np.inf, rows == np.inf), (-np.inf, rows == -np.inf)):
            products[takes @ where.astype(np.float32) > 0] += np.float32(value)
    return products


def _stretch_of(recent: Floats, row: int, first: int, stop: int) -> Floats:
    """The weights of rows ``first`` to ``stop - 1``, where ``recent`` are those of the last rows up to ``row``."""
    begin = row + 1 - len(recent)
    overlap = slice(max(first, begin), min(stop, row + 1))
    result = np.zeros(stop - first)
    result[overlap.start - first : overlap.stop - first] = recent[overlap.start - begin : overlap.stop - begin]
    return result

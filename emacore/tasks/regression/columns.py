"""What each column of a table of one's own is taken as, and the numbers that a network gets of it.

Nothing of a table is left out without a word: :func:`described` says of every column what it is and what becomes of
it, and of the whole what else there is to know before a training starts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder

from emacore import limits
from emacore.limits import check_most
from emacore.tables import DATE, Table, TableError, check_cells, is_missing
from emacore.tasks.regression.config import DataConfig

#: From this size on squares overflow; and a column is centred first where it lies so many spreads from 0.
_LARGEST, _FAR = 1e100, 1e6
#: At most this many columns that are left out are named in one sentence.
_NAMED = 40

Floats = NDArray[np.float64]


class Column(NamedTuple):
    """A column: what it is ("number", "truth value", "text", "date", "blank"), what it is used as ("target",
    "feature", "left out"), and what there is to say of it."""

    name: str
    kind: str
    use: str
    remark: str


class Described(NamedTuple):
    """A table as it will be trained on.

    Attributes:
        columns: Of every column.
        rows: How many rows there are, and how many are used.
        used: Which rows are used, shape (rows,).
        notes: Sentences to be told before the training.
    """

    columns: tuple[Column, ...]
    rows: tuple[int, int]
    used: NDArray[np.bool_]
    notes: tuple[str, ...]

    def named(self, use: str) -> list[str]:
        """The columns that are used as this."""
        return [column.name for column in self.columns if column.use == use]


def described(table: Table, config: DataConfig) -> Described:
    """What becomes of a table under these settings.

    Raises:
        TableError: if it cannot be trained on; the message names the column, the line and what would be right.
    """
    frame = table.frame.rename(columns=str)
    names, target = list(frame.columns), str(config.target)
    series = {
        str(name): values for name, values in frame.items()
    }  # taken out of the table once: there may be thousands
    kinds = {name: kind_of(values) for name, values in series.items()}
    if target not in kinds:
        raise TableError(f"The table has no column {target!r}; it has {_some(names)}.")
    if kinds[target] not in ("number", "truth value"):
        raise TableError(f"The target {target!r} is of {kinds[target]}: a column of numbers is needed.")
    features = _features(names, kinds, target, config)
    blank = {name: _blank(series[name], kinds[name]) for name in [*features, target]}
    used = _used_rows(table, blank, features, target, config)
    if used.sum() < 4:
        raise TableError(f"The table has {len(used)} rows, of which {used.sum()} can be used; at least 4 are needed.")
    notes = [*table.notes, *_notes(frame[used], features, target, kinds)]
    if dropped := int((~used).sum()):
        notes.append(
            f"{dropped:,} of {len(used):,} rows have a blank and are left out, the first in line "
            f"{table.lines[int(np.argmin(used))]}"
        )
    if config.blanks in ("mean", "median"):
        filled = {name: int(blank[name][used].sum()) for name in features if blank[name][used].any()}
        notes += [f"{name}: {count:,} blanks are filled with the {config.blanks}" for name, count in filled.items()]
    uses = dict.fromkeys(names, "left out") | dict.fromkeys(features, "feature") | {target: "target"}
    columns = [
        Column(name, kinds[name], use, _remark(series[name], kinds[name], use, config)) for name, use in uses.items()
    ]
    if left := [f"{one.name} ({one.remark})" for one in columns if one.use == "left out"]:
        more = f" and {len(left) - _NAMED:,} more" if len(left) > _NAMED else ""
        notes.append(f"left out: {'; '.join(left[:_NAMED])}{more}")
    return Described(tuple(columns), (len(used), int(used.sum())), used, tuple(notes))


def matrices(
    table: Table, config: DataConfig, fitted: NDArray[np.intp] | None = None
) -> tuple[Floats, Floats, list[str]]:
    """Features, shape (rows, columns), targets, shape (rows,), both float64 and not yet standardised, and the names of
    the features' columns.

    Args:
        fitted: The rows, of those that are used, from which words and fillings are taken; all by default.

    Raises:
        TableError: as :func:`described`.
    """
    about = described(table, config)
    frame = table.frame.rename(columns=str)[about.used].reset_index(drop=True)
    features, target = about.named("feature"), str(config.target)
    kinds = {column.name: column.kind for column in about.columns}
    words = [name for name in features if kinds[name] == "text"]
    numbers = [name for name in features if name not in words]
    values = pd.DataFrame({name: _numbers(frame[name]) for name in numbers}, index=frame.index)
    values = values.assign(**{name: frame[name].astype(object).map(str, na_action="ignore") for name in words})
    filling = SimpleImputer(strategy="median" if config.blanks == "median" else "mean", keep_empty_features=True)
    encoding = make_pipeline(
        FunctionTransformer(lambda part: part.astype(object).where(part.notna(), "(blank)")),
        OneHotEncoder(sparse_output=False, handle_unknown="ignore"),
    )
    transformer = ColumnTransformer([("numbers", filling, numbers), ("words", encoding, words)])
    transformer.fit(values if fitted is None else values.iloc[fitted])
    x = np.asarray(transformer.transform(values), dtype=np.float64)
    check_cells(*x.shape)
    found = [*numbers]
    if words:
        encoder = transformer.named_transformers_["words"].named_steps["onehotencoder"]
        found += [str(name) for name in encoder.get_feature_names_out(words)]
    return x, _numbers(frame[target]), found


def scalable(values: Floats) -> Floats:
    """Columns whose mean and standard deviation float64 can hold: huge ones are divided, far ones moved, both exactly
    but for what is lost anyway.  What standardising makes of them is the same."""
    columns = np.array(values, dtype=np.float64)
    flat = columns.reshape(len(columns), -1)
    largest = np.abs(flat).max(axis=0)
    huge = largest > _LARGEST
    flat[:, huge] /= 2.0 ** np.ceil(np.log2(largest[huge]))
    with np.errstate(over="ignore"):
        far = np.abs(flat.mean(axis=0)) > _FAR * flat.std(axis=0)
    flat[:, far] -= flat[0, far]
    # Tiny spreads would be taken for none.
    spread = np.abs(flat).max(axis=0)
    tiny = (spread > 0) & (far | (spread < 1 / _LARGEST))
    flat[:, tiny] /= 2.0 ** np.floor(np.log2(spread[tiny]))
    return flat.reshape(columns.shape)


def kind_of(values: pd.Series) -> str:
    """What a column is: "number", "truth value", "date", "text" or "blank"."""
    if pd.api.types.is_bool_dtype(values):
        return "truth value"
    if pd.api.types.is_numeric_dtype(values):
        return "number" if values.notna().any() else "blank"
    if pd.api.types.is_datetime64_any_dtype(values):
        return "date"
    # Plain Python: pandas takes a millisecond a column for each of these.
    full = [value for value in values.tolist() if not is_missing(value)]
    if not full:
        return "blank"
    if all(value in ("True", "False") or isinstance(value, (bool, np.bool_)) for value in full):
        return "truth value"
    return "date" if all(DATE.fullmatch(str(value).strip()) for value in full[:50]) else "text"


def usable_targets(table: Table) -> list[str]:
    """The columns that can be predicted."""
    frame = table.frame.rename(columns=str)
    return [name for name in frame.columns if kind_of(frame[name]) in ("number", "truth value")]


def _numbers(values: pd.Series) -> Floats:
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        numbers = values.to_numpy(dtype=np.float64, na_value=np.nan)
        return np.where(np.isfinite(numbers), numbers, np.nan)
    truths = {True: 1.0, False: 0.0, "True": 1.0, "False": 0.0}
    return np.array([truths.get(value, np.nan) for value in values.astype(object).tolist()])


def _blank(values: pd.Series, kind: str) -> NDArray[np.bool_]:
    """Where a column has no value that can be used; infinite ones among them."""
    if kind in ("number", "truth value"):
        return np.isnan(_numbers(values))
    return np.array([is_missing(value) for value in values.tolist()], dtype=np.bool_)


def _features(names: list[str], kinds: dict[str, str], target: str, config: DataConfig) -> list[str]:
    able = {"number", "truth value"} | ({"text"} if config.text == "one-hot" else set())
    if config.features is None:
        features = [name for name in names if name != target and kinds[name] in able]
    else:
        for name in config.features:
            if name not in names:
                raise TableError(f"The table has no column {name!r}; it has {_some(names)}.")
            if name == target:
                raise TableError(f"{name!r} is the target, so it cannot be a feature too.")
            if kinds[name] not in able:
                more = ": data.text=one-hot makes columns of its words" if kinds[name] == "text" else ""
                raise TableError(f"The feature {name!r} is of {kinds[name]}, which no network takes{more}.")
        features = list(config.features)
    if not features:
        raise TableError(f"The table has no feature beside the target {target!r}; it has {_some(names)}.")
    return features


def _used_rows(
    table: Table, blank: dict[str, NDArray[np.bool_]], features: list[str], target: str, config: DataConfig
) -> NDArray[np.bool_]:
    for name in [*features, target]:
        if config.blanks == "refuse" and blank[name].any():
            line = table.lines[int(np.argmax(blank[name]))]
            raise TableError(
                f"Column {name!r} has {int(blank[name].sum()):,} missing or infinite values, the first in line {line}"
                f"{_said(table, name)}. "
                + ("Drop such rows" if name == target else "Drop such rows, fill them in, or choose other features")
                + " (data.blanks, data.features)."
            )
    if config.blanks == "drop":
        return np.asarray(~np.logical_or.reduce(list(blank.values())))
    return ~blank[target]


def _said(table: Table, name: str) -> str:
    """What stands there, where the reader told it."""
    found = next((note for note in table.notes if note.startswith(f"{name}: not numbers")), "")
    return f" ({found.partition(': ')[2].partition(', ')[2]})" if found else ""


def _notes(frame: pd.DataFrame, features: list[str], target: str, kinds: dict[str, str]) -> list[str]:
    """What is odd about columns, so that it is known before and not after a training."""
    y, notes = _numbers(frame[target]), []
    if np.ptp(y) == 0:
        raise TableError(
            f"The target column {target!r} has the same value in every row, {y[0]:g}: there is nothing to learn."
        )
    for name in [target, *features]:
        if kinds[name] == "text":
            continue
        values = _numbers(frame[name])
        full = values[~np.isnan(values)]
        if kinds[name] == "truth value":
            notes.append(f"{name}: truth values are taken as 1 and 0")
        if not len(full):
            notes.append(f"{name} is blank in every row that is used: it tells the network nothing")
            continue
        with np.errstate(over="ignore"):
            spread, middle = float(full.max() / 2 - full.min() / 2), float(np.abs(full).max())
        if spread == 0:
            notes.append(f"{name} is {full[0]:g} in every row: it tells the network nothing")
        elif middle > _FAR * spread:
            notes.append(
                f"{name} lies near {full[0]:g} and varies by {2 * spread:.3g} only: it is moved before it is scaled"
            )
        elif middle > _LARGEST:
            notes.append(f"{name} goes up to {middle:.3g}: it is divided before it is scaled")
        if name != target and len(full) == len(y) and np.array_equal(values, y):
            notes.append(f"{name} is the target itself: what predicts from it shows nothing")
        elif name != target and len(full) > 3 and np.all(np.diff(full) == 1) and np.all(full == np.round(full)):
            notes.append(f"{name} counts the rows: choose other features if it is only their number")
    return notes


def _remark(values: pd.Series, kind: str, use: str, config: DataConfig) -> str:
    match kind:
        case "text":
            # Plain Python here, too, for a table may have thousands of these.
            found = sorted({str(value) for value in values.tolist() if not is_missing(value)})
            count = len(found)
            words = f"text, {count:,} different: {', '.join(found[:3])}{', ...' if count > 3 else ''}"
            if use == "left out":
                return f"{words}; one-hot would make columns of it" if config.text != "one-hot" else words
            check_most(f"words of the feature {values.name!r} as columns", count, limits.WORDS, TableError)
            return f"one-hot: {words}"
        case "date":
            first = values.dropna().iloc[0]
            return f"a date such as {first}, which no network takes: bring it as a number of days if it matters"
        case "blank":
            return "blank in every row"
    return "not chosen" if use == "left out" else ""


def _some(names: list[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")

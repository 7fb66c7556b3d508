"""What the parts of a file are: the raw weights, or which average of them, and after which step."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeGuard, get_args

from emacore.checkpoints.stored import CheckpointError, Foreign, StoredTensor, Unit
from emacore.tensors.pairing import listed, plain_name

Kind = Literal["raw", "average", "window"]

#: Words in the names of averages, between other letters.
_AVERAGE = re.compile(r"(?<![a-z])(ema|swa|averaged?|shadow|polyak|lookahead_slow)(?![a-z])", re.IGNORECASE)
#: Parts of files that are no weights of a model.
_STATE = re.compile(
    r"(optim|lr_?sched|sched|scaler|amp|rng|loops|callbacks|args|hyper|config|datamodule|dataloader|dataset|sampler|"
    r"train_state|history|epoch|metric|saver|monitor)",
    re.IGNORECASE,
)
_STEPS = ("global_step", "step", "optimization_step", "iteration", "iter", "num_steps", "n_steps", "steps")
_EPOCHS = ("epoch", "epochs")
#: More than any run takes, and few enough to count on from.
MOST_STEPS = 10**15


class NoWeightsError(CheckpointError):
    """A file of something else: the state of an optimiser, or nothing that could be averaged."""


@dataclass(frozen=True)
class Section:
    """One set of weights in a file.

    Attributes:
        name: Where it stands, such as ``state_dict_ema``.
        kind: ``raw`` weights; an ``average``, of a kind that ``about`` may tell; or the mean of a ``window`` of steps.
        tensors: By name, without the prefixes of wrappers; a shared one once, under its first name.
        ties: The other names of shared tensors, and their first ones.
        about: What the file says of the average: ``decay``, ``gamma``, ``updates``, for instance.
    """

    name: str
    kind: Kind
    tensors: Mapping[str, StoredTensor]
    ties: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """What its tensors take in their file."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def sections_of(unit: Unit) -> list[Section]:
    """The sets of weights in a file.

    Raises:
        NoWeightsError: if it is a file of something else.
        CheckpointError: if there is none, or one of its tensors is of a kind that cannot be averaged.
    """
    names = ", ".join(map(repr, list(unit.content)[:6])) or "nothing"
    if _is_optimizer(unit.content) or not _holds_floats(unit.content):
        raise NoWeightsError(f"{unit.path.name}: left out, because it holds no weights of a model; it has {names}")
    found = [replace(one, ties={**one.ties, **_aliases(one, unit)}) for one in _sections(unit)]
    if not found:
        raise CheckpointError(f"{unit.path.name} holds no tensors of a model; it has {names}")
    return _with_names(found)


def left_beside(unit: Unit) -> list[str]:
    """The tensors of several floating-point numbers that stand beside the sets of weights in a file."""
    if _is_weights(unit.content):
        return []
    return [
        name
        for name, one in unit.content.items()
        if isinstance(one, StoredTensor) and one.is_averaged and one.numel > 1
    ]


def step_of(unit: Unit) -> tuple[int, str] | None:
    """After which step a file was written by what it says itself, and what said so; an epoch only if there is no step.

    An epoch is told as the number of whole epochs: those that count them from 0 write 0 after the first.  What counts
    the calls of an average is no step: see :func:`counter_of`.
    """
    for count, source, is_of_calls in _counts_in(unit):
        if not is_of_calls:
            return count, source
    if (value := _whole(unit.metadata.get("kimg"))) is not None:
        return value, "thousands of images in the name"
    for name in _EPOCHS:
        if (value := _whole(unit.content.get(name))) is not None:
            return value + 1, f"{name}, counted from 0"
    return None


def counter_of(unit: Unit) -> tuple[int, str] | None:
    """How many calls an average in a file, or beside it, had taken by its own counter, and which that is.

    These are steps where the average has moved after each step since the first, and was never begun anew.
    """
    for count, source, is_of_calls in _counts_in(unit):
        if is_of_calls:
            return count, source
    name = "optimization_step"
    if (value := _whole(_json(unit.path.parent / "config.json").get(name))) is not None:
        return value, f"{name} in config.json"
    return None


def _counts_in(unit: Unit) -> Iterator[tuple[int, str, bool]]:
    """What a file holds under the names of steps, where it stands, and whether it counts the calls of an average."""
    content = unit.content
    for name in _STEPS:
        if (value := _whole(unit.metadata.get(name))) is not None:
            yield value, f"{name} in its metadata", "initted" in unit.metadata
    nodes = [("", content), *((f"{key}.", one) for key, one in content.items() if _is_plain(one))]
    # Averages of diffusers hold their weights in a list, and so are not plain.
    lists = [(f"{key}.", one) for key, one in content.items() if isinstance(one, Mapping) and "shadow_params" in one]
    for prefix, node in [*nodes, *lists]:
        of_average = "shadow_params" in node or (
            "initted" in node and any(key.startswith("ema_model.") for key in node)
        )
        for name in _STEPS:
            # Half precision, in which ema-pytorch stores its counter, ends at 65,504, and skips numbers from 2,049 on.
            stored = node.get(name)
            exact = not isinstance(stored, StoredTensor) or not stored.dtype.is_floating_point
            if exact and (value := _whole(stored)) is not None:
                yield value, f"{prefix}{name}", of_average


def step_beside(path: Path, root: Path) -> tuple[int, str] | None:
    """The step that lies beside a file: in Transformers' ``trainer_state.json``."""
    for folder in (path.parent, *path.parent.parents):
        if (value := _whole(_json(folder / "trainer_state.json").get("global_step"))) is not None:
            return value, "global_step in trainer_state.json"
        if folder in (root, root.parent):
            return None
    return None


def odd_step(unit: Unit) -> str | None:
    """What a file, or what lies beside it, has in the place of a step that cannot be one: below 0, a fraction, text."""
    found = [(name, place.get(name)) for place in (unit.metadata, unit.content) for name in _STEPS]
    beside = _json(unit.path.parent / "trainer_state.json").get("global_step")
    for name, value in [*found, ("global_step in trainer_state.json", beside)]:
        if isinstance(value, StoredTensor) and value.numel == 1:
            value = value.value().item()
        if isinstance(value, (int, float, str)) and not isinstance(value, bool) and _whole(value) is None:
            # Of a long whole number not even its digits can be had.
            text = "a number of too many digits" if isinstance(value, int) and value > MOST_STEPS else repr(value)
            return f"{name} is {text if len(text) < 40 else f'{text[:30]}...'}"
    return None


def _sections(unit: Unit) -> Iterator[Section]:
    by_name = bool(_AVERAGE.search(unit.path.name))
    beside = {key: one for key, one in _json(unit.path.parent / "config.json").items() if key in _OF_DIFFUSERS}
    if "optimization_step" not in beside:
        beside = {}
    kind: Kind = "average" if by_name or beside else "raw"
    if (about := _told_by_snapshot(unit)) is not None:
        state = unit.content if _is_weights(unit.content) else unit.content.get("model", {})
        yield from _flat("", state, about.pop("kind", "raw"), unit, about)
        return
    content = unit.content
    if "shadow_params" in content and isinstance(content["shadow_params"], Mapping):
        about = {key: one for key, one in content.items() if key in _OF_DIFFUSERS}
        yield from _flat("shadow_params", content["shadow_params"], "average", unit, about)
        return
    if _is_weights(content):
        yield from _flat("", content, kind, unit, beside)
        return
    of_lightning = "current_model_state" in content
    # EDM2's power-function averages: a list of them, and one of their widths.
    power = content.get("ema")
    of_edm2 = isinstance(power, Mapping) and isinstance(power.get("emas"), Mapping) and "stds" in power
    if isinstance(power, Mapping) and of_edm2:
        for width, state in zip(_numbers(power["stds"]), power["emas"].values(), strict=True):
            yield from _flat(f"ema-{width:.3f}", state, "average", unit, {"sigma_rel": width})
    for name, part in content.items():
        if name == "callbacks" and isinstance(part, Mapping):
            for callback, state in part.items():
                inner = state.get("average_model_state") if isinstance(state, Mapping) else None
                if _is_weights(inner):
                    yield from _flat(f"callbacks.{callback}", inner, "average", unit)
        if _STATE.match(name) or not isinstance(part, Mapping) or (of_edm2 and part is power) or _is_optimizer(part):
            continue
        if _is_weights(part):
            averaged = (name == "state_dict") if of_lightning else (by_name or bool(_AVERAGE.search(name)))
            about = _plain_values(content.get("averaging_state")) if of_lightning and averaged else {}
            if averaged and "sigma_rel" in unit.metadata:
                about["sigma_rel"] = float(unit.metadata["sigma_rel"])
            yield from _flat(name, part, "average" if averaged else "raw", unit, about)
        elif isinstance(part.get("shadow_params"), Mapping):  # of diffusers, inside another file
            about = {key: one for key, one in part.items() if key in _OF_DIFFUSERS}
            yield from _flat(name, part["shadow_params"], "average", unit, about)
        else:
            for inner, state in _weights_below(name, part):
                yield from _flat(inner, state, "average" if _AVERAGE.search(inner) else "raw", unit)


def _told_by_snapshot(unit: Unit) -> dict[str, Any] | None:
    """What a file of our own says of its weights."""
    told = unit.metadata.get("emacore")
    if told is None:
        return None
    try:
        about = json.loads(told)
    except ValueError:
        about = None
    if (
        not isinstance(about, dict)
        or about.get("kind", "raw") not in get_args(Kind)
        or (about.get("kind") == "window" and not _whole(about.get("begin")))
    ):
        raise CheckpointError(
            f'{unit.path.name} says of itself emacore = {told[:60]!r}, where a snapshot says {{"kind": "raw"}}, '
            '{"kind": "average"}, or {"kind": "window", "begin": the first of its steps}'
        )
    return about


_OF_DIFFUSERS = ("decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power")


def _flat(
    name: str, state: Mapping[str, Any], kind: Kind, unit: Unit, about: Mapping[str, Any] | None = None
) -> Iterator[Section]:
    """The sections of a flat dictionary: wrappers of averages hold two sets of weights, or one and a counter."""
    told = dict(about or {})
    tensors = {key: one for key, one in state.items() if isinstance(one, StoredTensor)}
    if foreign := [key for key, one in state.items() if isinstance(one, Foreign)]:
        raise CheckpointError(
            f"{unit.path.name}: {name or 'its state'} holds {listed(foreign)} of a class that is no plain tensor "
            "(sharded, sparse or quantised ones, for instance): save full tensors"
        )
    if any(key.startswith("ema_model.") for key in tensors):  # ema-pytorch's, and our own
        averages = _below(tensors, "ema_model.")
        averages |= _below(tensors, "accumulator.")
        counters = {key: int(tensors[key].value()) for key in ("step", "initted") if _is_counter(tensors.get(key))}
        yield _section(_joined(name, "ema_model"), "average", averages, {**told, **counters})
        # In a list of one, or not; a Sequential has names that begin so, too, and so has its average.
        found = [_below(tensors, prefix) for prefix in ("online_model.", "online_model.0.")]
        if online := next((one for one in found if one.keys() & averages.keys()), found[0]):
            yield _section(_joined(name, "online_model"), "raw", online, {})
        return
    if _is_counter(tensors.get("n_averaged")):  # torch's AveragedModel
        updates = int(tensors["n_averaged"].value())
        yield _section(name, "average", _below(tensors, "module."), {**told, "updates": updates})
        return
    yield _section(name, kind, tensors, told)


def _aliases(section: Section, unit: Unit) -> dict[str, str]:
    """Other names of shared tensors, as a header tells them: those of a file of safetensors have one each."""
    return {
        name: owner
        for name, owner in unit.metadata.items()
        if name != "format" and owner in section.tensors and name not in section.tensors
    }


def _section(name: str, kind: Kind, tensors: Mapping[str, StoredTensor], about: Mapping[str, Any]) -> Section:
    first: dict[object, str] = {}
    kept: dict[str, StoredTensor] = {}
    ties: dict[str, str] = {}
    for raw, tensor in tensors.items():
        plain = plain_name(raw)
        owner = plain if tensor.identity is None else first.setdefault(tensor.identity, plain)
        if owner == plain:
            kept[plain] = tensor
        else:
            ties[plain] = owner
    return Section(name, kind, kept, ties, about)


def _with_names(sections: list[Section]) -> list[Section]:
    """Averages without names (diffusers keeps a list) get those of raw weights in the same file that fit one by one."""
    raw = next((section for section in sections if section.kind == "raw"), None)
    if raw is None:
        return sections
    named = []
    for section in sections:
        if all(name.isdigit() for name in section.tensors):
            names = [name for name, tensor in raw.tensors.items() if tensor.is_averaged]
            shapes = [raw.tensors[name].shape for name in names]
            if shapes == [tensor.shape for tensor in section.tensors.values()]:
                tensors = dict(zip(names, section.tensors.values(), strict=True))
                section = Section(section.name, section.kind, tensors, {}, section.about)
        named.append(section)
    return named


def _weights_below(name: str, part: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The sets of weights in nested dictionaries, however deep, and where each stands."""
    for inner, state in part.items():
        if _STATE.match(inner) or not isinstance(state, Mapping) or _is_optimizer(state):
            continue
        if not _is_weights(state):
            yield from _weights_below(f"{name}.{inner}", state)
        elif any(isinstance(one, StoredTensor) and one.shape for one in state.values()):  # not a few losses
            yield f"{name}.{inner}", state


def _is_optimizer(value: Mapping[str, Any]) -> bool:
    return "param_groups" in value and "state" in value


def _holds_floats(node: Mapping[str, Any]) -> bool:
    return any(
        one.is_averaged
        if isinstance(one, StoredTensor)
        else isinstance(one, Foreign) or (isinstance(one, Mapping) and _holds_floats(one))
        for one in node.values()
    )


def _numbers(values: Any) -> list[float]:
    return [float(value) for value in (values.values() if isinstance(values, Mapping) else values)]


def _is_weights(value: Any) -> TypeGuard[Mapping[str, Any]]:
    """Whether it is a dictionary of tensors, one of them of floating-point numbers; counters may lie among them."""
    if not isinstance(value, Mapping):
        return False
    tensors = [one for one in value.values() if isinstance(one, StoredTensor)]
    nested = any(isinstance(one, Mapping) and _holds_tensors(one) for one in value.values())
    return any(tensor.is_averaged for tensor in tensors) and not nested


def _holds_tensors(node: Mapping[str, Any]) -> bool:
    return any(
        isinstance(one, StoredTensor) or (isinstance(one, Mapping) and _holds_tensors(one)) for one in node.values()
    )


def _is_counter(tensor: StoredTensor | None) -> bool:
    return tensor is not None and tensor.numel == 1 and not tensor.is_averaged


def _is_plain(value: Any) -> bool:
    return isinstance(value, Mapping) and not any(isinstance(one, Mapping) for one in value.values())


def _below(tensors: Mapping[str, StoredTensor], prefix: str) -> dict[str, StoredTensor]:
    return {key.removeprefix(prefix): one for key, one in tensors.items() if key.startswith(prefix)}


def _plain_values(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {}
    found = {key: _whole(one) if isinstance(one, StoredTensor) else one for key, one in value.items()}
    if "n_averaged" in found:
        found["updates"] = found.pop("n_averaged")
    return {key: one for key, one in found.items() if isinstance(one, (int, float, str))}


def _joined(name: str, inner: str) -> str:
    return f"{name}.{inner}" if name else inner


def _whole(value: Any) -> int | None:
    """A count, whatever a file has it as; else ``None``."""
    if isinstance(value, StoredTensor):
        if value.numel != 1:
            return None
        value = value.value().item()
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_STEPS else None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

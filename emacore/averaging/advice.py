"""Settings for a run: what is known of it in, a few settings with round numbers out, each with where it comes from.

Nothing here was tuned: a setting follows from a formula, or it is what a named paper or the code of its authors has.
Where neither says anything, :attr:`Advice.unknown` does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from emacore.averaging import filters
from emacore.averaging.code import to_code
from emacore.averaging.families import Constant, InversePower, PowerFunction, UniformAverage
from emacore.averaging.parts import remaining
from emacore.averaging.schedules import Schedule, final_half_life, last_move
from emacore.averaging.solving import at_batch_size, at_length
from emacore.checks import check_positive, check_whole
from emacore.formatting import bounded, counted, number, percent
from emacore.formatting import decay as decay_text

#: The longest run that is asked about.
MOST_STEPS = 10**10

Trained = Literal["diffusion", "language model", "image classifier", "teacher of a student", "other"]
Rate = Literal["constant", "cosine or linear to zero", "warm-up, stable, decay"]
Wish = Literal["noisy evaluation", "final quality", "several lengths to choose from later"]
TRAINED: tuple[Trained, ...] = ("diffusion", "language model", "image classifier", "teacher of a student", "other")
RATES: tuple[Rate, ...] = ("constant", "cosine or linear to zero", "warm-up, stable, decay")
WISHES: tuple[Wish, ...] = ("noisy evaluation", "final quality", "several lengths to choose from later")

#: By how much rounding may change a half-life.
ROUNDING = 0.05
#: A mean of fewer updates is hardly one.
_FEWEST = 3
#: An average that is so much of its newest snapshot is a copy of it.
_COPY = 0.95


class Source(NamedTuple):
    """Where something comes from: a formula, our own study, a paper, the code that belongs to one, or plain reasoning.

    ``name`` is short, ``text`` says where in it the thing stands.
    """

    kind: Literal["formula", "our study", "paper", "code", "reasoning"]
    name: str
    text: str
    url: str = ""


EDM2 = Source(
    "code",
    "EDM2, generate_images.py",
    "EDM2's published models, config_presets in generate_images.py (Karras et al., arXiv 2312.02696)",
    "https://github.com/NVlabs/edm2/blob/main/generate_images.py",
)
EDM2_SNAPSHOTS = Source(
    "code",
    "EDM2, phema.py",
    "EDM2's training, the default stds of PowerFunctionEMA in training/phema.py (Karras et al., arXiv 2312.02696)",
    "https://github.com/NVlabs/edm2/blob/main/training/phema.py",
)
DIT = Source(
    "code",
    "DiT, train.py",
    "DiT, defaults of train.py: decay 0.9999, batch 256, constant rate (Peebles and Xie, arXiv 2212.09748)",
    "https://github.com/facebookresearch/DiT/blob/main/train.py",
)
TIMM = Source(
    "code",
    "timm, train.py",
    "timm, default of --model-ema-decay in train.py",
    "https://github.com/huggingface/pytorch-image-models/blob/main/train.py",
)
DINO = Source(
    "code",
    "DINO, main_dino.py",
    "DINO, help of --momentum_teacher in main_dino.py (Caron et al., arXiv 2104.14294)",
    "https://github.com/facebookresearch/dino/blob/main/main_dino.py",
)
MOCO = Source(
    "code",
    "MoCo, main_moco.py",
    "MoCo, default of --moco-m in main_moco.py, whose default batch size is 256 (He et al., arXiv 1911.05722)",
    "https://github.com/facebookresearch/moco/blob/main/main_moco.py",
)
COMPOSER = Source(
    "code",
    "composer, EMA method card",
    "composer, the method card of EMA (algorithms/ema/README.md)",
    "https://github.com/mosaicml/composer/blob/main/composer/algorithms/ema/README.md",
)
LAWA = Source(
    "paper",
    "arXiv 2502.06761",
    "Ajroldi, Orvieto and Geiping, When, Where and Why to Average Weights?, arXiv 2502.06761; the 1 % as its review "
    "for ICML 2025 sums it up",
    "https://arxiv.org/abs/2502.06761",
)
ANNEALED = LAWA._replace(
    text="Ajroldi, Orvieto and Geiping, When, Where and Why to Average Weights?, abstract, arXiv 2502.06761"
)
WSM = Source(
    "paper",
    "arXiv 2507.17634",
    "Tian et al., WSM: Decay-Free Learning Rate Schedule via Checkpoint Merging, abstract, arXiv 2507.17634",
    "https://arxiv.org/abs/2507.17634",
)
SCALING = Source(
    "paper",
    "arXiv 2307.13813",
    "Busbridge et al., How to Scale Your EMA, arXiv 2307.13813; here a product of decays",
    "https://arxiv.org/abs/2307.13813",
)
FRACTION = Source(
    "formula",
    "gamma = ln 2 / f - 1",
    "gamma = ln 2 / f - 1: the limit of a half-life that is a fraction f of the time so far",
)
LOW_PASS = Source(
    "formula", "low-pass filter", "an EMA as a low-pass filter: variance (1 - d) / (1 + d), lag d / (1 - d)"
)
REPLAYED = Source(
    "reasoning", "what a replay is", "a replay averages recorded weights, and other averages would have changed these"
)
LOOKED_AT = Source(
    "reasoning", "what update_every is", "the average moves at steps 0, update_every, 2 update_every ..."
)
PRODUCT = Source("formula", "product of decays", "the decays of this schedule, and their product")


class Published(NamedTuple):
    """A relative width that EDM2's authors chose after training, for the best value of a metric."""

    model: str
    pixels: int
    metric: str
    guidance: bool
    width: float


def _widths(pixels: int, metric: str, guidance: bool, **widths: float) -> list[Published]:
    return [Published(model.upper(), pixels, metric, guidance, width) for model, width in widths.items()]


#: The widths that EDM2's authors chose (:data:`EDM2`), without and with classifier-free guidance; read from the names
#: of its models.  Those for autoguidance are another paper's.
PUBLISHED = [
    *_widths(512, "FID", False, xs=0.135, s=0.13, m=0.1, l=0.085, xl=0.085, xxl=0.07),
    *_widths(512, "FD-DINOv2", False, xs=0.2, s=0.19, m=0.155, l=0.155, xl=0.155, xxl=0.15),
    *_widths(64, "FID", False, s=0.075, m=0.06, l=0.04, xl=0.04),
    *_widths(512, "FID", True, xs=0.045, s=0.025, m=0.03, l=0.015, xl=0.02, xxl=0.015),
    *_widths(512, "FD-DINOv2", True, xs=0.15, s=0.085, m=0.015, l=0.035, xl=0.03, xxl=0.015),
]


def published_range(pixels: int, metric: str, guidance: bool) -> str:
    """The narrowest and the widest of :data:`PUBLISHED`: "7 to 13.5 %"."""
    found = [one.width for one in PUBLISHED if one[1:4] == (pixels, metric, guidance)]
    return f"{number(100 * min(found))} to {number(100 * max(found))} %"


@dataclass(frozen=True)
class Run:
    """What is known of a run.

    Args:
        steps: Optimiser steps, up to 10^10.
        update_every: Steps from one update of the average to the next.
        batch: Samples (or tokens) a step, if known.
        epochs: Passes over the data, if known.

    Raises:
        ValueError: for a value out of range, or a word that is not in :data:`TRAINED`, :data:`RATES`, :data:`WISHES`.
    """

    steps: int
    update_every: int = 1
    trained: Trained = "other"
    rate: Rate = "constant"
    wish: Wish = "final quality"
    batch: float | None = None
    epochs: float | None = None

    def __post_init__(self) -> None:
        check_whole("steps", self.steps, 2, MOST_STEPS)
        check_whole("update_every", self.update_every, 1, MOST_STEPS)
        for name, known in (("trained", TRAINED), ("rate", RATES), ("wish", WISHES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}; got {getattr(self, name)!r}")
        for name in ("batch", "epochs"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))

    def rescaled(self, batch: float = 1.0, length: float = 1.0) -> Run:
        """The run at ``batch`` times the batch size and ``length`` times as many samples."""
        return Run(
            round(self.steps * length / batch),
            self.update_every,
            self.trained,
            self.rate,
            self.wish,
            None if self.batch is None else self.batch * batch,
            None if self.epochs is None else self.epochs * length,
        )


class Usual(NamedTuple):
    """The batch size (if known) at which a decay is usual, and by how much a click changed it since."""

    batch: float | None
    factor: float = 1.0


class Recommendation(NamedTuple):
    """A schedule for a run, why, and who says so; ``usual`` where the reason names the decay of another batch size."""

    name: str
    schedule: Schedule
    reason: str
    source: Source
    usual: Usual | None = None


def reason_in(run: Run, setting: Recommendation) -> str:
    """Why a setting, with the batch size that it was carried over to."""
    usual = setting.usual
    if usual is None or (usual.factor == 1 and run.batch in (None, usual.batch)):
        return setting.reason
    where = f"{number(usual.factor)} times the batch" if run.batch is None else f"batch {number(run.batch)}"
    return f"{setting.reason}; carried over to {where}"


class Remark(NamedTuple):
    """A sentence, and where it comes from."""

    text: str
    source: Source


class Measured(NamedTuple):
    """What a study of ours found: of how many seeds the average was better, and the median gain with its interval."""

    task: str
    seeds: int
    wins: int
    gain: float
    low: float
    high: float


class Advice(NamedTuple):
    """Two or three settings; what to expect of averaging here; warnings; and what nobody knows."""

    settings: list[Recommendation]
    expected: list[Remark]
    warnings: list[Remark]
    unknown: list[str]


def steps_of_samples(samples: int, batch: int, epochs: int) -> int:
    """Optimiser steps of ``epochs`` passes over so many samples, the last batch of each pass a smaller one."""
    for name, value in (("samples", samples), ("batch", batch), ("epochs", epochs)):
        check_whole(name, value, 1)
    if batch > samples:
        raise ValueError(f"a batch of {number(batch)} is larger than the {counted(samples, 'sample')}")
    return -(-samples // batch) * epochs


def steps_of_tokens(tokens: int, batch: int, epochs: int = 1) -> int:
    """Optimiser steps of ``epochs`` passes over so many tokens, cut into batches without a rest."""
    for name, value in (("tokens", tokens), ("batch", batch), ("epochs", epochs)):
        check_whole(name, value, 1)
    if batch > tokens * epochs:
        raise ValueError(f"a batch of {number(batch)} is larger than the {counted(tokens * epochs, 'token')}")
    return -(-tokens * epochs // batch)


def rounded_decay(decay: float) -> float:
    """A decay with as few digits as leave its half-life within :data:`ROUNDING`; 0 and 1 stay.

    They are counted in 1 - decay where that is the smaller one: 0.9998 has one.  Below 0.0001 nothing is left of what
    was averaged before, and 0 says so.
    """
    if not 0 < decay < 1:
        return decay
    if decay < 1e-4:
        return 0.0
    small = min(decay, 1 - decay)
    for digits in range(1, 17):
        rounded = float(f"{small:.{digits}g}")
        # The decimal itself: 1 - 0.0002 is 0.9998, and not the float that a subtraction leaves.
        places = digits + max(0, -math.floor(math.log10(small)))
        found = rounded if decay < 0.5 else float(f"{1 - rounded:.{places}f}")
        if 0 < found < 1 and abs(filters.half_life(found) / filters.half_life(decay) - 1) <= ROUNDING:
            return found
    return decay


def rounded_schedule(schedule: Schedule) -> Schedule:
    """The schedule with settings rounded to what matters: its half-life stays within :data:`ROUNDING`."""
    match schedule:
        case InversePower():
            return schedule.varied(
                beta=rounded_decay(schedule.beta),
                inv_gamma=float(f"{schedule.inv_gamma:.3g}"),
                min_value=rounded_decay(schedule.min_value),
            )
        case UniformAverage():
            start = schedule.update_after_step
            return schedule.varied(update_after_step=int(float(f"{start:.3g}")))
        case PowerFunction():
            return schedule
    beta = getattr(schedule, "beta", None)
    return schedule if beta is None else schedule.varied(beta=rounded_decay(beta))


def constant_of_window(window: float, update_every: int = 1) -> Constant:
    """The constant decay, rounded, whose delay and noise are those of a plain mean of the last ``window`` steps.

    Of less than one update it is 0, which copies.
    """
    moves = max(window / update_every, 1.0)
    return Constant(rounded_decay(filters.decay_from_window(moves)), update_every=update_every)


def gamma_of_fraction(fraction: float) -> float:
    """``ln 2 / f - 1``: the power function to which a half-life of ``fraction`` of the time so far tends.

    The rule's decay at step t is ``2 ** (-1 / (f t))``, and ``(1 - 1/t) ** (gamma + 1)`` tends to
    ``exp(-(gamma + 1) / t)``.  So it is for every f below ln 2, up to which gamma is at least 0.

    Raises:
        ValueError: for another fraction.
    """
    if not 0 < fraction <= math.log(2):
        raise ValueError(f"fraction must be above 0 and at most ln 2 = {math.log(2):.4f}, got {fraction!r}")
    return math.log(2) / fraction - 1


def advise(run: Run, measured: dict[str, Measured] | None = None) -> Advice:
    """What to set for a run.

    Args:
        measured: Our own study's results, by "high rate" (never lowered), "lowered rate" and "steadiness".
    """
    settings = _settings(run)
    return Advice(settings, _expected(run, settings, measured or {}), warnings(run, settings), _unknown(run))


class HalfLife(NamedTuple):
    """How long the memory at the end of a run is: in steps, in epochs (if known) and as a share of the run."""

    steps: float
    epochs: float | None
    share: float

    def __str__(self) -> str:
        epochs = "" if self.epochs is None else f", {counted(self.epochs, 'epoch', digits=3)}"
        return f"{counted(self.steps, 'step')}, {bounded(100 * self.share, 3)} % of the run{epochs}"


def half_life_in(run: Run, schedule: Schedule) -> HalfLife:
    """The half-life of the decay that acts at the end of a run."""
    steps = final_half_life(schedule, run.steps)
    share = steps / run.steps
    return HalfLife(steps, None if run.epochs is None else share * run.epochs, share)


def settings_table(run: Run, settings: list[Recommendation]) -> dict[str, list[object]]:
    """The settings as columns: setting, schedule, half_life_ steps, epochs and percent, reason, source."""
    rows = [(one, half_life_in(run, one.schedule)) for one in settings]
    return {
        "setting": [one.name for one, _ in rows],
        "schedule": [to_code(one.schedule) for one, _ in rows],
        "half_life_steps": [memory.steps for _, memory in rows],
        "half_life_epochs": [memory.epochs for _, memory in rows],
        "half_life_percent": [100 * memory.share for _, memory in rows],
        "reason": [reason_in(run, one) for one, _ in rows],
        "source": [one.source.text for one, _ in rows],
    }


def rescaled_settings(settings: list[Recommendation], batch: float = 1.0, length: float = 1.0) -> list[Recommendation]:
    """The same settings at ``batch`` times the batch size and for ``length`` times as long a run, rounded.

    Settings made for a share of the run keep that share, and their memory in samples at another batch size.

    Raises:
        ValueError: for a family that has no such settings.
    """
    found = []
    for setting in settings:
        schedule = at_length(at_batch_size(setting.schedule, batch), length)
        usual = setting.usual and setting.usual._replace(factor=setting.usual.factor * batch)
        found.append(setting._replace(schedule=rounded_schedule(schedule), usual=usual))
    return found


def rescaling_remarks(settings: list[Recommendation], batch: float) -> list[Remark]:
    """What to know of settings (as they were) that are carried over to ``batch`` times the batch size."""
    if batch == 1:
        return []
    found = [
        Remark(
            "The learning rate was chosen for the other batch size and must be scaled, too: linearly for SGD. A "
            f"constant decay d becomes d^{number(batch)}, a power function stays as it is, and update_after_step is "
            f"divided by {number(batch)}.",
            SCALING,
        )
    ]
    notes = dict.fromkeys(setting.schedule.rescaling for setting in settings)
    return found + [Remark(note, PRODUCT) for note in notes if note]


def _window(run: Run) -> Recommendation:
    share = min(max(0.01, _FEWEST * run.update_every / run.steps), 1.0)
    return Recommendation(
        f"Window of {percent(share)}",
        constant_of_window(share * run.steps, run.update_every),
        f"the delay and noise of a plain mean of the last {percent(share)} of the run: "
        + ("" if share == 0.01 else "1 % would hold too few updates, but ")
        + "windows of about 1 % did well on the tasks of AlgoPerf",
        LAWA,
    )


def _width(run: Run, width: float, reason: str, source: Source) -> Recommendation:
    return Recommendation(
        f"Width {percent(width)}", PowerFunction(sigma_rel=width, update_every=run.update_every), reason, source
    )


def _convention(run: Run, decay: float, batch: float | None, name: str, source: Source) -> Recommendation:
    """A decay that is usual at a batch size, as it is at the run's."""
    factor = run.update_every * (1.0 if batch is None or run.batch is None else run.batch / batch)
    schedule = Constant(rounded_decay(decay**factor), update_every=run.update_every)
    told = f"{decay_text(decay)} a step" + ("" if batch is None else f" at batch {number(batch)}")
    return Recommendation(name, schedule, told, source, Usual(batch or run.batch))


def _tail(run: Run) -> Recommendation:
    start = int(float(f"{0.9 * run.steps:.3g}"))
    return Recommendation(
        "Mean of the last tenth",
        UniformAverage(update_after_step=start, update_every=run.update_every),
        ("with the stable rate to the end, " if run.rate == "warm-up, stable, decay" else "")
        + "merging the weights of the end in place of lowering the rate; a tenth is a first guess",
        WSM,
    )


def _fraction(run: Run) -> Recommendation:
    gamma = float(f"{gamma_of_fraction(0.05):.3g}")
    return Recommendation(
        "Half-life 5 % of the time so far",
        PowerFunction(gamma=gamma, update_every=run.update_every),
        "needs no length in advance: the memory grows with the run",
        FRACTION,
    )


def _settings(run: Run) -> list[Recommendation]:
    lowered = run.rate == "cosine or linear to zero"
    if run.trained == "teacher of a student":
        dino = _convention(run, 0.9995, 256, "DINO's advice", DINO)
        begins = f"{dino.reason} at the start; DINO raises it to 1 over the run, by a cosine"
        return [
            dino._replace(reason=begins),
            _convention(run, 0.999, 256, "MoCo's momentum", MOCO),
        ]
    if run.wish == "several lengths to choose from later":
        why = "one of two that are kept with snapshots, from which any width can be made afterwards"
        pair = [_width(run, width, why, EDM2_SNAPSHOTS) for width in (0.05, 0.1)]
        return pair if lowered else [*pair, _tail(run)]
    if run.trained == "diffusion":
        plain = f"chosen widths without guidance: {published_range(512, 'FID', False)} by FID on ImageNet-512"
        guided = f"chosen widths with guidance: {published_range(512, 'FID', True)} by FID on ImageNet-512"
        narrow, usual = _width(run, 0.03, guided, EDM2), _convention(run, 0.9999, 256, "DiT's default", DIT)
        return [_window(run) if run.wish == "noisy evaluation" else _width(run, 0.1, plain, EDM2), narrow, usual]
    other = (
        _convention(run, 0.9998, None, "timm's default", TIMM) if run.trained == "image classifier" else _fraction(run)
    )
    if lowered or run.wish == "noisy evaluation":
        return [_window(run), other]
    return [_tail(run), _window(run), other] if run.trained == "language model" else [_window(run), other, _tail(run)]


def _expected(run: Run, settings: list[Recommendation], measured: dict[str, Measured]) -> list[Remark]:
    found = []
    steady, high, low = (measured.get(name) for name in ("steadiness", "high rate", "lowered rate"))
    if run.wish == "noisy evaluation":
        first = settings[0].schedule
        decay = float(first.at([last_move(first, run.steps)])[0])
        lag = run.update_every * decay / (1 - decay) if decay < 1 else math.inf
        found.append(
            Remark(
                f"{settings[0].name} leaves {bounded(100 * (1 - decay) / (1 + decay), 2)} % of the variance of noise "
                f"that is independent from update to update, and is {counted(lag, 'step', digits=3)} late.",
                LOW_PASS,
            )
        )
        if steady:
            found.append(_study("the curve of the average is steadier", steady))
    if run.rate == "constant" and high:
        found.append(_study("at a rate that is never lowered the average's final loss is lower", high))
    if run.rate == "warm-up, stable, decay":
        found.append(
            Remark(
                "Merging the weights of the stable phase can stand in for the decay phase; of all its settings the "
                "length of the merge mattered most.",
                WSM,
            )
        )
    if run.rate == "cosine or linear to zero" and low:
        found.append(_study("where a plateau rule lowers the rate the average's final loss is lower", low))
    return found


def _study(what: str, one: Measured) -> Remark:
    seeds = counted(one.seeds, "seed")
    return Remark(
        f"In our study {what} in {one.wins} of {seeds} (median gain {percent(one.gain)}, 95 % interval "
        f"{percent(one.low)} to {percent(one.high)}).",
        Source("our study", f"{one.task}, {seeds}", f"{one.task}, {seeds}; page Evidence"),
    )


def warnings(run: Run, settings: list[Recommendation]) -> list[Remark]:
    """What could go wrong with these settings in this run."""
    found = []
    if run.trained == "teacher of a student":
        found.append(
            Remark(
                "This average feeds back into the training: the student learns from it. A recorded run cannot be "
                "replayed with another one, so each setting needs a training of its own.",
                REPLAYED,
            )
        )
    if run.rate == "cosine or linear to zero" and run.trained != "teacher of a student":
        found.append(
            Remark(
                "The rate goes to zero, so expect little of averaging at the end: both calm the same noise. On "
                "AlgoPerf averages on top of it were mildly better, and good sooner.",
                ANNEALED,
            )
        )
    return [*found, *_never(run), *own_warnings(run, settings)]


def own_warnings(run: Run, settings: list[Recommendation]) -> list[Remark]:
    """What could go wrong with settings, whoever chose them: no move, a cap that never acts, a start that stays."""
    every = max(one.schedule.update_every for one in settings)
    if every >= run.steps:
        so_long = "as long as" if every == run.steps else "longer than"
        return [
            Remark(
                f"update_every = {number(every)} is {so_long} the run ({counted(run.steps, 'step')}): only the first "
                "step is looked at, and nothing is averaged.",
                LOOKED_AT,
            )
        ]
    return [*_capped(run, settings), *_copies(run, settings), *_starts(run, settings), *_coarse(run, settings)]


def _never(run: Run) -> list[Remark]:
    """ema-pytorch's own defaults, whose cap many take for the memory."""
    usual = InversePower(beta=0.9999, power=2 / 3, inv_gamma=1.0, update_after_step=100, update_every=10)
    call = usual.reaches(usual.beta)
    if call is not None and call < run.steps:
        return []
    if last_move(usual, run.steps) <= usual.start:
        return []
    half_life = final_half_life(usual, run.steps)
    return [
        Remark(
            f"With the defaults of ema-pytorch (beta 0.9999, power 2/3, update_every 10) beta never acts: that takes "
            f"{counted(call or math.inf, 'step')}. This run would end at a half-life of "
            f"{counted(half_life, 'step', digits=3)}, {percent(half_life / run.steps)} of it.",
            PRODUCT,
        )
    ]


def _capped(run: Run, settings: list[Recommendation]) -> list[Remark]:
    found = []
    for name, schedule, *_ in settings:
        beta = getattr(schedule, "beta", None)
        if beta is None or not schedule.attains_beta or last_move(schedule, run.steps) <= schedule.start:
            continue
        final = float(schedule.at([last_move(schedule, run.steps)])[0])
        if final < beta:
            found.append(
                Remark(f"{name}: beta = {decay_text(beta)} never acts, the decay ends at {decay_text(final)}.", PRODUCT)
            )
    return found


def _starts(run: Run, settings: list[Recommendation]) -> list[Remark]:
    found = []
    for name, schedule, *_ in settings:
        share = float(remaining(schedule, run.steps, [schedule.start])[0])
        moves = (last_move(schedule, run.steps) - schedule.start) // schedule.update_every + 1
        if moves < 2:
            found.append(
                Remark(
                    f"{name}: it begins at step {number(schedule.start)}, and the run is over before it moves.", PRODUCT
                )
            )
        elif share > max(0.01, 1.5 / moves):  # a plain mean has one part in so many
            found.append(
                Remark(
                    f"{name}: {percent(share, 2)} of the final average are still the weights it started with; its "
                    "memory is long for this run.",
                    PRODUCT,
                )
            )
    return found


def _copies(run: Run, settings: list[Recommendation]) -> list[Remark]:
    """Averages that are none, because a step (or a call) is as long as their memory."""
    found = []
    for name, schedule, *_ in settings:
        last = last_move(schedule, run.steps)
        if last > schedule.start and (share := 1 - float(schedule.at([last])[0])) > _COPY:
            found.append(
                Remark(
                    f"{name}: {percent(share, 4)} of the final average are the last weights it looked at, so nothing "
                    "is averaged: a step (times update_every) is as long as this memory.",
                    PRODUCT,
                )
            )
    return found


def _coarse(run: Run, settings: list[Recommendation]) -> list[Remark]:
    found = [(one.name, one.schedule.update_every, final_half_life(one.schedule, run.steps)) for one in settings]
    coarse = [(name, every, steps) for name, every, steps in found if every > 1 and 0 < steps < 10 * every]
    if not coarse:
        return []
    told = " and ".join(f"{counted(steps, 'step', digits=3)} ({name})" for name, _, steps in coarse)
    return [
        Remark(
            f"update_every = {number(max(every for _, every, _ in coarse))} is not small against a half-life of "
            f"{told}: the average holds few snapshots. Update at least ten times in a half-life.",
            COMPOSER,
        )
    ]


def _unknown(run: Run) -> list[str]:
    known = []
    if run.trained == "teacher of a student":
        return [
            "Nobody knows the best memory of a teacher but by training with it: student and teacher change together."
        ]
    if run.trained == "diffusion":
        lowest, highest = (number(100 * one(two.width for two in PUBLISHED)) for one in (min, max))
        known.append(
            f"Nobody knows the best width before the end: EDM2's own go from {lowest} to {highest} %, by model, metric "
            "and guidance. Keep several, or record the run, and choose afterwards."
        )
    elif run.trained == "language model":
        known.append(
            "Nobody knows how long to merge in your run: what is published is for other models and data. Record the "
            "end of it, and compare lengths."
        )
    else:
        known.append(
            "No formula gives the memory with the best final quality: it depends on how noisy the steps are and how "
            "fast the weights still move. Record a run, and compare lengths."
        )
    return known

"""Measures a folder of pairs, and describes what looks wrong."""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tabulate import tabulate
from tqdm import tqdm

from dfx.datasets.halves import cut_in_halves
from dfx.datasets.inspection import Look, describe_conversion, describe_levels, describe_oddities, inspect_pair
from dfx.datasets.pairs import (
    SPLITS,
    Fold,
    Listed,
    Pair,
    as_recording,
    check_file,
    files_of,
    list_pairs,
    split_pairs,
)
from dfx.datasets.splits import first_of, record_pairs
from dfx.datasets.treatment import Treatment
from dfx.errors import (
    CHANNELS,
    COUNTS,
    SAMPLE_RATES,
    SEEDS,
    DataError,
    UserError,
    check_numbers,
    printable,
)

_FEW_TEST_PAIRS = 3


@dataclasses.dataclass
class Options:
    """The options of a training config that decide how it reads its data; defaults are those of the task."""

    sample_rate: int = 22050
    channels: int = 1
    context_samples: int = 40960
    highpass_hz: float | None = None
    rows: dict[str, str] | None = None
    seed: int = 0
    fold: Fold | None = None
    folds: int | None = None
    takes_reference: bool = False

    def __post_init__(self) -> None:
        check_numbers(vars(self), sample_rate=SAMPLE_RATES, channels=CHANNELS, context_samples="1..100000000")
        check_numbers(vars(self), highpass_hz="(0, 384000]", seed=SEEDS, fold=COUNTS, folds="2..1000000")


@dataclasses.dataclass
class Report:
    """The content of a folder of pairs.

    Args:
        folder: of the pairs.
        options: with which they are read.
        splits: the number of pairs and of seconds of each split or, of a cross-validation, of each fold.
        pairs: measurements of the pairs that can be read.
        faults: sentences about what makes training refuse the data.
        warnings: sentences about what looks wrong.
        notes: sentences about what training converts.
    """

    folder: str
    options: Options
    splits: dict[str, dict[str, float]]
    pairs: list[Look]
    faults: list[str]
    warnings: list[str]
    notes: list[str]


def check_folder(folder: str, options: Options = Options()) -> Report:
    """Measure the pairs of a folder, and describe them.

    Raises:
        DataError: if the folder has no pairs, or a manifest that cannot be read.
    """
    faults: list[str] = []
    needs_split = not (options.fold or options.folds)
    listed = list_pairs(folder, options.rows, needs_split, on_fault=lambda error: faults.append(str(error)))
    if not listed:
        raise DataError(faults[0] if faults else f"{folder} has no pairs")
    splits: dict[str, list[Pair]] = dict.fromkeys(SPLITS, [])
    try:
        splits = _split(listed, folder, options)
        listed = [(pair, split) for split in splits for pair in splits[split]]
    except DataError as error:
        faults.append(str(error))
    if options.takes_reference:
        listed = [(as_recording(pair), split) for pair, split in listed]
    with ThreadPoolExecutor() as executor:
        checking = executor.map(lambda pair: _check_pair(pair, options), listed)
        checked = list(tqdm(checking, total=len(listed), desc="Checking audio", leave=False))
    looks = [look for look, _, _ in checked if look]
    faults += [fault for _, of_pair, _ in checked for fault in of_pair]
    cancelling = [sentence for _, _, of_pair in checked for sentence in of_pair]
    return Report(
        folder,
        options,
        {split: _totals([pair for pair, given in listed if given == split]) for split in splits},
        looks,
        faults,
        [
            *([] if options.takes_reference else describe_oddities(looks)),
            *cancelling,
            *describe_levels(looks),
            *_find_copies(listed, folder),
            *_find_split_groups(listed),
        ],
        [
            *describe_conversion(files_of(pair for pair, _ in listed), options.sample_rate, options.channels),
            *_describe_lengths(listed, options),
        ],
    )


def _split(listed: Sequence[Listed], folder: str, options: Options) -> dict[str, list[Pair]]:
    """Return the pairs of each split or, of a cross-validation, those that each fold tests."""
    if not options.folds:
        splits = split_pairs(listed, folder, options.seed, options.fold)
        return {split: splits[split] for split in SPLITS}
    numbers = range(1, options.folds + 1)
    folds = [split_pairs(listed, folder, options.seed, (number, options.folds)) for number in numbers]
    return {f"fold_{number}": splits["test"] for number, splits in zip(numbers, folds)}


def _check_pair(listed: Listed, options: Options) -> tuple[Look | None, list[str], list[str]]:
    """Return measurements, faults and warnings of one pair."""
    pair, split = listed
    reading = options.sample_rate, options.channels, Treatment(options.highpass_hz).read_filtered
    checks = [check_file(file, *reading) for file in dict.fromkeys((pair.input, pair.target))]
    faults = [check.fault for check in checks if check.fault]
    look = None if faults else inspect_pair(pair, split)
    if options.takes_reference:
        try:
            cut_in_halves(pair.target, options.context_samples / options.sample_rate)
        except DataError as error:
            faults.append(str(error))
    return look, faults, [check.warning for check in checks if check.warning]


def _totals(pairs: Sequence[Pair]) -> dict[str, float]:
    return {"pairs": len(pairs), "seconds": round(sum(pair.input.seconds for pair in pairs), 3)}


def _find_copies(listed: Sequence[Listed], folder: str) -> list[str]:
    """Return a sentence if the same audio, in different files, is in two splits."""
    found = defaultdict(list)
    for record, (pair, split) in zip(record_pairs([pair for pair, _ in listed], folder), listed):
        found[record.checksum].append((pair.name, split))
    copied = [names for names in found.values() if len({split for _, split in names}) > 1]
    copies = [f"{name} in {split}" for names in copied for name, split in names]
    if not copies:
        return []
    count = f"{len(copies)} of {len(listed)} pairs"
    return [f"{count} have copies in another split, whose metrics are then too good: {first_of(copies)}"]


def _find_split_groups(listed: Sequence[Listed]) -> list[str]:
    """Return a sentence if pairs of one group are in two splits."""
    found = defaultdict(set)
    for pair, split in listed:
        found[pair.group].add(split)
    groups = [f"{group} in {' and '.join(sorted(of))}" for group, of in sorted(found.items()) if len(of) > 1]
    if not groups:
        return []
    count = f"{len(groups)} of {len(found)} groups"
    return [f"{count} have pairs in several splits, so the test split does not measure others: {first_of(groups)}"]


def _describe_lengths(listed: Sequence[Listed], options: Options) -> list[str]:
    pairs = [pair for pair, _ in listed]
    shorter = sum(pair.input.samples_at(options.sample_rate) < options.context_samples for pair in pairs)
    notes = []
    if options.takes_reference:
        notes.append("the task makes its inputs from the targets: only these are checked, and stand for both above")
    elif shorter:
        seconds = options.context_samples / options.sample_rate
        notes.append(
            f"{shorter} of {len(pairs)} pairs are shorter than the context ({seconds:.2f} s): padded with silence"
        )
    tests = sum(split == "test" for _, split in listed)
    if 0 < tests < _FEW_TEST_PAIRS:
        few = f"{tests} of {len(pairs)} pairs are for testing: too few to say how well a model does on others"
        notes.append(f"{few}; train.py --run.folds K tests all pairs in turn")
    return notes


def read_options(configs: Sequence[str]) -> Options:
    """Read the options from training configs, of which later ones change only what they name.

    Raises:
        UserError: for a file that is not such a config, or a number out of its range.
    """
    # The loader of the training command line: it reads 1e-4 as a number, which PyYAML's own does not.
    from jsonargparse import get_loader
    from yaml import YAMLError

    options: dict[str, Any] = {}
    run: dict[str, Any] = {}
    for path in configs:
        try:
            config = get_loader("yaml")(Path(path).read_text(encoding="utf-8"))
            model, data, of_run = (config.get(part) or {} for part in ("model", "data", "run"))
            task, run = model.get("init_args") or {}, {**run, **of_run}
            given = {**task, **(task.get("treatment") or {}), **data}
            if name := model.get("class_path"):
                # Imported here, because it takes seconds.
                from dfx.tasks.loading import TASKS

                given["takes_reference"] = getattr(TASKS.get(name.rpartition(".")[2]), "takes_reference", False)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        except (AttributeError, TypeError, ValueError, YAMLError) as error:
            raise UserError(f"{path} is not a config of train.py: {' '.join(str(error).split())}") from None
        names = [option.name for option in dataclasses.fields(Options)]
        options |= {name: given[name] for name in names if name in given}
    if not isinstance(options.get("rows"), (Mapping, type(None))):
        raise UserError(f"data.rows is {options['rows']!r}; it must be a mapping of columns to patterns")
    fold = options.get("fold")
    if fold is not None and not (isinstance(fold, list) and len(fold) == 2):
        raise UserError(f"data.fold is {fold!r}; it must be the number of a fold and the number of folds")
    if run.get("seed") is not None:  # which sets data.seed
        options["seed"] = run["seed"]
    return Options(**{**options, "folds": run.get("folds")})


def as_text(report: Report) -> str:
    """Return a report as a table of the pairs, the splits, and its sentences."""
    header = [
        "pair",
        "split",
        "Hz",
        "channels",
        "seconds",
        "peak dB",
        "LUFS",
        "silent",
        "clipped",
        "offset ms",
        "polarity",
    ]
    rows = [_row(look) for look in report.pairs]
    sides = ["left", "left", *["right"] * 8, "left"]
    splits = (f"{split} {of['pairs']:.0f} ({of['seconds']:.1f} s)" for split, of in report.splits.items())
    options = report.options
    lines = [
        tabulate(rows, header, tablefmt="plain", disable_numparse=True, colalign=sides if rows else None),
        "",
        "Two numbers are those of input and target.",
        f"{report.folder}: {', '.join(splits)}; read at {options.sample_rate} Hz, channels: {options.channels}",
        "",
        *(f"! {printable(fault)}" for fault in report.faults),
        *(f"? {printable(warning)}" for warning in report.warnings),
        *(f"- {printable(note)}" for note in report.notes),
    ]
    if not report.faults and not report.warnings:
        lines.append("nothing looks wrong")
    return "\n".join(lines)


def _row(look: Look) -> list[str]:
    sides = look.input, look.target

    def both(form: str, attribute: str) -> str:
        values = [format(getattr(side, attribute), form) for side in sides]
        return values[0] if values[0] == values[1] and attribute == "channels" else " ".join(values)

    return [
        printable(look.name),
        look.split or "-",
        str(look.input.sample_rate),
        both("d", "channels"),
        f"{look.input.seconds:.2f}",
        both(".1f", "peak_db"),
        both(".1f", "lufs"),
        both(".0%", "silent"),
        both("d", "clipped"),
        "-" if look.offset_ms is None else f"{look.offset_ms:+.2f}",
        "inverted" if look.inverted else "same",
    ]

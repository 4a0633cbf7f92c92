"""The Lightning data module of paired audio."""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from dfx import distributed
from dfx.datasets.degradation import Degradation, Degrader
from dfx.datasets.frames import EvaluationLanes, Excerpt, Excerpts, Steps, TrainingLanes, TrainingLoader, Window
from dfx.datasets.halves import halve
from dfx.datasets.inspection import describe_conversion, glance
from dfx.datasets.pairs import (
    SPLITS,
    Fold,
    Pair,
    as_recording,
    check_audio,
    files_of,
    find_pairs,
    find_recordings,
    list_pairs,
    refuse_shared_files,
)
from dfx.datasets.splits import OLDER, match_records, read_records, record_pairs, record_splits
from dfx.datasets.treatment import Augmentation, TreatedPairs, Treatment
from dfx.errors import CHANNELS, COUNTS, SAMPLE_RATES, SEEDS, DataError, check_numbers


@dataclass(eq=False, repr=False)
class PairedAudio(pl.LightningDataModule):
    """Batches of consecutive steps from pairs of input and target files.

    Args:
        root: a folder with ``manifest.csv``, or with the folders ``input`` and ``target``; see
            :func:`dfx.datasets.pairs.find_pairs`.
        sample_rate: in Hz; files with other rates are resampled when they are read.
        channels: 1 takes the mean of the channels of each file.
        window: the samples of one step; it may change between two fits.
        treatment: preprocessing of all audio.
        augmentation: random changes to training excerpts, and with a fixed seed to validation excerpts; its
            ``deeper_db`` changes the targets of both.
        degradation: makes inputs of training excerpts by degrading their targets at random; by default, all are real.
        takes_reference: cut the target of every pair in halves, as :func:`dfx.datasets.halves.halve`: an example has
            the ``reference`` of its other half, and the inputs of all splits are degraded.
        rows: selects rows of the manifest by patterns for some of its columns, for instance ``{speaker: "anna*"}``.
        fold: the number of a fold and the number of folds, for instance ``[2, 5]``: the pairs are divided into folds
            instead of the splits, and this one is tested. ``run.folds`` trains all of them.
        batch_size: number of lanes, of all processes together, rounded down to a multiple of their number. In training,
            each process has a part of them; in validation, each has all.
        excerpt_seconds: length of an excerpt; none for whole files.
        steps_per_epoch: training steps in an epoch, of excerpts that are drawn with replacement (the paper's code:
            1000); by default, an epoch contains every excerpt once.
        validation_steps: steps of a validation, of excerpts of at most as many steps that are drawn from all pairs
            without replacement, the same in every validation (the paper's code: 100, drawn again each time); by
            default, a validation contains every excerpt once.
        check_audio: read every file once before training, to find silent and broken ones, and compare input and target
            of a few pairs; ``python -m dfx.check`` compares all.
        num_workers: number of processes that read ahead; 0 reads between the steps.
        seed: of the order and, for data without splits, of the split.

    Raises:
        DataError: from ``setup``, for data that cannot be used for training.
    """

    root: str
    sample_rate: int
    channels: int
    window: Window
    treatment: Treatment = Treatment()
    augmentation: Augmentation = Augmentation()
    degradation: Degradation | None = None
    takes_reference: bool = False
    rows: dict[str, str] | None = None
    fold: Fold | None = None
    batch_size: int = 16
    excerpt_seconds: float | None = 10.0
    steps_per_epoch: int | None = None
    validation_steps: int | None = None
    check_audio: bool = True
    num_workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__init__()
        check_numbers(vars(self), sample_rate=SAMPLE_RATES, channels=CHANNELS, batch_size="1..65536", seed=SEEDS)
        check_numbers(vars(self), excerpt_seconds="(0, 86400]", num_workers="0..1024")
        check_numbers(vars(self), fold=COUNTS, steps_per_epoch=COUNTS, validation_steps=COUNTS)
        # Stored in checkpoints, so that resuming and evaluation use the same pairs.
        names = ("root", "seed", "rows", "fold", "batch_size", "excerpt_seconds", "steps_per_epoch", "validation_steps")
        self.arguments: dict[str, Any] = {name: getattr(self, name) for name in names}
        self.arguments["degradation"] = asdict(self.degradation) if self.degradation else None
        self.splits: dict[str, list[Pair]] = {}
        self._used: dict[str, list[Pair]] = {}
        self._degrader: Degrader | None = None
        self._recordings: list[Pair] = []
        if self.takes_reference and not self.degradation:
            fault = "the task takes a reference and makes its inputs from finished recordings"
            raise DataError(f"{fault}: set data.degradation, the effects that degrade them, as in configs/style.yaml")
        if self.degradation:
            self._degrader = Degrader(self.degradation, self.sample_rate, self.channels, self.num_workers)
        self._train_loader: TrainingLoader | None = None
        self._first_batch = 0

    def setup(self, stage: str) -> None:
        """Find and check the pairs, once."""
        ranks = distributed.world_size()
        if self.batch_size < ranks:
            raise DataError(f"data.batch_size is {self.batch_size}, less than one lane for each of {ranks} processes")
        if rest := self.batch_size % ranks:
            self.batch_size -= rest
            self._note(f"data.batch_size is rounded down to {self.batch_size}, a multiple of {ranks} processes")
        if self.splits:
            return
        splits = find_pairs(self.root, self.seed, self.rows, self.fold)
        self._take(splits, record_splits(splits, self.root))

    def restore(self, data: Mapping[str, Any], resumes: bool) -> None:
        """Take the pairs of each split, and their order, from a checkpoint instead of the folder; print what differs.

        Args:
            data: the entry ``data`` of the checkpoint.
            resumes: training goes on from the checkpoint, so that all of its pairs have to be there.

        Raises:
            DataError: if pairs, their order or their excerpts differ from those of the run that resumes.
        """
        for name in ("seed", "excerpt_seconds") if resumes else ():
            given, trained = getattr(self, name), data.get(name, getattr(self, name))
            if given != trained:
                raise DataError(f"data.{name} is {given}, and was {trained} before the run was stopped: restore it")
        if resumes:
            self._find_recordings()
            if self.arguments.get("recordings") != data.get("recordings"):
                raise DataError("the recordings of data.degradation.root are not those of the run: restore them")
        records = read_records(data)
        if records is None:
            self._note(f"{OLDER}: those of {self.root} are used")
            return
        if self.arguments.get("pairs") == data["pairs"]:
            return
        restored = match_records(records, list_pairs(self.root, self.rows), self.root, is_fold=bool(data.get("fold")))
        place = f"{self.root} has changed since training"
        if self.root != data.get("root"):
            place = f"{self.root} is not {data.get('root')}, with which the checkpoint was trained"
        if resumes and (restored.missing or restored.changed):
            raise DataError(f"{place}; {restored.differences}: restore the pairs, or start another run")
        if any(restored.splits.values()):
            if restored.differences:
                self._note(f"{place}; {restored.differences}")
            self._take(restored.splits, data["pairs"])
        else:
            self._note(f"{place}, and has none of its pairs: the splits of {self.root} are used")

    def _take(self, splits: dict[str, list[Pair]], records: dict[str, list[list[str]]]) -> None:
        """Check the pairs of each split and use them from now on."""
        self._find_recordings()
        if self._recordings:
            refuse_shared_files({**splits, "train": [*splits["train"], *self._recordings]})
        if self.check_audio:
            everything = [pair for split in SPLITS for pair in splits[split]]
            if self.takes_reference:
                everything = [as_recording(pair) for pair in everything]
            checked = [*everything, *self._recordings]
            warnings = check_audio(checked, self.sample_rate, self.channels, self.treatment.read_filtered)
            if warnings:
                more = f" ({len(warnings) - 1} more files are like it)" if len(warnings) > 1 else ""
                self._note(f"warning: {warnings[0]}{more}")
            if distributed.is_rank_zero():
                self._glance(everything)
        # Halved once, since the loudness of a degraded half is kept for the half.
        used = {name: self._halved(pairs) for name, pairs in {**splits, "recordings": self._recordings}.items()}
        self.splits, self._used, self.arguments["pairs"] = splits, used, records  # only if all checks pass
        for split, pairs in splits.items():
            shorter = sum(pair.input.samples_at(self.sample_rate) < self.window.context_samples for pair in pairs)
            if shorter and distributed.is_rank_zero():
                context = f"the encoder's context ({self.window.context_samples / self.sample_rate:.2f} s)"
                print(f"{shorter} of {len(pairs)} {split} pairs are shorter than {context} and are padded with silence")

    def _find_recordings(self) -> None:
        """Find the further recordings to train on, once, and store their names and checksums for checkpoints."""
        if self.degradation and self.degradation.root and not self._recordings:
            self._recordings = find_recordings(self.degradation.root)
            records = record_pairs(self._recordings, self.degradation.root)
            self.arguments["recordings"] = [list(record) for record in records]

    def _glance(self, pairs: list[Pair]) -> None:
        """Print what training converts, and what looks wrong in a few pairs."""
        notes = describe_conversion(files_of(pairs), self.sample_rate, self.channels)
        warnings = [f"warning: {sentence}" for sentence in ([] if self.takes_reference else glance(pairs))]
        if warnings:
            notes += [*warnings, f"python -m dfx.check {self.root} measures all pairs"]
        for note in notes:
            self._note(note)

    def _note(self, text: str) -> None:
        if distributed.is_rank_zero():
            print(text, file=sys.stderr)

    def train_dataloader(self) -> DataLoader:
        excerpts = self._excerpts("train", shuffle=True)
        rows = distributed.rank_rows(self.batch_size)
        lanes = TrainingLanes(excerpts, self.batch_size, rows, self.steps_per_epoch)
        # Only the first epoch after resuming skips batches.
        lanes.first_batch, self._first_batch = self._first_batch, 0
        self._train_loader = TrainingLoader(self._steps("train"), batch_sampler=lanes, **self._loading)
        return self._train_loader

    def state_dict(self) -> dict[str, int]:
        """Return the index of the next batch of the epoch, at which a resumed run continues."""
        if self._train_loader is None or self.trainer is None or self.trainer.is_last_batch:
            return {"first_batch": 0}
        return {"first_batch": self._train_loader.batches_loaded}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        check_numbers(state_dict, first_batch="0..1000000000000")
        self._first_batch = state_dict["first_batch"]

    @classmethod
    def load_from_checkpoint(cls, *args: Any, **options: Any) -> NoReturn:
        """Raise an error: Lightning would import the class that a checkpoint names."""
        raise DataError("a checkpoint holds no data module: build PairedAudio, and give it to the trainer")

    def val_dataloader(self) -> DataLoader:
        excerpts: Iterable[Excerpt] = self._excerpts("validation", shuffle=False)
        if self.validation_steps:
            drawn = self._excerpts("validation", shuffle=True, most_steps=self.validation_steps)
            excerpts = drawn.first(self.validation_steps * self.batch_size)
        lanes = EvaluationLanes(excerpts, self.batch_size)
        return DataLoader(self._steps("validation"), batch_sampler=lanes, **self._loading)

    def test_dataloader(self) -> DataLoader:
        """Return the loader of the whole pairs of the test split."""
        return DataLoader(self.whole_pairs("test"), batch_size=None)

    def whole_pairs(self, split: str) -> TreatedPairs:
        """Return the treated pairs of ``train``, ``validation`` or ``test``."""
        return TreatedPairs(self._used[split], self.treatment, self.sample_rate, self.channels)

    @property
    def _loading(self) -> dict[str, Any]:
        """Options of the loaders: a GPU copies from page-locked memory while it computes."""
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return {"num_workers": self.num_workers, "pin_memory": on_gpu}

    def _steps(self, split: str) -> Steps:
        pairs = TreatedPairs(self._pairs(split), self.treatment, self.sample_rate, self.channels)
        degrader = self._degrader if split == "train" else None
        return Steps(pairs, self.window, self.augmentation, 2 * self.batch_size, degrader)

    def _pairs(self, split: str) -> list[Pair]:
        return self._used[split] + (self._used["recordings"] if split == "train" else [])

    def _halved(self, pairs: list[Pair]) -> list[Pair]:
        if not (self.takes_reference and self.degradation):
            return pairs
        return halve(pairs, self.degradation, self.window.context_samples / self.sample_rate)

    def _excerpts(self, split: str, shuffle: bool, most_steps: int | None = None) -> Excerpts:
        lengths = [pair.input.samples_at(self.sample_rate) for pair in self._pairs(split)]
        samples = int(self.excerpt_seconds * self.sample_rate) if self.excerpt_seconds else None
        if most_steps:
            longest = most_steps * self.window.step_samples
            samples = min(samples or longest, longest)
        return Excerpts(lengths, self.window.step_samples, samples, shuffle, self.seed)

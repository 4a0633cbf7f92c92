"""The Lightning data module of paired audio."""

from dataclasses import dataclass

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from dfx import distributed
from dfx.datasets.frames import EvaluationLanes, Excerpts, Steps, TrainingLanes, TrainingLoader, Window
from dfx.datasets.pairs import SPLITS, Pair, check_audio, find_pairs
from dfx.datasets.treatment import Augmentation, TreatedPairs, Treatment
from dfx.errors import CHANNELS, SAMPLE_RATES, SEEDS, DataError, check_numbers


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
        augmentation: random changes to training excerpts, and with a fixed seed to validation excerpts.
        rows: selects rows of the manifest by patterns for some of its columns, for instance ``{speaker: "anna*"}``.
        batch_size: number of lanes, of all processes together. In training, each process has a part of them; in
            validation, each has all.
        excerpt_seconds: length of an excerpt; none for whole files.
        check_audio: decode every file before training, to find silent and broken ones.
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
    rows: dict[str, str] | None = None
    batch_size: int = 16
    excerpt_seconds: float | None = 10.0
    check_audio: bool = True
    num_workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__init__()
        check_numbers(vars(self), sample_rate=SAMPLE_RATES, channels=CHANNELS, batch_size="1..65536", seed=SEEDS)
        check_numbers(vars(self), excerpt_seconds="(0, 86400]", num_workers="0..1024")
        # Stored in checkpoints, so that evaluation finds the same pairs.
        self.arguments = {"root": self.root, "seed": self.seed, "rows": self.rows}
        self.splits: dict[str, list[Pair]] = {}
        self._train_loader: TrainingLoader | None = None
        self._first_batch = 0

    def setup(self, stage: str) -> None:
        """Find and check the pairs, once."""
        if self.batch_size % (ranks := distributed.world_size()):
            fault = f"batch_size is {self.batch_size}, which {ranks} processes cannot share out evenly"
            raise DataError(f"{fault}: make it a multiple of {ranks}")
        if self.splits:
            return
        splits = find_pairs(self.root, self.seed, self.rows)
        if self.check_audio:
            check_audio([pair for split in SPLITS for pair in splits[split]])
        self.splits = splits  # only if all checks pass
        for split, pairs in splits.items():
            shorter = sum(pair.input.samples_at(self.sample_rate) < self.window.context_samples for pair in pairs)
            if shorter and distributed.is_rank_zero():
                context = f"the encoder's context ({self.window.context_samples / self.sample_rate:.2f} s)"
                print(f"{shorter} of {len(pairs)} {split} pairs are shorter than {context} and are padded with silence")

    def train_dataloader(self) -> DataLoader:
        excerpts = self._excerpts("train", shuffle=True)
        lanes = TrainingLanes(excerpts, self.batch_size, distributed.rank_rows(self.batch_size))
        # Only the first epoch after resuming skips batches.
        lanes.first_batch, self._first_batch = self._first_batch, 0
        self._train_loader = TrainingLoader(self._steps("train"), batch_sampler=lanes, num_workers=self.num_workers)
        return self._train_loader

    def state_dict(self) -> dict[str, int]:
        """Return the index of the next batch of the epoch, at which a resumed run continues."""
        if self._train_loader is None or self.trainer is None or self.trainer.is_last_batch:
            return {"first_batch": 0}
        return {"first_batch": self._train_loader.batches_loaded}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._first_batch = state_dict["first_batch"]

    def val_dataloader(self) -> DataLoader:
        lanes = EvaluationLanes(self._excerpts("validation", shuffle=False), self.batch_size)
        return DataLoader(self._steps("validation"), batch_sampler=lanes, num_workers=self.num_workers)

    def test_dataloader(self) -> DataLoader:
        """Return the loader of the whole pairs of the test split."""
        return DataLoader(self.whole_pairs("test"), batch_size=None)

    predict_dataloader = test_dataloader

    def whole_pairs(self, split: str) -> TreatedPairs:
        """Return the treated pairs of ``train``, ``validation`` or ``test``."""
        return TreatedPairs(self.splits[split], self.treatment, self.sample_rate, self.channels)

    def _steps(self, split: str) -> Steps:
        return Steps(self.whole_pairs(split), self.window, self.augmentation, 2 * self.batch_size)

    def _excerpts(self, split: str, shuffle: bool) -> Excerpts:
        lengths = [pair.input.samples_at(self.sample_rate) for pair in self.splits[split]]
        samples = int(self.excerpt_seconds * self.sample_rate) if self.excerpt_seconds else None
        return Excerpts(lengths, self.window.step_samples, samples, shuffle, self.seed)

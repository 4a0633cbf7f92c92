"""Outputs of other systems for the test pairs, as audio files: columns of an evaluation beside the baselines."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dfx.alignment import find_delay
from dfx.audio.reading import AudioFile, audio_files
from dfx.datasets.pairs import Pair, check_file
from dfx.datasets.splits import first_of
from dfx.datasets.treatment import TreatedPairs
from dfx.errors import DataError

_MAX_DELAY_SECONDS = 0.25
_LEAST_SHARE = 0.5  # of the pair, that a clip has to cover


class PairsWithClips:
    """Pairs with the outputs of other systems for them, all aligned and of one length.

    A clip is read as the targets are: at their sample rate, number of channels and treatment. Its delay against the
    target, up to 0.25 s either way, is taken out; its level and polarity are left as they are. The pair is cut where
    the first of its clips ends. A clip that leads the target begins with silence.

    Args:
        pairs: the test pairs.
        folders: the clips of each system, by its name. A clip has the name of the pair, or of its input or target file.

    Raises:
        DataError: if a folder lacks clips, which are named, has two of one name, or one that cannot be used.
    """

    def __init__(self, pairs: TreatedPairs, folders: Mapping[str, Path]) -> None:
        self.pairs = pairs
        self._clips = {method: _find_clips(pairs.pairs, folder) for method, folder in folders.items()}

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a pair as :class:`TreatedPairs` does, cut, with ``outputs``: the clip of each system.

        Raises:
            DataError: if a clip covers less than half of the pair.
        """
        pair = self.pairs[index]
        target, places = pair["target"], {}
        samples = target.shape[-1]
        for method, clips in self._clips.items():
            clip = self._read(clips[index], 0, target.shape[-1])
            reach = round(_MAX_DELAY_SECONDS * self.pairs.sample_rate)
            places[method] = delay = int(find_delay(clip[None], target[None], reach)[0])
            samples = min(samples, clips[index].samples_at(self.pairs.sample_rate) - delay)
            if samples < _LEAST_SHARE * target.shape[-1]:
                path, seconds = clips[index].path, target.shape[-1] / self.pairs.sample_rate
                raise DataError(f"{path} ends after {samples / self.pairs.sample_rate:.2f} s of {seconds:.2f} s")
        outputs = {method: self._read(self._clips[method][index], delay, samples) for method, delay in places.items()}
        return {**pair, **{side: pair[side][:, :samples] for side in ("input", "target")}, "outputs": outputs}

    def _read(self, clip: AudioFile, start: int, samples: int) -> Tensor:
        pairs = self.pairs
        return pairs.treatment.read(clip, start, samples, pairs.sample_rate, pairs.channels, "target")


def _find_clips(pairs: Sequence[Pair], folder: Path) -> list[AudioFile]:
    """Return the clip of each pair in or below a folder."""
    found: dict[str, Path] = {}
    for path in audio_files(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise DataError(f"{found[name]} and {path} have one name, but for their suffix: remove one")
        found[name] = path
    matched: dict[Path, str] = {}
    missing: list[str] = []
    for pair in pairs:
        names = (pair.name, Path(pair.input.path).stem, Path(pair.target.path).stem)
        clip = next((found[name] for name in names if name in found), None)
        if clip is None:
            missing.append(pair.name)
        elif matched.setdefault(clip, pair.name) != pair.name:
            raise DataError(f"{clip} has the name of {matched[clip]} and of {pair.name}: put each into its own folder")
    if missing:
        fault = f"{folder} has no clips for {len(missing)} of {len(pairs)} test pairs: {first_of(missing)}"
        raise DataError(f"{fault}; name them as the inputs, or evaluate a folder of fewer pairs with --data")
    clips = [AudioFile.open(str(path)) for path in matched]
    for file in clips:
        if fault := check_file(file, file.sample_rate, file.channels).fault:
            raise DataError(fault)
    return clips

"""Train the models that ship in data/models, and pack them with their cards.

    python data/pack_models.py              # all: some ten minutes on two quiet cores
    python data/pack_models.py mastering
    python data/pack_models.py --measure    # evaluates the packed models again, without training

Each is trained by its config in configs/, in one thread, so that the result does not depend on the number of cores. The
folder of a model has model.ckpt, the best checkpoint without the state of the optimizer; card.json, with its commit,
checksum and metrics; and README.md, the card for readers. A finished run in --runs is packed without training it again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import shipped  # noqa: E402
import torch  # noqa: E402

from dfx.evaluation.results import Results, format_mean, read_means  # noqa: E402
from dfx.render.pretrained import CARD, CHECKPOINT, FOLDER  # noqa: E402
from dfx.tasks import read_checkpoint  # noqa: E402
from dfx.tasks.loading import TASKS  # noqa: E402
from dfx.writing import replacing, write_json, write_text  # noqa: E402


@dataclass(frozen=True)
class Model:
    """The parts of a card that a run does not record.

    Args:
        summary: the purpose, without a period.
        data: the folder in data/ with the pairs.
        groups: what the pairs of a group share, in the plural.
        metrics: of the card, by name, with a description.
        limits: where the model should not be used, or not be trusted.
        baselines: of the card, with the titles of their columns.
    """

    summary: str
    data: str
    groups: str
    metrics: dict[str, str]
    limits: list[str]
    baselines: dict[str, str] = field(default_factory=lambda: {"input": "input", "defaults": "untrained chain"})


MODELS = {
    "mastering": Model(
        "brings a mix to the loudness and density of a master: compressor, equalizer, limiter",
        "mastering",
        "songs",
        {
            "loss": "multi-resolution STFT loss",
            "mrstft_level_matched": "the same at equal loudness",
            "lufs_difference": "loudness error, LU",
            "crest_factor_difference_db": "crest factor error, dB",
        },
        [
            "It was trained on 16 excerpts of four songs by two rock and metal bands. The targets were derived by two "
            "mastering engines, not made by a person.",
            "The loudness error falls. Neither tonal balance (the loss at equal loudness) nor density (the crest "
            "factor) is shown to improve over the untrained chain on these files.",
            "The test set has four excerpts of two songs, by the bands of the training songs.",
            "Outputs reach about -12 LUFS, which is louder than streaming services play.",
        ],
    ),
    "nonspeech": Model(
        "attenuates breaths, lip smacks and noise in the pauses of dry speech: a gate",
        "nonspeech",
        "speakers",
        {
            "loss": "multi-resolution STFT loss",
            "removed_db": "level change of the pauses, dB",
            "damage_db": "level error elsewhere, dB",
        },
        [
            "It was trained on 20 utterances of four speakers; the breaths and clicks of three of them are synthetic. "
            "The targets were derived by a rule, not by an editor.",
            "It is for a single dry voice. It cannot separate breaths from music or from noise that is as loud.",
            "The beginning of a breath may pass before the gate closes. Quiet ends of words may be cut.",
        ],
    ),
    "style": Model(
        "brings a recording to the balance, density and level of a reference: compressor, equalizer, limiter",
        "mastering",
        "songs",
        {
            "loss": "multi-resolution STFT loss",
            "mrstft_level_matched": "the same at equal loudness",
            "lufs_difference": "loudness error, LU",
            "crest_factor_difference_db": "crest factor error, dB",
        },
        [
            "On these two songs, it is not shown to be better than `matched`, which needs no training: an equalizer "
            "and a gain that give the input the average spectrum and the loudness of the reference. On 148 songs of "
            "other sources it is, by a loss of 0.050 ±0.036 "
            "([how](../../../configs/README.md#style-transfer-a-reference-instead-of-a-target)). Its output is that "
            "of a chain, with its parameters to take along.",
            "It was trained on halves of 16 excerpts of four songs by two rock and metal bands, of 3 s each. Reference "
            "and input were of one song; a reference of other music brings its balance along.",
            "The inputs were degraded by random filters, a gain and an expansion. Noise, reverberation and distortion "
            "were not among them.",
            "The test set has halves of four excerpts of two songs, by the bands of the training songs.",
        ],
        {"input": "input", "defaults": "untrained chain", "matched": "matched"},
    ),
    "tube_amp": Model(
        "emulates an overdriven tube preamplifier on single notes: filters and a distortion",
        "tube_amp",
        "notes",
        {
            "loss": "multi-resolution STFT loss",
            "lufs_difference": "loudness error, LU",
            "crest_factor_difference_db": "crest factor error, dB",
        },
        [
            "It was trained on 111 single notes of sampled guitars and basses. Chords and whole tracks were not in it.",
            "The targets are a software model of a tube stage at one setting, not hardware.",
            "The distortion is memoryless, so sag and bias shift of the tube stage are missing: attacks stick out.",
        ],
    ),
}


def config_of(name: str) -> str:
    return f"configs/{name}.yaml"


def options_of(name: str) -> list[str]:
    """Return the arguments of Python that train a model."""
    return ["train.py", "fit", "--config", config_of(name), "--wandb.mode", "disabled"]


def train(name: str, runs: Path) -> None:
    """Train a model, and write the commit next to its metrics.

    Raises:
        SystemExit: if the source differs from the commit.
    """
    sources = ["dfx", "configs", f"data/{MODELS[name].data}", "train.py"]
    status = ["git", "status", "--porcelain", *sources]
    if changed := subprocess.check_output(status, cwd=ROOT, text=True):
        sys.exit(f"error: commit these first, since the card names the commit that trained the model:\n{changed}")
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True)
    command = [sys.executable, *options_of(name), "--run.folder", str(runs.resolve())]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    (runs / name / "commit.txt").write_text(commit)


def pack(name: str, run: Path) -> None:
    """Write the folder of a model from its finished run, with cards that lack metrics."""
    checkpoint = read_checkpoint(str(run / "checkpoints" / "best.ckpt"))
    kept = {key: checkpoint[key] for key in ("state_dict", "epoch", "global_step", "pytorch-lightning_version")}
    kept["dfx"] = {**checkpoint["dfx"], "streaming": {}}
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / CHECKPOINT) as partial:
        torch.save(kept, partial)
    content = (folder / CHECKPOINT).read_bytes()

    versions = json.loads((run / "versions.json").read_text(encoding="utf-8"))
    trained_on = [row for row in shipped.read_manifest(ROOT / "data" / MODELS[name].data) if row["split"] != "test"]
    card = {
        "name": name,
        "summary": MODELS[name].summary,
        "task": checkpoint["dfx"]["task"],
        "sample_rate": checkpoint["dfx"]["arguments"]["sample_rate"],
        "data": f"data/{MODELS[name].data}",
        "data_licences": sorted({row["licence"] for row in trained_on}),
        "licence": "MIT",
        "config": config_of(name),
        "command": f"OMP_NUM_THREADS=1 python {' '.join(options_of(name))}",
        "commit": (run / "commit.txt").read_text().strip(),
        "epoch": checkpoint["epoch"],
        "versions": {package: versions[package] for package in ("python", "torch", "pedalboard", "numpy")},
        "weights": sum(value.numel() for value in checkpoint["state_dict"].values()),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    write_json(folder / CARD, card)


def measure(name: str) -> None:
    """Evaluate a packed model on its test pairs, and write the metrics to its cards."""
    folder, model = FOLDER / name, MODELS[name]
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, "evaluate.py", str(folder / CHECKPOINT), "--output", output]
        command += ["--baselines", *model.baselines]
        subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
        results = read_means(Path(output))
        rows = json.loads(Path(output, "files.json").read_text(encoding="utf-8"))
    card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    for key, means in {"metrics": results, "differences": results.differences}.items():
        card[key] = {method: {metric: of[metric].as_dict() for metric in model.metrics} for method, of in means.items()}
    card["loss_of_files"] = {row["file"]: row["loss"] for row in rows if row["method"] == "output"}
    write_json(folder / CARD, card)
    write_text(folder / "README.md", as_markdown(card, model, results))


def as_markdown(card: dict, model: Model, results: Results) -> str:
    """Return the card for readers."""
    name, data = card["name"], Path(card["data"]).name
    takes_reference = TASKS[card["task"]].takes_reference
    packages = ", ".join(f"{package} {version}" for package, version in card["versions"].items())
    compared = {baseline: title for baseline, title in model.baselines.items() if baseline != "input"}
    columns = {
        **{title: results[baseline] for baseline, title in model.baselines.items()},
        "this model": results["output"],
        **{f"model − {title}": results.differences[baseline] for baseline, title in compared.items()},
    }
    table = [f"| metric | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for metric, description in model.metrics.items():
        cells = " | ".join(format_mean(of[metric]) for of in columns.values())
        table.append(f"| {description} (`{metric}`) | {cells} |")
    loss = results["output"]["loss"]
    lines = [
        f"# {name}",
        "",
        f"A model that {model.summary}. From the repository:",
        "",
        f"    python -m dfx.render {name} input.wav output.wav{' --reference song.wav' * takes_reference}",
        "",
        f'In Python, `dfx.load("{name}")`{", whose `render` takes the audio of a `reference`" * takes_reference}.',
        "",
        "| | |",
        "|---|---|",
        f"| data | [`{card['data']}`](../../README.md#{data}): the splits `train` and, to choose the checkpoint, "
        "`validation` |",
        f"| config | [`{card['config']}`](../../../{card['config']}), seed 0 |",
        f"| command | `{card['command']}` |",
        f"| commit | `{card['commit']}` |",
        f"| versions | {packages} |",
        f"| checkpoint | the best of the run, of epoch {card['epoch']}; {card['weights']:,} numbers, "
        f"{card['bytes'] / 1e6:.1f} MB, without the state of the optimizer |",
        f"| SHA-256 of `{CHECKPOINT}` | `{card['sha256']}` |",
        f"| sample rate of the encoder | {card['sample_rate']} Hz, mono; recordings of other rates and stereo are "
        "rendered as they are |",
        "",
        "## Metrics",
        "",
        f"Means over the {loss.count} test files ± half of their 95 % intervals (Student's t over {loss.groups} "
        f"{model.groups}). Less is better, except in level changes. A difference "
        "is shown if it is larger than half of its interval.",
        "",
        *table,
        "",
        "## Limits",
        "",
        *(f"- {limit}" for limit in model.limits),
        f"- One seed. The test files are of {loss.groups} {model.groups}: too few to compare models closely.",
        "",
        "## Licence",
        "",
        "The weights are under the MIT licence of the repository. The licences of the audio that trained them are "
        f"{', '.join(card['data_licences'])}; [data/README.md](../../README.md#{data}) names the authors. It is not "
        "settled whether weights are an adaptation of the audio that trained them. If your use depends on it, follow "
        "these licences too, or train on your own audio.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    description, _, details = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description=description,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MODELS)} (default: all)")
    parser.add_argument("--measure", action="store_true", help="evaluate the packed models again, without training")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "pretrained", help="folder of the runs")
    options = parser.parse_args()
    if unknown := set(options.names) - set(MODELS):
        parser.error(f"no model {', '.join(unknown)}; there are {', '.join(MODELS)}")
    for name in options.names or MODELS:
        if not options.measure:
            if not (options.runs / name / "commit.txt").is_file():
                train(name, options.runs)
            pack(name, options.runs / name)
        measure(name)


if __name__ == "__main__":
    main()

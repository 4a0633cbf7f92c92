"""Render recordings with a trained model.

    python -m dfx.render mastering mix.wav master.wav
    python -m dfx.render runs/tube_amp/checkpoints/best.ckpt input.wav output.wav
    python -m dfx.render style mix.wav output.wav --reference song.wav
    python -m dfx.render best.ckpt folder/of/inputs folder/of/outputs
    python -m dfx.render best.ckpt input.wav output.flac --automation .csv --preset .py --project .rpp
    python -m dfx.render best.ckpt input.wav output.wav --refine 200 --target wanted.wav
    python -m dfx.render best.ckpt input.wav output.wav --refine 200 --reference song.wav
    python -m dfx.render best.ckpt input.wav output.wav --page page.html
    sox input.wav -t wav - | python -m dfx.render best.ckpt - - > output.wav

A model is a checkpoint, or the name of one that ships, which --list shows; a file of such a name comes first.

The output has the length, sample rate, channels and bit depth of the input, and is aligned with it (except by the
interpolation "published"). Recordings may have any length and any format that soundfile or pedalboard reads. One chain
renders mono and stereo; of more channels, each is rendered by a separate chain, all with the same automation. The
treatment of the task (a high-pass, a loudness) is applied here too. An existing output is kept unless --overwrite is
given, and an error leaves no partial output. Standard input is copied to a temporary file, because it is read more than
once.

--reference names a recording that the output is to sound like, for a model that takes one: style, or one that
configs/style.yaml trains. It may have any sample rate, number of channels, and length of a second or more, and serves
all files of a folder. Of more than two minutes, 24 excerpts of 5 s are read.

--refine N searches one offset for every parameter, added to all that the model predicts, such that the output comes
nearer to the recording --target of the same length, sample rate and channels, or to --reference, whatever the model.
CMA-ES minimizes the training loss between output and target, or the distance from the reference, in at most N
renderings, of the whole recording or, above 16 s, of eight excerpts of 2 s, and ends when nothing improves. The
distance in dB is the mean difference of average third-octave levels, plus the differences of loudness and crest factor.
Its value before and after is printed, and the cost.

--loudness brings the output to an integrated loudness in LUFS, by one gain after the chain. Samples beyond full scale
are clipped and counted, as without it. The gain is printed; of the files below, a project has it, as the volume of the
track with the plugins, while automation and presets hold the chain alone.

--automation writes all parameters over time, in their units, as .csv or .json. --preset writes their medians as one
setting of the chain: .py or .json with pedalboard's effects, .vstpreset, or a folder .lv2. --project writes a REAPER
project, .rpp, with the plugins that REAPER can run and their envelopes. --page writes a web page, .html, to listen to
the first minute of input and output and the middle of the reference at one loudness, with spectrograms and parameters
over time. Each takes a path, or a suffix for a file with the name of the output.
"""

from argparse import Action, Namespace, RawDescriptionHelpFormatter
from typing import Any

from dfx.errors import ArgumentParser, Range, errors_in_one_line
from dfx.render import pretrained
from dfx.render.automation import INTERPOLATIONS


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; errors as of :func:`dfx.render.command.render`."""
    options = _parser().parse_args(arguments)
    # Imported here because --help and wrong options do not need torch.
    from dfx.render.command import render

    render(options)


class _List(Action):
    """Prints the models that ship and ends the program, as ``--help`` does, whatever other arguments lack."""

    def __call__(self, parser: Any, namespace: Namespace, values: Any, option_string: str | None = None) -> None:
        print(pretrained.as_text())
        parser.exit()


def _parser() -> ArgumentParser:
    parser = ArgumentParser("python -m dfx.render", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    moves = "; ".join(f"{name}, {text}" for name, text in INTERPOLATIONS.items())
    moves = f"how parameters move between frames: {moves} (default: linear)"
    automation = "write all parameters over time, as .csv or .json; a suffix alone takes the name of the output"
    add("checkpoint", metavar="model", help="a checkpoint that train.py wrote, or the name of a model that ships")
    add("input", help="a file, a folder, or - for standard input")
    add("output", help="a file, a folder, or - for standard output (WAV)")
    add("--list", action=_List, nargs=0, help="list the models that ship, and exit")
    add("--interpolation", choices=INTERPOLATIONS, default="linear", help=moves)
    add("--causal", action="store_true", help="render without look-ahead of the parameters")
    add("--own-level", action="store_true", help="undo the gain that brings the input to the task's loudness")
    loudness = "the output's integrated loudness (ITU-R BS.1770), by one gain after the chain"
    add("--loudness", metavar="LUFS", type=Range("(-70, 0]").parse, help=loudness)
    refine = "shift the parameters towards the target or reference by a search with at most N renderings, rounded up"
    add("--refine", metavar="N", type=Range("2..1000000").parse, help=refine)
    add("--target", metavar="FILE", help="what --refine compares with: a file like the input, or a folder of such")
    add("--reference", metavar="FILE", help="a recording that the output is to sound like; of any length")
    add("--bit-depth", choices=("16", "24", "32", "float"), help="of the output (default: as the input)")
    add("--automation", metavar="FILE", help=automation)
    add("--preset", metavar="FILE", help=".py, .json, .vstpreset or .lv2; a suffix as above")
    add("--project", metavar="FILE", help="a REAPER project, .rpp; a suffix as above")
    add("--page", metavar="FILE", help="a page to listen to input and output, .html; a suffix as above")
    add(
        "--trust",
        action="store_true",
        help="run effects of the checkpoint that are Python classes, or plugins by path",
    )
    add("--device", default="auto", help="of the encoder: cpu, cuda, cuda:N, or auto, a GPU if there is one (default)")
    add("--overwrite", action="store_true", help="replace existing files")
    add("--quiet", action="store_true", help="show no progress")
    return parser


if __name__ == "__main__":
    with errors_in_one_line():
        main()

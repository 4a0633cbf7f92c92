"""Serve a local page: drop a recording, choose a model, listen to input and output at one loudness.

    python -m dfx.demo
    python -m dfx.demo runs/tube_amp/checkpoints/best.ckpt mastering --port 8000

The page shows how the parameters move, and offers the output, its automation, presets and a REAPER project to download.
Only this computer can open it, it loads nothing from other servers, and its files are deleted when Ctrl-C ends the
program. It needs Gradio: pip install 'gradio>=6.31,<7'.
"""

from argparse import RawDescriptionHelpFormatter

from dfx.errors import ArgumentParser, Range, errors_in_one_line


def main(arguments: list[str] | None = None) -> None:
    """Run the command line until Ctrl-C; errors as of :func:`dfx.demo.server.serve`."""
    parser = ArgumentParser("python -m dfx.demo", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "models",
        nargs="*",
        metavar="MODEL",
        help="a checkpoint, or the name of a model that ships (default: all of these)",
    )
    add("--port", type=Range("1..65535").parse, help="of the page (default: the first free one from 7860)")
    add("--minutes", type=Range("(0, 1440]").parse, default=10, help="longest recording (default: %(default)g)")
    add("--megabytes", type=Range("1..10000").parse, default=500, help="largest file (default: %(default)g)")
    add("--trust", action="store_true", help="run effects of checkpoints that are Python classes, or plugins by path")
    options = parser.parse_args(arguments)
    # Imported here because --help and wrong options need neither Gradio nor torch.
    from dfx.demo.server import Limits, serve

    serve(options.models, Limits(options.minutes, options.megabytes), options.port, options.trust)


if __name__ == "__main__":
    with errors_in_one_line():
        main()

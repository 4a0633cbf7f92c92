"""The page and its server, with Gradio."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import dfx
from dfx.demo.main_thread import MainThread
from dfx.demo.rendering import Limits, Result, render_upload
from dfx.errors import UserError, in_one_line
from dfx.render import pretrained
from dfx.render.model import Model

_ABOUT = """<h1>dfx</h1><p>A neural network sets audio effects for your recording. Listen to input and output at one
loudness, watch the parameters move, and take the setting to your own software. Nothing leaves this computer.</p>"""
_KINDS = {
    ".wav": "Output",
    ".csv": "Automation of all parameters",
    ".py": "Preset for pedalboard, in Python",
    ".json": "Preset of every control",
    ".vstpreset": "VST3 preset",
    ".rpp": "REAPER project",
    ".zip": "All of these, with the input and the page",
}

LOOPBACK = "127.0.0.1"
"""The only address that the server binds to: no other computer can open the page."""


def serve(models: Sequence[str], limits: Limits, port: int | None = None, trust: bool = False) -> None:
    """Serve the page until an interrupt, and delete its files. Call it on the main thread, which renders.

    Args:
        models: checkpoints and names of models that ship; if empty, all that ship.
        limits: of the recordings.
        port: of the page; by default the first free one from 7860.
        trust: as of :func:`dfx.load`.

    Raises:
        UserError: if Gradio is not installed, a model cannot be loaded, or the port is in use.
    """
    with tempfile.TemporaryDirectory(prefix="dfx-demo-") as folder:
        # Before Gradio is imported. A proxy must not get the requests that it sends to its own server.
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False", "no_proxy": LOOPBACK}
        try:
            import gradio  # noqa: F401
        except ImportError as error:
            raise UserError(f"the demo needs Gradio ({error}): pip install 'gradio>=6.31,<7'") from None
        loaded = {name: dfx.load(name, trust) for name in models or pretrained.list_models()}
        main_thread = MainThread()
        page = build_page(loaded, limits, folder, main_thread)
        try:
            page.launch(
                server_name=LOOPBACK,
                server_port=port,
                share=False,
                prevent_thread_lock=True,
                quiet=True,
                max_file_size=f"{limits.megabytes}mb",
                theme=_theme(),
                css_paths=Path(__file__).with_name("page.css"),
                footer_links=[],
                run_history=False,
                ssr_mode=False,
                mcp_server=False,
                enable_monitoring=False,
            )
        except OSError:
            taken = f"port {port}" if port else "every port from 7860"
            raise UserError(f"{taken} is in use: choose another with --port") from None
        print(f"{page.local_url} (Ctrl-C ends it)", flush=True)
        try:
            with contextlib.suppress(KeyboardInterrupt):
                main_thread.run()
        finally:
            page.close(verbose=False)


def build_page(models: Mapping[str, Model], limits: Limits, folder: str, main_thread: MainThread) -> Any:
    """Return the page, a ``gradio.Blocks``: its files go to ``folder``, its renderings run on ``main_thread``."""
    import gradio

    def render(
        upload: str | None, reference: str | None, name: str, progress: Any = gradio.Progress(track_tqdm=True)
    ) -> str:
        model, stem = models[name], Path(name).stem
        if upload is None or (model.takes_reference and reference is None):
            return _as_alert(f"Drop a {'recording' if upload is None else 'reference'} first.")
        given = reference if model.takes_reference else None
        try:
            return _as_html(main_thread.call(lambda: render_upload(upload, model, stem, folder, limits, given)))
        except UserError as error:
            return _as_alert(in_one_line(error))
        except CancelledError:
            return _as_alert("The demo was ended.")

    with gradio.Blocks(title="dfx", analytics_enabled=False) as page:
        gradio.HTML(_ABOUT)
        with gradio.Row(equal_height=True):
            upload = gradio.File(label=f"Recording, at most {limits.minutes:g} minutes and {limits.megabytes} MB")
            is_visible = next(iter(models.values())).takes_reference
            reference = gradio.File(label="Reference, to sound like", visible=is_visible)
            with gradio.Column():
                choices = [(_title(name), name) for name in models]
                name = gradio.Radio(choices, value=choices[0][1], label="Model", elem_classes="models")
                button = gradio.Button("Render", variant="primary")
        result = gradio.HTML(elem_classes="result")
        button.click(render, [upload, reference, name], result, api_visibility="private")

        def show_reference(name: str) -> Any:
            return gradio.update(visible=models[name].takes_reference)

        name.change(show_reference, name, reference, api_visibility="private", show_progress="hidden")
    return page


def _theme() -> Any:
    """Return a theme with the colours and the system fonts of the listening page."""
    import gradio

    fonts = "system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif"
    theme = gradio.themes.Base(
        primary_hue="stone", secondary_hue="stone", neutral_hue="stone", font=fonts, font_mono=fonts
    )
    return theme.set(
        body_background_fill="#fbfaf8",
        body_background_fill_dark="#161514",
        block_background_fill="#ffffff",
        block_background_fill_dark="#1e1d1b",
        body_text_color="#23211f",
        body_text_color_dark="#ebe7e1",
        body_text_color_subdued="#6d6862",
        body_text_color_subdued_dark="#9d978f",
        checkbox_label_background_fill="*body_background_fill",
        checkbox_label_background_fill_dark="*body_background_fill",
        border_color_primary="#e3dfd9",
        border_color_primary_dark="#35322f",
        button_primary_background_fill="#23211f",
        button_primary_background_fill_dark="#ebe7e1",
        button_primary_background_fill_hover="#46423e",
        button_primary_background_fill_hover_dark="#c9c4bc",
        button_primary_text_color="#fbfaf8",
        button_primary_text_color_dark="#161514",
    )


def _title(name: str) -> str:
    ships = name in pretrained.list_models() and not Path(name).is_file()
    return f"{name}: {pretrained.read_card(name)['summary']}" if ships else name


def _as_alert(text: str) -> str:
    return f'<p role="alert">{escape(text)}</p>'


def _as_html(result: Result) -> str:
    """Return warnings, the listening page in a frame of its own, and links to the files."""
    frame = f'<iframe srcdoc="{escape(result.page)}" sandbox="allow-scripts" title="Listening page"></iframe>'
    links = "".join(_link(Path(path)) for path in result.files)
    return f"{''.join(map(_as_alert, result.warnings))}{frame}<h2>Downloads</h2><ul>{links}</ul>"


def _link(path: Path) -> str:
    kilobytes = path.stat().st_size / 1000
    size = f"{kilobytes / 1000:.1f} MB" if kilobytes > 1000 else f"{kilobytes:.1f} kB"
    url = escape(f"/gradio_api/file={quote(path.as_posix())}")
    return f'<li><a href="{url}" download>{_KINDS[path.suffix]}<small>{escape(path.name)}, {size}</small></a></li>'

"""A page to try the denoisers on photographs, on this machine only: `lambdanet demo`."""

import functools
import os
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from lambdanet.data import imagefile
from lambdanet.data.imagefile import Photograph
from lambdanet.inference import blind, bundled, trained

if TYPE_CHECKING:
    import gradio as gr

BLIND = "find out"
TITLES = {bundled.PHOTOGRAPHS: "Gaussian, any strength", BLIND: "find out which of these"}
LARGEST_SHOWN = 2048  # pixels a side: more takes a browser long, and shows no more
ABOUT = """# Denoise a photograph

"Gaussian, any strength" is by a network for photographs; the others are the paper's, trained on images of
32 x 32 pixels with one noise each.
Photographs stay on this machine: nothing is sent anywhere.
"""


def serve(host: str, port: int) -> None:
    """Show the page until Ctrl-C; what it writes is in a temporary folder, and goes with it.

    `host` is as in URLs: an IPv6 address in brackets.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    with tempfile.TemporaryDirectory(prefix="lambdanet-demo-") as folder:
        # Before Gradio is loaded, which reads them then.
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
        os.environ["MPLCONFIGDIR"] = folder  # Gradio loads matplotlib
        page(Path(folder)).queue(default_concurrency_limit=1).launch(
            server_name=host, server_port=port, share=False, ssr_mode=False, run_history=False,
            footer_links=[], quiet=True,
        )  # fmt: skip


def page(folder: Path) -> "gr.Blocks":
    """The page; each result goes to a new folder in `folder`."""
    import gradio as gr

    noises = [(TITLES.get(name, name.replace("-", " ")), name) for name in (*bundled.NAMES, BLIND)]
    with gr.Blocks(title="lambdanet", analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        gr.Markdown(ABOUT)
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                image = gr.File(label="Photograph", height=150)
                noise = gr.Dropdown(noises, value=bundled.PHOTOGRAPHS, label="Noise")
                strength = gr.Slider(0, 1, 1, step=0.05, label="Strength")
                message = gr.Textbox("Drop a photograph.", label="Result", interactive=False, lines=2)
                download = gr.DownloadButton("Download as PNG", interactive=False, variant="primary")
            with gr.Column(scale=3, min_width=320):
                slider = gr.ImageSlider(
                    label="Before and after", format="png", image_mode=None, interactive=False,
                    max_height=720, buttons=["fullscreen"],
                )  # fmt: skip

        def update(path: str | None, noise: str, strength: float) -> tuple:
            try:
                if path is None:
                    return None, "Drop a photograph.", gr.DownloadButton(interactive=False)
                before, after, text = denoised(Path(path), noise, strength)
                target = Path(tempfile.mkdtemp(dir=folder), f"{Path(path).stem}-denoised.png")
                imagefile.write_png(target, after)
                return (shown(before), shown(after)), text, gr.DownloadButton(value=target, interactive=True)
            except (ValueError, OSError, MemoryError) as error:
                text = str(error) or f"{Path(path).name}: not enough memory to denoise it"
                return None, f"Error: {text}", gr.DownloadButton(interactive=False)

        gr.on(
            [image.change, noise.input, strength.release], update, [image, noise, strength],
            [slider, message, download], trigger_mode="always_last", show_progress_on=slider,
        )  # fmt: skip
    return blocks


def denoised(path: Path, noise: str, strength: float) -> tuple[Photograph, Photograph, str]:
    """An image file before and after, and a line on what was done.

    Raises:
        ValueError: it cannot be read as an image.
        MemoryError: there is not enough memory for it.
    """
    photograph = imagefile.decode(path.read_bytes(), path.name)
    names = bundled.DEFAULTS if noise == BLIND else [noise]
    loaded = {name: load(name) for name in names}
    name = blind.best(photograph, loaded) if noise == BLIND else noise
    h, w, _ = photograph.rgb.shape
    text = f"{w} x {h} pixels, {8 * photograph.rgb.itemsize} bits; denoiser: {name}, strength {strength:g}"
    if photograph.frames > 1:
        text += f"; the first of {photograph.frames} images"
    return photograph, loaded[name].denoise_photograph(photograph, strength=strength), text


load = functools.cache(trained.load)


def shown(photograph: Photograph) -> Image.Image:
    """What a browser shows: 8 bits, not too large."""
    values = imagefile.to_values(photograph)
    values = (values >> 8).astype(np.uint8) if values.dtype == np.uint16 else values
    image = Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values)
    image.thumbnail((LARGEST_SHOWN, LARGEST_SHOWN))
    return image

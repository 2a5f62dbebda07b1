"""`lambdanet demo`; its page is driven in Chromium where that, playwright and gradio are installed."""

import shutil
import urllib.request
from urllib.parse import urlsplit

import helpers
import numpy as np
import pytest
from PIL import Image

import lambdanet
from lambdanet import demo
from lambdanet.data import imagefile

FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync")
SAYS = "start => [...document.querySelectorAll('textarea')].some(one => one.value.startsWith(start))"
MILLISECONDS = 1000 * helpers.PATIENCE


def test_what_the_page_shows_is_what_load_gives(tmp_path):
    values = helpers.noisy_photograph(64, 72, dtype=np.uint16)
    imagefile.write_png(tmp_path / "cat.png", imagefile.from_values(values))
    before, after, text = demo.denoised(tmp_path / "cat.png", demo.BLIND, 0.5)
    assert text == "72 x 64 pixels, 16 bits; denoiser: gaussian-01, strength 0.5"
    np.testing.assert_array_equal(before.rgb, values)
    np.testing.assert_array_equal(after.rgb, lambdanet.load("gaussian-01")(values, strength=0.5))
    np.testing.assert_array_equal(np.asarray(demo.shown(before)), values >> 8)
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"^bad.jpg: cannot be read as an image \(it is neither"):
        demo.denoised(tmp_path / "bad.jpg", demo.BLIND, 1)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA"])
def test_large_grey_and_transparent_photographs_are_shown(mode):
    photograph = imagefile.from_values(np.full((1000, 3000, len(mode)), 77, np.uint8))
    image = demo.shown(photograph)
    assert (image.mode, image.size) == (mode, (2048, 683))


@pytest.fixture
def served(tmp_path):
    """The address of a page in another process, which writes to tmp_path/temporary only."""
    pytest.importorskip("gradio")
    here, temporary = (helpers.folder(tmp_path / name) for name in ("here", "temporary"))
    port = str(helpers.free_port())
    address, environment = f"http://127.0.0.1:{port}/", {"TMPDIR": str(temporary), "HOME": str(here)}
    with helpers.served(address, here, "-m", "lambdanet", "demo", "--port", port, **environment) as process:
        yield address
        process.terminate()
        assert process.wait(helpers.PATIENCE) == 0
    assert (here / "log").read_text().splitlines()[0] == f"{address[:-1]}, until Ctrl-C"
    assert list(temporary.iterdir()) == []
    assert [path.name for path in here.iterdir()] == ["log"]


@pytest.fixture
def browser_page():
    """A page of a browser, and the addresses that it asks for."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=chromium, args=FLAGS)
        page, asked = browser.new_page(viewport={"width": 390, "height": 844}), []
        page.set_default_timeout(MILLISECONDS)
        page.on("request", lambda request: asked.append(request.url))
        yield page, asked
        browser.close()


@pytest.mark.slow
def test_a_photograph_is_denoised_and_downloaded_in_a_browser(tmp_path, served, browser_page):
    values = helpers.noisy_photograph(64, 72, dtype=np.uint16)
    imagefile.write_png(tmp_path / "cat.png", imagefile.from_values(values))
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    page, asked = browser_page

    def downloaded(text):
        page.wait_for_function(SAYS, arg=text)
        with page.expect_download() as download:
            page.get_by_role("button", name="Download as PNG").click()
        assert download.value.suggested_filename == "cat-denoised.png"
        return imagefile.read(download.value.path()).rgb

    page.goto(served)
    page.locator("input[type=file]").set_input_files(tmp_path / "cat.png")
    head = "72 x 64 pixels, 16 bits; denoiser:"
    output = downloaded(f"{head} photographs, strength 1")
    np.testing.assert_array_equal(output, lambdanet.load("photographs")(values))
    shown = page.locator("img").evaluate_all("images => images.map(image => image.src)")
    pictures = [np.asarray(Image.open(urllib.request.urlopen(one))) for one in shown]
    assert any(np.array_equal(one, values >> 8) for one in pictures)
    assert any(np.array_equal(one, output >> 8) for one in pictures)

    page.get_by_label("Noise").click()
    page.get_by_role("option", name="speckle").click()
    page.get_by_label("number input for Strength").fill("0.5")
    page.keyboard.press("Tab")
    output = downloaded(f"{head} speckle, strength 0.5")
    np.testing.assert_array_equal(output, lambdanet.load("speckle")(values, strength=0.5))

    page.get_by_label("Clear").first.click()
    page.locator("input[type=file]").set_input_files(tmp_path / "bad.jpg")
    page.wait_for_function(SAYS, arg="Error: bad.jpg: cannot be read as an image (it is neither of ")
    assert page.get_by_role("button", name="Download as PNG").is_disabled()
    hosts = {urlsplit(one).hostname for one in asked if not one.startswith(("data:", "blob:"))}
    assert hosts == {"127.0.0.1"}

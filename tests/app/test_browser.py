"""The page in a browser without a screen: everything that is clicked is really done.

`VAR_SCREENSHOT=docs/app.png pytest tests/app/test_browser.py` leaves a picture of it.
"""

import importlib.util
import json
import os
import re
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import var
from tests.app.served import Served, served
from var.pixels import to_uint8
from var.png import read_settings

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
MISSING = [name for name in ("gradio", "selenium") if importlib.util.find_spec(name) is None]
MISSING += [n for n, there in (("chromium", BROWSER), ("chromedriver", DRIVER)) if not there]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

MODELS = "models=[fashion-var,digits-var,fashion-raster,fashion-flowar,fashion-vq]"
FLAGS = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1250"]
FLAGS += ["--enable-unsafe-swiftshader", "--no-proxy-server", "--disable-background-networking"]
TIME = re.compile(r"(\d+) images? in (\d+\.\d+) s")


class Visitor:
    """Who looks at the page, and clicks."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def wait(self, until: Callable[[], Any], seconds: float = 90) -> Any:
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        stale = [StaleElementReferenceException]  # redrawn while it was looked at
        return WebDriverWait(self.driver, seconds, 0.1, stale).until(lambda _: until())

    def click(self, selector: str, number: int = 0) -> None:
        self.wait(lambda: len(self.all(selector)) > number)
        self.driver.execute_script("arguments[0].click()", self.all(selector)[number])

    def tab(self, title: str) -> None:
        number = ["Sample", "Compare", "Edit", "Reconstruct"].index(title)
        self.click("button[role=tab]", number)

    def line(self, key: str) -> str:
        found = self.all(f"#{key}-line")
        return found[0].text if found else ""

    def upload(self, selector: str, path: Path) -> None:
        self.wait(lambda: self.all(f"{selector} input[type=file]"))
        self.all(f"{selector} input[type=file]")[0].send_keys(str(path))

    def fill(self, selector: str, value: int) -> None:
        field = self.all(f"{selector} input")[0]
        field.clear()
        field.send_keys(str(value))

    def errors(self) -> list[str]:
        """Return what stands on the page where Gradio gave up."""
        return [each.text for each in self.all(".error") if each.text]

    def paint(self, selector: str) -> None:
        """Draw a stroke across the middle of a canvas."""
        from selenium.webdriver import ActionChains

        canvas = self.all(f"{selector} canvas")[0]
        hand = ActionChains(self.driver, duration=20).move_to_element_with_offset(canvas, -40, 0)
        hand.click_and_hold().move_by_offset(40, 0).move_by_offset(40, 0).release().perform()

    def choose(self, selector: str, option: str) -> None:
        def pick() -> bool:
            found = [each for each in self.all("[role=option]") if each.text.endswith(option)]
            for each in found[:1]:
                each.click()
            return bool(found)

        self.all(f"{selector} input")[0].click()
        self.wait(pick)

    def images(self, key: str, count: int) -> list[str]:
        """Return the addresses of so many images, when all of them are there to be seen."""
        script = "return [...document.querySelectorAll(arguments[0])]"
        script += ".filter(i => i.complete && i.naturalWidth).map(i => i.src)"
        shown = f"#{key}-images .grid-container img"
        return self.wait(
            lambda: len(found := self.driver.execute_script(script, shown)) == count and found
        )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The page, served by another process; in the end it has called nobody."""
    with served(tmp_path_factory.mktemp("served"), MODELS, "images=6", "upload_mb=2") as page:
        yield page
        assert "CALLED" not in page.log.read_text(), page.log.read_text()


@pytest.fixture(scope="module")
def visitor(page: Served) -> Iterator[Visitor]:
    """A browser that shows the page; in the end it has asked nobody else for anything."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for flag in FLAGS:
        options.add_argument(flag)
    options.binary_location = BROWSER
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        driver.get(page.address)
        visitor = Visitor(driver)
        visitor.wait(lambda: visitor.all("#sample-go"))
        yield visitor
        asked = requests(driver)
        assert asked and all(url.startswith((page.address, "data:", "blob:")) for url in asked)
        faults = [each["message"] for each in driver.get_log("browser")]
        assert not [each for each in faults if "Failed to load resource" in each]
    finally:
        driver.quit()


def requests(driver: Any) -> list[str]:
    """Return the addresses that the browser has asked."""
    events = [json.loads(each["message"])["message"] for each in driver.get_log("performance")]
    sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return [each["request"]["url"] for each in sent]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A picture of a coat, by the model."""
    pixels = to_uint8(var.load("fashion-var")(["coat"], seed=3))[0]
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / "coat.png")
    return tmp_path / "coat.png"


def saved(address: str, path: Path) -> Path:
    """Return a file of the page, downloaded."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    path.write_bytes(direct.open(address).read())
    return path


def pixels(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        flat = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
        return flat.view(image.height, image.width, 3).permute(2, 0, 1)


def test_images_are_drawn_timed_and_remember_how(visitor: Visitor, tmp_path: Path) -> None:
    visitor.click("#sample-go")
    shown = visitor.wait(lambda: TIME.search(visitor.line("sample")))
    assert int(shown[1]) == 4 and float(shown[2]) > 0
    addresses = visitor.images("sample", 4)
    if place := os.environ.get("VAR_SCREENSHOT"):
        visitor.click("#sample-go")  # no longer the first of its kind
        visitor.wait(lambda: TIME.search(line := visitor.line("sample")) and "first" not in line)
        visitor.images("sample", 4)
        visitor.driver.save_screenshot(place)
    image = saved(addresses[1], tmp_path / "image.png")
    note = read_settings(image)
    again = var.load(note["model"])(note["labels"], seed=note["seed"], **note["sampling"])
    assert (note["labels"], note["seed"]) == ([1], 1)
    assert (pixels(image).int() - to_uint8(again)[0].int()).abs().max() <= 1  # other threads, sums


def test_controls_follow_the_model(visitor: Visitor) -> None:
    assert visitor.all("#sample-top_k") and not visitor.all("#sample-steps")
    visitor.choose("#sample-model", "fashion-flowar")
    visitor.wait(lambda: visitor.all("#sample-steps") and not visitor.all("#sample-top_k"))
    visitor.choose("#sample-model", "fashion-raster")
    visitor.wait(lambda: visitor.all("#sample-top_k") and not visitor.all("#sample-steps"))
    visitor.choose("#sample-decoding", "jacobi")
    visitor.wait(lambda: visitor.all("#sample-window"))
    visitor.click("#sample-go")
    # Two digits: those of the model before, which the line has still, are 5.
    passes = visitor.wait(lambda: re.search(r"each · (\d\d+) passes · the", visitor.line("sample")))
    assert int(passes[1]) < 64  # several tokens at a time


def test_who_changes_the_model_and_draws_at_once_gets_images(visitor: Visitor) -> None:
    visitor.choose("#sample-model", "fashion-var")
    visitor.click("#sample-go")  # the controls are the raster's still, jacobi too
    visitor.wait(lambda: re.search(r"each · 5 passes", visitor.line("sample")))
    visitor.wait(lambda: not visitor.all("#sample-window"))
    visitor.fill("#sample-seed", -4)
    visitor.click("#sample-go")
    visitor.wait(lambda: "seed -4: choose one from 0 on" in visitor.line("sample"))
    visitor.fill("#sample-seed", 0)
    assert not visitor.errors()


def test_what_is_stopped_ends_with_a_line(visitor: Visitor) -> None:
    visitor.choose("#sample-model", "fashion-raster")
    visitor.wait(lambda: visitor.all("#sample-decoding input")[0].get_attribute("value"))
    visitor.click("#sample-stop")  # nothing is under way, and nothing that follows is stopped
    for _ in range(3):
        visitor.click("#sample-go")
        visitor.wait(lambda: re.search(r"[1-7] of 8 rows …", visitor.line("sample")))
        visitor.click("#sample-stop")
        visitor.wait(lambda: re.search("stopped after [1-7] of 8 rows", visitor.line("sample")))
        visitor.images("sample", 4)
    assert not visitor.errors()


def test_two_settings_stand_side_by_side(visitor: Visitor) -> None:
    visitor.tab("Compare")
    visitor.click("#compare-go")
    visitor.wait(lambda: "times as fast" in visitor.line("compare"))
    assert "the same images, bit by bit" in visitor.line("compare")
    assert all(TIME.search(visitor.line(key)) for key in "ab")
    visitor.images("a", 4)
    visitor.images("b", 4)


def test_a_picture_is_edited_where_the_mask_says(
    visitor: Visitor, photo: Path, tmp_path: Path
) -> None:
    visitor.tab("Edit")
    visitor.click("#edit-go")
    visitor.wait(lambda: "there is no picture yet" in visitor.line("edit"))
    visitor.upload("#edit-picture", photo)
    visitor.wait(lambda: visitor.all("#edit-picture img"))
    half = Image.new("L", (64, 64))
    half.paste(255, (0, 0, 64, 32))
    half.save(tmp_path / "mask.png")
    visitor.upload("#edit-mask", tmp_path / "mask.png")
    visitor.wait(lambda: visitor.all("#edit-mask img"))
    visitor.fill("#edit-number", 3)
    visitor.click("#edit-go")
    visitor.wait(lambda: TIME.search(visitor.line("edit")))
    images = [saved(each, tmp_path / "made.png") for each in visitor.images("edit", 3)[:1]]
    made, given = pixels(images[0]), pixels(photo)
    assert made[:, 16:].equal(given[:, 16:]) and not made[:, :16].equal(given[:, :16])
    assert read_settings(images[0])["edit"]["mask"] == "uploaded"
    visitor.fill("#edit-number", 7)
    visitor.click("#edit-go")
    visitor.wait(lambda: "7 images are more than the 6" in visitor.line("edit"))


def test_a_large_noisy_photograph_is_edited_where_it_is_painted_on(
    visitor: Visitor, tmp_path: Path
) -> None:
    noise = torch.randint(0, 256, (900, 1200, 3), generator=torch.Generator().manual_seed(0))
    Image.fromarray(noise.to(torch.uint8).numpy()).save(tmp_path / "photo.jpg", quality=80)
    assert (tmp_path / "photo.jpg").stat().st_size < 2 * 2**20 < noise.numel()  # a PNG's size
    for part in ("mask", "picture"):
        visitor.click(f"#edit-{part} button[aria-label='Remove Image']")
    visitor.wait(lambda: not visitor.all("#edit-picture img"))
    visitor.upload("#edit-picture", tmp_path / "photo.jpg")
    visitor.wait(lambda: visitor.all("#edit-picture img"))
    visitor.fill("#edit-number", 1)
    visitor.click("#edit-go")
    visitor.wait(lambda: "no area is marked" in visitor.line("edit"))
    visitor.paint("#edit-area")
    visitor.click("#edit-go")
    visitor.wait(lambda: TIME.search(visitor.line("edit")))
    image = saved(visitor.images("edit", 1)[0], tmp_path / "made.png")
    assert read_settings(image)["edit"]["mask"] == "painted"
    assert not visitor.errors()


def test_a_picture_is_made_again_at_every_scale_and_a_bad_one_is_told(
    visitor: Visitor, photo: Path, tmp_path: Path
) -> None:
    visitor.tab("Reconstruct")
    (tmp_path / "bad.png").write_bytes(photo.read_bytes()[:60])
    visitor.upload("#again-picture", tmp_path / "bad.png")
    visitor.wait(lambda: visitor.all("#again-picture img"))
    visitor.click("#again-go")
    visitor.wait(lambda: "cannot read image=bad.png" in visitor.line("again"))
    assert str(tmp_path) not in visitor.line("again")
    visitor.click("#again-picture button[aria-label='Remove Image']")
    visitor.upload("#again-picture", photo)
    visitor.wait(lambda: visitor.all("#again-picture img"))
    visitor.click("#again-go")
    visitor.wait(lambda: re.search(r"PSNR \d+\.\d+ dB", visitor.line("again")))
    visitor.images("again", 6)  # and the given one

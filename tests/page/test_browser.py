"""The page in a real browser: what people click, draw and choose, on a desktop and on a phone.

Needs Chromium with its driver (Debian: apt-get install chromium chromium-driver) and Selenium. Where RETREE_JAX_SCREENSHOTS
names a folder, the tests leave pictures of the page there.
"""

import base64
import concurrent.futures
import io
import json
import os
import pathlib
import shutil
import threading
import urllib.request

import numpy as np
import pytest
from PIL import Image

from retree_jax.data import phantom
from retree_jax.page import jobs
from tests import small
from tests.page.conftest import silent
from tests.page.test_uploads import encoded, vessel

webdriver = pytest.importorskip("selenium.webdriver", reason="needs Selenium")
_CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
_DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (_CHROMIUM and _DRIVER), reason="needs chromium and chromedriver")
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


class Page:
  """One browser that shows the page."""

  def __init__(self, site, profile, size="desktop"):
    options = webdriver.ChromeOptions()
    options.binary_location = _CHROMIUM
    flags = ["headless=new", "disable-gpu", "disable-background-networking", "disable-component-update", "disable-sync"]
    flags += ["disable-dev-shm-usage", "hide-scrollbars", "no-first-run", f"user-data-dir={profile}"]
    flags += ["no-sandbox"] if os.geteuid() == 0 else []
    for flag in flags:
      options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(_DRIVER))
    width, height = SIZES[size]
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"}
    self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    self.size, self.url = size, site.url

  def find(self, css):
    return self.driver.find_element("css selector", css)

  def click(self, css):
    self.find(css).click()

  def write(self, css, text):
    self.driver.execute_script("arguments[0].value = arguments[1]", self.find(css), str(text))

  def pictures(self) -> dict[str, bytes]:
    """The three pictures that are shown, by their captions."""
    figures = self.driver.find_elements("css selector", "#results .pictures figure")
    found = {}
    for figure in figures:
      picture = figure.find_element("css selector", "img")
      small.wait_for(lambda picture=picture: picture.get_property("naturalWidth") > 0, 20)
      with urllib.request.urlopen(picture.get_property("src"), timeout=30) as answer:
        found[figure.text] = answer.read()
    return found

  def run(self) -> None:
    """Starts what the form says, and waits until it has ended."""
    self.click("#start")
    small.wait_for(lambda: not self.find("#progress").is_displayed(), 120)

  def error(self) -> str:
    return self.find("#error").text

  def keep(self, name) -> None:
    """Leaves a picture of the whole page, and checks that nothing is wider than the screen."""
    width, height = (
      self.driver.execute_script(f"return document.documentElement.scroll{side}") for side in ("Width", "Height")
    )
    assert width == SIZES[self.size][0]
    if folder := os.environ.get("RETREE_JAX_SCREENSHOTS"):
      clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
      taken = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
      pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
      (pathlib.Path(folder) / f"{self.size}_{name}.png").write_bytes(base64.b64decode(taken["data"]))

  def asked(self) -> set[str]:
    """Every address that the browser has asked for since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return {url for url in urls if not url.startswith(("data:", "blob:", "chrome"))}


@pytest.fixture(scope="module")
def pages(site, tmp_path_factory):
  """Browsers by the order of their opening; they stay open, since starting one takes seconds."""
  opened = {}
  yield opened
  for page in opened.values():
    page.driver.quit()


@pytest.fixture
def browser(pages, site, tmp_path_factory):
  """Gives a browser with a fresh page, `browser("phone")`; checks at the end that all they asked for was the server."""
  used = []

  def opened(size="desktop"):
    key = size, sum(page.size == size for page in used)
    if key not in pages:
      pages[key] = Page(site, tmp_path_factory.mktemp("profile"), size)
    pages[key].driver.get(site.url)
    used.append(pages[key])
    return pages[key]

  yield opened
  for page in used:
    asked = page.asked()
    assert asked and all(url.startswith(page.url) for url in asked), asked
    wrong = [entry["message"] for entry in page.driver.get_log("browser") if "status of 400" not in entry["message"]]
    assert not wrong


def shown(data: bytes) -> np.ndarray:
  return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("size", SIZES)
def test_a_visit(browser, loaded, tmp_path, size):
  """Generates, edits what was made, draws, undoes, chooses a tree, reads a photograph; wrong files are told."""
  page = browser(size)
  page.keep("start")
  page.find("#set-steps").send_keys("e")
  page.run()
  assert page.error() == "steps is not a number: give one from 1 to 250"
  page.write("#set-steps", "")
  page.write("#set-seed", 8)
  page.write("#set-num", 3)
  page.run()
  assert page.error() == ""
  wanted = loaded.generate(loaded.settings({"seed": "8", "num": "3"}), silent).files
  assert page.pictures()["photograph"] == wanted["images/0000000.png"]
  strip = page.driver.find_elements("css selector", "#results .strip button")
  assert len(strip) == 3
  strip[2].click()
  assert page.pictures() == {
    "tree": wanted["masks/0000002.png"],
    "photograph": wanted["images/0000002.png"],
    "overlay": wanted["shown/0000002.png"],
  }
  assert len(page.driver.find_elements("css selector", "#results tbody tr")) == 12
  links = {a.text: a.get_property("href") for a in page.driver.find_elements("css selector", "#results .links a")}
  assert {"all as ZIP", "manifest", "photograph (PNG)", "tree (PNG)", "field of view (PNG)"} <= set(links)
  with urllib.request.urlopen(links["all as ZIP"], timeout=30) as answer:
    assert answer.read() == wanted["retree_seed8_3.zip"]
  page.keep("generated")

  edit = next(b for b in page.driver.find_elements("css selector", "#results button") if b.text == "edit this tree")
  edit.click()
  small.wait_for(lambda: page.find("#board").is_displayed(), 20)
  page.write("#set-num", 1)
  page.run()
  np.testing.assert_array_equal(shown(page.pictures()["tree"]), shown(wanted["masks/0000002.png"]))

  page.driver.execute_script("arguments[0].max = 40; arguments[0].value = 40", page.find("#pen"))  # a pixel here is 32 wide
  page.click("#clear")
  page.run()
  assert page.error() == "draw some vessels first, or choose a picture of a tree"
  draw(page, (-60, -40), (60, 50))
  draw(page, (-60, 60), (60, -60))
  page.click("#undo")
  page.run()
  tree = shown(page.pictures()["tree"]) > 0
  side = len(tree)
  assert page.error() == "" and tree[side // 2 - 1 : side // 2 + 1, side // 2 - 1 : side // 2 + 1].any()
  assert not tree[side // 2 :, : side // 2 - 2].any() and not tree[: side // 2 - 2, side // 2 + 1 :].any()  # undone
  page.keep("painted")

  (tmp_path / "tree.png").write_bytes(encoded(vessel()))
  (tmp_path / "eye.jpg").write_bytes(encoded(phantom.eye(4, (90, 90))["image"], "JPEG"))
  (tmp_path / "bad.png").write_bytes(b"hello")
  page.find("#tree-file").send_keys(str(tmp_path / "tree.png"))
  page.run()
  column = np.flatnonzero((shown(page.pictures()["tree"]) > 0).any(0))
  assert page.error() == "" and 0 < len(column) <= 3

  page.click("[data-action=segment]")
  page.run()
  assert page.error() == "choose a photograph first"
  page.find("#photograph-file").send_keys(str(tmp_path / "bad.png"))
  page.run()
  assert page.error().startswith("this file is not a picture that can be read: choose a PNG")
  page.keep("bad")
  page.find("#photograph-file").send_keys(str(tmp_path / "eye.jpg"))
  page.run()
  assert page.error() == "" and shown(page.pictures()["tree"]).shape == (90, 90)
  page.keep("segmented")


def draw(page, start, end) -> None:
  """One stroke on the board, in pixels from its middle."""
  board = page.find("#board")
  page.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", board)
  actions = webdriver.ActionChains(page.driver).move_to_element_with_offset(board, *start).click_and_hold()
  actions.move_by_offset(*(e - s for s, e in zip(start, end, strict=True))).release().perform()


def test_two_users_at_once_get_their_own_pictures(browser, loaded):
  pages = [browser(), browser()]
  for seed, page in enumerate(pages):
    page.write("#set-seed", 20 + seed)
    page.write("#set-num", 2)
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    list(pool.map(Page.run, pages))
  for seed, page in enumerate(pages):
    wanted = loaded.generate(loaded.settings({"seed": str(20 + seed), "num": "2"}), silent).files
    assert page.pictures()["photograph"] == wanted["images/0000000.png"]


def test_a_cancelled_job_leaves_the_form_ready(browser, loaded, site):

  begun, go = threading.Event(), threading.Event()

  def hold(say):
    begun.set()
    assert go.wait(60)
    return jobs.Outcome({}, {})

  page = browser()
  site.queue.add(hold)
  assert begun.wait(30)
  page.click("#start")
  small.wait_for(lambda: page.find("#status").text == "waiting for 1 other job", 30)
  page.click("#cancel")
  assert page.find("#start").is_enabled() and not page.find("#progress").is_displayed()
  go.set()
  page.run()
  assert page.error() == "" and set(page.pictures()) == {"tree", "photograph", "overlay"}

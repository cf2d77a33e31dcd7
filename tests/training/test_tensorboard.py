"""A real TensorBoard on loopback, seen by a real browser."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from helpers.commands import SMALL, run

DRIVER = shutil.which("chromedriver")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not (DRIVER and BROWSER), reason="needs chromium and chromedriver"),
]

# The text of the page, of components with a shadow of their own too.
TEXT = """
const texts = [];
(function walk(node) {
    if (node.nodeType === Node.TEXT_NODE) texts.push(node.textContent);
    if (node.shadowRoot) walk(node.shadowRoot);
    if (!["STYLE", "SCRIPT", "TEMPLATE"].includes(node.nodeName)) node.childNodes.forEach(walk);
})(document.body);
return texts.join(" ");
"""

# The right edges of the table's columns of hyperparameters and metrics.
COLUMNS = """
const edges = {};
(function walk(node) {
    for (const child of node.childNodes) walk(child);
    if (node.shadowRoot) walk(node.shadowRoot);
    if (node.nodeName !== "VAADIN-GRID-CELL-CONTENT") return;
    const name = node.textContent.trim(), place = node.getBoundingClientRect();
    if (/^(hp\\/\\S+|[a-z_]+(\\.[a-z_]+)*)$/.test(name) && place.width && !(name in edges) && place.top < 200)
        edges[name] = place.right;
})(document.body);
return edges;
"""


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """The address of a TensorBoard over a sweep of two trials."""
    directory = tmp_path_factory.mktemp("board")
    swept = ["sweep=optuna", "optimizer.lr=tag(log,interval(1e-4,1e-2))", "hydra.sweeper.trials=2"]
    keys = [*SMALL, *swept, "~callbacks.pruning", f"hydra.sweep.dir={directory / 'sweep'}"]
    result = run("train.py", "-m", *keys, cwd=directory)
    assert result.returncode == 0, result.stderr
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(directory / "sweep"), "--host", "127.0.0.1"]
    with (
        (directory / "log").open("w") as log,
        subprocess.Popen([*command, "--port", str(port), "--load_fast", "false"], stdout=log, stderr=log) as server,
    ):
        address = f"http://127.0.0.1:{port}/"
        try:
            wait_for(lambda: answers(address), 60)
            yield address
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1500,1400"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_script_timeout(120)
    yield driver
    driver.quit()


def answers(address):
    try:
        with urllib.request.urlopen(address, timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


def wait_for(happened, seconds):
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.3)


def shows(browser, address, *texts):
    """Wait until the page shows them all; keep a picture of it where the environment asks for one."""
    browser.get("about:blank")
    browser.get(address)
    seen = ""

    def shown():
        nonlocal seen
        seen = browser.execute_script(TEXT)
        return all(re.search(text, seen) for text in texts)

    try:
        wait_for(shown, 60)
    except AssertionError:
        missing = [text for text in texts if not re.search(text, seen)]
        pytest.fail(f"{address} lacks {missing}; it shows {' '.join(seen.split())[:2000]}")
    if pictures := os.environ.get("TAUGRAD_SCREENSHOTS"):
        time.sleep(4)  # for what is still rendered
        browser.save_screenshot(str(Path(pictures) / f"tensorboard_{address.split('#')[1]}.png"))


def test_every_tab_shows_what_a_sweep_wrote(board, browser):
    runs = ("0/tensorboard", "1/tensorboard")
    shows(browser, f"{board}#scalars", r"\btrain\b", r"\bval\b", "tau", *runs)
    shows(browser, f"{board}#images", "reconstruction", "prior_samples", "class_samples")
    shows(browser, f"{board}#histograms", "codes")
    shows(browser, f"{board}#custom_scalars", "training", "temperature", "gradient", "terms")
    shows(browser, f"{board}#hparams", "hp/test/nll", "optimizer.lr", "seed", *runs)
    places = browser.execute_script(COLUMNS)
    names = ["estimator", "model", "optimizer.lr", "seed", "hp/val/loss"]  # the objective in the first screen
    edges = [places.get(name, 9999) for name in names]
    assert edges == sorted(edges)
    assert edges[-1] < 1500
    assert not any("_target_" in name for name in places)

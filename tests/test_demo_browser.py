"""The page on which one drops an image, as people see it: gradio's, in Debian's Chromium."""

import json
import re
import socket
import subprocess
import sys
import time
from threading import Thread

import pytest
from browser import Browser
from test_data import picture
from test_evaluate import trained

pytestmark = pytest.mark.browser

SUBMIT = "[...document.querySelectorAll('button')].find(button => button.textContent.trim() == 'Submit').click()"
CLEAR = "[...document.querySelectorAll('button')].find(button => button.textContent.trim() == 'Clear').click()"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def waited(browser: Browser, words: str) -> str:
    """The text of the page, as soon as it has the words."""
    end = time.monotonic() + 60
    while not re.search(words, text := browser.run("document.body.innerText")):
        assert time.monotonic() < end, text
        time.sleep(0.2)
    return text


def drop(browser: Browser, file) -> None:
    root = browser.do("DOM.getDocument")["root"]["nodeId"]
    found = browser.do("DOM.querySelector", nodeId=root, selector="input[type=file]")["nodeId"]
    browser.do("DOM.setFileInputFiles", nodeId=found, files=[str(file)])


@pytest.mark.timeout(300)
def test_an_image_that_is_dropped_is_named_and_a_damaged_one_is_told(tmp_path):
    trained(tmp_path / "model", ("apple", "kiwi", "lime"))
    picture(0).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:300])
    vitas = [sys.executable, "-m", "vitas"]
    said = subprocess.run(
        [*vitas, "predict", "model", "whole.png", "--json"], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    (guesses,) = json.loads(said.stdout)["images"].values()
    with subprocess.Popen(
        [*vitas, "demo", "model", "--port", str(free_port())],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as serving:
        try:
            assert serving.stdout
            address = next(found[0] for line in serving.stdout if (found := re.search(r"http://[\d.]+:\d+", line)))
            Thread(target=serving.stdout.read, daemon=True).start()
            with Browser() as browser:
                browser.open(address)
                waited(browser, "Submit")
                drop(browser, tmp_path / "whole.png")
                waited(browser, "whole")
                browser.run(SUBMIT)
                text = waited(browser, rf"{guesses[0]['class']}\s+{100 * guesses[0]['probability']:.0f}%")
                assert all(guess["class"] in text for guess in guesses)
                browser.run(CLEAR)
                time.sleep(1)
                drop(browser, tmp_path / "cut.png")
                waited(browser, "cut")
                browser.run(SUBMIT)
                waited(browser, "Not an image, or damaged")
        finally:
            serving.terminate()

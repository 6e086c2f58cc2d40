"""The page of tools/attention_explorer.py in a real browser, which .ci/run installs."""

import io
import os
import shutil
import socket
import subprocess
import sys
import urllib.request

import keras
import numpy as np
import pytest
from PIL import Image

from keras_deit.models import DeiTImageClassifier
from keras_deit.visualization import attention_maps, attention_rollout, enlarge, overlay
from tests.helpers import unseen_digits
from tests.scripts import ROOT

pytestmark = pytest.mark.browser

pytest.importorskip("gradio")
webdriver = pytest.importorskip("selenium.webdriver")
By = pytest.importorskip("selenium.webdriver.common.by").By
WebDriverWait = pytest.importorskip("selenium.webdriver.support.wait").WebDriverWait
WAIT = 60  # seconds, for a page that takes a moment


@pytest.fixture(scope="module")
def address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = subprocess.Popen(
        [sys.executable, ROOT / "tools" / "attention_explorer.py", f"--port={port}"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in page.stdout:
        if str(port) in line:
            break
    else:
        pytest.fail(f"The page did not start: {page.wait()}")
    yield f"http://127.0.0.1:{port}"
    page.terminate()
    page.communicate()


@pytest.fixture
def browser(address, tmp_path):
    options = webdriver.ChromeOptions()
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--window-size=1400,1400",
    ):
        options.add_argument(argument)
    options.binary_location = shutil.which("chromium")
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    browser = webdriver.Chrome(options=options, service=service)
    browser.implicitly_wait(WAIT)
    browser.get(address)
    # What the page opens with
    wait(browser, lambda browser: "100%" in browser.find_element(By.TAG_NAME, "body").text)
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def digit():
    return unseen_digits()[0][2]


def upload(browser, file):
    browser.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(file))


def wait(browser, condition):
    return WebDriverWait(browser, WAIT, ignored_exceptions=[Exception]).until(condition)


def picture_is(expected):
    """Whether the page shows exactly this picture."""

    def shown(browser):
        for image in browser.find_elements(By.TAG_NAME, "img"):
            with urllib.request.urlopen(image.get_attribute("src")) as response:
                found = np.asarray(Image.open(io.BytesIO(response.read())).convert("RGB"))
            if found.shape == expected.shape and (found == expected).all():
                return True
        return False

    return shown


def slider(browser, label):
    return browser.find_element(By.CSS_SELECTOR, f"input[type=number][aria-label*='for {label}']")


def set_slider(browser, label, value):
    box = slider(browser, label)
    wait(browser, lambda browser: box.is_enabled())
    box.send_keys(webdriver.Keys.CONTROL, "a")
    box.send_keys(str(value), webdriver.Keys.TAB)


@pytest.fixture(scope="module")
def classifier():
    return DeiTImageClassifier.from_preset("deit_nano_distilled_patch4_32_digits")


@pytest.fixture(scope="module")
def look(classifier):
    model = keras.Model(classifier.input, classifier.outputs_with_attention_scores)
    return lambda image: model.predict(classifier.preprocessor(image[None]), verbose=0)


def test_the_page_opens_with_an_example(browser, look):
    example = unseen_digits()[0][-6]
    wait(
        browser,
        picture_is(
            overlay(
                enlarge(example), attention_rollout(look(example)["attention_scores"], 2, (8, 8))[0]
            )
        ),
    )
    text = browser.find_element(By.TAG_NAME, "body").text
    assert "Where DeiT looks" in text
    assert "deit_nano_distilled_patch4_32_digits" in text
    assert not slider(browser, "Block").is_enabled()
    assert not slider(browser, "Head").is_enabled()


def test_predictions_and_attention_of_each_head(browser, digit, classifier, look, tmp_path):
    Image.fromarray(digit[..., 0]).save(tmp_path / "digit.png")
    found = look(digit)
    scores, drawn = found["attention_scores"], enlarge(digit)

    upload(browser, tmp_path / "digit.png")
    wait(browser, picture_is(overlay(drawn, attention_rollout(scores, 2, (8, 8))[0])))
    text = browser.find_element(By.TAG_NAME, "body").text
    [best] = classifier.decode_predictions(found["outputs"], top=5)
    for label, probability in best:
        assert f"{label}\n{probability:.0%}" in text

    browser.find_element(By.CSS_SELECTOR, "input[type=radio][value='distillation']").click()
    wait(
        browser,
        picture_is(overlay(drawn, attention_rollout(scores, 2, (8, 8), token="distillation")[0])),
    )
    browser.find_element(
        By.CSS_SELECTOR, "input[type=radio][value='one head of one block']"
    ).click()
    set_slider(browser, "Block", 1)
    set_slider(browser, "Head", 2)
    wait(
        browser,
        picture_is(
            overlay(drawn, attention_maps(scores["block_1"], 2, (8, 8), token="distillation")[0, 2])
        ),
    )
    browser.find_element(By.CSS_SELECTOR, "input[type=radio][value='through all blocks']").click()
    wait(browser, lambda browser: not slider(browser, "Block").is_enabled())


def test_error_on_a_broken_image(browser, digit, tmp_path):
    stream = io.BytesIO()
    Image.fromarray(np.kron(digit[..., 0], np.ones((32, 32), "uint8"))).save(stream, "JPEG")
    (tmp_path / "half.jpg").write_bytes(stream.getvalue()[: len(stream.getvalue()) // 2])
    upload(browser, tmp_path / "half.jpg")
    wait(
        browser,
        lambda browser: "truncated or damaged" in browser.find_element(By.TAG_NAME, "body").text,
    )


def test_error_on_an_unknown_preset(tmp_path):
    result = subprocess.run(
        [sys.executable, ROOT / "tools" / "attention_explorer.py", "--preset=deit_gigantic"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("Nothing to explore. ")

"""The tuner's page in a browser: two pictures, a choice by mouse or key, and a word of thanks."""

import io
import threading

import pytest
from pack.fleet.tuning.page import AskingPage, Question
from PIL import Image

pytestmark = pytest.mark.browser


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 48), colour).save(file, "PNG")
    return file.getvalue()


def test_a_person_sees_two_pictures_and_answers_by_key_and_by_mouse(browser):
    answers = []
    with AskingPage() as asking:

        def questions():
            for number in (1, 2, 3):
                answers.append(asking.ask(Question(number, 3, png("red"), png("blue")), wait=60))
            asking.finish()

        thread = threading.Thread(target=questions, daemon=True)
        thread.start()
        page = browser.new_page(viewport={"width": 1200, "height": 800})
        errors = []
        page.on("console", lambda message: message.type == "error" and errors.append(message.text))
        page.goto(asking.url)
        page.get_by_text("Which picture is better? 1 of 3").wait_for()
        page.wait_for_function("[...document.images].every((image) => image.complete && image.naturalWidth === 64)")
        page.screenshot(path="output/browser/tuner.png")
        page.keyboard.press("ArrowRight")
        page.get_by_text("Which picture is better? 2 of 3").wait_for()
        page.get_by_alt_text("left picture").click()
        page.get_by_text("Which picture is better? 3 of 3").wait_for()
        page.get_by_text("No difference").click()
        page.get_by_text("Thank you").wait_for()
        thread.join(10)
        page.close()
    assert answers == ["right", "left", "same"] and errors == []

"""The page of `engine serve` in a real browser, by hand: Chromium without a window.

    pip install playwright
    cargo run --release --features serve -- serve --port 8080
    python tests/serve/page.py http://127.0.0.1:8080 --browser /usr/bin/chromium --shots FOLDER

A prompt becomes a picture after partial ones, a variation and an edit with a drawn mask work, two pictures blend, one is enlarged,
settings come back from a dropped picture; nothing is written to the console, and no request leaves the server.
"""

import argparse
import pathlib
import sys

from playwright.sync_api import expect, sync_playwright

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("address")
parser.add_argument("--browser")
parser.add_argument("--shots", type=pathlib.Path)
options = parser.parse_args()
faults = []


def watch(page):
    page.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: faults.append(str(error)))

    def asked(request):
        if not request.url.startswith((options.address, "blob:", "data:")):
            faults.append(f"a request to {request.url}")

    page.on("request", asked)


def shot(page, name):
    if options.shots:
        options.shots.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=options.shots / f"{name}.png", full_page=True)


def finished(page, count):
    expect(page.locator("figure:not(.waiting) .buttons")).to_have_count(count, timeout=60_000)


def draw(page):
    page.get_by_label("What the picture shows", exact=True).fill("a red apple")
    page.get_by_label("Steps").fill("12")
    # Every picture that is shown on the way, by the number of the partial picture.
    page.evaluate("""() => { window.seen = []; new MutationObserver(all => all.forEach(one =>
        one.target.dataset?.partial && seen.push(one.target.dataset.partial)))
        .observe(document.getElementById("gallery"), { subtree: true, attributes: true }); }""")
    page.get_by_role("button", name="Draw another seed").click()
    page.get_by_role("button", name="Make pictures").click()
    finished(page, 1)
    partial = page.evaluate("[...new Set(window.seen)]")
    assert partial == ["0", "1", "2"], partial
    expect(page.get_by_role("status")).to_contain_text("done in")
    caption = page.locator("figcaption").first.inner_text()
    assert "a red apple" in caption and "seed" in caption, caption


def vary_and_edit(page):
    card = page.locator("figure").last
    card.get_by_role("button", name="Vary").click()
    finished(page, 2)
    card.get_by_role("button", name="Edit").click()
    canvas = page.locator("#canvas").bounding_box()
    at = [(canvas["x"] + canvas["width"] * x, canvas["y"] + canvas["height"] * y) for x, y in ((0.3, 0.4), (0.6, 0.5))]
    page.mouse.move(*at[0])
    page.mouse.down()
    page.mouse.move(*at[1], steps=8)
    page.mouse.up()
    page.get_by_label("What the picture shows then").fill("a frog")
    shot(page, "editor")
    page.get_by_role("button", name="Make it").click()
    finished(page, 3)


def blend_and_enlarge(page):
    for card in (0, 2):
        page.locator("figure").nth(card).get_by_role("button", name="Choose").click()
    page.get_by_role("button", name="Blend the two chosen").click()
    finished(page, 4)
    page.locator("figure").last.get_by_role("button", name="Enlarge").click()
    finished(page, 5)


def load_settings(page):
    with page.expect_download() as download:
        page.locator("figure").last.get_by_role("link", name="Download").click()
    path = download.value.path()
    page.get_by_label("What the picture shows", exact=True).fill("")
    page.locator("#file").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": path.read_bytes()})
    expect(page.get_by_label("What the picture shows", exact=True)).to_have_value("a red apple")
    expect(page.get_by_role("status")).to_contain_text("settings that the picture carries")


def mistakes(page):
    page.get_by_label("What the picture shows", exact=True).fill("")
    page.get_by_role("button", name="Make pictures").click()
    expect(page.get_by_role("status")).to_contain_text("Say what the picture shows")
    page.get_by_label("What the picture shows", exact=True).fill("a")
    page.evaluate("document.getElementById('form').noValidate = true")
    page.get_by_label("Steps").fill("1")
    page.get_by_role("button", name="Make pictures").click()
    expect(page.get_by_role("status")).to_contain_text("steps: 1")
    # A refused request is written to the console by the browser itself.
    faults[:] = [fault for fault in faults if "400" not in fault]


def main():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.browser, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        watch(page)
        page.goto(options.address)
        for step in (draw, vary_and_edit, blend_and_enlarge, load_settings):
            step(page)
        shot(page, "light")
        page.emulate_media(color_scheme="dark")
        shot(page, "dark")
        page.set_viewport_size({"width": 375, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it is wider than a phone"
        shot(page, "phone")
        mistakes(page)
        page.reload()
        finished(page, 5)
        browser.close()
    if faults:
        sys.exit("\n".join(faults))
    print("all is well")


main()

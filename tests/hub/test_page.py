"""The page that keeps images at home, in a real browser: the package's pixels and answers, and nothing sent."""

import base64
import csv
import functools
import http.server
import io
import itertools
import json
import shutil
import struct
import tarfile
import threading
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, ImageCms

from oct_hf import Predictor
from oct_hf.data import quality
from oct_hf.data.phantom import draw
from oct_hf.data.shrunken import shrink
from oct_hf.errors import BadImageError, ModelError, OCTError
from oct_hf.evaluation.operating_points import at_prevalence
from oct_hf.hub.page import runtime, write_page
from oct_hf.images import Preprocessing, read_image
from oct_hf.inference.gate import Gate, SignGate
from oct_hf.inference.recorded import recorded_gate
from oct_hf.labels import DISEASE_BY_SIGNS, SIGNS


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        self.server.asked.append(self.path)


@contextmanager
def serving(folder: Path):
    """The address of a plain web server, and the paths that it was asked for."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    server.asked = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/", server.asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="session")
def web_runtime(node) -> Path:
    """npm's package of ONNX Runtime for browsers."""
    return Path(__file__).parents[1] / "node" / "node_modules" / runtime.PACKAGE


@pytest.fixture(scope="module")
def sharp_model(finished_run, tmp_path_factory) -> Path:
    """The finished run's model with answers that differ from picture to picture, and sets of one label and of two."""
    import torch

    from oct_hf import OCTForImageClassification
    from oct_hf.inference.export import write_onnx

    folder = tmp_path_factory.mktemp("sharp") / "model"
    shutil.copytree(finished_run / "model", folder)
    model = OCTForImageClassification.from_pretrained(folder).eval()
    examples = sorted((folder / "examples").glob("*.png"))
    exact = Predictor(folder, backend="torch")
    pixels = torch.from_numpy(np.stack([exact.read(path) for path in examples]))
    with torch.inference_mode():
        logits = model(pixel_values=pixels).logits
        last = model.timm_model.get_classifier()
        scale = 2 / logits.std(0).mean()
        last.weight.mul_(scale)
        last.bias.mul_(scale).sub_(logits.mean(0) * scale)
    model.save_pretrained(folder)
    write_onnx(model, folder / "onnx" / "model.onnx")
    (folder / "onnx" / "gray.onnx").unlink()  # the other weights'; the page doesn't take it
    run = json.loads((folder / "run.json").read_text())
    answers = Predictor(folder, backend="torch").predict(examples)
    run["examples"] = {f"examples/{Path(one.file).name}": one.probabilities for one in answers}
    run["gate"]["conformal"]["threshold"] = 0.7
    run["operating_points"]["diseases"]["CNV"]["at_sensitivity"]["test"] |= {"sensitivity": 0.9, "specificity": 0.75}
    (folder / "run.json").write_text(json.dumps(run))
    return folder


@pytest.fixture(scope="module")
def folder(sharp_model, web_runtime, tmp_path_factory) -> Path:
    return write_page(sharp_model, tmp_path_factory.mktemp("page") / "page", web_runtime)


@pytest.fixture(scope="module")
def site(folder):
    with serving(folder) as (address, _):
        yield address


def opened(context, address: str):
    context.set_default_timeout(120_000)  # milliseconds; a busy machine is no fault
    page = context.new_page()
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.goto(address)
    page.wait_for_selector("html[data-provider], #problem:not([hidden])")
    assert page.locator("#problem").is_hidden(), page.inner_text("#problem")
    return page


@pytest.fixture(scope="module")
def loaded(browser, site):
    """The page with its model, used by one test after the other."""
    context = browser.new_context(accept_downloads=True)
    yield opened(context, site)
    context.close()


@pytest.fixture
def page(loaded):
    yield loaded
    assert loaded.faults == []
    if loaded.locator("#clear").is_visible():
        loaded.click("#clear")


def wait_for(page, count: int) -> None:
    """Waits until so many files are answered."""
    from playwright.sync_api import expect

    expect(page.locator("#list > li")).to_have_count(count, timeout=120_000)


def rows_of(page, count: int) -> list[dict]:
    """The rows of the CSV that the page saves, once it has so many answers."""
    wait_for(page, count)
    with page.expect_download() as waiting:
        page.click("#save")
    return list(csv.DictReader(io.StringIO(Path(waiting.value.path()).read_text(encoding="utf-8"))))


def assert_the_package_s(rows: list[dict], model: Path, files: list[Path]) -> None:
    """The rows are what `oct-hf predict` answers to the files, by name."""
    predictor = Predictor(model, backend="onnx")
    predictor.gate = recorded_gate(model, predictor.labels)
    expected = {Path(one.file).name: one for one in predictor.predict(files)}
    assert {row["file"] for row in rows} == set(expected) and len(rows) == len(files)
    for row in rows:
        answer = expected[row["file"]]
        found = [float(row[f"p_{label}"]) for label in predictor.labels]
        assert found == pytest.approx(list(answer.probabilities.values()), abs=1e-3), row["file"]
        assert (row["answer"], row["predicted"]) == (str(answer.decision), answer.predicted or ""), row["file"]
        assert row["error"] == ""


# --- pixels ----------------------------------------------------------------------------------------------------------

READ = """async text => {
  const {decode} = await import("/decode.js");
  const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  try {
    const {width, height, channels, data} = await decode(bytes);
    let text = "";
    for (const value of data) text += String.fromCharCode(value);
    return {width, height, channels, text: btoa(text)};
  } catch (error) {
    return {refused: error.constructor.name === "Refused" && error.message};
  }
}"""


def pixels_in(page, content: bytes) -> np.ndarray | str:
    """What the page makes of a file: pixels, or why there are none."""
    found = page.evaluate(READ, base64.b64encode(content).decode())
    if "refused" in found:
        return found["refused"]
    shape = (found["height"], found["width"], found["channels"])
    return np.frombuffer(base64.b64decode(found["text"]), np.uint8).reshape(shape[: 2 if shape[2] == 1 else 3])


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(values: np.ndarray, depth: int, colour: int, interlaced: bool = False) -> bytes:
    """A PNG of kinds that pillow doesn't write; values `(height, width[, samples])`."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width = values.shape[:2]
    places = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    lines = b""
    for y, x, down, across in places if interlaced else [(0, 0, 1, 1)]:
        for line in values[y::down, x::across]:
            bits = np.unpackbits(line.astype(">u2").view(np.uint8).reshape(-1, 2), axis=1)[:, 16 - depth :]
            lines += (b"\0" + np.packbits(bits).tobytes()) if line.size else b""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def kinds() -> dict[str, bytes]:
    """One picture in every kind of file that the page reads."""
    gray = draw("DME", 5, height=67, width=75).image
    colour = np.stack([gray, gray[::-1], np.roll(gray, 9, 1)], -1)
    levels = gray.astype(np.uint16)
    l8, rgb = Image.fromarray(gray), Image.fromarray(colour)
    alpha = Image.fromarray(np.roll(gray, 20, 0))
    la, rgba = Image.merge("LA", (l8, alpha)), Image.merge("RGBA", (*rgb.split(), alpha))
    palette = rgb.quantize(37)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    turned = Image.Exif()
    turned[0x0112] = 6
    tiff = {"compression": "tiff_lzw", "tiffinfo": {317: 2}}
    files = {
        "gray.png": saved(l8, "PNG"),
        "bits.png": saved(l8.point(lambda level: 255 * (level > 90)).convert("1"), "PNG"),
        "colour.png": saved(rgb, "PNG"),
        "grayincolour.png": saved(l8.convert("RGB"), "PNG"),
        "la.png": saved(la, "PNG"),
        "rgba.png": saved(rgba, "PNG"),
        "palette.png": saved(palette, "PNG"),
        "palette4.png": saved(rgb.quantize(11), "PNG", bits=4),
        "turned.png": saved(l8, "PNG", exif=turned),
        "interlaced.png": png(gray, 8, 0, True),
        "interlaced4.png": png(gray >> 4, 4, 0, True),
        "gray2.png": png(gray >> 6, 2, 0),
        "colour16.png": png(colour.astype(int) * 257 - 3 * (colour > 0), 16, 2),
        "la16.png": png(np.stack([levels * 200, levels], -1), 16, 4),
        "gray.bmp": saved(l8, "BMP"),
        "colour.bmp": saved(rgb, "BMP"),
        "gray.gif": saved(l8, "GIF"),
        "gray.webp": saved(l8, "WEBP", lossless=True),
        "gray.jpg": saved(l8, "JPEG", quality=80),
        "gray_progressive.jpg": saved(l8, "JPEG", progressive=True),
        "turned.jpg": saved(l8, "JPEG", exif=turned),
        "profile.jpg": saved(rgb, "JPEG", icc_profile=profile, subsampling=0),
        "colour.jpg": saved(rgb, "JPEG", quality=90),
        "gray.tif": saved(l8, "TIFF"),
        "lzw.tif": saved(l8, "TIFF", compression="tiff_lzw"),
        "deflate.tif": saved(l8, "TIFF", compression="tiff_adobe_deflate"),
        "packbits.tif": saved(l8, "TIFF", compression="packbits"),
        "colour.tif": saved(rgb, "TIFF", **tiff),
        "rgba.tif": saved(rgba, "TIFF", compression="tiff_lzw"),
        "palette.tif": saved(palette, "TIFF"),
        "float.tif": saved(Image.fromarray(gray.astype(np.float32) / 7), "TIFF"),
        "turned.tif": saved(l8, "TIFF", tiffinfo={274: 8}),
        "noise.tif": saved(
            Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300), np.uint8)), "TIFF", **tiff
        ),
    }
    for full in (255, 4095, 65535):
        deep = Image.fromarray((levels * (full / 255)).astype(np.uint16))
        files |= {f"{full}.png": saved(deep, "PNG"), f"{full}.tif": saved(deep, "TIFF", **tiff)}
    for orientation in range(1, 9):
        files[f"way{orientation}.tif"] = saved(l8, "TIFF", tiffinfo={274: orientation})
    return files


def test_every_kind_of_file_gives_the_package_s_pixels(page):
    found = {name: pixels_in(page, content) for name, content in kinds().items()}
    expected = {name: read_image(content) for name, content in kinds().items()}
    refused = {name: pixels for name, pixels in found.items() if isinstance(pixels, str)}
    assert refused == {}
    shapes = {name: (found[name].shape, expected[name].shape) for name in found}
    assert {name: both for name, both in shapes.items() if both[0] != both[1]} == {}
    off = {name: int(np.abs(found[name].astype(int) - expected[name]).max()) for name in found}
    assert {name: value for name, value in off.items() if value} == {}


def test_what_the_package_refuses_the_page_refuses(page, bscan):
    picture = Image.fromarray(bscan)
    whole, tiff = saved(picture, "PNG"), saved(picture, "TIFF", compression="tiff_lzw")
    twice = {"save_all": True, "append_images": [picture.rotate(9)]}
    bad = {
        "empty": b"",
        "text": b"not a picture at all",
        "small": saved(picture.resize((300, 15)), "PNG"),
        "cut": whole[: len(whole) // 2],
        "damaged": whole[:2000] + bytes(50) + whole[2050:],
        "cut.tif": tiff[: len(tiff) // 2],
        "cut.jpg": saved(picture, "JPEG")[:60],
        "frames.tif": saved(picture, "TIFF", **twice),
        "frames.gif": saved(picture, "GIF", **twice),
        "frames.webp": saved(picture, "WEBP", **twice),
        "frames.png": saved(picture, "PNG", **twice),
    }
    for name, content in bad.items():
        with pytest.raises(BadImageError) as here:
            read_image(content)
        there = pixels_in(page, content)
        assert isinstance(there, str) and there and "\n" not in there, name
        if name.startswith(("empty", "small", "frames")):
            assert there == here.value.reason, name


def test_it_resizes_to_the_last_bit(page):
    rng = np.random.default_rng(3)
    for (height, width), kind in itertools.product(
        ((496, 768), (97, 1013), (60, 50), (96, 300)), ("bicubic", "bilinear")
    ):
        image = rng.integers(0, 256, (height, width), np.uint8)
        found = page.evaluate(
            """async ([text, width, height, kind]) => {
              const {resize} = await import("/pillow.js");
              const data = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
              return btoa(String.fromCharCode(...resize({width, height, channels: 1, data}, 128, 96, kind).data));
            }""",
            [base64.b64encode(image.tobytes()).decode(), width, height, kind],
        )
        expected = Preprocessing(96, 128, kind).resize(image)
        assert base64.b64decode(found) == expected.tobytes(), (height, width, kind)


def test_it_knows_a_b_scan_as_the_package_does(page, real_files):
    pictures = [read_image(path) for path in real_files]
    pictures += [draw(label, 3, height=300, width=420).image for label in ("CNV", "DME", "NORMAL")]
    y, x = np.mgrid[:200, :333]
    pictures += [
        np.uint8(120 + 100 * np.sin(x / 9) * np.sin(y / 7)),
        np.uint8((x * y) % 251),
        np.full((90, 90), 255, np.uint8),
    ]
    pictures += [np.stack([pictures[0], pictures[0][::-1], pictures[0]], -1)]
    found = page.evaluate(
        """async pictures => {
          const {likeness} = await import("/likeness.js");
          const gate = (await (await fetch("model.json")).json()).likeness;
          return pictures.map(([text, width, height, channels]) => {
            const data = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
            return likeness({width, height, channels, data}, gate);
          });
        }""",
        [
            [base64.b64encode(one.tobytes()).decode(), one.shape[1], one.shape[0], one.ndim // 3 * 2 + 1]
            for one in pictures
        ],
    )
    expected = [quality.oct_likeness(shrink(one)) for one in pictures]
    assert found == pytest.approx(expected, abs=1e-4)
    assert min(expected) < 0.1 and max(expected) > 0.9


# --- answers ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> list[Path]:
    """Phantoms as gray and coloured PNG and JPEG, and what is no B-scan."""
    folder = tmp_path_factory.mktemp("phantoms")
    for number, label in enumerate(("CNV", "DME", "DRUSEN", "NORMAL")):
        gray = draw(label, 11 + number, height=200, width=240).image
        overlay = np.stack([gray, gray, np.maximum(gray, 255 * (np.arange(240) < 60).astype(np.uint8))], -1)
        for name, image in (("gray", gray), ("colour", overlay)):
            Image.fromarray(image).save(folder / f"{label}_{name}.png")
            Image.fromarray(image).save(folder / f"{label}_{name}.jpg", quality=85)
    y, x = np.mgrid[:200, :200]
    Image.fromarray(np.uint8(120 + 100 * np.sin(x / 9) * np.sin(y / 7))).save(folder / "waves.png")
    return sorted(folder.iterdir(), key=lambda path: path.name.lower())


def test_phantoms_get_the_package_s_probabilities_and_answers(page, sharp_model, phantoms):
    page.set_input_files("#files", phantoms)
    rows = rows_of(page, len(phantoms))
    assert_the_package_s(rows, sharp_model, phantoms)
    answers = {row["answer"] for row in rows}
    assert "not an OCT B-scan" in answers  # so that a page that says one thing of all is found out
    assert any(answer.startswith("unsure: ") for answer in answers) and len({row["predicted"] for row in rows}) > 2


def test_real_b_scans_get_the_package_s_probabilities_and_answers(page, sharp_model, real_files):
    page.set_input_files("#files", real_files)
    assert_the_package_s(rows_of(page, len(real_files)), sharp_model, real_files)


def test_webgpu_gives_the_package_s_probabilities(browser_with_webgpu, site, sharp_model, phantoms):
    context = browser_with_webgpu.new_context(accept_downloads=True)
    page = opened(context, site)
    assert page.get_attribute("html", "data-provider") == "webgpu"
    page.set_input_files("#files", phantoms)
    assert_the_package_s(rows_of(page, len(phantoms)), sharp_model, phantoms)
    context.close()


@pytest.mark.slow  # where no other test needs the run of signs, its training takes longest
def test_signs_are_answered_as_the_package_answers_them(finished_signs_run, web_runtime, browser, phantoms, tmp_path):
    model = finished_signs_run / "model"
    folder = write_page(finished_signs_run, tmp_path / "page", web_runtime)
    context = browser.new_context(accept_downloads=True)
    with serving(folder) as (address, _):
        page = opened(context, address)
        page.set_input_files("#files", phantoms)
        assert_the_package_s(rows_of(page, len(phantoms)), model, phantoms)
        assert page.locator("#points").is_hidden()
        assert page.locator("#list th").first.inner_text() == next(iter(SIGNS))
        context.close()


def test_every_rule_decides_as_the_package_s(page):
    rng = np.random.default_rng(5)
    names, signs = ("A", "B", "C"), tuple(SIGNS)
    each, some = {"A": 0.4, "B": None, "C": 0.9}, (0.5, 0.2, None, 0.7, 0.4)
    rules = [{"score": score, "threshold": limit} for score in ("lac", "aps") for limit in (0.3, 0.75, None, each)]
    gates = [
        Gate(names),
        *(Gate(names, rule, 0.5) for rule in rules),
        SignGate(signs),
        SignGate(signs, None, 0.5, None, some),
    ]
    for gate in gates:
        several = isinstance(gate, SignGate)
        given = rng.random((40, len(gate.labels)))
        given = np.round(
            given if several else given**4 / (given**4).sum(1, keepdims=True), 2
        )  # rounded, so that some are equal
        likeness = rng.random(40)
        facts = {
            "labels": [{"name": name} for name in gate.labels],
            "several": several,
            "gate": None if several and not gate.thresholds else gate.to_dict(),
            "diseases": DISEASE_BY_SIGNS,
            "healthy": "NORMAL",
        }
        found = page.evaluate(
            """async ([model, rows]) => {
              const {decide} = await import("/answer.js");
              return rows.map(([probabilities, likeness]) => decide(model, probabilities, likeness)).map(
                ({text, predicted}) => [text, predicted]);
            }""",
            [facts, [[row.tolist(), float(like)] for row, like in zip(given, likeness, strict=True)]],
        )
        decisions = [gate.decide(row, like) for row, like in zip(given, likeness, strict=True)]
        assert found == [[str(one), one.predicted or ""] for one in decisions], gate
        assert len({text for text, _ in found}) > 2


def test_thirty_files_dropped_at_once(page, bscan):
    content = base64.b64encode(saved(Image.fromarray(bscan), "PNG")).decode()
    transfer = page.evaluate_handle(
        """text => {
          const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
          const transfer = new DataTransfer();
          for (let i = 0; i < 30; i++) transfer.items.add(new File([bytes], `scan ${i}.png`, {type: "image/png"}));
          return transfer;
        }""",
        content,
    )
    page.dispatch_event("#drop", "dragover", {"dataTransfer": transfer})
    assert "over" in page.get_attribute("#drop", "class")
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
    rows = rows_of(page, 30)
    assert [row["file"] for row in rows] == [f"scan {i}.png" for i in range(30)]
    assert len({row["p_CNV"] for row in rows}) == 1
    assert page.inner_text("#summary").startswith("30 of 30: 30 ") and page.inner_text("#status") == "30 answered."


def test_a_pasted_picture_is_answered(page, bscan):
    page.evaluate(
        """text => {
          const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
          const clipboardData = new DataTransfer();
          clipboardData.items.add(new File([bytes], "image.png", {type: "image/png"}));
          document.dispatchEvent(new ClipboardEvent("paste", {clipboardData, bubbles: true}));
        }""",
        base64.b64encode(saved(Image.fromarray(bscan), "PNG")).decode(),
    )
    assert rows_of(page, 1)[0]["file"] == "image.png"


EVIL = "<img src=x onerror=document.title='broken'>"


@pytest.mark.promise("Labels and file names are text wherever they are shown; nothing obeys them.")
def test_a_wrong_file_is_one_line_and_the_others_are_answered(page, bscan, tmp_path):
    sound = saved(Image.fromarray(bscan), "PNG")
    for name, content in ((f"{EVIL}.png", sound), ("=b\r\u202e.png", b"text"), ("c.png", b"")):
        (tmp_path / name).write_bytes(content)
    page.set_input_files("#files", sorted(tmp_path.iterdir()))
    rows = {row["file"]: row for row in rows_of(page, 3)}
    assert rows["c.png"]["error"] == "is empty (0 bytes)" and rows["c.png"]["p_CNV"] == ""
    assert rows[r"'=b\x0d\u202e.png"]["error"].startswith("is no PNG, JPEG, TIFF")
    assert rows[f"{EVIL}.png"]["answer"] and "broken" not in page.title()
    assert page.locator("#list img").count() == 0 and page.locator("#list h3").first.inner_text() == f"{EVIL}.png"
    assert "2 couldn't be read" in page.inner_text("#summary")


def test_predictive_values_follow_the_prevalence(page, sharp_model, phantoms):
    run = json.loads((sharp_model / "run.json").read_text())
    point = run["operating_points"]["diseases"]["CNV"]["at_sensitivity"]
    expected = at_prevalence(0.9, 0.75, 0.02)
    page.set_input_files("#files", phantoms[0])
    rows = rows_of(page, 1)
    page.click("#points summary")
    page.select_option("#point", label="CNV, sensitivity 0.95 on validation")
    page.fill("#prevalence", "2")
    told = page.inner_text("#at-point")
    assert f"{100 * expected['ppv']:.1f} % are right (PPV)" in told
    assert f"at least {point['threshold']:.3g}" in told
    positive = float(rows[0]["p_CNV"]) >= point["threshold"]
    assert page.inner_text("#list .cut").startswith(f"CNV: {'positive' if positive else 'negative'}")
    page.select_option("#point", "")
    assert page.locator("#list .cut").is_hidden()


def test_the_keyboard_is_enough(browser, site):
    context = browser.new_context(accept_downloads=True)
    page = opened(context, site)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "files"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the examples
    wait_for(page, 4)
    page.keyboard.press("Tab")
    with page.expect_download():
        page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.locator("#list > li").count() == 0
    context.close()


# --- at home ---------------------------------------------------------------------------------------------------------


def test_it_opens_and_answers_when_the_server_is_gone(browser, folder, phantoms):
    context = browser.new_context(accept_downloads=True)
    with serving(folder) as (address, asked):
        first = opened(context, address)
        assert "opens without a network" in first.inner_text("#offline")
        large = [path for path in asked if path.endswith((".wasm", ".onnx"))]
        assert len(large) == len(set(large)) == 2  # the large files came once
        first.close()
    context.set_offline(True)
    page = opened(context, address)
    page.set_input_files("#files", phantoms[:2])
    assert [row["error"] for row in rows_of(page, 2)] == ["", ""]
    context.close()


def test_a_new_model_takes_the_place_of_the_kept_one(browser, folder, tmp_path):
    place = tmp_path / "page"
    shutil.copytree(folder, place)
    context = browser.new_context()
    with serving(place) as (address, _):
        first = opened(context, address)
        facts = json.loads((place / "model.json").read_text(encoding="utf-8"))
        (place / "model.json").write_text(json.dumps(facts | {"name": "the next one"}), encoding="utf-8")
        worker = (place / "sw.js").read_text(encoding="utf-8")
        (place / "sw.js").write_text(worker.replace('VERSION = "', 'VERSION = "next'), encoding="utf-8")
        second = opened(context, address)
        second.wait_for_selector("#newer:not(:empty)")
        assert second.inner_text("h1") == "tiny"  # of one version as a whole
        first.close()
        second.close()
        page = opened(context, address)
        assert page.inner_text("h1") == "the next one"
        assert page.evaluate("caches.keys().then(keys => keys.length)") == 1
    context.close()


def test_nothing_is_asked_for_and_nothing_can_be_sent_elsewhere(browser, site, phantoms, tmp_path):
    context = browser.new_context(accept_downloads=True)
    asked = []
    context.on("request", lambda request: asked.append(request.url))
    with serving(tmp_path) as (elsewhere, received):
        page = opened(context, site)
        assert all(url.startswith((site, f"blob:{site}")) for url in asked)
        before = len(asked)
        page.set_input_files("#files", phantoms[:3])
        rows_of(page, 3)
        assert [url for url in asked[before:] if not url.startswith("blob:")] == []
        assert "Nothing was sent. Since the model was loaded this page made 0 requests" in page.inner_text("#sent")
        send = f"fetch({elsewhere!r}, {{method: 'POST', mode: 'no-cors'}}).then(() => 'sent', () => 'refused')"
        places = [page, *page.workers]
        assert len(places) == 2 and [place.evaluate(send) for place in places] == ["refused", "refused"]
        page.evaluate(f"new Image().src = {elsewhere!r} + 'a.png'; navigator.sendBeacon({elsewhere!r}, 'pixels')")
        page.evaluate("new Promise(resolve => setTimeout(resolve, 300))")
        assert received == []
    context.close()


def test_a_model_that_was_exchanged_is_not_run(browser, folder, tmp_path):
    place = tmp_path / "page"
    shutil.copytree(folder, place)
    content = (place / "model.onnx").read_bytes()
    (place / "model.onnx").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    context = browser.new_context()
    with serving(place) as (address, _):
        page = context.new_page()
        page.goto(address)
        page.wait_for_selector("#problem:not([hidden])", timeout=120_000)
        assert page.inner_text("#problem") == (
            "The model can't be loaded: model.onnx isn't the file that was published"
        )
    context.close()


def test_a_browser_that_computes_otherwise_gives_no_answers(browser, folder, tmp_path):
    place = tmp_path / "page"
    shutil.copytree(folder, place)
    facts = json.loads((place / "model.json").read_text(encoding="utf-8"))
    facts["examples"][0]["probabilities"] = facts["examples"][0]["probabilities"][::-1]
    (place / "model.json").write_text(json.dumps(facts), encoding="utf-8")
    context = browser.new_context()
    with serving(place) as (address, _):
        page = context.new_page()
        page.goto(address)
        page.wait_for_selector("#problem:not([hidden])", timeout=120_000)
        assert "from the published ones" in page.inner_text("#problem")
    context.close()


@pytest.mark.parametrize("scheme, width", [("light", 1280), ("dark", 360)])
def test_axe_finds_nothing_and_a_phone_needs_no_sideways_scrolling(
    browser, site, axe, scheme, width, phantoms, tmp_path
):
    long = tmp_path / f"{'a_long_name_without_a_space' * 4}.png"
    shutil.copyfile(phantoms[0], long)
    (tmp_path / "bad.png").write_bytes(b"text")
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, bypass_csp=True)
    page = opened(context, site)

    def faults() -> list[str]:
        page.evaluate(axe)
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        wide = [f"{over} pixels too wide"] if over > 0 else []
        return wide + [f"{one['id']}: {one['nodes'][0]['html'][:120]}" for one in found["violations"]]

    assert faults() == []
    page.set_input_files("#files", [*phantoms, long, tmp_path / "bad.png"])
    wait_for(page, len(phantoms) + 2)
    page.click("#points summary")
    page.select_option("#point", index=1)
    page.fill("#prevalence", "5")
    assert faults() == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, background[4:-1].split(","))) < 60) == (scheme == "dark")
    context.close()


# --- the folder ------------------------------------------------------------------------------------------------------


def test_the_folder_is_a_static_space(folder, sharp_model, web_runtime):
    from oct_hf.hub.front_matter import yaml_block

    metadata = yaml_block((folder / "README.md").read_text(encoding="utf-8"))
    assert (metadata["sdk"], metadata["app_file"], metadata["title"]) == ("static", "index.html", "tiny")
    assert yaml.safe_dump(metadata) and len(metadata["short_description"]) <= 60
    facts = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    assert facts["name"] == "tiny" and [one["name"] for one in facts["labels"]] == ["CNV", "DME", "DRUSEN", "NORMAL"]
    told = dict(facts["facts"])
    assert told["Network"] == "test_efficientnet" and "16 B-scans of 8 patients" in told["Result"]
    texts = "".join(
        path.read_text(encoding="utf-8") for path in folder.iterdir() if path.suffix in (".html", ".js", ".css")
    )
    assert "http://" not in texts and "https://" not in texts
    again = write_page(sharp_model, folder.parent / "again", web_runtime)
    assert (again / "sw.js").read_bytes() == (folder / "sw.js").read_bytes()


def test_what_can_not_be_written_is_one_line(finished_run, folder, web_runtime, tmp_path, monkeypatch, run):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(OCTError, match="something else"):
        write_page(finished_run, tmp_path / "full", web_runtime)
    bare = tmp_path / "bare"
    shutil.copytree(finished_run / "model", bare, ignore=shutil.ignore_patterns("onnx"))
    with pytest.raises(ModelError, match=r"no onnx/model\.onnx"):
        write_page(bare, tmp_path / "page", web_runtime)
    altered = tmp_path / "runtime"
    altered.mkdir()
    for name in runtime.SHA256:
        (altered / name).write_bytes((web_runtime / "dist" / name).read_bytes()[:-1])
    with pytest.raises(OCTError, match=f"isn't that of onnxruntime-web {runtime.VERSION}"):
        write_page(finished_run, tmp_path / "page", altered)
    monkeypatch.chdir(folder)
    with pytest.raises(OCTError, match="folder that you are in"):
        write_page(finished_run, ".", web_runtime)
    with pytest.raises(OCTError, match="can't be written"):
        write_page(finished_run, Path("/proc/page"), web_runtime)
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, told = run("page", finished_run, "--out", tmp_path / "page")
    assert code == 2 and told.count("\n") == 1 and "there is no npm here" in told and "--runtime" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare", "full", "runtime"]


def test_a_model_that_sees_the_centre_alone_gets_no_page(finished_run, web_runtime, tmp_path, run):
    model = shutil.copytree(finished_run / "model", tmp_path / "timm")
    (model / "preprocessor_config.json").unlink()  # as timm writes a repository
    config = json.loads((model / "config.json").read_text())
    config["pretrained_cfg"] |= {"crop_mode": "center", "crop_pct": 0.875}
    (model / "config.json").write_text(json.dumps(config))
    code, _, said = run("page", model, "--out", tmp_path / "page", "--runtime", web_runtime)
    assert code == 2 and "sees the centre of a picture alone" in said and not (tmp_path / "page").exists()


def test_a_closed_network_gives_npm_s_archive(finished_run, web_runtime, tmp_path, run):
    archive = tmp_path / runtime.ARCHIVE
    with tarfile.open(archive, "w:gz", compresslevel=1) as packed:
        for name in runtime.SHA256:
            packed.add(web_runtime / "dist" / name, f"package/dist/{name}")
    code, out, told = run("page", finished_run, "--out", tmp_path / "page", "--runtime", archive, "--json")
    files = json.loads(out)["files"]
    assert code == 0 and f"runtime/{runtime.WASM}" in files and "model.onnx" in files and told == ""
    (tmp_path / "no.tgz").write_bytes(b"no archive")
    code, _, told = run("page", finished_run, "--out", tmp_path / "other", "--runtime", tmp_path / "no.tgz")
    assert code == 2 and told.count("\n") == 1

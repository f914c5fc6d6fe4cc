"""The page's layout and what its controls do.

What depends on an answer is HTML (`visit.py`); Gradio carries files, choices and events. A visitor's answers are the
value of one `gr.State`, forgotten when the tab is closed or after half an hour.
"""

import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import ListFiles
from gradio.themes import Base, Default

from oct_hf.errors import OCTError
from oct_hf.inference.app import visit
from oct_hf.inference.app.answers import (
    MAX_FILES,
    MAX_PIXELS,
    MAX_UPLOAD,
    Answer,
    Upload,
    answer_uploads,
    check_count,
)
from oct_hf.inference.app.card import card_text
from oct_hf.inference.app.parts import part
from oct_hf.inference.app.served import Served
from oct_hf.inference.app.visit import Visit

_HERE = Path(__file__).parent
CSS = (_HERE / "page.css").read_text(encoding="utf-8")
SCRIPT = (_HERE / "page.js").read_text(encoding="utf-8")
FORGOTTEN_AFTER = 1800  # seconds
VISITORS = 32  # whose answers are kept; who was away longest goes first
PREVALENCE = 10  # percent, to begin with
OPACITY = 65  # percent, of the heat map
LIMITS = f"At most {MAX_FILES} files at once, {MAX_PIXELS // 10**6} megapixels an image, {MAX_UPLOAD >> 20} MB a file."
MINUTES = FORGOTTEN_AFTER // 60
# A part tells which of its buttons was pressed; Gradio changes in it only what differs, so the focus stays.
_BUTTONS = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-number]");
  if (!button) return;
  for (const other of element.querySelectorAll("[aria-pressed]")) {
    other.setAttribute("aria-pressed", other === button);
    other.closest("tr").classList.toggle("chosen", other === button);
  }
  trigger("click", {number: Number(button.dataset.number)});
});
"""
_OPACITY = "(percent) => { document.documentElement.style.setProperty('--heat', percent / 100); }"


def _uploads(payload: ListFiles | None) -> list[Upload]:
    """Dropped files with the names that their owner gave them, which Gradio's own `preprocess` drops."""
    return [Upload(file.orig_name or Path(file.path).name, Path(file.path)) for file in payload or ()]


def theme() -> Base:
    """Gradio's own in the system's fonts: others would come from elsewhere."""
    fonts: dict[str, Any] = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    muted: dict[str, Any] = {"body_text_color_subdued": "*neutral_600", "block_info_text_color": "*neutral_600"}
    muted |= {f"{name}_dark": "*neutral_300" for name in muted}
    return Default(primary_hue="teal", neutral_hue="slate", **fonts).set(**muted)


def build(served: Served, passing: Path) -> gr.Blocks:
    """The page of a model.

    Args:
        served: the model.
        passing: the folder through which dropped files pass.
    """
    title = f"{served.title}: OCT B-scans"
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(60, 600), fill_width=True) as page:
        page.state_session_capacity = VISITORS
        _html(part("head", served.title, served.predictor.labels))
        with gr.Tabs():
            with gr.Tab("B-scans"):
                _workplace(page, served, passing)
            with gr.Tab("Model card"):
                gr.Markdown(card_text(served.folder), latex_delimiters=[], elem_id="card")
            with gr.Tab("Limits"):
                _html(part("limits", LIMITS, MINUTES))
    page.queue(api_open=False, default_concurrency_limit=1, max_size=64)
    return page


def _html(value: str = "", **options) -> gr.HTML:
    """A part of the page, which `page.css` alone styles."""
    return gr.HTML(value, apply_default_css=False, elem_classes=["part"], **options)


def _workplace(page: gr.Blocks, served: Served, passing: Path) -> None:
    """The first tab: where files are dropped, and their answers."""
    chosen = {point.name: point for point in served.points}
    names, nothing = list(chosen), Visit()
    kept = gr.State(nothing, time_to_live=FORGOTTEN_AFTER)
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            files: Any = gr.File(label="B-scans and volumes", file_count="multiple", height=150, elem_id="files")
            files.preprocess = _uploads
            status = _html(part("status", LIMITS), elem_id="status")
            _html(part("invitation") if served.examples else "")
            with gr.Row(visible=bool(served.examples)):
                examples = {name: gr.Button(name, size="sm", min_width=90) for name in served.examples}
            listing = _html(elem_id="listing", js_on_load=_BUTTONS)
            clear = gr.Button("Clear", visible=False, size="sm", elem_id="clear")
        with gr.Column(scale=3, min_width=300):
            detail = _html(visit.detail(nothing, served), elem_id="detail", js_on_load=_BUTTONS)
            number = gr.Slider(0, 1, 0, step=1, label="B-scan of the volume", visible=False, elem_id="number")
            picture = _html(elem_id="picture")
            with gr.Row(visible=False) as heating:
                heat = gr.Checkbox(False, label="Heat map", info="what speaks for the answer", elem_id="heat")
                opacity = gr.Slider(0, 100, OPACITY, step=5, label="Opacity of the heat map, %", elem_id="opacity")
            en_face = _html(elem_id="en-face")
            _html("<h2>Operating point</h2>")
            with gr.Row(visible=bool(names)):
                point = gr.Dropdown(
                    names, value=names[0] if names else None, label="Threshold", filterable=False, elem_id="point"
                )
                prevalence = gr.Slider(
                    0.1, 99.9, PREVALENCE, step=0.1, label="Prevalence where you ask, %", elem_id="prevalence"
                )
            first = visit.points(nothing, served.points[0] if served.points else None, PREVALENCE)
            points = _html(first, elem_id="points")

    def draw(kept: Visit, with_heat: bool, point: str | None, prevalence: float):
        count = len(kept.answer.bscans) if kept.answer else 0
        return (
            visit.detail(kept, served),
            gr.Slider(maximum=max(count - 1, 1), value=kept.number, visible=count > 1),
            visit.picture(kept, served, with_heat),
            gr.Row(visible=count > 0 and not kept.refused),
            visit.en_face(kept),
            visit.points(kept, chosen.get(point or ""), prevalence),
        )

    def listed(kept: Visit, point: str | None):
        return visit.listing(kept, served, chosen.get(point or "")), gr.Button(visible=bool(kept.answers))

    def dropped(uploads: list[Upload]):
        yield from _reading(served, passing, uploads)

    def of_example(name: str) -> Callable[[], Iterator[tuple]]:
        def read():
            copy = passing / uuid.uuid4().hex / served.examples[name].name
            copy.parent.mkdir()
            shutil.copy(served.examples[name], copy)
            yield from _reading(served, passing, [Upload(copy.name, copy)])

        return read

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    last: dict[str, Any] = quiet | {"trigger_mode": "always_last"}
    asked, drawn = [heat, point, prevalence], [detail, number, picture, heating, en_face, points]
    emptied = [status, kept, files]
    begun = [files.upload(dropped, files, emptied, **quiet)]
    begun += [button.click(of_example(name), None, emptied, **quiet) for name, button in examples.items()]
    begun += [clear.click(lambda: (part("status", LIMITS), Visit(), None), None, emptied, **quiet)]
    for event in begun:
        event.then(listed, [kept, point], [listing, clear], **quiet).then(draw, [kept, *asked], drawn, **quiet)

    def at_answer(kept: Visit, event: gr.EventData):
        return kept.at(event.number)

    def at_bscan(kept: Visit, event: gr.EventData):
        return kept.at_bscan(event.number)

    turned = [
        listing.click(at_answer, kept, kept, **quiet),
        detail.click(at_bscan, kept, kept, **quiet),
        number.input(lambda kept, number: kept.at_bscan(int(number)), [kept, number], kept, **last),
    ]
    for event in turned:
        event.then(draw, [kept, *asked], drawn, **last)
    heat.input(lambda kept, wanted: visit.picture(kept, served, wanted), [kept, heat], picture, **last)
    opacity.input(None, opacity, None, js=_OPACITY, **quiet)
    point.input(listed, [kept, point], [listing, clear], **quiet)
    for control in (point, prevalence):
        control.change(
            lambda kept, name, percent: visit.points(kept, chosen.get(name), percent),
            [kept, point, prevalence],
            points,
            **last,
        )

    def left(request: gr.Request) -> None:
        if request.session_hash is not None:
            page.state_holder.delete_state(request.session_hash)

    page.unload(left)


def _reading(served: Served, passing: Path, uploads: Sequence[Upload]) -> Iterator[tuple]:
    """Status line, answers and the emptied drop zone, as the files are answered one by one."""
    place = passing / uuid.uuid4().hex
    try:
        mine = _taken(uploads, place)
        answers: list[Answer] = []
        yield part("status", f"Reading 1 of {len(mine)} …"), gr.skip(), gr.skip()
        check_count(mine)
        for done, found in enumerate(answer_uploads(served.predictor, mine, served.rule), 1):
            answers += found
            if done < len(mine):
                yield part("status", f"Reading {done + 1} of {len(mine)} …"), gr.skip(), gr.skip()
        after = Visit(answers).at_first()
        yield part("status", visit.told(after), all(one.error for one in answers)), after, None
    except OCTError as error:
        yield part("status", str(error), True), Visit(), None
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _taken(uploads: Sequence[Upload], place: Path) -> list[Upload]:
    """The same files where nobody else's drop of the same content finds them: Gradio names its folders by content."""
    place.mkdir()
    moved: dict[Path, Path] = {}
    for upload in uploads:
        if upload.path not in moved:
            moved[upload.path] = place / str(len(moved)) / upload.path.name
            moved[upload.path].parent.mkdir()
            with suppress(FileNotFoundError):  # somebody else dropped the very same file and had it first
                shutil.move(upload.path, moved[upload.path])
            with suppress(OSError):  # another name for the same content is still in it
                upload.path.parent.rmdir()
    return [Upload(upload.name, moved[upload.path]) for upload in uploads]

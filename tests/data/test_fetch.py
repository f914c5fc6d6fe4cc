"""Downloads from a real server on this machine that behaves as badly as servers do."""

import hashlib
import io
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from oct_hf.data import fetch
from oct_hf.data.catalog import CATALOG, File
from oct_hf.data.oct import prepare
from oct_hf.errors import DataError

ROW = CATALOG["octdl"]


@pytest.fixture
def content() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.bin", bytes(range(256)) * 2000)
    return packed.getvalue()


@pytest.fixture
def server(content):
    """Its attribute `how` says how it answers; `asked` has the Range header of each request."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            how, asked = site.how, self.headers.get("Range")
            site.asked.append(asked)
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and how != "no ranges" else 0
            if how in ("403", "404", "503"):
                self.send_error(int(how))
                return
            if how == "page":
                self.send_response(200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.end_headers()
                self.wfile.write(b"<html>log in</html>")
                return
            body = {"other": content[:-1] + b"x", "no zip": b"x" * len(content)}.get(how, content)
            self.send_response(206 if start else 200)
            if how != "no length":
                self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            if how in ("cut", "no length") and len(site.asked) < 3:
                self.wfile.write(body[start : start + len(body) // 3])
                return  # the connection ends before the file does
            if how == "stall" and len(site.asked) < 2:
                self.wfile.write(body[start : start + 1000])
                self.wfile.flush()
                site.go_on.wait(20)
                return
            self.wfile.write(body[start:])

        def log_message(self, *_):
            pass

    site = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.how, site.asked, site.go_on = "well", [], threading.Event()
    thread = threading.Thread(target=site.serve_forever, daemon=True)
    thread.start()
    yield site
    site.go_on.set()
    site.shutdown()
    site.server_close()


@pytest.fixture
def file(server, content) -> File:
    md5 = hashlib.md5(content).hexdigest()
    return File("set.zip", f"http://127.0.0.1:{server.server_port}/set.zip", md5, len(content))


@pytest.fixture(autouse=True)
def _quick(monkeypatch, tmp_path):
    monkeypatch.setattr(fetch, "TIMEOUT", (2, 1))
    monkeypatch.setattr(fetch.time, "sleep", lambda _: None)
    monkeypatch.setenv("OCT_HF_DATA", str(tmp_path / "data"))


def test_a_file_is_downloaded_once_and_whole(server, file, content, tmp_path):
    assert fetch.download(ROW, file, tmp_path / "d").read_bytes() == content
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["set.zip"]


@pytest.mark.parametrize("how", ["cut", "stall", "no ranges", "no length"])
def test_a_download_that_stops_goes_on_where_it_was(how, server, file, content, tmp_path):
    server.how = how
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "set.zip.partial").write_bytes(content[:5000])
    assert fetch.download(ROW, file, tmp_path / "d").read_bytes() == content
    assert server.asked[0] == "bytes=5000-"
    if how == "cut":
        assert len(server.asked) == 3 and int(server.asked[1][6:-1]) > 5000


def test_a_stopped_download_leaves_its_part_and_no_file(server, file, content, tmp_path):
    server.how = "cut"
    with pytest.raises(DataError, match=r"stopped at [\d,]+ of [\d,]+ bytes"):
        fetch.download(ROW, file, tmp_path / "d", tries=1)
    part = (tmp_path / "d" / "set.zip.partial").read_bytes()
    assert content.startswith(part) and len(part) > 1000
    assert not (tmp_path / "d" / "set.zip").exists()


@pytest.mark.parametrize(
    "how, said",
    [
        ("403", "answers 403"),
        ("404", "answers 404"),
        ("503", "answers 503"),
        ("page", "a page instead of the file"),
        ("other", "has MD5"),
    ],
)
def test_what_does_not_come_is_told_with_the_way_by_hand(how, said, server, file, tmp_path):
    server.how = how
    with pytest.raises(DataError, match=said) as caught:
        fetch.download(ROW, file, tmp_path / "d")
    text = str(caught.value)
    assert ROW.homepage in text and "set.zip" in text and str(tmp_path / "d") in text and "\n" not in text
    assert list((tmp_path / "d").iterdir()) == []
    assert len(server.asked) == (fetch.TRIES if how == "503" else 1)


def test_a_file_of_another_size_or_kind_is_thrown_away(server, file, tmp_path):
    longer = File("set.zip", file.url, None, file.size + 1)
    with pytest.raises(DataError, match=r"has [\d,]+ bytes, its owner says"):
        fetch.download(ROW, longer, tmp_path / "d")
    plain = File("set.zip", file.url)  # of which its owner publishes nothing
    server.how = "no zip"
    with pytest.raises(DataError, match="what came is no zip; it was thrown away"):
        fetch.download(ROW, plain, tmp_path / "d")
    assert list((tmp_path / "d").iterdir()) == []
    server.how = "other"
    fetch.download(ROW, plain, tmp_path / "d")


def test_nobody_answers_is_one_line(tmp_path):
    with pytest.raises(DataError, match="can't be reached"):
        fetch.download(ROW, File("a.zip", "http://127.0.0.1:9/a.zip"), tmp_path / "d")


def test_a_set_that_wants_a_click_says_page_file_and_place(tmp_path):
    with pytest.raises(DataError) as caught:
        prepare("neh_ut_2021", cache_dir=tmp_path / "c")
    text = str(caught.value)
    assert CATALOG["neh_ut_2021"].homepage in text and "NEH_UT_2021RetinalOCTDataset.zip" in text
    assert str(tmp_path / "data" / "neh_ut_2021") in text
    with pytest.raises(DataError, match="hrabbani"):
        prepare("neh_2018", cache_dir=tmp_path / "c")


def test_what_was_put_into_the_folder_by_hand_is_used(tmp_path):
    from tests.data.test_catalog import octdl, zipped

    octdl(tmp_path / "set")
    home = tmp_path / "data" / "octdl"
    home.mkdir(parents=True)
    zipped(tmp_path / "set" / "OCTDL", home / "OCTDL.zip")
    (tmp_path / "set" / "OCTDL_labels.csv").rename(home / "OCTDL_labels.csv")
    dataset, _ = prepare("octdl", cache_dir=tmp_path / "c")
    assert len(dataset) == 28


def test_a_folder_that_cannot_be_written_is_one_line(server, file, tmp_path):
    (tmp_path / "d").write_text("a file stands there")
    with pytest.raises(DataError, match="can't be written"):
        fetch.download(ROW, file, tmp_path / "d")

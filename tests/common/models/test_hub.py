"""Models of a server with the hub's API: files are chosen by quantisation, and all parts come."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import gguf
import pytest

from sps2.common.model.config import block_types
from sps2.common.models import pulled, validate
from sps2.kernels import native

Checkpoint = Callable[[str], Path]
WriteGguf = Callable[..., Path]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves the folders of `root` as repositories ORG/NAME."""

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.fetched: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            folder = self.server.root.joinpath(*parts[2:4])
            return self._tree(folder) if parts[4:5] == ["tree"] else self._describe(folder)
        if parts[2:3] != ["resolve"]:
            return self._answer(404, b"", "text/plain")
        path = self.server.root.joinpath(*parts[:2], *parts[4:])
        if not path.is_file():
            return self._answer(404, b"", "text/plain")
        if self.command == "GET":
            self.server.fetched.append("/".join(parts[4:]))
        return self._answer(200, path.read_bytes(), "application/octet-stream")

    def _tree(self, folder: Path) -> None:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        found = [
            {
                "type": "file",
                "path": str(path.relative_to(folder)),
                "size": path.stat().st_size,
                "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
            }
            for path in files
        ]
        self._answer(200, json.dumps(found).encode(), "application/json")

    def _describe(self, folder: Path) -> None:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        siblings = [
            {"rfilename": str(path.relative_to(folder)), "size": path.stat().st_size}
            for path in files
        ]
        name = "/".join(folder.parts[-2:])
        found = {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings}
        self._answer(200, json.dumps(found).encode(), "application/json")

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """The test says enough."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    root = tmp_path / "hub"
    root.mkdir()
    with Hub(root) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def pulled_from(hub: Hub, ref: str, home: Path) -> tuple[int, str]:
    """What `spsctl pull` returns and says; another process, since the client reads its address
    once."""
    places = {"SPS2_HOME": str(home), "HF_HOME": str(home / "hf"), "HF_ENDPOINT": hub.url}
    done = subprocess.run(
        [sys.executable, "-m", "sps2.cli.main", "pull", ref],
        env=os.environ | places | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def split(source: Path, folder: Path, name: str) -> None:
    """Split a GGUF file in two, as llama-gguf-split does: only the first part has the fields."""
    reader = gguf.GGUFReader(source)
    half = len(reader.tensors) // 2
    for index, tensors in enumerate((reader.tensors[:half], reader.tensors[half:])):
        writer = gguf.GGUFWriter(folder / f"{name}-0000{index + 1}-of-00002.gguf", "llama")
        for key, field in reader.fields.items():
            if key.startswith("GGUF.") or key == "general.architecture" or index:
                continue
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], inner)
        writer.add_uint16("split.no", index)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def test_a_repository_of_gguf_files(
    hub: Hub, checkpoint: Checkpoint, write_gguf: WriteGguf, tmp_path: Path
) -> None:
    folder, home = hub.root / "org" / "tiny-GGUF", tmp_path / "home"
    (folder / "Q8_0").mkdir(parents=True)
    (folder / "README.md").write_text("tiny")
    source = checkpoint("llama2")
    write_gguf(source, folder / "tiny-Q4_0.gguf", "llama", kind_of=lambda name: "Q4_0")
    whole = write_gguf(source, tmp_path / "whole.gguf", "llama", kind_of=lambda name: "Q8_0")
    split(whole, folder / "Q8_0", "tiny-Q8_0")

    code, said = pulled_from(hub, "hf:org/tiny-GGUF:q8_0", home)
    assert code == 0, said
    model = pulled(home)["hf:org/tiny-GGUF:Q8_0"]
    assert str(model) in said
    validate(model)
    if native.level:
        assert set(block_types(model).values()) == {"Q8_0"}
    assert sorted(hub.fetched) == [f"Q8_0/tiny-Q8_0-0000{part}-of-00002.gguf" for part in (1, 2)]
    left = [path.name for path in (home / "models").iterdir() if not path.name.endswith(".lock")]
    assert left == [model.name]

    for ref, message in (
        ("hf:org/tiny-GGUF", "org/tiny-GGUF: it has several quantisations"),
        ("hf:org/tiny-GGUF:Q5_K", "no GGUF file of Q5_K, only Q4_0, Q8_0"),
    ):
        code, said = pulled_from(hub, ref, home)
        assert code, said
        assert message in " ".join(said.split())
        assert "Traceback" not in said
    assert len(hub.fetched) == 2


def test_a_repository_of_safetensors(hub: Hub, checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder, home = hub.root / "org" / "tiny", tmp_path / "home"
    folder.parent.mkdir()
    folder.symlink_to(checkpoint("llama2"))
    code, said = pulled_from(hub, "hf:org/tiny", home)
    assert code == 0, said
    validate(pulled(home)["hf:org/tiny"])

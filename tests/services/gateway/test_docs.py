"""The page at /docs needs no other host, shows every operation, and lets a key be given."""

import asyncio
import json
import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from .conftest import Door

RUN = """
const told = JSON.parse(require("fs").readFileSync(0));
const made = [];
function node(name) {
  return {name, value: "", children: [], textContent: "",
    append(...more) { this.children.push(...more); }};
}
const known = {about: node("p"), operations: node("main"), key: {value: " sk-1 "}};
globalThis.document = {createElement: node, getElementById: (id) => known[id]};
const asked = [];
globalThis.fetch = async (path, options) => {
  asked.push([path, options]);
  const done = {read: async () => ({done: true})};
  return {json: async () => told.openapi, status: 200, body: {getReader: () => done}};
};
const clicks = [];
(0, eval)(told.script);
function walk(each) {
  if (each.onclick) clicks.push(each.onclick);
  for (const child of each.children || []) walk(child);
}
setTimeout(async () => {
  walk(known.operations);
  for (const click of clicks) await click();
  console.log(JSON.stringify({about: known.about.textContent, asked}));
}, 50);
"""


async def page(door: Door) -> tuple[str, dict[str, object]]:
    async with httpx.AsyncClient(base_url=door.url, timeout=60) as http:
        answer = await http.get("/docs")
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        return answer.text, (await http.get("/openapi.json")).json()


async def test_it_names_no_other_host(door: Door) -> None:
    text, _ = await page(door)
    assert not re.findall(r"""(?:https?:)?//[\w.]+""", text)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
async def test_it_can_try_every_operation(door: Door, tmp_path: Path) -> None:
    text, openapi = await page(door)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    (tmp_path / "run.cjs").write_text(RUN)
    done = await asyncio.to_thread(
        subprocess.run,
        ["node", str(tmp_path / "run.cjs")],
        input=json.dumps({"script": script, "openapi": openapi}),
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout)
    assert told["about"].startswith("SPS2 ")
    first, *asked = told["asked"]
    assert first[0] == "openapi.json"
    paths = openapi["paths"]
    assert isinstance(paths, dict)
    assert [(path, options["method"].lower()) for path, options in asked] == [
        (path, method) for path, methods in paths.items() for method in methods
    ]
    assert all(options["headers"]["Authorization"] == "Bearer sk-1" for _, options in asked)
    bodies = {path: json.loads(options["body"]) for path, options in asked if "body" in options}
    async with httpx.AsyncClient(base_url=door.url, timeout=60) as http:
        for path, body in bodies.items():
            assert (await http.post(path, json=body)).status_code == 200, (path, body)

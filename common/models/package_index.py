"""Downloads wheels from Python package indexes without pip (PEP 503 and PEP 691)."""

import base64
import json
import os
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import unquote, urldefrag, urljoin, urlsplit
from urllib.request import Request, urlopen

from sps2.common.errors import Invalid

USUAL = "https://pypi.org/simple"
VARIABLES = (
    *("UV_INDEX", "UV_EXTRA_INDEX_URL", "PIP_EXTRA_INDEX_URL"),
    *("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"),
)
"""Variables that name indexes for uv and pip: three for additional ones, three for the default."""
ACCEPTED = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
SILENCE_S = 60.0


def fetch(requirement: str, sha256: str, folder: Path) -> Path:
    """Download a wheel into `folder` from the first index that has it.

    Args:
        requirement: PROJECT==VERSION.
        sha256: of the wheel, to find it in indexes that list digests; the file is not checked.

    Raises:
        Invalid: no index has it; the message has each index's answer.
        OSError: the file cannot be written.
    """
    project, _, version = requirement.partition("==")
    problems = []
    for index in indexes():
        try:
            found = _links(f"{index.rstrip('/')}/{project}/")
            start = f"{project.replace('-', '_')}-{version}-"
            for name, url, digest in found:
                if digest == sha256 or (not digest and name.startswith(start)):
                    return _download(url, folder / name)
            problems.append(f"{_shown(index)} has no such file")
        except HTTPError as error:
            problems.append(f"{_shown(index)} answers {error.code} {error.reason}")
        except (OSError, HTTPException, ValueError) as error:
            if isinstance(error, OSError) and error.filename:
                raise
            problems.append(f"{_shown(index)}: {getattr(error, 'reason', None) or error}")
    raise Invalid("; ".join(problems))


def indexes() -> list[str]:
    """The URLs of the indexes that the environment names for uv and pip."""
    named = [
        each.rpartition("=")[2] if variable == "UV_INDEX" and "=" in each.split("://")[0] else each
        for variable in VARIABLES
        for each in os.environ.get(variable, "").split()
    ]
    replaced = any(os.environ.get(variable) for variable in VARIABLES[3:])
    return list(dict.fromkeys(named if replaced else [*named, USUAL]))


def _links(page: str) -> Iterator[tuple[str, str, str]]:
    """(name, URL, SHA-256 or "") of every wheel on a project's page."""
    request = _request(page)
    request.add_header("Accept", ACCEPTED)
    with urlopen(request, timeout=SILENCE_S) as answer:
        where, kind, text = answer.url, answer.headers.get_content_type(), answer.read()
    if kind.endswith("json"):
        files = json.loads(text)["files"]
        links = [(each["url"], each.get("hashes", {}).get("sha256", "")) for each in files]
    else:
        parser = _Anchors()
        parser.feed(text.decode())
        split = [urldefrag(link) for link in parser.links]
        links = [(url, mark.removeprefix("sha256=")) for url, mark in split]
    for link, digest in links:
        name = unquote(urlsplit(link).path.rpartition("/")[2])
        if name.endswith(".whl"):
            yield Path(name).name, urljoin(where, link), digest


class _Anchors(HTMLParser):
    """Collects the links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value for name, value in attrs if (tag, name) == ("a", "href") and value]


def _download(url: str, target: Path) -> Path:
    with urlopen(_request(url), timeout=SILENCE_S) as answer, target.open("wb") as file:
        shutil.copyfileobj(answer, file, 1 << 20)
    return target


def _request(url: str) -> Request:
    """A request for a URL, with its user name and password as a header."""
    parts = urlsplit(url)
    if parts.scheme == "file" and url.endswith("/"):
        return Request(f"{url}index.html")
    if parts.scheme not in ("http", "https", "file"):
        raise ValueError("no URL of http, https or file")
    request = Request(parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl())
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        request.add_header("Authorization", f"Basic {base64.b64encode(pair.encode()).decode()}")
    return request


def _shown(index: str) -> str:
    """An index's URL for messages: without user name and password."""
    parts = urlsplit(index)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()

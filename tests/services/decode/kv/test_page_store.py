"""Page files: found again after a restart, bounded, and never used when they are damaged."""

import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sps2.common.errors import Invalid
from sps2.services.decode.kv.page_file import HEADER_BYTES, MAGIC, Damaged, PageFormat
from sps2.services.decode.kv.page_store import PageStore

PAYLOAD = 4000
FORM = PageFormat(3, 2, 4, 16, "bfloat16", bytes(16), PAYLOAD)
NAMES = tuple(bytes([number]) * 16 for number in range(40))
MANY = 1 << 30


def payload(number: int) -> bytearray:
    return bytearray((number + each) % 251 for each in range(PAYLOAD))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kv" / "mixed-0"


@pytest.fixture
def store(folder: Path) -> Iterator[PageStore]:
    opened = PageStore(folder, FORM, MANY)
    yield opened
    opened.close()


def fill(store: PageStore, count: int) -> None:
    for number, name in enumerate(NAMES[:count]):
        store.write(name, payload(number), number)


def files(folder: Path) -> list[Path]:
    return sorted(each for each in folder.rglob("*") if each.is_file())


def again(store: PageStore, folder: Path, form: PageFormat = FORM, most: int = MANY) -> PageStore:
    store.close()
    return PageStore(folder, form, most)


def test_pages_outlive_the_process_and_are_private(store: PageStore, folder: Path) -> None:
    fill(store, 3)
    assert store.changes() == dict.fromkeys(NAMES[:3], True)
    assert {each.stat().st_mode & 0o77 for each in folder.rglob("*")} == {0}
    store = again(store, folder)
    assert (store.hashes(), store.changes()) == (NAMES[:3], {})
    assert [store.read(name) for name in NAMES[:3]] == [payload(each) for each in range(3)]
    assert store.counters["read"] == 3 * PAYLOAD
    assert (
        store.nbytes
        == 3 * (PAYLOAD + HEADER_BYTES)
        == sum(os.stat(f).st_size for f in files(folder))
    )
    store.close()


def test_a_folder_has_one_user(store: PageStore, folder: Path) -> None:
    with pytest.raises(Invalid, match=f"another cluster keeps its KV pages in {folder}"):
        PageStore(folder, FORM, MANY)
    again(store, folder).close()


@pytest.mark.parametrize("at", [0, 8, 12, 35, 50, HEADER_BYTES - 1, HEADER_BYTES, PAYLOAD])
def test_a_byte_that_has_changed_is_noticed(store: PageStore, folder: Path, at: int) -> None:
    fill(store, 2)
    place = files(folder)[0]
    content = bytearray(place.read_bytes())
    content[at] ^= 1
    place.write_bytes(content)
    assert store.read(NAMES[0]) is None
    assert store.read(NAMES[1]) == payload(1)
    assert (store.counters["damaged"], store.hashes()) == (1, NAMES[1:2])
    assert files(folder) == [place.parent.parent / "01" / f"{NAMES[1].hex()}.kv"]
    assert store.changes() == {NAMES[0]: False, NAMES[1]: True}


@pytest.mark.parametrize("size", [0, 5, HEADER_BYTES, PAYLOAD, PAYLOAD + HEADER_BYTES + 1])
def test_a_file_of_another_size_is_noticed_at_start_or_when_it_is_read(
    store: PageStore, folder: Path, size: int
) -> None:
    fill(store, 2)
    for place in files(folder):
        os.truncate(place, size)
    assert store.read(NAMES[0]) is None
    store = again(store, folder)
    assert (store.hashes(), store.counters["damaged"], files(folder)) == ((), 1, [])
    store.close()


@pytest.mark.parametrize("where", ["nowhere", f"{NAMES[0].hex()}.kv"])
def test_a_link_that_leads_nowhere_costs_no_other_page(
    store: PageStore, folder: Path, where: str
) -> None:
    fill(store, 2)
    place = files(folder)[0]
    place.unlink()
    place.symlink_to(where)
    store = again(store, folder)
    assert (store.hashes(), store.counters["damaged"]) == (NAMES[1:2], 1)
    assert not place.is_symlink()
    store.close()


def test_a_page_of_another_name_or_model_is_not_used(store: PageStore, folder: Path) -> None:
    fill(store, 2)
    first, second = files(folder)
    first.write_bytes(second.read_bytes())
    assert store.read(NAMES[0]) is None
    store = again(store, folder, FORM._replace(identity=b"m" * 16))
    assert store.read(NAMES[1]) is None
    assert store.counters["damaged"] == 1
    store.close()


def test_what_a_crash_has_left_is_deleted(store: PageStore, folder: Path) -> None:
    fill(store, 1)
    (folder / "00" / f"{NAMES[0].hex()}.new").write_bytes(b"half")
    (folder / "00" / "notes.txt").write_bytes(b"of somebody else")
    store = again(store, folder)
    assert [each.name for each in files(folder)] == [f"{NAMES[0].hex()}.kv", "notes.txt"]
    store.close()


def test_a_page_that_is_gone_is_no_fault(store: PageStore, folder: Path) -> None:
    fill(store, 1)
    files(folder)[0].unlink()
    assert store.read(NAMES[0]) is None
    assert (store.hashes(), store.changes()) == ((), {NAMES[0]: False})
    assert not {"damaged", "unreadable"} & store.counters.keys()


def test_the_least_recently_used_go_and_of_a_prompt_the_last(folder: Path) -> None:
    store = PageStore(folder, FORM, 20 * FORM.file_bytes)
    fill(store, 20)
    store.use(NAMES[:3])
    store.reported([(name, True) for name in NAMES])
    store.write(NAMES[20], payload(20), time.time_ns())
    left = set(store.hashes())
    assert left == {*NAMES[:3], *NAMES[5:21]}
    assert store.changes() == {NAMES[3]: False, NAMES[4]: False, NAMES[20]: True}
    store = again(store, folder, most=2 * FORM.file_bytes)
    assert set(store.hashes()) == {NAMES[20]}, "a smaller bound holds at once"
    store.close()
    store = PageStore(folder, FORM, 40 * FORM.file_bytes)
    fill(store, 30)
    store.use(NAMES[10:30])
    store = again(store, folder, most=11 * FORM.file_bytes)
    assert set(store.hashes()) == set(NAMES[10:20]), "the order outlives the process"
    store.close()


def test_pages_that_were_not_used_for_long_can_be_erased(store: PageStore) -> None:
    fill(store, 4)
    store.use(NAMES[:2])
    assert store.erase(3600) == 2
    assert set(store.hashes()) == set(NAMES[:2])
    assert store.erase(0) == 2


def test_a_disk_that_takes_no_more_costs_only_the_pages(
    store: PageStore, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(store, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (PAYLOAD // 2, hard))
    try:
        for name in NAMES[1:4]:
            store.write(name, payload(0), 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.counters["unwritable"] == 3
    assert [record.message for record in caplog.records if "cannot keep" in record.message] == [
        f"cannot keep KV pages in {folder}: [Errno 27] File too large; requests compute what is "
        "missing"
    ]
    assert (store.hashes(), len(files(folder))) == (NAMES[:1], 1)
    assert store.read(NAMES[0]) == payload(0)


def test_the_format_is_as_documented() -> None:
    """docs/kv-disk.md: who reads files of version 1 relies on it."""
    header = FORM.header(NAMES[1], payload(1))
    assert len(header) == HEADER_BYTES == 80
    assert header[:12] == MAGIC + bytes([1, 0, 0, 0])
    fields = [int.from_bytes(header[at : at + 4], "little") for at in range(12, 32, 4)]
    assert fields == [3, 2, 4, 16, 1]
    assert header[32:64] == bytes(16) + NAMES[1]
    assert int.from_bytes(header[64:72], "little") == PAYLOAD
    FORM.check(NAMES[1], header, payload(1))
    with pytest.raises(Damaged, match="another page"):
        FORM.check(NAMES[2], header, payload(1))


def test_pinned_pages_stay(store: PageStore, folder: Path) -> None:
    size = PAYLOAD + HEADER_BYTES
    fill(store, 10)
    store.pin(dict.fromkeys(NAMES[:3], True))
    store = again(store, folder, most=10 * size)
    assert store.pinned() == NAMES[:3]
    assert {each.stat().st_mode & 0o77 for each in folder.rglob("*")} == {0}
    for number in range(10, 30):
        store.write(NAMES[number], payload(number), number)
    assert store.nbytes <= 10 * size
    assert all(name in store for name in NAMES[:3])
    assert store.erase(0) > 0
    assert store.hashes() == NAMES[:3]
    store.pin({NAMES[1]: False})
    assert store.erase(0) == 1
    assert store.hashes() == (NAMES[0], NAMES[2])
    store.close()


def test_pages_may_be_pinned_before_they_come(store: PageStore, folder: Path) -> None:
    store.pin({NAMES[0]: True})
    fill(store, 2)
    store.lose(NAMES[:1])
    assert NAMES[0] not in store
    fill(store, 2)
    assert store.erase(0) == 1
    assert NAMES[0] in again(store, folder)


def test_no_more_are_pinned_than_may_be(
    store: PageStore, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store.pin(dict.fromkeys(NAMES[:9], True))
    less = again(store, folder, most=8 * (PAYLOAD + HEADER_BYTES))
    assert (less.most_pinned, less.pinned()) == (4, NAMES[:4])
    assert "room for 4 of its 9 pinned" in caplog.text
    less.close()
    (folder / "pinned").write_text("0123\nnothing\n" + NAMES[5].hex())
    broken = PageStore(folder, FORM, MANY)
    assert broken.pinned() == NAMES[5:6]
    (folder / "pinned").write_bytes(b"\xff\xfe")
    assert again(broken, folder).pinned() == ()

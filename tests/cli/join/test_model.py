"""The model of a joining machine: its own, or the cluster's, piece by piece."""

import asyncio
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from sps2.cli.join import here, model
from sps2.common import models
from sps2.common.errors import Invalid, Refused
from sps2.common.messages import Admission, Piece
from sps2.services.joining.model_files import ModelFiles

from .conftest import House
from .test_entrance import join


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Small pieces, no patience, and a home of its own, which has no models."""
    monkeypatch.setattr(model, "PIECE_BYTES", 10_000)
    monkeypatch.setattr(model, "PAUSE_S", 0.0)
    monkeypatch.setattr(model, "REST_BYTES", 0)
    monkeypatch.setenv("SPS2_HOME", str(tmp_path / "home"))


@contextmanager
def serving(house: House) -> Iterator[Admission]:
    """The joining service in a thread, since `obtained` has a loop of its own."""
    ready, end = threading.Event(), asyncio.Event()
    got: list[Admission] = []
    loops: list[asyncio.AbstractEventLoop] = []

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        async with house.open():
            got.append(await join(house.code()))
            ready.set()
            await end.wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        assert ready.wait(60)
        yield got[0]
    finally:
        loops[0].call_soon_threadsafe(end.set)
        thread.join()


def obtained(house: House, admission: Admission, steps: list[int] | None = None) -> Path:
    """As a machine does that has not even the folder that the cluster names."""
    elsewhere = msgspec.structs.replace(house.cluster, model="elsewhere")

    def note(_: str, done: int, total: int) -> None:
        assert 0 < done <= total
        if steps is not None:
            steps.append(done)

    return model.obtained(admission, elsewhere, note)


def same(one: Path, other: Path) -> bool:
    return models.fingerprint(one) == models.fingerprint(other)


def test_all_of_it_comes_and_is_whole(house: House, tmp_path: Path) -> None:
    steps: list[int] = []
    with serving(house) as admission:
        folder = obtained(house, admission, steps)
    assert folder == tmp_path / "home" / "models" / Path(house.cluster.model).name
    assert same(folder, Path(house.cluster.model))
    assert steps == sorted(steps)
    assert steps[-1] == sum(file.size for file in admission.files)
    assert not [*folder.parent.glob(".*")], "nothing is left of the way"


def test_a_machine_with_the_same_files_fetches_nothing(house: House, tmp_path: Path) -> None:
    with serving(house) as admission:
        pass
    own = tmp_path / "home" / "models" / admission.model
    shutil.copytree(house.cluster.model, own)
    steps: list[int] = []
    assert obtained(house, admission, steps) == own
    assert model.obtained(admission, house.cluster, lambda *_: None) == Path(house.cluster.model)
    assert steps == []


def test_other_files_of_the_same_name_are_refused_by_name(house: House, tmp_path: Path) -> None:
    with serving(house) as admission:
        pass
    own = tmp_path / "home" / "models" / admission.model
    shutil.copytree(house.cluster.model, own)
    weights = own / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    (own / "tokenizer.json").unlink()
    with pytest.raises(Invalid, match=r"namely model\.safetensors, tokenizer\.json: rename"):
        obtained(house, admission)
    assert weights.exists(), "what is there stays as it is"


def test_what_came_before_the_cluster_was_lost_is_not_fetched_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[tuple[str, int]] = []
    read = ModelFiles.read
    broken = True

    async def counted(self: ModelFiles, name: str, offset: int, size: int) -> Piece:
        if broken and offset >= 30_000:
            raise Invalid("the line is cut")
        reads.append((name, offset))
        return await read(self, name, offset, size)

    monkeypatch.setattr(ModelFiles, "read", counted)
    with serving(house) as admission:
        with pytest.raises(Invalid, match="the line is cut"):
            obtained(house, admission)
        before, broken = {*reads}, False
        folder = obtained(house, admission)
    assert before
    assert len(reads) == len({*reads}), "no piece was read twice"
    assert same(folder, Path(house.cluster.model))


def test_a_cluster_that_is_gone_is_told_with_what_to_do(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "PIECE_S", 0.2)
    with serving(house) as admission:
        pass
    with pytest.raises(Refused, match="join again; it goes on from there"):
        obtained(house, admission)


def test_a_damaged_file_is_not_kept(
    house: House, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    read = ModelFiles.read

    async def damaged(self: ModelFiles, name: str, offset: int, size: int) -> Piece:
        data = (await read(self, name, offset, size)).data
        return Piece(b"?" + data[1:] if name == "model.safetensors" and not offset else data)

    with serving(house) as admission:
        with monkeypatch.context() as patch:
            patch.setattr(ModelFiles, "read", damaged)
            with pytest.raises(Invalid, match=r"model\.safetensors came with another checksum"):
                obtained(house, admission)
        assert not (tmp_path / "home" / "models" / admission.model).exists()
        assert same(obtained(house, admission), Path(house.cluster.model))


def test_no_file_beside_the_model_can_be_read(house: House) -> None:
    files = ModelFiles(Path(house.cluster.model))
    for name in ("../config.json", "/etc/passwd", "none.json"):
        with pytest.raises(Invalid, match="the model has no file"):
            asyncio.run(files.read(name, 0, 10))


def test_hidden_files_and_others_are_no_part_of_the_model(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoint("smollm2"), tmp_path / "model"))
    for name in (".secret.json", "notes.txt", "pytorch_model.bin"):
        (folder / name).write_text("x")
    (folder / "sub.json").mkdir()
    names = {file.name for file in asyncio.run(ModelFiles(folder).all())}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert not names & {".secret.json", "notes.txt", "pytorch_model.bin", "sub.json"}


def test_the_configuration_here_is_the_clusters_but_for_this_machine(
    house: House, tmp_path: Path
) -> None:
    shards = ("mixed-3", "mixed-5")
    own = here.configured(house.cluster, "mine", tmp_path, shards, None, 3)
    assert (own.name, own.model, own.threads, own.mixed) == ("mine", str(tmp_path), 3, 6)
    assert (own.joining.first_port, own.device) == (0, house.cluster.device)
    assert own.gateway_address == house.cluster.gateway_address
    assert {*shards} <= {*own.shard_names()}

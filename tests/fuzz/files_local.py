"""Files of the machine: configuration, keys and codes, KV pages, traces, profiles, recordings."""

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from sps2.cli.simulator.profile import at, read_profile
from sps2.cli.workload.sources import find
from sps2.common import keys
from sps2.common.config import load
from sps2.common.config import text as config_text
from sps2.common.errors import Invalid
from sps2.common.keys import join_code
from sps2.common.keys.invites import Invitations
from sps2.common.keys.join_code import JoinCode
from sps2.common.keys.keyring import Keyring
from sps2.common.page_hashes import HASH_BYTES
from sps2.services.decode.kv.page_file import PageFormat
from sps2.services.decode.kv.page_store import PINS, SUFFIX, PageStore
from sps2.services.gateway.keys.api_keys import Register
from sps2.services.scheduler.replay import Recording

from ..cli.test_simulation import PROFILE
from ..cli.test_workload import AZURE, AZURE_2024, SARATHI, lines
from ..services.scheduler.test_replay import play
from . import mutate
from .target import Pieces, Target, changed_json, spoilt, written

TOML = b"""model = "hf:org/name"
mixed = 2
shard_port = 9000
[gateway]
port = 8100
cors_origins = ["https://example.org"]
host = "127.0.0.1"
[scheduler]
policy = "sps2"
duties = {mixed-0 = "prefill"}
[sharing]
method = "auto"
link_gbit = 2.5
[kv]
disk_folder = "~/kv"
disk_gib = 3.5
[bus]
heartbeat_s = 0.5
keys = "/tmp/keys"
"""
TOML_VALUES = (
    *("1979-05-27T07:32:00-08:00", "9999-99-99", "07:32:00", "0x" + "f" * 40, "1" * 5000, "1e999"),
    *(
        "inf",
        "-nan",
        "0b2",
        "1__0",
        '""',
        "'''",
        '"\\uD800"',
        '"\\U00110000"',
        "[]",
        "{}",
        "{a=1,}",
    ),
    *(
        "[" * 100,
        "[" * 5000,
        "{a=" * 3000,
        "true",
        "-1",
        "99999999999999999999",
        '"\\e"',
        "{a.b=1}",
    ),
)


class Toml(Target):
    """Configuration files."""

    name = "toml"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._path = folder / "cluster.toml"
        self._texts = [TOML, config_text.example().encode()]

    def case(self, dice: random.Random) -> Pieces:
        text = dice.choice(self._texts)
        if dice.random() < 0.4:
            return [mutate.changed(dice, text, self._texts)]
        rows = text.decode().splitlines()
        for _ in range(dice.choice((1, 1, 2, 5))):
            place = dice.randrange(len(rows))
            name, equals, _ = rows[place].partition(" = ")
            if not equals:
                rows[place] = dice.choice(
                    ("[a", "[[gateway]]", "[gateway.port]", "[bus]", "a.b.c = 1")
                )
            elif dice.random() < 0.8:
                rows[place] = f"{name} = {dice.choice(TOML_VALUES)}"
            else:
                rows[place] = f"{dice.choice(('x', 'mixed', name + '.a', name.upper()))} = 1"
        return ["\n".join(rows).encode()]

    async def feed(self, pieces: Pieces) -> None:
        cluster = load(written(self._path, pieces[0]))
        again = written(self._path, config_text.dump(cluster, "As it was read.").encode())
        assert load(again) == cluster


class Keys(Target):
    """Join codes, and the files of keys, clients, API keys and invitations."""

    name = "keys"
    FILES = ("cluster.key", "clients.json", "api.json", "invites.json")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._folder = folder / "keys"
        self._ring = Keyring(self._folder)
        self._ring.make("fuzzed")
        self._ring.add_client("one", folder / "one.key")
        self._ring.add_api_key("two", datetime.now(UTC) + timedelta(hours=1), 10, 10)
        self._invitations = Invitations(self._folder)
        _, self._secret = self._invitations.add(timedelta(hours=1), 2)
        self._invitations.use(self._secret, "machine")
        self._texts = {name: (self._folder / name).read_bytes() for name in self.FILES}
        self._code = join_code.encode(JoinCode("10.0.0.1", 8200, self._secret, bytes(10)))

    def case(self, dice: random.Random) -> Pieces:
        if dice.random() < 0.5:
            code = dice.choice((self._code, self._code.lower(), self._code.replace("-", "")))
            return [b"", mutate.changed(dice, code.encode())]
        name = dice.choice(self.FILES)
        text = self._texts[name]
        if dice.random() < 0.15:
            naive = dice.choice((b"", b"+99:00", b"-00:00", b"Z"))
            return [name.encode(), text.replace(b'Z"', naive + b'"')]
        return [name.encode(), changed_json(dice, text)]

    async def feed(self, pieces: Pieces) -> None:
        name, text = pieces[0].decode(), pieces[1]
        if not name:
            code = join_code.decode(text.decode("utf-8", "surrogateescape"))
            assert join_code.decode(join_code.encode(code)) == code
            return
        (self._folder / name).write_bytes(text)
        try:
            self._read()
        finally:
            (self._folder / name).write_bytes(self._texts[name])

    def _read(self) -> None:
        keys.read(self._folder / "cluster.key")
        self._ring.clients()
        now = datetime.now(UTC)
        for key in self._ring.api_keys().values():
            key.state(now)
        Register(self._folder / "api.json").is_empty()
        for invite in self._invitations.all().values():
            invite.obstacle(now)
        self._invitations.use(self._secret, "other")


class Pages(Target):
    """KV pages on disk, and the list of pinned ones."""

    name = "pages"
    FORM = PageFormat(3, 2, 4, 16, "bfloat16", bytes(16), 1000)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._folder = folder / "kv"
        self._hash = bytes(range(HASH_BYTES))
        self._payload = bytes(each % 251 for each in range(self.FORM.payload_bytes))
        self._page = self.FORM.header(self._hash, self._payload) + self._payload
        self._name = self._hash.hex() + SUFFIX
        self._pins = f"{self._hash.hex()}\n{bytes(HASH_BYTES).hex()}\n".encode()

    def case(self, dice: random.Random) -> Pieces:
        page, pins, name = self._page, self._pins, self._name.encode()
        how = dice.random()
        if how < 0.6:
            page = mutate.changed(dice, page)
        elif how < 0.8:
            pins = mutate.changed(dice, pins)
        else:
            name = mutate.changed(dice, name).replace(b"/", b"").replace(b"\0", b"")[:200]
        return [page, pins, name]

    async def feed(self, pieces: Pieces) -> None:
        page, pins, name = pieces
        folder = self._folder / self._name[:2]
        folder.mkdir(parents=True, exist_ok=True)
        place = folder / (name.decode("utf-8", "surrogateescape") or self._name)
        if place.name in (".", ".."):
            return
        written(place, page)
        written(self._folder / PINS, pins)
        store = PageStore(self._folder, self.FORM, 1 << 20)
        try:
            assert all(len(each) == HASH_BYTES for each in (*store.hashes(), *store.pinned()))
            found = store.read(self._hash)
            assert found is None or found == self._payload, "a damaged page was used"
            assert (found is None) != (self._hash in store)
            store.pin({bytes(HASH_BYTES): False})
            store.erase(0.0)
        finally:
            store.close()
            place.unlink(missing_ok=True)


class Traces(Target):
    """Traces of every format, as commands read them."""

    name = "traces"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        mooncake = [
            {
                "timestamp": 1000 * each,
                "input_length": 600,
                "output_length": 9,
                "hash_ids": [1, each],
            }
            for each in range(4)
        ]
        own = [
            {"at_s": each, "prompt_tokens": 40, "answer_tokens": 3, "blocks": [7]}
            for each in range(3)
        ]
        own[1] |= {"session": "s", "think_s": 1.0}
        head = {"workload": "mine", "block_tokens": 64}
        agents = [{"id": "a", "rows": [[0, 100, 100, 5, 0], [4.5, 200, 95, 6, 1.5]]}]
        self._texts = [
            ("csv", AZURE.encode()),
            ("csv", AZURE_2024.encode()),
            ("csv", SARATHI.encode()),
            *(("jsonl", lines(*rows).encode()) for rows in (mooncake, own, [head, *own], agents)),
        ]

    def case(self, dice: random.Random) -> Pieces:
        kind, text = dice.choice(self._texts)
        if kind == "csv" or dice.random() < 0.4:
            changed = mutate.changed(dice, text, [each for _, each in self._texts])
        else:
            rows = text.splitlines()
            place = dice.randrange(len(rows))
            rows[place] = changed_json(dice, rows[place])
            changed = b"\n".join(rows)
        return [f"trace.{kind}".encode(), changed]

    async def feed(self, pieces: Pieces) -> None:
        path = written(self.folder / pieces[0].decode(), pieces[1])
        found = find(str(path), limit=50)
        assert all(turn.prompt_tokens > 0 <= turn.at_s for turn in found.turns)
        find(str(path), limit=50, rate=2.0, scale=0.5, seed=1)


class Profiles(Target):
    """Profiles of hardware, from which the simulator computes."""

    name = "profiles"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._text = msgspec.json.encode(PROFILE)

    def case(self, dice: random.Random) -> Pieces:
        text = changed_json(dice, self._text)
        return [spoilt(dice, text) if dice.random() < 0.1 else text]

    async def feed(self, pieces: Pieces) -> None:
        profile = read_profile(written(self.folder / "profile.json", pieces[0])).slowed(1.5)
        for count in (1, 100, 100_000):
            assert at(profile.pass_s, count) >= 0
            assert profile.prefill_s(count, count * count) >= 0
            assert profile.decode_s(count, 10.0 * count, True) >= 0


class Recordings(Target):
    """Recordings of the scheduler, replayed and read as traces."""

    name = "recordings"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._lines = [list(play(policy, 5, 60).lines()) for policy in ("sps2", "fcfs")]

    def case(self, dice: random.Random) -> Pieces:
        rows = list(dice.choice(self._lines))
        for _ in range(dice.choice((1, 1, 2))):
            place = 0 if dice.random() < 0.3 else dice.randrange(len(rows))
            how = dice.random()
            if how < 0.15:
                rows[place : place + 1] = [] if dice.random() < 0.5 else [rows[place]] * 2
            elif rows and place < len(rows):
                rows[place] = changed_json(dice, rows[place])
        return [b"\n".join(rows)]

    async def feed(self, pieces: Pieces) -> None:
        path = written(self.folder / "recording.jsonl", pieces[0])
        recording = Recording.read(path)
        try:
            for _ in recording.replay(recording.core()):
                pass
        except Invalid:
            find(str(path), limit=50)
            raise

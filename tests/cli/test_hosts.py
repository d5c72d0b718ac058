"""Host lists: where services go, and what is said of a wrong list."""

from pathlib import Path

import pytest

from sps2.cli import hosts
from sps2.cli.effective import effective
from sps2.common.config import load
from sps2.common.errors import Invalid

ALPHA = '[[hosts]]\nname = "alpha"\naddress = "10.0.0.1"\n'
BETA = '[[hosts]]\nname = "beta"\naddress = "10.0.0.2"\n'


def listed(folder: Path, text: str) -> hosts.Hosts:
    path = folder / "hosts.toml"
    path.write_text(text)
    return hosts.load(path)


def test_services_and_shards_are_dealt_in_order(tmp_path: Path) -> None:
    found = listed(
        tmp_path,
        ALPHA + "prefill = 1\n" + BETA + 'prefill = 2\ndecode = 1\nservices = ["kvdir"]\n',
    )
    with pytest.raises(Invalid, match="spsctl keys init"):
        effective(None, found)
    several = load(gateway={"processes": 2}, **found.shards())
    assert found.places(several)["gateway.1"].name == "alpha"
    cluster = found.addressed(load(tp=2, **found.shards()))
    assert {name: host.name for name, host in found.places(cluster).items()} == {
        **{"gateway": "alpha", "scheduler": "alpha", "kvdir": "beta"},
        **{"prefill-0": "alpha", "prefill-0.1": "alpha"},
        **{"prefill-1": "beta", "prefill-1.1": "beta", "prefill-2": "beta", "prefill-2.1": "beta"},
        **{"decode-0": "beta", "decode-0.1": "beta"},
    }
    assert cluster.http_url == "http://10.0.0.1:8000"
    assert cluster.scheduler_address == "tcp://10.0.0.1:8002"
    assert cluster.kvdir_address == "tcp://10.0.0.2:8003"


def test_stages_of_pipelines_are_dealt_in_order(tmp_path: Path) -> None:
    found = listed(tmp_path, ALPHA + "mixed = 3\n" + BETA + "mixed = 1\n")
    cluster = found.addressed(load(pp=2, **found.shards(2)))
    hosts = {"mixed-0": "alpha", "mixed-0.1": "alpha", "mixed-1": "alpha", "mixed-1.1": "beta"}
    places = found.places(cluster)
    assert {name: places[name].name for name in hosts} == hosts
    assert found.shards_at(found.hosts[1], cluster) == ("mixed-1.1",)
    with pytest.raises(Invalid, match=r"4 mixed stages, and each .* takes 3.*2 more, or 1 fewer"):
        found.shards(3)
    alone = listed(tmp_path, ALPHA.replace("10.0.0.1", "127.0.0.1") + "mixed = 4\n")
    configured = effective(None, alone, pp=2)
    assert (configured.mixed, configured.pp) == (2, 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[hosts]\n", "not valid TOML"),
        ("a = " + "[" * 5000, "not valid TOML"),
        ("", "missing required field `hosts`"),
        ("hosts = []\n", r"no \[\[hosts\]\]"),
        (ALPHA + "prefil = 1\n", r"host 'alpha': .*`prefil`.*did you mean prefill\?"),
        ('sshd = "ssh"\n' + ALPHA, r"`sshd`.*did you mean ssh\?"),
        (ALPHA + BETA + "prefill = -1\n", r"host 'beta': .*prefill` must be at least 0"),
        (ALPHA + '[[hosts]]\nname = "beta"\n', "host 'beta': .*`address`"),
        ('[[hosts]]\naddress = "10.0.0.1"\n', "host 1: .*`name`"),
        ('[[hosts]]\nname = "beta"\naddress = ""\n', "host 'beta': .*address"),
        ('[[hosts]]\nname = 1\naddress = "10.0.0.1"\n', "host 1: .*name"),
        (ALPHA + "environment = 1\n", "host 'alpha': .*environment"),
        (ALPHA + "services = 'gateway'\n", "host 'alpha': .*services"),
        ("hosts = 1\n", "hosts"),
        ("hosts = [1]\n", "host 1: "),
        (
            '[[hosts]]\nname = "-oProxyCommand=x"\naddress = "10.0.0.1"\n',
            "host .*`name` must have no blanks",
        ),
        (ALPHA + 'services = ["gatway"]\n', "host 'alpha': .*gatway"),
        (ALPHA + "prefill = 1\n" + ALPHA + "decode = 1\n", "2 hosts have the name 'alpha'"),
        (ALPHA + BETA.replace("2", "1"), "2 hosts have the address '10.0.0.1'"),
        (ALPHA + "prefill = 1\n" + BETA, "host 'beta' runs nothing"),
        (ALPHA + BETA.replace("10.0.0.2", "127.0.0.1") + "decode = 1\n", "cannot reach it"),
        (
            ALPHA + 'services = ["kvdir"]\n' + BETA + 'services = ["kvdir"]\n',
            "2 hosts have the kvdir",
        ),
    ],
)
def test_what_is_wrong_and_where(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(Invalid, match=said) as caught:
        listed(tmp_path, text)
    assert "hosts.toml" in str(caught.value)


def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"nowhere\.toml: No such file"):
        hosts.load(tmp_path / "nowhere.toml")

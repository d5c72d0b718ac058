"""docs/sdk.md has every method, parameter and error of the SDK."""

import inspect
from pathlib import Path

import pytest

from sps2.common import client, client_parameters, errors

PAGE = (Path(__file__).parents[2] / "docs" / "sdk.md").read_text(encoding="utf-8")
METHODS = [name for name in vars(client.Client) if not name.startswith("_")]
PARAMETERS = {
    *client.CompletionParameters.__annotations__,
    *client.ChatParameters.__annotations__,
    *client_parameters.Parameters.__annotations__,
}
ERRORS = [
    name for name, kind in vars(errors).items() if inspect.isclass(kind) and name != "Preempted"
]  # the gateway goes on with an answer that was preempted


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_there_with_its_arguments(name: str) -> None:
    line = next((line for line in PAGE.splitlines() if line.startswith(f"| `{name}(")), "")
    for argument in inspect.signature(getattr(client.Client, name)).parameters:
        assert argument == "self" or argument in line, f"{name}: {argument}"
    assert line, f"{name} is missing"


def test_both_clients_have_the_same_methods() -> None:
    assert [name for name in vars(client.AsyncClient) if not name.startswith("_")] == METHODS


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_a_parameter_is_there(name: str) -> None:
    assert f"`{name}`" in PAGE


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_is_there(name: str) -> None:
    assert f"`{name}`" in PAGE

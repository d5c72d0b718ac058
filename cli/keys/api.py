"""`spsctl keys api`: API keys for HTTP."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from sps2.cli import render
from sps2.cli.keys.folder import KeysOption, keyring_of

UNITS = {"d": "days", "h": "hours", "m": "minutes"}
AFTER, AT = "90d, 12h or 30m", "2027-01-31, or 2027-01-31T12:00Z"
"""Forms of an expiry, for messages."""

NameArgument = Annotated[str, typer.Argument(help="Name of the key, for lists and messages.")]


def add(
    name: NameArgument,
    requests: Annotated[
        int,
        typer.Option(
            "--requests-per-minute", min=0, help="Requests allowed per minute; 0: no limit."
        ),
    ] = 0,
    tokens: Annotated[
        int,
        typer.Option(
            "--tokens-per-minute",
            min=0,
            help="Tokens of prompts and answers allowed per minute; 0: no limit.",
        ),
    ] = 0,
    expires: Annotated[
        str | None,
        typer.Option(
            "--expires", help=f"When the key expires: a time from now ({AFTER}), or a date ({AT})."
        ),
    ] = None,
    folder: KeysOption = None,
) -> None:
    """Make an API key and print it, once. It takes effect at once."""
    until = None if expires is None else parse_expiry(expires, datetime.now(UTC))
    print(keyring_of(folder).add_api_key(name, until, requests, tokens))
    render.err.print("Shown only once; save it now.", style="dim")


def show(folder: KeysOption = None) -> None:
    """List the API keys, without the keys themselves."""
    now = datetime.now(UTC)
    table = render.table("API KEY", "STATE", "SINCE", "EXPIRES", ">REQUESTS/MIN", ">TOKENS/MIN")
    for name, key in keyring_of(folder).api_keys().items():
        table.add_row(
            name,
            key.state(now),
            _text(key.created),
            _text(key.expires),
            str(key.requests_per_minute or ""),
            str(key.tokens_per_minute or ""),
        )
    render.show(table)


def revoke(name: NameArgument, folder: KeysOption = None) -> None:
    """Revoke an API key. It takes effect at the next request."""
    keyring_of(folder).revoke_api_key(name)
    render.out.print(f"Revoked API key {name}.", markup=False)


def parse_expiry(text: str, now: datetime) -> datetime:
    """Parse an expiry: a time from now, or a date (UTC unless it has a time zone).

    Raises:
        BadParameter: the text is neither, or the date has passed.
    """
    if match := re.fullmatch(r"(\d{1,6})([dhm])", text):
        return now + timedelta(**{UNITS[match[2]]: int(match[1])})
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is neither a time from now ({AFTER}) nor a date ({AT})",
            param_hint="--expires",
        ) from None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    if when <= now:
        raise typer.BadParameter(f"{text} has passed; it is {_text(now)}", param_hint="--expires")
    return when


def _text(when: datetime | None) -> str:
    return "" if when is None else when.astimezone(UTC).strftime("%Y-%m-%d %H:%M")

"""The gateway's table of a configuration."""

import re
from typing import Annotated, Literal

from msgspec import Meta

from sps2.common.config.sections import NotNegative, Port, Positive, Seconds, Section

AccessLog = Literal["all", "refused", "none"]
ToolParser = Literal["auto", "hermes", "qwen3_coder", "llama3", "mistral", "pythonic", "json"]
ReasoningParser = Literal["auto", "think", "mistral", "none"]
MOST_GATEWAYS = 64


class Gateway(Section, frozen=True):
    """The HTTP and ZeroMQ door of the cluster."""

    host: Annotated[
        str, Meta(description="address where the others reach it; empty takes the cluster's")
    ] = ""
    port: Annotated[Port, Meta(description="HTTP port of the OpenAI-compatible API")] = 8000
    bus_port: Annotated[Port, Meta(description="ZeroMQ port of the SDK and spsctl")] = 8001
    processes: Annotated[
        int,
        Meta(
            ge=1,
            le=MOST_GATEWAYS,
            description="gateways that share the HTTP port, on one machine: while one is away, the "
            "others answer",
        ),
    ] = 1
    second_bus_port: Annotated[
        Port,
        Meta(description="ZeroMQ port of the second gateway of several; the others take the next"),
    ] = 8016
    drain_s: Annotated[
        Seconds,
        Meta(
            description="seconds that running answers may still take after SIGTERM, while the "
            "cluster serves; new requests go to the other gateways meanwhile"
        ),
    ] = 30.0
    max_body_bytes: Annotated[Positive, Meta(description="largest HTTP body accepted")] = 16 << 20
    max_bodies_bytes: Annotated[
        Positive,
        Meta(
            description="HTTP bodies in memory at once, without those up to 64 KiB; what is over "
            "it is refused with 429"
        ),
    ] = 64 << 20
    max_requests: Annotated[
        Positive, Meta(description="requests in work at once; more are refused with 429")
    ] = 512
    default_max_tokens: Annotated[
        NotNegative,
        Meta(
            description="tokens of an answer to a chat without `max_tokens`; 0: as many as the "
            "context and a KV pool allow"
        ),
    ] = 0
    max_choices: Annotated[Positive, Meta(description="largest `n` of one request")] = 16
    sampling_defaults: Annotated[
        Literal["model", "openai"],
        Meta(
            description="what temperature, top_p and the like are where a request leaves them "
            "out: as the model's generation_config.json recommends, or OpenAI's (temperature 1)"
        ),
    ] = "model"
    tool_parser: Annotated[
        ToolParser,
        Meta(
            description="the form in which the model writes calls of functions; auto: that of its "
            "chat template"
        ),
    ] = "auto"
    reasoning_parser: Annotated[
        ReasoningParser,
        Meta(
            description="the tags between which the model writes its thoughts: `<think>`, or "
            "Mistral's `[THINK]`; auto: those of its chat template"
        ),
    ] = "auto"
    stored_responses_bytes: Annotated[
        NotNegative,
        Meta(
            description="memory for responses of /v1/responses, which are kept for clients that "
            "go on from them; the oldest make room; 0 keeps none"
        ),
    ] = 64 << 20
    stored_responses_s: Annotated[
        Seconds, Meta(description="seconds for which such a response is kept at most")
    ] = 86_400.0
    repeatable_bytes: Annotated[
        NotNegative,
        Meta(
            description="memory for answers to requests with an `Idempotency-Key`, which their "
            "clients may ask for again; the oldest make room; 0 ignores the header"
        ),
    ] = 32 << 20
    repeatable_s: Annotated[
        Seconds, Meta(description="seconds for which such an answer is kept after its end")
    ] = 300.0
    max_header_bytes: Annotated[
        Positive, Meta(description="largest head of an HTTP request accepted")
    ] = 64 << 10
    max_connections: Annotated[
        Positive, Meta(description="HTTP connections at once; more are refused with 503")
    ] = 2048
    receive_s: Annotated[
        Seconds,
        Meta(description="seconds that the head of an HTTP request may take, and again its body"),
    ] = 60.0
    send_s: Annotated[
        Seconds,
        Meta(
            description="seconds after which a client that takes nothing of its answer, over HTTP "
            "or the bus, is disconnected, and its request cancelled"
        ),
    ] = 30.0
    access_log: Annotated[
        AccessLog,
        Meta(
            description="HTTP requests that get a line in the gateway's log; of /health, /ready "
            "and /metrics only `all` has any"
        ),
    ] = "refused"
    allowed_hosts: Annotated[
        tuple[str, ...],
        Meta(
            description="names by which clients may ask (`Host`, `Origin`), besides addresses, "
            "localhost and `host`, where there are no keys; `*` is any. For a proxy in front"
        ),
    ] = ()
    cors_origins: Annotated[
        tuple[str, ...],
        Meta(
            description="sites whose pages may use the gateway from a browser (CORS), as "
            "`https://chat.example`; `*` is any, empty none"
        ),
    ] = ()
    files_bytes: Annotated[
        NotNegative,
        Meta(
            description="disk for the files of `/v1/files` and the answers of batches, for two "
            "days or until the gateway ends; a file has at most a quarter, an API key half. 0: "
            "there are no files and batches"
        ),
    ] = 256 << 20
    batch_requests: Annotated[Positive, Meta(description="requests of batches in work at once")] = 8
    tls_certificate: Annotated[
        str, Meta(description="PEM file of the certificate and its chain; empty: plain HTTP")
    ] = ""
    tls_key: Annotated[str, Meta(description="PEM file of the certificate's private key")] = ""

    def __post_init__(self) -> None:
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise ValueError("TLS needs both `tls_certificate` and `tls_key`")
        if self.second_bus_port + self.processes - 2 > 65535:
            raise ValueError(
                f"`second_bus_port` {self.second_bus_port} leaves no ports for "
                f"{self.processes} gateways"
            )
        for each in self.cors_origins:
            if each != "*" and not re.fullmatch(r"https?://[^/\s]+", each):
                raise ValueError(
                    f"`cors_origins` has {each!r}; give scheme and host, as https://chat.example"
                )

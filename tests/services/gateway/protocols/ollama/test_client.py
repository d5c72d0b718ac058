"""The official client of Ollama against the gateway."""

import json
import shutil

import httpx
import ollama
import pytest

from sps2.common.errors import Invalid

from ...conftest import opened

CHAT = "/api/chat"
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def client(door):
    async with ollama.AsyncClient(host=door.url, timeout=60) as client:
        yield client


@pytest.fixture
async def http(door):
    async with httpx.AsyncClient(base_url=door.url, timeout=60) as http:
        yield http


@pytest.fixture
def roomy(folder, tmp_path):
    """As `folder`, with a context that descriptions of tools fit into; `template` sets its own."""

    def made(template=None):
        path = tmp_path / "tiny"
        shutil.copytree(folder, path)
        config = json.loads((path / "config.json").read_text("utf-8"))
        config["max_position_embeddings"] = 4000
        (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
        if template:
            (path / "chat_template.jinja").write_text(template, encoding="utf-8")
        return path

    return made


def noted(door, text):
    """The prompts to come, all of which are answered with `text`."""
    prompts = []

    def answer(prompt):
        prompts.append(prompt)
        return text

    door.play.answer = answer
    return prompts


def weather(city: str) -> str:
    """The weather of a city.

    Args:
        city: its name.
    """
    return f"cold in {city}"


async def test_chats(client, door):
    answer = await client.chat("tiny", HI)
    assert answer.message.role == "assistant"
    assert answer.message.content == "Hello, world."
    assert answer.model == "tiny"
    assert answer.done
    assert answer.done_reason == "stop"
    assert answer.prompt_eval_count == len("user:hi\nassistant:")
    assert answer.eval_count == 14
    assert answer.total_duration == answer.prompt_eval_duration + answer.eval_duration
    assert answer.prompt_eval_duration > 0
    assert answer.load_duration == 0
    assert door.play.submitted[0].sampling.max_tokens == 200 - answer.prompt_eval_count


async def test_streams_a_chat(client):
    parts = [part async for part in await client.chat("tiny:latest", HI, stream=True)]
    assert "".join(part.message.content for part in parts) == "Hello, world."
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert len(parts) > 2
    assert {part.model for part in parts} == {"tiny:latest"}
    assert all(part.eval_count is None for part in parts[:-1])
    assert parts[-1].eval_count == 14


async def test_streams_lines_unless_told_not_to(http):
    lines = await http.post(CHAT, json={"model": "tiny", "messages": HI})
    assert lines.headers["content-type"] == "application/x-ndjson"
    assert json.loads(lines.text.splitlines()[-1])["done"] is True
    whole = await http.post(CHAT, json={"model": "tiny", "messages": HI, "stream": False})
    assert whole.headers["content-type"] == "application/json"
    assert whole.json()["message"] == {"role": "assistant", "content": "Hello, world."}


async def test_curl_needs_no_content_type(http):
    body = json.dumps({"model": "tiny", "messages": HI, "stream": False})
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert (await http.post(CHAT, content=body, headers=form)).status_code == 200


async def test_generates_with_the_template_and_without(client, door):
    prompts = noted(door, "Yes.")
    told = await client.generate("tiny", "say yes", system="be brief")
    assert told.response == "Yes."
    assert prompts[-1] == "system:be brief\nuser:say yes\nassistant:"
    raw = await client.generate("tiny", "say yes", raw=True)
    assert raw.response == "Yes."
    assert prompts[-1] == "say yes"
    assert door.play.submitted[-1].sampling.max_tokens == 200 - len("say yes")
    parts = [part async for part in await client.generate("tiny", "x", raw=True, stream=True)]
    assert "".join(part.response for part in parts) == "Yes."
    assert parts[-1].done_reason == "stop"


async def test_options_sample(client, door):
    options = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "seed": 3,
        "num_predict": 5,
        "repeat_penalty": 1.5,
        "presence_penalty": 0.25,
        "frequency_penalty": 0.75,
        "num_ctx": 4096,
        "mirostat": 0,
    }
    answer = await client.chat("tiny", HI, options=options)
    assert answer.message.content == "Hello"
    assert answer.done_reason == "length"
    sampling = door.play.submitted[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 7)
    assert (sampling.min_p, sampling.seed, sampling.max_tokens) == (0.1, 3, 5)
    assert sampling.repetition_penalty == 1.5
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.25, 0.75)
    answer = await client.generate("tiny", "x", options={"stop": [" w"], "num_predict": -1})
    assert answer.response == "Hello,"


async def test_log_probabilities(client):
    for answer in (
        await client.chat("tiny", HI, logprobs=True, top_logprobs=2),
        await client.generate("tiny", "x", raw=True, logprobs=True, top_logprobs=2),
    ):
        assert [each.token for each in answer.logprobs][:5] == [*"Hello"]
        assert answer.logprobs[0].logprob == -0.25
        assert [each.token for each in answer.logprobs[0].top_logprobs] == ["H", "?"]


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"options": {"temperature": "hot"}}, "options.temperature"),
        ({"options": {"mirostat": 2}}, "options.mirostat"),
        ({"options": {"colour": 1}}, "options.colour"),
        ({"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, "images"),
        ({"messages": [{"role": "oracle", "content": "x"}]}, "'oracle' is none of"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"think": "a lot"}, "think"),
        ({"suffix": "x"}, "suffix"),
        ({"options": {"num_predict": 500}}, "options.num_predict"),
        ({"format": {"type": "town"}}, "`format"),
    ],
)
async def test_what_is_wrong_is_named(http, more, field):
    refused = await http.post(CHAT, json={"model": "tiny", "messages": HI} | more)
    assert refused.status_code == 400
    assert [*refused.json()] == ["error"]
    assert field in refused.json()["error"]


async def test_errors_have_ollamas_shape(client, door, http):
    with pytest.raises(ollama.ResponseError) as unknown:
        await client.chat("other", HI)
    assert unknown.value.status_code == 404
    assert "`other` does not exist" in unknown.value.error
    for path in ("pull", "push", "create", "copy"):
        refused = await http.post(f"/api/{path}", json={"model": "tiny"})
        assert refused.status_code == 400
        assert f"/api/{path} is not supported" in refused.json()["error"]
    with pytest.raises(ollama.ResponseError, match="not supported"):
        await client.delete("tiny")
    assert (await http.get("/api/nothing")).json()["error"].startswith("Not Found")
    assert (await http.get(CHAT)).status_code == 405


async def test_a_format_is_followed(client, door):
    door.play.answer = lambda prompt: '{"city": "Oslo"}'
    schema = {"type": "object", "properties": {"city": {"type": "string", "format": "town"}}}
    await client.chat("tiny", HI, format=schema)
    await client.generate("tiny", "x", format=schema)
    await client.generate("tiny", "x", raw=True, format="json")
    chat, generated, raw = (each.sampling.grammar for each in door.play.submitted)
    assert "city" in chat
    assert generated == chat
    assert raw
    assert "city" not in raw
    await client.chat("tiny", HI, format="")
    assert not door.play.submitted[-1].sampling.grammar


async def test_calls_tools_and_takes_their_results(roomy):
    async with opened(roomy()) as door, ollama.AsyncClient(host=door.url, timeout=60) as client:
        door.play.answer = lambda prompt: f"I look.\n{CALL}\n{CALL}"
        for stream in (False, True):
            answer = await client.chat("tiny", HI, tools=[weather], stream=stream)
            parts = [part async for part in answer] if stream else [answer]
            calls = [call for part in parts for call in part.message.tool_calls or []]
            assert [call.function.name for call in calls] == ["weather"] * 2
            assert calls[0].function.arguments == {"city": "Oslo"}
            assert "".join(part.message.content for part in parts).strip() == "I look."
            assert parts[-1].done_reason == "stop"
        turn = {"role": "assistant", "tool_calls": calls}
        results = [
            {"role": "tool", "tool_name": "weather", "content": text} for text in ("rain", "snow")
        ]
        prompts = noted(door, "Cold.")
        answer = await client.chat("tiny", [*HI, turn, *results], tools=[weather])
        assert answer.message.content == "Cold."
        assert prompts[0].index("Oslo") < prompts[0].rindex("rain") < prompts[0].rindex("snow")


async def test_a_call_that_was_cut_is_left_out(roomy):
    async with opened(roomy()) as door, ollama.AsyncClient(host=door.url, timeout=60) as client:
        door.play.answer = lambda prompt: CALL
        options = {"num_predict": len(CALL) - 20}
        answer = await client.chat("tiny", HI, tools=[weather], options=options)
        assert answer.done_reason == "length"
        assert not answer.message.tool_calls


async def test_thinks_first_if_told_to(roomy):
    template = (
        "{% for m in messages %}{{ m.content }}\n{% endfor %}"
        "{% if enable_thinking %}{{ reasoning_effort }}<think>\n{% else %}Now:{% endif %}"
    )
    async with (
        opened(roomy(template)) as door,
        ollama.AsyncClient(host=door.url, timeout=60) as client,
    ):
        prompts = []

        def answer(prompt):
            prompts.append(prompt)
            return "Hm.</think>\n\nYes." if prompt.endswith("<think>\n") else "Yes."

        door.play.answer = answer
        for think, end in ((True, "<think>\n"), ("low", "low<think>\n"), (False, "Now:")):
            told = await client.chat("tiny", HI, think=think)
            generated = await client.generate("tiny", "hi", think=think)
            assert prompts[-1].endswith(end)
            thought = "Hm." if think else None
            assert (told.message.content, told.message.thinking) == ("Yes.", thought)
            assert (generated.response, generated.thinking) == ("Yes.", thought)
        assert "thinking" in (await client.show("tiny")).capabilities


async def test_an_error_within_a_stream_is_a_line(client, door):
    door.play.fail["token 3"] = Invalid("it broke")
    parts = []

    async def read():
        async for part in await client.chat("tiny", HI, stream=True):
            parts.append(part.message.content)

    with pytest.raises(ollama.ResponseError, match="it broke"):
        await read()
    assert parts == ["H", "e", "l"]


async def test_without_a_prompt_nothing_is_done(client, door):
    assert (await client.generate("tiny", "")).done_reason == "load"
    assert (await client.chat("tiny", [], keep_alive=0)).done_reason == "unload"
    parts = [part async for part in await client.generate("tiny", stream=True)]
    assert [part.done for part in parts] == [True]
    assert not door.play.submitted


async def test_embeds(client, door):
    made = await client.embed("tiny:latest", ["ab", "c"], truncate=True)
    assert made.model == "tiny:latest"
    assert made.embeddings == [pytest.approx([0.6, 0.8])] * 2
    assert made.prompt_eval_count == 3
    assert made.total_duration > 0
    assert {each.sampling.pooling for each in door.play.submitted} == {"last"}
    with pytest.raises(ollama.ResponseError, match="input"):
        await client.embed("tiny", "")
    with pytest.raises(ollama.ResponseError, match="dimensions"):
        await client.embed("tiny", "x", dimensions=3)


async def test_lists_the_model(client, http):
    (model,) = (await client.list()).models
    assert model.model == "tiny"
    assert model.details.family == "llama"
    assert model.details.quantization_level == "float32"
    assert int(model.size) > 0
    (running,) = (await client.ps()).models
    assert running.context_length == 200
    assert (await http.get("/api/version")).json()["version"]
    assert (await http.head("/")).status_code == 200


async def test_shows_the_model(client):
    shown = await client.show("tiny")
    assert shown.capabilities == ["completion", "embedding", "tools"]
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.modelinfo["llama.context_length"] == 200
    embedding, layer = 2 * 260 * 8, 8 * 8 * 2 + 8 * 4 * 2 + 3 * 8 * 16 + 2 * 8
    assert shown.modelinfo["general.parameter_count"] == embedding + 3 * layer + 8
    assert "assistant:" in shown.template
    with pytest.raises(ollama.ResponseError):
        await client.show("other")

"""LangChain's ChatOpenAI: answers, streams, tools, schemas, and embeddings."""

import sys
from typing import Literal

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field
from served import model_of


@tool
def weather(city: Literal["Oslo", "Rome"]) -> str:
    """The weather of a city."""
    return f"Rain in {city}, 7 degrees."


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=20)
    size: Literal["small", "large"]


def main(url: str) -> None:
    model = model_of(url)
    chat = ChatOpenAI(
        model=model, base_url=f"{url}/v1", api_key="none", max_tokens=200, max_retries=0
    )
    short = chat.bind(max_tokens=16)
    assert short.invoke("Name three rivers.").text
    assert "".join(each.text for each in short.stream("Name three rivers."))

    question = HumanMessage("What is the weather in Oslo?")
    called = chat.bind_tools([weather], tool_choice="weather", parallel_tool_calls=False).invoke(
        [question]
    )
    [call] = called.tool_calls
    result = weather.invoke(call)
    assert isinstance(result, ToolMessage)
    assert result.content.startswith("Rain in ")
    assert short.invoke([question, called, result]).text
    forced = chat.bind_tools([weather], tool_choice="any", parallel_tool_calls=False)
    whole = None
    for chunk in forced.stream([question]):
        whole = chunk if whole is None else whole + chunk
    assert whole.tool_calls[0]["args"]["city"] in ("Oslo", "Rome")

    for method in ("json_schema", "function_calling"):
        structured = chat.with_structured_output(City, method=method)
        assert isinstance(structured.invoke("The largest city of France."), City)
    loose = chat.with_structured_output(
        City.model_json_schema(), method="json_schema", include_raw=True
    )
    assert loose.invoke("The largest city of France.")["parsed"]["size"] in ("small", "large")

    responding = ChatOpenAI(
        model=model, base_url=f"{url}/v1", api_key="none", use_responses_api=True, max_tokens=16
    )
    assert responding.invoke("Name three rivers.").text

    # A server other than OpenAI's gets texts: LangChain's documentation says so for such servers.
    vectors = OpenAIEmbeddings(
        model=model, base_url=f"{url}/v1", api_key="none", check_embedding_ctx_length=False
    )
    assert len(vectors.embed_documents(["a river", "a lake"])) == 2


if __name__ == "__main__":
    main(sys.argv[1])
    print("ok")

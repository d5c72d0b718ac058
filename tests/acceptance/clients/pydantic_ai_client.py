"""pydantic-ai: agents whose output is a model of pydantic, and that call tools."""

import sys
from typing import Literal

from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput, RunContext, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings, ToolOrOutput
from served import model_of

LIMIT = {"max_tokens": 200, "parallel_tool_calls": False}


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=20)
    size: Literal["small", "large"]


def main(url: str) -> None:
    name = model_of(url)
    model = OpenAIChatModel(name, provider=OpenAIProvider(base_url=f"{url}/v1", api_key="none"))
    assert Agent(model, model_settings={"max_tokens": 16}).run_sync("Name a river.").output
    for output in (City, ToolOutput(City), NativeOutput(City)):
        agent = Agent(model, output_type=output, model_settings=LIMIT)
        assert isinstance(agent.run_sync("The largest city of France.").output, City)

    called = []

    def settings(context: RunContext) -> ModelSettings:
        """Whether it calls the tool is the model's choice, so that the first step forces it."""
        forced = ["look_up"] if context.run_step == 1 else ToolOrOutput(function_tools=[])
        return ModelSettings(**LIMIT, tool_choice=forced)

    agent = Agent(model, output_type=City, model_settings=settings, instructions="Be brief.")

    @agent.tool_plain
    def look_up(country: Literal["France", "Norway"]) -> str:
        """The largest city of a country."""
        called.append(country)
        return "Paris" if country == "France" else "Oslo"

    assert isinstance(agent.run_sync("The largest city of France.").output, City)
    assert len(called) == 1


if __name__ == "__main__":
    main(sys.argv[1])
    print("ok")

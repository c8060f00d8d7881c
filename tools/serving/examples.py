#!/usr/bin/env python3
"""Examples of the documentation of OpenAI, of the `openai` package and of LangChain, as they stand there but for the base URL, which
comes from OPENAI_BASE_URL, and for what is printed.

    python examples.py [--program PATH]

The server answers to the names of models that they use (`--alias`). Exit 0 when all of them ran. OpenAI's newest examples use
`/v1/responses`, which is not built: they get 404 and an error object.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
from enum import Enum
from typing import Literal, Optional

from server import Server, program

EXAMPLES = []


def example(f):
    EXAMPLES.append(f)
    return f


@example
def curl():
    """OpenAI's API reference: streaming."""
    script = r'''
curl -N -sS $OPENAI_BASE_URL/chat/completions \
  -H "Content-Type: application/json" \
  -H "Authorization: Bearer $OPENAI_API_KEY" \
  -d '{
    "model": "gpt-4o",
    "messages": [
      {
        "role": "developer",
        "content": "You are a helpful assistant."
      },
      {
        "role": "user",
        "content": "Hello!"
      }
    ],
    "stream": true
  }'
'''
    said = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=60).stdout
    lines = [line for line in said.splitlines() if line]
    assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]", said
    chunks = [json.loads(line[6:]) for line in lines[:-1]]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant" and chunks[-1]["choices"][0]["finish_reason"], chunks


@example
def curl_more():
    """OpenAI's API reference: functions, logprobs, completions, models."""
    for path, body in (
        ("chat/completions", {"model": "gpt-4o", "messages": [{"role": "user", "content": "What is the weather like in Boston today?"}], "tools": [{"type": "function", "function": {"name": "get_current_weather",
            "description": "Get the current weather in a given location", "parameters": {"type": "object", "properties": {"location": {"type": "string", "description": "The city and state, e.g. San Francisco, CA"},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}}, "required": ["location"]}}}], "tool_choice": "auto"}),
        ("chat/completions", {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello!"}], "logprobs": True, "top_logprobs": 2}),
        ("completions", {"model": "gpt-3.5-turbo-instruct", "prompt": "Say this is a test", "max_tokens": 7, "temperature": 0}),
        ("completions", {"model": "gpt-3.5-turbo-instruct", "prompt": "Say this is a test", "max_tokens": 7, "temperature": 0, "stream": True}),
    ):
        command = ["curl", "-sS", "--fail-with-body", f"{os.environ['OPENAI_BASE_URL']}/{path}", "-H", "Content-Type: application/json", "-H", "Authorization: Bearer x", "-d", json.dumps(body)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and "choices" in done.stdout, done.stdout
    for path in ("models", "models/gpt-4o"):
        assert "gpt-4o" in subprocess.run(["curl", "-sS", f"{os.environ['OPENAI_BASE_URL']}/{path}"], capture_output=True, text=True, timeout=60).stdout


@example
def openai_usage():
    """README of the package: usage."""
    from openai import OpenAI

    client = OpenAI()
    completion = client.chat.completions.create(
        model="gpt-4o",
        messages=[
            {"role": "developer", "content": "Talk like a pirate."},
            {
                "role": "user",
                "content": "How do I check if a Python object is an instance of a class?",
            },
        ],
    )
    assert isinstance(completion.choices[0].message.content, str)


@example
def openai_streaming():
    """README: streaming, sync and async."""
    from openai import AsyncOpenAI, OpenAI

    client = OpenAI()
    stream = client.chat.completions.create(messages=[{"role": "user", "content": "Say this is a test"}], model="gpt-4o", stream=True)
    for chunk in stream:
        assert chunk.choices[0].delta.content is None or isinstance(chunk.choices[0].delta.content, str)

    async def run():
        async with AsyncOpenAI() as client:
            stream = await client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "Say this is a test"}], stream=True)
            async for chunk in stream:
                assert chunk.choices
    asyncio.run(run())


@example
def openai_errors():
    """README: handling errors, request ids."""
    import openai
    from openai import OpenAI

    client = OpenAI()
    try:
        client.chat.completions.create(model="no-such-model", messages=[{"role": "user", "content": "x"}])
        raise AssertionError("no error")
    except openai.APIStatusError as e:
        assert isinstance(e, openai.NotFoundError) and e.status_code == 404 and e.request_id and e.code == "model_not_found"
    try:
        client.responses.create(model="gpt-4o", input="x")
        raise AssertionError("no error")
    except openai.NotFoundError as e:
        assert e.body and e.body["message"]
    response = client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "Say this is a test"}])
    assert response._request_id


@example
def openai_raw():
    """README: raw responses, streaming of the body, timeouts, retries, undocumented parameters."""
    from openai import OpenAI

    client = OpenAI(timeout=20.0, max_retries=0)
    response = client.chat.completions.with_raw_response.create(messages=[{"role": "user", "content": "Say this is a test"}], model="gpt-4o")
    assert response.headers.get("x-request-id") and response.parse().choices
    with client.chat.completions.with_streaming_response.create(messages=[{"role": "user", "content": "Say this is a test"}], model="gpt-4o") as response:
        assert response.headers.get("content-type") == "application/json" and "".join(response.iter_lines())
    client.with_options(timeout=5.0).chat.completions.create(messages=[{"role": "user", "content": "x"}], model="gpt-4o", extra_body={"unknown": 1}, extra_headers={"x-y": "z"}, extra_query={"a": "b"})
    assert [m.id for m in client.models.list()]


@example
def openai_helpers():
    """helpers.md: parse with pydantic, tools, events of a stream."""
    import openai
    from openai import OpenAI
    from pydantic import BaseModel

    class Table(str, Enum):
        orders = "orders"
        customers = "customers"

    class Query(BaseModel):
        table_name: Table
        order_by: Literal["asc", "desc"]

    class Step(BaseModel):
        done: bool
        kind: Literal["a", "b"]

    class MathResponse(BaseModel):
        steps: list[Step]
        final: Literal["-3.75"]

    client = OpenAI()
    completion = client.chat.completions.parse(model="gpt-4o", temperature=0, seed=1, messages=[{"role": "system", "content": "You are a helpful math tutor."}, {"role": "user", "content": "solve 8x + 31 = 2"}], response_format=Query)
    assert completion.choices[0].message.parsed.table_name in Table
    try:
        client.chat.completions.parse(model="gpt-4o", temperature=0, max_tokens=400, messages=[{"role": "user", "content": "solve 8x + 31 = 2"}], response_format=MathResponse)
    except openai.LengthFinishReasonError:
        pass  # A list without end, by a model that knows no mathematics.
    completion = client.chat.completions.parse(model="gpt-4o", temperature=0, messages=[{"role": "user", "content": "look up all my orders"}], tools=[openai.pydantic_function_tool(Query)], tool_choice="required")
    call = completion.choices[0].message.tool_calls[0].function
    assert isinstance(call.parsed_arguments, Query)
    with client.chat.completions.stream(model="gpt-4o", temperature=0, messages=[{"role": "user", "content": "look up"}], tools=[openai.pydantic_function_tool(Query)], tool_choice="required") as stream:
        kinds = {event.type for event in stream}
        assert {"chunk", "tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds, kinds
    with client.chat.completions.stream(model="gpt-4o", temperature=0, messages=[{"role": "user", "content": "look up"}], response_format=Query) as stream:
        for event in stream:
            if event.type == "content.done":
                assert isinstance(event.parsed, Query)


@example
def langchain_chat():
    """ChatOpenAI: invocation, chaining, batches, streams, async, log-probabilities."""
    from langchain_core.prompts import ChatPromptTemplate
    from langchain_openai import ChatOpenAI

    llm = ChatOpenAI(model="gpt-4o", temperature=0, max_tokens=None, timeout=None, max_retries=2, stream_usage=True)
    messages = [("system", "You are a helpful assistant that translates English to French. Translate the user sentence."), ("human", "I love programming.")]
    ai_msg = llm.invoke(messages)
    assert ai_msg.usage_metadata["total_tokens"] and ai_msg.response_metadata["finish_reason"] in ("stop", "length")
    prompt = ChatPromptTemplate.from_messages([("system", "You are a helpful assistant that translates {input_language} to {output_language}."), ("human", "{input}")])
    chain = prompt | llm
    one = chain.invoke({"input_language": "English", "output_language": "German", "input": "I love programming."})
    assert one.content == chain.batch([{"input_language": "English", "output_language": "German", "input": "I love programming."}] * 3)[2].content
    pieces = list(llm.stream(messages))
    assert "".join(p.content for p in pieces) == ai_msg.content and any(p.usage_metadata for p in pieces)

    async def run():
        assert (await llm.ainvoke(messages)).content == ai_msg.content
        async for _ in llm.astream_events(messages, version="v2"):
            pass
    asyncio.run(run())
    assert ChatOpenAI(model="gpt-4o").bind(logprobs=True).invoke(("human", "how are you today")).response_metadata["logprobs"]["content"]


@example
def langchain_tools():
    """ChatOpenAI: tools of pydantic, strict ones, structured output by each method."""
    from langchain_openai import ChatOpenAI
    from pydantic import BaseModel, Field

    class GetWeather(BaseModel):
        """Get the current weather in a given location"""

        location: Literal["San Francisco, CA", "Rome"] = Field(..., description="The city and state, e.g. San Francisco, CA")

    class Joke(BaseModel):
        """Joke to tell user."""

        setup: Literal["Why?", "How?"] = Field(description="The setup of the joke")
        rating: Optional[Literal[1, 2, 3]] = Field(default=None, description="How funny the joke is, from 1 to 10")

    llm = ChatOpenAI(model="gpt-4o", temperature=0)
    # Without `strict` the schema allows other arguments too, of which a small model makes too many.
    ai_msg = llm.bind_tools([GetWeather], strict=True, tool_choice="required").invoke("what is the weather like in San Francisco")
    assert ai_msg.tool_calls[0]["name"] == "GetWeather" and GetWeather(**ai_msg.tool_calls[0]["args"])
    assert llm.bind_tools([GetWeather]).invoke("what is the weather like in San Francisco") is not None
    for method in ("json_schema", "function_calling"):
        assert isinstance(llm.with_structured_output(Joke, method=method, strict=True).invoke("Tell me a joke about cats"), Joke), method
    assert llm.with_structured_output(Joke, method="json_mode", include_raw=True).invoke("Answer in JSON.")["raw"].content.lstrip().startswith("{")
    call = llm.bind_tools([GetWeather], strict=True, tool_choice="GetWeather").invoke("x")
    answer = llm.bind_tools([GetWeather]).invoke([("human", "x"), call, {"role": "tool", "content": "sunny", "tool_call_id": call.tool_calls[0]["id"]}])
    assert answer is not None


@example
def langchain_completions():
    """OpenAI (completions)."""
    from langchain_openai import OpenAI

    llm = OpenAI(model="gpt-3.5-turbo-instruct", max_tokens=20)
    assert isinstance(llm.invoke("Hello how are you?"), str)
    assert list(llm.stream("Once upon a time")) and llm.generate(["a", "b"]).generations[1]


@example
def litellm_completion():
    """litellm: OpenAI-compatible endpoints (left out where it is not installed)."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    try:
        import litellm
    except ImportError:
        return "left out: litellm is not installed"
    ask = dict(model="openai/gpt-4o", api_base=os.environ["OPENAI_BASE_URL"], api_key="sk-1234", messages=[{"role": "user", "content": "Hey, how's it going?"}])
    assert litellm.completion(**ask).choices[0].message.content is not None
    assert list(litellm.completion(**ask, stream=True))
    assert asyncio.run(litellm.acompletion(**ask)).usage.total_tokens
    try:
        litellm.completion(**(ask | {"temperature": -1}))
        raise AssertionError("no error")
    except litellm.BadRequestError:
        pass


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--program", help="the program `bitnet`; what was built last unless given")
    args = p.parse_args()
    failed = 0
    with Server(args.program or program(), "--alias", "gpt-4o", "--alias", "gpt-3.5-turbo-instruct") as server:
        os.environ |= {"OPENAI_BASE_URL": server.url + "/v1", "OPENAI_API_KEY": "none"}
        for run in EXAMPLES:
            try:
                print(f"pass {run.__name__}", run() or "", flush=True)
            except Exception as e:
                failed += 1
                print(f"FAIL {run.__name__}: {type(e).__name__}: {str(e)[:600]}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

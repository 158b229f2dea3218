"""A model that may look something up: `python examples/tools.py MODEL "How is the weather in Paris?"`.

The model needs a chat template that shows tools (Qwen 2.5 and 3, Hermes, Llama 3.1, Mistral).
"""

import sys

import edgellm

WEATHER = {"Paris": "12 degrees, rain", "Cairo": "31 degrees, sun"}


def weather(city: str) -> str:
    """The weather in a city, now."""
    return WEATHER.get(city, "nobody knows")


def add(a: float, b: float) -> str:
    """The sum of two numbers."""
    return f"{a + b:g}"


TOOLS = {function.__name__: function for function in (weather, add)}


def run(call: edgellm.ToolCall) -> str:
    """What a tool says; a model gets its mistakes back as text, so that it can try again."""
    try:
        return TOOLS[call.name](**call.arguments)
    except TypeError as error:
        return f"error: {error}"


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    path, question = sys.argv[1:]
    messages: list[dict[str, object]] = [{"role": "user", "content": question}]
    with edgellm.load(path) as model:
        for _ in range(5):  # a model may go on calling for ever
            result = model.chat(messages, tools=list(TOOLS.values()), temperature=0)
            if result.finish_reason != "tool_calls":
                break
            messages.append(result.message)
            for call in result.tool_calls:
                answer = run(call)
                print(f"[{call.name}({call.arguments}) -> {answer}]", file=sys.stderr)
                messages.append({"role": "tool", "tool_call_id": call.id, "name": call.name, "content": answer})
        print(result.text)


if __name__ == "__main__":
    main()

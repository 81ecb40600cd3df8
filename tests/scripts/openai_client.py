"""OpenAI's own client against a node, of which only address, key and model were changed.

Reads [ADDRESS, KEY, MODEL] as JSON from standard input and prints what it was answered as one JSON object.
"""

import json
import sys

import openai

address, key, model = json.load(sys.stdin)
client = openai.OpenAI(base_url=f"http://{address}/v1", api_key=key, max_retries=0)
asked = [{"role": "user", "content": "What is the capital of France?"}]
found = {}

found["models"] = [one.id for one in client.models.list()]
found["model"] = client.models.retrieve(model).id

whole = client.chat.completions.create(model=model, messages=asked, temperature=0, max_tokens=32)
found["whole"] = whole.choices[0].message.content
found["finish"] = whole.choices[0].finish_reason
found["usage"] = whole.usage.model_dump(exclude_none=True)
found["fingerprint"] = whole.system_fingerprint

pieces = client.chat.completions.create(
    model=model,
    messages=asked,
    temperature=0,
    max_completion_tokens=32,
    stream=True,
    stream_options={"include_usage": True},
)
pieces = list(pieces)
found["streamed"] = "".join(one.choices[0].delta.content or "" for one in pieces if one.choices)
found["pieces"] = len(pieces)
found["stream_usage"] = pieces[-1].usage.model_dump(exclude_none=True)
found["usage_before"] = [one.usage for one in pieces[:-1] if one.usage is not None]
plain = list(client.chat.completions.create(model=model, messages=asked, temperature=0, stream=True))
found["usage_unasked"] = [one.usage for one in plain if one.usage is not None]

likely = client.chat.completions.create(
    model=model, messages=asked, temperature=0, max_tokens=4, logprobs=True, top_logprobs=3
)
tokens = likely.choices[0].logprobs.content
found["tokens"] = [one.token for one in tokens]
found["likeliest"] = [one.top_logprobs[0].token for one in tokens]
found["logprobs"] = [one.logprob for one in tokens]
found["cut"] = likely.choices[0].finish_reason

seeded = [
    [
        one.message.content
        for one in client.chat.completions.create(
            model=model, messages=asked, seed=7, n=2, temperature=1.5, max_tokens=12
        ).choices
    ]
    for _ in range(2)
]
found["seeded"] = seeded
stopped = client.chat.completions.create(
    model=model, messages=asked, temperature=0, max_tokens=32, stop=[" Paris"]
)
found["stopped"] = [stopped.choices[0].message.content, stopped.choices[0].finish_reason]

text = client.completions.create(
    model=model, prompt=["The capital of France is", "One, two, three,"], temperature=0, max_tokens=4, echo=True
)
found["completions"] = [one.text for one in text.choices]
found["completion_logprobs"] = (
    client.completions.create(model=model, prompt="One, two,", temperature=0, max_tokens=3, logprobs=2)
    .choices[0]
    .logprobs.model_dump()
)
found["completion_stream"] = "".join(
    one.choices[0].text
    for one in client.completions.create(
        model=model, prompt="One, two, three,", temperature=0, max_tokens=4, stream=True
    )
)


def refused(**arguments):
    try:
        client.chat.completions.create(**{"model": model, "messages": asked, **arguments})
    except openai.APIStatusError as error:
        kind = type(error).__name__
        return [kind, error.status_code, error.code, error.param, error.body["message"]]
    return None


found["refused"] = {
    "model": refused(model="nobody-has-this"),
    "tools": refused(tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}]),
    "penalty": refused(frequency_penalty=0.5),
    "temperature": refused(temperature=1e6),
    "n": refused(n=0),
    "role": refused(messages=[{"role": "tool", "content": "4", "tool_call_id": "1"}]),
    "empty": refused(messages=[]),
}
try:
    openai.OpenAI(base_url=f"http://{address}/v1", api_key="wrong", max_retries=0).models.list()
    found["wrong_key"] = None
except openai.APIStatusError as error:
    found["wrong_key"] = [type(error).__name__, error.status_code]
json.dump(found, sys.stdout)

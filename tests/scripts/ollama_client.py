"""Ollama's own client against a node, of which only address, key and model were changed.

Reads [ADDRESS, KEY, MODEL] as JSON from standard input and prints what it was answered as one JSON object.
"""

import json
import sys

import ollama

address, key, model = json.load(sys.stdin)
client = ollama.Client(host=f"http://{address}", headers={"Authorization": f"Bearer {key}"} if key else {})
asked = [{"role": "user", "content": "What is the capital of France?"}]
greedy = {"temperature": 0, "num_predict": 32}
found = {}

found["pull"] = [step.status for step in client.pull(model, stream=True)]
found["tags"] = [one.model for one in client.list().models]
shown = client.show(model)
found["show"] = [shown.details.format, shown.details.parameter_size, shown.capabilities]

whole = client.chat(model=model, messages=asked, options=greedy)
found["chat"] = whole.message.content
found["counts"] = [whole.prompt_eval_count, whole.eval_count, whole.done_reason, whole.total_duration > 0]
pieces = list(client.chat(model=model, messages=asked, options=greedy, stream=True))
found["streamed"] = "".join(one.message.content for one in pieces)
found["done"] = [one.done for one in pieces][-2:]

found["generate"] = client.generate(model=model, prompt=asked[0]["content"], options=greedy).response
found["raw"] = client.generate(
    model=model, prompt="The capital of France is", raw=True, options={"temperature": 0, "num_predict": 4}
).response
found["generate_streamed"] = "".join(
    one.response for one in client.generate(model=model, prompt=asked[0]["content"], options=greedy, stream=True)
)


def refused(call):
    try:
        call()
    except ollama.ResponseError as error:
        return [error.status_code, error.error]
    return None


found["refused"] = {
    "model": refused(lambda: client.chat(model="nobody-has-this", messages=asked)),
    "format": refused(lambda: client.chat(model=model, messages=asked, format="json")),
    "option": refused(lambda: client.chat(model=model, messages=asked, options={"mirostat": 2})),
}
json.dump(found, sys.stdout)

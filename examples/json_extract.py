"""Facts out of a text, as JSON of a fixed form: the answer cannot be anything else. `pip install 'edgellm[grammar]'`

`python examples/json_extract.py [MODEL.gguf]`

The form is held to while the answer is made, token by token, so even the small built-in model keeps to it; whether what
stands in it is right depends on the model.
"""

import json
import sys

import edgellm

LETTER = """Dear Ms Moreau, your order 4711 of 3 lamps and 1 table left our house in Lyon today. It costs 289.50 euros.
Kind regards, Karim Haddad"""

FORM = {
    "type": "object",
    "properties": {
        "order": {"type": "integer", "minimum": 0, "maximum": 999999},
        "customer": {"type": "string", "minLength": 1, "maxLength": 40},
        "items": {
            "type": "array",
            "minItems": 1,
            "maxItems": 3,
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "minLength": 1, "maxLength": 20},
                    "count": {"type": "integer", "minimum": 1, "maximum": 99},
                },
                "required": ["name", "count"],
                "additionalProperties": False,
            },
        },
        "currency": {"enum": ["EUR", "USD", "GBP"]},
    },
    "required": ["order", "customer", "items", "currency"],
    "additionalProperties": False,
}  # limits everywhere: an answer that is bounded always ends

path = sys.argv[1] if len(sys.argv) > 1 else None

with edgellm.load(path) as model:
    question = f"What does this letter say? Answer in JSON.\n\n{LETTER}"
    if model.chat_template:
        result = model.chat([{"role": "user", "content": question}], response_format=FORM, temperature=0)
    else:
        result = model.generate(question, response_format=FORM, temperature=0)

if result.finish_reason != "stop":  # "length": the context window was full, and the JSON has no end
    sys.exit(f"the answer is not whole: {result.text}")
facts = json.loads(result.text)
print(json.dumps(facts, indent=2, ensure_ascii=False))
print(f"[{len(facts['items'])} kinds of things, {result.usage.completion_tokens} tokens]", file=sys.stderr)

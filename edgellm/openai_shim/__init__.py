"""`edgellm.openai(model)`: a model behind the interface of the `openai` package, in this process, without that package.

    client = edgellm.openai(model)
    answer = client.chat.completions.create(messages=[{"role": "user", "content": "hi"}], max_tokens=50)
    print(answer.choices[0].message.content)

Answers have OpenAI's shape; their items are attributes and keys. An argument that is not supported raises
InvalidArgumentError, it is never ignored. What is not given has edgellm's defaults (the file's own sampling, where it
has any), not OpenAI's; options that only edgellm has go into `extra_body`. `model` may be any name: there is one model,
and the answer says which. Logprobs of a streamed answer come with its last chunk.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from edgellm.errors import InvalidArgumentError, one_line
from edgellm.openai_shim.answers import ChunkStream
from edgellm.openai_shim.chat import ChatCompletions
from edgellm.openai_shim.completions import Completions
from edgellm.openai_shim.embeddings import Embeddings
from edgellm.openai_shim.records import Record

if TYPE_CHECKING:
    from edgellm.model import Model


class Client:
    """What `openai.OpenAI()` offers, as far as one local model can: `chat.completions`, `completions`, `embeddings`,
    `models`. It holds nothing: closing the model is the caller's."""

    def __init__(self, model: Model) -> None:
        self.chat = Chat(model)
        self.completions = Completions(model)
        self.embeddings = Embeddings(model)
        self.models = Models(model)


class Chat:
    """`client.chat`."""

    def __init__(self, model: Model) -> None:
        self.completions = ChatCompletions(model)


class Models:
    """`client.models`: the one model there is."""

    def __init__(self, model: Model) -> None:
        self._name, self._created = model.name, int(time.time())

    def list(self) -> Record:
        """A `list` with one entry."""
        return Record(object="list", data=[self.retrieve(self._name)])

    def retrieve(self, model: str) -> Record:
        """The entry of a name. Raises InvalidArgumentError for another one."""
        if model != self._name:
            raise InvalidArgumentError(f"there is no model '{one_line(model)}' here; there is '{one_line(self._name)}'")
        return Record(id=self._name, object="model", created=self._created, owned_by="edgellm")


def openai(model: Model) -> Client:
    """A client for `model` with the interface of `openai.OpenAI()`; see the module's documentation."""
    return Client(model)


__all__ = ["ChunkStream", "Client", "Record", "openai"]

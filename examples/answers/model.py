"""A slow source of text, in place of a language model: the same text for the same question, some letters at a time."""

import asyncio
import re
from collections.abc import AsyncIterator

TOKENS_PER_SECOND = 25
TOKEN = re.compile(r"\s*\S{1,4}")
TEXT = """
You asked: “{question}” There is no language model behind this page, only a list of sentences that is sent slowly, some
letters at a time. But these letters reach you in the same way as any answer that takes its time. This is how.

Your question went to a channel, and a process took it from there: the writer. It knows nothing of browsers. It appends
to a stream, which has a name, and whose entries are numbered and kept. The process that holds your connection follows
that stream and sends you each entry. Between the two there is a store, and no code of the app runs for what you read.

So you may reload this page: the text is here again, and goes on where it was. Open the link in a second window, or on
another device: it shows the same. Close all of them, and come back: the writer has not noticed, and the text has grown.

Now be unkind. The terminal names the processes. Kill the worker that took your question: it is not needed any more.
Kill the interface server: your browser comes back with the number of its last entry, and gets the further ones, each of
them once. Kill the writer, whose number is below this text: another process gets the same question, and begins the
answer anew. The page says so, since two halves of two answers are no answer.

Or press Stop. The writer learns of that within a moment, says so in the stream, and ends the stream. All readers see
that this answer is not whole, and why.

An answer has an end, and the end is kept as well. When your browser has got the end, it does not ask again. If all
writers were gone for good, you would not wait for ever: the stream would fail, and you would read the reason here. You
never get half an answer that looks like a whole one. This one is whole.
"""
PARAGRAPHS = [paragraph.replace("\n", " ") for paragraph in TEXT.strip().split("\n\n")]


def answer_to(question: str) -> str:
    """Return the whole answer."""
    return "\n\n".join(PARAGRAPHS).format(question=question)


async def tokens(question: str) -> AsyncIterator[str]:
    """Yield the answer, some letters at a time."""
    for token in TOKEN.findall(answer_to(question)):
        await asyncio.sleep(1 / TOKENS_PER_SECOND)
        yield token

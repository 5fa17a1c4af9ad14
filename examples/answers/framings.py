"""Answers for the clients of two public protocols: the entries that a writer appends, and the frame of the response.

    async for entry in ui_messages(answer, tokens(question)):
        await out.append(entry)

    return StreamResponse(stream, **UI_MESSAGES)

Each entry is one event of the protocol, so the response writes entries unchanged. Its template adds the events for the
end of the stream, a failure, and an answer that is begun anew.
"""

from collections.abc import AsyncIterator
from typing import Any


async def ui_messages(answer: str, tokens: AsyncIterator[str]) -> AsyncIterator[dict[str, Any]]:
    """Yield an answer as chunks of the Vercel AI SDK's UI message stream."""
    yield {"type": "start", "messageId": answer}
    yield {"type": "text-start", "id": "text"}
    async for token in tokens:
        yield {"type": "text-delta", "id": "text", "delta": token}
    yield {"type": "text-end", "id": "text"}
    yield {"type": "finish"}


UI_MESSAGES: dict[str, Any] = {
    "headers": {"x-vercel-ai-ui-message-stream": "v1"},
    "template": {
        "end": "[DONE]",
        "error": '{"type":"error","errorText":{data}}',
        "reset": '{"type":"error","errorText":"the answer was begun anew"}',
    },
}


async def ag_ui(answer: str, tokens: AsyncIterator[str], thread: str, run: str) -> AsyncIterator[dict[str, Any]]:
    """Yield an answer as events of the Agent User Interaction Protocol (AG-UI)."""
    yield {"type": "RUN_STARTED", "threadId": thread, "runId": run}
    yield {"type": "TEXT_MESSAGE_START", "messageId": answer, "role": "assistant"}
    async for token in tokens:
        yield {"type": "TEXT_MESSAGE_CONTENT", "messageId": answer, "delta": token}
    yield {"type": "TEXT_MESSAGE_END", "messageId": answer}
    yield {"type": "RUN_FINISHED", "threadId": thread, "runId": run}


AG_UI: dict[str, Any] = {
    "template": {
        "end": None,
        "error": '{"type":"RUN_ERROR","message":{data}}',
        "reset": '{"type":"RUN_ERROR","message":"the answer was begun anew"}',
    },
}

"""Wait for a channel layer that is not there yet when a process starts."""

from __future__ import annotations

import logging

import anyio

from asgibus.cli.run import Life
from asgibus.layers.contract import ChannelLayer, Handler
from asgibus.layers.errors import LayerUnavailable

logger = logging.getLogger("asgibus")

RETRY_SECONDS = 0.5  # between two tries: a person who starts both at once does not notice it
SILENCE_SECONDS = 1.0  # without an answer: then the log says what is waited for


async def wait_for_layer(layer: ChannelLayer, seconds: float, life: Life) -> bool:
    """Wait until a server can take its place on the layer. Return False if `life.stop` is set before.

    Nothing is waited for if `seconds` is 0. Raises LayerUnavailable if the layer cannot be used within `seconds`.
    """
    if seconds:
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                await life.stop.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(watch)
            await _wait(layer, seconds, life)
            tasks.cancel_scope.cancel()
    return not life.stop.is_set()


async def _wait(layer: ChannelLayer, seconds: float, life: Life) -> None:
    start = anyio.current_time()
    told = ""

    def tell(why: str) -> None:
        nonlocal told
        if why != told:
            told = why
            logger.warning("Waiting up to %g s for the channel layer: %s", seconds, why)
            life.tell(f"waiting for the channel layer: {why}")

    async def tell_silence() -> None:
        await anyio.sleep(SILENCE_SECONDS)
        tell(f"no answer yet from {getattr(layer, 'address', 'it')}")

    while True:
        try:
            async with anyio.create_task_group() as tasks:
                if not told:
                    tasks.start_soon(tell_silence)
                await _try(layer)
                tasks.cancel_scope.cancel()
        except* LayerUnavailable as errors:
            error = errors.exceptions[0]
            if anyio.current_time() - start >= seconds:
                raise LayerUnavailable(f"{error}; waited {seconds:g} s for it") from error
            tell(str(error))
        else:
            if told:
                logger.info("The channel layer is there after %.1f s", anyio.current_time() - start)
                life.tell("starting")
            return
        await anyio.sleep(min(RETRY_SECONDS, max(0.0, start + seconds - anyio.current_time())))


async def _try(layer: ChannelLayer) -> None:
    async with layer.bus("start", Handler()):
        pass

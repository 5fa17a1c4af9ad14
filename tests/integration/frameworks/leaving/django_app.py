"""Django: an async view, a view in a thread, and a stream; with Channels, a consumer of each kind."""

import asyncio

import django
from channels.generic.websocket import AsyncWebsocketConsumer, WebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpResponse, StreamingHttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from frameworks.leaving.notes import PARTS, STEP, note, noting, released, released_thread

settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="secret", LOGGING_CONFIG=None)
django.setup()


def ready(request):
    return HttpResponse("ready")


@csrf_exempt
async def work(request, name):
    with noting(name):
        await released(name)
    return HttpResponse("worked")


@csrf_exempt
def thread(request, name):
    with noting(name):
        released_thread(name)
    return HttpResponse("worked")


@csrf_exempt
def upload(request, name):
    with noting(name):
        return HttpResponse(str(len(request.body)))


async def stream(request, name):
    async def parts():
        with noting(name):
            for _ in range(PARTS):
                yield b"data: part\n\n"
                await asyncio.sleep(STEP)

    return StreamingHttpResponse(parts(), content_type="text/event-stream")


class Socket(AsyncWebsocketConsumer):
    @property
    def name(self):
        return self.scope["url_route"]["kwargs"]["name"]

    async def connect(self):
        await self.accept()

    async def receive(self, text_data=None, bytes_data=None):
        with noting(self.name):
            if text_data == "late":
                await released(self.name)
                await self.send("late")
            elif text_data == "close":
                await self.close(4001)
                await self.send("behind the close")

    async def disconnect(self, code):
        note(self.name, f"disconnected {code}")
        with noting(self.name):
            await self.close()
            await self.send("good-bye")


class InThread(WebsocketConsumer):
    @property
    def name(self):
        return self.scope["url_route"]["kwargs"]["name"]

    def connect(self):
        self.accept()

    def receive(self, text_data=None, bytes_data=None):
        with noting(self.name):
            if text_data == "late":
                released_thread(self.name)
                self.send("late")
            elif text_data == "close":
                self.close(4001)
                self.send("behind the close")

    def disconnect(self, code):
        note(self.name, f"disconnected {code}")
        with noting(self.name):
            self.close()
            self.send("good-bye")


urlpatterns = [
    path("ready", ready),
    path("job/<name>", work),
    path("thread/<name>", thread),
    path("upload/<name>", upload),
    path("stream/<name>", stream),
]
http = get_asgi_application()
sockets = [path("socket/<name>", Socket.as_asgi()), path("socket-in-thread/<name>", InThread.as_asgi())]
app = ProtocolTypeRouter({"http": http, "websocket": URLRouter(sockets)})

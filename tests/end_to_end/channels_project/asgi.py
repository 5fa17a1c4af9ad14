import os

from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application
from django.urls import path

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "end_to_end.channels_project.settings")
http = get_asgi_application()

from .consumers import Chat  # noqa: E402 - models can be imported once Django is set up

app = ProtocolTypeRouter({"http": http, "websocket": URLRouter([path("chat/<str:room>", Chat.as_asgi())])})

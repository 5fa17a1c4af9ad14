import os

from channels.routing import ChannelNameRouter, ProtocolTypeRouter, URLRouter
from channels.sessions import SessionMiddlewareStack
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application
from django.urls import path, re_path

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "frameworks.channels_project.settings")
http = ASGIStaticFilesHandler(get_asgi_application())

from . import consumers  # noqa: E402 - models can be imported once Django is set up

app = ProtocolTypeRouter(
    {
        "http": URLRouter([path("ticker/<str:name>", consumers.Ticker.as_asgi()), re_path("", http)]),
        "websocket": SessionMiddlewareStack(
            URLRouter(
                [
                    path("talk/<str:name>", consumers.Talk.as_asgi()),
                    path("chat/<str:room>", consumers.Chat.as_asgi()),
                    path("everybody", consumers.Everybody.as_asgi()),
                    path("closed", consumers.Closed.as_asgi()),
                ]
            )
        ),
        "channel": ChannelNameRouter({"work": consumers.Work.as_asgi()}),
    }
)

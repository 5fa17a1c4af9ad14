"""The background consumers of an ordinary Channels project, without any code for the bus."""

import os

import django
from django.conf import settings

settings.configure(
    SECRET_KEY="for tests only",
    USE_TZ=True,
    INSTALLED_APPS=["channels"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    CHANNEL_LAYERS={
        "default": {"BACKEND": "asgibus.layers.RedisChannelLayer", "CONFIG": {"hosts": [os.environ["REDIS"]]}}
    },
)
django.setup()

from asgiref.sync import async_to_sync  # noqa: E402 - Django has to be set up before
from channels.consumer import AsyncConsumer, SyncConsumer  # noqa: E402
from channels.exceptions import StopConsumer  # noqa: E402
from channels.routing import ChannelNameRouter, ProtocolTypeRouter  # noqa: E402


class Thumbnails(SyncConsumer):
    """A consumer that counts thumbnails in one instance, and reports the number."""

    made = 0

    def thumbnail_make(self, message):
        self.made += 1
        answer = {"type": "thumbnail.made", "name": message["name"], "made": self.made}
        async_to_sync(self.channel_layer.send)(message["reply"], answer)

    def thumbnail_break(self, message):
        raise ArithmeticError("no such picture")


class Mails(AsyncConsumer):
    """A consumer that stops after each mail."""

    async def mail_send(self, message):
        await self.channel_layer.send(message["reply"], {"type": "mail.sent", "to": message["to"]})
        raise StopConsumer


app = ProtocolTypeRouter({"channel": ChannelNameRouter({"thumbnails": Thumbnails.as_asgi(), "mails": Mails.as_asgi()})})

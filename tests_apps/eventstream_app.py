"""A Django project in one file, with the event streams of django-eventstream over its own Redis."""

import os
from urllib.parse import urlsplit

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpResponse
from django.urls import include, path

redis = urlsplit(os.environ["REDIS_URL"])
settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="secret",
    INSTALLED_APPS=["django_eventstream"],
    EVENTSTREAM_REDIS={"host": redis.hostname, "port": redis.port, "db": int(redis.path.strip("/") or 0)},
    LOGGING_CONFIG=None,
)
django.setup()

from django_eventstream import send_event  # noqa: E402 - it needs the settings


def home(request):
    return HttpResponse("<!doctype html><title>Events</title><link rel=icon href=data:,>")


def publish(request, room):
    send_event(room, "message", {"text": request.GET["text"], "pid": os.getpid()})
    return HttpResponse("sent")


urlpatterns = [
    path("", home),
    path("publish/<room>", publish),
    path("events/<room>/", include("django_eventstream.urls"), {"format-channels": ["{room}"]}),
]
app = get_asgi_application()

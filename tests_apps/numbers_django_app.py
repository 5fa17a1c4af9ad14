"""A Django project in one file, with django-eventstream, which keeps the last events in the database.

As a program it makes the table, and publishes numbers.
"""

import itertools
import os
import time
from pathlib import Path
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
    DATABASES={
        "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": Path("events.sqlite"), "OPTIONS": {"timeout": 20}}
    },
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    EVENTSTREAM_REDIS={"host": redis.hostname, "port": redis.port, "db": int(redis.path.strip("/") or 0)},
    EVENTSTREAM_STORAGE_CLASS="django_eventstream.storage.DjangoModelStorage",
    LOGGING_CONFIG=None,
    USE_TZ=True,
)
django.setup()

from django.core.management import call_command  # noqa: E402 - it needs the settings
from django_eventstream import send_event  # noqa: E402


def home(request):
    return HttpResponse("<!doctype html><title>Numbers</title><link rel=icon href=data:,>")


urlpatterns = [
    path("", home),
    path("numbers", include("django_eventstream.urls"), {"channels": ["numbers"]}),
]
app = get_asgi_application()

if __name__ == "__main__":
    call_command("migrate", verbosity=0)
    print("publishing", flush=True)  # noqa: T201 - for the test that starts it
    for number in itertools.count(1):
        send_event("numbers", "message", str(number), json_encode=False)
        time.sleep(0.02)

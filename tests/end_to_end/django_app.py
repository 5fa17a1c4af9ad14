"""An ordinary Django project; nothing in it knows of the bus."""

import asyncio
import hashlib
import os

from django.core.asgi import get_asgi_application
from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

SEEN = []


def index(request):
    request.session["visits"] = request.session.get("visits", 0) + 1
    return HttpResponse(f"visit {request.session['visits']} by {request.META['REMOTE_ADDR']} on {request.get_host()}")


@csrf_exempt
def form(request):
    upload = request.FILES.get("upload")
    return JsonResponse(
        {
            "fields": {key: request.POST.getlist(key) for key in request.POST},
            "upload": upload and [upload.name, upload.size, hashlib.sha256(upload.read()).hexdigest()],
        }
    )


def protected(request):
    return HttpResponse("never without a token")


async def stream(request):
    async def parts():
        for number in range(200):
            yield b"%d\n" % number * 500

    return StreamingHttpResponse(parts(), content_type="text/plain")


async def wait(request):
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        SEEN.append("cancelled")
        raise
    return HttpResponse("too late")


def seen(request):
    return JsonResponse(SEEN, safe=False)


def error(request):
    raise ArithmeticError("no such number")


urlpatterns = [
    path("", index),
    path("form", form),
    path("protected", protected),
    path("stream", stream),
    path("wait", wait),
    path("seen", seen),
    path("error", error),
]

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "end_to_end.django_settings")

app = get_asgi_application()

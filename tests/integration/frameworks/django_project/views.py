import asyncio
import hashlib
import threading
from collections import defaultdict

from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from .models import Line

NOTES = []
gates = defaultdict(threading.Event)


async def opened(name):
    while not gates[name].is_set():  # noqa: ASYNC110 - it is set in another thread
        await asyncio.sleep(0.01)


def seen(request):
    response = JsonResponse(
        {
            "method": request.method,
            "path": request.path,
            "root_path": request.META["SCRIPT_NAME"],
            "scheme": request.scheme,
            "host": request.get_host(),
            "client": request.META["REMOTE_ADDR"],
            "query": request.GET.dict(),
            "cookies": request.COOKIES,
        }
    )
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")
    return response


@csrf_exempt
def form(request):
    return JsonResponse({key: request.POST.getlist(key) for key in request.POST})


@csrf_exempt
def upload(request):
    file = request.FILES["file"]
    digest = hashlib.sha256()
    for part in file.chunks():
        digest.update(part)
    return JsonResponse(
        {"title": request.POST["title"], "name": file.name, "size": file.size, "digest": digest.hexdigest()}
    )


@csrf_exempt
def raw(request):
    digest = hashlib.sha256()
    while part := request.read(65536):
        digest.update(part)
    return HttpResponse(digest.hexdigest())


async def stream(request, name):
    async def parts():
        try:
            yield "first\n"
            await opened(name)
            yield "second\n"
        finally:
            NOTES.append(f"{name} over")

    return StreamingHttpResponse(parts(), content_type="text/plain")


def go(request, name):
    gates[name].set()
    return HttpResponse("gone")


async def large(request):
    async def parts():
        for number in range(1000):
            yield b"%d\n" % number * 1000

    return StreamingHttpResponse(parts(), content_type="text/plain")


async def events(request, name):
    async def ticks():
        try:
            number = 0
            while True:
                yield f"id: {number}\ndata: tick {number}\n\n"
                number += 1
                await asyncio.sleep(0.02)
        finally:
            NOTES.append(f"{name} left")

    return StreamingHttpResponse(ticks(), content_type="text/event-stream", headers={"cache-control": "no-cache"})


def later(request, name):
    """Run background work in a thread, since Django has no task runner of its own."""

    def work():
        gates[name].wait(30)
        NOTES.append(f"{name} done")

    threading.Thread(target=work, daemon=True).start()
    return HttpResponse("soon")


def noted(request):
    return JsonResponse(NOTES, safe=False)


def error(request):
    raise ArithmeticError("as asked")


async def broken(request, name):
    async def parts():
        yield "some\n"
        await opened(name)
        raise ArithmeticError("as asked")

    return StreamingHttpResponse(parts(), content_type="text/plain")


def teapot(request):
    return HttpResponse("short and stout", status=418)


async def wait(request, name):
    """Wait as a long poll does; Django cancels the view when the client leaves."""
    try:
        await opened(name)
    except asyncio.CancelledError:
        NOTES.append(f"{name} left")
        raise
    return HttpResponse("too late")


def visits(request):
    request.session["visits"] = request.session.get("visits", 0) + 1
    return HttpResponse(str(request.session["visits"]))


def old(request):
    response = redirect(reverse("fruit", args=["grün"]) + "?q=%C3%BC")
    response.status_code = 303
    return response


def fruit(request, name):
    return JsonResponse({"name": name, "q": request.GET.get("q")})


def empty(request):
    return HttpResponse(status=204)


@require_POST
def protected(request):
    return HttpResponse("never without a token")


@csrf_exempt
async def lines(request, room):
    """Use the asynchronous half of the ORM."""
    if request.method == "POST":
        await Line.objects.acreate(room=room, text=request.POST["text"])
    return JsonResponse([line.text async for line in Line.objects.filter(room=room).order_by("id")], safe=False)

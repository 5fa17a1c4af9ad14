from asgiref.sync import async_to_sync
from channels.exceptions import ChannelFull
from channels.layers import get_channel_layer
from django.http import HttpResponse, JsonResponse
from django.urls import include, path

import asgibus


def announce(request, room, times):
    """Broadcast from a synchronous view, as a form or a signal handler would."""
    layer = get_channel_layer()
    for number in range(times):
        async_to_sync(layer.group_send)(room, {"type": "chat.line", "text": f"announcement {number}"})
    return HttpResponse("announced")


def publish(request):
    event = {"type": "websocket.send", "text": "news"}
    async_to_sync(asgibus.connection(request.scope).group_send)("everybody", event)
    return HttpResponse("published")


def later(request, name):
    """Send background work to the consumers of the channel."""
    async_to_sync(get_channel_layer().send)("work", {"type": "work.do", "name": name})
    return HttpResponse("soon")


def fill(request):
    layer = get_channel_layer()
    for number in range(100):
        try:
            async_to_sync(layer.send)("small.of-the-view", {"type": "x"})
        except ChannelFull as full:
            return JsonResponse({"sent": number, "error": str(full)})
    return JsonResponse({"sent": 100})


def bad_name(request):
    try:
        async_to_sync(get_channel_layer().send)("no name", {"type": "x"})
    except TypeError as error:
        return HttpResponse(str(error))
    return HttpResponse("it was taken")


urlpatterns = [
    path("announce/<str:room>/<int:times>", announce),
    path("publish", publish),
    path("queue/<str:name>", later),
    path("fill", fill),
    path("bad-name", bad_name),
    path("", include("frameworks.django_project.urls")),
]

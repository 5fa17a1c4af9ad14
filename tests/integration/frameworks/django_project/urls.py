from django.contrib import admin
from django.urls import path

from . import views

urlpatterns = [
    path("", views.seen),
    path("form", views.form),
    path("upload", views.upload),
    path("raw", views.raw),
    path("stream/<str:name>", views.stream),
    path("go/<str:name>", views.go),
    path("large", views.large),
    path("events/<str:name>", views.events),
    path("later/<str:name>", views.later),
    path("noted", views.noted),
    path("error", views.error),
    path("broken/<str:name>", views.broken),
    path("teapot", views.teapot),
    path("wait/<str:name>", views.wait),
    path("visits", views.visits),
    path("old", views.old),
    path("äpfel/<str:name>", views.fruit, name="fruit"),
    path("empty", views.empty),
    path("protected", views.protected),
    path("lines/<str:room>", views.lines),
    path("admin/", admin.site.urls),
]

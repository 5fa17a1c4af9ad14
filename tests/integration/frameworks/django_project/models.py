from django.contrib import admin
from django.db import models


class Line(models.Model):
    room = models.CharField(max_length=50)
    text = models.TextField()


admin.site.register(Line)

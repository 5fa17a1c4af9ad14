import os

from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "frameworks.django_project.settings")

app = ASGIStaticFilesHandler(get_asgi_application())

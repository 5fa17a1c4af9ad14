import os

from frameworks.django_project.settings import *  # noqa: F403 - a project with Channels is one with Django first

ROOT_URLCONF = "frameworks.channels_project.urls"
INSTALLED_APPS += ["channels"]  # noqa: F405

OPTIONS = {
    "expiry": 30,
    "group_expiry": 3600,
    "capacity": 50,
    "channel_capacity": {"small.*": 3},
}
if redis_url := os.environ.get("CHANNELS_REDIS"):
    CHANNEL_LAYERS = {
        "default": {
            "BACKEND": "asgibus.layers.RedisChannelLayer",
            "CONFIG": {"hosts": [redis_url], "prefix": os.environ.get("CHANNELS_PREFIX", "chat"), **OPTIONS},
        }
    }
else:
    CHANNEL_LAYERS = {"default": {"BACKEND": "asgibus.layers.InMemoryChannelLayer", "CONFIG": OPTIONS}}

import os

SECRET_KEY = "for tests only"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "end_to_end.channels_project.views"
INSTALLED_APPS = ["channels", "end_to_end.channels_project"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ["CHAT_DATABASE"],
        "OPTIONS": {"timeout": 20},
    }
}
USE_TZ = True

OPTIONS = {
    "expiry": 30,
    "group_expiry": 3600,
    "capacity": 50,
    "channel_capacity": {"small.*": 3},
}
if redis_url := os.environ.get("CHAT_REDIS"):
    CHANNEL_LAYERS = {
        "default": {
            "BACKEND": "asgibus.layers.RedisChannelLayer",
            "CONFIG": {"hosts": [redis_url], "prefix": "chat", **OPTIONS},
        }
    }
else:
    CHANNEL_LAYERS = {"default": {"BACKEND": "asgibus.layers.InMemoryChannelLayer", "CONFIG": OPTIONS}}

# Both commands: run `asgi-interface …` or `asgi-worker module:app …`. Build the image of your app FROM this one, as
# docs/deployment/compose.md shows.

FROM python:3.13-slim AS build
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev
RUN python -m venv /opt/asgibus
COPY . /src
RUN ASGIBUS_COMPILED=1 /opt/asgibus/bin/pip install --no-cache-dir --disable-pip-version-check '/src[encryption,env-file,metrics,yaml]'

FROM python:3.13-slim
RUN useradd --system --uid 999 --no-create-home --shell /usr/sbin/nologin asgibus
COPY --from=build /opt/asgibus /opt/asgibus
ENV PATH=/opt/asgibus/bin:$PATH \
    PYTHONUNBUFFERED=1
WORKDIR /app
# By number: Kubernetes cannot tell from a name that it is not root (`runAsNonRoot`).
USER 999
CMD ["asgi-interface", "--help"]

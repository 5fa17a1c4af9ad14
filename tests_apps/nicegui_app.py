"""A page of NiceGUI whose state is in the server, and which shows the actions of other users."""

from fastapi import FastAPI
from nicegui import ui

app = FastAPI()
messages = []


@ui.refreshable
def board():
    for text in messages:
        ui.label(text)


@ui.page("/")
def page():
    count = ui.label("0")
    ui.button("Count", on_click=lambda: count.set_text(str(int(count.text) + 1)))

    def say():
        messages.append(text.value)
        board.refresh()

    text = ui.input("Message")
    ui.button("Say", on_click=say)
    board()
    ui.upload(label="Upload", auto_upload=True, on_upload=lambda event: ui.notify(f"got {event.file.name}"))


ui.run_with(app, storage_secret="secret")

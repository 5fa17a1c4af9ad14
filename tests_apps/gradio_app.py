"""Functions behind a Gradio interface, mounted in FastAPI."""

import time
from pathlib import Path

import gradio as gr
from fastapi import FastAPI


def greet(name):
    return f"Hello {name}!"


def count(target):
    for number in range(1, int(target) + 1):
        yield number
        time.sleep(0.01)


def reverse(path):
    turned = Path(path).with_name("turned.bin")
    turned.write_bytes(Path(path).read_bytes()[::-1])
    return str(turned)


with gr.Blocks() as demo:
    name, greeting = gr.Textbox(label="Name"), gr.Textbox(label="Greeting")
    gr.Button("Greet").click(greet, name, greeting, api_name="greet")
    target, number = gr.Number(label="Target"), gr.Number(label="Number")
    gr.Button("Count").click(count, target, number, api_name="count")
    file, turned = gr.File(label="File"), gr.File(label="Turned")
    gr.Button("Reverse").click(reverse, file, turned, api_name="reverse")

app = gr.mount_gradio_app(FastAPI(), demo, path="/")

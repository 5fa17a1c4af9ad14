"""Uploads and downloads of FastAPI."""

import hashlib
from typing import Annotated

from fastapi import FastAPI, Form, Request, UploadFile
from fastapi.responses import FileResponse, StreamingResponse

MIB = 1 << 20

app = FastAPI()


@app.post("/upload")
async def upload(file: UploadFile, title: Annotated[str, Form()]) -> dict[str, str | int | None]:
    digest = hashlib.sha256()
    while part := await file.read(MIB):
        digest.update(part)
    return {"title": title, "name": file.filename, "size": file.size, "digest": digest.hexdigest()}


@app.put("/raw")
async def raw(request: Request) -> dict[str, str | int]:
    digest, size = hashlib.sha256(), 0
    async for part in request.stream():
        digest.update(part)
        size += len(part)
    return {"size": size, "digest": digest.hexdigest()}


@app.get("/download/{mebibytes}")
async def download(mebibytes: int) -> StreamingResponse:
    async def parts():
        for number in range(mebibytes):
            yield number.to_bytes(4, "big") * (MIB // 4)

    return StreamingResponse(parts(), media_type="application/octet-stream")


@app.get("/file")
def file(path: str) -> FileResponse:
    return FileResponse(path)

"""A small FastAPI app as people write them: a path parameter, a query parameter, and a model as the answer."""

from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()


class Item(BaseModel):
    """An item of a shop."""

    id: int
    name: str
    price: float
    tags: list[str]
    in_stock: bool = True


@app.get("/items/{item_id}")
async def read_item(item_id: int, currency: str = "EUR") -> Item:
    """Return an item."""
    return Item(id=item_id, name=f"Item {item_id}", price=9.5, tags=["new", currency])

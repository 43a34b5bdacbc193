"""An agent with two functions: the model decides what to call, and tells what came out."""

from typing import Annotated

import anyio

from kani_lite import AIParam, ChatRole, Kani, ai_function
from kani_lite.engines import NanoEngine

PRICES = {"bread": 2.5, "honey": 6.0, "coffee": 4.8}


class Shop(Kani):
    """Knows prices, and takes orders."""

    def __init__(self, engine: NanoEngine) -> None:
        super().__init__(engine)
        self.orders: list[tuple[str, int]] = []

    @ai_function()
    def get_price(self, product: Annotated[str, AIParam("The product.")]) -> str:
        """Get the price of a product."""
        if product not in PRICES:
            raise ValueError(f"no product {product}")
        return f"The price of {product} is {PRICES[product]} euros."

    @ai_function()
    async def order(self, product: str, quantity: int) -> str:
        """Order a product."""
        self.orders.append((product, quantity))
        return f"I ordered {quantity} {product}."


async def main() -> None:
    engine = NanoEngine()
    ai = Shop(engine)
    for query in ("what is the price of honey?", "order the product coffee with quantity 3"):
        print("USER:", query)
        async for message in ai.full_round(query):
            if message.tool_calls:
                print("CALL:", *(f"{c.function.name}({c.function.arguments})" for c in message.tool_calls))
            else:
                print("AI:" if message.role is ChatRole.ASSISTANT else "RESULT:", message.text)
    print("orders:", ai.orders)
    await engine.close()


if __name__ == "__main__":
    anyio.run(main)

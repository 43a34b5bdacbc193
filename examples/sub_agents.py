"""Sub-agents: one Kani is another's tool. The clerk asks the warehouse, an agent with functions of its own."""

import anyio

from kani_lite import ChatRole, Kani, ai_function
from kani_lite.engines import BaseEngine, NanoEngine

STOCK = {"coffee": 12, "honey": 3}


class Warehouse(Kani):
    @ai_function()
    def count_stock(self, product: str) -> str:
        """Count the stock of a product."""
        return f"The stock of {product} is {STOCK.get(product, 0)}."


class Clerk(Kani):
    def __init__(self, engine: BaseEngine) -> None:
        super().__init__(engine)
        self.engine = engine

    @ai_function()
    async def check_product(self, product: str) -> str:
        """Check a product."""
        # a new chat on the same engine; the engine keeps what both have in common
        warehouse = Warehouse(self.engine)
        answer = ""
        async for message in warehouse.full_round(f"count the stock of the product {product}"):
            print(f"  warehouse {message.role.value}: {message.text or message.tool_calls[0].function.name}")
            if message.role is ChatRole.ASSISTANT and message.text:
                answer = message.text
        return answer


async def main() -> None:
    engine = NanoEngine()
    async for answer in Clerk(engine).full_round_str("check the product coffee"):
        print("clerk:", answer)
    await engine.close()


if __name__ == "__main__":
    anyio.run(main)

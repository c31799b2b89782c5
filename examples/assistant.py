"""An assistant that calls Python functions.

Try: What time is it in Paris? What is the phone number of Ben? How much does a lamp cost?
"""

import argparse
import sys
from datetime import datetime
from zoneinfo import ZoneInfo, available_timezones

from mlx_gemma_mtp import Chat, MgmError, SamplingParams, load

PHONES = {"Anna": "554433", "Ben": "220011"}
PRICES = {"lamp": 35, "chair": 80, "table": 240}


def get_time(city: str) -> str:
    """Get the time in a city.

    Args:
        city: The city.
    """
    name = city.replace(" ", "_")
    zone = next((zone for zone in available_timezones() if zone.endswith(f"/{name}")), None)
    if zone is None:
        raise ValueError(f"no time zone is named after {city}")
    return f"{datetime.now(ZoneInfo(zone)):%H:%M}"


def get_phone(name: str) -> dict[str, str]:
    """Look up a phone number."""
    return {"number": PHONES[name]} if name in PHONES else {"error": f"{name} is not known"}


def get_price(item: str) -> dict[str, int]:
    """Look up a price in euros."""
    if item not in PRICES:
        raise ValueError(f"there is no price for {item}")  # the model gets this text
    return {"price": PRICES[item]}


def answer(chat: Chat, question: str) -> None:
    """Print the answer as it comes, and the calls before it."""
    for event in chat.stream(question):
        if event.kind == "text":
            print(event.text, end="", flush=True)
        elif event.kind == "tool_result" and event.call is not None:
            print(f"[{event.call.name} {event.call.arguments} -> {event.result}]")
    print()


def main(model: str) -> None:
    with load(model) as engine:
        chat = engine.chat(
            tools=[get_time, get_phone, get_price],
            params=SamplingParams(temperature=0, max_tokens=500),
            timeout=60,
        )
        print(f"Ask {engine.name}. Ctrl-C stops an answer, Ctrl-D quits.")
        for line in filter(str.strip, sys.stdin):
            try:
                answer(chat, line.strip())
            except KeyboardInterrupt:
                print(" [stopped]")  # the chat keeps what there is
            except MgmError as error:  # the chat is as it was before
                print(error, file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="demo", help="a folder, a Hub name, or a size")
    try:
        main(parser.parse_args().model)
    except MgmError as error:
        sys.exit(str(error))

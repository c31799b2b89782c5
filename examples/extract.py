"""Read each text file of a folder into a record, as one line of JSON per file.

Whatever the model, the output has the form of `Person`. Needs the extra "structured", and pydantic.
"""

import argparse
import sys
from pathlib import Path

from pydantic import BaseModel, ValidationError

from mlx_gemma_mtp import MgmError, SamplingParams, load

SAMPLES = Path(__file__).parent / "people"


class Person(BaseModel):
    name: str
    age: int
    city: str


def main(model: str, folder: Path) -> None:
    read = {
        file.name: file.read_text(encoding="utf-8", errors="replace").strip()
        for file in sorted(folder.glob("*.txt"))
    }
    texts = {name: text for name, text in read.items() if text}  # of nothing, it would invent one
    if not texts:
        sys.exit(f"{folder} has no .txt files with text")
    params = SamplingParams(json_schema=Person, temperature=0, max_tokens=200)
    with load(model) as engine:  # reads up to eight files at a time
        prompts = [f"Extract the data as JSON: {text}" for text in texts.values()]
        answers = engine.generate(prompts, params)
    for name, answer in zip(texts, answers, strict=True):
        try:
            person = Person.model_validate_json(answer.text)
        except ValidationError:  # only if max_tokens has cut it
            print(f"{name}: no record: {answer.finish_reason}", file=sys.stderr)
        else:
            print(person.model_dump_json())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=SAMPLES, help="[default: %(default)s]")
    parser.add_argument("model", nargs="?", default="demo", help="a folder, a Hub name, or a size")
    given = parser.parse_args()
    try:
        main(given.model, given.folder)
    except MgmError as error:
        sys.exit(str(error))

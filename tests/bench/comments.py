"""How many of the receptive fields that the authors of the five ladders wrote behind their layers are wrong?

    python tests/bench/comments.py

tests/golden/ladders.json keeps what stood behind each layer (null: nothing) beside what is true of it.
"""

import json
from pathlib import Path

GOLDEN = Path(__file__).resolve().parents[1] / "golden/ladders.json"


def written_and_true(designs):
    """Design, receptive field as its author wrote it, receptive field as it is: of every layer with a comment."""
    return [
        (design["id"], written, row["r_out"])
        for design in designs
        if design["source_rf_comments"] is not None
        for written, row in zip(design["source_rf_comments"], design["rf_table"], strict=True)
        if written is not None
    ]


if __name__ == "__main__":
    pairs = written_and_true(json.loads(GOLDEN.read_text())["designs"])
    wrong = [design for design, written, true in pairs if written != true]
    designs = {design for design, _, _ in pairs}
    print(f"{len(wrong)} of {len(pairs)} receptive fields in the comments of the five ladders are wrong")
    print(f"{len(set(wrong))} of the {len(designs)} designs that have such comments hold a wrong one")

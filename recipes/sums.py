"""Write what recipes/sums.yaml reads: "What is a + b?" with one digit each, as train and held-out prompts.

    python recipes/sums.py

Held out by the unordered pair, so that 3 + 5 in one file means no 5 + 3 in the other.
"""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

HELD_OUT = 16


def main() -> None:
    """Write both files into the working directory."""
    pairs = list(itertools.combinations_with_replacement(range(10), 2))
    random.Random(0).shuffle(pairs)
    for name, chosen in {"sums": pairs[HELD_OUT:], "sums-held-out": pairs[:HELD_OUT]}.items():
        both = dict.fromkeys(pair for a, b in chosen for pair in ((a, b), (b, a)))
        rows = [{"prompt": [{"role": "user", "content": f"What is {a} + {b}?"}], "answer": str(a + b)} for a, b in both]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()

"""What a tuning gained and lost, line by line, with intervals.

python examples/ledger.py runs/first/student runs/ledger        # after examples/tune_and_export.py
"""

import sys
from pathlib import Path

from fewstep import Scoring, ledger_checkpoints


def main(student: Path, out: Path, data: str = "bundled", n: int = 250, teacher_calls: int = 35) -> None:
    """Compares the student in four calls with its teacher in `teacher_calls`, on the same n seeds."""
    scoring = Scoring(data, out, n=n)
    ledger = ledger_checkpoints("bundled", str(student), scoring, steps=4, teacher_calls=teacher_calls).ledger
    for line, verdict in zip(ledger.lines, ledger.verdicts, strict=True):
        print(f"{verdict.said:10} {line.name}: {line.before:.3g}, {line.after:.3g}, difference {line.difference}")
    print(*ledger.sentences(), sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

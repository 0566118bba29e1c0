"""Quality against network calls, for a student and its teacher on the same seeds, and which number of calls to choose.

python examples/dial.py runs/first/student runs/dial        # after examples/tune_and_export.py
"""

import sys
from pathlib import Path

from fewstep import Scoring, dial_checkpoints


def main(student: Path, out: Path, data: str = "bundled", n: int = 1000, calls: tuple[int, ...] = (1, 2, 4, 8)) -> None:
    """Writes measure.json and a plot to `out`. More samples a point, n, make narrower intervals."""
    scoring = Scoring(data, out, n=n)
    measured = dial_checkpoints([str(student)], "bundled", scoring, within=0.05, steps=calls, teacher_calls=calls)
    for point in measured.found.points:
        distances = ", ".join(f"{distance} ({view})" for view, distance in point.frechet.items())
        print(f"{point.name:10} {point.nfe:3g} calls: Fréchet distance {distances}")
    print(measured.found.recommended)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

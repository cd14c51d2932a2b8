"""`python -m benchmarks [NAME ...]` runs the named benchmarks, or all that need no set-up."""

from __future__ import annotations

import argparse

from benchmarks import (
    analyze,
    cache,
    ceiling,
    chaos,
    coverage,
    engine,
    first_answer,
    frontier,
    guarantee,
    int8,
    labelling,
    learning_loop,
    models,
    observing,
    overhead,
    overload,
    reading,
    routing,
    serve,
    shapes,
    watching,
)

BENCHMARKS = {
    "frontier": frontier.run,
    "guarantee": guarantee.run,
    "models": models.run,
    "ceiling": ceiling.run,
    "routing": routing.run,
    "observing": observing.run,
    "watching": watching.run,
    "analyze": analyze.run,
    "first_answer": first_answer.run,
    "overload": overload.run,
    "chaos": chaos.run,
    "engine": engine.run,
    "serve": serve.run,
    "cache": cache.run,
    "overhead": overhead.run,
    "int8": int8.run,
    "shapes": shapes.run,
    "coverage": coverage.run,
    "labelling": labelling.run,
    "learning_loop": learning_loop.run,
    "reading": reading.run,
}
BY_DEFAULT = ("frontier", "routing", "analyze")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    for name in parser.parse_args().names or BY_DEFAULT:
        if name not in BENCHMARKS:
            parser.error(f"there is no benchmark {name!r}; choose from {', '.join(BENCHMARKS)}")
        BENCHMARKS[name]()


if __name__ == "__main__":
    main()

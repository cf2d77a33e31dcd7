"""Many small cases as one test."""

import functools
import inspect
from collections.abc import Callable, Iterable

import torch


def each(names: str, cases: Iterable) -> Callable[[Callable], Callable]:
    """Run all cases in one test: `pytest.mark.parametrize` for cases too small to be tests of their own.

    Every case starts from the state that a test starts from, and one that fails is named.
    """
    keys = names.replace(",", " ").split()
    rows = [case if len(keys) > 1 else (case,) for case in cases]

    def decorate(test: Callable) -> Callable:
        @functools.wraps(test)
        def run(**fixtures: object) -> None:
            for row in rows:
                case = dict(zip(keys, row, strict=True))
                torch.manual_seed(0)
                try:
                    test(**fixtures, **case)
                except Exception as error:
                    raise AssertionError(f"{case}: {error}") from error

        signature = inspect.signature(test)
        kept = [p for name, p in signature.parameters.items() if name not in keys]
        run.__signature__ = signature.replace(parameters=kept)  # what pytest finds fixtures by
        return run

    return decorate

"""What fuzzing has found stays as it should be: each input of its corpora, without a fuzzer."""

from __future__ import annotations

import pytest

from asyncwebsockets.codec import IMPLEMENTATION

from .fuzz.targets import TARGETS, corpus


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_holds(target: str) -> None:
    if target in ("codec", "native") and IMPLEMENTATION == "pure":
        pytest.skip("the native codec was not built: install a C compiler, and the project anew")
    inputs = sorted(corpus(target).iterdir())
    assert inputs
    for path in inputs:
        try:
            TARGETS[target](path.read_bytes())
        except Exception as exc:
            raise AssertionError(f"{target} with {path}") from exc

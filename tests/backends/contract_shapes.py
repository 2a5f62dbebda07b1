"""Batches of random shapes: each backend gives the plain network's values or its error. `COUNT` examples.

A script, as an example in which the process dies must not end the suite; it says each before it starts.
"""

import sys

import contract_cases
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CHANNELS = st.sampled_from([3] * 9 + [0, 1, 2, 4, 7])
SIDES = {"lambdanet": st.integers(0, 10), "lambdanet-u2": st.integers(0, 6), "dncnn": st.integers(0, 40)}


@st.composite
def calls(draw):
    name = draw(st.sampled_from(sorted(SIDES)))
    side = SIDES[name]
    whole = st.tuples(st.integers(0, 18), CHANNELS, side, side)
    shape = draw(st.one_of(whole, whole, whole, st.lists(st.integers(0, 5), max_size=5).map(tuple)))
    return name, shape, draw(st.booleans())


def check(call):
    name, shape, training = call
    print("begins", *call, flush=True)
    contract_cases.CASES["drawn"] = contract_cases.shaped(*shape)
    contract_cases.LOOSER["drawn"] = (
        {"gradients": None} if shape[:1] == (1,) else {}
    )  # as for one image there
    found = contract_cases.compare(name, "drawn", training)
    assert not any(one["wrong"] for one in found.values()), found


if __name__ == "__main__":
    torch.set_num_threads(1)
    count = int(sys.argv[1])
    options = {"derandomize": True, "deadline": None, "database": None}
    some = settings(max_examples=count, suppress_health_check=list(HealthCheck), **options)
    some(given(calls())(check))()
    print("done")

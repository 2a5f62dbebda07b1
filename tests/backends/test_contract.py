"""Every backend gives what the plain network gives, or its error, whatever it is called with.

The calls run in a process of its own, which is started again behind a call in which it died.
"""

import json
import os
import subprocess
import sys

import contract_cases
import pytest
import torch

from lambdanet import backends

FEW = [  # of the networks with the kernels of another, or none
    "as it is", "shape, (4, 1, 8, 8)", "shape, (0, 3, 8, 8)", "images, float64", "images, with a gradient",
    "normalisation, 1 in the other mode", "normalisation, momentum None", "within, autocast", "traced",
    "parameters, all frozen",
]  # fmt: skip
CALLS = {
    "lambdanet": [("lambdanet", which) for which in contract_cases.CASES],
    "dncnn": [("dncnn", which) for which in contract_cases.CASES],
    "others": [
        (name, which) for name in sorted({*contract_cases.NETWORKS} - {"lambdanet", "dncnn"}) for which in FEW
    ],
}


def run_calls(calls):
    """What each call gives; of one in which the process died, its exit status."""
    found, waiting = {}, list(calls)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    while waiting:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", contract_cases.__file__], input=json.dumps(waiting),
            capture_output=True, text=True, env=environment,
        )  # fmt: skip
        lines = done.stdout.splitlines()
        given = [json.loads(line) for line in lines if line != "begins"]
        found |= dict(zip(waiting, given, strict=False))
        if done.returncode == 0:
            break
        died = len(given)
        assert lines.count("begins") == died + 1, done.stderr[-2000:]
        found[waiting[died]] = {"the process": {"wrong": [f"ended with {done.returncode}"], "taken": []}}
        waiting = waiting[died + 1 :]
    return found


@pytest.mark.parametrize("group", CALLS)
def test_backends_give_what_the_plain_network_gives(group):
    calls = [(*call, training) for call in CALLS[group] for training in (True, False)]
    found = run_calls(calls)
    wrong = {
        (*call, backend): one["wrong"]
        for call, by_backend in found.items()
        for backend, one in by_backend.items()
        if one["wrong"]
    }
    assert not wrong
    for name in {name for name, _ in CALLS[group]}:
        kernels = [contract_cases.KERNELS[name]] if name in contract_cases.KERNELS else []
        for which, training in (("as it is", True), ("parameters, all frozen", False)):
            assert found[name, which, training]["auto"]["taken"] == kernels


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", contract_cases.KERNELS)
def test_what_is_known_of_a_network_does_not_outlive_a_change(name, training):
    def chosen(which, known):
        call = contract_cases.Call(contract_cases.network(name, training), contract_cases.images(4, 3, 8, 8))
        if known:
            assert backends.select(call.model, call.noisy).name == contract_cases.KERNELS[name]
        try:
            contract_cases.CASES[which](call)
        except (RuntimeError, TypeError, ValueError) as error:
            return type(error)
        return backends.select(call.model, call.noisy).name

    with torch.set_grad_enabled(training):
        found = {which: [chosen(which, known) for known in (True, False)] for which in contract_cases.CASES}
    assert not {which: pair for which, pair in found.items() if pair[0] != pair[1]}
    names = [pair[0] for pair in found.values()]
    assert min(names.count(contract_cases.KERNELS[name]), names.count(backends.REFERENCE)) > 10

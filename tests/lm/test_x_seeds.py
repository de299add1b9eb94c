import pytest
from test_lm_long import KILLED, memory, random_plans, trial, outcome

@pytest.mark.parametrize("seed", [5,7])
def test_seed(trial, seed):
    run = trial(110)
    plans = random_plans(seed)
    assert run.lives(plans) == [KILLED] * 20 + [0]
    a, b = outcome(run.out)["log"], run.alone["log"]
    print(plans)
    print([x["step"] for x in a])
    for x, y in zip(a, b):
        if x != y: print({k: (x.get(k), y.get(k)) for k in y if x.get(k) != y.get(k)})
    assert run.differences() == []

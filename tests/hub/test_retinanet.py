"""KerasHub's RetinaNet trains with the loss. Needs KerasHub: `tox run -e retinanet`."""

import re


def test_the_box_loss_decreases(example):
    output = example("retinanet", "--short")
    first, last = re.search(r"bbox_regression_loss +(\S+) +(\S+)", output).groups()
    assert 0 < float(last) < float(first)

"""KerasHub's RetinaNet trains with the loss. Needs KerasHub: `tox run -e retinanet`."""

import re


def test_the_loss_of_the_boxes_falls(example):
    printed = example("retinanet", "--short")
    first, last = re.search(r"bbox_regression_loss +(\S+) +(\S+)", printed).groups()
    assert 0 < float(last) < float(first)

"""KerasHub's RetinaNet trains with the loss. Needs KerasHub: `tox run -e retinanet`."""


def test_a_retinanet_trains_with_the_loss(run_example, tmp_path):
    assert "rectangles in new pictures" in run_example("retinanet", "--short")
    assert (tmp_path / "retinanet.png").stat().st_size > 10_000

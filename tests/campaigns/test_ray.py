"""The campaigns on Ray, small."""

from tests.campaigns import ray_data, ray_serve


def test_ray_data(cluster: dict[str, str]) -> None:
    counts = ray_data.campaign(1, 2, cluster)
    assert counts["inputs"] == 1


def test_ray_serve(cluster: dict[str, str]) -> None:
    counts = ray_serve.campaign(80, 1, cluster)
    assert counts["killed replicas of the model"] == 1
    assert counts["killed replicas of the front"] == 1
    assert counts["answers with 200"] > 40

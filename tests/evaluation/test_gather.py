from microplastics.evaluation import gather


def test_one_record_an_image_in_order(monkeypatch):
    mine = [{"image_id": 5, "rank": 0}, {"image_id": 2, "rank": 0}]
    other = [{"image_id": 5, "rank": 1}, {"image_id": 3, "rank": 1}]
    assert gather.gather_by_image(mine, distributed=False) == mine[::-1]
    assert gather.gather_by_image(mine, distributed=True) == mine[::-1]  # one process
    monkeypatch.setattr(gather.comm, "gather", lambda records, dst: [records, other])
    both = gather.gather_by_image(mine, distributed=True)
    assert [(each["image_id"], each["rank"]) for each in both] == [(2, 0), (3, 1), (5, 0)]
    monkeypatch.setattr(gather.comm, "is_main_process", lambda: False)
    assert gather.gather_by_image(mine, distributed=True) is None

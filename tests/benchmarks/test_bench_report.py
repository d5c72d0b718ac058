from bench_report import Sample, cells, short, table


def sample(case: str, repeat: int, value: float, part: str = "ttft") -> Sample:
    return Sample(part, "512 tokens", case, repeat, {"TTFT, s": value}, 0.0)


def test_a_ratio_is_the_median_of_those_within_repeats() -> None:
    times = {"sps2": [1.0, 10.0, 3.0], "vllm": [2.0, 40.0, 3.0]}
    samples = [sample(case, n, t) for case, row in times.items() for n, t in enumerate(row)]
    ours, theirs = cells(samples, "sps2")
    assert (ours.value, ours.ratio) == (3.0, 1.0)
    assert (theirs.value, theirs.ratio) == (3.0, 0.5)


def test_a_ratio_needs_the_baseline_in_the_same_repeat() -> None:
    (alone,) = cells([sample("vllm", 0, 2.0)], "sps2")
    assert alone.ratio is None
    _, later = cells([sample("sps2", 0, 1.0), sample("vllm", 1, 2.0)], "sps2")
    assert later.ratio is None


def test_the_table_has_a_column_for_each_case() -> None:
    samples = [sample("sps2", 0, 1.0), sample("vllm", 0, 4.0), sample("vllm", 0, 8.0, "start")]
    assert table(cells(samples, "sps2"), "sps2").splitlines() == [
        "| | sps2 | vllm |",
        "|---|---|---|",
        "| 512 tokens, TTFT, s | 1 | 4 (0.25) |",
        "| 512 tokens, TTFT, s | - | 8 |",
    ]


def test_numbers_have_three_digits() -> None:
    assert [short(x) for x in (0.01234, 1.234, 12.34, 1234.5)] == ["0.0123", "1.23", "12.3", "1234"]

"""Several runs on one page, against their own figures; also runs that have little in common."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browser_kit import Visit, assert_fits, screenshots, walk_by_keyboard
from cli_kit import called
from loop_runs import Kill, Run
from page_kit import GOLD, Page, column

from online_dpo.errors import UserError
from online_dpo.reports.comparing.report import comparison_page, verdict
from online_dpo.reports.comparing.runs import ComparedRun, labels, read_runs
from online_dpo.reports.comparing.wins import Contest, Pairing, contests
from online_dpo.reports.result_reading import read_rounds
from online_dpo.reports.results import Estimate
from online_dpo.store.run_store import RunStore

HOSTILE = "</script><script>document.title = 'owned'</script><img src=x onerror=alert(1)>\u202e"


def make_run(folder: Path, name: str, *, prompts: Sequence[dict[str, str]] | None = None, **sections: Any) -> Run:
    """A finished run over fakes with ten held-out prompts, unless told."""
    evaluation = {"sets": {"heldout": {"source": str(folder / "heldout.jsonl"), "count": 10}}, "judges": GOLD}
    run = Run.of(folder, name, **{"evaluation": evaluation, **sections})
    if prompts is not None:
        (folder / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    run.go_on()
    return run


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Runs of 2, 2 and 3 rounds; the second was evaluated on 8 of the 10 prompts of the others."""
    folder = tmp_path_factory.mktemp("three")
    few = {"sets": {"heldout": {"source": str(folder / "heldout.jsonl"), "count": 8}}, "judges": GOLD}
    return [
        make_run(folder, "one", run__seed=1).path,
        make_run(folder, "two", run__seed=2, evaluation=few, objective={"type": "sigmoid", "beta": 0.3}).path,
        make_run(folder, "three", run__seed=3, run__rounds=3).path,
    ]


def page_of(*paths: Path) -> Page:
    return Page(comparison_page(read_runs(paths)))


def committed_scores(path: Path, judge: str) -> dict[str, float]:
    with RunStore.read(path) as store:
        last = store.finished_rounds()[-1]
        found: dict[str, float] = store.round(last).get_json("evaluation/heldout/summary")["scores"][judge]
    return found


def test_wins_are_shares_of_the_common_prompts(three: list[Path]) -> None:
    runs = read_runs(three)
    for contest in contests(runs):
        scores = [committed_scores(path, contest.judge) for path in three]
        for i, j in ((0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)):
            common = scores[i].keys() & scores[j].keys()
            won = sum(scores[i][key] > scores[j][key] for key in common)
            tied = sum(scores[i][key] == scores[j][key] for key in common)
            gain = sum(scores[i][key] - scores[j][key] for key in common) / len(common)
            pairing = contest.pairings[i, j]
            assert pairing.num_common == len(common) == (10 if {i, j} == {0, 2} else 8)
            assert (pairing.num_won, pairing.num_won + pairing.num_lost) == (won, len(common) - tied)
            assert pairing.wins.value == pytest.approx((won + tied / 2) / len(common))
            assert pairing.gain.value == pytest.approx(gain)
            assert pairing.wins.low <= pairing.wins.value <= pairing.wins.high
            # The same evidence, looked at from either side.
            other = contest.pairings[j, i]
            assert (pairing.wins.low, pairing.gain.low) == pytest.approx((1 - other.wins.high, -other.gain.high))
    assert [contest.judge for contest in contests(runs)] == ["gold", "reward"]
    page, wins = page_of(*three), contests(runs)[0].pairings[0, 1]
    shown = page.tables["Paired wins by judge gold on heldout"]
    assert shown[0] == ["run", "against\none", "against\ntwo", "against\nthree"]
    assert shown[1][2].startswith(f"{100 * wins.wins.value:.0f}\u00a0% [{100 * wins.wins.low:.0f}, ")
    assert f"{wins.gain.value:+.3g} [" in shown[1][2] and "8 prompts" in shown[1][2]
    assert "one and two have 8 prompts in common: 2 prompts are only in the set of one." in page.text


def test_an_interval_of_wins_is_that_of_the_bootstrap(three: list[Path]) -> None:
    """By the exact distribution: resampled wins of n prompts are binomial where there are no ties."""
    from scipy.stats import binom

    runs = read_runs(three)
    pairing = contests(runs)[0].pairings[0, 2]
    n, share = pairing.num_common, pairing.wins.value
    assert pairing.wins.low == pytest.approx(binom.ppf(0.025, n, share) / n, abs=0.101)
    assert pairing.wins.high == pytest.approx(binom.ppf(0.975, n, share) / n, abs=0.101)


def test_curves_and_figures_are_those_of_each_run(three: list[Path]) -> None:
    page = page_of(*three)
    for place, path in enumerate(three):
        with RunStore.read(path) as store:
            results = read_rounds(store.metrics())
        table = page.tables["chart-kl-0"]
        shown = [cell for cell in column(table, path.name) if cell]
        assert [float(cell) for cell in shown[1:]] == pytest.approx(
            [result.evaluation["heldout"].kl_initial for result in results], rel=1e-3
        )
        row = page.tables["Newest figures"][place + 1]
        figures = dict(zip((name.replace("\n", " ") for name in page.tables["Newest figures"][0]), row, strict=True))
        last = results[-1].evaluation["heldout"]
        gain = last.judges["gold"].gain
        assert gain is not None
        assert figures["rounds"] == f"{len(results)} of {len(results)}" and figures["policy"] == str(len(results))
        assert figures["gold gain"] == f"{gain.value:.3g} [{gain.low:.3g}, {gain.high:.3g}]"
        assert figures["tokens"] == f"{last.sampling.length_mean:.3g}"
    assert column(page.tables["chart-kl-0"], "one")[-1] == ""  # three alone has a third round
    assert "The policies compared are of different rounds: one 2, two 2, three 3." in page.text


def test_what_differs_in_the_configs_and_nothing_else(three: list[Path]) -> None:
    page = page_of(*three)
    assert page.tables["Fields of the configs"] == [
        ["field", "one", "two", "three"],
        ["evaluation.sets.heldout.count", "10", "8", "10"],
        ["objective.beta", "0.1", "0.3", "0.1"],
        ["run.rounds", "2", "2", "3"],
        ["run.seed", "1", "2", "3"],
    ]


def test_a_copy_wins_exactly_half_and_has_a_name_of_its_own(three: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "one"
    shutil.copytree(three[0], copy)
    runs = read_runs([three[0], copy])
    assert [run.label for run in runs] == [f"{three[0].parent.name}/one", "elsewhere/one"]
    for contest in contests(runs):
        pairing = contest.pairings[0, 1]
        assert pairing.wins == (0.5, 0.5, 0.5) and pairing.gain == (0.0, 0.0, 0.0) and not contest.notes
    page = page_of(three[0], copy)
    assert "The configs are the same." in page.text and "by more than chance" in page.text
    assert labels([Path("/a/x/r"), Path("/a/y/r"), Path("/b/q")]) == ["x/r", "y/r", "q"]
    assert labels([Path("/r"), Path("/a/r")]) == ["/r", "a/r"]


def rows_of(texts: Sequence[str], first_id: int = 0) -> list[dict[str, str]]:
    return [{"prompt": text, "id": f"h{first_id + i}"} for i, text in enumerate(texts)]


def test_prompts_are_common_by_what_they_say(tmp_path: Path) -> None:
    """Ids may be row numbers: the same id may stand for another prompt, and another id for the same one."""
    texts = [f"text {i}" for i in range(9)]
    paths = []
    for name, rows in (
        ("first", rows_of([*texts, "text 0"])),  # one of them twice
        ("renamed", rows_of(list(reversed(texts)), first_id=50)),
        ("strange", rows_of([f"other {i}" for i in range(9)])),
    ):
        (tmp_path / name).mkdir()
        sets = {"heldout": {"source": str(tmp_path / name / "heldout.jsonl"), "count": len(rows)}}
        evaluation = {"sets": sets, "judges": GOLD}
        path = tmp_path / name
        run = Run.of(path, "run", evaluation=evaluation)
        (path / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        run.go_on()
        paths.append(run.path)
    contest = contests(read_runs(paths))[0]
    assert contest.pairings[0, 1].num_common == 9
    assert set(contest.pairings) == {(0, 1), (1, 0)}
    assert list(contest.notes) == [
        "first/run and renamed/run have 9 prompts in common: 1 prompt is only in the set of first/run.",
        "first/run and strange/run have 0 prompts in common: 10 prompts are only in the set of first/run; "
        "9 prompts are only in the set of strange/run.",
        "renamed/run and strange/run have 0 prompts in common: 9 prompts are only in the set of renamed/run; "
        "9 prompts are only in the set of strange/run.",
    ]
    page = page_of(paths[0], paths[2])
    assert "Which run is better cannot be told" in page.text and not page.data["compared"]
    assert "No two runs answered the same held-out prompt." in page.text


def test_runs_without_committed_prompts_pair_where_the_file_is_the_same(
    three: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from online_dpo.reports.comparing import runs as reading

    monkeypatch.setattr(reading, "_prompts", lambda part, name: {})
    assert contests(read_runs(three[:2]))[0].pairings == {}  # the runs recorded no digests of their files
    record = reading.collect_record
    sources = {"sources": {"evaluation.sets.heldout.source": "ab12"}}
    monkeypatch.setattr(reading, "collect_record", lambda *given: replace(record(*given), info=sources))
    assert contests(read_runs(three[:2]))[0].pairings[0, 1].num_common == 8


def with_info(run: ComparedRun, info: dict[str, Any]) -> ComparedRun:
    return replace(run, record=replace(run.record, info=info))


def test_scores_of_judges_that_are_not_the_same_do_not_compare(tmp_path: Path) -> None:
    def judged(name: str, **gold: Any) -> Path:
        sets = {"heldout": {"source": str(tmp_path / "heldout.jsonl"), "count": 4}}
        gold = {"type": "python", "target": "none:none", **gold}
        return make_run(tmp_path, name, evaluation={"sets": sets, "judges": {"gold": gold}}).path

    paths = [
        judged("one"),
        judged("busy", concurrency=3, timeout_s=5.0, threads=2),
        judged("other", target="a/code.py:score"),
    ]
    contest = contests(read_runs(paths))[0]
    assert set(contest.pairings) == {(0, 1), (1, 0)}  # how often it is asked at once is not what it says
    said = "are not paired: their judges are not the same, they differ in evaluation.judges.gold.target."
    assert list(contest.notes) == [f"one and other {said}", f"busy and other {said}"]
    # The training judge is the same in all three.
    assert len(contests(read_runs(paths))[1].pairings) == 6

    # The same code elsewhere is the same judge; other code of the same name is another one.
    runs = read_runs([paths[2], judged("moved", target="b/code.py:score")])
    field = "evaluation.judges.gold.target"
    same = [with_info(run, {"sources": {field: "c0de"}}) for run in runs]
    assert contests(same)[0].pairings
    notes = contests([same[0], with_info(runs[1], {"sources": {field: "0dd"}})])[0].notes
    assert f"they differ in {field}, the content of {field}." in notes[0]


def test_a_prompt_without_a_score_is_told(three: list[Path]) -> None:
    first, second, _ = read_runs(three)
    found = first.evaluated["heldout"]
    silent = sorted(found.scores["gold"].keys() & second.evaluated["heldout"].scores["gold"].keys())[:3]
    gold = {key: score for key, score in found.scores["gold"].items() if key not in silent}
    first = replace(first, evaluated={"heldout": replace(found, scores={**found.scores, "gold": gold})})
    contest = contests([first, second])[0]
    assert contest.pairings[0, 1].num_common == 5
    assert list(contest.notes) == [
        "one and two have 5 prompts in common: 2 prompts are only in the set of one; "
        "3 prompts are without a score in one."
    ]


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_runs_that_lack_what_is_compared_are_told(three: list[Path], tmp_path: Path) -> None:
    begun = Run.of(tmp_path, "begun")
    with pytest.raises(Kill):
        begun.go_on(kill_at=1)
    unjudged = make_run(tmp_path, "blind", evaluation={"sets": {}}).path
    damaged = tmp_path / "damaged"
    shutil.copytree(three[0], damaged)
    shorten(damaged / "rounds/00001/evaluation/heldout/summary.json")
    page = page_of(three[0], begun.path, unjudged, damaged)
    assert "0 of 2 rounds are finished." in page.text
    assert "damaged: " in page.text and "summary.json" in page.text
    assert "Which run is better cannot be told" in page.text
    assert column(page.tables["Newest figures"], "rounds") == ["2 of 2", "0 of 2", "2 of 2", "2 of 2"]
    assert "Without it: begun." in page.text


def test_users_mistakes_are_sentences(three: list[Path], tmp_path: Path) -> None:
    def refusal(*arguments: object) -> str:
        return called("compare", *arguments, cwd=tmp_path).refusal

    link = tmp_path / "link"
    link.symlink_to(three[0])
    assert refusal(three[0]) == "1 run directory is given; `online-dpo compare` takes 2 to 12"
    assert refusal(*[f"runs/{i}" for i in range(13)]).startswith("13 run directories are given")
    assert refusal(three[0], three[1], three[0]) == f"{three[0]} is given twice; give each run once"
    assert refusal(three[0], link) == f"{link} is the same folder as {three[0]}; give each run once"
    assert "nowhere" in refusal(three[0], "nowhere")
    assert refusal(*three, "--out", "none/a.html").startswith("--out is none/a.html, and there is no folder none")
    assert not list(tmp_path.glob("*.html"))
    done = called("compare", *three, "--out", "a.html", cwd=tmp_path)
    assert (done.code, done.out, done.err) == (0, "comparison: a.html\n", "")
    assert (tmp_path / "a.html").stat().st_size < 1_000_000
    with pytest.raises(UserError):
        read_runs([])


@pytest.fixture
def shown(visit: Visit, tmp_path: Path) -> Callable[..., Any]:
    """Open the comparison of runs in a browser."""

    def show(paths: Sequence[Path], **options: Any) -> Any:
        file = tmp_path / "compare.html"
        file.write_text(comparison_page(read_runs(paths)))
        page = visit(**options).page
        page.goto(file.as_uri())
        return page

    return show


def test_several_sets_and_judges(shown: Callable[..., Any], tmp_path: Path) -> None:
    """A set that only one of the runs has is in no contest; every figure names its set."""
    source = str(tmp_path / "heldout.jsonl")
    sets = {"heldout": {"source": source, "count": 4}, "again": {"source": source, "count": 6}}
    both = make_run(tmp_path, "both", evaluation={"sets": sets, "judges": {**GOLD, "other": GOLD["gold"]}}).path
    second = {"sets": {**sets, "alone": {"source": source, "count": 3}}, "judges": GOLD}
    paths = [both, make_run(tmp_path, "more", run__seed=1, evaluation=second).path]
    found = [
        (contest.judge, contest.set_name, contest.pairings[0, 1].num_common) for contest in contests(read_runs(paths))
    ]
    assert found == [("gold", "heldout", 4), ("gold", "again", 6), ("reward", "heldout", 4), ("reward", "again", 6)]
    table = page_of(*paths).tables["Newest figures"]
    assert column(table, "policy on alone") == ["-", "2"] and column(table, "other\nmean on again")[1] == "-"
    page = shown(paths)
    page.select_option("#compared-controls [name=set]", label="again (6 common prompts)")
    page.wait_for_function("() => document.querySelectorAll('#compared-cards .card').length === 6")
    assert "Both runs that have the set answered 6 of its prompts." in page.inner_text("#compared-count")


def test_in_a_browser(three: list[Path], shown: Callable[..., Any], tmp_path: Path) -> None:
    page = shown(three)
    assert "10 of the 10 prompts on this page." in page.inner_text("#compared-count")
    assert "all 3 runs that have it 8" in page.inner_text("#compared-count")
    assert page.locator("#compared-cards .card").count() == 10
    page.select_option("#compared-controls [name=order]", "~gold")
    scores = [committed_scores(path, "gold") for path in three]
    spread = {
        key: max(given) - min(given) for key in scores[0] if (given := [found[key] for found in scores if key in found])
    }
    first = "#compared-cards .card:first-child"
    widest = f"Prompt {max(spread, key=spread.__getitem__)}"
    page.wait_for_function("name => document.querySelector('#compared-cards h3').textContent === name", arg=widest)
    best = page.locator(f"{first} .best b").all_inner_texts()
    assert best and page.locator(f"{first} .side").count() == 3
    page.fill("#compared-controls [name=search]", "heldout 7")
    page.wait_for_function("() => document.querySelectorAll('#compared-cards .card').length === 1")
    page.focus("#chart-kl-0 svg.plot")
    page.keyboard.press("Home")
    assert page.inner_text("#chart-kl-0 .readout").startswith("round 0 · one 0 · two 0 · three 0")
    page.click(".fold > summary")
    assert page.locator(".fold .chart:visible").count() > 5
    screenshots(page, tmp_path, "compare")
    assert {"select Set heldout (10 common prompts)", "input Search"} <= set(walk_by_keyboard(page, most=400))


def test_what_others_wrote_is_text(shown: Callable[..., Any], tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("<b>bold", "<i>&amp;")]
    for folder in folders:
        folder.mkdir()
    prompts = [{"prompt": f"{HOSTILE} {i}", "id": f"<u>{i}"} for i in range(10)]
    name = "<script>alert(1)"
    paths = [make_run(folder, name, prompts=prompts, run__name="<td><script>").path for folder in folders]
    page = shown(paths)
    assert page.title() == "<b>bold/<script>alert(1), <i>&amp;/<script>alert(1): comparison of runs"
    assert page.locator("script").count() == 2 and page.locator("img, b b, i").count() == 0
    assert "</script><script>document.title = 'owned'</script><img src=x onerror=alert(1)>⟨U+202E⟩" in page.inner_text(
        "#compared-cards .card:first-child"
    )


def test_twelve_runs_fit_a_phone(three: list[Path], shown: Callable[..., Any], tmp_path: Path) -> None:
    paths = [three[0], *(tmp_path / f"a-run-with-a-rather-long-name-{i}" for i in range(11))]
    for path in paths[1:]:
        shutil.copytree(three[1 if path.name.endswith("7") else 2], path)
    page = shown(paths)
    strokes = page.evaluate(
        """() => [...document.querySelectorAll("#chart-kl-0 .plot .line")].map(line =>
            getComputedStyle(line).stroke + getComputedStyle(line).strokeDasharray)"""
    )
    assert len(set(strokes)) == len(strokes) == 12
    assert len({stroke.split("(")[1].split(")")[0] for stroke in strokes}) == 12
    screenshots(page, tmp_path, "twelve")
    assert_fits(page)


def contest_of(wins: dict[tuple[int, int], tuple[float, float, float]], judge: str = "gold") -> Contest:
    """Made of the shares that the first of two runs wins, with their intervals."""
    pairings = {}
    for (i, j), share in wins.items():
        won = round(40 * share[0])
        gain = Estimate(0.0, 0.0, 0.0)
        pairings[i, j] = Pairing(num_common=40, num_won=won, num_lost=40 - won, wins=Estimate(*share), gain=gain)
        pairings[j, i] = pairings[i, j].reversed()
    return Contest(set_name="heldout", judge=judge, pairings=pairings, notes=())


def test_few_prompts_that_are_all_won_prove_nothing() -> None:
    from scipy.stats import binomtest

    def pairing(won: int, lost: int) -> Pairing:
        share = won / (won + lost)
        certain, gain = Estimate(share, share, share), Estimate(1.0, 1.0, 1.0)
        return Pairing(num_common=won + lost + 3, num_won=won, num_lost=lost, wins=certain, gain=gain)

    for won, lost in ((1, 0), (5, 0), (6, 0), (9, 1), (60, 40), (3, 8), (400, 350)):
        assert pairing(won, lost).chance == pytest.approx(binomtest(won, won + lost).pvalue)
    assert [pairing(n, 0).is_better for n in range(1, 9)] == [False] * 5 + [True] * 3
    assert not pairing(0, 8).is_better and pairing(0, 8).reversed().is_better


def test_the_sentence_at_the_top(three: list[Path]) -> None:
    runs = read_runs(three)
    clear, even = (0.25, 0.125, 0.375), (0.55, 0.4, 0.7)
    assert verdict(runs[:2], [contest_of({(0, 1): clear})]) == (
        "By judge gold on heldout, two is better than one: it wins 75\u00a0% [62, 88] of their 40 common prompts.",
        "good",
    )
    assert verdict(runs[:2], [contest_of({}), contest_of({(0, 1): even}, "reward")]) == (
        "By the training judge on heldout, neither one nor two is better by more than chance: one wins "
        "55\u00a0% [40, 70] of their 40 common prompts.",
        "open",
    )
    beats_both = contest_of({(0, 1): clear, (1, 2): (0.9, 0.8, 1.0), (0, 2): even})
    assert verdict(runs, [beats_both]) == (
        "By judge gold on heldout, two is better than all others: it wins at least 75\u00a0% [62, 88].",
        "good",
    )
    # Whoever never met one of the others is not called better than each of them.
    assert verdict(runs, [contest_of({(0, 1): clear})]) == (
        "By judge gold on heldout, no run is better than all others by more than chance. two wins most: 75\u00a0% of "
        "the prompts it shares with another run, on average.",
        "open",
    )

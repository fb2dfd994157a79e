"""The report: what it shows is what the study holds, and no state of a study breaks it."""

import html.parser
import json
import math
import re
import shutil
import subprocess
import sys

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from nas.report import format, scales, study_rows
from nas.report.html import page as html_page
from nas.report.html import style
from nas.report.plots import figure, pareto
from nas.report.tables import search
from nas.searching import finalists
from nas.searching.candidate import Candidate
from nas.searching.objective import Objective

OPS = ("identity", "mbconv3_k3", "mbconv6_k5")
BLOCKS = 8


@pytest.fixture(scope="session")
def networks(shared_data):
    """Real networks: NAS-Bench-Macro's choices, test accuracies, sizes; cost grows with FLOPs."""
    table = np.load(shared_data / "nas" / "nasbench_macro.npz")
    chosen = np.random.default_rng(0).permutation(len(table["arch"]))[:60]
    return [
        {
            "choices": {f"block{b}_op": OPS[table["arch"][i][b]] for b in range(BLOCKS)},
            "quality": float(table["mean_acc"][i]) / 100,
            "costs": [0.5 + table["flops"][i] / 28e6, 0.2 + table["params"][i] / 1e6],
            "params": int(table["params"][i]),
            "macs": int(table["flops"][i]),
        }
        for i in chosen
    ]


def make_study(networks, *, targets=1, directions=None, train=lambda index: index % 3 != 2):
    """A study as the search leaves it: some networks trained, the others only profiled."""
    space = {
        f"block{b}_op": optuna.distributions.CategoricalDistribution(OPS) for b in range(BLOCKS)
    }
    study = optuna.create_study(study_name="macro", directions=directions or ["maximize"])
    for index, network in enumerate(networks):
        costs = network["costs"][:targets]
        latency = [
            {"median_ms": c, "interval_ms": [0.98 * c, 1.02 * c], "kind": "measured"} for c in costs
        ]
        profile = {"key": str(index), "costs": costs, "latency": latency}
        profile |= {name: network[name] for name in ("params", "macs")}
        blocks = ", ".join(f"Block(op={op!r}, kernel=3)" for op in network["choices"].values())
        profile["config"] = f"Config(classes=10, blocks=({blocks},))"
        attributes = {"profile": profile}
        values, state = None, TrialState.PRUNED
        if train(index):
            attributes["evaluation"] = {"quality": network["quality"]}
            state = TrialState.COMPLETE
            values = [network["quality"], *costs] if directions else [network["quality"]]
        study.add_trial(
            optuna.trial.create_trial(
                state=state,
                values=values,
                params=network["choices"],
                distributions=space,
                user_attrs=attributes,
            )
        )
    return study


def test_an_estimate_is_called_one(networks):
    """In the table, and of a winner that was interrupted before it could be timed again."""
    study = make_study(networks, targets=2, directions=["maximize", "minimize", "minimize"])
    for trial in study.get_trials(deepcopy=False):
        trial.user_attrs["profile"]["latency"][1]["kind"] = "compiled"
    best = next(trial for trial in study.get_trials(deepcopy=False) if trial.values)
    objective = Objective((9.0, 9.0))
    costs = finalists._costs(best)
    winner = finalists._record(best, Candidate(None), objective, 0.9, costs, None)
    budgets = [{"spec": name, "budget_ms": 9.0} for name in ("cpu", "tpu:v5e")]
    text = search.table(study, {"targets": budgets, "winner": winner}, color=False)
    cpu, tpu = (line for line in text.splitlines() if line.startswith("budget"))
    assert "measured" not in cpu and "COMPILED, not measured" in tpu
    assert "figures   those on tpu:v5e are COMPILED, not measured" in text


def make_summary(study, targets=1):
    """result.json of a finished search: the two best within the budget were retrained."""
    rows = [row for row in study_rows.networks(study) if row.state == study_rows.TRAINED]
    budgets = [float(np.median([row.costs[axis] for row in rows])) for axis in range(targets)]
    inside = [r for r in rows if all(c <= b for c, b in zip(r.costs, budgets, strict=True))]
    finalists = [
        {
            "number": row.number,
            "proxy_quality": row.quality,
            "quality": row.quality + 0.0123,
            "costs": [cost * 0.995 for cost in row.costs],
            "search_costs": list(row.costs),
            "params": row.params,
            "macs": row.macs,
            "within_budget": True,
            "config": row.config,
        }
        for row in sorted(inside, key=lambda row: -row.quality)[:2]
    ]
    specs = [f"cpu:threads={axis + 1}" for axis in range(targets)]
    return {
        "study": "macro",
        "space": "macro",
        "task": "cifar10",
        "targets": [
            {"spec": spec, "device": "a CPU", "budget_ms": budget, "unit": "ms"}
            for spec, budget in zip(specs, budgets, strict=True)
        ],
        "reward": "absolute",
        "beta": -0.07,
        "controller": "random",
        "seed": 0,
        "baseline": {
            "quality": 0.9,
            "proxy_quality": 0.88,
            "costs": [4.0, 3.0][:targets],
            "params": 3,
            "macs": 10**8,
        },
        "winner": finalists[0] | {"file_bytes": 123456},
        "finalists": finalists,
        "prove": {
            "random": [{"quality": r.quality - 0.01, "costs": list(r.costs)} for r in rows[:9]],
            "hypervolume": {"controller": 0.9876, "random": 0.9123},
        },
        "conditions": {spec: {"governor": "performance", "pinned_cores": [1]} for spec in specs},
        "time_s": {"build": 1.0, "profile": 2.0, "train": 3.0, "total": 7.0},
        "counts": {"complete": len(rows)},
        "versions": {"optuna": optuna.__version__},
    }


class Page(html.parser.HTMLParser):
    """Parses strictly enough to notice a tag left open; collects text and attributes."""

    VOID = ("meta", "br", "link", "img", "input", "hr")

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open, self.attributes, self.texts, self.tags = [], [], [], []
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return "\n".join(self.texts)

    def dots(self, tag="circle"):
        return {int(v) for t, name, v in self.attributes if t == tag and name == "data-n"}


def test_front_is_what_nothing_dominates(networks):
    study = make_study(networks, targets=2, directions=["maximize", "minimize", "minimize"])
    rows = [row for row in study_rows.networks(study) if row.state == study_rows.TRAINED]
    expected = {
        row.number
        for row in rows
        if not any(
            other.quality >= row.quality
            and all(a <= b for a, b in zip(other.costs, row.costs, strict=True))
            and (other.quality, other.costs) != (row.quality, row.costs)
            for other in rows
        )
    }
    assert {row.number for row in study_rows.front(study_rows.networks(study))} == expected
    assert 1 < len(expected) < len(rows)


def test_trials_that_were_not_trained_for_are_not_on_the_front(networks):
    study = make_study(networks[:3], train=lambda index: True)
    space = study.trials[0].distributions
    better = {"key": "x", "costs": [0.01]}
    for state, profile, evaluation in (
        (TrialState.FAIL, better, {"quality": 1.0}),
        (TrialState.COMPLETE, better | {"duplicate_of": 0}, {"quality": 1.0}),
        (TrialState.PRUNED, better, {"quality": 1.0, "stopped": True}),
        (TrialState.PRUNED, better | {"costs": [], "excess": "params"}, {}),
    ):
        study.add_trial(
            optuna.trial.create_trial(
                state=state,
                value=1.0 if state == TrialState.COMPLETE else None,
                params=study.trials[0].params,
                distributions=space,
                user_attrs={"profile": profile, "evaluation": evaluation},
            )
        )
    assert all(row.number < 3 for row in study_rows.front(study_rows.networks(study)))
    states = [row.state for row in study_rows.networks(study)[3:]]
    assert states == [
        study_rows.GIVEN_BACK,
        study_rows.DUPLICATE,
        study_rows.STOPPED,
        study_rows.LIMITED,
    ]
    assert "Pareto" not in search.table(study, {})
    assert "1 stopped early" in search.table(study, {})


def test_why_candidates_failed_is_in_the_table_and_on_the_page(networks, tmp_path):
    study = make_study(networks[:3], train=lambda index: True)
    for message in ("ValueError: no <op>", "out of memory", "ValueError: no <op>"):
        trial = study.ask()
        trial.set_user_attr("profile", {"key": message, "costs": [1.0]})
        trial.set_user_attr("training", True)
        trial.set_user_attr("failures", [{"kind": "x", "message": message}])
        study.tell(trial, state=TrialState.PRUNED)
    text = " ".join(search.table(study, {}).split())
    assert "3 failed" in text
    assert "failed trials 3, 5: ValueError: no <op> failed trial 4: out of memory" in text
    html = html_page.write(tmp_path / "report.html", study, {}).read_text()
    assert "<li>trials 3, 5: ValueError: no &lt;op&gt;</li>" in html


def test_table_holds_the_figures_of_the_study(networks):
    study = make_study(networks)
    summary = make_summary(study)
    text = search.table(study, summary, limit=1000)
    lines = {line.split()[0]: line for line in text.splitlines()[2:] if line.strip()}
    front = study_rows.front(study_rows.networks(study))
    for row in front:
        shown = lines[str(row.number)]
        assert f"{100 * row.quality:.2f}" in shown
        assert float(shown.split("(")[0].split()[-1]) == pytest.approx(row.costs[0], rel=5e-3)
    winner = summary["winner"]
    assert lines[str(winner["number"])].endswith(("winner", "winner (off the front)"))
    assert f"{100 * winner['quality']:.2f} % retrained" in text
    assert f"{100 * winner['proxy_quality']:.2f} % in the search" in text
    landing = winner["costs"][0] / summary["targets"][0]["budget_ms"]
    assert f"= {landing:.1%}, within" in text
    assert f"{4.0 / winner['costs'][0]:.2f}x faster" in text
    assert max(map(len, text.splitlines())) <= 100


def test_table_is_narrow_with_two_targets_and_long_names(networks):
    study = make_study(networks, targets=2)
    summary = make_summary(study, targets=2)
    for axis, target in enumerate(summary["targets"]):
        target["spec"] = f"android:0123456789ABCDEF0123,threads={axis + 1}"
    text = search.table(study, summary)
    assert max(map(len, text.splitlines())) <= 100
    head = next(line for line in text.splitlines() if "quality %" in line)
    assert "threads=1" in head and "threads=2" in head


def test_table_thins_the_front_but_keeps_the_winner(networks):
    study = make_study(networks)
    summary = make_summary(study)
    front = study_rows.front(study_rows.networks(study))
    text = search.table(study, summary, limit=3)
    assert "more on the front" in text and "winner" in text
    shown = [line for line in text.splitlines() if re.match(r" *\d+ +\d+\.\d\d ", line)]
    assert len(shown) <= 3 + len(summary["finalists"]) < len(front)


def test_colour_only_where_it_is_asked_for(networks, monkeypatch):
    study = make_study(networks)
    assert "\033" not in search.table(study, make_summary(study))
    colored = search.table(study, make_summary(study), color=True)
    assert re.search(r"\033\[(1;)?32m", colored)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033" not in search.table(study, make_summary(study))


def test_table_lists_the_files(networks, tmp_path):
    study = make_study(networks)
    (tmp_path / "best.tflite").write_bytes(b"")
    assert "best.tflite" in search.table(study, make_summary(study), folder=tmp_path)


@pytest.mark.parametrize("targets", [1, 2])
@pytest.mark.parametrize("multi", [False, True])
def test_page_is_whole_and_fetches_nothing(networks, tmp_path, targets, multi):
    directions = ["maximize"] + ["minimize"] * targets if multi else None
    study = make_study(networks, targets=targets, directions=directions)
    summary = make_summary(study, targets)
    page = Page(html_page.write(tmp_path / "report.html", study, summary))
    assert not re.search(r"https?://", page.source)
    assert not {"link", "img", "iframe"} & set(page.tags)
    assert not any(name in ("src", "href") for _, name, _ in page.attributes)
    winner = summary["winner"]
    for fact in (
        f"{100 * winner['quality']:.2f}",
        format.figure(winner["costs"][0]),
        f"{4.0 / winner['costs'][0]:.2f}×",
        "0.9876",
        "governor",
        "performance",
        f"nas export runs/macro --trial {winner['number']}",
        "measured",
    ):
        assert fact in page.text, fact
    if not multi:
        assert "reward" in page.text


def test_page_data_equals_the_study(networks, tmp_path):
    study = make_study(networks)
    page = Page(html_page.write(tmp_path / "report.html", study, {}))
    data = json.loads(re.search(r'id="data">(.*?)</script>', page.source).group(1))
    trained = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    assert set(data["trials"]) == {str(trial.number) for trial in trained}
    for trial in trained:
        shown = data["trials"][str(trial.number)]
        choices = {
            name: data["options"][i][shown["choices"][i]]
            for i, name in enumerate(data["decisions"])
        }
        assert choices == trial.params
        quality = trial.user_attrs["evaluation"]["quality"]
        assert f"quality {100 * quality:.2f} %" in shown["lines"]
    row = next(r for r in study_rows.networks(study) if r.number == trained[0].number)
    assert f"{row.quality}" in [v for _, name, v in page.attributes if name == "data-v"]


def test_dots_are_where_the_figures_say(networks, tmp_path):
    study = make_study(networks)
    page = Page(html_page.write(tmp_path / "report.html", study, make_summary(study)))
    chart = page.source[page.source.index("<svg") : page.source.index("</svg>")]
    dots = {
        int(n): (float(x), float(y))
        for x, y, n in re.findall(
            r'<use [^>]*x="([\d.]+)" y="([\d.]+)" style="fill: var\(--o\d\)[^>]*data-n="(\d+)"',
            chart,
        )
    }
    rows = [row for row in study_rows.networks(study) if row.number in dots]
    assert len(rows) > 20
    x, y = np.array([dots[row.number] for row in rows]).T
    cost, quality = np.array([(row.costs[0], row.quality) for row in rows]).T
    summary = make_summary(study)
    every = study_rows.networks(study)
    log = scales.view(every, summary, study_rows.goals(summary, every)[0], 0).log
    assert np.corrcoef(x, np.log(cost) if log else cost)[0, 1] > 0.9999
    assert np.corrcoef(y, quality)[0, 1] < -0.9999  # pixels grow downwards


def test_everything_foreign_is_escaped(networks, tmp_path):
    evil = '"><script>alert(1)</script>'
    study = make_study(networks)
    summary = make_summary(study)
    summary["winner"]["config"] = f"Config(blocks=(Block(op={evil!r}),), name='</script>')"
    summary["conditions"]["cpu:threads=1"][evil] = evil
    summary["targets"][0]["device"] = evil
    for name in ("space", "task", "controller", "reward", "study"):
        summary[name] = evil
    page = Page(html_page.write(tmp_path / "report.html", study, summary))
    assert page.tags.count("script") == 2  # ours: the data and the program
    assert page.source.count("<script>alert") == 0
    assert "<script>alert(1)</script>" in page.text


def test_choices_of_a_study_cannot_end_the_script(tmp_path):
    study = optuna.create_study(direction="maximize")
    for value, evil in enumerate(("</script><script>alert(1)</script>", "<!--")):
        space = {"op": optuna.distributions.CategoricalDistribution((evil, "plain"))}
        attributes = {"profile": {"costs": [1.0 + value]}, "evaluation": {"quality": 0.5}}
        study.add_trial(
            optuna.trial.create_trial(
                params={"op": evil}, distributions=space, value=0.5, user_attrs=attributes
            )
        )
        page = Page(html_page.write(tmp_path / "report.html", study, {}))
        assert page.tags.count("script") == 2
        study = optuna.create_study(direction="maximize")


@pytest.mark.skipif(shutil.which("node") is None, reason="no JavaScript engine to check with")
def test_script_of_the_page_parses(tmp_path):
    (tmp_path / "page.js").write_text(style.SCRIPT)
    subprocess.run(["node", "--check", str(tmp_path / "page.js")], check=True)


def read_png(path):
    from PIL import Image

    with Image.open(path) as image:
        assert image.format == "PNG"
        return image.size, len(image.convert("RGB").getcolors(1 << 24))


@pytest.mark.parametrize("targets", [1, 2])
def test_picture(networks, tmp_path, targets):
    study = make_study(networks, targets=targets)
    path = figure.save(tmp_path / "pareto.png", pareto.draw(study, make_summary(study, targets)))
    (width, height), colors = read_png(path)
    assert width >= 1200 and height >= 700 and colors > 20


def test_matplotlib_waits_until_it_is_needed():
    code = "import sys, nas.report.html.page, nas.report.tables.search, nas.report.plots.pareto"
    code += "; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


GAPS = [
    {},
    {"winner": None, "baseline": None, "finalists": None, "prove": None, "time_s": None},
    {"baseline": {"quality": None, "costs": None, "params": None, "macs": None}},
    {"baseline": {"quality": None, "costs": [4.0]}, "targets": [{"spec": "cpu"}]},
    {"targets": [{"spec": "cpu", "budget_ms": 1e-3}], "time_s": {"build": 0.0, "total": None}},
    {"winner": {"number": 0, "quality": 0.9, "proxy_quality": 0.9, "costs": [1.0]}},
    {"winner": {"number": 99999}, "finalists": [{"number": 1}], "beta": "auto"},
    {"prove": {"random": [], "hypervolume": {}}, "conditions": {"cpu": {"a": {"b": [1, None]}}}},
]  # fmt: skip


@pytest.mark.parametrize("gaps", GAPS)
def test_an_interrupted_search_is_reported(networks, tmp_path, gaps):
    study = make_study(networks[:5])
    text = search.table(study, gaps)
    assert "trained" in text and max(map(len, text.splitlines())) <= 100
    Page(html_page.write(tmp_path / "report.html", study, gaps))
    read_png(figure.save(tmp_path / "pareto.png", pareto.draw(study, gaps)))


def test_what_was_not_retrained_is_not_called_so(networks, tmp_path):
    study = make_study(networks)
    row = next(r for r in study_rows.networks(study) if r.state == study_rows.TRAINED)
    winner = {"number": row.number, "quality": row.quality, "proxy_quality": row.quality}
    summary = {"winner": winner | {"costs": list(row.costs)}, "finalists": []}
    assert "not retrained" in search.table(study, summary)
    page = Page(html_page.write(tmp_path / "report.html", study, summary))
    assert "not retrained" in page.text


def test_one_trained_network_is_enough(networks, tmp_path):
    study = make_study(networks[:4], train=lambda index: index == 2)
    Page(html_page.write(tmp_path / "report.html", study, {}))
    figure.save(tmp_path / "pareto.png", pareto.draw(study, {}))
    assert re.search(r"^ +2 ", search.table(study, {}), re.MULTILINE)


def test_the_best_so_far_is_within_the_budget_if_any_is(networks):
    study = make_study(networks)
    rows = [row for row in study_rows.networks(study) if row.state == study_rows.TRAINED]
    cheapest = min(row.costs[0] for row in rows)
    for budget, feasible in (
        (float(np.median([row.costs[0] for row in rows])), True),
        (1e-3, False),
    ):
        targets = [{"spec": "cpu", "budget_ms": budget}]
        inside = [row for row in rows if row.costs[0] <= budget] or rows
        best = max(inside, key=lambda row: row.quality)
        assert (best.costs[0] <= budget) == feasible and cheapest > 1e-3
        line = next(
            x for x in search.table(study, {"targets": targets}).splitlines() if "best" in x
        )
        assert line.split()[0] == str(best.number)


def test_an_empty_study_says_so(tmp_path):
    study = optuna.create_study(study_name="nothing", direction="maximize")
    assert "No network is trained yet" in search.table(study, {})
    page = Page(html_page.write(tmp_path / "report.html", study, {}))
    assert "No network is trained yet" in page.text
    with pytest.raises(ValueError, match="no network of study 'nothing' is trained yet"):
        figure.save(tmp_path / "pareto.png", pareto.draw(study, {}))


def test_running_trials_do_not_disturb(networks, tmp_path):
    study = make_study(networks)
    study.ask()
    assert "1 running" in search.table(study, {})
    Page(html_page.write(tmp_path / "report.html", study, {}))


def test_log_axis_when_costs_span_more_than_ten_times(networks):
    wide = [{**n, "costs": [n["costs"][0] ** 3]} for n in networks]
    study = make_study(wide)
    rows = study_rows.networks(study)
    view = scales.view(rows, {}, study_rows.goals({}, rows)[0], 0)
    costs = [row.costs[0] for row in rows if row.state == study_rows.TRAINED]
    assert view.log == (max(costs) > 10 * min(costs)) and view.log
    assert math.log(view.left) < math.log(min(costs))


def test_network_that_learned_nothing_does_not_flatten_the_plot(networks):
    study = make_study([{**networks[0], "quality": 0.1}, *networks[1:]])
    rows = study_rows.networks(study)
    view = scales.view(rows, {}, study_rows.goals({}, rows)[0], 0)
    assert view.bottom > 50 and view.below >= 1

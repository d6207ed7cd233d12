"""The report of a run: what it shows, that it is small and whole, and that it can do no harm."""

import json
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import pyids
from pyids.cli import cli
from pyids.errors import DataError
from pyids.report import figures, sample, stages, text, words
from pyids.report.collect import collect
from pyids.report.map import project
from pyids.report.page import write_report
from pyids.report.status import Status, is_locked, status_of
from pyids.store.folder import Store
from pyids.store.manifest import verify

HOSTILE = [
    "</script><script>window.harm = 1</script>",
    '<img src=x onerror="window.harm = 2">',
    "\u202e\u05e9\u05dc\u05d5\u05dd right to left \u0645\u0631\u062d\u0628\u0627",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 emoji \U0001f4a9" * 40,
    "\u2028line\u2029 <!-- <script> ${x} $title {{x}} \x00\x07",
]


def finish(pool, path, **options):
    with pyids.Selection.open(path, **pool.options(**options)) as selection:
        while selection.draw():
            rows = selection.probes()
            selection.tell({int(row): float(pool.topics[row] != 3) for row in rows})
        selection.finish()
    return path


def hostile_pool(pool):
    for n, row in enumerate(pool.rows):
        row["source"] = HOSTILE[n % len(HOSTILE)]
        row["messages"][0]["content"] += HOSTILE[n % len(HOSTILE)]
    pool.rows[5]["messages"][1]["content"] = "<b>" * 350_000  # a megabyte
    pool.rows[6]["messages"][1]["content"] = ""  # unusable
    lines = [orjson.dumps(row) for row in pool.rows]
    lines[7] = lines[7].replace(b"answer", b"half \\ud800 pair")
    pool.path.write_bytes(b"\n".join(lines) + b"\n")


def data_of(page):
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(found[1])


def test_the_report_says_what_the_folder_holds(pool, tmp_path):
    folder = finish(pool, tmp_path / "run", quality="length")
    data = data_of(write_report(folder).read_text())
    rows = {step["name"]: step["rows"] for step in data["funnel"]}
    assert rows == {"read": 400, "unusable": 0, "exact duplicates": 0, "pool": 400, "selected": 60}
    store = Store(folder)
    clusters = data["clusters"]
    assert clusters["size"] == store.cluster_sizes.tolist()
    assert sum(clusters["selected"]) == 60
    assert np.array(clusters["weights"]).shape == (4, 3)
    np.testing.assert_allclose(np.array(clusters["weights"])[:, 0], 1)
    np.testing.assert_allclose(np.array(clusters["weights"]).sum(axis=0), 4, rtol=1e-3)
    named = {topic for names in clusters["words"] for topic in names}
    assert {"sums", "colors", "cities", "noise"} <= named
    assert [one["drawn"] for one in data["rounds"]] == [20, 20, 20]
    assert sorted(set(data["points"]["round"])) == [0, 1, 2, 3]
    assert sum(map(bool, data["points"]["round"])) == 60
    assert sum(row["selected"] for row in data["mix"]) == pytest.approx(1)
    assert sum(data["lengths"]["counts"][0]) == pytest.approx(400)
    assert sum(data["quality"]["counts"][1]) == 60
    table = pq.read_table(folder / "map.parquet")
    assert table.num_rows == len(data["points"]["id"])
    expected = ["x", "y", "text", "cluster", "source", "round", "weight", "row_id"]
    assert table.column_names == expected
    labels = np.concatenate(store.labels())
    assert table["cluster"].to_pylist() == labels[table["row_id"].to_numpy()].tolist()


def test_the_report_leaves_the_run_what_it_was_and_is_the_same_again(pool, tmp_path):
    folder = finish(pool, tmp_path / "run")
    before = write_report(folder).read_bytes()
    assert verify(folder) == []
    once = {k: v for k, v in data_of(before.decode()).items() if k not in ("costs", "disk")}
    again = {
        k: v
        for k, v in data_of(write_report(folder).read_text()).items()
        if k not in ("costs", "disk")
    }
    assert once == again


def test_hostile_texts_stay_data(pool, tmp_path):
    hostile_pool(pool)
    folder = finish(pool, tmp_path / "run")
    page = write_report(folder).read_text(encoding="utf-8")
    assert len(page.encode()) < 1_500_000  # of 400 rows, one of them a megabyte
    assert page.count("<script") == 2
    assert page.count("</script>") == 2
    assert str(tmp_path) not in page  # where data lie is nobody's business
    data = data_of(page)
    assert any("<script>" in name for name in data["points"]["sources"])
    assert {step["name"]: step["rows"] for step in data["funnel"]}["unusable"] == 2
    assert sum(reason["rows"] for reason in data["reasons"]) == 2  # empty, and half a pair
    pq.read_table(folder / "map.parquet")["text"].to_pylist()


def test_the_page_is_small_however_hostile_the_texts_are():
    widest = "<" * 100_000
    texts = [text.cut(widest, 240)] * 5000 + [text.cut(widest, 700)] * 1200
    assert len(text.to_json(texts)) < 2_200_000
    for value in [*HOSTILE, widest, "a" * 99, "\ud800" * 30, "\U0001f4a9" * 70, ""]:
        for most in (16, 31, 64, 240):
            shown = text.cut(value, most)
            assert text.json_bytes(shown) <= most
            assert text.json_bytes(shown) == len(text.to_json(shown).encode())
            kept = shown.removesuffix(text.ELLIPSIS)
            assert text.clean(value).startswith(kept)
            assert shown != kept or text.clean(value) == shown


def test_a_run_that_has_not_ended_and_one_without_rounds_have_reports(pool, tmp_path):
    with pyids.Selection.open(tmp_path / "run", **pool.options()) as selection:
        before = collect(tmp_path / "run").data
        assert before["rounds"] == []
        assert before["funnel"][-1]["rows"] == 0
        selection.draw()
        assert collect(tmp_path / "run").data["funnel"][-1]["rows"] == 20
    static = tmp_path / "static"
    made = pyids.select("random", {**pool.options(), "output_dir": str(static)})
    data = collect(static).data
    assert data["funnel"][-1]["rows"] == len(made) == 60
    assert data["selection"] == "selected-random.jsonl"
    with pytest.raises(DataError, match="not a run folder"):
        collect(tmp_path)


def test_estimates_from_a_sample_are_those_of_the_pool(pool, tmp_path):
    folder = finish(pool, tmp_path / "run")
    store = Store(folder)
    drawn = sample.draw_pool(store, 0, 80)
    assert len(drawn.row_ids) <= 80
    assert drawn.weights.sum() == pytest.approx(400)
    labels = np.concatenate(store.labels())
    np.testing.assert_allclose(
        np.bincount(drawn.clusters, weights=drawn.weights), np.bincount(labels)
    )
    np.testing.assert_array_equal(labels[drawn.row_ids], drawn.clusters)


def test_the_rows_looked_at_are_not_those_that_the_run_drew(pool, tmp_path, monkeypatch):
    """Keyed by the seed of the run, a sample of the pool would be its selection."""
    folder = finish(pool, tmp_path / "run", budget=80)
    drawn = []
    draw_pool = sample.draw_pool
    monkeypatch.setattr(
        sample,
        "draw_pool",
        lambda store, seed: drawn.append(draw_pool(store, seed, 80)) or drawn[0],
    )
    collect(folder)
    selected = {json.loads(line)["_pyids_id"] for line in (folder / "selected.jsonl").open()}
    # One in five rows is selected, and so of a sample: 16 of 80, at most 3.5 deviations more.
    assert len(selected & set(drawn[0].row_ids.tolist())) < 30


def test_words_that_stand_everywhere_name_nothing():
    found = words.ClusterWords()
    for n in range(60):
        topic = ("apple pear", "iron zinc", "\u6570\u5b66\u95ee\u9898")[n % 3]
        found.add(n % 3, f"please tell me the {topic} " + "spam " * 500 * (n == 0))
    names = found.names(2)
    assert set(names[0]) == {"apple", "pear"}
    assert set(names[1]) == {"iron", "zinc"}
    assert set(names[2]) <= {"\u6570\u5b66", "\u5b66\u95ee", "\u95ee\u9898"}


def test_the_map_is_the_plane_of_the_largest_variance():
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    values = rng.standard_normal((500, 12)) * ([9, 4] + [0.1] * 10) @ turn.T + 5
    points, explained = project(values.astype(np.float32))
    assert explained > 0.99
    # By definition: the eigenvectors of the covariance.
    axes = np.linalg.eigh(np.cov(values.T))[1][:, [-1, -2]]
    for k in range(2):
        assert abs(np.corrcoef(points[:, k], (values @ axes)[:, k])[0, 1]) > 0.9999
    for few in (np.ones((1, 3)), np.ones((5, 3)), np.ones((4, 1))):
        points, _ = project(few.astype(np.float32))
        np.testing.assert_array_equal(points, 0)


def test_histograms_share_bins_and_lose_nothing():
    values = [np.array([1.0, 2, 3, np.nan]), np.arange(100.0), np.array([0.0])]
    found = figures.histogram(values)
    assert [sum(counts) for counts in found["counts"]] == [3, 100, 1]
    few = figures.histogram([np.array([1.0, 5, 5, 2])])  # a bin a value
    assert few["edges"] == [0.5, 1.5, 3.5, 6.5]
    assert few["counts"] == [[1, 1, 2]]
    assert figures.histogram([np.array([4.0, 4])])["edges"] == [3.5, 4.5]
    lengths = figures.histogram([np.array([0.0, 1, 10, 1e6])], log=True)
    assert sum(lengths["counts"][0]) == 4
    assert figures.histogram([np.array([np.nan])]) is None


# ---- status --------------------------------------------------------------------------------------


def test_a_lock_of_the_same_number_on_another_device_is_not_ours(tmp_path, monkeypatch):
    lock = tmp_path / ".lock"
    lock.touch()
    stat = lock.stat()
    major, minor = os.major(stat.st_dev), os.minor(stat.st_dev)
    ours, other = f"{major:02x}:{minor:02x}", f"{major + 1:02x}:{minor:02x}"
    mounted = f"1 2 {major}:{minor} / / rw - ext4 x rw\n"
    for device, mounts, held in [
        (ours, mounted, True),
        (ours, "", True),
        (other, mounted, False),
        (other, "", None),  # the file system tells programs of another device than the kernel
    ]:
        texts = {
            "/proc/locks": f"1: FLOCK  ADVISORY  WRITE 7 {device}:{stat.st_ino} 0 EOF\n",
            "/proc/self/mountinfo": mounts,
        }
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_text", lambda path, texts=texts, **_: texts[str(path)])
            assert is_locked(lock) is held


def test_status_says_what_is_done_and_what_is_next(pool, tmp_path):
    folder = tmp_path / "run"
    with pyids.Selection.open(folder, **pool.options()) as selection:
        selection.draw()
        selection.probes()
        status = status_of(folder)
        assert status.working
        assert status.next_stage.name == "round 1"
        assert "pyids tell" in status.next_stage.note
        selection.tell({int(row): 1.0 * (row % 3) for row in selection.probes()})
        assert status_of(folder).next_stage.name == "round 2"
    assert not is_locked(folder / ".lock")
    assert "give the same command again" in str(status_of(folder))
    finish(pool, folder)
    ended = status_of(folder)
    assert ended.next_stage is None
    assert ended.left_s == 0
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(ended.bytes.values()) == sum(path.stat().st_size for path in files)


def test_the_time_that_is_left_follows_from_the_pace():
    now = time.time()
    read = stages.Stage("read", 1, 1, now - 100, now - 90)
    embed = stages.Stage("embed", 5, 10, now - 50, now - 10)
    assert stages.seconds_left([read, embed], now) == pytest.approx(50)
    done = stages.Stage("round 1", 3, 3, now - 8, now - 4)
    left = stages.Stage("round 2", 0, 3)
    assert stages.seconds_left([read, done, left], now) == pytest.approx(86)
    assert stages.seconds_left([read, left], now) is None


def test_a_clock_that_was_changed_is_no_time_that_a_stage_took():
    now = 1_800_000_000.0
    ends = {"read": now - 9, "embed": now - 4}
    for name, changed in (("read", 5.0), ("embed", 5.0), ("read", now + 1e9), ("embed", now + 1e9)):
        times = ends | {name: changed}
        run = [stages.Stage(n, 3, 3, t - 1, t) for n, t in times.items()]
        run.append(stages.Stage("cluster", 2, 9, now - 3, now - 1))
        spent = dict(stages.seconds_of(run, now))
        assert all(0 <= seconds < 60 for seconds in spent.values()), spent
        assert "cluster" in spent or changed == 5.0
        left = stages.seconds_left(run, now)
        assert left is None or left < 60
        shown = str(Status("run", run, None, left, {"rows": 1}, now))
        assert not re.search(r"\d h\b", shown), shown
    begun = [stages.Stage("embed", 3, 9, now + 1e9, now + 2e9)]
    assert stages.seconds_left(begun, now) is None
    assert "left: not known yet" in str(Status("run", begun, None, None, {"rows": 1}, now))


@pytest.mark.parametrize("option", ["--report", "--no-report"])
def test_a_run_writes_its_report_in_the_end(pool, tmp_path, monkeypatch, option):
    def run(config, callbacks):
        return finish(pool, config.output_path) / "selected.jsonl"

    monkeypatch.setattr("pyids.selection.run", run)
    folder = tmp_path / "run"
    arguments = ["run", str(pool.path), "--budget", "60", "--output-dir", str(folder), option]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert (folder / "report.html").exists() == (option == "--report")
    assert "selected.jsonl" in result.output


def test_the_commands(pool, tmp_path):
    folder = finish(pool, tmp_path / "run")
    made = pyids.select("random", {**pool.options(), "output_dir": str(tmp_path / "static")})
    invoke = CliRunner().invoke
    assert invoke(cli, ["report", str(folder), "--to", str(tmp_path / "a.html")]).exit_code == 0
    assert (tmp_path / "a.html").exists()
    assert (tmp_path / "map.parquet").exists()
    wrong = invoke(cli, ["report", str(tmp_path)])
    assert wrong.exit_code == 2
    assert wrong.output.count("\n") == 1
    shown = invoke(cli, ["status", str(folder)])
    assert "the run has ended" in shown.output
    asked = json.loads(invoke(cli, ["status", str(folder), "--json"]).output)
    assert asked["next"] is None
    page = tmp_path / "compare.html"
    arguments = ["compare", str(folder), str(made.path), "--html", str(page)]
    assert invoke(cli, arguments).exit_code == 0
    data = data_of(page.read_text())
    assert data["kind"] == "comparison"
    assert str(tmp_path) not in page.read_text()
    assert [one["rows"] for one in data["selections"]] == [60, 60]


# ---- in a browser --------------------------------------------------------------------------------


CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def page(tmp_path_factory, make_pool):
    """The report of a run over a pool of hostile texts."""
    folder = tmp_path_factory.mktemp("hostile")
    pool = make_pool(folder, 400)
    hostile_pool(pool)
    return write_report(finish(pool, folder / "run"))


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium, without a screen."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    if not (CHROMIUM and DRIVER):
        pytest.skip("needs Debian's chromium and chromium-driver")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


def show(browser, page, width=1200, height=900, scheme="light"):
    command = browser.execute_cdp_cmd
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    command("Emulation.setDeviceMetricsOverride", metrics)
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    command("Emulation.setEmulatedMedia", {"features": media})
    browser.get_log("performance")
    browser.get(page.as_uri())


def ask(browser, script, *arguments):
    return browser.execute_script(f"return {script}", *arguments)


def test_nothing_is_wrong_nothing_is_asked_for_and_no_text_does_harm(browser, page):
    show(browser, page)
    assert browser.get_log("browser") == []
    events = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    urls = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert urls == [page.as_uri()]
    assert ask(browser, "window.harm") is None
    assert ask(browser, "document.images.length + document.scripts.length") == 2
    # The policy of the page holds: neither scripts nor addresses of others.
    browser.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.harm = 3';"
        "document.body.append(s); document.body.append(new Image());"
        "document.images[0].src = 'http://127.0.0.1:9/x.png'"
    )
    assert ask(browser, "window.harm") is None
    assert "Content Security Policy" in str(browser.get_log("browser"))


def test_hover_click_and_keys_work(browser, page):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    show(browser, page, height=1400)
    canvas = browser.find_element("css selector", "canvas")
    x, y = ask(
        browser, "places[0].map((v, i) => v - [canvas.clientWidth, canvas.clientHeight][i] / 2)"
    )
    ActionChains(browser).move_to_element_with_offset(canvas, round(x), round(y)).perform()
    assert not ask(browser, "tip.hidden")
    row = ask(browser, "P.id[current]")
    assert f"Row {row}," in ask(browser, "tip.textContent")
    ActionChains(browser).click().perform()
    cluster = ask(browser, "P.cluster[current]")
    detail = ask(browser, "detail.textContent")
    assert f"Cluster {cluster}" in detail
    assert f"Row {row}," in detail
    assert "Example: row" in detail
    assert ask(browser, "detail.querySelectorAll('svg path').length") == 1
    # By keys alone.
    browser.execute_script("chosen = null; point(null); canvas.focus()")
    keys = ActionChains(browser)
    keys.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_DOWN).perform()
    reached = ask(browser, "P.cluster[current]")
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    assert f"Cluster {reached}" in ask(browser, "document.activeElement.textContent")
    browser.find_element("css selector", "button[data-cluster]").send_keys(Keys.ENTER)
    assert ask(browser, "document.activeElement.id") == "detail"
    for by in ("source", "round", "weight"):
        browser.execute_script("coloring.value = arguments[0]; paint()", by)
        assert ask(browser, "legend.children.length") > 1
    headers = browser.find_elements("css selector", "#clusters th button")
    headers[2].click()
    sizes = ask(
        browser,
        "[...document.querySelectorAll('#clusters tbody tr')].map(r => +r.cells[2].textContent)",
    )
    assert sizes == sorted(sizes, reverse=True)
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_it_is_readable_on_a_phone_in_light_and_dark(browser, page, width, scheme):
    show(browser, page, width=width, height=800, scheme=scheme)
    assert ask(browser, "document.documentElement.scrollWidth") <= width
    ink, paper = ask(
        browser,
        "['color', 'backgroundColor'].map(p => getComputedStyle(document.body)[p].match(/\\d+/g)"
        ".slice(0, 3).map(Number))",
    )
    assert (sum(ink) > sum(paper)) == (scheme == "dark")
    assert abs(sum(ink) - sum(paper)) > 3 * 150
    drawn = "canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data"
    assert ask(browser, f"{drawn}.filter((v, i) => i % 4 == 3 && v).length") > 500
    assert browser.get_log("browser") == []

"""The documents say what is so: their code runs, their commands are ones, the site builds and reads without a network.

A command of a document is not run here, since it may train for minutes: its config is composed, each key with the first
of the values that it sweeps, and checked against what it would call, which is where a document goes stale. README's
first commands are run by the tests of the commands, the policies and the installation.
"""

import ast
import functools
import http.server
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, RangeSweep

from taugrad import cli
from taugrad.commands import bench as benchmarks
from taugrad.config import resolve

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PLACES = {  # what a reader fills in
    "ESTIMATOR": "reinmax",
    "SEED": "0",
    "DIRECTORY": "somewhere",
    "MODEL/TIME": "cat_vae/then",
    "TIME": "then",
    "OVERRIDE": "seed=0",
    "mypackage.MyEstimator": "taugrad.ReinMax",
    "mypackage.make": "taugrad.rl.envs.bandit.FactoredBandit",
    "...": "",
}


def commands():
    """(document, command) for every line of code that starts one of ours."""
    start = re.compile(r"^(?:    )?((?:PYTHONPATH=\. )?(?:python scripts/(\w+)\.py|taugrad (\w+))\b.*)$", re.MULTILINE)
    for document in DOCUMENTS:
        for line, script, name in start.findall(document.read_text()):
            yield pytest.param(script or name, line, id=f"{document.name}: {line[:100]}")


def first_of(override):
    """An override, or the first value that it sweeps."""
    if not override.is_sweep_override():
        return override.input_line
    swept, name = override.value(), override.get_key_element()
    if isinstance(swept, (IntervalSweep, RangeSweep)):
        return f"{name}={swept.start}"
    return f"{name}={next(override.sweep_string_iterator())}"


@pytest.mark.parametrize(("name", "line"), list(commands()))
def test_a_documents_command_is_one(name, line, monkeypatch):
    for place, filled in PLACES.items():
        line = line.replace(place, filled)
    words = shlex.split(line, comments=True)
    given = words[words.index("taugrad") + 2 :] if "taugrad" in words else words[2:]
    if name == "bench":
        monkeypatch.setattr(sys, "argv", ["bench", *given, "--help"])
        with pytest.raises(SystemExit) as stopped:
            benchmarks.main()
        assert stopped.value.code == 0
    elif not (cli.CONF / f"{name}.yaml").is_file():  # such as compare
        assert (ROOT / "scripts" / f"{name}.py").is_file()
    else:
        if "searchpath" in line:
            monkeypatch.syspath_prepend(ROOT / "examples" / "own_estimator")
        overrides = [o for o in cli._accepting(given, name) if not o.startswith("-") and "searchpath" not in o]
        parsed = OverridesParser.create().parse_overrides(overrides)
        if "searchpath" in line:
            parsed.insert(0, OverridesParser.create().parse_override("hydra.searchpath=[pkg://own.conf]"))
        with initialize_config_dir(str(cli.CONF.resolve()), version_base="1.3"):
            config = compose(name, [first_of(o) for o in parsed], return_hydra_config=True)
        for key in ("run_dir", "out"):  # known when Hydra runs the command
            if key in config and str(config._get_node(key)._value()).startswith("${"):
                config[key] = "somewhere"
        assert resolve(only_ours(config))


def only_ours(config):
    from omegaconf import OmegaConf, open_dict

    with open_dict(config):
        if "pruning" in (config.get("callbacks") or {}):
            del config["callbacks"]["pruning"]  # it refers to the sweep
        del config["hydra"]
    return OmegaConf.create(config)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_python_block_of_a_document_runs(document):
    blocks = re.findall(r"^```python\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE)
    scope = {}
    for block in blocks:
        exec(compile(block, document.name, "exec"), scope)


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if d.parent.name == "docs"], ids=lambda d: d.name)
def test_code_fits_the_width_of_a_page(document):
    code = re.findall(r"^```\w+\n(.*?)^```|^    ([^\n]*)$", document.read_text(), re.DOTALL | re.MULTILINE)
    lines = [line for fenced, indented in code for line in (fenced or indented).splitlines()]
    command = re.compile(r"(PYTHONPATH=\. )?(python|taugrad|pip) ")  # which stays on one line
    assert [line for line in lines if len(line) > 92 and not command.match(line)] == []
    assert [line for line in lines if len(line) > 92 and "  #" in line] == []  # a comment has a line of its own


def test_the_notebook_runs_from_its_first_cell_to_its_last():
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib import pyplot as plt

    cells = json.loads((ROOT / "examples" / "vae.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert "STEPS = 2_000" in code[0]
    scope = {}
    try:
        for cell in code:
            exec(compile(cell.replace("STEPS = 2_000", "STEPS = 20"), "vae.ipynb", "exec"), scope)
        assert len(plt.gcf().axes) == 3
    finally:
        plt.close("all")


NAMED = re.compile(r"(?P<file>\btests/[\w/]+\.py)?(?:::(?P<name>test_\w+)(?P<prefix>\.\.\.)?)?")


def stale(text, tests):
    """Return what a document names of `tests`, names by file, and is not there; `::name` is of the row's last file."""
    lacking = []
    for line in text.splitlines():
        file = None
        for match in NAMED.finditer(line):
            file = match["file"] or file
            if match["file"] and file not in tests:
                lacking.append(file)
            elif (name := match["name"]) is not None:
                names = tests.get(file, ())
                if not any(there == name or (match["prefix"] and there.startswith(name)) for there in names):
                    lacking.append(f"{file}::{name}")
    return lacking


def names_by_file():
    files = {path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / "tests").rglob("*.py")}
    return {file: re.findall(r"^def (test_\w+)", text, re.MULTILINE) for file, text in files.items()}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_test_that_a_document_names_is_there(document):
    assert stale(document.read_text(), names_by_file()) == []


def test_a_stale_name_is_found():
    tests = {"tests/ops/test_a.py": ["test_one_thing", "test_two_things"]}
    assert stale("`tests/ops/test_a.py::test_one_...`, `::test_two_things`; `tests/ops/test_a.py`", tests) == []
    assert stale("`tests/test_a.py`", tests) == ["tests/test_a.py"]
    assert stale("`tests/ops/test_a.py::test_one`", tests) == ["tests/ops/test_a.py::test_one"]
    assert stale("`tests/ops/test_a.py`, `::test_three_...`", tests) == ["tests/ops/test_a.py::test_three_"]
    assert stale("`tests/ops/test_a.py`\n`::test_two_things`", tests) == ["None::test_two_things"]


HEADLESS = ("As", "By", "For", "How", "If", "In", "Of", "That", "What", "When", "Where", "Whether", "Which", "With")


def headless(source):
    """Return the first lines of docstrings that begin with neither a verb nor the head of a noun phrase."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, documented))
    lines = [docstring.splitlines()[0] for docstring in map(ast.get_docstring, nodes) if docstring]
    return [line for line in lines if line.split()[0].strip(",:.") in HEADLESS]


def test_every_docstring_begins_with_a_verb_or_a_noun_phrase():
    files = [file for folder in ("src", "scripts", "docs", "examples") for file in (ROOT / folder).rglob("*.py")]
    assert len(files) > 70
    assert [(str(file), line) for file in files for line in headless(file.read_text())] == []


def test_a_docstring_without_a_head_is_found():
    lines = ["What it reports.", "Return what it reports.", "By default, nothing.", "Whatever."]
    functions = "\n".join(f'    async def f{i}():\n        """{line}"""' for i, line in enumerate(lines))
    source = f'"""Of a module."""\nclass A:\n    """Whether it is one.\n\n    Or none.\n    """\n{functions}'
    found = sorted(headless(source))
    assert found == ["By default, nothing.", "Of a module.", "What it reports.", "Whether it is one."]


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if d.parent.name == "docs"], ids=lambda d: d.name)
def test_every_page_is_in_the_sites_order(document):
    assert f": {document.name}\n" in (ROOT / "mkdocs.yml").read_text()


LIBRARY = (
    *("ops", "schedules", "bounds", "nets", "estimators", "layers"),
    *("distributions", "probe", "circuits", "models", "rl", "data"),
)
KERNELS = ("taugrad.ops.native", "taugrad.ops.triton")  # which only ops knows


def undocumented(pages):
    """Public modules of the library that no page of the reference has."""
    shown = set(re.findall(r"^::: ([\w.]+)$", pages, re.MULTILINE))
    for part in LIBRARY:
        there = ROOT / "src" / "taugrad" / part
        for path in sorted(there.rglob("*.py")) if there.is_dir() else [there.with_suffix(".py")]:
            name = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
            if "._" not in name and not name.startswith(KERNELS) and name not in shown:
                yield name


def test_every_public_module_of_the_library_is_in_the_reference():
    pages = "\n".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    assert list(undocumented(pages)) == []
    assert list(undocumented(pages.replace("::: taugrad.rl.envs.turns\n", ""))) == ["taugrad.rl.envs.turns"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("needs the extra docs")
    directory = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(directory)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return directory


@pytest.mark.system
def test_formulas_and_doctests_are_rendered_at_build_time(site):
    pages = {path.parent.name: path.read_text() for path in site.rglob("index.html")}
    assert len(pages) > 20
    assert pages["course"].count("<math") > 10
    assert 'class="arithmatex"' not in "".join(pages.values())
    assert "<blockquote>" not in pages["schedules"]
    for name, page in pages.items():
        text = re.sub(r"<(pre|code|script|style)\b.*?</\1>|<[^>]*>", "", page, flags=re.DOTALL)
        assert re.findall(r".{0,40}(?:\\[a-zA-Z]+|\$).{0,40}", text) == [], name


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


WIDER = """
const wide = e => e.scrollWidth > e.clientWidth;
return [...document.querySelectorAll("pre, pre > code")].filter(wide).map(e => e.innerText);
"""


@pytest.mark.skipif(shutil.which("chromedriver") is None, reason="needs Chromium and its driver")
@pytest.mark.system
def test_every_page_reads_in_a_browser_narrow_and_wide_and_asks_no_other_host(site):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    handler = functools.partial(Quiet, directory=str(site))
    options = webdriver.ChromeOptions()
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        try:
            address = f"http://127.0.0.1:{server.server_port}/"
            for page in sorted(path.parent.relative_to(site).as_posix() for path in site.rglob("index.html")):
                for width in (1300, 400):  # of the page itself: a window has a least width
                    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
                    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
                    if width == 1300:
                        driver.get(f"{address}{page}/")
                        assert driver.execute_script(WIDER) == [], page
                    assert driver.execute_script("return window.innerWidth") == width
                    wide = driver.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
                    assert wide <= 0, (page, width, wide)
                asked = driver.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
                assert all(name.startswith((address, "data:", "blob:")) for name in asked), (page, asked)
                broken = "return [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
                assert driver.execute_script(broken) == []
            assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []
        finally:
            driver.quit()
            server.shutdown()

"""Do the built pages work in a browser?

browser.py HTML [--pages NAME...] [--pictures FOLDER]: each page that a reader
meets, in a headless Chromium at three widths, light and dark.  A page fails on
a message of level error in the console, a formula that MathJax did not render
or rendered as an error, one of a chapter that a phone cuts off, a drawing that
is missing, markup that shows as text, or content wider than the screen.  Also
drives the page that answers back against what the native program computes,
looks at it without scripts, and types into the search box and expects a
result.  Returns 77, which ctest reports as skipped, where there is no Chromium
or no site.
"""

import argparse
import base64
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

WIDTHS = (1440, 768, 390)
SCHEMES = ("light", "dark")

# What a page says of itself once MathJax is through.
PROBE = """
(async () => {
  const wait = ms => new Promise(done => setTimeout(done, ms));
  for (let i = 0; i < 400; ++i) {
    if (document.readyState === 'complete' && window.MathJax &&
        MathJax.isReady) break;
    await wait(25);
  }
  if (window.MathJax && MathJax.Hub)
    await new Promise(done => MathJax.Hub.Queue(done));
  const contents = document.querySelector('.contents') || document.body;
  const wide = [];
  const edge = document.documentElement.clientWidth;
  for (const e of contents.querySelectorAll('p, pre, table, svg.carve-figure, div.fragment, h1, h2, li')) {
    let scrolls = false;
    for (let p = e; p && p !== contents.parentElement; p = p.parentElement) {
      const style = getComputedStyle(p);
      if (/auto|scroll|hidden/.test(style.overflowX)) scrolls = true;
    }
    const box = e.getBoundingClientRect();
    if (!scrolls && box.width > 0 && box.right > edge + 1)
      wide.push(e.tagName + ' ' + e.textContent.trim().slice(0, 40));
  }
  // Markup that Doxygen did not read as such; code may hold anything.
  const text = contents.cloneNode(true);
  for (const e of text.querySelectorAll('code, pre, tt, script, style, svg, ' +
      'div.fragment, .memproto, .MathJax_Preview')) e.remove();
  const left = text.textContent.match(
      /\\*\\*|<\\/?(tt|b|em|table|tr|td|th|div)\\b[^>]*>|\\]\\(|@ref|\\x60|\\{\\{|\\{#|(?<=\\s)\u2013[a-z]/g);
  const cut = [...document.querySelectorAll('.MathJax_SVG_Display')].filter(
      e => e.scrollWidth > e.clientWidth + 1).map(
      e => e.scrollWidth - e.clientWidth);
  return JSON.stringify({
    left: left || [],
    cut: cut,
    formulas: document.querySelectorAll('.MathJax_SVG').length,
    errors: document.querySelectorAll('.MathJax_Error, .merror').length +
            [...document.querySelectorAll('.MathJax_SVG')].filter(
                e => e.querySelector('[data-mjx-error], .noError')).length,
    raw: /\\\\\\(|\\\\\\[/.test(contents.innerText),
    drawings: document.querySelectorAll('svg.carve-figure').length,
    dark: document.documentElement.classList.contains('dark-mode'),
    overflow: document.documentElement.scrollWidth - edge,
    wide: wide.slice(0, 3)
  });
})()
"""

SEARCH = """
(async () => {
  const wait = ms => new Promise(done => setTimeout(done, ms));
  let field = null;
  for (let i = 0; i < 60 && !field; ++i) {
    await wait(50);
    field = document.getElementById('MSearchField');
  }
  if (!field) return 'no search field';
  field.focus();
  field.value = '%s';
  searchBox.OnSearchFieldChange({keyCode: 0});
  searchBox.Search();
  for (let i = 0; i < 60; ++i) {
    await wait(50);
    const box = document.getElementById('MSearchResults');
    const inner = box && box.contentDocument;
    const found = inner && [...inner.querySelectorAll('.SRResult')].filter(
        e => getComputedStyle(e).display !== 'none');
    if (found && found.length) return 'found ' + found.length;
    const here = [...document.querySelectorAll('#MSearchResults .SRResult')]
        .filter(e => getComputedStyle(e).display !== 'none');
    if (here.length) return 'found ' + here.length;
  }
  return 'nothing found';
})()
"""


# The page that answers back, driven: its first answer, then each control.
ANSWERS = """
(async () => {
  const wait = ms => new Promise(done => setTimeout(done, ms));
  const form = document.getElementById('answers-form');
  for (let i = 0; i < 100 && form && form.hidden; ++i) await wait(50);
  if (!form || form.hidden) return JSON.stringify({alive: false});
  const cell = () =>
      document.querySelectorAll('#answers-numbers td')[1].textContent;
  const seen = {alive: true, shown: [], same: []};
  const turn = (name, value) => {
    const e = form.elements[name];
    if (e.type === 'checkbox') e.checked = value; else e.value = value;
    e.dispatchEvent(new Event('input', {bubbles: true}));
    return document.getElementById('answers-drawing').innerHTML;
  };
  const names = ['family', 'decay', 'alike', 'erase', 'chunk', 'format',
                 'inverse', 'factored', 'cut'];
  for (const choice of %s) {
    choice[4] = Math.log2(choice[4]);
    choice[7] = choice[7] > 0, choice[8] = choice[8] > 0;
    names.forEach((name, i) => turn(name, choice[i]));
    seen.shown.push([parseFloat(cell()), ...JSON.parse(
        document.getElementById('answers-drawing').dataset.errors)]);
  }
  seen.caption = document.getElementById('answers-numbers').innerText
      .includes('scripts');
  for (const [name, value] of Object.entries({family: 0, decay: 0.1, alike: 0.2,
      erase: 1, chunk: 6, format: 2, factored: false, cut: false})) {
    turn(name, value);
  }
  turn('inverse', '0');
  seen.sound = document.getElementById('answers-verdict').textContent;
  for (const [name, value] of [['family', '1'], ['family', '2'],
      ['family', '0'], ['decay', '1.5'], ['alike', '0.9'], ['erase', '1.5'],
      ['chunk', '4'], ['chunk', '6'], ['format', '0'], ['inverse', '1'],
      ['inverse', '2'], ['inverse', '0'], ['cut', true], ['cut', false],
      ['factored', true]]) {
    const before = document.getElementById('answers-drawing').innerHTML;
    if (turn(name, value) === before) seen.same.push(name + ' ' + value);
  }
  seen.spoilt = document.getElementById('answers-verdict').textContent;
  return JSON.stringify(seen);
})()
"""


# The same page where scripts do not run.
STILL = """
JSON.stringify({
  form: document.getElementById('answers-form').offsetHeight > 0,
  drawing: !!document.querySelector('#answers-drawing svg.carve-figure path'),
  caption: document.getElementById('answers-numbers').innerText
      .includes('scripts')
})
"""


class Browser:
    """A Chromium driven over the two pipes of --remote-debugging-pipe."""

    def __init__(self, program):
        self.home = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_read, self.to = os.pipe()
        self.back, to_write = os.pipe()

        def pipes():
            # Chromium reads descriptor 3 and writes 4; either pipe's end may
            # have one of those numbers already.
            ends = os.dup(to_read), os.dup(to_write)
            high = [os.dup2(end, 100 + i) for i, end in enumerate(ends)]
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        self.process = subprocess.Popen(
            [
                program,
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--hide-scrollbars",
                "--allow-file-access-from-files",
                "--remote-debugging-pipe",
                f"--user-data-dir={self.home.name}",
                "about:blank",
            ],
            preexec_fn=pipes,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self.count, self.buffer, self.events = 0, b"", []
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(t for t in targets if t["type"] == "page")
        self.session = None
        self.session = self.call(
            "Target.attachToTarget",
            targetId=page["targetId"],
            flatten=True,
        )["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def receive(self):
        while b"\0" not in self.buffer:
            more = os.read(self.back, 1 << 20)
            if not more:
                raise RuntimeError("the browser has gone")
            self.buffer += more
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def call(self, method, **params):
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if getattr(self, "session", None):
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            reply = self.receive()
            if reply.get("id") == self.count:
                if "error" in reply:
                    raise RuntimeError(f"{method}: {reply['error']}")
                return reply["result"]
            self.events.append(reply)

    def evaluate(self, script):
        result = self.call(
            "Runtime.evaluate",
            expression=script,
            awaitPromise=True,
            returnByValue=True,
        )
        if "exceptionDetails" in result:
            raise RuntimeError(str(result["exceptionDetails"])[:300])
        return result["result"].get("value")

    def open(self, url, width, height, scheme):
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        self.events.clear()
        self.call("Page.navigate", url=url)
        while not any(
            e.get("method") == "Page.loadEventFired" for e in self.events
        ):
            self.events.append(self.receive())

    def complaints(self):
        for e in self.events:
            params = e.get("params", {})
            if e.get("method") == "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                yield str(
                    details.get("exception", {}).get("description")
                    or details.get("text")
                )[:200]
            elif e.get("method") == "Log.entryAdded":
                entry = params["entry"]
                if entry["level"] == "error":
                    yield f"{entry['text']} {entry.get('url', '')}"[:200]
            elif (
                e.get("method") == "Runtime.consoleAPICalled"
                and params["type"] == "error"
            ):
                yield str(params["args"])[:200]

    def picture(self, path, width):
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        tall = self.evaluate(
            "Math.max(document.documentElement.scrollHeight,"
            "(document.getElementById('doc-content')||document.body)"
            ".scrollHeight + 120)"
        )
        height = int(min(max(size["height"], tall), 12000))
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        shot = self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self):
        self.process.terminate()
        self.process.wait()
        self.home.cleanup()


def reader_pages(site):
    """The pages made from Markdown, and the map of the headers."""
    made_of_code = re.compile(
        r".*(_8hpp|_8h|_source|members)\b|(struct|class|namespace|dir_|files|"
        r"annotated|hierarchy|functions|globals|concept|pages|index)"
    )
    return ["index.html", "carve_8hpp.html"] + [
        path.name
        for path in sorted(site.glob("*.html"))
        if not made_of_code.match(path.stem)
    ]


def expected(site, name):
    """Formulas and drawings of the page as Doxygen wrote it."""
    text = (site / name).read_text(encoding="utf-8", errors="replace")
    text = text[text.find('class="contents"') :]
    return text.count(r"\(") + text.count(r"\["), text.count("carve-figure' role")


def drive_answers(browser, site):
    """The page's first number against the native program's, its controls."""
    rows = [
        [float(x) for x in line.split()]
        for line in (site.parent / "made/answers.shown.txt").read_text().splitlines()
    ]
    browser.open(f"file://{site}/answers.html", 1440, 900, "light")
    seen = json.loads(browser.evaluate(ANSWERS % [row[:9] for row in rows]))
    module = (site / "answers_module.js").read_text()
    if not seen["alive"]:
        if len(module) < 100:
            print("answers.html: built without a module, its drawing is fixed")
            return
        yield "answers.html: does not come alive"
        return
    for row, shown in zip(rows, seen["shown"], strict=True):
        # The exact digits are the same; a kernel's sums and exponentials are
        # those of another machine, its error of the same size.
        (exact, *errors), (here, *drawn) = row[9:], shown
        if abs(here - exact) > 1e-13 * abs(exact) or any(
            d is None or not e / 2 < d < e * 2 for e, d in zip(errors, drawn, strict=True)
        ):
            yield f"answers.html: {shown} where the program has {row}"
    if seen["caption"]:
        yield "answers.html: alive, and says that scripts do not run"
    if "is 1.00 times" not in seen["sound"]:
        yield f"answers.html: nothing spoilt: {seen['sound']}"
    for name in seen["same"]:
        yield f"answers.html: {name} changes nothing"
    if "not finite" not in seen["spoilt"]:
        yield f"answers.html: factored decay of 1.5, chunk 64: {seen['spoilt']}"
    for text in browser.complaints():
        yield f"answers.html: console: {text}"
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(f"file://{site}/answers.html", 390, 900, "light")
    browser.call("Emulation.setScriptExecutionDisabled", value=False)
    still = json.loads(browser.evaluate(STILL))
    if still != {"form": False, "drawing": True, "caption": True}:
        yield f"answers.html without scripts: {still}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("site", type=pathlib.Path)
    parser.add_argument("folders", nargs="*", help="not used")
    parser.add_argument("--pages", nargs="*")
    parser.add_argument("--pictures", type=pathlib.Path)
    options = parser.parse_args()
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if not program or not (options.site / "index.html").exists():
        print("skipped: needs Chromium and the built manual (./x docs)")
        sys.exit(77)
    site, failures, looked = options.site.resolve(), [], 0
    names = options.pages or reader_pages(site)
    browser = Browser(program)
    try:
        for name in names:
            formulas, drawings = expected(site, name)
            for width in WIDTHS:
                for scheme in SCHEMES:
                    browser.open(f"file://{site}/{name}", width, 900, scheme)
                    seen = json.loads(browser.evaluate(PROBE))
                    looked += 1
                    where = f"{name} at {width}, {scheme}"
                    for text in browser.complaints():
                        failures.append(f"{where}: console: {text}")
                    if seen["raw"] or seen["formulas"] < formulas:
                        failures.append(
                            f"{where}: {seen['formulas']} of {formulas} "
                            "formulas rendered"
                        )
                    if seen["left"]:
                        failures.append(f"{where}: shows markup: {seen['left'][:3]}")
                    if seen["cut"] and name.startswith(("book_", "md_docs_math")):
                        failures.append(
                            f"{where}: formulas wider than the screen by {seen['cut']}"
                        )
                    if seen["errors"]:
                        failures.append(f"{where}: a formula is an error")
                    if seen["drawings"] != drawings:
                        failures.append(f"{where}: drawings are missing")
                    if seen["dark"] != (scheme == "dark"):
                        failures.append(f"{where}: the scheme is not followed")
                    if seen["overflow"] > 1 or seen["wide"]:
                        failures.append(
                            f"{where}: wider than the screen by "
                            f"{seen['overflow']}: {seen['wide']}"
                        )
                    if options.pictures:
                        options.pictures.mkdir(parents=True, exist_ok=True)
                        stem = name.removesuffix(".html")
                        browser.picture(
                            options.pictures / f"{stem}_{width}_{scheme}.png",
                            width,
                        )
        if "answers.html" in names:
            failures.extend(drive_answers(browser, site))
        for word in ("decay", "inverse_by_blocks"):
            browser.open(f"file://{site}/index.html", 1440, 900, "light")
            found = browser.evaluate(SEARCH % word)
            if not str(found).startswith("found"):
                failures.append(f"search for {word}: {found}")
    finally:
        browser.close()
    for line in failures:
        print(line)
    print(f"{len(names)} pages, {looked} views, {len(failures)} failures")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()

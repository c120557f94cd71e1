#!/usr/bin/env python3
"""Looks at the pages of the documentation, or at any HTML file, as a reader does:

    site_test.py FOLDER                      every page of a site, in a browser
    site_test.py --page FILE [--page FILE]   such files alone; each must need nothing beside it
    site_test.py FOLDER --links              without a browser: whether every link, image and fragment exists, and no
                                             text outside code shows markup
    site_test.py --reports DEVICELOOP        the reports of some runs of that command
    site_test.py --self-test                 whether each check finds a planted fault
    ... --shots NEW_FOLDER                   also keeps a picture of each page, at both widths in both modes

In headless Chromium, at 1280 and 390 px and in light and dark mode, a page must

- write nothing to the console, and load nothing but files and data;
- show every image, none of them empty;
- not be wider than the window, and have no text, image or table that is cut off or sticks out of its box, unless the
  box scrolls;
- have no texts, images or tables on top of each other;
- filter its rows where it has a field for that;
- have texts with a contrast of at least 4.5 to what is behind them (WCAG 2, level AA for small text);
- in SVG, inline or in a file: keep each text within the drawing, off all other texts, and at that contrast.

Each fault is one line: page, width and mode, check, element. Ends with 1 if there are any, with 77 (skipped) where
Chromium, its driver, Selenium or the site is missing; with DEVICELOOP_REQUIRE_BROWSER=1 that is a failure too.
"""

import argparse
import base64
import collections
import html.parser
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.parse

SKIPPED = 77  # as ctest knows it
WIDTHS = (1280, 390)
MODES = ("light", "dark")
HEIGHT = 900
SHOWN = 20  # faults of one page: one mistake makes many
LOCAL = ("file", "data", "about", "blob")
CODE = ("code", "pre", "script", "style", "textarea")
VOID = ("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr")
# What the text of a page has where Markdown or HTML was not understood.
MARKUP = re.compile(r"</?(?:a|br|code|div|em|img|li|p|pre|span|strong|table|td|tr|ul)\b[^<>]*>|&(?:lt|gt|amp|quot|#\d+);|!\[|\]\(|```|\*\*")
Fault = collections.namedtuple("Fault", "page where check element")

# Runs in the page, once for each width and mode: [[check, element], ...], and the SVG files shown, with the colour behind
# each. `layout` is whether positions are to be checked too, which no mode changes.
LOOK = r"""
const {layout, backdrop} = arguments[0];
const faults = [];
const SLACK = 1.5;  // px, of rounding

const describe = element => {
  const name = element.localName + (element.id ? '#' + element.id : '')
      + [...element.classList].map(one => '.' + one).join('');
  const text = (element.getAttribute('src') || element.textContent).replace(/\s+/g, ' ').trim();
  return `<${name}>` + (text ? ` "${text.length > 50 ? text.slice(0, 50) + '...' : text}"` : '');
};
const report = (check, element, detail) => faults.push([check, describe(element) + (detail ? ': ' + detail : '')]);

const styles = new Map();
const style = element => {
  if (!styles.has(element)) styles.set(element, getComputedStyle(element));
  return styles.get(element);
};
const isVisible = element => element.checkVisibility({visibilityProperty: true, opacityProperty: true});

// Colours, as the browser mixes them.
const XHTML = 'http://www.w3.org/1999/xhtml';
const pixel = Object.assign(document.createElementNS(XHTML, 'canvas'), {width: 1, height: 1})
    .getContext('2d', {willReadFrequently: true});
const colours = new Map();
const colour = text => {  // [red, green, blue, alpha]
  if (!colours.has(text)) {
    pixel.clearRect(0, 0, 1, 1);
    pixel.fillStyle = '#000';
    pixel.fillStyle = text;
    pixel.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = pixel.getImageData(0, 0, 1, 1).data;
    colours.set(text, [r, g, b, a / 255]);
  }
  return colours.get(text);
};
const over = (top, bottom) => [0, 1, 2].map(i => top[i] * top[3] + bottom[i] * (1 - top[3])).concat(1);
const luminance = rgb => {
  const [r, g, b] = rgb.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const contrast = (one, other) => {
  const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
};
const paper = () => {  // what the browser paints behind a page without a background
  const probe = document.body.appendChild(document.createElementNS(XHTML, 'div'));
  probe.style.backgroundColor = 'Canvas';
  const result = colour(getComputedStyle(probe).backgroundColor);
  probe.remove();
  return result;
};
const base = backdrop || (document.body ? paper() : [255, 255, 255, 1]);
const behinds = new Map();
const behind = element => {
  if (!element) return base;
  if (!behinds.has(element)) {
    const own = colour(style(element).backgroundColor);
    behinds.set(element, own[3] === 1 ? own : over(own, behind(element.parentElement)));
  }
  return behinds.get(element);
};
const opacity = element => element ? style(element).opacity * opacity(element.parentElement) : 1;
const checkContrast = (element, text, ground) => {
  const [r, g, b, a] = text;
  const ratio = contrast(over([r, g, b, a * opacity(element)], ground), ground);
  if (ratio < 4.5) report('contrast', element, ratio.toFixed(2) + ' of 4.5');
};

// Boxes: {left, top, right, bottom}.
const boxOf = rect => ({left: rect.left, top: rect.top, right: rect.right, bottom: rect.bottom});
const area = box => Math.max(0, box.right - box.left) * Math.max(0, box.bottom - box.top);
const intersection = (a, b) => ({left: Math.max(a.left, b.left), top: Math.max(a.top, b.top),
    right: Math.min(a.right, b.right), bottom: Math.min(a.bottom, b.bottom)});
const rects = new Map();
const boxOfElement = element => {
  if (!rects.has(element)) rects.set(element, boxOf(element.getBoundingClientRect()));
  return rects.get(element);
};
const blockOf = element => {
  while (element.parentElement && ['inline', 'contents'].includes(style(element).display)) element = element.parentElement;
  return element;
};
const root = document.scrollingElement || document.documentElement;
const clips = element => element !== document.body && element !== document.documentElement
    && style(element).overflowX !== 'visible';

// What can be seen of a box, or null; reports what is lost. `element` is named, `from` its first ancestor that may clip.
const seen = (box, element, from) => {
  for (let ancestor = from; ancestor; ancestor = ancestor.parentElement) {
    const frame = boxOfElement(ancestor);
    const {overflowX, overflowY} = style(ancestor);
    const isWider = box.right > frame.right + SLACK || box.left < frame.left - SLACK;
    if (ancestor === from && !clips(ancestor) && isWider && style(ancestor).display !== 'inline' && ancestor !== document.body
        && ancestor !== document.documentElement) {
      report('sticks-out', element, `of <${ancestor.localName}>, to ${Math.round(box.right)} of ${Math.round(frame.right)} px`);
    }
    if (!clips(ancestor)) continue;
    if (isWider && !['auto', 'scroll'].includes(overflowX)) report('cut-off', element, `by ${describe(ancestor)}`);
    if (['hidden', 'clip'].includes(overflowY) && (box.bottom > frame.bottom + 3 || box.top < frame.top - 3)) {
      report('cut-off', element, `by ${describe(ancestor)}`);
    }
    box = intersection(box, frame);
    if (area(box) === 0) return null;
  }
  if (document.body && (box.right > innerWidth + SLACK || box.left < -SLACK)) {
    report('cut-off', element, `by the window, from ${Math.round(box.left)} to ${Math.round(box.right)} px`);
  }
  return box;
};

const texts = [];  // [node, its element] outside of SVG
const walker = document.createTreeWalker(document.body || document.documentElement, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const parent = walker.currentNode.parentElement;
  if (!/\S/.test(walker.currentNode.data) || parent.closest('svg, script, style, noscript, template, option')) continue;
  if (isVisible(parent)) texts.push([walker.currentNode, parent]);
}
const drawings = [...document.querySelectorAll('svg')].filter(svg => !svg.parentElement || !svg.parentElement.closest('svg'))
    .filter(isVisible);
const pictures = [...document.querySelectorAll('img, object, iframe, embed, video, canvas')].filter(isVisible);

// Contrast of texts.
for (const element of new Set(texts.map(([, parent]) => parent))) {
  checkContrast(element, colour(style(element).color), behind(element));
}

// SVG. What is behind a text is what was painted before it.
for (const svg of drawings) {
  const lettering = [...svg.querySelectorAll('text')].filter(isVisible).filter(text => text.getBBox().width > 0);
  const shapes = [...svg.querySelectorAll('rect, circle, ellipse, path, polygon')].filter(isVisible)
      .filter(shape => !shape.closest('defs, clipPath, mask, marker, pattern, symbol') && style(shape).fill.startsWith('rgb'));
  for (const text of lettering) {
    const box = text.getBoundingClientRect();
    const centre = new DOMPoint((box.left + box.right) / 2, (box.top + box.bottom) / 2);
    let ground = behind(svg);
    for (const shape of shapes) {
      if (!(shape.compareDocumentPosition(text) & Node.DOCUMENT_POSITION_FOLLOWING)) continue;
      if (!shape.isPointInFill(centre.matrixTransform(shape.getScreenCTM().inverse()))) continue;
      const [r, g, b, a] = colour(style(shape).fill);
      ground = over([r, g, b, a * style(shape).fillOpacity * style(shape).opacity], ground);
    }
    for (const part of [text, ...text.querySelectorAll('tspan')]) {
      if (![...part.childNodes].some(node => node.nodeType === 3 && /\S/.test(node.data))) continue;
      const [r, g, b, a] = colour(style(part).fill);
      checkContrast(part, [r, g, b, a * style(part).fillOpacity], ground);
    }
  }
  if (!layout) continue;
  let frame = boxOf(svg.getBoundingClientRect());
  const view = svg.viewBox.baseVal;
  if (view && view.width > 0) {
    const matrix = svg.getScreenCTM();
    const [from, to] = [new DOMPoint(view.x, view.y), new DOMPoint(view.x + view.width, view.y + view.height)]
        .map(point => point.matrixTransform(matrix));
    frame = {left: from.x, top: from.y, right: to.x, bottom: to.y};
  }
  // A box of a text has room for accents and descenders.
  const boxes = lettering.map(text => {
    const {left, top, right, bottom} = text.getBoundingClientRect();
    const [x, y] = [Math.min(2, 0.15 * (right - left)), Math.min(4, 0.2 * (bottom - top))];
    return {left: left + x, top: top + y, right: right - x, bottom: bottom - y};
  });
  lettering.forEach((text, i) => {
    const box = boxes[i];
    if (box.left < frame.left || box.right > frame.right || box.top < frame.top || box.bottom > frame.bottom) {
      report('svg-outside', text);
    }
    lettering.slice(0, i).forEach((other, j) => {
      if (area(intersection(box, boxes[j])) > 2) report('svg-overlap', text, `on ${describe(other)}`);
    });
  });
}

if (layout) {
  if (root.scrollWidth > innerWidth) report('page-width', root, `${root.scrollWidth} px in a window of ${innerWidth} px`);

  for (const picture of pictures) {
    const {width, height} = picture.getBoundingClientRect();
    if (width < 1 || height < 1) report('image', picture, `is ${width} x ${height} px`);
    if (picture.localName === 'img' && !(picture.complete && picture.naturalWidth > 0)) report('image', picture, 'is not shown');
  }

  // One box for each line of each block, and one for each picture and table.
  const items = [];
  const lines = new Map();
  for (const [node, parent] of texts) {
    const block = blockOf(parent);
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const rect of range.getClientRects()) {
      if (rect.width <= 1 || rect.height <= 1) continue;
      const box = seen(boxOf(rect), parent, block);
      if (!box) continue;
      const shrink = 0.2 * (rect.bottom - rect.top);  // the glyphs need less than the box
      const line = {left: box.left, top: box.top + shrink, right: box.right, bottom: box.bottom - shrink};
      if (!lines.has(block)) lines.set(block, []);
      const known = lines.get(block).find(other => Math.min(other.bottom, line.bottom) - Math.max(other.top, line.top)
          > 0.5 * Math.min(other.bottom - other.top, line.bottom - line.top));
      if (known) {
        Object.assign(known, {left: Math.min(known.left, line.left), right: Math.max(known.right, line.right),
            top: Math.min(known.top, line.top), bottom: Math.max(known.bottom, line.bottom)});
      } else {
        lines.get(block).push(line);
      }
    }
  }
  for (const [block, boxes] of lines) for (const box of boxes) items.push([block, box]);
  for (const element of [...pictures, ...drawings, ...document.querySelectorAll('table, input, button, select, textarea')]) {
    if (!isVisible(element) || !document.body) continue;
    const box = seen(boxOfElement(element), element, blockOf(element.parentElement));
    if (box && element.localName !== 'table') items.push([element, box]);
  }
  items.sort((a, b) => a[1].top - b[1].top);
  const pairs = new Set();
  items.forEach(([element, box], i) => {
    for (let j = i + 1; j < items.length && items[j][1].top < box.bottom - 2; ++j) {
      const [other, otherBox] = items[j];
      const common = intersection(box, otherBox);
      if (common.right - common.left <= 2 || common.bottom - common.top <= 2) continue;
      if (element.contains(other) || other.contains(element)) continue;
      const pair = describe(other) + describe(element);
      if (!pairs.has(pair)) report('overlap', other, `on ${describe(element)}`);
      pairs.add(pair);
    }
  });
}

const figures = pictures.filter(picture => /\.svg$/.test(picture.currentSrc || picture.data || ''))
    .map(picture => [picture.currentSrc || picture.data, behind(picture)]);
return {faults, figures};
"""


class Missing(Exception):
    """What the checks need and is not here, in one sentence."""


class Browser:
    """One Chromium, with a temporary profile, for all pages."""

    def __init__(self):
        try:
            from selenium import webdriver
            from selenium.common.exceptions import WebDriverException
            from selenium.webdriver.chrome.service import Service
        except ImportError:
            raise Missing(f"{sys.executable} has no Selenium (Debian: python3-selenium)") from None
        driver = shutil.which("chromedriver")
        browser = shutil.which("chromium") or shutil.which("google-chrome")
        if not driver or not browser:
            raise Missing("no chromium or no chromedriver in PATH (Debian: chromium, chromium-driver)")
        self.profile = tempfile.TemporaryDirectory()
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        for argument in ("--headless=new", "--disable-gpu", "--no-sandbox", "--hide-scrollbars", "--no-first-run",
                         "--disable-extensions", "--disable-background-networking", "--disable-component-update",
                         "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND",
                         f"--user-data-dir={self.profile.name}"):  # fmt: skip
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        try:  # with its path, Selenium looks for no driver elsewhere; the argument's name depends on the version
            service = Service(driver, log_output=os.devnull)
        except TypeError:
            service = Service(driver, log_path=os.devnull)
        try:
            self.driver = webdriver.Chrome(service=service, options=options)
        except WebDriverException as error:
            raise Missing(f"{browser} does not start by {driver}: {error.msg}") from None
        self.driver.set_page_load_timeout(60)
        self.driver.set_script_timeout(60)

    def close(self):
        self.driver.quit()
        self.profile.cleanup()

    def show(self, width: int, mode: str) -> None:
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                                    {"width": width, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False})  # fmt: skip
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia",
                                    {"features": [{"name": "prefers-color-scheme", "value": mode}]})  # fmt: skip

    def open(self, url: str) -> None:
        for log in ("browser", "performance"):
            self.driver.get_log(log)
        self.driver.get(url)
        self.driver.execute_async_script("""
            const images = [...document.querySelectorAll('img')], done = arguments[0];
            for (const image of images) image.loading = 'eager';
            Promise.allSettled(images.map(image => image.decode())).then(() => done());""")  # fmt: skip

    def messages(self) -> "list[tuple[str, str]]":
        """What the page has said and loaded since it was opened: [(check, what)]."""
        found = [("console", entry["message"]) for entry in self.driver.get_log("browser")
                 if entry["level"] in ("SEVERE", "WARNING")]  # fmt: skip
        requests = {}
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            parameters = message["params"]
            if message["method"] == "Network.requestWillBeSent":
                url = parameters["request"]["url"]
                requests[parameters["requestId"]] = url
                if urllib.parse.urlsplit(url).scheme not in LOCAL:
                    found.append(("request", f"{url} is not of this machine"))
            elif message["method"] == "Network.loadingFailed" and not parameters.get("canceled"):
                found.append(("request", f'{requests.get(parameters["requestId"], "?")}: {parameters["errorText"]}'))
        return found

    def look(self, layout: bool, backdrop: "list[float] | None" = None) -> dict:
        return self.driver.execute_script(LOOK, {"layout": layout, "backdrop": backdrop})

    def filter(self) -> "list[tuple[str, str]]":
        """Whether a page's search field leaves the rows that have what is typed."""
        fields = self.driver.find_elements("css selector", "input[type=search]")
        if not fields:
            return []
        rows = "[...document.querySelectorAll('tbody tr')].filter(row => row.checkVisibility()).map(row => row.textContent)"
        before = self.driver.execute_script(f"return {rows}")
        word = before[-1].split()[0] if before else "x"
        fields[0].send_keys(word.upper())
        after = self.driver.execute_script(f"return {rows}")
        fields[0].clear()
        expected = [row for row in before if word.lower() in row.lower()]
        if after == expected and 0 < len(after) < len(before):
            return []
        return [("filter", f"{word!r} leaves {len(after)} of {len(before)} rows instead of {len(expected)}")]

    def picture(self, path: pathlib.Path) -> None:
        size = self.driver.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 3000), "scale": 1}
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
        path.write_bytes(base64.b64decode(shot["data"]))


def check_pages(browser: Browser, pages: "list[pathlib.Path]", shots: "pathlib.Path | None" = None) -> "list[Fault]":
    faults = []
    figures: "dict[str, dict[str, list]]" = {}  # colour behind each SVG file, by mode
    for page in pages:
        browser.show(WIDTHS[0], MODES[0])
        browser.open(page.as_uri())
        for width in WIDTHS:
            for mode in MODES:
                browser.show(width, mode)
                seen = browser.look(layout=mode == MODES[0])
                faults += [Fault(page.name, f"{width} px, {mode}", *fault) for fault in seen["faults"]]
                for url, behind in seen["figures"]:
                    figures.setdefault(url, {})[mode] = behind
                if shots:
                    browser.picture(shots / f"{page.stem}-{width}-{mode}.png")
        faults += [Fault(page.name, "any width", *message) for message in browser.filter() + browser.messages()]
    for url, behinds in figures.items():
        browser.open(url)
        for mode, behind in behinds.items():
            browser.show(WIDTHS[0], mode)
            seen = browser.look(layout=mode == MODES[0], backdrop=behind)
            faults += [Fault(pathlib.PurePosixPath(url).name, mode, *fault) for fault in seen["faults"]]
        faults += [Fault(pathlib.PurePosixPath(url).name, "any mode", *message) for message in browser.messages()]
    return faults


class Links(html.parser.HTMLParser):
    """What a page has and what it names."""

    def __init__(self, page: pathlib.Path):
        super().__init__()
        self.ids: "collections.Counter[str]" = collections.Counter()
        self.links: "list[tuple[str, str]]" = []  # element, where to
        self.loads: "list[tuple[str, str]]" = []
        self.title = ""
        self.open = ""
        self.code: "list[str]" = []  # the elements around, from one with code on
        self.markup: "list[str]" = []  # shown as text outside code
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: "list[tuple[str, str | None]]") -> None:
        known = {name: value or "" for name, value in attributes}
        self.open = tag
        if tag not in VOID and (self.code or tag in CODE or known.get("class") in ("line", "memItemRight")):
            self.code.append(tag)
        names = {known[name] for name in ("id", "name") if known.get(name) and (name == "id" or tag == "a")}
        self.ids.update(names)
        for name in ("href", "xlink:href", "src", "data", "poster"):
            if name not in known:
                continue
            if tag in ("a", "area") and name == "href":
                self.links.append((f"<{tag} {name}>", known[name]))
            elif not (tag == "use" and known[name].startswith("#")):
                self.loads.append((f"<{tag} {name}>", known[name]))
        for one in known.get("srcset", "").split(","):
            if one.strip():
                self.loads.append((f"<{tag} srcset>", one.split()[0]))
        self.loads += [(f"<{tag} style>", url) for url in urls_of_css(known.get("style", ""))]

    def handle_data(self, data: str) -> None:
        if self.open == "title":
            self.title += data
        if self.open == "style":
            self.loads += [("<style>", url) for url in urls_of_css(data)]
        if not self.code:
            self.markup += [found[0] for found in MARKUP.finditer(data)]

    def handle_endtag(self, tag: str) -> None:
        self.open = ""
        if tag in self.code:
            while self.code.pop() != tag:
                pass


def urls_of_css(text: str) -> "list[str]":
    return re.findall(r"""url\(\s*["']?([^"')]+)""", text) + re.findall(r"""@import\s+["']([^"']+)""", text)


def check_links(site: pathlib.Path) -> "list[Fault]":
    faults: "list[Fault]" = []
    pages = {path: Links(path) for path in sorted(site.rglob("*.html"))}
    linked = {site / "index.html"}

    def check(page: pathlib.Path, element: str, target: str, is_loaded: bool) -> None:
        def fault(what: str, why: str) -> None:
            faults.append(Fault(str(page.relative_to(site)), "links", what, f"{element} to {target!r}: {why}"))

        parts = urllib.parse.urlsplit(target)
        if parts.scheme == "data" and is_loaded:
            return
        if parts.scheme or parts.netloc:
            if is_loaded or parts.scheme not in ("http", "https", "mailto"):
                fault("foreign", "not of the site")
            return
        path = page if not parts.path else pathlib.Path(os.path.normpath(page.parent / urllib.parse.unquote(parts.path)))
        if not path.is_file() or site not in path.parents:
            fault("dead-link", "no such file in the site")
            return
        if not is_loaded and path != page:
            linked.add(path)
        fragment = urllib.parse.unquote(parts.fragment)
        if fragment and path in pages and not pages[path].ids[fragment]:
            fault("dead-fragment", "no such place in that page")

    for page, links in pages.items():
        name = str(page.relative_to(site))
        for element, target in links.links:
            check(page, element, target, is_loaded=False)
        for element, target in links.loads:
            check(page, element, target, is_loaded=True)
        faults += [Fault(name, "links", "repeated-id", one) for one, count in links.ids.items() if count > 1]
        faults += [Fault(name, "links", "markup", f"{one!r} is shown as text") for one in links.markup]
        if not links.title.strip():
            faults.append(Fault(name, "links", "title", "the page has none"))
    for sheet in sorted(site.rglob("*.css")):
        for url in urls_of_css(sheet.read_text(encoding="utf-8")):
            check(sheet, "url()", url, is_loaded=True)
    faults += [Fault(str(page.relative_to(site)), "links", "unreachable", "no page links to it")
               for page in pages if page not in linked]  # fmt: skip
    return faults


# Pages with one fault each, {check: [(where, part of the element's description, body), ...]}, and what is no fault.
SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 200 100" width="200" height="100">{}</svg>'
PIXEL = "data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'></svg>"
GOOD_SVG = SVG.format('<style>text { fill: #111; font: 12px sans-serif } @media (prefers-color-scheme: dark) { text { fill: #eee } }'
                      '</style><rect width="90" height="30" fill="#222"/><text x="5" y="18" style="fill: #fff">white</text>'
                      '<text x="100" y="60">below</text><text x="100" y="76">lower</text>'
                      '<text transform="translate(20 90) rotate(-90)">turned</text>')  # fmt: skip
PLANTED = {
    "console": [("any width", "planted", "<script>console.warn('planted')</script>"),
                ("any width", "absent is not defined", "<script>absent()</script>")],
    "request": [("any width", "http://example.invalid/a.png is not", '<img alt="" width="9" height="9" src="http://example.invalid/a.png">'),
                ("any width", "https://example.invalid/a.css is not", '<style>@import "https://example.invalid/a.css";</style>'),
                ("any mode", "http://example.invalid/b.png", ('figure.svg', SVG.format('<image href="http://example.invalid/b.png"/>'))),
                ("any width", "absent.svg", '<object data="absent.svg" type="image/svg+xml" width="9" height="9"></object>')],
    "image": [("1280 px, light", "absent.png", '<img alt="" width="9" height="9" src="absent.png">'),
              ("390 px, light", "empty", f'<img id="empty" alt="" style="width: 0" src="{PIXEL}">')],
    "filter": [("any width", "'b' leaves 2 of 2", '<input type="search"><table><tbody><tr><td>a<tr><td>b</table>')],
    "page-width": [("390 px, light", "html", '<div style="width: 600px">wide</div>')],
    "cut-off": [("390 px, light", "<p>", '<div style="overflow: hidden"><p style="width: 500px">one two three four five six '
                 'seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen</p></div>'),
                ("1280 px, light", "<p>", '<div style="height: 1em; overflow: hidden"><p style="margin: 0">one<br>two</p></div>'),
                ("1280 px, light", "<p>", '<p style="margin-left: -20px">left of the window</p>'),
                ("390 px, light", "<table>", '<div style="overflow: hidden"><table style="width: 600px"><tr><td>a</table></div>')],
    "sticks-out": [("1280 px, light", "<p>", '<p style="width: 50px; white-space: nowrap">much longer than fifty pixels</p>'),
                   ("1280 px, light", "<img", f'<div style="width: 50px"><img alt="" width="80" height="9" src="{PIXEL}"></div>'),
                   ("390 px, light", "<input", '<div style="width: 90px"><label>x <input style="width: 90px; margin: 9px"></label></div>')],
    "overlap": [("1280 px, light", "lower", '<p>upper, upper</p><p style="margin-top: -28px">lower, lower</p>'),
                ("1280 px, light", "<img", f'<img alt="" src="{PIXEL}" width="90" height="40" style="position: absolute"><p>text under it</p>'),
                ("390 px, light", "second", '<style>@media (max-width: 400px) { #s { margin-top: -30px } }</style>'
                 '<pre>first first</pre><pre id="s">second second</pre>')],
    "contrast": [("1280 px, light", "2.85", '<p style="color: #999">grey</p>'),
                 ("1280 px, dark", "dim", '<style>@media (prefers-color-scheme: dark) { p { background: #333 } }</style>'
                  '<p style="color: #222">dim</p>'),
                 ("390 px, light", "faint", '<p style="opacity: 0.4">faint</p>'),
                 ("1280 px, light", "<text>", SVG.format('<rect width="99" height="40" fill="#444"/><text x="5" y="20">a</text>')),
                 ("dark", "<text>", ('figure.svg', SVG.format('<text x="5" y="20">black in dark mode too</text>')))],
    "svg-outside": [("1280 px, light", "too far", SVG.format('<text x="180" y="50">too far to the right</text>')),
                    ("light", "too low", ('figure.svg', SVG.format('<text x="5" y="108">too low</text>')))],
    "svg-overlap": [("1280 px, light", "two", SVG.format('<text x="5" y="50">one one</text><text x="25" y="55">two two</text>'))],
}  # fmt: skip
SOUND = [
    '<div style="overflow-x: auto"><p style="width: 900px; margin: 0">scrolls in itself, as wide code and tables do: it is no fault</p></div>',
    f'<img alt="" src="{PIXEL}" width="90" height="40" style="float: right"><p>text beside a picture, in more lines than one: {"word " * 90}</p>',
    '<p>white on a dark box: <span style="background: #222; color: #fff">text</span></p><p hidden style="color: #eee">hidden</p>',
    '<table><tr><td>one<td>two<tr><td colspan="2">three</table><ul><li>a<ul><li>b</ul></ul>',
    GOOD_SVG,
    ("figure.svg", GOOD_SVG),
]
HEAD = ('<!DOCTYPE html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        '<title>a page</title><link rel="icon" href="data:,"><style>:root { color-scheme: light dark }</style><body>')  # fmt: skip
PLANTED_LINKS = {
    "dead-link": '<a href="absent.html">x</a>',
    "dead-fragment": '<a href="other.html#absent">x</a>',
    "foreign": '<script src="https://example.invalid/x.js"></script>',
    "markup": '<p>&lt;img src="x.svg"&gt;</p>',
    "repeated-id": '<p id="a"><p id="a">',
    "title": "<title></title>",
    "unreachable": None,
}


def self_test() -> int:
    """Each planted fault must be found where it is, and nothing where there is none."""
    mistakes = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)

        def write(page: str, body) -> pathlib.Path:
            if isinstance(body, tuple):
                figure = f"{pathlib.Path(page).stem}-{body[0]}"
                (folder / figure).write_text(body[1])
                body = f'<img alt="" width="200" height="100" src="{figure}">'
            path = folder / page
            path.write_text(HEAD + body)
            return path

        planted = {}
        for check, cases in PLANTED.items():
            for number, (where, element, body) in enumerate(cases):
                planted[write(f"{check}-{number}.html", body)] = (check, where, element)
        sound = [write(f"sound-{number}.html", body) for number, body in enumerate(SOUND)]
        browser = Browser()
        try:
            for page, (check, where, element) in planted.items():
                found = check_pages(browser, [page])
                if not any(fault.check == check and fault.where == where and element in fault.element for fault in found):
                    mistakes.append(f"{page.name}: no {check} at {where} of {element}, but {found}")
            mistakes += [f"found where there is none: {fault}" for fault in check_pages(browser, sound)]
        finally:
            browser.close()

    for check, body in PLANTED_LINKS.items():
        with tempfile.TemporaryDirectory() as name:
            site = pathlib.Path(name).resolve()
            (site / "other.html").write_text('<title>other</title><p id="here">')
            page = '<title>a page</title>' if check != "title" else ""
            page += '<a href="other.html#here">x</a>' if check != "unreachable" else ""
            (site / "index.html").write_text(page + (body or ""))
            found = [fault.check for fault in check_links(site)]
            if found != [check]:
                mistakes.append(f"links: {found} instead of {check}")
    for mistake in mistakes:
        print(mistake)
    count = sum(map(len, PLANTED.values())) + len(PLANTED_LINKS)
    print(f"{count} planted faults, {len(mistakes)} mistakes")
    return 1 if mistakes else 0


def reports(command: pathlib.Path, folder: pathlib.Path) -> "list[pathlib.Path]":
    """The starting case, a run with batches and validation, one that diverges, one without steps, and hostile names."""
    hostile = """<img src=x onerror=alert(1)>&"'$(x).csv"""
    digits = ("--layers", "784,128,10", "--bias", "--init", "he", "--loss", "cross-entropy", "--reduction", "mean",
              "--optimizer", "adam", "--lr", "1e-3", "--batch-size", "64", "--epochs", "12")  # fmt: skip
    runs = {
        "start": (0, ()),
        "digits": (0, ("--data", "digits.npz", "--validate-fraction", "0.1", "--keep", "best", *digits)),
        "diverged": (1, ("--lr", "1", "--save", "w.safetensors")),
        "no-steps": (0, ("--steps", "0")),
        "hostile": (0, ("--data", hostile, "--targets", "y", "--layers", "10,64,64,64,64,64,64,2,1", "--steps", "1")),
    }
    subprocess.run([command, "data", "--task", "digits", "--samples", "2000", "--data", "digits.npz"], cwd=folder,
                   check=True, stdout=subprocess.DEVNULL)  # fmt: skip
    subprocess.run([command, "data", "--task", "friedman", "--samples", "50", "--data", hostile], cwd=folder,
                   check=True, stdout=subprocess.DEVNULL)  # fmt: skip
    for name, (status, options) in runs.items():
        done = subprocess.run([command, "train", "--report", f"{name}.html", "--quiet", *options], cwd=folder,
                              stderr=subprocess.PIPE, text=True)  # fmt: skip
        if done.returncode != status:
            sys.exit(f"the run {name} ended with {done.returncode}, not {status}: {done.stderr}")
    return [folder / f"{name}.html" for name in runs]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=pathlib.Path)
    parser.add_argument("--page", action="append", type=pathlib.Path, default=[])
    parser.add_argument("--reports", type=pathlib.Path)
    parser.add_argument("--links", action="store_true")
    parser.add_argument("--shots", type=pathlib.Path)
    parser.add_argument("--self-test", action="store_true")
    arguments = parser.parse_args()
    if arguments.self_test:
        return self_test()
    if arguments.reports:
        with tempfile.TemporaryDirectory(prefix="deviceloop-reports-") as folder:
            return look(reports(arguments.reports.resolve(), pathlib.Path(folder)), arguments.shots)
    if not arguments.folder and not arguments.page:
        parser.error("neither a folder nor a page is named")
    pages = [page.resolve() for page in arguments.page]
    for page in pages:
        if not page.is_file():
            parser.error(f"there is no file {page}")
    if arguments.folder:
        site = arguments.folder.resolve()
        if not (site / "index.html").is_file():
            raise Missing(f"{arguments.folder} has no index.html: build the target deviceloop_docs")
        pages += sorted(site.rglob("*.html"))
        if arguments.links:
            return told(check_links(site), len(pages))
    return look(pages, arguments.shots)


def look(pages: "list[pathlib.Path]", shots: "pathlib.Path | None") -> int:
    if shots:
        if shots.exists():
            sys.exit(f"{shots} exists")
        shots.mkdir(parents=True)
    browser = Browser()
    try:
        return told(check_pages(browser, pages, shots), len(pages))
    finally:
        browser.close()


def told(faults: "list[Fault]", pages: int) -> int:
    """Prints the faults; the exit code."""
    shown: "collections.Counter[str]" = collections.Counter()
    for fault in faults:
        shown[fault.page] += 1
        if shown[fault.page] <= SHOWN:
            print(f"{fault.page}: {fault.where}: {fault.check}: {fault.element}")
    for page, count in shown.items():
        if count > SHOWN:
            print(f"{page}: and {count - SHOWN} more")
    print(f"{pages} pages, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Missing as missing:
        print(missing)
        sys.exit(1 if os.environ.get("DEVICELOOP_REQUIRE_BROWSER") == "1" else SKIPPED)

// The page that answers back: reads the controls, runs the library's headers
// (answersModule, WebAssembly) and draws.  Without them the fixed drawing stays.
(async () => {
  "use strict";
  const form = document.getElementById("answers-form");
  const place = document.getElementById("answers-drawing");
  if (!form || !place || typeof WebAssembly === "undefined" ||
      typeof answersModule === "undefined" || !answersModule) return;

  const bytes = Uint8Array.from(atob(answersModule), c => c.charCodeAt(0));
  const stop = name => () => { throw new Error(`the module asked for ${name}`); };
  const compiled = await WebAssembly.compile(bytes);
  const imports = {};
  for (const { module, name } of WebAssembly.Module.imports(compiled)) {
    (imports[module] ??= {})[name] = stop(name);
  }
  const { exports } = await WebAssembly.instantiate(compiled, imports);
  if (exports._initialize) exports._initialize();
  form.hidden = false;
  const style = place.querySelector("style");
  const rules = style ? style.outerHTML : "";

  const N = 128, left = 52, top = 28, width = 412, height = 220;
  const low = -8, high = 4;  // powers of ten on the axis
  const px = t => left + width * t / (N - 1);
  const py = v => {
    const e = Math.min(high, Math.max(low, Math.log10(Math.max(v, 1e-30))));
    return top + height * (high - e) / (high - low);
  };
  const curve = (values, style) => {
    let d = "", pen = false;
    values.forEach((v, t) => {
      if (!Number.isFinite(v)) { pen = false; return; }
      d += `${pen ? "L" : "M"}${px(t).toFixed(1)},${py(v).toFixed(1)}`;
      pen = true;
    });
    return `<path d="${d}" class="${style}"/>`;
  };
  const rms = x => Math.sqrt(x.reduce((s, v) => s + v * v, 0) / N);
  const lastFinite = values => values.every(Number.isFinite);

  const draw = () => {
    const value = name => Number(form.elements[name].value);
    const chunk = 2 ** value("chunk");
    for (const name of ["decay", "alike", "erase"]) {
      document.getElementById(`answers-${name}`).textContent =
        value(name).toFixed(2);
    }
    document.getElementById("answers-chunk").textContent = chunk;
    const at = exports.run(
      value("family"), value("decay"), value("alike"), value("erase"), chunk,
      value("format"), value("inverse"), Number(form.elements.factored.checked),
      Number(form.elements.cut.checked));
    const all = new Float64Array(exports.memory.buffer, at, 3 * N + 4);
    const sound = [...all.slice(0, N)], chosen = [...all.slice(N, 2 * N)];
    const size = [...all.slice(2 * N, 3 * N)];
    let svg = `<svg xmlns="http://www.w3.org/2000/svg" class="carve-figure" ` +
      `role="img" viewBox="0 0 480 330" style="max-width:576px">` +
      `<title>Relative error of two kernels over the tokens</title>${rules}`;
    for (let e = low; e <= high; e += 2) {
      const y = py(10 ** e);
      svg += `<line x1="${left}" y1="${y}" x2="${left + width}" y2="${y}" ` +
        `class="faint hair"/><text x="${left - 6}" y="${y + 4}" ` +
        `text-anchor="end" class="faint-label">1e${e}</text>`;
    }
    for (let t = 0; t <= N; t += 32) {
      svg += `<text x="${px(Math.min(t, N - 1))}" y="${top + height + 18}" ` +
        `text-anchor="middle" class="faint-label">${t}</text>`;
    }
    for (let t = chunk; t < N && chunk > 4; t += chunk) {
      svg += `<line x1="${px(t)}" y1="${top}" x2="${px(t)}" ` +
        `y2="${top + height}" class="faint hair dash"/>`;
    }
    svg += `<text x="4" y="14" class="faint-label">error of the output, ` +
      `relative, token by token</text>` +
      curve(size, "s6 dash") + curve(sound, "s1") + curve(chosen, "s2") +
      `<line x1="60" y1="284" x2="82" y2="284" class="s1"/>` +
      `<text x="88" y="288">sound kernel</text>` +
      `<line x1="190" y1="284" x2="212" y2="284" class="s2"/>` +
      `<text x="218" y="288">your kernel</text>` +
      `<line x1="310" y1="284" x2="332" y2="284" class="s6 dash"/>` +
      `<text x="338" y="288">norm of the state</text></svg>`;
    place.innerHTML = svg;
    // For those who drive the page: what is drawn.
    place.dataset.errors = JSON.stringify([rms(sound), rms(chosen)]);

    const [exact, rest, bySound, byChosen] = all.slice(3 * N);
    const ratio = rms(chosen) / rms(sound);
    document.getElementById("answers-numbers").innerHTML =
      `<table class="markdownTable"><tr><th>first output of the last token</th>` +
      `<th></th></tr>` +
      `<tr><td>exact</td><td>${exact.toPrecision(16)} ` +
      `${rest < 0 ? "−" : "+"} ${Math.abs(rest).toExponential(8)}</td></tr>` +
      `<tr><td>sound kernel</td><td>${bySound.toPrecision(9)}</td></tr>` +
      `<tr><td>your kernel</td><td>${byChosen.toPrecision(9)}</td></tr></table>` +
      `<p id="answers-verdict">` + (lastFinite(chosen)
        ? `Your kernel's error is ${ratio.toPrecision(3)} times that of a ` +
          `sound one${ratio > 1.5 ? ": more than its formats explain" : ""}.`
        : `Your kernel's output is not finite.`) + `</p>`;
  };
  form.addEventListener("input", draw);
  draw();
})();

"use strict";

// --- What is said of the thing that a reader points at ------------------------------------------

const tip = document.getElementById("tip");

function showTip(text, x, y) {
  tip.hidden = !text;
  if (!text) return;
  tip.textContent = text;
  const { width, height } = tip.getBoundingClientRect();
  const above = y + height + 24 > innerHeight;
  tip.style.left = `${scrollX + Math.max(4, Math.min(x + 12, innerWidth - width - 4))}px`;
  tip.style.top = `${scrollY + Math.max(4, above ? y - height - 12 : y + 16)}px`;
}

// A finger is wider than a marker: take the nearest one of the picture.
function tipNear(event) {
  const hit = event.target.closest("[data-tip]");
  const picture = event.target.closest(".picture");
  if (hit || !picture || event.pointerType === "mouse") return hit;
  let nearest = null, distance = 24;
  for (const element of picture.querySelectorAll("[data-tip]")) {
    const box = element.getBoundingClientRect();
    if (!box.width && !box.height) continue;
    const dx = Math.max(box.left - event.clientX, 0, event.clientX - box.right);
    const dy = Math.max(box.top - event.clientY, 0, event.clientY - box.bottom);
    if (Math.hypot(dx, dy) < distance) [nearest, distance] = [element, Math.hypot(dx, dy)];
  }
  return nearest;
}

for (const kind of ["pointermove", "pointerdown"]) {
  document.addEventListener(kind, (event) => {
    if (event.target.closest(".explorer svg")) return;
    showTip(tipNear(event)?.dataset.tip, event.clientX, event.clientY);
  });
}
document.addEventListener("keydown", (event) => { if (event.key === "Escape") showTip(""); });

// --- Sliders and buttons: one variant of each picture is shown ----------------------------------

for (const form of document.querySelectorAll(".controls")) {
  const section = form.closest("section");
  const update = () => {
    const chosen = new Map();
    for (const input of form.elements) {
      if (input.type === "range") {
        chosen.set(input.name, input.value);
        const text = JSON.parse(input.dataset.options)[input.value];
        input.closest(".slider").querySelector("output").textContent = text;
        input.setAttribute("aria-valuetext", text);
      } else if (input.checked) {
        chosen.set(input.name, input.value);
      }
    }
    const key = [...chosen.values()].join("-");
    for (const variant of section.querySelectorAll(".variant")) {
      variant.hidden = variant.dataset.choice !== key;
    }
  };
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  update(); // a browser may have kept what was chosen before
}

// --- Page tables: the entries of each table on a path, before and after -------------------------

const ENTRIES = 512, LEVELS = 4, CELL = 10;
const narrowScreen = matchMedia("(max-width: 46rem)");

function make(parent, name, attributes = {}, text = "") {
  const space = parent instanceof SVGElement || name === "svg" ? "http://www.w3.org/2000/svg" : null;
  const element = space ? document.createElementNS(space, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text) element.textContent = text;
  parent.append(element);
  return element;
}

class Explorer {
  constructor(home) {
    this.data = JSON.parse(home.querySelector("script").textContent);
    this.nodes = this.data.nodes.map((text) => text.split(" ").map((run) => {
      const [, nr, kind, child] = run.match(/^(\d+)(\D)(\d*)$/);
      return [Number(nr), kind, child ? Number(child) : -1];
    }));
    this.mapped = new Map();
    this.home = home;
    this.path = this.data.path;
    home.parentElement.querySelector(".picture").hidden = true;
    this.home.hidden = false;
    narrowScreen.addEventListener("change", () => this.draw());
    this.draw();
  }

  // The run of entries that a slot of a table is in: [first slot, number, kind, child].
  run(node, slot) {
    let first = 0;
    for (const [nr, kind, child] of this.nodes[node]) {
      if (slot < first + nr) return [first, nr, kind, child];
      first += nr;
    }
    return [0, ENTRIES, ".", -1];
  }

  isTable(kind) { return this.data.tables.includes(kind); }

  share(kind, child, level) {
    if (child < 0) return kind === "." ? 0 : 1;
    return this.pages(child, level - 1) / ENTRIES ** (level - 1);
  }

  // Pages of 4 KiB that a table maps; a node is always of one level.
  pages(node, level) {
    if (!this.mapped.has(node)) {
      let sum = 0;
      for (const [nr, kind, child] of this.nodes[node]) {
        if (kind !== ".") sum += nr * (child < 0 ? ENTRIES ** (level - 1) : this.pages(child, level - 1));
      }
      this.mapped.set(node, sum);
    }
    return this.mapped.get(node);
  }

  // Addresses have 64 bits, more than a number holds.
  address(slots) {
    let vaddr = 0n;
    slots.forEach((slot, i) => { vaddr |= BigInt(slot) << BigInt(12 + 9 * (LEVELS - 1 - i)); });
    if (vaddr >> 47n & 1n) vaddr |= 0xffffn << 48n;
    return vaddr.toString(16).padStart(16, "0");
  }

  describe(node, depth, slot) {
    const level = LEVELS - depth;
    const [, , kind, child] = this.run(node, slot);
    const where = this.address([...this.path.slice(0, depth), slot]);
    let text = `L${level} entry ${slot}, from ${where}, ${this.data.sizes[level]}: ${this.data.words[kind]}`;
    if (depth === 0 && slot >= this.data.xen[0] && slot < this.data.xen[1]) text += " (Xen's own)";
    if (this.isTable(kind)) {
      const percent = (100 * this.share(kind, child, level)).toFixed(1);
      text += `, ${kind === "t" ? "" : "was "}${percent}% mapped`;
    }
    return text;
  }

  // The table at each depth of the path, or null where the path leads to none.
  tables(root) {
    const found = [root];
    this.path.forEach((slot, i) => {
      const node = found[i];
      const [, , kind, child] = node === null ? [0, 0, ".", -1] : this.run(node, slot);
      found.push(this.isTable(kind) ? child : null);
    });
    return found;
  }

  draw() {
    const focus = document.activeElement?.dataset?.place;
    this.home.replaceChildren();
    make(this.home, "p", { class: "help note" },
      "Select an entry that is a page table to look into it; arrow keys and Enter do it, too.");
    for (const when of ["before", "after"]) make(this.home, "h3", {}, when);
    const tables = { before: this.tables(this.data.before), after: this.tables(this.data.after) };
    for (let depth = 0; depth <= this.path.length; depth++) {
      const level = LEVELS - depth;
      const start = this.address(this.path.slice(0, depth));
      const which = depth ? ` of L${level + 1} entry ${this.path[depth - 1]}, from ${start}` : ", the root";
      make(this.home, "h4", {}, `L${level}${which}: 512 entries of ${this.data.sizes[level]}`);
      for (const when of ["before", "after"]) this.drawTable(tables[when][depth], depth, when);
    }
    this.drawLegend();
    if (focus) this.home.querySelector(`[data-place="${focus}"]`)?.focus({ preventScroll: true });
  }

  drawTable(node, depth, when) {
    if (node === null) {
      make(this.home, "p", { class: "note" }, "no such table");
      return;
    }
    const columns = narrowScreen.matches ? 16 : 64, level = LEVELS - depth;
    const svg = make(this.home, "svg", {
      viewBox: `0 0 ${columns * CELL} ${ENTRIES / columns * CELL}`, tabindex: 0, role: "img",
      "data-place": `${when}-${depth}`, "aria-label": `Entries of the L${level} table ${when} the free`,
    });
    const cells = (first, nr, attributes) => {
      while (nr > 0) {
        const n = Math.min(nr, columns - first % columns);
        make(svg, "rect", {
          x: first % columns * CELL, y: Math.floor(first / columns) * CELL, width: n * CELL,
          height: CELL, ...attributes,
        });
        first += n, nr -= n;
      }
    };
    if (depth === 0) cells(this.data.xen[0], this.data.xen[1] - this.data.xen[0], { fill: "var(--grid)" });
    let first = 0;
    for (const [nr, kind, child] of this.nodes[node]) {
      if (kind !== ".") cells(first, nr, { fill: this.fill(kind, this.share(kind, child, level)), class: kind });
      first += nr;
    }
    let lines = "";
    for (let x = 8; x < columns; x += 8) lines += `M${x * CELL} 0V${ENTRIES / columns * CELL}`;
    for (let y = 1; y < ENTRIES / columns; y++) lines += `M0 ${y * CELL}H${columns * CELL}`;
    make(svg, "path", { d: lines, stroke: "var(--muted)", "stroke-opacity": .35, "stroke-width": .5 });
    const mark = (slot, width) => make(svg, "rect", {
      x: slot % columns * CELL - 1, y: Math.floor(slot / columns) * CELL - 1, width: CELL + 2,
      height: CELL + 2, fill: "none", stroke: "var(--ink)", "stroke-width": width,
    });
    if (depth < this.path.length) mark(this.path[depth], 2);
    this.listen(svg, node, depth, columns, mark);
  }

  listen(svg, node, depth, columns, mark) {
    const rows = ENTRIES / columns;
    let at = this.path[depth] ?? 0, cursor = null;
    const slotOf = (event) => {
      const box = svg.getBoundingClientRect();
      const x = Math.floor((event.clientX - box.left) / box.width * columns);
      const y = Math.floor((event.clientY - box.top) / box.height * rows);
      return Math.max(0, Math.min(y, rows - 1)) * columns + Math.max(0, Math.min(x, columns - 1));
    };
    svg.addEventListener("pointermove", (event) => {
      showTip(this.describe(node, depth, slotOf(event)), event.clientX, event.clientY);
    });
    svg.addEventListener("pointerleave", () => showTip(""));
    svg.addEventListener("click", (event) => {
      const slot = slotOf(event);
      this.open(node, depth, slot);
      showTip(this.describe(node, depth, slot), event.clientX, event.clientY);
    });
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
      if (event.key === "Enter") this.open(node, depth, at);
      if (!step) return;
      event.preventDefault();
      at = Math.max(0, Math.min(at + step, ENTRIES - 1));
      cursor?.remove();
      cursor = mark(at, 1.2);
      const box = cursor.getBoundingClientRect();
      showTip(this.describe(node, depth, at), box.right, box.bottom);
    });
  }

  open(node, depth, slot) {
    if (!this.isTable(this.run(node, slot)[2])) return;
    this.path = [...this.path.slice(0, depth), slot];
    this.draw();
  }

  fill(kind, share) {
    if ("lL".includes(kind)) return "url(#leaked)";
    if ("fF".includes(kind)) return "url(#freed)";
    const shades = this.data.shares;
    return shades[Math.min(Math.floor(share * shades.length), shades.length - 1)];
  }

  drawLegend() {
    const legend = make(this.home, "ul", { class: "legend" });
    const entry = (fill, text) => {
      const item = make(legend, "li");
      const svg = make(item, "svg", { viewBox: "0 0 16 10", "aria-hidden": "true" });
      make(svg, "rect", { width: 16, height: 10, fill });
      item.append(text);
    };
    const step = 100 / this.data.shares.length;
    this.data.shares.forEach((shade, i) => entry(shade, `up to ${step * (i + 1)} % mapped`));
    entry("url(#freed)", "freed");
    entry("url(#leaked)", "leaked");
    entry("var(--grid)", "Xen's own slots");
    entry("none", "empty");
  }
}

// The patterns of what is gone, for all of them.
function makePatterns() {
  const svg = make(document.body, "svg", { width: 0, height: 0, style: "position: absolute" });
  const defs = make(svg, "defs");
  for (const [id, ground, ink, d] of [
    ["freed", "var(--paper)", "var(--ink)", "M-1 6L6 -1M-1 1L1 -1M4 6L6 4"],
    ["leaked", "var(--bad)", "var(--paper)", "M0 0L5 5M5 0L0 5"],
  ]) {
    const pattern = make(defs, "pattern", { id, width: 5, height: 5, patternUnits: "userSpaceOnUse" });
    make(pattern, "rect", { width: 5, height: 5, fill: ground });
    make(pattern, "path", { d, stroke: ink, "stroke-width": .8 });
  }
}

const explorers = document.querySelectorAll(".explorer");
if (explorers.length) makePatterns();
for (const home of explorers) new Explorer(home);

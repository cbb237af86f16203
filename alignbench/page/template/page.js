"use strict";
// Everything is made with createElement and textContent: the page's policy refuses markup from strings.
const data = JSON.parse(document.getElementById("data").textContent);
const PAGE = 12;

/** An element with properties and children; texts stay texts. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** A number of things. */
const many = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

/** A labelled <select>; calls back with each choice. */
function choice(label, options, chosen) {
  const select = make("select", { ariaLabel: label });
  for (const [value, text] of options) select.append(make("option", { value, textContent: text }));
  select.addEventListener("change", () => chosen(select.value));
  return [make("label", {}, label, select), select];
}

/** The leading number of a cell, such as 94.0, <0.001, +1.2k or 12.5M; NaN where there is none. */
function numberIn(text) {
  const found = /^\s*(<?)\s*([-+−]?[\d.]+(?:e[-+]?\d+)?)([kMG]?)/.exec(text);
  if (!found) return NaN;
  const value = parseFloat(found[2].replace("−", "-")) * { "": 1, k: 1e3, M: 1e6, G: 1e9 }[found[3]];
  return found[1] ? value * 0.999 : value;
}

// The theme: the system's until the button is pressed.
const theme = document.getElementById("theme");
theme.hidden = false;
theme.addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

// Panels of which one is shown at a time. All of one section follow one choice.
function switches(section) {
  const groups = [...section.querySelectorAll(".switched")];
  const names = [...new Set(groups.flatMap((g) => [...g.querySelectorAll(".panel")].map((p) => p.dataset.name)))];
  if (names.length < 2) return;
  const selects = [];
  const show = (name) => {
    for (const panel of groups.flatMap((g) => [...g.querySelectorAll(".panel")])) panel.hidden = panel.dataset.name !== name;
    for (const select of selects) select.value = name;
  };
  for (const group of groups) {
    if (!group.querySelector(".panel")) continue;
    const [label, select] = choice(group.dataset.what, names.map((n) => [n, n]), show);
    selects.push(select);
    group.before(make("div", { className: "controls" }, label));
  }
  show(names[0]);
}

// Tables: every column sorts, by numbers where it holds them.
function sortable(table) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const original = [...body.rows];
  heads.forEach((head, column) => {
    const button = make("button", { type: "button" }, ...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const order = before === "descending" ? "ascending" : before === "ascending" ? null : column ? "descending" : "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      if (order === null) return body.append(...original);
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const compare = (one, other) => {
        const [a, b] = [one, other].map((row) => row.cells[column].textContent.trim());
        const [x, y] = [numberIn(a), numberIn(b)];
        if (!column || (isNaN(x) && isNaN(y))) return sign * a.localeCompare(b, "en", { numeric: true });
        return isNaN(x) ? 1 : isNaN(y) ? -1 : sign * (x - y);
      };
      body.append(...[...original].sort(compare));
    });
  });
}

// One filter for all tables of a section's numbers: by name and by mark.
function filters(section) {
  const part = section.querySelector('[id$="-numbers"]');
  const rows = [...part.querySelectorAll("tbody tr")];
  if (rows.length < 3) return;
  const input = make("input", { type: "search", placeholder: "part of its name" });
  const status = make("p", { className: "quiet" });
  status.setAttribute("role", "status");
  const apply = () => {
    const words = input.value.toLowerCase();
    for (const row of rows) {
      const named = row.cells[0].textContent.toLowerCase().includes(words);
      row.hidden = !named || (marks.value !== "all" && row.dataset.mark !== marks.value);
    }
    const table = part.querySelector(".panel:not([hidden]) tbody") ?? part.querySelector("tbody");
    const visible = [...table.rows].filter((row) => !row.hidden).length;
    status.textContent = `${visible} of ${many(table.rows.length, "row")}`;
  };
  const [label, marks] = choice(
    "Win rate",
    [["all", "all"], ["better", "better ▲"], ["worse", "worse ▼"], ["none", "undecided"]],
    apply,
  );
  input.addEventListener("input", apply);
  for (const select of part.querySelectorAll(".controls select")) select.addEventListener("change", apply);
  let box = part.querySelector(".controls");
  if (!box) part.querySelector(".switched").before((box = make("div", { className: "controls" })));
  box.append(make("label", {}, "Method", input), label);
  box.after(status);
  apply();
}

/** Scores as the page shows them. */
const shown = (score) => (score === null ? "–" : Number(score.toPrecision(4)).toString());

class Gallery {
  constructor(section, own) {
    Object.assign(this, own);
    this.section = section;
    this.part = section.querySelector(".pictures");
    this.list = this.part.querySelector(".cards");
    for (const image of this.list.querySelectorAll("img")) { // the first page stands in the document alone
      const shot = this.cards[image.dataset.card].shots.find((s) => s[0] === Number(image.dataset.method));
      shot[1] = image.src;
    }
    this.visible = new Set(this.shown);
    this.page = 0;
    this.asked = { order: "prompts", method: this.firstOther(), scorer: 0, category: "", text: "" };
    this.spread = this.scorers.map((_, place) => this.deviation(place));
    this.controls();
    this.draw();
  }

  firstOther() {
    return this.shown.find((place) => place !== this.baseline) ?? this.shown[0];
  }

  /** Of the gains of all methods on a scorer, so that scorers can be compared. */
  deviation(scorer) {
    const values = this.cards.flatMap((card) => card.shots.map((shot) => shot[2][scorer])).filter((x) => x !== null);
    const mean = values.reduce((a, b) => a + b, 0) / values.length;
    return Math.sqrt(values.reduce((a, b) => a + (b - mean) ** 2, 0) / values.length) || 1;
  }

  scores(card, method) {
    return card.shots.find((shot) => shot[0] === method)?.[2];
  }

  /** By how much a method is better than the baseline on a card; null where one of them has no score. */
  gain(card, method, scorer) {
    const [own, base] = [this.scores(card, method)?.[scorer], this.scores(card, this.baseline)?.[scorer]];
    return own == null || base == null ? null : this.scorers[scorer].sign * (own - base);
  }

  /** How far apart the scorers are on a card: the largest gain against the largest loss, in standard deviations. */
  disagreement(card) {
    const gains = this.scorers.map((_, s) => this.gain(card, this.asked.method, s)).map((g, s) => (g === null ? 0 : g / this.spread[s]));
    return Math.min(Math.max(...gains), Math.max(...gains.map((g) => -g)));
  }

  /** What raters chose of a picture, by question: [won, tied, lost], or null. */
  chosen(card, method) {
    return card.shots.find((shot) => shot[0] === method)?.[3] ?? [];
  }

  /** The number of votes on a card's pictures that are shown. */
  voted(card) {
    return card.shots.filter((shot) => this.visible.has(shot[0])).flatMap((shot) => shot[3]).flatMap((counts) => counts ?? []).reduce((a, b) => a + b, 0);
  }

  /** How far a scorer is for a picture that people are against, or against one that they are for. */
  against(card) {
    const [gain, counts] = [this.gain(card, this.asked.method, this.asked.scorer), this.chosen(card, this.asked.method)[0]];
    return gain === null || !counts ? 0 : -gain * (counts[0] - counts[2]);
  }

  controls() {
    const box = this.part.querySelector(".controls");
    box.hidden = false;
    const set = (name, number = false) => (value) => {
      this.asked[name] = number ? Number(value) : value;
      this.page = 0;
      this.draw();
    };
    const orders = [["prompts", "all, in order"], ["random", "all, in an order drawn"]];
    if (this.baseline !== null && this.methods.length > 1) {
      orders.push(["gain", "biggest gain"], ["loss", "biggest loss"]);
      if (this.scorers.length > 1) orders.push(["disagree", "scorers that disagree"]);
      if (this.votes.length) orders.push(["people", "people and scorer disagree"]);
    }
    if (this.votes.length) orders.push(["voted", "most votes"]);
    const others = this.methods.map((name, place) => [place, name]).filter(([place]) => place !== this.baseline);
    const categories = [...new Set(this.cards.map((card) => card.category))].sort();
    const parts = [choice("Show", orders, set("order"))[0]];
    const [methodLabel, method] = choice("Gain of", others, set("method", true));
    method.value = this.asked.method;
    if (orders.length > 2) parts.push(methodLabel, choice("Gain on", this.scorers.map((s, place) => [place, s.name]), set("scorer", true))[0]);
    if (categories.length > 1) parts.push(choice("Category", [["", "all"], ...categories.filter(Boolean).map((c) => [c, c])], set("category"))[0]);
    const text = make("input", { type: "search" });
    text.addEventListener("input", () => set("text")(text.value.toLowerCase()));
    parts.push(make("label", {}, "Prompt contains", text));
    box.append(...parts, this.methodBoxes());
    const pages = this.part.querySelector(".pages");
    pages.hidden = false;
    this.before = make("button", { type: "button", textContent: "← earlier" });
    this.after = make("button", { type: "button", textContent: "later →" });
    this.before.addEventListener("click", () => this.turn(-1));
    this.after.addEventListener("click", () => this.turn(1));
    pages.append(this.before, this.after);
  }

  methodBoxes() {
    const with_ = new Set(this.cards.flatMap((card) => card.shots.map((shot) => shot[0])));
    const boxes = make("fieldset", {}, make("legend", { textContent: "Methods" }));
    this.methods.forEach((name, place) => {
      if (!with_.has(place)) return;
      const tick = make("input", { type: "checkbox", checked: this.visible.has(place) });
      tick.addEventListener("change", () => {
        this.visible[tick.checked ? "add" : "delete"](place);
        this.draw();
      });
      boxes.append(make("label", {}, tick, name));
    });
    return boxes;
  }

  turn(by) {
    this.page += by;
    this.draw();
    this.part.querySelector(".count").scrollIntoView({ block: "nearest" });
  }

  /** The cards that are asked for, in order. */
  found() {
    const { order, method, scorer, category, text } = this.asked;
    let cards = order === "random" ? this.draw_order() : this.cards;
    cards = cards.filter((card) => (!category || card.category === category) && card.text.toLowerCase().includes(text));
    if (order === "gain" || order === "loss") {
      const sign = order === "gain" ? 1 : -1;
      const by = new Map(cards.map((card) => [card, this.gain(card, method, scorer)]));
      return cards.filter((card) => by.get(card) !== null && sign * by.get(card) > 0).sort((a, b) => sign * (by.get(b) - by.get(a)));
    }
    const measure = { disagree: "disagreement", people: "against", voted: "voted" }[order];
    if (measure) {
      const by = new Map(cards.map((card) => [card, this[measure](card)]));
      return cards.filter((card) => by.get(card) > 0).sort((a, b) => by.get(b) - by.get(a));
    }
    return cards;
  }

  draw_order() {
    return this.draw_ ??= this.order.map((place) => this.cards[place]);
  }

  draw() {
    this.current = this.found();
    const pages = Math.max(1, Math.ceil(this.current.length / PAGE));
    this.page = Math.min(Math.max(this.page, 0), pages - 1);
    const from = this.page * PAGE;
    const here = this.current.slice(from, from + PAGE);
    this.list.replaceChildren(...here.map((card) => this.cardOf(card)));
    const count = this.current.length ? `${from + 1} to ${from + here.length} of ${many(this.current.length, "prompt")}` : "no prompt is like that";
    this.part.querySelector(".count").textContent = count;
    this.before.disabled = this.page === 0;
    this.after.disabled = this.page === pages - 1;
  }

  cardOf(card) {
    const shots = make("div", { className: "shots" });
    for (const [method, source, scores] of card.shots) {
      if (!this.visible.has(method)) continue;
      const image = make("img", { src: source, alt: `${this.methods[method]}: ${card.text}`, decoding: "async" });
      const button = make("button", { type: "button" }, image);
      button.addEventListener("click", () => large.open(this, card, method));
      shots.append(make("div", { className: "shot" }, button, make("p", { className: "method", textContent: this.methods[method] }), this.scoreList(card, method, scores)));
    }
    const text = make("figcaption", { className: "prompt" }, make("bdi", { textContent: card.text }));
    return make("figure", { className: "card" }, text, shots);
  }

  scoreList(card, method, scores) {
    const list = make("dl");
    scores.forEach((score, place) => {
      const value = make("dd", {}, shown(score));
      const change = this.change(card, method, place);
      if (change) value.append(make("span", { className: `mark ${change > 0 ? "up" : "down"}`, textContent: change > 0 ? "▲" : "▼" }), make("span", { className: "unseen", textContent: change > 0 ? " better" : " worse" }));
      list.append(make("div", {}, make("dt", { textContent: this.scorers[place].short, title: this.scorers[place].name }), value));
    });
    this.chosen(card, method).forEach((counts, place) => {
      const [won, tied, lost] = counts ?? [];
      const value = make("dd", { title: counts ? `${won} won, ${tied} tied, ${lost} lost` : "" }, counts?.join("–") ?? "–");
      list.append(make("div", {}, make("dt", { textContent: this.votes[place] }), value));
    });
    return list;
  }

  /** 1 or -1 where a picture is better or worse than the baseline's by more than a tie, else 0. */
  change(card, method, scorer) {
    const gain = method === this.baseline ? null : this.gain(card, method, scorer);
    return gain === null || Math.abs(gain) <= this.scorers[scorer].ties ? 0 : Math.sign(gain);
  }
}

// One picture as large as the window, with keys: ← → other methods, ↑ ↓ other prompts, Escape back.
const large = {
  box: document.getElementById("large"),

  open(gallery, card, method) {
    Object.assign(this, { gallery, card, method });
    this.show();
    if (!this.box.open) this.box.showModal();
  },

  show() {
    const { gallery, card, method, box } = this;
    const [, source, scores] = card.shots.find((shot) => shot[0] === method) ?? card.shots[0];
    const image = make("img", { src: source, alt: `${gallery.methods[method]}: ${card.text}` });
    image.classList.toggle("pixelled", gallery.list.classList.contains("pixelled"));
    box.querySelector(".view").replaceChildren(image);
    box.querySelector(".caption").replaceChildren(make("span", { textContent: `${gallery.methods[method]}: ` }), make("bdi", { textContent: card.text }));
    const texts = scores.map((score, place) => `${gallery.scorers[place].name} ${shown(score)}${[" ▼", "", " ▲"][gallery.change(card, method, place) + 1]}`);
    gallery.chosen(card, method).forEach((counts, place) => counts && texts.push(`${gallery.votes[place]} ${counts.join("–")} (won–tied–lost)`));
    box.querySelector(".scores").textContent = texts.join(" · ");
    const link = box.querySelector(".full");
    link.hidden = !gallery.folders[method];
    if (!link.hidden) link.href = `${gallery.folders[method]}/${card.file}`;
  },

  method_(by) {
    const own = this.card.shots.map((shot) => shot[0]).filter((place) => this.gallery.visible.has(place));
    this.method = own[(own.indexOf(this.method) + by + own.length) % own.length];
    this.show();
  },

  prompt_(by) {
    const cards = this.gallery.current;
    const place = cards.indexOf(this.card) + by;
    if (place < 0 || place >= cards.length) return;
    this.card = cards[place];
    this.show();
  },
};
for (const [name, act] of [
  ["before", () => large.method_(-1)],
  ["after", () => large.method_(1)],
  ["above", () => large.prompt_(-1)],
  ["below", () => large.prompt_(1)],
  ["close", () => large.box.close()],
]) large.box.querySelector(`.${name}`).addEventListener("click", act);
large.box.addEventListener("keydown", (event) => {
  const act = { ArrowLeft: "before", ArrowRight: "after", ArrowUp: "above", ArrowDown: "below" }[event.key];
  if (!act) return;
  event.preventDefault();
  large.box.querySelector(`.${act}`).click();
});

// The check: digests of the results, win rates from their rows, and the pictures.
const hex = (buffer) => [...new Uint8Array(buffer)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
const digest = async (bytes) => hex(await crypto.subtle.digest("SHA-256", bytes));

async function unpacked(text) {
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

/** A method's share of wins over the baseline, counted from the rows of two sets of results. */
function counted(mine, theirs, scorer) {
  let [won, pairs] = [0, 0];
  const bases = theirs.map((result) => new Map(result.rows.map((row) => [`${row.sample} ${row.prompt}`, row.scores[scorer.name]])));
  for (const result of mine) for (const row of result.rows) for (const base of bases) {
    const [own, other] = [row.scores[scorer.name], base.get(`${row.sample} ${row.prompt}`)];
    if (own == null || other == null) continue;
    const gain = scorer.sign * (own - other);
    won += Math.abs(gain) <= scorer.ties ? 0.5 : gain > 0 ? 1 : 0;
    pairs += 1;
  }
  return won / pairs;
}

async function check() {
  const [bad, results] = [[], []];
  let [whole, rates, pictures] = [0, 0, 0];
  for (const file of data.files) {
    results.push(null);
    if (!file.content) continue;
    try {
      const bytes = await unpacked(file.content);
      if ((await digest(bytes)) !== file.digest) throw new Error("the digest does not match");
      results[results.length - 1] = JSON.parse(new TextDecoder().decode(bytes));
      whole += 1;
    } catch (error) {
      bad.push(`${file.file}: ${error.message || "cannot be unpacked"}`);
    }
  }
  for (const own of data.sections) {
    const of = (method) => own.runs[method].map((place) => results[place]);
    for (const [method, scorer, rate] of own.rates) {
      const [mine, theirs] = [of(method), of(own.baseline)];
      if ([...mine, ...theirs].includes(null)) continue;
      if (Math.abs(counted(mine, theirs, own.scorers[scorer]) - rate) > 1e-6) bad.push(`the win rate of ${own.methods[method]} on ${own.scorers[scorer].name} is not what its rows say`);
      rates += 1;
    }
    const sources = own.cards.flatMap((card) => card.shots.map((shot) => shot[1]));
    if ((await digest(new TextEncoder().encode(sources.join("\n")))) !== own.pictures) bad.push("the pictures are not those that were put in");
    else pictures += sources.length;
  }
  const left = data.files.length - whole - bad.filter((line) => data.files.some((f) => line.startsWith(`${f.file}:`))).length;
  const good = `Digests that match: ${whole} of ${data.files.length}${left ? ` (not carried here: ${left})` : ""}; win rates that their rows give: ${rates}; pictures as they were put in: ${pictures}.`;
  return [good, bad];
}

const button = document.getElementById("check");
button.hidden = false;
button.addEventListener("click", async () => {
  const place = document.getElementById("checked");
  if (!globalThis.crypto?.subtle) {
    place.replaceChildren(make("p", { textContent: "This browser takes digests only of pages from disk or over https." }));
    return;
  }
  button.disabled = true;
  place.replaceChildren(make("p", { textContent: "checking …" }));
  const [good, bad] = await check();
  place.replaceChildren(...bad.map((line) => make("p", { className: "bad", textContent: `✗ ${line}` })), make("p", { className: bad.length ? "" : "good", textContent: `${bad.length ? "" : "✓ "}${good}` }));
  button.disabled = false;
  document.documentElement.dataset.checked = bad.length ? "bad" : "good";
});

for (const section of document.querySelectorAll(".evaluation")) {
  switches(section);
  for (const table of section.querySelectorAll("table.numbers")) sortable(table);
  filters(section);
  const own = data.sections[section.dataset.place];
  own.order = own.draw; // `draw` is the gallery's method
  delete own.draw;
  if (own.cards.length) new Gallery(section, own);
}
document.documentElement.dataset.ready = "";

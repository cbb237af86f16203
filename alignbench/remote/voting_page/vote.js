"use strict";
// The voting page. It knows two pictures and a question, never what made them.

const $ = (id) => document.getElementById(id);
const KEYS = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie", s: "skip" };
const SAID = { left: "Left chosen.", right: "Right chosen.", tie: "No difference chosen.", skip: "Skipped." };
const RETRY = 2000; // milliseconds

let rater = "";
let key = "";
let questions = [];
let current = null; // the pair on the screen, decoded
let ahead = null; // a promise of the one after it
let busy = true; // until both pictures are there, and while a vote is on its way
let since = 0;
let heard = ""; // what is said of the last choice, before the next question
let unreached = false; // the server, while it is asked again: that is said before what follows from it

async function ask(path, content) {
  // The server's answer. Where it cannot be reached it is asked again: a vote counts once however often it is sent.
  for (;;) {
    let answer;
    try {
      answer = await fetch(path, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ rater, key, ...content }),
      });
    } catch {
      unreached = true;
      wrong("The server cannot be reached. Your last choice is kept here and sent again.");
      await new Promise((resolve) => setTimeout(resolve, RETRY));
      continue;
    }
    unreached = false;
    const body = await answer.json().catch(() => ({ error: "The server said something that is no answer." }));
    if (answer.ok) {
      wrong("");
      return body;
    }
    const error = new Error(body.error || `The server refuses (${answer.status}).`);
    error.code = body.code || "";
    throw error;
  }
}

function wrong(text) {
  $("wrong").textContent = text;
  $("wrong").hidden = !text;
}

function only(id) {
  for (const other of ["hello", "ballot", "thanks"]) $(other).hidden = other !== id;
}

async function decoded(pair) {
  if (!pair) return null;
  const images = {};
  await Promise.all(["left", "right"].map(async (side) => {
    const image = new Image();
    image.src = pair.pictures[side];
    image.alt = `The ${side} picture`;
    image.draggable = false;
    for (;;) {
      try {
        await image.decode();
        break;
      } catch {
        const reason = await gone(pair.pictures[side]);
        if (reason) throw new Error(reason);
        if (!unreached) wrong("A picture cannot be loaded; trying again.");
        await new Promise((resolve) => setTimeout(resolve, RETRY));
        image.src = `${pair.pictures[side]}?${Date.now()}`;
      }
    }
    wrong("");
    if (image.naturalWidth < 200) image.className = "small";
    images[side] = image;
  }));
  return { ...pair, images };
}

async function gone(picture) {
  // Why the server will never show this picture; nothing where it may, or cannot be reached.
  try {
    const answer = await fetch(picture);
    return answer.status === 410 ? (await answer.json()).error : "";
  } catch {
    return "";
  }
}

async function fetched(have) {
  const answer = await ask("next", { have });
  return { pair: await decoded(answer.pair), progress: answer.progress, leftOut: answer.left_out || "" };
}

function progress(p) {
  const share = p.total ? Math.min(1, p.done / p.total) : 1;
  $("filled").style.width = `${100 * share}%`;
  let text = `${p.done} of ${p.total}`;
  if (p.seconds !== null && p.done < p.total) {
    text += p.seconds < 90 ? ", about a minute left" : `, about ${Math.round(p.seconds / 60)} minutes left`;
  }
  $("progress").textContent = text;
  $("undo").disabled = p.done === 0;
  $("back").hidden = p.done === 0;
  $("counted").textContent = `${p.done} votes of yours are counted.`;
}

function show(pair, leftOut = "") {
  current = pair;
  document.documentElement.dataset.ready = "";
  if (!pair) {
    only("thanks");
    $("thanks").focus();
    wrong(leftOut);
    document.documentElement.dataset.ready = "end";
    busy = false;
    return;
  }
  only("ballot");
  $("question").textContent = questions[pair.question].text;
  $("prompt").textContent = pair.prompt;
  for (const side of ["left", "right"]) {
    $(side).querySelector(".frame").replaceChildren(pair.images[side]);
  }
  for (const id of ["left", "right", "tie", "skip"]) $(id).classList.remove("chosen");
  $("said").textContent = `${heard} ${questions[pair.question].text} ${pair.prompt}`;
  heard = "";
  document.documentElement.dataset.ready = pair.nonce;
  busy = false;
  since = performance.now();
}

function look() {
  // Begin to load the pair after this one.
  ahead = current ? fetched([current.nonce]).catch((error) => ({ error })) : null;
}

async function onward() {
  if (!ahead) return refresh();
  const found = await ahead;
  ahead = null;
  if (found.error) throw found.error;
  // Another window of the same rater may have voted on it meanwhile: the server then says so.
  show(found.pair, found.leftOut);
  look();
}

async function choose(choice) {
  if (busy || !current) return;
  busy = true;
  $(choice).classList.add("chosen");
  const milliseconds = Math.round(performance.now() - since);
  try {
    const answer = await ask("vote", { nonce: current.nonce, choice, milliseconds });
    progress(answer.progress);
    heard = SAID[choice];
  } catch (error) {
    if (error.code !== "counted") {
      $(choice).classList.remove("chosen");
      wrong(error.message);
      busy = false;
      return;
    }
    heard = "This pair had your vote already.";
    ahead = null; // it was fetched before the other window's votes
  }
  try {
    await onward();
  } catch {
    await refresh().catch((error) => {
      wrong(error.message);
      busy = false; // so that Undo works, and another choice tries again
    });
  }
}

async function refresh() {
  const found = await fetched([]);
  progress(found.progress);
  show(found.pair, found.leftOut);
  look();
}

async function undo() {
  if (busy) return;
  busy = true;
  try {
    const answer = await ask("undo", {});
    progress(answer.progress);
    heard = "Your last vote was taken back.";
    show(await decoded(answer.pair));
    look();
  } catch (error) {
    wrong(error.message);
    busy = false;
  }
}

async function enter() {
  try {
    const answer = await ask("enter", {});
    rater = answer.rater;
    questions = answer.questions;
    await refresh();
  } catch (error) {
    wrong(error.message);
    if (error.code === "name" || !rater) only("hello");
  }
}

for (const id of ["left", "right", "tie", "skip"]) $(id).addEventListener("click", () => choose(id));
for (const id of ["undo", "back"]) $(id).addEventListener("click", undo);
document.addEventListener("keydown", (event) => {
  if (event.repeat && event.key === "Enter") event.preventDefault(); // or it would click a focused button again and again
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
  if ($("ballot").hidden && $("thanks").hidden) return;
  const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (name === "u") undo();
  else if (KEYS[name] && !$("ballot").hidden) choose(KEYS[name]);
  else return;
  event.preventDefault();
});
$("hello").addEventListener("submit", (event) => {
  event.preventDefault();
  rater = $("name").value;
  enter();
});

// An address made for a rater ends in #key or #key:name. One that is typed over another loads no page by itself.
addEventListener("hashchange", () => location.reload());
const [given, name] = location.hash.slice(1).split(":");
key = given || "";
if (name) {
  rater = decodeURIComponent(name);
  enter();
} else {
  only("hello");
  $("name").focus();
  document.documentElement.dataset.ready = "hello";
}

// The annotator's page: a queue of votes, keys, and pairs fetched ahead.

import { $, newKey, notice, page, send } from "./page.js";

const AHEAD = 4;
const BREAK_MINUTES = 40;
const GLYPHS = { left: "A", right: "B", tie: "=", both_bad: "✕", cannot: "?", skip: "›", report: "!", undo: "↶" };
const LABELS = {
  left: "A is better", right: "B is better", tie: "Equally good", both_bad: "Both bad", cannot: "Can’t judge",
  skip: "Skipped", report: "Reported",
};
const CHOICES = ["left", "right", "tie", "both_bad", "cannot"];
const STRENGTHS = ["slightly", "clearly", "by_far"];
const keys = JSON.parse(page.dataset.keys);
const defaults = JSON.parse(page.dataset.defaults);
const sides = JSON.parse(page.dataset.sides); // left, right → the keys that vote for the card and do nothing else
const main = $("#pair");
const goal = Number(page.dataset.goal);
let done = Number(page.dataset.done);
let remaining = Number(page.dataset.remaining);

// --- votes under way: each is stored in this browser until the server has it -------------------------------------

const prefix = `kleash/${page.dataset.person}/`;
const outbox = [];
let sending = false;
let refused = false;

function restore() {
  try {
    const names = Object.keys(localStorage).filter((name) => name.startsWith(prefix)).sort();
    for (const name of names) outbox.push({ name, ...JSON.parse(localStorage.getItem(name)) });
  } catch { /* without storage they are kept while the page is open */ }
}

function post(path, body, about = {}) {
  const name = `${prefix}${String(Date.now()).padStart(15, "0")}/${body.key}`;
  const item = { name, path, body, about };
  outbox.push(item);
  try {
    localStorage.setItem(name, JSON.stringify({ path, body, about }));
  } catch { /* as above */ }
  flush();
  return item;
}

async function flush() {
  if (sending || refused) return showSaved();
  sending = true;
  for (let wait = 500; outbox.length; ) {
    const item = outbox[0];
    showSaved();
    try {
      const answer = await send(item.path, item.body);
      settle(item);
      if (wait > 500) notice("");
      wait = 500;
      item.mark?.classList.add("saved");
      item.saved?.(answer);
      if (item.path === "/api/undo" && !item.about.pair) reopened(answer.pair);
    } catch (error) {
      if (error.status === 401 || error.status === 403) {
        refused = true;
        notice(`Not saved: ${error.message}. Your votes are kept in this browser.`, { stays: true });
        break;
      }
      if (error.status >= 400 && error.status < 500 && error.status !== 429) {
        settle(item);
        item.mark?.remove();
        item.lost?.();
        showLast("");
        notice(`Not saved: ${error.message}`);
        continue;
      }
      notice("The server cannot be reached. You can go on: your votes are kept in this browser and sent later.", { stays: true });
      await new Promise((resolve) => setTimeout(resolve, wait));
      wait = Math.min(wait * 2, 4000);
    }
  }
  sending = false;
  showSaved();
  fetchAhead();
}

function settle(item) {
  outbox.splice(outbox.indexOf(item), 1);
  try {
    localStorage.removeItem(item.name);
  } catch { /* as above */ }
}

function showSaved() {
  const waiting = outbox.length;
  $("#saved").textContent = !waiting ? "✓ Saved" : waiting === 1 ? "Saving…" : `${waiting} waiting`;
}

// --- pairs: on screen, fetched ahead, and already decided -----------------------------------------

const pairs = [];
const history = [];
const decided = new Set();
let current = null;
let fetching = false;
let reading = false; // the answer of a practice pair
let viewStart = 0;
let viewed = 0; // milliseconds

function parsed(pair) {
  const box = document.createElement("template");
  box.innerHTML = pair.html; // cleaned by the server, and the page's policy runs no script but this one
  return { id: pair.id, kind: pair.kind, node: box.content.firstElementChild };
}

async function fetchAhead() {
  if (fetching || refused || pairs.length >= AHEAD - 1) return;
  fetching = true;
  try {
    // For the server, pairs whose vote is under way are still open, so that many more are requested.
    const batch = await send(`/api/pairs?count=${Math.min(AHEAD + outbox.length + 1, 25)}`);
    const present = new Set([current?.id, ...pairs.map((pair) => pair.id)]);
    for (const pair of batch.pairs) {
      if (!present.has(pair.id) && !decided.has(pair.id)) pairs.push(parsed(pair));
    }
    if (!current && !reading) {
      if (pairs.length) show(pairs.shift());
      else if (!outbox.length) $("#done").hidden = false;
    }
  } catch (error) {
    const later = !error.status || error.status === 429 || error.status >= 500;
    if (error.status && !refused) notice(error.message);
    if (later && !outbox.length) setTimeout(fetchAhead, 2000);
  }
  fetching = false;
}

function show(pair, after = "") {
  current = pair ?? null;
  main.querySelector(".pair")?.remove();
  $("#done").hidden = true;
  clearMore();
  if (pair) main.prepend(pair.node);
  main.scrollTop = 0;
  main.focus({ preventScroll: true });
  announce([after, pair && `Pair ${done + 1}`].filter(Boolean).join(". ") + ".");
  viewed = 0;
  viewStart = performance.now();
  enable();
}

function enable() {
  for (const button of document.querySelectorAll(".votes button, [data-act=skip], [data-act=report]")) button.disabled = !current;
}

const seconds = () => (viewed + (document.hidden ? 0 : performance.now() - viewStart)) / 1000;

document.addEventListener("visibilitychange", () => {
  if (document.hidden) viewed += performance.now() - viewStart;
  else viewStart = performance.now();
});

// --- one decision -------------------------------------------------------------------------------------------------

function decide(choice) {
  if (!current) return;
  const pair = current;
  const body = { key: newKey(), assignment: pair.id, reason: $("#reason").value.trim() };
  let path = `/api/${choice}`;
  if (CHOICES.includes(choice)) {
    path = "/api/vote";
    Object.assign(body, { choice, strength: strength(), tags: tags(), seconds: seconds() });
  }
  decided.add(pair.id);
  history.push({ pair, choice });
  const practice = pair.kind === "practice" && path === "/api/vote";
  if (pair.kind !== "practice") count(path === "/api/vote" ? 1 : 0, -1);
  if (!practice) show(pairs.shift(), LABELS[choice]);
  const item = post(path, body, { pair: pair.id });
  if (practice) {
    current = null; // it waits for its answer
    reading = true;
    enable();
    item.saved = (answer) => reading && reveal(choice, answer.answer);
    item.lost = goOn;
  }
  mark(item, choice);
  showLast(CHOICES.includes(choice) ? `You voted: ${LABELS[choice]}` : LABELS[choice]);
  fetchAhead();
  remindOfBreak();
}

function undo() {
  const { pair, choice } = history.pop() ?? {};
  const item = post("/api/undo", { key: newKey() }, { pair: pair?.id });
  mark(item, "undo");
  $("#answer").hidden = true;
  reading = false;
  if (!pair) return; // voted before this page was opened: the server knows on which pair
  showLast(`Taken back: ${LABELS[choice]}`);
  decided.delete(pair.id);
  if (pair.kind !== "practice") count(-1, 1);
  if (current) pairs.unshift(current);
  show(pair, "Taken back");
}

function reopened(pair) {
  if (!pair) return notice("There is nothing to take back.");
  decided.delete(pair.id);
  if (current?.id === pair.id) return;
  const ahead = pairs.findIndex((other) => other.id === pair.id);
  showLast("Taken back: your vote on this pair");
  const next = ahead < 0 ? parsed(pair) : pairs.splice(ahead, 1)[0];
  if (current) pairs.unshift(current);
  if (pair.kind !== "practice") count(-1, 1);
  show(next, "Taken back");
}

function reveal(choice, answer) {
  $("#answer p").textContent = answer === choice
    ? `Yes. ${LABELS[answer]}.`
    : `You chose: ${LABELS[choice]}. The agreed answer: ${LABELS[answer]}.`;
  $("#answer").hidden = false;
  $("#answer button").focus({ preventScroll: true });
  announce($("#answer p").textContent);
}

function goOn() {
  $("#answer").hidden = true;
  reading = false;
  show(pairs.shift());
  fetchAhead();
}

function showLast(text) {
  $("#last span").textContent = text;
}

function mark(item, choice) {
  const entry = document.createElement("li");
  entry.textContent = GLYPHS[choice];
  entry.title = `${LABELS[choice] ?? "taken back"}; filled when saved`;
  $("#trail").append(entry);
  while ($("#trail").children.length > 10) $("#trail").firstElementChild.remove();
  item.mark = entry;
}

// --- strength, tags, reason ---------------------------------------------------------------------------------------

const pressed = (selector) => [...document.querySelectorAll(`${selector}[aria-pressed=true]`)];
const strength = () => STRENGTHS.indexOf(pressed("[data-act]")[0]?.dataset.act) + 1 || null;
const tags = () => pressed("[data-tag]").map((button) => button.dataset.tag);
for (const name of STRENGTHS) $(`[data-act=${name}]`).ariaPressed = "false";

function press(button, others) {
  const was = button.ariaPressed === "true";
  for (const other of others) other.ariaPressed = "false";
  button.ariaPressed = String(!was);
}

function clearMore() {
  for (const button of pressed("button")) button.ariaPressed = "false";
  $("#reason").value = "";
  rawShown();
}

const rawShown = () => ($("[data-act=raw]").ariaPressed = String(main.classList.contains("show-raw")));

// --- progress and announcements ----------------------------------------------------------------------------------------

function announce(text) {
  $("#live").textContent = text;
}

function count(more, fewer) {
  done = Math.max(done + more, 0);
  remaining = Math.max(remaining + fewer, 0);
  showProgress();
  if (goal && more > 0 && done === goal) notice(`${goal} pairs: that was the goal. Thank you. Go on if you like.`);
}

function showProgress() {
  const total = goal > done ? goal : done + remaining;
  $("#bar").max = total || 1;
  $("#bar").value = done;
  $("#count").textContent = `${done} of ${total}`;
}

let breakAt = Date.now();
function remindOfBreak() {
  if (Date.now() - breakAt < BREAK_MINUTES * 60000) return;
  breakAt = Date.now();
  notice(`You have compared for ${BREAK_MINUTES} minutes. A short break keeps judgement fresh.`);
}

// --- keys ---------------------------------------------------------------------------------------------------------

const acts = {
  undo, continue: goOn,
  raw: () => { main.classList.toggle("show-raw"); rawShown(); },
  why: () => { $("#why").open = true; $("#reason").focus(); },
  guidelines: () => $("#guidelines")?.showModal(),
  keys: () => $("dialog#keys").showModal(),
  close: (button) => button.closest("dialog").close(),
  dismiss: () => notice(""),
  reload: () => location.reload(),
  defaults: () => remap({ ...defaults }),
};
for (const name of [...CHOICES, "skip", "report"]) acts[name] = () => decide(name);
for (const name of STRENGTHS) {
  acts[name] = () => {
    $("#why").open = true;
    press($(`[data-act=${name}]`), STRENGTHS.filter((other) => other !== name).map((other) => $(`[data-act=${other}]`)));
  };
}

function remap(changes) {
  Object.assign(keys, changes);
  showKeys();
  send("/api/settings", { keys }).catch((error) => notice(`Keys are not saved: ${error.message}`));
}

function showKeys() {
  $(".remapping")?.classList.remove("remapping");
  const names = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", " ": "space" };
  for (const label of document.querySelectorAll("kbd[data-key]")) label.textContent = names[keys[label.dataset.key]] ?? keys[label.dataset.key];
  for (const button of document.querySelectorAll("button[data-act]")) {
    if (keys[button.dataset.act]) button.setAttribute("aria-keyshortcuts", keys[button.dataset.act]);
  }
}

let remapping = null; // the button that waits for its new key
function startRemap(button) {
  showKeys();
  remapping = button;
  button.classList.add("remapping");
  button.querySelector("kbd").textContent = "press…";
}

function finishRemap(event) {
  if (["Tab", "Enter", "Shift", "Control", "Alt", "Meta"].includes(event.key)) return;
  event.preventDefault();
  const name = remapping.dataset.remap;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (sideOf(key)) return void (remapping.querySelector("kbd").textContent = "votes"); // and another key is waited for
  remapping = null;
  if (event.key === "Escape") return showKeys();
  const other = Object.keys(keys).find((action) => keys[action] === key && action !== name);
  remap({ ...(other && { [other]: keys[name] }), [name]: key }); // two actions never share a key: they swap
}

const sideOf = (key) => Object.keys(sides).find((name) => sides[name].some((one) => one.toLowerCase() === key.toLowerCase()));

// On a keyboard of another script the key in the same position counts.
const pressedKey = (event) => (event.key.length === 1 && event.key > "~" ? event.code.replace(/^(Key|Digit)/, "") : event.key).toLowerCase();

document.addEventListener("keydown", (event) => {
  if (remapping) return finishRemap(event);
  if (event.ctrlKey || event.altKey || event.metaKey || event.getModifierState("AltGraph")) return;
  if (event.repeat || event.isComposing) return;
  if (event.target === $("#reason")) {
    if (event.key === "Enter" || event.key === "Escape") main.focus({ preventScroll: true });
    return;
  }
  const key = pressedKey(event);
  const action = sideOf(key) ?? Object.keys(keys).find((name) => keys[name].toLowerCase() === key);
  const open = $("dialog[open]");
  if (open) {
    if (action === open.id) open.close();
    return;
  }
  if (!action || !acts[action]) return;
  event.preventDefault();
  if (!$("#answer").hidden && action !== "undo") return; // the answer comes first
  acts[action]();
});

page.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.tag) press(button, []);
  else if (button.dataset.remap) startRemap(button);
  else acts[button.dataset.act]?.(button);
});

$("dialog#keys").addEventListener("close", () => { remapping = null; showKeys(); });

// --- begin --------------------------------------------------------------------------------------------------------

restore();
for (const item of outbox) {
  if (item.path === "/api/undo") decided.delete(item.about.pair);
  else decided.add(item.about.pair);
}
showKeys();
showProgress();
$("#why").open = matchMedia("(min-width: 60rem) and (min-height: 40rem)").matches;
const first = main.querySelector(".pair");
const initial = first && { id: Number(first.dataset.id), kind: first.dataset.kind, node: first };
show(initial && !decided.has(initial.id) ? initial : undefined);
flush();
addEventListener("online", () => flush());

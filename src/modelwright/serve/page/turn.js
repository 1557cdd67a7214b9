// One turn of the conversation on the page: its text, how likely its tokens were, and what can be done with it.
import { button, copier, make, show } from "/markdown.js";

const LIKELY = [0.9, 0.5, 0.2, 0.05]; // bounds of the five colours of tokens
const REASONS = ["wrong", "incomplete", "made up", "too long", "not what I asked", "unsafe"];
const tip = document.getElementById("tip");

export function newTurn(role, content) {
  const article = make("article", `turn ${role}`), body = make("div", "text");
  article.setAttribute("aria-label", role === "user" ? "You" : "Answer");
  article.append(body);
  return { role, content, article, body, groups: [], held: [], id: "", model: "" };
}

export function paint(turn, probabilities) {
  if (turn.role === "user") turn.body.replaceChildren(make("p", "plain", turn.content));
  else if (probabilities && turn.groups.length) tokens(turn);
  else show(turn.body, turn.content);
}

// --- how likely each token was ----------------------------------------------------------------------------

// Tokens as the server tells them, and the text that came with them. Text waits until a character is whole, and until it is sure
// that no stop string begins in it.
export function take(turn, entries, text) {
  turn.held.push(...entries);
  if (!text || !turn.held.length) return;
  turn.groups.push(...aligned(turn.held, text));
  turn.held = [];
}

// Which part of the text each token is; tokens that are parts of one character, and a space that was cut off, stay together.
function aligned(entries, text) {
  const groups = [], fits = ({ token }, place) => token && !token.includes("\ufffd") && text.startsWith(token, place);
  for (let at = 0, place = 0; at < entries.length;) {
    let end = at + 1, next = place + entries[at].token.length;
    if (!fits(entries[at], place)) {
      const after = (entry) => (/\ufffd|^\s*$/.test(entry.token) ? -1 : text.indexOf(entry.token, place));
      while (end < entries.length && after(entries[end]) < 0) end += 1;
      next = end < entries.length ? after(entries[end]) : text.length;
    }
    groups.push({ text: text.slice(place, next), entries: entries.slice(at, end) });
    [at, place] = [end, next];
  }
  return groups;
}

function tokens(turn) {
  let view = turn.body.firstElementChild;
  if (!view?.classList.contains("tokens")) {
    view = make("p", "plain tokens");
    view.tabIndex = 0;
    view.setAttribute("aria-label", "The answer token by token; arrow keys go through them");
    turn.body.replaceChildren(view);
  }
  for (const group of turn.groups.slice(view.childElementCount)) {
    const chance = Math.exp(group.entries.reduce((sum, entry) => sum + entry.logprob, 0));
    const place = LIKELY.findIndex((bound) => chance >= bound);
    const span = make("span", `token p${place < 0 ? LIKELY.length : place}`, group.text);
    span.group = group;
    view.append(span);
  }
}

// A blank, a new line or a control character as something to be seen.
function visible(text) {
  return text.replace(/ /g, "␣").replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/[\x00-\x1f\x7f]/g, "�") || "(nothing)";
}

// Half a character has no text of its own: its bytes are shown.
function named({ token, bytes }) {
  if (!bytes?.length || !token.includes("\ufffd")) return visible(token);
  return `‹${bytes.map((byte) => byte.toString(16).padStart(2, "0")).join(" ")}›`;
}

function percent(logprob) {
  const value = 100 * Math.exp(logprob);
  return value >= 0.01 || !value ? `${value.toFixed(value < 10 ? 2 : 1)} %` : `${value.toExponential(0)} %`;
}

export function point(span) {
  for (const old of document.querySelectorAll(".token.now")) old.classList.remove("now");
  tip.hidden = !span;
  if (!span) return;
  span.classList.add("now");
  const rows = [];
  for (const entry of span.group.entries) {
    const others = (entry.top_logprobs ?? []).filter((other) => named(other) !== named(entry));
    for (const [index, one] of [entry, ...others].entries()) {
      const row = make("div", index ? "row" : "row taken"), bar = make("span", "bar"), fill = make("span");
      fill.style.width = `${100 * Math.exp(one.logprob)}%`;
      bar.append(fill);
      row.append(make("code", "", named(one)), bar, make("span", "number", percent(one.logprob)));
      rows.push(row);
    }
  }
  tip.replaceChildren(...rows);
  const at = span.getBoundingClientRect(), room = document.documentElement.clientWidth;
  tip.style.left = `${Math.max(8, Math.min(at.left, room - tip.offsetWidth - 8))}px`;
  const below = at.bottom + 6 + tip.offsetHeight < window.innerHeight;
  tip.style.top = `${below ? at.bottom + 6 : Math.max(8, at.top - tip.offsetHeight - 6)}px`;
}

export function watchTokens(log) {
  log.addEventListener("mouseover", (event) => point(event.target.closest(".token")));
  log.addEventListener("mouseleave", () => point(null));
  log.addEventListener("scroll", () => point(null));
  log.addEventListener("focusin", (event) => {
    if (event.target.classList.contains("tokens") && event.target.matches(":focus-visible")) point(event.target.firstElementChild);
  });
  log.addEventListener("focusout", () => point(null));
  log.addEventListener("keydown", (event) => {
    const step = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
    const now = event.target.querySelector?.(".token.now");
    if (!step || !event.target.classList.contains("tokens")) return;
    event.preventDefault();
    const next = now ? now[step] ?? now : event.target.firstElementChild;
    point(next);
    document.getElementById("status").textContent = tip.innerText;
  });
}

// --- what can be done with a turn -------------------------------------------------------------------------

export function foot(turn, note, actions) {
  turn.article.querySelector(".foot")?.remove();
  const line = make("div", "foot");
  if (turn.role === "user") line.append(button("Edit", () => edit(turn, actions.edit)));
  else line.append(copier(() => turn.content), button("Regenerate", actions.again), make("span", "note", note));
  turn.article.append(line);
  if (actions.rate) line.append(thumbs(turn, actions.rate));
}

export function edit(turn, done) {
  if (turn.article.querySelector(".edit")) return;
  const form = make("form", "edit"), words = make("textarea"), row = make("div", "foot");
  words.value = turn.content;
  words.rows = Math.min(12, turn.content.split("\n").length + 1);
  words.setAttribute("aria-label", "Your message");
  const close = () => {
    form.remove();
    turn.body.hidden = turn.article.querySelector(".foot").hidden = false;
    document.getElementById("prompt").focus();
  };
  row.append(make("button", "strong", "Ask again"), button("Cancel", close), make("span", "note", "what came after it is dropped"));
  form.append(words, row);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (words.value.trim() && done(words.value.trim())) close();
  });
  words.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.requestSubmit();
    } else if (event.key === "Escape") {
      event.stopPropagation();
      close();
    }
  });
  turn.body.hidden = turn.article.querySelector(".foot").hidden = true;
  turn.article.append(form);
  words.focus();
}

function thumb(kind) {
  const space = "http://www.w3.org/2000/svg", picture = document.createElementNS(space, "svg"), path = document.createElementNS(space, "path");
  picture.setAttribute("viewBox", "0 0 24 24");
  picture.setAttribute("class", kind);
  picture.setAttribute("aria-hidden", "true");
  path.setAttribute("d", "M3.5 11H7v9H3.5zM7 11l4-7.5c1.6 0 2.6 1.1 2.6 2.6L13 10h5.6a2 2 0 0 1 2 2.4l-1.3 6a2 2 0 0 1-2 1.6H7");
  picture.append(path);
  return picture;
}

// Thumbs, and a form for a better answer; each choice replaces the one before. `rate` sends it and returns what to say.
function thumbs(turn, rate) {
  const box = make("span", "thumbs"), say = make("span", "", ""), form = make("form", "rating");
  const reasons = REASONS.map((reason) => {
    const label = make("label", "", reason), tick = make("input");
    tick.type = "checkbox";
    tick.value = reason;
    label.prepend(tick);
    return label;
  });
  const better = make("textarea");
  better.rows = 4;
  better.value = turn.content;
  better.setAttribute("aria-label", "What it should have said");
  form.append(make("p", "", "What was it, and what should it have said?"), ...reasons, better, make("button", "", "Save"));
  form.hidden = true;
  let rating = "";
  const send = async () => {
    const body = { id: turn.id, rating };
    const ticked = reasons.map((label) => label.firstChild).filter((tick) => tick.checked).map((tick) => tick.value);
    if (ticked.length) body.reasons = ticked;
    if (better.value.trim() && better.value !== turn.content) body.better = better.value;
    say.textContent = await rate(body);
    document.getElementById("status").textContent = say.textContent;
  };
  const buttons = [["up", "Good answer"], ["down", "Bad answer"]].map(([kind, name]) => {
    const node = button("", () => {
      rating = kind;
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === node));
      form.hidden = kind === "up";
      send();
    });
    node.append(thumb(kind));
    node.title = name;
    node.setAttribute("aria-label", name);
    node.setAttribute("aria-pressed", "false");
    return node;
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  box.append(...buttons, say);
  turn.article.append(form);
  return box;
}

// The chat page: one conversation, kept in memory only. Text from the model is only ever set as text, never as HTML.
const $ = (id) => document.getElementById(id);
const log = $("log"), box = $("prompt"), empty = $("empty");
let model = null, canChat = true, history = [], running = null;

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

// Fenced blocks and `code`; the rest as it came.
function show(node, text) {
  const parts = [];
  for (const [index, piece] of text.split(/^```/m).entries()) {
    if (index % 2) {
      const pre = make("pre");
      pre.tabIndex = 0;
      pre.append(make("code", "", piece.replace(/^[^\n]*\n?/, "").replace(/\n$/, "")));
      parts.push(pre);
    } else if (piece.trim()) {
      const paragraph = make("p");
      for (const [at, run] of piece.trim().split(/`([^`\n]+)`/).entries()) paragraph.append(at % 2 ? make("code", "", run) : run);
      parts.push(paragraph);
    }
  }
  node.replaceChildren(...parts);
}

function turn(role, text) {
  empty.hidden = true;
  const article = make("article", `turn ${role}`);
  article.setAttribute("aria-label", role === "user" ? "You" : "Answer");
  const body = make("div", "text");
  show(body, text);
  article.append(body);
  log.append(article);
  article.scrollIntoView({ block: "end" });
  return { article, body };
}

function fail(message) {
  log.append(make("p", "error", message));
  log.scrollTop = log.scrollHeight;
  $("status").textContent = message;
}

function headers() {
  const all = { "content-type": "application/json" };
  if ($("key").value.trim()) all.authorization = `Bearer ${$("key").value.trim()}`;
  return all;
}

async function problem(response) {
  if (response.status === 401) openSettings(true);
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

function openSettings(key) {
  if (key) $("key-row").hidden = false;
  $("settings").hidden = false;
  $("toggle").setAttribute("aria-expanded", "true");
  (key ? $("key") : $("system")).focus();
}

async function connect() {
  const response = await fetch("/v1/models", { headers: headers() });
  if (!response.ok) {
    const message = await problem(response);
    $("facts").textContent = message;
    throw new Error(message);
  }
  model = (await response.json()).data[0];
  canChat = model.capabilities.includes("chat");
  document.title = `${model.id} · chat`;
  $("model").textContent = model.id;
  $("facts").textContent = `context ${model.context.toLocaleString()} tokens${canChat ? "" : " · no chat template: it continues your text"}`;
  $("temperature").value = model.temperature;
  $("kept").hidden = !model.feedback;
  $("kept").textContent = `An answer that you rate is saved with your question to ${model.feedback}, where this server runs.`;
  if (!canChat) {
    box.placeholder = "Text to continue";
    box.setAttribute("aria-label", "Text to continue");
    document.querySelector(".hello").textContent = "Write a beginning; the model goes on.";
    $("system").closest("label").hidden = true;
  }
}

function request() {
  const body = { model: model.id, stream: true, stream_options: { include_usage: true } };
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
    if ($(name).value !== "") body[name] = Number($(name).value);
  }
  if (!canChat) {
    body.max_tokens ??= 256;
    return ["/v1/completions", { ...body, prompt: history.at(-1).content }];
  }
  const system = $("system").value.trim();
  return ["/v1/chat/completions", { ...body, messages: [...(system ? [{ role: "system", content: system }] : []), ...history] }];
}

// The data of each server-sent event.
async function* events(stream) {
  let rest = "";
  for await (const text of pieces(stream.pipeThrough(new TextDecoderStream()))) {
    const lines = (rest + text).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data: ")) yield line.slice(6);
  }
}

async function* pieces(stream) {
  const reader = stream.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    yield value;
  }
}

const REASONS = ["wrong", "incomplete", "made up", "too long", "not what I asked", "unsafe"];

function thumb(kind) {
  const space = "http://www.w3.org/2000/svg", picture = document.createElementNS(space, "svg"), path = document.createElementNS(space, "path");
  picture.setAttribute("viewBox", "0 0 24 24");
  picture.setAttribute("class", kind);
  picture.setAttribute("aria-hidden", "true");
  path.setAttribute("d", "M3.5 11H7v9H3.5zM7 11l4-7.5c1.6 0 2.6 1.1 2.6 2.6L13 10h5.6a2 2 0 0 1 2 2.4l-1.3 6a2 2 0 0 1-2 1.6H7");
  picture.append(path);
  return picture;
}

// Thumbs, and a form for a better answer; each choice replaces the one before.
function thumbs(article, text, id) {
  const box = make("span", "thumbs");
  const say = make("span", "", "");
  const form = make("form", "rating");
  const reasons = REASONS.map((reason) => {
    const label = make("label", "", reason);
    const tick = make("input");
    tick.type = "checkbox";
    tick.value = reason;
    label.prepend(tick);
    return label;
  });
  const better = make("textarea");
  better.rows = 4;
  better.value = text;
  better.setAttribute("aria-label", "What it should have said");
  const save = make("button", "", "Save");
  form.append(make("p", "", "What was it, and what should it have said?"), ...reasons, better, save);
  form.hidden = true;
  let rating = "";
  const send = async () => {
    const body = { id, rating };
    const ticked = reasons.map((label) => label.firstChild).filter((tick) => tick.checked).map((tick) => tick.value);
    if (ticked.length) body.reasons = ticked;
    if (better.value.trim() && better.value !== text) body.better = better.value;
    try {
      const response = await fetch("/v1/feedback", { method: "POST", headers: headers(), body: JSON.stringify(body) });
      say.textContent = response.ok ? `saved to ${model.feedback}` : await problem(response);
    } catch {
      say.textContent = "not saved: the server cannot be reached";
    }
    $("status").textContent = say.textContent;
  };
  const buttons = [["up", "Good answer"], ["down", "Bad answer"]].map(([kind, name]) => {
    const button = make("button");
    button.append(thumb(kind));
    button.type = "button";
    button.title = name;
    button.setAttribute("aria-label", name);
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      rating = kind;
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      form.hidden = kind === "up";
      send();
    });
    return button;
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  box.append(...buttons, say);
  article.append(form);
  return box;
}

function foot(article, text, note, id) {
  const line = make("div", "foot");
  const copy = make("button", "", "Copy");
  copy.type = "button";
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      copy.textContent = "Copied";
    } catch {
      copy.textContent = "Copying is not allowed";
    }
    setTimeout(() => { copy.textContent = "Copy"; }, 1500);
  });
  line.append(copy, make("span", "", note));
  article.append(line);
  if (model.feedback && id) line.append(thumbs(article, text, id));
}

function busy(on) {
  $("send").hidden = on;
  $("stop").hidden = !on;
  sendable();
}

function sendable() {
  $("send").disabled = !box.value.trim();
}

async function answer(question) {
  const chat = history;
  running = new AbortController();
  busy(true);
  const { article, body } = turn("assistant", "");
  article.classList.add("waiting");
  $("status").textContent = "Answering";
  let text = "", id = "", usage = null, finish = "", firstMs = 0, painted = false, error = "";
  const paint = () => {
    painted = false;
    const near = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
    show(body, text);
    if (near) log.scrollTop = log.scrollHeight;
  };
  try {
    if (!model) await connect();
    const [path, payload] = request();
    const response = await fetch(path, { method: "POST", headers: headers(), body: JSON.stringify(payload), signal: running.signal });
    if (!response.ok) throw new Error(await problem(response));
    for await (const data of events(response.body)) {
      if (data === "[DONE]") break;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      usage = event.usage ?? usage;
      id = event.id ?? id;
      const choice = event.choices[0];
      if (!choice) continue;
      const piece = canChat ? choice.delta.content : choice.text;
      if (piece) {
        firstMs ||= performance.now();
        text += piece;
        article.classList.remove("waiting");
        if (!painted) { painted = true; requestAnimationFrame(paint); }
      }
      finish = choice.finish_reason ?? finish;
    }
  } catch (problem) {
    if (problem.name !== "AbortError") error = problem instanceof TypeError ? "The server cannot be reached. Is it still running?" : problem.message;
    else finish = "stopped";
  }
  article.classList.remove("waiting");
  paint();
  running = null;
  busy(false);
  if (chat !== history) return; // a new chat was begun meanwhile
  if (text || finish === "stop" || finish === "length") {
    chat.push({ role: "assistant", content: text });
    const seconds = (performance.now() - firstMs) / 1000;
    const notes = text ? [] : ["empty answer"];
    if (usage) notes.push(`${usage.completion_tokens} tokens`);
    if (usage && text && seconds > 0.05) notes.push(`${(usage.completion_tokens / seconds).toFixed(0)} tokens/s`);
    if (finish === "length") notes.push("cut at the length limit");
    if (finish === "stopped") notes.push("stopped");
    foot(article, text, notes.join(" · "), id);
  } else {
    // Nothing came: the question goes back to the box.
    article.remove();
    question.remove();
    empty.hidden = chat.length > 1;
    const asked = chat.pop();
    if (!box.value) box.value = asked.content;
    grow();
  }
  if (error) fail(error);
  else $("status").textContent = text ? `Answer: ${text.slice(0, 2000)}` : "No answer";
  log.scrollTop = log.scrollHeight;
  if (document.activeElement === document.body || document.activeElement === $("stop")) box.focus();
}

function grow() {
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight}px`;
  sendable();
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = box.value.trim();
  if (!text || running) return;
  box.value = "";
  grow();
  history.push({ role: "user", content: text });
  for (const old of log.querySelectorAll(".error")) old.remove();
  answer(turn("user", text).article);
});
box.addEventListener("input", grow);
box.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("form").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
$("stop").addEventListener("click", () => running?.abort());
$("new").addEventListener("click", () => {
  running?.abort();
  history = [];
  log.replaceChildren(empty);
  empty.hidden = false;
  $("status").textContent = "New chat";
  box.focus();
});
$("toggle").addEventListener("click", () => {
  if ($("settings").hidden) return openSettings(false);
  $("settings").hidden = true;
  $("toggle").setAttribute("aria-expanded", "false");
});
$("key").addEventListener("change", () => connect().catch(() => {}));

$("hint").hidden = !["localhost", "127.0.0.1", "[::1]"].includes(location.hostname);
sendable();
box.focus();
connect().catch(() => {});

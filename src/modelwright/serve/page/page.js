// The chat page: one conversation, kept in memory only. Text from the model is only ever set as text, never as HTML.
import { make } from "/markdown.js";
import { edit, foot, newTurn, paint, point, take, watchTokens } from "/turn.js";

const $ = (id) => document.getElementById(id);
const log = $("log"), box = $("prompt"), empty = $("empty");
const NEEDS = { temperature: "", top_p: "", top_k: "", max_tokens: "", min_p: "rules", seed: "seed" }; // capability behind each field
const TRIES = 5, LONGEST_WAIT_S = 60; // while the server is busy
let models = [], model = null, turns = [], running = null;

const can = (name) => model.capabilities.includes(name);

// --- the server -------------------------------------------------------------------------------------------

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

async function connect() {
  const response = await fetch("/v1/models", { headers: headers() });
  if (!response.ok) {
    const message = await problem(response);
    $("facts").textContent = message;
    throw new Error(message);
  }
  models = (await response.json()).data;
  if (!models.length) throw new Error("there is no model for you here");
  $("choice").replaceChildren(...models.map((one) => {
    const option = make("option", "", one.id);
    option.value = one.id;
    return option;
  }));
  if (!model && models[0].temperature !== undefined) $("temperature").value = models[0].temperature;
  choose(models.find((one) => one.id === model?.id) ?? models[0]);
}

// A model that is opened on demand tells what it can and how much it holds when it is open.
function choose(chosen) {
  model = { ...chosen, capabilities: chosen.capabilities ?? ["chat"] };
  const chat = can("chat");
  document.title = `${model.id} · chat`;
  $("model").textContent = model.id;
  $("model").classList.toggle("sr", models.length > 1);
  $("choice").hidden = models.length < 2;
  $("choice").value = model.id;
  const facts = model.context ? [`context ${model.context.toLocaleString()} tokens`] : [];
  if (!chat) facts.push("no chat template: it continues your text");
  $("facts").textContent = facts.join(" · ");
  for (const [name, needed] of Object.entries(NEEDS)) $(name).closest("label").hidden = Boolean(needed) && !can(needed);
  $("logprobs").closest("label").hidden = !can("logprobs");
  $("system").closest("label").hidden = !chat;
  $("kept").hidden = !model.feedback;
  $("kept").textContent = `An answer that you rate is saved with your question to ${model.feedback}, where this server runs.`;
  box.placeholder = chat ? "Message" : "Text to continue";
  box.setAttribute("aria-label", box.placeholder);
  // A model with the capability `messages` is served elsewhere, and what is written goes there.
  $("hint").hidden = !["localhost", "127.0.0.1", "[::1]"].includes(location.hostname) || !chosen.capabilities || can("messages");
  document.querySelector(".hello").textContent = chat ? "Say something to your model." : "Write a beginning; the model goes on.";
}

function messages() {
  const system = can("chat") ? $("system").value.trim() : "";
  return [...(system ? [{ role: "system", content: system }] : []), ...turns.map(({ role, content }) => ({ role, content }))];
}

function request() {
  const body = { model: model.id, stream: true, stream_options: { include_usage: true } };
  for (const [name, needed] of Object.entries(NEEDS)) {
    if ($(name).value !== "" && (!needed || can(needed))) body[name] = Number($(name).value);
  }
  const likely = $("logprobs").checked && can("logprobs");
  if (can("chat")) return ["/v1/chat/completions", { ...body, ...(likely ? { logprobs: true, top_logprobs: 5 } : {}), messages: messages() }];
  body.max_tokens ??= 256;
  return ["/v1/completions", { ...body, ...(likely ? { logprobs: 5 } : {}), prompt: turns.at(-1).content }];
}

// The response; while the server is busy it is asked again when it says, as long as nobody stops it.
async function ask(signal, say) {
  for (let tries = 1; ; tries += 1) {
    const [path, payload] = request();
    const response = await fetch(path, { method: "POST", headers: headers(), body: JSON.stringify(payload), signal });
    if (response.ok) return response;
    if (response.status === 400 && !model.context) {
      const message = await problem(response);
      await connect(); // it is open now, and tells what it can
      if (!can("chat")) continue;
      throw new Error(message);
    }
    const wait = Number(response.headers.get("retry-after"));
    if (response.status !== 429 || !(wait <= LONGEST_WAIT_S) || tries === TRIES) {
      throw new Error(response.status === 429 && wait ? `${await problem(response)} (try again in ${wait} s)` : await problem(response));
    }
    for (let left = Math.max(1, Math.ceil(wait)); left > 0; left -= 1) {
      say(`The server is busy, trying again in ${left} s`);
      await new Promise((resolve) => setTimeout(resolve, 1000));
      signal.throwIfAborted();
    }
    say("");
  }
}

// The data of each server-sent event.
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data: ")) yield line.slice(6);
  }
}

// Both shapes of log-probabilities that OpenAI's API has.
function told(logprobs) {
  if (!logprobs) return [];
  if (logprobs.content) return logprobs.content;
  return (logprobs.tokens ?? []).map((token, at) => ({
    token, logprob: logprobs.token_logprobs[at] ?? 0,
    top_logprobs: Object.entries(logprobs.top_logprobs?.[at] ?? {}).map(([other, logprob]) => ({ token: other, logprob })),
  }));
}

async function rate(body) {
  try {
    const response = await fetch("/v1/feedback", { method: "POST", headers: headers(), body: JSON.stringify(body) });
    return response.ok ? `saved to ${model.feedback}` : await problem(response);
  } catch {
    return "not saved: the server cannot be reached";
  }
}

// --- the conversation -------------------------------------------------------------------------------------

function add(role, content) {
  empty.hidden = true;
  const made = newTurn(role, content);
  paint(made, false);
  log.append(made.article);
  turns.push(made);
  if (role === "user") foot(made, "", { edit: (text) => again(made, text) });
  made.article.scrollIntoView({ block: "end" });
  return made;
}

function drop(first) {
  for (const { article } of turns.splice(first)) article.remove();
  empty.hidden = turns.length > 0;
}

// Ask anew from a question on; `text` replaces it. Whether it was done.
function again(question, text) {
  if (running) return false;
  question.content = text;
  paint(question, false);
  for (const old of log.querySelectorAll(".error")) old.remove();
  drop(turns.indexOf(question) + 1);
  answer();
  return true;
}

async function answer() {
  const chat = turns, control = new AbortController(), question = turns.at(-1);
  running = control;
  busy(true);
  let failed = "", finish = "", usage = null, firstMs = 0, waiting = false;
  const made = newTurn("assistant", "");
  const say = (text) => { made.article.dataset.say = text; $("status").textContent = text; };
  made.article.classList.add("waiting");
  log.append(made.article);
  made.article.scrollIntoView({ block: "end" });
  $("status").textContent = "Answering";
  const repaint = () => {
    waiting = false;
    const near = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
    paint(made, $("logprobs").checked);
    if (near) log.scrollTop = log.scrollHeight;
  };
  try {
    if (!model) await connect();
    made.model = model.id;
    const response = await ask(control.signal, say);
    for await (const data of events(response.body)) {
      if (data === "[DONE]") break;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      usage = event.usage ?? usage;
      made.id = event.id ?? made.id;
      const choice = event.choices[0];
      if (!choice) continue;
      const piece = choice.delta ? choice.delta.content : choice.text;
      take(made, told(choice.logprobs), piece);
      if (piece) {
        firstMs ||= performance.now();
        made.content += piece;
        made.article.classList.remove("waiting");
        if (!waiting) { waiting = true; requestAnimationFrame(repaint); }
      }
      finish = choice.finish_reason ?? finish;
    }
  } catch (error) {
    if (error.name === "AbortError") finish = "stopped";
    else failed = error instanceof TypeError ? "The server cannot be reached. Is it still running?" : error.message;
  }
  made.article.classList.remove("waiting");
  delete made.article.dataset.say;
  repaint();
  running = null;
  busy(false);
  if (chat !== turns) return; // a new chat was begun meanwhile
  if (made.content || finish === "stop" || finish === "length") {
    turns.push(made);
    const actions = { again: () => again(question, question.content), rate: model.feedback && made.id ? rate : null };
    if (!model.context) connect().catch(() => {}); // it is open now
    foot(made, notes(made, usage, finish, firstMs), actions);
    $("status").textContent = made.content ? `Answer: ${made.content.slice(0, 2000)}` : "No answer";
  } else back(made, question);
  if (failed) fail(failed);
  log.scrollTop = log.scrollHeight;
  ready();
  if (document.activeElement === document.body || document.activeElement === $("stop")) box.focus();
}

// Nothing came: the question goes back to the box.
function back(made, question) {
  made.article.remove();
  drop(turns.indexOf(question));
  if (!box.value) box.value = question.content;
  grow();
}

function notes(made, usage, finish, firstMs) {
  const found = made.content ? [] : ["empty answer"], seconds = (performance.now() - firstMs) / 1000;
  if (models.length > 1) found.push(made.model);
  if (usage) found.push(`${usage.completion_tokens} tokens`);
  if (usage && made.content && seconds > 0.05) found.push(`${(usage.completion_tokens / seconds).toFixed(0)} tokens/s`);
  if (finish === "length") found.push("cut at the length limit");
  if (finish === "stopped") found.push("stopped");
  return found.join(" · ");
}

function fail(message) {
  log.append(make("p", "error", message));
  log.scrollTop = log.scrollHeight;
  $("status").textContent = message;
}

// --- files ------------------------------------------------------------------------------------------------

function jsonLines() {
  const row = can("chat") ? { messages: messages() } : { text: turns.slice(-2).map(({ content }) => content).join("") };
  return `${JSON.stringify(row)}\n`;
}

function markdown() {
  const names = { system: "System", user: "You", assistant: model.id };
  const parts = messages().map(({ role, content }) => `## ${names[role]}\n\n${content}\n`);
  return [`# Chat with ${model.id}\n`, ...parts].join("\n");
}

function save(text, ending, kind) {
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([text], { type: kind }));
  link.download = `${model.id.replace(/[^\w.-]+/g, "-")}-${new Date().toISOString().slice(0, 19).replace(/\D/g, "")}.${ending}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  $("export").open = false;
}

// --- what is pressed --------------------------------------------------------------------------------------

function busy(on) {
  $("send").hidden = on;
  $("stop").hidden = !on;
  ready();
}

function ready() {
  $("send").disabled = !box.value.trim();
  $("export").firstElementChild.setAttribute("aria-disabled", String(!turns.length || Boolean(running)));
  log.classList.toggle("busy", Boolean(running));
}

function grow() {
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight}px`;
  ready();
}

function openSettings(key) {
  if (key) $("key-row").hidden = false;
  $("settings").hidden = false;
  $("toggle").setAttribute("aria-expanded", "true");
  (key ? $("key") : document.querySelector("#settings label:not([hidden]) :is(textarea, input)")).focus();
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = box.value.trim();
  if (!text || running) return;
  box.value = "";
  grow();
  for (const old of log.querySelectorAll(".error")) old.remove();
  add("user", text);
  answer();
});
box.addEventListener("input", grow);
box.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("form").requestSubmit();
  } else if (event.key === "ArrowUp" && !box.value && !running) {
    const last = turns.findLast((one) => one.role === "user");
    if (!last) return;
    event.preventDefault();
    edit(last, (text) => again(last, text));
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  running?.abort();
  point(null);
  $("export").open = false;
});
document.addEventListener("click", (event) => {
  if (!$("export").contains(event.target)) $("export").open = false;
});
$("export").firstElementChild.addEventListener("click", (event) => {
  if (event.currentTarget.getAttribute("aria-disabled") === "true") event.preventDefault();
});
$("export-jsonl").addEventListener("click", () => save(jsonLines(), "jsonl", "application/jsonl"));
$("export-md").addEventListener("click", () => save(markdown(), "md", "text/markdown"));
$("stop").addEventListener("click", () => running?.abort());
$("new").addEventListener("click", () => {
  running?.abort();
  turns = [];
  log.replaceChildren(empty);
  empty.hidden = false;
  $("status").textContent = "New chat";
  ready();
  box.focus();
});
$("toggle").addEventListener("click", () => {
  if ($("settings").hidden) return openSettings(false);
  $("settings").hidden = true;
  $("toggle").setAttribute("aria-expanded", "false");
});
$("choice").addEventListener("change", () => choose(models.find((one) => one.id === $("choice").value)));
$("logprobs").addEventListener("change", () => { for (const one of turns) paint(one, $("logprobs").checked); });
$("key").addEventListener("change", () => connect().catch(() => {}));

watchTokens(log);
ready();
box.focus();
connect().catch(() => {});

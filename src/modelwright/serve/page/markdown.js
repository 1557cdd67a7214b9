// Markdown to nodes: headings, lists, quotes, tables, code, emphasis, links. What it does not know stays as it was written.
// Nodes are built and texts are set as texts, never as HTML; a picture is only linked to, so that nothing is loaded.
// After CommonMark, https://spec.commonmark.org, and GitHub's tables; without its rarer corners (setext headings, HTML, references).
const DEEPEST = 8, LONGEST = 20000; // of nested blocks; of a paragraph whose emphasis is looked for
const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^\s`]*)[^`]*$/, HEADING = /^ {0,3}(#{1,6})[ \t]+(.*)$/, RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const ITEM = /^([ \t]*)([-*+]|\d{1,9}[.)])[ \t]+(.*)$/, QUOTE = /^ {0,3}>[ ]?(.*)$/, DASHES = /^[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;
const LINK = /\[([^\]\n]{1,500})\]\(([^\s()]{1,2000})\)/y, ADDRESS = /https?:\/\/[^\s<>"'`]{1,2000}/y;

export function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

export function button(label, press) {
  const node = make("button", "", label);
  node.type = "button";
  node.addEventListener("click", press);
  return node;
}

export function copier(text) {
  const node = button("Copy", async () => {
    try {
      await navigator.clipboard.writeText(text());
      node.textContent = "Copied";
    } catch {
      node.textContent = "Copying is not allowed";
    }
    setTimeout(() => { node.textContent = "Copy"; }, 1500);
  });
  return node;
}

// `text` in `node`. While an answer comes, only the blocks that changed are made anew: selections and focus in the others stay.
export function show(node, text) {
  const wanted = blocks(text.replace(/\r\n?/g, "\n").split("\n"));
  const had = [...node.children];
  let same = 0;
  while (same < wanted.length && had[same]?.source === wanted[same].source) same += 1;
  for (const old of had.slice(same)) old.remove();
  for (const block of wanted.slice(same)) {
    const made = build(block, 0);
    made.source = block.source;
    node.append(made);
  }
}

// Lines to blocks, each {kind, lines, source, …}.
function blocks(lines) {
  const found = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) { at += 1; continue; }
    const block = start(lines, at);
    block.source = `${block.kind} ${lines.slice(at, block.end).join("\n")}`;
    found.push(block);
    at = block.end;
  }
  return found;
}

function start(lines, at) {
  const line = lines[at], fence = FENCE.exec(line), heading = HEADING.exec(line);
  if (fence) {
    const closes = (text) => new RegExp(`^ {0,3}${fence[1][0]}{${fence[1].length},}[ \\t]*$`).test(text);
    let end = at + 1;
    while (end < lines.length && !closes(lines[end])) end += 1;
    return { kind: "code", language: fence[2], lines: lines.slice(at + 1, end), end: Math.min(end + 1, lines.length) };
  }
  if (heading) return { kind: "heading", level: heading[1].length, text: heading[2].replace(/[ \t]+#+[ \t]*$/, ""), end: at + 1 };
  if (RULE.test(line)) return { kind: "rule", end: at + 1 };
  if (QUOTE.test(line)) {
    let end = at;
    while (end < lines.length && QUOTE.test(lines[end])) end += 1;
    return { kind: "quote", lines: lines.slice(at, end).map((text) => QUOTE.exec(text)[1]), end };
  }
  if (line.includes("|") && lines[at + 1]?.includes("-") && DASHES.test(lines[at + 1]) && cells(line).length === cells(lines[at + 1]).length) {
    let end = at + 2;
    while (end < lines.length && lines[end].includes("|")) end += 1;
    return { kind: "table", rows: [line, ...lines.slice(at + 2, end)].map(cells), sides: cells(lines[at + 1]), end };
  }
  if (ITEM.test(line)) return list(lines, at);
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !begins(lines[end])) end += 1;
  return { kind: "text", text: lines.slice(at, end).join("\n"), end };
}

// Whether a line ends the paragraph before it. A number other than 1 may be the rest of a sentence.
function begins(line) {
  const item = ITEM.exec(line);
  return FENCE.test(line) || HEADING.test(line) || QUOTE.test(line) || RULE.test(line) || (item && (!/\d/.test(item[2]) || parseInt(item[2], 10) === 1));
}

function cells(line) {
  return line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
}

function list(lines, first) {
  const [, indent, mark] = ITEM.exec(lines[first]), ordered = /\d/.test(mark), items = [];
  const inset = new RegExp(`^(?:\\t| {1,${indent.length + mark.length + 1}})`); // as far as the first item's text
  let at = first;
  while (at < lines.length) {
    const item = ITEM.exec(lines[at]);
    const ours = item && item[1].length < indent.length + 2 && /\d/.test(item[2]) === ordered && !RULE.test(lines[at]);
    if (ours) items.push([item[3]]);
    else if (/^[ \t]{2,}\S/.test(lines[at]) || (lines[at].trim() && lines[at - 1].trim() && !begins(lines[at]))) {
      items.at(-1).push(lines[at].replace(inset, ""));
    } else if (!lines[at].trim() && (/^[ \t]{2,}\S/.test(lines[at + 1] ?? "") || ITEM.test(lines[at + 1] ?? ""))) items.at(-1).push("");
    else break;
    at += 1;
  }
  return { kind: "list", ordered, begin: ordered ? parseInt(mark, 10) : 1, items, end: at };
}

function build(block, depth) {
  const inner = (node, lines) => {
    if (depth >= DEEPEST) node.textContent = lines.join("\n");
    else node.append(...blocks(lines).map((part) => build(part, depth + 1)));
    return node;
  };
  if (block.kind === "code") return code(block);
  if (block.kind === "heading") return inline(make(`h${Math.min(6, block.level + 1)}`), block.text);
  if (block.kind === "rule") return make("hr");
  if (block.kind === "quote") return inner(make("blockquote"), block.lines);
  if (block.kind === "table") return table(block);
  if (block.kind === "text") return inline(make("p"), block.text);
  const node = make(block.ordered ? "ol" : "ul");
  if (block.begin !== 1) node.start = block.begin;
  for (const lines of block.items) {
    const item = inner(make("li"), lines);
    if (item.firstChild?.tagName === "P" && !lines.includes("")) item.firstChild.replaceWith(...item.firstChild.childNodes); // a tight list
    node.append(item);
  }
  return node;
}

function code({ language, lines }) {
  const box = make("div", "code"), bar = make("div", "bar"), pre = make("pre"), text = lines.join("\n");
  bar.append(make("span", "", language), copier(() => text));
  pre.tabIndex = 0; // so that the arrow keys scroll it
  pre.append(make("code", "", text));
  box.append(bar, pre);
  return box;
}

function table({ rows, sides }) {
  const box = make("div", "table"), node = make("table");
  box.tabIndex = 0;
  for (const [number, row] of rows.entries()) {
    const line = make("tr");
    for (const [place, side] of sides.entries()) {
      const cell = inline(make(number ? "td" : "th"), row[place] ?? "");
      if (side.endsWith(":")) cell.className = side.startsWith(":") ? "middle" : "right";
      line.append(cell);
    }
    node.append(line);
  }
  box.append(node);
  return box;
}

function inline(parent, text, depth = 0) {
  if (text.length > LONGEST || depth > DEEPEST) { parent.append(text); return parent; }
  let plain = 0, at = 0;
  while (at < text.length) {
    const found = "\\`*_~[!h".includes(text[at]) ? span(text, at, depth) : null;
    if (found) {
      parent.append(text.slice(plain, at), found.node);
      at = plain = found.end;
    } else at += 1;
  }
  parent.append(text.slice(plain));
  return parent;
}

// What begins at this place of a paragraph, and where it ends.
function span(text, at, depth) {
  const sign = text[at];
  if (sign === "\\") return /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "") ? { node: text[at + 1], end: at + 2 } : null;
  if (sign === "`") {
    let long = 1;
    while (text[at + long] === "`") long += 1;
    const close = text.indexOf("`".repeat(long), at + long);
    if (close < 0 || text[close + long] === "`" ) return { node: "`".repeat(long), end: at + long };
    return { node: make("code", "", text.slice(at + long, close).replace(/^ (.*[^ ].*) $/s, "$1")), end: close + long };
  }
  if (sign === "[" || (sign === "!" && text[at + 1] === "[")) return link(text, sign === "!" ? at + 1 : at, depth);
  if (sign === "h") return /[\w/]/.test(text[at - 1] ?? "") ? null : address(text, at);
  if (sign === "!") return null;
  return emphasis(text, at, depth);
}

function emphasis(text, at, depth) {
  let long = 1;
  while (long < 3 && text[at + long] === text[at]) long += 1;
  const sign = text[at], mark = sign.repeat(long), from = at + long, under = sign === "_";
  if ((sign === "~" && long !== 2) || !/[^\s*_~]/.test(text[from] ?? "") || (under && /\w/.test(text[at - 1] ?? ""))) return null; // snake_case
  const ends = (place) => !/\s/.test(text[place - 1]) && (text[place - 1] !== sign || long > 1) && (text[place + long] !== sign || long === 2)
    && !(under && /\w/.test(text[place + long] ?? ""));
  let close = text.indexOf(mark, from);
  while (close >= 0 && !ends(close)) close = text.indexOf(mark, close + (text[close + long] === sign ? 2 : 1));
  if (close <= from) return null;
  if (long === 2 && text[close + 2] === sign) close += 1; // **a *b***
  const node = make({ 1: "em", 2: sign === "~" ? "del" : "strong", 3: "strong" }[long]);
  const within = long === 3 ? node.appendChild(make("em")) : node;
  inline(within, text.slice(from, close), depth + 1);
  return { node, end: close + long };
}

function anchor(href) {
  const node = make("a");
  node.href = href;
  node.target = "_blank";
  node.rel = "noopener noreferrer nofollow";
  return node;
}

function link(text, at, depth) {
  LINK.lastIndex = at;
  const found = LINK.exec(text);
  if (!found || !/^(?:https?:\/\/|mailto:)/i.test(found[2])) return null; // no javascript:, no data:
  return { node: inline(anchor(found[2]), found[1], depth + DEEPEST), end: LINK.lastIndex };
}

function address(text, at) {
  ADDRESS.lastIndex = at;
  const found = ADDRESS.exec(text)?.[0].replace(/[.,;:!?)\]*_~]+$/, "");
  if (!found || found.length < 10) return null;
  const node = anchor(found);
  node.textContent = found;
  return { node, end: at + found.length };
}

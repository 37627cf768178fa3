"use strict";
// The studio: a page over the server's API. Without framework; what is shown is made by `make`, never from HTML in texts.

const $ = (id) => document.getElementById(id);
const make = (tag, values = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), values);
  node.append(...children);
  return node;
};
const state = { models: [], steer: {}, scale: {}, calls: [] };

// Talking to the server.

function headers(more = {}) {
  const key = $("key").value || sessionStorage.getItem("key");
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
}

async function ask(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: headers(options.headers) });
  if (answer.status === 401) document.querySelector(".key").hidden = false;
  if (!answer.ok) {
    const said = await answer.json().catch(() => null);
    throw new Error(said?.error?.message ?? `${path}: ${answer.status}`);
  }
  return answer;
}

const post = (path, body, more = {}) =>
  ask(path, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" }, ...more });

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

// Pages.

function show(name) {
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const chosen = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", chosen);
    tab.tabIndex = chosen ? 0 : -1;
    $(tab.getAttribute("aria-controls")).hidden = !chosen;
  }
  if (location.hash !== `#${name}`) history.replaceState(null, "", `#${name}`);
}

function moveAlong(event) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const tabs = [...document.querySelectorAll("[role=tab]")].filter((tab) => !tab.hidden);
  const next = tabs[(tabs.indexOf(event.target) + step + tabs.length) % tabs.length];
  next.focus();
  next.click();
}

// What there is.

const writes = (model) => !["reward", "attributes"].includes(model.objective) && !model.error;

async function load() {
  try {
    state.models = (await (await ask("/v1/models")).json()).data;
    notice("");
  } catch (error) {
    notice(error.message);
    return;
  }
  const base = state.models.find((model) => model.kind === "base");
  $("base").textContent = base ? `on ${base.id}` : "";
  const kept = JSON.parse(sessionStorage.getItem("chosen") ?? "null");
  const writers = state.models.filter(writes);
  $("models").replaceChildren(...writers.map((model, index) => choice(model, kept ? kept.includes(model.id) : index < 3)));
  const judges = state.models.filter((model) => ["reward", "attributes"].includes(model.objective));
  $("judge").replaceChildren(new Option("none", ""), ...judges.map((model) => new Option(model.id, model.id)));
  $("entries").replaceChildren(...state.models.map(entry));
  await reports();
}

function choice(model, checked) {
  const box = make("input", { type: "checkbox", value: model.id, checked });
  box.addEventListener("change", () => sessionStorage.setItem("chosen", JSON.stringify(chosen())));
  return make("label", {}, box, ` ${model.id} `, make("small", { textContent: model.kind }));
}

const chosen = () => [...document.querySelectorAll("#models input:checked")].map((box) => box.value);

function entry(model) {
  const made = model.created ? new Date(model.created * 1000).toLocaleString() : "";
  const certificate = make("details", {}, make("summary", { textContent: (model.tensors_sha256 ?? "").slice(0, 12) || "show" }),
    make("pre", { textContent: JSON.stringify(model, null, 1) }));
  const purpose = model.labels ? `labels: ${model.labels.join(", ")}` : model.objective ?? "";
  const cells = [model.id, model.error ?? model.kind, purpose, model.loaded ? "yes" : "when asked", made, certificate];
  return make("tr", {}, ...cells.map((cell) => make("td", {}, cell)));
}

async function reports() {
  const found = (await (await ask("/reports")).json()).data;
  $("no-reports").hidden = found.length > 0;
  $("which-report").hidden = $("report-page").hidden = found.length === 0;
  $("report").replaceChildren(...found.map((each) => new Option(each.name, each.href)));
  if (found.length) openReport();
}

function openReport() {
  $("report-page").src = $("report").value;
}

// Asking.

async function answerAll(event) {
  event?.preventDefault();
  const prompt = $("prompt").value;
  const names = chosen();
  if (!prompt.trim() || !names.length) {
    notice(names.length ? "Write a prompt first." : "Choose at least one customization.");
    return;
  }
  notice("");
  stopAll();
  $("stop").disabled = false;
  const models = names.map((name) => state.models.find((model) => model.id === name));
  const cards = models.map((model) => card(model));
  $("answers").replaceChildren(...cards.map((made) => made.node));
  await Promise.all(cards.map((made) => made.run(prompt)));
  $("stop").disabled = state.calls.length === 0;
}

function stopAll() {
  for (const call of state.calls) call.abort();
  state.calls = [];
}

function card(model) {
  const text = make("div", { className: "text" });
  const facts = make("p", { className: "soft" });
  const worth = make("p", { className: "soft" });
  const title = make("header", {}, make("h2", { textContent: model.id }), make("span", { className: "soft", textContent: model.kind }));
  const node = make("article", { className: "card" }, title);
  const run = (prompt) => stream(model, prompt, text, facts, worth);
  const dials = sliders(model, () => run($("prompt").value));
  if (dials) node.append(dials);
  node.append(text, facts, worth);
  return { node, run };
}

function sliders(model, changed) {
  const rows = [];
  const dial = (name, low, high, step, value, keep) => {
    const shown = make("output", { textContent: value });
    const range = make("input", { type: "range", min: low, max: high, step, value, ariaLabel: `${name} of ${model.id}` });
    range.addEventListener("input", () => { shown.textContent = range.value; keep(Number(range.value)); });
    range.addEventListener("change", changed);
    rows.push(make("span", { textContent: name }), range, shown);
  };
  const steer = model.steer;
  if (steer) {
    const values = (state.steer[model.id] ??= { ...steer.defaults });
    for (const name of steer.names) dial(name, steer.low, steer.high, 1, values[name] ?? steer.low, (value) => { values[name] = value; });
  }
  if (model.scales) dial("scale", 0, 2, 0.1, state.scale[model.id] ?? 1, (value) => { state.scale[model.id] = value; });
  return rows.length ? make("div", { className: "sliders" }, ...rows) : null;
}

async function stream(model, prompt, text, facts, worth) {
  const call = new AbortController();
  state.calls.push(call);
  text.replaceChildren();
  facts.textContent = "…";
  worth.textContent = "";
  const temperature = Number($("temperature").value);
  const body = {
    model: model.id, messages: [{ role: "user", content: prompt }], stream: true, logprobs: true, top_logprobs: 5,
    temperature, seed: Number($("seed").value), max_tokens: Number($("tokens").value), stream_options: { include_usage: true },
  };
  if (model.steer) body.steer = state.steer[model.id];
  const scale = state.scale[model.id];
  if (scale !== undefined && scale !== 1) body.customization_scale = scale;
  const begun = performance.now();
  const letters = new TextDecoder();
  let first = null, said = "", usage = null;
  try {
    const answer = await post("/v1/chat/completions", body, { signal: call.signal });
    for await (const part of events(answer)) {
      if (part.error) throw new Error(part.error.message);
      usage = part.usage ?? usage;
      const choice = part.choices[0];
      if (!choice) continue;
      first ??= performance.now() - begun;
      said += choice.delta.content ?? "";
      for (const each of choice.logprobs?.content ?? []) if (each.bytes) text.append(token(each, letters));
    }
    const seconds = (performance.now() - begun) / 1000;
    if (usage) facts.textContent = `${usage.completion_tokens} tokens in ${seconds.toFixed(1)} s, the first after ${Math.round(first)} ms; prompt ${usage.prompt_tokens}` +
      (usage.prompt_tokens_details.virtual_tokens ? ` and ${usage.prompt_tokens_details.virtual_tokens} virtual` : "");
    await judge(prompt, said, worth);
  } catch (error) {
    facts.textContent = error.name === "AbortError" ? "stopped" : error.message;
  } finally {
    state.calls = state.calls.filter((each) => each !== call);
    $("stop").disabled = state.calls.length === 0;
  }
}

// A special token has no bytes and is not shown; part of a character shows it with its last part.
function token(each, letters) {
  const probability = Math.exp(each.logprob);
  const likely = each.top_logprobs.map((top) => `${JSON.stringify(top.token)} ${(100 * Math.exp(top.logprob)).toFixed(1)}%`);
  const node = make("span", { className: "p", textContent: letters.decode(new Uint8Array(each.bytes), { stream: true }), title: `${(100 * probability).toFixed(1)}%\n\n${likely.join("\n")}` });
  node.style.setProperty("--p", probability.toFixed(3));
  return node;
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n\n");
    rest = lines.pop();
    for (const line of lines) if (line !== "data: [DONE]") yield JSON.parse(line.slice(6));
  }
}

async function judge(prompt, said, worth) {
  const model = $("judge").value;
  if (!model || !said.trim()) return;
  const messages = [{ role: "user", content: prompt }, { role: "assistant", content: said }];
  const found = (await (await post("/pooling", { model, messages })).json()).data[0];
  const values = found.attributes ?? { reward: found.data[0] };
  worth.textContent = `${model}: ${Object.entries(values).map(([name, value]) => `${name} ${value.toFixed(2)}`).join(", ")}`;
}

// Jobs.

async function jobs() {
  const answer = await fetch("/v1/jobs", { headers: headers() });
  $("tab-jobs").hidden = !answer.ok;
  if (!answer.ok) return;
  const listed = (await answer.json()).data;
  $("job-list").replaceChildren(...listed.map(job));
  const busy = listed.some((each) => ["waiting", "running"].includes(each.state));
  clearTimeout(state.polling);
  if (busy) state.polling = setTimeout(jobs, 1500);
  if (state.busy && !busy) load();
  state.busy = busy;
}

function job(each) {
  const over = !["waiting", "running"].includes(each.state);
  const act = make("button", { type: "button", textContent: over ? "Go on" : "Stop", hidden: each.state === "done" });
  act.addEventListener("click", () => tell(`/v1/jobs/${each.id}/${over ? "resume" : "stop"}`));
  const title = make("header", {}, make("h2", { textContent: `${each.command} ${each.name}` }), make("span", { className: "soft", textContent: each.state }), act);
  const node = make("article", { className: "card" }, title);
  if (each.losses?.length > 1) node.append(curve(each.losses));
  if (each.rows?.length) node.append(table(each.rows));
  if (each.command === "look" && each.output) node.append(make("pre", { textContent: each.output }));
  const last = each.log.trim().split("\n").pop();
  if (last) node.append(make("p", { className: "soft", textContent: last }));
  if (each.log.includes("\n")) node.append(make("details", { open: state.open?.has(each.id), ontoggle: (event) => keepOpen(each.id, event.target.open) }, make("summary", { textContent: "Log" }), make("pre", { textContent: each.log })));
  return node;
}

function keepOpen(id, open) {
  state.open ??= new Set();
  if (open) state.open.add(id); else state.open.delete(id);
}

function curve(losses) {
  const svg = (tag, values) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(values)) node.setAttribute(name, value);
    return node;
  };
  const values = losses.map(([, loss]) => loss);
  const low = Math.min(...values), high = Math.max(...values), last = losses.at(-1)[0];
  const points = losses.map(([step, loss]) => `${(300 * step) / last},${62 - (56 * (loss - low)) / (high - low || 1)}`);
  const drawn = svg("svg", { viewBox: "0 0 300 66", class: "curve", role: "img", "aria-label": `Loss from ${values[0].toFixed(3)} to ${values.at(-1).toFixed(3)} in ${last} steps` });
  drawn.append(svg("polyline", { points: points.join(" "), fill: "none", stroke: "currentColor", "stroke-width": 1.5, "vector-effect": "non-scaling-stroke" }));
  return make("figure", {}, drawn, make("figcaption", { className: "soft", textContent: `loss ${values.at(-1).toFixed(3)} at step ${last}` }));
}

function table(rows) {
  const percent = (value) => (value === null ? "" : `${(100 * value).toFixed(1)}%`);
  const lines = rows.map((row) => [row.name, `${percent(row.score)} (${percent(row.score_low)}–${percent(row.score_high)})`, `${(row.seconds ?? 0).toFixed(0)} s`, (row.forgetting_on ?? 0).toFixed(3)]);
  const head = make("tr", {}, ...["Method", "Score", "Training", "Forgetting"].map((name) => make("th", { textContent: name })));
  return make("div", { className: "wide" }, make("table", {}, make("thead", {}, head),
    make("tbody", {}, ...lines.map((line) => make("tr", {}, ...line.map((cell) => make("td", { textContent: cell })))))));
}

async function tell(path, body) {
  try {
    await (body ? post(path, body) : ask(path, { method: "POST" }));
    notice("");
  } catch (error) {
    notice(error.message);
  }
  await jobs();
}

async function startJob(event) {
  event.preventDefault();
  const [file] = $("rows").files;
  const command = $("command").value;
  const body = { command, rows: file.name };
  if ($("template").value) body.template = $("template").value;
  if (command === "train") {
    Object.assign(body, { method: $("method").value, name: $("entry").value });
    if ($("steps").value) body.max_steps = Number($("steps").value);
  }
  if (command === "compare") body.budget = $("budget").value;
  try {
    await ask(`/v1/rows/${encodeURIComponent(file.name)}`, { method: "PUT", body: file });
  } catch (error) {
    notice(error.message);
    return;
  }
  await tell("/v1/jobs", body);
}

function shapeJob() {
  const command = $("command").value;
  for (const name of ["train", "compare"])
    for (const field of document.querySelectorAll(`.for-${name}`)) field.hidden = name !== command;
  $("entry").required = command === "train";
}

// Beginning.

addEventListener("DOMContentLoaded", () => {
  for (const tab of document.querySelectorAll("[role=tab]")) {
    tab.addEventListener("click", () => show(tab.id.slice(4)));
    tab.addEventListener("keydown", moveAlong);
  }
  $("question").addEventListener("submit", answerAll);
  $("stop").addEventListener("click", stopAll);
  $("prompt").addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) answerAll(event); });
  $("prompt").value = sessionStorage.getItem("prompt") ?? "";
  $("prompt").addEventListener("input", () => sessionStorage.setItem("prompt", $("prompt").value));
  $("report").addEventListener("change", openReport);
  $("key").addEventListener("change", () => { sessionStorage.setItem("key", $("key").value); load(); jobs(); });
  $("job").addEventListener("submit", startJob);
  $("command").addEventListener("change", shapeJob);
  shapeJob();
  const wanted = location.hash.slice(1);
  show($(`tab-${wanted}`) ? wanted : "ask");
  load();
  jobs();
});

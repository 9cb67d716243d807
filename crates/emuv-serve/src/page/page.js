// The page itself: asks for a snapshot every second, shows it, says when there is none, and asks for changes.

const EVERY_MILLIS = 1000;
const AFTER_ERROR_MILLIS = 2000;
const PATIENCE_MILLIS = 8000;
const MOST_ROWS = 200;

const $ = (id) => document.getElementById(id);

const page = { gone: false, paused: false, busy: false, token: null, registry: null, snapshot: null, gpus: new Map() };

// --- Asking ---

async function poll() {
  if (page.busy || page.paused || document.hidden) return;
  page.busy = true;
  let wait = EVERY_MILLIS;
  try {
    const response = await fetch("/api/v1/snapshot", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MILLIS) });
    const answer = await response.json().catch(() => ({ error: `the server answers ${response.status}` }));
    if (!response.ok) throw new Error(answer.error ?? `the server answers ${response.status}`);
    if (answer.schema !== 1) throw new Error(`the server speaks schema ${answer.schema}, this page 1; load it again`);
    show(answer);
    connected(answer);
  } catch (error) {
    wait = AFTER_ERROR_MILLIS;
    disconnected(error);
  } finally {
    page.busy = false;
    clearTimeout(page.timer);
    page.timer = setTimeout(poll, wait);
  }
}

function connected(snapshot) {
  status("live", clock(snapshot.time_unix_millis));
  if (!page.gone) return;
  page.gone = false;
  $("alert").hidden = true;
  document.body.classList.remove("stale");
  announce("The server answers again.");
}

function disconnected(error) {
  const unreachable = error instanceof TypeError || error.name === "TimeoutError";
  const since = page.snapshot ? ` What is shown is of ${clock(page.snapshot.time_unix_millis)}.` : "";
  const words = unreachable ? "The server does not answer." : `No figures: ${error.message}.`;
  status("gone", unreachable ? "no answer" : "no figures");
  say($("alert"), `${words}${since} Trying again every ${AFTER_ERROR_MILLIS / 1000} s.`);
  $("alert").hidden = false;
  document.body.classList.add("stale");
  page.gone = true;
}

function status(state, text) {
  $("link").dataset.state = state;
  say($("link-text"), text);
}

/** Says something that is over soon. */
function announce(text) {
  say($("said"), text);
  clearTimeout(page.said);
  page.said = setTimeout(() => say($("said"), ""), 12_000);
}

// --- Showing ---

function show(snapshot) {
  page.snapshot = snapshot;
  showProblems(snapshot.problems);
  showGpus(snapshot);
  slices.update(snapshot.slices);
  say($("slices-count"), snapshot.slices.length ? String(snapshot.slices.length) : "");
  $("no-slices").hidden = snapshot.slices.length > 0;
  showProcesses();
}

function showProblems(problems) {
  $("problems").hidden = problems.length === 0;
  const words = problems.map((problem) => problem.words);
  const list = $("problem-list");
  if ([...list.children].map((item) => item.textContent).join("\n") === words.join("\n")) return;
  list.replaceChildren(...words.map((text) => make("li", "", text)));
}

function showGpus(snapshot) {
  const now = snapshot.time_unix_millis;
  for (const gpu of snapshot.gpus) {
    if (!page.gpus.has(gpu.uuid)) page.gpus.set(gpu.uuid, new GpuPanel());
    page.gpus.get(gpu.uuid).update(gpu, now);
  }
  const there = new Set(snapshot.gpus.map((gpu) => gpu.uuid));
  for (const uuid of page.gpus.keys()) if (!there.has(uuid)) page.gpus.delete(uuid);
  const panels = snapshot.gpus.map((gpu) => page.gpus.get(gpu.uuid).element);
  const shown = [...$("gpus").children];
  if (panels.length !== shown.length || panels.some((panel, index) => panel !== shown[index])) {
    $("gpus").replaceChildren(...panels);
  }
  $("no-gpus").hidden = panels.length > 0;
}

class GpuPanel {
  constructor() {
    this.points = [];
    this.element = make("article", "gpu");
    const facts = make("div", "facts");
    this.name = make("h3");
    this.uuid = make("p", "uuid");
    this.list = make("dl");
    this.meter = new Meter();
    facts.append(this.name, this.uuid, this.list);
    this.values = new Map();
    this.memory = new Chart("Memory", [{ id: "vram", label: "VRAM" }, { id: "ram", label: "RAM" }], "VRAM there is", bytes);
    const moves = [{ id: "in", label: "in" }, { id: "out", label: "out" }, { id: "place", label: "read in RAM" }];
    this.link = new Chart("Over the link", moves, "the link brings", speed);
    this.element.append(facts, this.memory.element, this.link.element);
  }

  fact(name, text) {
    if (!this.values.has(name)) {
      const value = make("dd");
      this.list.append(make("dt", "", name), value);
      this.values.set(name, value);
    }
    say(this.values.get(name), text);
  }

  update(gpu, now) {
    const use = gpu.under_emuv;
    const rates = use.rates;
    const name = gpu.name ?? "GPU";
    say(this.name, known(gpu.index) ? `${gpu.index}: ${name}` : name);
    say(this.uuid, gpu.simulated ? `${gpu.uuid}, simulated` : gpu.uuid);
    this.fact("VRAM in use", bytesOf(gpu.vram_used_bytes, gpu.vram_total_bytes));
    this.fact("of it under emuV", bytes(use.vram_bytes));
    this.fact("spilled to RAM", bytes(use.ram_bytes));
    this.fact("programs", count(use.process_count));
    this.fact("launches", known(rates) ? `${count(rates.launches_per_second)}/s` : UNKNOWN);
    this.fact("GPU waits for data", percent(rates?.gpu_waited_percent));
    if (known(gpu.busy_percent)) this.fact("busy", percent(gpu.busy_percent));
    this.points = this.points.filter((point) => now - point.at <= WINDOW_MILLIS && point.at < now);
    this.points.push({
      at: now,
      vram: gpu.vram_used_bytes ?? use.vram_bytes,
      ram: use.ram_bytes,
      in: rates?.in_bytes_per_second ?? null,
      out: rates?.out_bytes_per_second ?? null,
      place: rates?.in_place_bytes_per_second ?? null,
    });
    this.memory.update(this.points, now, gpu.vram_total_bytes);
    this.link.update(this.points, now, gpu.link?.in_bytes_per_second ?? null);
  }
}

/** How a GPU is called in a table. */
function gpuName(uuid) {
  const gpu = page.snapshot.gpus.find((one) => one.uuid === uuid);
  return gpu && known(gpu.index) ? `GPU ${gpu.index}` : uuid.slice(0, 12);
}

function showGpu(cell, uuid) {
  showText(cell, gpuName(uuid));
  cell.title = uuid;
}

// --- Slices ---

function sliceColumns() {
  const columns = [
    { id: "name", label: "Slice", value: (row) => row.name, show: (cell, row) => { showText(cell, row.name); cell.title = row.dir; } },
    { id: "gpu", label: "GPU", value: (row) => gpuName(row.gpu_uuid), show: (cell, row) => showGpu(cell, row.gpu_uuid) },
    { id: "state", label: "State", value: (row) => sliceState(row)[0], show: showState },
    { id: "vram", label: "VRAM", className: "share", descends: true, value: (row) => row.vram_used_bytes, show: (cell, row) => showShare(cell, row.vram_used_bytes, row.vram_limit_bytes, "fill-vram") },
    { id: "ram", label: "RAM", className: "share", descends: true, value: (row) => row.ram_used_bytes, show: (cell, row) => showShare(cell, row.ram_used_bytes, row.ram_limit_bytes, "fill-ram") },
    { id: "processes", label: "Programs", className: "number", descends: true, value: (row) => row.process_count, show: (cell, row) => showText(cell, count(row.process_count)) },
    { id: "time", label: "GPU time", className: "number", descends: true, value: (row) => row.time?.share_percent, show: (cell, row) => showText(cell, percent(row.time?.share_percent)) },
    { id: "weight", label: "Weight", className: "number", descends: true, value: (row) => row.weight, show: (cell, row) => showText(cell, known(row.cap_percent) ? `${row.weight}, at most ${percent(row.cap_percent)}` : String(row.weight)) },
    { id: "turns", label: "Turns", className: "number", descends: true, value: (row) => row.time?.turns, show: (cell, row) => showText(cell, count(row.time?.turns)) },
  ];
  if (page.token !== null) columns.push({ id: "change", label: "Change", className: "actions-cell", show: showActions });
  return columns;
}

function sliceState(row) {
  if (!row.enabled) return ["disabled", "tag-off"];
  if (row.time?.in_turn) return ["has its turn", "tag-good"];
  if (row.time?.wants) return ["wants the GPU", "tag-warn"];
  return ["enabled", "tag-good"];
}

function showState(cell, row) {
  const [text, className] = sliceState(row);
  if (!cell.firstChild) cell.append(make("span"));
  cell.firstChild.className = `tag ${className}`;
  say(cell.firstChild, text);
  cell.title = row.schedule ? `may be used at ${row.schedule}` : "";
}

function showActions(cell, row) {
  cell.slice = row;
  // Slices of other users are shown, but not ours to change.
  const ours = row.dir === `${page.registry}/${row.name}`;
  if (!cell.firstChild && ours) {
    const box = make("div", "actions");
    const resize = make("button", "", "Resize");
    const enable = make("button");
    resize.addEventListener("click", () => askResize(cell.slice));
    enable.addEventListener("click", () => askEnable(cell.slice));
    for (const button of [resize, enable]) button.type = "button";
    box.append(resize, enable);
    cell.append(box);
    Object.assign(cell, { resize, enable });
  }
  if (!ours) return cell.replaceChildren();
  say(cell.enable, row.enabled ? "Disable" : "Enable");
  cell.resize.setAttribute("aria-label", `Resize ${row.name}`);
  cell.enable.setAttribute("aria-label", `${row.enabled ? "Disable" : "Enable"} ${row.name}`);
}

function makeSlices() {
  return new Table($("slices"), "Slices of GPUs", sliceColumns(), (row) => row.dir, { id: "name", descends: false });
}

let slices = makeSlices();

// --- Processes ---

const processColumns = [
  { id: "program", label: "Program", className: "wide", value: (row) => row.program, show: showProgram },
  { id: "pid", label: "PID", className: "number", value: (row) => row.pid, show: (cell, row) => showText(cell, row.container ? `${row.pid} (container)` : String(row.pid)) },
  { id: "slice", label: "Slice", value: (row) => row.slice, show: (cell, row) => showText(cell, row.slice ?? (row.under_emuv ? "none" : UNKNOWN)) },
  { id: "gpu", label: "GPU", value: (row) => gpuName(row.gpu), show: (cell, row) => showGpu(cell, row.gpu) },
  { id: "vram", label: "VRAM", className: "share", descends: true, value: (row) => row.vram, show: (cell, row) => showShare(cell, row.vram, row.vramMost, "fill-vram") },
  { id: "ram", label: "RAM", className: "share", descends: true, value: (row) => row.ram, show: (cell, row) => showShare(cell, row.ram, row.ramMost, "fill-ram") },
  { id: "in", label: "In", className: "number", descends: true, value: (row) => row.rates?.in_bytes_per_second, show: (cell, row) => showText(cell, speed(row.rates?.in_bytes_per_second)) },
  { id: "out", label: "Out", className: "number", descends: true, value: (row) => row.rates?.out_bytes_per_second, show: (cell, row) => showText(cell, speed(row.rates?.out_bytes_per_second)) },
  { id: "launches", label: "Launches/s", className: "number", descends: true, value: (row) => row.rates?.launches_per_second, show: (cell, row) => showText(cell, count(row.rates?.launches_per_second)) },
  { id: "waits", label: "GPU waits", className: "number", descends: true, value: (row) => row.rates?.gpu_waited_percent, show: (cell, row) => showText(cell, percent(row.rates?.gpu_waited_percent)) },
  { id: "bound", label: "Of bound", className: "number", descends: true, value: (row) => row.bound, show: showBound },
];

function showProgram(cell, row) {
  if (!cell.firstChild) {
    for (const name of ["name", "command", "advice"]) {
      cell[name] = make("span", name);
      cell.append(cell[name]);
    }
  }
  say(cell.name, row.program || "(no name)");
  say(cell.command, row.command);
  say(cell.advice, row.advice);
  cell.advice.hidden = !row.advice;
  cell.title = row.command;
}

function showBound(cell, row) {
  showText(cell, percent(row.bound));
  cell.title = known(row.bound) ? "how close it is to what GPU and link allow" : row.boundUnknown ?? "";
}

const processes = new Table($("processes"), "Programs on GPUs", processColumns, (row) => row.key, { id: "vram", descends: true });

/** A row for each GPU of each process. */
function processRows(snapshot) {
  const rows = snapshot.processes.flatMap((process) =>
    process.devices.map((device) => ({
      key: [process.pid, process.start_ticks, process.run, process.slice_dir, device.ordinal, device.gpu_uuid].join("|"),
      program: process.program,
      command: process.command,
      advice: [device.speed?.warning, device.speed?.remedy].filter(known).join(" "),
      pid: process.pid,
      container: !process.same_pid_namespace,
      slice: process.slice,
      gpu: device.gpu_uuid,
      vram: device.vram.used_bytes,
      vramMost: device.vram.budget_bytes,
      ram: device.ram.used_bytes,
      ramMost: device.ram.budget_bytes ?? process.ram.budget_bytes,
      rates: device.rates,
      bound: device.speed?.percent_of_bound_lately ?? device.speed?.percent_of_bound,
      boundUnknown: device.speed?.unknown_because,
      under_emuv: true,
    })),
  );
  const others = snapshot.others.map((other) => ({
    key: ["other", other.pid, other.gpu_uuid].join("|"),
    program: other.program,
    command: "not under emuV",
    advice: "",
    pid: other.pid,
    slice: null,
    gpu: other.gpu_uuid,
    vram: other.vram_bytes,
    under_emuv: false,
  }));
  return rows.concat(others);
}

function showProcesses() {
  const rows = processRows(page.snapshot);
  const words = $("filter").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
  const text = (row) => `${row.program} ${row.command} ${row.pid} ${row.slice ?? ""} ${row.gpu} ${gpuName(row.gpu)}`.toLowerCase();
  const wanted = rows.filter((row) => words.every((word) => text(row).includes(word)));
  const weight = (row) => (row.vram ?? 0) + (row.ram ?? 0);
  const shown = wanted.length > MOST_ROWS ? [...wanted].sort((a, b) => weight(b) - weight(a)).slice(0, MOST_ROWS) : wanted;
  processes.update(shown);
  const all = rows.length === wanted.length ? String(rows.length) : `${wanted.length} of ${rows.length}`;
  say($("processes-count"), rows.length ? all : "");
  $("no-processes").hidden = rows.length > 0;
  $("more-processes").hidden = shown.length === wanted.length;
  say($("more-processes"), `The ${MOST_ROWS} that hold most are shown; the filter finds the others.`);
}

// --- Changes ---

async function ask(method, path, body) {
  const headers = { Authorization: `Bearer ${page.token}` };
  if (body) headers["Content-Type"] = "application/json";
  const options = { method, headers, body: body && JSON.stringify(body), signal: AbortSignal.timeout(PATIENCE_MILLIS) };
  const response = await fetch(path, options).catch(() => {
    throw new Error("the server does not answer; nothing is known to have changed");
  });
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error ?? `the server answers ${response.status}`);
  return answer;
}

/** Opens a dialog whose form does something that may be refused; what is wrong is said in it. */
function open(name, act) {
  const dialog = $(`${name}-dialog`);
  const error = $(`${name}-error`);
  const form = $(`${name}-form`);
  error.textContent = "";
  form.onsubmit = async (event) => {
    event.preventDefault();
    const button = form.querySelector("[type=submit]");
    button.disabled = true;
    error.textContent = "";
    try {
      await act();
      dialog.close();
      poll();
    } catch (failure) {
      error.textContent = failure.message;
    } finally {
      button.disabled = false;
    }
  };
  dialog.showModal();
}

function unlock() {
  $("token").value = "";
  open("token", async () => {
    page.token = $("token").value.trim();
    try {
      page.registry = (await ask("GET", "/api/v1/admin")).registry;
    } catch (failure) {
      page.token = null;
      throw failure;
    }
    $("token").value = "";
    lockChanged("Changes are unlocked.");
  });
}

function lockChanged(words) {
  say($("unlock"), page.token === null ? "Unlock changes" : "Lock changes");
  slices = makeSlices();
  if (page.snapshot) slices.update(page.snapshot.slices);
  announce(words);
}

function askResize(slice) {
  const exact = (value) => {
    for (const [unit, size] of [["T", 2 ** 40], ["G", 2 ** 30], ["M", 2 ** 20], ["K", 2 ** 10]]) {
      if (value >= size && (value / size) * 100 % 1 === 0) return `${value / size}${unit}`;
    }
    return String(value);
  };
  $("resize-title").textContent = `Resize ${slice.name}`;
  $("resize-vram").value = exact(slice.vram_limit_bytes);
  $("resize-ram").value = exact(slice.ram_limit_bytes);
  $("resize-weight").value = String(slice.weight);
  $("resize-cap").value = slice.cap_percent ?? "";
  $("resize-overcommit").checked = false;
  open("resize", async () => {
    const number = (id, words) => {
      const text = $(id).value.trim();
      if (text === "") return undefined; // It stays.
      if (!/^\d{1,9}$/.test(text)) throw new Error(`${words}: '${text}' is not a whole number`);
      return Number(text);
    };
    if (known(slice.cap_percent) && $("resize-cap").value.trim() === "") throw new Error("cap: 100 lifts it");
    const body = {
      vram: $("resize-vram").value.trim(),
      ram: $("resize-ram").value.trim(),
      weight: number("resize-weight", "weight"),
      cap_percent: number("resize-cap", "cap"),
      overcommit: $("resize-overcommit").checked,
    };
    const { notes } = await ask("POST", `/api/v1/slices/${encodeURIComponent(slice.name)}/resize`, body);
    announce([`${slice.name} is resized.`, ...notes].join(" "));
  });
}

function askEnable(slice) {
  const act = async (what) => {
    await ask("POST", `/api/v1/slices/${encodeURIComponent(slice.name)}/${what}`);
    announce(`${slice.name} is ${what}d.`);
  };
  $("disable-title").textContent = `${slice.enabled ? "Disable" : "Enable"} ${slice.name}`;
  const button = $("disable-form").querySelector("[type=submit]");
  button.textContent = slice.enabled ? "Disable" : "Enable";
  button.classList.toggle("danger", slice.enabled);
  $("disable-words").textContent = slice.enabled
    ? "No more programs are let in, and those that are there get no more memory. They keep what they have."
    : "Programs may be started in it again, and those that are there may get more memory.";
  open("disable", () => act(slice.enabled ? "disable" : "enable"));
}

// --- Start ---

say($("host"), location.host);
$("unlock").hidden = document.body.dataset.admin !== "true";
$("unlock").addEventListener("click", () => {
  if (page.token === null) return unlock();
  page.token = null;
  lockChanged("Changes are locked.");
});
$("pause").addEventListener("click", () => {
  page.paused = !page.paused;
  $("pause").setAttribute("aria-pressed", String(page.paused));
  say($("pause"), page.paused ? "Go on" : "Pause");
  if (page.paused) status("wait", "paused");
  poll();
});
$("filter").addEventListener("input", () => page.snapshot && showProcesses());
for (const button of document.querySelectorAll("[data-close]")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}
document.addEventListener("visibilitychange", poll);
poll();

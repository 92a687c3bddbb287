"use strict";

const $ = (id) => document.getElementById(id);
const euros = (cents) => (cents / 100).toLocaleString("en", { style: "currency", currency: "EUR" });
const seconds = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const random = () => Array.from(crypto.getRandomValues(new Uint8Array(6)), (byte) => byte.toString(16).padStart(2, "0")).join("");

// Each visitor is a tenant of their own, and sees only their own keys.
const tenant = sessionStorage.getItem("tenant") ?? `page-${random()}`;
sessionStorage.setItem("tenant", tenant);

/** Makes an element: `make("li", "request", "text")`. */
function make(tag, name = "", text = "") {
  const element = document.createElement(tag);
  element.className = name;
  element.textContent = text;
  return element;
}

function say(text) {
  $("said").textContent = text;
}

// ---- Runs: what one press of a button has sent, and what became of each request

const WORDS = {
  charged: "charged", replayed: "replayed", locked: "locked", unavailable: "not available",
  late: "came too late", unknown: "provider failed", refused: "refused", mistaken: "not accepted", failed: "failed",
};
const KEPT_RUNS = 10;
const runs = new Map();

function runOf(key, title = "Sent from elsewhere", what = "") {
  const known = runs.get(key);
  if (known) return known;
  const element = make("li", "run");
  const heading = make("h3");
  heading.append(make("span", "", title), make("small", "", what ? `${what} · ${key}` : key));
  const run = { requests: new Map(), sum: make("p", "sum", "sending"), timeline: make("ol", "timeline"), element };
  element.append(heading, run.sum, run.timeline);
  $("runs").prepend(element);
  $("no-runs").hidden = true;
  runs.set(key, run);
  if (runs.size > KEPT_RUNS) {
    const [oldest, { element: gone }] = runs.entries().next().value;
    runs.delete(oldest);
    gone.remove();
  }
  return run;
}

function showRequest({ number, key, status, outcome, retry_after, took_ms }) {
  const run = runOf(key);
  let request = run.requests.get(number);
  if (!request) {
    request = { element: make("li", "request", "sent"), outcome: null };
    run.requests.set(number, request);
    run.timeline.append(request.element);
  }
  if (outcome) {
    request.outcome = outcome;
    const text = make("span");
    text.append(make("b", "", status), ` ${WORDS[outcome] ?? outcome}`);
    const wait = retry_after ? `wait ${retry_after} s` : seconds(took_ms);
    request.element.replaceChildren(text, make("small", "", wait));
    request.element.className = `request ${outcome}`;
    if (outcome === "charged") refreshSoon();
  }
  run.sum.textContent = summary(run);
}

function summary(run) {
  // What was charged comes first, whoever was answered first.
  const counts = new Map([...Object.values(WORDS), "on the way"].map((word) => [word, 0]));
  for (const { outcome } of run.requests.values()) {
    const word = outcome ? WORDS[outcome] ?? outcome : "on the way";
    counts.set(word, (counts.get(word) ?? 0) + 1);
  }
  const parts = Array.from(counts).filter(([, count]) => count).map(([word, count]) => `${count} ${word}`);
  return `${run.requests.size} ${run.requests.size === 1 ? "request" : "requests"}: ${parts.join(", ")}`;
}

// ---- Sending

async function post(path, key, body, headers = {}) {
  const response = await fetch(path, {
    method: "POST",
    headers: { "content-type": "application/json", "idempotency-key": key, "x-tenant": tenant, ...headers },
    body: JSON.stringify(body),
  });
  const answer = response.status === 204 ? {} : await response.json();
  return { status: response.status, answer };
}

const pay = (key, payment, headers) => post("/payments", key, payment, headers);

const actions = {
  async once(key, payment) {
    return pay(key, payment);
  },
  async burst(key, payment) {
    await post("/demo/bursts", key, { times: 20, payment });
    return pay(key, payment);
  },
  async slow(key, payment) {
    const first = pay(key, payment, { "x-provider-delay": "4000" });
    for (let more = 0; more < 3; more += 1) {
      await pause(900);
      await pay(key, payment);
    }
    await first;
    return pay(key, payment);
  },
};

// The events that show these requests may come later than their answers.
const SENT = { once: 1, burst: 21, slow: 5 };
const TITLES = { once: "Paid once", burst: "20 times at once, then once more", slow: "Slow provider" };

async function act(what) {
  const payment = { account: $("account").value, amount_cents: Math.round(Number($("amount").value) * 100) };
  const key = `${what}-${random()}`;
  runOf(key, TITLES[what], `${euros(payment.amount_cents)} from ${payment.account}`);
  say(`Sending ${euros(payment.amount_cents)} from ${payment.account} …`);
  try {
    const { status, answer } = await actions[what](key, payment);
    charge = answer.payment_id ?? charge;
    const entries = await refresh();
    const booked = entries.filter((entry) => entry.payment_id === answer.payment_id).length;
    const sent = SENT[what];
    say(status === 201
      ? `${sent} ${sent === 1 ? "request" : "requests"}, ${booked === 1 ? "one charge" : `${booked} charges`} of ${euros(payment.amount_cents)}.`
      : `Not charged (${status}): ${answer.detail ?? "no reason given"}.`);
  } catch {
    say("The service did not answer. Is it still running?");
  }
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  act(event.submitter?.dataset.do ?? "once");
});

// ---- Locks

const shownLocks = new Map();
const FREED_FOR = 2500;

function showLocks({ locks, of_others }) {
  const held = new Set(locks.map((lock) => lock.number));
  for (const lock of locks) {
    let shown = shownLocks.get(lock.number);
    if (!shown) {
      const element = make("li");
      shown = { element, text: make("span", "", `${lock.key}: ${euros(lock.amount_cents)} from ${lock.account}`), bar: make("progress"), note: make("small"), fence: lock.fence };
      shown.bar.setAttribute("aria-label", "time until the lock runs out");
      element.append(shown.text, shown.bar, shown.note);
      $("locks").prepend(element);
      shownLocks.set(lock.number, shown);
    }
    Object.assign(shown, { since: performance.now() - lock.held_ms, until: performance.now() + lock.remaining_ms });
    shown.bar.max = Math.max(shown.bar.max, lock.remaining_ms, 1000);
  }
  for (const [number, shown] of shownLocks) {
    if (held.has(number) || shown.freed) continue;
    shown.freed = true;
    shown.element.className = "freed";
    shown.bar.value = 0;
    shown.note.textContent = "given back";
    setTimeout(() => { shown.element.remove(); shownLocks.delete(number); showNone(); }, FREED_FOR);
  }
  others = of_others;
  showNone();
}

let others = 0;
function showNone() {
  const elsewhere = others ? `Other visitors hold ${others}.` : "";
  $("no-locks").textContent = shownLocks.size ? elsewhere : elsewhere || "No lock is held.";
}

function tickLocks() {
  const now = performance.now();
  for (const shown of shownLocks.values()) {
    if (shown.freed) continue;
    const left = Math.max(0, shown.until - now);
    shown.bar.value = left;
    const fence = shown.fence ? `, fencing token ${shown.fence}` : "";
    shown.note.textContent = `held for ${seconds(now - shown.since)}, valid for ${seconds(left)} unless renewed${fence}`;
  }
}
setInterval(tickLocks, 200);

// ---- Ledger

let charge = null;
let refreshing = 0;

function refreshSoon() {
  clearTimeout(refreshing);
  refreshing = setTimeout(refresh, 100);
}

async function refresh() {
  const account = $("account").value;
  const [shown, entries] = await Promise.all([`/accounts/${account}`, `/accounts/${account}/ledger`].map(async (path) => (await fetch(path)).json()));
  $("ledger-account").textContent = account;
  $("balance").textContent = euros(shown.balance_cents);
  $("charges").textContent = `${shown.charges} ${shown.charges === 1 ? "charge" : "charges"}`;
  $("entries").replaceChildren(...entries.map((entry) => {
    const row = make("tr", entry.payment_id && entry.payment_id === charge ? "mine" : "");
    // The first 48 bits of the id are the time.
    const at = new Date(parseInt(entry.entry.replaceAll("-", "").slice(0, 12), 16));
    const payment = make("td", "", entry.payment_id ? `…${entry.payment_id.slice(-8)}` : "withdrawal");
    if (row.className) payment.append(make("small", "", "this charge"));
    row.append(make("td", "", at.toLocaleTimeString("en-GB")), payment, make("td", "amount", euros(entry.amount_cents)));
    return row;
  }));
  $("entries-table").hidden = entries.length === 0;
  $("no-entries").hidden = entries.length > 0;
  return entries;
}

$("account").addEventListener("change", refresh);

// ---- Servers

const STATES = { votes: "votes", quarantined: "in quarantine", silent: "silent", unreachable: "unreachable" };
let own = false;

/** Makes the row of a server. Its button stays in place when the state changes, and keeps the focus. */
function serverRow(index) {
  const row = make("li");
  const name = make("span", "", `Redis ${index + 1} `);
  row.state = make("span", "state");
  row.countdown = make("small");
  name.append(row.state, row.countdown);
  row.append(name);
  if (own) {
    row.turn = make("button");
    row.turn.type = "button";
    row.turn.addEventListener("click", () => turn(index, row.runs ? "stop" : "start"));
    row.append(row.turn);
  }
  $("servers").append(row);
  return row;
}

function showServer(row, index, { state, votes_in_ms }) {
  row.runs = state === "votes" || state === "quarantined";
  row.votesAt = votes_in_ms === undefined ? null : performance.now() + votes_in_ms;
  row.state.textContent = own && state === "unreachable" ? "stopped" : STATES[state];
  row.state.className = `state ${state}`;
  row.dataset.state = state;
  if (row.turn) {
    row.turn.textContent = row.runs ? "Stop" : "Start again";
    row.turn.setAttribute("aria-label", row.runs ? `Stop Redis ${index + 1}` : `Start Redis ${index + 1} again`);
  }
  tickServer(row);
}

function tickServer(row) {
  const left = row.votesAt === null ? 0 : Math.ceil((row.votesAt - performance.now()) / 1000);
  row.countdown.textContent = left > 0 ? `votes in ${left} s` : "";
}
setInterval(() => Array.from($("servers").children).forEach(tickServer), 250);

async function showServers() {
  const { majority, servers } = await (await fetch("/demo/servers")).json();
  const voting = servers.filter(({ state }) => state === "votes").length;
  const text = `${voting} of ${servers.length} vote: ${majority ? "a majority, payments are taken." : "no majority, payments get 503."}`;
  if ($("majority").textContent !== text) $("majority").textContent = text;
  servers.forEach((server, index) => showServer($("servers").children[index] ?? serverRow(index), index, server));
  const running = Array.from($("servers").children).some((row) => row.runs);
  $("stop").disabled = !running;
  $("stop-note").textContent = own && !running ? "All of them are stopped. Start one again in the list of lock servers." : "";
}

async function turn(index, what) {
  try {
    const { ok } = await fetch(`/demo/servers/${index}/${what}`, { method: "POST" });
    const done = what === "stop"
      ? `Redis ${index + 1} was killed, and its data is gone.`
      : `Redis ${index + 1} is back, empty. It votes again when the locks that it may have forgotten have expired.`;
    say(ok ? done : `Redis ${index + 1} could not be ${what === "stop" ? "stopped" : "started"}.`);
    await showServers();
  } catch {
    say("The service did not answer. Is it still running?");
  }
}

$("stop").addEventListener("click", async () => {
  const rows = Array.from($("servers").children);
  const voting = rows.findIndex((row) => row.dataset.state === "votes");
  const running = voting >= 0 ? voting : rows.findIndex((row) => row.runs);
  if (running >= 0) await turn(running, "stop");
});

// ---- Beginning

const WHERE = { memory: "in memory", servers: "on Redis", own: "on its own Redis" };
const COMMAND = "cargo run -p payments -- --with-redis 3";

const AGAIN = 5000;

function listen() {
  const events = new EventSource(`/events?tenant=${encodeURIComponent(tenant)}`);
  events.addEventListener("open", () => { $("live").textContent = "live"; });
  events.addEventListener("error", () => {
    // Closed: the service has refused, for example because of too many readers.
    const refused = events.readyState === EventSource.CLOSED;
    $("live").textContent = refused ? "busy, trying again" : "reconnecting";
    if (refused) setTimeout(listen, AGAIN);
  });
  events.addEventListener("request", (event) => showRequest(JSON.parse(event.data)));
  events.addEventListener("locks", (event) => showLocks(JSON.parse(event.data)));
  events.addEventListener("missed", (event) => { say(`${event.data} events came too fast to be shown.`); refreshSoon(); });
}

async function begin() {
  const about = await (await fetch("/demo")).json();
  own = about.locks === "own";
  $("where").textContent = WHERE[about.locks] ?? "unknown";
  $("database").textContent = about.database;
  $("account").replaceChildren(...about.accounts.map((name) => make("option", "", name)));
  if (about.locks === "memory") {
    $("notice").replaceChildren(
      "Locks are kept in the memory of this process, because it was started without lock servers. To start it with three: ",
      make("code", "", COMMAND),
    );
    $("notice").hidden = false;
  }
  $("stop").hidden = !own;
  listen();
  await refresh();
  if (about.locks !== "memory") {
    $("servers-card").hidden = false;
    for (;;) {
      await showServers().catch(() => {});
      await pause(1000);
    }
  }
}

begin().catch(() => say("The service did not answer. Is it still running? Then load the page again."));

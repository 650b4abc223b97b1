// The dirtometer's page. It is sent snapshots and draws them; it asks for
// nothing else. Shapes say what colours say.
"use strict";

const states = [
	["F", "being fetched", "--fetching"],
	["M", "modified now", "--modified"],
	["A", "accessed now", "--accessed"],
	["m", "modified before", "--before"],
	["h", "here", "--here"],
	[".", "absent", "--absent"],
	["0", "zeros", "--zeros"],
];
const names = Object.fromEntries(states.map(([s, text]) => [s, text]));
let colours = {};

function readColours() {
	const css = getComputedStyle(document.documentElement);
	for (const [s, , name] of states) colours[s] = css.getPropertyValue(name).trim();
	for (const name of ["rate", "faint", "line", "modified"]) colours[name] = css.getPropertyValue("--" + name).trim();
}

function bytes(n) {
	const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
	let u = 0;
	while (n >= 1023.95 && u < units.length - 1) { n /= 1024; u++; }
	return n.toFixed(u ? 1 : 0) + " " + units[u];
}
const rate = f => f.rate >= 0.5 ? bytes(f.rate) + "/s" : "";
const percent = p => p < 0 ? "–" : (p > 99 && p < 100 ? (Math.floor(p * 10) / 10).toFixed(1) : p.toFixed(0)) + " %";
function took(ns) {
	if (!(ns > 0)) return "–";
	if (ns < 1e6) return (ns / 1e3).toFixed(0) + " µs";
	if (ns < 1e7) return (ns / 1e6).toFixed(1) + " ms";
	if (ns < 1e9) return (ns / 1e6).toFixed(0) + " ms";
	return (ns / 1e9).toFixed(1) + " s";
}
function uptime(s) {
	s = Math.max(0, Math.round(s));
	const two = n => String(n).padStart(2, "0");
	return Math.floor(s / 3600) + ":" + two(Math.floor(s / 60) % 60) + ":" + two(s % 60);
}

function make(kind, parent, text, cls) {
	const e = document.createElement(kind);
	if (text !== undefined) e.textContent = text;
	if (cls) e.className = cls;
	parent.append(e);
	return e;
}
function set(e, text) { if (e.textContent !== text) e.textContent = text; }

// sized makes a canvas as sharp as the screen, and gives its context in CSS pixels.
function sized(canvas, w, h) {
	const d = window.devicePixelRatio || 1;
	canvas.width = Math.round(w * d);
	canvas.height = Math.round(h * d);
	const g = canvas.getContext("2d");
	g.scale(d, d);
	return g;
}

// cell draws one cell of side n at x, y: each state in a shape of its own.
function cell(g, state, share, x, y, n) {
	const c = n / 2, in1 = n > 6 ? 1 : 0.5, side = n - 2 * in1;
	g.fillStyle = g.strokeStyle = colours[state] || colours.faint;
	g.globalAlpha = 0.4 + 0.6 * share / 9;
	switch (state) {
	case "F":
		g.lineWidth = Math.max(1, n / 5);
		g.beginPath(); g.arc(x + c, y + c, (n - g.lineWidth) / 2 - in1 / 2, 0, 7); g.stroke();
		break;
	case "M": g.fillRect(x + in1, y + in1, side, side); break;
	case "A": g.beginPath(); g.arc(x + c, y + c, side / 2, 0, 7); g.fill(); break;
	case "m":
		g.beginPath(); g.moveTo(x + in1, y + in1); g.lineTo(x + in1, y + n - in1); g.lineTo(x + n - in1, y + n - in1); g.fill();
		break;
	case "h": g.fillRect(x + n * 0.22, y + n * 0.22, n * 0.56, n * 0.56); break;
	case ".": g.lineWidth = 1; g.strokeRect(x + in1 + 0.5, y + in1 + 0.5, side - 1, side - 1); break;
	default: g.fillRect(x + c - 0.75, y + c - 0.75, 1.5, 1.5);
	}
	g.globalAlpha = 1;
}

const history = 120; // samples of a spark line
const cards = {};

function card(name) {
	if (cards[name]) return cards[name];
	const c = cards[name] = { name, reads: [], writes: [] };
	const a = make("article", document.getElementById("images"));
	const h = make("h2", a, name + " ");
	c.size = make("small", h);
	c.map = make("canvas", a, undefined, "map");
	c.map.id = name + "-map";
	c.map.setAttribute("role", "img");
	c.under = make("div", a, "", "cell");
	c.map.addEventListener("mousemove", e => { c.at = [e.offsetX, e.offsetY]; point(c); });
	c.map.addEventListener("mouseleave", () => { c.at = null; point(c); });
	const here = make("label", a, undefined, "key");
	c.here = make("span", here);
	c.here.id = name + "-here";
	c.bar = make("progress", here);
	c.spark = make("canvas", a, undefined, "spark");
	c.spark.setAttribute("role", "img");
	c.spark.setAttribute("aria-label", "reads and writes over the last minute");
	make("div", a, "▲ guest reads up, ▼ guest writes down, the last minute", "key");
	const dl = make("dl", a);
	c.rows = {};
	for (const [id, label] of [["read", "guest read"], ["written", "guest wrote"], ["network", "from network"], ["loaded", "chunks loaded"],
		["accessed", "accessed"], ["modified", "modified now"], ["pending", "pending"], ["hits", "cache hits"], ["spared", "spared the network"],
		["latency", "fetch latency"], ["waiting", "guest waits for"]]) {
		make("dt", dl, label);
		const value = make("dd", dl, "");
		value.id = name + "-" + id;
		c.rows[id] = [value, make("dd", dl, "", "rate")];
	}
	return c;
}

function point(c) {
	const m = c.image && c.image.map;
	if (!m) return;
	let text = "a cell is " + bytes(m.per_cell * c.image.chunk_size);
	if (c.at) {
		const i = Math.floor(c.at[1] / c.n) * c.columns + Math.floor(c.at[0] / c.n);
		if (c.at[0] < c.columns * c.n && i < m.cells.length) {
			text = "at " + bytes(i * m.per_cell * c.image.chunk_size) + ": " + (names[m.cells[i]] || "?");
			if (m.per_cell > 1) text += ", " + Math.round(+m.shares[i] / 9 * 100) + " % of " + m.per_cell + " chunks";
		}
	}
	set(c.under, text);
}

function drawMap(c) {
	const m = c.image.map, w = c.map.clientWidth;
	if (!w) return;
	c.n = Math.max(4, Math.min(14, Math.floor(Math.sqrt(w * 320 / Math.max(1, m.cells.length)))));
	c.columns = Math.max(1, Math.floor(w / c.n));
	const rows = Math.ceil(m.cells.length / c.columns), h = rows * c.n;
	c.map.style.height = h + "px";
	const g = sized(c.map, w, h);
	for (let i = 0; i < m.cells.length; i++)
		cell(g, m.cells[i], +m.shares[i], i % c.columns * c.n, Math.floor(i / c.columns) * c.n, c.n);
	c.map.setAttribute("aria-label", "map of the " + c.name + ": " +
		states.filter(([s]) => m.counts[s]).map(([s, text]) => m.counts[s] + " chunks " + text).join(", "));
	point(c);
}

function drawSpark(c) {
	const w = c.spark.clientWidth, h = c.spark.clientHeight, mid = h / 2;
	if (!w) return;
	const g = sized(c.spark, w, h), top = Math.max(1, ...c.reads, ...c.writes), step = w / history;
	g.fillStyle = colours.line;
	g.fillRect(0, mid - 0.5, w, 1);
	c.reads.forEach((r, i) => {
		const x = w - (c.reads.length - i) * step;
		g.fillStyle = colours.rate;
		g.fillRect(x, mid - 1 - r / top * (mid - 2), Math.max(1, step - 1), r / top * (mid - 2));
		g.fillStyle = colours.modified;
		g.fillRect(x, mid + 1, Math.max(1, step - 1), c.writes[i] / top * (mid - 2));
	});
}

const chunks = (im, n) => bytes(n * im.chunk_size) + ", " + n + " chunks";
const latency = l => l.p50 > 0 ? "p50 " + took(l.p50) + ", p90 " + took(l.p90) + ", p99 " + took(l.p99) : "–";

function show(s) {
	set(document.getElementById("parcel"), s.parcel);
	document.title = s.parcel + " – isr dirtometer";
	set(document.getElementById("about"), "version " + s.version + " · " + s.vmm + (s.offline ? " · disconnected" : "") +
		" · running " + uptime((new Date(s.time) - new Date(s.since)) / 1000));
	const totals = {};
	for (const im of s.images) {
		const c = card(im.name), r = c.rows;
		c.image = im;
		for (const [k] of states) totals[k] = (totals[k] || 0) + (im.map.counts[k] || 0);
		c.reads.push(im.read.rate); c.writes.push(im.written.rate);
		if (c.reads.length > history) { c.reads.shift(); c.writes.shift(); }
		set(c.size, bytes(im.size));
		set(c.here, !im.surveyed ? "on this host: looking" : im.stored === 0 ? "on this host: nothing stored" :
			"on this host: " + im.here + " of " + im.stored + " chunks, " + percent(100 * im.here / im.stored) +
			(im.here_rate >= 0.5 ? ", +" + im.here_rate.toFixed(0) + "/s" : ""));
		c.bar.max = Math.max(1, im.stored); c.bar.value = im.here;
		const put = (id, text, flow) => { set(r[id][0], text); set(r[id][1], flow ? rate(flow) : ""); };
		for (const id of ["read", "written", "network", "loaded"]) put(id, bytes(im[id].bytes), im[id]);
		put("accessed", chunks(im, im.accessed));
		put("modified", chunks(im, im.modified_now));
		put("pending", chunks(im, im.pending));
		put("hits", percent(im.hits) + (im.evictions ? ", " + im.evictions + " evicted" : ""));
		put("spared", percent(im.spared));
		put("latency", latency(im.latency));
		put("waiting", im.waiting ? im.waiting + " chunks, " + took(im.waiting_for) : "–");
		r.waiting[0].className = im.waiting ? "wait" : "";
		drawMap(c);
		drawSpark(c);
	}
	for (const [k] of states) set(document.getElementById("count-" + k.charCodeAt(0)), String(totals[k] || 0));
	const body = document.getElementById("rungs");
	while (body.rows.length > s.rungs.length) body.deleteRow(-1);
	s.rungs.forEach((g, i) => {
		const row = body.rows[i] || body.insertRow();
		[g.name, String(g.objects), bytes(g.bytes.bytes), rate(g.bytes), percent(g.hits), took(g.latency.p50), took(g.latency.p90),
			took(g.latency.p99), took(g.max), String(g.errors)].forEach((text, j) => set(row.cells[j] || row.insertCell(), text));
	});
	const net = document.getElementById("network");
	if (!net.children.length) {
		for (const [id, label] of [["in", "network in"], ["out", "network out"], ["prefetch", "prefetch"]]) {
			make("dt", net, label);
			make("dd", net, "").id = "net-" + id;
			make("dd", net, "", "rate").id = "net-" + id + "-rate";
		}
	}
	for (const id of ["in", "out"]) {
		set(document.getElementById("net-" + id), bytes(s[id].bytes));
		set(document.getElementById("net-" + id + "-rate"), rate(s[id]));
	}
	const p = s.prefetch;
	set(document.getElementById("net-prefetch"), p.total ? p.done + " of " + p.total + " objects" + (p.over ? ", done" : "") : "none");
}

function status(text, cls) {
	const e = document.getElementById("status");
	set(e, text);
	e.className = cls;
}

function legend() {
	const l = document.getElementById("legend");
	l.replaceChildren();
	for (const [s, text] of states) {
		const span = make("span", l);
		const c = make("canvas", span);
		cell(sized(c, 16, 16), s, 9, 1, 1, 14);
		span.append(text + " ");
		make("b", span, "0").id = "count-" + s.charCodeAt(0);
	}
}

let last;
function redraw() {
	readColours();
	legend();
	if (last) show(last);
}
redraw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
addEventListener("resize", () => Object.values(cards).forEach(c => { drawMap(c); drawSpark(c); }));

const events = new EventSource("/events");
events.onmessage = e => { last = JSON.parse(e.data); status("live", ""); show(last); };
events.addEventListener("over", () => { events.close(); status("the run is over", "over"); });
events.onerror = () => status("isr is gone", "lost");

-- The metrics of the pilot's study, section 3.5, a view or more for each.

CREATE VIEW months AS
 SELECT month FROM events UNION SELECT substr(time, 1, 7) FROM realm UNION SELECT substr(day, 1, 7) FROM totals;

-- A: acceptance
CREATE VIEW a1_agreed AS
 SELECT m.month, count(u.user) AS agreed FROM months m LEFT JOIN users u ON substr(u.since, 1, 7) <= m.month GROUP BY m.month ORDER BY m.month;
CREATE VIEW a2_active AS
 SELECT m.month, count(DISTINCT s.user) AS active FROM months m LEFT JOIN sessions s
  ON s.month <= m.month AND (s."end" IS NULL OR substr(s."end", 1, 7) >= m.month) GROUP BY m.month ORDER BY m.month;
CREATE VIEW a3_change AS
 SELECT month, agreed, agreed - lag(agreed, 1, 0) OVER (ORDER BY month) AS agreed_change,
  active, active - lag(active, 1, 0) OVER (ORDER BY month) AS active_change
 FROM a1_agreed JOIN a2_active USING (month);
CREATE VIEW surveys AS
 SELECT day, month, user, topic AS question, score, text FROM manual WHERE kind = 'survey';
CREATE VIEW support AS
 SELECT day, month, user, topic AS type, cause, minutes, text FROM manual WHERE kind = 'support';
CREATE VIEW exits AS
 SELECT day, month, user, topic AS reason, text FROM manual WHERE kind = 'exit';
CREATE VIEW a4_groups AS
 SELECT coalesce(g.grp, 'none') AS grp, count(*) AS users FROM users u LEFT JOIN groups g USING (user) GROUP BY 1 ORDER BY 2 DESC, 1;
CREATE VIEW a5_host AS
 SELECT month, count(*) AS answers, avg(score) AS mean FROM surveys WHERE question = 'host' GROUP BY month;
CREATE VIEW a6_useful AS
 SELECT month, count(*) AS answers, avg(score) AS mean FROM surveys WHERE question = 'useful' GROUP BY month;
CREATE VIEW a7_satisfaction AS
 SELECT month, question, count(*) AS answers, avg(score) AS mean FROM surveys WHERE question IN ('function', 'speed') GROUP BY month, question;
CREATE VIEW a8_expectations AS
 SELECT month, count(*) AS answers, avg(score) AS mean FROM surveys WHERE question = 'expected' GROUP BY month;
CREATE VIEW a9_exits AS
 SELECT reason, count(*) AS users FROM exits GROUP BY reason ORDER BY 2 DESC, 1;

-- B: use
CREATE VIEW b1_resumes AS
 SELECT w.week, (SELECT count(*) FROM sessions s WHERE s.week = w.week) AS checkouts,
  (SELECT count(*) FROM runs r WHERE r.week = w.week) AS runs,
  (SELECT count(*) FROM runs r WHERE r.week = w.week AND resumed) AS resumed,
  (SELECT count(DISTINCT user) FROM (SELECT user FROM sessions s WHERE s.week = w.week UNION SELECT user FROM runs r WHERE r.week = w.week)) AS users
 FROM (SELECT week FROM sessions UNION SELECT week FROM runs) w ORDER BY 1;
CREATE VIEW b2_active AS
 SELECT week, count(*) AS runs, avg(seconds) / 3600 AS mean_hours, max(seconds) / 3600 AS longest_hours, sum(seconds) / 3600 AS hours
 FROM runs WHERE ended <> 'killed' GROUP BY week ORDER BY week;
CREATE VIEW b2_lengths AS
 SELECT CASE WHEN seconds < 60 THEN 1 WHEN seconds < 600 THEN 2 WHEN seconds < 3600 THEN 3 WHEN seconds < 14400 THEN 4 WHEN seconds < 43200 THEN 5 WHEN seconds < 172800 THEN 6 ELSE 7 END AS n,
  CASE WHEN seconds < 60 THEN '< 1 min' WHEN seconds < 600 THEN '< 10 min' WHEN seconds < 3600 THEN '< 1 h' WHEN seconds < 14400 THEN '< 4 h' WHEN seconds < 43200 THEN '< 12 h' WHEN seconds < 172800 THEN '< 2 d' ELSE 'longer' END AS length,
  count(*) AS runs FROM runs WHERE ended <> 'killed' GROUP BY 1, 2 ORDER BY 1;
CREATE VIEW b2_held AS
 SELECT week, count(*) AS sessions, avg(seconds) / 3600 AS mean_hours FROM sessions WHERE "end" IS NOT NULL GROUP BY week ORDER BY week;
CREATE VIEW b3_conflicts AS
 SELECT week, sum(op = 'lock' AND kind = 11) AS refused, sum(kind = 12) AS lost, sum(op = 'release' AND forced AND error = '') AS forced,
  sum(op = 'lock' AND error = '') AS locks FROM events WHERE user <> '' GROUP BY week ORDER BY week;
CREATE VIEW b4_parcels AS
 SELECT u.user, count(p.parcel) AS parcels FROM users u LEFT JOIN parcels p USING (user) WHERE u.present GROUP BY u.user ORDER BY 2 DESC, 1;
CREATE VIEW b5_ends AS
 SELECT week, count(*) AS runs, sum(ended = 'suspended') AS suspended, sum(ended = 'off') AS off, sum(ended = 'failed') AS failed,
  sum(ended = 'killed') AS killed, sum(reboots) AS reboots FROM runs GROUP BY week ORDER BY week;
CREATE VIEW b5_versions AS
 SELECT week, sum(state = 'suspended') AS suspended, sum(state = 'off') AS off FROM versions WHERE how = 'commit' GROUP BY week ORDER BY week;
CREATE VIEW b6_activity AS
 SELECT r.week, count(*) AS runs, sum(r.seconds) / 3600 AS hours, sum(r.cpu_seconds) / 3600 AS cpu_hours,
  sum(a.read_bytes) AS read_bytes, sum(a.written_bytes) AS written_bytes, sum(r."in" + r.out) AS network_bytes
 FROM runs r LEFT JOIN activity a ON a.report = r.report AND a.n = r.n AND a.image = 'disk' GROUP BY r.week ORDER BY r.week;
CREATE VIEW b7_checkpoints AS
 SELECT week, sum(how = 'commit') AS checkpoints, sum(how = 'rollback') AS rollbacks, sum(how = 'commit') * 1.0 / max(1, count(DISTINCT user)) AS per_user
 FROM versions GROUP BY week ORDER BY week;

-- C: robustness
CREATE VIEW c1_support AS
 SELECT type, count(*) AS calls, sum(minutes) AS minutes FROM support GROUP BY type ORDER BY 2 DESC, 1;
CREATE VIEW c2_vmm_crashes AS
 SELECT week, vmm, count(*) AS runs, sum(ended = 'failed') AS failed FROM runs GROUP BY week, vmm ORDER BY week, vmm;
CREATE VIEW c3_isr_crashes AS
 SELECT w.week, (SELECT count(*) FROM runs r WHERE r.week = w.week AND ended = 'killed') AS killed,
  (SELECT count(*) FROM runs r WHERE r.week = w.week) AS runs,
  (SELECT count(*) FROM events e WHERE e.week = w.week AND kind IN (1, 13)) AS server_errors,
  (SELECT coalesce(sum(corrupt), 0) FROM rungs g WHERE g.week = w.week) AS corrupt
 FROM (SELECT week FROM runs UNION SELECT week FROM events) w ORDER BY 1;
CREATE VIEW c4_causes AS
 SELECT coalesce(nullif(cause, ''), 'not known') AS cause, count(*) AS calls FROM support GROUP BY 1 ORDER BY 2 DESC, 1;

-- D: environments
CREATE VIEW places AS
 SELECT r.report, r.n, r.week, r.user, r.rtt, r.down, r.up, coalesce(s."from", '') AS place FROM runs r
 LEFT JOIN sessions s ON s.user = r.user AND s.parcel = r.parcel AND s.epoch = r.epoch AND s.life = 0;
CREATE VIEW d1_bandwidth AS
 SELECT place, count(*) AS runs, min(nullif(rtt, 0)) * 1000 AS rtt_ms, max(down) * 8 / 1e6 AS down_mbit, max(up) * 8 / 1e6 AS up_mbit
 FROM places WHERE place <> '' GROUP BY place ORDER BY runs DESC, place;
CREATE VIEW d1_uplink AS
 SELECT week, sum(sent_bytes) * 8 / 1e6 / sum(sent_seconds) AS up_mbit FROM reports WHERE sent_bytes > 1000000 AND sent_seconds > 0 GROUP BY week ORDER BY week;
CREATE VIEW d2_machines AS
 SELECT machine_os AS os, machine_arch AS arch, machine_cpu AS cpu, machine_cpus AS cpus, machine_memory AS memory,
  count(DISTINCT user) AS users, count(*) AS reports FROM reports GROUP BY 1, 2, 3, 4, 5 ORDER BY reports DESC, cpu;
CREATE VIEW d3_locations AS
 SELECT user, count(DISTINCT "from") AS locations, count(DISTINCT host) AS hosts, count(*) AS sessions,
  CASE WHEN count(DISTINCT "from") > 1 THEN 'mobile' ELSE 'fixed' END AS kind
 FROM sessions WHERE "from" <> '' GROUP BY user ORDER BY 2 DESC, 1;

-- E: disk
CREATE VIEW e1_blocks AS
 SELECT week, sum(read_bytes) / 512 AS read_blocks, sum(written_bytes) / 512 AS written_blocks, sum(flushes) AS flushes FROM activity WHERE image = 'disk' GROUP BY week ORDER BY week;
CREATE VIEW e2_chunks AS
 SELECT week, sum(touched) AS touched, sum(fetched) AS fetched, sum(modified) AS modified FROM activity WHERE image = 'disk' GROUP BY week ORDER BY week;
CREATE VIEW e2_sealed AS
 SELECT week, sum(written) AS written, sum(same) AS same, sum(zero) AS zero, sum(new) AS new, sum(new_bytes) AS new_bytes FROM sealed WHERE image = 'disk' GROUP BY week ORDER BY week;
CREATE VIEW e3_first_writes AS
 SELECT week, sum(first_writes) AS first_writes, sum(modified) AS modified, 100.0 * sum(first_writes) / nullif(sum(modified), 0) AS percent
 FROM activity WHERE image = 'disk' GROUP BY week ORDER BY week;

-- F: memory
CREATE VIEW f1_memory AS
 SELECT user, parcel, memory, count(*) AS versions FROM versions WHERE state = 'suspended' GROUP BY user, parcel, life ORDER BY user, parcel;
CREATE VIEW f2_memory_change AS
 SELECT week, avg(size) AS size, avg(new * chunk_size) AS changed_bytes, avg(new_bytes) AS sent_bytes, count(*) AS versions
 FROM sealed WHERE image = 'memory' AND written > 0 GROUP BY week ORDER BY week;
CREATE VIEW f3_memory_delta AS
 SELECT sum(written) AS written, sum(same) AS same, sum(zero) AS zero, sum(new) AS new, sum(new_bytes) AS new_bytes,
  sum(new_bytes) * 1.0 / nullif(sum(new * chunk_size), 0) AS ratio FROM sealed WHERE image = 'memory';

-- G: features
CREATE VIEW ladder AS
 SELECT week, kind, sum(hits) AS hits, sum(misses) AS misses, sum(errors) AS errors, sum(bytes) AS bytes, sum(seconds) AS seconds FROM rungs GROUP BY week, kind ORDER BY week, kind;
CREATE VIEW g1_lookaside AS
 SELECT week, sum(hits) AS hits, sum(misses) AS misses, 100.0 * sum(hits) / nullif(sum(hits + misses), 0) AS percent
 FROM rungs WHERE kind IN ('lka-local', 'lka-remote') GROUP BY week ORDER BY week;
CREATE VIEW g2_hoard AS
 SELECT r.week, sum(CASE WHEN kind = 'hoard' THEN hits ELSE 0 END) AS hoard, sum(CASE WHEN kind IN ('server', 'source') THEN hits ELSE 0 END) AS network,
  100.0 * sum(CASE WHEN kind = 'hoard' THEN hits ELSE 0 END) / nullif(sum(CASE WHEN kind IN ('hoard', 'server', 'source') THEN hits ELSE 0 END), 0) AS percent
 FROM rungs r GROUP BY r.week ORDER BY r.week;
CREATE VIEW g2_pinned AS
 SELECT week, count(*) AS reports, sum(hoard_pinned) AS pinned, sum(hoard_memory) AS with_memory FROM reports GROUP BY week ORDER BY week;
CREATE VIEW g3_cache AS
 SELECT week, sum(cache_hits) AS hits, sum(cache_misses) AS misses, 100.0 * sum(cache_hits) / nullif(sum(cache_hits + cache_misses), 0) AS percent
 FROM activity WHERE image = 'disk' GROUP BY week ORDER BY week;
CREATE VIEW g4_misses AS
 SELECT week, image, 1000 * sum(miss_p50 * fetched) / nullif(sum(fetched), 0) AS p50_ms, 1000 * sum(miss_p90 * fetched) / nullif(sum(fetched), 0) AS p90_ms,
  1000 * sum(miss_p99 * fetched) / nullif(sum(fetched), 0) AS p99_ms, sum(fetched) AS misses
 FROM activity GROUP BY week, image ORDER BY week, image;
CREATE VIEW g5_disconnected AS
 SELECT week, count(*) AS runs, sum(offline) AS offline, sum(outages > 0) AS with_outage, sum(outages) AS outages, sum(outage_seconds) AS outage_seconds
 FROM runs GROUP BY week ORDER BY week;
CREATE VIEW g6_server AS
 SELECT substr(time, 1, 10) AS day, load, uptime / 86400 AS uptime_days, disk, free, bytes, objects, parcels, versions FROM realm ORDER BY time;

-- H: futures
CREATE VIEW h1_network_lookaside AS
 SELECT week, sum(hits) AS hits, sum(misses) AS misses, 100.0 * sum(hits) / nullif(sum(hits + misses), 0) AS percent
 FROM rungs WHERE kind = 'lka-remote' GROUP BY week ORDER BY week;
CREATE VIEW h2_providers AS
 SELECT week, avg(places) AS configured, avg(answering) AS answering, max(places) AS most FROM runs GROUP BY week ORDER BY week;

-- J: the server
CREATE VIEW host AS
 SELECT substr(time, 1, 10) AS day, boot = lag(boot) OVER t AS same, lag(boot) OVER t IS NULL AS first, julianday(time) - julianday(lag(time) OVER t) AS days,
  cpu_busy, cpu_idle, net_in, net_out, lag(cpu_busy) OVER t AS busy0, lag(cpu_idle) OVER t AS idle0, lag(net_in) OVER t AS in0, lag(net_out) OVER t AS out0
 FROM realm WINDOW t AS (ORDER BY time);
CREATE VIEW j1_cpu AS
 SELECT day, 100.0 * (cpu_busy - iif(same, busy0, 0)) / nullif(cpu_busy + cpu_idle - iif(same, busy0 + idle0, 0), 0) AS percent FROM host ORDER BY day;
CREATE VIEW j2_network AS
 SELECT day, (net_in - iif(same, in0, 0)) / nullif(days, 0) AS in_bytes, (net_out - iif(same, out0, 0)) / nullif(days, 0) AS out_bytes
 FROM host WHERE NOT first ORDER BY day;
CREATE VIEW j3_parcels AS
 SELECT substr(time, 1, 10) AS day, parcels, held, users, agreed FROM realm ORDER BY time;
CREATE VIEW j4_totals AS
 SELECT substr(day, 1, 7) AS month, sum(CASE WHEN op = 'lock' THEN done ELSE 0 END) AS resumes, sum(CASE WHEN op = 'commit' THEN done ELSE 0 END) AS suspends,
  sum(CASE WHEN op = 'release' THEN done ELSE 0 END) AS releases, sum(CASE WHEN op = 'rollback' THEN done ELSE 0 END) AS rollbacks
 FROM totals GROUP BY 1 ORDER BY 1;

-- K: the reviewers
CREATE VIEW k1_models AS
 SELECT CASE WHEN r.resumed THEN 'resumed' ELSE 'booted' END AS began, r.ended, count(*) AS runs, avg(r.start_seconds) AS start_seconds,
  avg(r.seconds) / 3600 AS mean_hours, avg(r."in") AS in_bytes, avg(a.fetched) AS chunks_fetched
 FROM runs r LEFT JOIN activity a ON a.report = r.report AND a.n = r.n AND a.image = 'disk' WHERE r.ended IN ('suspended', 'off') GROUP BY 1, 2 ORDER BY 1 DESC, 2 DESC;
CREATE VIEW k2_admin AS
 SELECT op, count(*) AS times, sum(error <> '') AS failed, sum(seconds) AS seconds, max(seconds) AS longest FROM events WHERE admin GROUP BY op ORDER BY times DESC, op;
CREATE VIEW k2_effort AS
 SELECT month, sum(commands) AS commands, sum(minutes) AS support_minutes FROM (
  SELECT month, count(*) AS commands, 0 AS minutes FROM events WHERE admin GROUP BY month UNION ALL
  SELECT month, 0, sum(minutes) FROM support GROUP BY month) GROUP BY month ORDER BY month;

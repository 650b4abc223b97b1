package page

// What of each metric is shown beside its tables. A head is one line of text;
// a plot's first column is what stands below it, the others are series.

// tiles stand at the top.
var tiles = []struct{ title, query string }{
	{"agreed", "SELECT count(*) FROM users WHERE present"},
	{"used it in the last month", "SELECT active FROM a2_active ORDER BY month DESC LIMIT 1"},
	{"check-outs", "SELECT count(*) FROM sessions"},
	{"hours run", "SELECT printf('%,.0f', coalesce(sum(seconds) / 3600, 0)) FROM runs"},
	{"checkpoints", "SELECT count(*) FROM versions WHERE how = 'commit'"},
	{"conflicts", "SELECT coalesce(sum(refused + lost + forced), 0) FROM b3_conflicts"},
	{"hits in the hoard", "SELECT coalesce(printf('%.0f %%', 100.0 * sum(hoard) / nullif(sum(hoard + network), 0)), '–') FROM g2_hoard"},
	{"runs that broke", "SELECT coalesce(printf('%.1f %%', 100.0 * sum(ended IN ('failed', 'killed')) / nullif(count(*), 0)), '–') FROM runs"},
}

var heads = map[string]string{
	"A1": "SELECT agreed || ' users' FROM a1_agreed ORDER BY month DESC LIMIT 1",
	"A2": "SELECT active || ' in ' || month FROM a2_active ORDER BY month DESC LIMIT 1",
	"A3": "SELECT printf('%+d agreed, %+d active', agreed_change, active_change) FROM a3_change ORDER BY month DESC LIMIT 1",
	"A4": "SELECT count(*) || ' groups' FROM a4_groups",
	"A5": "SELECT printf('%.1f', avg(mean)) FROM a5_host",
	"A6": "SELECT printf('%.1f', avg(mean)) FROM a6_useful",
	"A7": "SELECT printf('%.1f', avg(mean)) FROM a7_satisfaction",
	"A8": "SELECT printf('%.1f', avg(mean)) FROM a8_expectations",
	"A9": "SELECT sum(users) || ' left' FROM a9_exits",
	"B1": "SELECT printf('%.1f check-outs a user and week', avg(checkouts * 1.0 / max(users, 1))) FROM b1_resumes",
	"B2": "SELECT printf('%.1f hours a run', sum(hours) / sum(runs)) FROM b2_active",
	"B3": "SELECT printf('%d in %d locks', sum(refused + lost + forced), sum(locks)) FROM b3_conflicts",
	"B4": "SELECT printf('%.1f parcels a user', avg(parcels)) FROM b4_parcels",
	"B5": "SELECT printf('%.0f %% suspended, %d reboots', 100.0 * sum(suspended) / max(sum(runs), 1), sum(reboots)) FROM b5_ends",
	"B6": "SELECT printf('%.0f %% of a processor while it runs', 100 * sum(cpu_hours) / max(sum(hours), 0.001)) FROM b6_activity",
	"B7": "SELECT printf('%d checkpoints, %d rollbacks', sum(checkpoints), sum(rollbacks)) FROM b7_checkpoints",
	"C1": "SELECT printf('%d calls, %.0f minutes', sum(calls), sum(minutes)) FROM c1_support",
	"C2": "SELECT printf('%d of %d runs', sum(failed), sum(runs)) FROM c2_vmm_crashes",
	"C3": "SELECT printf('%d runs killed, %d errors of the server', sum(killed), sum(server_errors)) FROM c3_isr_crashes",
	"C4": "SELECT cause || ' most often' FROM c4_causes LIMIT 1",
	"D1": "SELECT printf('%d places, %.0f Mbit/s at best', count(*), max(down_mbit)) FROM d1_bandwidth",
	"D2": "SELECT printf('%d kinds', count(*)) FROM d2_machines",
	"D3": "SELECT printf('%d mobile users, %d fixed', sum(kind = 'mobile'), sum(kind = 'fixed')) FROM d3_locations",
	"E1": "SELECT printf('%.1f blocks read for each written', sum(read_blocks) * 1.0 / max(sum(written_blocks), 1)) FROM e1_blocks",
	"E2": "SELECT printf('%.0f %% of the chunks touched were modified', 100.0 * sum(modified) / max(sum(touched), 1)) FROM e2_chunks",
	"E3": "SELECT printf('%.0f %% of the chunks written', 100.0 * sum(first_writes) / max(sum(modified), 1)) FROM e3_first_writes",
	"F1": "SELECT printf('%.0f MiB on average', sum(memory * versions) / 1048576.0 / max(sum(versions), 1)) FROM f1_memory",
	"F2": "SELECT printf('%.0f MiB changed a version, of %.0f', sum(changed_bytes * versions) / 1048576.0 / sum(versions), sum(size * versions) / 1048576.0 / sum(versions)) FROM f2_memory_change",
	"F3": "SELECT printf('%.0f %% of the chunks written were new, and took %.0f %% of their size', 100.0 * new / max(written, 1), 100 * ratio) FROM f3_memory_delta",
	"G1": "SELECT printf('%.0f %% of what it was asked for', 100.0 * sum(hits) / max(sum(hits + misses), 1)) FROM g1_lookaside",
	"G2": "SELECT printf('%.0f %% from the hoard, not the network', 100.0 * sum(hoard) / max(sum(hoard + network), 1)) FROM g2_hoard",
	"G3": "SELECT printf('%.0f %% hits', 100.0 * sum(hits) / max(sum(hits + misses), 1)) FROM g3_cache",
	"G4": "SELECT printf('%.1f ms for half of the disk''s misses', sum(p50_ms * misses) / max(sum(misses), 1)) FROM g4_misses WHERE image = 'disk'",
	"G5": "SELECT printf('%d of %d runs waited for the network, %.0f s in all; %d had none', sum(with_outage), sum(runs), sum(outage_seconds), sum(offline)) FROM g5_disconnected",
	"G6": "SELECT printf('load %.1f, up %.0f days, %.0f %% of the disk free', load, uptime_days, 100.0 * free / max(disk, 1)) FROM g6_server ORDER BY day DESC LIMIT 1",
	"H1": "SELECT printf('%.0f %%', 100.0 * sum(hits) / max(sum(hits + misses), 1)) FROM h1_network_lookaside",
	"H2": "SELECT printf('%.1f configured, %.1f answered', avg(configured), avg(answering)) FROM h2_providers",
	"J1": "SELECT printf('%.0f %%', avg(percent)) FROM j1_cpu",
	"J2": "SELECT printf('%.0f MiB out a day', avg(out_bytes) / 1048576) FROM j2_network",
	"J3": "SELECT parcels || ' parcels, ' || held || ' checked out' FROM j3_parcels ORDER BY day DESC LIMIT 1",
	"J4": "SELECT printf('%d resumes, %d suspends, %d rollbacks', sum(resumes), sum(suspends), sum(rollbacks)) FROM j4_totals",
	"K1": "SELECT printf('%.1f s until it ran after a suspend, %.1f s after a shut-down', (SELECT sum(start_seconds * runs) / sum(runs) FROM k1_models WHERE began = 'resumed'), (SELECT sum(start_seconds * runs) / sum(runs) FROM k1_models WHERE began = 'booted'))",
	"K2": "SELECT printf('%d commands, %.0f s, %d failed', sum(times), sum(seconds), sum(failed)) FROM k2_admin",
}

const (
	lines = iota
	bars
	stacked
	across // bars that lie: for names
)

var plots = map[string][]plot{
	"A3": {{lines, "users", "SELECT month, agreed, active FROM a3_change"}},
	"A4": {{across, "users", "SELECT grp, users FROM a4_groups LIMIT 12"}},
	"A6": {{lines, "mean answer", "SELECT month, mean FROM a6_useful"}},
	"A7": {{lines, "mean answer", "SELECT month, max(CASE WHEN question = 'function' THEN mean END) AS function, max(CASE WHEN question = 'speed' THEN mean END) AS speed FROM a7_satisfaction GROUP BY month"}},
	"B1": {{lines, "a week", "SELECT week, checkouts, runs, users FROM b1_resumes"}},
	"B2": {{bars, "runs by length", "SELECT length, runs FROM b2_lengths"}, {lines, "hours a run", "SELECT week, mean_hours AS mean, longest_hours AS longest FROM b2_active"}},
	"B3": {{stacked, "a week", "SELECT week, refused, lost, forced FROM b3_conflicts"}},
	"B5": {{stacked, "runs a week", "SELECT week, suspended, off, failed, killed FROM b5_ends"}},
	"B6": {{lines, "hours a week", "SELECT week, hours AS run, cpu_hours AS processor FROM b6_activity"}, {bars, "GiB a week", "SELECT week, read_bytes / 1073741824.0 AS \"disk read\", written_bytes / 1073741824.0 AS \"disk written\", network_bytes / 1073741824.0 AS network FROM b6_activity"}},
	"B7": {{bars, "a week", "SELECT week, checkpoints, rollbacks FROM b7_checkpoints"}},
	"C1": {{across, "calls", "SELECT type, calls FROM c1_support LIMIT 12"}},
	"C3": {{stacked, "a week", "SELECT week, killed, server_errors AS \"server errors\", corrupt FROM c3_isr_crashes"}},
	"C4": {{across, "calls", "SELECT cause, calls FROM c4_causes LIMIT 12"}},
	"D1": {{across, "Mbit/s", "SELECT place, coalesce(down_mbit, 0) AS down, coalesce(up_mbit, 0) AS up FROM d1_bandwidth LIMIT 8"}},
	"E1": {{bars, "million blocks a week", "SELECT week, read_blocks / 1e6 AS read, written_blocks / 1e6 AS written FROM e1_blocks"}},
	"E2": {{lines, "thousand chunks a week", "SELECT week, touched / 1e3 AS touched, fetched / 1e3 AS fetched, modified / 1e3 AS modified FROM e2_chunks"}},
	"F2": {{lines, "MiB a version", "SELECT week, changed_bytes / 1048576 AS changed, sent_bytes / 1048576 AS sealed FROM f2_memory_change"}},
	"G1": {{stacked, "thousand objects a week", "SELECT week, sum(CASE kind WHEN 'hoard' THEN hits ELSE 0 END) / 1e3 AS hoard, sum(CASE kind WHEN 'lka-local' THEN hits ELSE 0 END) / 1e3 AS \"look-aside here\", sum(CASE kind WHEN 'lka-remote' THEN hits ELSE 0 END) / 1e3 AS \"look-aside elsewhere\", sum(CASE kind WHEN 'source' THEN hits ELSE 0 END) / 1e3 AS source, sum(CASE kind WHEN 'server' THEN hits ELSE 0 END) / 1e3 AS server FROM ladder GROUP BY week"}},
	"G2": {{lines, "percent from the hoard", "SELECT week, percent FROM g2_hoard"}},
	"G4": {{lines, "ms, disk", "SELECT week, p50_ms AS half, p90_ms AS \"nine tenths\", p99_ms AS \"99 of 100\" FROM g4_misses WHERE image = 'disk'"}},
	"G5": {{bars, "runs a week", "SELECT week, with_outage AS \"waited for the network\", offline FROM g5_disconnected"}},
	"G6": {{lines, "GiB", "SELECT day, bytes / 1073741824.0 AS versions, (disk - free) / 1073741824.0 AS \"disk used\" FROM g6_server"}},
	"J1": {{lines, "percent", "SELECT day, percent FROM j1_cpu"}},
	"J2": {{lines, "MiB a day", "SELECT day, in_bytes / 1048576 AS \"in\", out_bytes / 1048576 AS out FROM j2_network"}},
	"J3": {{lines, "parcels", "SELECT day, parcels, held AS \"checked out\" FROM j3_parcels"}},
	"J4": {{bars, "a month", "SELECT month, resumes, suspends, rollbacks FROM j4_totals"}},
	"K1": {{across, "seconds until it ran", "SELECT began, sum(start_seconds * runs) / sum(runs) AS seconds FROM k1_models GROUP BY began"}},
	"K2": {{across, "times", "SELECT op, times FROM k2_admin LIMIT 12"}},
}

package study

// Metric is one question of the pilot's study.
type Metric struct {
	ID    string
	Title string
	Views []string // in the database
	Note  string   // what is not answered, and why
}

// Sections are the study's parts, in order.
var Sections = []struct {
	Letter, Title string
}{
	{"A", "Acceptance"}, {"B", "Use"}, {"C", "Robustness"}, {"D", "Environments"}, {"E", "Disk"}, {"F", "Memory"},
	{"G", "Features"}, {"H", "Futures"}, {"J", "Server"}, {"K", "The reviewers' questions"},
}

// bySurvey is why a metric needs people.
const bySurvey = "No program knows. Ask, and import the answers: isr-study(5)."

// Metrics are all of them.
var Metrics = []Metric{
	{"A1", "Users who agreed to take part", []string{"a1_agreed"}, ""},
	{"A2", "Users who use it", []string{"a2_active"}, ""},
	{"A3", "Change since the month before", []string{"a3_change"}, ""},
	{"A4", "Who they are", []string{"a4_groups"}, "By the groups that the administrator put them into."},
	{"A5", "Do they use the host beside the guest", []string{"a5_host"}, bySurvey + " Question: host."},
	{"A6", "How useful it is", []string{"a6_useful"}, bySurvey + " Question: useful."},
	{"A7", "Satisfaction with function and speed", []string{"a7_satisfaction"}, bySurvey + " Questions: function, speed."},
	{"A8", "Could they do what they expected", []string{"a8_expectations"}, bySurvey + " Question: expected."},
	{"A9", "Why users left", []string{"a9_exits"}, "No program knows. Import a record of each exit: isr-study(5)."},
	{"B1", "How often parcels are checked out and run", []string{"b1_resumes"}, "Check-outs are the server's; runs, by clients that report."},
	{"B2", "How long they stay active", []string{"b2_active", "b2_lengths", "b2_held"}, ""},
	{"B3", "Conflicts", []string{"b3_conflicts"}, "Locks refused since another host held them, lost to another, broken by force."},
	{"B4", "Parcels per user", []string{"b4_parcels"}, ""},
	{"B5", "Suspended, shut down or rebooted", []string{"b5_ends", "b5_versions"}, "A guest under a VMM other than QEMU does not tell of its reboots."},
	{"B6", "Seriousness of use: disk, processor, network", []string{"b6_activity"}, "The guest's own packets are not counted: QEMU's user network has no counters. Network bytes are the client's, for the parcel."},
	{"B7", "Checkpoints and rollbacks", []string{"b7_checkpoints"}, ""},
	{"C1", "Calls for support, by type", []string{"c1_support"}, "Import the help desk's tickets: isr-study(5)."},
	{"C2", "Crashes of the VMM or its guest", []string{"c2_vmm_crashes"}, "A guest that hangs or crashes within is not seen."},
	{"C3", "Crashes of isr, errors of the server, corrupt objects", []string{"c3_isr_crashes"}, ""},
	{"C4", "Root causes", []string{"c4_causes"}, "As whoever answered the call wrote down."},
	{"D1", "Bandwidth where parcels run", []string{"d1_bandwidth", "d1_uplink"}, "Bandwidth is the most that came within a second of use: the link has no less."},
	{"D2", "Machines", []string{"d2_machines"}, ""},
	{"D3", "Locations, fixed and mobile", []string{"d3_locations"}, "By the address that the server saw; behind one gateway, many are one."},
	{"E1", "Disk blocks read and written", []string{"e1_blocks"}, ""},
	{"E2", "Chunks read, written, modified", []string{"e2_chunks", "e2_sealed"}, ""},
	{"E3", "Writes before reads", []string{"e3_first_writes"}, ""},
	{"F1", "Size of the memory image", []string{"f1_memory"}, ""},
	{"F2", "Its change over time", []string{"f2_memory_change"}, ""},
	{"F3", "What the change is like", []string{"f3_memory_delta"}, ""},
	{"G1", "Look-aside: use and hit rate", []string{"g1_lookaside", "ladder"}, ""},
	{"G2", "Hoarding: use and effect", []string{"g2_hoard", "g2_pinned"}, ""},
	{"G3", "Client cache: hit rate", []string{"g3_cache"}, "Of decrypted chunks in memory. What Venus was to the pilot is the hoard now, above."},
	{"G4", "Penalty of a demand miss", []string{"g4_misses"}, "Quantiles of each run, within an eighth, weighted by its misses."},
	{"G5", "Disconnection", []string{"g5_disconnected"}, "Every check-out can be written to without a network: there is no other write-disconnected state."},
	{"G6", "Server: load, uptime, growth", []string{"g6_server"}, ""},
	{"H1", "Look-aside over the network: hit rate", []string{"h1_network_lookaside"}, ""},
	{"H2", "Providers of objects", []string{"h2_providers"}, ""},
	{"J1", "Processor use of the server", []string{"j1_cpu"}, "Of the whole host, since the harvest before, or its start."},
	{"J2", "Network use seen by the server", []string{"j2_network"}, "Bytes a day of the whole host, but for its loopback."},
	{"J3", "Parcels", []string{"j3_parcels"}, ""},
	{"J4", "Resumes, suspends, rollbacks", []string{"j4_totals"}, "Of all users, whether they take part or not: numbers alone."},
	{"K1", "Suspend and resume, or shut down and restart", []string{"k1_models"}, ""},
	{"K2", "What managing it takes", []string{"k2_admin", "k2_effort"}, "Commands as the realm's log has them; thinking and walking are in no log. Which tools are missing, only administrators can say."},
}

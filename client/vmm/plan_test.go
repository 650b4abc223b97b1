package vmm

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestQEMUOptions(t *testing.T) {
	long := strings.Repeat("x", maxSocketPath)
	for _, c := range []struct {
		key, value string
		ok         bool
	}{
		{"display", "none", true}, {"display", "gtk", true}, {"display", "sdl", true}, {"display", "window", true},
		{"display", "vnc=127.0.0.1:0", true}, {"display", "vnc=:12", true}, {"display", "vnc=[::1]:3", true},
		{"display", "vnc=unix:/tmp/s", true}, {"display", "vnc=unix:", false}, {"display", "vnc=unix:/" + long, false},
		{"display", "vnc=", false}, {"display", "vnc=host", false}, {"display", "vnc=h:1,to=9", false}, {"display", "curses", false},
		{"serial", "/tmp/f", true}, {"serial", "f", true}, {"serial", "unix:/tmp/s", true}, {"serial", "", false}, {"serial", "unix:", false},
		{"serial", "unix:/" + long, false},
		{"accel", "kvm", true}, {"accel", "tcg", true}, {"accel", "xen", false}, {"accel", "", false},
		{"cpus", "1", true}, {"cpus", "64", true}, {"cpus", "0", false}, {"cpus", "65", false}, {"cpus", "two", false}, {"cpus", "", false},
		{"cpu", "Nehalem-v1", true}, {"cpu", "host,migratable=off", false}, {"cpu", "", false},
		{"net", "user", true}, {"net", "none", true}, {"net", "tap", false},
		{"vga", "std", true}, {"vga", "none", true}, {"vga", "qxl", false},
		{"args", "-foo bar", true}, {"program", "/bin/x", true}, {"color", "red", false}, {"", "", false},
	} {
		err := (&QEMU{}).options(&Machine{Options: map[string]string{c.key: c.value}}, &plan{})
		if (err == nil) != c.ok || err != nil && (!errors.Is(err, ErrOption) || !strings.Contains(err.Error(), c.key)) {
			t.Errorf("%s=%s: got %v, want ok %v", c.key, c.value, err, c.ok)
		}
	}
}

// record is what a suspended machine's version could hold.
func record(t *testing.T) map[string]string {
	t.Helper()
	needQEMU(t)
	program, err := findQEMU("")
	if err != nil {
		t.Fatal(err)
	}
	f, err := factsOf(t.Context(), "", program, "tcg")
	if err != nil {
		t.Fatal(err)
	}
	return map[string]string{
		"vmm": "qemu", reqVersion: f.Version.String(), reqMachine: f.PC, reqCPU: defaultCPU, reqCPUs: "2",
		reqAccel: "tcg", reqMemory: "268435456", reqVGA: "cirrus", reqHardware: hardware,
	}
}

// A host that cannot run a machine says so from its record alone.
func TestQEMUInfoOfSuspended(t *testing.T) {
	good := record(t)
	for _, c := range []struct {
		name    string
		change  map[string]string // of the record; "-" removes
		options map[string]string
		memory  int64
		reason  string // "" : runnable
	}{
		{"good", nil, nil, 0, ""},
		{"memory known", nil, nil, 256 << 20, ""},
		{"same options", nil, map[string]string{"cpus": "2", "accel": "tcg", "net": "none"}, 0, ""},
		{"other memory", nil, nil, 255 << 20, "267386880 bytes, its record says 268435456"},
		{"odd memory", map[string]string{reqMemory: "1000"}, nil, 0, "no multiple"},
		{"no memory", map[string]string{reqMemory: "0"}, nil, 0, `memory="0"`},
		{"another VMM's", map[string]string{"vmm": "bochs"}, nil, 0, "suspended by bochs"},
		{"no machine", map[string]string{reqMachine: "-"}, nil, 0, `machine=""`},
		{"hostile machine", map[string]string{reqMachine: "pc,kernel=/etc/passwd"}, nil, 0, "machine="},
		{"hostile cpu", map[string]string{reqCPU: "max,x=y"}, nil, 0, "cpu="},
		{"new machine", map[string]string{reqMachine: "pc-i440fx-99.0"}, nil, 0, "no machine type pc-i440fx-99.0"},
		{"unknown cpu", map[string]string{reqCPU: "Zen9-v1"}, nil, 0, "no processor model Zen9-v1"},
		{"host's cpu", map[string]string{reqCPU: "max"}, nil, 0, "could not leave"},
		{"cpu tcg lacks", map[string]string{reqCPU: "Haswell-v1"}, nil, 0, "needs"},
		{"newer QEMU", map[string]string{reqVersion: "99.1.0"}, nil, 0, "suspended by QEMU 99.1.0"},
		{"newer micro release", map[string]string{reqVersion: good[reqVersion] + "9"}, nil, 0, ""},
		{"new devices", map[string]string{reqHardware: "2"}, nil, 0, `generation "2"`},
		{"odd accel", map[string]string{reqAccel: "xen"}, nil, 0, "accel="},
		{"odd vga", map[string]string{reqVGA: "std,x=y"}, nil, 0, "vga="},
		{"odd cpus", map[string]string{reqCPUs: "0"}, nil, 0, "cpus="},
		{"other cpus", nil, map[string]string{"cpus": "1"}, 0, "with cpus=2, not 1"},
		{"other accel", nil, map[string]string{"accel": "kvm"}, 0, "with accel=tcg, not kvm"},
		{"no such program", nil, map[string]string{"program": "/nonexistent/qemu"}, 0, "no such file"},
		{"program that is none", nil, map[string]string{"program": "/bin/false"}, 0, "does not start"},
	} {
		t.Run(c.name, func(t *testing.T) {
			req := maps.Clone(good)
			for k, v := range c.change {
				if req[k] = v; v == "-" {
					delete(req, k)
				}
			}
			options := map[string]string{"display": "none"}
			maps.Copy(options, c.options)
			m := &Machine{Suspended: "qemu", Requires: req, Options: options, MemorySize: c.memory}
			i, err := (&QEMU{}).Info(t.Context(), m)
			if err != nil {
				t.Fatal(err)
			}
			if i.Runnable != (c.reason == "") || !strings.Contains(i.Reason, c.reason) {
				t.Errorf("got %+v, want %q", i, c.reason)
			}
			if !i.Runnable && i.Title == "" {
				t.Error("no title")
			}
		})
	}
	m := &Machine{Suspended: "shell", Options: map[string]string{}}
	if i, err := (&QEMU{}).Info(t.Context(), m); err != nil || i.Runnable || !strings.Contains(i.Hint, "-m shell") {
		t.Errorf("suspended by shell: %+v, %v", i, err)
	}

	// With a CfgDir, the device state has to be there.
	m = &Machine{Suspended: "qemu", Requires: good, Options: map[string]string{"display": "none"}, CfgDir: t.TempDir()}
	path := filepath.Join(m.CfgDir, stateName)
	for _, content := range []string{"-", "", "QEVM", "QEVM\x00\x00\x00\x02", "QEVM\x00\x00\x00\x03"} {
		os.Remove(path)
		if content != "-" {
			os.WriteFile(path, []byte(content), 0o600)
		}
		i, err := (&QEMU{}).Info(t.Context(), m)
		if want := strings.HasSuffix(content, "\x03"); err != nil || i.Runnable != want {
			t.Errorf("state %q: got %+v, %v", content, i, err)
		}
	}
}

// A machine that boots takes what it can have, and keeps its machine type.
func TestQEMUPlanOfCold(t *testing.T) {
	good := record(t)
	older := strings.Replace(good[reqMachine], good[reqMachine][len("pc-i440fx-"):], "6.2", 1)
	for _, c := range []struct {
		name, recorded, want string
	}{
		{"first boot", "", good[reqMachine]},
		{"later", older, older},
		{"unknown here", "pc-i440fx-99.0", good[reqMachine]},
		{"hostile", "pc,kernel=x", good[reqMachine]},
	} {
		m := &Machine{Requires: map[string]string{reqMachine: c.recorded}, MemorySize: 1 << 20,
			Options: map[string]string{"display": "none", "accel": "tcg", "cpus": "3", "vga": "none"}}
		p, i, err := (&QEMU{}).plan(t.Context(), m)
		if err != nil || !i.Runnable {
			t.Errorf("%s: %+v, %v", c.name, i, err)
			continue
		}
		if p.machine != c.want || p.cpus != 3 || p.vga != "none" || p.cpu != defaultCPU {
			t.Errorf("%s: got %+v, want machine %s", c.name, p, c.want)
		}
		if told := len(p.notices) > 0; told != (c.recorded != "" && c.recorded != c.want) {
			t.Errorf("%s: notices %q", c.name, p.notices)
		}
	}
	for _, size := range []int64{1, 1<<20 - 1, 1<<20 + 1, 3 << 19, -1 << 20} {
		i, err := (&QEMU{}).Info(t.Context(), &Machine{MemorySize: size, Options: map[string]string{"accel": "tcg", "display": "none"}})
		if err != nil || i.Runnable {
			t.Errorf("memory of %d bytes: %+v, %v", size, i, err)
		}
	}
	// By default it takes KVM or says why not.
	p, i, err := (&QEMU{}).plan(t.Context(), &Machine{MemorySize: 1 << 20, Options: map[string]string{"display": "none"}})
	if err != nil || !i.Runnable {
		t.Fatalf("%+v, %v", i, err)
	}
	if p.accel == "tcg" && len(p.notices) != 1 || p.accel == "kvm" && len(p.notices) != 0 {
		t.Errorf("accel %s, notices %q", p.accel, p.notices)
	}
}

// What the guest sees does not depend on options that may change between runs.
func TestArgumentsKeepTheMachine(t *testing.T) {
	m := &Machine{Name: "a,b/c", UUID: "6ab4f1d0-0f3c-4c57-9a51-4d0e8f2c9b11", Disk: "/x,y/disk", Memory: "/x,y/memory"}
	base := plan{machine: "pc-i440fx-7.2", cpu: defaultCPU, cpus: 1, accel: "tcg", vga: "std", memory: 1 << 28, display: "none", net: "user", facts: &qemuFacts{Sandbox: true}}
	devices := func(p plan) []string {
		var d []string
		a := arguments(m, &p, "g", false)
		for i, v := range a {
			if v == "-device" || v == "-machine" || v == "-cpu" || v == "-smp" || v == "-m" || v == "-vga" {
				d = append(d, a[i+1])
			}
		}
		return d
	}
	want := devices(base)
	for _, change := range []func(*plan){
		func(p *plan) { p.net = "none" },
		func(p *plan) { p.serial = "file:/x" },
		func(p *plan) { p.serial = "unix:/x" },
		func(p *plan) { p.display = "gtk" },
		func(p *plan) { p.display = "window" },
		func(p *plan) { p.display = "vnc=:1" },
		func(p *plan) { p.facts = &qemuFacts{} },
	} {
		p := base
		change(&p)
		if got := devices(p); !slices.Equal(got, want) {
			t.Errorf("%+v changes the machine:\n%q\nwant\n%q", p, got, want)
		}
	}
	a := strings.Join(arguments(m, &base, "g", true), " ")
	for _, part := range []string{"guest=a,,b/c", "filename=/x,,y/disk,", "mem-path=/x,,y/memory,", "-incoming defer", "share=off", "-S -no-shutdown", "werror=stop,rerror=stop", "guid=g"} {
		if !strings.Contains(a, part) {
			t.Errorf("no %q in %s", part, a)
		}
	}
	if x, y := mac("a"), mac("b"); x == y || len(x) != 17 || x != mac("a") {
		t.Errorf("mac: %s, %s", x, y)
	}
	if x, y := newGUID(), newGUID(); x == y || len(x) != 36 {
		t.Errorf("guid: %s, %s", x, y)
	}
}

// Every program of every cache is asked once per build and boot.
func TestFactsCache(t *testing.T) {
	needQEMU(t)
	program, _ := findQEMU("")
	dir := filepath.Join(t.TempDir(), "cache")
	key, err := identity(program)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := readCache[*qemuFacts](dir, "f", key); ok {
		t.Error("found in an empty cache")
	}
	f, err := askFacts(t.Context(), program, "tcg")
	if err != nil {
		t.Fatal(err)
	}
	writeCache(dir, "f", key, f)
	if g, ok := readCache[*qemuFacts](dir, "f", key); !ok || g.PC != f.PC || len(g.CPUs) != len(f.CPUs) || g.Version != f.Version {
		t.Errorf("got %+v, %v", g, ok)
	}
	if _, ok := readCache[*qemuFacts](dir, "f", key+"x"); ok {
		t.Error("found for another build")
	}
	os.WriteFile(filepath.Join(dir, "f"), []byte("{"), 0o600)
	if _, ok := readCache[*qemuFacts](dir, "f", key); ok {
		t.Error("found in rubbish")
	}
	if f.PC == "" || !slices.Contains(f.Machines, f.PC) || !f.CPUs[defaultCPU].MigrationSafe {
		t.Errorf("facts: pc %q, %d machines, %s %+v", f.PC, len(f.Machines), defaultCPU, f.CPUs[defaultCPU])
	}
}

package study

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// state is the realm and its host at a harvest; of a day, the last one counts.
type state struct {
	Time     time.Time `json:"time"`
	Users    int       `json:"users"`
	Agreed   int       `json:"agreed"`
	Parcels  int       `json:"parcels"`
	Held     int       `json:"held"` // checked out
	Versions int       `json:"versions"`
	Objects  int64     `json:"objects"` // new with these versions
	Bytes    int64     `json:"bytes"`   // of these, sealed
	Disk     int64     `json:"disk"`    // bytes of the realm's file system
	Free     int64     `json:"free"`    // of these, free
	Boot     string    `json:"boot"`    // of the host: its counters begin there
	Uptime   float64   `json:"uptime"`  // seconds
	Load     float64   `json:"load"`    // of the last 15 minutes
	CPUs     int       `json:"cpus"`
	CPUBusy  float64   `json:"cpu_busy"` // seconds since boot, of all processors
	CPUIdle  float64   `json:"cpu_idle"`
	NetIn    int64     `json:"net_in"` // bytes since boot, but for the loopback's
	NetOut   int64     `json:"net_out"`
	Members  []member  `json:"members"`
}

// member is a user who agreed, then.
type member struct {
	User    string        `json:"user"`
	Since   time.Time     `json:"since"`
	Groups  []string      `json:"groups,omitempty"`
	Parcels []ParcelState `json:"parcels,omitempty"`
}

// ParcelState is what there is of a parcel.
type ParcelState struct {
	Parcel   string    `json:"parcel"`
	UUID     string    `json:"uuid"`
	Created  time.Time `json:"created"`
	VMM      string    `json:"vmm"`
	Disk     int64     `json:"disk"`
	Memory   int64     `json:"memory"`
	Versions int       `json:"versions"`
	Objects  int64     `json:"objects"`
	Bytes    int64     `json:"bytes"`
	Held     bool      `json:"held"`
}

// person is a user, whether she agreed or not.
type person struct {
	member
	agreed bool
	all    []string // her parcels
}

// census is every user.
func census(src Source) ([]person, error) {
	users, err := src.Realm.Users()
	if err != nil {
		return nil, err
	}
	var all []person
	for _, name := range users {
		p := person{member: member{User: name}}
		if p.Since, p.agreed, err = src.Realm.Consent(name); err != nil {
			// Who cannot be asked has not agreed.
			src.Warn(fmt.Sprintf("user %s: left out: %v", name, err))
			p.agreed = false
		}
		if p.agreed {
			if p.Groups, err = src.Realm.Groups(name); err != nil {
				return nil, err
			}
		}
		if p.all, err = src.Realm.Parcels(name); err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

// stateOf is the realm now.
func stateOf(who []person, src Source, now time.Time) state {
	s := state{Time: now.UTC().Truncate(time.Second), Users: len(who), Members: []member{}}
	for _, p := range who {
		for _, name := range p.all {
			is, err := src.Parcel(p.User, name)
			if err != nil {
				src.Warn(fmt.Sprintf("parcel %s/%s: %v", p.User, name, err))
				continue
			}
			s.Parcels++
			if is.Held {
				s.Held++
			}
			s.Versions += is.Versions
			s.Objects += is.Objects
			s.Bytes += is.Bytes
			p.Parcels = append(p.Parcels, is)
		}
		if p.agreed {
			s.Agreed++
			s.Members = append(s.Members, p.member)
		}
	}
	s.host(src.Realm.Root())
	return s
}

// host is what the kernel tells; what it does not stays 0.
func (s *state) host(root string) {
	var fs unix.Statfs_t
	if unix.Statfs(root, &fs) == nil {
		s.Disk, s.Free = int64(fs.Blocks)*fs.Bsize, int64(fs.Bavail)*fs.Bsize
	}
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	s.Boot = strings.TrimSpace(string(boot))
	if p, err := os.ReadFile("/proc/uptime"); err == nil {
		s.Uptime = number(p, 0)
	}
	if p, err := os.ReadFile("/proc/loadavg"); err == nil {
		s.Load = number(p, 2)
	}
	if p, err := os.ReadFile("/proc/stat"); err == nil {
		s.cpu(p)
	}
	if p, err := os.ReadFile("/proc/net/dev"); err == nil {
		s.net(p)
	}
}

// number is the n-th word of p.
func number(p []byte, n int) float64 {
	words := strings.Fields(string(p))
	if n >= len(words) {
		return 0
	}
	f, _ := strconv.ParseFloat(words[n], 64)
	return f
}

// tick is the unit of /proc/stat, which is 1/100 s for all of user space.
const tick = 0.01

func (s *state) cpu(p []byte) {
	for lines := bufio.NewScanner(bytes.NewReader(p)); lines.Scan(); {
		words := strings.Fields(lines.Text())
		switch {
		case len(words) < 6 || !strings.HasPrefix(words[0], "cpu"):
		case words[0] == "cpu":
			// user nice system idle iowait irq softirq steal; guest is in user
			for i, w := range words[1:min(len(words), 9)] {
				t, _ := strconv.ParseFloat(w, 64)
				if i == 3 || i == 4 {
					s.CPUIdle += t * tick
				} else {
					s.CPUBusy += t * tick
				}
			}
		default:
			s.CPUs++
		}
	}
}

func (s *state) net(p []byte) {
	for lines := bufio.NewScanner(bytes.NewReader(p)); lines.Scan(); {
		name, rest, ok := strings.Cut(lines.Text(), ":")
		words := strings.Fields(rest)
		if !ok || len(words) < 9 || strings.TrimSpace(name) == "lo" {
			continue
		}
		in, _ := strconv.ParseInt(words[0], 10, 64)
		out, _ := strconv.ParseInt(words[8], 10, 64)
		s.NetIn += in
		s.NetOut += out
	}
}

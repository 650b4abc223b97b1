package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"isr/client/remote/sshdtest"
)

// block is a literal display of the page's EXAMPLES that a comment names.
var block = regexp.MustCompile(`(?s)\n\.\\" day: (\w+)\n\.Bd [^\n]*\n(.*?)\n\.Ed\n`)

// blocks are the commands of isr-locksrv(8)'s worked day, by name, as a shell
// reads them.
func blocks(t *testing.T) map[string]string {
	t.Helper()
	page, err := os.ReadFile("../../man/isr-locksrv.8")
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]string)
	for _, m := range block.FindAllStringSubmatch(string(page), -1) {
		var script strings.Builder
		for line := range strings.Lines(strings.ReplaceAll(m[2], `\e`, `\`) + "\n") {
			if len(line) < 2 || line[:2] != "# " && line[:2] != "> " {
				t.Fatalf("%s: %q is no line of a root's shell", m[1], line)
			}
			script.WriteString(line[2:])
		}
		found[m[1]] = script.String()
	}
	return found
}

// TestDay is the worked day of isr-locksrv(8), from an empty machine: the
// page's own commands, run by a shell as they stand but for where things are,
// with users, who have nothing but a key, in between.
func TestDay(t *testing.T) {
	sshdtest.Require(t, "fusermount3", "qemu-img", "ssh-keygen", "ssh-keyscan")
	if _, err := os.Stat("/dev/fuse"); err != nil && os.Getenv("ISR_TEST_REQUIRE") != "1" {
		t.Skip(err)
	}
	bin := t.TempDir()
	if out, err := exec.Command("go", "build", "-o", bin, "isr/client/isr").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	page := blocks(t)
	told := make(map[string]bool)
	if os.Geteuid() != 0 {
		t.Skip("only root has a disk to fill")
	}
	// In a test of its own, as it may run beside others.
	t.Run("", func(t *testing.T) { tellDay(t, bin, page, told) })
	for name := range page {
		if !told[name] {
			t.Errorf("commands %q of isr-locksrv(8): the story does not have them", name)
		}
	}
}

func tellDay(t *testing.T, bin string, page map[string]string, told map[string]bool) {
	testscript.Run(t, testscript.Params{
		Files:               []string{"testdata/day/day.txtar"},
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			short, err := os.MkdirTemp("", "isr") // Unix sockets lie below it
			if err != nil {
				return err
			}
			e.Defer(func() { os.RemoveAll(short) })
			root := filepath.Join(e.WorkDir, "root")
			if err := os.Mkdir(root, 0o700); err != nil {
				return err
			}
			e.Setenv("PATH", bin+":"+os.Getenv("PATH"))
			e.Setenv("ISR_ROOT", root)
			e.Setenv("XDG_RUNTIME_DIR", short)
			e.Setenv("SHELL", "/bin/sh")
			e.Values["server"] = new(dayServer)
			e.Defer(func() { e.Values["server"].(*dayServer).stop() })
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status": status,
			// page NAME: the page's commands of that name.
			"page": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg || len(args) != 1 || page[args[0]] == "" {
					ts.Fatalf("page: want the name of commands in isr-locksrv(8)")
				}
				told[args[0]] = true
				script := strings.NewReplacer("/var/lib/isr", ts.Getenv("ISR_ROOT"), "/backup", ts.Getenv("WORK")+"/backup").Replace(page[args[0]])
				ts.Check(ts.Exec("sh", "-ec", script))
			},
			// user NAME: go on as that user, on a host of her own with her key.
			"user": func(ts *testscript.TestScript, neg bool, args []string) {
				home := filepath.Join(ts.Getenv("WORK"), "home", args[len(args)-1])
				ts.Setenv("HOME", home)
				s := ts.Value("server").(*dayServer)
				ssh := filepath.Join(home, ".ssh")
				ts.Check(os.MkdirAll(ssh, 0o700))
				for _, suffix := range []string{"", ".pub"} {
					key, err := os.ReadFile(filepath.Join(ts.Getenv("WORK"), "keys", args[0]+suffix))
					ts.Check(err)
					ts.Check(os.WriteFile(filepath.Join(ssh, "id_ed25519"+suffix), key, 0o600))
				}
				known, err := exec.Command("ssh-keyscan", "-p", s.port, "127.0.0.1").Output()
				ts.Check(err)
				ts.Check(os.WriteFile(filepath.Join(ssh, "known_hosts"), known, 0o600))
				ts.Check(os.WriteFile(filepath.Join(home, ".openisrrc"), []byte("server = 127.0.0.1:"+s.port+"\nuserid = "+args[0]+
					"\nhostname = "+args[len(args)-1]+"\n"), 0o600))
			},
			// disk PARCEL LINE: resume it, and run a line of shell on its disk.
			"disk": func(ts *testscript.TestScript, neg bool, args []string) {
				err := ts.Exec("sh", "-c", `printf '%s\n' "$2" | isr resume "$1" -m shell`, "sh", args[0], args[1])
				if (err != nil) != neg {
					ts.Fatalf("disk %s: %v", args[0], err)
				}
			},
			"server": func(ts *testscript.TestScript, neg bool, args []string) {
				s := ts.Value("server").(*dayServer)
				if args[0] == "stop" {
					s.stop()
					return
				}
				ts.Check(s.start("isr-locksrv", ts.Getenv("ISR_ROOT")))
			},
			// tmpfs: the realm is on a disk of its own.
			"tmpfs": func(ts *testscript.TestScript, neg bool, args []string) {
				dir := ts.Getenv("ISR_ROOT")
				ts.Check(syscall.Mount("tmpfs", dir, "tmpfs", 0, "mode=700,size=1G"))
				ts.Defer(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
			},
			// shrink FREE: it has only so many mebibytes left.
			"shrink": func(ts *testscript.TestScript, neg bool, args []string) {
				dir := ts.Getenv("ISR_ROOT")
				var fs syscall.Statfs_t
				ts.Check(syscall.Statfs(dir, &fs))
				free, err := parseSize(args[0])
				ts.Check(err)
				size := int64(fs.Blocks-fs.Bfree)*fs.Bsize + free
				ts.Check(syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, fmt.Sprintf("size=%d", size)))
			},
			// burn: the disk is gone, and an empty one there instead.
			"burn": func(ts *testscript.TestScript, neg bool, args []string) {
				dir := ts.Getenv("ISR_ROOT")
				ts.Check(syscall.Unmount(dir, 0))
				ts.Check(syscall.Mount("tmpfs", dir, "tmpfs", 0, "mode=700,size=1G"))
			},
		},
	})
}

// dayServer is isr-locksrv serve, always at one port.
type dayServer struct {
	cmd  *exec.Cmd
	port string
}

func (s *dayServer) start(program, root string) error {
	if s.port == "" {
		s.port = "0"
	}
	s.cmd = exec.Command(program, "--root", root, "serve", "--listen", "127.0.0.1:"+s.port)
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := s.cmd.Start(); err != nil {
		return err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return err
	}
	s.port = strings.TrimSpace(line[strings.LastIndex(line, ":")+1:])
	return nil
}

func (s *dayServer) stop() {
	if s.cmd != nil {
		s.cmd.Process.Signal(syscall.SIGTERM)
		s.cmd.Wait()
		s.cmd = nil
	}
}

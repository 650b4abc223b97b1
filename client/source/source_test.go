package source

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"isr/client/fetch"
	"isr/client/fetch/fetchtest"
	"isr/client/remote/dial"
	"isr/client/remote/sshconf"
	"isr/client/remote/sshdtest"
	"isr/store/parcel"
	"isr/store/seal"
)

var bg = context.Background()

// plant writes objects into a tree, in one of layouts.
func plant(t testing.TB, root string, layout int, objects map[seal.Tag][]byte) {
	t.Helper()
	for tag, p := range objects {
		name := filepath.Join(root, layouts[layout](tag.String()))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, p, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// open opens a place until the test ends. Without a patience of its own it has
// one that no busy host tries.
func open(t testing.TB, name string, o Options) *Place {
	t.Helper()
	if o.Patience == 0 {
		o.Patience = time.Minute
	}
	p, err := Open(name, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// promises proves those of fetch.Source for a tree in each of the layouts that
// it may have. place is the name of the place with its tree in root.
func promises(t *testing.T, o Options, some []int, place func(t testing.TB, root string) string) {
	for _, layout := range some {
		t.Run(fmt.Sprintf("layout=%d", layout), func(t *testing.T) {
			root := ""
			fetchtest.Run(t, fetchtest.Subject{
				New: func(t testing.TB, objects map[seal.Tag][]byte) fetch.Source {
					root = t.TempDir()
					os.Chmod(root, 0o755)
					plant(t, root, layout, objects)
					return open(t, place(t, root), o)
				},
				Spoil: func(t testing.TB, tag seal.Tag, with []byte) {
					plant(t, root, layout, map[seal.Tag][]byte{tag: with})
				},
			})
		})
	}
}

var all = []int{0, 1, 2, 3}

func TestDirectory(t *testing.T) {
	promises(t, Options{}, all, func(t testing.TB, root string) string { return root })
}

func TestDirectoryURL(t *testing.T) {
	promises(t, Options{}, []int{0}, func(t testing.TB, root string) string { return "FILE://" + root })
	promises(t, Options{}, []int{3, 2}, func(t testing.TB, root string) string { return "HFS://" + root })
}

func TestCoda(t *testing.T) {
	coda := t.TempDir()
	promises(t, Options{coda: coda}, []int{1}, func(t testing.TB, root string) string {
		os.Remove(filepath.Join(coda, "realm"))
		if err := os.Symlink(root, filepath.Join(coda, "realm")); err != nil {
			t.Fatal(err)
		}
		return "CODA://realm/"
	})
}

func TestFileServer(t *testing.T) {
	promises(t, Options{}, all, func(t testing.TB, root string) string {
		s := httptest.NewServer(http.FileServer(http.Dir(root)))
		t.Cleanup(s.Close)
		return strings.Replace(s.URL, "http", "HTTP", 1)
	})
}

func TestCAS(t *testing.T) {
	promises(t, Options{}, []int{2, 3}, func(t testing.TB, root string) string {
		s := httptest.NewServer(http.StripPrefix("/cas", http.FileServer(http.Dir(root))))
		t.Cleanup(s.Close)
		return strings.Replace(s.URL, "http", "cas", 1) + "/cas"
	})
}

// TestSystemAuthorities: https with the authorities of the system, which the
// environment may name, over HTTP/2; and not without them.
func TestSystemAuthorities(t *testing.T) {
	if os.Getenv("SOURCE_TEST_HTTPS") != "" {
		p := open(t, os.Getenv("SOURCE_TEST_HTTPS"), Options{})
		tag, err := seal.ParseTag(os.Getenv("SOURCE_TEST_TAG"))
		if err != nil {
			t.Fatal(err)
		}
		got, err := p.Get(bg, tag)
		fmt.Printf("got %d bytes, %v\n", len(got), err)
		return
	}
	root := t.TempDir()
	tag, sealed := fetchtest.Object(100000)
	plant(t, root, 0, map[seal.Tag][]byte{tag: sealed})
	var proto atomic.Value
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		proto.Store(r.Proto)
		http.FileServer(http.Dir(root)).ServeHTTP(w, r)
	}))
	s.EnableHTTP2 = true
	s.Config.ErrorLog = quietLog
	s.StartTLS()
	t.Cleanup(s.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	// Once read, the authorities are those of the process.
	for file, want := range map[string]string{ca: "got 100000 bytes, <nil>", "/dev/null": "certificate"} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestSystemAuthorities$")
		cmd.Env = append(os.Environ(), "SOURCE_TEST_HTTPS=HTTPS"+s.URL[len("https"):], "SOURCE_TEST_TAG="+tag.String(),
			"SSL_CERT_FILE="+file, "SSL_CERT_DIR=/dev/null")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("with %s: %v\n%s", filepath.Base(file), err, out)
		}
	}
	if proto.Load() != "HTTP/2.0" {
		t.Errorf("asked by %v, want HTTP/2.0", proto.Load())
	}
}

func TestNginx(t *testing.T) {
	sshdtest.Require(t, "nginx")
	promises(t, Options{}, []int{0, 1}, func(t testing.TB, root string) string { return nginx(t, root) })
}

// nginx serves root until the test ends.
func nginx(t testing.TB, root string) string {
	t.Helper()
	dir := t.TempDir()
	port := holdPort(t)
	config := "daemon off;\npid " + dir + "/pid;\nerror_log stderr;\nworker_processes 1;\nmaster_process off;\n" +
		"events { worker_connections 64; }\nhttp {\n access_log off;\n sendfile on;\n"
	for _, p := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		config += fmt.Sprintf(" %s_temp_path %s/%s;\n", p, dir, p)
	}
	config += fmt.Sprintf(" server { listen 127.0.0.1:%d; root %s; }\n}\n", port, root)
	if err := os.WriteFile(dir+"/nginx.conf", []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	program, err := exec.LookPath("nginx")
	if err != nil {
		program = "/usr/sbin/nginx"
	}
	cmd := exec.Command(program, "-p", dir, "-c", dir+"/nginx.conf", "-e", "stderr")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	t.Cleanup(func() { cmd.Process.Kill(); <-ended })
	for {
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			conn.Close()
			return fmt.Sprintf("HTTP://127.0.0.1:%d", port)
		}
		select {
		case <-ended:
			t.Fatalf("nginx: %s", said.String())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// holdPort gives a port of the loopback address that nobody else is given
// until the test ends, and that a program can listen at which reuses addresses.
func holdPort(t testing.TB) int {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	addr, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return addr.(*syscall.SockaddrInet4).Port
}

func TestSFTP(t *testing.T) {
	s := sshdtest.Start(t, sshdtest.Options{ForceCommand: "internal-sftp"})
	promises(t, Options{Dial: dialer(s.Home(t, ""))}, []int{1}, func(t testing.TB, root string) string {
		return fmt.Sprintf("SFTP://%s%s", s.Addr, root)
	})
}

// dialer logs in by a home's ssh configuration.
func dialer(home string) func(ctx context.Context, user, host string, port int) (*ssh.Client, error) {
	return func(ctx context.Context, user, host string, port int) (*ssh.Client, error) {
		return dial.Dial(ctx, sshconf.Target{Host: host, Port: port, User: user, Home: home, BatchMode: true}, nil, nil)
	}
}

// TestSFTPAgain: a connection that is lost is made again.
func TestSFTPAgain(t *testing.T) {
	s := sshdtest.Start(t, sshdtest.Options{ForceCommand: "internal-sftp"})
	root := t.TempDir()
	tag, sealed := fetchtest.Object(1000)
	plant(t, root, 0, map[seal.Tag][]byte{tag: sealed})
	p := open(t, fmt.Sprintf("sftp://%s%s", s.Addr, root), Options{Dial: dialer(s.Home(t, ""))})
	if _, err := p.Get(bg, tag); err != nil {
		t.Fatal(err)
	}
	s.Restart(t)
	within(t, func() bool {
		got, err := p.Get(bg, tag)
		return err == nil && bytes.Equal(got, sealed)
	})
}

// within waits for the event that f reports, asking often.
func within(t testing.TB, f func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not within two minutes")
		}
	}
}

func TestOpen(t *testing.T) {
	dial := dialer("")
	for name, want := range map[string]string{
		"/a/b/../c":                 "/a/c",
		"FILE:///a/b%20c":           "/a/b c",
		"file://localhost/a":        "/a",
		"HFS:///a":                  "/a",
		"CODA://realm/u/isr":        "/coda/realm/u/isr",
		"coda:///r/../../u":         "/coda/u",
		"CODA://../u":               "/coda/u",
		"HTTP://u:p@h/x":            "web http://u:p@h/x",
		"Https://h:1/":              "web https://h:1/",
		"CAS://h/x":                 "web http://h/x",
		"SFTP://u@h:22/x":           "sftp /x",
		"SFTP://h/~/x":              "sftp x",
		"SFTP://h/~":                "sftp .",
		"NFS://h/x":                 "mount",
		"a/b":                       "",
		"":                          "",
		"~/x":                       "",
		"FILE://a/b":                "",
		"FILE://":                   "",
		"HTTP:///x":                 "",
		"HTTP://h/x?y":              "",
		"SFTP://h:99999999999999/x": "",
		"SFTP://u:p@h/x":            "",
		"SFTP:///x":                 "",
		"NFS:///x":                  "",
		"FTP://h/x":                 "",
		"HTTP://h/\x00":             "",
		"HTTP://u:secret@h/%zz":     "",
		"://":                       "",
		"HTTP://u:secret@h/x#y":     "",
	} {
		p, err := Open(name, Options{Dial: dial})
		got := ""
		if err == nil {
			switch tr := p.tree.(type) {
			case *dir:
				if got = tr.path; tr.find != nil {
					got = "mount"
				}
			case *web:
				got = "web " + tr.base.String()
			case *files:
				got = "sftp " + tr.root
			}
			if p.Local() != strings.HasPrefix(want, "/") {
				t.Errorf("%s: local: %t", name, p.Local())
			}
			if strings.Contains(p.Name(), ":p@") {
				t.Errorf("%s: its name %s has the password", name, p.Name())
			}
		} else if !errors.Is(err, parcel.ErrUsage) || strings.Contains(err.Error(), "secret") {
			t.Errorf("open %q: %v", name, err)
		}
		if got != want {
			t.Errorf("open %q: %q, %v; want %q", name, got, err, want)
		}
	}
}

func TestFindNFS(t *testing.T) {
	file := filepath.Join(t.TempDir(), "mountinfo")
	text := `22 1 0:20 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 0:41 / /mnt/a rw,relatime shared:2 - nfs4 filer:/export rw,vers=4.2,addr=10.0.0.7
41 22 0:42 / /mnt/b\040b rw - nfs filer.example.org:/export/deep rw
42 22 0:43 /sub /mnt/c rw - nfs4 filer:/other rw
43 22 0:44 / /mnt/d rw - nfs4 [fe80::1]:/ rw
44 22 0:45 / /mnt/e rw - fuse filer:/fuse rw
45 22 broken
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]string{
		"filer /export":                         "/mnt/a",
		"FILER /export/x/y":                     "/mnt/a/x/y",
		"10.0.0.7 /export/x":                    "/mnt/a/x",
		"filer.example.org /export/deep/x":      "/mnt/b b/x",
		"filer.example.org /export":             "",
		"filer /exports":                        "",
		"filer /other/sub/x":                    "/mnt/c/x",
		"filer /other/x":                        "",
		"fe80::1 /x":                            "/mnt/d/x",
		"filer /fuse":                           "",
		"other /export":                         "",
		"filer.example.org /export/deeper/than": "",
	} {
		host, dir, _ := strings.Cut(in, " ")
		got, ok := findNFS(file, host, dir)
		if got != want || ok != (want != "") {
			t.Errorf("%s: %q, %t; want %q", in, got, ok, want)
		}
	}
}

// TestMountComesAndGoes: what is not mounted has no object, and is found when
// it is.
func TestMountComesAndGoes(t *testing.T) {
	root, file := t.TempDir(), filepath.Join(t.TempDir(), "mountinfo")
	tag, sealed := fetchtest.Object(1000)
	plant(t, root, 1, map[seal.Tag][]byte{tag: sealed})
	p := open(t, "NFS://filer/export/winxp", Options{mountinfo: file})
	if _, err := p.Get(bg, tag); !errors.Is(err, parcel.ErrNoObject) || !p.Gone() {
		t.Errorf("not mounted: %v, gone: %t", err, p.Gone())
	}
	line := "40 22 0:41 / " + root + " rw - nfs4 filer:/export/winxp rw\n"
	if err := os.WriteFile(file, []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := p.Get(bg, tag); err != nil || !bytes.Equal(got, sealed) || p.Gone() {
		t.Errorf("mounted: %v, gone: %t", err, p.Gone())
	}
}

// TestMounted: a tree on a file system of its own, mounted and unmounted.
func TestMounted(t *testing.T) {
	if os.Getenv("SOURCE_TEST_MOUNT") == "" {
		sshdtest.Require(t, "unshare", "mount")
		if err := exec.Command("unshare", "-rm", "true").Run(); err != nil {
			t.Skipf("unshare: %v", err)
		}
		cmd := exec.Command("unshare", "-rm", os.Args[0], "-test.run=^TestMounted$", "-test.v")
		cmd.Env = append(os.Environ(), "SOURCE_TEST_MOUNT=1", "TMPDIR="+t.TempDir())
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	point := t.TempDir()
	mount := func() {
		if err := syscall.Mount("tmpfs", point, "tmpfs", 0, "size=4m"); err != nil {
			t.Fatal(err)
		}
	}
	tag, sealed := fetchtest.Object(100000)
	objects := map[seal.Tag][]byte{tag: sealed}
	p := open(t, point, Options{})
	if _, err := p.Get(bg, tag); !errors.Is(err, parcel.ErrNoObject) {
		t.Errorf("before: %v", err)
	}
	mount()
	plant(t, point, 0, objects)
	if _, err := p.Get(bg, tag); err != nil || p.Gone() {
		t.Errorf("mounted: %v, gone: %t", err, p.Gone())
	}
	if err := syscall.Unmount(point, 0); err != nil {
		t.Fatal(err)
	}
	// The mount point is there, and is not the stick.
	if _, err := p.Get(bg, tag); !errors.Is(err, parcel.ErrNoObject) || !p.Gone() {
		t.Errorf("unmounted: %v, gone: %t", err, p.Gone())
	}
}

func TestSurvey(t *testing.T) {
	objects := fetchtest.Objects()
	var bytes int64
	for _, p := range objects {
		bytes += int64(len(p))
	}
	n := int64(len(objects))
	for layout := range layouts {
		root := t.TempDir()
		plant(t, root, layout, objects)
		os.WriteFile(filepath.Join(root, "usage"), []byte("1\n"), 0o600)
		os.Mkdir(filepath.Join(root, "pins"), 0o700)
		got, err := open(t, root, Options{}).Survey(bg)
		if want := (Survey{There: true, Counted: true, Objects: n, Bytes: bytes, Other: 1}); err != nil || got != want {
			t.Errorf("layout %d: %+v, %v; want %+v", layout, got, err, want)
		}
	}
	if got, err := open(t, t.TempDir()+"/none", Options{}).Survey(bg); err != nil || got.There {
		t.Errorf("no directory: %+v, %v", got, err)
	}
	s := httptest.NewServer(http.FileServer(http.Dir(t.TempDir())))
	defer s.Close()
	if got, err := open(t, s.URL, Options{}).Survey(bg); err != nil || !got.There || got.Counted {
		t.Errorf("web server: %+v, %v", got, err)
	}
	if _, err := open(t, "HTTP://127.0.0.1:1/", Options{}).Survey(bg); err == nil {
		t.Errorf("no web server: no error")
	}
}

// TestWrapped: bytes of web servers go through what they are wrapped in.
func TestWrapped(t *testing.T) {
	root := t.TempDir()
	tag, sealed := fetchtest.Object(100000)
	plant(t, root, 0, map[seal.Tag][]byte{tag: sealed})
	s := httptest.NewServer(http.FileServer(http.Dir(root)))
	defer s.Close()
	var n atomic.Int64
	p := open(t, s.URL, Options{Wrap: func(c net.Conn) net.Conn { return &metered{c, &n} }})
	if _, err := p.Get(bg, tag); err != nil || n.Load() < 100000 || n.Load() > 105000 {
		t.Errorf("get of 100000 bytes: %d counted, %v", n.Load(), err)
	}
}

type metered struct {
	net.Conn
	n *atomic.Int64
}

func (m *metered) Read(p []byte) (int, error) {
	n, err := m.Conn.Read(p)
	m.n.Add(int64(n))
	return n, err
}

// TestLayoutIsRemembered: once it is known where objects lie, a request is one.
func TestLayoutIsRemembered(t *testing.T) {
	root := t.TempDir()
	tag, sealed := fetchtest.Object(1000)
	plant(t, root, 3, map[seal.Tag][]byte{tag: sealed})
	var asked atomic.Int64
	other, _ := fetchtest.Object(10)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Of tag the requests that lost a race may come when it is over.
		if strings.EqualFold(path.Base(r.URL.Path), other.String()) {
			asked.Add(1)
		}
		http.FileServer(http.Dir(root)).ServeHTTP(w, r)
	}))
	defer s.Close()
	p := open(t, s.URL, Options{})
	if _, err := p.Get(bg, tag); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if _, err := p.Get(bg, other); !errors.Is(err, parcel.ErrNoObject) {
			t.Fatal(err)
		}
	}
	if n := asked.Load(); n != 10 {
		t.Errorf("10 misses: %d requests", n)
	}
	// Where nothing was ever found, most misses are one request, and what
	// comes later is found all the same.
	p = open(t, s.URL, Options{})
	asked.Store(0)
	for range 160 {
		p.Get(bg, other)
	}
	if n := asked.Load(); n > 270 {
		t.Errorf("160 misses of a place of which nothing is known: %d requests", n)
	}
	within(t, func() bool { _, err := p.Get(bg, tag); return err == nil })
}

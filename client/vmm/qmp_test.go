package vmm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// qemuEnd is a QMP server under the test's control.
func qemuEnd(t *testing.T) (*net.UnixConn, net.Conn, *bufio.Reader) {
	t.Helper()
	ours, file, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := net.FileConn(file)
	file.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { theirs.Close() })
	return ours, theirs, bufio.NewReader(theirs)
}

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}` + "\r\n"

func TestQMP(t *testing.T) {
	ours, theirs, in := qemuEnd(t)
	io.WriteString(theirs, greeting)
	type result struct {
		q   *qmp
		err error
	}
	opened := make(chan result, 1)
	go func() { q, err := newQMP(t.Context(), ours); opened <- result{q, err} }()
	expect := func(text string) {
		t.Helper()
		line, err := in.ReadString('\n')
		if err != nil || !strings.Contains(line, text) {
			t.Fatalf("got %q, %v; want %s", line, err, text)
		}
	}
	expect(`"qmp_capabilities"`)
	io.WriteString(theirs, `{"return": {}, "id": 1}`+"\n")
	r := <-opened
	if r.err != nil {
		t.Fatal(r.err)
	}
	q := r.q
	defer q.close()
	if q.version != (qmpVersion{7, 2, 22}) {
		t.Errorf("version %v", q.version)
	}

	// Events before, between and after answers; an answer that is an error; a caller that gave up.
	done := make(chan error, 1)
	var status struct{ Status string }
	go func() { done <- q.execute(t.Context(), "query-status", nil, &status) }()
	expect(`"id":2`)
	for i := range 1000 {
		fmt.Fprintf(theirs, `{"event": "E%d", "data": {"n": %d}}`+"\n", i, i)
	}
	io.WriteString(theirs, `{"return": {"status": "paused"}, "id": 2}`+"\n"+`{"event": "LAST"}`+"\n")
	if err := <-done; err != nil || status.Status != "paused" {
		t.Errorf("got %+v, %v", status, err)
	}
	for i := range 1001 {
		e, ok := q.take()
		for !ok {
			<-q.wake
			e, ok = q.take()
		}
		if want := fmt.Sprintf("E%d", i); e.Name != want && i < 1000 || i == 1000 && e.Name != "LAST" {
			t.Fatalf("event %d is %s", i, e.Name)
		}
	}
	go func() {
		done <- q.execute(t.Context(), "device_add", map[string]string{"driver": "x"}, nil)
	}()
	expect(`"driver":"x"`)
	io.WriteString(theirs, `{"error": {"class": "GenericError", "desc": "no such x"}, "id": 3}`+"\n")
	var qe *qmpError
	if err := <-done; !errors.As(err, &qe) || qe.Command != "device_add" || qe.Desc != "no such x" {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { done <- q.execute(ctx, "stop", nil, nil) }()
	expect(`"stop"`)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	go func() { done <- q.execute(t.Context(), "cont", nil, nil) }()
	expect(`"cont"`)
	io.WriteString(theirs, `{"return": {}, "id": 4}`+"\n"+`{"return": {}, "id": 5}`+"\n")
	if err := <-done; err != nil {
		t.Errorf("after a late answer: %v", err)
	}

	// The other end goes away in the middle of a command.
	go func() { done <- q.execute(t.Context(), "quit", nil, nil) }()
	expect(`"quit"`)
	theirs.Close()
	if err := <-done; !errors.Is(err, errQMPDead) {
		t.Errorf("got %v", err)
	}
	if err := q.execute(t.Context(), "cont", nil, nil); !errors.Is(err, errQMPDead) {
		t.Errorf("a command after the end: %v", err)
	}
}

func TestQMPRefuses(t *testing.T) {
	for name, text := range map[string]string{"nothing": "", "text": "hello\n", "long": "{\"a\":\"" + strings.Repeat("x", maxQMPLine+100000) + "\"}\n"} {
		ours, theirs, _ := qemuEnd(t)
		go func() { io.WriteString(theirs, text); theirs.Close() }()
		if q, err := newQMP(t.Context(), ours); err == nil {
			q.close()
			t.Errorf("%s: taken", name)
		}
	}
	ours, _, _ := qemuEnd(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := newQMP(ctx, ours); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no greeting: got %v", err)
	}
}

// A passed descriptor arrives: QEMU writes into it.
func TestQMPPass(t *testing.T) {
	needQEMU(t)
	program, _ := findQEMU("")
	c, q, err := spawn(t.Context(), program, []string{"-machine", "none", "-display", "none", "-nodefaults"}, &tail{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.kill()
	defer q.close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := q.pass(t.Context(), "x", w); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if err := q.execute(t.Context(), "closefd", map[string]string{"fdname": "x"}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 1)); err != io.EOF { // it had the only other one
		t.Errorf("got %v", err)
	}
	if err := q.execute(t.Context(), "closefd", map[string]string{"fdname": "y"}, nil); err == nil {
		t.Error("closing what was never passed succeeds")
	}
}

func FuzzQMP(f *testing.F) {
	f.Add([]byte(greeting))
	f.Add([]byte(`{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}`))
	f.Add([]byte(`{"error": {"class": "GenericError", "desc": "x"}, "id": 1}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := parseQMP(line)
		if err == nil && m.Error != nil {
			_ = m.Error.Error()
		}
	})
}

package vmm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// qmp speaks the QEMU Machine Protocol over one end of a socket pair: commands
// one at a time, and events, which are kept until somebody takes them.
type qmp struct {
	conn *net.UnixConn

	exec    sync.Mutex      // one command at a time
	replies chan qmpMessage // unbuffered; closed with the connection
	dead    chan struct{}   // closed when nothing more will come
	err     error           // why; valid after dead
	wake    chan struct{}   // capacity 1: there are events
	mu      sync.Mutex      // guards queue
	queue   []qmpEvent      // events not yet taken
	gone    chan struct{}   // closed by close
	closing sync.Once       //
	next    int             // id of the next command
	version qmpVersion      // from the greeting
}

type qmpVersion struct {
	Major, Minor, Micro int
}

func (v qmpVersion) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro) }

// less compares what a machine type can depend on: micro releases only repair.
func (v qmpVersion) less(w qmpVersion) bool {
	return v.Major < w.Major || v.Major == w.Major && v.Minor < w.Minor
}

type qmpEvent struct {
	Name string
	Data json.RawMessage
}

// qmpError is QEMU's answer to a command it could not do.
type qmpError struct {
	Command string `json:"-"`
	Class   string `json:"class"`
	Desc    string `json:"desc"`
}

func (e *qmpError) Error() string { return "qemu: " + e.Command + ": " + e.Desc }

type qmpMessage struct {
	QMP *struct {
		Version struct{ QEMU qmpVersion }
	}
	Event  string
	Data   json.RawMessage
	Return json.RawMessage
	Error  *qmpError
	ID     int
}

// qmpDead is the error of a connection that ended.
var errQMPDead = errors.New("qemu closed its control socket")

const maxQMPLine = 16 << 20 // query-cpu-definitions answers with some 100 KiB

// newQMP reads the greeting and negotiates capabilities. It owns conn from here on.
func newQMP(ctx context.Context, conn *net.UnixConn) (*qmp, error) {
	q := &qmp{
		conn: conn, replies: make(chan qmpMessage), dead: make(chan struct{}),
		wake: make(chan struct{}, 1), gone: make(chan struct{}),
	}
	greeting := make(chan struct{})
	go q.read(greeting)
	select {
	case <-greeting:
	case <-q.dead:
		q.close()
		return nil, q.err
	case <-ctx.Done():
		q.close()
		return nil, ctx.Err()
	}
	if err := q.execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		q.close()
		return nil, err
	}
	return q, nil
}

func (q *qmp) close() {
	q.closing.Do(func() {
		close(q.gone)
		q.conn.Close()
	})
}

func (q *qmp) read(greeting chan struct{}) {
	defer close(q.dead)
	r := bufio.NewReaderSize(q.conn, 64<<10)
	for {
		line, err := readLine(r)
		if err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.ECONNRESET) {
				err = errQMPDead
			}
			q.err = err
			return
		}
		m, err := parseQMP(line)
		if err != nil {
			q.err = err
			return
		}
		switch {
		case m.QMP != nil:
			if greeting != nil {
				q.version = m.QMP.Version.QEMU
				close(greeting)
				greeting = nil
			}
		case m.Event != "":
			q.mu.Lock()
			q.queue = append(q.queue, qmpEvent{m.Event, m.Data})
			q.mu.Unlock()
			select {
			case q.wake <- struct{}{}:
			default:
			}
		default:
			select {
			case q.replies <- m:
			case <-q.gone:
				q.err = errQMPDead
				return
			}
		}
	}
}

func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, err
		}
		if len(line) > maxQMPLine {
			return nil, errors.New("qemu: endless QMP message")
		}
	}
}

func parseQMP(line []byte) (m qmpMessage, err error) {
	if err := json.Unmarshal(line, &m); err != nil {
		return m, fmt.Errorf("qemu: not a QMP message: %w", err)
	}
	return m, nil
}

// take returns the next event, if there is one. Wait for q.wake, then take until there is none.
func (q *qmp) take() (qmpEvent, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.queue) == 0 {
		return qmpEvent{}, false
	}
	e := q.queue[0]
	q.queue = q.queue[1:]
	return e, true
}

// execute runs one command; args and result may be nil.
func (q *qmp) execute(ctx context.Context, command string, args, result any) error {
	return q.send(ctx, command, args, result, nil)
}

// pass gives QEMU an open file under a name that "fd:" addresses can use.
func (q *qmp) pass(ctx context.Context, name string, f *os.File) error {
	return q.send(ctx, "getfd", map[string]string{"fdname": name}, nil, f)
}

func (q *qmp) send(ctx context.Context, command string, args, result any, f *os.File) error {
	q.exec.Lock()
	defer q.exec.Unlock()
	q.next++
	id := q.next
	b, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        int    `json:"id"`
	}{command, args, id})
	if err != nil {
		return err
	}
	b = append(b, '\n')
	var rights []byte
	if f != nil {
		rights = syscall.UnixRights(int(f.Fd()))
	}
	if dl, ok := ctx.Deadline(); ok {
		q.conn.SetWriteDeadline(dl)
	} else {
		q.conn.SetWriteDeadline(time.Time{})
	}
	if _, _, err := q.conn.WriteMsgUnix(b, rights, nil); errors.Is(err, syscall.EPIPE) {
		return errQMPDead
	} else if err != nil {
		return fmt.Errorf("qemu: %s: %w", command, err)
	}
	for {
		select {
		case m := <-q.replies:
			if m.ID != id {
				continue // the answer to a command whose caller gave up
			}
			if m.Error != nil {
				m.Error.Command = command
				return m.Error
			}
			if result == nil {
				return nil
			}
			if err := json.Unmarshal(m.Return, result); err != nil {
				return fmt.Errorf("qemu: answer to %s: %w", command, err)
			}
			return nil
		case <-q.dead:
			return q.err
		case <-ctx.Done():
			return fmt.Errorf("qemu: %s: %w", command, ctx.Err())
		}
	}
}

// socketPair makes a connected pair of stream sockets: one end as a connection
// for us, one as a file for QEMU. There is no name in a file system that
// somebody else could connect to or whose length matters.
func socketPair() (*net.UnixConn, *os.File, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "socketpair"), os.NewFile(uintptr(fds[1]), "socketpair")
	c, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return c.(*net.UnixConn), theirs, nil
}

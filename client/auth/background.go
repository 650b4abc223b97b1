package auth

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"

	"isr/client/remote/ask"
	"isr/client/remote/dial"
	"isr/client/remote/sshconf"
	"isr/store/parcel"
)

// errand is what the background process is told at its start, over a socket.
type errand struct {
	Target   sshconf.Target
	Socket   string
	Lifetime time.Duration
}

// event is what it tells whoever started it: questions, notices, and at last
// how it went.
type event struct {
	Secret  string // a question that wants a secret
	Confirm string // a question that wants a yes
	Notice  string
	Done    bool
	Status  *Status // with Done, if all went well
	Error   string  // else
	Kind    parcel.Kind
	Hint    string
}

// reply is the answer to a question.
type reply struct {
	Secret string
	Yes    bool
	None   bool // nobody answers
}

// Start starts program, whose body is Background, and waits until it has
// logged in to t and listens at socket, or could not. Its questions go to p.
// When ctx ends before that, so does the process.
func Start(ctx context.Context, program []string, t sshconf.Target, socket string, lifetime time.Duration, p ask.Prompter) (Status, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return Status{}, err
	}
	here, there := os.NewFile(uintptr(fds[0]), "auth"), os.NewFile(uintptr(fds[1]), "auth")
	conn, err := net.FileConn(here)
	here.Close()
	if err != nil {
		there.Close()
		return Status{}, err
	}
	defer conn.Close()
	// Standard streams are /dev/null, and what we were given beside them is not
	// passed on: whoever waits for the end of a pipe or a terminal is not to
	// wait for us.
	unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC)
	cmd := exec.Command(program[0], program[1:]...)
	cmd.ExtraFiles = []*os.File{there}
	err = cmd.Start()
	there.Close()
	if err != nil {
		return Status{}, err
	}
	defer cmd.Process.Release()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if err := send(conn, errand{t, socket, lifetime}); err != nil {
		return Status{}, fmt.Errorf("auth: %w", err)
	}
	for {
		var e event
		if err := receive(conn, &e); err != nil {
			if ctx.Err() != nil {
				return Status{}, ctx.Err()
			}
			return Status{}, fmt.Errorf("auth: its process died: %w", err)
		}
		switch {
		case e.Done && e.Status != nil:
			return *e.Status, nil
		case e.Done:
			return Status{}, &parcel.Error{Kind: e.Kind, Msg: e.Error, Hint: e.Hint}
		case e.Notice != "":
			if n, ok := p.(ask.Notifier); ok {
				n.Notice(e.Notice)
			}
		default:
			r, err := answerTo(ctx, e, p)
			if err != nil {
				return Status{}, err
			}
			if err := send(conn, r); err != nil {
				return Status{}, fmt.Errorf("auth: %w", err)
			}
		}
	}
}

// answerTo asks the person, and does not wait for the answer when ctx ends.
func answerTo(ctx context.Context, e event, p ask.Prompter) (reply, error) {
	if p == nil {
		return reply{None: true}, nil
	}
	got := make(chan reply, 1)
	go func() {
		var r reply
		var err error
		if e.Secret != "" {
			r.Secret, err = p.Secret(e.Secret)
		} else {
			r.Yes, err = p.Confirm(e.Confirm)
		}
		r.None = err != nil
		got <- r
	}()
	select {
	case r := <-got:
		return r, nil
	case <-ctx.Done():
		return reply{}, ctx.Err()
	}
}

// front is the person in front, as the background process has one while it
// logs in.
type front struct{ conn net.Conn }

func (f front) ask(e event) (reply, error) {
	var r reply
	if err := send(f.conn, e); err != nil {
		return r, err
	}
	if err := receive(f.conn, &r); err != nil {
		return r, err
	}
	if r.None {
		return r, io.EOF
	}
	return r, nil
}

func (f front) Secret(prompt string) (string, error) {
	r, err := f.ask(event{Secret: prompt})
	return r.Secret, err
}

func (f front) Confirm(prompt string) (bool, error) {
	r, err := f.ask(event{Confirm: prompt})
	return r.Yes, err
}

func (f front) Notice(text string) { send(f.conn, event{Notice: text}) }

// Background is the body of the process that Start starts: descriptor 3 is its
// end of the socket. It returns when all is over.
func Background() error {
	file := os.NewFile(3, "front")
	none := parcel.NewError(parcel.Usage, "auth-keeper: it is started by isr auth")
	if file == nil {
		return none
	}
	conn, err := net.FileConn(file)
	file.Close()
	if err != nil {
		return none
	}
	defer conn.Close()
	// No core file, no debugger, nothing of us in /proc for others to read.
	unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	var e errand
	if err := receive(conn, &e); err != nil {
		return none
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	session := watchSession(os.Getppid(), stop)
	k, err := NewKeeper(ctx, e.Target, front{conn}, e.Lifetime, session)
	if err != nil {
		return tell(conn, err)
	}
	defer k.close()
	ln, mine, release, err := listen(e.Socket)
	if err != nil {
		return tell(conn, err)
	}
	defer release()
	k.reachable = mine
	// From here on on our own: no terminal's signals, no directory in use.
	unix.Setsid()
	os.Chdir("/")
	signal.Ignore(syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	term, cancel := signal.NotifyContext(ctx, syscall.SIGTERM)
	defer cancel()
	if err := send(conn, event{Done: true, Status: k.status()}); err != nil {
		return nil // whoever wanted it has gone before it was there
	}
	conn.Close()
	k.Serve(term, ln)
	return nil
}

// tell sends the error that ends it.
func tell(conn net.Conn, err error) error {
	e := event{Done: true, Error: err.Error(), Kind: dial.KindOf(err)}
	var pe *parcel.Error
	if errors.As(err, &pe) {
		e.Hint = pe.Hint
	}
	send(conn, e)
	return nil
}

// listen makes the socket, in a directory that is nobody else's, unless a
// Keeper listens there already. mine says whether it is still ours; release
// removes it if it is.
func listen(socket string) (ln *net.UnixListener, mine func() bool, release func(), err error) {
	// The directory's lock leaves no file behind.
	lock := flock.New(filepath.Dir(socket), flock.SetFlag(os.O_RDONLY))
	if err := lock.Lock(); err != nil {
		return nil, nil, nil, fmt.Errorf("auth: %w", err)
	}
	defer lock.Close()
	if h := Find(socket); h != nil {
		return nil, nil, nil, parcel.NewError(parcel.Exists, "auth: another isr auth was quicker").WithHint("isr auth --status shows it")
	}
	os.Remove(socket) // of one that died
	ln, err = net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, nil, nil, fmt.Errorf("auth: %w", err)
	}
	ln.SetUnlinkOnClose(false)
	made, err := os.Lstat(socket)
	if err == nil {
		err = os.Chmod(socket, 0o600)
	}
	if err != nil {
		ln.Close()
		return nil, nil, nil, fmt.Errorf("auth: %w", err)
	}
	mine = func() bool {
		fi, err := os.Lstat(socket)
		return err == nil && os.SameFile(fi, made)
	}
	return ln, mine, func() {
		if lock.Lock() == nil {
			defer lock.Close()
		}
		if mine() {
			os.Remove(socket)
		}
	}, nil
}

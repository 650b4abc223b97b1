package remote

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"golang.org/x/crypto/ssh"

	"isr/client/remote/ask"
	"isr/client/remote/dial"
	"isr/locksrv/proto"
	"isr/store/parcel"
	"isr/store/seal"
)

// ListParcels is the names of the user's parcels.
func (s *Server) ListParcels(ctx context.Context) ([]string, error) {
	out, err := s.ask(ctx, safe, nil, proto.ListParcels)
	return strings.Fields(string(out)), err
}

// Ls lists the user's parcels, or the one called name if it is not "", with
// at most n versions each.
func (s *Server) Ls(ctx context.Context, name string, n int) ([]proto.Listing, error) {
	words := []string{proto.Ls}
	if name != "" {
		words = append(words, name)
	}
	if n > 0 {
		words = append(words, "-L", strconv.Itoa(n))
	}
	out, err := s.ask(ctx, safe, nil, words...)
	if err != nil {
		return nil, err
	}
	var list []proto.Listing
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var l proto.Listing
		if err := d.Decode(&l); err == io.EOF {
			return list, nil
		} else if err != nil {
			return nil, s.nonsense(proto.Ls, err)
		}
		list = append(list, l)
	}
}

// Quota is what the user has stored, and may. An older server refuses to tell.
func (s *Server) Quota(ctx context.Context) (u proto.Usage, err error) {
	out, err := s.ask(ctx, safe, nil, proto.Quota)
	if err != nil {
		return u, err
	}
	if err := json.Unmarshal(out, &u); err != nil {
		return proto.Usage{}, s.nonsense(proto.Quota, err)
	}
	return u, nil
}

// HasPassword reports whether the user has an ISR password.
func (s *Server) HasPassword(ctx context.Context) (bool, error) {
	out, err := s.ask(ctx, safe, nil, proto.Passwd, "--check")
	return strings.TrimSpace(string(out)) == "yes", err
}

// Passwd changes the user's ISR password; old is empty if there is none. An
// error of kind Denied or Usage says that it is as it was; after one of kind
// Unreachable it may be either.
func (s *Server) Passwd(ctx context.Context, old, password []byte) error {
	stdin := append(append(append(append(make([]byte, 0, len(old)+len(password)+2), old...), '\n'), password...), '\n')
	defer clear(stdin)
	_, err := s.ask(ctx, once, stdin, proto.Passwd)
	return err
}

// PutReport tells the server how p was used. It may be told again.
func (s *Server) PutReport(ctx context.Context, p string, r *proto.Report) error {
	text, err := r.Encode()
	if err == nil {
		_, err = s.ask(ctx, safe, text, proto.PutReport, p)
	}
	return err
}

// Config is the parcel.cfg of p, parsed and as it is.
func (s *Server) Config(ctx context.Context, p string) (*parcel.Config, []byte, error) {
	out, err := s.ask(ctx, safe, nil, proto.CatConfig, p)
	if err != nil {
		return nil, nil, err
	}
	c, err := parcel.ParseConfig(out)
	if err != nil {
		return nil, nil, s.nonsense(proto.CatConfig, err)
	}
	return c, out, nil
}

// Keyroot is the keyroot of a version of p; 0 is the head.
func (s *Server) Keyroot(ctx context.Context, p string, version int) (seal.Ref, error) {
	words := []string{proto.CatKeyroot, p}
	if version != 0 {
		words = append(words, strconv.Itoa(version))
	}
	out, err := s.ask(ctx, safe, nil, words...)
	if err != nil {
		return seal.Ref{}, err
	}
	ref, err := seal.ParseRef(strings.TrimSpace(string(out)))
	if err == nil && ref.IsNil() {
		err = errors.New("nil keyroot")
	}
	if err != nil {
		return seal.Ref{}, s.nonsense(proto.CatKeyroot, err)
	}
	return ref, nil
}

// Acquire takes the lock of p for host. The same acquisition is answered with
// the same lock, so it may be asked again.
func (s *Server) Acquire(ctx context.Context, p, host, acquisition string) (*parcel.Lock, error) {
	out, err := s.ask(ctx, safe, nil, proto.Acquire, p, word(host), acquisition)
	if err != nil {
		return nil, err
	}
	return s.won(proto.Acquire, out)
}

// won is the lock that a verb took, with its nonce.
func (s *Server) won(verb string, out []byte) (*parcel.Lock, error) {
	l, err := parcel.ParseLock(out)
	if err == nil && l.Nonce == "" {
		err = errors.New("no nonce")
	}
	if err != nil {
		return nil, s.nonsense(verb, err)
	}
	return l, nil
}

// Release gives the lock of p back, or breaks it by force, and returns who
// held it. With its nonce it may be asked again; force is asked once, for
// somebody else may hold the parcel the second time.
func (s *Server) Release(ctx context.Context, p, nonce string, force bool) (*parcel.Lock, error) {
	words, r := []string{proto.Release, p}, safe
	if force {
		words, r = append(words, "--force"), once
	}
	out, err := s.ask(ctx, r, []byte(nonce+"\n"), words...)
	if err != nil || len(bytes.TrimSpace(out)) == 0 {
		return nil, err
	}
	return s.lock(proto.Release, out)
}

// CheckLock returns the lock of p if the nonce proves holding it, and tells
// the server that the holder lives.
func (s *Server) CheckLock(ctx context.Context, p, nonce string) (*parcel.Lock, error) {
	out, err := s.ask(ctx, safe, []byte(nonce+"\n"), proto.CheckLock, p)
	if err != nil {
		return nil, err
	}
	return s.lock(proto.CheckLock, out)
}

func (s *Server) lock(verb string, out []byte) (*parcel.Lock, error) {
	l, err := parcel.ParseLock(out)
	if err != nil {
		return nil, s.nonsense(verb, err)
	}
	return l, nil
}

// Missing is those of tags that the store of p lacks, in their order.
func (s *Server) Missing(ctx context.Context, p string, tags []seal.Tag) ([]seal.Tag, error) {
	if len(tags) == 0 {
		return nil, nil
	}
	asked := make(map[seal.Tag]bool, len(tags))
	for _, t := range tags {
		asked[t] = true
	}
	send := func(w io.Writer) error {
		b := bufio.NewWriterSize(w, 32<<10)
		for _, t := range tags {
			b.WriteString(t.String())
			b.WriteByte('\n')
		}
		return b.Flush()
	}
	receive := func(r io.Reader) (lacking []seal.Tag, err error) {
		err = proto.ReadTags(r, func(t seal.Tag) error {
			if !asked[t] {
				return fmt.Errorf("tag %s was not asked for", t)
			}
			lacking = append(lacking, t)
			return nil
		})
		if err != nil {
			err = s.nonsense(proto.Missing, err)
		}
		return lacking, err
	}
	return exchange(ctx, s, safe, []string{proto.Missing, p}, send, receive)
}

// Commit makes a version of p and returns its number. The same request is
// answered with the same version, so it may be asked again.
func (s *Server) Commit(ctx context.Context, p string, r proto.CommitRequest) (int, error) {
	text, err := r.Encode()
	if err != nil {
		return 0, err
	}
	out, err := s.ask(ctx, safe, text, proto.Commit, p)
	return s.version(proto.Commit, out, err)
}

// Rollback makes a version of p that equals an old one, and returns its
// number. A head that equals it already is the answer, so it may be asked
// again.
func (s *Server) Rollback(ctx context.Context, p, nonce string, version int) (int, error) {
	out, err := s.ask(ctx, safe, []byte(nonce+"\n"), proto.Rollback, p, strconv.Itoa(version))
	return s.version(proto.Rollback, out, err)
}

func (s *Server) version(verb string, out []byte, err error) (int, error) {
	if err != nil {
		return 0, err
	}
	v, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil || v < 1 {
		return 0, s.nonsense(verb, fmt.Errorf("version %q", out))
	}
	return v, nil
}

// Fork makes a parcel called to, equal to a version of p, with that comment,
// and takes its lock for host. The same acquisition is answered with the same
// lock, so it may be asked again.
func (s *Server) Fork(ctx context.Context, p string, version int, to, comment, host, acquisition string) (*parcel.Lock, error) {
	out, err := s.ask(ctx, safe, []byte(parcel.Clean(comment)+"\n"), proto.Fork, p, strconv.Itoa(version), to, word(host), acquisition)
	if err != nil {
		return nil, err
	}
	return s.won(proto.Fork, out)
}

// CheckParcel has the server check a version of p, 0 for all, with content
// also the bytes of every object, and returns what it found. The error is
// parcel.ErrDamaged if some of it is an error.
func (s *Server) CheckParcel(ctx context.Context, p string, version int, content bool) ([]proto.Finding, error) {
	words := []string{proto.CheckParcel, p}
	if version != 0 {
		words = append(words, strconv.Itoa(version))
	}
	if content {
		words = append(words, "-c")
	}
	out, err := s.ask(ctx, safe, nil, append(words, "--json")...)
	if err != nil && !errors.Is(err, parcel.ErrDamaged) {
		return nil, err
	}
	var found []proto.Finding
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var f proto.Finding
		if derr := d.Decode(&f); derr == io.EOF {
			return found, err
		} else if derr != nil {
			return nil, s.nonsense(proto.CheckParcel, derr)
		}
		f.Image, f.What, f.Do, f.Tag = parcel.Clean(f.Image), parcel.Clean(f.What), parcel.Clean(f.Do), parcel.Clean(f.Tag)
		found = append(found, f)
	}
}

// Motd is the server's message of the day; "" if there is none.
func (s *Server) Motd(ctx context.Context) (string, error) {
	out, err := s.ask(ctx, safe, nil, proto.Motd)
	return ask.Printable(string(out)), err
}

// nonsense is an answer that does not mean anything.
func (s *Server) nonsense(verb string, err error) error {
	return fmt.Errorf("server %s: answer to %s: %w", s.target.Host, verb, err)
}

// word makes text fit to be an argument: the protocol knows no quoting.
func word(text string) string {
	w := strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("._+@:-", c) {
			return c
		}
		return '_'
	}, text)
	if w = strings.TrimLeft(w, "-"); w == "" {
		return "unknown"
	}
	return w
}

// repeat says when a verb may be asked again after a lost answer.
type repeat int

const (
	once repeat = iota
	safe
)

// again calls f, and calls it again as r and the context's Policy allow.
func (s *Server) again(ctx context.Context, r repeat, f func() error) error {
	p, given := ctx.Value(policyKey{}).(Policy)
	if r == once {
		err := f()
		if err == nil {
			s.isUp()
		}
		return err
	}
	if !given {
		// Once more, if the connection was there and turned out dead.
		tried := false
		return s.persist(ctx, never, func() Policy { return Policy{} }, func() error {
			err := f()
			var fail *failure
			if !tried && errors.As(err, &fail) && fail.broke && ctx.Err() == nil && s.life.Err() == nil {
				tried = true
				err = f()
			}
			return err
		})
	}
	return s.persist(ctx, never, func() Policy { return p }, f)
}

// maxAnswer bounds what a verb may answer, bytes.
const maxAnswer = 64 << 20

// ask runs a verb that has its input at hand and a short answer.
func (s *Server) ask(ctx context.Context, r repeat, stdin []byte, words ...string) ([]byte, error) {
	send := func(w io.Writer) error {
		_, err := w.Write(stdin)
		return err
	}
	receive := func(r io.Reader) ([]byte, error) {
		out, err := io.ReadAll(io.LimitReader(r, maxAnswer+1))
		if err == nil && len(out) > maxAnswer {
			err = s.nonsense(words[0], fmt.Errorf("over %d bytes", maxAnswer))
		}
		return out, err
	}
	return exchange(ctx, s, r, words, send, receive)
}

// exchange runs a verb, repeatedly as r says. Its error is the verb's, or that
// of the connection, or of receive if that could not make sense of the answer;
// what receive returned comes with it.
func exchange[T any](ctx context.Context, s *Server, r repeat, words []string, send func(io.Writer) error, receive func(io.Reader) (T, error)) (T, error) {
	type result struct {
		v   T
		err error
	}
	var last result
	err := s.again(ctx, r, func() error {
		// On a dead link reads and writes end only when the connection is
		// given up; we need not wait for that.
		done := make(chan result, 1)
		go func() {
			var r result
			r.err = s.run(ctx, words, send, func(in io.Reader) (err error) {
				r.v, err = receive(in)
				return err
			})
			done <- r
		}()
		select {
		case last = <-done:
			return last.err
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	return last.v, err
}

// run runs a verb once.
func (s *Server) run(ctx context.Context, words []string, send func(io.Writer) error, receive func(io.Reader) error) error {
	s.main.use()
	defer s.main.unuse()
	c, err := s.main.get(ctx)
	if err != nil {
		return err
	}
	x, err := c.start(ctx, words)
	if err != nil {
		return err
	}
	defer x.close()
	go func() {
		send(x.stdin) // if it fails, so does what follows
		x.stdin.Close()
	}()
	nonsense := receive(x.stdout)
	if nonsense != nil {
		x.session.Close() // it may go on talking
	}
	err = x.wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if nonsense != nil && (err == nil || errors.Is(err, parcel.ErrUnreachable)) {
		select {
		case <-c.gone:
		default:
			return nonsense
		}
	}
	return err
}

// running is a verb under way.
type running struct {
	c       *conn
	verb    string
	session *ssh.Session
	stdin   io.WriteCloser
	stdout  io.Reader
	stderr  *dial.Tail
	stop    func() bool
}

// start starts a verb. It ends when ctx does.
func (c *conn) start(ctx context.Context, words []string) (*running, error) {
	for _, w := range words {
		if split, err := proto.Split(w); err != nil {
			return nil, err
		} else if len(split) != 1 {
			return nil, parcel.NewError(parcel.Usage, "argument %q: want one word", w)
		}
	}
	c.begin()
	x, err := c.startSession(ctx, words)
	if err != nil {
		c.end()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, c.refused(err)
	}
	return x, nil
}

// refused is the error of a session that did not come about: the connection's
// if that is gone, else the server's refusal.
func (c *conn) refused(err error) error {
	var open *ssh.OpenChannelError
	switch {
	case errors.As(err, &open) && open.Reason == ssh.ResourceShortage:
		return c.s.failure(parcel.Unreachable, fmt.Errorf("no session to be had: %w", err))
	case errors.As(err, &open):
		return c.s.failure(parcel.Denied, fmt.Errorf("session refused: %w", err))
	case strings.HasPrefix(err.Error(), "ssh: command "): // the library has no type for it
		return c.s.failure(parcel.Denied, errors.New("command refused"))
	}
	return c.lost(err)
}

func (c *conn) startSession(ctx context.Context, words []string) (*running, error) {
	// Opening a session waits for the server, and knows no context.
	type opened struct {
		s   *ssh.Session
		err error
	}
	ch := make(chan opened, 1)
	go func() {
		s, err := c.client.NewSession()
		ch <- opened{s, err}
	}()
	var session *ssh.Session
	select {
	case o := <-ch:
		if o.err != nil {
			return nil, o.err
		}
		session = o.s
	case <-ctx.Done():
		go func() {
			if o := <-ch; o.err == nil {
				o.s.Close()
			}
		}()
		return nil, ctx.Err()
	}
	x := &running{c: c, verb: words[0], session: session, stderr: &dial.Tail{Limit: 32 << 10}}
	session.Stderr = x.stderr
	x.stop = context.AfterFunc(ctx, func() { session.Close() })
	var err error
	if x.stdin, err = session.StdinPipe(); err == nil {
		if x.stdout, err = session.StdoutPipe(); err == nil {
			err = session.Start(strings.Join(words, " "))
		}
	}
	if err != nil {
		x.stop()
		session.Close()
		return nil, err
	}
	return x, nil
}

// wait is the end of the verb, as the error it said.
func (x *running) wait() error {
	err := x.session.Wait()
	x.c.s.warn(x.stderr.String())
	var exit *ssh.ExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit) && exit.Signal() == "":
		return proto.ReadError(x.verb, exit.ExitStatus(), []byte(x.stderr.String()))
	}
	// No status: the server, or its part for this session, was ended.
	return x.c.lost(err)
}

func (x *running) close() {
	x.stop()
	x.session.Close()
	x.c.end()
}

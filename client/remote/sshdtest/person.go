package sshdtest

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// Person answers from a script and keeps what was shown. What is asked beyond the script meets the end of file. Its fields are
// to be read when nobody asks any more.
type Person struct {
	Answers []string // secrets in order
	Yes     []bool
	Asked   []string
	Notices []string

	mu sync.Mutex
}

// Secret gives the next of Answers.
func (p *Person) Secret(prompt string) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.Asked = append(p.Asked, prompt)
	if len(p.Answers) == 0 {
		return "", io.EOF
	}
	a := p.Answers[0]
	p.Answers = p.Answers[1:]
	return a, nil
}

// Confirm gives the next of Yes.
func (p *Person) Confirm(prompt string) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.Asked = append(p.Asked, prompt)
	if len(p.Yes) == 0 {
		return false, io.EOF
	}
	a := p.Yes[0]
	p.Yes = p.Yes[1:]
	return a, nil
}

// Notice keeps the text.
func (p *Person) Notice(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.Notices = append(p.Notices, text)
}

// Within is a context that ends with the test, and long after anything should have.
func Within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// Works runs a command over the client, if there is no error, and closes it.
func Works(t testing.TB, c *ssh.Client, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("Dial: %v", err)
	}
	defer c.Close()
	s, err := c.NewSession()
	if err != nil {
		t.Fatalf("session: %v", err)
	}
	if out, err := s.Output("echo it works"); err != nil || string(out) != "it works\n" {
		t.Fatalf("got %q, %v; want it works", out, err)
	}
}

// Authorize lets those keys in, and no others.
func (s *Server) Authorize(t testing.TB, keys string) {
	t.Helper()
	Write(t, filepath.Join(s.Dir, "authorized_keys"), keys)
}

// Read is the text of a file.
func Read(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Write makes a file of that text, and its directories, for nobody else to read.
func Write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

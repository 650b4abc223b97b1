// Package ask asks the person in front, and remembers what was answered.
//
// It promises that however many connections are made at once, one question is asked at a time and each once: an Asker
// waits for its Turn, and looks in the Credentials that all share whether another has had the answer. A question ends
// with its context. Credentials never print themselves, and go to other processes of the same user as JSON.
//
// It does not know what is asked, or when: that is the business of who dials.
package ask

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
)

// Prompter asks the person in front. Both methods may block for as long as that takes; io.EOF, or any other error,
// means no answer. A Prompter that also implements Notifier is told what is worth knowing.
type Prompter interface {
	Secret(prompt string) (string, error)
	Confirm(prompt string) (bool, error)
}

// Notifier shows a line that needs no answer: a server's banner, a host key added, a setting skipped.
type Notifier interface {
	Notice(text string)
}

// Asker puts questions to the person, one at a time over all who share credentials, and gives up waiting when the context
// ends.
type Asker struct {
	Prompter    Prompter // nil: nobody to ask
	Credentials *Credentials
	Clock       func() (resume func()) // stops the connection's clock, for the time is the person's; nil: there is none

	asked atomic.Bool // a question was put
}

// ErrNoAnswer: there is nobody to ask, or no answer came.
var ErrNoAnswer = errors.New("no answer")

// Present reports whether there is somebody to ask.
func (a *Asker) Present() bool { return a.Prompter != nil }

// Asked reports whether anything was asked.
func (a *Asker) Asked() bool { return a.asked.Load() }

// Hold stops the connection's clock until resume: somebody is busy who is not the server.
func (a *Asker) Hold() (resume func()) {
	if a.Clock == nil {
		return func() {}
	}
	return a.Clock()
}

// Secret asks for what is not to be shown. The error is ErrNoAnswer, the Prompter's or the context's.
func (a *Asker) Secret(ctx context.Context, prompt string) (string, error) {
	return ask(ctx, a, func(p Prompter) (string, error) { return p.Secret(prompt) })
}

// Confirm asks for a yes; the end of what the person says is no.
func (a *Asker) Confirm(ctx context.Context, prompt string) (bool, error) {
	yes, err := ask(ctx, a, func(p Prompter) (bool, error) { return p.Confirm(prompt) })
	if errors.Is(err, io.EOF) {
		return false, nil
	}
	return yes, err
}

// Turn waits until nobody else is being asked. What was to be asked may have been answered meanwhile.
func (a *Asker) Turn(ctx context.Context) (done func(), err error) {
	resume := a.Hold()
	c := a.Credentials
	c.mu.Lock()
	if c.asking == nil {
		c.asking = make(chan struct{}, 1)
	}
	asking := c.asking
	c.mu.Unlock()
	select {
	case asking <- struct{}{}:
		return func() { <-asking; resume() }, nil
	case <-ctx.Done():
		resume()
		return nil, ctx.Err()
	}
}

// Notice shows a text, once for all who share the credentials.
func (a *Asker) Notice(format string, args ...any) {
	n, ok := a.Prompter.(Notifier)
	if !ok {
		return
	}
	text := fmt.Sprintf(format, args...)
	a.Credentials.mu.Lock()
	again := a.Credentials.shown[text]
	if a.Credentials.shown == nil {
		a.Credentials.shown = map[string]bool{}
	}
	a.Credentials.shown[text] = true
	a.Credentials.mu.Unlock()
	if !again {
		n.Notice(text)
	}
}

func ask[T any](ctx context.Context, a *Asker, question func(Prompter) (T, error)) (T, error) {
	type answer struct {
		v   T
		err error
	}
	var none T
	if !a.Present() {
		return none, ErrNoAnswer
	}
	defer a.Hold()()
	a.asked.Store(true)
	ch := make(chan answer, 1)
	go func() { // a Prompter cannot be interrupted: it is left behind when the context ends
		v, err := question(a.Prompter)
		ch <- answer{v, err}
	}()
	select {
	case got := <-ch:
		return got.v, got.err
	case <-ctx.Done():
		return none, ctx.Err()
	}
}

// Printable takes from a text of somebody else's, lines and all, what could steer a terminal.
func Printable(s string) string {
	s = strings.Map(func(c rune) rune {
		if c == '\n' || c == '\t' || c >= ' ' && c < 0x7f || c > 0x9f {
			return c
		}
		return -1
	}, s)
	return strings.TrimRight(s, "\n")
}

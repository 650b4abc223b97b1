package main

import (
	"context"
	"encoding/json"
	"os"
	"syscall"

	"isr/contrib/output"
)

// newResults is where every result goes.
func newResults(f *os.File) *output.Results {
	r := output.New(f)
	r.Cut = true
	return r
}

// rows prints objects, one a line.
func (e *env) rows() *json.Encoder { return json.NewEncoder(e.stdout.JSON()) }

// reading is ctx for what only looks, at length: it ends when nobody gets the
// result.
func (e *env) reading(ctx context.Context) context.Context {
	ctx, e.stdout.Stop = context.WithCancel(ctx)
	return ctx
}

// readerGone is the exit status of a command that ends because its reader has
// seen enough, as head has: that of any other program.
const readerGone = 128 + int(syscall.SIGPIPE)

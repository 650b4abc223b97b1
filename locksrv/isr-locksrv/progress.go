package main

import (
	"os"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"
)

// watched reports whether somebody sees standard error, on a terminal that can
// draw over what it has shown.
func (e *env) watched() bool {
	if name := os.Getenv("TERM"); name == "" || name == "dumb" {
		return false
	}
	return term.IsTerminal(int(e.stderr.Fd()))
}

// progress shows a bar while something long goes on, on a terminal only. done
// ends it.
func (e *env) progress(what string) (report func(done, total int64), done func()) {
	if !e.watched() {
		return nil, func() {}
	}
	bars := mpb.New(mpb.WithOutput(e.stderr))
	bar := bars.AddBar(0, mpb.PrependDecorators(decor.Name(what+" "), decor.CountersKibiByte("% .1f / % .1f")),
		mpb.AppendDecorators(decor.AverageSpeed(decor.SizeB1024(0), "% .1f "), decor.AverageETA(decor.ET_STYLE_GO)))
	return func(n, total int64) {
			bar.SetTotal(total, false)
			bar.SetCurrent(n)
		}, func() {
			bar.Abort(false)
			bars.Wait()
		}
}

// counter shows a bar of things that are counted, on a terminal only.
func (e *env) counter(what string) (report func(done, total int64), done func()) {
	if !e.watched() {
		return func(int64, int64) {}, func() {}
	}
	var bars *mpb.Progress
	var bar *mpb.Bar
	return func(n, total int64) {
			if bar == nil {
				bars = mpb.New(mpb.WithOutput(e.stderr))
				bar = bars.AddBar(0, mpb.PrependDecorators(decor.Name(what+" "), decor.CountersNoUnit("%d / %d")),
					mpb.AppendDecorators(decor.AverageETA(decor.ET_STYLE_GO)))
			}
			bar.SetTotal(total, false)
			bar.SetCurrent(n)
		}, func() {
			if bar != nil {
				bar.Abort(false)
				bars.Wait()
			}
		}
}

// eachParcel counts parcels as they are done, on a terminal only. done ends it.
func (e *env) eachParcel(what string, total int) (one, done func()) {
	n := int64(0)
	count, done := e.counter(what + " parcels")
	return func() {
		n++
		count(n, int64(total))
	}, done
}

// stages are the parts of something long, each with a bar of its own.
type stages struct {
	e       *env
	current string
	report  func(done, total int64)
	done    func()
}

// of reports how far a stage is, and so that the one before it is over; nil if
// nobody is shown.
func (s *stages) of(name string) func(done, total int64) {
	if !s.e.watched() {
		return nil
	}
	return func(done, total int64) {
		if s.current != name {
			s.end()
			s.current = name
			s.report, s.done = s.e.progress(name)
		}
		s.report(done, total)
	}
}

func (s *stages) end() {
	if s.done != nil {
		s.done()
	}
	s.current, s.done = "", nil
}

package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

// web is a tree on a web server.
type web struct {
	base   *url.URL
	client *http.Client
}

// maxRedirects bounds how often a request is sent elsewhere.
const maxRedirects = 3

// maxConns bounds the connections to a server: each request that goes on may
// have one, and then no more, even while several layouts are tried.
const maxConns = demandSlots + bulkSlots

// maxRefusal is what is read of an answer that is no object, to keep the
// connection: a new one costs more than that.
const maxRefusal = 64 << 10

func newWeb(base *url.URL, wrap func(net.Conn) net.Conn, patience time.Duration) *web {
	dialer := &net.Dialer{Timeout: patience, KeepAlive: 15 * time.Second}
	t := &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, addr)
			if err == nil && wrap != nil {
				conn = wrap(conn)
			}
			return conn, err
		},
		ForceAttemptHTTP2:      true,
		TLSHandshakeTimeout:    2 * patience,
		MaxConnsPerHost:        maxConns,
		MaxIdleConnsPerHost:    maxConns,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		// Objects do not compress, and what a server says it has compressed
		// would not have the size it says.
		DisableCompression: true,
	}
	return &web{base: base, client: &http.Client{Transport: t, CheckRedirect: func(r *http.Request, via []*http.Request) error {
		switch {
		case len(via) > maxRedirects:
			return fmt.Errorf("more than %d redirects", maxRedirects)
		case via[0].URL.Scheme == "https" && r.URL.Scheme != "https":
			return errors.New("redirect from https to http")
		}
		return nil
	}}}
}

func (t *web) read(ctx context.Context, name string, w *sink) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, t.base.JoinPath(name).String(), nil)
	if err != nil {
		return err
	}
	r.Header.Set("User-Agent", "isr")
	answer, err := t.client.Do(r)
	if err != nil {
		// What url.Error adds is the address, which is known and long.
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return err
	}
	defer answer.Body.Close()
	switch answer.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound, http.StatusGone:
		io.CopyN(io.Discard, answer.Body, maxRefusal)
		return errAbsent
	default:
		io.CopyN(io.Discard, answer.Body, maxRefusal)
		return fmt.Errorf("web server says %s", answer.Status)
	}
	if err := w.expect(answer.ContentLength); err != nil {
		return err
	}
	return w.from(answer.Body)
}

func (t *web) reset() { t.client.CloseIdleConnections() }

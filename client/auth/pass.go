package auth

import (
	"errors"
	"io"
	"net"
	"sync"

	"golang.org/x/crypto/ssh"
)

// pass speaks SSH over conn as the server at the other end of up would, until
// either end closes. Global requests go to the server too, so that a round
// trip that is measured is the whole way's; those of the server are answered
// here, as by any client. If the server is lost, so is conn: what was asked and
// not answered is nobody's refusal.
func pass(conn net.Conn, up *ssh.Client, gone <-chan struct{}, hostKey ssh.Signer) {
	// Whoever is at the other end was looked at already.
	config := &ssh.ServerConfig{NoClientAuth: true, ServerVersion: "SSH-2.0-isr-auth"}
	config.AddHostKey(hostKey)
	sc, chans, reqs, err := ssh.NewServerConn(conn, config)
	if err != nil {
		return
	}
	defer sc.Close()
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-gone:
			sc.Close()
		case <-done:
		}
	}()
	go func() {
		for r := range reqs {
			ok, payload, err := up.SendRequest(r.Type, r.WantReply, r.Payload)
			if err != nil {
				sc.Close()
			}
			if r.WantReply {
				r.Reply(ok, payload)
			}
		}
	}()
	var channels sync.WaitGroup
	for nc := range chans {
		channels.Go(func() {
			if !passChannel(nc, up) {
				sc.Close()
			}
		})
	}
	channels.Wait()
}

// passChannel opens the same channel at the server and joins the two, until
// both are closed. It is false if the server was lost before it answered.
func passChannel(nc ssh.NewChannel, up *ssh.Client) bool {
	far, farReqs, err := up.OpenChannel(nc.ChannelType(), nc.ExtraData())
	var refused *ssh.OpenChannelError
	if errors.As(err, &refused) {
		nc.Reject(refused.Reason, refused.Message)
		return true
	}
	if err != nil {
		return false
	}
	near, nearReqs, err := nc.Accept()
	if err != nil {
		far.Close()
		go ssh.DiscardRequests(farReqs)
		return true
	}
	var back sync.WaitGroup // all that the server says
	back.Go(func() {
		// The end is of both streams, so it is said after both.
		var errs sync.WaitGroup
		errs.Go(func() { io.Copy(near.Stderr(), far.Stderr()) })
		io.Copy(near, far)
		errs.Wait()
		near.CloseWrite()
	})
	back.Go(func() { passRequests(near, farReqs, new(sync.Mutex)) })
	var asking sync.Mutex // held while a request of the client's is answered
	var forth sync.WaitGroup
	forth.Go(func() { io.Copy(far, near); far.CloseWrite() })
	forth.Go(func() {
		passRequests(far, nearReqs, &asking)
		far.Close() // the client closed its end
	})
	back.Wait()
	// A command may have ended before the client knows that it was begun.
	asking.Lock()
	near.Close()
	asking.Unlock()
	far.Close()
	forth.Wait()
	return true
}

// passRequests passes requests on and their answers back, each under busy. What
// is closed instead of being answered stays unanswered.
func passRequests(to ssh.Channel, reqs <-chan *ssh.Request, busy *sync.Mutex) {
	for r := range reqs {
		busy.Lock()
		ok, err := to.SendRequest(r.Type, r.WantReply, r.Payload)
		if r.WantReply && err == nil {
			r.Reply(ok, nil)
		}
		busy.Unlock()
	}
}

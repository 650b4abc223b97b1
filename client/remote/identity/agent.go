package identity

import (
	"context"
	"net"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"isr/client/remote/ask"
	"isr/client/remote/sshconf"
)

// agentSocket is where the agent is: as configured, else as remembered; "" is none.
func agentSocket(r *sshconf.Resolved, c *ask.Credentials) string {
	if r.IdentityAgent != "" || r.NoAgent {
		return r.IdentityAgent
	}
	return c.Agent()
}

// agentPatience is how long an agent may take to list its keys, which asks nobody.
const agentPatience = 10 * time.Second

// agentKeys lists what the agent holds. A missing agent is no error: files remain.
func (s *Set) agentKeys(ctx context.Context) []*Identity {
	socket := agentSocket(s.r, s.asker.Credentials)
	if socket == "" {
		return nil
	}
	var keys []*agent.Key
	soon, cancel := context.WithTimeout(ctx, agentPatience)
	defer cancel()
	err := withAgent(soon, socket, func(a agent.ExtendedAgent) (err error) {
		keys, err = a.List()
		return err
	})
	if err != nil {
		s.skip("agent "+socket, "%v", reason(err))
		return nil
	}
	var out []*Identity
	for _, k := range keys {
		pub, err := ssh.ParsePublicKey(k.Blob)
		if err != nil {
			s.skip("agent key "+k.Comment, "not a kind of key this client can use")
			continue
		}
		if cert, ok := pub.(*ssh.Certificate); ok && cert.CertType != ssh.UserCert {
			continue
		}
		out = append(out, &Identity{
			name: k.Comment, agent: true, pub: pub,
			algos: s.r.SignatureAlgorithms(pub),
			sign: func(ctx context.Context, data []byte, algo string) (sig *ssh.Signature, err error) {
				flags := map[string]agent.SignatureFlags{
					ssh.KeyAlgoRSASHA256: agent.SignatureFlagRsaSha256, ssh.KeyAlgoRSASHA512: agent.SignatureFlagRsaSha512}[algo]
				// An agent that wants a touch or a confirmation keeps the person busy, not the line.
				defer s.asker.Hold()()
				err = withAgent(ctx, socket, func(a agent.ExtendedAgent) error {
					sig, err = a.SignWithFlags(pub, data, flags)
					return err
				})
				return sig, err
			},
		})
	}
	return out
}

// withAgent talks to the agent over a connection of its own, so that signers outlive whoever listed them.
func withAgent(ctx context.Context, socket string, do func(agent.ExtendedAgent) error) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	err = do(agent.NewClient(conn))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

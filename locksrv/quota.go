package locksrv

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"isr/locksrv/proto"
	"isr/store"
)

// usage is what the session's user has, and may have.
func (c *call) usage() (u proto.Usage, err error) {
	cfg, err := c.Store.UserConfig(c.User)
	if err != nil {
		return u, err
	}
	used, err := c.Store.Usage(c.User)
	return proto.Usage{Objects: used.Objects, Bytes: used.Bytes, Quota: cfg.Quota}, err
}

func quota(_ context.Context, c *call, _ io.Reader, stdout io.Writer) error {
	u, err := c.usage()
	if err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(u)
}

// warnNear tells who has just stored something that her quota is nearly used
// up: the next time may be too late to make room.
func (c *call) warnNear() {
	cfg, err := c.Store.UserConfig(c.User)
	if err != nil || cfg.Quota == 0 || c.Warn == nil {
		return // nothing needs to be counted
	}
	if u, err := c.usage(); err == nil && u.Near() {
		c.Warn(fmt.Sprintf("user %s: %s of a quota of %s are used", c.User, store.SizeText(u.Bytes), store.SizeText(u.Quota)))
	}
}

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"strconv"
	"strings"
	"syscall"

	"isr/store/parcel"
)

// owner is the account that root became, or "".
var owner string

// become makes root the account that owns the realm, for good: what root makes
// in there the daemon could not read, and what a realm's account planted there
// root had better not follow. Files that were read before are root's to read;
// those after are the account's. For anybody else it does nothing.
func (e *env) become(root string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	fi, err := os.Stat(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	st := fi.Sys().(*syscall.Stat_t)
	if st.Uid == 0 {
		return nil
	}
	e.by = account() // whoever did it, it was not the realm
	uid, gid := int(st.Uid), int(st.Gid)
	name, home, groups := fmt.Sprintf("uid %d", uid), root, []int{gid}
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		name, home = u.Username, u.HomeDir
		if gid, err = strconv.Atoi(u.Gid); err != nil {
			return err
		}
		ids, err := u.GroupIds()
		if err != nil {
			return err
		}
		groups = nil
		for _, id := range ids {
			g, err := strconv.Atoi(id)
			if err != nil {
				return err
			}
			groups = append(groups, g)
		}
	}
	for _, err := range []error{syscall.Setgroups(groups), syscall.Setresgid(gid, gid, gid), syscall.Setresuid(uid, uid, uid)} {
		if err != nil {
			return parcel.NewError(parcel.Failed, "%s: becoming %s, whose it is: %v", root, name, err)
		}
	}
	owner = name
	// What ssh and others look for at home is the account's.
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "XDG_") {
			os.Unsetenv(name)
		}
	}
	return errors.Join(os.Setenv("HOME", home), os.Setenv("USER", name), os.Setenv("LOGNAME", name))
}

// explain says to root why a file that root may read was refused. Programs that
// were run for us say it in words.
func explain(err error) error {
	refused := err != nil && (errors.Is(err, fs.ErrPermission) || strings.Contains(err.Error(), "Permission denied"))
	if e := new(*parcel.Error); owner == "" || !refused || errors.As(err, e) && (*e).Hint != "" {
		return err
	}
	return parcel.NewError(parcel.KindOf(err), "%v", err).
		WithHint("what root orders is done as %s, whose the realm is: let %s have the file, in a directory such as /var/tmp", owner, owner)
}

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"isr/store"
	"isr/store/parcel"
)

// confFile is the administrator's configuration: a record with ROOT.
const confFile = "/etc/openisr/locksrv.conf"

// hostRoot is where a host's own realm is.
const hostRoot = "/var/lib/isr"

// defaultRoot is where a realm is when nobody says.
func defaultRoot() string {
	if os.Geteuid() == 0 {
		return hostRoot
	}
	if dir := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "isr")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "isr"
	}
	return filepath.Join(home, ".local/share/isr")
}

// rootDir is the realm's directory, by all the ways to say it.
func rootDir(option, conf string) (string, error) {
	if option != "" {
		return filepath.Abs(option)
	}
	if dir := os.Getenv("ISR_ROOT"); dir != "" {
		return filepath.Abs(dir)
	}
	text, err := os.ReadFile(conf)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return defaultRoot(), nil
	case err != nil:
		return "", err
	}
	r, err := parcel.ParseRecord(text)
	if err != nil {
		return "", parcel.NewError(parcel.Usage, "%s: %v", conf, err)
	}
	if dir := r.Get("ROOT"); dir != "" {
		if !filepath.IsAbs(dir) {
			return "", parcel.NewError(parcel.Usage, "%s: ROOT %s: want an absolute path", conf, dir)
		}
		if othersRealm(dir, os.Geteuid()) {
			return defaultRoot(), nil
		}
		return dir, nil
	}
	return defaultRoot(), nil
}

// othersRealm reports whether the directory belongs to another account than
// uid, which is not root's: who owns a realm administers it, and on a host
// with one for all, a user may have one of her own as well.
func othersRealm(dir string, uid int) bool {
	fi, err := os.Stat(dir)
	if err != nil || uid == 0 {
		return false
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && st.Uid != uint32(uid)
}

// open opens the realm, which must be there.
func (e *env) open() (*store.Store, string, error) {
	root, err := rootDir(e.root, confFile)
	if err != nil {
		return nil, "", err
	}
	if err := e.become(root); err != nil {
		return nil, "", err
	}
	s, err := store.Open(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "", parcel.NewError(parcel.Failed, "%s: no realm is there", root).
			WithHint("isr-locksrv user add makes it; --root or ISR_ROOT chooses another place")
	}
	return s, root, err
}

// openOrInit opens the realm, and makes it first if it is not there.
func (e *env) openOrInit() (*store.Store, string, error) {
	root, err := rootDir(e.root, confFile)
	if err != nil {
		return nil, "", err
	}
	if err := e.become(root); err != nil {
		return nil, "", err
	}
	s, err := store.Open(root)
	if !errors.Is(err, fs.ErrNotExist) {
		return s, root, err
	}
	realm, err := os.Hostname()
	if err != nil || parcel.CheckName(realm) != nil {
		realm = "realm"
	}
	if s, err = store.Init(root, realm); err != nil {
		return nil, "", err
	}
	fmt.Fprintf(e.stderr, "isr-locksrv: %s: made realm %s\n", root, realm)
	return s, root, nil
}

package client

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/klauspost/compress/gzip"

	"isr/client/fusefs"
	"isr/client/wrap"
	"isr/store/atomicfile"
	"isr/store/keyring"
	"isr/store/seal"
)

// cfgFile holds the VMM's own files of a modified parcel, under the
// checkout's key. A pristine parcel has none: its version's archive counts.
const cfgFile = "cfg.tgz.enc"

// traceFile, in the cfg archive, lists the chunks in the order in which a
// resumed guest first touched them: "IMAGE NUMBER" a line.
const traceFile = "trace"

// runtime is where a running parcel shows itself: on a file system in memory,
// since the VMM's files there are plaintext.
type runtime struct{ dir, mount, cfg, run string }

// runtime names the directory of a checkout while it runs. HOME decides which
// host one is, so the isr directory is part of the name; and the name is
// short, since a Unix socket's path has 107 bytes at most.
func (co *Checkout) runtime() (runtime, error) {
	base, err := runtimeBase()
	if err != nil {
		return runtime{}, err
	}
	sum := sha256.Sum256([]byte(co.client.Dir + "\x00" + co.State.UUID + "\x00" + co.State.Server))
	dir := filepath.Join(base, hex.EncodeToString(sum[:8]))
	return runtime{dir, filepath.Join(dir, "mnt"), filepath.Join(dir, "cfg"), filepath.Join(dir, "run")}, nil
}

func runtimeBase() (string, error) {
	for _, dir := range []string{os.Getenv("XDG_RUNTIME_DIR"), "/run/user/" + strconv.Itoa(os.Getuid())} {
		if dir == "" {
			continue
		}
		if fi, err := os.Stat(dir); err == nil && fi.IsDir() && ownedByMe(fi) && fi.Mode().Perm()&0o077 == 0 {
			base := filepath.Join(dir, "isr")
			return base, privateDir(base)
		}
	}
	base := "/dev/shm/isr-" + strconv.Itoa(os.Getuid())
	return base, privateDir(base)
}

// makeRuntime makes the directory anew, after whatever was there.
func (co *Checkout) makeRuntime() (runtime, error) {
	rt, err := co.runtime()
	if err != nil {
		return rt, err
	}
	if fusefs.Stale(rt.mount) {
		if err := fusefs.Recover(rt.mount); err != nil {
			return rt, fmt.Errorf("mount %s: %w", rt.mount, err)
		}
	}
	rt.remove()
	for _, dir := range []string{rt.dir, rt.mount, rt.cfg, rt.run} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return rt, err
		}
	}
	return rt, nil
}

// remove removes the directory. A mount that is still busy stays.
func (rt runtime) remove() {
	for _, dir := range []string{rt.cfg, rt.run} {
		os.RemoveAll(dir)
	}
	os.Remove(rt.mount)
	os.Remove(rt.waits())
	os.Remove(rt.dir)
}

// unpackCfg fills dir with the VMM's files: those of the modified parcel if it
// has any, else those of the version that root is of.
func (co *Checkout) unpackCfg(ctx context.Context, dir string, root *keyring.Root, g keyring.Getter) error {
	box, err := os.ReadFile(co.path("cfg", cfgFile))
	switch {
	case err == nil:
		archive, err := wrap.Unseal(co.key, box, cfgFile)
		if err != nil {
			return fmt.Errorf("parcel %s: %w", co.State.Parcel, err)
		}
		return unpack(archive, dir)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	case root.Cfg.IsNil():
		return nil
	}
	sealed, err := g.Get(ctx, root.Cfg.Tag)
	if err != nil {
		return fmt.Errorf("parcel %s: cfg archive: %w", co.State.Parcel, err)
	}
	archive, err := co.sealer().Unseal(root.Cfg, sealed, seal.MaxPlain)
	if err != nil {
		return fmt.Errorf("parcel %s: cfg archive: %w", co.State.Parcel, err)
	}
	return unpack(archive, dir)
}

// packCfg keeps the VMM's files in dir as those of the modified parcel.
func (co *Checkout) packCfg(dir string) error {
	archive, err := pack(dir)
	if err != nil {
		return err
	}
	return atomicfile.Write(co.path("cfg", cfgFile), wrap.Seal(co.key, archive, cfgFile), 0o600)
}

// pack is the cfg archive of dir: a gzipped tar of its regular files, sorted,
// with neither times nor owners, so that the same files give the same bytes.
// Without a file it is empty.
func pack(dir string) ([]byte, error) {
	var buf bytes.Buffer
	zw, err := gzip.NewWriterLevel(&buf, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	tw := tar.NewWriter(zw)
	files := 0
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := tw.WriteHeader(&tar.Header{Name: filepath.ToSlash(name), Mode: 0o600, Size: int64(len(data)), Format: tar.FormatPAX}); err != nil {
			return err
		}
		files++
		_, err = tw.Write(data)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("cfg archive: %w", err)
	}
	if files == 0 {
		return nil, nil
	}
	if err := tw.Close(); err != nil {
		return nil, err
	}
	if err := zw.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// unpack puts the files of a cfg archive under dir, and nowhere else.
func unpack(archive []byte, dir string) error {
	if len(archive) == 0 {
		return nil
	}
	zr, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		return fmt.Errorf("cfg archive: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	tr := tar.NewReader(io.LimitReader(zr, seal.MaxPlain))
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("cfg archive: %w", err)
		}
		if h.Typeflag != tar.TypeReg {
			return fmt.Errorf("cfg archive: %q is no regular file", h.Name)
		}
		name := filepath.FromSlash(h.Name)
		if err := root.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			return fmt.Errorf("cfg archive: %w", err)
		}
		f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return fmt.Errorf("cfg archive: %w", err)
		}
		_, err = io.Copy(f, tr)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return fmt.Errorf("cfg archive: %w", err)
		}
	}
}

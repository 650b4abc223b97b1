package snapshot

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"path"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/klauspost/compress/gzip"

	"isr/store/backup/realm"
	"isr/store/parcel"
)

// summed hashes and counts what is written.
type summed struct {
	w    io.Writer
	sum  hash.Hash
	size int64
}

func (s *summed) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	s.sum.Write(p[:n])
	s.size += int64(n)
	return n, err
}

// WriteArchive writes the archive: tar, gzip, and if it is for recipients, age.
func WriteArchive(w io.Writer, files []realm.File, to []age.Recipient) (sum string, size int64, err error) {
	out := &summed{w: w, sum: sha256.New()}
	var sealed io.WriteCloser
	var next io.Writer = out
	if len(to) > 0 {
		if sealed, err = age.Encrypt(out, to...); err != nil {
			return "", 0, err
		}
		next = sealed
	}
	z, err := gzip.NewWriterLevel(next, gzip.BestSpeed)
	if err != nil {
		return "", 0, err
	}
	t := tar.NewWriter(z)
	for _, f := range files {
		h := &tar.Header{Name: f.Name, Mode: int64(f.Mode.Perm()), Size: int64(len(f.Data)), ModTime: f.Time, Typeflag: tar.TypeReg, Format: tar.FormatPAX}
		switch {
		case f.Mode.IsDir():
			h.Typeflag = tar.TypeDir
		case f.IsLink():
			h.Typeflag, h.Linkname, h.Size, f.Data = tar.TypeSymlink, string(f.Data), 0, nil
		}
		if err := t.WriteHeader(h); err != nil {
			return "", 0, err
		}
		if _, err := t.Write(f.Data); err != nil {
			return "", 0, err
		}
	}
	if err := t.Close(); err != nil {
		return "", 0, err
	}
	if err := z.Close(); err != nil {
		return "", 0, err
	}
	if sealed != nil {
		if err := sealed.Close(); err != nil {
			return "", 0, err
		}
	}
	return hex.EncodeToString(out.sum.Sum(nil)), out.size, nil
}

// ReadArchive reads an archive. Of what may be in a tar only files and
// directories with a plain path below the root are taken, and links among the
// hooks.
func ReadArchive(r io.Reader, sealed bool, identities []age.Identity) ([]realm.File, error) {
	if sealed {
		if len(identities) == 0 {
			return nil, parcel.NewError(parcel.Denied, "backup: its lock sides are sealed").
				WithHint("--identity names the file with the key")
		}
		var err error
		if r, err = age.Decrypt(r, identities...); err != nil {
			return nil, parcel.NewError(parcel.Denied, "backup: %s", parcel.Clean(err.Error()))
		}
	}
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, err
	}
	t := tar.NewReader(io.LimitReader(z, maxRecords))
	var files []realm.File
	seen := make(map[string]bool)
	for {
		h, err := t.Next()
		if err == io.EOF {
			return files, nil
		}
		if err != nil {
			return nil, err
		}
		name := strings.TrimSuffix(h.Name, "/")
		if seen[name] {
			return nil, fmt.Errorf("file %q: is there twice", name)
		}
		seen[name] = true
		f := realm.File{Name: name, Mode: fs.FileMode(h.Mode) & 0o700, Time: h.ModTime}
		switch h.Typeflag {
		case tar.TypeDir:
			f.Name, f.Mode = name+"/", fs.ModeDir|0o700
		case tar.TypeReg:
			if h.Size > realm.MaxFile {
				return nil, fmt.Errorf("file %q: %d bytes", name, h.Size)
			}
			if f.Data, err = io.ReadAll(t); err != nil {
				return nil, err
			}
		case tar.TypeSymlink:
			if !realm.LinkPlace(name) || !realm.PlainLink(h.Linkname) {
				return nil, fmt.Errorf("file %q: no place for a link", name)
			}
			f.Mode, f.Data = fs.ModeSymlink|0o700, []byte(h.Linkname)
		default:
			return nil, fmt.Errorf("file %q: neither file nor directory", name)
		}
		if err := f.Check(); err != nil {
			return nil, err
		}
		files = append(files, f)
	}
}

// Records are the files of an archive, taken apart.
type Records struct {
	Root    []realm.File                 // beside users
	Users   map[string]map[string][]byte // files of each
	Parcels map[[2]string][]realm.File   // by user and name; names are those of the lock side
	Nonce   map[[2]string]time.Time      // the last contact of each that is held
}

// Sort takes the files of an archive apart.
func Sort(files []realm.File) (*Records, error) {
	r := &Records{Users: make(map[string]map[string][]byte), Parcels: make(map[[2]string][]realm.File), Nonce: make(map[[2]string]time.Time)}
	for _, f := range files {
		parts := strings.Split(strings.TrimSuffix(f.Name, "/"), "/")
		if parts[0] != "users" {
			r.Root = append(r.Root, f)
			continue
		}
		user := parts[1]
		if r.Users[user] == nil {
			r.Users[user] = make(map[string][]byte)
		}
		switch len(parts) {
		case 2:
		case 3:
			r.Users[user][parts[2]] = f.Data
		default:
			key := [2]string{user, parts[3]}
			name := strings.Join(parts[4:], "/")
			if name == "nonce" {
				r.Nonce[key] = f.Time
			}
			f.Name = name
			r.Parcels[key] = append(r.Parcels[key], f)
		}
	}
	return r, r.checkLinks()
}

// checkLinks refuses what is below a link: it would be written to where that
// leads.
func (r *Records) checkLinks() error {
	links := make(map[string]bool)
	for _, f := range r.Root {
		if f.IsLink() {
			links[f.Name] = true
		}
	}
	for _, f := range r.Root {
		for dir := path.Dir(f.Name); dir != "."; dir = path.Dir(dir) {
			if links[dir] {
				return fmt.Errorf("file %q: is below a link", f.Name)
			}
		}
	}
	return nil
}

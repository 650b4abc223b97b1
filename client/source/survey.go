package source

import (
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"

	"isr/store/parcel"
	"isr/store/seal"
)

// Survey is what a place looks like.
type Survey struct {
	There   bool  `json:"there"`             // the directory exists, the server answers
	Counted bool  `json:"counted"`           // it is a directory: what follows is known
	Objects int64 `json:"objects,omitempty"` // files named as objects are, where objects may lie
	Bytes   int64 `json:"bytes,omitempty"`   // of these
	Other   int64 `json:"other,omitempty"`   // other files
}

// Survey looks at a place: it counts the objects of a directory, by name, and
// asks a server for one that nobody has. The error says why a server did not
// answer.
func (p *Place) Survey(ctx context.Context) (Survey, error) {
	if p.dir == nil {
		tag := make([]byte, 32)
		rand.Read(tag)
		_, err := p.Get(ctx, seal.Tag(tag))
		if err == nil || errors.Is(err, parcel.ErrNoObject) || errors.Is(err, seal.ErrCorrupt) {
			return Survey{There: true}, nil
		}
		return Survey{}, err
	}
	s := Survey{Counted: true}
	root, ok := p.dir.root()
	if !ok || !p.dir.present() {
		return s, nil
	}
	s.There = true
	err := filepath.WalkDir(root, func(name string, e fs.DirEntry, err error) error {
		if err != nil || ctx.Err() != nil || name == root {
			return errors.Join(err, ctx.Err())
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		if e.IsDir() {
			if !leads(rel) {
				return fs.SkipDir
			}
			return nil
		}
		// A link to a file is as good as the file.
		tag, terr := seal.ParseTag(strings.ToLower(e.Name()))
		if terr != nil || !p.fits(rel, tag) {
			s.Other++
			return nil
		}
		if n, err := p.dir.size(rel); err == nil {
			s.Objects++
			s.Bytes += n
		}
		return nil
	})
	return s, err
}

// leads says whether objects may lie below a directory of the tree.
func leads(rel string) bool {
	rel = strings.TrimPrefix(rel, "hdk/")
	return rel == "hdk" || len(rel) == 2 && strings.Trim(rel, "0123456789abcdef") == ""
}

// fits says whether the tree has tag at rel.
func (p *Place) fits(rel string, tag seal.Tag) bool {
	for _, l := range p.order {
		if layouts[l](tag.String()) == rel {
			return true
		}
	}
	return false
}

package locksrv

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"isr/locksrv/proto"
	"isr/store/parcel"
)

// Kept is a line of a file of reports: what a client told, and what the server
// knows of it.
type Kept struct {
	Time   time.Time    `json:"time"` // when it came, UTC
	User   string       `json:"user"`
	Parcel string       `json:"parcel"`
	Report proto.Report `json:"report"`
}

// maxDay bounds what is kept of one user's reports of one day, bytes.
const maxDay = 4 << 20

// ReportsDir is where the reports of clients are: a directory for each user,
// a file for each day, so that what is known of one can be handed out or
// removed.
func (v *Service) ReportsDir() string { return filepath.Join(v.Store.Root(), "log", "reports") }

func report(name string) runner {
	return func(ctx context.Context, c *call, stdin io.Reader, _ io.Writer) error {
		p, err := c.Store.Parcel(c.User, name)
		if err != nil {
			return err
		}
		text, err := readAll(stdin)
		if err != nil {
			return err
		}
		r, err := proto.ParseReport(text)
		if err != nil {
			return err
		}
		switch _, agreed, err := c.Store.Consent(c.User); {
		case err != nil:
			return err
		case !agreed:
			return parcel.NewError(parcel.Denied, "user %s: does not take part in the study: no report is kept", c.User).
				WithHint("set report = no in ~/.openisrrc")
		}
		cfg, err := p.Config()
		if err != nil {
			return err
		}
		if r.UUID != cfg.UUID {
			return parcel.NewError(parcel.Usage, "report: is of another parcel than %s", name)
		}
		if _, err := c.begin(ctx); err != nil {
			return err
		}
		return c.keepReport(Kept{Time: time.Now().UTC(), User: c.User, Parcel: name, Report: *r})
	}
}

// keepReport writes a line, durably. The same report may come again: whoever
// reads them knows it by its ID.
func (v *Service) keepReport(k Kept) error {
	line, err := json.Marshal(k)
	if err != nil {
		return err
	}
	dir := filepath.Join(v.ReportsDir(), k.User)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if fi, err := os.Lstat(dir); err != nil || !fi.IsDir() {
		return errors.Join(err, parcel.NewError(parcel.Damaged, "reports of user %s: are no directory", k.User))
	}
	f, err := os.OpenFile(filepath.Join(dir, k.Time.Format(time.DateOnly)+".jsonl"),
		os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	switch {
	case err != nil:
		return err
	case !fi.Mode().IsRegular():
		return &fs.PathError{Op: "append", Path: f.Name(), Err: errors.New("is no file")}
	case fi.Size()+int64(len(line)) > maxDay:
		return parcel.NewError(parcel.Full, "user %s: enough reports for one day", k.User)
	}
	// One write: lines of several processes do not mix.
	if _, err := f.Write(append(line, '\n')); err != nil {
		return err
	}
	return f.Sync()
}

// ReportDays is on how many days there are reports of the user's clients, also
// of a user who is gone.
func (v *Service) ReportDays(user string) (int, error) {
	root, dir, err := v.openReports(user)
	if err != nil || root == nil {
		return 0, err
	}
	defer root.Close()
	days, err := fs.ReadDir(root.FS(), dir)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return len(days), err
}

// RemoveReports removes what the user's clients told. It may be done again.
func (v *Service) RemoveReports(user string) error {
	root, dir, err := v.openReports(user)
	if err != nil || root == nil {
		return err
	}
	defer root.Close()
	return root.RemoveAll(dir)
}

// openReports is the realm's root, and the user's reports below it; nil if
// nobody's are there. A link on the way is not followed: in its place somebody
// else's files would go.
func (v *Service) openReports(user string) (root *os.Root, dir string, err error) {
	if err := parcel.CheckName(user); err != nil {
		return nil, "", err
	}
	if root, err = os.OpenRoot(v.Store.Root()); err != nil {
		return nil, "", err
	}
	for _, name := range []string{"log", "reports", user} {
		dir = filepath.Join(dir, name)
		fi, err := root.Lstat(dir)
		if err == nil && !fi.IsDir() {
			err = &fs.PathError{Op: "open", Path: filepath.Join(v.Store.Root(), dir), Err: errors.New("is no directory")}
		}
		if err != nil {
			root.Close()
			if errors.Is(err, fs.ErrNotExist) {
				err = nil
			}
			return nil, "", err
		}
	}
	return root, dir, nil
}

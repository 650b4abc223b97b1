// Package targettest gives tests a place of each kind, new and empty, that ends
// with the test: a directory, one behind a real sshd, a bucket of an S3 service
// of the test's own. Nothing here is safe outside tests.
package targettest

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/rclone/gofakes3"
	"github.com/rclone/gofakes3/s3mem"

	"isr/client/remote/sshdtest"
	"isr/store/backup/target"
	"isr/store/storetest"
)

// All are one of each kind.
func All(t testing.TB) map[string]target.Target {
	t.Helper()
	return map[string]target.Target{"dir": Dir(t), "sftp": SFTP(t), "s3": S3(t)}
}

// Trees are one of each kind that can hold a realm's tree.
func Trees(t testing.TB) map[string]target.Tree {
	t.Helper()
	return map[string]target.Tree{"dir": Dir(t), "sftp": SFTP(t)}
}

// MemDir is a temporary directory in memory, if there is such a thing, but of a
// benchmark: a test that waits for the disk waits for all who use it.
func MemDir(t testing.TB) string {
	t.Helper()
	if _, ok := t.(*testing.B); ok {
		return t.TempDir()
	}
	return storetest.TempDir(t)
}

// Dir is a directory of this host.
func Dir(t testing.TB) *target.Dir {
	t.Helper()
	d, err := target.OpenDir(filepath.Join(MemDir(t), "backup"), true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// SSH is ssh to a server of the test's own.
func SSH(t testing.TB, s *sshdtest.Server) []string {
	t.Helper()
	home := s.Home(t, "")
	return []string{"ssh", "-F", "/dev/null", "-p", fmt.Sprint(s.Port), "-i", s.KeyFile, "-oBatchMode=yes", "-oIdentitiesOnly=yes",
		"-oUserKnownHostsFile=" + filepath.Join(home, ".ssh/known_hosts")}
}

// SFTP is a directory behind an sshd.
func SFTP(t testing.TB) *target.SFTP {
	t.Helper()
	sshdtest.Require(t, "ssh")
	s := sshdtest.Start(t, sshdtest.Options{})
	f, err := target.OpenSFTP(context.Background(), s.Host+":"+filepath.Join(MemDir(t), "backup"), target.Way{SSH: SSH(t, s)}, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// Root is where a tree of these is on this host.
func Root(tree target.Tree) string {
	name := tree.String()
	return name[strings.Index(name, "/"):]
}

// Service runs an S3 service on the loopback interface that wants signatures,
// with an empty bucket isr, and puts its credentials into the environment.
func Service(t testing.TB) (endpoint string) {
	t.Helper()
	service := gofakes3.New(undelimited{s3mem.New()}, gofakes3.WithV4Auth(map[string]string{"testkey": "testsecret"}))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: service.Server()}
	done := make(chan struct{})
	go func() { server.Serve(ln); close(done) }()
	t.Cleanup(func() { server.Close(); <-done })
	t.Setenv("AWS_ACCESS_KEY_ID", "testkey")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "testsecret")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	c, err := minio.New(ln.Addr().String(), &minio.Options{Creds: credentials.NewStaticV4("testkey", "testsecret", "")})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.MakeBucket(context.Background(), "isr", minio.MakeBucketOptions{}); err != nil {
		t.Fatal(err)
	}
	return "http://" + ln.Addr().String()
}

// undelimited takes a delimiter of no bytes for none, as S3 does.
type undelimited struct{ *s3mem.Backend }

func (b undelimited) ListBucket(ctx context.Context, name string, prefix *gofakes3.Prefix, page gofakes3.ListBucketPage) (*gofakes3.ObjectList, error) {
	if prefix != nil && prefix.Delimiter == "" {
		prefix.HasDelimiter = false
	}
	return b.Backend.ListBucket(ctx, name, prefix, page)
}

// S3 is a part of a bucket.
func S3(t testing.TB) *target.S3 {
	t.Helper()
	s, err := target.OpenS3(context.Background(), "s3://isr/some/where", Service(t))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// List is what is in a place below dir, by name.
func List(t testing.TB, place target.Target, dir string) []target.Entry {
	t.Helper()
	var entries []target.Entry
	for e, err := range place.List(context.Background(), dir) {
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, e)
	}
	slices.SortFunc(entries, func(a, b target.Entry) int { return strings.Compare(a.Name, b.Name) })
	return entries
}

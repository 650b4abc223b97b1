package target

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net/http"
	"net/url"
	"os"
	"path"
	"strings"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"isr/store/parcel"
)

// S3 is a Target in a bucket. Credentials are those of the usual environment
// and files; they are in no message.
type S3 struct {
	c              *minio.Client
	bucket, prefix string
	place          string
}

// parseS3 reads s3://BUCKET[/PREFIX]; false if text is not one.
func parseS3(text string) (bucket, prefix string, ok bool, err error) {
	rest, ok := strings.CutPrefix(text, "s3://")
	if !ok {
		return "", "", false, nil
	}
	bucket, prefix, _ = strings.Cut(rest, "/")
	prefix = strings.Trim(prefix, "/")
	if bucket == "" || rest != parcel.Clean(rest) || strings.ContainsAny(bucket, "@:?# ") || prefix != "" && !fs.ValidPath(prefix) {
		return "", "", true, parcel.NewError(parcel.Usage, "%s: want s3://BUCKET/PREFIX", parcel.Clean(text))
	}
	return bucket, prefix, true, nil
}

// OpenS3 opens a place in a bucket that is there. endpoint is the URL of the
// service, "" for the environment's, or that of AWS.
func OpenS3(ctx context.Context, place, endpoint string) (*S3, error) {
	bucket, prefix, _, err := parseS3(place)
	if err != nil {
		return nil, err
	}
	c, err := minioClient(endpoint)
	if err != nil {
		return nil, err
	}
	t := &S3{c: c, bucket: bucket, prefix: prefix, place: place}
	there, err := c.BucketExists(ctx, bucket)
	if err != nil {
		return nil, t.wrap(err)
	}
	if !there {
		return nil, parcel.NewError(parcel.Failed, "%s: no such bucket", place).WithHint("make it first")
	}
	return t, nil
}

func minioClient(endpoint string) (*minio.Client, error) {
	endpoint = cmp.Or(endpoint, os.Getenv("AWS_ENDPOINT_URL_S3"), os.Getenv("AWS_ENDPOINT_URL"), "https://s3.amazonaws.com")
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || strings.Trim(u.Path, "/") != "" || u.User != nil {
		return nil, parcel.NewError(parcel.Usage, "S3 endpoint: want https://HOST[:PORT]")
	}
	chain := []credentials.Provider{&credentials.EnvAWS{}, &credentials.FileAWSCredentials{}}
	if !strings.EqualFold(os.Getenv("AWS_EC2_METADATA_DISABLED"), "true") && strings.HasSuffix(u.Hostname(), "amazonaws.com") {
		chain = append(chain, &credentials.IAM{Client: http.DefaultClient})
	}
	c, err := minio.New(u.Host, &minio.Options{Creds: credentials.NewChainCredentials(chain), Secure: u.Scheme == "https",
		Region: cmp.Or(os.Getenv("AWS_REGION"), os.Getenv("AWS_DEFAULT_REGION")), MaxRetries: 5})
	if err != nil {
		return nil, parcel.NewError(parcel.Usage, "S3 endpoint: %v", err)
	}
	return c, nil
}

func (t *S3) String() string { return t.place }
func (t *S3) Width() int     { return 16 }
func (t *S3) Close() error   { return nil }

func (t *S3) key(name string) string { return path.Join(t.prefix, name) }

// wrap says what an answer means here.
func (t *S3) wrap(err error) error {
	if err == nil {
		return nil
	}
	r := minio.ToErrorResponse(err)
	kind := parcel.KindOf(err)
	switch {
	case r.Code == minio.NoSuchKey || r.StatusCode == http.StatusNotFound && r.Code != minio.NoSuchBucket:
		return fmt.Errorf("%s: %w", t.place, fs.ErrNotExist)
	case r.StatusCode == http.StatusForbidden || r.StatusCode == http.StatusUnauthorized:
		return parcel.NewError(parcel.Denied, "%s: %s", t.place, cmp.Or(parcel.Clean(r.Message), "access denied")).
			WithHint("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials, say who asks")
	case kind == parcel.Failed && r.StatusCode == 0:
		return parcel.NewError(parcel.Unreachable, "%s: %v", t.place, err)
	}
	return fmt.Errorf("%s: %w", t.place, err)
}

func (t *S3) Put(ctx context.Context, name string, content []byte) error {
	return t.PutFrom(ctx, name, bytes.NewReader(content), int64(len(content)))
}

func (t *S3) PutFrom(ctx context.Context, name string, r io.Reader, size int64) error {
	_, err := t.c.PutObject(ctx, t.bucket, t.key(name), r, size, minio.PutObjectOptions{ContentType: "application/octet-stream"})
	return t.wrap(err)
}

// Sync does nothing: what S3 has acknowledged is durable.
func (t *S3) Sync(context.Context) error { return nil }

func (t *S3) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	o, err := t.c.GetObject(ctx, t.bucket, t.key(name), minio.GetObjectOptions{})
	if err != nil {
		return nil, t.wrap(err)
	}
	return &s3Reader{t, o}, nil
}

// s3Reader says the errors of reading, where minio has those of opening too.
type s3Reader struct {
	t *S3
	o *minio.Object
}

func (r *s3Reader) Read(p []byte) (int, error) {
	n, err := r.o.Read(p)
	if err != nil && err != io.EOF {
		err = r.t.wrap(err)
	}
	return n, err
}

func (r *s3Reader) Close() error { return r.o.Close() }

func (t *S3) List(ctx context.Context, dir string) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel() // ends the listing where the caller does
		cut := ""
		if t.prefix != "" {
			cut = t.prefix + "/"
		}
		for o := range t.c.ListObjects(ctx, t.bucket, minio.ListObjectsOptions{Prefix: t.key(dir) + "/", Recursive: true}) {
			if o.Err != nil {
				yield(Entry{}, t.wrap(o.Err))
				return
			}
			if !yield(Entry{strings.TrimPrefix(o.Key, cut), o.Size}, nil) {
				return
			}
		}
	}
}

func (t *S3) Remove(ctx context.Context, name string) error {
	return t.wrap(t.c.RemoveObject(ctx, t.bucket, t.key(name), minio.RemoveObjectOptions{}))
}

package target

import (
	"context"
	"io"
	"strings"

	"isr/store/parcel"
)

// Way says how places are reached.
type Way struct {
	SSH      []string  // the ssh program and its options
	Apart    bool      // ssh has no terminal: it runs as an account that is not whose terminal that is
	Endpoint string    // URL of the S3 service; "": the environment's, or AWS
	Errors   io.Writer // what ssh says, a clean line at a time; nil: nobody hears it
}

// Open opens a place by its name: a directory, HOST:PATH, ssh://…, s3://…. A
// directory is made, if its parent is there and create is set.
func (w Way) Open(ctx context.Context, place string, create bool) (Target, error) {
	if _, _, ok, err := parseS3(place); ok || err != nil {
		if err != nil {
			return nil, err
		}
		return OpenS3(ctx, place, w.Endpoint)
	}
	return w.OpenTree(ctx, place, create)
}

// OpenTree is Open of a place that can hold a realm's tree.
func (w Way) OpenTree(ctx context.Context, place string, create bool) (Tree, error) {
	if _, _, ok, _ := parseS3(place); ok {
		return nil, parcel.NewError(parcel.Usage, "%s: a bucket cannot be served: want a directory or HOST:PATH", parcel.Clean(place))
	}
	if scheme, _, ok := strings.Cut(place, "://"); ok && scheme != "ssh" && scheme != "sftp" || place == "" {
		return nil, parcel.NewError(parcel.Usage, "%q: want a directory, HOST:PATH, ssh://HOST/PATH or s3://BUCKET/PREFIX", parcel.Clean(place))
	}
	if _, ok, err := parseSSH(place); ok || err != nil {
		if err != nil {
			return nil, err
		}
		t, err := OpenSFTP(ctx, place, w, create)
		if err != nil {
			return nil, err
		}
		return t, nil
	}
	t, err := OpenDir(place, create)
	if err != nil {
		return nil, err
	}
	return t, nil
}

// Local reports whether place is a directory of this host.
func Local(place string) (dir string, ok bool) {
	if _, remote, err := parseSSH(place); remote || err != nil || place == "" || strings.Contains(place, "://") {
		return "", false
	}
	return place, true
}

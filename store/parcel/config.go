package parcel

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"isr/store/keyring"
	"isr/store/seal"
)

// Config is the content of a parcel.cfg.
type Config struct {
	UUID      string   // identity for ever, 8-4-4-4-12 lower-case hex
	User      string   // owner
	Parcel    string   // name
	Version   int      // head: the newest version
	Src       []string // where content is read from, SCHEME://…, in order of preference
	ChunkSize int      // bytes, of the disk
	MemChunk  int      // bytes, of the memory
	DiskSize  int64    // bytes
	MemSize   int64    // bytes
	VMM       string   // default driver
	Crypto    seal.Suite
	Compress  seal.Codec
	Secret    []byte // convergence secret
	Created   time.Time
	Comment   string
	Other     Record // keys this program does not know, kept as they are
}

// ParseConfig reads a parcel.cfg.
func ParseConfig(p []byte) (*Config, error) {
	r, err := ParseRecord(p)
	if err != nil {
		return nil, fmt.Errorf("parcel.cfg: %w", err)
	}
	c := &Config{}
	seen := make(map[string]bool)
	for _, f := range r {
		if seen[f.Key] && f.Key != "SRC" {
			return nil, fmt.Errorf("parcel.cfg: %s is given twice", f.Key)
		}
		seen[f.Key] = true
		switch f.Key {
		case "UUID":
			u, uerr := uuid.Parse(f.Value)
			if err = uerr; err == nil && u.String() != f.Value {
				err = fmt.Errorf("uuid %q: want 8-4-4-4-12 lower-case hex digits", f.Value)
			}
			c.UUID = f.Value
		case "USER":
			err, c.User = CheckName(f.Value), f.Value
		case "PARCEL":
			err, c.Parcel = CheckName(f.Value), f.Value
		case "VERSION":
			c.Version, err = strconv.Atoi(f.Value)
			if err == nil && c.Version < 0 {
				err = fmt.Errorf("version %d is below 0", c.Version)
			}
		case "SRC":
			if !strings.Contains(f.Value, "://") {
				err = fmt.Errorf("source %q: want SCHEME://…", f.Value)
			}
			c.Src = append(c.Src, f.Value)
		case "CHUNKSIZE":
			c.ChunkSize, err = parseChunkSize(f.Value)
		case "MEMCHUNK":
			c.MemChunk, err = parseChunkSize(f.Value)
		case "DISKSIZE":
			c.DiskSize, err = strconv.ParseInt(f.Value, 10, 64)
		case "MEMSIZE":
			c.MemSize, err = strconv.ParseInt(f.Value, 10, 64)
		case "VMM":
			err, c.VMM = CheckName(f.Value), f.Value
		case "CRYPTO":
			c.Crypto, err = seal.ParseSuite(f.Value)
		case "COMPRESS":
			c.Compress, err = seal.ParseCodec(f.Value)
		case "SECRET":
			c.Secret, err = hex.DecodeString(f.Value)
		case "CREATED":
			c.Created, err = ParseTime(f.Value)
		case "COMMENT":
			c.Comment = f.Value
		default:
			c.Other = append(c.Other, f)
			delete(seen, f.Key) // may be repeated, for all we know
		}
		if err != nil {
			return nil, fmt.Errorf("parcel.cfg: %s: %w", f.Key, err)
		}
	}
	for _, key := range []string{"UUID", "USER", "PARCEL", "VERSION", "CHUNKSIZE", "DISKSIZE", "CRYPTO", "COMPRESS"} {
		if !seen[key] {
			return nil, fmt.Errorf("parcel.cfg: %s is missing", key)
		}
	}
	if c.DiskSize < 0 || c.MemSize < 0 {
		return nil, fmt.Errorf("parcel.cfg: size below 0")
	}
	if c.MemChunk == 0 {
		c.MemChunk = c.ChunkSize
	}
	return c, nil
}

func parseChunkSize(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0, err
	}
	return n, keyring.CheckChunkSize(n)
}

// Encode prints c as a parcel.cfg.
func (c *Config) Encode() ([]byte, error) {
	r := Record{{"UUID", c.UUID}, {"USER", c.User}, {"PARCEL", c.Parcel},
		{"VERSION", strconv.Itoa(c.Version)}}
	for _, s := range c.Src {
		r = append(r, Field{"SRC", s})
	}
	r = append(r, Record{{"CHUNKSIZE", strconv.Itoa(c.ChunkSize)}, {"MEMCHUNK", strconv.Itoa(c.MemChunk)},
		{"DISKSIZE", strconv.FormatInt(c.DiskSize, 10)}, {"MEMSIZE", strconv.FormatInt(c.MemSize, 10)}}...)
	if c.VMM != "" {
		r = append(r, Field{"VMM", c.VMM})
	}
	r = append(r, Record{{"CRYPTO", string(c.Crypto)}, {"COMPRESS", string(c.Compress)}}...)
	if len(c.Secret) > 0 {
		r = append(r, Field{"SECRET", hex.EncodeToString(c.Secret)})
	}
	r = append(r, Field{"CREATED", c.Created.UTC().Format(time.RFC3339)}, Field{"COMMENT", c.Comment})
	return append(r, c.Other...).Encode()
}

// Sealer seals and unseals the parcel's objects.
func (c *Config) Sealer() seal.Sealer {
	return seal.Sealer{Suite: c.Crypto, Codec: c.Compress, Secret: c.Secret}
}

// MaxName bounds a user's or parcel's name, so that with a suffix it still
// fits a file name.
const MaxName = 64

// CheckName reports whether s can name a user, a parcel or a VMM: letters,
// digits and . _ + - @, not beginning with . or -.
func CheckName(s string) error {
	if s == "" || len(s) > MaxName || s[0] == '.' || s[0] == '-' {
		return NewError(Usage, "name %.80q: want 1 to %d letters, digits and ._+-@, not beginning with . or -", s, MaxName)
	}
	for _, c := range s {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("._+-@", c) {
			return NewError(Usage, "name %q: %q is not a letter, a digit or one of ._+-@", s, c)
		}
	}
	return nil
}

// VersionDir is the name of a version's directory: six digits or more.
func VersionDir(v int) string { return fmt.Sprintf("%06d", v) }

// ParseVersionDir is the version that a directory name stands for.
func ParseVersionDir(s string) (int, bool) {
	v, err := strconv.Atoi(s)
	return v, err == nil && v > 0 && VersionDir(v) == s
}

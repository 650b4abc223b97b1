// Package seal turns plaintext into a sealed object and back, and refuses
// anything that was altered.
//
// Sealing is convergent: plaintext → key → compress → encrypt → tag. The key
// is the hash of the plaintext (with a realm's secret in front), the tag is
// the hash of the sealed bytes and names the object. So equal plaintext gives
// equal keys everywhere, and anyone can verify an object by its tag without
// being able to read it.
//
// It promises that what Unseal returns hashes to the key it was given. It
// does no I/O, holds no state, and does not decide what is sealed: an all-zero
// chunk never comes here (see Ref).
package seal

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"

	"golang.org/x/crypto/blowfish"
)

// MaxPlain is the largest plaintext, in bytes, that is ever sealed: the
// largest chunk, and the bound on a cfg archive.
const MaxPlain = 256 << 20

// ErrCorrupt is what every failure of Unseal and Verify wraps: the bytes are
// not what tag or key promised. Another copy may be good.
var ErrCorrupt = errors.New("corrupt object")

// Tag names an object: the raw hash of its sealed bytes, 20 (SHA-1) or 32
// (SHA-256) bytes. The empty Tag names nothing.
type Tag string

// Key unseals an object: the raw hash of its plaintext. It is secret.
type Key string

// ParseTag reads the file name of an object: lower-case hex, 40 or 64 digits.
func ParseTag(s string) (Tag, error) {
	raw, err := parseHash("tag", s)
	return Tag(raw), err
}

// ParseKey reads a key as String-like hex, 40 or 64 digits.
func ParseKey(s string) (Key, error) {
	raw, err := parseHash("key", s)
	return Key(raw), err
}

func parseHash(what, s string) (string, error) {
	if len(s) != 2*sha1.Size && len(s) != 2*sha256.Size {
		return "", fmt.Errorf("%s of %d characters: want 40 or 64 hex digits", what, len(s))
	}
	raw, err := hex.DecodeString(s)
	if err != nil || hex.EncodeToString(raw) != s {
		return "", fmt.Errorf("%s: not lower-case hex", what)
	}
	return string(raw), nil
}

// String is the object's file name.
func (t Tag) String() string { return hex.EncodeToString([]byte(t)) }

// Hex is the key in hex, for the places that may hold it.
func (k Key) Hex() string { return hex.EncodeToString([]byte(k)) }

// Format prints no key, whatever the verb: so none slips into a message or a
// log. Hex is the way to get at it.
func (k Key) Format(f fmt.State, _ rune) { io.WriteString(f, "(secret)") }

// NewHash returns the hash that tag was made with, or nil if tag has an
// impossible length.
func (t Tag) NewHash() hash.Hash {
	switch len(t) {
	case sha256.Size:
		return sha256.New()
	case sha1.Size:
		return sha1.New()
	}
	return nil
}

// Verify reports whether sealed is the object that t names; the error wraps
// ErrCorrupt.
func (t Tag) Verify(sealed []byte) error {
	h := t.NewHash()
	if h == nil {
		return fmt.Errorf("tag of %d bytes: %w", len(t), ErrCorrupt)
	}
	h.Write(sealed)
	if Tag(h.Sum(nil)) != t {
		return fmt.Errorf("object %s: content does not match its name: %w", t, ErrCorrupt)
	}
	return nil
}

// Ref leads to one object: tag and key. The zero Ref is nil: it stands for
// plaintext that is all zeros and is never sealed, sent or stored.
type Ref struct {
	Tag Tag
	Key Key
}

// IsNil reports whether r stands for zeros.
func (r Ref) IsNil() bool { return r.Tag == "" }

// String is TAG:KEY in hex, the form in which a keyroot is written down. It
// is as secret as the key, so the fmt verbs print something else: see Format.
func (r Ref) String() string {
	if r.IsNil() {
		return "-"
	}
	return r.Tag.String() + ":" + r.Key.Hex()
}

// Format prints the tag and no key, whatever the verb.
func (r Ref) Format(f fmt.State, _ rune) {
	if r.IsNil() {
		io.WriteString(f, "-")
		return
	}
	io.WriteString(f, r.Tag.String()+":(secret)")
}

// ParseRef reads what Ref.String wrote; "-" is the nil Ref.
func ParseRef(s string) (Ref, error) {
	if s == "-" {
		return Ref{}, nil
	}
	t, k, ok := bytes.Cut([]byte(s), []byte(":"))
	if !ok {
		return Ref{}, errors.New("reference: want TAG:KEY")
	}
	tag, err := ParseTag(string(t))
	if err != nil {
		return Ref{}, fmt.Errorf("reference: %w", err)
	}
	key, err := ParseKey(string(k))
	if err != nil {
		return Ref{}, fmt.Errorf("reference: %w", err)
	}
	if len(tag) != len(key) {
		return Ref{}, errors.New("reference: tag and key of different suites")
	}
	return Ref{tag, key}, nil
}

// Suite names a pair of hash and cipher.
type Suite string

const (
	// AES256SHA256 is the default: SHA-256, AES-256-GCM with a nonce derived
	// from key and message and stored in front.
	AES256SHA256 Suite = "aes256-sha256"
	// BlowfishSHA1 is the suite of the 2004 pilot: SHA-1 and Blowfish, in CBC
	// mode with a derived, stored IV. For fidelity, not for new parcels.
	BlowfishSHA1 Suite = "blowfish-sha1"
)

// ParseSuite checks the name of a suite.
func ParseSuite(s string) (Suite, error) {
	switch Suite(s) {
	case AES256SHA256, BlowfishSHA1:
		return Suite(s), nil
	}
	return "", fmt.Errorf("crypto suite %q: want %s or %s", s, AES256SHA256, BlowfishSHA1)
}

// HashSize is the length of the suite's tags and keys in bytes.
func (s Suite) HashSize() int {
	if s == BlowfishSHA1 {
		return sha1.Size
	}
	return sha256.Size
}

func (s Suite) newHash() hash.Hash {
	if s == BlowfishSHA1 {
		return sha1.New()
	}
	return sha256.New()
}

// Sealer seals and unseals under one suite and one convergence secret. It is
// a value; methods are safe for concurrent use.
type Sealer struct {
	Suite  Suite
	Codec  Codec  // what Seal tries; Unseal reads every codec
	Level  Level  // how hard it tries
	Secret []byte // convergence secret; empty is the pilot's rule
}

// Key is the key of plain under s: what Seal would give it, whatever the
// codec. It is how an unchanged chunk is recognised without sealing it.
func (s Sealer) Key(plain []byte) Key {
	h := s.Suite.newHash()
	h.Write(s.Secret)
	h.Write(plain)
	return Key(h.Sum(nil))
}

// Seal returns the object for plain and the reference to it. The caller owns
// the result.
func (s Sealer) Seal(plain []byte) (Ref, []byte, error) {
	if len(plain) == 0 || len(plain) > MaxPlain {
		return Ref{}, nil, fmt.Errorf("plaintext of %d bytes: want 1 to %d", len(plain), MaxPlain)
	}
	key := s.Key(plain)
	encoded, err := encode(s.Codec, s.Level, plain)
	if err != nil {
		return Ref{}, nil, err
	}
	sealed, err := s.encrypt(key, encoded)
	if err != nil {
		return Ref{}, nil, err
	}
	h := s.Suite.newHash()
	h.Write(sealed)
	return Ref{Tag(h.Sum(nil)), key}, sealed, nil
}

// Unseal verifies sealed by ref's tag, opens it and verifies the plaintext by
// ref's key. The plaintext is at most limit bytes, or it is corrupt. The
// caller owns the result; sealed is not kept or changed.
func (s Sealer) Unseal(ref Ref, sealed []byte, limit int) ([]byte, error) {
	if len(ref.Tag) != s.Suite.HashSize() || len(ref.Key) != s.Suite.HashSize() {
		return nil, fmt.Errorf("reference of another suite than %s: %w", s.Suite, ErrCorrupt)
	}
	if err := ref.Tag.Verify(sealed); err != nil {
		return nil, err
	}
	encoded, err := s.decrypt(ref.Key, sealed)
	if err != nil {
		return nil, fmt.Errorf("object %s: %w", ref.Tag, err)
	}
	plain, err := decode(encoded, limit)
	if err != nil {
		return nil, fmt.Errorf("object %s: %w", ref.Tag, err)
	}
	if s.Key(plain) != ref.Key {
		return nil, fmt.Errorf("object %s: plaintext does not match its key: %w", ref.Tag, ErrCorrupt)
	}
	return plain, nil
}

// gcmNonce is the size in bytes of the nonce in front of a sealed message
// (NIST SP 800-38D, section 5.2.1.1: 96 bits).
const gcmNonce = 12

// nonce derives n bytes from key and message. One key may seal the same
// plaintext in two encodings; they get different nonces, so no (key, nonce)
// ever encrypts two messages.
func nonce(h func() hash.Hash, key Key, encoded []byte, n int) []byte {
	m := hmac.New(h, []byte(key))
	m.Write(encoded)
	return m.Sum(nil)[:n]
}

func (s Sealer) encrypt(key Key, encoded []byte) ([]byte, error) {
	if s.Suite == BlowfishSHA1 {
		block, err := blowfish.NewCipher([]byte(key))
		if err != nil {
			return nil, err
		}
		iv := nonce(sha1.New, key, encoded, blowfish.BlockSize)
		pad := blowfish.BlockSize - len(encoded)%blowfish.BlockSize
		out := make([]byte, 0, len(iv)+len(encoded)+pad)
		out = append(append(out, iv...), encoded...)
		out = append(out, bytes.Repeat([]byte{byte(pad)}, pad)...)
		body := out[len(iv):]
		cipher.NewCBCEncrypter(block, iv).CryptBlocks(body, body)
		return out, nil
	}
	aead, err := newGCM(key)
	if err != nil {
		return nil, err
	}
	n := nonce(sha256.New, key, encoded, gcmNonce)
	out := make([]byte, gcmNonce, gcmNonce+len(encoded)+aead.Overhead())
	copy(out, n)
	return aead.Seal(out, n, encoded, nil), nil
}

func (s Sealer) decrypt(key Key, sealed []byte) ([]byte, error) {
	if s.Suite == BlowfishSHA1 {
		block, err := blowfish.NewCipher([]byte(key))
		if err != nil {
			return nil, err
		}
		if len(sealed) < 2*blowfish.BlockSize || len(sealed)%blowfish.BlockSize != 0 {
			return nil, fmt.Errorf("sealed message of %d bytes: %w", len(sealed), ErrCorrupt)
		}
		body := bytes.Clone(sealed[blowfish.BlockSize:])
		cipher.NewCBCDecrypter(block, sealed[:blowfish.BlockSize]).CryptBlocks(body, body)
		pad := int(body[len(body)-1])
		if pad < 1 || pad > blowfish.BlockSize ||
			!bytes.Equal(body[len(body)-pad:], bytes.Repeat([]byte{byte(pad)}, pad)) {
			return nil, fmt.Errorf("padding: %w", ErrCorrupt)
		}
		return body[:len(body)-pad], nil
	}
	aead, err := newGCM(key)
	if err != nil {
		return nil, err
	}
	if len(sealed) < gcmNonce+aead.Overhead() {
		return nil, fmt.Errorf("sealed message of %d bytes: %w", len(sealed), ErrCorrupt)
	}
	out, err := aead.Open(nil, sealed[:gcmNonce], sealed[gcmNonce:], nil)
	if err != nil {
		return nil, fmt.Errorf("decryption: %w", ErrCorrupt)
	}
	return out, nil
}

func newGCM(key Key) (cipher.AEAD, error) {
	block, err := aes.NewCipher([]byte(key))
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// Zero reports whether p is all zero bytes: such a chunk has the nil Ref.
func Zero(p []byte) bool {
	// Comparing p with itself shifted by one is a single vectorised pass.
	return len(p) == 0 || p[0] == 0 && bytes.Equal(p[:len(p)-1], p[1:])
}

// MarshalText and UnmarshalText write a Ref as Ref.String does.
func (r Ref) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (r *Ref) UnmarshalText(text []byte) error {
	ref, err := ParseRef(string(text))
	if err == nil {
		*r = ref
	}
	return err
}

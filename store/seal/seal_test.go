package seal

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/crypto/blowfish"
	"pgregory.net/rapid"
)

var (
	suites = []Suite{AES256SHA256, BlowfishSHA1}
	codecs = []Codec{None, Gzip, Zstd}
)

func random(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(b)
	return b
}

func text(n int) []byte { return bytes.Repeat([]byte("all work and no play "), n/21+1)[:n] }

func TestRoundTrip(t *testing.T) {
	for _, suite := range suites {
		for _, codec := range codecs {
			s := Sealer{Suite: suite, Codec: codec, Secret: []byte("realm")}
			for _, n := range []int{1, 2, 7, 8, 9, 15, 16, 17, 255, 256, 257, 4096, 65535, 65536, 65537, 131072, 1 << 20} {
				for name, plain := range map[string][]byte{"random": random(n), "text": text(n), "zeros": make([]byte, n)} {
					what := fmt.Sprintf("%s %s %d %s", suite, codec, n, name)
					ref, sealed, err := s.Seal(plain)
					if err != nil {
						t.Fatalf("%s: %v", what, err)
					}
					if ref.Key != s.Key(plain) {
						t.Errorf("%s: reference has another key than Key", what)
					}
					if len(ref.Tag) != suite.HashSize() || len(ref.Key) != suite.HashSize() {
						t.Errorf("%s: tag of %d, key of %d bytes", what, len(ref.Tag), len(ref.Key))
					}
					if max := n + 1 + gcmNonce + 16; len(sealed) > max {
						t.Errorf("%s: sealed into %d bytes, want at most %d", what, len(sealed), max)
					}
					ref2, sealed2, _ := s.Seal(plain)
					if ref2 != ref || !bytes.Equal(sealed, sealed2) {
						t.Errorf("%s: sealed twice, differently", what)
					}
					before := bytes.Clone(sealed)
					got, err := s.Unseal(ref, sealed, n)
					if err != nil || !bytes.Equal(got, plain) {
						t.Errorf("%s: unseal: %v, %d bytes", what, err, len(got))
					}
					if !bytes.Equal(sealed, before) {
						t.Errorf("%s: unseal changed what was sealed", what)
					}
					if n > 1 {
						if _, err := s.Unseal(ref, sealed, n-1); !errors.Is(err, ErrCorrupt) {
							t.Errorf("%s: one byte over the limit: got %v", what, err)
						}
					}
					if n > 1000 && name == "text" && codec != None && len(sealed) > n/2 {
						t.Errorf("%s: sealed into %d bytes: not compressed", what, len(sealed))
					}
				}
			}
		}
	}
}

// The page isr-store(5), in as few lines as a reader would need.
func TestByTheBook(t *testing.T) {
	secret, plain := []byte("realm's"), random(1000)

	s := Sealer{Suite: AES256SHA256, Codec: None, Secret: secret}
	key := sha256.Sum256(append(bytes.Clone(secret), plain...))
	message := append([]byte{0}, plain...)
	mac := hmac.New(sha256.New, key[:])
	mac.Write(message)
	nonce := mac.Sum(nil)[:12]
	block, _ := aes.NewCipher(key[:])
	gcm, _ := cipher.NewGCM(block)
	want := gcm.Seal(bytes.Clone(nonce), nonce, message, nil)
	ref, sealed, err := s.Seal(plain)
	if err != nil || !bytes.Equal(sealed, want) {
		t.Errorf("%s: not as the book has it, %v", s.Suite, err)
	}
	if tag := sha256.Sum256(want); ref != (Ref{Tag(tag[:]), Key(key[:])}) {
		t.Errorf("%s: reference: got %s", s.Suite, ref)
	}

	s.Suite = BlowfishSHA1
	key1 := sha1.Sum(append(bytes.Clone(secret), plain...))
	mac = hmac.New(sha1.New, key1[:])
	mac.Write(message)
	iv := mac.Sum(nil)[:8]
	fish, _ := blowfish.NewCipher(key1[:])
	pad := 8 - len(message)%8
	padded := append(bytes.Clone(message), bytes.Repeat([]byte{byte(pad)}, pad)...)
	cipher.NewCBCEncrypter(fish, iv).CryptBlocks(padded, padded)
	want = append(bytes.Clone(iv), padded...)
	ref, sealed, err = s.Seal(plain)
	if err != nil || !bytes.Equal(sealed, want) {
		t.Errorf("%s: not as the book has it, %v", s.Suite, err)
	}
	if tag := sha1.Sum(want); ref != (Ref{Tag(tag[:]), Key(key1[:])}) {
		t.Errorf("%s: reference: got %s", s.Suite, ref)
	}
}

// What was sealed once can be unsealed for ever: testdata holds an object of
// each suite and codec. What is sealed without compression is the same bytes
// for ever; compressed, the key is.
func TestVectors(t *testing.T) {
	var vectors []struct {
		Suite       Suite
		Codec       Codec
		Secret, Ref string
		Sealed      string
	}
	p, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(p, &vectors); err != nil {
		t.Fatal(err)
	}
	plain := text(300)
	if len(vectors) != len(suites)*len(codecs) {
		t.Errorf("%d vectors", len(vectors))
	}
	for _, v := range vectors {
		what := fmt.Sprintf("%s %s", v.Suite, v.Codec)
		s := Sealer{Suite: v.Suite, Codec: v.Codec, Secret: []byte(v.Secret)}
		ref, err := ParseRef(v.Ref)
		if err != nil {
			t.Fatal(err)
		}
		sealed, err := hex.DecodeString(v.Sealed)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := s.Unseal(ref, sealed, len(plain)); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%s: unseal: %v", what, err)
		}
		if s.Key(plain) != ref.Key {
			t.Errorf("%s: the key of the same plaintext has changed", what)
		}
		again, bytesAgain, err := s.Seal(plain)
		if v.Codec == None && (again != ref || !bytes.Equal(bytesAgain, sealed) || err != nil) {
			t.Errorf("%s: the object of the same plaintext has changed", what)
		}
	}
}

// Keys do not depend on the codec, but on the secret and the plaintext.
func TestKey(t *testing.T) {
	plain := text(1000)
	keys := make(map[Key]string)
	for _, suite := range suites {
		for _, secret := range []string{"", "a", "b"} {
			for _, codec := range codecs {
				s := Sealer{Suite: suite, Codec: codec, Secret: []byte(secret)}
				what := string(suite) + secret
				k := s.Key(plain)
				if was, ok := keys[k]; ok && was != what {
					t.Errorf("%s and %s have the same key", was, what)
				}
				keys[k] = what
			}
		}
	}
	if len(keys) != len(suites)*3 {
		t.Errorf("%d keys, want %d", len(keys), len(suites)*3)
	}
	if (Sealer{Suite: AES256SHA256}).Key(plain) != Key(func() string { h := sha256.Sum256(plain); return string(h[:]) }()) {
		t.Error("with an empty secret, the key is not the hash of the plaintext")
	}
}

// One key never seals two messages under one nonce, whatever the codec.
func TestNonce(t *testing.T) {
	for _, suite := range suites {
		n := gcmNonce
		if suite == BlowfishSHA1 {
			n = blowfish.BlockSize
		}
		nonces := make(map[string]Codec)
		for _, codec := range codecs {
			_, sealed, err := Sealer{Suite: suite, Codec: codec}.Seal(text(1000))
			if err != nil {
				t.Fatal(err)
			}
			if was, ok := nonces[string(sealed[:n])]; ok {
				t.Errorf("%s: %s and %s share a nonce", suite, was, codec)
			}
			nonces[string(sealed[:n])] = codec
		}
	}
}

// Any flipped bit, any missing byte is seen, and so is any wrong key.
func TestAltered(t *testing.T) {
	for _, suite := range suites {
		for _, codec := range codecs {
			s := Sealer{Suite: suite, Codec: codec}
			plain := text(100)
			ref, sealed, err := s.Seal(plain)
			if err != nil {
				t.Fatal(err)
			}
			for i := range sealed {
				bad := bytes.Clone(sealed)
				bad[i] ^= 1 << (i % 8)
				if _, err := s.Unseal(ref, bad, 100); !errors.Is(err, ErrCorrupt) {
					t.Fatalf("%s %s: byte %d flipped: got %v", suite, codec, i, err)
				}
				// Also where its name was changed with it: the key tells.
				h := suite.newHash()
				h.Write(bad)
				if got, err := s.Unseal(Ref{Tag(h.Sum(nil)), ref.Key}, bad, 100); !errors.Is(err, ErrCorrupt) && !bytes.Equal(got, plain) {
					t.Fatalf("%s %s: byte %d flipped and renamed: got %q, %v", suite, codec, i, got, err)
				}
				if _, err := s.Unseal(ref, sealed[:i], 100); !errors.Is(err, ErrCorrupt) {
					t.Fatalf("%s %s: %d bytes only: got %v", suite, codec, i, err)
				}
			}
			wrong := []byte(ref.Key)
			wrong[0] ^= 1
			for name, r := range map[string]Ref{"key": {ref.Tag, Key(wrong)}, "no key": {ref.Tag, ""}, "nil": {},
				"tag": {Tag(wrong), ref.Key}, "short tag": {ref.Tag[1:], ref.Key}} {
				if _, err := s.Unseal(r, sealed, 100); !errors.Is(err, ErrCorrupt) {
					t.Errorf("%s %s: wrong %s: got %v", suite, codec, name, err)
				}
			}
			if _, err := (Sealer{Suite: suite, Codec: codec, Secret: []byte("x")}).Unseal(ref, sealed, 100); !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s %s: another secret: got %v", suite, codec, err)
			}
		}
	}
}

func TestSealRefuses(t *testing.T) {
	s := Sealer{Suite: AES256SHA256, Codec: None}
	if _, _, err := s.Seal(nil); err == nil {
		t.Error("nothing was sealed")
	}
	if _, _, err := s.Seal(make([]byte, MaxPlain+1)); err == nil {
		t.Error("more than MaxPlain was sealed")
	}
	s.Codec = "rar"
	if _, _, err := s.Seal([]byte{1}); err == nil {
		t.Error("an unknown codec was used")
	}
}

// A small object that would unpack into much more than a chunk is refused
// before it has used the memory.
func TestBomb(t *testing.T) {
	zeros := make([]byte, 64<<20)
	var gz bytes.Buffer
	gz.WriteByte(codecGzip)
	w := gzip.NewWriter(&gz)
	w.Write(zeros)
	w.Close()
	enc, _ := zstd.NewWriter(nil, zstd.WithSingleSegment(true))
	frame := enc.EncodeAll(zeros, nil)
	small := enc.EncodeAll(zeros[:10], nil)
	for name, m := range map[string][]byte{
		"gzip":                      gz.Bytes(),
		"zstd":                      append([]byte{codecZstd}, frame...),
		"zstd, second frame":        append(append([]byte{codecZstd}, small...), frame...),
		"none":                      make([]byte, 1002),
		"nothing":                   {},
		"unknown":                   {9, 1, 2},
		"gzip without":              {codecGzip},
		"zstd without":              {codecZstd},
		"gzip with something after": append(append([]byte{codecGzip}, gzipped("x")...), 1, 2, 3),
	} {
		if out, err := decode(m, 1000); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: got %d bytes, %v", name, len(out), err)
		}
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	decode(gz.Bytes(), 1000)
	decode(append(append([]byte{codecZstd}, small...), frame...), 1000)
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > 1<<20 {
		t.Errorf("refusing a bomb takes %d bytes", got)
	}
}

func gzipped(s string) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Write([]byte(s))
	w.Close()
	return b.Bytes()
}

// Sealers are shared by goroutines.
func TestConcurrent(t *testing.T) {
	for _, codec := range codecs {
		s := Sealer{Suite: AES256SHA256, Codec: codec}
		var wg sync.WaitGroup
		for g := range 4 {
			wg.Go(func() {
				for i := range 50 {
					plain := text(1000 + 100*g + i)
					ref, sealed, err := s.Seal(plain)
					if err != nil {
						t.Error(err)
					}
					if got, err := s.Unseal(ref, sealed, len(plain)); err != nil || !bytes.Equal(got, plain) {
						t.Errorf("%s: %v", codec, err)
					}
				}
			})
		}
		wg.Wait()
	}
}

func TestNames(t *testing.T) {
	tag := Tag(random(32))
	if got, err := ParseTag(tag.String()); got != tag || err != nil {
		t.Errorf("tag: got %s, %v", got, err)
	}
	for _, bad := range []string{"", "ab", strings.Repeat("a", 39), strings.Repeat("a", 41), strings.Repeat("a", 63), strings.Repeat("a", 65),
		strings.Repeat("A", 64), strings.Repeat("g", 64), strings.Repeat("a", 62) + "/."} {
		if _, err := ParseTag(bad); err == nil {
			t.Errorf("tag %q: accepted", bad)
		}
		if _, err := ParseKey(bad); err == nil {
			t.Errorf("key %q: accepted", bad)
		}
	}
	ref := Ref{tag, Key(random(32)[:32])}
	for _, r := range []Ref{ref, {}, {tag[:20], ref.Key[:20]}} {
		if got, err := ParseRef(r.String()); got != r || err != nil {
			t.Errorf("reference %s: got %s, %v", r, got, err)
		}
		j, err := json.Marshal(r)
		var got Ref
		if err == nil {
			err = json.Unmarshal(j, &got)
		}
		if got != r || err != nil {
			t.Errorf("reference %s as JSON: got %s, %v", r, got, err)
		}
	}
	for _, bad := range []string{"", ":", tag.String(), tag.String() + ":", tag.String() + ":" + ref.Key[:20].Hex(), "-:-", " -", ref.String() + "\n"} {
		if _, err := ParseRef(bad); err == nil {
			t.Errorf("reference %q: accepted", bad)
		}
	}
	for _, s := range suites {
		if got, err := ParseSuite(string(s)); got != s || err != nil {
			t.Errorf("suite %s: got %s, %v", s, got, err)
		}
	}
	for _, c := range codecs {
		if got, err := ParseCodec(string(c)); got != c || err != nil {
			t.Errorf("codec %s: got %s, %v", c, got, err)
		}
	}
	if _, err := ParseSuite(""); err == nil {
		t.Error("no suite: accepted")
	}
	if _, err := ParseCodec("GZIP"); err == nil {
		t.Error("codec GZIP: accepted")
	}
}

// No verb of fmt prints a key.
func TestKeyIsSecret(t *testing.T) {
	ref := Ref{Tag(random(32)), Key("0123456789abcdef0123456789ABCDEF")}
	type holder struct {
		R *Ref
		K []Key
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		for _, arg := range []any{ref, &ref, ref.Key, holder{&ref, []Key{ref.Key}}, []Ref{ref}, map[string]Ref{"a": ref}} {
			got := fmt.Sprintf(verb, arg)
			for _, secret := range []string{string(ref.Key), ref.Key.Hex(), strings.ToUpper(ref.Key.Hex()), "48 49 50"} {
				if strings.Contains(got, secret) {
					t.Errorf("%s of %T prints the key: %s", verb, arg, got)
				}
			}
		}
	}
	if got := fmt.Sprint(ref); !strings.HasPrefix(got, ref.Tag.String()) {
		t.Errorf("a printed reference: got %s, want its tag", got)
	}
}

func TestZero(t *testing.T) {
	for _, n := range []int{0, 1, 2, 7, 8, 9, 4096} {
		p := make([]byte, n)
		if !Zero(p) {
			t.Errorf("%d zeros are not zero", n)
		}
		for i := range p {
			p[i] = 1
			if Zero(p) {
				t.Fatalf("byte %d of %d is 1, and all is zero", i, n)
			}
			p[i] = 0
		}
	}
	if p := bytes.Repeat([]byte{7}, 100); Zero(p) {
		t.Error("sevens are zero")
	}
}

func TestSealProperty(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		s := Sealer{Suite: rapid.SampledFrom(suites).Draw(r, "suite"), Codec: rapid.SampledFrom(codecs).Draw(r, "codec"), Secret: rapid.SliceOf(rapid.Byte()).Draw(r, "secret")}
		plain := rapid.SliceOfN(rapid.Byte(), 1, 3000).Draw(r, "plain")
		ref, sealed, err := s.Seal(plain)
		if err != nil {
			r.Fatal(err)
		}
		other := s
		other.Codec = rapid.SampledFrom(codecs).Draw(r, "other codec") // what seals does not matter to what unseals
		got, err := other.Unseal(ref, sealed, len(plain))
		if err != nil || !bytes.Equal(got, plain) {
			r.Fatalf("got %d bytes, %v", len(got), err)
		}
	})
}

// Whatever decodes is at most limit bytes, and nothing panics.
func FuzzDecode(f *testing.F) {
	for _, c := range codecs {
		m, _ := encode(c, Usual, text(500))
		f.Add(m, 500)
		f.Add(m, 499)
	}
	f.Fuzz(func(t *testing.T, m []byte, limit int) {
		if limit < 0 || limit > 1<<20 {
			return
		}
		out, err := decode(m, limit)
		if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Errorf("got %v, which is not ErrCorrupt", err)
		}
		if err == nil && len(out) > limit {
			t.Errorf("%d bytes, over %d", len(out), limit)
		}
	})
}

// Whoever forges an object for a reference fails: only what was sealed opens.
func FuzzUnseal(f *testing.F) {
	s := Sealer{Suite: AES256SHA256, Codec: Gzip}
	ref, sealed, _ := s.Seal(text(500))
	f.Add(sealed, false)
	b := Sealer{Suite: BlowfishSHA1, Codec: None}
	bref, bsealed, _ := b.Seal(text(500))
	f.Add(bsealed, true)
	f.Fuzz(func(t *testing.T, object []byte, pilot bool) {
		s, ref, sealed := s, ref, sealed
		if pilot {
			s, ref, sealed = b, bref, bsealed
		}
		if _, err := s.Unseal(ref, object, 500); (err == nil) != bytes.Equal(object, sealed) {
			t.Errorf("got %v", err)
		}
		h := s.Suite.newHash()
		h.Write(object)
		got, err := s.Unseal(Ref{Tag(h.Sum(nil)), ref.Key}, object, 500)
		if err == nil && !bytes.Equal(got, text(500)) {
			t.Error("other plaintext under the same key")
		}
		if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Errorf("got %v, which is not ErrCorrupt", err)
		}
	})
}

func FuzzParseRef(f *testing.F) {
	f.Add("-")
	f.Add(Ref{Tag(random(32)), Key(random(32))}.String())
	f.Add(Ref{Tag(random(20)), Key(random(20))}.String())
	f.Fuzz(func(t *testing.T, s string) {
		if r, err := ParseRef(s); err == nil && r.String() != s {
			t.Errorf("%q is printed as %q", s, r.String())
		}
		if tag, err := ParseTag(s); err == nil && tag.String() != s {
			t.Errorf("%q is printed as %q", s, tag)
		}
	})
}

// BenchmarkSeal: what a chunk costs, per suite, codec and content. The last
// figure is the size of the object in percent of the chunk.
func BenchmarkSeal(b *testing.B) {
	half := random(128 << 10)
	copy(half, text(64<<10))
	for _, suite := range suites {
		for _, codec := range codecs {
			for name, plain := range map[string][]byte{"text": text(128 << 10), "random": random(128 << 10), "half": half} {
				b.Run(fmt.Sprintf("%s/%s/%s", suite, codec, name), func(b *testing.B) {
					s := Sealer{Suite: suite, Codec: codec}
					b.SetBytes(int64(len(plain)))
					n := 0
					for b.Loop() {
						_, sealed, err := s.Seal(plain)
						if err != nil {
							b.Fatal(err)
						}
						n = len(sealed)
					}
					b.ReportMetric(100*float64(n)/float64(len(plain)), "%")
				})
			}
		}
	}
}

func BenchmarkUnseal(b *testing.B) {
	half := random(128 << 10)
	copy(half, text(64<<10))
	for _, suite := range suites {
		for _, codec := range codecs {
			b.Run(fmt.Sprintf("%s/%s", suite, codec), func(b *testing.B) {
				s := Sealer{Suite: suite, Codec: codec}
				ref, sealed, err := s.Seal(half)
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(int64(len(half)))
				for b.Loop() {
					if _, err := s.Unseal(ref, sealed, len(half)); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkZero(b *testing.B) {
	p := make([]byte, 128<<10)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		Zero(p)
	}
}

// Package wrap keeps the key of a checkout at rest, with nothing but the
// user's SSH keys to protect it, or a password where there are none.
//
// A wrapped key is encrypted under a value that only someone who can sign with
// one of the user's SSH keys can compute: the signature of a fixed challenge.
// Ed25519 (RFC 8032) and RSA PKCS #1 v1.5 (RFC 8017) signatures are
// deterministic, so the same key gives the same value every time, from an
// agent as well as from a file, without the network. ECDSA and hardware keys
// sign with fresh randomness and cannot wrap.
//
// Under a password the value is what argon2id makes of it, with costs and salt
// that the record names.
//
// It promises that a stolen disk without the SSH key shows no checkout's key,
// and without the password none, as far as the password cannot be guessed. It
// does not protect from whoever can use the user's agent.
package wrap

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"

	"golang.org/x/crypto/ssh"

	"isr/store/parcel"
)

// KeySize is the length of a wrapped key in bytes.
const KeySize = 32

// ErrNoSigner is returned when none of the signers can wrap.
var ErrNoSigner = parcel.NewError(parcel.Denied, "ssh keys: none that can protect a checkout (ed25519 or rsa)").
	WithHint("make one with ssh-keygen -t ed25519 and add it to the server and to your agent, or log in by your ISR password")

// ErrNoMatch is returned when none of the signers is one that wrapped.
var ErrNoMatch = parcel.NewError(parcel.Denied, "ssh keys: none of those that protect this checkout is at hand").
	WithHint("add the key you checked out with to your agent: ssh-add")

// maxSigners bounds how many SSH keys wrap one key; any of them opens it.
const maxSigners = 4

// challengePrefix begins what is signed. It cannot be an SSH authentication
// request, which begins with the length of a session id (RFC 4252, section 7).
const challengePrefix = "isr checkout key\x00"

// New makes a random key and the record that gives it back to any of the
// signers.
func New(signers []ssh.Signer) (key, record []byte, err error) {
	key = make([]byte, KeySize)
	salt := make([]byte, 16)
	rand.Read(key)
	rand.Read(salt)
	r := parcel.Record{{Key: "SALT", Value: base64.StdEncoding.EncodeToString(salt)}}
	var first error
	for n, s := range signers {
		if n == maxSigners {
			break
		}
		aead, err := wrapping(s, salt)
		if err != nil {
			if first == nil && !errors.Is(err, errRandom) {
				first = err
			}
			continue
		}
		nonce := make([]byte, aead.NonceSize())
		rand.Read(nonce)
		box := aead.Seal(nonce, nonce, key, nil)
		r = append(r, parcel.Field{Key: "KEY", Value: ssh.FingerprintSHA256(s.PublicKey()) + " " + base64.StdEncoding.EncodeToString(box)})
	}
	if len(r) == 1 {
		if first != nil {
			return nil, nil, first
		}
		return nil, nil, ErrNoSigner
	}
	record, err = r.Encode()
	return key, record, err
}

// Open gives back the key in record.
func Open(record []byte, signers []ssh.Signer) ([]byte, error) {
	r, err := parcel.ParseRecord(record)
	if err != nil {
		return nil, fmt.Errorf("wrapped key: %w", err)
	}
	salt, err := base64.StdEncoding.DecodeString(r.Get("SALT"))
	if err != nil || len(salt) == 0 {
		return nil, errors.New("wrapped key: no salt")
	}
	boxes := make(map[string][]byte)
	for _, v := range r.All("KEY") {
		var fp, b64 string
		if _, err := fmt.Sscan(v, &fp, &b64); err != nil {
			return nil, errors.New("wrapped key: want FINGERPRINT BOX")
		}
		if boxes[fp], err = base64.StdEncoding.DecodeString(b64); err != nil {
			return nil, fmt.Errorf("wrapped key: %w", err)
		}
	}
	last := error(ErrNoMatch)
	for _, s := range signers {
		box := boxes[ssh.FingerprintSHA256(s.PublicKey())]
		if box == nil {
			continue
		}
		aead, err := wrapping(s, salt)
		if err != nil {
			last = err
			continue
		}
		if len(box) < aead.NonceSize() {
			return nil, errors.New("wrapped key: too short")
		}
		key, err := aead.Open(nil, box[:aead.NonceSize()], box[aead.NonceSize():], nil)
		if err == nil && len(key) == KeySize {
			return key, nil
		}
		last = fmt.Errorf("wrapped key: %w", parcel.ErrDamaged)
	}
	return nil, last
}

// errRandom marks a signer whose signatures differ each time.
var errRandom = errors.New("signatures are not deterministic")

// wrapping is the cipher that only a holder of the signer's key can make.
func wrapping(s ssh.Signer, salt []byte) (cipher.AEAD, error) {
	challenge := append([]byte(challengePrefix), salt...)
	var sig *ssh.Signature
	var err error
	key := s.PublicKey()
	if cert, ok := key.(*ssh.Certificate); ok {
		key = cert.Key
	}
	switch key.Type() {
	case ssh.KeyAlgoED25519:
		sig, err = s.Sign(rand.Reader, challenge)
	case ssh.KeyAlgoRSA:
		as, ok := s.(ssh.AlgorithmSigner)
		if !ok {
			return nil, errRandom
		}
		sig, err = as.SignWithAlgorithm(rand.Reader, challenge, ssh.KeyAlgoRSASHA256)
	default:
		return nil, errRandom
	}
	if err != nil {
		return nil, fmt.Errorf("sign with ssh key %s: %w", ssh.FingerprintSHA256(s.PublicKey()), err)
	}
	secret, err := hkdf.Key(sha256.New, sig.Blob, salt, challengePrefix, KeySize)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(secret)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// Seal encrypts plain under key, with a fresh nonce in front; label says what
// it is and must be the same at Unseal.
func Seal(key, plain []byte, label string) []byte {
	aead := boxCipher(key)
	nonce := make([]byte, aead.NonceSize())
	rand.Read(nonce)
	return aead.Seal(nonce, nonce, plain, []byte(label))
}

// Unseal opens what Seal made.
func Unseal(key, box []byte, label string) ([]byte, error) {
	aead := boxCipher(key)
	if len(box) < aead.NonceSize() {
		return nil, fmt.Errorf("%s: %w", label, parcel.ErrDamaged)
	}
	plain, err := aead.Open(nil, box[:aead.NonceSize()], box[aead.NonceSize():], []byte(label))
	if err != nil {
		return nil, fmt.Errorf("%s: does not open with this checkout's key: %w", label, parcel.ErrDamaged)
	}
	return plain, nil
}

func boxCipher(key []byte) cipher.AEAD {
	sub, err := hkdf.Key(sha256.New, key, nil, "isr box", KeySize)
	if err != nil {
		panic(err) // the length is a constant
	}
	block, err := aes.NewCipher(sub)
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return aead
}

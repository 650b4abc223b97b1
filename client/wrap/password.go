package wrap

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"

	"golang.org/x/crypto/argon2"

	"isr/store/parcel"
)

// ErrPassword is returned when a checkout does not open with a password.
var ErrPassword = parcel.NewError(parcel.Denied, "password: does not open this checkout").
	WithHint("it wants the password of the time of checkout, or of the last isr passwd on this host")

// passwordField names the lines of a record that open by password. There are
// two while the password is being changed.
const passwordField = "PASSWORD"

// stretch is argon2id's cost: a fifth of a second, for us and for who guesses.
type stretch struct {
	time, memory uint32 // passes, KiB
	threads      uint8
}

// passwordStretch is recorded with each key. Tests lower it.
var passwordStretch = stretch{time: 3, memory: 64 << 10, threads: 2}

// Most of each, so that a record cannot make us run for ever.
const (
	maxTime    = 32
	maxMemory  = 1 << 20
	maxThreads = 16
)

// NewWithPassword makes a random key and the record that gives it back to
// whoever knows the password. It is for those who have no SSH key that can
// wrap: a password can be guessed, a key cannot.
func NewWithPassword(password []byte) (key, record []byte, err error) {
	key = make([]byte, KeySize)
	rand.Read(key)
	record, err = parcel.Record{passwordLine(key, password)}.Encode()
	return key, record, err
}

// ByPassword reports whether the record opens by password.
func ByPassword(record []byte) bool {
	r, err := parcel.ParseRecord(record)
	return err == nil && len(r.All(passwordField)) > 0
}

// OpenWithPassword gives back the key in record.
func OpenWithPassword(record, password []byte) ([]byte, error) {
	r, err := parcel.ParseRecord(record)
	if err != nil {
		return nil, fmt.Errorf("wrapped key: %w", err)
	}
	for _, v := range r.All(passwordField) {
		key, err := openLine(v, password)
		if key != nil || err != nil {
			return key, err
		}
	}
	return nil, ErrPassword
}

// AddPassword is record, which also gives key to whoever knows password.
func AddPassword(record, key, password []byte) ([]byte, error) {
	r, err := parcel.ParseRecord(record)
	if err != nil {
		return nil, fmt.Errorf("wrapped key: %w", err)
	}
	return append(r, passwordLine(key, password)).Encode()
}

// OnlyPassword is record without the lines that password does not open.
func OnlyPassword(record, password []byte) ([]byte, error) {
	r, err := parcel.ParseRecord(record)
	if err != nil {
		return nil, fmt.Errorf("wrapped key: %w", err)
	}
	var kept parcel.Record
	found := false
	for _, f := range r {
		if f.Key == passwordField {
			if key, err := openLine(f.Value, password); key == nil || err != nil || found {
				continue // another's, or once more the same
			}
			found = true
		}
		kept = append(kept, f)
	}
	if !found {
		return nil, ErrPassword
	}
	return kept.Encode()
}

func passwordLine(key, password []byte) parcel.Field {
	salt := make([]byte, 16)
	rand.Read(salt)
	aead := passwordStretch.cipher(password, salt)
	nonce := make([]byte, aead.NonceSize())
	rand.Read(nonce)
	box := aead.Seal(nonce, nonce, key, nil)
	s := passwordStretch
	return parcel.Field{Key: passwordField, Value: fmt.Sprintf("argon2id %d %d %d %s %s", s.time, s.memory, s.threads,
		base64.StdEncoding.EncodeToString(salt), base64.StdEncoding.EncodeToString(box))}
}

// openLine is nil if the password is not the line's.
func openLine(line string, password []byte) ([]byte, error) {
	var s stretch
	var name, salt64, box64 string
	if _, err := fmt.Sscanf(line, "%s %d %d %d %s %s", &name, &s.time, &s.memory, &s.threads, &salt64, &box64); err != nil || name != "argon2id" {
		return nil, errors.New("wrapped key: want argon2id TIME MEMORY THREADS SALT BOX")
	}
	if s.time < 1 || s.time > maxTime || s.memory < 1 || s.memory > maxMemory || s.threads < 1 || s.threads > maxThreads {
		return nil, errors.New("wrapped key: costs of argon2id out of bounds")
	}
	salt, err := base64.StdEncoding.DecodeString(salt64)
	if err != nil {
		return nil, fmt.Errorf("wrapped key: %w", err)
	}
	box, err := base64.StdEncoding.DecodeString(box64)
	if err != nil {
		return nil, fmt.Errorf("wrapped key: %w", err)
	}
	aead := s.cipher(password, salt)
	if len(box) < aead.NonceSize() {
		return nil, errors.New("wrapped key: too short")
	}
	key, err := aead.Open(nil, box[:aead.NonceSize()], box[aead.NonceSize():], nil)
	if err != nil || len(key) != KeySize {
		return nil, nil
	}
	return key, nil
}

func (s stretch) cipher(password, salt []byte) cipher.AEAD {
	secret := argon2.IDKey(password, salt, s.time, s.memory, s.threads, KeySize)
	defer clear(secret)
	block, err := aes.NewCipher(secret)
	if err != nil {
		panic(err) // the length is a constant
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return aead
}

package parcel

import (
	"unicode"
	"unicode/utf8"
)

// The length of a password, bytes: bcrypt heeds no more than the first 72.
const (
	MinPassword = 8
	MaxPassword = 72
)

// CheckPassword refuses what may not become a password: client and server ask
// it alike. Its errors do not repeat the password.
func CheckPassword(password []byte) error {
	switch {
	case len(password) < MinPassword:
		return NewError(Usage, "password: shorter than %d bytes", MinPassword)
	case len(password) > MaxPassword:
		return NewError(Usage, "password: longer than %d bytes", MaxPassword)
	case !utf8.Valid(password):
		return NewError(Usage, "password: is not text in UTF-8")
	}
	for _, c := range string(password) {
		if unicode.IsControl(c) {
			return NewError(Usage, "password: holds a control character")
		}
	}
	return nil
}

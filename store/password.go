package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"golang.org/x/crypto/bcrypt"

	"isr/store/atomicfile"
	"isr/store/parcel"
	"isr/store/tree"
)

// PasswordCost is bcrypt's: a quarter of a second, for us and for who guesses.
// Tests lower it, before anything is hashed.
var PasswordCost = 12

// wrongPause is how long a wrong old password keeps the user's password from
// being tried again, by whichever process: the guesses of one who has found a
// session open come at this rate.
var wrongPause = time.Second

// hashing bounds how many passwords are hashed at once, so that guessing does
// not take the host from those who are let in.
var hashing = make(chan struct{}, max(1, runtime.NumCPU()/2))

// ErrPassword is returned for a password that is not the user's.
var ErrPassword = parcel.NewError(parcel.Denied, "password: wrong")

// SetPassword gives a user a password, whatever it was before.
func (s *Store) SetPassword(name string, password []byte) error {
	u, unlock, err := s.lockUser(name)
	if err != nil {
		return err
	}
	defer unlock()
	return u.setPassword(password)
}

func (u User) setPassword(password []byte) error {
	if err := parcel.CheckPassword(password); err != nil {
		return err
	}
	hashing <- struct{}{}
	hash, err := bcrypt.GenerateFromPassword(password, PasswordCost)
	<-hashing
	if err != nil {
		return fmt.Errorf("user %s: %w", u.Name, err)
	}
	p, err := parcel.Record{{Key: "BCRYPT", Value: string(hash)}}.Encode()
	if err != nil {
		return fmt.Errorf("user %s: %w", u.Name, err)
	}
	return atomicfile.Write(filepath.Join(u.Dir, tree.PasswordFile), p, 0o600)
}

// ChangePassword gives a user a new password if old is the one she has; old
// is empty if she has none. ErrPassword if it is not.
func (s *Store) ChangePassword(name string, old, password []byte) error {
	if err := parcel.CheckPassword(password); err != nil {
		return err
	}
	u, unlock, err := s.lockUser(name)
	if err != nil {
		return err
	}
	defer unlock()
	hash, err := u.passwordHash()
	if err != nil {
		return err
	}
	if hash == nil && len(old) > 0 || hash != nil && !samePassword(hash, old) {
		time.Sleep(wrongPause) // under the lock
		return ErrPassword
	}
	return u.setPassword(password)
}

// RemovePassword takes a user's password away; only her keys let her in then.
func (s *Store) RemovePassword(name string) error {
	u, unlock, err := s.lockUser(name)
	if err != nil {
		return err
	}
	defer unlock()
	err = os.Remove(filepath.Join(u.Dir, tree.PasswordFile))
	if errors.Is(err, fs.ErrNotExist) {
		return parcel.NewError(parcel.Failed, "user %s: has no password", name)
	}
	if err != nil {
		return err
	}
	return atomicfile.SyncDir(u.Dir)
}

// HasPassword reports whether a user has a password.
func (s *Store) HasPassword(name string) (bool, error) {
	u, err := s.User(name)
	if err != nil {
		return false, err
	}
	hash, err := u.passwordHash()
	return hash != nil, err
}

// AnyPassword reports whether any user has a password.
func (s *Store) AnyPassword() bool {
	found, _ := filepath.Glob(filepath.Join(s.root, tree.UsersDir, "*", tree.PasswordFile))
	return len(found) > 0
}

// CheckPassword is nil if password is the user's, else ErrPassword, or what
// went wrong in finding out. It takes as long for a user that there is not, or
// who has no password.
func (s *Store) CheckPassword(name string, password []byte) error {
	var hash []byte
	u, err := s.User(name)
	if err == nil {
		hash, err = u.passwordHash()
	}
	if hash == nil {
		samePassword(nobodysHash(), password)
		if err == nil || errors.Is(err, parcel.ErrNoParcel) || errors.Is(err, parcel.ErrUsage) {
			err = ErrPassword
		}
		return err
	}
	if !samePassword(hash, password) {
		return ErrPassword
	}
	return nil
}

// nobodysHash is what is compared where there is nothing to compare with.
var nobodysHash = sync.OnceValue(newNobodysHash)

func newNobodysHash() []byte {
	hash, err := bcrypt.GenerateFromPassword([]byte(parcel.NewID()), PasswordCost)
	if err != nil {
		panic(err) // the cost is a constant
	}
	return hash
}

func samePassword(hash, password []byte) bool {
	hashing <- struct{}{}
	defer func() { <-hashing }()
	// bcrypt would not tell what is longer from its first 72 bytes.
	return bcrypt.CompareHashAndPassword(hash, password) == nil && len(password) <= parcel.MaxPassword
}

// passwordHash is nil if the user has no password.
func (u User) passwordHash() ([]byte, error) {
	p, err := tree.ReadOwn(filepath.Join(u.Dir, tree.PasswordFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r, err := parcel.ParseRecord(p)
	if err != nil {
		return nil, fmt.Errorf("user %s: password: %w", u.Name, err)
	}
	hash := []byte(r.Get("BCRYPT"))
	if _, err := bcrypt.Cost(hash); err != nil {
		return nil, fmt.Errorf("user %s: password: %w", u.Name, parcel.ErrDamaged)
	}
	return hash, nil
}

// lockUser is the user, whose password and user.cfg nobody else changes until
// unlock.
func (s *Store) lockUser(name string) (u User, unlock func(), err error) {
	if u, err = s.User(name); err != nil {
		return u, nil, err
	}
	if unlock, err = tree.LockDir(u.Dir); err != nil {
		return u, nil, fmt.Errorf("user %s: %w", name, err)
	}
	return u, unlock, nil
}

package seal

// TagKey is a tag as the key of a map that has no pointers in it: there are
// millions.
type TagKey [32]byte

// MapKey is the tag as such a key.
func (t Tag) MapKey() (k TagKey) {
	copy(k[:], t)
	return k
}

package locksrv

// Synopses are the arguments of all verbs.
func Synopses() map[string]string {
	m := make(map[string]string)
	for _, v := range table {
		m[v.name] = v.synopsis
	}
	return m
}

// Changes reports whether a verb changes what there is, and whether it says.
func Changes(verb string) (changes, says bool) {
	n := needs[verb]
	return n != 0 && n != 1, n != 0
}

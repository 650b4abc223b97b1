package main

import "isr/store/backup/mirror"

// standbyText says what the realm in root is a mirror of, if it is one.
func standbyText(root string) (string, error) {
	from, asOf, err := mirror.StandbyOf(root)
	switch {
	case err != nil || from == "":
		return "", err
	case asOf.IsZero():
		return "of " + from + ", not whole yet", nil
	}
	return "of " + from + ", as of " + stamp(asOf), nil
}

// Package text prints values for people.
package text

import (
	"fmt"
	"strings"
)

// Quote makes a value from outside safe to print: in quotes, control characters
// escaped, and cut where it is long.
func Quote(v string) string {
	const most = 120
	if len(v) > most {
		v = v[:most] + "..."
	}
	return fmt.Sprintf("%q", v)
}

// Word is Quote without the quotes.
func Word(v string) string { return strings.Trim(Quote(v), `"`) }

// Bytes writes a size with the unit that suits it, in powers of 1000.
func Bytes(n int64) string {
	switch {
	case n >= 1e9:
		return fmt.Sprintf("%.2f GB", float64(n)/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	case n >= 1e3:
		return fmt.Sprintf("%.1f kB", float64(n)/1e3)
	}
	return fmt.Sprintf("%d B", n)
}

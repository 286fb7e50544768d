package text

import (
	"strings"
	"testing"
)

func TestQuote(t *testing.T) {
	if got := Quote("a\x1b[31m"); got != `"a\x1b[31m"` {
		t.Error(got)
	}
	if got := Quote(strings.Repeat("x", 500)); len(got) != 125 {
		t.Errorf("%d bytes", len(got))
	}
	if got := Word("wo\nrd"); got != `wo\nrd` {
		t.Error(got)
	}
}

func TestBytes(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 1500: "1.5 kB", 5e6: "5.0 MB", 2_345_000_000: "2.35 GB"} {
		if got := Bytes(n); got != want {
			t.Errorf("%d: %s, not %s", n, got, want)
		}
	}
}

package restore

import (
	"testing"
	"time"
)

func TestDrawBar(t *testing.T) {
	for want, p := range map[string]Progress{
		"[..............................]   0%  0 B of 0 B  0 B/s":                      {},
		"[###############...............]  50%  5.0 MB of 10.0 MB  2.5 MB/s  2s left":   {BytesDone: 5e6, BytesTotal: 10e6, Took: 2 * time.Second},
		"[##############################] 100%  10.0 MB of 10.0 MB  10.0 MB/s  0s left": {BytesDone: 10e6, BytesTotal: 10e6, Took: time.Second},
		"[##############################] 100%  11.0 MB of 10.0 MB  11.0 MB/s  0s left": {BytesDone: 11e6, BytesTotal: 10e6, Took: time.Second},
	} {
		if got := drawBar(p); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

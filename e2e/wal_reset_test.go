package e2e

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/slashacom/slasha-init/internal/testbed"
)

// While nobody reads its WAL, an app's own checkpoint resets it: what had not been
// captured is then in the database file alone. Litestream looks at the frame where
// its last capture ended, finds it untouched, and goes on with the new frames.
//
// Here the container was killed, and the bucket is away when it is started again: the
// app writes on, past the 1,000 pages at which SQLite checkpoints.
func TestAWALThatWasResetUnseen(t *testing.T) {
	t.Parallel()
	for _, more := range []string{"280", "400"} {
		t.Run(more, func(t *testing.T) {
			t.Parallel()
			h := newHosts(t, "a")
			c := h.start("a", worker(t, h.volume["a"], "--burst", "250", "--every", "10m"))
			c.WaitAcked(250, 20*time.Second)
			c.WaitHealth(20*time.Second, allSynced)
			c.Kill()
			h.proxy.Cut()
			c = h.start("a", append([]string{testbed.Guestbook(t), "worker", "--db", h.volume["a"], "--every", "10m", "--burst"}, more))
			c.WaitHealth(30*time.Second, leaseIs("unknown"))
			testbed.Eventually(t, 30*time.Second, func() error {
				if len(c.Acked()) == 0 {
					return errors.New("nothing written yet")
				}
				return nil
			})
			h.proxy.Mend()
			c.WaitHealth(30*time.Second, allSynced)
			kept := testbed.Entries(t, stopCleanlyAndRestore(t, c, h.s3))
			if live := testbed.Entries(t, h.volume["a"]); !slices.Equal(live, kept) {
				t.Errorf("%d entries restored, %d live", len(kept), len(live))
			}
		})
	}
}

// The same with the bucket there: whether the app or Litestream comes first is
// chance, and the app may have ended before anything was captured.
func TestAWALThatWasResetInAHurry(t *testing.T) {
	t.Parallel()
	for range 5 {
		h := newHosts(t, "a")
		c := h.start("a", worker(t, h.volume["a"], "--burst", "250", "--every", "10m"))
		c.WaitAcked(250, 20*time.Second)
		c.WaitHealth(20*time.Second, allSynced)
		c.Kill()
		h.write("a", 280, 0)
		if live, kept := h.entries("a"), h.replicated(); live != kept {
			t.Errorf("%d entries restored, %d live", kept, live)
		}
	}
}

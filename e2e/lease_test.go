package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/superfly/ltx"

	"github.com/slashacom/slasha-init/healthz"
	"github.com/slashacom/slasha-init/internal/testbed"
)

// Instances on different volumes, of which one may write the replica. What the
// protocol does is tested in package lease; here it is what becomes of the app.

// A deploy on another host while the old container still runs: the new one waits,
// says for whom, and goes on from the last commit of the old one, which stopped or
// died.
func TestAnotherHostWaits(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*testbed.Container){
		"stopped": func(c *testbed.Container) { c.Signal(syscall.SIGTERM) },
		"killed":  func(c *testbed.Container) { c.Kill() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHosts(t, "a", "b", "c")
			first := h.start("a", worker(t, h.volume["a"], "--burst", "50", "--every", "10m"))
			first.WaitAcked(50, 20*time.Second)
			first.WaitHealth(20*time.Second, allSynced)
			if s := first.WaitHealth(20*time.Second, leaseIs("held")); s.Lease.Epoch != 1 {
				t.Errorf("the first's epoch is %d", s.Lease.Epoch)
			}
			second := h.start("b", worker(t, h.volume["b"], "--every", "10ms"))
			s := second.WaitHealth(10*time.Second, inPhase(healthz.Waiting))
			if s.Healthy || s.Lease.State != "waiting" || !strings.Contains(s.Lease.Holder, fmt.Sprintf("pid %d", first.Cmd.Process.Pid)) || !strings.Contains(text(s.HealthError), fmt.Sprintf("pid %d", first.Cmd.Process.Pid)) {
				t.Errorf("the second says %s, its lease is %s", text(s.HealthError), s.Lease.State)
			}
			third := h.start("c", []string{"echo", "started"}, "SLASHA_LOCK_TIMEOUT=1s")
			if code := third.Wait(20 * time.Second); code != 75 || strings.Contains(third.Stdout.String(), "started") {
				t.Errorf("the third: exit %d, %s", code, third.Stdout.String())
			}
			end(first)
			first.Wait(20 * time.Second)
			second.WaitAcked(10, 30*time.Second)
			if s := second.WaitHealth(20*time.Second, leaseIs("held")); s.Lease.Epoch != 2 {
				t.Errorf("the second's epoch is %d", s.Lease.Epoch)
			}
			wantAll(t, testbed.Entries(t, stopCleanlyAndRestore(t, second, h.s3)), append(first.Acked(), second.Acked()...))
		})
	}
}

// A container that is started again on its volume, also after it was killed, does
// not wait for its own lease.
func TestARestartTakesItsLeaseBack(t *testing.T) {
	t.Parallel()
	h := newHosts(t, "a")
	for epoch := uint64(1); epoch <= 3; epoch++ {
		began := time.Now()
		c := h.start("a", worker(t, h.volume["a"], "--every", "10ms"), "SLASHA_LEASE_TTL=1h")
		c.WaitAcked(1, 20*time.Second)
		if s := c.WaitHealth(20*time.Second, leaseIs("held")); s.Lease.Epoch != epoch {
			t.Errorf("epoch %d, want %d", s.Lease.Epoch, epoch)
		}
		if took := time.Since(began); took > 30*time.Second {
			t.Errorf("start %d took %s", epoch, took)
		}
		c.Kill()
	}
}

// A host that stood still while another took over, as a machine does that is moved:
// when it goes on it uploads nothing, stops its app, and exits with 75. What it had is set
// aside at its next start.
func TestAHostThatStoodStill(t *testing.T) {
	t.Parallel()
	h := newHosts(t, "a", "b")
	old := h.start("a", worker(t, h.volume["a"], "--every", "10ms"))
	old.WaitAcked(50, 20*time.Second)
	old.WaitHealth(20*time.Second, leaseIs("held"))
	old.Signal(syscall.SIGSTOP) // the app writes on
	acked := len(old.Acked())
	old.WaitAcked(acked+50, 20*time.Second)
	next := h.start("b", worker(t, h.volume["b"], "--every", "10ms"))
	next.WaitAcked(50, 30*time.Second)
	next.WaitHealth(20*time.Second, leaseIs("held"))
	old.Signal(syscall.SIGCONT)
	if s, err := old.Health(); err == nil && s.Lease.State == "held" {
		t.Errorf("it says that it holds the lease, epoch %d", s.Lease.Epoch)
	}
	if code := old.Wait(20 * time.Second); code != 75 {
		t.Errorf("exit %d, want 75", code)
	}
	if said := old.Stderr.String(); !strings.Contains(said, "another instance has taken this replica's lease") {
		t.Errorf("the old one does not say why: %s", said)
	}
	next.WaitAcked(len(next.Acked())+20, 20*time.Second)
	kept := testbed.Entries(t, stopCleanlyAndRestore(t, next, h.s3))
	wantAll(t, kept, next.Acked())
	// Nothing of the old one's got in.
	if live := testbed.Entries(t, h.volume["b"]); !slices.Equal(live, kept) {
		t.Errorf("%d entries restored are not the %d live ones", len(kept), len(live))
	}
	again := h.start("a", worker(t, h.volume["a"], "--count", "1", "--every", "0"))
	if code := again.Wait(20 * time.Second); code != 0 || !strings.Contains(again.Stderr.String(), "set the old database aside") {
		t.Errorf("the old host again: exit %d, %s", code, again.Stderr.String())
	}
}

// The same, but it gets a stop signal meanwhile, or a request for a sync. The transactions
// that the other host has uploaded have the numbers of those that are missing here, and
// must not pass for them.
func TestWhoStoodStillClaimsNothing(t *testing.T) {
	t.Parallel()
	h := newHosts(t, "a", "b")
	old := h.start("a", worker(t, h.volume["a"], "--every", "50ms"))
	old.WaitAcked(10, 20*time.Second)
	old.WaitHealth(20*time.Second, someSynced)
	old.Signal(syscall.SIGSTOP) // the app writes on
	before := len(old.Acked())
	next := h.start("b", worker(t, h.volume["b"], "--every", "5ms"), "SLASHA_SYNC_INTERVAL=10ms")
	next.WaitAcked(50, 30*time.Second)
	next.WaitHealth(20*time.Second, leaseIs("held"))
	old.WaitAcked(before+10, 20*time.Second)
	next.WaitHealth(20*time.Second, func(s healthz.Status) error {
		if n, err := ltx.ParseTXID(text(s.ReplicaTXID)); err != nil || n < 50 {
			return errors.New("uploaded up to " + text(s.ReplicaTXID))
		}
		return nil
	})
	asked := make(chan string, 1)
	go func() {
		code, said, wrong := testbed.Run(t, []string{"SLASHA_DB_PATH=" + h.volume["a"]}, 20*time.Second, testbed.SlashaInit(t), "sync", "--timeout", "10s")
		asked <- fmt.Sprintf("exit %d: %s%s", code, said, wrong)
	}()
	old.Signal(syscall.SIGTERM)
	old.Signal(syscall.SIGCONT)
	// It may notice the stop signal first, or that the lease is lost.
	if code := old.Wait(20 * time.Second); code != 70 && code != 75 {
		t.Errorf("exit %d, want 70 or 75: %s", code, old.Stderr.String())
	}
	if said := <-asked; strings.HasPrefix(said, "exit 0") {
		t.Errorf("sync: %s", said)
	}
	wantAll(t, testbed.Entries(t, stopCleanlyAndRestore(t, next, h.s3)), next.Acked())
}

// The bucket is away at the start: the app runs all the same, and nothing is
// uploaded before the lease is held. If another host turns out to have it, the app
// is stopped.
func TestTheLeaseCanBeTakenLate(t *testing.T) {
	t.Parallel()
	for name, other := range map[string]bool{"free": false, "another's": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHosts(t, "a", "b")
			h.write("a", 10, 0)
			var second *testbed.Container
			if other {
				second = testbed.StartContainer(t, append(h.s3.Settings(h.s3.URL(), h.volume["b"]), shortTTL), worker(t, h.volume["b"], "--every", "10ms")...)
				second.WaitAcked(5, 20*time.Second)
			}
			h.proxy.Cut()
			c := h.start("a", worker(t, h.volume["a"], "--every", "10ms"), "SLASHA_LOCK_TIMEOUT=2s")
			c.WaitAcked(10, 30*time.Second)
			c.WaitHealth(30*time.Second, func(s healthz.Status) error {
				if s.Healthy || !strings.Contains(text(s.HealthError), "lease is not held, so nothing is uploaded: bucket ") {
					return fmt.Errorf("health_error is %q", text(s.HealthError))
				}
				return leaseIs("unknown")(s)
			})
			h.proxy.Mend()
			if !other {
				c.WaitHealth(30*time.Second, leaseIs("held"))
				wantAll(t, testbed.Entries(t, stopCleanlyAndRestore(t, c, h.s3)), c.Acked())
				return
			}
			if code := c.Wait(40 * time.Second); code != 75 {
				t.Errorf("exit %d, want 75", code)
			}
			wantAll(t, testbed.Entries(t, stopCleanlyAndRestore(t, second, h.s3)), second.Acked())
		})
	}
}

// A service that ignores conditions is reported once, and without a lease everything
// goes on as with --lease off. With --lease required nothing is started there.
func TestAServiceWithoutConditions(t *testing.T) {
	t.Parallel()
	s3 := testbed.StartHeedless(t)
	for _, name := range []string{"first", "second"} {
		vol := newVolume(t)
		c := testbed.StartContainer(t, append(s3.Settings(vol.db(t)), shortTTL), worker(t, vol.db(t), "--burst", "20", "--every", "10m")...)
		c.WaitAcked(20, 20*time.Second)
		s := c.WaitHealth(20*time.Second, allSynced)
		if s.Lease.State != "unsupported" || strings.Count(c.Stderr.String(), "does not support conditional writes") != 1 {
			t.Errorf("the %s: the lease is %s: %s", name, s.Lease.State, c.Stderr.String())
		}
		c.Signal(syscall.SIGTERM)
		if code := c.Wait(20 * time.Second); code != 0 {
			t.Errorf("the %s: exit %d", name, code)
		}
		// The second one, on an empty volume, begins with what the first has left.
		if n := len(testbed.Entries(t, vol.db(t))); name == "second" && n != 40 {
			t.Errorf("%d entries, want those of both", n)
		}
	}
	vol := newVolume(t)
	code, _, said := testbed.Run(t, append(s3.Settings(vol.db(t)), "SLASHA_LEASE=required"), 20*time.Second, testbed.SlashaInit(t), "--", "echo", "started")
	if code != 78 || !strings.Contains(said, "does not support conditional writes") {
		t.Errorf("required: exit %d, %s", code, said)
	}
}

// With --lease required nothing is started before the lease is held.
func TestALeaseThatIsRequired(t *testing.T) {
	t.Parallel()
	h := newHosts(t, "a")
	h.write("a", 5, 0)
	h.proxy.Cut()
	c := h.start("a", []string{"echo", "started"}, "SLASHA_LEASE=required", "SLASHA_LOCK_TIMEOUT=3s")
	s := c.WaitHealth(10*time.Second, inPhase(healthz.Waiting))
	if !strings.Contains(text(s.HealthError), "lease can't be taken") {
		t.Errorf("it says %s", text(s.HealthError))
	}
	if code := c.Wait(30 * time.Second); code != 75 || strings.Contains(c.Stdout.String(), "started") {
		t.Errorf("exit %d, %s", code, c.Stdout.String())
	}
	h.proxy.Mend()
	c = h.start("a", []string{"echo", "started"}, "SLASHA_LEASE=required")
	if code := c.Wait(30 * time.Second); code != 0 || !strings.Contains(c.Stdout.String(), "started") {
		t.Errorf("exit %d, %s", code, c.Stdout.String())
	}
}

// A folder as the replica has a lease too; and --lease off asks for none.
func TestTheLeaseOfAFolder(t *testing.T) {
	t.Parallel()
	replica := t.TempDir()
	settings := func(db string, more ...string) []string {
		return append([]string{"SLASHA_DB_PATH=" + db, "SLASHA_ENDPOINT=file://" + replica, "SLASHA_HEALTH_ADDR=127.0.0.1:0", shortTTL}, more...)
	}
	first, second := newVolume(t), newVolume(t)
	a := testbed.StartContainer(t, settings(first.db(t)), worker(t, first.db(t), "--every", "10ms")...)
	a.WaitAcked(5, 20*time.Second)
	a.WaitHealth(10*time.Second, leaseIs("held"))
	b := testbed.StartContainer(t, settings(second.db(t)), worker(t, second.db(t), "--every", "10ms")...)
	b.WaitHealth(10*time.Second, inPhase(healthz.Waiting))
	a.Signal(syscall.SIGTERM)
	a.Wait(20 * time.Second)
	b.WaitAcked(5, 20*time.Second)
	b.WaitHealth(10*time.Second, leaseIs("held"))
	var record struct {
		Epoch    uint64
		Released bool
	}
	b.Signal(syscall.SIGTERM)
	b.Wait(20 * time.Second)
	data, err := os.ReadFile(filepath.Join(replica, "litestream", "slasha", "lease.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &record); err != nil || record.Epoch != 2 || !record.Released {
		t.Errorf("the record is %s, %v", data, err)
	}
	wantAll(t, testbed.Entries(t, second.db(t)), append(a.Acked(), b.Acked()...))

	off := newVolume(t)
	c := testbed.StartContainer(t, settings(off.db(t), "SLASHA_LEASE=off"), worker(t, off.db(t), "--every", "10ms")...)
	c.WaitAcked(5, 20*time.Second)
	c.WaitHealth(10*time.Second, leaseIs("off"))
}

// A worker that takes over a volume whose lease another host has taken says at once
// that nothing is uploaded, and stops in its time.
func TestATakeOverWithoutTheLease(t *testing.T) {
	t.Parallel()
	h := newHosts(t, "a", "b")
	old := h.start("a", worker(t, h.volume["a"], "--every", "20ms"))
	old.WaitAcked(20, 20*time.Second)
	old.WaitHealth(20*time.Second, leaseIs("held"))
	helper := h.start("a", worker(t, h.volume["a"], "--every", "20ms"), "SLASHA_PROCESS_TYPE=worker")
	helper.WaitAcked(20, 20*time.Second)
	helper.WaitHealth(20*time.Second, leaseIs("following"))
	old.Signal(syscall.SIGSTOP)
	next := h.start("b", worker(t, h.volume["b"], "--every", "20ms"))
	next.WaitHealth(30*time.Second, leaseIs("held"))
	old.Kill()
	helper.WaitHealth(20*time.Second, func(s healthz.Status) error {
		if s.Lease.State != "waiting" || s.Healthy || s.PendingSince == nil || !strings.Contains(text(s.HealthError), "lease") {
			return fmt.Errorf("the lease is %s, healthy %v, pending since %v, %s", s.Lease.State, s.Healthy, s.PendingSince, text(s.HealthError))
		}
		return nil
	})
	helper.Signal(syscall.SIGTERM)
	if code := helper.Wait(12 * time.Second); code != 70 {
		t.Errorf("exit %d, want 70", code)
	}
	wantAll(t, testbed.Entries(t, stopCleanlyAndRestore(t, next, h.s3)), next.Acked())
}

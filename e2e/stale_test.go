package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/benbjohnson/litestream"
	"github.com/benbjohnson/litestream/file"

	"github.com/slashacom/slasha-init/healthz"
	"github.com/slashacom/slasha-init/internal/testbed"
)

// Volumes that do not have what the replica has.

// An app moves to another host and back: the volume that it left behind there is
// stale. It is set aside, and the app goes on with what it wrote last.
func TestAMoveToAnotherHostAndBack(t *testing.T) {
	t.Parallel()
	h := newHosts(t, "a", "b")
	h.write("a", 20, 0)
	h.write("b", 20, 0) // restored first: it has none
	h.sameFiles("b")
	if said := h.write("b", 1, 0); !strings.Contains(said, "lineage=continues") || strings.Contains(said, "msg=restored") {
		t.Errorf("a restart: %s", said)
	}
	before := h.replicated()

	said := h.write("a", 1, 74, "SLASHA_ON_STALE=fail")
	if n := h.entries("a"); n != 20 || !strings.Contains(said, "the database ends at transaction 00000000000000") || !strings.Contains(said, "the replica goes on to 00000000000000") {
		t.Errorf("%d entries; %s", n, said)
	}
	if n := h.replicated(); n != before {
		t.Errorf("the replica has %d entries, not %d", n, before)
	}

	said = h.write("a", 5, 0)
	if n := h.entries("a"); n != 46 || !strings.Contains(said, "the database is stale") {
		t.Errorf("%d entries, not 46; %s", n, said)
	}
	if list := aside(t, h.volume["a"]); len(list) != 1 || len(testbed.Entries(t, list[0])) != 20 {
		t.Errorf("set aside: %v", list)
	}
	if n := h.replicated(); n != 46 {
		t.Errorf("the replica has %d entries, not 46", n)
	}
	if said := h.write("a", 1, 0); strings.Contains(said, "msg=restored") {
		t.Errorf("restored again: %s", said)
	}
}

// Both went on: one without its bucket. What it never uploaded is kept, and the
// log says how much that is.
func TestVolumesThatWentOnDifferently(t *testing.T) {
	t.Parallel()
	for _, more := range []int{3, 300} { // behind the replica by number, and ahead of it
		t.Run(fmt.Sprint(more), func(t *testing.T) {
			t.Parallel()
			h := newHosts(t, "a", "b")
			h.write("a", 20, 0)
			// The bucket goes away under a, which writes on.
			c := h.start("a", worker(t, h.volume["a"], "--every", "10ms"), "SLASHA_SYNC_INTERVAL=10ms", "SLASHA_STOP_TIMEOUT=1s")
			c.WaitHealth(20*time.Second, healthy)
			h.proxy.Cut()
			c.WaitAcked(more, 30*time.Second)
			c.Kill()
			acked := len(c.Acked())
			h.proxy.Mend()
			h.write("b", 50, 0)
			replicated := h.replicated()

			said := h.write("a", 5, 0)
			if n := h.entries("a"); n != replicated+5 {
				t.Errorf("%d entries, not %d", n, replicated+5)
			}
			list := aside(t, h.volume["a"])
			if len(list) != 1 || len(testbed.Entries(t, list[0])) < 20+acked {
				t.Errorf("set aside: %v", list)
			}
			if !strings.Contains(said, "the database is stale") || !strings.Contains(said, "here are not in the replica") {
				t.Errorf("the log: %s", said)
			}
			if n := h.replicated(); n != replicated+5 {
				t.Errorf("the replica has %d entries, not %d", n, replicated+5)
			}
		})
	}
}

// The bucket is out of reach when a stale volume starts: the app starts at once,
// and as soon as the bucket answers, before anything is uploaded, it is stopped
// and goes on with what the replica has.
func TestAStaleVolumeThatIsFoundLate(t *testing.T) {
	t.Parallel()
	for onStale, code := range map[string]int{"restore": 0, "fail": 74} {
		t.Run(onStale, func(t *testing.T) {
			t.Parallel()
			h := newHosts(t, "a", "b")
			h.write("a", 20, 0)
			h.write("b", 20, 0)
			h.proxy.Cut()
			c := h.start("a", worker(t, h.volume["a"], "--every", "20ms"), "SLASHA_ON_STALE="+onStale)
			c.WaitAcked(10, 20*time.Second)
			if s, err := c.Health(); err != nil || s.Healthy {
				t.Errorf("healthy without a bucket: %v, %v", s.Healthy, err)
			}
			h.proxy.Mend()
			if onStale == "restore" {
				isRunning(t, c, 2)
				s := c.WaitHealth(20*time.Second, healthy)
				if text(s.Restore.Reason) != "stale" || s.Restore.State != healthz.RestoreDone || s.Restore.SetAside == nil {
					t.Errorf("health says %+v", s.Restore)
				}
				c.WaitAcked(len(c.Acked())+10, 20*time.Second)
				c.Signal(syscall.SIGTERM)
			}
			if got := c.Wait(40 * time.Second); got != code {
				t.Errorf("exit %d, not %d", got, code)
			}
			if onStale == "fail" {
				if n := h.replicated(); n != 40 {
					t.Errorf("the replica has %d entries, not 40", n)
				}
				return
			}
			if n, live := h.replicated(), h.entries("a"); n != live || n < 50 {
				t.Errorf("the replica has %d entries, the database %d", n, live)
			}
			list := aside(t, h.volume["a"])
			if len(list) != 1 || len(testbed.Entries(t, list[0])) < 30 {
				t.Errorf("set aside: %v", list)
			}
		})
	}
}

// What was restored is not stale, though Litestream has captured nothing of it
// yet: killed before its first upload, it goes on where it was. So does a restore
// to a point in time, which has less than the replica on purpose.
func TestKillBeforeTheFirstUploadAfterARestore(t *testing.T) {
	t.Parallel()
	for name, settings := range map[string][]string{
		"the newest":      nil,
		"a point in time": {"SLASHA_RESTORE_PENDING=back"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHosts(t, "a", "b")
			h.write("a", 20, 0)
			if settings != nil {
				<-time.After(20 * time.Millisecond) // files are stamped with milliseconds
				settings = append(settings, "SLASHA_RESTORE_TIMESTAMP="+time.Now().UTC().Format(time.RFC3339Nano))
				<-time.After(20 * time.Millisecond)
				h.write("a", 5, 0)
			}
			// Nothing gets into the bucket, but everything can be read from it.
			h.proxy.Toxic("limit_data", "upstream", map[string]any{"bytes": 30000})
			host := "b"
			if settings != nil {
				host = "a"
			}
			app, open := gate(t, worker(t, h.volume[host], "--every", "5ms"))
			c := h.start(host, app, settings...)
			testbed.WaitOutput(c.Process, c.Stderr, "restored", 20*time.Second, testbed.Contains("msg=restored"))
			h.proxy.Heal()
			h.proxy.Cut()
			open()
			c.WaitAcked(20, 20*time.Second)
			c.Kill()
			acked := len(c.Acked())
			h.proxy.Mend()
			said := h.write(host, 5, 0, settings...)
			if strings.Contains(said, "msg=restored") || strings.Contains(said, "stale") {
				t.Errorf("the log: %s", said)
			}
			if n, live := h.replicated(), h.entries(host); n != live || live < 20+acked+5 {
				t.Errorf("the replica has %d entries, the database %d, of at least %d", n, live, 20+acked+5)
			}
		})
	}
}

// A lifecycle rule has deleted the small files, and what they were merged into is
// still there. Litestream counts from 1 again then, and what it uploads is below
// what a restore finds.
func TestSmallFilesEatenByALifecycleRule(t *testing.T) {
	t.Parallel()
	for _, lost := range []bool{true, false} {
		t.Run(fmt.Sprintf("volume lost %v", lost), func(t *testing.T) {
			t.Parallel()
			vol, bucket := newVolume(t), t.TempDir()
			db := vol.db(t)
			settings := []string{"SLASHA_DB_PATH=" + db, "SLASHA_ENDPOINT=file://" + bucket, "SLASHA_HEALTH_ADDR=127.0.0.1:0", "SLASHA_SYNC_INTERVAL=10ms"}
			write := func(count int) {
				t.Helper()
				c := testbed.StartContainer(t, settings, worker(t, db, "--every", "2ms", "--count", fmt.Sprint(count))...)
				if code := c.Wait(30 * time.Second); code != 0 {
					t.Fatalf("exit %d", code)
				}
			}
			write(50)
			replica := filepath.Join(bucket, "litestream")
			if _, err := litestream.NewCompactor(file.NewReplicaClient(replica), nil).Compact(t.Context(), 1); err != nil {
				t.Fatal(err)
			}
			if err := os.RemoveAll(filepath.Join(replica, "ltx", "0")); err != nil {
				t.Fatal(err)
			}
			if lost {
				vol.lose(t)
			} else if err := os.RemoveAll(filepath.Join(filepath.Dir(db), ".app.db-litestream", "ltx", "0", "0000000000000001-0000000000000001.ltx")); err != nil {
				t.Fatal(err)
			}
			write(7)
			write(5)
			restored := filepath.Join(t.TempDir(), "restored.db")
			testbed.MustRun(t, settings, 30*time.Second, testbed.SlashaInit(t), "restore", "--output", restored)
			if n, live := len(testbed.Entries(t, restored)), len(testbed.Entries(t, db)); n != 62 || live != 62 {
				t.Errorf("%d entries are restored, %d live, not 62", n, live)
			}
		})
	}
}

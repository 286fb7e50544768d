package e2e

import (
	"bytes"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/benbjohnson/litestream"
	"github.com/benbjohnson/litestream/file"

	"github.com/slashacom/slasha-init/healthz"
	"github.com/slashacom/slasha-init/internal/testbed"
)

// Restores over the existing database that are requested before a start.

// A requested restore is made once: the old database is kept, a restart
// does not do it again, a new request does.
func TestRestoreOverTheDatabase(t *testing.T) {
	t.Parallel()
	s3, vol := testbed.StartS3(t), newVolume(t)
	db := vol.db(t)
	settings := s3.Settings(s3.URL(), db)
	backedUp(t, settings, db, 20, 5)

	start := func(request string) (c *testbed.Container, open func()) {
		t.Helper()
		app, open := gate(t, worker(t, db, "--every", "0", "--count", "1")) // so that health can be looked at
		return testbed.StartContainer(t, append(settings, "SLASHA_RESTORE_PENDING="+request), app...), open
	}
	c, open := start("request-1")
	s := c.WaitHealth(20*time.Second, func(s healthz.Status) error {
		if s.Restore.State != healthz.RestoreDone {
			return fmt.Errorf("restore is %s", s.Restore.State)
		}
		return nil
	})
	list := aside(t, db)
	if text(s.Restore.Reason) != "pending" || len(list) != 1 || text(s.Restore.SetAside) != filepath.Dir(list[0]) {
		t.Errorf("health says %+v; set aside %v", s.Restore, list)
	}
	open()
	if code := c.Wait(20 * time.Second); code != 0 {
		t.Fatalf("exit %d", code)
	}
	if n := len(testbed.Entries(t, db)); n != 21 {
		t.Errorf("%d entries, not 20 and one", n)
	}
	if n := len(testbed.Entries(t, list[0])); n != 25 {
		t.Errorf("%d entries in the old database", n)
	}
	for n, request := range []string{"request-1", "request-2", "request-2"} {
		before := len(aside(t, db))
		c, open := start(request)
		open()
		if code := c.Wait(20 * time.Second); code != 0 {
			t.Fatalf("exit %d", code)
		}
		again := n == 1
		if did := len(aside(t, db)) > before; did != again || strings.Contains(c.Stderr.String(), "msg=restored") != again {
			t.Errorf("start %d, %s: restored %v", n, request, did)
		}
	}
	if n := len(testbed.Entries(t, db)); n != 24 {
		t.Errorf("%d entries in the end", n)
	}
	// Replication goes on from there.
	restored := restoreOfficially(t, s3)
	if n := len(testbed.Entries(t, restored)); n != 24 {
		t.Errorf("%d entries in the replica", n)
	}
}

// If it can't be made, the database is byte for byte as it was, and the app is
// not started.
func TestRestoreOverTheDatabaseThatFails(t *testing.T) {
	t.Parallel()
	s3, vol := testbed.StartS3(t), newVolume(t)
	db := vol.db(t)
	backedUp(t, s3.Settings(s3.URL(), db), db, 10, 3)
	before, err := os.ReadFile(db)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change string
		says   string
	}{
		"an empty replica": {"SLASHA_PATH_PREFIX=another/app", "there is nothing to restore"},
		"a wrong key":      {"SLASHA_ACCESS_KEY_ID=MADEUPWRONGKEY000000", "refused the access key"},
		"another bucket":   {"SLASHA_BUCKET=no-such-bucket", "there is no bucket"},
	} {
		t.Run(name, func(t *testing.T) {
			w := worker(t, db, "--count", "1")
			code, out, said := testbed.Run(t, append(s3.Settings(s3.URL(), db), "SLASHA_RESTORE_PENDING=true", c.change), 40*time.Second, testbed.SlashaInit(t), append([]string{"--"}, w...)...)
			if code != 74 || out != "" || !strings.Contains(said, c.says) {
				t.Errorf("exit %d, %q, %s", code, out, said)
			}
			if after, err := os.ReadFile(db); err != nil || !bytes.Equal(before, after) {
				t.Errorf("the database has changed: %v", err)
			}
			if list := aside(t, db); len(list) != 0 {
				t.Errorf("set aside: %v", list)
			}
		})
	}
}

// Killed at any moment, a restore is ended by the next start, and is made once.
func TestKillDuringARestoreOverTheDatabase(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // not for secrets
	s3, vol := testbed.StartS3(t), newVolume(t)
	db := vol.db(t)
	settings := s3.Settings(s3.URL(), db)
	c := testbed.StartContainer(t, settings, worker(t, db, "--every", "0", "--count", "400", "--size", "20000")...)
	if code := c.Wait(60 * time.Second); code != 0 {
		t.Fatalf("exit %d", code)
	}
	rows := 400
	for round := range 12 {
		env := slices.Concat(settings, []string{fmt.Sprintf("SLASHA_RESTORE_PENDING=request-%d", round)})
		c := testbed.StartContainer(t, env, "sleep", "60")
		select {
		case <-time.After(time.Duration(random.IntN(600)) * time.Millisecond):
		case <-c.Done():
			t.Fatalf("round %d: it ended by itself: %s", round, c.Stderr)
		}
		c.Signal(syscall.SIGKILL)
		c.Wait(5 * time.Second)
		was := "before it was done"
		if strings.Contains(c.Stderr.String(), "msg=restored") {
			was = "when it was done"
		}

		c = testbed.StartContainer(t, env, worker(t, db, "--every", "0", "--count", "1")...)
		if code := c.Wait(30 * time.Second); code != 0 {
			t.Fatalf("round %d, killed %s: exit %d", round, was, code)
		}
		rows++
		if n := len(testbed.Entries(t, db)); n != rows {
			t.Fatalf("round %d, killed %s: %d entries, not %d", round, was, n, rows)
		}
		c = testbed.StartContainer(t, env, "true")
		c.Wait(20 * time.Second)
		if strings.Contains(c.Stderr.String(), "msg=restored") {
			t.Fatalf("round %d, killed %s: restored once more", round, was)
		}
		if n := len(aside(t, db)); n == 0 || n > 2 {
			t.Fatalf("round %d: %d databases are set aside", round, n)
		}
		t.Logf("round %d: killed %s", round, was)
	}
}

// Plain true means once for each container: not again after a restart of the
// same one, and again in the next.
func TestRestorePendingTrueInDocker(t *testing.T) {
	t.Parallel()
	needDocker(t)
	s3, img, data := testbed.StartS3(t), image(t), t.TempDir()
	options := []string{"--user", "0", "--volume", data + ":/data", "--env", "SLASHA_RESTORE_PENDING=true"}
	for _, kv := range s3.Settings(s3.URL(), "/data/app.db") {
		options = append(options, "--env", kv)
	}
	backedUp(t, s3.Settings(s3.URL(), filepath.Join(data, "app.db")), filepath.Join(data, "app.db"), 5, 1)
	for n := 1; n <= 2; n++ {
		cmd, name := inDocker(t, img, options, "/guestbook", "worker", "--db", "/data/app.db", "--every", "0", "--count", "1")
		for restart := range 2 {
			if restart == 0 {
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
			} else {
				docker(t, "start", "--attach", name)
			}
			if got := len(aside(t, filepath.Join(data, "app.db"))); got != n {
				t.Errorf("container %d, restart %d: %d databases are set aside", n, restart, got)
			}
		}
	}
}

// The app goes back in time, and on from there: the new line is the newest, and the old
// one, with what was written after that time, can still be restored, also when the small
// files of both have been compacted.
func TestPointInTime(t *testing.T) {
	t.Parallel()
	vol, bucket := newVolume(t), t.TempDir()
	db := vol.db(t)
	settings := []string{"SLASHA_DB_PATH=" + db, "SLASHA_ENDPOINT=file://" + bucket, "SLASHA_HEALTH_ADDR=127.0.0.1:0"}
	write := func(count int, more ...string) *testbed.Container {
		t.Helper()
		c := testbed.StartContainer(t, append(settings, more...), worker(t, db, "--every", "1ms", "--count", fmt.Sprint(count))...)
		if code := c.Wait(30 * time.Second); code != 0 {
			t.Fatalf("exit %d", code)
		}
		return c
	}
	moment := func() string {
		time.Sleep(20 * time.Millisecond) // files are stamped with milliseconds
		defer time.Sleep(20 * time.Millisecond)
		return time.Now().UTC().Format(time.RFC3339Nano)
	}
	write(10)
	ten := moment()
	write(5)
	fifteen := moment()
	c := write(3, "SLASHA_RESTORE_PENDING=back", "SLASHA_RESTORE_TIMESTAMP="+ten)
	if n := len(testbed.Entries(t, db)); n != 13 {
		t.Fatalf("%d entries after going back, not 10 and 3", n)
	}
	if list := aside(t, db); len(list) != 1 || len(testbed.Entries(t, list[0])) != 15 {
		t.Errorf("set aside: %v", list)
	}
	write(2, "SLASHA_RESTORE_PENDING=back", "SLASHA_RESTORE_TIMESTAMP="+ten)

	// What a running container does half a minute later.
	replica := file.NewReplicaClient(filepath.Join(bucket, "litestream"))
	if _, err := litestream.NewCompactor(replica, slog.New(slog.DiscardHandler)).Compact(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	small, err := filepath.Glob(filepath.Join(bucket, "litestream", "ltx", "0", "*.ltx"))
	if err != nil || len(small) < 4 { // one of each life at least
		t.Fatalf("%v, %v", small, err)
	}
	for _, f := range small[:len(small)-1] {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		at   []string
		want int
	}{"the newest": {nil, 15}, "the old line's end": {[]string{"--timestamp", fifteen}, 15}, "of the new line": {[]string{"--timestamp", moment()}, 15}} {
		out := filepath.Join(t.TempDir(), "restored.db")
		testbed.MustRun(t, settings, 20*time.Second, testbed.SlashaInit(t), append([]string{"restore", "--output", out}, c.at...)...)
		entries := testbed.Entries(t, out)
		if len(entries) != c.want {
			t.Errorf("%s: %d entries", name, len(entries))
		}
		// Both lines have 15 entries; the old line's 11th was written before the way back.
		last, err := time.Parse(time.RFC3339Nano, fifteen)
		if err != nil {
			t.Fatal(err)
		}
		if isOld := entries[10].At.Before(last); isOld != (name == "the old line's end") {
			t.Errorf("%s is of the other line", name)
		}
	}
	if !strings.Contains(c.Stderr.String(), "a restore was requested") {
		t.Errorf("the log does not say why: %s", c.Stderr)
	}

	// Before there was anything, and in the future.
	for at, want := range map[string]struct {
		code int
		says string
	}{"2020-01-01T00:00:00Z": {74, "no backup from before 2020-01-01T00:00:00Z"}, "2999-01-01T00:00:00Z": {78, "lies in the future"}, "yesterday": {78, "is not a time"}} {
		code, _, said := testbed.Run(t, append(settings, "SLASHA_RESTORE_PENDING=x", "SLASHA_RESTORE_TIMESTAMP="+at), 20*time.Second, testbed.SlashaInit(t), "--", "true")
		if code != want.code || !strings.Contains(said, want.says) {
			t.Errorf("%s: exit %d, %s", at, code, said)
		}
	}
}
